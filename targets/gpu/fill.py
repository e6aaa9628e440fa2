"""Code for :class:`edgec.program.Fill`: a work item for every few neighbours, which looks their place up in a table of
regions."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import numpy as np

from edgec.program import Fill
from edgec.targets.gpu.grid import positions
from edgec.targets.gpu.opencl import Body, Source, Value, literal, store_vector
from edgec.targets.gpu.target import GpuTarget

LOOPS = 3
"""Axes around a run of neighbours; regions with fewer have axes of one iteration."""
PART = 32
"""Neighbours that a work item stores."""


@dataclass(frozen=True)
class FillPlan:
    """What the kernel depends on: work items, regions and the axes around their runs, the value and its dtype."""

    items: int
    regions: int
    loops: int
    value: float
    dtype: str


def plan(fill: Fill, target: GpuTarget) -> FillPlan:
    """The same on every device."""
    loops = max(LOOPS, *(len(extents) - 1 for _, extents, _ in fill.regions))
    items = sum(prod(extents[:-1]) * _parts(extents[-1]) for _, extents, _ in fill.regions)
    return FillPlan(items, len(fill.regions), loops, fill.value, fill.dtype)


def _parts(run: int) -> int:
    return -(-run // PART)


def table(p: FillPlan, fill: Fill) -> np.ndarray:
    """One row per region: its items, where it starts, a run's elements and items, then extent and stride of each axis
    around it (int32)."""
    rows = []
    for offset, extents, strides in fill.regions:
        run, parts = extents[-1], _parts(extents[-1])
        axes = [(1, 0)] * (p.loops - len(extents) + 1) + list(zip(extents[:-1], strides[:-1], strict=True))
        row = [prod(extents[:-1]) * parts, offset, run, parts]
        rows.append([*row, *(value for axis in axes for value in axis)])
    return np.asarray(rows, np.int32)


def generate(p: FillPlan, dtypes: list[str]) -> Source:
    """The kernel: operand 0 is the table."""
    body, columns = Body(), 4 + 2 * p.loops
    index, _, _ = positions(body, (p.items, 1, 1), None)
    body.line(f"int left = {index}, row = 0;")
    body.line(f"while (left >= p0[row]) {{ left -= p0[row]; row += {columns}; }}")
    body.line(f"const int first = left % p0[row + 3] * {PART};")
    body.line(f"const int count = min(p0[row + 2] - first, {PART});")
    body.line("int place = p0[row + 1] + first;")
    body.line("left /= p0[row + 3];")
    with body.block(f"for (int axis = row + {columns - 2}; axis > row + 2; axis -= 2)"):
        body.line("place += left % p0[axis] * p0[axis + 1];")
        body.line("left /= p0[axis];")
    with body.block("for (int i = 0; i < count; i++)"):
        store_vector(body, f"p{len(dtypes) - 1}", "place + i", Value(literal(p.value, p.dtype), p.dtype))
    return body.source((p.items, 1, 1), None)


def contract(p: FillPlan) -> str:
    """The kernel's name."""
    return f"{p.dtype}_fill_{p.items}x{PART}r{p.regions}__{p.value:g}"
