"""Code for :class:`edgec.program.Conv` of 8-bit integers by ``sdot``, for ARM cores with dot product.

A weight vector holds four channels × four bytes of a run; ``sdot`` by element multiplies it by four bytes of a pixel.
Inputs of uint8 and weights of 4 bits are turned into int8 on their way into the registers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from edgec.program import Conv
from edgec.targets.cpu.aarch64.assembly import SDOT, Instruction
from edgec.targets.cpu.aarch64.element import ElementPlan, ElementWriter
from edgec.targets.cpu.aarch64.neon import BYTES, dot, repeated
from edgec.targets.cpu.aarch64.runs import RunPlan, RunWriter, best_tile
from edgec.targets.cpu.aarch64.runs import generate as generate_runs
from edgec.targets.cpu.aarch64.tile import Tile, load_input
from edgec.targets.target import Target

GROUP = 4
"""Bytes of a run that one lane of ``sdot`` sums up."""


@dataclass(frozen=True)
class DotPlan(ElementPlan):
    """See the module."""

    suffix: ClassVar[str] = "dot"
    instruction: ClassVar[Instruction] = SDOT
    spare: ClassVar[int] = 2
    rolled: ClassVar[bool] = True
    whole: ClassVar[int] = 16
    together: ClassVar[int] = GROUP

    def rest(self, elements: int) -> list[int]:
        least = GROUP * self.per_byte
        return [-(-elements // least) * least] if elements else []

    def arranged(self, block: np.ndarray) -> np.ndarray:
        """[group, channel, byte]."""
        return block.reshape(-1, GROUP, block.shape[1]).transpose(0, 2, 1)


class _TurningWriter(RunWriter):
    """Emits the loops that turn inputs or weights into int8."""

    def _pixel(self, offset: Any, chunk: int) -> Any:
        return load_input(self.input, offset)

    def _products(self, acc: Tile, pixels: list[Any], weights: Any, chunk: int) -> None:
        for group in range(chunk // GROUP):
            for vector, weight in enumerate(self._step_weights(weights, group, BYTES, len(acc.widths))):
                for pixel, value in enumerate(pixels):
                    acc.update(pixel, vector, dot(acc.value(pixel, vector), weight, repeated(value, group)))


def plan(conv: Conv, target: Target) -> RunPlan:
    """The register tile of the fewest instructions."""
    return best_tile(DotPlan, conv)


def generate(p: RunPlan, dtypes: list[str]) -> Any:
    """The kernel, as ``tirx.PrimFunc``."""
    written_out = isinstance(p, DotPlan) and p.written_out
    return generate_runs(ElementWriter if written_out else _TurningWriter, p, dtypes)
