"""What the convolutions of 8-bit integers share: the input is read along its contiguous runs, 16 bytes at a time.

A run is a row of the window with all its channels, or what of it is contiguous. Its last chunk is padded with zero
weights, and what the input holds there does not matter.

A uint8 input is turned into int8 by its highest bit, x − 128: Σ x · w = Σ (x − 128) · w + 128 · Σ w. The last term,
for each channel, stands at the head of its panel of weights.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from typing import Any, ClassVar

import numpy as np
from tvm import tirx

from edgec.program import Conv
from edgec.targets.cpu.aarch64.neon import special
from edgec.targets.cpu.aarch64.tile import LANES, IntegerTile, bias_apart, load_input, start_vectors
from edgec.targets.cpu.conv import RESIDENT_PANEL_BYTES, ConvPlan, ConvWriter
from edgec.targets.cpu.tile import SHORT, Point, Store, tiles
from edgec.targets.cpu.tir import Kernel

CHUNK = 16
"""Bytes of a run that are loaded at a time."""
REGISTERS = 32
TILE_OVERHEAD = 14
"""Instructions to set up a tile."""
EPILOGUE = 6
"""Instructions that each vector of sums costs beside the products: start, conversion, narrowing and store."""


@dataclass(frozen=True)
class RunPlan(ConvPlan):
    """A convolution of bytes with its register tile; ``lanes`` is 4."""

    suffix: ClassVar[str]
    """What the kernel's name ends with."""
    spare: ClassVar[int]
    """Registers beside the sums and the pixels, as many as keep the compiler from spilling."""

    @abstractmethod
    def padded(self, rest: int) -> int:
        """The bytes of the chunk that covers the last ``rest`` bytes of a run."""

    @abstractmethod
    def products(self, chunk: int, pixels: int, vectors: int) -> float:
        """Instructions of the products of a chunk of so many bytes, its loads included."""

    @abstractmethod
    def arranged(self, block: np.ndarray) -> np.ndarray:
        """The weights int8 [byte, channel] of a chunk and a block of channels, in the order in which they are read."""

    @property
    def runs(self) -> tuple[list[tuple[int, int]], int]:
        """The loops over the runs, as :attr:`ConvPlan.reduction`, and the length of a run in bytes."""
        loops = self.reduction
        if loops and loops[-1][1] == 1:
            return loops[:-1], loops[-1][0]
        return loops, 1

    @property
    def chunks(self) -> list[int]:
        """The bytes of each chunk of a run."""
        whole, rest = divmod(self.runs[1], CHUNK)
        return [CHUNK] * whole + ([self.padded(rest)] if rest else [])

    @property
    def depth(self) -> int:
        """Bytes of weights per output channel, those of padding included."""
        return prod(extent for extent, _ in self.runs[0]) * sum(self.chunks)

    @property
    def head(self) -> int:
        """Bytes per channel at the head of a panel: the int32 to start from, where the input is uint8."""
        return 4 if self.conv.input_dtype == "uint8" else 0

    @property
    def panel_first(self) -> bool:
        return self.depth * self.block <= RESIDENT_PANEL_BYTES

    def widths(self, channels: int) -> list[int]:
        return [LANES] * -(-channels // LANES)

    def panel(self, channels: int) -> int:
        return (self.depth + self.head) * sum(self.widths(channels))


def fits(conv: Conv) -> bool:
    """Whether the sums are of integers, the weights constant and the channels of a pixel neighbours."""
    contiguous = conv.input_strides[3] == 1 or conv.in_channels == 1
    return conv.input_dtype != "float32" and conv.weight_strides is None and contiguous


def best_tile(kind: type[RunPlan], conv: Conv) -> RunPlan:
    """The register tile of the fewest instructions."""
    return min(candidates(kind, conv), key=lambda p: (instructions(p), p.rows, p.columns))


def candidates(kind: type[RunPlan], conv: Conv) -> Iterator[RunPlan]:
    """Every register tile that fits the register file."""
    for vectors in range(1, min(8, -(-conv.out_channels // LANES)) + 1):
        pixels = (REGISTERS - kind.spare) // (vectors + 1)
        for columns in range(1, min(conv.out_width, pixels) + 1):
            for rows in range(1, min(conv.out_height, pixels // columns) + 1):
                yield kind(conv, rows, columns, vectors, LANES)


def instructions(p: RunPlan) -> float:
    """Instructions, about, of the whole convolution."""
    conv, total = p.conv, 0.0
    runs = prod(extent for extent, _ in p.runs[0])
    for _, rows, row_tiles in tiles(conv.out_height, p.rows):
        for _, columns, column_tiles in tiles(conv.out_width, p.columns):
            for _, channels, blocks in tiles(conv.out_channels, p.block):
                pixels, vectors = rows * columns, len(p.widths(channels))
                work = runs * sum(p.products(chunk, pixels, vectors) + 2 for chunk in p.chunks)
                total += row_tiles * column_tiles * blocks * (work + EPILOGUE * pixels * vectors + TILE_OVERHEAD)
    return total


def pack(p: RunPlan, weight: np.ndarray) -> np.ndarray:
    """The weight [kh, kw, ci, co] as panels, one after the other: the head, then the chunks of every run."""
    run = p.runs[1]
    matrix = np.zeros((weight.size // (run * p.conv.out_channels), sum(p.chunks), p.conv.out_channels), np.int8)
    matrix[:, :run] = weight.reshape(-1, run, p.conv.out_channels)
    edges = np.cumsum(p.chunks)[:-1]
    panels = []
    for start, channels, count in tiles(p.conv.out_channels, p.block):
        for first in range(start, start + channels * count, channels):
            block = np.zeros((*matrix.shape[:2], sum(p.widths(channels))), np.int8)
            block[:, :, :channels] = matrix[:, :, first : first + channels]
            if p.head:
                panels.append((block.sum((0, 1), np.int32) * 128).view(np.int8))
            panels += [p.arranged(chunk).ravel() for each in block for chunk in np.split(each, edges)]
    return np.concatenate(panels)


class RunWriter(ConvWriter):
    """Emits the loops over runs and chunks around what a subclass does with a chunk."""

    plan: RunPlan

    def __init__(self, p: RunPlan, kernel: Kernel) -> None:
        super().__init__(p, kernel)
        epilogue, self.bias = bias_apart(p.conv.epilogue)
        self.target = Store(self.body, kernel.buffers[:-1], kernel.buffers[-1], epilogue, p.conv.store)

    @abstractmethod
    def _products(self, acc: IntegerTile, pixels: list[Any], weights: Any, chunk: int) -> None:
        """Add the products of ``chunk`` bytes of every pixel, as int8x16, with the weights from ``weights`` on."""

    def _accumulators(
        self, points: list[Point], widths: list[int], channel: Any, channels: int, panel: Any
    ) -> IntegerTile:
        head = (self.weight, panel) if self.plan.head else None
        start = start_vectors(self.body, self.target.operands, self.bias, channel, channels, len(widths), head)
        return IntegerTile(self.body, points, start)

    def _reduce(self, acc: IntegerTile, corner: Any, panel: Any, k_step: int) -> None:
        outer, _ = self.plan.runs
        panel = panel + self.plan.head * sum(acc.widths)

        def level(depth: int, source: Any, run: Any) -> None:
            if depth == len(outer):
                self._run(acc, source, panel + run * (sum(self.plan.chunks) * k_step))
                return
            extent, step = outer[depth]
            inner = prod(e for e, _ in outer[depth + 1 :])
            with self.body.loop(extent) as index:
                level(depth + 1, source + index * step, run + index * inner)

        level(0, corner, tirx.const(0, "int32"))

    def _run(self, acc: IntegerTile, source: Any, weights: Any) -> None:
        """The products of one run. Its chunks are not unrolled: the compiler would load pixels too early and spill."""
        row = sum(acc.widths)
        whole, rest = divmod(self.plan.runs[1], CHUNK)
        if whole:
            with self.body.loop(whole) as index:
                self._chunk(acc, source + index * CHUNK, weights + index * (CHUNK * row), CHUNK)
        if rest:
            self._chunk(acc, source + whole * CHUNK, weights + whole * CHUNK * row, self.plan.padded(rest))

    def _chunk(self, acc: IntegerTile, source: Any, weights: Any, chunk: int) -> None:
        _, h_step, w_step, _ = self.conv.input_strides
        sh, sw = self.conv.stride
        offsets = [source + point.row * sh * h_step + point.column * sw * w_step for point in acc.points]
        pixels = [self.body.bind("x", load_input(self.input, offset)) for offset in offsets]
        self._products(acc, pixels, weights, chunk)


def generate(writer: type[RunWriter], p: RunPlan, dtypes: list[str]) -> Any:
    """The kernel, as ``tirx.PrimFunc``."""
    kernel = Kernel(dtypes, special)
    writer(p, kernel).write()
    return kernel.function()


def contract(p: RunPlan) -> str:
    """The kernel's name."""
    c = p.conv
    kernel = f"k{c.kernel[0]}x{c.kernel[1]}s{c.stride[0]}x{c.stride[1]}d{c.dilation[0]}x{c.dilation[1]}"
    shape = f"n{c.batch}h{c.out_height}w{c.out_width}c{c.out_channels}"
    return f"{SHORT[c.input_dtype]}_conv_{shape}_{kernel}i{c.in_channels}__t{p.rows}x{p.columns}v{p.vectors}_{p.suffix}"
