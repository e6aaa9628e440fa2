"""Code for :class:`edgec.program.Conv` of float32, 3×3 and stride 1, by Winograd's F(4×4, 3×3).

Four by four outputs come from six by six inputs through 36 products a channel, where the direct sum takes 144
(Lavin & Gray, "Fast Algorithms for Convolutional Neural Networks", 2016). A block of tiles is transformed into a
scratch buffer [point, tile, channel], multiplied point by point by ``fmla`` by element, and transformed back. The
error is about 3e-6 of the outputs' range, since the transforms' coefficients are at most 8.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from tvm import tirx

from edgec.program import Conv
from edgec.targets.cpu.aarch64.neon import special
from edgec.targets.cpu.aarch64.tile import LANES, Tile
from edgec.targets.cpu.tile import Point, Store, load_channels, tiles
from edgec.targets.cpu.tir import Kernel, vector_store
from edgec.targets.target import Target

OUT, IN = 4, 6
"""Outputs and inputs of a tile along an axis."""
POINTS = IN * IN
BLOCK_TILES = 6
"""Tiles of a block, at most: as many rows of sums as registers hold beside four vectors of channels."""
BLOCK_CHANNELS = 16
SCRATCH_BYTES = 256 * 1024
"""Of a block's transformed inputs and sums, at most: they lie on the stack, and in the L2 cache."""

WEIGHT_TRANSFORM = np.array(
    [[1 / 4, 0, 0], [-1 / 6, -1 / 6, -1 / 6], [-1 / 6, 1 / 6, -1 / 6],
     [1 / 24, 1 / 12, 1 / 6], [1 / 24, -1 / 12, 1 / 6], [0, 0, 1]]
)  # fmt: skip
"""G of the paper: the window's three weights along an axis at six points."""


