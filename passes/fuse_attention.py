"""Fuse attention that is spelled out into one operator.

    softmax(s · q·k + mask)·v      with q […, S, D], k […, D, T] (transposed) and v […, T, E]

is two products with a softmax along T between them. The factor s may stand before or behind the first product,
on q, on k or on both (then it is their product), as a multiplication or a division: s·(q·k) = (s·q)·k. Between
the products the scores may be reshaped to rows and back, as old exports of Softmax do. How q, k and v come to be
transposed does not matter: that stays outside, and costs nothing when lowered.

The mask is added, or chosen by Where(allowed, score, m) with a constant m of at most −10⁹. That is the same as
adding 0 or m, as long as every row allows something: the others' powers are 0 either way.

Several query heads may share a head of keys and values (grouped queries, Ainslie et al. 2023, arXiv 2305.13245), which
exporters repeat for each of them, [B, H, T, D] as [B, G·H, T, D] by Unsqueeze, Expand and Reshape. Queries of one head
of keys are then so many more rows of it, and nothing is repeated:

    q [B, G·H, S, D] as [B, H, G·S, D],    result [B, H, G·S, E] as [B, G·H, S, E]

Half floats stay spelled out: there the place of the factor shows in the third digit of the result.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from edgec.frontend.values import constant_of, shape_of
from edgec.passes.functions import call
from edgec.passes.fuse import FusePass, Match, initializer, operands, producer, scalar_of
from edgec.passes.rewriting import Refused


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
        if weighted.dtype == ir.DataType.FLOAT16:
            raise Refused("it is attention in half floats, where scaling in another place rounds differently")
        if rows and shape_of(node.inputs[0]) != shape_of(found.product.outputs[0]):
            return None
        absorbed = (*rows, softmax, *split, *found.nodes)
        _require_outside(absorbed, weighted, found.mask)
        return Match("Attention", absorbed, lambda: _attention(model, node, found, weighted))


def _attention(model: ir.Model, node: ir.Node, scores: _Scores, weighted: ir.Value) -> list[ir.Node]:
    if isinstance(scores.mask, np.ndarray):
        scores = replace(scores, mask=initializer(model, f"{node.name}_mask", scores.mask))
    shared = _Shared.of(scores, weighted)
    if shared is not None:
        return shared.attention(model, node, scores)
    return [_call(model, node, scores, [scores.query, scores.key, weighted], scores.mask)]


def _call(
    model: ir.Model, node: ir.Node, scores: _Scores, inputs: Sequence[ir.Value], mask: ir.Value | np.ndarray | None
) -> ir.Node:
    name = "Attention" if mask is None else "MaskedAttention"
    masks = [mask] if isinstance(mask, ir.Value) else []
    return call(model, name, [*inputs, *masks], {"scale": scores.scale}, node.name)


@dataclass(frozen=True)
class _Scores:
    """scale · query·key + mask, and the nodes that compute it; the mask is a value or a new constant."""

    product: ir.Node
    query: ir.Value
    key: ir.Value
    scale: float
    nodes: tuple[ir.Node, ...]
    mask: ir.Value | np.ndarray | None = None


@dataclass(frozen=True)
class _Shared:
    """Keys and values as they were before each head was repeated.

    Attributes:
        key: [B, H, T, D], or [B, H, 1, T, D] with the axis that was expanded.
        value: the same of the values.
        batch: B.
        heads: H, of keys and values.
        queries: G, the heads of queries for each.
        rows: S.
        columns: T.
    """

    key: ir.Value
    value: ir.Value
    batch: int
    heads: int
    queries: int
    rows: int
    columns: int

    @classmethod
    def of(cls, scores: _Scores, weighted: ir.Value) -> _Shared | None:
        """None where no heads are repeated, or the mask differs between those that share."""
        turned = producer(scores.key, "Transpose")
        if turned is None or list(turned.attributes.get_ints("perm", ())) != [0, 1, 3, 2]:
            return None
        key, value, query = _repeated(turned.inputs[0]), _repeated(weighted), shape_of(scores.query)
        if key is None or value is None or len(query) != 4:
            return None
        (batch, heads, _, columns, _), expanded = shape_of(key), shape_of(weighted)
        if shape_of(value)[:2] != (batch, heads) or query[:2] != expanded[:2]:
            return None
        found = cls(key, value, batch, heads, expanded[1] // heads, query[2], columns)
        return found if not isinstance(scores.mask, ir.Value) or found.mask_shapes(scores.mask) else None

    def mask_shapes(self, mask: ir.Value) -> tuple[tuple[int, ...], ...]:
        """What a mask is expanded and reshaped to, one after the other; nothing where it fits none."""
        batch, heads, rows, columns = (1,) * (4 - len(shape_of(mask))) + shape_of(mask)
        if heads == 1 and rows == 1:
            return (shape_of(mask),)
        wide = (batch, self.heads if heads > 1 else 1, self.queries, self.rows, columns)
        if heads > 1 and (heads != self.heads * self.queries or rows != self.rows):
            return ()
        return (wide, (batch, wide[1], self.queries * self.rows, columns))

    def attention(self, model: ir.Model, node: ir.Node, scores: _Scores) -> list[ir.Node]:
        """The operator on what is shared, between nodes that only change shapes."""
        nodes: list[ir.Node] = []

        def made(operator: str, value: ir.Value, shape: Sequence[int], role: str) -> ir.Value:
            constant = initializer(model, f"{node.name}_{role}_shape", np.array(shape, np.int64))
            nodes.append(ir.node(operator, [value, constant], name=f"{node.name}_{role}"))
            return nodes[-1].outputs[0]

        size, width = shape_of(scores.query)[-1], shape_of(self.value)[-1]
        rows = self.queries * self.rows
        query = made("Reshape", scores.query, (self.batch, self.heads, rows, size), "rows")
        key = made("Reshape", self.key, (self.batch, self.heads, self.columns, size), "keys")
        value = made("Reshape", self.value, (self.batch, self.heads, self.columns, width), "values")
        nodes.append(ir.node("Transpose", [key], {"perm": [0, 1, 3, 2]}, name=f"{node.name}_turned"))
        key, mask = nodes[-1].outputs[0], scores.mask
        if isinstance(mask, ir.Value) and len(shapes := self.mask_shapes(mask)) > 1:
            wide, joined = shapes
            mask = made("Reshape", mask, (*wide[:2], wide[2] if wide[1] > 1 else 1, *wide[3:]), "mask_heads")
            mask = made("Reshape", made("Expand", mask, wide, "mask_wide"), joined, "mask_rows")
        nodes.append(_call(model, node, scores, [query, key, value], mask))
        nodes[-1].name = f"{node.name}_shared"
        made("Reshape", nodes[-1].outputs[0], (*shape_of(scores.query)[:3], width), "heads")
        return nodes


def _repeated(value: ir.Value | None) -> ir.Value | None:
    """What was expanded to ``value`` [B, G·H, T, D], as [B, H, 1, T, D]; None where that is not how it came to be."""
    joined = producer(value, "Reshape")
    expanded = producer(joined.inputs[0], "Expand") if joined is not None else None
    source = expanded.inputs[0] if expanded is not None else None
    if value is None or source is None or len(shape_of(source)) != 5 or len(shape_of(value)) != 4:
        return None
    batch, heads, one, columns, size = shape_of(source)
    queries = shape_of(value)[1] // heads
    assert expanded is not None
    same = shape_of(expanded.outputs[0]) == (batch, heads, queries, columns, size)
    return source if one == 1 and same and shape_of(value) == (batch, heads * queries, columns, size) else None


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


def _require_outside(absorbed: Sequence[ir.Node], *operands: ir.Value | np.ndarray | None) -> None:
    """What the operator reads must be there when the nodes that it absorbs are gone."""
    inside = {output for node in absorbed for output in node.outputs}
    for operand in operands:
        if isinstance(operand, ir.Value) and operand in inside:
            raise Refused(f"it would be Attention, but its values or its mask are '{operand.name}' inside it")


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
    return None if chosen is None else _read_chosen(chosen)


def _read_chosen(chosen: ir.Node) -> _Scores | None:
    """Where(allowed, scores, fill) or Where(forbidden, fill, scores), as a sum."""
    condition, yes, no = chosen.inputs
    for scores, fill, negated in ((yes, no, False), (no, yes, True)):
        scaled = _read_scaled(scores)
        if scaled is not None and shape_of(scores) == shape_of(chosen.outputs[0]):
            allowed = constant_of(condition)
            mask = _as_sum(chosen, allowed if allowed is None else allowed != negated, scalar_of(fill))
            return replace(scaled, mask=mask.astype(_numpy_dtype(scaled.query)), nodes=(chosen, *scaled.nodes))
    return None


def _as_sum(chosen: ir.Node, allowed: np.ndarray | None, fill: float | None) -> np.ndarray:
    """What is added instead; raises :class:`Refused` where that is not the same."""
    place = f"it would be Attention, but the mask of Where '{chosen.name}'"
    if allowed is None:
        raise Refused(f"{place} is computed at run time, so that a row may allow nothing")
    if fill is None or fill > _FORBIDDEN:
        raise Refused(f"{place} fills in something else than a constant of at most {_FORBIDDEN:g}")
    if not allowed.any(axis=-1).all():
        raise Refused(f"{place} has a row that allows nothing")
    return np.where(allowed, 0, fill)


_FORBIDDEN = -1e9
"""Scores are far from this, so that adding it leaves a power of 0."""


def _numpy_dtype(value: ir.Value) -> np.dtype:
    assert value.dtype is not None
    return value.dtype.numpy()


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
