"""Make integer operators of what stands between Dequantize and Quantize.

With real = s · (q − z) on every side, a product over K dequantised inputs and weights (one weight scale per output
channel, w's zero point 0) is

    s_x · s_w · (Σ (x − z_x) · w + B),   B = bias / (s_x · s_w) rounded to an integer,

an exact integer sum and one scale, and its quantisation is one multiplication by s_x · s_w / s_y. A clamp (Relu,
Clip) is a clamp of the integers, since rounding is monotone. A function of one byte has 256 results, whatever it
computes: a table; for 16 bits, too, where no rule is shorter. Sums, products, affine maps, means, interpolation,
softmax and PRelu have rules of their own. What each becomes is QLinearConv, Clip, and the functions of
:mod:`edgec.passes.integer_functions`. A product that nobody quantises is summed up in integers all the same, and
multiplied by s_x · s_w.

What is only dequantised for computing in floats is left to that, with weights made constant again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import ClassVar

import numpy as np
import onnx
import onnx.reference
import onnx_ir as ir
import onnx_ir.passes.common as common_passes

from edgec.errors import Refusal
from edgec.frontend.shapes import infer_shapes
from edgec.frontend.values import constant_of, input_of, shape_of
from edgec.grid import Grid
from edgec.passes.affine import Channels, read_affine, varying_operand
from edgec.passes.functions import call
from edgec.passes.fuse import FusePass, Match, initializer, scalar_of
from edgec.passes.grids import dequantised, grid_constants, grid_of, weights_of
from edgec.passes.rewriting import Refused, is_private, named

_CLAMPS = frozenset({"Relu", "Clip"})
_UNARY = frozenset(
    {
        *("Abs", "Acos", "Acosh", "Asin", "Asinh", "Atan", "Atanh", "Ceil", "Celu", "Clip", "Cos", "Cosh", "Elu"),
        *("Erf", "Exp", "Floor", "Gelu", "HardSigmoid", "HardSwish", "LeakyRelu", "Log", "Mish", "Neg", "Reciprocal"),
        *("Relu", "Round", "Selu", "Shrink", "Sigmoid", "Sign", "Sin", "Sinh", "Softplus", "Softsign", "Sqrt"),
        *("Swish", "Tan", "Tanh", "ThresholdedRelu", "GeluTanh", "Identity"),
    }
)
"""Functions of one element, standard ones and those of domain ``edgec``."""
_WITH_CONSTANT = frozenset({"Add", "Sub", "Mul", "Div", "Pow", "Max", "Min", "PRelu"})
"""Functions of one element beside a constant of one element."""
_ACCUMULATOR = 2**31 - 1


class FuseIntegers(FusePass):
    """Turns Dequantize → operator → Quantize into integer operators."""

    name: ClassVar[str] = "fuse-integers"

    def transform(self, model: ir.Model) -> tuple[int, Sequence[Refusal]]:
        """Fuse, then make constants of the weights that no integer operator has taken."""
        found = super().transform(model)
        if _dequantise_constants(model):
            common_passes.RemoveUnusedNodesPass()(model)
            infer_shapes(model)
        return found

    def match(self, model: ir.Model, node: ir.Node) -> Match | None:
        if node.op_type in ("Conv", "Gemm", "MatMul"):
            return _dequantising(model, node)
        grid = grid_of(node, "QuantizeLinear")
        if grid is None or node.inputs[0] is None or node.inputs[0].producer() is None:
            return None
        site = _Site(model, node, grid)
        return site.table() or site.operator()


def _dequantising(model: ir.Model, node: ir.Node) -> Match | None:
    """A product whose result is used as real numbers."""
    convolves = node.op_type == "Conv"
    product = _convolution(node) if convolves else _matrix_product(node)
    if product is None:
        return None
    name, attributes = ("ConvDequantize", _conv_attributes(node)) if convolves else ("GemmDequantize", {})

    def build() -> list[ir.Node]:
        inputs = product.inputs(model, str(node.outputs[0].name), per_channel=True)
        return [call(model, name, inputs, attributes, str(node.name))]

    return Match(f"{node.op_type} on integers", [], build)


@dataclass(frozen=True)
class _Site:
    """A QuantizeLinear and the grid of what it makes."""

    model: ir.Model
    quantise: ir.Node
    grid: Grid

    @property
    def name(self) -> str:
        return str(self.quantise.outputs[0].name)

    def constants(self, grid: Grid, suffix: str) -> tuple[ir.Value, ir.Value]:
        return grid_constants(self.model, grid, f"{self.name}_{suffix}")

    # ---- functions of one byte -----------------------------------------------------------------------------

    def table(self) -> Match | None:
        """A chain of functions of one element between D and Q."""
        chain: list[ir.Node] = []
        value = self.quantise.inputs[0]
        while (source := dequantised(value)) is None:
            node = None if value is None else value.producer()
            step = None if node is None else _single_operand(node)
            if node is None or step is None or len(value.uses()) != 1 or value.is_graph_output():  # type: ignore[union-attr]
                return None
            chain.append(node)
            value = step
        integers, grid = source
        assert value is not None
        start = value
        if not chain and grid == self.grid:
            return None
        if 16 in (grid.bits, self.grid.bits) and all(node.op_type in _CLAMPS and _clamp(node) for node in chain):
            return Match("a scale", chain, lambda: self._clamped(self._rescaled(integers, grid), chain))
        if grid.bits == 16 and len(chain) == 1 and chain[0].op_type in _RULES:
            return None
        steps = list(reversed(chain))
        return Match(
            f"a table of {2**grid.bits} entries", chain, lambda: self._look_up(integers, grid, steps, start)
        )

    def _rescaled(self, x: ir.Value, grid: Grid) -> list[ir.Node]:
        """``x`` on the grid of the result."""
        factors = [self._constant("scale", np.float32(1)), self._constant("shift", np.float32(0))]
        inputs = [x, *self.constants(grid, "x"), *factors, *self.constants(self.grid, "y")]
        return [call(self.model, "QLinearAffine", inputs, {}, str(self.quantise.name))]

    def _look_up(self, x: ir.Value, grid: Grid, chain: Sequence[ir.Node], start: ir.Value) -> list[ir.Node]:
        entries = initializer(self.model, f"{self.name}_table", self._entries(grid, chain, start))
        owner = chain[0] if chain else self.quantise
        return [call(self.model, "Table", [x, entries], {"first": grid.limits[0]}, str(owner.name))]

    def _entries(self, grid: Grid, chain: Sequence[ir.Node], start: ir.Value) -> np.ndarray:
        """Q(f(D(q))) for every q, by ONNX's own reference."""
        least, most = grid.limits
        q = np.arange(least, most + 1)
        with np.errstate(all="ignore"):
            return self.grid.quantise(_evaluate(self.model, chain, start, grid.dequantise(q)))

    # ---- operators -----------------------------------------------------------------------------------------

    def operator(self) -> Match | None:
        """An operator with a rule for integers, and the clamps behind it."""
        clamps: list[ir.Node] = []
        value = self.quantise.inputs[0]
        node = None if value is None else value.producer()
        while node is not None and node.domain == "" and node.op_type in _CLAMPS and _clamp(node) is not None:
            clamps.append(node)
            node = node.inputs[0].producer() if node.inputs[0] is not None else None
        rule = _RULES.get(node.op_type) if node is not None and node.domain == "" else None
        build = rule(self, node) if rule is not None and node is not None else None
        if build is None or node is None:
            return None
        return Match(f"{node.op_type} on integers", [node, *clamps], lambda: self._clamped(build(), clamps))

    def _clamped(self, nodes: list[ir.Node], clamps: Sequence[ir.Node]) -> list[ir.Node]:
        """The nodes, and a clamp of the integers where it is tighter than their range."""
        least, most = self.grid.limits
        below, above = -np.inf, np.inf
        for node in reversed(clamps):
            below, above = (float(np.clip(bound, *(_clamp(node) or (-np.inf, np.inf)))) for bound in (below, above))
        low, high = (int(self.grid.quantise(np.array(bound))) for bound in (below, above))
        if (low, high) == (least, most):
            return nodes
        bounds = [
            initializer(self.model, f"{self.name}_{which}", np.array(bound, self.grid.dtype))
            for which, bound in (("least", low), ("most", high))
        ]
        inputs, name = [nodes[-1].outputs[0], *bounds], f"{self.quantise.name}_clip"
        if self.grid.bits == 16:
            return [*nodes, call(self.model, "ClipWords", inputs, {}, name)]
        return [*nodes, ir.node("Clip", inputs, name=name)]

    def convolution(self, node: ir.Node) -> Callable[[], list[ir.Node]] | None:
        product = _convolution(node)
        if product is None:
            return None
        if product.grid.bits == 16 or self.grid.bits == 16:
            return self._wide_convolution(node, product)

        def build() -> list[ir.Node]:
            *operands, bias = product.inputs(self.model, self.name, per_channel=product.scale.size > 1)
            inputs = [*operands, *self.constants(self.grid, "y"), bias]
            return [ir.node("QLinearConv", inputs, dict(node.attributes), name=node.name)]

        return build

    def _wide_convolution(self, node: ir.Node, product: _Product) -> Callable[[], list[ir.Node]]:
        """From or to 16 bits, which ONNX's own operator does not know."""
        attributes = _conv_attributes(node)

        def build() -> list[ir.Node]:
            inputs = [*product.inputs(self.model, self.name, per_channel=True), *self.constants(self.grid, "y")]
            return [call(self.model, "QLinearConvolution", inputs, attributes, str(node.name))]

        return build

    def product(self, node: ir.Node) -> Callable[[], list[ir.Node]] | None:
        """Gemm, or MatMul with constant weights or without."""
        product = _matrix_product(node)
        return self._run_time_product(node) if product is None else self._gemm(node, product)

    def _gemm(self, node: ir.Node, product: _Product) -> Callable[[], list[ir.Node]]:
        def build() -> list[ir.Node]:
            inputs = [*product.inputs(self.model, self.name, per_channel=True), *self.constants(self.grid, "y")]
            return [call(self.model, "QLinearGemm", inputs, {}, str(node.name))]

        return build

    def _constant(self, suffix: str, array: np.ndarray) -> ir.Value:
        return initializer(self.model, f"{self.name}_{suffix}", array)

    def _run_time_product(self, node: ir.Node) -> Callable[[], list[ir.Node]] | None:
        """A MatMul of two computed matrices."""
        sources = [dequantised(value) for value in node.inputs[:2]]
        if node.op_type == "Gemm" or None in sources:
            return None
        if any(grid.bits == 16 for grid in (self.grid, *(source[1] for source in sources if source is not None))):
            raise Refused(f"{named(node)} multiplies two computed matrices, for 16 bits in floats")

        def build() -> list[ir.Node]:
            inputs: list[ir.Value] = []
            for source, which in zip(sources, "ab", strict=True):
                assert source is not None
                inputs += [source[0], *self.constants(source[1], which)]
            return [ir.node("QLinearMatMul", [*inputs, *self.constants(self.grid, "y")], name=node.name)]

        return build

    def binary(self, node: ir.Node) -> Callable[[], list[ir.Node]] | None:
        product = _biased_product(node) if node.op_type == "Add" else None
        if product is not None:
            return self._gemm(node, product)
        sources = [dequantised(value) for value in node.inputs]
        if None in sources:
            return self.affine(node)
        largest = prod(source[1].largest for source in sources if source is not None)
        if node.op_type == "Mul" and largest > _ACCUMULATOR:
            raise Refused(f"the products of {named(node)} might not fit 32 bits")

        def build() -> list[ir.Node]:
            inputs: list[ir.Value] = []
            for source, which in zip(sources, "ab", strict=True):
                assert source is not None
                inputs += [source[0], *self.constants(source[1], which)]
            inputs += self.constants(self.grid, "y")
            return [call(self.model, f"QLinear{node.op_type}", inputs, {}, str(node.name))]

        return build

    def affine(self, node: ir.Node) -> Callable[[], list[ir.Node]] | None:
        """A scale and a shift for each channel."""
        source = _varying(node)
        found = None if source is None else _affine(node)
        if source is None or found is None:
            return None
        integers, grid = source

        def build() -> list[ir.Node]:
            factors = [self._constant("scale", found[0]), self._constant("shift", found[1])]
            inputs = [integers, *self.constants(grid, "x"), *factors, *self.constants(self.grid, "y")]
            return [call(self.model, "QLinearAffine", inputs, {}, str(node.name))]

        return build

    def resize(self, node: ir.Node) -> Callable[[], list[ir.Node]] | None:
        source, attributes = dequantised(node.inputs[0]), node.attributes
        if source is None:
            return None
        transformation = attributes.get_string("coordinate_transformation_mode", "half_pixel")
        _require_linear(node, transformation)
        given: dict[str, int | str] = {
            "coordinate_transformation_mode": transformation,
            "exclude_outside": attributes.get_int("exclude_outside", 0),
        }

        def build() -> list[ir.Node]:
            sizes = self._constant("sizes", np.array(shape_of(node.outputs[0]), np.int64))
            inputs = [source[0], *self.constants(source[1], "x"), sizes, *self.constants(self.grid, "y")]
            return [call(self.model, "QLinearResize", inputs, given, str(node.name))]

        return build

    def mean(self, node: ir.Node) -> Callable[[], list[ir.Node]] | None:
        source = dequantised(node.inputs[0])
        if source is None:
            return None
        rank = len(shape_of(node.inputs[0]))
        if node.op_type == "GlobalAveragePool":
            axes, keep = np.arange(2, rank), 1
        else:
            known, keep = constant_of(input_of(node, 1)), node.attributes.get_int("keepdims", 1)
            if known is None or not known.size:
                return None
            axes = known.reshape(-1) % rank

        def build() -> list[ir.Node]:
            places = self._constant("axes", np.sort(axes).astype(np.int64))
            inputs = [source[0], *self.constants(source[1], "x"), places, *self.constants(self.grid, "y")]
            return [call(self.model, "QLinearMean", inputs, {"keepdims": keep}, str(node.name))]

        return build

    def pool(self, node: ir.Node) -> Callable[[], list[ir.Node]] | None:
        source = dequantised(node.inputs[0])
        if source is None:
            return None
        attributes = node.attributes
        kernel = list(attributes.get_ints("kernel_shape", ()))
        rank = len(kernel)
        if attributes.get_string("auto_pad", "NOTSET") != "NOTSET" or set(attributes.get_ints("dilations", [1])) != {1}:
            raise Refused(f"{named(node)} pads by itself or has holes in its window")
        given: dict[str, int | list[int]] = {
            "kernel_shape": kernel,
            "strides": list(attributes.get_ints("strides", [1] * rank)),
            "pads": list(attributes.get_ints("pads", [0] * 2 * rank)),
            "ceil_mode": attributes.get_int("ceil_mode", 0),
            "count_include_pad": attributes.get_int("count_include_pad", 0),
        }

        def build() -> list[ir.Node]:
            inputs = [source[0], *self.constants(source[1], "x"), *self.constants(self.grid, "y")]
            return [call(self.model, "QLinearAveragePool", inputs, given, str(node.name))]

        return build

    def softmax(self, node: ir.Node) -> Callable[[], list[ir.Node]] | None:
        source = dequantised(node.inputs[0])
        if source is None:
            return None

        def build() -> list[ir.Node]:
            inputs = [source[0], *self.constants(source[1], "x"), *self.constants(self.grid, "y")]
            axis = node.attributes.get_int("axis", -1)
            return [call(self.model, "QLinearSoftmax", inputs, {"axis": axis}, str(node.name))]

        return build

    def prelu(self, node: ir.Node) -> Callable[[], list[ir.Node]] | None:
        source, slope = dequantised(node.inputs[0]), constant_of(node.inputs[1])
        slopes = _dequantised_constant(node.inputs[1])
        if slopes is not None:
            slope = (slopes[0] * slopes[1]).astype(np.float32)
        if source is None or slope is None:
            return None

        def build() -> list[ir.Node]:
            grids = [*self.constants(source[1], "x"), self._constant("slope", slope), *self.constants(self.grid, "y")]
            return [call(self.model, "QLinearPRelu", [source[0], *grids], {}, str(node.name))]

        return build


