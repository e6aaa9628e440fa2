"""Operators that read or write where their inputs say: gathers, scatters, ranks, running sums."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod

import numpy as np
import onnx_ir as ir

from edgec.lowering.context import Lowering, Operands, array_of, attribute, dtype_of, lowers, refuse, shape_of
from edgec.lowering.elementwise import as_index
from edgec.lowering.movement import axis_of, frame
from edgec.program import CONSTANT, View
from edgec.scalar import INDEX, Expr, binary, cast, clamp_index, const, select, unary

LARGEST_RANKING = 1 << 28
"""Comparisons up to which TopK ranks every element against every other; about a tenth of a second."""


def wrapped(index: Expr, extent: int) -> Expr:
    """An ONNX index as a place in [0, extent): negative ones count from the end; never outside."""
    if index.op == "const":
        return const(min(max(index.args[0] + extent * (index.args[0] < 0), 0), extent - 1), INDEX)
    index = as_index(index)
    return clamp_index(select(binary("lt", index, const(0, INDEX)), index + extent, index), extent)


# ---- gathers ------------------------------------------------------------------------------------------------


@lowers("Gather")
def lower_gather(ctx: Lowering, node: ir.Node) -> None:
    """data with one axis replaced by the axes of the indices; evenly spaced constant indices are a slice."""
    data, indices = ctx.input(node, 0), ctx.input(node, 1)
    axis, value = axis_of(node, len(data.shape)), node.outputs[0]
    if indices.buffer.space == CONSTANT:
        places = np.asarray(array_of(indices))
        places = np.clip(np.where(places < 0, places + data.shape[axis], places), 0, data.shape[axis] - 1)
        if _evenly_spaced(places):
            ctx.set(value, _sliced_axis(data, axis, places))
            return
        indices = ctx.constant(places.astype(np.int32), "indices")
    rank = len(indices.shape)

    def gathered(ops: Operands, *i: Expr) -> Expr:
        index = ops.load(indices, *i[axis : axis + rank])
        known = indices.buffer.space == CONSTANT
        place = clamp_index(index, data.shape[axis]) if known else wrapped(index, data.shape[axis])
        return ops.load(data, *i[:axis], place, *i[axis + rank :])

    ctx.compute(ctx.new_for(value, _gathered_order(data, axis, rank)), gathered)


def _evenly_spaced(places: np.ndarray) -> bool:
    """Whether places along at most one axis are each as far from the one before."""
    return places.ndim <= 1 and places.size > 0 and len(set(np.diff(places.reshape(-1)).tolist())) <= 1


def _sliced_axis(data: View, axis: int, places: np.ndarray) -> View:
    """``data`` with ``axis`` replaced by the axes of evenly spaced ``places``: none, or one."""
    start, *others = places.reshape(-1).tolist()
    step = others[0] - start if others else 0
    stride = data.strides[axis]
    strides = (*data.strides[:axis], *(stride * step for _ in places.shape), *data.strides[axis + 1 :])
    extents = (*data.shape[:axis], *places.shape, *data.shape[axis + 1 :])
    return View(data.buffer, extents, strides, data.offset + start * stride)


def _gathered_order(data: View, axis: int, rank: int) -> tuple[int, ...]:
    """The memory order of ``data``, the axes of the indices in the place of ``axis``."""
    order: list[int] = []
    for old in data.order:
        if old == axis:
            order += range(axis, axis + rank)
        else:
            order.append(old if old < axis else old - 1 + rank)
    return tuple(order)


@lowers("GatherElements")
def lower_gather_elements(ctx: Lowering, node: ir.Node) -> None:
    """out[i, j, k] = data[i, indices[i, j, k], k] for axis 1."""
    data, indices = ctx.input(node, 0), ctx.input(node, 1)
    axis = axis_of(node, len(data.shape))

    def gathered(ops: Operands, *i: Expr) -> Expr:
        places = list(i)
        places[axis] = wrapped(ops.load(indices, *i), data.shape[axis])
        return ops.load(data, *places)

    ctx.compute(ctx.new_for(node.outputs[0], data.order), gathered)


@lowers("GatherND")
def lower_gather_nd(ctx: Lowering, node: ir.Node) -> None:
    """The last axis of the indices holds places along the axes of data that follow the batch axes."""
    data, indices = ctx.input(node, 0), ctx.input(node, 1)
    batch, outer = int(attribute(node, "batch_dims", 0)), len(indices.shape) - 1

    def gathered(ops: Operands, *i: Expr) -> Expr:
        places = _tuple_at(ops, indices, i[:outer], data.shape[batch:])
        return ops.load(data, *i[:batch], *places, *i[outer:])

    ctx.compute(ctx.new_for(node.outputs[0]), gathered)


def _tuple_at(ops: Operands, indices: View, at: Sequence[Expr], extents: Sequence[int]) -> list[Expr]:
    """The index tuple along the last axis of ``indices``, each place inside its extent."""
    count = indices.shape[-1]
    return [wrapped(ops.load(indices, *at, k), extents[k]) for k in range(count)]


# ---- scatters -----------------------------------------------------------------------------------------------


_COMBINE = {"none": None, "add": "add", "mul": "mul", "max": "max", "min": "min"}


def _scatter(
    ctx: Lowering,
    node: ir.Node,
    data: View,
    updates: View,
    place: Callable[..., Sequence[Expr]],
) -> None:
    """A copy of ``data`` in which each of ``updates`` is stored at (or combined with) ``place`` of its index."""
    out = ctx.copy(data, ctx.new_for(node.outputs[0], data.order))
    reduction = str(attribute(node, "reduction", "none"))
    ctx.compute(
        out,
        lambda ops, *i: ops.load(updates, *i),
        extents=updates.shape,
        order=range(len(updates.shape)),
        store=lambda ops, *i: out.at(*place(ops, *i)),
        combine=_COMBINE[reduction],
        sequential=True,
    )


@lowers("ScatterElements")
def lower_scatter_elements(ctx: Lowering, node: ir.Node) -> None:
    """out[i, indices[i, j, k], k] (op)= updates[i, j, k] for axis 1."""
    data, indices, updates = (ctx.input(node, i) for i in range(3))
    axis = axis_of(node, len(data.shape))

    def place(ops: Operands, *i: Expr) -> list[Expr]:
        places = list(i)
        places[axis] = wrapped(ops.load(indices, *i), data.shape[axis])
        return places

    _scatter(ctx, node, data, updates, place)


@lowers("ScatterND")
def lower_scatter_nd(ctx: Lowering, node: ir.Node) -> None:
    """out[indices[i…]] (op)= updates[i…], where the last axis of the indices holds a tuple of places."""
    data, indices, updates = (ctx.input(node, i) for i in range(3))
    outer = len(indices.shape) - 1

    def place(ops: Operands, *i: Expr) -> list[Expr]:
        return [*_tuple_at(ops, indices, i[:outer], data.shape), *i[outer:]]

    _scatter(ctx, node, data, updates, place)


@lowers("TensorScatter")
def lower_tensor_scatter(ctx: Lowering, node: ir.Node) -> None:
    """A cache updated from ``write_indices[batch]`` on, along the sequence axis; circular ones wrap around."""
    data, updates, starts = ctx.input(node, 0), ctx.input(node, 1), ctx.optional(node, 2)
    axis = axis_of(node, len(data.shape), -2)
    extent = data.shape[axis]
    circular = str(attribute(node, "mode", "linear")) == "circular"

    def place(ops: Operands, *i: Expr) -> list[Expr]:
        places = list(i)
        if starts is not None:
            step = as_index(ops.load(starts, i[0])) + i[axis]
            places[axis] = step % extent if circular else clamp_index(step, extent)
        return places

    _scatter(ctx, node, data, updates, place)


# ---- one-hot, arg, rank -------------------------------------------------------------------------------------


@lowers("OneHot")
def lower_one_hot(ctx: Lowering, node: ir.Node) -> None:
    """values[1] where the new axis equals the index, values[0] elsewhere; indices outside hit nothing."""
    indices, values = ctx.input(node, 0), ctx.input(node, 2)
    value = node.outputs[0]
    axis = axis_of(node, len(shape_of(value)), -1)
    depth = shape_of(value)[axis]

    def entry(ops: Operands, *i: Expr) -> Expr:
        index = cast(ops.load(indices, *i[:axis], *i[axis + 1 :]), "int64")
        from_end = binary("add", index, const(depth, "int64"))
        place = select(binary("lt", index, const(0, "int64")), from_end, index)
        hit = binary("eq", place, cast(i[axis], "int64"))
        return select(hit, ops.load(values, 1), ops.load(values, 0))

    ctx.compute(ctx.new_for(value), entry)


@lowers("ArgMax", "ArgMin")
def lower_arg(ctx: Lowering, node: ir.Node) -> None:
    """The extreme value first, then the first (or last) place that holds it; NaN counts as extreme."""
    x, value = ctx.input(node, 0), node.outputs[0]
    axis = axis_of(node, len(x.shape))
    extent, last = x.shape[axis], bool(attribute(node, "select_last_index", 0))
    order = [a for a in x.order if a != axis] + [axis]
    kept = tuple(1 if a == axis else e for a, e in enumerate(x.shape))
    reducer = "max" if node.op_type == "ArgMax" else "min"

    def element(ops: Operands, *i: Expr) -> Expr:
        return ops.load(x, *_replaced(i[:-1], axis, i[-1]))

    best = ctx.compute(ctx.new(kept, x.dtype, order), element, reduce=(extent,), reducer=reducer)

    def place(ops: Operands, *i: Expr) -> Expr:
        found = element(ops, *i)
        hit = binary("eq", found, ops.load(best, *i[:-1]))
        if x.dtype.startswith("float"):
            hit = binary("or", hit, unary("isnan", found))
        return select(hit, i[-1], const(-1 if last else extent, INDEX))

    out = ctx.new(kept, dtype_of(value), order, str(value.name))
    ctx.compute(
        out, place, reduce=(extent,), reducer="max" if last else "min",
        epilogue=lambda ops, acc, *i: cast(acc, out.dtype),
    )  # fmt: skip
    ctx.set(value, ctx.reshape(out, shape_of(value)))


def _replaced(indices: Sequence[Expr], axis: int, index: Expr) -> list[Expr]:
    """``indices`` with another one for ``axis``."""
    return [index if a == axis else i for a, i in enumerate(indices)]


@lowers("TopK")
def lower_top_k(ctx: Lowering, node: ir.Node) -> None:
    """Each element is ranked by counting those before it, then stored at its rank; the rest goes to one spare
    slot. Ties go to the smaller index; NaN counts as the largest value."""
    x = ctx.input(node, 0)
    axis = axis_of(node, len(x.shape), -1)
    count, extent = shape_of(node.outputs[0])[axis], x.shape[axis]
    if x.elements * extent > LARGEST_RANKING:
        refuse(
            f"TopK over {extent} elements in {x.elements // max(extent, 1)} rows is too large to rank by counting",
            "reduce the number of candidates before it",
        )
    largest = bool(attribute(node, "largest", 1))

    def before(ops: Operands, *i: Expr) -> Expr:
        other, own = ops.load(x, *_replaced(i[:-1], axis, i[-1])), ops.load(x, *i[:-1])
        ahead, tied = _ahead(other, own, largest)
        return cast(binary("or", ahead, binary("and", tied, binary("lt", i[-1], i[axis]))), INDEX)

    rank = ctx.compute(ctx.new(x.shape, INDEX, x.order), before, reduce=(extent,), reducer="sum")
    for value, own in zip(node.outputs, (None, axis), strict=False):
        if value.name:
            _at_ranks(ctx, value, x, rank, axis, count, own)


def _ahead(other: Expr, own: Expr, largest: bool) -> tuple[Expr, Expr]:
    """Whether ``other`` ranks before ``own``, and whether the two tie."""
    ahead, tied = binary("gt" if largest else "lt", other, own), binary("eq", other, own)
    if other.dtype.startswith("float"):
        others, owns = unary("isnan", other), unary("isnan", own)
        first, second = (others, owns) if largest else (owns, others)
        ahead = binary("or", ahead, binary("and", first, unary("not", second)))
        tied = binary("or", tied, binary("and", others, owns))
    return ahead, tied


def _at_ranks(
    ctx: Lowering, value: ir.Value, x: View, rank: View, axis: int, count: int, index_axis: int | None
) -> None:
    """Store elements (or their indices along ``index_axis``) at their ranks below ``count``."""
    slots = tuple(count + 1 if a == axis else e for a, e in enumerate(x.shape))
    out = ctx.new(slots, dtype_of(value), x.order, str(value.name))
    ctx.compute(
        out,
        lambda ops, *i: ops.load(x, *i) if index_axis is None else cast(i[index_axis], out.dtype),
        extents=x.shape,
        order=x.order,
        store=lambda ops, *i: out.at(*_replaced(i, axis, clamp_index(ops.load(rank, *i), count + 1))),
        sequential=True,
    )
    ctx.set(value, out.slice([0] * len(slots), shape_of(value)))


# ---- running sums -------------------------------------------------------------------------------------------


@lowers("CumSum", "CumProd")
def lower_scan(ctx: Lowering, node: ir.Node) -> None:
    """Running sum or product in log₂(n) rounds: each adds what stands 2^k places before (Hillis & Steele,
    "Data parallel algorithms", 1986). Backwards is forwards on the reversed view."""
    x, value = ctx.input(node, 0), node.outputs[0]
    given = ctx.known(node, 1, "axis")
    assert given is not None
    axis = int(given.reshape(-1)[0]) % len(x.shape)
    reverse = bool(attribute(node, "reverse", 0))
    op = "add" if node.op_type == "CumSum" else "mul"
    neutral = const(0 if op == "add" else 1, x.dtype)
    total = _reversed(x, axis) if reverse else x
    if attribute(node, "exclusive", 0):
        total = _shift_in(ctx, total, axis, neutral)
    step = 1
    while step < x.shape[axis]:
        total = _scan_round(ctx, total, axis, step, op, neutral)
        step *= 2
    ctx.set(value, _reversed(total, axis) if reverse else total)


def _reversed(view: View, axis: int) -> View:
    starts = [extent - 1 if a == axis and extent else 0 for a, extent in enumerate(view.shape)]
    return view.slice(starts, view.shape, [-1 if a == axis else 1 for a in range(len(view.shape))])


def _earlier(ops: Operands, view: View, indices: Sequence[Expr], axis: int, step: int, neutral: Expr) -> Expr:
    """The element ``step`` places before, ``neutral`` where there is none."""
    source = indices[axis] - step
    value = ops.load(view, *_replaced(indices, axis, clamp_index(source, view.shape[axis])))
    return select(binary("ge", source, const(0, INDEX)), value, neutral)


def _shift_in(ctx: Lowering, x: View, axis: int, neutral: Expr) -> View:
    out = ctx.new(x.shape, x.dtype, x.order)
    return ctx.compute(out, lambda ops, *i: _earlier(ops, x, i, axis, 1, neutral))


def _scan_round(ctx: Lowering, x: View, axis: int, step: int, op: str, neutral: Expr) -> View:
    out = ctx.new(x.shape, x.dtype, x.order)
    return ctx.compute(out, lambda ops, *i: binary(op, ops.load(x, *i), _earlier(ops, x, i, axis, step, neutral)))


@lowers("MaxUnpool")
def lower_max_unpool(ctx: Lowering, node: ir.Node) -> None:
    """Each pooled maximum back at the place (in the flat tensor) that MaxPool has noted, zeros elsewhere."""
    x, places, value = ctx.input(node, 0), ctx.input(node, 1), node.outputs[0]
    inner = _unpooled_shape(node, x.shape)
    pooled = prod(inner)
    out = ctx.new(inner, x.dtype)
    zero = const(0, x.dtype)
    ctx.compute(out, lambda ops, *_: zero)
    ctx.compute(
        out,
        lambda ops, *i: ops.load(x, *i),
        extents=x.shape,
        order=range(len(x.shape)),
        store=lambda ops, *i: clamp_index(as_index(ops.load(places, *i)), pooled),
        sequential=True,
    )
    frame(ctx, value, out, [0] * len(inner), ctx.constant(np.zeros(1, x.dtype)))


def _unpooled_shape(node: ir.Node, shape: tuple[int, ...]) -> tuple[int, ...]:
    """(extent − 1) · stride + kernel − pads along each spatial axis."""
    kernel = attribute(node, "kernel_shape", None)
    rank = len(kernel)
    strides, pads = attribute(node, "strides", [1] * rank), attribute(node, "pads", [0] * (2 * rank))
    spatial = ((extent - 1) * strides[a] + kernel[a] - pads[a] - pads[a + rank] for a, extent in enumerate(shape[2:]))
    return (*shape[:2], *spatial)
