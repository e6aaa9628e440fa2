"""Fuse attention that is spelled out into one operator.

    softmax(s · q·k + mask)·v      with q […, S, D], k […, D, T] (transposed) and v […, T, E]

is two products with a softmax along T between them. The factor s may stand before or behind the first product,
on q, on k or on both (then it is their product), as a multiplication or a division: s·(q·k) = (s·q)·k. The
mask is added. Between the products the scores may be reshaped to rows and back, as old exports of Softmax do.
How q, k and v come to be transposed does not matter: that stays outside, and costs nothing when lowered.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import onnx_ir as ir

from edgec.passes.functions import call
from edgec.passes.fuse import FusePass, Match, operands, producer, scalar_of
from edgec.passes.rewriting import Refused
from edgec.values import shape_of


class FuseAttention(FusePass):
    """Recognises scaled dot-product attention."""

    name: ClassVar[str] = "fuse-attention"

    def match(self, model: ir.Model, node: ir.Node) -> Match | None:
        weighted = node.inputs[1] if node.op_type == "MatMul" else None
        if weighted is None:
            return None
        softmax, rows = _softmax_before(node.inputs[0])
        if softmax is None:
            return None
        scores, split = _unreshaped(softmax.inputs[0])
        found = _read_scores(scores)
        if found is None:
            return None
        _require_last_axis(softmax, found)
        if rows and shape_of(node.inputs[0]) != shape_of(found.product.outputs[0]):
            return None
        values = [found.query, found.key, weighted, *([] if found.mask is None else [found.mask])]
        name = "Attention" if found.mask is None else "MaskedAttention"
        absorbed = (*rows, softmax, *split, *found.nodes)
        return Match("Attention", absorbed, lambda: [call(model, name, values, {"scale": found.scale}, node.name)])


@dataclass(frozen=True)
class _Scores:
    """scale · query·key + mask, and the nodes that compute it."""

    product: ir.Node
    query: ir.Value
    key: ir.Value
    scale: float
    nodes: tuple[ir.Node, ...]
    mask: ir.Value | None = None


def _unreshaped(value: ir.Value | None) -> tuple[ir.Value | None, tuple[ir.Node, ...]]:
    """What a Reshape or Flatten that keeps the rows reads, else the value itself; and that node."""
    node = producer(value, "Reshape", "Flatten")
    if node is None or not shape_of(node.inputs[0]) or shape_of(node.inputs[0])[-1] != shape_of(value)[-1]:
        return value, ()
    return node.inputs[0], (node,)


def _softmax_before(value: ir.Value | None) -> tuple[ir.Node | None, tuple[ir.Node, ...]]:
    weights, rows = _unreshaped(value)
    return producer(weights, "Softmax"), rows


def _require_last_axis(softmax: ir.Node, scores: _Scores) -> None:
    rank = len(shape_of(softmax.inputs[0]))
    axis = softmax.attributes.get_int("axis", -1) % rank
    if axis != rank - 1:
        raise Refused(f"Softmax '{softmax.name}' runs along axis {axis} of {rank}, not along the keys")


def _read_scores(value: ir.Value | None) -> _Scores | None:
    """The scores, from the last operator back: mask, then scale, then the product."""
    scaled = _read_scaled(value)
    if scaled is not None:
        return scaled
    masked = producer(value, "Add")
    for inner, mask in operands(masked) if masked is not None else ():
        scaled = _read_scaled(inner)
        if scaled is not None and masked is not None and shape_of(inner) == shape_of(masked.outputs[0]):
            return replace(scaled, mask=mask, nodes=(masked, *scaled.nodes))
    chosen = producer(value, "Where")
    if chosen is not None and any(_read_scaled(branch) for branch in chosen.inputs[1:]):
        raise Refused(f"it would be Attention, but Where '{chosen.name}' applies the mask; only added masks are fused")
    return None


def _read_scaled(value: ir.Value | None) -> _Scores | None:
    inner, scale, nodes = _unscaled(value)
    product = producer(inner, "MatMul")
    if product is None or min(len(shape_of(operand)) for operand in product.inputs) < 2:
        return None
    (query, on_query, first), (key, on_key, second) = (_unscaled(operand) for operand in product.inputs)
    if query is None or key is None:
        return None
    return _Scores(product, query, key, scale * on_query * on_key, (*nodes, product, *first, *second))


def _unscaled(value: ir.Value | None) -> tuple[ir.Value | None, float, tuple[ir.Node, ...]]:
    """``value`` = result · factor: the result, the factor and the node that multiplies, if one does."""
    node = producer(value, "Mul", "Div")
    if node is None:
        return value, 1.0, ()
    pairs = operands(node) if node.op_type == "Mul" else operands(node)[:1]
    for inner, constant in pairs:
        factor = scalar_of(constant)
        if factor and inner.const_value is None and shape_of(inner) == shape_of(value):
            return inner, factor if node.op_type == "Mul" else 1 / factor, (node,)
    return value, 1.0, ()
