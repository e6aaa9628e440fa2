"""Operators that move elements without computing: views where strides can say it, else copies by region."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from edgec.lowering.context import Lowering, Operands, attribute, dtype_of, lowers, refuse, shape_of
from edgec.lowering.elementwise import as_index
from edgec.program import CONSTANT, Fill, View, border
from edgec.scalar import Expr, binary, cast, clamp_index, const, in_range, select


def axis_of(node: ir.Node, rank: int, default: int = 0) -> int:
    """The node's ``axis`` attribute, counted from the front."""
    return int(attribute(node, "axis", default)) % max(rank, 1)


def axes_of(ctx: Lowering, node: ir.Node, index: int, rank: int) -> list[int]:
    """The axes in input ``index``, counted from the front; every axis where it is left out."""
    axes = ctx.known(node, index, "axes")
    return list(range(rank)) if axes is None else [int(axis) % rank for axis in axes.reshape(-1)]


@lowers("Reshape", "Flatten", "Squeeze", "Unsqueeze")
def lower_reshape(ctx: Lowering, node: ir.Node) -> None:
    """The same elements in row-major order; the shape that ``0``, ``-1`` and axes mean is inferred already."""
    value = node.outputs[0]
    ctx.set(value, ctx.reshape(ctx.input(node, 0), shape_of(value)))


@lowers("Identity")
def lower_identity(ctx: Lowering, node: ir.Node) -> None:
    ctx.set(node.outputs[0], ctx.input(node, 0))


@lowers("Transpose")
def lower_transpose(ctx: Lowering, node: ir.Node) -> None:
    x = ctx.input(node, 0)
    ctx.set(node.outputs[0], x.permute(attribute(node, "perm", list(range(len(x.shape)))[::-1])))


@lowers("Expand")
def lower_expand(ctx: Lowering, node: ir.Node) -> None:
    ctx.set(node.outputs[0], ctx.input(node, 0).broadcast_to(shape_of(node.outputs[0])))


@lowers("Slice")
def lower_slice(ctx: Lowering, node: ir.Node) -> None:
    """data[starts:ends:steps] along the axes, with numpy's rules for negative and overlong bounds."""
    x = ctx.input(node, 0)
    starts, ends, steps = (ctx.known(node, i, what) for i, what in ((1, "starts"), (2, "ends"), (4, "steps")))
    assert starts is not None and ends is not None
    axes = axes_of(ctx, node, 3, len(x.shape))
    ranges = [range(extent) for extent in x.shape]
    for position, axis in enumerate(axes[: starts.size]):
        step = 1 if steps is None else int(steps[position])
        cut = slice(int(starts[position]), int(ends[position]), step)
        ranges[axis] = range(*cut.indices(x.shape[axis]))
    out = x.slice([r.start for r in ranges], [len(r) for r in ranges], [r.step for r in ranges])
    ctx.set(node.outputs[0], out)


@lowers("Split")
def lower_split(ctx: Lowering, node: ir.Node) -> None:
    """Neighbouring slices; how long each is, its inferred shape says."""
    x = ctx.input(node, 0)
    axis, start = axis_of(node, len(x.shape)), 0
    for value in node.outputs:
        shape = shape_of(value)
        ctx.set(value, x.slice(_along(axis, start, len(shape)), shape))
        start += shape[axis]


def _along(axis: int, position: int, rank: int) -> list[int]:
    """The index that is ``position`` along ``axis`` and 0 elsewhere."""
    return [position if a == axis else 0 for a in range(rank)]


@lowers("Concat")
def lower_concat(ctx: Lowering, node: ir.Node) -> None:
    """Each input is copied into its region of the output."""
    views = [ctx.view(value) for value in node.inputs if value is not None]
    value = node.outputs[0]
    rank = len(shape_of(value))
    axis, start = axis_of(node, rank), 0
    out = ctx.new_for(value, _common_order(views))
    for view in views:
        ctx.copy(view, out.slice(_along(axis, start, rank), view.shape))
        start += view.shape[axis]


def _common_order(views: Sequence[View]) -> tuple[int, ...]:
    """The memory order in which most of the run-time elements lie already."""
    weights: dict[tuple[int, ...], int] = {}
    for view in views:
        elements = 0 if view.buffer.space == CONSTANT else view.elements
        weights[view.order] = weights.get(view.order, 0) + elements
    return max(weights, key=lambda order: weights[order])


