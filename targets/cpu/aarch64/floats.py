"""Code for :class:`edgec.program.Conv` of float32, or of float16 summed in it, by ``fmla`` by element.

A weight vector holds four channels, or eight; it is multiplied by one of the inputs that a pixel's registers hold.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from edgec.program import Conv
from edgec.targets.cpu.aarch64.assembly import FMLA, HALF_FMLA, Instruction
from edgec.targets.cpu.aarch64.element import ElementPlan, ElementWriter
from edgec.targets.cpu.aarch64.runs import RunPlan, best_tile
from edgec.targets.cpu.aarch64.runs import generate as generate_runs
from edgec.targets.target import Target
from edgec.targets.vectors import pieces


@dataclass(frozen=True)
class FloatPlan(ElementPlan):
    """See the module."""

    suffix: ClassVar[str] = "fmla"
    instruction: ClassVar[Instruction] = FMLA
    whole: ClassVar[int] = FMLA.whole

    def rest(self, elements: int) -> list[int]:
        return pieces(elements, self.whole)

    def arranged(self, block: np.ndarray) -> np.ndarray:
        """[element, channel]."""
        return block


@dataclass(frozen=True)
class HalfPlan(FloatPlan):
    """The same in float16."""

    instruction: ClassVar[Instruction] = HALF_FMLA
    whole: ClassVar[int] = HALF_FMLA.whole


def plan(conv: Conv, target: Target) -> RunPlan:
    """The register tile of the fewest instructions."""
    return best_tile(FloatPlan, conv)


def half_plan(conv: Conv, target: Target) -> RunPlan:
    """The same for sums in float16."""
    return best_tile(HalfPlan, conv)


def generate(p: RunPlan, dtypes: list[str]) -> Any:
    """The kernel, as ``tirx.PrimFunc``."""
    return generate_runs(ElementWriter, p, dtypes)
