"""From the integer graph to streaming layers, one rule per operator; what has no rule is refused with its node."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx_ir as ir

from edgec.errors import EdgecError, Refusal, UnsupportedModelError
from edgec.frontend.values import constant_of, input_of, node_shapes, shape_of
from edgec.lowering.context import Refused, attribute, refuse
from edgec.lowering.integers import Scale, exponentials, sum_rule
from edgec.lowering.window import window as spatial_window
from edgec.targets.fpga import rounding
from edgec.targets.fpga.layers import (
    Array,
    AveragePool,
    Depthwise,
    ExactProduct,
    Feature,
    Layer,
    Lookup,
    MaxPool,
    Product,
    Requantisation,
    Softmax,
    Sum,
    WeightedLayer,
    Window,
)

QUANTISE = "quantise it: add --quantize int8 --calib SAMPLES.npz"


@dataclass(frozen=True)
class Port:
    """An input or output of the network, and how the host reads or writes what streams for it.

    Attributes:
        name: the ONNX value's.
        shape: of the tensor.
        dtype: float32 or int8.
        value: what streams.
        feature: its extents, in bytes.
        scale: of a float32 tensor in bytes: real = scale · (q − zero); 0 for an int8 one, and for sums.
        zero: its zero point.
        factors: of a float32 tensor in int32 sums: real = fl(sum) · factor, one a channel; empty for one in bytes.
        softmax: whether the tensor is the softmax of these numbers over its channels, which the host computes.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    value: str
    feature: Feature
    scale: float = 0.0
    zero: int = 0
    factors: tuple[float, ...] = ()
    softmax: bool = False


@dataclass(frozen=True)
class Network:
    """A model as layers in an order in which each follows those that it reads."""

    name: str
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    layers: tuple[Layer, ...]

    @property
    def macs(self) -> int:
        return sum(layer.macs for layer in self.layers)

    def readers(self, value: str) -> int:
        """How often ``value`` is read, by layers and as an output."""
        layers = sum(layer.inputs.count(value) for layer in self.layers)
        return layers + sum(port.value == value for port in self.outputs)

    def producer(self, value: str) -> Layer | None:
        """The layer that writes ``value``; None for an input."""
        return next((layer for layer in self.layers if layer.output == value), None)


def read_network(model: ir.Model, name: str) -> Network:
    """The streaming layers of a graph that has been through every pass.

    Raises:
        EdgecError: the model is not quantised, or its batch is not 1.
        UnsupportedModelError: listing every node without a streaming template.
    """
    reader = _Reader(model)
    for node in model.graph:
        reader.read(node)
    if reader.refusals:
        _explain(model, reader.refusals)
    return Network(name, tuple(reader.ports), reader.outputs(), tuple(reader.layers.values()))


def _explain(model: ir.Model, refusals: Sequence[Refusal]) -> None:
    if not any(node.op_type == "QuantizeLinear" for node in model.graph):
        raise EdgecError(f"an FPGA computes in integers, and the model has none; {QUANTISE}")
    raise UnsupportedModelError(refusals)


