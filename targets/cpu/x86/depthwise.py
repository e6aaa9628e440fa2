"""Code for :class:`edgec.program.Depthwise` of 8-bit integers on x86: vectors across channels, taps down a column.

One column of a tile's input, four rows of it at a time, is interleaved into vectors with the four bytes of each channel
together. Its products with four weights, of which those of rows outside the window are zero, add to every output pixel
that the column reaches, in each of the tile's rows: rows 0 to 3 serve a 3×3 window in output row 0 by the weights
(w0, w1, w2, 0) and in row 1 by (0, w0, w1, w2). A window walks along a row: a column is interleaved once a tile, when
it is first needed, and the few sums of one step of the walk are requantised and stored before the next one.

As many channels as a register has bytes are computed together where registers allow. Their rows are loaded whole and
interleaved inside of 128 bits, by which four vectors share the channels in turns of four; the packs that make bytes of
their results undo that, and the results are stored whole, too.

Without VNNI two rows are interleaved, and widened to int16.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, partial
from itertools import product
from typing import Any

import numpy as np

from edgec.building.lazy_tvm import tirx
from edgec.program import Depthwise
from edgec.targets.cpu.tile import Point, Store, bias_apart, shape_name, share_rows, tiles
from edgec.targets.cpu.tir import TURN, Kernel, lanes_of, part, vector_load
from edgec.targets.cpu.x86.isa import Isa, dot, pair_sums, unpacked
from edgec.targets.cpu.x86.narrow import GROUP, narrowing, special
from edgec.targets.cpu.x86.tile import TAPS, IntegerTile, Panel, bias_vectors, read_head
from edgec.targets.target import Target
from edgec.targets.vectors import padded_pieces

PAIR = 2
"""Rows that are interleaved for products of int16."""
SPARE = 6
"""Registers beside a window of inputs and the sums of a step."""
MOST_ROWS = 2
MOST_COLUMNS = 4
"""Columns of a tile, at most, at stride 1: of more, code would grow and little be saved."""
TILE_OVERHEAD = 10
"""Cycles, about, to set up a tile."""
STEP_CYCLES = 1.5
"""Cycles, about, that a step of the walk costs beside what it computes."""
EPILOGUE_CYCLES = 2.5
"""Cycles, about, that a vector of sums costs beside its products."""
CODE_CYCLES = 8
"""Cycles, about, to fetch the code of one product, once."""


@dataclass(frozen=True)
class Block:
    """Channels from ``first`` on: ``count`` times ``channels`` of them, which ``vectors`` of ``width`` lanes share."""

    first: int
    count: int
    channels: int
    vectors: int
    width: int

    @property
    def lanes(self) -> int:
        """Lanes of all vectors together."""
        return self.vectors * self.width

    def turns(self, values: np.ndarray) -> np.ndarray:
        """``values`` [..., channels] in the order of the vectors' lanes, zeros behind the last one."""
        filled = np.zeros((*values.shape[:-1], self.lanes), values.dtype)
        filled[..., : values.shape[-1]] = values
        groups = filled.reshape(*values.shape[:-1], -1, self.vectors, TURN)
        return np.moveaxis(groups, -2, -3).reshape(filled.shape)


