"""Winograd's convolution (:mod:`edgec.targets.cpu.winograd`) for x86, with weights spread as they are needed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from edgec.building.lazy_tvm import tirx
from edgec.program import Conv
from edgec.targets.cpu.spreading import SpreadingWriter, fits_stack
from edgec.targets.cpu.spreading import fits as can_spread
from edgec.targets.cpu.tile import Accumulators, load_channels, starts
from edgec.targets.cpu.tir import Kernel
from edgec.targets.cpu.winograd import POINTS, WinogradPlan, block_tiles
from edgec.targets.cpu.winograd import fits as fits_transforms
from edgec.targets.target import Target

LEAST_SUMS = 8
"""Fewer vectors of sums would wait for each other."""
MOST_VECTORS = 4
INPUT_CYCLES, OUTPUT_CYCLES, WEIGHT_CYCLES, UNPACKING_CYCLES = 200, 150, 110, 30
"""Cycles, about, to transform a vector of a tile's inputs, of its sums, and of weights, and to unpack these."""
GAIN = 0.85
"""Share of the direct convolution's cycles that the transforms must stay within."""


def fits(conv: Conv, target: Target) -> bool:
    """Whether the transforms pay, and the registers are put to use."""
    if not fits_transforms(conv) or not can_spread(conv):
        return False
    return any(True for _ in candidates(conv, target)) and _cycles(conv, target.lanes(4)) < GAIN * _direct(conv, target)


def _cycles(conv: Conv, lanes: int) -> float:
    """Cycles, about, at one multiply-add of vectors a cycle; those of fewer channels count as whole ones."""
    count = conv.batch * conv.out_height * conv.out_width // 16
    inputs, outputs = -(-conv.in_channels // lanes), -(-conv.out_channels // lanes)
    products = POINTS * count * conv.in_channels * outputs
    transforms = count * (INPUT_CYCLES * inputs + OUTPUT_CYCLES * outputs)
    spreading = WEIGHT_CYCLES + (0 if conv.packing is None else UNPACKING_CYCLES)
    return products + transforms + conv.batch * conv.in_channels * outputs * spreading


def _direct(conv: Conv, target: Target) -> float:
    return conv.macs / conv.out_channels * -(-conv.out_channels // target.lanes(4))


def plan(conv: Conv, target: Target) -> WinogradPlan:
    """The block with the fewest loads for its products, those of most products first."""
    return min(candidates(conv, target), key=lambda p: ((p.tiles + p.vectors) / (p.tiles * p.vectors), p.tiles))


def candidates(conv: Conv, target: Target) -> Iterator[WinogradPlan]:
    """Every block that fits the registers, and whose weights and inputs fit the scratch."""
    lanes = target.lanes(4)
    for vectors in range(1, min(MOST_VECTORS, -(-conv.out_channels // lanes)) + 1):
        count = block_tiles(conv, (target.vector_registers - 1 - vectors) // vectors)
        found = WinogradPlan(conv, count, vectors, lanes)
        if count * vectors >= LEAST_SUMS and fits_stack(found):
            yield found


def generate(p: WinogradPlan, dtypes: list[str]) -> Any:
    """The kernel, as ``tirx.PrimFunc``."""
    kernel = Kernel(dtypes)
    _Writer(p, kernel).write()
    return kernel.function()


class _Writer(SpreadingWriter):
    def _sum_up(self, acc: Accumulators, source: Any, weights: Any) -> None:
        row = sum(acc.widths)
        with self.body.loop(self.conv.in_channels) as index:
            vectors = [
                self.body.bind("w", load_channels(self.spread, weights + index * row + first, width))
                for first, width in zip(starts(acc.widths), acc.widths, strict=True)
            ]
            for t in range(self.plan.tiles):
                value = self.body.bind("x", tirx.BufferLoad(self.inputs, [source + t * self.conv.in_channels + index]))
                for vector, weight in enumerate(vectors):
                    acc.add_product(t, vector, value, weight)
