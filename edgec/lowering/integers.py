"""The operators of :mod:`edgec.passes.integer_functions` in exact integer arithmetic: the same bits on every target.

The rules, with real = s · (q − z), everything int32 and every float operation a single rounded float32 one:

* table: y = table[x − first].
* conv: as gemm, for x or y of 16 bits.
* gemm: y = saturate(float(Σ (a − z_a) · b + c) · m) with m = s_a · s_b / s_y, as QLinearConv.
* add, sub: y = clamp(((a − z_a) · M_a ± (b − z_b) · M_b + 2^(k−1)) >> k, + z_y) with M = round(s / s_y · 2^k), the
  larger of the two below 2^21 (halves round up).
* mul: y = saturate(float((a − z_a) · (b − z_b)) · m) with m = s_a · s_b / s_y.
* mean, average pool: y = saturate(float(Σ (x − z_x)) · m) with m = s_x / (s_y · count).
* softmax: with E[d] = round(exp(−s_x · d) · 2^k) and d = max x − x, y = saturate(float(E[d]) / float(Σ E) · (1 / s_y)),
  k the largest for which no sum can leave 31 bits.
* prelu: y = saturate(float(x − z_x) · m) with m = s_x / s_y where x ≥ z_x, else s_x · slope / s_y.
* affine: y = clamp((x · M + C) >> k, + z_y) with M = round(s_x · scale / s_y · 2^k) below 2^21,
  C = round(shift / s_y · 2^k) + 2^(k−1) − z_x · M (for each channel; k, one for all, keeps the shift below 2^29).
* linear interpolation: y = saturate(float(Σ W_h · W_w · (x − z_x)) · m) with W = round(weight · 2^11), the largest
  mended so that each sum of weights is 2^11, and m = s_x / (s_y · 2^22).
* add, sub, where a, b or y has 16 bits: y = saturate(float((a − z_a) · M_a ± (b − z_b) · M_b) · m) with
  M = round(s / t), m = t / s_y, and t the least step for which no sum leaves 31 bits.
* affine of 16 bits: y = saturate(float((x − z_x) · M + C) · 2^−k) with M = round(s_x · scale / s_y · 2^k) and C =
  round(shift / s_y · 2^k), k the largest for which no sum leaves 31 bits; without shifts and with one scale for all,
  y = saturate(float(x − z_x) · m) with m = s_x · scale / s_y.
* softmax of 16 bits: E[d] = (H[d >> 8] · L[d & 255]) >> (30 − k) with H[i] = round(exp(−s_x · 256 · i) · 2^15) and
  L[i] = round(exp(−s_x · i) · 2^15).
* linear interpolation of 16 bits: the weights have as many bits, at most 11, as leave the sums 31.
* gemm and conv that dequantise: y = float(Σ (a − z_a) · b + c) · m with m = s_a · s_b.

saturate is :func:`edgec.scalar.saturate` with z_y and the range of y's dtype. Multipliers are made in float64 from
the float32 scales and rounded once to float32.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial, reduce
from math import floor, log2

import numpy as np
import onnx_ir as ir

from edgec import scalar
from edgec.lowering.context import Lowering, Operands, array_of, attribute, dtype_of, lowers, refuse, shape_of
from edgec.lowering.convolution import CHANNEL, Finish
from edgec.lowering.matmul import emit_product
from edgec.lowering.pooling import pooling_taps, summed, window_sizes
from edgec.lowering.quantization import bits_for, convolve_integers, nibbles, promised_bits
from edgec.lowering.reduction import Reduction, reduce_view
from edgec.lowering.resize import linear_sampling
from edgec.program import INPUT, View
from edgec.scalar import Expr, binary, cast, clamp_index, const, select

FACTOR_BITS = 21
"""Bits of the factors of a sum: (q − z) takes 9 and a sign, and two products and the rounding must fit 31."""

_SUM_BITS = 30
_MOST = 2**31 - 1
_WEIGHT_BITS = 11
_GUARD_BITS = 1
"""Of the fraction of a step that words keep between two axes of an interpolation."""

_EXPONENTIAL_BITS = 15
"""Bits of the two factors of an exponential for 16 bits."""


@dataclass(frozen=True)
class Scale:
    """A scale and a zero point, both known while compiling."""

    scale: float
    zero: int
    dtype: str

    @classmethod
    def of(cls, ctx: Lowering, node: ir.Node, index: int) -> Scale:
        """The scale at input ``index`` and the zero point behind it."""
        scale, zero = ctx.known(node, index, "scale"), ctx.known(node, index + 1, "zero point")
        assert scale is not None and zero is not None
        return cls(float(scale.reshape(-1)[0]), int(zero.reshape(-1)[0]), str(zero.dtype))

    @property
    def wide(self) -> bool:
        """Whether the integers have 16 bits."""
        return np.dtype(self.dtype).itemsize == 2

    @property
    def largest(self) -> int:
        """The largest magnitude of an integer less its zero point."""
        limits = np.iinfo(self.dtype)
        return max(abs(int(limit) - self.zero) for limit in (limits.min, limits.max))


def saturating(real: Expr, zero: int, dtype: str, bits: int = 0) -> Expr:
    """``real`` as a quantised value over the whole range of ``dtype``; ``bits`` as in :func:`edgec.scalar.saturate`."""
    limits = np.iinfo(dtype)
    return scalar.saturate(real, zero, int(limits.min), int(limits.max), dtype, bits)


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


def sum_rule(left: Scale, right: Scale, result: Scale, sign: int) -> tuple[list[int], int, int]:
    """The factors, the offset and the shift of a ± b on the grid of its result: (a · M_a + b · M_b + offset) >> k."""
    ratios = [left.scale / result.scale, sign * right.scale / result.scale]
    shift = min(FACTOR_BITS - 1 - floor(log2(max(map(abs, ratios)))), _SUM_BITS)
    if shift < 1:
        refuse(
            "its output's scale is a millionth of an input's", "quantise the model with a wider range for its output"
        )
    factors = [round(ratio * 2**shift) for ratio in ratios]
    return factors, 2 ** (shift - 1) - left.zero * factors[0] - right.zero * factors[1], shift


@lowers("QLinearAdd", "QLinearSub", domain="edgec")
def lower_qlinear_add(ctx: Lowering, node: ir.Node) -> None:
    a, b, dtype = ctx.input(node, 0), ctx.input(node, 3), dtype_of(node.outputs[0])
    left, right, result = (Scale.of(ctx, node, index) for index in (1, 4, 6))
    sign = -1 if node.op_type == "QLinearSub" else 1
    if left.wide or right.wide or result.wide:
        _elementwise(ctx, node, [a, b], _wide_sum(left, right, result, sign, dtype))
        return
    ratios = [left.scale / result.scale, right.scale / result.scale * sign]
    shift = min(_fitting(max(map(abs, ratios)), FACTOR_BITS), _SUM_BITS)
    if shift < 1:
        refuse(
            "its output's scale is a millionth of an input's", "quantise the model with a wider range for its output"
        )
    factors = [round(ratio * 2**shift) for ratio in ratios]
    offset = 2 ** (shift - 1) - left.zero * factors[0] - right.zero * factors[1]

    def value(first: Expr, second: Expr) -> Expr:
        left, right = (
            binary("mul", cast(element, "int32"), const(factor, "int32"))
            for element, factor in zip((first, second), factors, strict=True)
        )
        return _shifted(binary("add", binary("add", left, right), const(offset, "int32")), shift, result.zero, dtype)

    _elementwise(ctx, node, [a, b], value)


def _wide_sum(left: Scale, right: Scale, result: Scale, sign: int, dtype: str) -> Callable[..., Expr]:
    """a ± b where one of the three has 16 bits."""
    real = left.scale * left.largest + right.scale * right.largest
    bits = bits_for(real / result.scale, result.zero)
    step = real / (_MOST - left.largest - right.largest)  # rounding adds at most half of each
    factors = [round(left.scale / step), sign * round(right.scale / step)]

    def value(first: Expr, second: Expr) -> Expr:
        terms = [
            binary("mul", _centred(element, scale.zero), const(factor, "int32"))
            for element, scale, factor in zip((first, second), (left, right), factors, strict=True)
        ]
        total = binary("add", terms[0], terms[1])
        return saturating(scaled(total, step / result.scale), result.zero, dtype, bits)

    return value


@lowers("QLinearAffine", domain="edgec")
def lower_qlinear_affine(ctx: Lowering, node: ir.Node) -> None:
    x, dtype = ctx.input(node, 0), dtype_of(node.outputs[0])
    given, result = Scale.of(ctx, node, 1), Scale.of(ctx, node, 5)
    scale, shift = ctx.known(node, 3, "scale"), ctx.known(node, 4, "shift")
    assert scale is not None and shift is not None
    ratio = given.scale * scale.astype(np.float64) / result.scale
    moved = shift.astype(np.float64) / result.scale
    if given.wide or result.wide:
        _lower_wide_affine(ctx, node, x, given, result, ratio, moved)
        return
    bits = min(_fitting(np.abs(ratio).max(), FACTOR_BITS), _fitting(np.abs(moved).max(), _SUM_BITS - 1), _SUM_BITS)
    if bits < 1:
        refuse("its output's scale is far too small for what it adds", "quantise the model with a wider range for it")
    factors = np.rint(ratio * 2.0**bits).astype(np.int64)
    offsets = np.rint(moved * 2.0**bits).astype(np.int64) + 2 ** (bits - 1) - given.zero * factors
    views = [ctx.constant(array.astype(np.int32), "affine") for array in (factors, offsets)]

    def value(element: Expr, factor: Expr, offset: Expr) -> Expr:
        total = binary("add", binary("mul", cast(element, "int32"), factor), offset)
        return _shifted(total, bits, result.zero, dtype)

    _elementwise(ctx, node, [x, *views], value)


def _lower_wide_affine(
    ctx: Lowering, node: ir.Node, x: View, given: Scale, result: Scale, ratio: np.ndarray, moved: np.ndarray
) -> None:
    """y = ratio · (x − z_x) + moved in steps of y, where x or y has 16 bits."""
    dtype = dtype_of(node.outputs[0])
    if not moved.any() and (ratio == ratio.flat[0]).all():
        factor = float(ratio.flat[0])
        _elementwise(
            ctx, node, [x],
            lambda element: saturating(scaled(_centred(element, given.zero), factor), result.zero, dtype),
        )  # fmt: skip
        return
    bound = float((np.abs(ratio) * given.largest + np.abs(moved)).max())
    bits = _fitting(bound, _SUM_BITS + 1)
    factors, offsets = (np.rint(array * 2.0**bits).astype(np.int64) for array in np.broadcast_arrays(ratio, moved))
    while (np.abs(factors) * given.largest + np.abs(offsets)).max() > _MOST:  # what rounding adds
        bits -= 1
        factors, offsets = (np.rint(array * 2.0**bits).astype(np.int64) for array in np.broadcast_arrays(ratio, moved))
    views = [ctx.constant(array.astype(np.int32), "affine") for array in (factors, offsets)]

    def value(element: Expr, factor: Expr, offset: Expr) -> Expr:
        total = binary("add", binary("mul", _centred(element, given.zero), factor), offset)
        return saturating(scaled(total, 2.0**-bits), result.zero, dtype)

    _elementwise(ctx, node, [x, *views], value)


def _fitting(largest: float, bits: int) -> int:
    """The largest k with ``largest`` · 2^k below 2^``bits``."""
    return bits - 1 - floor(log2(largest)) if largest > 0 else _SUM_BITS


def _shifted(total: Expr, bits: int, zero: int, dtype: str) -> Expr:
    """clamp((total >> bits) + zero) in the range of ``dtype``."""
    limits = np.iinfo(dtype)
    whole = binary("add", binary("shiftright", total, const(bits, "int32")), const(zero, "int32"))
    low, high = const(int(limits.min), "int32"), const(int(limits.max), "int32")
    return cast(binary("min", binary("max", whole, low), high), dtype)


@lowers("QLinearResize", domain="edgec")
def lower_qlinear_resize(ctx: Lowering, node: ir.Node) -> None:
    x, value = ctx.input(node, 0), node.outputs[0]
    given, result = Scale.of(ctx, node, 1), Scale.of(ctx, node, 4)
    shape, dtype = shape_of(value), dtype_of(value)
    axes = [axis for axis, (old, new) in enumerate(zip(x.shape, shape, strict=True)) if old != new]
    if len(axes) > 2:
        refuse("it interpolates along more than two axes", "resize in two steps")
    transformation = str(attribute(node, "coordinate_transformation_mode", "half_pixel"))
    # with words there is no room for the weights of two axes at once: what the inner one gives is rounded first
    rounds = given.wide and len(axes) > 1
    bits = _SUM_BITS - given.largest.bit_length() - _GUARD_BITS if given.wide else _WEIGHT_BITS
    sampling = linear_sampling(transformation, bool(attribute(node, "exclude_outside", 0)))
    tables = []
    for axis in axes:
        scale = np.float32(shape[axis]) / np.float32(x.shape[axis])
        taps = sampling.taps(x.shape[axis], shape[axis], scale, (0.0, 1.0))
        weights = ctx.constant(_whole_weights(taps.weight, bits), "weights")
        tables.append((axis, ctx.constant(taps.index, "places"), weights))
    factor = given.scale / (result.scale * 2.0 ** (bits + _GUARD_BITS if rounds else bits * len(axes)))

    def along(ops: Operands, rest: Sequence[tuple[int, View, View]], place: Sequence[Expr], weight: Expr) -> Expr:
        """Σ weight · (q − zero) over the taps of the axes ``rest``; ``place`` is the output's along these."""
        if not rest:
            return binary("mul", _centred(ops.load(x, *place), given.zero), weight)
        (axis, places, weights), *inner = rest
        terms = []
        for tap in range(places.shape[0]):
            index = clamp_index(ops.load(places, tap, place[axis]), x.shape[axis])
            there, own = [*place[:axis], index, *place[axis + 1 :]], ops.load(weights, tap, place[axis])
            if rounds and inner:
                row = along(ops, inner, there, const(1, "int32"))
                terms.append(binary("mul", _halved(row, bits - _GUARD_BITS), own))
            else:
                terms.append(along(ops, inner, there, binary("mul", own, weight)))
        return reduce(partial(binary, "add"), terms)

    def body(ops: Operands, *i: Expr) -> Expr:
        return saturating(scaled(along(ops, tables, i, const(1, "int32")), factor), result.zero, dtype)

    ctx.compute(ctx.new_for(value, x.order), body)


