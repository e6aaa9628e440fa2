"""Widths that a compiled model is switched between at run time: weights of 8 bits, and their upper nibbles alone."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from edgec.errors import EdgecError
from edgec.program import Conv

if TYPE_CHECKING:
    from edgec.program import Program, Step

WIDTHS = (8, 4)
"""What a nested model runs at, the first unless told otherwise."""

LIMITS = (-128, 119)
"""What two signed nibbles, 16 · upper + lower, can be."""


def nest_widths(program: Program) -> None:
    """Let the kernels of ``program`` whose 8-bit weights share scales in groups run at 4 bits, too.

    Raises:
        EdgecError: there are none.
    """
    count = 0
    for index, step in enumerate(program.steps):
        if _can_nest(step):
            assert isinstance(step.kernel, Conv) and step.kernel.packing is not None
            packing = replace(step.kernel.packing, nested=True)
            program.steps[index] = replace(step, kernel=replace(step.kernel, packing=packing))
            count += 1
    if not count:
        raise EdgecError(
            "--nested found no product whose 4-bit weights share scales in groups; leave it out or give --group-size 32"
        )


def _can_nest(step: Step) -> bool:
    kernel = step.kernel
    packing = kernel.packing if isinstance(kernel, Conv) else None
    if packing is None or not packing.group or packing.bits != 8 or packing.parts:
        return False
    weights = np.asarray(step.inputs[1].data)
    return bool(LIMITS[0] <= weights.min() and weights.max() <= LIMITS[1])