_RULES: dict[str, Callable[[_Site, ir.Node], Callable[[], list[ir.Node]] | None]] = {
    "Conv": _Site.convolution,
    "Gemm": _Site.product,
    "MatMul": _Site.product,
    "Add": _Site.binary,
    "Sub": _Site.binary,
    "Mul": _Site.binary,
    "Div": _Site.affine,
    "BatchNormalization": _Site.affine,
    "Resize": _Site.resize,
    "ReduceMean": _Site.mean,
    "GlobalAveragePool": _Site.mean,
    "AveragePool": _Site.pool,
    "Softmax": _Site.softmax,
    "PRelu": _Site.prelu,
}


@dataclass(frozen=True)
class _Product:
    """Σ (x − z) · w + bias for dequantised x: int8 ``weights`` as the operator wants them, their scales, the bias."""

    x: ir.Value
    grid: Grid
    weights: np.ndarray
    scale: np.ndarray
    bias: np.ndarray

    def inputs(self, model: ir.Model, name: str, per_channel: bool) -> list[ir.Value]:
        """x, its grid, the weights, their scales and zero points (one a channel, or one for all), the bias."""
        scale = np.broadcast_to(self.scale, self.bias.shape) if per_channel else self.scale.reshape(())
        arrays = {
            "weights": self.weights,
            "weights_scale": np.ascontiguousarray(scale).reshape(scale.shape),
            "weights_zero_point": np.zeros(scale.shape, np.int8),
            "bias": self.bias,
        }
        constants = [initializer(model, f"{name}_{suffix}", array) for suffix, array in arrays.items()]
        return [self.x, *grid_constants(model, self.grid, f"{name}_x"), *constants]


