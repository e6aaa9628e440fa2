"""DeformConv: the input sampled where the offsets say, and then one matrix product a group."""

from __future__ import annotations

import onnx_ir as ir

from edgec.lowering.context import Lowering, Operands, attribute, lowers, refuse
from edgec.lowering.matmul import product
from edgec.lowering.sampling import Grid, Source
from edgec.lowering.window import Window, channels_last, window
from edgec.program import View
from edgec.scalar import Expr, binary, cast


@lowers("DeformConv")
def lower_deform_conv(ctx: Lowering, node: ir.Node) -> None:
    """Each tap reads x, bilinearly and 0 outside, at its own place plus its offset, times its mask."""
    x, kernel, offset = (ctx.input(node, index) for index in range(3))
    bias, mask = ctx.optional(node, 3), ctx.optional(node, 4)
    if len(x.shape) != 4:
        refuse("it is not over images", "use inputs (N, C, H, W)")
    groups, w = attribute(node, "group", 1), window(node, x.shape[2:], kernel.shape[2:])
    columns = _sampled(ctx, x, offset, mask, w, groups, attribute(node, "offset_group", 1))
    n, _, height, width, *taps = columns.shape
    depth, size = taps[0] * taps[1] * taps[2], kernel.shape[0] // groups
    split = ctx.reshape(kernel, (groups, size, *kernel.shape[1:]))
    right = ctx.reshape(split.permute((0, 3, 4, 2, 1)), (groups, depth, size))
    sums = ctx.new((n, groups, height * width, size), x.dtype)
    product(ctx, sums, ctx.reshape(columns, (n, groups, height * width, depth)), right)
    out = ctx.new_for(node.outputs[0], channels_last(4))

    def finish(ops: Operands, n: Expr, channel: Expr, row: Expr, column: Expr) -> Expr:
        value = ops.load(sums, n, channel // size, row * width + column, channel % size)
        return value if bias is None else binary("add", value, ops.load(bias, channel))

    ctx.compute(out, finish)


def _sampled(
    ctx: Lowering, x: View, offset: View, mask: View | None, w: Window, groups: int, offset_groups: int
) -> View:
    """What the taps read: [n, group, row, column, tap row, tap column, channel of the group]."""
    per_group, per_offset = x.shape[1] // groups, x.shape[1] // offset_groups
    shape = (x.shape[0], groups, *offset.shape[2:], *w.kernel, per_group)
    source, dtype = Source(x, Grid("linear", "zeros", True), None), "float64" if x.dtype == "float64" else "float32"

    def sample(ops: Operands, n: Expr, group: Expr, *rest: Expr) -> Expr:
        place, taps, own = rest[:2], rest[2:4], rest[4]
        channel = group * per_group + own
        tap = taps[0] * w.kernel[1] + taps[1]
        tap = channel // per_offset * (w.kernel[0] * w.kernel[1]) + tap if offset_groups > 1 else tap
        where = []
        for axis, (p, t, stride, dilation, pad) in enumerate(
            zip(place, taps, w.strides, w.dilations, w.pads, strict=True)
        ):
            regular = cast(p * stride + t * dilation - pad[0], dtype)
            moved = cast(ops.load(offset, n, tap * 2 + axis, *place), dtype)
            where.append(binary("add", regular, moved))
        value = source.at(ops, (n, channel), where)
        if mask is not None:
            value = binary("mul", value, cast(ops.load(mask, n, tap, *place), dtype))
        return cast(value, x.dtype)

    return ctx.compute(ctx.new(shape, x.dtype), sample)
