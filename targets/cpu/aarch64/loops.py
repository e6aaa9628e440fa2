"""Code for :class:`edgec.program.Loops` that touch bytes or float16: a register of these at a time."""

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
    """As :func:`edgec.targets.cpu.loops.plan`, with as many lanes as a register holds of the smallest of these."""
    planned = loops.plan(nest, target)
    axis = planned.vector_axis
    if axis is None:
        return planned
    extent = (planned.nest.extents + planned.nest.reduce)[axis]
    lanes = BYTES // min(_sizes(planned.nest), default=BYTES)
    return replace(planned, lanes=lanes) if planned.lanes < lanes <= extent else planned


def _sizes(nest: Loops) -> list[int]:
    """Bytes of an element of what is loaded and stored, of bytes and float16."""
    loads = scalar.loads(nest.body) + (scalar.loads(nest.epilogue) if nest.epilogue else [])
    kinds = [np.dtype(dtype) for dtype in (nest.dtype, *(node.dtype for node in loads))]
    return [kind.itemsize for kind in kinds if kind.itemsize == 1 or kind == np.float16]


def generate(planned: LoopsPlan, dtypes: list[str]) -> Any:
    """The kernel, as ``tirx.PrimFunc``."""
    return loops.generate(planned, dtypes, special)