def _convolution(node: ir.Node) -> _Product | None:
    source, weights = dequantised(node.inputs[0]), weights_of(node.inputs[1])
    if source is None or weights is None:
        return None
    if weights.scale.size > 1 and weights.axis != 0:
        raise Refused(f"the weights of {named(node)} have a scale for each input channel, not for each output")
    bias = _bias(node, input_of(node, 2), source[1], weights.scale, weights.values.shape[0])
    _require_exact_sums(node, source[1], weights.values.reshape(weights.values.shape[0], -1), bias)
    return _Product(*source, weights.values, weights.scale, bias)


def _conv_attributes(node: ir.Node) -> dict[str, int | list[int]]:
    """All of a Conv's attributes, spelled out."""
    attributes, rank = node.attributes, len(shape_of(node.inputs[1])) - 2
    if attributes.get_string("auto_pad", "NOTSET") != "NOTSET":
        raise Refused(f"{named(node)} pads by itself (auto_pad)")
    return {
        "dilations": list(attributes.get_ints("dilations", [1] * rank)),
        "group": attributes.get_int("group", 1),
        "kernel_shape": list(shape_of(node.inputs[1])[2:]),
        "pads": list(attributes.get_ints("pads", [0] * 2 * rank)),
        "strides": list(attributes.get_ints("strides", [1] * rank)),
    }