class _Reader:
    """The layers found so far, by the value that each writes."""

    def __init__(self, model: ir.Model) -> None:
        self.model = model
        self.layers: dict[str, Layer] = {}
        self.ports: list[Port] = []
        self.refusals: list[Refusal] = []
        self._streams: dict[str, tuple[str, Feature]] = {}
        self._reals: dict[str, Port] = {}
        self._names: set[str] = set()
        for value in model.graph.inputs:
            if value.dtype == ir.DataType.INT8:
                self._open(value, value, 0.0, 0)

    def read(self, node: ir.Node) -> None:
        rule = _RULES.get((node.domain, node.op_type))
        try:
            if rule is None:
                reason = "it has no streaming template for FPGAs"
                refuse(reason, f"an FPGA has {', '.join(sorted(op for _, op in _RULES))}; compile it for a CPU target")
            rule(self, node)
        except Refused as refused:
            self.refusals.append(Refusal(str(node.name), node.op_type, node_shapes(node), refused.reason, refused.fix))
            for value in node.outputs:  # what follows is judged by itself
                self._streams.setdefault(str(value.name), ("", _feature(value, check=False)))

    def stream(self, value: ir.Value | None) -> tuple[str, Feature]:
        """The streamed value that holds ``value``, and its extents."""
        found = None if value is None else self._streams.get(str(value.name))
        if found is None:
            refuse("it reads a tensor that does not stream as bytes", QUANTISE)
        return found

    def alias(self, value: ir.Value, stream: tuple[str, Feature]) -> None:
        """Say that ``value`` is the same stream under another shape."""
        self._streams[str(value.name)] = stream

    def facts(self, node: ir.Node, *sources: ir.Value | None, real: bool = False) -> dict[str, Any]:
        """What every layer is made of; one that ends the network may have a ``real`` output."""
        streams = [self.stream(source) for source in sources]
        output = node.outputs[0]
        result = _feature(output)
        if str(output.dtype) != "INT8" and not real:
            refuse(f"its output is {output.dtype}", QUANTISE)
        return {
            "name": self._identifier(str(node.name) or node.op_type), "node": str(node.name),
            "inputs": tuple(name for name, _ in streams), "output": str(output.name),
            "source": streams[0][1], "result": result,
        }  # fmt: skip

    def add(self, node: ir.Node, layer: Layer) -> None:
        self.layers[layer.output] = layer
        self.alias(node.outputs[0], (layer.output, layer.result))

    def _identifier(self, name: str) -> str:
        plain = re.sub(r"\W+", "_", name).strip("_").lower() or "layer"
        plain = f"layer_{plain}" if plain[0].isdigit() else plain
        found, count = plain, 1
        while found in self._names:
            count += 1
            found = f"{plain}_{count}"
        self._names.add(found)
        return found

    def _open(self, value: ir.Value, stream: ir.Value, scale: float, zero: int) -> None:
        feature = _feature(value)
        dtype = "float32" if scale else "int8"
        self.ports.append(Port(str(value.name), shape_of(value), dtype, str(stream.name), feature, scale, zero))
        self.alias(stream, (str(stream.name), feature))

    def quantize(self, node: ir.Node) -> None:
        """Of an input only: the host does it."""
        value = node.inputs[0]
        assert value is not None
        if not value.is_graph_input():
            refuse("it quantises what was computed in floats", QUANTISE)
        grid = _scale(node, 1)
        if str(node.outputs[0].dtype) != "INT8":
            refuse(f"it quantises to {node.outputs[0].dtype}", "an FPGA streams int8")
        if any(port.name == value.name for port in self.ports):
            refuse("its input is quantised twice", "quantise it once, for all that read it")
        self._open(value, node.outputs[0], grid.scale, grid.zero)

    def dequantize(self, node: ir.Node) -> None:
        """Of what ends the network only: the host does it."""
        name, feature = self.stream(node.inputs[0])
        grid = _scale(node, 1)
        self._end(node, Port("", (), "float32", name, feature, grid.scale, grid.zero))

    def _end(self, node: ir.Node, port: Port) -> None:
        """Say that a node's output is real, by ``port``; a softmax may follow it, and nothing else."""
        readers = [user.op_type for user, _ in node.outputs[0].uses()]
        if set(readers) - {"Softmax"} or (port.softmax and readers):
            refuse("something computes in floats with its result", QUANTISE)
        self._reals[str(node.outputs[0].name)] = port

    def exact_product(self, node: ir.Node) -> None:
        """A layer with real outputs: its sums leave the network."""
        make = _exact_dense if node.op_type == "GemmDequantize" else _exact_convolution
        layer, multiplier = make(self, node)
        self.layers[layer.output] = layer
        rows = layer.result
        bytes_ = Feature(rows.height, rows.width, 4 * rows.channels)
        factors = tuple(float(each) for each in multiplier)
        self._end(node, Port("", (), "float32", layer.output, bytes_, factors=factors))

    def real_softmax(self, node: ir.Node) -> None:
        """On the host."""
        value = node.inputs[0]
        port = None if value is None else self._reals.get(str(value.name))
        if port is None:
            refuse("it reads a tensor that does not stream as bytes", QUANTISE)
        if port.feature.pixels > 1 or attribute(node, "axis", -1) % len(shape_of(value)) != 1:
            refuse("it is computed on the host, which takes one over channels", QUANTISE)
        self._end(node, replace(port, softmax=True))

    def outputs(self) -> tuple[Port, ...]:
        return tuple(map(self._output, self.model.graph.outputs))

    def _output(self, value: ir.Value) -> Port:
        real = self._reals.get(str(value.name))
        if real is not None:
            return replace(real, name=str(value.name), shape=shape_of(value))
        try:
            name, feature = self.stream(value)
        except Refused as refused:
            raise EdgecError(f"the output '{value.name}': {refused.reason}; {refused.fix}") from None
        return Port(str(value.name), shape_of(value), "int8", name, feature)

    def clamp(self, node: ir.Node) -> None:
        """A clamp of bytes goes into what computes them, where nothing else reads them; else it is a table."""
        limits = [constant_of(input_of(node, index)) for index in (1, 2)]
        low, high = (
            default if limit is None else int(limit.reshape(-1)[0])
            for limit, default in zip(limits, (-128, 127), strict=True)
        )
        source = node.inputs[0]
        name, _ = self.stream(source)
        layer = self.layers.get(name)
        assert source is not None
        alone = len(source.uses()) == 1 and not source.is_graph_output()
        if alone and isinstance(layer, WeightedLayer | AveragePool):
            del self.layers[name]
            self.add(node, replace(layer, output=str(node.outputs[0].name), end=layer.end.clamped(low, high)))
        elif alone and isinstance(layer, Sum):
            del self.layers[name]
            narrowed = replace(layer, low=max(layer.low, low), high=min(layer.high, high))
            self.add(node, replace(narrowed, output=str(node.outputs[0].name)))
        else:
            table = np.clip(np.arange(-128, 128), low, high).astype(np.int8)
            self.add(node, Lookup(**self.facts(node, source), table=table))


