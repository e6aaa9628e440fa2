"""Code for :class:`edgec.program.Fill`: constant regions, stored a vector at a time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from tvm import tirx

from edgec.program import Fill
from edgec.targets.cpu.tile import pieces
from edgec.targets.cpu.tir import Kernel, storage, vector_store, widen
from edgec.targets.target import Target


@dataclass(frozen=True)
class FillPlan:
    """A fill and its vector width."""

    fill: Fill
    lanes: int


def plan(fill: Fill, target: Target) -> FillPlan:
    """Vectors as wide as the machine's."""
    return FillPlan(fill, target.lanes(np.dtype(fill.dtype).itemsize))


def generate(p: FillPlan, dtypes: list[str]) -> Any:
    """The kernel, as ``tirx.PrimFunc``; one thread runs it."""
    kernel = Kernel(dtypes)
    value = tirx.const(p.fill.value, storage(p.fill.dtype))
    for offset, extents, strides in p.fill.regions:
        _region(kernel, value, p.lanes, tirx.const(offset, "int32"), extents, strides)
    return kernel.function()


def _region(
    kernel: Kernel, value: Any, lanes: int, offset: Any, extents: tuple[int, ...], strides: tuple[int, ...]
) -> None:
    if len(extents) > 1:
        with kernel.body.loop(extents[0]) as index:
            _region(kernel, value, lanes, offset + index * strides[0], extents[1:], strides[1:])
        return
    whole = extents[0] // lanes
    if whole:
        with kernel.body.loop(whole) as index:
            kernel.body.emit(vector_store(kernel.buffers[0], widen(value, lanes), offset + index * lanes))
    done = whole * lanes
    for width in pieces(extents[0] - done, lanes):
        kernel.body.emit(vector_store(kernel.buffers[0], widen(value, width), offset + done))
        done += width


def contract(p: FillPlan) -> str:
    """The kernel's name."""
    return f"{p.fill.dtype}_fill_{p.fill.extents[0]}__v{p.lanes}"
