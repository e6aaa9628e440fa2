"""Code for :class:`edgec.program.Fill`: one kernel for all fills of a kind, which reads its regions from a table.

A model has many borders, each with many short runs; loops over their extents, which the compiler would unroll,
would take more code than the convolutions inside them. Zeros are stored by the C library's memset.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgec.building.lazy_tvm import stmt, tirx
from edgec.program import Fill
from edgec.targets.cpu.tir import Kernel, storage, vector_store
from edgec.targets.target import Target

LOOPS = 4
"""Loops around a run; regions with fewer have loops of one iteration."""


@dataclass(frozen=True)
class FillPlan:
    """What the kernel depends on: how many regions of how many loops, the value, its dtype."""

    regions: int
    loops: int
    value: float
    dtype: str


Region = tuple[int, tuple[int, ...], tuple[int, ...]]


def joined(regions: Sequence[Region]) -> list[Region]:
    """The same elements in fewer runs: the end of a map's row and the start of the next one are one run.

    Regions of more than one loop around a run stay as they are.
    """
    runs, rows = list[tuple[int, int]](), list[tuple[int, int, int, int]]()
    for offset, extents, strides in regions:
        loops, run = list[tuple[int, int]](), 1
        for extent, stride in reversed(list(zip(extents, strides, strict=True))):
            if not loops and stride == run:
                run *= extent
            elif extent > 1:
                loops.append((extent, stride))
        if len(loops) > 1:
            return list(regions)
        if loops:
            rows.append((offset, *loops[0], run))
        else:
            runs.append((offset, run))
    rows = _across_rows(rows, runs)
    merged = list[tuple[int, int]]()
    for offset, run in sorted(runs):
        if merged and sum(merged[-1]) == offset:
            offset, before = merged.pop()
            run += before
        merged.append((offset, run))
    return [
        *((offset, (run,), (1,)) for offset, run in merged),
        *((offset, (count, run), (step, 1)) for offset, count, step, run in rows),
    ]


def _across_rows(
    rows: list[tuple[int, int, int, int]], runs: list[tuple[int, int]]
) -> list[tuple[int, int, int, int]]:
    """``rows`` (offset, count, step, run) with those joined that meet between two rows; what is left of the first and
    the last row goes to ``runs``."""
    for end in rows:
        for start in rows:
            offset, count, step, run = end
            if start[1:3] == (count, step) and start is not end and offset + run == start[0] + step:
                runs += [(start[0], start[3]), (offset + (count - 1) * step, run)]
                middle = (offset, count - 1, step, run + start[3])
                others = [each for each in rows if each is not end and each is not start]
                if count == 2:
                    runs.append((offset, middle[3]))
                    return others
                return [middle, *others]
    return rows


def plan(fill: Fill, target: Target) -> FillPlan:
    """The same on every CPU."""
    regions = joined(fill.regions)
    loops = max(LOOPS, *(len(extents) - 1 for _, extents, _ in regions))
    return FillPlan(len(regions), loops, fill.value, fill.dtype)


def table(p: FillPlan, fill: Fill) -> np.ndarray:
    """One row per region: offset, length of a run, then extent and stride of each loop (int32)."""
    rows = []
    for offset, extents, strides in joined(fill.regions):
        missing = p.loops - (len(extents) - 1)
        loops = [(1, 0)] * missing + list(zip(extents[:-1], strides[:-1], strict=True))
        rows.append([offset, extents[-1], *(value for loop in loops for value in loop)])
    return np.asarray(rows, np.int32)


def generate(p: FillPlan, dtypes: list[str]) -> Any:
    """The kernel, as ``tirx.PrimFunc``: operand 0 is the table; one thread runs it."""
    kernel = Kernel(dtypes)
    columns = 2 + 2 * p.loops
    with kernel.body.loop(p.regions) as region:

        def cell(column: int) -> Any:
            return tirx.BufferLoad(kernel.buffers[0], [region * columns + column])

        _loops(kernel, p, cell, 0, cell(0))
    return kernel.function()


def _loops(kernel: Kernel, p: FillPlan, cell: Any, depth: int, offset: Any) -> None:
    if depth < p.loops:
        with kernel.body.loop(cell(2 + 2 * depth)) as index:
            _loops(kernel, p, cell, depth + 1, offset + index * cell(3 + 2 * depth))
    elif p.value == 0:
        _clear(kernel, storage(p.dtype), offset, cell(1))
    else:
        with kernel.body.loop(cell(1)) as index:
            value = tirx.const(np.dtype(storage(p.dtype)).type(p.value).item(), storage(p.dtype))
            kernel.body.emit(vector_store(kernel.buffers[-1], value, offset + index))


def _clear(kernel: Kernel, dtype: str, offset: Any, elements: Any) -> None:
    first = tirx.address_of(tirx.BufferLoad(kernel.buffers[-1], [offset]))
    count = tirx.Cast("int64", elements * np.dtype(dtype).itemsize)
    kernel.body.emit(stmt.Evaluate(tirx.call_extern("handle", "memset", first, tirx.const(0, "int32"), count)))


def contract(p: FillPlan) -> str:
    """The kernel's name."""
    return f"{p.dtype}_fill_r{p.regions}__{p.value:g}"