def _feature(value: ir.Value, check: bool = True) -> Feature:
    """The extents in which a tensor (N, C, …), N = 1, streams."""
    shape = shape_of(value)
    if check and (len(shape) > 4 or shape[:1] != (1,)):
        refuse(
            f"'{value.name}' has the shape {list(shape)}, and an FPGA streams one sample of up to two spatial axes",
            "pin the batch to 1 with --shape",
        )
    channels, *spatial = (*shape[1:], 1) if len(shape) == 1 else shape[1:] or (1,)
    height, width = ([1] * (2 - len(spatial)) + list(spatial))[:2]
    return Feature(int(height), int(width), int(channels))


def _constant(node: ir.Node, index: int, what: str) -> Array:
    found = constant_of(input_of(node, index))
    if found is None:
        refuse(f"its {what} is computed at run time", "make it an initialiser of the model")
    return found


def _scale(node: ir.Node, index: int) -> Scale:
    """The scale at input ``index`` and the zero point behind it, each one number."""
    scale = _constant(node, index, "scale").reshape(-1)
    zero = np.zeros(1, np.int8) if input_of(node, index + 1) is None else _constant(node, index + 1, "zero point")
    if scale.size > 1:
        refuse("it has a scale for each channel of an activation", "quantise activations with one scale a tensor")
    if zero.dtype != np.int8:
        refuse(f"its integers are {zero.dtype}", "an FPGA streams int8; say int8 for it in the recipe")
    return Scale(float(scale[0]), int(zero.reshape(-1)[0]), "int8")


def _convolution(reader: _Reader, node: ir.Node) -> None:
    """Multipliers are made as the lowering of QLinearConv makes them: in float32, from float32 scales."""
    facts = reader.facts(node, node.inputs[0])
    kernel, window = _kernel(node, facts["source"])
    scales = [_constant(node, index, "scale").reshape(-1).astype(np.float32) for index in (1, 4, 6)]
    bias = np.zeros(kernel.shape[0], np.int64) if len(node.inputs) < 9 else _constant(node, 8, "bias").astype(np.int64)
    total = bias - _zero_sums(kernel, window.fill)
    multiplier = np.broadcast_to(scales[0] * scales[1] / scales[2], total.shape).astype(np.float32)
    end = _requantisation(total, multiplier, _scale(node, 6).zero)
    if attribute(node, "group", 1) == facts["source"].channels == kernel.shape[0] and kernel.shape[1] == 1:
        weights = np.ascontiguousarray(kernel[:, 0].transpose(1, 2, 0).reshape(window.taps, -1))
        reader.add(node, Depthwise(**facts, window=window, weights=weights, end=end))
        return
    reader.add(node, Product(**facts, **_dense_convolution(node, facts, kernel, window), end=end))