def _matrix_product(node: ir.Node) -> _Product | None:
    """Gemm or MatMul with constant weights."""
    source, weights = dequantised(node.inputs[0]), weights_of(node.inputs[1])
    if source is None or weights is None or weights.values.ndim != 2:
        return None
    turned, bias = False, None
    if node.op_type == "Gemm":
        bias, turned = input_of(node, 2), node.attributes.get_int("transB", 0) == 1
        factors = node.attributes.get_float("alpha", 1.0), node.attributes.get_float("beta", 1.0)
        if factors != (1.0, 1.0) or node.attributes.get_int("transA", 0) != 0:
            raise Refused(f"{named(node)} scales or transposes what it multiplies")
    if weights.scale.size > 1 and weights.axis != (0 if turned else 1):
        raise Refused(f"the weights of {named(node)} have a scale for each row of the product, not each column")
    values = np.ascontiguousarray(weights.values.T) if turned else weights.values
    whole = _bias(node, bias, source[1], weights.scale, values.shape[1])
    _require_exact_sums(node, source[1], values.T, whole)
    return _Product(*source, values, weights.scale, whole)


def _biased_product(node: ir.Node) -> _Product | None:
    """MatMul + constant row as one product with a bias."""
    for value, other in ((node.inputs[0], node.inputs[1]), (node.inputs[1], node.inputs[0])):
        product = None if value is None else value.producer()
        if product is None or product.domain != "" or product.op_type != "MatMul" or not is_private(product):
            continue
        found = _matrix_product(product)
        known = constant_of(other) is not None or _dequantised_constant(other) is not None
        if found is None or not known:
            continue
        if shape_of(other)[-1:] == found.bias.shape and prod(shape_of(other)) == found.bias.size:
            bias = _bias(product, other, found.grid, found.scale, found.bias.size)
            _require_exact_sums(product, found.grid, found.weights.T, bias)
            return replace(found, bias=bias)
    return None


