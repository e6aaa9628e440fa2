"""Code for :class:`edgec.program.Depthwise`: a work item computes a run of output pixels of one vector of channels.

Neighbouring pixels share their loads, since the windows overlap; every input vector is loaded once.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from edgec.program import Depthwise
from edgec.targets.gpu.conv import converted
from edgec.targets.gpu.grid import group_of, groups, positions
from edgec.targets.gpu.opencl import IMAGE_LANES, IN_REGISTER, WIDTHS, Body, Source, image_vector, load_vector
from edgec.targets.gpu.target import GpuTarget
from edgec.targets.gpu.tile import Accumulators, Point, blocks, packed, placed, window, write
from edgec.targets.vectors import SHORT, padded_pieces

TILES = ((1, 4), (1, 2), (1, 1), (2, 2), (2, 1), (1, 7), (2, 4), (1, 8), (4, 4))
"""Rows and columns of tiles to try."""
MOST_LOADS = 100
"""Input vectors that a tile may read: its text is unrolled."""


@dataclass(frozen=True)
class DepthwisePlan:
    """A depthwise convolution with its tile, its vectors, whether weights are an image, and its work group."""

    depthwise: Depthwise
    rows: int
    columns: int
    lanes: int
    image: int = 0
    group_x: int = 0
    group_y: int = 0

    @property
    def least(self) -> int:
        """The narrowest vector of packed weights."""
        return IMAGE_LANES if self.image else 1

    @property
    def items(self) -> tuple[int, int, int]:
        """Work items: vectors of channels, tiles of columns, tiles of rows in every image."""
        conv = self.depthwise
        across, down = -(-conv.out_width // self.columns), -(-conv.out_height // self.rows)
        return (-(-conv.channels // self.lanes), across, down * conv.batch)


def plan(depthwise: Depthwise, target: GpuTarget) -> DepthwisePlan:
    """The device's own vectors, four pixels a work item, and the group that the driver finds best."""
    return candidates(depthwise, target)[0]


def candidates(depthwise: Depthwise, target: GpuTarget) -> list[DepthwisePlan]:
    """Every tile with vectors of some width and some work group."""
    widths = sorted(WIDTHS[1:], key=lambda width: (width != target.vector, width))
    widths = [width for width in widths if width == 4 or width <= depthwise.channels]
    found = [
        replace(p, group_x=x, group_y=y)
        for lanes in widths
        for rows, columns in TILES
        if rows <= depthwise.out_height and columns <= depthwise.out_width
        for p in [DepthwisePlan(depthwise, rows, columns, lanes, int(target.weights == "image"))]
        if _loads(p) <= MOST_LOADS or (rows, columns) == (1, 1)
        for x, y in groups(p.items, target.work_group)
    ]
    return [p for p in found if not p.group_x] + [p for p in found if p.group_x]


def _loads(p: DepthwisePlan) -> int:
    """Input vectors that a tile reads."""
    (kh, kw), (sh, sw) = p.depthwise.kernel, p.depthwise.stride
    if sh > kh or sw > kw:
        return p.rows * p.columns * kh * kw
    return ((p.rows - 1) * sh + kh) * ((p.columns - 1) * sw + kw)


def pack(p: DepthwisePlan, weight: np.ndarray) -> np.ndarray:
    """The weight [kh, kw, c] as one run per vector of channels: [block][kh, kw, lane]."""
    return packed(weight, p.depthwise.channels, p.lanes, p.lanes, p.least)


def generate(p: DepthwisePlan, dtypes: list[str]) -> Source:
    """The kernel: operands in order and the output last."""
    return _DepthwiseWriter(p, dtypes).write()


