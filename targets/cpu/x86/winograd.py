"""Winograd's convolution (:mod:`edgec.targets.cpu.winograd`) for x86.

The weights at 36 points would take four times their memory, in the artifact and in the caches, so that they are made
as they are needed, block by block of output channels, from the nine. All of a thread's tiles are transformed first.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import prod
from typing import Any

import numpy as np

from edgec.building.lazy_tvm import tirx
from edgec.program import Conv
from edgec.targets.cpu.tile import Accumulators, load_channels, starts, tiles
from edgec.targets.cpu.tir import Kernel
from edgec.targets.cpu.winograd import POINTS, WinogradPlan, WinogradWriter, block_tiles, times
from edgec.targets.cpu.winograd import fits as fits_transforms
from edgec.targets.target import Target

LEAST_SUMS = 8
"""Fewer vectors of sums would wait for each other."""
MOST_VECTORS = 4
SCRATCH_BYTES = 320 * 1024
"""Of the transformed inputs of an image, and of the weights of a block, at most: they lie on the stack."""
INPUT_CYCLES, OUTPUT_CYCLES, WEIGHT_CYCLES = 200, 150, 110
"""Cycles, about, to transform a vector of a tile's inputs, of its sums, and of weights."""
GAIN = 0.85
"""Share of the direct convolution's cycles that the transforms must stay within."""


def fits(conv: Conv, target: Target) -> bool:
    """Whether the transforms pay, and the registers are put to use."""
    if conv.input_dtype != "float32" or not fits_transforms(conv):
        return False
    return any(True for _ in candidates(conv, target)) and _cycles(conv, target.lanes(4)) < GAIN * _direct(conv, target)


