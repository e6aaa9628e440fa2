"""The operators of :mod:`edgec.passes.integer_functions` in exact integer arithmetic: the same bits on every target.

The rules, with real = s · (q − z), everything int32 and every float operation a single rounded float32 one:

* table: y = table[x − first].
* gemm: y = saturate(float(Σ (a − z_a) · b + c) · m) with m = s_a · s_b / s_y, as QLinearConv.
* add, sub: y = clamp(((a − z_a) · M_a ± (b − z_b) · M_b + 2^(k−1)) >> k, + z_y) with M = round(s / s_y · 2^k), the
  larger of the two below 2^21 (halves round up).
* mul: y = saturate(float((a − z_a) · (b − z_b)) · m) with m = s_a · s_b / s_y.
* mean, average pool: y = saturate(float(Σ (x − z_x)) · m) with m = s_x / (s_y · count).
* softmax: with E[d] = round(exp(−s_x · d) · 2^k) and d = max x − x, y = saturate(float(E[d]) / float(Σ E) · (1 / s_y)),
  k the largest for which no sum can leave 31 bits.
* prelu: y = saturate(float(x − z_x) · m) with m = s_x / s_y where x ≥ z_x, else s_x · slope / s_y.

saturate is :func:`edgec.scalar.saturate` with z_y and the range of y's dtype. Multipliers are made in float64 from
the float32 scales and rounded once to float32.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import floor, log2

import numpy as np
import onnx_ir as ir

from edgec import scalar
from edgec.lowering.context import Lowering, Operands, array_of, attribute, dtype_of, lowers, refuse, shape_of
from edgec.lowering.matmul import emit_product
from edgec.lowering.pooling import pooling_taps, summed, window_sizes
from edgec.lowering.reduction import Reduction, reduce_view
from edgec.program import CONSTANT, INPUT, View
from edgec.scalar import Expr, binary, cast, const, select

FACTOR_BITS = 21
"""Bits of the factors of a sum: (q − z) takes 9 and a sign, and two products and the rounding must fit 31."""

_SUM_BITS = 30


@dataclass(frozen=True)
class Scale:
    """A scale and a zero point, both known while compiling."""

    scale: float
    zero: int

    @classmethod
    def of(cls, ctx: Lowering, node: ir.Node, index: int) -> Scale:
        """The scale at input ``index`` and the zero point behind it."""
        scale, zero = ctx.known(node, index, "scale"), ctx.known(node, index + 1, "zero point")
        assert scale is not None and zero is not None
        return cls(float(scale.reshape(-1)[0]), int(zero.reshape(-1)[0]))


def saturating(real: Expr, zero: int, dtype: str) -> Expr:
    """``real`` as a quantised value over the whole range of ``dtype``."""
    limits = np.iinfo(dtype)
    return scalar.saturate(real, zero, int(limits.min), int(limits.max), dtype)


def scaled(integer: Expr, factor: float) -> Expr:
    """float(integer) · factor, one float32 multiplication."""
    return binary("mul", cast(integer, "float32"), const(factor, "float32"))


def _centred(value: Expr, zero: int) -> Expr:
    return cast(value, "int32") if zero == 0 else binary("sub", cast(value, "int32"), const(zero, "int32"))


def _elementwise(ctx: Lowering, node: ir.Node, views: list[View], value: Callable[..., Expr]) -> None:
    """Emit value(one element of each view, broadcast) for the node's output."""
    shape = shape_of(node.outputs[0])
    wide = [view.broadcast_to(shape) for view in views]
    largest = max(views, key=lambda view: view.elements)
    order = largest.order if len(largest.shape) == len(shape) else None
    out = ctx.new_for(node.outputs[0], order)
    ctx.compute(out, lambda ops, *i: value(*(ops.load(view, *i) for view in wide)))


@lowers("Table", domain="edgec")
def lower_table(ctx: Lowering, node: ir.Node) -> None:
    x, table, first = ctx.input(node, 0), ctx.input(node, 1), int(attribute(node, "first", 0))
    out = ctx.new_for(node.outputs[0], x.order)
    ctx.compute(out, lambda ops, *i: ops.load(table, _centred(ops.load(x, *i), first)))


