"""Code for :class:`edgec.program.Conv` of floats, 3×3 and stride 1, by Winograd's F(2×2, 3×3) or F(4×4, 3×3).

``out`` by ``out`` outputs come from a tile of (``out`` + 2)² inputs through as many products a channel: 16 for 4
outputs, where the direct sum takes 36, or 36 for 16, where it takes 144 (Lavin & Gray, "Fast Algorithms for
Convolutional Neural Networks", 2016). A work item has the sums of one tile and one vector of output channels in
registers. The items of a group that differ in their channels transform a share of the tile's inputs each, and find
the others' in local memory; a group of one keeps all to itself. The error is about 1e-6 of the outputs' range for the
first and 3e-6 for the second, whose transforms' coefficients are up to 8.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from edgec.program import Conv
from edgec.targets.gpu.opencl import Body, Source, Value, image_vector, load_vector
from edgec.targets.gpu.target import GpuTarget
from edgec.targets.gpu.tile import Accumulators, points, write
from edgec.targets.vectors import SHORT, pieces

LANES = 4
"""Channels of a vector, of inputs and outputs."""
GROUPS = ((1, 1), (4, 1), (8, 1), (8, 4), (16, 1), (16, 4), (4, 4), (32, 1), (2, 8))
"""Vectors of output channels and tiles of a group."""

WEIGHTS = {
    2: np.array([[1, 0, 0], [1 / 2, 1 / 2, 1 / 2], [1 / 2, -1 / 2, 1 / 2], [0, 0, 1]]),
    4: np.array(
        [[1 / 4, 0, 0], [-1 / 6, -1 / 6, -1 / 6], [-1 / 6, 1 / 6, -1 / 6],
         [1 / 24, 1 / 12, 1 / 6], [1 / 24, -1 / 12, 1 / 6], [0, 0, 1]]
    ),
}  # fmt: skip
"""G of the paper: the window's three weights along an axis at the tile's points."""


@dataclass(frozen=True)
class WinogradPlan:
    """A convolution with the outputs of a tile along an axis, whether weights are an image, and the work group:
    vectors of channels, and tiles."""

    conv: Conv
    out: int
    image: int
    group_x: int
    group_y: int

    @property
    def size(self) -> int:
        """Inputs, and points, of a tile along an axis."""
        return self.out + 2

    @property
    def vectors(self) -> int:
        """Of output channels."""
        return -(-self.conv.out_channels // LANES)

    @property
    def grid(self) -> tuple[int, int]:
        """Tiles down and across an image."""
        return -(-self.conv.out_height // self.out), -(-self.conv.out_width // self.out)

    @property
    def items(self) -> tuple[int, int, int]:
        """Work items: vectors of output channels, tiles, images; whole groups."""
        tiles = self.grid[0] * self.grid[1]
        return (_whole(self.vectors, self.group_x), _whole(tiles, self.group_y), self.conv.batch)


def _whole(count: int, group: int) -> int:
    return -(-count // group) * group


def candidates(conv: Conv, target: GpuTarget) -> list[WinogradPlan]:
    """Both sizes of tiles where there are four channels or more, with every group that is not mostly idle."""
    plain = conv.kernel == (3, 3) and conv.stride == conv.dilation == (1, 1) and conv.input_strides[3] == 1
    floats = conv.input_dtype.startswith("float") and conv.weight_strides is None and conv.packing is None
    if not (plain and floats) or conv.in_channels % LANES or conv.out_channels < LANES:
        return []
    plans = [WinogradPlan(conv, out, int(target.weights == "image"), x, y) for out in WEIGHTS for x, y in GROUPS]
    return [p for p in plans if _fits(p, target)]


def _fits(p: WinogradPlan, target: GpuTarget) -> bool:
    busy = 2 * p.vectors * p.grid[0] * p.grid[1] >= p.items[0] * p.items[1]
    local = p.group_x * p.group_y * p.size**2 * LANES * 4 if p.group_x > 1 else 0
    registers = p.size**2 * LANES <= target.registers
    fits = p.group_x * p.group_y <= target.work_group and local <= target.local_memory
    whole = p.group_x == 1 or p.conv.in_channels % (p.group_x * LANES) == 0
    return busy and registers and fits and whole and min(p.conv.out_height, p.conv.out_width) >= p.out


def pack(p: WinogradPlan, weight: np.ndarray) -> np.ndarray:
    """The weight [3, 3, ci, co] at the tile's points, as [vector of output channels][ci, point, channel]."""
    spread = np.einsum("ik,jl,klcd->cijd", WEIGHTS[p.out], WEIGHTS[p.out], weight.astype(np.float64))
    channels = p.vectors * LANES
    padded = np.pad(spread, ((0, 0), (0, 0), (0, 0), (0, channels - p.conv.out_channels)))
    vectors = padded.reshape(p.conv.in_channels, p.size**2, p.vectors, LANES)
    return vectors.transpose(2, 0, 1, 3).astype(weight.dtype).ravel()


