"""Code for :class:`edgec.program.Conv`: convolution as implicit GEMM, and GEMM itself.

A work item computes a tile of ``rows`` × ``columns`` output pixels times ``vectors`` vectors of output channels in
registers. Neighbouring items along the first axis have neighbouring blocks of channels and read the same input. Four
input channels are loaded at once where they are contiguous (``depth``). Weights are packed so that they are read
straight through: one panel per block of channels, in it [kh, kw, ci, channel]; with ``dot``, where four products of
bytes are one instruction, [kh, kw, ci / 4, channel, 4].
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import prod

import numpy as np

from edgec.nest import merged_loops
from edgec.program import Conv
from edgec.targets.gpu.grid import group_of, groups, positions
from edgec.targets.gpu.opencl import IN_REGISTER, WIDTHS, Body, Source, load_vector
from edgec.targets.gpu.target import GpuTarget
from edgec.targets.gpu.tile import Accumulators, Point, blocks, packed, placed, window, write
from edgec.targets.vectors import SHORT, padded_pieces, pieces

TILES = ((1, 4), (1, 2), (1, 1), (2, 2), (1, 6), (1, 8), (2, 4), (4, 2), (2, 6), (4, 4), (1, 12), (2, 7))
"""Rows and columns of tiles to try."""
DOT_DTYPES = ("int8", "uint8")
LATE = 4
"""How many other steps a change of the work group comes after."""


@dataclass(frozen=True)
class ConvPlan:
    """A convolution with its register tile, the input channels loaded at once, whether they are multiplied as one, and
    its work group."""

    conv: Conv
    rows: int
    columns: int
    vectors: int
    lanes: int
    depth: int
    dot: int = 0
    group_x: int = 0
    group_y: int = 0

    @property
    def block(self) -> int:
        """Output channels of a whole block."""
        return self.vectors * self.lanes

    def widths(self, channels: int) -> list[int]:
        """The vectors that cover a block of ``channels``; run-time weights must not be read past their end."""
        if self.conv.weight_strides is not None:
            return pieces(channels, self.lanes)
        return padded_pieces(channels, self.lanes, 1)

    @property
    def items(self) -> tuple[int, int, int]:
        """Work items: blocks of channels, tiles of columns, tiles of rows in every image."""
        conv = self.conv
        across, down = -(-conv.out_width // self.columns), -(-conv.out_height // self.rows)
        return (-(-conv.out_channels // self.block), across, down * conv.batch)

    @property
    def reduction(self) -> list[tuple[int, int]]:
        """The reduction loops: (extent, input elements per step), merged where the input is contiguous."""
        return merged_loops(self.conv.taps)


def plan(conv: Conv, target: GpuTarget) -> ConvPlan:
    """The device's own vectors, four pixels a work item, and the group that the driver finds best."""
    return candidates(conv, target)[0]


def candidates(conv: Conv, target: GpuTarget) -> list[ConvPlan]:
    """Every tile whose sums fit the registers, with every group; what differs little from the first choice comes
    first, and the groups last."""
    return [p for _, p in sorted(_ranked(conv, target), key=lambda each: each[0])]


def _ranked(conv: Conv, target: GpuTarget) -> Iterator[tuple[int, ConvPlan]]:
    """Plans, and in how many steps of one parameter each differs from the first choice."""
    loops = merged_loops(conv.taps)
    deep = 4 if loops and loops[-1][1] == 1 and loops[-1][0] % 4 == 0 else 1
    dot = int(deep == 4 and target.integer_dot and conv.input_dtype in DOT_DTYPES and conv.weight_strides is None)
    widths = sorted(WIDTHS[1:], key=lambda width: (width != target.vector, width))
    for wider, lanes in enumerate(widths):
        for more, vectors in enumerate((1, 2, 4)):
            if (vectors - 1) * lanes >= conv.out_channels or (lanes > WIDTHS[1] and conv.out_channels < lanes):
                continue
            for other, (rows, columns) in enumerate(TILES):
                if rows > conv.out_height or columns > conv.out_width:
                    continue
                if rows * columns * vectors * lanes > target.registers:
                    continue
                plan = ConvPlan(conv, rows, columns, vectors, lanes, deep, dot)
                for last, (x, y) in enumerate(groups(plan.items, target.work_group)):
                    yield wider + more + other + LATE * last, replace(plan, group_x=x, group_y=y)