def _cycles(conv: Conv, lanes: int) -> float:
    """Cycles, about, at one multiply-add of vectors a cycle; those of fewer channels count as whole ones."""
    count = conv.batch * conv.out_height * conv.out_width // 16
    inputs, outputs = -(-conv.in_channels // lanes), -(-conv.out_channels // lanes)
    products = POINTS * count * conv.in_channels * outputs
    transforms = count * (INPUT_CYCLES * inputs + OUTPUT_CYCLES * outputs)
    return products + transforms + conv.batch * conv.in_channels * outputs * WEIGHT_CYCLES


def _direct(conv: Conv, target: Target) -> float:
    return conv.macs / conv.out_channels * -(-conv.out_channels // target.lanes(4))


def plan(conv: Conv, target: Target) -> WinogradPlan:
    """The block with the fewest loads for its products, those of most products first."""
    return min(candidates(conv, target), key=lambda p: ((p.tiles + p.vectors) / (p.tiles * p.vectors), p.tiles))


def candidates(conv: Conv, target: Target) -> Iterator[WinogradPlan]:
    """Every block that fits the registers, and whose weights and inputs fit the scratch."""
    lanes = target.lanes(4)
    if POINTS * conv.in_channels * conv.out_height * conv.out_width // 4 > SCRATCH_BYTES:
        return
    for vectors in range(1, min(MOST_VECTORS, -(-conv.out_channels // lanes)) + 1):
        count = block_tiles(conv, (target.vector_registers - 1 - vectors) // vectors)
        fitting = POINTS * conv.in_channels * vectors * lanes * 4 <= SCRATCH_BYTES
        if fitting and count * vectors >= LEAST_SUMS:
            yield WinogradPlan(conv, count, vectors, lanes)


def pack(p: WinogradPlan, weight: np.ndarray) -> np.ndarray:
    """The weight [3, 3, ci, co] as [block of channels][kh, kw, ci, channel], channels padded with zeros."""
    taps, blocks = weight.reshape(-1, *weight.shape[2:]), []
    for first in range(0, taps.shape[2], p.block):
        block = taps[:, :, first : first + p.block]
        channels = block.shape[2]
        blocks.append(np.pad(block, ((0, 0), (0, 0), (0, sum(p.widths(channels)) - channels))).ravel())
    return np.concatenate(blocks)


def generate(p: WinogradPlan, dtypes: list[str]) -> Any:
    """The kernel, as ``tirx.PrimFunc``."""
    kernel = Kernel(dtypes)
    _SpreadingWriter(p, kernel).write()
    return kernel.function()


class _SpreadingWriter(WinogradWriter):
    def __init__(self, p: WinogradPlan, kernel: Kernel) -> None:
        super().__init__(p, kernel)
        self.spread = self.body.local("float32", POINTS * (p.conv.in_channels * p.block + p.lanes))

    def _scratch(self) -> tuple[int, int]:
        return POINTS * prod(self.plan.grid) * self.conv.in_channels, POINTS * self.plan.tiles * self.plan.block

    def write(self) -> None:
        span, blocks = self.plan.tiles, prod(self.plan.grid) // self.plan.tiles
        scratch = POINTS * span * self.conv.in_channels
        with self.body.loop(self.conv.batch) as image:
            first, count = self.kernel.share(blocks)
            with self.body.loop(count, first) as block:
                base = self.body.bind("base", block * scratch)
                self._each_tile(block * span, lambda *place: self._transform_inputs(image, base, *place))
            for start, channels, groups in tiles(self.conv.out_channels, self.plan.block):
                with self.body.loop(groups) as group:
                    channel = self.body.bind("channel", start + group * channels)
                    self._spread_weights(image, channel, sum(self.plan.widths(channels)))
                    with self.body.loop(count, first) as block:
                        self._block(image, block, channel, channels)

    def _block(self, image: Any, block: Any, channel: Any, channels: int) -> None:
        """The outputs of a block of tiles and a block of channels."""
        span, depth, widths = self.plan.tiles, self.conv.in_channels, self.plan.widths(channels)
        row = sum(widths)
        with self.body.loop(POINTS) as point:
            source = (block * POINTS + point) * (span * depth)
            self._products(source, widths, point * self._spread_step(row), point * (span * row), row)
        self._each_tile(block * span, lambda *place: self._transform_sums(image, channel, channels, *place))

    def _spread_weights(self, image: Any, channel: Any, row: int) -> None:
        """The weights of a block of ``row`` channels, zeros among them, at the 36 points, as [point, ci, channel]."""
        depth = self.conv.in_channels
        lanes = sum(sum(self.plan.widths(n)) * count for _, n, count in tiles(self.conv.out_channels, self.plan.block))
        base = self._weights_of(image, 9 * depth * lanes)
        with self.body.loop(depth) as index:
            for start, width, count in tiles(row, self.plan.lanes):
                with self.body.loop(count) as vector:
                    place = self.body.bind("place", index * row + start + vector * width)
                    first = self.body.bind("first", base + channel * (9 * depth) + place)
                    offsets = [[first + (3 * i + j) * (depth * row) for j in range(3)] for i in range(3)]
                    given = [
                        [self.body.bind("g", load_channels(self.weight, each, width)) for each in line]
                        for line in offsets
                    ]
                    self._put(self._both_ways(given, self._weight_axis), self.spread, place, self._spread_step(row))

    def _spread_step(self, row: int) -> int:
        """From one point's weights to the next one's: not a power of two, whose lines would evict each other."""
        return self.conv.in_channels * row + self.plan.lanes

    def _weight_axis(self, g: Sequence[Any]) -> list[Any]:
        """G of the paper, along one axis."""
        hold = self.body.hold
        ends, near = hold(g[0] + g[2]), hold(times(1 / 24, g[0]) + times(1 / 6, g[2]))
        middle = hold(times(1 / 12, g[1]))
        values = (
            times(1 / 4, g[0]),
            times(-1 / 6, ends + g[1]),
            times(-1 / 6, ends - g[1]),
            near + middle,
            near - middle,
        )
        return [*(hold(value) for value in values), g[2]]

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
