"""Code for :class:`edgec.program.Loops` that store bytes: a register of bytes at a time."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from edgec.program import Loops
from edgec.targets.cpu import loops
from edgec.targets.cpu.loops import LoopsPlan
from edgec.targets.cpu.x86.isa import Isa
from edgec.targets.cpu.x86.narrow import special
from edgec.targets.target import Target


def plan(nest: Loops, target: Target) -> LoopsPlan:
    """As :func:`edgec.targets.cpu.loops.plan`, with as many lanes as a register has bytes, where bytes are stored.

    Sums of bytes, which are int32 as they grow, stay as wide as their registers.
    """
    planned = loops.plan(nest, target)
    axis = planned.vector_axis
    if axis is None or np.dtype(planned.nest.dtype).itemsize > 1 or planned.nest.reducer not in (None, "max", "min"):
        return planned
    extent = (planned.nest.extents + planned.nest.reduce)[axis]
    lanes = min(target.vector_bytes, 1 << (extent.bit_length() - 1))
    return replace(planned, lanes=max(planned.lanes, lanes))


def generate(target: Target, planned: LoopsPlan, dtypes: list[str]) -> Any:
    """The kernel, as ``tirx.PrimFunc``."""
    return loops.generate(planned, dtypes, special(Isa.of(target)))
