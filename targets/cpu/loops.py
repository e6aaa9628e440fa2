"""Code for :class:`edgec.program.Loops`: any loop nest, vectorised along its innermost axis.

The nest is first simplified (unit axes dropped, neighbouring axes that every index walks together merged).
Then one of three shapes is emitted: vectors along the last output axis (the usual one), vectors along the
last reduction axis (a sum over contiguous elements), or plain scalars.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from edgec import scalar
from edgec.building.lazy_tvm import tirx
from edgec.nest import coefficient, looked_up, simplify
from edgec.program import Loops
from edgec.targets.cpu import math
from edgec.targets.cpu.tir import Emitter, Kernel, Special, lanes_of, nothing_special, storage, vector_store, widen
from edgec.targets.target import Target
from edgec.targets.vectors import pieces

ACCUMULATORS = 4
"""Vectors of a reduction that are in flight at once."""


def identity(reducer: str, dtype: str) -> float | int | bool:
    """What ``reducer`` starts from."""
    if reducer in ("sum", "prod"):
        return 0 if reducer == "sum" else 1
    if dtype == "bool":
        return reducer == "min"
    kind = np.dtype(dtype)
    if kind.kind == "f":
        return float("-inf") if reducer == "max" else float("inf")
    limits = np.iinfo(kind)
    return int(limits.min if reducer == "max" else limits.max)


COMBINE = {"sum": "add", "prod": "mul", "max": "max", "min": "min", "add": "add", "mul": "mul"}
"""The binary operator of each reducer and of each ``Loops.combine``."""


@dataclass(frozen=True)
class LoopsPlan:
    """How a nest is emitted: along which axis (index into output+reduce axes) vectors run, and how wide.

    ``order`` lists the output axes from the outermost loop to the innermost.
    """

    nest: Loops
    vector_axis: int | None
    lanes: int
    order: tuple[int, ...] = ()


def plan(nest: Loops, target: Target) -> LoopsPlan:
    """Choose the vector axis."""
    nest = simplify(nest)
    lanes = target.lanes(_widest(nest))
    last = len(nest.extents) - 1
    order = tuple(range(last + 1))
    if nest.sequential or nest.combine:
        return LoopsPlan(nest, None, 1, order)
    if _vectorises(nest, last):
        return LoopsPlan(nest, last, min(lanes, _power_of_two(nest.extents[last])), _loop_order(nest))
    if nest.reduce and nest.reduce[-1] >= lanes and nest.reducer in COMBINE:
        axis = len(nest.extents) + len(nest.reduce) - 1
        steps = [coefficient(node.args[1], axis) for node in scalar.loads(nest.body)]
        if all(step in (0, 1) for step in steps) and 1 in steps:
            return LoopsPlan(nest, axis, lanes, order)
    return LoopsPlan(nest, None, 1, order)


def _loop_order(nest: Loops) -> tuple[int, ...]:
    """The axes in order, but for a transposition: there the vectors, which gather, walk outside the axis along
    which the source is contiguous, so that the lines they touch are used up while they are in the cache."""
    last = len(nest.extents) - 1
    order = list(range(last + 1))
    reads = [node.args[1] for node in scalar.loads(nest.body)]
    gathers = [read for read in reads if coefficient(read, last) not in (0, 1)]
    for axis in range(last):
        if nest.reducer is None and any(coefficient(read, axis) == 1 for read in gathers):
            order.insert(axis, order.pop())
            break
    return tuple(order)


def _vectorises(nest: Loops, axis: int) -> bool:
    """Whether vectors along output axis ``axis`` mostly load and store neighbours."""
    if axis < 0 or nest.extents[axis] < 2 or coefficient(nest.store, axis) != 1:
        return False
    found = scalar.loads(nest.body) + (scalar.loads(nest.epilogue) if nest.epilogue else [])
    steps = [coefficient(node.args[1], axis) for node in found if looked_up(node) is None]
    # a gather costs as much as scalars do; a reduction over contiguous elements is better the other way
    if nest.reduce and any(step not in (0, 1) for step in steps):
        return False
    return all(step is not None for step in steps)


def _widest(nest: Loops) -> int:
    sizes = [np.dtype(nest.dtype).itemsize]
    for expr in (nest.body, nest.epilogue):
        if expr is not None:
            sizes += [np.dtype(n.dtype).itemsize for n in scalar.walk(expr) if n.dtype != scalar.INDEX]
    return max(sizes)


def _power_of_two(extent: int) -> int:
    return 1 << (extent.bit_length() - 1)


def generate(planned: LoopsPlan, dtypes: list[str], special: Special = nothing_special) -> Any:
    """The kernel: operands in order and the output last, as ``tirx.PrimFunc``; see :data:`.tir.Special`."""
    kernel = Kernel(dtypes, special)
    _LoopsWriter(planned, kernel).write()
    return kernel.function()


class _LoopsWriter:
    """Emits one nest, axis by axis."""

    def __init__(self, planned: LoopsPlan, kernel: Kernel) -> None:
        self.nest, self.kernel, self.body = planned.nest, kernel, kernel.body
        self.vector_axis, self.lanes, self.order = planned.vector_axis, planned.lanes, planned.order
        self.operands, self.output = kernel.buffers[:-1], kernel.buffers[-1]

    def write(self) -> None:
        self._axis(0, {}, 1, 1)

    def _axis(self, depth: int, axes: dict[int, Any], lanes: int, vectors: int) -> None:
        """Open the loop ``depth`` of the order, or compute the point when all are open."""
        if depth == len(self.order):
            self._point(axes, lanes, vectors)
            return
        axis = self.order[depth]
        if axis == self.vector_axis:
            self._vector_loop(depth, axes)
            return
        start, count = self._share(depth, self.nest.extents[axis])
        with self.body.loop(count, start) as index:
            self._axis(depth + 1, {**axes, axis: index}, lanes, vectors)

    def _share(self, depth: int, extent: int) -> tuple[Any, Any]:
        """The iterations of a loop: the outermost one is split among the threads."""
        return (0, extent) if depth or not self.parallel else self.kernel.share(extent)

    @property
    def parallel(self) -> bool:
        return is_parallel(self.nest)

    def _vector_loop(self, depth: int, axes: dict[int, Any]) -> None:
        axis = self.order[depth]
        extent, start = self.nest.extents[axis], 0
        vectors = ACCUMULATORS if self.nest.reduce else 1
        width = self.lanes * vectors
        whole = extent // width
        if whole:
            first, count = self._share(depth, whole)
            with self.body.loop(count, first) as block:
                self._axis(depth + 1, {**axes, axis: block * width}, self.lanes, vectors)
            start = whole * width
        if start < extent:
            self._tail(depth, axes, start)

    def _tail(self, depth: int, axes: dict[int, Any], start: int) -> None:
        """What is left of the vector axis, in ever shorter vectors, on the last thread."""
        if depth == 0 and self.parallel:
            with self.body.when(tirx.EQ(self.kernel.thread, self.kernel.threads - 1)):
                self._chunks(depth, axes, start)
        else:
            self._chunks(depth, axes, start)

    def _chunks(self, depth: int, axes: dict[int, Any], start: int) -> None:
        axis, lanes = self.order[depth], self.lanes
        extent = self.nest.extents[axis]
        while start < extent:
            while lanes > extent - start:
                lanes //= 2
            self._axis(depth + 1, {**axes, axis: tirx.const(start, "int32")}, lanes, 1)
            start += lanes

    def _point(self, axes: dict[int, Any], lanes: int, vectors: int) -> None:
        """Compute and store ``vectors`` vectors of ``lanes`` output elements."""
        if self.nest.reducer is None:
            self._store(axes, lanes, None)
            return
        if self.vector_axis is not None and self.vector_axis >= len(self.nest.extents):
            self._store(axes, 1, self._reduce_along_vector(axes))
            return
        accumulators = self._reduce(axes, lanes, vectors)
        for index in range(vectors):
            value = tirx.BufferLoad(accumulators, [self._slot(index, lanes)])
            self._store(self._shifted(axes, index * lanes), lanes, value)

    def _shifted(self, axes: dict[int, Any], by: int) -> dict[int, Any]:
        if self.vector_axis is None or not by:
            return axes
        return {**axes, self.vector_axis: axes[self.vector_axis] + by}

    def _slot(self, index: int, lanes: int) -> Any:
        return self._lanes_at(index * lanes, lanes)

    def _lanes_at(self, first: int, lanes: int) -> Any:
        """The index of ``lanes`` neighbours from ``first`` on."""
        start = tirx.const(first, "int32")
        return start if lanes == 1 else tirx.Ramp(start, tirx.const(1, "int32"), lanes)

    def _start(self, lanes: int, vectors: int) -> Any:
        """Accumulators at the reducer's identity."""
        dtype = self.nest.body.dtype
        buffer = self.body.local(storage(dtype), lanes * vectors)
        start = tirx.const(identity(str(self.nest.reducer), dtype), storage(dtype))
        for index in range(vectors):
            value = widen(start, lanes)
            self.body.emit(tirx.stmt.BufferStore(buffer, value, [self._slot(index, lanes)]))
        return buffer

    def _accumulate(self, buffer: Any, slot: Any, value: Any) -> None:
        combined = self._combined(str(self.nest.reducer), tirx.BufferLoad(buffer, [slot]), value)
        self.body.emit(tirx.stmt.BufferStore(buffer, combined, [slot]))

    def _combined(self, how: str, left: Any, right: Any) -> Any:
        return math.apply(COMBINE[how], [left, right], "", self.body.hold)

    def _reduce(self, axes: dict[int, Any], lanes: int, vectors: int) -> Any:
        buffer = self._start(lanes, vectors)
        self._reduce_axis(0, axes, lambda point: self._take_in(buffer, point, lanes, vectors))
        return buffer

    def _take_in(self, buffer: Any, axes: dict[int, Any], lanes: int, vectors: int) -> None:
        for index in range(vectors):
            point = self._shifted(axes, index * lanes)
            emitter = Emitter(self.body, self.operands, point, self.vector_axis, lanes)
            value = self._in_memory(emitter.vector(self.nest.body))
            self._accumulate(buffer, self._slot(index, lanes), value)

    def _in_memory(self, value: Any) -> Any:
        if str(value.ty.dtype).startswith("bool"):
            return tirx.Cast(math.vector_type("uint8", value), value)
        return value

    def _reduce_axis(self, depth: int, axes: dict[int, Any], inner: Any) -> None:
        if depth == len(self.nest.reduce):
            inner(axes)
            return
        with self.body.loop(self.nest.reduce[depth]) as index:
            self._reduce_axis(depth + 1, {**axes, len(self.nest.extents) + depth: index}, inner)

    def _reduce_along_vector(self, axes: dict[int, Any]) -> Any:
        """Reduce with vectors along the last reduction axis; the lanes are combined at the end."""
        lanes, extent = self.lanes, self.nest.reduce[-1]
        vectors = max(v for v in (1, 2, 4) if v * lanes <= extent)
        buffer = self._start(lanes, vectors)
        short = [width for width in pieces(extent % (lanes * vectors), lanes) if width < lanes]
        tails = {width: self._start(width, 1) for width in short}
        self._reduce_rows(0, axes, buffer, tails, vectors)
        return self._fold_lanes(buffer, lanes * vectors, tails)

    def _reduce_rows(self, depth: int, axes: dict[int, Any], buffer: Any, tails: dict[int, Any], vectors: int) -> None:
        axis = len(self.nest.extents) + depth
        if depth < len(self.nest.reduce) - 1:
            with self.body.loop(self.nest.reduce[depth]) as index:
                self._reduce_rows(depth + 1, {**axes, axis: index}, buffer, tails, vectors)
            return
        width, extent = self.lanes * vectors, self.nest.reduce[depth]
        with self.body.loop(extent // width) as block:
            self._take_in(buffer, {**axes, axis: block * width}, self.lanes, vectors)
        start = extent - extent % width
        self._take_in(buffer, {**axes, axis: tirx.const(start, "int32")}, self.lanes, extent % width // self.lanes)
        start = extent - extent % self.lanes
        for lanes, tail in tails.items():
            self._take_in(tail, {**axes, axis: tirx.const(start, "int32")}, lanes, 1)
            start += lanes

    def _fold_lanes(self, buffer: Any, count: int, tails: dict[int, Any]) -> Any:
        """Combine ``count`` accumulators (a power of two) and the tails, then halve them, as wide as they are."""
        for lanes, tail in tails.items():
            self._accumulate(buffer, self._lanes_at(0, lanes), tirx.BufferLoad(tail, [self._lanes_at(0, lanes)]))
        half = count // 2
        while half:
            width = min(self.lanes, half)
            for first in range(0, half, width):
                other = tirx.BufferLoad(buffer, [self._lanes_at(half + first, width)])
                self._accumulate(buffer, self._lanes_at(first, width), other)
            half //= 2
        return tirx.BufferLoad(buffer, [self._lanes_at(0, 1)])

    def _store(self, axes: dict[int, Any], lanes: int, accumulated: Any) -> None:
        reduced_bool = accumulated is not None and self.nest.body.dtype == "bool"
        if reduced_bool:
            accumulated = tirx.NE(accumulated, math.constant(0, accumulated))
        emitter = Emitter(self.body, self.operands, axes, self.vector_axis, lanes, accumulated)
        if self.nest.reducer is not None and self.nest.epilogue is None:
            value = widen(accumulated, lanes)
        else:
            value = emitter.vector(self.nest.result)
        offset, step = emitter.offset(self.nest.store)
        if self.nest.combine is not None:
            value = self._combined(self.nest.combine, tirx.BufferLoad(self.output, [offset]), value)
        assert lanes_of(value) == lanes
        self.body.emit(vector_store(self.output, self._in_memory(value), offset, step or 1))


def is_parallel(nest: Loops) -> bool:
    """Whether threads may share the nest."""
    return nest.combine is None and not nest.sequential and prod(nest.extents) > 1


def contract(planned: LoopsPlan) -> str:
    """The kernel's name: dtype, what it does, extents, vector."""
    nest = planned.nest
    shape = "x".join(map(str, nest.extents)) or "1"
    kind = nest.reducer or nest.combine or "map"
    reduce = "r" + "x".join(map(str, nest.reduce)) if nest.reduce else ""
    return f"{nest.dtype}_{kind}_{shape}{reduce}__v{planned.lanes}"