@dataclass(frozen=True)
class WinogradPlan:
    """A convolution with the tiles of a block."""

    conv: Conv
    tiles: int

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of tiles."""
        return self.conv.out_height // OUT, self.conv.out_width // OUT


def fits(conv: Conv) -> bool:
    """Whether the transforms pay: enough channels in whole vectors, whole tiles, and several of them a block."""
    plain = conv.kernel == (3, 3) and conv.stride == conv.dilation == (1, 1) and conv.input_strides[3] == 1
    whole = conv.out_height % OUT == conv.out_width % OUT == conv.in_channels % LANES == conv.out_channels % LANES == 0
    deep = conv.in_channels >= BLOCK_CHANNELS and conv.out_channels >= BLOCK_CHANNELS
    return plain and whole and deep and conv.weight_strides is None and _block(conv) > 1


def _block(conv: Conv) -> int:
    """Tiles of a block: a divisor of an image's tiles; 0 where the scratch would be too large."""
    count = conv.out_height // OUT * (conv.out_width // OUT)
    bytes_per_tile = POINTS * (conv.in_channels + conv.out_channels) * 4
    most = min(BLOCK_TILES, SCRATCH_BYTES // bytes_per_tile)
    return max((n for n in range(1, most + 1) if count % n == 0), default=0)


def plan(conv: Conv, target: Target) -> WinogradPlan:
    """The largest block."""
    return WinogradPlan(conv, _block(conv))


def pack(p: WinogradPlan, weight: np.ndarray) -> np.ndarray:
    """The weight [3, 3, ci, co] at the 36 points, as [block of channels][point, ci, channel]."""
    spread = np.einsum("ik,jl,klcd->ijcd", WEIGHT_TRANSFORM, WEIGHT_TRANSFORM, weight.astype(np.float64))
    points = spread.reshape(POINTS, *weight.shape[2:]).astype(np.float32)
    blocks = range(0, p.conv.out_channels, BLOCK_CHANNELS)
    return np.concatenate([points[:, :, first : first + BLOCK_CHANNELS].ravel() for first in blocks])


def generate(p: WinogradPlan, dtypes: list[str]) -> Any:
    """The kernel, as ``tirx.PrimFunc``; threads share the blocks of an image."""
    kernel = Kernel(dtypes, special)
    _WinogradWriter(p, kernel).write()
    return kernel.function()


class _WinogradWriter:
    """Emits the loop over blocks, and in it the three stages."""

    def __init__(self, p: WinogradPlan, kernel: Kernel) -> None:
        self.plan, self.conv, self.kernel, self.body = p, p.conv, kernel, kernel.body
        self.input, self.weight = kernel.buffers[:2]
        self.target = Store(self.body, kernel.buffers[:-1], kernel.buffers[-1], p.conv.epilogue, p.conv.store)
        self.inputs = self.body.local("float32", POINTS * p.tiles * p.conv.in_channels)
        self.sums = self.body.local("float32", POINTS * p.tiles * p.conv.out_channels)

    def write(self) -> None:
        rows, columns = self.plan.grid
        with self.body.loop(self.conv.batch) as image:
            first, count = self.kernel.share(rows * columns // self.plan.tiles)
            with self.body.loop(count, first) as block:
                start = self.body.bind("t", block * self.plan.tiles)
                self._each_tile(start, lambda *place: self._transform_inputs(image, *place))
                self._multiply()
                self._each_tile(start, lambda *place: self._transform_sums(image, *place))

    def _each_tile(self, start: Any, inner: Any) -> None:
        """``inner`` for every tile of the block from ``start`` on: its number, its first row and its first column."""
        columns = self.plan.grid[1]
        with self.body.loop(self.plan.tiles) as tile:
            index = start + tile
            row = self.body.bind("row", tirx.truncdiv(index, columns) * OUT)
            inner(tile, row, self.body.bind("column", tirx.truncmod(index, columns) * OUT))

    def _transform_inputs(self, image: Any, tile: Any, row: Any, column: Any) -> None:
        n_step, h_step, w_step, _ = self.conv.input_strides
        corner = self.conv.input_offset + image * n_step + row * h_step + column * w_step
        with self.body.loop(self.conv.in_channels // LANES) as vector:
            given = self._square(self.input, corner + vector * LANES, h_step, w_step)
            self._put(self._both_ways(given, self._input_axis), self.inputs, tile, self.conv.in_channels, vector)

    def _transform_sums(self, image: Any, tile: Any, row: Any, column: Any) -> None:
        channels = self.conv.out_channels
        with self.body.loop(channels // LANES) as vector:
            step = self.plan.tiles * channels
            given = self._square(self.sums, tile * channels + vector * LANES, IN * step, step)
            results = self._both_ways(given, self._output_axis)
            for i, line in enumerate(results):
                for j, value in enumerate(line):
                    axes = {0: image, 1: row + i, 2: column + j, 3: vector * LANES}
                    offset, result = self.target.evaluate(axes, 0, LANES, value)
                    self.body.emit(vector_store(self.target.output, result, offset))

    def _square(self, buffer: Any, offset: Any, row_step: int, column_step: int) -> list[list[Any]]:
        """Six by six vectors of channels."""
        first = self.body.bind("first", offset)
        offsets = [[first + i * row_step + j * column_step for j in range(IN)] for i in range(IN)]
        return [[self.body.bind("d", load_channels(buffer, each, LANES)) for each in line] for line in offsets]

    def _both_ways(self, given: list[list[Any]], transform: Any) -> list[list[Any]]:
        """``transform`` along the columns, then along the rows."""
        down = [transform([line[j] for line in given]) for j in range(len(given[0]))]
        return [transform([line[i] for line in down]) for i in range(len(down[0]))]

    def _input_axis(self, d: Sequence[Any]) -> list[Any]:
        """Bᵀ of the paper, along one axis."""
        hold = self.body.hold
        even, odd = hold(d[4] - _times(4, d[2])), hold(d[3] - _times(4, d[1]))
        near, far = hold(d[4] - d[2]), hold(d[3] - d[1])
        ends = _times(4, d[0]) + d[4] - _times(5, d[2]), _times(4, d[1]) + d[5] - _times(5, d[3])
        inner = even + odd, even - odd, near + _times(2, far), near - _times(2, far)
        return [hold(value) for value in (ends[0], *inner, ends[1])]

    def _output_axis(self, m: Sequence[Any]) -> list[Any]:
        """Aᵀ of the paper, along one axis."""
        hold = self.body.hold
        sums, differences = (hold(m[1] + m[2]), hold(m[3] + m[4])), (hold(m[1] - m[2]), hold(m[3] - m[4]))
        values = (
            m[0] + sums[0] + sums[1],
            differences[0] + _times(2, differences[1]),
            sums[0] + _times(4, sums[1]),
            differences[0] + _times(8, differences[1]) + m[5],
        )
        return [hold(value) for value in values]

    def _put(self, values: list[list[Any]], buffer: Any, tile: Any, channels: int, vector: Any) -> None:
        first = self.body.bind("first", tile * channels + vector * LANES)
        step = self.plan.tiles * channels
        for index, value in enumerate(value for line in values for value in line):
            self.body.emit(vector_store(buffer, value, first + index * step))

    def _multiply(self) -> None:
        """The products at every point, for one block of channels after the other."""
        panel = POINTS * self.conv.in_channels
        for start, channels, count in tiles(self.conv.out_channels, BLOCK_CHANNELS):
            with self.body.loop(count) as block, self.body.loop(POINTS) as point:
                channel = start + block * channels
                weights = channel * panel + point * (self.conv.in_channels * channels)
                self._products(point, channel, channels, self.body.bind("w", weights))

    def _products(self, point: Any, channel: Any, channels: int, weights: Any) -> None:
        depth, count = self.conv.in_channels, self.plan.tiles
        zero = tirx.Broadcast(tirx.const(0, "float32"), LANES)
        tile = Tile(self.body, "float32", [Point(0, t) for t in range(count)], [zero] * (channels // LANES))
        source = self.body.bind("u", point * (count * depth))
        with self.body.loop(depth // LANES) as index:
            inputs = [
                self.body.bind("x", load_channels(self.inputs, source + t * depth + index * LANES, LANES))
                for t in range(count)
            ]
            for lane in range(LANES):
                for vector in range(channels // LANES):
                    offset = weights + (index * LANES + lane) * channels + vector * LANES
                    weight = self.body.bind("w", load_channels(self.weight, offset, LANES))
                    for t, value in enumerate(inputs):
                        every = tirx.Shuffle([value], [tirx.const(lane, "int32")] * LANES)
                        tile.add_product(t, vector, every, weight)
        first = self.body.bind("first", point * (count * self.conv.out_channels) + channel)
        for t in range(count):
            for vector in range(channels // LANES):
                offset = first + (t * self.conv.out_channels + vector * LANES)
                self.body.emit(vector_store(self.sums, tile.value(t, vector), offset))


def _times(factor: int, value: Any) -> Any:
    return value * tirx.Broadcast(tirx.const(float(factor), "float32"), LANES)


def contract(p: WinogradPlan) -> str:
    """The kernel's name."""
    c = p.conv
    shape = f"n{c.batch}h{c.out_height}w{c.out_width}c{c.out_channels}"
    return f"f32_conv_{shape}_k3x3i{c.in_channels}__t{p.tiles}_winograd4"
