"""Bring quantisation together: what only moves or selects values does so on the integers.

Dequantising, D(q) = s · (q − z) with s > 0, is elementwise and increasing, so it commutes with every operator f that
moves, repeats or selects elements (Reshape, Transpose, Slice, MaxPool, ArgMax …):

    f(D(q)) = D(f(q)),    argmax D(q) = argmax q,    Pad(D(q), 0) = D(Pad(q, z))

Quantising, Q, is elementwise too, so it moves up through a concatenation, Q(concat(x, y)) = concat(Q(x), Q(y)). Then
Q(D(q)) on one grid is q itself. All of it exact; nothing is quantised that was not before.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as common_passes

from edgec.errors import Refusal
from edgec.frontend.shapes import infer_shapes
from edgec.frontend.values import constant_of, input_of, is_static
from edgec.grid import Grid
from edgec.passes.base import Pass
from edgec.passes.fuse import initializer
from edgec.passes.grids import dequantised, grid_constants, grid_of
from edgec.passes.rewriting import replace_node

_MOVES = frozenset(
    {
        *("DepthToSpace", "Expand", "Flatten", "Gather", "Identity", "Reshape", "Slice", "SpaceToDepth", "Split"),
        *("Squeeze", "Tile", "Transpose", "Unsqueeze", "GlobalMaxPool", "ReduceMax", "ReduceMin"),
    }
)
"""Operators that move, repeat or select elements of their first input; the others are shapes and indices."""

_WORD_MOVES = frozenset(
    {"Concat", "Flatten", "Gather", "Identity", "Reshape", "Slice", "Split", "Squeeze", "Transpose", "Unsqueeze"}
)
"""Those that ONNX and ONNX Runtime have for 16-bit integers, too; the others are as exact on what these stand for."""

_PLACES = frozenset({"ArgMax", "ArgMin"})


class MoveQuantisation(Pass):
    """Moves Dequantize behind and Quantize before what moves or selects values, and cancels the two."""

    name: ClassVar[str] = "move-quantisation"

    def transform(self, model: ir.Model) -> tuple[int, Sequence[Refusal]]:
        """Counts the nodes that were moved or cancelled; there is nothing to refuse."""
        matched, count = 0, -1
        while count:
            count = sum(_step(model, node) for node in list(model.graph) if node.graph is not None)
            matched += count
            if count:
                common_passes.RemoveUnusedNodesPass()(model)
                infer_shapes(model)
        return matched, ()


def _step(model: ir.Model, node: ir.Node) -> bool:
    """Move quantisation past ``node``, where that can be."""
    if node.domain != "" or not all(is_static(value) for value in node.outputs if value.name):
        return False
    if node.op_type == "QuantizeLinear":
        return _cancel(node) or _through_concatenation(model, node)
    if node.op_type == "Concat":
        return _sink_concatenation(model, node)
    source = dequantised(input_of(node, 0))
    if source is None:
        return False
    integers, grid = source
    if grid.bits == 16 and node.op_type not in _WORD_MOVES:
        return False
    if node.op_type in _PLACES:
        node.replace_input_with(0, integers)
        return True
    if not _moves_integers(node):
        return False
    if node.op_type == "Pad":
        if not _pads_with_nought(node):
            return False
        value = initializer(model, f"{node.name}_value", np.array(grid.zero, grid.dtype))
        return _sink(model, node, [integers, node.inputs[1], value, *node.inputs[3:]], grid)
    return _sink(model, node, [integers, *node.inputs[1:]], grid)


def _moves_integers(node: ir.Node) -> bool:
    if node.op_type == "MaxPool":
        return len([value for value in node.outputs if value.name and value.uses()]) == 1
    if node.op_type == "Resize":
        cropping = node.attributes.get_string("coordinate_transformation_mode", "half_pixel") == "tf_crop_and_resize"
        return node.attributes.get_string("mode", "nearest") == "nearest" and not cropping
    return node.op_type in _MOVES or node.op_type == "Pad"


def _pads_with_nought(node: ir.Node) -> bool:
    value = constant_of(input_of(node, 2))
    constant = node.attributes.get_string("mode", "constant") == "constant"
    return not constant or input_of(node, 2) is None or (value is not None and not value.any())


def _sink(model: ir.Model, node: ir.Node, inputs: Sequence[ir.Value | None], grid: Grid) -> bool:
    """Let ``node`` work on integers, and dequantise what it makes; constants of one element stay where they are."""
    graph = model.graph
    moved = ir.node(
        node.op_type, inputs, dict(node.attributes), num_outputs=len(node.outputs), name=f"{node.name}_integers"
    )
    scale, zero = grid_constants(model, grid, str(node.outputs[0].name))
    graph.insert_before(node, moved)
    for old, new in zip(node.outputs, moved.outputs, strict=True):
        new.name, new.type, new.shape = f"{old.name}_integers", _tensor_type(grid.dtype), old.shape
        real = ir.node("DequantizeLinear", [new, scale, zero], name=f"{old.name}_dequantize")
        real.outputs[0].shape, real.outputs[0].type = old.shape, old.type
        graph.insert_before(node, real)
        _take_over(old, real.outputs[0])
    graph.remove(node, safe=True)
    return True


def _tensor_type(dtype: str) -> ir.TensorType:
    return ir.TensorType(ir.DataType.from_numpy(np.dtype(dtype)))


def _take_over(old: ir.Value, new: ir.Value) -> None:
    old.replace_all_uses_with(new, replace_graph_outputs=True)
    name, old.name = old.name, None
    new.name = name


def _cancel(quantise: ir.Node) -> bool:
    """Q(D(q)) = q on one grid."""
    source, grid = dequantised(quantise.inputs[0]), grid_of(quantise, "QuantizeLinear")
    if source is None or grid != source[1] or quantise.outputs[0].is_graph_output():
        return False
    quantise.outputs[0].replace_all_uses_with(source[0])
    return True


def _through_concatenation(model: ir.Model, quantise: ir.Node) -> bool:
    """Q(concat(x, …)) = concat(Q(x), …) where all of it is dequantised."""
    value = quantise.inputs[0]
    concat = None if value is None else value.producer()
    if value is None or concat is None or concat.domain != "" or concat.op_type != "Concat":
        return False
    shared = len(value.uses()) != 1 or value.is_graph_output()
    if shared or grid_of(quantise, "QuantizeLinear") is None or any(dequantised(x) is None for x in concat.inputs):
        return False
    parts = []
    for each in concat.inputs:
        assert each is not None
        part = ir.node("QuantizeLinear", [each, *quantise.inputs[1:]], dict(quantise.attributes))
        part.name = part.outputs[0].name = f"{each.name}_quantised_for_{concat.name}"
        part.outputs[0].shape, part.outputs[0].type = each.shape, quantise.outputs[0].type
        parts.append(part)
    joined = ir.node("Concat", [part.outputs[0] for part in parts], dict(concat.attributes), name=concat.name)
    joined.outputs[0].shape, joined.outputs[0].type = value.shape, quantise.outputs[0].type
    model.graph.insert_before(quantise, [*parts, joined])
    replace_node(quantise, joined)
    model.graph.remove(quantise, safe=True)
    return True


def _sink_concatenation(model: ir.Model, node: ir.Node) -> bool:
    """concat(D(p), D(q)) = D(concat(p, q)) on one grid."""
    sources = [dequantised(value) for value in node.inputs]
    grids = {source[1] for source in sources if source is not None}
    if None in sources or len(grids) != 1:
        return False
    return _sink(model, node, [source[0] for source in sources if source is not None], grids.pop())
