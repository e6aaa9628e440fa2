"""Quantised operators with exact integer sums: y = saturate(round_half_even(real / scale) + zero point).

Requantisation is one float32 multiplication of the int32 sum by x_scale · w_scale / y_scale, rounded to nearest
even, plus the zero point, as the text of ONNX and ONNX Runtime have it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from math import prod

import numpy as np
import onnx_ir as ir

from edgec import scalar
from edgec.grid import common_factors, factor_group
from edgec.lowering.context import Lowering, Operands, array_of, attribute, dtype_of, lowers, refuse, shape_of
from edgec.lowering.convolution import NHWC, Finish, as_2d, emit_convolution, padded, window_2d
from edgec.lowering.direct import convolve_directly, padded_input, weights
from edgec.lowering.matmul import as_batch, emit_product, with_joined_rows
from edgec.lowering.reduction import reduce_view
from edgec.lowering.weights import least_bits
from edgec.lowering.window import channels_last, window
from edgec.program import ARENA, CONSTANT, INPUT, Packing, View
from edgec.scalar import Expr, binary, cast, const, select, unary

Reader = Callable[..., Expr]
"""Called with (operands, *indices of the tensor) for its scale or zero point there."""


def saturated(real: Expr, zero: Expr | None, dtype: str) -> Expr:
    """round_half_even(real) + zero in the range of ``dtype``; NaN becomes its least value."""
    limits = np.iinfo(dtype)
    if zero is None or zero.op == "const":
        fixed = 0 if zero is None else int(zero.args[0])
        return scalar.saturate(cast(real, "float32"), fixed, int(limits.min), int(limits.max), dtype)
    value = unary("round", cast(real, "float32"))
    value = value if zero is None else binary("add", value, cast(zero, "float32"))
    low, high = const(int(limits.min), "float32"), const(int(limits.max), "float32")
    value = select(binary("gt", value, low), value, low)
    return cast(select(binary("lt", value, high), value, high), dtype)


def parameter(ctx: Lowering, node: ir.Node, index: int, x: View) -> Reader | None:
    """A scale or zero point of ``x``: for the tensor, one for each index of ``axis``, or one for each block."""
    view = ctx.optional(node, index)
    if view is None:
        return None
    if view.elements == 1:
        return lambda ops, *i: ops.load(view, *(0 for _ in view.shape))
    axis, block = attribute(node, "axis", 1) % len(x.shape), attribute(node, "block_size", 0)
    if len(view.shape) == 1:
        return lambda ops, *i: ops.load(view, i[axis])
    if not block:
        refuse("its scale has several axes but there is no block_size", "set block_size on the node")
    return lambda ops, *i: ops.load(view, *(index // block if n == axis else index for n, index in enumerate(i)))


@lowers("QuantizeLinear")
def lower_quantize_linear(ctx: Lowering, node: ir.Node) -> None:
    x, scale_view = ctx.input(node, 0), ctx.input(node, 1)
    scale, zero = parameter(ctx, node, 1, x), parameter(ctx, node, 2, x)
    precision = attribute(node, "precision", 0)
    dtype = str(ir.DataType(precision).numpy()) if precision else scale_view.dtype
    convolved = len(x.shape) == 4 and any(reader.op_type == "QLinearConv" for reader in node.outputs[0].consumers())
    out = ctx.new_for(node.outputs[0], NHWC if convolved else x.order)

    def body(ops: Operands, *i: Expr) -> Expr:
        assert scale is not None
        real = binary("div", cast(ops.load(x, *i), dtype), cast(scale(ops, *i), dtype))
        return saturated(real, None if zero is None else zero(ops, *i), out.dtype)

    ctx.compute(out, body)


@lowers("DequantizeLinear")
def lower_dequantize_linear(ctx: Lowering, node: ir.Node) -> None:
    """(x − zero) · scale in float32."""
    x = ctx.input(node, 0)
    scale, zero = parameter(ctx, node, 1, x), parameter(ctx, node, 2, x)
    out = ctx.new_for(node.outputs[0], x.order)

    def body(ops: Operands, *i: Expr) -> Expr:
        assert scale is not None
        value = cast(ops.load(x, *i), "float32")
        value = value if zero is None else binary("sub", value, cast(zero(ops, *i), "float32"))
        return cast(binary("mul", value, cast(scale(ops, *i), "float32")), out.dtype)

    ctx.compute(out, body)


@lowers("DynamicQuantizeLinear")
def lower_dynamic_quantize_linear(ctx: Lowering, node: ir.Node) -> None:
    """scale = (max − min) / 255 over a range that holds 0; zero = saturate(round(−min / scale)); uint8."""
    x = ctx.input(node, 0)
    ends = {}
    for reducer in ("min", "max"):
        reduced = reduce_view(
            ctx, x, range(len(x.shape)), x.dtype, reducer, lambda ops, *i: ops.load(x, *i),
            lambda ops, acc, *_, reducer=reducer: binary(reducer, acc, const(0, acc.dtype)),
        )  # fmt: skip
        ends[reducer] = reduced.drop(*range(len(x.shape)))
    scale, zero = ctx.new_for(node.outputs[1]), ctx.new_for(node.outputs[2])

    def step(ops: Operands) -> Expr:
        low, high = ops.load(ends["min"]), ops.load(ends["max"])
        span = select(binary("eq", low, high), const(1, low.dtype), binary("sub", high, low))
        return binary("div", span, const(255, low.dtype))

    ctx.compute(scale, step)
    ctx.compute(
        zero,
        lambda ops: saturated(
            binary("sub", const(0, x.dtype), binary("div", ops.load(ends["min"]), ops.load(scale))), None, "uint8"
        ),
    )
    out = ctx.new_for(node.outputs[0], x.order)
    ctx.compute(
        out, lambda ops, *i: saturated(binary("div", ops.load(x, *i), ops.load(scale)), ops.load(zero), "uint8")
    )


def _beside(view: View | None, shape: tuple[int, ...], rows: bool) -> View | None:
    """A scale or zero point of a matrix, one for all or one a row (or column), broadcast to ``shape``."""
    if view is None:
        return None
    if view.elements == 1:
        view = replace(view, shape=(), strides=())
    elif rows and len(view.shape) == 1:
        view = replace(view, shape=(*view.shape, 1), strides=(*view.strides, 0))
    return view.broadcast_to(shape)


def _operand(view: View, zero: View | None, rows: bool) -> Reader:
    """An element of a matrix as int32, less its zero point."""
    wide = _beside(zero, view.shape, rows)

    def read(ops: Operands, *i: Expr) -> Expr:
        value = cast(ops.load(view, *i), "int32")
        return value if wide is None else binary("sub", value, cast(ops.load(wide, *i), "int32"))

    return read


Product = Callable[[tuple[int, ...]], Reader]
"""Called with the shape of a product, for what becomes of its int32 sums: (operands, sum, *indices)."""


def _integer_product(
    ctx: Lowering, value: ir.Value, a: View, b: View, zeros: tuple[View | None, View | None], finish: Product
) -> None:
    """value = finish(sum of (a − a_zero) · (b − b_zero)) in int32; vectors gain a unit axis."""
    if len(a.shape) == 1:
        a = replace(a, shape=(1, *a.shape), strides=(0, *a.strides))
    if len(b.shape) == 1:
        b = replace(b, shape=(*b.shape, 1), strides=(*b.strides, 0))
    batch = np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    out = ctx.new((*batch, a.shape[-2], b.shape[-1]), dtype_of(value), name=str(value.name))
    if all(map(_is_number, zeros)) and 0 < a.shape[-1] <= _DEEPEST:
        _product_of_bytes(ctx, out, a, b, [_zero_point(zero) for zero in zeros], finish)
    else:
        _product_of_anything(ctx, out, a, b, zeros, finish(out.shape))
    ctx.set(value, ctx.reshape(out, shape_of(value)))


_DEEPEST = 2**31 // 2**17 - 1
"""Products of differences of bytes whose sum fits an int32 at every stage, with what is taken off it."""


def _is_number(zero: View | None) -> bool:
    """Whether a zero point is one constant for the whole matrix."""
    return zero is None or (zero.buffer.space == CONSTANT and zero.elements == 1)


def _product_of_bytes(ctx: Lowering, out: View, a: View, b: View, zeros: Sequence[int], finish: Product) -> None:
    """Σ (a − z) · (b − t) = Σ a · b − z · Σ b − t · Σ a + depth · z · t, so that bytes are multiplied by bytes.

    ``a`` is uint8 and ``b`` int8 there, as x86 multiplies them: the other kinds are moved by 128, and their zero points
    with them.
    """
    batch, depth, columns = out.shape[:-2], a.shape[-1], b.shape[-1]
    (a, left), (b, right) = _bytes_of(ctx, a, zeros[0], "uint8"), _bytes_of(ctx, b, zeros[1], "int8")
    joined, outer = with_joined_rows(a, b, batch)
    matrix = (prod(outer), joined.shape[-2], columns)
    parts: list[tuple[int, View]] = []
    if left:
        sums = ctx.new((*b.shape[:-2], 1, columns), "int32")
        ctx.compute(
            sums, lambda ops, *i: cast(ops.load(b, *i[:-3], i[-1], i[-2]), "int32"), reduce=(depth,), reducer="sum"
        )
        parts.append((left, as_batch(ctx, sums, outer).broadcast_to(matrix)))
    if right:
        ones, sums = ctx.constant(np.ones((depth, 1), np.int8), "ones"), ctx.new((*joined.shape[:-1], 1), "int32")
        emit_product(ctx, sums, joined, ones, lambda ops: scalar.accumulator("int32"))
        parts.append((right, as_batch(ctx, sums, outer).broadcast_to(matrix)))
    finished, place = finish(matrix), [scalar.axis(0), scalar.axis(2), scalar.axis(3)]

    def epilogue(ops: Operands) -> Expr:
        total = scalar.accumulator("int32")
        for zero, view in parts:
            total = binary("sub", total, binary("mul", ops.load(view, *place), const(zero, "int32")))
        if left and right:
            total = binary("add", total, const(depth * left * right, "int32"))
        return finished(ops, total, *place)

    emit_product(ctx, out, a, b, epilogue)


_MIDDLE = 128
"""What a uint8 is more than the int8 that stands for it."""


def _bytes_of(ctx: Lowering, view: View, zero: int, dtype: str) -> tuple[View, int]:
    """``view`` as ``dtype``, its rows without gaps: a constant, or in the arena; and its zero point."""
    offset = 0 if view.dtype == dtype else _MIDDLE if dtype == "uint8" else -_MIDDLE
    if view.buffer.space == CONSTANT:
        return ctx.constant((array_of(view).astype(np.int16) + offset).astype(dtype), view.buffer.name), zero + offset
    if offset or view.buffer.space != ARENA or (view.strides[-1] != 1 and view.shape[-1] > 1):
        moved = ctx.new(view.shape, dtype, name=view.buffer.name)
        ctx.compute(
            moved,
            lambda ops, *i: cast(binary("add", cast(ops.load(view, *i), "int32"), const(offset, "int32")), dtype),
        )
        return moved, zero + offset
    return view, zero


def _product_of_anything(
    ctx: Lowering, out: View, a: View, b: View, zeros: tuple[View | None, View | None], finish: Reader
) -> None:
    """Zero points that are computed, or one for each row or column."""
    left, right = _operand(a, zeros[0], rows=True), _operand(b, zeros[1], rows=False)

    def own(view: View, outer: list[Expr]) -> list[Expr | int]:
        kept = outer[len(outer) - len(view.shape) + 2 :]
        return [0 if extent == 1 else index for extent, index in zip(view.shape[:-2], kept, strict=True)]

    def term(ops: Operands, *i: Expr) -> Expr:
        *outer, row, column, k = i
        return binary("mul", left(ops, *own(a, outer), row, k), right(ops, *own(b, outer), k, column))

    ctx.compute(out, term, reduce=(a.shape[-1],), reducer="sum", epilogue=finish)


@lowers("MatMulInteger")
def lower_matmul_integer(ctx: Lowering, node: ir.Node) -> None:
    zeros = ctx.optional(node, 2), ctx.optional(node, 3)
    operands = ctx.input(node, 0), ctx.input(node, 1)
    _integer_product(ctx, node.outputs[0], *operands, zeros, lambda shape: lambda ops, acc, *_: acc)


@lowers("QLinearMatMul")
def lower_qlinear_matmul(ctx: Lowering, node: ir.Node) -> None:
    a, a_scale, a_zero, b, b_scale, b_zero, y_scale, y_zero = (ctx.optional(node, index) for index in range(8))
    assert a is not None and b is not None
    value = node.outputs[0]

    def finish(matrix: tuple[int, ...]) -> Reader:
        scales = [_beside(a_scale, matrix, True), _beside(b_scale, matrix, False), _beside(y_scale, matrix, True)]
        zero = _beside(y_zero, matrix, True)

        def requantised(ops: Operands, acc: Expr, *i: Expr) -> Expr:
            left, right, result = (ops.load(view, *i) for view in scales if view is not None)
            return _requantised(acc, left, right, result, None if zero is None else ops.load(zero, *i), dtype_of(value))

        return requantised

    _integer_product(ctx, value, a, b, (a_zero, b_zero), finish)


def _requantised(acc: Expr, left: Expr, right: Expr, result: Expr, zero: Expr | None, dtype: str) -> Expr:
    """saturate(round(float32(acc) · (left · right / result)) + zero)."""
    left, right, result = (cast(scale, "float32") for scale in (left, right, result))
    multiplier = binary("div", binary("mul", left, right), result)
    return saturated(binary("mul", cast(acc, "float32"), multiplier), zero, dtype)


@lowers("QLinearConv")
def lower_qlinear_conv(ctx: Lowering, node: ir.Node) -> None:
    """The int32 sum of (x − x_zero) · (w − w_zero) and the bias, requantised; w_scale may be per channel."""
    constants = [ctx.optional(node, index) for index in range(1, 9)]
    known = all(view is None or view.buffer.space == CONSTANT for view in constants)
    zero, symmetric = ctx.optional(node, 5), ctx.input(node, 3).dtype == "int8"
    if known and symmetric and len(ctx.input(node, 0).shape) in (3, 4) and (zero is None or not array_of(zero).any()):
        _convolve_constants(ctx, node)
    else:
        _convolve_anything(ctx, node)


def _convolve_constants(ctx: Lowering, node: ir.Node) -> None:
    """QLinearConv with weights around zero and everything but x constant.

    Σ (x − z) · w + B = Σ x · w + (B − z · Σ w): the zero point of x goes into the bias, and fills the padding.
    """
    x, kernel, dtype = ctx.input(node, 0), array_of(ctx.input(node, 3)), dtype_of(node.outputs[0])
    x_scale, w_scale, y_scale = (np.ravel(array_of(ctx.input(node, index))) for index in (1, 4, 6))
    x_zero, y_zero = (_zero_point(ctx.optional(node, index)) for index in (2, 7))
    bias = ctx.optional(node, 8)
    start = np.zeros(kernel.shape[0], np.int64) if bias is None else array_of(bias).astype(np.int64)
    total = start - x_zero * kernel.reshape(kernel.shape[0], -1).sum(1, dtype=np.int64)
    multiplier = np.broadcast_to(x_scale * w_scale / y_scale, total.shape).astype(np.float32)
    bias_view, scale_view = ctx.constant(total.astype(np.int32), "bias"), ctx.constant(multiplier, "multiplier")
    limits = np.iinfo(dtype)
    bits = promised_bits(kernel.reshape(len(kernel), -1), total, multiplier, x.dtype, y_zero)

    def finish(operands: Operands, channel: Expr) -> Expr:
        total = binary("add", scalar.accumulator("int32"), operands.load(bias_view, channel))
        real = binary("mul", cast(total, "float32"), operands.load(scale_view, channel))
        return scalar.saturate(real, y_zero, int(limits.min), int(limits.max), dtype, bits)

    convolve_integers(ctx, node, x, kernel, x_zero, finish)


def promised_bits(rows: np.ndarray, start: np.ndarray, multiplier: np.ndarray, dtype: str, zero: int) -> int:
    """What :func:`edgec.scalar.saturate` is promised of (Σ x · w + start) · multiplier, whatever x is.

    Args:
        rows: the weights, integers [channels, depth].
        start: int64 [channels].
        multiplier: float32 [channels], or of one element.
        dtype: of x.
        zero: of the result.
    """
    limits, rows = np.iinfo(dtype), rows.astype(np.int64)
    above, below = np.maximum(rows, 0).sum(1), np.minimum(rows, 0).sum(1)
    most = above * limits.max + below * limits.min + start
    least = above * limits.min + below * limits.max + start
    largest = np.maximum(np.abs(most), np.abs(least)) * np.abs(multiplier.astype(np.float64))
    return bits_for(float(largest.max()), zero)


def bits_for(largest: float, zero: int) -> int:
    """What :func:`edgec.scalar.saturate` is promised of integers times a factor, of ``largest`` at most, with the zero
    point ``zero``."""
    # one part in 2^20 covers what the conversion and the product are rounded by
    most = (largest + abs(zero)) * (1 + 2.0**-20) + 1
    return next((bits for bits in (scalar.WORD, scalar.WHOLE) if most < 2 ** (bits - 1)), 0)


def convolve_integers(ctx: Lowering, node: ir.Node, x: View, kernel: np.ndarray, zero: int, finish: Finish) -> None:
    """Emit finish(Σ x · kernel) for the output of ``node``, whose attributes are a Conv's.

    Args:
        ctx: the model in hand.
        node: one or two spatial axes.
        x: int8, uint8 or int16 (N, C, …).
        kernel: int8 [co, ci/groups, …].
        zero: what stands in the padding.
        finish: the epilogue, of the int32 sum.
    """
    own = window(node, x.shape[2:], kernel.shape[2:])
    w = window_2d(own)
    out = ctx.new_for(node.outputs[0], channels_last(len(x.shape)))
    kernel = kernel[:, :, None, :] if kernel.ndim == 3 else kernel
    source = padded(ctx, as_2d(x), w.pads, False, zero)
    if source.buffer.space == INPUT:
        source = ctx.copy(source, ctx.new(source.shape, source.dtype, NHWC))
    groups = attribute(node, "group", 1)
    rows = np.moveaxis(kernel, 1, -1).reshape(len(kernel), -1).T
    packing = nibbles(x, rows, kernel.shape[1] if groups == 1 else 0)
    emit_convolution(ctx, source, kernel, w, groups, as_2d(out), finish, packing)


def nibbles(x: View, weight: np.ndarray, channels: int) -> Packing | None:
    """Two weights a byte, where all are so small and multiply bytes, or have factors with which they are.

    Args:
        x: what is multiplied.
        weight: [depth, outputs].
        channels: of the input, which are innermost in the depth; 0 where there can be no factors.
    """
    if np.dtype(x.dtype).itemsize != 1:
        return None
    if least_bits(weight) <= 4:
        return Packing(4)
    group = factor_group(channels, len(weight) // channels) if channels else 0
    return Packing(4, group) if group and common_factors(weight, group) is not None else None


def _zero_point(view: View | None) -> int:
    return 0 if view is None else int(np.ravel(array_of(view))[0])


def _convolve_anything(ctx: Lowering, node: ir.Node) -> None:
    """QLinearConv with whatever is known only at run time, as a loop nest."""
    x, x_scale, kernel, w_scale, y_scale = (ctx.input(node, index) for index in (0, 1, 3, 4, 6))
    x_zero, w_zero, y_zero, bias = (ctx.optional(node, index) for index in (2, 5, 7, 8))
    w = window(node, x.shape[2:], kernel.shape[2:])
    source, packed = padded_input(ctx, x, "int32", x_zero, w), weights(ctx, kernel, "int32", w_zero)
    out = ctx.new_for(node.outputs[0], channels_last(len(x.shape)))

    def one(ops: Operands, view: View, channel: Expr) -> Expr:
        return ops.load(view, *(channel if view.elements > 1 else 0 for _ in view.shape))

    def finish(ops: Operands, acc: Expr, n: Expr, channel: Expr, *_: Expr) -> Expr:
        total = acc if bias is None else binary("add", acc, ops.load(bias, channel))
        scales = [one(ops, view, channel) for view in (x_scale, w_scale, y_scale)]
        zero = None if y_zero is None else one(ops, y_zero, channel)
        return _requantised(total, scales[0], scales[1], scales[2], zero, out.dtype)

    convolve_directly(ctx, out, source, packed, w, attribute(node, "group", 1), finish)
