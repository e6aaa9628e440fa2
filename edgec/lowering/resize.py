"""Resize: interpolation, with every source index and weight computed here and stored in tables.

Along one axis, output element o is a weighted sum of a few input elements, its taps:
out[o] = sum over t of weight[t, o] · x[index[t, o]]. Axes are independent of each other, so an image is
resized in one pass over both axes, or axis by axis where that takes fewer operations.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from math import prod

import numpy as np
import onnx_ir as ir

from edgec.lowering.context import Lowering, Operands, attribute, lowers, refuse, shape_of
from edgec.lowering.movement import mapped_copy, split_axes
from edgec.program import View
from edgec.scalar import INDEX, Expr, binary, cast, clamp_index, const, select

UNROLLED_TAPS = 4
"""Up to this many taps are written out; more become a loop."""

VECTOR_RUN = 8
"""Contiguous elements from which on a pass runs at vector speed."""


@dataclass(frozen=True)
class Taps:
    """Source indices (int32, inside the input) and weights (float64) of one axis, each [taps, output extent].

    ``outside`` marks outputs that lie outside of the crop (``tf_crop_and_resize``) and take a constant.
    """

    index: np.ndarray
    weight: np.ndarray
    outside: np.ndarray

    @property
    def count(self) -> int:
        return int(self.index.shape[0])

    @property
    def extent(self) -> int:
        return int(self.index.shape[1])

    def is_identity(self, extent: int) -> bool:
        """Whether an axis of ``extent`` passes through unchanged."""
        straight = self.count == 1 and np.array_equal(self.index[0], np.arange(extent))
        return straight and not self.outside.any()


@dataclass(frozen=True)
class Sampling:
    """How a node samples, from its attributes (ONNX Resize)."""

    mode: str
    transformation: str
    nearest_mode: str
    cubic_a: float
    exclude_outside: bool
    antialias: bool
    extrapolation: float

    def taps(self, extent: int, resized: int, scale: np.float32, roi: tuple[float, float]) -> Taps:
        """The taps of an axis of ``extent`` elements that becomes ``resized`` long."""
        x = self._coordinates(extent, resized, scale, roi)
        crop = self.transformation == "tf_crop_and_resize"
        outside = ((x < 0) | (x > extent - 1)) & crop
        if self.mode == "nearest":
            index = np.clip(self._nearest(x), 0, extent - 1).astype(np.int32)
            return Taps(index[None], np.ones((1, resized)), outside)
        index, weight = self._window(x, float(scale))
        if self.exclude_outside:
            weight = np.where((index < 0) | (index >= extent), 0.0, weight)
            weight = weight / weight.sum(axis=0)
        used = np.abs(weight).max(axis=1, initial=0.0) > 0
        return Taps(np.clip(index[used], 0, extent - 1).astype(np.int32), weight[used], outside)

    def _coordinates(self, extent: int, resized: int, scale: np.float32, roi: tuple[float, float]) -> np.ndarray:
        """Where each output element lies on the input axis, in float32 as ONNX Runtime computes it."""
        out = np.arange(resized, dtype=np.float32)
        half, one = np.float32(0.5), np.float32(1)
        length = scale * np.float32(extent)
        match self.transformation:
            case "asymmetric":
                return out / scale
            case "align_corners":
                return out * np.float32(extent - 1) / (length - one) if length != one else np.zeros_like(out)
            case "pytorch_half_pixel" if resized == 1:
                return np.zeros_like(out)
            case "half_pixel" | "pytorch_half_pixel":
                return (out + half) / scale - half
            case "half_pixel_symmetric":
                centre = np.float32(extent) / 2 * (one - np.float32(resized) / length)
                return centre + (out + half) / scale - half
            case "tf_crop_and_resize":
                start, end = (np.float32(r) * np.float32(extent - 1) for r in roi)
                return start + out * (end - start) / (length - one) if length != one else out + (start + end) / 2
        refuse(f"coordinate_transformation_mode '{self.transformation}' is unknown", "use a mode of ONNX Resize-19")

    def _nearest(self, x: np.ndarray) -> np.ndarray:
        match self.nearest_mode:
            case "floor":
                return np.floor(x)
            case "ceil":
                return np.ceil(x)
            case "round_prefer_ceil":
                return np.floor(x + np.float32(0.5))
        return np.ceil(x - np.float32(0.5))

    def _window(self, x: np.ndarray, scale: float) -> tuple[np.ndarray, np.ndarray]:
        """Indices (they may lie outside) and weights of the filter around each coordinate.

        The filter is stretched by 1/scale when an antialiased axis shrinks.
        """
        stretch = min(scale, 1.0) if self.antialias else 1.0
        radius = (1 if self.mode == "linear" else 2) / stretch
        first = np.floor(x - radius).astype(np.int64) + 1
        count = int(np.ceil(2 * radius)) + 1 if stretch < 1.0 else int(2 * radius)
        index = first[None] + np.arange(count)[:, None]
        distance = np.abs(index - x.astype(np.float64)[None]) * stretch
        weight = np.maximum(0.0, 1 - distance) if self.mode == "linear" else _cubic(distance, self.cubic_a)
        return index, weight / weight.sum(axis=0)


def linear_sampling(transformation: str, exclude_outside: bool) -> Sampling:
    """Linear interpolation without antialiasing."""
    return Sampling("linear", transformation, "round_prefer_floor", -0.75, exclude_outside, False, 0.0)


def _cubic(distance: np.ndarray, a: float) -> np.ndarray:
    """The cubic convolution kernel (Keys, "Cubic convolution interpolation", 1981)."""
    d = distance
    near = ((a + 2) * d - (a + 3)) * d * d + 1
    far = ((a * d - 5 * a) * d + 8 * a) * d - 4 * a
    return np.where(d <= 1, near, np.where(d < 2, far, 0.0))


@lowers("Resize")
def lower_resize(ctx: Lowering, node: ir.Node) -> None:
    x, value = ctx.input(node, 0), node.outputs[0]
    sampling = Sampling(
        mode=str(attribute(node, "mode", "nearest")),
        transformation=str(attribute(node, "coordinate_transformation_mode", "half_pixel")),
        nearest_mode=str(attribute(node, "nearest_mode", "round_prefer_floor")),
        cubic_a=float(attribute(node, "cubic_coeff_a", -0.75)),
        exclude_outside=bool(attribute(node, "exclude_outside", 0)),
        antialias=bool(attribute(node, "antialias", 0)),
        extrapolation=float(attribute(node, "extrapolation_value", 0.0)),
    )
    shape = shape_of(value)
    scales, rois = _scales(ctx, node, x.shape, shape), _rois(ctx, node, len(shape))
    taps = {axis: sampling.taps(x.shape[axis], shape[axis], scale, rois[axis]) for axis, scale in scales.items()}
    taps = {axis: found for axis, found in taps.items() if not found.is_identity(x.shape[axis])}
    cropped = any(found.outside.any() for found in taps.values())
    if sampling.mode == "nearest" and not cropped:
        ctx.set(value, _nearest(ctx, value, x, taps))
        return
    if not x.dtype.startswith("float"):
        refuse(f"{sampling.mode} Resize of {x.dtype} has no exact definition in ONNX", "cast to float32 around it")
    for axes in _passes(x, taps) if taps else []:
        x = _interpolate(ctx, x, {axis: taps[axis] for axis in axes}, sampling.extrapolation)
    ctx.set(value, x)


def _resized_axes(node: ir.Node, rank: int) -> list[int]:
    return [int(axis) % rank for axis in attribute(node, "axes", range(rank))]


def _scales(ctx: Lowering, node: ir.Node, old: Sequence[int], new: Sequence[int]) -> dict[int, np.float32]:
    """The scale of each resized axis: as given, or from the sizes (one for all axes if they keep the aspect)."""
    axes = _resized_axes(node, len(old))
    given = ctx.known(node, 2, "scales")
    if given is not None and given.size:
        return dict(zip(axes, given.astype(np.float32), strict=True))
    sizes = ctx.known(node, 3, "sizes")
    assert sizes is not None
    scales = [np.float32(size) / np.float32(old[axis]) for axis, size in zip(axes, sizes, strict=True)]
    policy = str(attribute(node, "keep_aspect_ratio_policy", "stretch"))
    if policy != "stretch":
        scales = [min(scales) if policy == "not_larger" else max(scales)] * len(axes)
    return dict(zip(axes, scales, strict=True))


def _rois(ctx: Lowering, node: ir.Node, rank: int) -> list[tuple[float, float]]:
    """(start, end) of the crop along each axis, in parts of the axis."""
    rois = [(0.0, 1.0)] * rank
    if str(attribute(node, "coordinate_transformation_mode", "half_pixel")) == "tf_crop_and_resize":
        given = ctx.known(node, 1, "roi")
        axes = _resized_axes(node, rank)
        if given is None or given.size != 2 * len(axes):
            refuse("tf_crop_and_resize needs a roi", "give the node its roi input")
        for axis, start, end in zip(axes, given[: len(axes)], given[len(axes) :], strict=True):
            rois[axis] = (float(start), float(end))
    return rois


# ---- nearest ------------------------------------------------------------------------------------------------


def _nearest(ctx: Lowering, value: ir.Value, x: View, taps: dict[int, Taps]) -> View:
    """A view where every axis is sliced evenly, a broadcast copy where all repeat whole times, else a copy
    through index tables."""
    shape = shape_of(value)
    sources = [taps[a].index[0] if a in taps else np.arange(extent) for a, extent in enumerate(x.shape)]
    steps = [_even_step(source) for source in sources]
    if None not in steps:
        return x.slice([int(source[0]) for source in sources], shape, [step for step in steps if step is not None])
    repeats = [new // old for old, new in zip(x.shape, shape, strict=True)]
    if all(np.array_equal(s, np.arange(e * r) // max(r, 1)) for s, e, r in zip(sources, x.shape, repeats, strict=True)):
        out = ctx.new_for(value, x.order)
        wide = split_axes(out, list(zip(x.shape, repeats, strict=True)))
        ctx.copy(split_axes(x, [(extent, 1) for extent in x.shape]).broadcast_to(wide.shape), wide)
        return out
    return mapped_copy(ctx, value, x, sources)


def _even_step(source: np.ndarray) -> int | None:
    """The step between neighbouring places, 1 for a single one; None where it varies."""
    steps = set(np.diff(source).tolist()) or {1}
    return steps.pop() if len(steps) == 1 else None


# ---- linear and cubic ---------------------------------------------------------------------------------------


def _passes(x: View, taps: dict[int, Taps]) -> list[list[int]]:
    """The axes of each pass: all at once, or one after the other, the one that shrinks most (or grows least)
    first, whichever computes less. The innermost axis in memory cannot be read as vectors, so it counts more.
    """
    ordered = sorted(taps, key=lambda axis: taps[axis].extent / x.shape[axis])
    together = _pass_cost(x.shape, x.order, ordered, taps)
    shape, apart = list(x.shape), 0.0
    for axis in ordered:
        apart += _pass_cost(shape, x.order, [axis], taps)
        shape[axis] = taps[axis].extent
    return [ordered] if together <= apart else [[axis] for axis in ordered]


def _pass_cost(shape: Sequence[int], order: Sequence[int], axes: Sequence[int], taps: dict[int, Taps]) -> float:
    """Operations of one pass: a store and its taps for each output element, divided by the vector length."""
    extents = [taps[axis].extent if axis in axes else extent for axis, extent in enumerate(shape)]
    run = 1
    for axis in reversed(order):
        if axis in axes:
            break
        run *= extents[axis]
    return prod(extents) * (1 + prod(taps[axis].count for axis in axes)) / min(run, VECTOR_RUN)


def _interpolate(ctx: Lowering, x: View, taps: dict[int, Taps], extrapolation: float) -> View:
    """One pass over the axes of ``taps``."""
    shape = [taps[axis].extent if axis in taps else extent for axis, extent in enumerate(x.shape)]
    precise = "float64" if x.dtype == "float64" else "float32"
    work = _Pass(x, {axis: _Table.of(ctx, found, precise) for axis, found in taps.items()}, precise, extrapolation)
    out = ctx.new(shape, x.dtype, x.order)
    counts = [found.count for found in taps.values()]
    if max(counts) <= UNROLLED_TAPS:
        return ctx.compute(out, lambda ops, *i: work.finished(ops, work.unrolled(ops, i, list(taps)), *i))
    return ctx.compute(out, work.term, reduce=counts, reducer="sum", epilogue=work.finished)


@dataclass(frozen=True)
class _Table:
    """Taps of one axis as constants of the program."""

    count: int
    index: View
    weight: View
    outside: View | None

    @classmethod
    def of(cls, ctx: Lowering, taps: Taps, dtype: str) -> _Table:
        outside = ctx.constant(taps.outside, "outside") if taps.outside.any() else None
        weight = ctx.constant(taps.weight.astype(dtype), "weights")
        return cls(taps.count, ctx.constant(taps.index, "taps"), weight, outside)

    def place(self, ops: Operands, tap: Expr, index: Expr, extent: int) -> Expr:
        """Where tap ``tap`` of output ``index`` reads."""
        return clamp_index(ops.load(self.index, tap, index), extent)


@dataclass(frozen=True)
class _Pass:
    """The expressions of one pass: ``tables`` by axis, sums in ``dtype``."""

    x: View
    tables: dict[int, _Table]
    dtype: str
    extrapolation: float

    def unrolled(self, ops: Operands, indices: Sequence[Expr], axes: Sequence[int]) -> Expr:
        """The weighted sum over all taps of ``axes``, one axis inside the other."""
        if not axes:
            return cast(ops.load(self.x, *indices), self.dtype)
        axis, *inner = axes
        table, terms = self.tables[axis], []
        for t in range(table.count):
            places = list(indices)
            places[axis] = table.place(ops, const(t, INDEX), indices[axis], self.x.shape[axis])
            weight = ops.load(table.weight, t, indices[axis])
            terms.append(binary("mul", weight, self.unrolled(ops, places, inner)))
        return reduce(lambda total, term: binary("add", total, term), terms)

    def term(self, ops: Operands, *indices: Expr) -> Expr:
        """One weighted element; the tap of each axis in turn is a reduction axis."""
        rank = len(self.x.shape)
        places, weights = list(indices[:rank]), []
        for tap, (axis, table) in zip(indices[rank:], self.tables.items(), strict=True):
            places[axis] = table.place(ops, tap, indices[axis], self.x.shape[axis])
            weights.append(ops.load(table.weight, tap, indices[axis]))
        weight = reduce(lambda product, factor: binary("mul", product, factor), weights)
        return binary("mul", weight, cast(ops.load(self.x, *places), self.dtype))

    def finished(self, ops: Operands, total: Expr, *indices: Expr) -> Expr:
        """``total``, or the extrapolation value outside of the crop, in the output's dtype."""
        for axis, table in self.tables.items():
            if table.outside is not None:
                outside = ops.load(table.outside, indices[axis])
                total = select(outside, const(self.extrapolation, total.dtype), total)
        return cast(total, self.x.dtype)