def _exact_convolution(reader: _Reader, node: ir.Node) -> tuple[ExactProduct, Array]:
    """The layer, and what makes its sums real."""
    facts = reader.facts(node, node.inputs[0], real=True)
    kernel, window = _kernel(node, facts["source"])
    start = _constant(node, 6, "bias").astype(np.int64) - _zero_sums(kernel, window.fill)
    multiplier = _scale(node, 1).scale * _constant(node, 4, "scale").astype(np.float64)
    layer = ExactProduct(**facts, **_dense_convolution(node, facts, kernel, window), end=_exact(start))
    return layer, np.broadcast_to(multiplier, start.shape).astype(np.float32)


def _exact(start: Array) -> Requantisation:
    """Sums with a bias, and nothing behind them."""
    return Requantisation(start.astype(np.int32), np.zeros(start.shape, np.float32), 0)


def _kernel(node: ir.Node, source: Feature) -> tuple[Array, Window]:
    """The weights of a convolution, int8 [co, ci / groups, kh, kw], and its window with the zero point around."""
    kernel = _constant(node, 3, "weights")
    if kernel.dtype != np.int8 or _constant(node, 5, "zero point of the weights").any():
        refuse("its weights are not symmetric int8", "quantise weights with the zero point 0")
    if kernel.ndim not in (3, 4):
        refuse("it has more than two spatial axes", "compile it for a CPU target")
    window = _window(node, source, kernel.shape[2:], _scale(node, 1).zero)
    return kernel[:, :, None, :] if kernel.ndim == 3 else kernel, window


def _zero_sums(kernel: Array, zero: int) -> Array:
    """What the input's zero point adds to every sum."""
    return np.asarray(zero * kernel.reshape(kernel.shape[0], -1).sum(1, dtype=np.int64))


def _dense_convolution(node: ir.Node, facts: Mapping[str, Any], kernel: Array, window: Window) -> dict[str, Any]:
    """Weights [taps · ci, co], and the window; none for one that takes pixels as they come."""
    dense = _ungrouped(kernel, attribute(node, "group", 1)).transpose(2, 3, 1, 0)
    plain = window.taps == 1 and window.stride == (1, 1) and window.pads == (0, 0) and _same_pixels(facts)
    weights = np.ascontiguousarray(dense.reshape(-1, kernel.shape[0]))
    return {"weights": weights, "window": None if plain else window}


def _same_pixels(facts: Mapping[str, Any]) -> bool:
    source, result = facts["source"], facts["result"]
    return bool((source.height, source.width) == (result.height, result.width))


def _ungrouped(kernel: Array, groups: int) -> Array:
    """[co, ci / groups, kh, kw] as [co, ci, kh, kw], with zeros between channels of different groups."""
    if groups == 1:
        return kernel
    outputs, inputs = kernel.shape[0] // groups, kernel.shape[1]
    dense = np.zeros((kernel.shape[0], inputs * groups, *kernel.shape[2:]), kernel.dtype)
    for group in range(groups):
        own = slice(group * outputs, (group + 1) * outputs)
        dense[own, group * inputs : (group + 1) * inputs] = kernel[own]
    return dense


def _requantisation(bias: Array, multiplier: Array, zero: int) -> Requantisation:
    if multiplier.max(initial=0) >= rounding.LARGEST_FACTOR:
        refuse("its output's scale is far below the step of its sums", "quantise the model with a wider output range")
    return Requantisation(bias.astype(np.int32), multiplier, zero)


def _window(node: ir.Node, source: Feature, kernel: Sequence[int], fill: int) -> Window:
    """The window of a node over one or two spatial axes."""
    spatial = (source.height, source.width)[2 - len(kernel) :]
    w = spatial_window(node, spatial, tuple(map(int, kernel)))

    def both(values: Sequence[int], missing: int) -> tuple[int, int]:
        first, second = (*[missing] * (2 - len(values)), *values)
        return int(first), int(second)

    before = both([pad for pad, _ in w.pads], 0)
    return Window(both(w.kernel, 1), both(w.strides, 1), both(w.dilations, 1), before, fill)