def _halved(total: Expr, bits: int) -> Expr:
    """``total`` / 2^``bits``, rounded to nearest, half up."""
    return binary("shiftright", binary("add", total, const(1 << bits - 1, "int32")), const(bits, "int32"))


def _whole_weights(weight: np.ndarray, bits: int) -> np.ndarray:
    """Weights [taps, outputs] in steps of 2^−bits, each output's sum exactly 2^bits."""
    whole = np.rint(weight * 2.0**bits).astype(np.int32)
    whole[np.abs(weight).argmax(0), np.arange(weight.shape[1])] += 2**bits - whole.sum(0)
    return whole


@lowers("QLinearMul", domain="edgec")
def lower_qlinear_mul(ctx: Lowering, node: ir.Node) -> None:
    a, b, dtype = ctx.input(node, 0), ctx.input(node, 3), dtype_of(node.outputs[0])
    left, right, result = (Scale.of(ctx, node, index) for index in (1, 4, 6))
    factor = left.scale * right.scale / result.scale
    bits = bits_for(left.largest * right.largest * factor, result.zero)

    def value(first: Expr, second: Expr) -> Expr:
        product = binary("mul", _centred(first, left.zero), _centred(second, right.zero))
        return saturating(scaled(product, factor), result.zero, dtype, bits)

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
    _require_exact_sum(count, given)
    bits = bits_for(given.largest * given.scale / result.scale, result.zero)

    def finish(ops: Operands, acc: Expr, *_: Expr) -> Expr:
        total = binary("sub", acc, const(count * given.zero, "int32"))
        return saturating(scaled(total, given.scale / (result.scale * count)), result.zero, dtype, bits)

    means = reduce_view(ctx, x, axes, dtype, "sum", lambda ops, *i: cast(ops.load(x, *i), "int32"), finish)
    kept = attribute(node, "keepdims", 1)
    ctx.set(node.outputs[0], means if kept else means.drop(*axes))


