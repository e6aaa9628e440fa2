"""ConvTranspose as plain convolutions, one for each phase of the stride.

out[o] is the sum of x[i] · w[k] over i·s + k·d = o + begin. With o + begin = q·s + r, only taps with
k·d = m·s + r take part, and they read x[q − m]. These taps are (s / g) apart, where g = gcd(s, d), and their m
are d / g apart: the outputs of one r, which are s apart, are a plain convolution with stride 1 and dilation
d / g. Only the sums that matter are computed, and no output is added to twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from math import gcd

import onnx_ir as ir

from edgec.lowering.context import Lowering, array_of, attribute, lowers, refuse, shape_of
from edgec.lowering.convolution import as_2d, convolve, window_2d
from edgec.lowering.direct import convolve_directly, padded_input, weights, with_bias
from edgec.lowering.reduction import working_dtype
from edgec.lowering.window import Window, channels_last, steps
from edgec.program import CONSTANT, View
from edgec.scalar import cast, const


@dataclass(frozen=True)
class Phase:
    """Outputs ``first``, ``first`` + stride, … of one axis: ``count`` of them.

    Output p reads inputs ``start`` + p + t · ``dilation`` with the kernel's taps ``taps[t]``.
    """

    first: int
    count: int
    taps: tuple[int, ...]
    start: int
    dilation: int

    @property
    def end(self) -> int:
        """One past the last input that is read."""
        return self.start + self.count + (len(self.taps) - 1) * self.dilation


def phases(extent: int, kernel: int, stride: int, dilation: int, begin: int) -> list[Phase]:
    """The phases of an axis of ``extent`` outputs whose padding begins with ``begin``."""
    found = []
    for first in range(min(stride, extent)):
        quotient, rest = divmod(first + begin, stride)
        taps = [k for k in range(kernel) if (k * dilation - rest) % stride == 0]
        # the last tap reads the first input
        start = quotient - (taps[-1] * dilation - rest) // stride if taps else 0
        count = -(-(extent - first) // stride)
        found.append(Phase(first, count, tuple(reversed(taps)), start, dilation // gcd(stride, dilation)))
    return found


def _begins(node: ir.Node, spatial: Sequence[int], out: Sequence[int], kernel: Sequence[int]) -> list[int]:
    """The padding at the beginning of each axis (ONNX ConvTranspose, ``output_shape`` and ``auto_pad``)."""
    rank, mode = len(spatial), str(attribute(node, "auto_pad", "NOTSET"))
    given = attribute(node, "output_shape", None)
    if mode == "VALID" and given is None:
        return [0] * rank
    if mode == "NOTSET" and given is None:
        return list(attribute(node, "pads", [0] * (2 * rank))[:rank])
    strides, dilations = steps(node, rank)
    more = attribute(node, "output_padding", [0] * rank)
    if any(more) and given is None:
        refuse("auto_pad and output_padding together have no one meaning", "give explicit pads instead of auto_pad")
    found = []
    for axis, (stride, dilation) in enumerate(zip(strides, dilations, strict=True)):
        full = stride * (spatial[axis] - 1) + more[axis] + (kernel[axis] - 1) * dilation + 1
        total = max(0, full - out[axis])
        found.append(total // 2 if mode == "SAME_UPPER" else total - total // 2)
    return found


@lowers("ConvTranspose")
def lower_conv_transpose(ctx: Lowering, node: ir.Node) -> None:
    x, kernel, bias = ctx.input(node, 0), ctx.input(node, 1), ctx.optional(node, 2)
    spatial, taps, shape = x.shape[2:], kernel.shape[2:], shape_of(node.outputs[0])
    strides, dilations = steps(node, len(spatial))
    begins = _begins(node, spatial, shape[2:], taps)
    axes = [phases(*each) for each in zip(shape[2:], taps, strides, dilations, begins, strict=True)]
    out = ctx.new_for(node.outputs[0], channels_last(len(x.shape)))
    pads = tuple(
        (max(0, -min(p.start for p in axis)), max(0, max(p.end for p in axis) - extent))
        for axis, extent in zip(axes, spatial, strict=True)
    )
    source = padded_input(ctx, x, working_dtype(x.dtype), None, Window(taps, strides, dilations, pads))
    for parts in product(*axes):
        corner = [part.start + begin for part, (begin, _) in zip(parts, pads, strict=True)]
        target = out.slice(
            (0, 0, *(part.first for part in parts)), (*shape[:2], *(part.count for part in parts)), (1, 1, *strides)
        )
        if all(part.taps for part in parts):
            extents = [part.end - part.start for part in parts]
            own = source.slice((0, 0, *corner), (*x.shape[:2], *extents))
            _convolve_phase(ctx, own, kernel, bias, parts, attribute(node, "group", 1), target)
        else:
            _no_taps(ctx, bias, target)


def _no_taps(ctx: Lowering, bias: View | None, out: View) -> None:
    """Outputs between the taps of a kernel that is shorter than the stride."""
    ctx.compute(out, lambda ops, n, c, *_: const(0, out.dtype) if bias is None else cast(ops.load(bias, c), out.dtype))


def _convolve_phase(
    ctx: Lowering, source: View, kernel: View, bias: View | None, parts: Sequence[Phase], groups: int, out: View
) -> None:
    """One phase, from the padded inputs that it reads."""
    extents = tuple(len(part.taps) for part in parts)
    ones = (1,) * len(parts)
    w = Window(extents, ones, tuple(part.dilation for part in parts), ((0, 0),) * len(parts))
    last = [part.taps[0] for part in parts]
    back = [part.taps[1] - part.taps[0] if len(part.taps) > 1 else 1 for part in parts]
    own = kernel.slice((0, 0, *last), (*kernel.shape[:2], *extents), (1, 1, *back))
    if own.buffer.space == CONSTANT and len(parts) <= 2 and out.dtype == "float32":
        packed = _by_output(ctx, own, groups)
        data = array_of(packed) if len(parts) == 2 else array_of(packed)[:, :, None]
        convolve(ctx, as_2d(source), data, bias, window_2d(w), groups, as_2d(out))
        return
    packed = weights(ctx, _by_output(ctx, own, groups), source.dtype)
    convolve_directly(ctx, out, source, packed, w, groups, with_bias(bias, out.dtype))


def _by_output(ctx: Lowering, kernel: View, groups: int) -> View:
    """A kernel (C_in, C_out / groups, …) as (C_out, C_in / groups, …)."""
    inputs, outputs, *taps = kernel.shape
    split = ctx.reshape(kernel, (groups, inputs // groups, outputs, *taps))
    swapped = split.permute((0, 2, 1, *range(3, len(split.shape))))
    return ctx.reshape(swapped, (groups * outputs, inputs // groups, *taps))