def _gemm(reader: _Reader, node: ir.Node) -> None:
    facts, weights, start, multiplier = _dense(reader, node, _scale(node, 7).scale)
    end = _requantisation(start, multiplier, _scale(node, 7).zero)
    reader.add(node, Product(**facts, window=None, weights=weights, end=end))


def _exact_dense(reader: _Reader, node: ir.Node) -> tuple[ExactProduct, Array]:
    """The layer, and what makes its sums real."""
    facts, weights, start, multiplier = _dense(reader, node, 1.0)
    return ExactProduct(**facts, window=None, weights=weights, end=_exact(start)), multiplier


def _dense(reader: _Reader, node: ir.Node, step: float) -> tuple[dict[str, Any], Array, Array, Array]:
    """Facts, weights, bias and multipliers of a dense layer whose output has steps of ``step``.

    The zero point of a goes into the bias; a flattened feature is read pixel by pixel, so weights change places.
    """
    facts = reader.facts(node, node.inputs[0], real=node.op_type == "GemmDequantize")
    source: Feature = facts["source"]
    weights, given = _constant(node, 3, "weights"), _scale(node, 1)
    if weights.shape[0] != source.elements:
        refuse("it multiplies each row of a matrix", "an FPGA has dense layers of one row")
    start = _constant(node, 6, "bias").astype(np.int64) - given.zero * weights.sum(0, dtype=np.int64)
    b_scale = _constant(node, 4, "scale").astype(np.float64)
    multiplier = np.broadcast_to(given.scale * b_scale / step, start.shape).astype(np.float32)
    by_pixel = weights.reshape(source.channels, source.pixels, -1).transpose(1, 0, 2).reshape(weights.shape)
    return facts, np.ascontiguousarray(by_pixel), start, multiplier


def _sum(reader: _Reader, node: ir.Node) -> None:
    facts = reader.facts(node, node.inputs[0], node.inputs[3])
    if reader.stream(node.inputs[0])[1] != reader.stream(node.inputs[3])[1]:
        refuse("it broadcasts one input", "an FPGA adds tensors of one shape")
    left, right, result = (_scale(node, index) for index in (1, 4, 6))
    factors, offset, shift = sum_rule(left, right, result, -1 if node.op_type == "QLinearSub" else 1)
    both = (factors[0], factors[1])
    reader.add(node, Sum(**facts, factors=both, offset=offset, shift=shift, zero=result.zero))


def _table(reader: _Reader, node: ir.Node) -> None:
    table, first = _constant(node, 1, "table"), attribute(node, "first", 0)
    if first != -128 or table.dtype != np.int8:
        refuse("its table is not of int8", "quantise activations to int8")
    reader.add(node, Lookup(**reader.facts(node, node.inputs[0]), table=table))


def _max_pool(reader: _Reader, node: ir.Node) -> None:
    facts = reader.facts(node, node.inputs[0])
    if len(node.outputs) > 1 and node.outputs[1].uses():
        refuse("the places of its maxima are used", "compile it for a CPU target")
    source: Feature = facts["source"]
    window = _window(node, source, attribute(node, "kernel_shape", []), -128)
    reader.add(node, MaxPool(**facts, window=window))


def _average_pool(reader: _Reader, node: ir.Node) -> None:
    """Padding counts as the zero point: as a mean of fewer where it is not included, else as a mean of all."""
    facts = reader.facts(node, node.inputs[0])
    source, result = facts["source"], facts["result"]
    given, grid = _scale(node, 1), _scale(node, 3)
    kernel = attribute(node, "kernel_shape", [])
    window = _window(node, source, kernel, given.zero)
    w = spatial_window(node, (source.height, source.width)[2 - len(kernel) :], tuple(kernel))
    ends = [pad for _, pad in w.pads]
    after = (0 if len(ends) < 2 else ends[0], ends[-1])
    included = bool(attribute(node, "count_include_pad", 0))
    counts = np.multiply.outer(*(_counts(window, axis, source, result, after[axis], included) for axis in (0, 1)))
    multiplier = (given.scale / (grid.scale * counts.astype(np.float64))).astype(np.float32).reshape(-1)
    _add_average(reader, node, facts, window, given.zero, multiplier, grid.zero)


