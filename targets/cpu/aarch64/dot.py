"""Code for :class:`edgec.program.Conv` of 8-bit integers by ``sdot``, for ARM cores with dot product.

A weight vector holds four channels × four bytes of a run; ``sdot`` by element multiplies it by four bytes of a pixel.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from edgec.program import Conv
from edgec.targets.cpu.aarch64.neon import dot, repeated
from edgec.targets.cpu.aarch64.runs import CHUNK, RunPlan, RunWriter, best_tile
from edgec.targets.cpu.aarch64.runs import generate as generate_runs
from edgec.targets.cpu.aarch64.tile import IntegerTile
from edgec.targets.cpu.tile import load_channels
from edgec.targets.target import Target

GROUP = 4
"""Bytes of a run that one lane of ``sdot`` sums up."""


@dataclass(frozen=True)
class DotPlan(RunPlan):
    """See the module."""

    suffix: ClassVar[str] = "dot"
    spare: ClassVar[int] = 2

    def padded(self, rest: int) -> int:
        return -(-rest // GROUP) * GROUP

    def products(self, chunk: int, pixels: int, vectors: int) -> float:
        return chunk // GROUP * (pixels * vectors + vectors / 2) + pixels

    def arranged(self, block: np.ndarray) -> np.ndarray:
        """[group, channel, byte]."""
        return block.reshape(-1, GROUP, block.shape[1]).transpose(0, 2, 1)


class _DotWriter(RunWriter):
    def _products(self, acc: IntegerTile, pixels: list[Any], weights: Any, chunk: int) -> None:
        for group in range(chunk // GROUP):
            for vector in range(len(acc.widths)):
                offset = weights + (group * len(acc.widths) + vector) * CHUNK
                weight = self.body.bind("w", load_channels(self.weight, offset, CHUNK))
                for pixel, value in enumerate(pixels):
                    acc.update(pixel, vector, dot(acc.value(pixel, vector), weight, repeated(value, group)))


def plan(conv: Conv, target: Target) -> RunPlan:
    """The register tile of the fewest instructions."""
    return best_tile(DotPlan, conv)


def generate(p: RunPlan, dtypes: list[str]) -> Any:
    """The kernel, as ``tirx.PrimFunc``."""
    return generate_runs(_DotWriter, p, dtypes)
