"""Code for :class:`edgec.program.Conv`: convolution as implicit GEMM, and GEMM itself.

A work item computes a tile of ``rows`` × ``columns`` output pixels times ``vectors`` vectors of output channels in
registers. Neighbouring items along the first axis have neighbouring blocks of channels and read the same input. Four
input channels are loaded at once where they are contiguous (``depth``). Weights are packed so that an item reads them
straight through: one panel per block of channels, in it [kh, kw, ci, channel]; or, ``flat``, so that neighbouring items
read neighbours: one panel of all channels. With ``dot``, where four products of bytes are one instruction, a panel is
[kh, kw, ci / 4, channel, 4]. Where there are too few items to keep the device busy, a ``team`` of them shares each sum.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import product
from math import prod

import numpy as np

from edgec.nest import merged_loops
from edgec.program import Conv
from edgec.targets.gpu import winograd
from edgec.targets.gpu.grid import group_of, groups, positions
from edgec.targets.gpu.opencl import IMAGE_LANES, IN_REGISTER, WIDTHS, Body, Source, image_vector, load_vector
from edgec.targets.gpu.target import GpuTarget
from edgec.targets.gpu.team import Team, side_by_side, sizes
from edgec.targets.gpu.tile import Accumulators, Point, blocks, packed, placed, window, write
from edgec.targets.gpu.winograd import WinogradPlan
from edgec.targets.vectors import SHORT, padded_pieces, pieces

TILES = ((1, 4), (1, 2), (1, 1), (2, 2), (1, 6), (1, 8), (2, 4), (4, 2), (2, 6), (4, 4), (1, 12), (2, 7))
"""Rows and columns of tiles to try."""
DOT_DTYPES = ("int8", "uint8")
LATE = 4
"""How many other steps a change of the work group comes after."""
MOST_TEAM_PIXELS = 4
"""Pixels of a tile whose sums a team shares."""


@dataclass(frozen=True)
class ConvPlan:
    """A convolution with its register tile, the input channels loaded at once, whether they are multiplied as one, the
    weights' layout, the items that share a sum, whether weights are an image, and its work group, along whose first
    axis a team lies."""

    conv: Conv
    rows: int
    columns: int
    vectors: int
    lanes: int
    depth: int
    dot: int = 0
    flat: int = 0
    team: int = 1
    image: int = 0
    group_x: int = 0
    group_y: int = 0

    @property
    def block(self) -> int:
        """Output channels of a whole block."""
        return self.vectors * self.lanes

    @property
    def panel(self) -> int:
        """Output channels of a panel of packed weights."""
        return -(-self.conv.out_channels // self.block) * self.block if self.flat else self.block

    @property
    def panels(self) -> int:
        """Elements of the packed weights; of a grouped convolution, of one group's."""
        channels, conv = self.conv.out_channels, self.conv
        channels = -(-channels // self.block) * self.block if self.team > 1 else channels
        lanes = sum(count * sum(padded_pieces(n, self.lanes, self.least)) for n, count in blocks(channels, self.panel))
        return prod(conv.kernel) * conv.in_channels * lanes

    @property
    def group(self) -> tuple[int, int, int] | None:
        """The work group."""
        return (self.team, self.group_y, 1) if self.team > 1 else group_of(self.group_x, self.group_y)

    @property
    def slots(self) -> int:
        """Numbers that an item sums up."""
        return self.rows * self.columns * self.block

    def widths(self, channels: int) -> list[int]:
        """The vectors that cover a block of ``channels``; run-time weights must not be read past their end."""
        if self.conv.weight_strides is not None:
            return pieces(channels, self.lanes)
        return padded_pieces(channels, self.lanes, self.least)

    @property
    def least(self) -> int:
        """The narrowest vector of packed weights."""
        return IMAGE_LANES if self.image else 1

    @property
    def items(self) -> tuple[int, int, int]:
        """Work items: blocks of channels, tiles of columns, tiles of rows in every image."""
        conv = self.conv
        across, down = -(-conv.out_width // self.columns), -(-conv.out_height // self.rows)
        return (-(-conv.out_channels // self.block) * self.team, across, down * conv.batch)

    @property
    def reduction(self) -> list[tuple[int, int]]:
        """The reduction loops: (extent, input elements per step), merged where the input is contiguous."""
        return merged_loops(self.conv.taps)


def plan(conv: Conv, target: GpuTarget) -> ConvPlan:
    """The device's own vectors, four pixels a work item, and the group that the driver finds best."""
    return min(_ranked(conv, target), key=lambda each: each[0])[1]


def candidates(conv: Conv, target: GpuTarget) -> list[ConvPlan | WinogradPlan]:
    """Every tile whose sums fit the registers, with every group; what differs little from the first choice comes
    first, and the groups last. Winograd's plans lie in between."""
    first, *further = sorted(_ranked(conv, target), key=lambda each: each[0])
    plans: list[tuple[int, ConvPlan | WinogradPlan]] = [
        (first[0] + 1 + place // 2, p) for place, p in enumerate(winograd.candidates(conv, target))
    ]
    plans += further
    return [first[1], *(p for _, p in sorted(plans, key=lambda each: each[0]))]


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
                for rank, each in _shared(plan, target):
                    yield wider + more + other + rank, each


def _shared(plan: ConvPlan, target: GpuTarget) -> Iterator[tuple[int, ConvPlan]]:
    """``plan`` with every team, layout of weights and group, and how many steps each is from the first choice."""
    rest = plan.conv.weight_strides is not None and plan.conv.out_channels % plan.block
    alone = rest or plan.rows * plan.columns > MOST_TEAM_PIXELS or not plan.reduction
    terms = 0 if alone else plan.reduction[-1][0] // plan.depth
    constant = plan.conv.weight_strides is None
    other = constant and not plan.dot
    images = [target.weights == "image", target.weights != "image"] if other else [False]
    for (worse, image), (rank, team) in product(
        enumerate(images), enumerate(sizes(target, plan.items, terms, plan.slots))
    ):
        from_image, rank = replace(plan, image=int(image)), rank + 2 * worse
        if team > 1:
            for more, y in enumerate(side_by_side(target, team, plan.slots, plan.items[1])):
                yield rank + more, replace(from_image, team=team, group_y=y)
            continue
        for flat in (0, 1) if constant and plan.items[0] > 1 else (0,):
            for last, (x, y) in enumerate(groups(plan.items, target.work_group)):
                yield rank + flat + LATE * last, replace(from_image, flat=flat, group_x=x, group_y=y)


def pack(p: ConvPlan | WinogradPlan, weight: np.ndarray) -> np.ndarray:
    """The weight [kh, kw, ci, co] as panels; a batch of matrices, read with strides, stays as it is."""
    if isinstance(p, WinogradPlan):
        return winograd.pack(p, weight)
    if p.conv.weight_strides is not None:
        return weight
    matrix, channels = weight.reshape(-1, p.conv.out_channels), p.conv.out_channels
    if p.team > 1:
        channels = -(-channels // p.block) * p.block
        matrix = np.pad(matrix, ((0, 0), (0, channels - p.conv.out_channels)))
    panels = packed(matrix, channels, p.panel, p.lanes, p.least)
    return panels if not p.dot else np.concatenate([each.ravel() for each in _by_fours(p, channels, panels)])


def _by_fours(p: ConvPlan, channels: int, panels: np.ndarray) -> Iterator[np.ndarray]:
    """Panels [depth, channel] as [depth / 4, channel, 4]."""
    depth, first = prod(p.conv.kernel) * p.conv.in_channels, 0
    for size, count in blocks(channels, p.panel):
        width = sum(padded_pieces(size, p.lanes, 1))
        for _ in range(count):
            panel = panels[first : first + depth * width].reshape(depth // 4, 4, width)
            yield panel.transpose(0, 2, 1)
            first += depth * width


def generate(p: ConvPlan | WinogradPlan, dtypes: list[str]) -> Source:
    """The kernel: operands in order and the output last."""
    return winograd.generate(p, dtypes) if isinstance(p, WinogradPlan) else _ConvWriter(p, dtypes).write()


class _ConvWriter:
    """Emits a work item: for every size of channel block, the microkernel of its tile."""

    def __init__(self, p: ConvPlan, dtypes: list[str]) -> None:
        self.plan, self.conv, self.dtypes, self.body = p, p.conv, dtypes, Body()
        self.depth = prod(p.conv.kernel) * p.conv.in_channels
        self.team: Team | None = None

    def write(self) -> Source:
        p, conv = self.plan, self.conv
        x, y, z = positions(self.body, p.items, p.group)
        if p.team > 1:
            self.team = Team(self.body, conv.accumulator_dtype, p.team, p.group_y, p.slots)
            x = self.body.index("block", f"{x} / {p.team}")
        block, image, pixels = placed(self.body, conv, (x, y, z), (p.rows, p.columns))
        corners = [self._corner(image, pixel) for pixel in pixels]
        if self.team is not None:
            self._shared_tile(self.team, image, pixels, corners, block)
        else:
            self._each_size(block, lambda *place: self._tile(image, pixels, corners, *place))
        return self.body.source(p.items, p.group, bool(p.image))

    def _each_size(self, block: str, inner: Callable[[int, str, str], None]) -> None:
        """``inner`` for the block of channels: how many it has, its number and its first."""
        sizes = blocks(self.conv.out_channels, self.plan.block)
        if len(sizes) == 1:
            inner(sizes[0][0], block, f"{block} * {self.plan.block}")
            return
        (_, whole), (rest, _) = sizes
        with self.body.block(f"if ({block} < {whole})"):
            inner(self.plan.block, block, f"{block} * {self.plan.block}")
        with self.body.block("else"):
            inner(rest, str(whole), str(whole * self.plan.block))

    def _corner(self, image: str, pixel: Point) -> str:
        n_step, h_step, w_step, _ = self.conv.input_strides
        sh, sw = self.conv.stride
        place = f"{self.conv.input_offset} + {image} * {n_step} + ({pixel.row}) * {sh * h_step}"
        return self.body.index("corner", f"{place} + ({pixel.column}) * {sw * w_step}")

    def _tile(
        self, image: str, pixels: list[Point], corners: list[str], channels: int, block: str, channel: str
    ) -> None:
        channel = self.body.index("channel", channel)
        acc = self._sums(corners, image, block, channel, self.plan.widths(channels))
        write(self.body, self.conv, acc, pixels, image, channel, channels, self.dtypes)

    def _shared_tile(self, team: Team, image: str, pixels: list[Point], corners: list[str], block: str) -> None:
        """A tile's sums by a team, whose first item stores them. All blocks are whole: barriers bear no branches."""
        channel = self.body.index("channel", f"{block} * {self.plan.block}")
        acc = self._sums(corners, image, block, channel, self.plan.widths(self.plan.block))
        team.combine(acc.values, lambda one, other: f"{one.text} + {other.text}")

        def store(channels: int, block: str, channel: str) -> None:
            write(self.body, self.conv, acc, pixels, image, channel, channels, self.dtypes)

        with self.body.block(f"if ({team.member} == 0)"):
            self._each_size(block, store)

    def _sums(self, corners: list[str], image: str, block: str, channel: str, widths: list[int]) -> Accumulators:
        """The sums of a block of channels from ``channel`` on, of the part of an item in a team."""
        conv, p = self.conv, self.plan
        k_step = sum(widths)
        if conv.weight_strides is not None:
            batch_step, k_step = conv.weight_strides
            panel = f"{conv.weight_offset} + {image} * {batch_step} + {channel}"
        elif p.flat:
            k_step = sum(padded_pieces(conv.out_channels, p.lanes, p.least))
            panel = f"{block} * {p.block * (4 if p.dot else 1)}"
        else:
            panel = f"{block} * {self.depth * sum(padded_pieces(p.block, p.lanes, p.least))}"
        if conv.grouped:
            panel = f"{panel} + {image} * {p.panels}"
        acc = Accumulators(self.body, conv.accumulator_dtype, len(corners), widths)
        self._reduce(acc, corners, self.body.index("panel", panel), k_step)
        return acc

    def _reduce(self, acc: Accumulators, corners: list[str], panel: str, k_step: int) -> None:
        loops = self.plan.reduction

        def level(depth: int, source: str, k: str) -> None:
            if depth == len(loops):
                self._multiply(acc, corners, source, f"{panel} + ({k}) * {k_step}", k_step, 1)
                return
            extent, step = loops[depth]
            inner = prod(e for e, _ in loops[depth + 1 :])
            last = depth == len(loops) - 1
            deep = self.plan.depth if last else 1
            first, team = (self.team.member, self.plan.team) if last and self.team else (None, 1)
            with self.body.loop(extent, deep * team, f"{first} * {deep}" if first else "0") as index:
                further, place = f"{source} + {index} * {step}", f"{k} + {index} * {inner}"
                if last:
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
        dtype = self.dtypes[1]
        image = self.plan.image
        text = image_vector(1, offset, dtype, width) if image else load_vector("p1", f"({offset})", dtype, width)
        return self._converted("w", text, dtype, width)

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


def contract(p: ConvPlan | WinogradPlan) -> str:
    """The kernel's name."""
    if isinstance(p, WinogradPlan):
        return winograd.contract(p)
    c = p.conv
    shape = f"{'g' if c.grouped else 'n'}{c.batch}h{c.out_height}w{c.out_width}c{c.out_channels}"
    kind = "gemm_rt" if c.weight_strides else "conv"
    shared = (f"s{p.team}" if p.team > 1 else "f" * p.flat) + "i" * p.image
    tile = f"t{p.rows}x{p.columns}v{p.vectors}l{p.lanes}d{p.depth}{'dot' * p.dot}{shared}g{p.group_x}x{p.group_y}"
    return f"{SHORT[c.input_dtype]}_{kind}_{shape}_{window(c)}i{c.in_channels}__{tile}"
