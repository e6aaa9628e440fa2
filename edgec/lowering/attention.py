"""Attention: two matrix products around a softmax whose division waits until behind the second."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod, sqrt

import numpy as np
import onnx_ir as ir

from edgec.frontend.values import is_used
from edgec.lowering.context import Lowering, Operands, attribute, lowers, shape_of
from edgec.lowering.elementwise import tanh
from edgec.lowering.matmul import product
from edgec.lowering.reduction import reduce_view, working_dtype
from edgec.program import View
from edgec.scalar import INDEX, Expr, binary, cast, clamp_index, const, select, unary


def attend(ctx: Lowering, scores: View, value: View, guarded: bool = False, dtype: str | None = None) -> View:
    """softmax(scores [..., S, T], along T) · value [..., T, E]; batch axes of ``value`` broadcast.

    The softmax's division waits until behind the product: there it takes S × E elements instead of the S × T of
    the weights, and no pass over memory of its own. A softmax in half floats divides first, so that it is rounded
    where ONNX's definition rounds it.

    Args:
        ctx: the model in hand.
        scores: of each query (rows) for each key (columns).
        value: one row a key.
        guarded: makes rows of nothing but −∞ zero instead of NaN.
        dtype: of the softmax; by default that of the scores, or float32 for half floats.
    """
    exponentials = _exponentials(ctx, scores, guarded, dtype or working_dtype(scores.dtype))
    divided_first = dtype == "float16"
    weights = exponentials.divided(ctx, exponentials.powers) if divided_first else exponentials.powers
    weighted = ctx.new((*scores.shape[:-1], value.shape[-1]), scores.dtype)
    product(ctx, weighted, weights, value)
    return weighted if divided_first else exponentials.divided(ctx, weighted)


@dataclass(frozen=True)
class Exponentials:
    """``powers``: exp(score − the largest of its row). ``total``: the sum of each row, 0 for ``guarded`` rows of −∞."""

    powers: View
    total: View
    guarded: bool

    def divided(self, ctx: Lowering, values: View) -> View:
        """``values``, which have the rows of the scores, by the totals; rows whose total is a guarded 0 stay."""
        divisor = self.total.broadcast_to(values.shape)

        def quotient(ops: Operands, *i: Expr) -> Expr:
            by = ops.load(divisor, *i)
            if self.guarded:
                by = select(binary("eq", by, const(0, by.dtype)), const(1, by.dtype), by)
            return cast(binary("div", cast(ops.load(values, *i), by.dtype), by), values.dtype)

        return ctx.compute(ctx.new(values.shape, values.dtype), quotient)


def _exponentials(ctx: Lowering, scores: View, guarded: bool, dtype: str) -> Exponentials:
    last = len(scores.shape) - 1

    def wide(view: View, ops: Operands, *i: Expr) -> Expr:
        return cast(ops.load(view, *i), dtype)

    def finite(ops: Operands, acc: Expr, *_: Expr) -> Expr:
        nothing = const(float("-inf"), dtype)
        return select(binary("eq", acc, nothing), const(0, dtype), acc) if guarded else acc

    top = reduce_view(ctx, scores, [last], dtype, "max", lambda ops, *i: wide(scores, ops, *i), finite)
    largest = top.broadcast_to(scores.shape)
    powers = ctx.compute(
        ctx.new(scores.shape, scores.dtype),
        lambda ops, *i: cast(unary("exp", binary("sub", wide(scores, ops, *i), ops.load(largest, *i))), scores.dtype),
    )
    total = reduce_view(ctx, powers, [last], dtype, "sum", lambda ops, *i: wide(powers, ops, *i))
    return Exponentials(powers, total, guarded)


@dataclass(frozen=True)
class Mask:
    """What the query at position i may see of the keys: the conditions of ONNX Attention-25, all of them at once.

    ``given`` [batch, heads, S, up to T] is bool or added to the scores; ``valid`` holds each batch's number of
    keys; a query stands at i + ``offset`` among the keys, or at i + valid − S.
    """

    given: View | None
    valid: View | None
    offset: int
    queries: int
    causal: bool
    left: int
    right: int

    def __bool__(self) -> bool:
        return bool(self.given or self.valid or self.causal or self.left >= 0 or self.right >= 0)

    def apply(self, ops: Operands, score: Expr, batch: Expr, head: Expr, query: Expr, key: Expr) -> Expr:
        """The score plus the given mask, or −∞ where a condition does not hold."""
        conditions = self._conditions(ops, batch, query, key)
        if self.given is not None:
            extent = self.given.shape[-1]
            inside = clamp_index(key, extent)
            found = ops.load(self.given, batch, head, query, inside)
            if self.given.dtype == "bool":
                conditions.append(found)
            else:
                score = binary("add", score, cast(found, score.dtype))
            conditions.append(binary("lt", key, const(extent, INDEX)))
        for condition in conditions:
            score = select(condition, score, const(float("-inf"), score.dtype))
        return score

    def _conditions(self, ops: Operands, batch: Expr, query: Expr, key: Expr) -> list[Expr]:
        found, place = [], query + self.offset
        if self.valid is not None:
            count = cast(ops.load(self.valid, batch), INDEX)
            found.append(binary("lt", key, count))
            place = query + count - self.queries
        if self.causal:
            found.append(binary("le", key, place))
        if self.left >= 0:
            found.append(binary("ge", key, place - self.left))
        if self.right >= 0:
            found.append(binary("le", key, place + self.right))
        return found


def _heads(ctx: Lowering, view: View, count: int) -> View:
    """(batch, positions, heads · size) as (batch, heads, positions, size)."""
    if len(view.shape) == 4:
        return view
    batch, positions, width = view.shape
    return ctx.reshape(view, (batch, positions, count, width // count)).permute((0, 2, 1, 3))


def _with_past(ctx: Lowering, past: View | None, view: View) -> View:
    """``view`` behind ``past`` along the positions."""
    if past is None:
        return view
    batch, heads, before, size = past.shape
    out = ctx.new((batch, heads, before + view.shape[2], size), view.dtype)
    ctx.copy(past, out.slice((0, 0, 0, 0), past.shape))
    ctx.copy(view, out.slice((0, 0, before, 0), view.shape))
    return out


def _mask(ctx: Lowering, node: ir.Node, queries: int, shape: tuple[int, ...]) -> Mask:
    given, past = ctx.optional(node, 3), ctx.optional(node, 4)
    if given is not None:
        given = given.broadcast_to((*shape[:-1], given.shape[-1]))
    return Mask(
        given, ctx.optional(node, 6), 0 if past is None else past.shape[2], queries,
        bool(attribute(node, "is_causal", 0)),
        int(attribute(node, "left_window_size", -1)), int(attribute(node, "right_window_size", -1)),
    )  # fmt: skip


@lowers("Attention")
def lower_attention(ctx: Lowering, node: ir.Node) -> None:
    """softmax(softcap(scale · Q·Kᵀ) + mask)·V for each head; several query heads may share a head of K and V."""
    query = _heads(ctx, ctx.input(node, 0), attribute(node, "q_num_heads", 1))
    key, value = (_cached(ctx, node, index) for index in (1, 2))
    batch, heads, positions, size = query.shape
    shape = (batch, heads, positions, key.shape[2])
    scores = _scores(ctx, query, key, float(attribute(node, "scale", 1 / sqrt(size))))
    mask = _mask(ctx, node, positions, shape)
    softcapped = _softcapped(ctx, ctx.reshape(scores, shape), float(attribute(node, "softcap", 0.0)))
    masked = _masked(ctx, softcapped, mask)
    dtype = _softmax_dtype(node, query.dtype)
    found = attend(ctx, ctx.reshape(masked, scores.shape), value, bool(mask), dtype)
    outputs = dict(enumerate((_joined(ctx, found, shape_of(node.outputs[0]), heads), key, value)))
    if len(node.outputs) > 3 and is_used(node.outputs[3]):
        stages = (ctx.reshape(scores, shape), softcapped, masked)
        mode = attribute(node, "qk_matmul_output_mode", 0)
        outputs[3] = stages[mode] if mode < 3 else _probabilities(ctx, masked, bool(mask), dtype)
    for position, output in enumerate(node.outputs):
        if is_used(output):
            ctx.set(output, outputs[position])


def _cached(ctx: Lowering, node: ir.Node, index: int) -> View:
    """The key (1) or value (2) of each head, behind that of past positions."""
    heads = _heads(ctx, ctx.input(node, index), attribute(node, "kv_num_heads", 1))
    return _with_past(ctx, ctx.optional(node, index + 3), heads)


def _scores(ctx: Lowering, query: View, key: View, scale: float) -> View:
    """scale · Q·Kᵀ [batch, heads of K, their queries' heads · S, T].

    Half floats are scaled by the root before the product, both sides, as ONNX does against overflow.
    """
    batch, heads, positions, size = query.shape
    rows = heads // key.shape[1] * positions
    if query.dtype == "float16":
        query, key, scale = _scaled(ctx, query, sqrt(scale)), _scaled(ctx, key, sqrt(scale)), 1.0
    scores = ctx.new((batch, key.shape[1], rows, key.shape[2]), query.dtype)
    product(ctx, scores, ctx.reshape(query, (*scores.shape[:3], size)), key.permute((0, 1, 3, 2)), alpha=scale)
    return scores


def _scaled(ctx: Lowering, view: View, factor: float) -> View:
    out = ctx.new(view.shape, view.dtype)
    return ctx.compute(out, lambda ops, *i: binary("mul", ops.load(view, *i), const(factor, view.dtype)))


def _softmax_dtype(node: ir.Node, dtype: str) -> str:
    """The softmax's dtype: that of the scores, or a wider one that ``softmax_precision`` asks for."""
    asked = ir.DataType(attribute(node, "softmax_precision", ir.DataType.from_numpy(np.dtype(dtype))))
    wider = "float32" if asked == ir.DataType.BFLOAT16 else str(asked.numpy())
    return max(dtype, wider, key=lambda name: np.dtype(name).itemsize)


def _joined(ctx: Lowering, found: View, shape: tuple[int, ...], heads: int) -> View:
    """The result [batch, shared heads, rows, size] in the form of the inputs: (batch, heads, positions, size) or
    (batch, positions, heads · size)."""
    size = found.shape[-1]
    positions = prod(found.shape[1:3]) // heads
    split = ctx.reshape(found, (found.shape[0], heads, positions, size))
    return split if len(shape) == 4 else ctx.reshape(split.permute((0, 2, 1, 3)), shape)


def _softcapped(ctx: Lowering, scores: View, cap: float) -> View:
    """cap · tanh(scores / cap), where there is a cap."""
    if cap <= 0:
        return scores

    def body(ops: Operands, *i: Expr) -> Expr:
        limit = const(cap, working_dtype(scores.dtype))
        score = cast(ops.load(scores, *i), limit.dtype)
        return cast(binary("mul", limit, tanh(binary("div", score, limit))), scores.dtype)

    return ctx.compute(ctx.new(scores.shape, scores.dtype), body)


def _masked(ctx: Lowering, scores: View, mask: Mask) -> View:
    if not mask:
        return scores
    out = ctx.new(scores.shape, scores.dtype)
    return ctx.compute(out, lambda ops, *i: mask.apply(ops, ops.load(scores, *i), *i))


def _probabilities(ctx: Lowering, scores: View, guarded: bool, dtype: str) -> View:
    exponentials = _exponentials(ctx, scores, guarded, dtype)
    return exponentials.divided(ctx, exponentials.powers)
