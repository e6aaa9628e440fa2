"""Conv and ConvTranspose, NHWC inside, over inputs that hold their padding."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from edgec import scalar
from edgec.lowering.context import Lowering, Operands, array_of, attribute, lowers
from edgec.program import CONSTANT, Conv, Depthwise, Fill, View
from edgec.scalar import Expr, binary, clamp_index, const, in_range, select

NHWC = (0, 2, 3, 1)
"""Memory order of a feature map: channels innermost."""


@dataclass(frozen=True)
class Window:
    """A sliding window over spatial axes, from a node's attributes; pads are (begin, end) per axis."""

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    pads: tuple[tuple[int, int], ...]


def window(node: ir.Node, spatial: tuple[int, ...], kernel: tuple[int, ...]) -> Window:
    """The window of a convolution or pooling node, ``auto_pad`` resolved (ONNX Conv, ``auto_pad``)."""
    rank = len(spatial)
    strides = tuple(attribute(node, "strides", [1] * rank))
    dilations = tuple(attribute(node, "dilations", [1] * rank))
    mode = str(attribute(node, "auto_pad", "NOTSET"))
    if mode in ("SAME_UPPER", "SAME_LOWER"):
        pads = tuple(
            _same_pads(size, k, s, d, mode == "SAME_UPPER")
            for size, k, s, d in zip(spatial, kernel, strides, dilations, strict=True)
        )
    elif mode == "VALID":
        pads = ((0, 0),) * rank
    else:
        flat = attribute(node, "pads", [0] * (2 * rank))
        pads = tuple(zip(flat[:rank], flat[rank:], strict=True))
    return Window(kernel, strides, dilations, pads)


