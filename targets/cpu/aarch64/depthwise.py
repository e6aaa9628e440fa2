"""Code for :class:`edgec.program.Depthwise` of 8-bit integers: 16 channels at a time, products of two taps in int16.

``smull`` and ``smlal`` make and add the products of two taps, which int16 holds since weights are at least −127:
2 · 127 · 128 < 2^15; ``saddw`` adds them to the int32 sums. A uint8 input is treated as in :mod:`.conv`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from edgec.building.lazy_tvm import tirx
from edgec.program import Depthwise
from edgec.targets.cpu.aarch64.neon import long_product, special
from edgec.targets.cpu.aarch64.tile import LANES, Tile, load_input, start_and_store
from edgec.targets.cpu.tile import Point, load_channels, shape_name, starts, tiles
from edgec.targets.cpu.tir import Kernel, lanes_of, part
from edgec.targets.target import Target

COLUMNS = 4
"""Output pixels of a tile, at most: 16 registers of sums, beside the weights of a small window."""
WIDE, NARROW = 16, 8
"""Channels of a vector of bytes, and of half of one."""


@dataclass(frozen=True)
class DepthwisePlan:
    """A depthwise convolution with its tile: ``columns`` pixels of 16 (at the end perhaps 8) channels."""

    depthwise: Depthwise
    columns: int

    @property
    def taps(self) -> int:
        return self.depthwise.kernel[0] * self.depthwise.kernel[1]

    @property
    def widths(self) -> list[int]:
        """The vectors that cover the channels."""
        rest = self.depthwise.channels % WIDE
        return [WIDE] * (self.depthwise.channels // WIDE) + ([WIDE if rest > NARROW else NARROW] if rest else [])

    @property
    def head(self) -> int:
        """Bytes per channel in front of a vector's weights: the int32 to start from, where the input is uint8."""
        return 4 if self.depthwise.input_dtype == "uint8" else 0


def fits(conv: Depthwise) -> bool:
    """Whether the sums are of bytes."""
    return conv.input_dtype in ("int8", "uint8")


def plan(conv: Depthwise, target: Target) -> DepthwisePlan:
    """Equal tiles of at most :data:`COLUMNS` pixels."""
    count = -(-conv.out_width // COLUMNS)
    return DepthwisePlan(conv, -(-conv.out_width // count))


def pack(p: DepthwisePlan, weight: np.ndarray) -> np.ndarray:
    """The weight [kh, kw, c] as one run per vector of channels, [tap, lane], behind its head."""
    flat = np.zeros((p.taps, sum(p.widths)), np.int8)
    flat[:, : p.depthwise.channels] = weight.reshape(p.taps, -1)
    runs = []
    for first, width in zip(starts(p.widths), p.widths, strict=True):
        run = flat[:, first : first + width]
        if p.head:
            runs.append((run.sum(0, np.int32) * 128).view(np.int8))
        runs.append(run.ravel())
    return np.concatenate(runs)


def generate(p: DepthwisePlan, dtypes: list[str]) -> Any:
    """The kernel, as ``tirx.PrimFunc``."""
    kernel = Kernel(dtypes, special)
    _DepthwiseWriter(p, kernel).write()
    return kernel.function()


class _DepthwiseWriter:
    """Emits the loops over rows, vectors of channels and tiles, and the tile."""

    def __init__(self, p: DepthwisePlan, kernel: Kernel) -> None:
        self.plan, self.conv, self.kernel, self.body = p, p.depthwise, kernel, kernel.body
        self.input, self.weight = kernel.buffers[:2]
        self.start, self.target = start_and_store(self.conv, kernel)

    def write(self) -> None:
        with self.body.loop(self.conv.batch) as image:
            first, count = self.kernel.share(self.conv.out_height)
            with self.body.loop(count, first) as row:
                self._channels(image, row)

    def _channels(self, image: Any, row: Any) -> None:
        run = self.plan.taps + self.plan.head
        whole = self.conv.channels // WIDE
        with self.body.loop(whole) as block:
            if whole:
                self._row(image, row, block * WIDE, WIDE, WIDE, block * (WIDE * run))
        rest = self.conv.channels % WIDE
        if rest:
            first = tirx.const(whole * WIDE, "int32")
            self._row(image, row, first, rest, self.plan.widths[-1], first * run)

    def _row(self, image: Any, row: Any, channel: Any, channels: int, width: int, weights: Any) -> None:
        for start, columns, count in tiles(self.conv.out_width, self.plan.columns):
            with self.body.loop(count) as index:
                origin = {0: image, 1: row, 2: start + index * columns, 3: channel}
                self._tile(origin, columns, channels, width, weights)

    def _tile(self, origin: dict[int, Any], columns: int, channels: int, width: int, weights: Any) -> None:
        n_step, h_step, w_step, _ = self.conv.input_strides
        sh, sw = self.conv.stride
        corner = self.conv.input_offset + origin[0] * n_step + origin[1] * (sh * h_step)
        corner = self.body.bind("corner", corner + origin[2] * (sw * w_step) + origin[3])
        head = (self.weight, weights) if self.plan.head else None
        start = self.start.vectors(origin, channels, width // LANES, head)
        tile = Tile(self.body, "int32", [Point(0, column) for column in range(columns)], start)
        weights = self.body.bind("w", weights + self.plan.head * width)
        for first in range(0, self.plan.taps, 2):
            taps = range(first, min(first + 2, self.plan.taps))
            for pixel in range(columns):
                self._add(tile, pixel, [self._pair(tap, pixel, corner, weights, width) for tap in taps])
        tile.write(self.target, origin, channels)

    def _pair(self, tap: int, pixel: int, corner: Any, weights: Any, width: int) -> tuple[Any, Any]:
        """The input under a tap of the window, and the tap's weights."""
        _, h_step, w_step, _ = self.conv.input_strides
        (dh, dw), (row, column) = self.conv.dilation, divmod(tap, self.conv.kernel[1])
        offset = row * dh * h_step + (pixel * self.conv.stride[1] + column * dw) * w_step
        value = self.body.bind("x", load_input(self.input, corner + offset, width))
        return value, self.body.bind("w", load_channels(self.weight, weights + tap * width, width))

    def _add(self, tile: Tile, pixel: int, taps: list[tuple[Any, Any]]) -> None:
        """Add the products of one or two taps to a pixel's sums."""
        for half in range(lanes_of(taps[0][0]) // NARROW):
            products = [long_product(part(x, half * NARROW, NARROW), part(w, half * NARROW, NARROW)) for x, w in taps]
            total = self.body.hold(products[0] if len(products) == 1 else products[0] + products[1])
            for quarter in range(NARROW // LANES):
                vector = half * (NARROW // LANES) + quarter
                wide = tirx.Cast("int32x4", part(total, quarter * LANES, LANES))
                tile.update(pixel, vector, tile.value(pixel, vector) + wide)


def contract(p: DepthwisePlan) -> str:
    """The kernel's name."""
    c = p.depthwise
    return f"{shape_name(c, 'dwconv')}__t{p.columns}_smlal"