class _DepthwiseWriter:
    def __init__(self, p: DepthwisePlan, dtypes: list[str]) -> None:
        self.plan, self.conv, self.dtypes, self.body = p, p.depthwise, dtypes, Body()

    def write(self) -> Source:
        p, conv = self.plan, self.conv
        group = group_of(p.group_x, p.group_y)
        block, image, pixels = placed(self.body, conv, positions(self.body, p.items, group), (p.rows, p.columns))
        sizes = blocks(conv.channels, p.lanes)
        if len(sizes) == 1:
            self._tile(sizes[0][0], image, pixels, block)
        else:
            (_, whole), (rest, _) = sizes
            with self.body.block(f"if ({block} < {whole})"):
                self._tile(p.lanes, image, pixels, block)
            with self.body.block("else"):
                self._tile(rest, image, pixels, str(whole))
        return self.body.source(p.items, group, bool(p.image))

    def _tile(self, channels: int, image: str, pixels: list[Point], block: str) -> None:
        conv, lanes = self.conv, self.plan.lanes
        (width,) = padded_pieces(channels, lanes, self.plan.least)
        kernel_h, kernel_w = conv.kernel
        channel = self.body.index("channel", f"{block} * {lanes}")
        panel = self.body.index("panel", f"{block} * {lanes * kernel_h * kernel_w}")
        acc = Accumulators(self.body, conv.accumulator_dtype, len(pixels), [width])
        inputs = _Inputs(self, image, pixels, channel, width, channels)
        for y in range(kernel_h):
            for x in range(kernel_w):
                offset = f"({panel} + {(y * kernel_w + x) * width})"
                weight = self._loaded("w", "p1", offset, width)
                for pixel in range(len(pixels)):
                    acc.add_product(pixel, 0, inputs.at(pixel, y, x), weight)
        write(self.body, conv, acc, pixels, image, channel, channels, self.dtypes)

    def _loaded(self, prefix: str, pointer: str, offset: str, width: int) -> str:
        dtype = self.dtypes[int(pointer[1:])]
        image = self.plan.image and pointer == "p1"
        text = image_vector(1, offset, dtype, width) if image else load_vector(pointer, offset, dtype, width)
        return converted(self.body, prefix, text, dtype, self.conv.accumulator_dtype, width)


class _Inputs:
    """The input vectors of a tile, each loaded when it is first asked for."""

    def __init__(
        self, writer: _DepthwiseWriter, image: str, pixels: list[Point], channel: str, width: int, channels: int
    ) -> None:
        self.writer, self.pixels, self.width, self.channels = writer, pixels, width, channels
        conv, p = writer.conv, writer.plan
        self._base = writer.body.index("base", f"{conv.input_offset} + {image} * {conv.input_strides[0]} + {channel}")
        self._clamps = [bool(conv.out_height % p.rows), bool(conv.out_width % p.columns)]
        self._loaded: dict[tuple[object, object], str] = {}

    def at(self, pixel: int, y: int, x: int) -> str:
        """What ``pixel`` multiplies with the weight at (``y``, ``x``)."""
        conv, p = self.writer.conv, self.writer.plan
        (sh, sw), (dh, dw) = conv.stride, conv.dilation
        r, c = divmod(pixel, p.columns)
        # pixels that may be clamped to the map's edge stand nobody knows where, so that nobody shares their loads
        row = (r, y) if self._clamps[0] else r * sh + y * dh
        column = (c, x) if self._clamps[1] else c * sw + x * dw
        if (row, column) not in self._loaded:
            self._loaded[row, column] = self._load(self.pixels[pixel], y * dh, x * dw)
        return self._loaded[row, column]

    def _load(self, point: Point, down: int, across: int) -> str:
        conv = self.writer.conv
        _, h_step, w_step, _ = conv.input_strides
        sh, sw = conv.stride
        offset = f"({self._base} + ({point.row}) * {sh * h_step} + ({point.column}) * {sw * w_step}"
        offset += f" + {down * h_step + across * w_step})"
        return self._part(offset)

    def _part(self, offset: str) -> str:
        """A vector; the last one of a row is not read past its channels, which the buffer may end with."""
        if self.channels >= self.width:
            return self.writer._loaded("x", "p0", offset, self.width)
        dtype = self.writer.dtypes[0]
        lanes = [load_vector("p0", f"({offset} + {lane})", dtype, 1) for lane in range(self.channels)]
        values = [*lanes, *["0"] * (self.width - self.channels)]
        kind = IN_REGISTER[dtype]
        text = f"({kind}{self.width})({', '.join(values)})"
        return converted(self.writer.body, "x", text, dtype, self.writer.conv.accumulator_dtype, self.width)


def contract(p: DepthwisePlan) -> str:
    """The kernel's name."""
    c = p.depthwise
    shape = f"n{c.batch}h{c.out_height}w{c.out_width}c{c.channels}"
    tile = f"t{p.rows}x{p.columns}l{p.lanes}{'i' * p.image}g{p.group_x}x{p.group_y}"
    return f"{SHORT[c.input_dtype]}_dwconv_{shape}_{window(c)}__{tile}"