def _same_pads(size: int, kernel: int, stride: int, dilation: int, upper: bool) -> tuple[int, int]:
    total = max(0, (-(-size // stride) - 1) * stride + (kernel - 1) * dilation + 1 - size)
    small = total // 2
    return (small, total - small) if upper else (total - small, small)


def as_2d(view: View) -> View:
    """A batch of signals (N, C, L) as images of height 1."""
    return view if len(view.shape) == 4 else View(
        view.buffer, (*view.shape[:2], 1, view.shape[2]), (*view.strides[:2], 0, view.strides[2]), view.offset
    )  # fmt: skip


def window_2d(w: Window) -> Window:
    """A window over one axis as one over two."""
    if len(w.kernel) == 2:
        return w
    return Window((1, *w.kernel), (1, *w.strides), (1, *w.dilations), ((0, 0), *w.pads))


PLANAR_CHANNELS = 4
"""A dense convolution over up to this many channels reads them where they lie, plane by plane; turning an
image into NHWC first would cost more than it gains."""


def padded(ctx: Lowering, x: View, pads: tuple[tuple[int, int], ...], planar: bool, fill: float = 0.0) -> View:
    """``x`` (N, C, H, W) inside its padding, in NHWC order, or NCHW where ``planar``; without padding ``x``
    itself, where its channels are contiguous or may be planes."""
    (top, bottom), (left, right) = pads
    n, c, height, width = x.shape
    if not (top or bottom or left or right):
        return x if planar or c == 1 or x.strides[1] == 1 else ctx.dense(x, NHWC)
    shape = (n, c, height + top + bottom, width + left + right)
    out = ctx.new(shape, x.dtype, None if planar else NHWC, x.buffer.name + "_padded")
    ctx.emit(_border(out, pads, planar, fill), [], out.buffer)
    ctx.copy(x, out.slice((0, 0, top, left), x.shape))
    return out


def _border(out: View, pads: tuple[tuple[int, int], ...], planar: bool, fill: float) -> Fill:
    """The padding of ``out`` as runs: what lies before the first inner row, between the inner part of one row
    and the next, and after the last."""
    (top, bottom), (left, right) = pads
    n, c, height, width = out.shape
    images, depth = (n * c, 1) if planar else (n, c)
    row, image = width * depth, height * width * depth
    head, between, tail = (top * width + left) * depth, (left + right) * depth, (bottom * width + right) * depth
    gaps = (height - top - bottom - 1, between)
    regions = [
        (0, (images, head), (image, 1)),
        ((top + 1) * row - right * depth, (images, *gaps), (image, row, 1)),
        (image - tail, (images, tail), (image, 1)),
    ]
    return Fill(tuple(region for region in regions if 0 not in region[1]), fill, out.dtype)


@lowers("Conv")
def lower_conv(ctx: Lowering, node: ir.Node) -> None:
    x, weight = ctx.input(node, 0), ctx.input(node, 1)
    if x.dtype != "float32" or weight.buffer.space != CONSTANT or len(x.shape) > 4:
        _general_conv(ctx, node)
        return
    bias = ctx.optional(node, 2)
    kernel = array_of(weight)
    w = window(node, x.shape[2:], kernel.shape[2:])
    out = ctx.new_for(node.outputs[0], _channels_last(len(x.shape)))
    if kernel.ndim == 3:
        kernel = kernel[:, :, None, :]
    convolve(ctx, as_2d(x), kernel, bias, window_2d(w), attribute(node, "group", 1), as_2d(out))


def _channels_last(rank: int) -> tuple[int, ...]:
    return (0, *range(2, rank), 1)


def convolve(ctx: Lowering, x: View, kernel: np.ndarray, bias: View | None, w: Window, groups: int, out: View) -> None:
    """Emit out = conv(x, kernel [co, ci/groups, kh, kw]) + bias for float32 views (N, C, H, W)."""
    channels, per_group = kernel.shape[0], kernel.shape[1]
    planar = groups == 1 and per_group <= PLANAR_CHANNELS and x.order.index(1) < x.order.index(3)
    source = padded(ctx, x, w.pads, planar)
    if per_group == 1 and groups == channels == x.shape[1] and groups > 1:
        _depthwise(ctx, source, kernel, bias, w, out)
        return
    size = channels // groups
    for group in range(groups):
        part = slice(group * size, (group + 1) * size)
        own_input = _channel_range(source, group * per_group, per_group)
        own_bias = None if bias is None else bias.slice((part.start,), (size,))
        _dense_conv(ctx, own_input, kernel[part], own_bias, w, _channel_range(out, part.start, size))


def _channel_range(view: View, start: int, count: int) -> View:
    n, _, h, w = view.shape
    return view.slice((0, start, 0, 0), (n, count, h, w))


def _geometry(source: View, w: Window, out: View) -> dict[str, object]:
    """What Conv and Depthwise share."""
    n, h, column, channel = (scalar.axis(i) for i in range(4))
    return {
        "batch": out.shape[0],
        "out_height": out.shape[2],
        "out_width": out.shape[3],
        "kernel": w.kernel,
        "stride": w.strides,
        "dilation": w.dilations,
        "input_strides": (source.strides[0], source.strides[2], source.strides[3], source.strides[1]),
        "input_offset": source.offset,
        "store": out.at(n, channel, h, column),
    }


def _epilogue(operands: Operands, bias: View | None) -> Expr:
    acc = scalar.accumulator("float32")
    return acc if bias is None else binary("add", acc, operands.load(bias, scalar.axis(3)))


def _dense_conv(ctx: Lowering, source: View, kernel: np.ndarray, bias: View | None, w: Window, out: View) -> None:
    weight = ctx.constant(np.ascontiguousarray(kernel.transpose(2, 3, 1, 0)), f"{out.buffer.name}_weight")
    operands = Operands()
    operands.buffers = [source.buffer, weight.buffer]
    epilogue = _epilogue(operands, bias)
    geometry = _geometry(source, w, out)
    conv = Conv(out_channels=out.shape[1], in_channels=kernel.shape[1], epilogue=epilogue, **geometry)  # type: ignore[arg-type]
    ctx.emit(conv, operands.buffers, out.buffer)


def _depthwise(ctx: Lowering, source: View, kernel: np.ndarray, bias: View | None, w: Window, out: View) -> None:
    weight = ctx.constant(np.ascontiguousarray(kernel[:, 0].transpose(1, 2, 0)), f"{out.buffer.name}_weight")
    operands = Operands()
    operands.buffers = [source.buffer, weight.buffer]
    epilogue = _epilogue(operands, bias)
    conv = Depthwise(channels=out.shape[1], epilogue=epilogue, **_geometry(source, w, out))  # type: ignore[arg-type]
    ctx.emit(conv, operands.buffers, out.buffer)


def _general_conv(ctx: Lowering, node: ir.Node) -> None:
    """Any rank, dtype and run-time weights, as a loop nest with the padding tested at each tap."""
    x, weight, bias = ctx.input(node, 0), ctx.input(node, 1), ctx.optional(node, 2)
    w = window(node, x.shape[2:], weight.shape[2:])
    groups = attribute(node, "group", 1)
    out = ctx.new_for(node.outputs[0])
    per_group, size, rank = weight.shape[1], weight.shape[0] // groups, len(w.kernel)

    def product(ops: Operands, n: Expr, channel: Expr, *rest: Expr) -> Expr:
        place, ci, taps = rest[:rank], rest[rank], rest[rank + 1 :]
        source = [
            p * s + t * d - pad[0] for p, s, t, d, pad in zip(place, w.strides, taps, w.dilations, w.pads, strict=True)
        ]
        clamped = [clamp_index(i, e) for i, e in zip(source, x.shape[2:], strict=True)]
        channel_in = (channel // size) * per_group + ci
        value = binary("mul", ops.load(x, n, channel_in, *clamped), ops.load(weight, channel, ci, *taps))
        inside = const(True, "bool")
        for index, extent in zip(source, x.shape[2:], strict=True):
            inside = binary("and", inside, in_range(index, extent))
        return select(inside, value, const(0, x.dtype))

    def finish(ops: Operands, acc: Expr, n: Expr, channel: Expr, *_: Expr) -> Expr:
        return acc if bias is None else binary("add", acc, ops.load(bias, channel))

    ctx.compute(out, product, reduce=(per_group, *w.kernel), reducer="sum", epilogue=finish)