@lowers("QLinearAdd", "QLinearSub", domain="edgec")
def lower_qlinear_add(ctx: Lowering, node: ir.Node) -> None:
    a, b, dtype = ctx.input(node, 0), ctx.input(node, 3), dtype_of(node.outputs[0])
    left, right, result = (Scale.of(ctx, node, index) for index in (1, 4, 6))
    ratios = [left.scale / result.scale, right.scale / result.scale * (-1 if node.op_type == "QLinearSub" else 1)]
    shift = min(FACTOR_BITS - 1 - floor(log2(max(map(abs, ratios)))), _SUM_BITS)
    if shift < 1:
        refuse(
            "its output's scale is a millionth of an input's", "quantise the model with a wider range for its output"
        )
    factors = [round(ratio * 2**shift) for ratio in ratios]
    offset = 2 ** (shift - 1) - left.zero * factors[0] - right.zero * factors[1]
    limits = np.iinfo(dtype)

    def value(first: Expr, second: Expr) -> Expr:
        terms = (
            binary("mul", cast(v, "int32"), const(f, "int32")) for v, f in zip((first, second), factors, strict=True)
        )
        total = binary("add", binary("add", *terms), const(offset, "int32"))
        whole = binary("add", binary("shiftright", total, const(shift, "int32")), const(result.zero, "int32"))
        low, high = const(int(limits.min), "int32"), const(int(limits.max), "int32")
        return cast(binary("min", binary("max", whole, low), high), dtype)

    _elementwise(ctx, node, [a, b], value)


@lowers("QLinearMul", domain="edgec")
def lower_qlinear_mul(ctx: Lowering, node: ir.Node) -> None:
    a, b, dtype = ctx.input(node, 0), ctx.input(node, 3), dtype_of(node.outputs[0])
    left, right, result = (Scale.of(ctx, node, index) for index in (1, 4, 6))
    factor = left.scale * right.scale / result.scale

    def value(first: Expr, second: Expr) -> Expr:
        return saturating(
            scaled(binary("mul", _centred(first, left.zero), _centred(second, right.zero)), factor), result.zero, dtype
        )

    _elementwise(ctx, node, [a, b], value)


@lowers("QLinearPRelu", domain="edgec")
def lower_qlinear_prelu(ctx: Lowering, node: ir.Node) -> None:
    x, dtype = ctx.input(node, 0), dtype_of(node.outputs[0])
    given, result = Scale.of(ctx, node, 1), Scale.of(ctx, node, 4)
    slope = ctx.known(node, 3, "slope")
    assert slope is not None
    below = ctx.constant((given.scale * slope.astype(np.float64) / result.scale).astype(np.float32), "multiplier")

    def value(element: Expr, factor: Expr) -> Expr:
        whole = _centred(element, given.zero)
        above = const(given.scale / result.scale, "float32")
        chosen = select(binary("ge", whole, const(0, "int32")), above, factor)
        return saturating(binary("mul", cast(whole, "float32"), chosen), result.zero, dtype)

    _elementwise(ctx, node, [x, below], value)


@lowers("QLinearMean", domain="edgec")
def lower_qlinear_mean(ctx: Lowering, node: ir.Node) -> None:
    x, dtype = ctx.input(node, 0), dtype_of(node.outputs[0])
    given, result = Scale.of(ctx, node, 1), Scale.of(ctx, node, 4)
    known = ctx.known(node, 3, "reduction axes")
    assert known is not None
    axes = [int(axis) for axis in known]
    count = int(np.prod([x.shape[axis] for axis in axes]))
    _require_exact_sum(count)

    def finish(ops: Operands, acc: Expr, *_: Expr) -> Expr:
        total = binary("sub", acc, const(count * given.zero, "int32"))
        return saturating(scaled(total, given.scale / (result.scale * count)), result.zero, dtype)

    means = reduce_view(ctx, x, axes, dtype, "sum", lambda ops, *i: cast(ops.load(x, *i), "int32"), finish)
    kept = attribute(node, "keepdims", 1)
    ctx.set(node.outputs[0], means if kept else means.drop(*axes))


def _require_exact_sum(count: int) -> None:
    if count > 2**31 // 256:
        refuse(f"a sum of {count} bytes might not fit 32 bits", "reduce in two steps")


