"""Work items of a group that share a sum: each takes every so many terms, and local memory brings the parts together.

Few outputs with long sums (the last layers of a classifier, means over a map) would else keep few items busy, and the
items of a team read neighbouring terms, which a GPU loads at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from math import prod

from edgec.targets.gpu.opencl import Body, Value, register_type
from edgec.targets.gpu.target import GpuTarget

SIZES = (4, 8, 16, 32, 64)
"""Items of a team, along the group's first axis."""
ACCUMULATOR_BYTES = 4
"""Of what teams add up; wider sums are left to single items."""


def sizes(target: GpuTarget, items: Sequence[int], terms: int, slots: int) -> list[int]:
    """Sizes of teams worth trying, the most promising first; 1 is none.

    Args:
        target: its work groups and local memory bound them.
        items: work items of the kernel without teams.
        terms: how many steps a sum has that may be shared.
        slots: numbers that an item leaves in local memory.
    """
    most = min(target.work_group, target.local_memory // (ACCUMULATOR_BYTES * slots))
    possible = [1, *(size for size in SIZES if size <= most and 2 * size <= terms)]
    wanted = target.in_flight / prod(items)
    enough = next((size for size in possible if size >= wanted), possible[-1])
    return sorted(possible, key=lambda size: abs(size.bit_length() - enough.bit_length()))


def side_by_side(target: GpuTarget, size: int, slots: int, neighbours: int) -> Iterator[int]:
    """How many teams may make up a group, along its second axis, in which there are ``neighbours`` items."""
    for count in (1, 2, 4, 8):
        fits = size * count <= target.work_group and size * count * slots * ACCUMULATOR_BYTES <= target.local_memory
        if fits and neighbours % count == 0:
            yield count


class Team:
    """The team of this work item. To be made at the top of a kernel, where local memory is declared.

    Args:
        body: of the kernel.
        dtype: of the sums in a register.
        size: items of a team.
        others: teams of a group.
        slots: numbers that an item leaves at most.
    """

    def __init__(self, body: Body, dtype: str, size: int, others: int, slots: int) -> None:
        self.body, self.dtype, self.size, self.slots, self._used = body, dtype, size, slots, False
        body.line(f"__local {register_type(dtype)} shared[{size * others * slots}];")
        self.member = body.index("member", "(int)get_local_id(0)")
        team = f"(int)get_local_id(1) * {size} + {self.member}" if others > 1 else self.member
        self._own = body.index("own", f"({team}) * {slots}")

    def combine(self, parts: Sequence[Value], operator: Callable[[Value, Value], str]) -> None:
        """Leave in the first member's ``parts``, which are variables, what ``operator`` makes of all members'.

        Every item of the group has to come here.
        """
        if self._used:
            self._barrier()
        self._used = True
        starts = [sum(part.lanes for part in parts[:index]) for index in range(len(parts))]
        for part, start in zip(parts, starts, strict=True):
            self._store(part, start)
        half = self.size // 2
        while half:
            self._barrier()
            with self.body.block(f"if ({self.member} < {half})"):
                for part, start in zip(parts, starts, strict=True):
                    other = Value(self._load(part, half * self.slots + start), part.dtype, part.lanes)
                    other = self.body.bind("other", other)
                    self.body.line(f"{part.text} = {operator(part, other)};")
                    if half > 1:
                        self._store(part, start)
            half //= 2

    def _barrier(self) -> None:
        self.body.line("barrier(CLK_LOCAL_MEM_FENCE);")

    def _store(self, part: Value, start: int) -> None:
        if part.lanes == 1:
            self.body.line(f"shared[{self._own} + {start}] = {part.text};")
        else:
            self.body.line(f"vstore{part.lanes}({part.text}, 0, shared + {self._own} + {start});")

    def _load(self, part: Value, start: int) -> str:
        if part.lanes == 1:
            return f"shared[{self._own} + {start}]"
        return f"vload{part.lanes}(0, shared + {self._own} + {start})"