def _bias(node: ir.Node, value: ir.Value | None, grid: Grid, scale: np.ndarray, channels: int) -> np.ndarray:
    """The bias in steps of s_x · s_w, as int32 [channels]: an exported one as it is, a float one rounded."""
    if value is None:
        return np.zeros(channels, np.int32)
    step = np.float32(grid.scale) * scale
    exported = _dequantised_constant(value)
    if exported is not None and exported[0].dtype == np.int32 and np.allclose(exported[1], step, rtol=1e-5, atol=0):
        return np.broadcast_to(exported[0].reshape(-1), (channels,)).copy()
    floats = constant_of(value) if exported is None else exported[0] * exported[1]
    if floats is None:
        raise Refused(f"the bias of {named(node)} is computed at run time")
    whole = np.rint(floats.reshape(-1).astype(np.float64) / step.astype(np.float64))
    if np.abs(whole).max(initial=0) > _ACCUMULATOR:
        raise Refused(f"the bias of {named(node)} does not fit 32 bits in steps of its products")
    return np.broadcast_to(whole.astype(np.int32), (channels,)).copy()


def _varying(node: ir.Node) -> tuple[ir.Value, Grid] | None:
    """The dequantised operand of an affine operator whose other operands are constants."""
    try:
        return dequantised(varying_operand(node))
    except Refused:
        return None