def pack(p: ConvPlan, weight: np.ndarray) -> np.ndarray:
    """The weight [kh, kw, ci, co] as panels; a batch of matrices, read with strides, stays as it is."""
    if p.conv.weight_strides is not None:
        return weight
    panels = packed(weight, p.conv.out_channels, p.block, p.lanes)
    return panels if not p.dot else np.concatenate([each.ravel() for each in _by_fours(p, panels)])


def _by_fours(p: ConvPlan, panels: np.ndarray) -> Iterator[np.ndarray]:
    """Panels [depth, channel] as [depth / 4, channel, 4]."""
    depth, first = prod(p.conv.kernel) * p.conv.in_channels, 0
    for size, count in blocks(p.conv.out_channels, p.block):
        width = sum(padded_pieces(size, p.lanes, 1))
        for _ in range(count):
            panel = panels[first : first + depth * width].reshape(depth // 4, 4, width)
            yield panel.transpose(0, 2, 1)
            first += depth * width


def generate(p: ConvPlan, dtypes: list[str]) -> Source:
    """The kernel: operands in order and the output last."""
    return _ConvWriter(p, dtypes).write()


class _ConvWriter:
    """Emits a work item: for every size of channel block, the microkernel of its tile."""

    def __init__(self, p: ConvPlan, dtypes: list[str]) -> None:
        self.plan, self.conv, self.dtypes, self.body = p, p.conv, dtypes, Body()
        self.depth = prod(p.conv.kernel) * p.conv.in_channels

    def write(self) -> Source:
        p, conv = self.plan, self.conv
        group = group_of(p.group_x, p.group_y)
        block, image, pixels = placed(self.body, conv, positions(self.body, p.items, group), (p.rows, p.columns))
        corners = [self._corner(image, pixel) for pixel in pixels]
        sizes = blocks(conv.out_channels, p.block)
        if len(sizes) == 1:
            self._tile(sizes[0][0], image, pixels, corners, block, f"{block} * {p.block}")
        else:
            (_, whole), (rest, _) = sizes
            with self.body.block(f"if ({block} < {whole})"):
                self._tile(p.block, image, pixels, corners, block, f"{block} * {p.block}")
            with self.body.block("else"):
                self._tile(rest, image, pixels, corners, str(whole), str(whole * p.block))
        return self.body.source(p.items, group)

    def _corner(self, image: str, pixel: Point) -> str:
        n_step, h_step, w_step, _ = self.conv.input_strides
        sh, sw = self.conv.stride
        place = f"{self.conv.input_offset} + {image} * {n_step} + ({pixel.row}) * {sh * h_step}"
        return self.body.index("corner", f"{place} + ({pixel.column}) * {sw * w_step}")

    def _tile(
        self, channels: int, image: str, pixels: list[Point], corners: list[str], block: str, channel: str
    ) -> None:
        conv, widths = self.conv, self.plan.widths(channels)
        channel = self.body.index("channel", channel)
        if conv.weight_strides is not None:
            batch_step, k_step = conv.weight_strides
            panel = f"{conv.weight_offset} + {image} * {batch_step} + {channel}"
        else:
            k_step = sum(widths)
            panel = f"{block} * {self.depth * sum(padded_pieces(self.plan.block, self.plan.lanes, 1))}"
        panel = self.body.index("panel", panel)
        acc = Accumulators(self.body, conv.accumulator_dtype, len(pixels), widths)
        self._reduce(acc, corners, panel, k_step)
        write(self.body, conv, acc, pixels, image, channel, channels, self.dtypes)

    def _reduce(self, acc: Accumulators, corners: list[str], panel: str, k_step: int) -> None:
        loops = self.plan.reduction

        def level(depth: int, source: str, k: str) -> None:
            if depth == len(loops):
                self._multiply(acc, corners, source, f"{panel} + ({k}) * {k_step}", k_step, 1)
                return
            extent, step = loops[depth]
            inner = prod(e for e, _ in loops[depth + 1 :])
            deep = self.plan.depth if depth == len(loops) - 1 else 1
            with self.body.loop(extent, deep) as index:
                further, place = f"{source} + {index} * {step}", f"{k} + {index} * {inner}"
                if depth == len(loops) - 1:
                    self._multiply(acc, corners, further, f"{panel} + ({place}) * {k_step}", k_step, deep)
                else:
                    level(depth + 1, further, place)

        level(0, "0", "0")

    def _multiply(
        self, acc: Accumulators, corners: list[str], source: str, weights: str, k_step: int, deep: int
    ) -> None:
        """One step of the reduction, ``deep`` input channels, for the whole tile."""
        offset, weights = self.body.index("source", source), self.body.index("w", weights)
        if self.plan.dot:
            self._multiply_fours(acc, corners, offset, weights)
            return
        values = [self._input(f"{corner} + {offset}", deep) for corner in corners]
        for u in range(deep):
            start = u * k_step
            for vector, width in enumerate(acc.widths):
                weight = self._weight(f"{weights} + {start}", width)
                for pixel, value in enumerate(values):
                    acc.add_product(pixel, vector, value if deep == 1 else f"{value}.s{u}", weight)
                start += width

    def _multiply_fours(self, acc: Accumulators, corners: list[str], offset: str, weights: str) -> None:
        """Four input channels at once, for the whole tile."""
        values = []
        for corner in corners:
            values.append(self.body.name("x"))
            kind = IN_REGISTER[self.dtypes[0]]
            self.body.line(f"const {kind}4 {values[-1]} = vload4(0, p0 + ({corner} + {offset}));")
        start = 0
        for vector, width in enumerate(acc.widths):
            four = min(4, width)
            loaded = []
            for channel in range(start, start + width, four):
                loaded.append(self.body.name("w"))
                lanes = 4 * four
                self.body.line(f"const char{lanes} {loaded[-1]} = vload{lanes}(0, p1 + ({weights} + {4 * channel}));")
            for pixel, value in enumerate(values):
                dots = [
                    f"DOT4({value}, {name}.s{''.join(f'{4 * lane + byte:x}' for byte in range(4))})"
                    for name in loaded
                    for lane in range(four)
                ]
                acc.add(pixel, vector, dots)
            start += width

    def _input(self, offset: str, deep: int) -> str:
        return self._converted("x", load_vector("p0", f"({offset})", self.dtypes[0], deep), self.dtypes[0], deep)

    def _weight(self, offset: str, width: int) -> str:
        return self._converted("w", load_vector("p1", f"({offset})", self.dtypes[1], width), self.dtypes[1], width)

    def _converted(self, prefix: str, text: str, dtype: str, lanes: int) -> str:
        """A loaded vector as the sums have it, named."""
        return converted(self.body, prefix, text, dtype, self.conv.accumulator_dtype, lanes)


def converted(body: Body, prefix: str, text: str, dtype: str, wanted: str, lanes: int) -> str:
    """A loaded vector of ``dtype`` as a named variable of dtype ``wanted``."""
    width = str(lanes) if lanes > 1 else ""
    kind = "float" if wanted == "float32" else "int"
    name = body.name(prefix)
    whole = text if wanted == "float32" else f"convert_int{width}({text})"
    body.line(f"const {kind}{width} {name} = {whole};")
    return name


def contract(p: ConvPlan) -> str:
    """The kernel's name."""
    c = p.conv
    shape = f"n{c.batch}h{c.out_height}w{c.out_width}c{c.out_channels}"
    kind = "gemm_rt" if c.weight_strides else "conv"
    tile = f"t{p.rows}x{p.columns}v{p.vectors}l{p.lanes}d{p.depth}{'dot' * p.dot}g{p.group_x}x{p.group_y}"
    return f"{SHORT[c.input_dtype]}_{kind}_{shape}_{window(c)}i{c.in_channels}__{tile}"
