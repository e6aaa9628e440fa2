"""Code for :class:`edgec.program.Depthwise` of float32 on x86 with 32 registers: a tile of rows and columns that reads
each input once, all vectors of channels of a tile before the next one.

The weights of the window, float32 or int8, stay in registers as floats beside the sums of a tile. Channels are the
inner loop: the tile's pixels then lie in memory one after the other, where a row of one vector of channels has gaps as
wide as the other channels.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

from edgec.program import Depthwise
from edgec.targets.cpu.depthwise import DepthwisePlan
from edgec.targets.cpu.math import vector_type
from edgec.targets.cpu.tile import (
    Accumulators,
    Point,
    Store,
    load_channels,
    over_channels,
    shape_name,
    share_rows,
    tiles,
    window_uses,
)
from edgec.targets.cpu.tir import Kernel
from edgec.targets.target import Target

REGISTERS = 32
MOST_TAPS = 12
"""Taps of a window, at most: their weights stay in registers."""
SPARE = 7
"""Registers beside sums and weights: for the inputs on their way, and what the epilogue holds."""
MOST_ROWS, LEAST_TILES = 4, 4
"""Rows of a tile, at most; and of so many tiles threads get equal shares, where there are enough rows."""
MOST_STRIDED_COLUMNS = 2
"""Columns of a tile, at most, of a window that strides along a row: with more lines of cache on their way at once, a
tile that multiplies little waits for them."""
LOAD_CYCLES = 0.35
"""Cycles, about, of a load that multiply-adds hide most of."""
TILE_OVERHEAD = 6
"""Cycles, about, to set up a tile."""
EPILOGUE_CYCLES = 1.5
"""Cycles, about, that a vector of sums costs beside its products."""


@dataclass(frozen=True)
class WindowPlan(DepthwisePlan):
    """A depthwise convolution with its tile: ``rows`` × ``columns`` pixels of one vector of channels."""

    rows: int


def fits(conv: Depthwise, target: Target) -> bool:
    """Whether the inputs are float32, and the weights of a window leave registers for a tile."""
    fitting = target.vector_registers == REGISTERS and conv.kernel[0] * conv.kernel[1] <= MOST_TAPS
    return conv.input_dtype == "float32" and fitting


def plan(conv: Depthwise, target: Target) -> WindowPlan:
    """The tile with the smallest cost estimate."""
    return candidates(conv, target)[0]


def candidates(conv: Depthwise, target: Target) -> list[WindowPlan]:
    """Every tile that fits the registers, the cheapest first."""
    most = REGISTERS - SPARE - conv.kernel[0] * conv.kernel[1]
    rows = range(1, min(MOST_ROWS, max(2, conv.out_height // LEAST_TILES), conv.out_height) + 1)
    columns = min(conv.out_width, MOST_STRIDED_COLUMNS if conv.stride[1] > 1 else most)
    sizes = [(r, c) for r in rows for c in range(1, min(columns, most // r) + 1)]
    found = [WindowPlan(conv, columns, target.lanes(4), rows) for rows, columns in sizes]
    return sorted(found, key=lambda p: (cost(p), p.rows, p.columns))


def cost(p: WindowPlan) -> float:
    """Cycles, about, of one vector of channels."""
    conv, total = p.depthwise, 0.0
    taps = conv.kernel[0] * conv.kernel[1]
    for _, rows, row_tiles in tiles(conv.out_height, p.rows):
        for _, columns, column_tiles in tiles(conv.out_width, p.columns):
            pixels = rows * columns
            loads = len(_uses(conv, rows, columns)) + taps
            work = pixels * (taps + EPILOGUE_CYCLES) + LOAD_CYCLES * loads + TILE_OVERHEAD
            total += row_tiles * column_tiles * work
    return total


def _uses(conv: Depthwise, rows: int, columns: int) -> dict[tuple[int, int], list[tuple[int, int]]]:
    return window_uses(rows, columns, conv.kernel, conv.stride, conv.dilation)


def generate(p: WindowPlan, dtypes: list[str]) -> Any:
    """The kernel, as ``tirx.PrimFunc``."""
    kernel = Kernel(dtypes)
    _WindowWriter(p, kernel).write()
    return kernel.function()


class _WindowWriter:
    """Emits the loops over rows of tiles, tiles and vectors of channels, and the tile."""

    def __init__(self, p: WindowPlan, kernel: Kernel) -> None:
        self.plan, self.conv, self.kernel, self.body = p, p.depthwise, kernel, kernel.body
        self.input, self.weight = kernel.buffers[:2]
        self.target = Store(self.body, kernel.buffers[:-1], kernel.buffers[-1], self.conv.epilogue, self.conv.store)
        self.taps = self.conv.kernel[0] * self.conv.kernel[1]

    def write(self) -> None:
        with self.body.loop(self.conv.batch) as image:
            share_rows(self.kernel, self.conv.out_height, self.plan.rows, partial(self._row, image))

    def _row(self, image: Any, row: Any, rows: int) -> None:
        for start, columns, count in tiles(self.conv.out_width, self.plan.columns):
            with self.body.loop(count) as index:
                origin = {0: image, 1: row, 2: start + index * columns}
                tile = partial(self._tile, origin, rows, columns)
                over_channels(self.body, self.conv.channels, self.plan.lanes, tile)

    def _tile(self, at: dict[int, Any], rows: int, columns: int, _: Any, channel: Any, width: int) -> None:
        origin = {**at, 3: channel}
        acc = Accumulators(self.body, "float32", [Point(r, c) for r in range(rows) for c in range(columns)], [width])
        n_step, h_step, w_step, _ = self.conv.input_strides
        sh, sw = self.conv.stride
        corner = self.conv.input_offset + origin[0] * n_step + origin[1] * (sh * h_step) + origin[2] * (sw * w_step)
        corner = self.body.bind("corner", corner + origin[3])
        first = origin[3] * self.taps
        weights = [load_channels(self.weight, first + tap * width, width) for tap in range(self.taps)]
        weights = [self.body.hold(weight.astype(vector_type("float32", weight))) for weight in weights]
        for (row, column), uses in _uses(self.conv, rows, columns).items():
            value = self.body.hold(load_channels(self.input, corner + (row * h_step + column * w_step), width))
            for pixel, tap in uses:
                acc.add_product(pixel, 0, value, weights[tap])
        acc.write(self.target, origin, width)


def contract(p: WindowPlan) -> str:
    """The kernel's name."""
    c = p.depthwise
    return f"{shape_name(c, 'dwconv')}__t{p.rows}x{p.columns}"