def blocks(channels: int, lanes: int, vectors: int) -> list[Block]:
    """``channels`` in blocks of up to ``vectors`` (a power of two) vectors, the larger ones first."""
    found, first = [], 0
    while first < channels:
        rest = channels - first
        while vectors > 1 and rest < vectors * lanes:
            vectors //= 2
        size = vectors * lanes
        if rest >= size:
            found.append(Block(first, rest // size, size, vectors, lanes))
        else:
            found.append(Block(first, 1, rest, 1, padded_pieces(rest, lanes)[0]))
        first += found[-1].count * found[-1].channels
    return found


@dataclass(frozen=True)
class IntegerDepthwisePlan:
    """A depthwise convolution with its tile: ``rows`` × ``columns`` pixels of up to ``vectors`` vectors of channels."""

    depthwise: Depthwise
    rows: int
    columns: int
    vectors: int
    isa: Isa

    @property
    def taps(self) -> int:
        """Rows that are interleaved."""
        return TAPS if self.isa.vnni else PAIR

    @property
    def signed(self) -> bool:
        """Whether the input must be turned into uint8."""
        return self.isa.vnni and self.depthwise.input_dtype == "int8"

    @property
    def blocks(self) -> list[Block]:
        """The channels."""
        return blocks(self.depthwise.channels, self.isa.lanes, self.vectors)

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

    def shifted(self, row: int, group: int) -> bool:
        """Whether the weights of a step are those of row 0, a byte a row further, which are not stored again."""
        if row == 0 or not self.isa.vnni:
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

    def walk(self, columns: int, vectors: int) -> int:
        """Output columns of one step along a row of ``columns``: as many as fill a register with bytes."""
        return min(columns, max(1, GROUP // (self.rows * vectors)))


def fits(conv: Depthwise) -> bool:
    """Whether the sums are of bytes."""
    return conv.input_dtype in ("int8", "uint8")


def plan(depthwise: Depthwise, target: Target) -> IntegerDepthwisePlan:
    """The tile with the smallest cost estimate."""
    return min(candidates(depthwise, Isa.of(target)), key=lambda p: (cost(p), p.rows, p.columns))


def candidates(conv: Depthwise, isa: Isa) -> Iterator[IntegerDepthwisePlan]:
    """Every tile; the rest of the rows must find its weights among the whole tile's."""
    for rows in range(1, min(MOST_ROWS, conv.out_height) + 1 if conv.dilation[0] == 1 else 2):
        for columns in range(1, min(conv.out_width, -(-MOST_COLUMNS // conv.stride[1])) + 1):
            found = IntegerDepthwisePlan(conv, rows, columns, 1, isa)
            yield IntegerDepthwisePlan(conv, rows, columns, _most_vectors(found), isa)


def _most_vectors(p: IntegerDepthwisePlan) -> int:
    """Vectors that share the channels of a block: as many as leave registers for a window and the sums of a step."""
    if not p.isa.vnni or narrowing(p.depthwise.epilogue) is None:
        return 1
    held = p.depthwise.kernel[1] * len(p.groups(p.rows)) + p.rows
    most = min(p.depthwise.channels // p.isa.lanes, (p.isa.registers - SPARE) // held)
    return max(vectors for vectors in (1, 2, GROUP) if vectors <= max(1, most))


def cost(p: IntegerDepthwisePlan) -> float:
    """Cycles, about, of one image."""
    conv, total = p.depthwise, 0.0
    share, each = max(1, conv.channels / p.isa.lanes), 1 if p.isa.vnni else 2
    for _, rows, row_tiles in tiles(conv.out_height, p.rows):
        groups, steps = len(p.groups(rows)), len(p.steps(rows))
        for _, columns, column_tiles in tiles(conv.out_width, p.columns):
            products = steps * conv.kernel[1] * columns
            places = {c * conv.stride[1] + k * conv.dilation[1] for c in range(columns) for k in range(conv.kernel[1])}
            work = len(places) * groups * p.taps / 2 + each * products + STEP_CYCLES * columns
            work += EPILOGUE_CYCLES * rows * columns + TILE_OVERHEAD / p.vectors
            total += share * row_tiles * column_tiles * work
            total += p.vectors * products * CODE_CYCLES
    return total


def pack(p: IntegerDepthwisePlan, weight: np.ndarray) -> np.ndarray:
    """The weight [kh, kw, c] as one panel a block of channels (see :class:`Panel`), int16 without VNNI."""
    groups, (_, width, channels) = p.groups(p.rows), weight.shape
    steps = np.zeros((p.layout.steps, p.taps, channels), np.int8)
    for step, (row, index) in enumerate(p.stored):
        for tap, place in enumerate(p.window(row, groups[index])):
            if place is not None:
                steps[step * width : (step + 1) * width, tap] = weight[place]
    sums, panels = weight.sum((0, 1), np.int32), []
    for block in p.blocks:
        for first in range(block.first, block.first + block.count * block.channels, block.channels):
            own = slice(first, first + block.channels)
            panels.append(p.layout.pack(block.turns(steps[:, :, own]), block.lanes, block.turns(sums[own])))
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
        self.start: list[Any] = []
        self.sign: Any = None
        self.weights: dict[tuple[int, int, int], list[Any]] = {}

    def write(self) -> None:
        self.kernel.align_stack()
        with self.body.loop(self.conv.batch) as image:
            share_rows(self.kernel, self.conv.out_height, self.plan.rows, partial(self._channels, image))

    def _channels(self, image: Any, row: Any, rows: int) -> None:
        panel = 0
        for block in self.plan.blocks:
            size = self.plan.layout.size(block.lanes)
            with self.body.loop(block.count) as index:
                self._block(image, row, rows, block.first + index * block.channels, block, panel + index * size)
            panel += block.count * size

    def _block(self, image: Any, row: Any, rows: int, channel: Any, block: Block, panel: Any) -> None:
        """One block of channels of some rows."""
        self._start({0: image, 1: row, 2: tirx.const(0, "int32"), 3: channel}, block, panel)
        self._load_weights(panel + self.plan.layout.head(block.lanes), block)
        for first, columns, count in tiles(self.conv.out_width, self.plan.columns):
            with self.body.loop(count) as index:
                origin = {0: image, 1: row, 2: first + index * columns, 3: channel}
                self._tile(origin, rows, columns, block)

    def _start(self, origin: dict[int, Any], block: Block, panel: Any) -> None:
        """What every sum starts from."""
        widths = [block.width] * block.vectors
        start = bias_vectors(self.body, self.target.operands, self.bias, origin, widths, block.channels, block.vectors)
        if self.plan.signed:
            self.sign, start = read_head(self.body, self.weight, panel, start, widths)
        self.start = [self.body.hold(value) for value in start]

    def _load_weights(self, panel: Any, block: Block) -> None:
        """The weights by (output row, group, column of the window), in registers or on the stack."""
        kernel_width, size = self.conv.kernel[1], block.width * self.plan.taps
        for step, (row, group) in enumerate(self.plan.stored):
            for tap in range(kernel_width):
                first = panel + (step * kernel_width + tap) * block.vectors * size
                values = [vector_load(self.weight, first + vector * size, size) for vector in range(block.vectors)]
                self.weights[row, group, tap] = [self.body.hold(value) for value in values]
        for row, group in self.plan.steps(self.plan.rows):
            for tap in range(kernel_width if self.plan.shifted(row, group) else 0):
                self.weights[row, group, tap] = [self._shifted(w, row) for w in self.weights[0, group, tap]]

    def _shifted(self, weight: Any, rows: int) -> Any:
        """The bytes of a vector ``rows`` further in each lane."""
        lanes = lanes_of(weight)
        words = tirx.reinterpret(f"int32x{lanes // TAPS}", weight)
        moved = tirx.shift_left(words, tirx.Broadcast(tirx.const(8 * rows, "int32"), lanes // TAPS))
        return self.body.hold(tirx.reinterpret(f"int8x{lanes}", moved))

    def _tile(self, origin: dict[int, Any], rows: int, columns: int, block: Block) -> None:
        n_step, h_step, w_step, _ = self.conv.input_strides
        sh, sw = self.conv.stride
        corner = self.conv.input_offset + origin[0] * n_step + origin[1] * (sh * h_step) + origin[2] * (sw * w_step)
        corner = self.body.bind("corner", corner + origin[3])
        groups = self.plan.groups(rows)

        @cache
        def interleaved(place: int, group: int) -> list[Any]:
            return self._interleaved([corner + r * h_step + place * w_step for r in groups[group]], block)

        for first, width, count in tiles(columns, self.plan.walk(columns, block.vectors)):
            for start in range(first, first + count * width, width):
                points = [Point(r, c) for r in range(rows) for c in range(start, start + width)]
                self._pixels(origin, points, block, interleaved)

    def _pixels(
        self, origin: dict[int, Any], points: list[Point], block: Block, interleaved: Callable[[int, int], list[Any]]
    ) -> None:
        """Some pixels of a tile, from their start to their results."""
        widths = [block.width] * block.vectors
        acc = IntegerTile(self.body, self.plan.isa, points, widths, self.start, block.vectors)
        rows = max(point.row for point in points) + 1
        for vector, tap in product(range(block.vectors), range(self.conv.kernel[1])):
            for row, group in self.plan.steps(rows):
                weight = self.weights[row, group, tap][vector]
                for pixel in (pixel for pixel, point in enumerate(points) if point.row == row):
                    place = points[pixel].column * self.conv.stride[1] + tap * self.conv.dilation[1]
                    value = interleaved(place, group)[vector]
                    acc.update(pixel, vector, self._product(acc.value(pixel, vector), value, weight))
        acc.write(self.target, origin, block.channels)

    def _interleaved(self, offsets: list[Any], block: Block) -> list[Any]:
        """The block's channels of some rows, those of each channel together; the last row fills up what is missing."""
        taps, lanes = self.plan.taps, block.lanes
        loads = [self.body.bind("x", vector_load(self.input, offset, lanes)) for offset in offsets]
        loads += loads[-1:] * (taps - len(loads))
        vectors = _quarters(loads) if block.vectors == GROUP else _shuffled(loads, block)
        if self.plan.signed:
            sign = part(self.sign, 0, taps * block.width)
            vectors = [tirx.bitwise_xor(tirx.reinterpret(f"uint8x{lanes_of(x)}", x), sign) for x in vectors]
        if not self.plan.isa.vnni:
            vectors = [tirx.Cast(f"int16x{lanes_of(x)}", x) for x in vectors]
        return [self.body.hold(x) for x in vectors]

    def _product(self, total: Any, value: Any, weight: Any) -> Any:
        return dot(total, value, weight) if self.plan.isa.vnni else total + pair_sums(value, weight)


def _quarters(rows: list[Any]) -> list[Any]:
    """Four rows, whole registers of bytes, as four vectors, by two rounds of unpacking inside of 128 bits."""
    first, second = unpacked(rows[0], rows[1], 1), unpacked(rows[2], rows[3], 1)
    return [vector for half in range(2) for vector in unpacked(first[half], second[half], 2)]


def _shuffled(rows: list[Any], block: Block) -> list[Any]:
    """The vectors of a block out of its rows, each by one permutation of bytes."""
    lanes = block.turns(np.arange(block.lanes)).reshape(block.vectors, block.width)
    orders = [[tap * block.lanes + int(lane) for lane in own for tap in range(len(rows))] for own in lanes]
    return [tirx.Shuffle(rows, [tirx.const(index, "int32") for index in order]) for order in orders]


def contract(p: IntegerDepthwisePlan) -> str:
    """The kernel's name."""
    c = p.depthwise
    how = "vnni" if p.isa.vnni else "madd"
    return f"{shape_name(c, 'dwconv')}__t{p.rows}x{p.columns}v{p.vectors}_{how}"
