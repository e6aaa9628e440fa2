"""Code for :class:`edgec.program.Depthwise` of 8-bit integers on x86: vectors across channels, taps down a column.

One column of a tile's input, four rows of it at a time, is interleaved into a vector with the four bytes of each
channel together. Its products with four weights, of which those of rows outside the window are zero, add to every
output pixel that the column reaches, in each of the tile's rows: rows 0 to 3 serve a 3×3 window in output row 0 by
the weights (w0, w1, w2, 0) and in row 1 by (0, w0, w1, w2).

Those of row 1 are not stored: they are those of row 0, shifted by a byte in registers.

Without VNNI two rows are interleaved, and widened to int16.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from edgec.building.lazy_tvm import tirx
from edgec.program import Depthwise
from edgec.targets.cpu.tile import Point, Store, bias_apart, shape_name, share_rows, tiles
from edgec.targets.cpu.tir import Kernel, part, vector_load
from edgec.targets.cpu.x86.isa import Isa, dot, pair_sums
from edgec.targets.cpu.x86.narrow import special
from edgec.targets.cpu.x86.tile import SIGN_BYTES, TAPS, IntegerTile, Panel, bias_vectors
from edgec.targets.target import Target
from edgec.targets.vectors import padded_pieces

PAIR = 2
"""Rows that are interleaved for products of int16."""
HELD_WEIGHTS = 12
"""Up to so many vectors of weights stay in registers while a row passes by."""
SPARE = 3
"""Registers beside sums and weights."""
MOST_ROWS = 2
TILE_OVERHEAD = 10
"""Cycles, about, to set up a tile."""
EPILOGUE_CYCLES = 6
"""Cycles, about, that a vector of sums costs beside its products."""
CODE_CYCLES = 8
"""Cycles, about, to fetch the code of one product, once."""


@dataclass(frozen=True)
class IntegerDepthwisePlan:
    """A depthwise convolution with its tile: ``rows`` × ``columns`` pixels of one vector of channels."""

    depthwise: Depthwise
    rows: int
    columns: int
    isa: Isa

    @property
    def taps(self) -> int:
        """Rows that are interleaved."""
        return TAPS if self.isa.vnni else PAIR

    @property
    def signed(self) -> bool:
        """Whether the input must be turned into uint8."""
        return self.isa.vnni and self.depthwise.input_dtype == "int8"

    def groups(self, rows: int) -> list[list[int]]:
        """The input rows of ``rows`` output rows, from the tile's first on, as many together as are interleaved."""
        conv = self.depthwise
        used = sorted({r * conv.stride[0] + i * conv.dilation[0] for r in range(rows) for i in range(conv.kernel[0])})
        return [used[first : first + self.taps] for first in range(0, len(used), self.taps)]

    def window(self, row: int, group: list[int]) -> list[int | None]:
        """For each input row of ``group`` which row of the window it is for output row ``row``, or None."""
        (kernel, _), (stride, _), (dilation, _) = self.depthwise.kernel, self.depthwise.stride, self.depthwise.dilation
        rows = [divmod(place - row * stride, dilation) for place in group]
        return [index if rest == 0 and 0 <= index < kernel else None for index, rest in rows]

    def steps(self, rows: int) -> list[tuple[int, int]]:
        """(output row, group) of everything that is multiplied, in the order of the packed weights."""
        return [
            (row, index)
            for row in range(rows)
            for index, group in enumerate(self.groups(rows))
            if any(place is not None for place in self.window(row, group))
        ]

    @property
    def vectors(self) -> int:
        """Vectors of weights that a block of channels takes."""
        return len(self.steps(self.rows)) * self.depthwise.kernel[1]

    def shifted(self, row: int, group: int) -> bool:
        """Whether the weights of a step are those of row 0, a byte a row further; only where they are shifted once."""
        if row == 0 or not self.isa.vnni or self.vectors > HELD_WEIGHTS:
            return False
        own, first = (self.window(each, self.groups(self.rows)[group]) for each in (row, 0))
        return own == [*[None] * row, *first[:-row]] and first[-row:] == [None] * row

    @property
    def stored(self) -> list[tuple[int, int]]:
        """The steps whose weights are stored."""
        return [step for step in self.steps(self.rows) if not self.shifted(*step)]

    @property
    def layout(self) -> Panel:
        """How the weights of a block of channels lie."""
        return Panel(len(self.stored) * self.depthwise.kernel[1], self.signed, self.taps)

    def reach(self, columns: int) -> dict[int, list[tuple[int, int]]]:
        """For each input column from the tile's first on, (output column, column of the window) that it belongs to."""
        conv = self.depthwise
        found: dict[int, list[tuple[int, int]]] = {}
        for column in range(columns):
            for tap in range(conv.kernel[1]):
                found.setdefault(column * conv.stride[1] + tap * conv.dilation[1], []).append((column, tap))
        return dict(sorted(found.items()))


