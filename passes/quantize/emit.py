"""From decisions to a QDQ graph: standard ONNX, with the integers between QuantizeLinear and DequantizeLinear."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from edgec.errors import EdgecError
from edgec.passes.quantize.learn import Fit
from edgec.passes.quantize.lowbit import LowBit
from edgec.passes.quantize.placement import Placement
from edgec.passes.quantize.products import Product, product_of
from edgec.passes.quantize.ranges import Key, Ranges
from edgec.passes.quantize.real_weights import constant as _constant
from edgec.passes.quantize.real_weights import dequantise as _node
from edgec.passes.quantize.real_weights import real_weights

_WIDTHS_OPSET = 21
"""The opset from which QuantizeLinear takes 16 bits, and DequantizeLinear 4 bits and blocks."""

_CHANGED_SINCE_18 = frozenset({"DFT"})
"""Operators that mean something else at that opset; all the others only learned new types."""


@dataclass(frozen=True)
class Emitted:
    """A QDQ model, and the name of the initialiser with the scale of each group of values."""

    model: ir.Model
    scales: Mapping[Key, str]


@dataclass
class _Writer:
    """Inserts pairs into ``graph``, a copy of the graph that was decided on; names tell the values apart."""

    graph: ir.Graph
    placement: Placement
    ranges: Ranges
    values: dict[str, ir.Value]
    scales: dict[Key, tuple[ir.Value, ir.Value]] = field(default_factory=dict)
    pairs: dict[tuple[str, int], ir.Value] = field(default_factory=dict)

    def parameters(self, value: ir.Value, bits: int) -> tuple[ir.Value, ir.Value]:
        """The scale and the zero point, one constant for all values of a group."""
        key = (self.placement.group[value], bits)
        if key not in self.scales:
            grid, name = self.ranges[key].grid, f"{key[0].name}{_suffix(bits)}"
            scale = _constant(self.graph, np.array(grid.scale, np.float32), f"{name}_scale")
            zero = _constant(self.graph, np.array(grid.zero, grid.dtype), f"{name}_zero_point")
            self.scales[key] = scale, zero
        return self.scales[key]

    def dequantised(self, value: ir.Value, bits: int) -> ir.Value:
        """``value`` (of the graph that was decided on) on its grid."""
        key = (str(value.name), bits)
        if key not in self.pairs:
            self.pairs[key] = self._pair(value, bits)
        return self.pairs[key]

    def _pair(self, value: ir.Value, bits: int) -> ir.Value:
        own, suffix = self.values[str(value.name)], _suffix(bits)
        parameters = self.parameters(value, bits)
        grid = self.ranges[self.placement.group[value], bits].grid
        if value.const_value is not None:
            integers = _constant(self.graph, grid.quantise(value.const_value.numpy()), f"{value.name}_quantized")
            pair = [_node("DequantizeLinear", [integers, *parameters], f"{value.name}_dequantized{suffix}", own)]
        else:
            first = _node("QuantizeLinear", [own, *parameters], f"{value.name}_quantized{suffix}", own)
            first.outputs[0].type = ir.TensorType(ir.DataType.from_numpy(np.dtype(grid.dtype)))
            second = _node(
                "DequantizeLinear", [first.outputs[0], *parameters], f"{value.name}_dequantized{suffix}", own
            )
            pair = [first, second]
        producer = own.producer()
        if producer is None:
            self.graph.insert_before(self.graph[0], pair)
        else:
            self.graph.insert_after(producer, pair)
        return pair[-1].outputs[0]


def emit(model: ir.Model, placement: Placement, ranges: Ranges, fits: Mapping[ir.Node, Fit]) -> Emitted:
    """A copy of ``model`` in which the edges of ``placement`` carry integers and the products of ``fits`` have
    integer weights.

    Raises:
        EdgecError: 16 bits are asked for in a model with an operator that cannot be moved to their opset.
    """
    copy = model.clone()
    writer = _Writer(copy.graph, placement, ranges, _named_values(copy.graph))
    twins = dict(zip(model.graph, list(copy.graph), strict=True))
    for node, twin in twins.items():
        for index, value in enumerate(node.inputs):
            if value is not None and (node, index) in placement.bits:
                twin.replace_input_with(index, writer.dequantised(value, placement.bits[node, index]))
    for node, fit in fits.items():
        _emit_weights(node, twins, fit, writer)
    for value, bits in placement.outputs.items():
        if value in placement.group:
            _emit_output(value, bits, writer)
    packed = any(isinstance(fit.weights, LowBit) or (node, 0) not in placement.bits for node, fit in fits.items())
    if packed or any(bits == 16 for bits in placement.bits.values()):
        _raise_opset(copy)
    _remove_unread(copy.graph)
    return Emitted(copy, {key: str(scale.name) for key, (scale, _) in writer.scales.items()})


def _emit_weights(node: ir.Node, twins: Mapping[ir.Node, ir.Node], fit: Fit, writer: _Writer) -> None:
    product, twin, graph = product_of(node), twins[node], writer.graph
    assert product is not None
    value = node.inputs[0]
    assert value is not None
    made = real_weights(product, fit.weights, graph)
    graph.insert_before(twin, made)
    twin.replace_input_with(1, made[-1].outputs[0])
    if fit.bias is None or not product.can_have_bias:
        return
    if (node, 0) not in writer.placement.bits:
        _emit_float_bias(product, twins, fit.bias, graph)
        return
    x_scale = writer.ranges[writer.placement.group[value], writer.placement.bits[node, 0]].grid.scale
    _emit_bias(product, twins, fit.bias, np.float32(x_scale) * fit.weights.scales.reshape(-1), graph)


def _emit_float_bias(product: Product, twins: Mapping[ir.Node, ir.Node], bias: np.ndarray, graph: ir.Graph) -> None:
    holder, index = product.bias_place
    twin = twins[holder]
    constant = _constant(graph, product.shaped_bias(bias.astype(np.float32)), f"{product.node.name}_bias")
    if index >= len(twin.inputs):
        twin.resize_inputs(index + 1)
    twin.replace_input_with(index, constant)


def _emit_bias(
    product: Product, twins: Mapping[ir.Node, ir.Node], bias: np.ndarray, scales: np.ndarray, graph: ir.Graph
) -> None:
    holder, index = product.bias_place
    twin, name = twins[holder], f"{product.node.name}_bias"
    limits = np.iinfo(np.int32)
    integers = np.clip(np.rint(bias.astype(np.float64) / scales), limits.min, limits.max).astype(np.int32)
    constant = _constant(graph, integers, f"{name}_quantized")
    scale = _constant(graph, scales.astype(np.float32), f"{name}_scale")
    zero = _constant(graph, np.zeros(scales.shape, np.int32), f"{name}_zero_point")
    dequantise = _node("DequantizeLinear", [constant, scale, zero], f"{name}_dequantized", constant, axis=0)
    graph.insert_before(twin, dequantise)
    if index >= len(twin.inputs):
        twin.resize_inputs(index + 1)
    twin.replace_input_with(index, dequantise.outputs[0])


def _emit_output(value: ir.Value, bits: int, writer: _Writer) -> None:
    """Let the graph give ``value`` as it is on its grid, under its own name."""
    pair = writer.dequantised(value, bits)
    own = writer.values[str(value.name)]
    outputs = writer.graph.outputs
    outputs[outputs.index(own)] = pair
    name, own.name = own.name, f"{own.name}_float"
    pair.name = name


def _suffix(bits: int) -> str:
    return "" if bits == 8 else f"_{bits}"


def _named_values(graph: ir.Graph) -> dict[str, ir.Value]:
    computed = [value for node in graph for value in node.outputs]
    return {str(v.name): v for v in [*graph.inputs, *graph.initializers.values(), *computed] if v.name}


def _remove_unread(graph: ir.Graph) -> None:
    for name in [name for name, value in graph.initializers.items() if not value.uses()]:
        if not graph.initializers[name].is_graph_output():
            del graph.initializers[name]


def obstacle_to_opset(model: ir.Model) -> ir.Node | None:
    """A node that keeps ``model`` from the opset that integers of other than 8 bits need; None where nothing does."""
    if model.opset_imports[""] >= _WIDTHS_OPSET:
        return None
    changed = (n for n in model.graph.all_nodes() if n.op_type in _CHANGED_SINCE_18 and n.domain == "")
    return next(changed, None)


def _raise_opset(model: ir.Model) -> None:
    node = obstacle_to_opset(model)
    if node is not None:
        raise EdgecError(
            f"{node.op_type} node '{node.name}' means something else at opset {_WIDTHS_OPSET}, which integers of other "
            "than 8 bits need; say int8 or float in the recipe, or export the model with a newer opset"
        )
    if model.opset_imports[""] >= _WIDTHS_OPSET:
        return
    for imports in (model.opset_imports, *(function.opset_imports for function in model.functions.values())):
        imports[""] = _WIDTHS_OPSET
    model.ir_version = max(model.ir_version, 10)
