"""The memory plan: every arena buffer gets a fixed place, reused when its live range is over.

Buffers are placed one after the other at the lowest offset where no buffer that is alive at the same time
stands (greedy by size, Pisarchyk & Lee, "Efficient Memory Management for Deep Neural Net Inference", 2020);
several orders are tried, the best plan is kept. The lower bound is the largest set alive at one step.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from edgec import scalar
from edgec.program import ARENA, OVERREAD, Buffer, Conv, Depthwise, Loops, Program, Step

ALIGNMENT = 64
"""Bytes; a cache line, and the widest vector."""
ATTEMPTS = 200
"""Random orders tried before the best plan found is taken."""


@dataclass
class Lifetime:
    """A buffer and the steps (inclusive) between which it is alive."""

    buffer: Buffer
    first: int
    last: int
    alignment: int = ALIGNMENT

    @property
    def nbytes(self) -> int:
        return -(-self.buffer.nbytes // self.alignment) * self.alignment

    def overlaps(self, other: Lifetime) -> bool:
        return self.first <= other.last and other.first <= self.last


def entry(lifetime: Lifetime) -> dict[str, str | int | None]:
    """A live range as the manifest lists it."""
    buffer = lifetime.buffer
    return {
        "buffer": buffer.name, "offset": buffer.offset, "bytes": lifetime.nbytes, "first": lifetime.first,
        "last": lifetime.last,
    }  # fmt: skip


def plan(program: Program, alignment: int = ALIGNMENT) -> list[Lifetime]:
    """Set the offset of every arena buffer and the program's arena size and lower bound.

    Args:
        program: lowered.
        alignment: bytes of which every offset is a multiple.

    Returns:
        The live ranges, in order of first use.
    """
    share_in_place(program)
    lifetimes = live_ranges(program, alignment)
    program.arena_lower_bound = max(
        (sum(x.nbytes for x in lifetimes if x.first <= i <= x.last) for i in range(len(program.steps))),
        default=0,
    )
    size = _place(lifetimes, program.arena_lower_bound)
    _place_states(program, lifetimes, alignment)
    program.arena_lower_bound += program.state_bytes
    program.arena_bytes = program.state_bytes + size + _slack(program)
    return lifetimes


def _place_states(program: Program, lifetimes: Sequence[Lifetime], alignment: int) -> None:
    """Put states at the start of the arena, and everything else behind them."""
    program.state_bytes = 0
    for state in program.states:
        state.buffer.offset = program.state_bytes
        program.state_bytes += -(-state.buffer.nbytes // alignment) * alignment
    for lifetime in lifetimes:
        assert lifetime.buffer.offset is not None
        lifetime.buffer.offset += program.state_bytes


def live_ranges(program: Program, alignment: int = ALIGNMENT) -> list[Lifetime]:
    """When each arena buffer is alive: from the step that first writes it to the last that touches it."""
    found: dict[int, Lifetime] = {}
    for index, step in enumerate(program.steps):
        for buffer in step.buffers:
            root = buffer.root
            if root.space == ARENA:
                found.setdefault(id(root), Lifetime(root, index, index, alignment)).last = index
    return list(found.values())


def share_in_place(program: Program) -> None:
    """Let a step write over an input that dies there, where each element is read only at its own place."""
    last_use: dict[int, int] = {}
    first_use: dict[int, int] = {}
    for index, step in enumerate(program.steps):
        for buffer in step.buffers:
            last_use[id(buffer.root)] = index
            first_use.setdefault(id(buffer.root), index)
    for index, step in enumerate(program.steps):
        output = step.output
        if output.space != ARENA or output.parent is not None or first_use[id(output)] != index:
            continue
        for operand, buffer in enumerate(step.inputs):
            root = buffer.root
            dies_here = root.space == ARENA and last_use[id(root)] == index
            if dies_here and root.nbytes == output.nbytes and _read_in_place(step, operand):
                output.parent = root
                last_use[id(root)] = last_use[id(output)]
                break


def _read_in_place(step: Step, operand: int) -> bool:
    """Whether ``operand`` is read only where the kernel stores, so that storing over it is safe."""
    kernel, buffer = step.kernel, step.inputs[operand]
    if sum(other.root is buffer.root for other in step.inputs) > 1 or buffer.root_offset:
        return False
    if isinstance(kernel, Conv | Depthwise):
        if operand < kernel.own_operands:
            return False
        reads = scalar.loads(kernel.epilogue)
    elif isinstance(kernel, Loops) and kernel.reducer is None and kernel.combine is None:
        reads = [*scalar.loads(kernel.body), *scalar.loads(kernel.store)]
    else:
        return False
    offsets = [node.args[1] for node in reads if node.args[0] == operand]
    same_width = step.output.nbytes == buffer.nbytes and step.output.elements == buffer.elements
    return same_width and all(offset is kernel.store for offset in offsets)


def _slack(program: Program) -> int:
    """Bytes after the last buffer into which a kernel may read."""
    kernels = (step.kernel for step in program.steps)
    integer = any(isinstance(k, Conv | Depthwise) and k.input_dtype != "float32" for k in kernels)
    return OVERREAD if integer else 0


def _place(lifetimes: list[Lifetime], bound: int) -> int:
    """Set offsets, trying orders until the plan meets ``bound`` or the attempts are used up."""
    if not lifetimes:
        return 0
    orders = [
        sorted(lifetimes, key=lambda x: (-x.nbytes, x.first)),
        sorted(lifetimes, key=lambda x: (-x.nbytes * (x.last - x.first + 1), x.first)),
        sorted(lifetimes, key=lambda x: (x.first, -x.nbytes)),
    ]
    best, best_offsets = _first_fit(orders[0])
    generator = random.Random(0)
    for attempt in range(len(orders) + ATTEMPTS):
        if best <= bound:
            break
        order = orders[attempt] if attempt < len(orders) else _shuffled(orders[0], generator)
        size, offsets = _first_fit(order)
        if size < best:
            best, best_offsets = size, offsets
    for lifetime in lifetimes:
        lifetime.buffer.offset = best_offsets[id(lifetime)]
    return best


def _shuffled(order: Sequence[Lifetime], generator: random.Random) -> list[Lifetime]:
    """``order`` with sizes blurred by up to a half, so that near equals change places."""
    return sorted(order, key=lambda x: -x.nbytes * generator.uniform(0.5, 1.5))


def _first_fit(order: Sequence[Lifetime]) -> tuple[int, dict[int, int]]:
    """Place each buffer at the lowest free offset: the arena's size and the offset by ``id``."""
    offsets: dict[int, int] = {}
    placed: list[Lifetime] = []
    size = 0
    for lifetime in order:
        start = 0
        for other in sorted((p for p in placed if p.overlaps(lifetime)), key=lambda p: offsets[id(p)]):
            if offsets[id(other)] - start >= lifetime.nbytes:
                break
            start = max(start, offsets[id(other)] + other.nbytes)
        offsets[id(lifetime)] = start
        placed.append(lifetime)
        size = max(size, start + lifetime.nbytes)
    return size, offsets
