"""MaxPool, AveragePool and LpPool over any number of spatial axes, vectorised over channels in NHWC."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod

import numpy as np
import onnx_ir as ir

from edgec import scalar
from edgec.frontend.values import is_used
from edgec.lowering.context import Lowering, Operands, attribute, lowers, refuse, shape_of
from edgec.lowering.reduction import Reduction, lp_norm, working_dtype
from edgec.lowering.window import Window, window
from edgec.program import View
from edgec.scalar import Expr, binary, cast, clamp_index, const, in_range, select


class Taps:
    """Where a pooling window reads: tap t of output position p is input position p·stride + t·dilation − pad."""

    def __init__(self, shape: Sequence[int], out_shape: Sequence[int], w: Window) -> None:
        self.extents, self.places, self.window = tuple(shape), tuple(out_shape), w

    def positions(self, axis: int) -> np.ndarray:
        """Every input position read along spatial ``axis``: [output position, tap]."""
        w = self.window
        starts = np.arange(self.places[axis]) * w.strides[axis] - w.pads[axis][0]
        return starts[:, None] + np.arange(w.kernel[axis]) * w.dilations[axis]

    def crosses(self, axis: int) -> bool:
        """Whether a tap along ``axis`` lies outside the input."""
        found = self.positions(axis)
        return bool(found.size) and (int(found.min()) < 0 or int(found.max()) >= self.extents[axis])

    def counts(self, axis: int, with_padding: bool) -> np.ndarray:
        """How many taps along ``axis`` each output position takes in; of the padding, only what is declared."""
        found = self.positions(axis)
        before, after = self.window.pads[axis] if with_padding else (0, 0)
        return np.sum((found >= -before) & (found < self.extents[axis] + after), axis=1)

    def indices(self, place: Sequence[Expr], taps: Sequence[Expr]) -> list[Expr]:
        """The input position of each spatial axis, which may lie in the padding."""
        w = self.window
        zipped = zip(place, taps, w.strides, w.dilations, w.pads, strict=True)
        return [p * stride + t * dilation - pad[0] for p, t, stride, dilation, pad in zipped]

    def nearest(self, place: Sequence[Expr], taps: Sequence[Expr]) -> list[Expr]:
        """As ``indices``, with taps in the padding moved to the nearest tap of their window inside the input."""
        return [
            self._nearest(axis, p, index) if self.crosses(axis) else index
            for axis, (p, index) in enumerate(zip(place, self.indices(place, taps), strict=True))
        ]

    def _nearest(self, axis: int, place: Expr, index: Expr) -> Expr:
        dilation, last = self.window.dilations[axis], self.extents[axis] - 1
        if dilation == 1:
            return clamp_index(index, last + 1)
        start = place * self.window.strides[axis] - self.window.pads[axis][0]
        first_inside = start % dilation
        last_inside = const(last, scalar.INDEX) - (const(last, scalar.INDEX) - start) % dilation
        return binary("min", binary("max", index, first_inside), last_inside)


def pooling_taps(ctx: Lowering, node: ir.Node) -> Taps:
    """The taps of a pooling node."""
    spatial = ctx.input(node, 0).shape[2:]
    own = window(node, spatial, tuple(attribute(node, "kernel_shape", [])))
    taps = Taps(spatial, shape_of(node.outputs[0])[2:], own)
    if any(int(taps.positions(axis)[-1, 0]) >= extent for axis, extent in enumerate(spatial)):
        refuse(
            "with ceil_mode its last window starts in the padding, where ONNX before opset 22 and ONNX Runtime differ",
            "convert the model to opset 22, or set ceil_mode=0",
        )
    return taps


@lowers("MaxPool")
def lower_max_pool(ctx: Lowering, node: ir.Node) -> None:
    x, taps = ctx.input(node, 0), pooling_taps(ctx, node)
    rank = len(taps.extents)
    if any((taps.counts(axis, with_padding=False) == 0).any() for axis in range(rank)):
        refuse("a window lies wholly in the padding", "make its pads smaller, or set ceil_mode=0")

    def body(ops: Operands, n: Expr, channel: Expr, *rest: Expr) -> Expr:
        return ops.load(x, n, channel, *taps.nearest(rest[:rank], rest[rank:]))

    out = ctx.new_for(node.outputs[0], x.order)
    ctx.compute(out, body, reduce=taps.window.kernel, reducer="max")
    if len(node.outputs) > 1 and is_used(node.outputs[1]):
        _max_pool_indices(ctx, node, x, out, taps)


def _max_pool_indices(ctx: Lowering, node: ir.Node, x: View, top: View, taps: Taps) -> None:
    """The place in ``x``, as a flat index, of the first maximum of each window.

    The first tap (in row-major order) that equals the maximum is found as a minimum over taps. A tap that
    was moved out of the padding repeats a tap of its window, and the order of taps is kept.
    """
    kernel, extents, rank = taps.window.kernel, taps.extents, len(taps.extents)

    def number(ops: Operands, n: Expr, channel: Expr, *rest: Expr) -> Expr:
        place, tap = rest[:rank], rest[rank:]
        value = ops.load(x, n, channel, *taps.nearest(place, tap))
        found = binary("eq", value, ops.load(top, n, channel, *place))
        return select(found, _flat(tap, kernel), const(prod(kernel), scalar.INDEX))

    def decode(ops: Operands, acc: Expr, n: Expr, channel: Expr, *place: Expr) -> Expr:
        tap = [acc // prod(kernel[axis + 1 :]) % kernel[axis] for axis in range(rank)]
        inside = taps.nearest(place, tap)
        if attribute(node, "storage_order", 0):
            inside, shape = inside[::-1], extents[::-1]
        else:
            shape = extents
        return cast(_flat([n, channel, *inside], [*x.shape[:2], *shape]), "int64")

    out = ctx.new_for(node.outputs[1], x.order)
    ctx.compute(out, number, reduce=kernel, reducer="min", epilogue=decode)


def _flat(indices: Sequence[Expr], shape: Sequence[int]) -> Expr:
    """The row-major index of the element at ``indices``."""
    total = const(0, scalar.INDEX)
    for index, extent in zip(indices, shape, strict=True):
        total = total * extent + index
    return total


@lowers("AveragePool")
def lower_average_pool(ctx: Lowering, node: ir.Node) -> None:
    """The mean of each window, of which the padding is a part only with ``count_include_pad``."""
    x, taps = ctx.input(node, 0), pooling_taps(ctx, node)
    rank, dtype = len(taps.extents), working_dtype(x.dtype)
    counts = window_sizes(taps, bool(attribute(node, "count_include_pad", 0)), dtype)
    alike = bool((counts == counts.flat[0]).all())
    divisor = ctx.constant(counts.reshape(-1)[:1].reshape((1,) * rank) if alike else counts, "window_sizes")

    def mean(ops: Operands, acc: Expr, n: Expr, channel: Expr, *place: Expr) -> Expr:
        return cast(binary("div", acc, ops.load(divisor, *place)), x.dtype)

    out = ctx.new_for(node.outputs[0], x.order)
    ctx.compute(out, summed(x, taps, Reduction("sum"), dtype), reduce=taps.window.kernel, reducer="sum", epilogue=mean)


def window_sizes(taps: Taps, included: bool, dtype: str) -> np.ndarray:
    """How many elements each window takes in: [*output positions]; with ``included``, its padding too."""
    counts = np.ones((), dtype)
    for axis in range(len(taps.extents)):
        counts = np.multiply.outer(counts, taps.counts(axis, included)).astype(dtype)
    if (counts == 0).any():
        refuse("a window lies wholly in the padding", "make its pads smaller, or set ceil_mode=0")
    return counts


@lowers("LpPool")
def lower_lp_pool(ctx: Lowering, node: ir.Node) -> None:
    """(sum of |x|^p)^(1/p) of each window; the padding counts as zeros."""
    x, taps = ctx.input(node, 0), pooling_taps(ctx, node)
    rule, dtype = lp_norm(attribute(node, "p", 2)), working_dtype(x.dtype)

    def finish(ops: Operands, acc: Expr, *_: Expr) -> Expr:
        return cast(rule.finish(acc, 1), x.dtype)

    out = ctx.new_for(node.outputs[0], x.order)
    ctx.compute(out, summed(x, taps, rule, dtype), reduce=taps.window.kernel, reducer="sum", epilogue=finish)


def summed(x: View, taps: Taps, rule: Reduction, dtype: str) -> Callable[..., Expr]:
    """The body of a sum over windows: the rule's term at taps inside the input, 0 in the padding."""
    rank = len(taps.extents)

    def body(ops: Operands, n: Expr, channel: Expr, *rest: Expr) -> Expr:
        places = taps.indices(rest[:rank], rest[rank:])
        crossing = [axis for axis in range(rank) if taps.crosses(axis)]
        inside = [in_range(places[axis], taps.extents[axis]) for axis in crossing]
        for axis in crossing:
            places[axis] = clamp_index(places[axis], taps.extents[axis])
        value = rule.term(cast(ops.load(x, n, channel, *places), dtype))
        for condition in inside:
            value = select(condition, value, const(0, dtype))
        return value

    return body
