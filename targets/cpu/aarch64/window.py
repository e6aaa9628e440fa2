"""Code for :class:`edgec.program.Depthwise` of float32, or of float16 summed in it: a tile of rows and columns that
reads each input once.

One vector of four channels at a time, or of eight. The weights of the window stay in registers beside the sums of a
tile of output pixels; every input of the tile's rows and columns is loaded once, ahead of its use, and multiplied into
all sums whose window it lies in. The text is :mod:`.assembly`, since a compiler that sees so many independent loads
takes them all first and spills the sums.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from edgec.program import Depthwise
from edgec.targets.cpu.aarch64 import assembly
from edgec.targets.cpu.aarch64.assembly import FAR, KINDS, REGISTERS, Inline, parts
from edgec.targets.cpu.aarch64.neon import special
from edgec.targets.cpu.aarch64.tile import Tile, lanes_of, start_and_store, unset
from edgec.targets.cpu.tile import Point, over_channels, shape_name, share_rows, tiles, window_uses
from edgec.targets.cpu.tir import Kernel
from edgec.targets.target import Target
from edgec.targets.vectors import pieces

MOST_TAPS = 12
"""Taps of a window, at most: their weights stay in registers."""
AHEAD = 4
"""Inputs that are loaded before they are used, at least."""
TILE_OVERHEAD = 12
"""Instructions to set up a tile."""


@dataclass(frozen=True)
class WindowPlan:
    """A depthwise convolution with its tile: ``rows`` × ``columns`` pixels of one vector of channels."""

    depthwise: Depthwise
    rows: int
    columns: int

    def __post_init__(self) -> None:
        taps = self.depthwise.kernel[0] * self.depthwise.kernel[1]
        assert self.rows * self.columns + taps + AHEAD <= REGISTERS

    @property
    def lanes(self) -> int:
        """Channels of a vector."""
        return lanes_of(self.depthwise.accumulator_dtype)

    @property
    def widths(self) -> list[int]:
        """The vectors that cover the channels."""
        return pieces(self.depthwise.channels, self.lanes)


@dataclass(frozen=True)
class WindowTile:
    """What the assembly of a tile follows from; steps are in elements, of ``size`` bytes."""

    rows: int
    columns: int
    kernel: tuple[int, int]
    stride: tuple[int, int]
    dilation: tuple[int, int]
    row_step: int
    column_step: int
    width: int
    size: int

    def uses(self) -> dict[tuple[int, int], list[tuple[int, int]]]:
        """By row and column of an input, in their order: the pixels and taps that it is multiplied for."""
        return window_uses(self.rows, self.columns, self.kernel, self.stride, self.dilation)


def fits(conv: Depthwise) -> bool:
    """Whether inputs, weights and sums are floats of one kind, and the window's weights leave registers for a tile."""
    reals = conv.input_dtype == conv.accumulator_dtype and conv.weight_dtype is None
    return reals and conv.kernel[0] * conv.kernel[1] <= MOST_TAPS


def plan(conv: Depthwise, target: Target) -> WindowPlan:
    """The tile of the fewest instructions."""
    return candidates(conv, target)[0]