@lowers("QLinearAveragePool", domain="edgec")
def lower_qlinear_average_pool(ctx: Lowering, node: ir.Node) -> None:
    x, taps, dtype = ctx.input(node, 0), pooling_taps(ctx, node), dtype_of(node.outputs[0])
    given, result = Scale.of(ctx, node, 1), Scale.of(ctx, node, 3)
    rank = len(taps.extents)
    counts = window_sizes(taps, bool(attribute(node, "count_include_pad", 0)), "int64")
    _require_exact_sum(int(counts.max()))
    factors = (given.scale / (result.scale * counts.astype(np.float64))).astype(np.float32)
    if (factors == factors.flat[0]).all():
        factors = factors.reshape(-1)[:1].reshape((1,) * rank)
    factor_view = ctx.constant(factors, "multiplier")

    def finish(ops: Operands, acc: Expr, n: Expr, channel: Expr, *place: Expr) -> Expr:
        return saturating(binary("mul", cast(acc, "float32"), ops.load(factor_view, *place)), result.zero, dtype)

    out = ctx.new_for(node.outputs[0], x.order)
    rule = Reduction("sum", lambda element: _centred(element, given.zero))
    ctx.compute(out, summed(x, taps, rule, "int32"), reduce=taps.window.kernel, reducer="sum", epilogue=finish)


@lowers("QLinearSoftmax", domain="edgec")
def lower_qlinear_softmax(ctx: Lowering, node: ir.Node) -> None:
    x, dtype = ctx.input(node, 0), dtype_of(node.outputs[0])
    given, result = Scale.of(ctx, node, 1), Scale.of(ctx, node, 3)
    axis = attribute(node, "axis", -1) % len(x.shape)
    bits = _SUM_BITS - (x.shape[axis] - 1).bit_length()
    powers = np.rint(np.exp(-given.scale * np.arange(256.0)) * 2**bits).astype(np.int32)
    table = ctx.constant(powers, "exponentials")
    top = reduce_view(ctx, x, [axis], x.dtype, "max", lambda ops, *i: ops.load(x, *i)).broadcast_to(x.shape)

    def power(ops: Operands, *i: Expr) -> Expr:
        return ops.load(table, binary("sub", cast(ops.load(top, *i), "int32"), cast(ops.load(x, *i), "int32")))

    total = reduce_view(ctx, x, [axis], "int32", "sum", power).broadcast_to(x.shape)

    def share(ops: Operands, *i: Expr) -> Expr:
        quotient = binary("div", cast(power(ops, *i), "float32"), cast(ops.load(total, *i), "float32"))
        return saturating(binary("mul", quotient, const(1 / result.scale, "float32")), result.zero, dtype)

    ctx.compute(ctx.new_for(node.outputs[0], x.order), share)


@lowers("QLinearGemm", domain="edgec")
def lower_qlinear_gemm(ctx: Lowering, node: ir.Node) -> None:
    """The zero point of a goes into the bias: Σ (a − z) · b + c = Σ a · b + (c − z · Σ b)."""
    a, b, value = ctx.input(node, 0), ctx.input(node, 3), node.outputs[0]
    given, result = Scale.of(ctx, node, 1), Scale.of(ctx, node, 7)
    b_scale, c = ctx.known(node, 4, "weight scales"), ctx.known(node, 6, "bias")
    assert b_scale is not None and c is not None and b.buffer.space == CONSTANT
    start = c.astype(np.int64) - given.zero * array_of(b).sum(0, dtype=np.int64)
    factor = (given.scale * b_scale.astype(np.float64) / result.scale).astype(np.float32)
    bias, multiplier = ctx.constant(start.astype(np.int32), "bias"), ctx.constant(factor, "multiplier")
    dtype = dtype_of(value)

    def finish(ops: Operands) -> Expr:
        total = binary("add", scalar.accumulator("int32"), ops.load(bias, scalar.axis(3)))
        real = binary("mul", cast(total, "float32"), ops.load(multiplier, scalar.axis(3)))
        return saturating(real, result.zero, dtype)

    if a.buffer.space == INPUT:
        a = ctx.copy(a, ctx.new(a.shape, a.dtype))
    a = a if a.shape[-1] == 1 or a.strides[-1] == 1 else ctx.dense(a)
    out = ctx.new((*a.shape[:-1], b.shape[-1]), dtype, name=str(value.name))
    emit_product(ctx, out, a, b, finish)
    ctx.set(value, ctx.reshape(out, shape_of(value)))