def _require_exact_sum(count: int, given: Scale) -> None:
    if count > 2**31 >> np.iinfo(given.dtype).bits:
        refuse(f"a sum of {count} integers might not fit 32 bits", "reduce in two steps")


@lowers("QLinearAveragePool", domain="edgec")
def lower_qlinear_average_pool(ctx: Lowering, node: ir.Node) -> None:
    x, taps, dtype = ctx.input(node, 0), pooling_taps(ctx, node), dtype_of(node.outputs[0])
    given, result = Scale.of(ctx, node, 1), Scale.of(ctx, node, 3)
    rank = len(taps.extents)
    counts = window_sizes(taps, bool(attribute(node, "count_include_pad", 0)), "int64")
    _require_exact_sum(int(counts.max()), given)
    factors = (given.scale / (result.scale * counts.astype(np.float64))).astype(np.float32)
    if (factors == factors.flat[0]).all():
        factors = factors.reshape(-1)[:1].reshape((1,) * rank)
    factor_view = ctx.constant(factors, "multiplier")
    bits = bits_for(given.largest * given.scale / result.scale, result.zero)

    def finish(ops: Operands, acc: Expr, n: Expr, channel: Expr, *place: Expr) -> Expr:
        real = binary("mul", cast(acc, "float32"), ops.load(factor_view, *place))
        return saturating(real, result.zero, dtype, bits)

    out = ctx.new_for(node.outputs[0], x.order)
    rule = Reduction("sum", lambda element: _centred(element, given.zero))
    ctx.compute(out, summed(x, taps, rule, "int32"), reduce=taps.window.kernel, reducer="sum", epilogue=finish)


