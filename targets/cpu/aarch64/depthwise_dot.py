"""Code for :class:`edgec.program.Depthwise` of 8-bit integers by ``sdot``, for ARM cores with dot product.

``sdot`` sums four neighbouring bytes, and here these are four rows of one channel and one column: two steps of ``zip``
turn eight channels of four rows into two registers of four channels × four rows. Such a column is made once. It is
multiplied for every output whose window it lies in: along the row, as columns pass by in a ring of registers, and for
two rows of outputs, since the weights of a window of three rows leave one byte of four empty; those of the second row
are the first row's, moved up by that byte. All weights stay in registers. A uint8 input is treated as in :mod:`.runs`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from edgec.building.lazy_tvm import stmt, tirx
from edgec.program import Depthwise
from edgec.targets.cpu.aarch64.neon import BYTES, dot, special, zipped
from edgec.targets.cpu.aarch64.tile import LANES, Tile, load_input, start_and_store
from edgec.targets.cpu.tile import Point, load_channels, shape_name, share_rows, tiles
from edgec.targets.cpu.tir import Kernel
from edgec.targets.target import Target

WIDTH = 8
"""Channels at a time."""
HALVES = 2
"""Registers that hold four rows of these."""
GROUP = 4
"""Rows that one lane of ``sdot`` sums up."""
MOST_WEIGHTS = 12
"""Registers of weights, at most."""


@dataclass(frozen=True)
class DotDepthwisePlan:
    """A depthwise convolution with its tile: ``rows`` × ``columns`` pixels of eight channels."""

    depthwise: Depthwise
    rows: int
    columns: int

    @property
    def head(self) -> int:
        """Bytes per channel in front of a block's weights: the int32 to start from, where the input is uint8."""
        return 4 if self.depthwise.input_dtype == "uint8" else 0

    @property
    def block_bytes(self) -> int:
        """Bytes of the weights of eight channels."""
        return WIDTH * (self.head + self.depthwise.kernel[1] * GROUP)

    @property
    def carried(self) -> int:
        """Columns of the input that a tile leaves for the next one along the row."""
        c = self.depthwise
        return max(0, (c.kernel[1] - 1) * c.dilation[1] + 1 - c.stride[1])