def candidates(conv: Depthwise, target: Target) -> list[WindowPlan]:
    """Every tile that fits the registers, that of the fewest instructions first."""
    most = REGISTERS - AHEAD - conv.kernel[0] * conv.kernel[1]
    sizes = [(r, c) for r in range(1, conv.out_height + 1) for c in range(1, min(conv.out_width, most // r) + 1)]
    return sorted((WindowPlan(conv, *size) for size in sizes), key=lambda p: (instructions(p), p.rows, p.columns))


def instructions(p: WindowPlan) -> float:
    """Instructions, about, for one vector of channels."""
    c, total = p.depthwise, 0
    taps = c.kernel[0] * c.kernel[1]
    for _, rows, row_tiles in tiles(c.out_height, p.rows):
        for _, columns, column_tiles in tiles(c.out_width, p.columns):
            pixels, inputs = rows * columns, _extent(c, 0, rows) * _extent(c, 1, columns)
            weights = -(-taps // 4) + 1
            total += row_tiles * column_tiles * (pixels * (taps + 3) + inputs + weights + TILE_OVERHEAD)
    return total


def _extent(c: Depthwise, axis: int, count: int) -> int:
    """Rows or columns of inputs that ``count`` outputs read."""
    steps = {i * c.stride[axis] + k * c.dilation[axis] for i in range(count) for k in range(c.kernel[axis])}
    return len(steps)


def pack(p: WindowPlan, weight: np.ndarray) -> np.ndarray:
    """The weight [kh, kw, c] as one run per vector of channels, [tap, lane], narrow vectors padded to four lanes."""
    flat, runs, first = weight.reshape(-1, p.depthwise.channels), [], 0
    for width in p.widths:
        run = np.zeros((len(flat), p.lanes), weight.dtype)
        run[:, :width] = flat[:, first : first + width]
        runs.append(run.ravel())
        first += width
    return np.concatenate(runs)


def generate(p: WindowPlan, dtypes: list[str]) -> Any:
    """The kernel, as ``tirx.PrimFunc``."""
    kernel = Kernel(dtypes, special)
    _WindowWriter(p, kernel).write()
    return kernel.function()


class _WindowWriter:
    """Emits the loops over rows of tiles, vectors of channels and tiles, and the tile."""

    def __init__(self, p: WindowPlan, kernel: Kernel) -> None:
        self.plan, self.conv, self.kernel, self.body = p, p.depthwise, kernel, kernel.body
        self.input, self.weight = kernel.buffers[:2]
        self.dtype, self.lanes = self.conv.accumulator_dtype, p.lanes
        self.start, self.target = start_and_store(self.conv, kernel)

    def write(self) -> None:
        with self.body.loop(self.conv.batch) as image:
            share_rows(self.kernel, self.conv.out_height, self.plan.rows, partial(self._channels, image))

    def _channels(self, image: Any, row: Any, rows: int) -> None:
        over_channels(self.body, self.conv.channels, self.lanes, partial(self._row, image, row, rows))

    def _row(self, image: Any, row: Any, rows: int, vector: Any, channel: Any, width: int) -> None:
        weights = vector * (self.conv.kernel[0] * self.conv.kernel[1] * self.lanes)
        for start, columns, count in tiles(self.conv.out_width, self.plan.columns):
            with self.body.loop(count) as index:
                self._tile({0: image, 1: row, 2: start + index * columns, 3: channel}, rows, columns, width, weights)

    def _tile(self, origin: dict[int, Any], rows: int, columns: int, width: int, weights: Any) -> None:
        n_step, h_step, w_step, _ = self.conv.input_strides
        sh, sw = self.conv.stride
        corner = self.conv.input_offset + origin[0] * n_step + origin[1] * (sh * h_step)
        corner = self.body.bind("corner", corner + origin[2] * (sw * w_step) + origin[3])
        points = [Point(row, column) for row in range(rows) for column in range(columns)]
        tile = Tile(self.body, self.dtype, points, [unset(self.dtype)])
        window = (self.conv.kernel, self.conv.stride, self.conv.dilation)
        made = WindowTile(rows, columns, *window, h_step, w_step, width, np.dtype(self.dtype).itemsize)
        addresses = [
            assembly.address(self.weight, weights),
            assembly.address(self.input, corner),
            self.start.address(origin, width, 1),
        ]
        assembly.call(self.kernel, made, lambda: inline(made), tile.buffer, addresses)
        tile.write(self.target, origin, width)


def inline(tile: WindowTile) -> Inline:
    """The assembly of a tile: sums first, then weights, and the inputs through what registers are left."""
    pixels, taps = tile.rows * tile.columns, tile.kernel[0] * tile.kernel[1]
    weights, source, start = (f"${pixels}", f"${pixels + 1}", f"${pixels + 2}")
    kind, llvm = ("8h", "<8 x half>") if tile.size == 2 else ("4s", "<4 x float>")
    first = pixels + taps
    ring = list(range(first, REGISTERS))
    lines = list(_weights(range(pixels, first), weights, kind))
    lines.append(f"ldr q0, [{start}]")
    loads = _loads(tile, source, ring)
    uses = list(tile.uses().values())
    waiting = [next(loads) for _ in range(min(len(ring), len(uses)))]
    for group in waiting:
        lines += group
    lines += [f"mov v{pixel}.16b, v0.16b" for pixel in range(1, pixels)]
    for index, group_of_uses in enumerate(uses):
        register = ring[index % len(ring)]
        lines += [f"fmla v{pixel}.{kind}, v{pixels + tap}.{kind}, v{register}.{kind}" for pixel, tap in group_of_uses]
        lines += next(loads, [])
    return Inline(tuple(lines), tuple(range(pixels)), llvm, 2, 1)


def _weights(registers: range, address: str, kind: str) -> Iterator[str]:
    """Loads of the weights, four taps at a time."""
    for first in range(0, len(registers), 4):
        group = registers[first : first + 4]
        names = ", ".join(f"v{register}.{kind}" for register in group)
        yield f"ld1 {{{names}}}, [{address}], #{16 * len(group)}"


def _loads(tile: WindowTile, source: str, ring: list[int]) -> Iterator[list[str]]:
    """The loads of all inputs in order, with what moves the address where they are out of its reach."""
    at, size = 0, tile.width * tile.size
    for index, (row, column) in enumerate(tile.uses()):
        place = tile.size * (row * tile.row_step + column * tile.column_step)
        lines = []
        if not ((place - at) % size == 0 and 0 <= (place - at) // size <= FAR):
            amount = place - at
            lines = [f"{'add' if amount > 0 else 'sub'} {source}, {source}, {part}" for part in parts(amount)]
            at = place
        yield [*lines, f"ldr {KINDS[size]}{ring[index % len(ring)]}, [{source}, #{place - at}]"]


def contract(p: WindowPlan) -> str:
    """The kernel's name."""
    c = p.depthwise
    return f"{shape_name(c, 'dwconv')}__t{p.rows}x{p.columns}_fmla"