def fits(conv: Depthwise) -> bool:
    """Whether the sums are of bytes."""
    return conv.input_dtype in ("int8", "uint8")


def plan(depthwise: Depthwise, target: Target) -> IntegerDepthwisePlan:
    """The tile with the smallest cost estimate."""
    return min(candidates(depthwise, Isa.of(target)), key=lambda p: (cost(p), p.rows, p.columns))


def candidates(conv: Depthwise, isa: Isa) -> Iterator[IntegerDepthwisePlan]:
    """Every tile that fits the register file; the rest of the rows must find its weights among the whole tile's."""
    for rows in range(1, min(MOST_ROWS, conv.out_height) + 1 if conv.dilation[0] == 1 else 2):
        weights = IntegerDepthwisePlan(conv, rows, 1, isa).vectors
        free = isa.registers - SPARE - (weights if weights <= HELD_WEIGHTS else 1)
        for columns in range(1, min(conv.out_width, max(1, free // rows)) + 1):
            yield IntegerDepthwisePlan(conv, rows, columns, isa)


def cost(p: IntegerDepthwisePlan) -> float:
    """Cycles, about, of one block of channels."""
    conv, total = p.depthwise, 0.0
    product = 1 if p.isa.vnni else 2
    for _, rows, row_tiles in tiles(conv.out_height, p.rows):
        groups, steps = p.groups(rows), len(p.steps(rows))
        for _, columns, column_tiles in tiles(conv.out_width, p.columns):
            products = steps * conv.kernel[1] * columns
            interleaved = sum(len(group) + 1 for group in groups)
            work = len(p.reach(columns)) * interleaved + product * products
            total += row_tiles * column_tiles * (work + EPILOGUE_CYCLES * rows * columns + TILE_OVERHEAD)
            total += products * CODE_CYCLES
    return total


def pack(p: IntegerDepthwisePlan, weight: np.ndarray) -> np.ndarray:
    """The weight [kh, kw, c] as one panel a vector of channels (see :class:`Panel`), int16 without VNNI."""
    groups, (_, width, channels) = p.groups(p.rows), weight.shape
    steps = np.zeros((p.layout.steps, p.taps, channels), np.int8)
    for step, (row, index) in enumerate(p.stored):
        for tap, place in enumerate(p.window(row, groups[index])):
            if place is not None:
                steps[step * width : (step + 1) * width, tap] = weight[place]
    sums, first, panels = weight.sum((0, 1), np.int32), 0, []
    for lanes in padded_pieces(channels, p.isa.lanes):
        own = slice(first, min(first + lanes, channels))
        panels.append(p.layout.pack(steps[:, :, own], lanes, sums[own]))
        first += lanes
    return np.concatenate(panels).astype(np.int8 if p.isa.vnni else np.int16)


def generate(p: IntegerDepthwisePlan, dtypes: list[str]) -> Any:
    """The kernel, as ``tirx.PrimFunc``."""
    kernel = Kernel(dtypes, special(p.isa))
    _DepthwiseWriter(p, kernel).write()
    return kernel.function()


class _DepthwiseWriter:
    """Emits the loops over rows, blocks of channels and columns, and each size of tile."""

    def __init__(self, p: IntegerDepthwisePlan, kernel: Kernel) -> None:
        self.plan, self.conv, self.kernel, self.body = p, p.depthwise, kernel, kernel.body
        self.input, self.weight = kernel.buffers[:2]
        epilogue, self.bias = bias_apart(self.conv.epilogue, "int32")
        self.target = Store(self.body, kernel.buffers[:-1], kernel.buffers[-1], epilogue, self.conv.store)
        self.start: Any = None
        self.sign: Any = None
        self.weights: dict[tuple[int, int, int], Any] = {}

    def write(self) -> None:
        with self.body.loop(self.conv.batch) as image:
            share_rows(self.kernel, self.conv.out_height, self.plan.rows, partial(self._channels, image))

    def _channels(self, image: Any, row: Any, rows: int) -> None:
        lanes, channels = self.plan.isa.lanes, self.conv.channels
        panel, whole = self.plan.layout.size(lanes), channels // lanes
        if whole:
            with self.body.loop(whole) as block:
                self._block(image, row, rows, block * lanes, lanes, lanes, block * panel)
        if channels % lanes:
            width = padded_pieces(channels % lanes, lanes)[0]
            first = tirx.const(whole * lanes, "int32")
            self._block(image, row, rows, first, channels % lanes, width, tirx.const(whole * panel, "int32"))

    def _block(self, image: Any, row: Any, rows: int, channel: Any, channels: int, width: int, panel: Any) -> None:
        """One vector of channels of some rows."""
        axes = {**dict.fromkeys(range(3), tirx.const(0, "int32")), 3: channel}
        (start,) = bias_vectors(self.body, self.target.operands, self.bias, axes, [width], channels)
        if self.plan.signed:
            sign = vector_load(self.weight, panel, SIGN_BYTES)
            self.sign = self.body.hold(tirx.reinterpret(f"uint8x{SIGN_BYTES}", sign))
            head = vector_load(self.weight, panel + SIGN_BYTES, 4 * width)
            start = start + tirx.reinterpret(f"int32x{width}", head)
        self.start = self.body.hold(start)
        self._load_weights(panel + self.plan.layout.head(width), width)
        for first, columns, count in tiles(self.conv.out_width, self.plan.columns):
            with self.body.loop(count) as index:
                origin = {0: image, 1: row, 2: first + index * columns, 3: channel}
                self._tile(origin, rows, columns, channels, width)

    def _load_weights(self, panel: Any, width: int) -> None:
        """The weights by (output row, group, column of the window), in registers where there is room."""
        kernel_width, size = self.conv.kernel[1], width * self.plan.taps
        held = self.plan.vectors <= HELD_WEIGHTS
        for step, (row, group) in enumerate(self.plan.stored):
            for tap in range(kernel_width):
                value = vector_load(self.weight, panel + (step * kernel_width + tap) * size, size)
                self.weights[row, group, tap] = self.body.hold(value) if held else value
        for row, group in self.plan.steps(self.plan.rows):
            for tap in range(kernel_width if self.plan.shifted(row, group) else 0):
                words = tirx.reinterpret(f"int32x{width}", self.weights[0, group, tap])
                moved = tirx.shift_left(words, tirx.Broadcast(tirx.const(8 * row, "int32"), width))
                self.weights[row, group, tap] = self.body.hold(tirx.reinterpret(f"int8x{size}", moved))

    def _tile(self, origin: dict[int, Any], rows: int, columns: int, channels: int, width: int) -> None:
        points = [Point(r, c) for r in range(rows) for c in range(columns)]
        acc = IntegerTile(self.body, self.plan.isa, points, [width], [self.start])
        n_step, h_step, w_step, _ = self.conv.input_strides
        sh, sw = self.conv.stride
        corner = self.conv.input_offset + origin[0] * n_step + origin[1] * (sh * h_step) + origin[2] * (sw * w_step)
        corner = self.body.bind("corner", corner + origin[3])
        groups, steps = self.plan.groups(rows), self.plan.steps(rows)
        for place, reached in self.plan.reach(columns).items():
            for index, group in enumerate(groups):
                value = self._interleaved([corner + r * h_step + place * w_step for r in group], width)
                for row in (row for row, own in steps if own == index):
                    for column, tap in reached:
                        pixel = row * columns + column
                        total = self._product(acc.value(pixel, 0), value, self.weights[row, index, tap])
                        acc.update(pixel, 0, total)
        acc.write(self.target, origin, channels)

    def _interleaved(self, offsets: list[Any], width: int) -> Any:
        """``width`` channels of some rows, those of each channel together; the last row fills up what is missing."""
        taps = self.plan.taps
        loads = [self.body.bind("x", vector_load(self.input, offset, width)) for offset in offsets]
        loads += loads[-1:] * (taps - len(loads))
        order = [tap * width + lane for lane in range(width) for tap in range(taps)]
        value = tirx.Shuffle(loads, [tirx.const(index, "int32") for index in order])
        if self.plan.signed:
            value = tirx.reinterpret(f"uint8x{taps * width}", value)
            value = tirx.bitwise_xor(value, part(self.sign, 0, taps * width))
        return self.body.hold(value if self.plan.isa.vnni else tirx.Cast(f"int16x{taps * width}", value))

    def _product(self, total: Any, value: Any, weight: Any) -> Any:
        return dot(total, value, weight) if self.plan.isa.vnni else total + pair_sums(value, weight)


def contract(p: IntegerDepthwisePlan) -> str:
    """The kernel's name."""
    c = p.depthwise
    how = "vnni" if p.isa.vnni else "madd"
    return f"{shape_name(c, 'dwconv')}__t{p.rows}x{p.columns}_{how}"
