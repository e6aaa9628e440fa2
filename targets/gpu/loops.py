"""Code for :class:`edgec.program.Loops`: any loop nest, a work item for every vector of output elements.

The nest is first simplified (unit axes dropped, neighbouring axes that every index walks together merged). Vectors run
along the last output axis; where there are few outputs, along the last axis of a reduction over neighbours; else every
element is computed alone. A nest whose order matters is one work item's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import prod

import numpy as np

from edgec import scalar
from edgec.nest import coefficient, simplify
from edgec.program import Loops
from edgec.targets.gpu.emitter import Emitter
from edgec.targets.gpu.grid import group_of, groups, positions, unravelled
from edgec.targets.gpu.opencl import WIDTHS, Body, Source, Value, literal, register_type
from edgec.targets.gpu.operators import vectorises
from edgec.targets.gpu.target import GpuTarget
from edgec.targets.vectors import pieces

FEW = 256
"""A reduction to fewer outputs runs its vectors along the reduction."""

COMBINE = {"sum": "add", "prod": "mul"}
"""The binary operator of a reducer that is not called the same."""


@dataclass(frozen=True)
class LoopsPlan:
    """How a nest is emitted: along which axis (of output + reduce axes) vectors run, how wide, and the group."""

    nest: Loops
    axis: int | None
    lanes: int
    group_x: int = 0
    group_y: int = 0

    @property
    def items(self) -> tuple[int, int, int]:
        """Work items: vectors along the last output axis, the axis before it, and all others together."""
        nest = self.nest
        if nest.combine or nest.sequential or not nest.extents:
            return (1, 1, 1)
        last = len(nest.extents) - 1
        x = -(-nest.extents[last] // (self.lanes if self.axis == last else 1))
        return (x, nest.extents[last - 1] if last else 1, prod(nest.extents[: max(0, last - 1)]))


def plan(nest: Loops, target: GpuTarget) -> LoopsPlan:
    """Vectors as wide as the device loads them."""
    return candidates(nest, target)[0]


def candidates(nest: Loops, target: GpuTarget) -> list[LoopsPlan]:
    """Every width of vectors along the axis that suits them, in several work groups."""
    nest = simplify(nest)
    axis = _vector_axis(nest)
    if axis is None:
        return [LoopsPlan(nest, None, 1)]
    extent = (nest.extents + nest.reduce)[axis]
    widths = sorted((w for w in WIDTHS if w <= extent), key=lambda w: abs(w.bit_length() - target.vector.bit_length()))
    plans = [LoopsPlan(nest, axis, width) for width in widths]
    plans += [LoopsPlan(nest, None, 1)] if axis == len(nest.extents) - 1 else []
    return [replace(p, group_x=x, group_y=y) for p in plans for x, y in groups(p.items, target.work_group)]


def _vector_axis(nest: Loops) -> int | None:
    """The axis of the vectors, if they pay: that along which most is loaded and stored as neighbours."""
    last = len(nest.extents) - 1
    expressions = [nest.body, *([nest.epilogue] if nest.epilogue is not None else [])]
    if nest.combine or nest.sequential or not all(map(vectorises, [*expressions, nest.store])):
        return None
    along = len(nest.extents) + len(nest.reduce) - 1
    if nest.reduce and nest.reduce[-1] >= 2 and prod(nest.extents) < FEW and nest.body.dtype == "float32":
        steps = [coefficient(node.args[1], along) for node in scalar.loads(nest.body)]
        if all(step in (0, 1) for step in steps) and 1 in steps:
            return along
    if last < 0 or nest.extents[last] < 2 or coefficient(nest.store, last) != 1:
        return None
    steps = [coefficient(node.args[1], last) for each in expressions for node in scalar.loads(each)]
    return last if all(step in (0, 1) for step in steps) or 1 in steps else None


def generate(planned: LoopsPlan, dtypes: list[str]) -> Source:
    """The kernel: operands in order and the output last."""
    return _LoopsWriter(planned, dtypes).write()


class _LoopsWriter:
    """Emits one nest."""

    def __init__(self, planned: LoopsPlan, dtypes: Sequence[str]) -> None:
        self.plan, self.nest, self.dtypes, self.body = planned, planned.nest, dtypes, Body()
        self.output = f"p{len(dtypes) - 1}"

    def write(self) -> Source:
        group = group_of(self.plan.group_x, self.plan.group_y)
        nest = self.nest
        if nest.combine or nest.sequential:
            self._in_order({}, 0)
            return self.body.source((1, 1, 1), None)
        x, y, z = positions(self.body, self.plan.items, group)
        last = len(nest.extents) - 1
        outer = unravelled(self.body, z, nest.extents[: max(0, last - 1)])
        axes = dict(enumerate([*outer, *([y] if last > 0 else []), *([x] if last >= 0 else [])]))
        if self.plan.axis == last and last >= 0:
            self._vectors(axes, last, x)
        else:
            self._point(axes, 1)
        return self.body.source(self.plan.items, group)

    def _vectors(self, axes: dict[int, str], last: int, x: str) -> None:
        """This item's vector, or what is left at the end of the axis in ever shorter ones."""
        lanes, extent = self.plan.lanes, self.nest.extents[last]
        whole, rest = divmod(extent, lanes)
        first = self.body.index("first", f"{x} * {lanes}")
        if not rest:
            self._point({**axes, last: first}, lanes)
            return
        with self.body.block(f"if ({x} < {whole})"):
            self._point({**axes, last: first}, lanes)
        with self.body.block("else"):
            start = whole * lanes
            for width in pieces(rest, lanes):
                with self.body.block(""):
                    self._point({**axes, last: str(start)}, width)
                start += width

    def _in_order(self, axes: dict[int, str], depth: int) -> None:
        if depth == len(self.nest.extents):
            self._point(axes, 1)
            return
        with self.body.loop(self.nest.extents[depth]) as index:
            self._in_order({**axes, depth: index}, depth + 1)

    def _emitter(self, axes: dict[int, str], lanes: int, axis: int | None, acc: Value | None = None) -> Emitter:
        return Emitter(self.body, axes, self.dtypes, axis, lanes, acc)

    def _point(self, axes: dict[int, str], lanes: int) -> None:
        """Compute and store one vector of output elements."""
        nest, last = self.nest, len(self.nest.extents) - 1
        accumulated = None
        if nest.reducer is not None:
            along = self.plan.axis is not None and self.plan.axis > last
            accumulated = self._reduce_along(axes) if along else self._reduce(axes, lanes, nest.reduce)
        emitter = self._emitter(axes, lanes, last, accumulated)
        is_result = accumulated is not None and nest.epilogue is None
        value = accumulated if is_result and accumulated else emitter.vector(nest.result)
        if nest.combine is not None:
            place = emitter.offset(nest.store)[0]
            value = self._combined(nest.combine, Value(f"{self.output}[{place}]", nest.dtype), value)
        emitter.store(self.output, nest.store, Value(value.text, nest.dtype, value.lanes, value.simple))

    def _combined(self, how: str, left: Value, right: Value) -> Value:
        """A reducer's or a scatter's operator, by way of the emitter, which knows them all."""
        acc = scalar.accumulator(left.dtype)
        if left.dtype == "bool":
            return Value(f"({left.text} {'|' if how in ('max', 'sum') else '&'} {right.text})", "bool", left.lanes)
        expr = scalar.binary(COMBINE.get(how, how), acc, scalar.load(0, 0, left.dtype))
        emitter = Emitter(self.body, {}, self.dtypes, 0, left.lanes, left)
        emitter.preset(expr.args[1], right)
        return emitter(expr)

    def _start(self, lanes: int) -> Value:
        """An accumulator at the reducer's identity."""
        nest = self.nest
        name, kind = self.body.name("acc"), register_type(nest.body.dtype, lanes)
        first = literal(identity(str(nest.reducer), nest.body.dtype), nest.body.dtype)
        self.body.line(f"{kind} {name} = {first if lanes == 1 else f'({kind})({first})'};")
        return Value(name, nest.body.dtype, lanes, simple=True)

    def _take_in(self, acc: Value, axes: dict[int, str], axis: int | None) -> None:
        value = self._emitter(axes, acc.lanes, axis).vector(self.nest.body)
        value = self.body.bind("x", value)
        self.body.line(f"{acc.text} = {self._combined(str(self.nest.reducer), acc, value).text};")

    def _reduce(self, axes: dict[int, str], lanes: int, extents: Sequence[int]) -> Value:
        acc = self._start(lanes)
        self._nested(axes, extents, 0, lambda point: self._take_in(acc, point, len(self.nest.extents) - 1))
        return acc

    def _nested(
        self, axes: dict[int, str], extents: Sequence[int], depth: int, inner: Callable[[dict[int, str]], None]
    ) -> None:
        if depth == len(extents):
            inner(axes)
            return
        with self.body.loop(extents[depth]) as index:
            self._nested({**axes, len(self.nest.extents) + depth: index}, extents, depth + 1, inner)

    def _reduce_along(self, axes: dict[int, str]) -> Value:
        """Reduce with vectors along the last reduction axis; the lanes are combined at the end."""
        nest, lanes = self.nest, self.plan.lanes
        axis, extent = len(nest.extents) + len(nest.reduce) - 1, nest.reduce[-1]
        acc, rest = self._start(lanes), self._start(1)

        def row(point: dict[int, str]) -> None:
            with self.body.loop(extent // lanes * lanes, lanes) as index:
                self._take_in(acc, {**point, axis: index}, axis)
            for left in range(extent // lanes * lanes, extent):
                with self.body.block(""):
                    self._take_in(rest, {**point, axis: str(left)}, None)

        self._nested(axes, nest.reduce[:-1], 0, row)
        for lane in range(lanes):
            value = Value(f"{acc.text}.s{lane:x}", acc.dtype)
            self.body.line(f"{rest.text} = {self._combined(str(nest.reducer), rest, value).text};")
        return rest


def identity(reducer: str, dtype: str) -> float | int | bool:
    """What ``reducer`` starts from."""
    if reducer in ("sum", "prod"):
        return 0 if reducer == "sum" else 1
    if dtype == "bool":
        return reducer == "min"
    if np.dtype(dtype).kind == "f":
        return float("-inf") if reducer == "max" else float("inf")
    limits = np.iinfo(dtype)
    return int(limits.min if reducer == "max" else limits.max)


def contract(planned: LoopsPlan) -> str:
    """The kernel's name: dtype, what it does, extents, vector, work group."""
    nest = planned.nest
    shape = "x".join(map(str, nest.extents)) or "1"
    kind = nest.reducer or nest.combine or "map"
    reduce = "r" + "x".join(map(str, nest.reduce)) if nest.reduce else ""
    return f"{nest.dtype}_{kind}_{shape}{reduce}__v{planned.lanes}g{planned.group_x}x{planned.group_y}"


