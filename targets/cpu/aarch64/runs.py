"""What the convolutions share: the input is read along its contiguous runs, 16 bytes a pixel at a time.

A run of bytes ends with a chunk that is padded with zero weights, and what the input holds there does not matter.

Weights of 4 bits are stored two a byte: the steps of a chunk lie in pairs, the first one in the lower halves. Where a
group of the depth has a factor for each channel, these lie behind the weights of a panel, [group, channel], and each
vector of weights is multiplied by theirs.

A uint8 input is turned into int8 by its highest bit, x − 128: Σ x · w = Σ (x − 128) · w + 128 · Σ w. The last term,
for each channel, stands at the head of its panel of weights.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from edgec.building.lazy_tvm import tirx
from edgec.grid import split_factors
from edgec.program import Conv
from edgec.targets.cpu.aarch64.neon import BYTES, half_of, special
from edgec.targets.cpu.aarch64.tile import Tile, lanes_of, start_and_store
from edgec.targets.cpu.contiguous import ContiguousPlan
from edgec.targets.cpu.conv import RESIDENT_PANEL_BYTES, ConvWriter
from edgec.targets.cpu.tile import Accumulators, Point, load_channels, reduce_over, shape_name, tiles
from edgec.targets.cpu.tir import Kernel, join, part

REGISTERS = 32
TILE_OVERHEAD = 14
"""Instructions to set up a tile."""
EPILOGUE = 6
"""Instructions that each vector of sums costs beside the products: start, epilogue and store."""


@dataclass(frozen=True)
class RunPlan(ContiguousPlan):
    """A convolution with its register tile; ``lanes`` are the sums in a register."""

    suffix: ClassVar[str]
    """What the kernel's name ends with."""
    spare: ClassVar[int]
    """Registers beside the sums and the pixels, as many as keep the compiler from spilling."""
    rolled: ClassVar[bool]
    """Whether the compiler is not to know how many chunks a run has: it would unroll the loop over them and spill."""
    whole: ClassVar[int]
    """Elements of a run that are loaded at a time: 16 bytes."""
    together: ClassVar[int] = 1
    """Neighbouring bytes of a vector of weights that are of one channel."""

    @abstractmethod
    def rest(self, elements: int) -> list[int]:
        """The chunks, each with its elements, that cover the last ``elements`` of a run."""

    @abstractmethod
    def products(self, chunk: int, pixels: int, vectors: int) -> float:
        """Instructions of the products of a chunk of so many elements, its loads included."""

    def tile_instructions(self, rows: int, columns: int, channels: int) -> float:
        """Instructions, about, of one tile."""
        pixels, vectors = rows * columns, len(self.widths(channels))
        work = self.run_count * sum(self.products(chunk, pixels, vectors) + 2 for chunk in self.chunks)
        return work + EPILOGUE * pixels * vectors + TILE_OVERHEAD

    @classmethod
    def most_pixels(cls, conv: Conv, vectors: int) -> int:
        """Pixels of a tile of so many vectors, as far as the registers reach."""
        return (REGISTERS - cls.spare) // (vectors + 1)

    @abstractmethod
    def arranged(self, block: np.ndarray) -> np.ndarray:
        """The weights [element, channel] of a chunk and a block of channels, in the order in which they are read."""

    @property
    def per_byte(self) -> int:
        """Weights in a byte; elements of other sizes count as one."""
        return 2 if self.conv.packing is not None else 1

    @property
    def chunks(self) -> list[int]:
        """The elements of each chunk of a run."""
        whole, rest = divmod(self.runs[1], self.whole)
        return [self.whole] * whole + self.rest(rest)

    @property
    def depth(self) -> int:
        """Weights per output channel, those of padding included."""
        return self.run_count * sum(self.chunks)

    @property
    def head(self) -> int:
        """Bytes per channel at the head of a panel: the int32 to start from, where the input is uint8."""
        return 4 if self.conv.input_dtype == "uint8" else 0

    @property
    def panel_first(self) -> bool:
        return self.depth * self.block * np.dtype(self.conv.input_dtype).itemsize <= RESIDENT_PANEL_BYTES

    def widths(self, channels: int) -> list[int]:
        return [self.lanes] * -(-channels // self.lanes)

    def panel(self, channels: int) -> int:
        depth = self.depth // self.per_byte + self.run_count * self.factors
        return (self.head + depth) * sum(self.widths(channels))


def best_tile(kind: type[RunPlan], conv: Conv) -> RunPlan:
    """The register tile of the fewest instructions."""
    return ranked(kind, conv)[0]


def ranked(kind: type[RunPlan], conv: Conv) -> list[RunPlan]:
    """Every register tile, that of the fewest instructions first."""
    return sorted(register_tiles(kind, conv), key=lambda p: (instructions(p), p.rows, p.columns))


def register_tiles(kind: type[RunPlan], conv: Conv) -> Iterator[RunPlan]:
    """Every register tile that fits the register file."""
    lanes = lanes_of(conv.accumulator_dtype)
    for vectors in range(1, min(8, -(-conv.out_channels // lanes)) + 1):
        pixels = kind.most_pixels(conv, vectors)
        for columns in range(1, min(conv.out_width, pixels) + 1):
            for rows in range(1, min(conv.out_height, pixels // columns) + 1):
                yield kind(conv, rows, columns, vectors, lanes)


def instructions(p: RunPlan) -> float:
    """Instructions, about, of the whole convolution."""
    conv, total = p.conv, 0.0
    for _, rows, row_tiles in tiles(conv.out_height, p.rows):
        for _, columns, column_tiles in tiles(conv.out_width, p.columns):
            for _, channels, blocks in tiles(conv.out_channels, p.block):
                total += row_tiles * column_tiles * blocks * p.tile_instructions(rows, columns, channels)
    return total


def pack(p: RunPlan, weight: np.ndarray) -> np.ndarray:
    """The weight [kh, kw, ci, co] as panels, one after the other: the head, then the chunks of every run."""
    sums = 128 * weight.sum((0, 1, 2), np.int32) if p.head else np.zeros(0, np.int32)
    weight, factors = split_factors(weight, p.group)
    by_runs = p.by_runs(weight)
    matrix = np.zeros((len(by_runs), sum(p.chunks), p.conv.out_channels), weight.dtype)
    matrix[:, : p.runs[1]] = by_runs
    edges = np.cumsum(p.chunks)[:-1]
    panels = []
    for start, channels, count in tiles(p.conv.out_channels, p.block):
        for first in range(start, start + channels * count, channels):
            block = p.of_block(matrix, first, channels)
            if p.head:
                panels.append(p.of_block(sums, first, channels).view(np.int8))
            arranged = [p.arranged(chunk) for each in block for chunk in np.split(each, edges)]
            panels += [(in_halves(chunk) if p.per_byte == 2 else chunk).ravel() for chunk in arranged]
            panels.append(p.of_block(factors, first, channels).ravel())
    return np.concatenate(panels)


def in_halves(chunk: np.ndarray) -> np.ndarray:
    """[steps, …] of 4 bits as [steps / 2, …]: two steps a byte."""
    return (chunk[::2] & 15) | (chunk[1::2] << 4)


class BiasedWriter(ConvWriter):
    """Emits the loops over tiles, whose sums start from the bias."""

    def __init__(self, p: RunPlan, kernel: Kernel) -> None:
        super().__init__(p, kernel)
        self.start, self.target = start_and_store(p.conv, kernel)


class RunWriter(BiasedWriter):
    """Emits the loops over runs and chunks around what a subclass does with a chunk."""

    plan: RunPlan

    def __init__(self, p: RunPlan, kernel: Kernel) -> None:
        super().__init__(p, kernel)
        self.factors: list[Any] = []

    @abstractmethod
    def _pixel(self, offset: Any, chunk: int) -> Any:
        """The ``chunk`` elements of a pixel from ``offset`` on, in a register."""

    @abstractmethod
    def _products(self, acc: Any, pixels: list[Any], weights: Any, chunk: int) -> None:
        """Add the products of ``chunk`` elements of every pixel with the weights from ``weights`` on."""

    def _step_weights(self, weights: Any, step: int, size: int, count: int) -> list[Any]:
        """``count`` vectors of ``size`` bytes: the weights of a step of the chunk that starts at ``weights``."""
        place = step // self.plan.per_byte
        offsets = [weights + (place * count + vector) * size for vector in range(count)]
        stored = [self.body.bind("w", load_channels(self.weight, offset, size)) for offset in offsets]
        if self.plan.per_byte == 1:
            return stored
        halves = [half_of(value, step % 2) for value in stored]
        if not self.plan.group:
            return halves
        return [self.body.hold(value * part(each, 0, size)) for value, each in zip(halves, self.factors, strict=True)]

    def _load_factors(self, row: Any, count: int) -> None:
        """Those of ``count`` vectors of channels, each in the bytes of its channel."""
        lanes, together = self.plan.lanes, self.plan.together
        wide = f"uint{8 * together}x{lanes}"
        copies = tirx.const(int.from_bytes([1] * together, "little"), wide.partition("x")[0])
        self.factors = []
        for vector in range(count):
            each = load_channels(self.weight, row + vector * lanes, lanes).astype(wide)
            spread = tirx.reinterpret(f"int8x{lanes * together}", each * tirx.Broadcast(copies, lanes))
            self.factors.append(self.body.hold(join([spread] * (BYTES // (lanes * together)))))

    def _accumulators(
        self, points: list[Point], widths: list[int], origin: dict[int, Any], channels: int, panel: Any
    ) -> Accumulators:
        head = (self.weight, panel) if self.plan.head else None
        start = self.start.vectors(origin, channels, len(widths), head)
        return Tile(self.body, self.start.dtype, points, start)

    def _reduce(self, acc: Accumulators, corner: Any, panel: Any, k_step: int) -> None:
        outer, _ = self.plan.runs
        # the offset's sign bit, which is 0: what seems to depend on the pixels is not moved ahead of the loop over
        # them, where there are too few registers for it
        nothing = self.body.bind("nothing", tirx.shift_right(corner, tirx.const(31, "int32")))
        panel = self.body.bind("panel", panel + nothing + self.plan.head * sum(acc.widths))
        factors = panel + self.plan.depth // self.plan.per_byte * k_step

        def multiply(source: Any, run: Any) -> None:
            weights = panel + run * (sum(self.plan.chunks) * k_step // self.plan.per_byte)
            self._run(acc, source, weights, factors + run * (self.plan.factors * k_step), nothing)

        reduce_over(self.body, outer, corner, multiply)

    def _run(self, acc: Accumulators, source: Any, weights: Any, factors: Any, nothing: Any) -> None:
        """The products of one run."""
        row, per_byte = sum(acc.widths), self.plan.per_byte

        def factors_from(element: Any) -> None:
            if self.plan.group:
                group = tirx.truncdiv(element, tirx.const(self.plan.group, "int32"))
                self._load_factors(factors + group * row, len(acc.widths))

        size = self.plan.whole
        whole, rest = divmod(self.plan.runs[1], size)
        if whole:
            with self.body.loop(nothing + whole if self.plan.rolled else whole) as index:
                factors_from(index * size)
                self._chunk(acc, source + index * size, weights + index * (size * row // per_byte), size)
        done = whole * size
        for chunk in self.plan.rest(rest):
            factors_from(tirx.const(done, "int32"))
            self._chunk(acc, source + done, weights + done * row // per_byte, chunk)
            done += chunk

    def _chunk(self, acc: Accumulators, source: Any, weights: Any, chunk: int) -> None:
        _, h_step, w_step, _ = self.conv.input_strides
        sh, sw = self.conv.stride
        offsets = [source + point.row * sh * h_step + point.column * sw * w_step for point in acc.points]
        pixels = [self.body.bind("x", self._pixel(offset, chunk)) for offset in offsets]
        self._products(acc, pixels, weights, chunk)


def generate(writer: type[BiasedWriter], p: RunPlan, dtypes: list[str]) -> Any:
    """The kernel, as ``tirx.PrimFunc``."""
    kernel = Kernel(dtypes, special)
    writer(p, kernel).write()
    return kernel.function()


def contract(p: RunPlan) -> str:
    """The kernel's name."""
    c = p.conv
    return f"{shape_name(c, 'conv')}i{c.in_channels}__t{p.rows}x{p.columns}v{p.vectors}_{p.suffix}{p.storage}"