def _counts(window: Window, axis: int, source: Feature, result: Feature, after: int, included: bool) -> Array:
    """How many taps along ``axis`` each window takes in; of the padding, only what is declared."""
    extent, places = (source.height, source.width)[axis], (result.height, result.width)[axis]
    starts = np.arange(places) * window.stride[axis] - window.pads[axis]
    found = starts[:, None] + np.arange(window.kernel[axis]) * window.dilation[axis]
    first, last = (-window.pads[axis], extent + after) if included else (0, extent)
    return np.sum((found >= first) & (found < last), axis=1)


def _mean(reader: _Reader, node: ir.Node) -> None:
    facts = reader.facts(node, node.inputs[0])
    source: Feature = facts["source"]
    given, grid = _scale(node, 1), _scale(node, 4)
    rank = len(shape_of(node.inputs[0]))
    axes = sorted(int(axis) % rank for axis in _constant(node, 3, "axes"))
    if axes != list(range(2, rank)):
        refuse(f"it takes the mean along {axes}", "an FPGA takes the mean over all pixels")
    window = Window((source.height, source.width), (source.height, source.width), (1, 1), (0, 0), given.zero)
    multiplier = np.array([given.scale / (grid.scale * source.pixels)]).astype(np.float32)
    facts["result"] = Feature(1, 1, source.channels)
    _add_average(reader, node, facts, window, given.zero, multiplier, grid.zero)


def _add_average(
    reader: _Reader, node: ir.Node, facts: dict[str, Any], window: Window, x_zero: int, multiplier: Array, zero: int
) -> None:
    if (multiplier == multiplier[0]).all():
        multiplier = multiplier[:1]
    end = _requantisation(np.zeros(multiplier.shape, np.int32), multiplier, zero)
    reader.add(node, AveragePool(**facts, window=window, x_zero=x_zero, end=end))


def _softmax(reader: _Reader, node: ir.Node) -> None:
    facts = reader.facts(node, node.inputs[0])
    source: Feature = facts["source"]
    rank = len(shape_of(node.inputs[0]))
    if attribute(node, "axis", -1) % rank != 1 and source.elements != source.channels:
        refuse("it normalises along pixels", "an FPGA has a softmax over channels")
    given, grid = _scale(node, 1), _scale(node, 3)
    powers = exponentials(given.scale, source.channels)
    reader.add(node, Softmax(**facts, powers=powers, multiplier=1 / grid.scale, zero=grid.zero))


def _reshape(reader: _Reader, node: ir.Node) -> None:
    """Flattening renames a stream; anything else would change the order of its bytes."""
    name, feature = reader.stream(node.inputs[0])
    shape = [extent for extent in shape_of(node.outputs[0]) if extent != 1]
    before = [extent for extent in shape_of(node.inputs[0]) if extent != 1]
    if len(shape) > 1 and shape != before:
        refuse("it cuts a tensor into new axes", "an FPGA streams pixels in their order, and flattens them")
    reader.alias(node.outputs[0], (name, feature))


_RULES: Mapping[tuple[str, str], Callable[[_Reader, ir.Node], None]] = {
    ("", "QuantizeLinear"): _Reader.quantize,
    ("", "DequantizeLinear"): _Reader.dequantize,
    ("", "QLinearConv"): _convolution,
    ("", "MaxPool"): _max_pool,
    ("", "Clip"): _Reader.clamp,
    ("", "Softmax"): _Reader.real_softmax,
    ("", "Reshape"): _reshape,
    ("", "Flatten"): _reshape,
    ("", "Squeeze"): _reshape,
    ("", "Unsqueeze"): _reshape,
    ("edgec", "QLinearGemm"): _gemm,
    ("edgec", "ConvDequantize"): _Reader.exact_product,
    ("edgec", "GemmDequantize"): _Reader.exact_product,
    ("edgec", "QLinearAdd"): _sum,
    ("edgec", "QLinearSub"): _sum,
    ("edgec", "Table"): _table,
    ("edgec", "QLinearMean"): _mean,
    ("edgec", "QLinearAveragePool"): _average_pool,
    ("edgec", "QLinearSoftmax"): _softmax,
}
