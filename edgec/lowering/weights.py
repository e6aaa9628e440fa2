"""Products of float activations with integer weights, which stay packed: see :mod:`edgec.passes.fuse_weights`.

A weight takes as few bits as its product's largest needs, and where scales are of groups, as few as the largest of its
group along the depth needs. Scales are float32 numbers; where all of a product's are
numbers of bfloat16, as edgec's own quantiser makes them, two bytes hold each. One scale an output channel multiplies
the sum, scales of groups multiply the weights.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from edgec import scalar
from edgec.lowering.context import Lowering, Operands, attribute, dtype_of, lowers, refuse, shape_of
from edgec.lowering.convolution import CHANNEL, Finish, as_2d, emit_convolution, padded, window_2d
from edgec.lowering.matmul import emit_product
from edgec.lowering.window import channels_last, window
from edgec.program import SCALE_CHANNELS, Packing, View
from edgec.scalar import Expr, binary, cast

_WIDTHS = (2, 3, 4, 8)
_EIGHT = 8
_WORTH = 0.97
"""Share of the bits up to which groups of several widths are worth another kernel."""


def least_bits(values: np.ndarray) -> int:
    """The bits of the narrowest signed integers that hold ``values``."""
    low, high = int(values.min(initial=0)), int(values.max(initial=0))
    return next(bits for bits in _WIDTHS if -(2 ** (bits - 1)) <= low and high < 2 ** (bits - 1))


def _stored(scales: np.ndarray) -> np.ndarray:
    """``scales`` [groups, channels] as a kernel reads them: see :class:`Packing`."""
    groups, channels = scales.shape
    padded_scales = np.zeros((groups, -(-channels // SCALE_CHANNELS) * SCALE_CHANNELS), np.float32)
    padded_scales[:, :channels] = scales
    halves = padded_scales.view(np.uint32)
    return padded_scales if (halves & 0xFFFF).any() else (halves >> 16).astype(np.uint16)


def _packed(
    ctx: Lowering, values: np.ndarray, scales: np.ndarray, size: int, channels: int
) -> tuple[np.ndarray, Packing, list[View]]:
    """How ``values`` [depth, outputs] are stored, in what order, and the operands that go with it.

    Args:
        ctx: the model in hand.
        values: int8.
        scales: float32 [groups, outputs].
        size: neighbours along the depth that share a scale; 0 where an output channel does.
        channels: of the input, which are innermost in the depth.
    """
    bits = least_bits(values)
    if not size:
        return values, Packing(bits), []
    extra = [ctx.constant(_stored(scales), "scales")]
    if len(values) % size or channels % _EIGHT:
        return values, Packing(bits, size), extra
    groups = values.reshape(-1, size, values.shape[1])
    widths = np.array([least_bits(group) for group in groups])
    if widths.sum() > _WORTH * bits * len(widths):
        return values, Packing(bits, size), extra
    order = np.argsort(-widths, kind="stable")
    parts = tuple((width, int((widths == width).sum())) for width in sorted(set(widths.tolist()), reverse=True))
    extra.append(ctx.constant(order.astype(np.int32), "groups"))
    return groups[order].reshape(values.shape), Packing(bits, size, parts=parts), extra


def _activations(ctx: Lowering, node: ir.Node) -> View:
    """The float input as float32, in which it is multiplied and summed up."""
    x = ctx.input(node, 0)
    if x.dtype not in ("float32", "float16"):
        refuse(f"its activations are {x.dtype}", "leave them float32 or float16")
    if x.dtype == "float32":
        return x
    wide = ctx.new(x.shape, "float32", x.order)
    ctx.compute(wide, lambda ops, *i: cast(ops.load(x, *i), "float32"))
    return wide


def _scaled(ctx: Lowering, scales: np.ndarray, bias: View, dtype: str) -> Finish:
    """sum · scale + bias as ``dtype``, with one scale a channel, or none."""
    per_channel = ctx.constant(np.ascontiguousarray(scales), "scale") if scales.size else None

    def finish(ops: Operands, channel: Expr) -> Expr:
        total = scalar.accumulator("float32")
        if per_channel is not None:
            total = binary("mul", total, ops.load(per_channel, channel))
        return cast(binary("add", total, ops.load(bias, channel)), dtype)

    return finish


def _constants(ctx: Lowering, node: ir.Node, bias: int) -> tuple[np.ndarray, np.ndarray, View]:
    """Weights, scales and bias, all known while compiling."""
    values, scales, shift = (ctx.known(node, i, what) for i, what in ((1, "weights"), (2, "scales"), (bias, "bias")))
    assert values is not None and scales is not None and shift is not None
    return values.astype(np.int8), scales.astype(np.float32), ctx.constant(shift.astype(np.float32), "bias")


@lowers("MatMulOfWeights", domain="edgec")
def lower_matmul_of_weights(ctx: Lowering, node: ir.Node) -> None:
    """x [..., K] · w [K, N] + bias."""
    x, dtype = _activations(ctx, node), dtype_of(node.outputs[0])
    values, scales, bias = _constants(ctx, node, 3)
    x = x if x.shape[-1] == 1 or x.strides[-1] == 1 else ctx.dense(x)
    depth, channels = values.shape
    grouped = scales.shape[0] > 1
    finish = _scaled(ctx, scales[0] if not grouped else np.empty(0, np.float32), bias, dtype)
    out = ctx.new((*x.shape[:-1], channels), dtype, name=str(node.outputs[0].name))
    size = int(attribute(node, "block_size", depth)) if grouped else 0
    values, packing, extra = _packed(ctx, values, scales, size, depth)
    emit_product(ctx, out, x, ctx.constant(values, "weights"), lambda ops: finish(ops, CHANNEL), packing, extra)
    ctx.set(node.outputs[0], ctx.reshape(out, shape_of(node.outputs[0])))


@lowers("ConvOfWeights", domain="edgec")
def lower_conv_of_weights(ctx: Lowering, node: ir.Node) -> None:
    """A convolution over one or two axes."""
    x, dtype = _activations(ctx, node), dtype_of(node.outputs[0])
    values, scales, bias = _constants(ctx, node, 4)
    shape = ctx.known(node, 3, "shape")
    assert shape is not None
    own = window(node, x.shape[2:], tuple(map(int, shape[1:-1])))
    w, groups = window_2d(own), int(attribute(node, "group", 1))
    out = ctx.new_for(node.outputs[0], channels_last(len(x.shape)))
    grouped = scales.shape[1] > 1
    if grouped and groups > 1:
        refuse("its scales and its channels are both in groups", "give its weights one scale an output channel")
    finish = _scaled(ctx, scales[:, 0] if not grouped else np.empty(0, np.float32), bias, dtype)
    size = int(attribute(node, "block_size", 0)) if grouped else 0
    rows, packing, extra = _packed(ctx, values.T, scales.T, size, int(shape[-1]))
    kernel = np.moveaxis(rows.T.reshape(shape), -1, 1)
    kernel = kernel[:, :, None, :] if kernel.ndim == 3 else kernel
    source = padded(ctx, as_2d(x), w.pads, False)
    emit_convolution(ctx, source, kernel, w, groups, as_2d(out), finish, packing, extra)
