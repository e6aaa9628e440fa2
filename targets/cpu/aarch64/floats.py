"""Code for :class:`edgec.program.Conv` of float32 by ``fmla`` by element.

A weight vector holds four channels; it is multiplied by one of the four inputs that a pixel's register holds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from edgec.lazy_tvm import tirx
from edgec.program import Conv
from edgec.targets.cpu.aarch64.runs import RunPlan, RunWriter, best_tile
from edgec.targets.cpu.aarch64.runs import generate as generate_runs
from edgec.targets.cpu.aarch64.tile import LANES, Tile
from edgec.targets.cpu.tile import load_channels
from edgec.targets.target import Target
from edgec.targets.vectors import pieces


@dataclass(frozen=True)
class FloatPlan(RunPlan):
    """See the module."""

    suffix: ClassVar[str] = "fmla"
    spare: ClassVar[int] = 2
    rolled: ClassVar[bool] = False
    whole: ClassVar[int] = 4

    def rest(self, elements: int) -> list[int]:
        return pieces(elements, self.whole)

    def products(self, chunk: int, pixels: int, vectors: int) -> float:
        return chunk * (pixels * vectors + vectors / 2) + pixels

    def arranged(self, block: np.ndarray) -> np.ndarray:
        """[element, channel]."""
        return block


class _FloatWriter(RunWriter):
    def _pixel(self, offset: Any, chunk: int) -> Any:
        return load_channels(self.input, offset, chunk)

    def _products(self, acc: Tile, pixels: list[Any], weights: Any, chunk: int) -> None:
        for element in range(chunk):
            for vector in range(len(acc.widths)):
                offset = weights + (element * len(acc.widths) + vector) * LANES
                weight = self.body.bind("w", load_channels(self.weight, offset, LANES))
                for pixel, value in enumerate(pixels):
                    acc.add_product(pixel, vector, _lane(value, element, chunk), weight)


def _lane(value: Any, element: int, chunk: int) -> Any:
    """One element of a pixel's register, in every lane."""
    if chunk == 1:
        return tirx.Broadcast(value, LANES)
    return tirx.Shuffle([value] * (LANES // chunk), [tirx.const(element, "int32")] * LANES)


def plan(conv: Conv, target: Target) -> RunPlan:
    """The register tile of the fewest instructions."""
    return best_tile(FloatPlan, conv)


def generate(p: RunPlan, dtypes: list[str]) -> Any:
    """The kernel, as ``tirx.PrimFunc``."""
    return generate_runs(_FloatWriter, p, dtypes)
