"""Conv, NHWC inside, over inputs that hold their padding."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import onnx_ir as ir

from edgec import scalar
from edgec.lowering.context import Lowering, Operands, array_of, attribute, lowers
from edgec.lowering.direct import lower_general_conv, padded_input
from edgec.lowering.window import Window, channels_last, window
from edgec.program import CONSTANT, Conv, Depthwise, Fill, Packing, View, border
from edgec.scalar import Expr, binary

NHWC = (0, 2, 3, 1)
"""Memory order of a feature map: channels innermost."""


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


def padded(ctx: Lowering, x: View, pads: tuple[tuple[int, int], ...], planar: bool, value: int = 0) -> View:
    """``x`` (N, C, H, W) inside a padding of ``value``, in NHWC order, or NCHW where ``planar``; without padding
    ``x`` itself, where its channels are contiguous or may be planes."""
    (top, bottom), (left, right) = pads
    n, c, height, width = x.shape
    if not (top or bottom or left or right):
        return x if planar or c == 1 or x.strides[1] == 1 else ctx.dense(x, NHWC)
    shape = (n, c, height + top + bottom, width + left + right)
    out = ctx.new(shape, x.dtype, None if planar else NHWC, x.buffer.name + "_padded")
    start = (0, 0, top, left)
    ctx.emit(Fill(border(out, start, x.shape), float(value), out.dtype), [], out.buffer)
    ctx.copy(x, out.slice(start, x.shape))
    return out


@lowers("Conv")
def lower_conv(ctx: Lowering, node: ir.Node) -> None:
    x, weight = ctx.input(node, 0), ctx.input(node, 1)
    w = window(node, x.shape[2:], weight.shape[2:])
    volumes = len(x.shape) == 5 and w.dilations[0] == 1 and attribute(node, "group", 1) == 1
    if x.dtype != "float32" or weight.buffer.space != CONSTANT or (len(x.shape) > 4 and not volumes):
        lower_general_conv(ctx, node)
        return
    bias = ctx.optional(node, 2)
    kernel = array_of(weight)
    if volumes:
        _convolve_volumes(ctx, x, kernel, bias, w, ctx.new_for(node.outputs[0], DEPTH_BY_CHANNELS))
        return
    out = ctx.new_for(node.outputs[0], channels_last(len(x.shape)))
    if kernel.ndim == 3:
        kernel = kernel[:, :, None, :]
    convolve(ctx, as_2d(x), kernel, bias, window_2d(w), attribute(node, "group", 1), as_2d(out))


Finish = Callable[[Operands, Expr], Expr]
"""Called with (operands, index of the output channel): what is stored, of the sum."""

CHANNEL = scalar.axis(3)
"""The output channel of a kernel that computes all of them."""


def convolve(ctx: Lowering, x: View, kernel: np.ndarray, bias: View | None, w: Window, groups: int, out: View) -> None:
    """Emit out = conv(x, kernel [co, ci/groups, kh, kw]) + bias for float32 views (N, C, H, W)."""

    def finish(operands: Operands, channel: Expr) -> Expr:
        acc = scalar.accumulator("float32")
        return acc if bias is None else binary("add", acc, operands.load(bias, channel))

    planar = groups == 1 and kernel.shape[1] <= PLANAR_CHANNELS and x.order.index(1) < x.order.index(3)
    emit_convolution(ctx, padded(ctx, x, w.pads, planar), kernel, w, groups, out, finish)


def emit_convolution(
    ctx: Lowering, source: View, kernel: np.ndarray, w: Window, groups: int, out: View, finish: Finish,
    packing: Packing | None = None, extra: Sequence[View] = (),
) -> None:  # fmt: skip
    """Emit out = finish(sum of source · kernel): depthwise, dense, or in groups.

    A depthwise one with several outputs a channel reads each channel so often, from a copy.

    Args:
        ctx: the model in hand.
        source: (N, C, H, W) inside its padding: float32, or int8, uint8 or int16, which makes the sums int32.
        kernel: [co, ci/groups, kh, kw], float32, or int8 for bytes and where it is packed.
        w: the window; its pads are not read.
        groups: of channels.
        out: (N, C, H, W).
        finish: the epilogue.
        packing: how an int8 kernel is stored; a depthwise one takes a byte a weight.
        extra: operands that the packing asks for.
    """
    channels, per_group = kernel.shape[0], kernel.shape[1]
    size = channels // groups
    if per_group == 1 and groups == source.shape[1] > 1 and (size == 1 or packing is None):
        _depthwise(ctx, _repeated(ctx, source, size), kernel, w, out, finish)
        return
    if groups == 1:
        weight = _weight(ctx, kernel.transpose(2, 3, 1, 0), out)
        _dense_conv(ctx, source, weight, w, out, finish, CHANNEL, packing, extra)
        return
    weight = _weight(ctx, kernel.reshape(groups, size, *kernel.shape[1:]).transpose(0, 3, 4, 2, 1), out)
    channel = scalar.axis(0) * size + CHANNEL
    for image in range(out.shape[0]):
        own_input, own_out = (_by_group(view, image, groups) for view in (source, out))
        _dense_conv(ctx, own_input, weight, w, own_out, finish, channel, packing, extra)


DEPTH_BY_CHANNELS = (0, 3, 4, 2, 1)
"""Memory order of volumes (N, C, D, H, W): N, H, W, D, C."""


def _convolve_volumes(ctx: Lowering, x: View, kernel: np.ndarray, bias: View | None, w: Window, out: View) -> None:
    """Emit a convolution over volumes as one over images for each volume.

    With depth and channels innermost, the window's depth × channels are contiguous: an output slice is an
    image whose channels are those, and the slices of a volume are a batch.
    """
    source = padded_input(ctx, x, x.dtype, None, w, DEPTH_BY_CHANNELS)
    taps, channels = kernel.shape[2], kernel.shape[1]
    flat = kernel.transpose(0, 2, 1, 3, 4).reshape(kernel.shape[0], taps * channels, *kernel.shape[3:])
    plane = Window(w.kernel[1:], w.strides[1:], w.dilations[1:], ((0, 0), (0, 0)))
    for n in range(out.shape[0]):
        volume, target = (
            view.slice((n, 0, 0, 0, 0), (1, *view.shape[1:])).permute((2, 1, 3, 4, 0)) for view in (source, out)
        )
        batch, step = target.shape[0], volume.strides[0] * w.strides[0]
        images = View(
            volume.buffer, (batch, taps * channels, *volume.shape[2:4]), (step, 1, *volume.strides[2:4]), volume.offset
        )
        convolve(ctx, images, flat, bias, plane, 1, replace(target, shape=target.shape[:4], strides=target.strides[:4]))


def _repeated(ctx: Lowering, view: View, times: int) -> View:
    """``view`` (N, C, H, W) with every channel ``times`` times in a row: a copy in NHWC, or itself for once."""
    if times == 1:
        return view
    n, c, h, w = view.shape
    by_batch, by_channel, by_row, by_column = view.strides
    spread = View(view.buffer, (n, c, times, h, w), (by_batch, by_channel, 0, by_row, by_column), view.offset)
    return ctx.reshape(ctx.dense(spread, (0, 3, 4, 1, 2)), (n, c * times, h, w))


def _by_group(view: View, image: int, groups: int) -> View:
    """One image of ``view`` (N, C, H, W) as (groups, C / groups, H, W)."""
    _, channels, *plane = view.shape
    by_image, by_channel, *steps = view.strides
    size = channels // groups
    return replace(
        view, shape=(groups, size, *plane), strides=(size * by_channel, by_channel, *steps),
        offset=view.offset + image * by_image,
    )  # fmt: skip


def _weight(ctx: Lowering, weight: np.ndarray, out: View) -> View:
    return ctx.constant(np.ascontiguousarray(weight), f"{out.buffer.name}_weight")


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
        "dtype": out.dtype,
        "input_dtype": source.dtype,
    }


def _dense_conv(
    ctx: Lowering, source: View, weight: View, w: Window, out: View, finish: Finish, channel: Expr,
    packing: Packing | None, extra: Sequence[View],
) -> None:  # fmt: skip
    """A convolution with ``weight`` [kh, kw, ci, co], or one of groups with [n, kh, kw, ci, co]."""
    operands = Operands()
    operands.buffers = [source.buffer, weight.buffer, *(view.buffer for view in extra)]
    epilogue, grouped = finish(operands, channel), len(weight.shape) > 4
    conv = Conv(  # type: ignore[misc]
        out_channels=out.shape[1], in_channels=weight.shape[-2], epilogue=epilogue, packing=packing, grouped=grouped,
        **_geometry(source, w, out),  # type: ignore[arg-type]
    )  # fmt: skip
    ctx.emit(conv, operands.buffers, out.buffer)


def _depthwise(ctx: Lowering, source: View, kernel: np.ndarray, w: Window, out: View, finish: Finish) -> None:
    weight = _weight(ctx, kernel[:, 0].transpose(1, 2, 0), out)
    operands = Operands()
    operands.buffers = [source.buffer, weight.buffer]
    epilogue = finish(operands, CHANNEL)
    stored = None if weight.dtype == source.dtype else weight.dtype
    conv = Depthwise(  # type: ignore[misc]
        channels=out.shape[1], epilogue=epilogue, weight_dtype=stored, **_geometry(source, w, out)  # type: ignore[arg-type]
    )  # fmt: skip
    ctx.emit(conv, operands.buffers, out.buffer)