def _affine(node: ir.Node) -> tuple[np.ndarray, np.ndarray] | None:
    """Scale and shift of an affine operator, as float32 that broadcasts to its output."""
    shape = shape_of(node.outputs[0])
    constants = [array for array in map(constant_of, node.inputs[:2]) if array is not None]
    wide = [(1,) * (len(shape) - array.ndim) + array.shape for array in constants]
    axes = {axis for each in wide for axis, extent in enumerate(each) if extent > 1}
    axis = 1 if node.op_type == "BatchNormalization" else axes.pop() if len(axes) == 1 else None
    if axis is None and not axes:
        axis = len(shape) - 1  # one scale and shift for all
    if axis is None or shape_of(varying_operand(node)) != shape:
        return None
    found = read_affine(node, Channels(shape[axis], axis, len(shape), named(node)))
    place = [-1 if index == axis else 1 for index in range(len(shape))]
    return found.scale.reshape(place).astype(np.float32), found.shift.reshape(place).astype(np.float32)


def _require_linear(node: ir.Node, transformation: str) -> None:
    """Raises :class:`Refused` unless a Resize interpolates linearly to the sizes of its output, and nothing else."""
    attributes, scales = node.attributes, constant_of(input_of(node, 2))
    linear = attributes.get_string("mode", "nearest") == "linear"
    if not linear or transformation == "tf_crop_and_resize" or attributes.get_int("antialias", 0) != 0:
        raise Refused(f"{named(node)} is not a plain linear interpolation")
    if "axes" in attributes or attributes.get_string("keep_aspect_ratio_policy", "stretch") != "stretch":
        raise Refused(f"{named(node)} names axes or keeps the aspect ratio")
    before, after = (np.array(shape_of(value)) for value in (node.inputs[0], node.outputs[0]))
    if scales is not None and scales.size and not np.allclose(scales * before, after, rtol=1e-6, atol=0):
        raise Refused(f"the scales of {named(node)} are not those of its sizes")


def _single_operand(node: ir.Node) -> ir.Value | None:
    """What a function of one element is a function of; None for any other node."""
    if node.domain not in ("", "edgec") or len(node.outputs) != 1:
        return None
    if node.op_type in _UNARY:
        fixed = all(value is None or constant_of(value) is not None for value in node.inputs[1:])
        return node.inputs[0] if fixed else None
    if node.op_type in _WITH_CONSTANT and len(node.inputs) == 2:
        for value, other in ((node.inputs[0], node.inputs[1]), (node.inputs[1], node.inputs[0])):
            constant = constant_of(other)
            if constant is None or constant.size != 1 or constant_of(value) is not None:
                continue
            if shape_of(node.outputs[0]) == shape_of(value):
                return value
    return None


