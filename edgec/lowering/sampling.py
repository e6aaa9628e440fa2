"""Sampling at coordinates that are known only while running: GridSample, AffineGrid, RoiAlign."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from edgec.lowering.context import Lowering, Operands, attribute, lowers, refuse, shape_of
from edgec.lowering.elementwise import as_index
from edgec.program import View
from edgec.scalar import Expr, binary, cast, clamp_index, const, in_range, select, unary

CUBIC_A = -0.75
"""The cubic kernel's parameter that ONNX GridSample-20 prescribes."""

OUTSIDE = 3
"""Places beyond either end from which no tap of a cubic kernel reaches inside."""


def _plus(a: Expr, b: Expr | float) -> Expr:
    return binary("add", a, b if isinstance(b, Expr) else const(b, a.dtype))


def _minus(a: Expr, b: Expr | float) -> Expr:
    return binary("sub", a, b if isinstance(b, Expr) else const(b, a.dtype))


def _times(a: Expr, b: Expr | float) -> Expr:
    return binary("mul", a, b if isinstance(b, Expr) else const(b, a.dtype))


def _limited(x: Expr, low: float, high: float) -> Expr:
    return binary("min", binary("max", x, const(low, x.dtype)), const(high, x.dtype))


def _index(x: Expr, low: int, high: int) -> Expr:
    """``x``, which is whole or NaN, as an index in [low, high]: converting anything else would be undefined."""
    above = binary("ge", x, const(low, x.dtype))
    return as_index(select(above, binary("min", x, const(high, x.dtype)), const(low, x.dtype)))


def _sum(terms: Sequence[Expr]) -> Expr:
    total = terms[0]
    for term in terms[1:]:
        total = _plus(total, term)
    return total


# ---- GridSample ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Grid:
    """How GridSample reads outside of the input, from its attributes."""

    mode: str
    padding: str
    align_corners: bool

    def coordinate(self, normalised: Expr, extent: int) -> Expr:
        """A grid value in [−1, 1] as a coordinate on an axis of ``extent`` elements, brought inside by the padding
        mode where there is one."""
        x = _plus(normalised, 1.0)
        if self.align_corners:
            x, low, high = _times(_times(x, 0.5), extent - 1.0), 0.0, extent - 1.0
        else:
            x, low, high = _times(_minus(_times(x, float(extent)), 1.0), 0.5), -0.5, extent - 0.5
        if self.mode == "nearest":
            x = unary("round", x)
        if self.padding == "zeros":
            return x
        inside = binary("and", binary("ge", x, const(low, x.dtype)), binary("le", x, const(high, x.dtype)))
        moved = _limited(x, 0.0, extent - 1.0) if self.padding == "border" else _reflected(x, low, high)
        return select(inside, x, moved)

    def mirror(self, extent: int) -> np.ndarray:
        """The element of an axis that stands at each index from −1 − OUTSIDE to extent + 1 + OUTSIDE, mirrored at the
        outer elements or at their outer edges (int32)."""
        mode = "reflect" if self.align_corners else "symmetric"
        return np.pad(np.arange(extent, dtype=np.int32), (OUTSIDE + 1, OUTSIDE + 2), mode=mode)  # type: ignore[call-overload]

    def weights(self, part: Expr) -> list[tuple[int, Expr]]:
        """Taps, relative to the rounded-down coordinate, and their weights at ``part`` of the way to the next."""
        if self.mode == "linear":
            return [(0, _minus(const(1.0, part.dtype), part)), (1, part)]
        rest = _minus(const(1.0, part.dtype), part)
        return [
            (-1, _far(_plus(part, 1.0))), (0, _near(part)), (1, _near(rest)), (2, _far(_plus(rest, 1.0)))
        ]  # fmt: skip


def _near(d: Expr) -> Expr:
    """The cubic kernel for distances up to 1: ((a + 2)·d − (a + 3))·d² + 1."""
    return _plus(_times(_minus(_times(d, CUBIC_A + 2), CUBIC_A + 3), _times(d, d)), 1.0)


