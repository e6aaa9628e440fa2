"""Code for :class:`edgec.program.Conv` of 8-bit integers by ``sdot``, for ARM cores with dot product.

The input is read 16 bytes a pixel at a time along its contiguous runs (a row of the window, or its channels). A
weight vector holds four channels × four bytes of the run; ``sdot`` by element multiplies it by four bytes of a
pixel. Runs are padded with zero weights to a multiple of four bytes, and what the input holds there does not matter.

A uint8 input is turned into int8 by its highest bit, x − 128; Σ x · w = Σ (x − 128) · w + 128 · Σ w, and the last
term, for each channel, stands in front of its panel of weights.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from tvm import tirx

from edgec.program import Conv
from edgec.scalar import Expr
from edgec.targets.cpu.aarch64.neon import dot, repeated, special
from edgec.targets.cpu.aarch64.tile import LANES, IntegerTile, bias_apart, bias_vectors, load_bytes
from edgec.targets.cpu.conv import RESIDENT_PANEL_BYTES, ConvPlan, ConvWriter
from edgec.targets.cpu.tile import SHORT, Point, Store, tiles
from edgec.targets.cpu.tir import Kernel
from edgec.targets.target import Target

GROUP = 4
"""Bytes of a run that one lane of ``sdot`` sums up."""
CHUNK = 16
"""Bytes of a run that are loaded at a time."""
UNROLL = 4
"""Chunks of a run in one iteration, at most."""
REGISTERS = 32
SPARE = 2
"""Registers for weights beside the sums and the pixels."""
TILE_OVERHEAD = 14
"""Instructions to set up a tile."""
EPILOGUE = 6
"""Instructions that each vector of sums costs beside the products: start, conversion, narrowing and store."""


@dataclass(frozen=True)
class DotPlan(ConvPlan):
    """A convolution of bytes with its register tile; ``lanes`` is 4."""

    @property
    def runs(self) -> tuple[list[tuple[int, int]], int]:
        """The loops over the runs, as :attr:`ConvPlan.reduction`, and the length of a run in bytes."""
        loops = self.reduction
        if loops and loops[-1][1] == 1:
            return loops[:-1], loops[-1][0]
        return loops, 1

    @property
    def groups(self) -> int:
        """Groups of four bytes that cover a run."""
        return -(-self.runs[1] // GROUP)

    @property
    def depth(self) -> int:
        """Bytes of weights per output channel, those of padding included."""
        return prod(extent for extent, _ in self.runs[0]) * self.groups * GROUP

    @property
    def head(self) -> int:
        """Bytes in front of each panel's channel: the int32 to start from, where the input is uint8."""
        return 4 if self.conv.input_dtype == "uint8" else 0

    def widths(self, channels: int) -> list[int]:
        return [LANES] * -(-channels // LANES)

    def panel(self, channels: int) -> int:
        return (self.depth + self.head) * sum(self.widths(channels))

    @property
    def panel_first(self) -> bool:
        return self.depth * self.block <= RESIDENT_PANEL_BYTES


def fits(conv: Conv) -> bool:
    """Whether the weights are constant and the channels of a pixel neighbours."""
    contiguous = conv.input_strides[3] == 1 or conv.in_channels == 1
    return conv.input_dtype != "float32" and conv.weight_strides is None and contiguous


def plan(conv: Conv, target: Target) -> DotPlan:
    """The register tile of the fewest instructions."""
    return min(candidates(conv), key=lambda p: (instructions(p), p.rows, p.columns))


def candidates(conv: Conv) -> Iterator[DotPlan]:
    """Every register tile that fits the register file."""
    for vectors in range(1, min(8, -(-conv.out_channels // LANES)) + 1):
        pixels = (REGISTERS - SPARE) // (vectors + 1)
        for columns in range(1, min(conv.out_width, pixels) + 1):
            for rows in range(1, min(conv.out_height, pixels // columns) + 1):
                yield DotPlan(conv, rows, columns, vectors, LANES)


def instructions(p: DotPlan) -> float:
    """Instructions, about, of the whole convolution."""
    conv, total = p.conv, 0.0
    outer, run = p.runs
    runs, chunks = prod(extent for extent, _ in outer), -(-run // CHUNK)
    for _, rows, row_tiles in tiles(conv.out_height, p.rows):
        for _, columns, column_tiles in tiles(conv.out_width, p.columns):
            for _, channels, blocks in tiles(conv.out_channels, p.block):
                pixels, vectors = rows * columns, len(p.widths(channels))
                loads = p.groups * vectors / 2 + chunks * pixels
                work = runs * (p.groups * pixels * vectors + loads + 2 * chunks)
                total += row_tiles * column_tiles * blocks * (work + EPILOGUE * pixels * vectors + TILE_OVERHEAD)
    return total


def pack(p: DotPlan, weight: np.ndarray) -> np.ndarray:
    """The weight [kh, kw, ci, co] as panels [run, group of four bytes, channel, byte], behind the head of each."""
    outer, run = p.runs
    matrix = weight.reshape(-1, run, p.conv.out_channels)
    padded = np.zeros((matrix.shape[0], p.groups * GROUP, p.conv.out_channels), np.int8)
    padded[:, :run] = matrix
    panels = []
    for start, channels, count in tiles(p.conv.out_channels, p.block):
        for first in range(start, start + channels * count, channels):
            block = np.zeros((*padded.shape[:2], sum(p.widths(channels))), np.int8)
            block[:, :, :channels] = padded[:, :, first : first + channels]
            if p.head:
                panels.append((block.sum((0, 1), np.int32) * 128).view(np.int8))
            panels.append(block.reshape(-1, GROUP, block.shape[2]).transpose(0, 2, 1).ravel())
    return np.concatenate(panels)


def generate(p: DotPlan, dtypes: list[str]) -> Any:
    """The kernel, as ``tirx.PrimFunc``."""
    kernel = Kernel(dtypes, special)
    _DotWriter(p, kernel).write()
    return kernel.function()


class _DotWriter(ConvWriter):
    plan: DotPlan

    def __init__(self, p: DotPlan, kernel: Kernel) -> None:
        super().__init__(p, kernel)
        epilogue, self.bias = bias_apart(p.conv.epilogue)
        self.target = Store(self.body, kernel.buffers[:-1], kernel.buffers[-1], epilogue, p.conv.store)

    def _accumulators(
        self, points: list[Point], widths: list[int], channel: Any, channels: int, panel: Any
    ) -> IntegerTile:
        axes = {**dict.fromkeys(range(3), tirx.const(0, "int32")), 3: channel}
        start = bias_vectors(self.body, self.target.operands, self.bias, axes, channels)
        if self.plan.head:
            start = [
                self.body.hold(value + tirx.reinterpret("int32x4", load_bytes(self.weight, panel + 4 * LANES * index)))
                for index, value in enumerate(start)
            ]
        return IntegerTile(self.body, points, start)

    def _reduce(self, acc: IntegerTile, corner: Any, panel: Any, k_step: int) -> None:
        outer, run = self.plan.runs
        row = GROUP * sum(acc.widths)
        panel = panel + self.plan.head * sum(acc.widths)

        def level(depth: int, source: Any, group: Any) -> None:
            if depth == len(outer):
                self._run(acc, source, panel + group * row, row, run)
                return
            extent, step = outer[depth]
            inner = prod(e for e, _ in outer[depth + 1 :]) * self.plan.groups
            with self.body.loop(extent) as index:
                level(depth + 1, source + index * step, group + index * inner)

        level(0, corner, tirx.const(0, "int32"))

    def _run(self, acc: IntegerTile, source: Any, weights: Any, row: int, run: int) -> None:
        """The products of one run, chunk by chunk."""
        whole, groups = run // CHUNK, CHUNK // GROUP
        unroll = max(u for u in range(1, UNROLL + 1) if whole % u == 0)
        with self.body.loop(whole // unroll) as index:
            for step in range(unroll if whole else 0):
                chunk = index * unroll + step
                self._chunk(acc, source + chunk * CHUNK, weights + chunk * (groups * row), row, groups)
        rest = -(-(run % CHUNK) // GROUP)
        if rest:
            self._chunk(acc, source + whole * CHUNK, weights + whole * groups * row, row, rest)

    def _chunk(self, acc: IntegerTile, source: Any, weights: Any, row: int, groups: int) -> None:
        _, h_step, w_step, _ = self.conv.input_strides
        sh, sw = self.conv.stride
        pixels = [
            self.body.bind("x", self._pixel(source + point.row * sh * h_step + point.column * sw * w_step))
            for point in acc.points
        ]
        for group in range(groups):
            for vector in range(len(acc.widths)):
                offset = weights + group * row + vector * GROUP * LANES
                weight = self.body.bind("w", load_bytes(self.weight, offset))
                for pixel, value in enumerate(pixels):
                    acc.update(pixel, vector, dot(acc.value(pixel, vector), weight, repeated(value, group)))

    def _pixel(self, offset: Any) -> Any:
        """16 bytes of the input, as int8."""
        value = load_bytes(self.input, offset)
        if self.conv.input_dtype == "int8":
            return value
        return tirx.reinterpret("int8x16", tirx.bitwise_xor(value, tirx.Broadcast(tirx.const(128, "uint8"), CHUNK)))


def contract(p: DotPlan) -> str:
    """The kernel's name."""
    c = p.conv
    kernel = f"k{c.kernel[0]}x{c.kernel[1]}s{c.stride[0]}x{c.stride[1]}d{c.dilation[0]}x{c.dilation[1]}"
    shape = f"n{c.batch}h{c.out_height}w{c.out_width}c{c.out_channels}"
    return f"{SHORT[c.input_dtype]}_conv_{shape}_{kernel}i{c.in_channels}__t{p.rows}x{p.columns}v{p.vectors}_dot"