def _evaluate(model: ir.Model, chain: Sequence[ir.Node], start: ir.Value, reals: np.ndarray) -> np.ndarray:
    """``chain``, which computes elementwise from ``start``, on ``reals``."""
    if not chain:
        return reals
    shaped = reals.reshape(*(1 for _ in shape_of(start)[1:]), -1)
    values = dict.fromkeys(value for node in chain for value in node.inputs if value is not None)
    result = chain[-1].outputs[0].name
    graph = onnx.helper.make_graph(
        [ir.to_proto(node) for node in chain],
        "table",
        [onnx.helper.make_tensor_value_info(str(start.name), onnx.TensorProto.FLOAT, shaped.shape)],
        [onnx.helper.make_tensor_value_info(str(result), onnx.TensorProto.FLOAT, None)],
        [onnx.numpy_helper.from_array(v.const_value.numpy(), str(v.name)) for v in values if v.const_value is not None],
    )
    imports = [onnx.helper.make_opsetid(domain, version) for domain, version in model.opset_imports.items()]
    called = {node.op_identifier() for node in chain}
    functions = [ir.to_proto(function) for name, function in model.functions.items() if name in called]
    proto = onnx.helper.make_model(graph, opset_imports=imports, functions=functions, ir_version=10)
    (found,) = onnx.reference.ReferenceEvaluator(proto).run(None, {str(start.name): shaped})
    return np.asarray(found).reshape(-1)


def _clamp(node: ir.Node) -> tuple[float, float] | None:
    """The bounds of Relu, or of Clip with constant ones."""
    if node.op_type == "Relu":
        return 0.0, np.inf
    low, high = (
        infinite if input_of(node, index) is None else scalar_of(input_of(node, index))
        for index, infinite in ((1, -np.inf), (2, np.inf))
    )
    return None if low is None or high is None else (low, high)


def _dequantised_constant(value: ir.Value | None) -> tuple[np.ndarray, np.ndarray] | None:
    """Integers less their zero point, and their scale, of a constant that DequantizeLinear makes real."""
    node = None if value is None else value.producer()
    if node is None or node.domain != "" or node.op_type != "DequantizeLinear" or "block_size" in node.attributes:
        return None
    integers, scale, zero = (constant_of(input_of(node, index)) for index in range(3))
    if integers is None or scale is None:
        return None
    axis = node.attributes.get_int("axis", 1)
    shape = [1] * integers.ndim
    if scale.size > 1:
        shape[axis] = scale.size
    centred = (
        integers if zero is None or not zero.any() else integers.astype(np.int32) - zero.reshape(shape).astype(np.int32)
    )
    return centred, scale.reshape(shape) if integers.ndim else scale.reshape(())


def _require_exact_sums(node: ir.Node, grid: Grid, rows: np.ndarray, bias: np.ndarray) -> None:
    """Raises :class:`Refused` where the sums of a channel (a row) might not fit an int32.

    They start from bias − z · Σ w, and take in q · w in any order; for 8 bits 255 bounds |q| and |q − z|.
    """
    whole, bias = rows.astype(np.int64), bias.astype(np.int64)
    if grid.bits == 8:
        bound = np.abs(whole).sum(1) * 255 + np.abs(bias)
    else:
        most = max(map(abs, grid.limits))
        bound = np.abs(whole).sum(1) * most + np.abs(bias - grid.zero * whole.sum(1))
    worst = int(bound.argmax())
    if bound[worst] > _ACCUMULATOR:
        raise Refused(f"the sums of output channel {worst} of {named(node)} might not fit 32 bits")


def _dequantise_constants(model: ir.Model) -> int:
    """Replace what DequantizeLinear makes of constants by float constants."""
    count = 0
    for node in list(model.graph):
        found = _dequantised_constant(node.outputs[0]) if node.op_type == "DequantizeLinear" else None
        if found is None:
            continue
        values = (found[0].astype(np.float32) * found[1]).astype(np.float32)
        output = node.outputs[0]
        name, output.name = str(output.name), f"{output.name}_computed"  # an output of the graph keeps its name
        output.replace_all_uses_with(initializer(model, name, values), replace_graph_outputs=True)
        count += 1
    return count
