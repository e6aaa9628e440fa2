"""Turn the layer norms of a residual stream into RMS norms by centring what is written to the stream.

A layer norm takes the mean off its input first, so LN(r) = LN(P·r) with the projection P = I - 1·1ᵀ/d. If only
layer norms read the residual stream r, and r is a sum of linear layers' results and constants, then P can go into
the weights, P·(W·x + b + …) = (P·W)·x + P·b + …; the stream is centred from the start, and

    LN(r) = r / √(mean(r²) + ε) · γ + β

which is an RMS norm with one pass over r instead of two (Pre-RMSNorm, arXiv 2305.14858). The stream is followed
through Add, Sum, Concat, Gather, Transpose, Reshape and their like, along whatever axis its channels lie there; its
writers are MatMul, Gemm, Conv, and Gather from a table of embeddings. Anything else that reads or writes it, a model
output among them, or a weight that is shared with something else, and the norms stay as they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import prod
from typing import ClassVar

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as common_passes

from edgec.errors import Refusal
from edgec.frontend.values import constant_of, input_of, node_shapes, shape_of
from edgec.passes.base import Pass
from edgec.passes.functions import call
from edgec.passes.rewriting import Refused, named, new_constant, replace_node

_SUMS = ("Add", "Sum")


class FoldNorms(Pass):
    """Centres residual streams in the weights that write them, so that layer norms become RMS norms."""

    name: ClassVar[str] = "fold-norms"

    def transform(self, model: ir.Model) -> tuple[int, Sequence[Refusal]]:
        """Counts the norms that were turned; one refusal for each stream that stays."""
        matched = 0
        refusals: dict[str, Refusal] = {}
        for node in list(model.graph):
            if node.op_type != "LayerNormalization" or node.domain != "" or node.graph is not model.graph:
                continue
            try:
                matched += _turn(_follow(node), model)
            except Refused as refused:
                refusal = Refusal(str(node.name), node.op_type, node_shapes(node), str(refused), "it stays centred")
                refusals.setdefault(str(refused), refusal)
        common_passes.RemoveUnusedNodesPass()(model)
        return matched, list(refusals.values())


@dataclass
class _Stream:
    """A residual stream: the axis of the channels in each of its values, the norms that read it, and the constants
    that write to it, each with the axis along which it has to be centred."""

    axes: dict[ir.Value, int] = field(default_factory=dict)
    norms: list[ir.Node] = field(default_factory=list)
    weights: dict[ir.Value, int] = field(default_factory=dict)
    writers: set[ir.Node] = field(default_factory=set)

    def centre(self, value: ir.Value | None, axis: int, writer: ir.Node) -> None:
        """Note that ``value``, which ``writer`` reads, has to be centred along ``axis`` (from the end)."""
        if value is None:
            return
        if value.const_value is None:
            raise Refused(f"its residual stream is written by {named(writer)}, whose weight is computed at run time")
        if self.weights.setdefault(value, axis) != axis:
            raise Refused(f"'{value.name}' is written to its residual stream along two axes")
        self.writers.add(writer)

    def require_own_weights(self) -> None:
        for value in self.weights:
            for reader in value.consumers():
                if reader not in self.writers:
                    raise Refused(
                        f"its residual stream is written with '{value.name}', which {named(reader)} reads too"
                    )
            if value.is_graph_output():
                raise Refused(f"its residual stream is written with '{value.name}', an output of the model")


def _follow(norm: ir.Node) -> _Stream:
    """The whole stream that ``norm`` reads; raises :class:`Refused` where it cannot be centred."""
    stream = _Stream()
    source = norm.inputs[0]
    assert source is not None
    pending = [(source, len(shape_of(source)) - 1)]
    while pending:
        value, axis = pending.pop()
        if stream.axes.setdefault(value, axis) != axis:
            raise Refused(f"the channels of its residual stream lie along two axes of '{value.name}'")
        if value.is_graph_output():
            raise Refused(f"its residual stream is also an output of the model, '{value.name}'")
        found = [*_written_by(value, axis, stream), *_read_by(value, axis, stream)]
        pending += [(other, place) for other, place in found if stream.axes.get(other) != place]
    stream.require_own_weights()
    return stream


# ---- upstream ---------------------------------------------------------------------------------------------


def _written_by(value: ir.Value, axis: int, stream: _Stream) -> list[tuple[ir.Value, int]]:
    """The values of the stream that ``value`` is made of; constants and weights are noted in ``stream``."""
    node = value.producer()
    if node is None:
        raise Refused(f"its residual stream begins with '{value.name}', an input of the model")
    if node.domain == "" and node.op_type in _WEIGHTS:
        _note_weights(node, axis, stream)
        return []
    if _is_embedding(node):
        table = node.inputs[0]
        assert table is not None
        stream.centre(table, _moved_axis(node, node.outputs[0], table, axis) - len(shape_of(table)), node)
        return []
    sources = []
    for operand in _carried(node):
        if constant_of(operand) is None:
            sources.append((operand, _moved_axis(node, value, operand, axis)))
        else:
            stream.centre(operand, axis - len(shape_of(value)), node)
    if not sources:
        raise Refused(f"its residual stream is written by {named(node)}, which is no linear layer")
    return sources


def _is_embedding(node: ir.Node) -> bool:
    return node.domain == "" and node.op_type == "Gather" and constant_of(node.inputs[0]) is not None


def _note_weights(node: ir.Node, axis: int, stream: _Stream) -> None:
    """A linear layer whose channels are its output's ``axis``: its weight and its bias are to be centred."""
    own, place = _WEIGHTS[node.op_type]
    if node.op_type == "Gemm" and node.attributes.get_int("transB", 0) == 1:
        place = -2
    weight = node.inputs[1]
    if axis - len(shape_of(node.outputs[0])) != own and axis != own:
        raise Refused(f"its residual stream is written by {named(node)}, whose channels lie along another axis")
    if node.attributes.get_int("group", 1) > 1:
        raise Refused(f"its residual stream is written by {named(node)} in groups, which share no inputs")
    stream.centre(weight, -len(shape_of(weight)) if node.op_type == "Conv" else place, node)
    stream.centre(input_of(node, 2), -1, node)