def contract(p: WinogradPlan) -> str:
    """The kernel's name."""
    c = p.conv
    shape = f"{'g' if c.grouped else 'n'}{c.batch}h{c.out_height}w{c.out_width}c{c.out_channels}"
    tile = f"o{p.out}{'i' * p.image}g{p.group_x}x{p.group_y}"
    return f"{SHORT[c.input_dtype]}_winograd_{shape}_k3x3i{c.in_channels}__{tile}"


def generate(p: WinogradPlan, dtypes: list[str]) -> Source:
    """The kernel: operands in order and the output last."""
    return _WinogradWriter(p, dtypes).write()


class _WinogradWriter:
    def __init__(self, p: WinogradPlan, dtypes: list[str]) -> None:
        self.plan, self.conv, self.dtypes, self.body = p, p.conv, dtypes, Body()

    def write(self) -> Source:
        p, body = self.plan, self.body
        tiles = p.grid[0] * p.grid[1]
        if p.group_x > 1:
            body.line(f"__local float4 spread[{p.group_y * p.size**2 * p.group_x}];")
        # items that fill up a group do the last one's work again: all have to come to the barriers
        vector = body.index("vector", f"min((int)get_global_id(0), {p.vectors - 1})")
        tile = body.index("tile", f"min((int)get_global_id(1), {tiles - 1})")
        image = body.index("n", "get_global_id(2)") if self.conv.batch > 1 else "0"
        row = body.index("row", f"{tile} / {p.grid[1]} * {p.out}")
        column = body.index("column", f"{tile} % {p.grid[1]} * {p.out}")
        acc = Accumulators(body, "float32", p.size**2, [LANES])
        corners = self._corners(image, row, column)
        self._multiply(acc, corners, image, vector)
        self._store(acc, image, row, column, vector)
        return body.source(p.items, (p.group_x, p.group_y, 1), bool(p.image))

    def _corners(self, image: str, row: str, column: str) -> list[list[str]]:
        """Where the tile's inputs begin, those beyond the map's at its edge: no output that is kept comes of them."""
        p, conv, body = self.plan, self.conv, self.body
        n_step, h_step, w_step, _ = conv.input_strides

        def places(first: str, extent: int, step: int) -> list[str]:
            inside = extent % p.out == 0
            ends = [f"{first} + {i}" if inside else f"min({first} + {i}, {extent + 1})" for i in range(p.size)]
            return [body.index("at", f"({end}) * {step}") for end in ends]

        rows, columns = places(row, conv.out_height, h_step), places(column, conv.out_width, w_step)
        base = body.index("base", f"{conv.input_offset} + {image} * {n_step}")
        return [[f"{base} + {down} + {across}" for across in columns] for down in rows]

    def _multiply(self, acc: Accumulators, corners: list[list[str]], image: str, vector: str) -> None:
        """Sums of all input channels, a chunk of them at a time: a vector for each of the group's items."""
        p, body = self.plan, self.body
        block = f"({image} * {p.vectors} + {vector})" if self.conv.grouped else vector
        panel = body.index("panel", f"{block} * {self.conv.in_channels * p.size**2 * LANES}")
        with body.loop(self.conv.in_channels, p.group_x * LANES) as chunk:
            if p.group_x == 1:
                self._products(acc, self._transformed(corners, chunk), f"{panel} + ({chunk}) * {p.size**2 * LANES}")
                return
            member, points = "(int)get_local_id(0)", p.size**2
            own = body.index("own", f"(int)get_local_id(1) * {points * p.group_x}")
            values = self._transformed(corners, f"({chunk} + {member} * {LANES})")
            body.line("barrier(CLK_LOCAL_MEM_FENCE);")
            for point, value in enumerate(values):
                body.line(f"spread[{own} + {point * p.group_x} + {member}] = {value};")
            body.line("barrier(CLK_LOCAL_MEM_FENCE);")
            with body.loop(p.group_x) as other:
                found = []
                for point in range(points):
                    found.append(body.name("d"))
                    body.line(f"const float4 {found[-1]} = spread[{own} + {point * p.group_x} + {other}];")
                weights = f"{panel} + ({chunk} + {other} * {LANES}) * {points * LANES}"
                self._products(acc, found, weights)

    def _products(self, acc: Accumulators, values: Sequence[str], weights: str) -> None:
        """The products of a vector of transformed inputs at every point."""
        points, weights = self.plan.size**2, self.body.index("w", weights)
        for lane in range(LANES):
            for point, value in enumerate(values):
                offset = f"({weights} + {(lane * points + point) * LANES})"
                image, dtype = self.plan.image, self.dtypes[1]
                weight = image_vector(1, offset, dtype, LANES) if image else load_vector("p1", offset, dtype, LANES)
                acc.add_product(point, 0, f"{value}.s{lane}", weight)

    def _transformed(self, corners: list[list[str]], channel: str) -> list[str]:
        """A vector of input channels at the tile's points."""
        given = [[self._named("x", load_vector("p0", f"({at} + {channel})", self.dtypes[0], LANES)) for at in line]
                 for line in corners]  # fmt: skip
        return [value for line in self._both_ways(given, _INPUT[self.plan.out]) for value in line]

    def _store(self, acc: Accumulators, image: str, row: str, column: str, vector: str) -> None:
        p, conv = self.plan, self.conv
        names = [value.text for value in acc.values]
        given = [names[i * p.size : (i + 1) * p.size] for i in range(p.size)]
        results = [value for line in self._both_ways(given, _OUTPUT[p.out]) for value in line]
        pixels = points(self.body, row, column, (p.out, p.out), (conv.out_height, conv.out_width))
        channel = self.body.index("channel", f"{vector} * {LANES}")
        conditions = [
            f"(int)get_global_id({axis}) < {count}"
            for axis, count in enumerate((p.vectors, p.grid[0] * p.grid[1]))
            if p.items[axis] > count
        ]
        with self.body.block(f"if ({' && '.join(conditions)})" if conditions else ""):
            for size, condition in _ends(conv.out_channels, vector):
                with self.body.block(condition):
                    write(self.body, conv, _Results(results), pixels, image, channel, size, self.dtypes)

    def _both_ways(self, given: list[list[str]], transform: Callable[[Sequence[str]], list[str]]) -> list[list[str]]:
        """``transform`` along the columns, then along the rows."""
        down = [self._line(transform, [line[j] for line in given]) for j in range(len(given[0]))]
        return [self._line(transform, [line[i] for line in down]) for i in range(len(down[0]))]

    def _line(self, transform: Callable[[Sequence[str]], list[str]], values: Sequence[str]) -> list[str]:
        return [self._named("y", text) for text in transform(values)]

    def _named(self, prefix: str, text: str) -> str:
        return self.body.bind(prefix, Value(text, "float32", LANES)).text


