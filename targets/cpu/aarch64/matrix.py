"""Code for :class:`edgec.program.Conv` of 8-bit integers by ``smmla``, for ARM cores that multiply matrices (i8mm).

``smmla`` multiplies eight bytes of two pixels by eight bytes of two channels: 32 products an instruction, twice as many
as ``sdot``. A weight vector holds two channels × eight bytes of a run. Within the loops, two pixels and four channels
have their sums in two registers of two pixels × two channels each; before and behind them, in one register a pixel. The
way there and back is the same exchange of halves. A pixel without a neighbour is computed twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from edgec.building.lazy_tvm import tirx
from edgec.program import Conv
from edgec.targets.cpu.aarch64.neon import BYTES, matrix_product
from edgec.targets.cpu.aarch64.runs import RunPlan, RunWriter, best_tile
from edgec.targets.cpu.aarch64.runs import generate as generate_runs
from edgec.targets.cpu.aarch64.tile import LANES, Tile, load_input
from edgec.targets.cpu.tile import Accumulators, Point, load_channels
from edgec.targets.target import Target

DEPTH = 8
"""Bytes of a run that one lane of ``smmla`` sums up."""
SIDE = 2
"""Pixels and channels of one instruction."""


@dataclass(frozen=True)
class MatrixPlan(RunPlan):
    """See the module."""

    suffix: ClassVar[str] = "mmla"
    spare: ClassVar[int] = 4
    rolled: ClassVar[bool] = True
    whole: ClassVar[int] = 16

    def rest(self, elements: int) -> list[int]:
        return [-(-elements // DEPTH) * DEPTH] if elements else []

    def products(self, chunk: int, pixels: int, vectors: int) -> float:
        pairs = -(-pixels // SIDE)
        return chunk // DEPTH * (pairs * vectors * SIDE + vectors + pairs) + pixels

    def arranged(self, block: np.ndarray) -> np.ndarray:
        """[eight bytes of the run, pair of channels, channel, byte]."""
        chunk, channels = block.shape
        return block.reshape(chunk // DEPTH, DEPTH, channels // SIDE, SIDE).transpose(0, 2, 3, 1)


class _MatrixWriter(RunWriter):
    def _accumulators(
        self, points: list[Point], widths: list[int], origin: dict[int, Any], channels: int, panel: Any
    ) -> Accumulators:
        even = [*points, *points[-1:]] if len(points) % SIDE else points
        acc = super()._accumulators(even, widths, origin, channels, panel)
        self._exchange(acc)
        return acc

    def _reduce(self, acc: Accumulators, corner: Any, panel: Any, k_step: int) -> None:
        super()._reduce(acc, corner, panel, k_step)
        self._exchange(acc)

    def _exchange(self, acc: Accumulators) -> None:
        """Of every pair of pixels, the upper half of the first one's sums for the lower half of the second one's."""
        for pixel in range(0, len(acc.points), SIDE):
            for vector in range(len(acc.widths)):
                rows = [acc.value(pixel, vector), acc.value(pixel + 1, vector)]
                halves = [_picked(rows, [first, first + 1, first + LANES, first + LANES + 1]) for first in (0, SIDE)]
                for place, half in enumerate([self.body.bind("half", half) for half in halves]):
                    acc.update(pixel + place, vector, half)

    def _pixel(self, offset: Any, chunk: int) -> Any:
        return load_input(self.input, offset)

    def _products(self, acc: Tile, pixels: list[Any], weights: Any, chunk: int) -> None:
        for part in range(chunk // DEPTH):
            pairs = [self._pair(pixels[pixel : pixel + SIDE], part) for pixel in range(0, len(pixels), SIDE)]
            for vector in range(len(acc.widths)):
                for place in range(SIDE):
                    offset = weights + ((part * len(acc.widths) + vector) * SIDE + place) * BYTES
                    weight = self.body.bind("w", load_channels(self.weight, offset, BYTES))
                    for number, pair in enumerate(pairs):
                        pixel = number * SIDE + place
                        acc.update(pixel, vector, matrix_product(acc.value(pixel, vector), pair, weight))

    def _pair(self, pixels: Sequence[Any], part: int) -> Any:
        """Eight bytes of each of two pixels."""
        own = range(part * DEPTH, (part + 1) * DEPTH)
        return self.body.bind("pair", _picked(pixels, [*own, *(BYTES + lane for lane in own)]))


def _picked(values: Sequence[Any], lanes: Sequence[int]) -> Any:
    """``lanes`` of two vectors, those of the second behind those of the first."""
    return tirx.Shuffle(list(values), [tirx.const(lane, "int32") for lane in lanes])


def plan(conv: Conv, target: Target) -> RunPlan:
    """The register tile of the fewest instructions."""
    return best_tile(MatrixPlan, conv)


def generate(p: RunPlan, dtypes: list[str]) -> Any:
    """The kernel, as ``tirx.PrimFunc``."""
    return generate_runs(_MatrixWriter, p, dtypes)