_WEIGHTS = {"MatMul": (-1, -1), "Gemm": (-1, -1), "Conv": (1, 0)}
"""Linear layers: the axis of the channels in the output, and in the weight."""


def _carried(node: ir.Node) -> list[ir.Value]:
    """The inputs that are part of the stream if the output is."""
    if node.domain != "" or node.op_type not in (*_SUMS, "Concat", *_MOVES):
        return []
    count = len(node.inputs) if node.op_type in (*_SUMS, "Concat") else 1
    return [value for value in node.inputs[:count] if value is not None]


# ---- downstream -------------------------------------------------------------------------------------------


def _read_by(value: ir.Value, axis: int, stream: _Stream) -> list[tuple[ir.Value, int]]:
    """The values of the stream that are made of ``value``; norms are noted in ``stream``."""
    results = []
    for reader in value.consumers():
        if _is_norm(reader, value, axis):
            stream.norms.append(reader)
        elif value in _carried(reader):
            results.append((reader.outputs[0], _moved_axis(reader, value, reader.outputs[0], axis)))
        else:
            raise Refused(f"its residual stream is also read by {named(reader)}, to which its mean may matter")
    return results


def _is_norm(node: ir.Node, value: ir.Value, axis: int) -> bool:
    """Whether the node is a layer norm of ``value`` over the channels, and nobody reads its statistics."""
    last = len(shape_of(value)) - 1
    if node.op_type != "LayerNormalization" or node.domain != "" or node.inputs[0] is not value:
        return False
    unread = not any(each.uses() or each.is_graph_output() for each in node.outputs[1:])
    return unread and axis == last and node.attributes.get_int("axis", -1) % (last + 1) == last


# ---- where the channels lie ---------------------------------------------------------------------------------


