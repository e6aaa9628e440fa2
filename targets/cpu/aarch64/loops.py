"""Code for :class:`edgec.program.Loops` that touch bytes: a register of bytes at a time."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from edgec import scalar
from edgec.program import Loops
from edgec.targets.cpu import loops
from edgec.targets.cpu.aarch64.neon import BYTES, special
from edgec.targets.cpu.loops import LoopsPlan
from edgec.targets.target import Target


def plan(nest: Loops, target: Target) -> LoopsPlan:
    """As :func:`edgec.targets.cpu.loops.plan`, with as many lanes as a register has bytes, where the nest has some."""
    planned = loops.plan(nest, target)
    axis = planned.vector_axis
    if axis is None or not _touches_bytes(planned.nest):
        return planned
    extent = (planned.nest.extents + planned.nest.reduce)[axis]
    return replace(planned, lanes=BYTES) if extent >= BYTES else planned


def _touches_bytes(nest: Loops) -> bool:
    loads = scalar.loads(nest.body) + (scalar.loads(nest.epilogue) if nest.epilogue else [])
    return any(np.dtype(dtype).itemsize == 1 for dtype in (nest.dtype, *(node.dtype for node in loads)))


def generate(planned: LoopsPlan, dtypes: list[str]) -> Any:
    """The kernel, as ``tirx.PrimFunc``."""
    return loops.generate(planned, dtypes, special)