def _far(d: Expr) -> Expr:
    """The cubic kernel for distances from 1 to 2: a·(((d − 5)·d + 8)·d − 4)."""
    return _times(_minus(_times(_plus(_times(_minus(d, 5.0), d), 8.0), d), 4.0), CUBIC_A)


def _reflected(x: Expr, low: float, high: float) -> Expr:
    """``x`` mirrored at ``low`` and ``high`` until it lies between them."""
    span = high - low
    if span == 0:
        return const(low, x.dtype)
    distance = unary("abs", _minus(x, low))
    rounds = unary("floor", _times(distance, 0.5 / span))
    distance = _minus(distance, _times(rounds, 2 * span))
    return _plus(binary("min", distance, _minus(const(2 * span, x.dtype), distance)), low)


@lowers("GridSample")
def lower_grid_sample(ctx: Lowering, node: ir.Node) -> None:
    """out[n, c, p…] = x[n, c] interpolated at grid[n, p…], whose last axis counts the axes from the innermost."""
    x, grid = ctx.input(node, 0), ctx.input(node, 1)
    mode = str(attribute(node, "mode", "linear")).removeprefix("bi")
    rule = Grid(mode, str(attribute(node, "padding_mode", "zeros")), bool(attribute(node, "align_corners", 0)))
    out = ctx.new_for(node.outputs[0], x.order)
    rank, precise = len(x.shape) - 2, _precise(x.dtype)
    reflects = rule.padding == "reflection"
    mirrors = [ctx.constant(rule.mirror(extent), "mirror") for extent in x.shape[2:]] if reflects else None
    source = Source(x, rule, mirrors)

    def sampled(ops: Operands, n: Expr, channel: Expr, *point: Expr) -> Expr:
        where = [cast(ops.load(grid, n, *point, rank - 1 - axis), precise) for axis in range(rank)]
        where = [rule.coordinate(value, extent) for value, extent in zip(where, x.shape[2:], strict=True)]
        return cast(source.at(ops, (n, channel), where), out.dtype)

    ctx.compute(out, sampled)


def _precise(dtype: str) -> str:
    """The dtype in which coordinates and weights are computed."""
    return "float64" if dtype == "float64" else "float32"


@dataclass(frozen=True)
class Source:
    """What is sampled, and how; ``mirrors`` holds :meth:`Grid.mirror` of each spatial axis where that is needed."""

    x: View
    rule: Grid
    mirrors: Sequence[View] | None

    def at(self, ops: Operands, outer: Sequence[Expr], where: Sequence[Expr]) -> Expr:
        """The element at the indices ``outer`` and, interpolated axis by axis, the coordinates ``where``."""
        if not where:
            return cast(ops.load(self.x, *outer), _precise(self.x.dtype))
        extent, terms = self.x.shape[len(outer)], []
        for index, weight in self._taps(where[0], extent):
            value = self.at(ops, (*outer, self._place(ops, index, len(outer))), where[1:])
            value = value if weight is None else _times(weight, value)
            if self.rule.padding == "zeros":
                value = select(in_range(index, extent), value, const(0, value.dtype))
            terms.append(value)
        return _sum(terms)

    def _taps(self, where: Expr, extent: int) -> list[tuple[Expr, Expr | None]]:
        reach = (-OUTSIDE, extent - 1 + OUTSIDE)
        if self.rule.mode == "nearest":
            return [(_index(where, *reach), None)]
        base = unary("floor", where)
        return [(_index(base, *reach) + tap, weight) for tap, weight in self.rule.weights(_minus(where, base))]

    def _place(self, ops: Operands, index: Expr, axis: int) -> Expr:
        extent = self.x.shape[axis]
        if self.mirrors is not None:
            index = ops.load(self.mirrors[axis - 2], index + (OUTSIDE + 1))
        return clamp_index(index, extent)