def _moved_axis(node: ir.Node, value: ir.Value, other: ir.Value, axis: int) -> int:
    """The axis of ``other`` that ``axis`` of ``value`` is, one of them read and the other made by ``node``."""
    forward = other is node.outputs[0]
    try:
        place = _MOVES.get(node.op_type, _from_the_end)(node, value, other, axis, forward)
    except (ValueError, IndexError):
        place = -1
    if place < 0 or shape_of(other)[place] != shape_of(value)[axis]:
        raise Refused(f"the channels of its residual stream are not kept apart by {named(node)}")
    return place


def _from_the_end(node: ir.Node, value: ir.Value, other: ir.Value, axis: int, forward: bool) -> int:
    rank = len(shape_of(other))
    if node.op_type == "Concat" and node.attributes.get_int("axis", 0) % rank == axis:
        return -1
    return axis - len(shape_of(value)) + rank


def _through_reshape(node: ir.Node, value: ir.Value, other: ir.Value, axis: int, forward: bool) -> int:
    """The axis with as many elements before it and as many in it."""
    before, shape = prod(shape_of(value)[:axis]), shape_of(other)
    places = [place for place in range(len(shape)) if prod(shape[:place]) == before]
    return next((place for place in reversed(places) if shape[place] == shape_of(value)[axis]), -1)


def _through_transpose(node: ir.Node, value: ir.Value, other: ir.Value, axis: int, forward: bool) -> int:
    perm = list(node.attributes.get_ints("perm", tuple(range(len(shape_of(value))))[::-1]))
    return perm.index(axis) if forward else perm[axis]


def _through_gather(node: ir.Node, value: ir.Value, other: ir.Value, axis: int, forward: bool) -> int:
    data = node.inputs[0]
    chosen = node.attributes.get_int("axis", 0) % len(shape_of(data))
    width = len(shape_of(node.inputs[1]))
    if forward:
        return -1 if axis == chosen else axis + (width - 1) * (axis > chosen)
    return -1 if chosen <= axis < chosen + width else axis - (width - 1) * (axis >= chosen + width)


def _through_slice(node: ir.Node, value: ir.Value, other: ir.Value, axis: int, forward: bool) -> int:
    axes, rank = constant_of(input_of(node, 3)), len(shape_of(value))
    return -1 if axes is None or axis in (axes % rank).tolist() else axis


_MOVES = {
    **dict.fromkeys(("Reshape", "Flatten", "Squeeze", "Unsqueeze"), _through_reshape),
    "Gather": _through_gather,
    "Identity": _from_the_end,
    "Slice": _through_slice,
    "Transpose": _through_transpose,
}


# ---- rewriting --------------------------------------------------------------------------------------------


def _turn(stream: _Stream, model: ir.Model) -> int:
    """Centre the weights and replace the norms; how many norms there were."""
    graph = model.graph
    for value, axis in stream.weights.items():
        array = constant_of(value)
        assert array is not None
        value.replace_all_uses_with(new_constant(_centred(array, axis), f"{value.name}_centred", graph))
    for norm in stream.norms:
        _replace_norm(norm, model)
    return len(stream.norms)


def _centred(array: np.ndarray, axis: int) -> np.ndarray:
    """``array`` less its mean along ``axis``, which may be one it is broadcast along."""
    if array.ndim < -axis:
        return np.zeros_like(array)
    wide = array.astype(np.float64)
    return (wide - wide.mean(axis=axis, keepdims=True)).astype(array.dtype)


def _replace_norm(norm: ir.Node, model: ir.Model) -> None:
    source, scale = norm.inputs[:2]
    bias, output = input_of(norm, 2), norm.outputs[0]
    assert source is not None and scale is not None
    epsilon = norm.attributes.get_float("epsilon", 1e-5)
    nodes = [call(model, "RMSNormalization", [source, scale], {"epsilon": epsilon}, norm.name)]
    if bias is not None and (constant_of(bias) is None or np.any(constant_of(bias))):
        nodes.append(ir.node("Add", [nodes[0].outputs[0], bias], name=f"{norm.name}_bias"))
    for node in nodes:
        node.outputs[0].shape, node.outputs[0].type = output.shape, output.type
    model.graph.insert_before(norm, nodes)
    replace_node(norm, nodes[-1])
    model.graph.remove(norm, safe=True)
