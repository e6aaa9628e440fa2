"""Convolutions as loop nests: any rank, any dtype, weights known or computed at run time."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import onnx_ir as ir

from edgec.lowering.context import Lowering, Operands, array_of, attribute, lowers
from edgec.lowering.reduction import working_dtype
from edgec.lowering.window import Window, channels_last, window
from edgec.program import CONSTANT, Fill, View, border
from edgec.scalar import INDEX, Expr, binary, cast, const

MOST_GROUP_NESTS = 16
"""Up to so many groups have a nest each, which runs vectors along their output channels."""


def centred(view: View, dtype: str, zero: View | None, axis: int = 0) -> Callable[..., Expr]:
    """How to read ``view`` as ``dtype``, less its zero point: one for all, or one for each index of ``axis``."""

    def read(ops: Operands, *indices: Expr) -> Expr:
        value = cast(ops.load(view, *indices), dtype)
        if zero is None:
            return value
        place = [indices[axis] if zero.elements > 1 else 0] if zero.shape else []
        return binary("sub", value, cast(ops.load(zero, *place), dtype))

    return read


def weights(ctx: Lowering, view: View, dtype: str, zero: View | None = None) -> View:
    """A kernel (C_out, C_in, …) as ``dtype``, less its zero point, output channels innermost in memory."""
    rank = len(view.shape)
    order = (1, *range(2, rank), 0)
    if view.buffer.space == CONSTANT and (zero is None or zero.buffer.space == CONSTANT):
        data = array_of(view).astype(dtype)
        if zero is not None:
            data = data - array_of(zero).astype(dtype).reshape((-1,) + (1,) * (rank - 1))
        return ctx.dense(ctx.constant(data, view.buffer.name), order)
    if zero is None and view.dtype == dtype:
        return ctx.dense(view, order)
    return ctx.compute(ctx.new(view.shape, dtype, order), centred(view, dtype, zero))


def padded_input(
    ctx: Lowering, x: View, dtype: str, zero: View | None, w: Window, order: Sequence[int] | None = None
) -> View:
    """``x`` (N, C, …) as ``dtype``, less its zero point, inside a padding of zeros, channels innermost."""
    order, begins = order or channels_last(len(x.shape)), [begin for begin, _ in w.pads]
    padding = [(0, 0), (0, 0), *w.pads]
    if not any(map(any, padding)) and zero is None and x.dtype == dtype:
        return ctx.dense(x, order)
    shape = [extent + sum(pair) for extent, pair in zip(x.shape, padding, strict=True)]
    out = ctx.new(shape, dtype, order, f"{x.buffer.name}_padded")
    start = (0, 0, *begins)
    if any(map(any, padding)):
        # the border alone: fusion may let what computes x write it here before this step
        ctx.emit(Fill(border(out, start, x.shape), 0.0, dtype), [], out.buffer)
    ctx.compute(out.slice(start, x.shape), centred(x, dtype, zero))
    return out


def convolve_directly(
    ctx: Lowering, out: View, source: View, kernel: View, w: Window, groups: int, finish: Callable[..., Expr]
) -> None:
    """Emit out = finish(sum of source · kernel), the sum in their dtype.

    Args:
        ctx: the model in hand.
        out: (N, C, …).
        source: the input (N, C_in, …) inside its padding, as :func:`padded_input` makes it.
        kernel: (C, C_in / groups, …), as :func:`weights` makes it.
        w: the window; its pads are not read.
        groups: of channels.
        finish: called with (operands, sum, *output indices).
    """
    size = out.shape[1] // groups
    together = groups if size == 1 or groups > MOST_GROUP_NESTS else 1
    for first in range(0, groups, together):
        _nest(ctx, out, source, kernel, w, range(first, first + together), size, finish)


def _nest(
    ctx: Lowering,
    out: View,
    source: View,
    kernel: View,
    w: Window,
    groups: range,
    size: int,
    finish: Callable[..., Expr],
) -> None:
    """The nest of ``groups`` of ``size`` output channels each."""
    rank, start, per_group = len(w.kernel), groups.start * size, kernel.shape[1]
    own = out.slice((0, start, *(0,) * rank), (out.shape[0], len(groups) * size, *out.shape[2:]))

    def product(ops: Operands, n: Expr, channel: Expr, *rest: Expr) -> Expr:
        place, taps, ci = rest[:rank], rest[rank:-1], rest[-1]
        at = [p * s + t * d for p, s, t, d in zip(place, w.strides, taps, w.dilations, strict=True)]
        group = channel // size + groups.start if len(groups) > 1 else const(groups.start, INDEX)
        value = ops.load(source, n, group * per_group + ci, *at)
        return binary("mul", value, ops.load(kernel, channel + start, ci, *taps))

    def result(ops: Operands, acc: Expr, n: Expr, channel: Expr, *place: Expr) -> Expr:
        return finish(ops, acc, n, channel + start, *place)

    ctx.compute(own, product, reduce=(*w.kernel, per_group), reducer="sum", epilogue=result)


def with_bias(bias: View | None, dtype: str) -> Callable[..., Expr]:
    """The sum plus the bias of its channel, as ``dtype``."""

    def finish(ops: Operands, acc: Expr, n: Expr, channel: Expr, *_: Expr) -> Expr:
        return cast(acc if bias is None else binary("add", acc, cast(ops.load(bias, channel), acc.dtype)), dtype)

    return finish


def lower_general_conv(ctx: Lowering, node: ir.Node) -> None:
    """Conv of any rank and dtype."""
    x, kernel, bias = ctx.input(node, 0), ctx.input(node, 1), ctx.optional(node, 2)
    w, dtype = window(node, x.shape[2:], kernel.shape[2:]), working_dtype(x.dtype)
    source, packed = padded_input(ctx, x, dtype, None, w), weights(ctx, kernel, dtype)
    out = ctx.new_for(node.outputs[0], channels_last(len(x.shape)))
    convolve_directly(ctx, out, source, packed, w, attribute(node, "group", 1), with_bias(bias, x.dtype))


@lowers("ConvInteger")
def lower_conv_integer(ctx: Lowering, node: ir.Node) -> None:
    """Sum of (x − x_zero) · (w − w_zero) in int32; the padding is x_zero."""
    x, kernel = ctx.input(node, 0), ctx.input(node, 1)
    w = window(node, x.shape[2:], kernel.shape[2:])
    source = padded_input(ctx, x, "int32", ctx.optional(node, 2), w)
    packed = weights(ctx, kernel, "int32", ctx.optional(node, 3))
    out = ctx.new_for(node.outputs[0], channels_last(len(x.shape)))
    convolve_directly(ctx, out, source, packed, w, attribute(node, "group", 1), lambda ops, acc, *_: acc)
