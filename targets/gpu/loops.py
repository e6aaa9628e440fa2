"""Code for :class:`edgec.program.Loops`: any loop nest, a work item for every vector of output elements.

The nest is first simplified (unit axes dropped, neighbouring axes that every index walks together merged). Vectors run
along the last output axis; where there are few outputs, along the last axis of a reduction over neighbours; else every
element is computed alone. A reduction to so few outputs that the device would be idle is shared by a team of items. A
nest whose order matters is one work item's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
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
from edgec.targets.gpu.team import ACCUMULATOR_BYTES, Team, side_by_side, sizes
from edgec.targets.vectors import pieces

FEW = 256
"""A reduction to fewer outputs runs its vectors along the reduction."""

COMBINE = {"sum": "add", "prod": "mul"}
"""The binary operator of a reducer that is not called the same."""


@dataclass(frozen=True)
class LoopsPlan:
    """How a nest is emitted: along which axis (of output + reduce axes) vectors run, how wide, how many items share a
    reduction, and the group, along whose first axis a team lies."""

    nest: Loops
    axis: int | None
    lanes: int
    team: int = 1
    group_x: int = 0
    group_y: int = 0

    @property
    def along(self) -> bool:
        """Whether the vectors run along a reduction."""
        return self.axis is not None and self.axis >= len(self.nest.extents)

    @property
    def group(self) -> tuple[int, int, int] | None:
        """The work group."""
        return (self.team, self.group_y, 1) if self.team > 1 else group_of(self.group_x, self.group_y)

    @property
    def shared(self) -> int:
        """The reduction loop that a team shares: that with the most steps."""
        return max(range(len(self.nest.reduce)), key=self.steps)

    def steps(self, loop: int) -> int:
        """Steps of a reduction loop."""
        wide = self.along and loop == len(self.nest.reduce) - 1
        return self.nest.reduce[loop] // self.lanes if wide else self.nest.reduce[loop]

    @property
    def items(self) -> tuple[int, int, int]:
        """Work items: vectors along the last output axis, the axis before it, and all others together."""
        nest = self.nest
        if nest.combine or nest.sequential or not nest.extents:
            return (self.team, 1, 1)
        last = len(nest.extents) - 1
        x = -(-nest.extents[last] // (self.lanes if self.axis == last else 1)) * self.team
        return (x, nest.extents[last - 1] if last else 1, prod(nest.extents[: max(0, last - 1)]))


def plan(nest: Loops, target: GpuTarget) -> LoopsPlan:
    """Vectors as wide as the device loads them."""
    return candidates(nest, target)[0]


def candidates(nest: Loops, target: GpuTarget) -> list[LoopsPlan]:
    """Every width of vectors along the axis that suits them, in several work groups."""
    nest = simplify(nest)
    axis = _vector_axis(nest)
    if axis is None:
        return [p for _, p in sorted(_shared([LoopsPlan(nest, None, 1)], target), key=lambda each: each[0])]
    extent = (nest.extents + nest.reduce)[axis]
    widths = sorted((w for w in WIDTHS if w <= extent), key=lambda w: abs(w.bit_length() - target.vector.bit_length()))
    plans = [LoopsPlan(nest, axis, width) for width in widths]
    plans += [LoopsPlan(nest, None, 1)] if axis == len(nest.extents) - 1 else []
    return [p for _, p in sorted(_shared(plans, target), key=lambda each: each[0])]


def _shared(plans: Sequence[LoopsPlan], target: GpuTarget) -> Iterator[tuple[int, LoopsPlan]]:
    """``plans`` with every team and group, and how far each is from the first choice."""
    for place, plan in enumerate(plans):
        terms = plan.steps(plan.shared) if _may_share(plan) else 0
        for rank, team in enumerate(sizes(target, plan.items, terms, plan.lanes)):
            if team > 1:
                for more, y in enumerate(side_by_side(target, team, plan.lanes, plan.items[1])):
                    yield 2 * rank + place + more, replace(plan, team=team, group_y=y)
                continue
            choices = groups(plan.items, target.work_group) if plan.axis is not None else [(0, 0)]
            for last, (x, y) in enumerate(choices):
                yield 2 * rank + place + last, replace(plan, group_x=x, group_y=y)


def _may_share(plan: LoopsPlan) -> bool:
    """Whether a team could share the reductions. Ends of rows would put its barriers into branches."""
    nest = plan.nest
    reduces = bool(nest.reducer and nest.reduce) and not nest.sequential and not nest.combine
    narrow = np.dtype(nest.body.dtype).itemsize <= ACCUMULATOR_BYTES
    return reduces and narrow and (plan.along or plan.axis is None or nest.extents[-1] % plan.lanes == 0)


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
        self.team: Team | None = None

    def write(self) -> Source:
        nest, team = self.nest, self.plan.team
        if nest.combine or nest.sequential:
            self._in_order({}, 0)
            return self.body.source((1, 1, 1), None)
        x, y, z = positions(self.body, self.plan.items, self.plan.group)
        if team > 1:
            self.team = Team(self.body, nest.body.dtype, team, self.plan.group_y, self.plan.lanes)
            x = self.body.index("part", f"{x} / {team}")
        last = len(nest.extents) - 1
        outer = unravelled(self.body, z, nest.extents[: max(0, last - 1)])
        axes = dict(enumerate([*outer, *([y] if last > 0 else []), *([x] if last >= 0 else [])]))
        if self.plan.axis == last and last >= 0:
            self._vectors(axes, last, x)
        else:
            self._point(axes, 1)
        return self.body.source(self.plan.items, self.plan.group)

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
            accumulated = self._reduce_along(axes) if self.plan.along else self._reduce(axes, lanes, nest.reduce)
        emitter = self._emitter(axes, lanes, last, accumulated)
        is_result = accumulated is not None and nest.epilogue is None
        if self.team is not None:
            with self.body.block(f"if ({self.team.member} == 0)"):
                self._finish(emitter, accumulated if is_result else None)
        else:
            self._finish(emitter, accumulated if is_result else None)

    def _finish(self, emitter: Emitter, result: Value | None) -> None:
        """Store what a point comes to: ``result``, or what is made of the reduction."""
        nest = self.nest
        value = result or emitter.vector(nest.result)
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
        self._together(acc)
        return acc

    def _together(self, acc: Value) -> None:
        """What a team's members have summed up."""
        if self.team is not None:
            reducer = str(self.nest.reducer)
            self.team.combine([acc], lambda one, other: self._combined(reducer, one, other).text)

    def _nested(
        self, axes: dict[int, str], extents: Sequence[int], depth: int, inner: Callable[[dict[int, str]], None]
    ) -> None:
        if depth == len(extents):
            inner(axes)
            return
        first, step = self._part(depth, 1)
        with self.body.loop(extents[depth], step, first) as index:
            self._nested({**axes, len(self.nest.extents) + depth: index}, extents, depth + 1, inner)

    def _part(self, loop: int, lanes: int) -> tuple[str, int]:
        """Where this item begins in a reduction loop, and how far it goes at once, of ``lanes`` each step."""
        if self.team is None or loop != self.plan.shared:
            return "0", lanes
        return f"{self.team.member} * {lanes}", lanes * self.team.size

    def _reduce_along(self, axes: dict[int, str]) -> Value:
        """Reduce with vectors along the last reduction axis; the lanes are combined at the end."""
        nest, lanes = self.nest, self.plan.lanes
        axis, extent = len(nest.extents) + len(nest.reduce) - 1, nest.reduce[-1]
        acc, rest = self._start(lanes), self._start(1)

        def row(point: dict[int, str]) -> None:
            first, step = self._part(len(nest.reduce) - 1, lanes)
            with self.body.loop(extent // lanes * lanes, step, first) as index:
                self._take_in(acc, {**point, axis: index}, axis)
            if extent % lanes and first != "0":
                with self.body.block(f"if ({first} == 0)"):
                    ends(point)
            else:
                ends(point)

        def ends(point: dict[int, str]) -> None:
            for left in range(extent // lanes * lanes, extent):
                with self.body.block(""):
                    self._take_in(rest, {**point, axis: str(left)}, None)

        self._nested(axes, nest.reduce[:-1], 0, row)
        self._together(acc)
        if self.team is not None:
            self._together(rest)
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
    team = f"s{planned.team}" if planned.team > 1 else ""
    return f"{nest.dtype}_{kind}_{shape}{reduce}__v{planned.lanes}{team}g{planned.group_x}x{planned.group_y}"