@lowers("AffineGrid")
def lower_affine_grid(ctx: Lowering, node: ir.Node) -> None:
    """out[n, p…, i] = theta[n, i] · (coordinates of p from the innermost axis outward, 1)."""
    theta, value = ctx.input(node, 0), node.outputs[0]
    extents = shape_of(value)[1:-1]
    align = bool(attribute(node, "align_corners", 0))
    tables = [ctx.constant(_base_grid(extent, align).astype(theta.dtype), "base_grid") for extent in extents]

    def entry(ops: Operands, n: Expr, *rest: Expr) -> Expr:
        *point, i = rest
        terms = [
            _times(ops.load(theta, n, i, column), ops.load(table, index))
            for column, (table, index) in enumerate(zip(reversed(tables), reversed(point), strict=True))
        ]
        return _sum([*terms, ops.load(theta, n, i, len(extents))])

    ctx.compute(ctx.new_for(value), entry)


def _base_grid(extent: int, align_corners: bool) -> np.ndarray:
    """Coordinates in [−1, 1] of ``extent`` places: of their centres, or with the outer ones on the ends."""
    places = np.arange(extent, dtype=np.float64)
    return places * 2 / max(extent - 1, 1) - 1 if align_corners else (places * 2 + 1) / extent - 1


# ---- RoiAlign -----------------------------------------------------------------------------------------------


@lowers("RoiAlign")
def lower_roi_align(ctx: Lowering, node: ir.Node) -> None:
    """Each bin of each region averages (or takes the largest of) ``sampling_ratio``² bilinear samples."""
    x, rois, batch = (ctx.input(node, i) for i in range(3))
    ratio = int(attribute(node, "sampling_ratio", 0))
    if ratio <= 0:
        refuse("sampling_ratio 0 takes a number of samples that depends on the data", "set sampling_ratio to 2")
    average = str(attribute(node, "mode", "avg")) == "avg"
    out = ctx.new_for(node.outputs[0], x.order)
    height, width = out.shape[2:]
    scale = float(attribute(node, "spatial_scale", 1.0))
    half_pixel = str(attribute(node, "coordinate_transformation_mode", "half_pixel")) == "half_pixel"
    precise = _precise(x.dtype)

    def sample(ops: Operands, r: Expr, c: Expr, row: Expr, column: Expr, i: Expr, j: Expr) -> Expr:
        image = clamp_index(as_index(ops.load(batch, r)), x.shape[0])
        points = []
        for corner, bins, place, step in ((1, height, row, i), (0, width, column, j)):
            ends = (cast(ops.load(rois, r, corner + end), precise) for end in (0, 2))
            start, end = (_minus(_times(value, scale), 0.5 if half_pixel else 0.0) for value in ends)
            size = _minus(end, start)
            size = size if half_pixel else binary("max", size, const(1.0, precise))
            part = _times(_plus(cast(step, precise), 0.5), 1.0 / ratio)
            points.append(_plus(start, _times(_times(size, 1.0 / bins), _plus(cast(place, precise), part))))
        return _roi_sample(ops, x, (image, c), points, average)

    def finish(_: Operands, acc: Expr, *__: Expr) -> Expr:
        return cast(_times(acc, 1.0 / ratio**2) if average else acc, out.dtype)

    ctx.compute(out, sample, reduce=(ratio, ratio), reducer="sum" if average else "max", epilogue=finish)


def _roi_sample(ops: Operands, x: View, outer: Sequence[Expr], points: Sequence[Expr], average: bool) -> Expr:
    """The bilinear sample at (y, x) = ``points``, 0 further than 1 outside; the largest of its four weighted
    corners where not ``average`` (ONNX RoiAlign-16)."""
    inside, axes = const(True, "bool"), []
    for point, extent in zip(points, x.shape[2:], strict=True):
        within = (binary("ge", point, const(-1.0, point.dtype)), binary("le", point, const(extent, point.dtype)))
        inside = binary("and", inside, binary("and", *within))
        limited = _limited(point, 0.0, extent - 1.0)
        base = unary("floor", limited)
        part, low = _minus(limited, base), _index(base, 0, extent - 1)
        axes.append(((low, _minus(const(1.0, part.dtype), part)), (clamp_index(low + 1, extent), part)))
    corners = [
        _times(_times(row_weight, column_weight), cast(ops.load(x, *outer, row, column), row_weight.dtype))
        for row, row_weight in axes[0]
        for column, column_weight in axes[1]
    ]
    value = corners[0]
    for corner in corners[1:]:
        value = binary("add" if average else "max", value, corner)
    return select(inside, value, const(0, value.dtype))