def exponentials(scale: float, count: int) -> np.ndarray:
    """E of a softmax over ``count`` elements in steps of ``scale``: int32[256]."""
    bits = _SUM_BITS - (count - 1).bit_length()
    return np.rint(np.exp(-scale * np.arange(256.0)) * 2**bits).astype(np.int32)


def _exponential(ctx: Lowering, given: Scale, count: int) -> Callable[[Operands, Expr], Expr]:
    """E of a softmax: called with the operands and d."""
    if not given.wide:
        table = ctx.constant(exponentials(given.scale, count), "exponentials")
        return lambda ops, d: ops.load(table, d)
    powers = (np.exp(-given.scale * step * np.arange(256.0)) * 2**_EXPONENTIAL_BITS for step in (256, 1))
    high, low = (ctx.constant(np.rint(each).astype(np.int32), "exponentials") for each in powers)
    dropped = const(2 * _EXPONENTIAL_BITS - (_SUM_BITS - (count - 1).bit_length()), "int32")

    def product(ops: Operands, d: Expr) -> Expr:
        upper = ops.load(high, binary("shiftright", d, const(8, "int32")))
        lower = ops.load(low, binary("bitand", d, const(255, "int32")))
        return binary("shiftright", binary("mul", upper, lower), dropped)

    return product


