"""Code for :class:`edgec.program.Conv` of float32, 3×3 and stride 1, by Winograd's F(4×4, 3×3).

Four by four outputs come from six by six inputs through 36 products a channel, where the direct sum takes 144
(Lavin & Gray, "Fast Algorithms for Convolutional Neural Networks", 2016). A block of tiles is transformed into a
scratch buffer [point, tile, channel], multiplied point by point, and transformed back. The error is about 3e-6 of the
outputs' range, since the transforms' coefficients are at most 8.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgec.building.lazy_tvm import tirx
from edgec.program import Conv
from edgec.targets.cpu.math import constant
from edgec.targets.cpu.tile import Accumulators, Point, Store, load_channels, shape_name, starts, tiles
from edgec.targets.cpu.tir import Kernel, part, vector_store
from edgec.targets.vectors import padded_pieces, pieces

OUT, IN = 4, 6
"""Outputs and inputs of a tile along an axis."""
POINTS = IN * IN
SCRATCH_BYTES = 256 * 1024
"""Of a block's transformed inputs and sums, at most: they lie on the stack, and in the L2 cache."""

WEIGHT_TRANSFORM = np.array(
    [[1 / 4, 0, 0], [-1 / 6, -1 / 6, -1 / 6], [-1 / 6, 1 / 6, -1 / 6],
     [1 / 24, 1 / 12, 1 / 6], [1 / 24, -1 / 12, 1 / 6], [0, 0, 1]]
)  # fmt: skip
"""G of the paper: the window's three weights along an axis at six points."""


