"""Code for :class:`edgec.program.Conv`: convolution as implicit GEMM, and GEMM itself.

The register tile is ``rows`` × ``columns`` output pixels times ``vectors`` vectors of output channels. Every
step of the reduction loads the vectors of one weight row and multiplies each by one input value per pixel,
broadcast. Weights are packed so that they are read straight through: one panel per block of channels, in it
[kh, kw, ci, channel]. The kernel name spells the contract:
``f32_conv_n1h32w32c16_k3x3s1d1i16__t2x7v2`` is tile 2×7 pixels by 2 vectors.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from math import prod
from typing import Any, TypeVar

import numpy as np

from edgec.building.lazy_tvm import tirx
from edgec.nest import merged_loops
from edgec.program import Conv, Depthwise
from edgec.targets.cpu.tile import Accumulators, Point, Store, load_channels, reduce_over, shape_name, starts, tiles
from edgec.targets.cpu.tir import Kernel, Special, nothing_special
from edgec.targets.target import Target
from edgec.targets.vectors import padded_pieces, pieces

FMA_LATENCY = 4
"""Cycles until a multiply-add's result can be added to again; fewer accumulators than this stall."""
LOADS_PER_CYCLE = 2
TILE_OVERHEAD = 12
"""Cycles, about, to set up a tile, on top of its stores."""
CODE_CYCLES = 12
"""Cycles, about, to fetch the code of one multiply-add and its share of loads and stores: a network's kernels
do not stay in the instruction cache from one inference to the next, so every further size of tile costs."""
RESIDENT_PANEL_BYTES = 20 * 1024
"""A weight panel up to this size stays in the L1 cache while all pixels pass by."""
TEAMS = (2, 4)
"""How many threads the work is shared out for."""
CACHE_LINE, L1_SETS, L1_WAYS = 64, 64, 8
"""The L1 data cache that tiles are chosen for: 32 kB, as on most cores."""
CONFLICT_CYCLES = 2
"""Cycles per load that finds its line evicted by the tile's other pixels."""


@dataclass(frozen=True)
class ConvPlan:
    """A convolution with its register tile."""

    conv: Conv
    rows: int
    columns: int
    vectors: int
    lanes: int

    def __post_init__(self) -> None:
        assert min(self.rows, self.columns, self.vectors) >= 1
        assert self.rows <= self.conv.out_height and self.columns <= self.conv.out_width

    @property
    def block(self) -> int:
        """Output channels of a whole block."""
        return self.vectors * self.lanes

    def widths(self, channels: int) -> list[int]:
        """The vectors that cover a block of ``channels``; run-time weights must not be read past their end."""
        cover = padded_pieces if self.conv.weight_strides is None else pieces
        return cover(channels, self.lanes)

    @property
    def reduction(self) -> list[tuple[int, int]]:
        """The reduction loops: (extent, input elements per step), merged where the input is contiguous."""
        return merged_loops(self.taps)

    @property
    def taps(self) -> list[tuple[int, int]]:
        """Rows of the window, columns and channels: how many, and input elements per step."""
        return self.conv.taps

    @property
    def depth(self) -> int:
        """Products per output element."""
        return self.conv.in_channels * prod(self.conv.kernel)

    def panel(self, channels: int) -> int:
        """Elements of the packed weights of a block of ``channels``."""
        return self.depth * sum(self.widths(channels))

    @property
    def panels(self) -> int:
        """Elements of the packed weights of all blocks; of a grouped convolution, of one group's."""
        return sum(self.panel(channels) * count for _, channels, count in tiles(self.conv.out_channels, self.block))

    def of_block(self, values: np.ndarray, first: int, channels: int) -> np.ndarray:
        """The ``channels`` from ``first`` on of ``values`` [..., channel], and zeros in the other lanes of a panel."""
        rest = sum(self.widths(channels)) - channels
        return np.pad(values[..., first : first + channels], [*[(0, 0)] * (values.ndim - 1), (0, rest)])

    @property
    def panel_first(self) -> bool:
        """Whether channel blocks are the outer loop, each panel of weights staying in L1."""
        return self.depth * self.block * 4 <= RESIDENT_PANEL_BYTES or self.conv.weight_strides is not None


Plan = TypeVar("Plan", bound=ConvPlan)


def plan(conv: Conv, target: Target) -> ConvPlan:
    """Choose the register tile with the smallest cost estimate (see :func:`cost`)."""
    return candidates(conv, target)[0]


def candidates(conv: Conv, target: Target) -> list[ConvPlan]:
    """Every register tile that fits, the cheapest first."""
    found = register_tiles(ConvPlan, conv, lanes_of_sums(conv, target), target.vector_registers)
    return sorted(found, key=lambda p: (cost(p), p.rows, p.columns))