@lowers("QLinearSoftmax", domain="edgec")
def lower_qlinear_softmax(ctx: Lowering, node: ir.Node) -> None:
    x, dtype = ctx.input(node, 0), dtype_of(node.outputs[0])
    given, result = Scale.of(ctx, node, 1), Scale.of(ctx, node, 3)
    axis = attribute(node, "axis", -1) % len(x.shape)
    exponential = _exponential(ctx, given, x.shape[axis])
    top = reduce_view(ctx, x, [axis], x.dtype, "max", lambda ops, *i: ops.load(x, *i)).broadcast_to(x.shape)

    def power(ops: Operands, *i: Expr) -> Expr:
        return exponential(ops, binary("sub", cast(ops.load(top, *i), "int32"), cast(ops.load(x, *i), "int32")))

    total = reduce_view(ctx, x, [axis], "int32", "sum", power).broadcast_to(x.shape)

    def share(ops: Operands, *i: Expr) -> Expr:
        quotient = binary("div", cast(power(ops, *i), "float32"), cast(ops.load(total, *i), "float32"))
        return saturating(binary("mul", quotient, const(1 / result.scale, "float32")), result.zero, dtype)

    ctx.compute(ctx.new_for(node.outputs[0], x.order), share)


@lowers("QLinearGemm", "GemmDequantize", domain="edgec")
def lower_integer_gemm(ctx: Lowering, node: ir.Node) -> None:
    a, b, value = ctx.input(node, 0), ctx.input(node, 3), node.outputs[0]
    finish = _finish(ctx, node, array_of(b).T, Scale.of(ctx, node, 7) if node.op_type == "QLinearGemm" else None)
    a = ctx.copy(a, ctx.new(a.shape, a.dtype)) if a.buffer.space == INPUT else a
    a = a if a.shape[-1] == 1 or a.strides[-1] == 1 else ctx.dense(a)
    out = ctx.new((*a.shape[:-1], b.shape[-1]), dtype_of(value), name=str(value.name))
    emit_product(ctx, out, a, b, lambda ops: finish(ops, CHANNEL), nibbles(a, array_of(b), len(array_of(b))))
    ctx.set(value, ctx.reshape(out, shape_of(value)))