@dataclass(frozen=True)
class WinogradPlan:
    """A convolution with the tiles of a block, and the vectors of output channels that go with them in registers."""

    conv: Conv
    tiles: int
    vectors: int
    lanes: int

    @property
    def block(self) -> int:
        """Output channels of a block."""
        return self.vectors * self.lanes

    def widths(self, channels: int) -> list[int]:
        """The vectors that cover a block of ``channels``, whose weights end in zeros."""
        return padded_pieces(channels, self.lanes)

    @property
    def input_width(self) -> int:
        """Of the vectors of input channels: whole ones, as nothing is read beyond the input."""
        return min(self.lanes, 1 << (self.conv.in_channels.bit_length() - 1))

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of tiles."""
        return self.conv.out_height // OUT, self.conv.out_width // OUT


def fits(conv: Conv) -> bool:
    """Whether the transforms are for such a convolution, of whole tiles."""
    plain = conv.kernel == (3, 3) and conv.stride == conv.dilation == (1, 1) and conv.input_strides[3] == 1
    whole = conv.out_height % OUT == conv.out_width % OUT == 0
    return plain and whole and conv.weight_strides is None


def block_tiles(conv: Conv, most: int) -> int:
    """Tiles of a block, up to ``most``: a divisor of an image's tiles; 0 where the scratch would be too large."""
    count = conv.out_height // OUT * (conv.out_width // OUT)
    bytes_per_tile = POINTS * (conv.in_channels + conv.out_channels) * 4
    most = min(most, SCRATCH_BYTES // bytes_per_tile)
    return max((n for n in range(1, most + 1) if count % n == 0), default=0)


def pack(p: WinogradPlan, weight: np.ndarray) -> np.ndarray:
    """The weight [3, 3, ci, co] at the 36 points, as [block of channels][point, ci, channel]."""
    spread = np.einsum("ik,jl,klcd->ijcd", WEIGHT_TRANSFORM, WEIGHT_TRANSFORM, weight.astype(np.float64))
    points = spread.reshape(POINTS, *weight.shape[2:]).astype(np.float32)
    blocks = range(0, p.conv.out_channels, p.block)
    return np.concatenate([points[:, :, first : first + p.block].ravel() for first in blocks])


class WinogradWriter:
    """Emits the loop over blocks, which threads share, and in it the three stages."""

    def __init__(self, p: WinogradPlan, kernel: Kernel) -> None:
        self.plan, self.conv, self.kernel, self.body = p, p.conv, kernel, kernel.body
        self.input, self.weight = kernel.buffers[:2]
        self.target = Store(self.body, kernel.buffers[:-1], kernel.buffers[-1], p.conv.epilogue, p.conv.store)
        self.inputs, self.sums = (self.body.local("float32", elements) for elements in self._scratch())

    def _scratch(self) -> tuple[int, int]:
        """Elements of the transformed inputs and of the sums."""
        points = POINTS * self.plan.tiles
        return points * self.conv.in_channels, points * self.conv.out_channels

    def write(self) -> None:
        (rows, columns), zero = self.plan.grid, tirx.const(0, "int32")
        with self.body.loop(self.conv.batch) as image:
            first, count = self.kernel.share(rows * columns // self.plan.tiles)
            with self.body.loop(count, first) as block:
                start = self.body.bind("t", block * self.plan.tiles)
                self._each_tile(start, lambda *place: self._transform_inputs(image, zero, *place))
                self._multiply(image)
                channels = self.conv.out_channels
                self._each_tile(start, lambda *place: self._transform_sums(image, zero, channels, *place))

    def _each_tile(self, start: Any, inner: Any) -> None:
        """``inner`` for every tile of the block from ``start`` on: its number, its first row and its first column."""
        columns = self.plan.grid[1]
        with self.body.loop(self.plan.tiles) as tile:
            index = start + tile
            row = self.body.bind("row", tirx.truncdiv(index, columns) * OUT)
            inner(tile, row, self.body.bind("column", tirx.truncmod(index, columns) * OUT))

    def _transform_inputs(self, image: Any, base: Any, tile: Any, row: Any, column: Any) -> None:
        """One tile's inputs into the scratch of a block, which begins at ``base``."""
        n_step, h_step, w_step, _ = self.conv.input_strides
        corner = self.conv.input_offset + image * n_step + row * h_step + column * w_step
        channels, width = self.conv.in_channels, self.plan.input_width
        with self.body.loop(-(-channels // width)) as vector:
            # the last vector begins early rather than reading too far: some channels are transformed twice
            channel = vector * width if channels % width == 0 else tirx.min(vector * width, channels - width)
            channel = self.body.bind("channel", channel)
            given = self._square(self.input, corner + channel, h_step, w_step, width)
            first = self.body.bind("first", base + tile * channels + channel)
            self._put(self._both_ways(given, self._input_axis), self.inputs, first, self.plan.tiles * channels)

    def _transform_sums(self, image: Any, channel: Any, channels: int, tile: Any, row: Any, column: Any) -> None:
        """One tile's sums of ``channels`` from ``channel`` on, which are all that the scratch holds, into outputs."""
        row_length = sum(self.plan.widths(channels))
        step = self.plan.tiles * row_length
        for start, valid, count in tiles(channels, self.plan.lanes):
            (width,) = self.plan.widths(valid)
            with self.body.loop(count) as vector:
                first = start + vector * width
                given = self._square(self.sums, tile * row_length + first, IN * step, step, width)
                results = self._both_ways(given, self._output_axis)
                for i, line in enumerate(results):
                    for j, value in enumerate(line):
                        self._store({0: image, 1: row + i, 2: column + j, 3: channel + first}, value, valid)

    def _store(self, axes: dict[int, Any], value: Any, channels: int) -> None:
        """The first ``channels`` of a vector of sums into the outputs at ``axes``."""
        widths = pieces(channels, self.plan.lanes)
        for skip, width in zip(starts(widths), widths, strict=True):
            offset, result = self.target.evaluate(axes, skip, width, part(value, skip, width))
            self.body.emit(vector_store(self.target.output, result, offset))

    def _square(self, buffer: Any, offset: Any, row_step: int, column_step: int, width: int) -> list[list[Any]]:
        """Six by six vectors of ``width`` channels."""
        first = self.body.bind("first", offset)
        offsets = [[first + i * row_step + j * column_step for j in range(IN)] for i in range(IN)]
        return [[self.body.bind("d", load_channels(buffer, each, width)) for each in line] for line in offsets]

    def _both_ways(self, given: list[list[Any]], transform: Any) -> list[list[Any]]:
        """``transform`` along the columns, then along the rows."""
        down = [transform([line[j] for line in given]) for j in range(len(given[0]))]
        return [transform([line[i] for line in down]) for i in range(len(down[0]))]

    def _input_axis(self, d: Sequence[Any]) -> list[Any]:
        """Bᵀ of the paper, along one axis."""
        hold = self.body.hold
        even, odd = hold(d[4] - times(4, d[2])), hold(d[3] - times(4, d[1]))
        near, far = hold(d[4] - d[2]), hold(d[3] - d[1])
        ends = times(4, d[0]) + d[4] - times(5, d[2]), times(4, d[1]) + d[5] - times(5, d[3])
        inner = even + odd, even - odd, near + times(2, far), near - times(2, far)
        return [hold(value) for value in (ends[0], *inner, ends[1])]

    def _output_axis(self, m: Sequence[Any]) -> list[Any]:
        """Aᵀ of the paper, along one axis."""
        hold = self.body.hold
        sums, differences = (hold(m[1] + m[2]), hold(m[3] + m[4])), (hold(m[1] - m[2]), hold(m[3] - m[4]))
        values = (
            m[0] + sums[0] + sums[1],
            differences[0] + times(2, differences[1]),
            sums[0] + times(4, sums[1]),
            differences[0] + times(8, differences[1]) + m[5],
        )
        return [hold(value) for value in values]

    def _put(self, values: list[list[Any]], buffer: Any, first: Any, step: int) -> None:
        for index, value in enumerate(value for line in values for value in line):
            self.body.emit(vector_store(buffer, value, first + index * step))

    def _weights_of(self, image: Any, size: int) -> Any:
        """Where the weights of ``image`` begin, ``size`` of them where each has its own."""
        return image * size if self.conv.grouped else tirx.const(0, "int32")

    def _multiply(self, image: Any) -> None:
        """The products at every point, for one block of channels after the other."""
        panel = POINTS * self.conv.in_channels
        base = self._weights_of(image, panel * self.conv.out_channels)
        for start, channels, count in tiles(self.conv.out_channels, self.plan.block):
            with self.body.loop(count) as block, self.body.loop(POINTS) as point:
                channel = start + block * channels
                weights = base + channel * panel + point * (self.conv.in_channels * channels)
                source = point * (self.plan.tiles * self.conv.in_channels)
                first = point * (self.plan.tiles * self.conv.out_channels) + channel
                widths = self.plan.widths(channels)
                self._products(source, widths, self.body.bind("w", weights), first, self.conv.out_channels)

    def _products(self, source: Any, widths: list[int], weights: Any, first: Any, row: int) -> None:
        """The sums of one point over all input channels, for a block of channels and the block's tiles.

        Args:
            source: where the point's inputs begin in their scratch.
            widths: the vectors that cover the block's channels.
            weights: where those of the point and the block begin.
            first: where the sums go to in their scratch.
            row: channels of a tile there.
        """
        acc = Accumulators(self.body, "float32", [Point(0, t) for t in range(self.plan.tiles)], widths)
        self._sum_up(acc, self.body.bind("u", source), weights)
        first = self.body.bind("first", first)
        for t in range(self.plan.tiles):
            for vector, start in enumerate(starts(widths)):
                self.body.emit(vector_store(self.sums, acc.value(t, vector), first + (t * row + start)))

    @abstractmethod
    def _sum_up(self, acc: Accumulators, source: Any, weights: Any) -> None:
        """Add the products of all input channels: each value of a tile times the vectors of its weights."""


def times(factor: float, value: Any) -> Any:
    """``factor`` · value."""
    return value * constant(float(factor), value)


def contract(p: WinogradPlan) -> str:
    """The kernel's name."""
    c = p.conv
    return f"{shape_name(c, 'conv')}i{c.in_channels}__t{p.tiles}_winograd4"