def most_rows(conv: Depthwise) -> int:
    """Rows of outputs whose windows lie within four rows, as far as registers reach for their weights."""
    return min(GROUP + 1 - conv.kernel[0], MOST_WEIGHTS // (HALVES * conv.kernel[1]))


def fits(conv: Depthwise) -> bool:
    """Whether the sums are of bytes, and two rows of outputs or more share their inputs: else :mod:`.depthwise` takes
    fewer instructions."""
    neighbours = conv.stride[0] == conv.dilation[0] and conv.out_height > 1
    return conv.input_dtype in ("int8", "uint8") and neighbours and most_rows(conv) > 1


def plan(conv: Depthwise, target: Target) -> DotDepthwisePlan:
    """As many columns as the window has: the ring has then gone round once, and no column moves to another register."""
    return DotDepthwisePlan(conv, min(most_rows(conv), conv.out_height), min(conv.kernel[1], conv.out_width))


def pack(p: DotDepthwisePlan, weight: np.ndarray) -> np.ndarray:
    """The weight [kh, kw, c] as [block of channels][column, channel, row], each block behind its head."""
    kh, kw, channels = weight.shape
    count = -(-channels // WIDTH)
    padded = np.zeros((GROUP, kw, count * WIDTH), np.int8)
    padded[:kh, :, :channels] = weight
    blocks = padded.reshape(GROUP, kw, count, WIDTH).transpose(2, 1, 3, 0).reshape(count, -1)
    heads = 128 * padded.sum((0, 1), np.int32).reshape(count, WIDTH)
    return np.concatenate([heads.view(np.int8), blocks] if p.head else [blocks], axis=1).ravel()


def generate(p: DotDepthwisePlan, dtypes: list[str]) -> Any:
    """The kernel, as ``tirx.PrimFunc``."""
    kernel = Kernel(dtypes, special)
    _DepthwiseWriter(p, kernel).write()
    return kernel.function()


Column = list[Any]
"""Four rows of eight channels in one column of the input: two registers of [channel, row]."""


class _DepthwiseWriter:
    """Emits the loops over rows of tiles, blocks of channels and tiles, and the tile."""

    def __init__(self, p: DotDepthwisePlan, kernel: Kernel) -> None:
        self.plan, self.conv, self.kernel, self.body = p, p.depthwise, kernel, kernel.body
        self.input, self.weight = kernel.buffers[:2]
        self.start, self.target = start_and_store(self.conv, kernel)

    def write(self) -> None:
        with self.body.loop(self.conv.batch) as image:
            share_rows(self.kernel, self.conv.out_height, self.plan.rows, partial(self._channels, image))

    def _channels(self, image: Any, row: Any, rows: int) -> None:
        for start, channels, count in tiles(self.conv.channels, WIDTH):
            with self.body.loop(count) as index:
                self._row({0: image, 1: row, 3: start + index * WIDTH}, rows, channels, index + start // WIDTH)

    def _row(self, origin: dict[int, Any], rows: int, channels: int, block: Any) -> None:
        n_step, h_step, _, _ = self.conv.input_strides
        corner = self.conv.input_offset + origin[0] * n_step + origin[1] * (self.conv.stride[0] * h_step)
        corner = self.body.bind("corner", corner + origin[3])
        weights = self.body.bind("w", block * self.plan.block_bytes)
        head = (self.weight, weights) if self.plan.head else None
        start = self.start.vectors(origin, channels, HALVES, head)
        by_row = self._weights(weights + self.plan.head * WIDTH, rows)
        ring = self.body.local("int8", max(1, self.plan.carried * HALVES * BYTES))
        self._carry(ring, [self._column(corner, place, rows) for place in range(self.plan.carried)])
        for first, columns, count in tiles(self.conv.out_width, self.plan.columns):
            with self.body.loop(count) as index:
                column = self.body.bind("column", first + index * columns)
                self._tile({**origin, 2: column}, columns, channels, corner, by_row, start, ring)

    def _weights(self, first: Any, rows: int) -> list[list[Column]]:
        """By row of outputs and column of the window: the weights, moved to the rows of the input that they are for."""
        count = self.conv.kernel[1] * HALVES
        loads = [load_channels(self.weight, first + index * BYTES, BYTES) for index in range(count)]
        words = [self.body.hold(tirx.reinterpret("int32x4", load)) for load in loads]
        found = []
        for row in range(rows):
            by = tirx.Broadcast(tirx.const(8 * row, "int32"), LANES)
            moved = [self.body.hold(tirx.shift_left(each, by)) if row else each for each in words]
            registers = [tirx.reinterpret("int8x16", each) for each in moved]
            found.append([registers[index : index + HALVES] for index in range(0, count, HALVES)])
        return found

    def _tile(
        self,
        origin: dict[int, Any],
        columns: int,
        channels: int,
        corner: Any,
        weights: list[list[Column]],
        start: list[Any],
        ring: Any,
    ) -> None:
        (_, sw), (_, dw), rows = self.conv.stride, self.conv.dilation, len(weights)
        corner = self.body.bind("source", corner + origin[2] * (sw * self.conv.input_strides[2]))
        made = dict(enumerate(self._carried(ring)))

        def column(place: int) -> Column:
            if place not in made:
                made[place] = self._column(corner, place, rows)
            return made[place]

        for pixel in range(columns):
            tile = Tile(self.body, "int32", [Point(row, 0) for row in range(rows)], start)
            for tap in range(self.conv.kernel[1]):
                inputs = column(pixel * sw + tap * dw)
                for row in range(rows):
                    for half, (value, weight) in enumerate(zip(inputs, weights[row][tap], strict=True)):
                        tile.update(row, half, dot(tile.value(row, half), value, weight))
            tile.write(self.target, {**origin, 2: origin[2] + pixel if pixel else origin[2]}, channels)
        self._carry(ring, [column(columns * sw + place) for place in range(self.plan.carried)])

    def _column(self, corner: Any, place: int, rows: int) -> Column:
        """The column ``place`` from ``corner`` on. Behind the last row of the windows stands that row again, which
        has no weight."""
        _, h_step, w_step, _ = self.conv.input_strides
        last = self.conv.kernel[0] + rows - 2
        offsets = [corner + (row * self.conv.dilation[0] * h_step + place * w_step) for row in range(last + 1)]
        values = [self.body.hold(load_input(self.input, offset, WIDTH)) for offset in offsets]
        values += values[-1:] * (GROUP - len(values))
        pairs = [
            self.body.hold(tirx.reinterpret("int16x8", zipped(values[row], values[row + 1], 0, WIDTH)))
            for row in range(0, GROUP, 2)
        ]
        low, high = pairs
        halves = [zipped(low, high, first, LANES) for first in range(0, WIDTH, LANES)]
        return [self.body.hold(tirx.reinterpret("int8x16", half)) for half in halves]

    def _carried(self, ring: Any) -> list[Column]:
        """The columns in the ring."""
        slots = [tirx.BufferLoad(ring, [_slot(index)]) for index in range(self.plan.carried * HALVES)]
        held = [self.body.hold(slot) for slot in slots]
        return [held[index : index + HALVES] for index in range(0, len(held), HALVES)]

    def _carry(self, ring: Any, columns: list[Column]) -> None:
        """Put the columns into the ring."""
        for index, value in enumerate(half for column in columns for half in column):
            self.body.emit(stmt.BufferStore(ring, value, [_slot(index)]))


def _slot(index: int) -> Any:
    """Where a register of the ring is."""
    return tirx.Ramp(tirx.const(index * BYTES, "int32"), tirx.const(1, "int32"), BYTES)


def contract(p: DotDepthwisePlan) -> str:
    """The kernel's name."""
    c = p.depthwise
    return f"{shape_name(c, 'dwconv')}__t{p.rows}x{p.columns}_dot"
