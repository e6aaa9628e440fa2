"""Code for :class:`edgec.program.Conv` of 8-bit integers by long products, for ARM cores without dot product.

A weight vector holds four channels × two bytes of a run in each of its halves; the 16 bytes of a pixel turn by two
bytes from one step to the next. Step ``s`` multiplies the pair of bytes ``l + s`` by channel ``l`` in the lower half,
and the pair ``l + s + 4`` in the upper one, so that four steps bring all 16 bytes to every channel. ``smull`` and
``smlal2`` add two products in int16, which holds them since weights are at least −127, and ``sadalp`` adds the pairs
to the int32 sums: three instructions for 16 products, and no sum across lanes at the end. Of the rest of a run, 8
bytes take four steps in the lower half alone, 4 bytes two. (XNNPACK calls this layout c2s4.)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from edgec.program import Conv
from edgec.targets.cpu.aarch64.assembly import STREAM, Instruction, Products
from edgec.targets.cpu.aarch64.element import ElementPlan, ElementWriter
from edgec.targets.cpu.aarch64.neon import BYTES, long_product, pair_sums, repeated, turned
from edgec.targets.cpu.aarch64.pair_assembly import HALF, LONG, PAIR, PairProducts, fits, halves, steps
from edgec.targets.cpu.aarch64.runs import RunPlan, RunWriter, best_tile
from edgec.targets.cpu.aarch64.runs import generate as generate_runs
from edgec.targets.cpu.aarch64.tile import LANES, Tile, load_input
from edgec.targets.cpu.tir import part
from edgec.targets.target import Target

WAITING = 4
"""Instructions that an in-order core could execute while it waits for weights, each time that it loads four vectors."""


@dataclass(frozen=True)
class PairPlan(ElementPlan):
    """See the module."""

    suffix: ClassVar[str] = "smlal"
    instruction: ClassVar[Instruction] = LONG
    written: ClassVar[type[Products]] = PairProducts
    spare: ClassVar[int] = 9
    rolled: ClassVar[bool] = True
    whole: ClassVar[int] = 16
    together: ClassVar[int] = PAIR

    @classmethod
    def fits(cls, pixels: int, vectors: int) -> bool:
        return fits(pixels, vectors)

    def rest(self, elements: int) -> list[int]:
        return [next(chunk for chunk in (4, HALF, BYTES) if elements <= chunk)] if elements else []

    def products(self, chunk: int, pixels: int, vectors: int) -> float:
        each = halves(chunk) * (pixels + 0.5) * vectors + pixels * vectors
        return steps(chunk) * (each + pixels)

    def tile_instructions(self, rows: int, columns: int, channels: int) -> float:
        vectors = len(self.widths(channels))
        loads = self.run_count * sum(-(-steps(chunk) * vectors // STREAM) for chunk in self.chunks)
        return super().tile_instructions(rows, columns, channels) + (WAITING * loads if self.written_out else 0)

    def arranged(self, block: np.ndarray) -> np.ndarray:
        """[step, vector of channels, half, channel, byte]."""
        chunk, channels = block.shape
        pairs = block.reshape(-1, PAIR, channels // LANES, LANES)
        step, half, lane = np.ogrid[: steps(chunk), : halves(chunk), :LANES]
        pair = (lane + step + half * LANES) % len(pairs)
        return pairs[pair, :, :, lane].transpose(0, 4, 1, 2, 3)


class _TurningWriter(RunWriter):
    """Emits the loops that turn inputs or weights into int8."""

    def _pixel(self, offset: Any, chunk: int) -> Any:
        return load_input(self.input, offset)

    def _products(self, acc: Tile, pixels: list[Any], weights: Any, chunk: int) -> None:
        size = halves(chunk) * HALF
        if chunk < HALF:
            pixels = [repeated(value, 0) for value in pixels]
        for step in range(steps(chunk)):
            for vector, weight in enumerate(self._step_weights(weights, step, size, len(acc.widths))):
                for pixel, value in enumerate(pixels):
                    self._multiply_add(acc, pixel, vector, value, weight, size)
            pixels = [self.body.hold(turned(value, PAIR, size)) for value in pixels]

    def _multiply_add(self, acc: Tile, pixel: int, vector: int, value: Any, weight: Any, size: int) -> None:
        products = [long_product(part(value, first, HALF), part(weight, first, HALF)) for first in range(0, size, HALF)]
        total = products[0] if len(products) == 1 else products[0] + products[1]
        acc.update(pixel, vector, acc.value(pixel, vector) + pair_sums(self.body.hold(total)))


def plan(conv: Conv, target: Target) -> RunPlan:
    """The register tile of the fewest instructions."""
    return best_tile(PairPlan, conv)


def generate(p: RunPlan, dtypes: list[str]) -> Any:
    """The kernel, as ``tirx.PrimFunc``."""
    written_out = isinstance(p, PairPlan) and p.written_out
    return generate_runs(ElementWriter if written_out else _TurningWriter, p, dtypes)