@lowers("ConvDequantize", "QLinearConvolution", domain="edgec")
def lower_integer_conv(ctx: Lowering, node: ir.Node) -> None:
    x, kernel = ctx.input(node, 0), array_of(ctx.input(node, 3))
    if len(x.shape) not in (3, 4):
        refuse("it is a convolution over volumes on integers", "leave it out of the quantisation")
    result = Scale.of(ctx, node, 7) if node.op_type == "QLinearConvolution" else None
    finish = _finish(ctx, node, kernel.reshape(kernel.shape[0], -1), result)
    convolve_integers(ctx, node, x, kernel, Scale.of(ctx, node, 1).zero, finish)


def _finish(ctx: Lowering, node: ir.Node, rows: np.ndarray, result: Scale | None) -> Finish:
    """The epilogue of a product with weights ``rows`` [channels, K]: to the grid ``result``, or to real numbers.

    The zero point of a goes into the bias: Σ (a − z) · b + c = Σ a · b + (c − z · Σ b).
    """
    given = Scale.of(ctx, node, 1)
    scales, c = ctx.known(node, 4, "weight scales"), ctx.known(node, 6, "bias")
    assert scales is not None and c is not None
    start = c.astype(np.int64) - given.zero * rows.sum(1, dtype=np.int64)
    factor = given.scale * scales.astype(np.float64) / (result.scale if result else 1.0)
    bias = ctx.constant(start.astype(np.int32), "bias")
    multiplier = ctx.constant(factor.astype(np.float32), "multiplier")
    dtype = dtype_of(node.outputs[0])
    bits = promised_bits(rows, start, factor.astype(np.float32), given.dtype, result.zero) if result else 0

    def finish(ops: Operands, channel: Expr) -> Expr:
        total = binary("add", scalar.accumulator("int32"), ops.load(bias, channel))
        real = binary("mul", cast(total, "float32"), ops.load(multiplier, channel))
        return saturating(real, result.zero, dtype, bits) if result else real

    return finish