def lanes_of_sums(conv: Conv | Depthwise, target: Target) -> int:
    """Sums in a vector; where they are float16, a whole register of them."""
    return target.vector_bytes // 2 if conv.accumulator_dtype == "float16" else target.lanes(4)


def register_tiles(
    kind: type[Plan], conv: Conv, lanes: int, registers: int, spare: int = 1
) -> Iterator[Plan]:
    """Every register tile, as a plan of ``kind``, that fits the register file beside ``spare`` registers."""
    for vectors in range(1, min(8, max(1, -(-conv.out_channels // lanes))) + 1):
        pixels = max(1, (registers - vectors - spare) // vectors)
        for columns in range(1, min(conv.out_width, pixels) + 1):
            for rows in range(1, min(conv.out_height, max(1, pixels // columns)) + 1):
                yield kind(conv, rows, columns, vectors, lanes)


def cost(p: ConvPlan) -> float:
    """Cycles, about, of the whole convolution: multiply-adds, loads or latency, whichever bounds a tile."""
    conv, total = p.conv, 0.0
    row_step, column_step = (s * step for s, step in zip(conv.stride, conv.input_strides[1:3], strict=True))
    for _, rows, row_tiles in tiles(conv.out_height, p.rows):
        for _, columns, column_tiles in tiles(conv.out_width, p.columns):
            for _, channels, blocks in tiles(conv.out_channels, p.block):
                pixels, vectors = rows * columns, len(p.widths(channels))
                fmas, loads = pixels * vectors, pixels + vectors
                slow = conflicts(rows, row_step, columns, column_step) * CONFLICT_CYCLES
                step = max(fmas, loads / LOADS_PER_CYCLE + slow, FMA_LATENCY) + 0.5
                setup = TILE_OVERHEAD + 1.5 * fmas
                total += conv.batch * row_tiles * column_tiles * blocks * (p.depth * step + setup)
                total += fmas * CODE_CYCLES
    return total


@cache
def conflicts(rows: int, row_step: int, columns: int, column_step: int) -> int:
    """How many pixels of a tile share a cache set with more others than it has ways.

    All pixels of a tile are walked in step, so lines a multiple of the sets' span apart (a channel count that
    is a large power of two) evict each other at every step. Steps are in float32 elements.
    """
    lines = {(r * row_step + c * column_step) * 4 // CACHE_LINE for r in range(rows) for c in range(columns)}
    counts = Counter(line % L1_SETS for line in lines)
    return sum(count for count in counts.values() if count > L1_WAYS)


def balance(extent: int, size: int, threads: int) -> float:
    """The mean share of the work over the largest, where ``threads`` share an axis in tiles of ``size``."""
    whole, rest = divmod(extent, size)
    largest = max(whole // threads * size + rest, -(-whole // threads) * size)
    return extent / threads / largest


def pack(p: ConvPlan, weight: np.ndarray) -> np.ndarray:
    """The weight [kh, kw, ci, co] as panels, one after the other, channels padded with zeros.

    A batch of matrices, read with strides, stays as it is.
    """
    if p.conv.weight_strides is not None:
        return weight
    matrix = weight.reshape(p.depth, p.conv.out_channels)
    panels = []
    for start, channels, count in tiles(p.conv.out_channels, p.block):
        for block in range(count):
            panels.append(p.of_block(matrix, start + block * channels, channels).ravel())
    return np.concatenate(panels)


def generate(p: ConvPlan, dtypes: list[str], special: Special = nothing_special) -> Any:
    """The kernel, as ``tirx.PrimFunc``; see :data:`.tir.Special`."""
    kernel = Kernel(dtypes, special)
    ConvWriter(p, kernel).write()
    return kernel.function()


class ConvWriter:
    """Emits the loops over blocks and tiles, and a microkernel for each size of tile."""

    def __init__(self, p: ConvPlan, kernel: Kernel) -> None:
        self.plan, self.conv, self.kernel, self.body = p, p.conv, kernel, kernel.body
        self.input, self.weight = kernel.buffers[:2]
        self.channel: Any = None
        """The first output channel of the tile."""
        self.target = Store(self.body, kernel.buffers[:-1], kernel.buffers[-1], p.conv.epilogue, p.conv.store)

    def write(self) -> None:
        with self.body.loop(self.conv.batch) as image:
            if self.plan.panel_first:
                self._channel_blocks(lambda *block: self._pixel_tiles(image, lambda *t: self._tile(image, *t, *block)))
            else:
                self._pixel_tiles(image, lambda *t: self._channel_blocks(lambda *b: self._tile(image, *t, *b)))

    @property
    def shared_axis(self) -> str:
        """What the threads share: the loop that gives them the most equal parts."""
        conv, p = self.conv, self.plan
        loops = {
            "rows": (conv.out_height, p.rows),
            "columns": (conv.out_width, p.columns),
            "channels": (conv.out_channels, p.block),
        }
        return max(loops, key=lambda name: (sum(balance(*loops[name], team) for team in TEAMS), loops[name]))

    def _loop(self, axis: str, start: int, size: int, count: int, inner: Any) -> None:
        """``count`` tiles of ``size`` from ``start``; shared among threads if ``axis`` is the shared one.

        A rest tile of the shared axis belongs to the first thread, which has no more whole tiles than any other.
        """
        if axis != self.shared_axis:
            with self.body.loop(count) as index:
                inner(start + index * size, index)
        elif count > 1:
            first, own = self.kernel.share(count)
            with self.body.loop(own, first) as index:
                inner(start + index * size, index)
        else:
            with self.body.when(tirx.EQ(self.kernel.thread, 0)):
                inner(tirx.const(start, "int32"), tirx.const(0, "int32"))

    def _channel_blocks(self, inner: Any) -> None:
        panel_start = 0
        for start, channels, count in tiles(self.conv.out_channels, self.plan.block):
            panel = self.plan.panel(channels)
            base = panel_start

            def block(channel: Any, index: Any, base: int = base, panel: int = panel, n: int = channels) -> None:
                inner(channel, n, index * panel + base)

            self._loop("channels", start, channels, count, block)
            panel_start += panel * count

    def _pixel_tiles(self, image: Any, inner: Any) -> None:
        for row_start, rows, row_tiles in tiles(self.conv.out_height, self.plan.rows):
            for start, columns, count in tiles(self.conv.out_width, self.plan.columns):

                def row_tile(row: Any, _: Any, s: int = start, c: int = columns, n: int = count, r: int = rows) -> None:
                    self._loop("columns", s, c, n, lambda column, _: inner(row, column, r, c))

                self._loop("rows", row_start, rows, row_tiles, row_tile)

    def _tile(
        self,
        image: Any,
        row: Any,
        column: Any,
        rows: int,
        columns: int,
        channel: Any,
        channels: int,
        panel: Any,
    ) -> None:
        """The microkernel: one register tile, from zero to stored."""
        widths = self.plan.widths(channels)
        points = [Point(r, c) for r in range(rows) for c in range(columns)]
        n_step, h_step, w_step, _ = self.conv.input_strides
        sh, sw = self.conv.stride
        corner = self.conv.input_offset + image * n_step + row * (sh * h_step) + column * (sw * w_step)
        corner = self.body.bind("corner", corner)
        if self.conv.weight_strides is not None:
            batch_step, k_step = self.conv.weight_strides
            panel = self.conv.weight_offset + image * batch_step + channel
        else:
            k_step = sum(widths)
        if self.conv.grouped:
            panel = panel + image * self.plan.panels
        panel = self.body.bind("panel", panel + tirx.const(0, "int32"))
        origin = {0: image, 1: row, 2: column, 3: channel}
        self.channel = channel
        acc = self._accumulators(points, widths, origin, channels, panel)
        self._reduce(acc, corner, panel, k_step)
        acc.write(self.target, origin, channels)

    def _accumulators(
        self, points: list[Point], widths: list[int], origin: dict[int, Any], channels: int, panel: Any
    ) -> Accumulators:
        """The register tile at ``origin``, of a block of ``channels``, as the sums start."""
        return Accumulators(self.body, self.conv.accumulator_dtype, points, widths)

    def _reduce(self, acc: Accumulators, corner: Any, panel: Any, k_step: int) -> None:
        def multiply(source: Any, k: Any) -> None:
            self._multiply(acc, source, panel + k * k_step)

        reduce_over(self.body, self.plan.reduction, corner, multiply)

    def _multiply(self, acc: Accumulators, source: Any, weights: Any) -> None:
        """One step of the reduction for the whole tile."""
        _, h_step, w_step, _ = self.conv.input_strides
        sh, sw = self.conv.stride
        vectors = [
            self.body.bind("w", load_channels(self.weight, weights + first, width))
            for first, width in zip(starts(acc.widths), acc.widths, strict=True)
        ]
        for pixel, point in enumerate(acc.points):
            offset = point.row * sh * h_step + point.column * sw * w_step
            value = self.body.bind("x", tirx.BufferLoad(self.input, [source + offset]))
            for index, vector in enumerate(vectors):
                acc.add_product(pixel, index, value, vector)


def contract(p: ConvPlan) -> str:
    """The kernel's name."""
    c = p.conv
    kind = "gemm_rt" if c.weight_strides else "conv"
    return f"{shape_name(c, kind)}i{c.in_channels}__t{p.rows}x{p.columns}v{p.vectors}"