@dataclass(frozen=True)
class _Results:
    """Outputs of a tile, a vector of channels each."""

    values: Sequence[str]

    def parts(self, pixel: int, channels: int) -> Iterator[tuple[int, Value]]:
        """See :class:`Accumulators`."""
        start = 0
        for width in pieces(channels, LANES):
            lanes = "".join(f"{lane:x}" for lane in range(start, start + width))
            text = self.values[pixel] if width == LANES else f"{self.values[pixel]}.s{lanes}"
            yield start, Value(text, "float32", width, simple=True)
            start += width


def _ends(channels: int, vector: str) -> Iterator[tuple[int, str]]:
    """Channels of a vector, and the head of the block for it: whole ones, then the rest."""
    whole, rest = divmod(channels, LANES)
    if not rest:
        yield LANES, ""
        return
    yield LANES, f"if ({vector} < {whole})"
    yield rest, "else"


def _input_2(d: Sequence[str]) -> list[str]:
    """Bᵀ of the paper, along one axis."""
    return [f"{d[0]} - {d[2]}", f"{d[1]} + {d[2]}", f"{d[2]} - {d[1]}", f"{d[1]} - {d[3]}"]


def _output_2(m: Sequence[str]) -> list[str]:
    """Aᵀ of the paper, along one axis."""
    return [f"{m[0]} + {m[1]} + {m[2]}", f"{m[1]} - {m[2]} - {m[3]}"]


def _input_4(d: Sequence[str]) -> list[str]:
    """Bᵀ of the paper, along one axis."""
    even, odd = f"({d[4]} - 4.0f * {d[2]})", f"({d[3]} - 4.0f * {d[1]})"
    near, far = f"({d[4]} - {d[2]})", f"2.0f * ({d[3]} - {d[1]})"
    first, last = (f"4.0f * {d[i]} + {d[i + 4]} - 5.0f * {d[i + 2]}" for i in (0, 1))
    return [first, f"{even} + {odd}", f"{even} - {odd}", f"{near} + {far}", f"{near} - {far}", last]


def _output_4(m: Sequence[str]) -> list[str]:
    """Aᵀ of the paper, along one axis."""
    sums, differences = [f"({m[i]} + {m[i + 1]})" for i in (1, 3)], [f"({m[i]} - {m[i + 1]})" for i in (1, 3)]
    return [
        f"{m[0]} + {sums[0]} + {sums[1]}",
        f"{differences[0]} + 2.0f * {differences[1]}",
        f"{sums[0]} + 4.0f * {sums[1]}",
        f"{differences[0]} + 8.0f * {differences[1]} + {m[5]}",
    ]


_INPUT = {2: _input_2, 4: _input_4}
_OUTPUT = {2: _output_2, 4: _output_4}