@lowers("Tile")
def lower_tile(ctx: Lowering, node: ir.Node) -> None:
    """Repeats, as broadcasting where an axis has extent 1."""
    x, value = ctx.input(node, 0), node.outputs[0]
    shape = shape_of(value)
    if all(old in (1, new) for old, new in zip(x.shape, shape, strict=True)):
        ctx.set(value, x.broadcast_to(shape))
        return
    out = ctx.new_for(value, x.order)
    repeats = [new // old if old else 1 for old, new in zip(x.shape, shape, strict=True)]
    pairs = list(zip(repeats, x.shape, strict=True))
    wide = split_axes(out, pairs)
    ctx.copy(split_axes(x, [(1, extent) for extent in x.shape]).broadcast_to(wide.shape), wide)


def split_axes(view: View, pairs: Sequence[tuple[int, int]]) -> View:
    """``view`` with each axis as two, (outer, inner)."""
    strides = [s for stride, (_, inner) in zip(view.strides, pairs, strict=True) for s in (stride * inner, stride)]
    return View(view.buffer, tuple(extent for pair in pairs for extent in pair), tuple(strides), view.offset)


# ---- Pad ----------------------------------------------------------------------------------------------------


@lowers("Pad")
def lower_pad(ctx: Lowering, node: ir.Node) -> None:
    """Constant padding is filled around a copy; the other modes look their source up in a table per axis."""
    x = ctx.input(node, 0)
    pads = _pads(ctx, node, len(x.shape))
    mode = str(attribute(node, "mode", "constant"))
    if mode != "constant":
        sources = [_source(extent, *pad, mode) for extent, pad in zip(x.shape, pads, strict=True)]
        mapped_copy(ctx, node.outputs[0], x, sources)
        return
    given = ctx.optional(node, 2)
    fill = ctx.constant(np.zeros(1, x.dtype)) if given is None else given
    frame(ctx, node.outputs[0], x, [before for before, _ in pads], fill)


def _pads(ctx: Lowering, node: ir.Node, rank: int) -> list[tuple[int, int]]:
    """(before, after) for each axis; negative ones cut off."""
    flat = ctx.known(node, 1, "pads")
    assert flat is not None
    pads = [(0, 0)] * rank
    axes = axes_of(ctx, node, 3, rank)
    for axis, before, after in zip(axes, flat[: len(axes)], flat[len(axes) :], strict=True):
        pads[axis] = (int(before), int(after))
    return pads


def _source(extent: int, before: int, after: int, mode: str) -> np.ndarray:
    """Which element of an axis stands at each place of the padded axis."""
    kept = np.arange(extent)[max(0, -before) : extent - max(0, -after)]
    return np.pad(kept, (max(0, before), max(0, after)), mode=mode)  # type: ignore[call-overload]


def frame(ctx: Lowering, value: ir.Value, x: View, origin: Sequence[int], fill: View) -> None:
    """``value`` = ``fill`` (one element) everywhere, ``x`` from ``origin`` on; what does not fit is cut off."""
    shape = shape_of(value)
    if fill.buffer.data is None:
        _framed_by_variable(ctx, value, x, origin, fill)
        return
    out = ctx.new_for(value, x.order)
    start = [max(0, o) for o in origin]
    skipped = [max(0, -o) for o in origin]
    room = zip(x.shape, skipped, shape, start, strict=True)
    extents = [max(0, min(extent - skip, size - first)) for extent, skip, size, first in room]
    regions = border(out, start, extents)
    if regions:
        ctx.emit(Fill(regions, fill.buffer.data.reshape(-1)[0].item(), out.dtype), [], out.buffer)
    ctx.copy(x.slice(skipped, extents), out.slice(start, extents))


def _framed_by_variable(ctx: Lowering, value: ir.Value, x: View, origin: Sequence[int], fill: View) -> None:
    """:func:`frame` where only the run knows the value to fill with."""

    def entry(ops: Operands, *indices: Expr) -> Expr:
        places = [index - first for index, first in zip(indices, origin, strict=True)]
        inside = const(True, "bool")
        for place, extent in zip(places, x.shape, strict=True):
            inside = binary("and", inside, in_range(place, extent))
        inner = [clamp_index(place, extent) for place, extent in zip(places, x.shape, strict=True)]
        return select(inside, ops.load(x, *inner), ops.load(fill, *[0] * len(fill.shape)))

    ctx.compute(ctx.new_for(value, x.order), entry)


def mapped_copy(ctx: Lowering, value: ir.Value, x: View, sources: Sequence[np.ndarray]) -> View:
    """``value[i, j, …] = x[sources[0][i], sources[1][j], …]``."""
    out = ctx.new_for(value, x.order)

    def moved(ops: Operands, *indices: Expr) -> Expr:
        places = [mapped_index(ctx, ops, s, i, e) for s, i, e in zip(sources, indices, x.shape, strict=True)]
        return ops.load(x, *places)

    return ctx.compute(out, moved)


def mapped_index(ctx: Lowering, ops: Operands, source: np.ndarray, index: Expr, extent: int) -> Expr:
    """``source[index]``, by arithmetic where the map is the identity or a shift, else by a table."""
    shift = int(source[0]) if source.size else 0
    if np.array_equal(source, np.arange(source.size) + shift):
        return index + shift
    table = ctx.constant(source.astype(np.int32), "indices")
    return clamp_index(ops.load(table, index), extent)


@lowers("CenterCropPad")
def lower_center_crop_pad(ctx: Lowering, node: ir.Node) -> None:
    """Cut or zero-pad every axis to its size, the middle kept in the middle."""
    x = ctx.input(node, 0)
    sizes = shape_of(node.outputs[0])
    origin = [(new - old) // 2 if new > old else -((old - new) // 2) for old, new in zip(x.shape, sizes, strict=True)]
    frame(ctx, node.outputs[0], x, origin, ctx.constant(np.zeros(1, x.dtype)))


# ---- blocks of space and depth ------------------------------------------------------------------------------


@lowers("DepthToSpace")
def lower_depth_to_space(ctx: Lowering, node: ir.Node) -> None:
    """(N, C·b², H, W) → (N, C, H·b, W·b); DCR has the block outside the channels, CRD inside."""
    n, c, h, w = ctx.input(node, 0).shape
    b = int(attribute(node, "blocksize", 1))
    if str(attribute(node, "mode", "DCR")) == "CRD":
        parts, order = (n, c // b**2, b, b, h, w), (0, 1, 4, 2, 5, 3)
    else:
        parts, order = (n, b, b, c // b**2, h, w), (0, 3, 4, 1, 5, 2)
    blocks = ctx.reshape(ctx.input(node, 0), parts)
    ctx.set(node.outputs[0], ctx.reshape(blocks.permute(order), shape_of(node.outputs[0])))


@lowers("SpaceToDepth")
def lower_space_to_depth(ctx: Lowering, node: ir.Node) -> None:
    """(N, C, H·b, W·b) → (N, C·b², H, W); DCR puts the block outside the channels, CRD inside."""
    n, c, h, w = ctx.input(node, 0).shape
    b = int(attribute(node, "blocksize", 1))
    order = (0, 1, 3, 5, 2, 4) if str(attribute(node, "mode", "DCR")) == "CRD" else (0, 3, 5, 1, 2, 4)
    blocks = ctx.reshape(ctx.input(node, 0), (n, c, h // b, b, w // b, b)).permute(order)
    ctx.set(node.outputs[0], ctx.reshape(blocks, shape_of(node.outputs[0])))


@lowers("Col2Im")
def lower_col2im(ctx: Lowering, node: ir.Node) -> None:
    """Every pixel sums the column entries that a sliding block left for it (the reverse of im2col)."""
    x = ctx.input(node, 0)
    block = [int(k) for k in _given(ctx.known(node, 2, "block_shape"))]
    rank, shape = len(block), shape_of(node.outputs[0])
    strides, dilations = attribute(node, "strides", [1] * rank), attribute(node, "dilations", [1] * rank)
    pads = attribute(node, "pads", [0] * (2 * rank))
    counts = [
        (size + pads[a] + pads[a + rank] - dilations[a] * (block[a] - 1) - 1) // strides[a] + 1
        for a, size in enumerate(shape[2:])
    ]
    columns = ctx.reshape(x, (*shape[:2], *block, *counts))

    def entry(ops: Operands, n: Expr, channel: Expr, *rest: Expr) -> Expr:
        pixel, tap = rest[:rank], rest[rank:]
        inside, places = const(True, "bool"), []
        for a in range(rank):
            reach = pixel[a] + pads[a] - tap[a] * dilations[a]
            on_grid = binary("eq", reach % strides[a], const(0, "int32"))
            place = reach // strides[a]
            inside = binary("and", inside, binary("and", on_grid, in_range(place, counts[a])))
            places.append(clamp_index(place, counts[a]))
        return select(inside, ops.load(columns, n, channel, *tap, *places), const(0, x.dtype))

    ctx.compute(ctx.new_for(node.outputs[0]), entry, reduce=block, reducer="sum")


def _given(data: np.ndarray | None) -> np.ndarray:
    if data is None:
        refuse("a required input is missing", "re-export the model with that input")
    return data.reshape(-1)


# ---- indices and constants ----------------------------------------------------------------------------------


@lowers("Trilu")
def lower_trilu(ctx: Lowering, node: ir.Node) -> None:
    """Keeps what is on one side of the k-th diagonal and zeroes the rest."""
    x, k = ctx.input(node, 0), ctx.optional(node, 1)
    comparison = "ge" if attribute(node, "upper", 1) else "le"

    def kept(ops: Operands, *indices: Expr) -> Expr:
        row, column = indices[-2:]
        diagonal = const(0, "int64") if k is None else ops.load(k, *[0] * len(k.shape))
        inside = binary(comparison, column - row, as_index(diagonal))
        return select(inside, ops.load(x, *indices), const(0, x.dtype))

    ctx.compute(ctx.new_for(node.outputs[0], x.order), kept)


@lowers("EyeLike")
def lower_eye_like(ctx: Lowering, node: ir.Node) -> None:
    """Ones on the k-th diagonal."""
    k, dtype = int(attribute(node, "k", 0)), dtype_of(node.outputs[0])

    def entry(_: Operands, row: Expr, column: Expr) -> Expr:
        return select(binary("eq", column - row, const(k, "int32")), const(1, dtype), const(0, dtype))

    ctx.compute(ctx.new_for(node.outputs[0]), entry)


@lowers("Shape")
def lower_shape(ctx: Lowering, node: ir.Node) -> None:
    shape = ctx.input(node, 0).shape
    part = shape[attribute(node, "start", 0) : attribute(node, "end", len(shape))]
    ctx.set(node.outputs[0], ctx.constant(np.array(part, np.int64)))


@lowers("Size")
def lower_size(ctx: Lowering, node: ir.Node) -> None:
    ctx.set(node.outputs[0], ctx.constant(np.array(ctx.input(node, 0).elements, np.int64)))


@lowers("Constant")
def lower_constant(ctx: Lowering, node: ir.Node) -> None:
    """Only a constant that is a graph output is still a node here."""
    (given,) = node.attributes.values()
    data = given.value.numpy() if isinstance(given.value, ir.TensorProtocol) else np.array(given.value)
    value = node.outputs[0]
    ctx.set(value, ctx.constant(data.astype(dtype_of(value))))


@lowers("ConstantOfShape")
def lower_constant_of_shape(ctx: Lowering, node: ir.Node) -> None:
    """One stored element, broadcast."""
    tensor = attribute(node, "value", None)
    element = np.zeros(1, np.float32) if tensor is None else tensor.numpy().reshape(1)
    shape = shape_of(node.outputs[0])
    view = ctx.constant(element)
    ctx.set(node.outputs[0], View(view.buffer, shape, (0,) * len(shape)))


@lowers("Range")
def lower_range(ctx: Lowering, node: ir.Node) -> None:
    """start + i · delta; the length is static, the values need not be."""
    start, delta = ctx.input(node, 0), ctx.input(node, 2)
    dtype = dtype_of(node.outputs[0])

    def entry(ops: Operands, i: Expr) -> Expr:
        step = binary("mul", cast(i, dtype), ops.load(delta, *[0] * len(delta.shape)))
        return binary("add", ops.load(start, *[0] * len(start.shape)), step)

    ctx.compute(ctx.new_for(node.outputs[0]), entry)


@lowers("ReverseSequence")
def lower_reverse_sequence(ctx: Lowering, node: ir.Node) -> None:
    """The first ``sequence_lens[b]`` steps of each batch entry in reverse, the others as they are."""
    x, lengths = ctx.input(node, 0), ctx.input(node, 1)
    batch, time = int(attribute(node, "batch_axis", 1)), int(attribute(node, "time_axis", 0))

    def moved(ops: Operands, *indices: Expr) -> Expr:
        length = as_index(ops.load(lengths, indices[batch]))
        step = indices[time]
        source = select(binary("lt", step, length), length - 1 - step, step)
        places = list(indices)
        places[time] = clamp_index(source, x.shape[time])
        return ops.load(x, *places)

    ctx.compute(ctx.new_for(node.outputs[0], x.order), moved)
