"""Code for :class:`edgec.program.Fill`: a work item an element, which looks its place up in a table of regions."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import numpy as np

from edgec.program import Fill
from edgec.targets.gpu.grid import positions
from edgec.targets.gpu.opencl import Body, Source, Value, literal, store_vector
from edgec.targets.gpu.target import GpuTarget

LOOPS = 4
"""Axes of a region, its run of neighbours among them; regions with fewer have axes of one element."""


@dataclass(frozen=True)
class FillPlan:
    """What the kernel depends on: elements, regions and their axes, the value and its dtype."""

    elements: int
    regions: int
    loops: int
    value: float
    dtype: str


def plan(fill: Fill, target: GpuTarget) -> FillPlan:
    """The same on every device."""
    loops = max(LOOPS, *(len(extents) for _, extents, _ in fill.regions))
    return FillPlan(fill.extents[0], len(fill.regions), loops, fill.value, fill.dtype)


def table(p: FillPlan, fill: Fill) -> np.ndarray:
    """One row per region: its elements, where it starts, then extent and stride of each axis (int32)."""
    rows = []
    for offset, extents, strides in fill.regions:
        axes = [(1, 0)] * (p.loops - len(extents)) + list(zip(extents, strides, strict=True))
        rows.append([prod(extents), offset, *(value for axis in axes for value in axis)])
    return np.asarray(rows, np.int32)


def generate(p: FillPlan, dtypes: list[str]) -> Source:
    """The kernel: operand 0 is the table."""
    body, columns = Body(), 2 + 2 * p.loops
    index, _, _ = positions(body, (p.elements, 1, 1), None)
    body.line(f"int left = {index}, row = 0;")
    body.line(f"while (left >= p0[row]) {{ left -= p0[row]; row += {columns}; }}")
    body.line("int place = p0[row + 1];")
    with body.block(f"for (int axis = row + {columns - 2}; axis > row; axis -= 2)"):
        body.line("place += left % p0[axis] * p0[axis + 1];")
        body.line("left /= p0[axis];")
    store_vector(body, f"p{len(dtypes) - 1}", "place", Value(literal(p.value, p.dtype), p.dtype))
    return body.source((p.elements, 1, 1), None)


def contract(p: FillPlan) -> str:
    """The kernel's name."""
    return f"{p.dtype}_fill_{p.elements}r{p.regions}__{p.value:g}"
