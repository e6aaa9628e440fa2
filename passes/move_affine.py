"""Move a per-channel affine map across what commutes with it, to where it can be folded.

z = s·M(x) + t equals M(s·x + t) where M keeps the channels (axis 1) and is a weighted mean within each of them, its
weights summing to one:

    Resize, AveragePool that leaves out its padding, GlobalAveragePool, ReduceMean over spatial axes
    Reshape, Flatten, Squeeze, Unsqueeze behind the channel axis; Slice along others; Pad by what it finds inside
    Concat       along the channels each operand takes its part of s and t, along other axes all of them

The other way, a map before a Flatten that a product reads becomes one with a value per feature behind it, where
:mod:`edgec.passes.fold_sequences` folds it into the product.

A map is moved back only if in the end every copy stands behind a linear operator with constant weights, where
:mod:`edgec.passes.fold_affine` folds it, so that nothing is added; otherwise it stays.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from math import prod
from typing import ClassVar

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as common_passes

from edgec.errors import Refusal
from edgec.frontend.values import constant_of, input_of, is_static, node_shapes, shape_of
from edgec.passes.affine import AFFINE_OPERATORS, Affine, Channels, read_affine, varying_operand
from edgec.passes.base import Pass
from edgec.passes.rewriting import (
    Refused,
    is_private,
    named,
    new_constant,
    replace_node,
    require_single_reader,
    rounded,
)

_LINEAR = ("Conv", "ConvTranspose", "Gemm")


class MoveAffine(Pass):
    """Moves batch norms, scales and shifts across resizes, means, reshapes and concatenations to what folds them."""

    name: ClassVar[str] = "move-affine"

    def transform(self, model: ir.Model) -> tuple[int, Sequence[Refusal]]:
        matched = 0
        while count := sum(_moved(node, model.graph) for node in list(model.graph)):
            matched += count
        common_passes.RemoveUnusedNodesPass()(model)
        return matched, list(_refusals(model.graph))


def _moved(node: ir.Node, graph: ir.Graph) -> bool:
    if node.graph is not graph or node.domain != "" or node.op_type not in AFFINE_OPERATORS:
        return False
    return _moved_back(node, graph) or _moved_behind_flatten(node, graph)


def _moved_back(node: ir.Node, graph: ir.Graph) -> bool:
    try:
        crossed, affine = _crossing(node)
        require_single_reader(crossed)
        values = _replacements(node, crossed, affine, graph)
    except Refused:
        return False
    new = ir.node(crossed.op_type, values, attributes=dict(crossed.attributes), name=crossed.name)
    new.outputs[0].shape, new.outputs[0].type = node.outputs[0].shape, node.outputs[0].type
    graph.insert_before(node, new)
    replace_node(node, new)
    graph.remove([node, crossed], safe=True)
    return True


def _moved_behind_flatten(node: ir.Node, graph: ir.Graph) -> bool:
    """Move the map behind the Flatten that alone reads it, if only products with constant weights read that."""
    flatten = next(iter(node.outputs[0].consumers()), None)
    if flatten is None or not is_private(node) or not _is_flatten_before_products(flatten):
        return False
    try:
        value = varying_operand(node)
        if value.shape != node.outputs[0].shape or _absorbs(value):
            return False
        shape = shape_of(value)
        affine = read_affine(node, Channels(shape[1], 1, len(shape), named(node)))
    except Refused:
        return False
    flatten.replace_input_with(0, value)
    output, each = flatten.outputs[0], prod(shape[2:])
    readers = list(output.uses())
    wide = Affine(np.repeat(affine.scale, each), np.repeat(affine.shift, each))
    mapped = _mapped(output, wide, str(node.name), graph)
    for reader, index in readers:
        reader.replace_input_with(index, mapped)
    graph.remove(node, safe=True)
    return True


def _is_flatten_before_products(node: ir.Node) -> bool:
    """Whether the node makes rows of features of a feature map, for products with constant weights and nobody else."""
    if node.op_type not in ("Flatten", "Reshape") or node.domain != "" or node.outputs[0].is_graph_output():
        return False
    before, after = shape_of(node.inputs[0]), shape_of(node.outputs[0])
    readers = list(node.outputs[0].consumers())
    products = all(
        reader.op_type in ("Gemm", "MatMul")
        and reader.inputs[0] is node.outputs[0]
        and constant_of(reader.inputs[1]) is not None
        and reader.attributes.get_int("transA", 0) == 0
        for reader in readers
    )
    return bool(readers) and products and len(before) >= 3 and after == (before[0], prod(before[1:]))


def _refusals(graph: ir.Graph) -> Iterator[Refusal]:
    """Maps that could cross, but for the other readers of what they stand behind."""
    for node in graph:
        try:
            crossed, _ = _crossing(node)
            require_single_reader(crossed)
        except Refused as refused:
            if str(refused):
                yield Refusal(str(node.name), node.op_type, node_shapes(node), str(refused), "it stays where it is")


def _crossing(node: ir.Node) -> tuple[ir.Node, Affine]:
    """What ``node`` can cross to be folded, and the map that it is; raises :class:`Refused`."""
    if node.op_type not in AFFINE_OPERATORS or node.domain != "":
        raise Refused
    value = varying_operand(node)
    crossed = value.producer()
    if crossed is None or value.shape != node.outputs[0].shape or not _commutes(crossed):
        raise Refused
    if not all(_absorbs(operand) for operand in _operands(crossed)):
        raise Refused
    shape = shape_of(value)
    try:
        return crossed, read_affine(node, Channels(shape[1], 1, len(shape), named(crossed)))
    except Refused as refused:
        raise Refused from refused


def _replacements(node: ir.Node, crossed: ir.Node, affine: Affine, graph: ir.Graph) -> list[ir.Value | None]:
    """The inputs of what is crossed, its operands each under their part of the map."""
    operands = _operands(crossed)
    split = crossed.op_type == "Concat" and crossed.attributes.get_int("axis", 0) % len(shape_of(operands[0])) == 1
    ends = np.cumsum([shape_of(value)[1] for value in operands])[:-1].tolist() if split else []
    scales, shifts = np.split(affine.scale, ends), np.split(affine.shift, ends)
    mapped = []
    for index, value in enumerate(operands):
        part = index if split else 0
        mapped.append(_mapped(value, Affine(scales[part], shifts[part]), f"{node.name}_{index}", graph))
    return [*mapped, *crossed.inputs[len(operands) :]]


def _mapped(value: ir.Value, affine: Affine, name: str, graph: ir.Graph) -> ir.Value:
    """``value`` under the map, which stands right behind it."""
    dtype = value.dtype
    assert dtype is not None
    for operator, array, neutral in (("Mul", affine.scale, 1), ("Add", affine.shift, 0)):
        if (array == neutral).all():
            continue
        spread = array.reshape(-1, *(1,) * (len(shape_of(value)) - 2))
        constant = new_constant(rounded(spread, dtype.numpy(), f"'{name}'"), f"{name}_{operator.lower()}", graph)
        node = ir.node(operator, [value, constant], name=f"{name}_{operator.lower()}")
        node.outputs[0].shape, node.outputs[0].type = value.shape, value.type
        producer = value.producer()
        assert producer is not None
        graph.insert_after(producer, node)
        value = node.outputs[0]
    return value


def _absorbs(value: ir.Value) -> bool:
    """Whether a map behind ``value`` can be folded into what computes it, perhaps after further moves."""
    node = value.producer()
    if node is None or node.domain != "" or not is_private(node) or not is_static(value) or len(shape_of(value)) < 2:
        return False
    if node.op_type in _LINEAR:
        return constant_of(node.inputs[1]) is not None
    if node.op_type in AFFINE_OPERATORS:
        return _is_map_that_folds(node)
    return _commutes(node) and all(_absorbs(operand) for operand in _operands(node))


def _is_map_that_folds(node: ir.Node) -> bool:
    try:
        operand = varying_operand(node)
    except Refused:
        return False
    return operand.shape == node.outputs[0].shape and _absorbs(operand)


def _operands(node: ir.Node) -> list[ir.Value]:
    """The inputs that carry the channels."""
    count = len(node.inputs) if node.op_type == "Concat" else 1
    return [value for value in node.inputs[:count] if value is not None]


def _commutes(node: ir.Node) -> bool:
    check = _COMMUTING.get(node.op_type) if node.domain == "" else None
    values = [node.outputs[0], *_operands(node)]
    return check is not None and all(is_static(value) and len(shape_of(value)) >= 2 for value in values) and check(node)


def _keeps_channels(node: ir.Node) -> bool:
    return shape_of(node.inputs[0])[:2] == shape_of(node.outputs[0])[:2]


def _resize(node: ir.Node) -> bool:
    mode = node.attributes.get_string("coordinate_transformation_mode", "half_pixel")
    return mode != "tf_crop_and_resize" and _keeps_channels(node)


def _slice(node: ir.Node) -> bool:
    axes, rank = constant_of(input_of(node, 3)), len(shape_of(node.inputs[0]))
    return axes is not None and 1 not in (axes % rank).tolist()


def _pad(node: ir.Node) -> bool:
    return node.attributes.get_string("mode", "constant") != "constant" and _keeps_channels(node)


def _average(node: ir.Node) -> bool:
    padded = any(node.attributes.get_ints("pads", ())) or node.attributes.get_string("auto_pad", "NOTSET") != "NOTSET"
    counted = padded and node.attributes.get_int("count_include_pad", 0) == 1
    return not counted and node.attributes.get_int("ceil_mode", 0) == 0


def _spatial_mean(node: ir.Node) -> bool:
    axes, rank = constant_of(input_of(node, 1)), len(shape_of(node.inputs[0]))
    return axes is not None and axes.size > 0 and all(axis % rank >= 2 for axis in axes.tolist())


_COMMUTING: Mapping[str, Callable[[ir.Node], bool]] = {
    **dict.fromkeys(("Reshape", "Flatten", "Squeeze", "Unsqueeze"), _keeps_channels),
    "AveragePool": _average,
    "Concat": lambda node: True,
    "GlobalAveragePool": lambda node: True,
    "ReduceMean": _spatial_mean,
    "Pad": _pad,
    "Resize": _resize,
    "Slice": _slice,
}
