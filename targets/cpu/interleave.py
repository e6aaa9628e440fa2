"""Code for :class:`edgec.program.Loops` that make bytes with few channels innermost out of planes (an image that is
quantised): a register of pixels of every plane at a time, stored together. Of that, the compiler makes one ``st2`` to
``st4`` of ARM, and permutations of x86.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from edgec import scalar
from edgec.building.lazy_tvm import tirx
from edgec.nest import coefficient, simplify
from edgec.program import Loops
from edgec.targets.cpu.tir import Emitter, Kernel, Special, vector_store
from edgec.targets.target import Target

MOST_CHANNELS = 4
LEAST_PIXELS = 16


@dataclass(frozen=True)
class InterleavePlan:
    """A simplified nest whose last two axes are pixels and channels; ``lanes`` pixels are stored at a time."""

    nest: Loops
    lanes: int

    @property
    def pixels(self) -> int:
        """The axis of the pixels."""
        return len(self.nest.extents) - 2


def fits(nest: Loops) -> bool:
    """Whether ``nest`` stores bytes, channels innermost and gapless, and reads neighbouring pixels."""
    nest = simplify(nest)
    if nest.reducer or nest.combine or nest.sequential or len(nest.extents) < 2 or np.dtype(nest.dtype).itemsize > 1:
        return False
    pixels, channels = len(nest.extents) - 2, nest.extents[-1]
    gapless = coefficient(nest.store, pixels + 1) == 1 and coefficient(nest.store, pixels) == channels
    reads = all(coefficient(node.args[1], pixels) in (0, 1) for node in scalar.loads(nest.body))
    return 1 < channels <= MOST_CHANNELS and nest.extents[pixels] >= LEAST_PIXELS and gapless and reads


def plan(nest: Loops, target: Target) -> InterleavePlan:
    """As many pixels at a time as a register has bytes, or a row pixels."""
    nest = simplify(nest)
    return InterleavePlan(nest, min(target.vector_bytes, 1 << (nest.extents[-2].bit_length() - 1)))


def generate(special: Special, p: InterleavePlan, dtypes: list[str]) -> Any:
    """The kernel, as ``tirx.PrimFunc``, with the code of an architecture; threads share the outermost axis."""
    kernel = Kernel(dtypes, special)
    _write(p, kernel, {})
    return kernel.function()


def _write(p: InterleavePlan, kernel: Kernel, axes: dict[int, Any]) -> None:
    axis = len(axes)
    extent = p.nest.extents[axis]
    steps = -(-extent // p.lanes) if axis == p.pixels else extent
    first, count = (0, steps) if axis else kernel.share(steps)
    with kernel.body.loop(count, first) as index:
        if axis == p.pixels:
            # the last pixels are computed with some of those before them, again
            _store(p, kernel, {**axes, axis: tirx.min(index * p.lanes, extent - p.lanes)})
        else:
            _write(p, kernel, {**axes, axis: index})


def _store(p: InterleavePlan, kernel: Kernel, axes: dict[int, Any]) -> None:
    channels = p.nest.extents[-1]
    planes = []
    for channel in range(channels):
        point = {**axes, p.pixels + 1: tirx.const(channel, "int32")}
        emitter = Emitter(kernel.body, kernel.buffers[:-1], point, p.pixels, p.lanes)
        planes.append(kernel.body.hold(emitter.vector(p.nest.body)))
    order = [channel * p.lanes + pixel for pixel in range(p.lanes) for channel in range(channels)]
    pixels = tirx.Shuffle(planes, [tirx.const(lane, "int32") for lane in order])
    offset = Emitter(kernel.body, (), {**axes, p.pixels + 1: tirx.const(0, "int32")})(p.nest.store)
    kernel.body.emit(vector_store(kernel.buffers[-1], pixels, offset))


def contract(p: InterleavePlan) -> str:
    """The kernel's name."""
    return f"{p.nest.dtype}_interleave_{'x'.join(map(str, p.nest.extents))}"
