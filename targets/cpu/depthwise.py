"""Code for :class:`edgec.program.Depthwise`: vectors across channels, a run of output pixels at a time.

The channel block is the outer loop, so that its weights can stay in registers while a row passes by;
neighbouring pixels of the register tile share their loads.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np

from edgec.program import Depthwise
from edgec.targets.cpu.conv import lanes_of_sums
from edgec.targets.cpu.tile import Accumulators, Point, Store, load_channels, over_channels, shape_name, tiles
from edgec.targets.cpu.tir import Kernel, Special, nothing_special
from edgec.targets.target import Target
from edgec.targets.vectors import pieces


@dataclass(frozen=True)
class DepthwisePlan:
    """A depthwise convolution with its tile: ``columns`` pixels of one vector of channels."""

    depthwise: Depthwise
    columns: int
    lanes: int

    def __post_init__(self) -> None:
        assert 1 <= self.columns <= self.depthwise.out_width


def plan(depthwise: Depthwise, target: Target) -> DepthwisePlan:
    """As many pixels as registers allow beside the weights, in equal tiles."""
    taps = depthwise.kernel[0] * depthwise.kernel[1]
    free = target.vector_registers - min(taps, target.vector_registers // 2) - 2
    most = max(1, min(free // 2, depthwise.out_width, 8))
    count = -(-depthwise.out_width // most)
    return DepthwisePlan(depthwise, -(-depthwise.out_width // count), lanes_of_sums(depthwise, target))


def candidates(depthwise: Depthwise, target: Target) -> list[DepthwisePlan]:
    """Every tile whose sums fit the registers, those like :func:`plan`'s first."""
    first = plan(depthwise, target)
    widths = range(1, min(depthwise.out_width, target.vector_registers - 2) + 1)
    return [replace(first, columns=columns) for columns in sorted(widths, key=lambda c: (abs(c - first.columns), c))]


def pack(p: DepthwisePlan, weight: np.ndarray) -> np.ndarray:
    """The weight [kh, kw, c] as one run per vector of channels: [block][kh, kw, lane]."""
    flat = weight.reshape(-1, p.depthwise.channels)
    widths = pieces(p.depthwise.channels, p.lanes)
    edges = np.cumsum([0, *widths])
    return np.concatenate([flat[:, a:b].ravel() for a, b in pairwise(edges)])


def generate(p: DepthwisePlan, dtypes: list[str], special: Special = nothing_special) -> Any:
    """The kernel, as ``tirx.PrimFunc``; see :data:`.tir.Special`."""
    kernel = Kernel(dtypes, special)
    _DepthwiseWriter(p, kernel).write()
    return kernel.function()


class _DepthwiseWriter:
    def __init__(self, p: DepthwisePlan, kernel: Kernel) -> None:
        self.plan, self.conv, self.kernel, self.body = p, p.depthwise, kernel, kernel.body
        self.input, self.weight = kernel.buffers[:2]
        self.target = Store(self.body, kernel.buffers[:-1], kernel.buffers[-1], self.conv.epilogue, self.conv.store)
        self.taps = self.conv.kernel[0] * self.conv.kernel[1]

    def write(self) -> None:
        with self.body.loop(self.conv.batch) as image:
            first, count = self.kernel.share(self.conv.out_height)
            with self.body.loop(count, first) as row:
                over_channels(self.body, self.conv.channels, self.plan.lanes, partial(self._row, image, row))

    def _row(self, image: Any, row: Any, _: Any, channel: Any, width: int) -> None:
        for start, columns, count in tiles(self.conv.out_width, self.plan.columns):
            with self.body.loop(count) as index:
                self._tile(image, row, start + index * columns, columns, channel, width)

    def _tile(self, image: Any, row: Any, column: Any, columns: int, channel: Any, width: int) -> None:
        points = [Point(0, c) for c in range(columns)]
        acc = Accumulators(self.body, self.conv.accumulator_dtype, points, [width])
        n_step, h_step, w_step, _ = self.conv.input_strides
        (sh, sw), (dh, dw) = self.conv.stride, self.conv.dilation
        corner = self.conv.input_offset + image * n_step + row * (sh * h_step) + column * (sw * w_step) + channel
        corner = self.body.bind("corner", corner)
        kernel_h, kernel_w = self.conv.kernel
        for tap_row in range(kernel_h):
            for tap_column in range(kernel_w):
                tap = tap_row * kernel_w + tap_column
                weight = self.body.bind("w", load_channels(self.weight, channel * self.taps + tap * width, width))
                for pixel in range(columns):
                    offset = tap_row * dh * h_step + (pixel * sw + tap_column * dw) * w_step
                    value = load_channels(self.input, corner + offset, width)
                    acc.add_product(pixel, 0, value, weight)
        acc.write(self.target, {0: image, 1: row, 2: column, 3: channel}, width)


def contract(p: DepthwisePlan) -> str:
    """The kernel's name."""
    c = p.depthwise
    return f"{shape_name(c, 'dwconv')}__t{p.columns}"
