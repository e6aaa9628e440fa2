"""Code for :class:`edgec.program.Conv` of integers on x86: implicit GEMM by products of four bytes, or of two int16.

The input is read four bytes a pixel at a time along its contiguous runs (a row of the window, or its channels), and
these are broadcast; a vector of weights holds as many bytes for each output channel. Runs are padded with zero
weights to a multiple of four bytes, and what the input holds there does not matter.

Weights of 4 bits are stored two groups of a run a byte, the first in the lower half. Each half, moved to the top of its
byte, is an int8 of 16 times the weight; so are the sums, and these leave the tile through a shift that loses nothing.
With a factor for each group of the depth and channel, the halves hold the integer plus 8: that times the factor still
fits a byte, so one product of int16 takes two of them, and eight times the factor, subtracted, leaves the weight. The
factors, a byte each, lie behind the weights of a panel, as [group, channel].

The instruction multiplies unsigned bytes by signed ones. An int8 input is turned into uint8 by its highest bit,
x + 128; Σ x · w = Σ (x + 128) · w − 128 · Σ w, and the last term, for each channel, is in the head of each panel.

An int16 input is read two elements at a time, and two weights a channel are bytes that are widened in a register.

A matrix that is computed, and not known when the kernel is made, is read in place: four of its rows become the bytes
of a lane each in registers, for all pixels of a tile.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from edgec.building.lazy_tvm import tirx
from edgec.grid import split_factors
from edgec.program import Conv
from edgec.targets.cpu.contiguous import ContiguousPlan
from edgec.targets.cpu.conv import RESIDENT_PANEL_BYTES, ConvWriter
from edgec.targets.cpu.tile import Accumulators, Point, Store, bias_apart, reduce_over, shape_name, starts, tiles
from edgec.targets.cpu.tir import Kernel, lanes_of, part, vector_load
from edgec.targets.cpu.x86.isa import Isa
from edgec.targets.cpu.x86.narrow import special
from edgec.targets.cpu.x86.tile import (
    TAPS,
    IntegerTile,
    Multiplier,
    Panel,
    WordMultiplier,
    bias_vectors,
    read_head,
)
from edgec.targets.target import Target
from edgec.targets.vectors import padded_pieces

LATENCY = 5
"""Cycles until a sum can be added to again."""
TILE_OVERHEAD = 14
"""Cycles, about, to set up a tile."""
EPILOGUE_CYCLES = 5
"""Cycles, about, that a vector of sums costs beside its products: start, requantisation and store."""
CODE_CYCLES = 8
"""Cycles, about, to fetch the code of one product and its share of the epilogue, once."""
SIXTEEN = 16
"""By how much weights of 4 bits are larger at the top of a byte."""
EIGHT = 8
"""What is added to weights of 4 bits with factors, so that they are unsigned."""
DEEPEST_HALVES = 2**31 // (255 * 128) - 1
"""Products whose sixteenfold sum fits an int32."""
WORD_TAPS = 2
"""Products of int16 that one int32 lane takes in at a time."""
INTERLEAVING = 6
"""Cycles, about, to make a vector of weights of four rows of a matrix."""
UNROLL_PRODUCTS = 16
"""Products in one iteration of the reduction, at least, where the run is long enough."""


@dataclass(frozen=True)
class GroupedPlan(ContiguousPlan):
    """A convolution of integers with its register tile; ``lanes`` are those of int32."""

    isa: Isa

    @property
    def words(self) -> bool:
        """Whether the input is int16."""
        return self.conv.input_dtype == "int16"

    @property
    def together(self) -> int:
        """Products that a lane takes in at a time."""
        return WORD_TAPS if self.words else TAPS

    @property
    def groups(self) -> int:
        """Groups of four bytes, or of two int16, that cover a run."""
        return -(-self.runs[1] // self.together)

    @property
    def halves(self) -> bool:
        """Whether a byte holds two weights."""
        return self.conv.packing is not None

    @property
    def layout(self) -> Panel:
        """How a panel lies."""
        return Panel(self.run_count * self.stored_groups, self.conv.input_dtype == "int8", self.together)

    @property
    def stored_groups(self) -> int:
        """Groups of bytes of a run's weights."""
        return -(-self.groups // 2) if self.halves else self.groups

    def widths(self, channels: int) -> list[int]:
        return padded_pieces(channels, self.lanes)

    def panel(self, channels: int) -> int:
        lanes = sum(self.widths(channels))
        return self.layout.size(lanes) + self.run_count * self.factors * lanes

    @property
    def panel_first(self) -> bool:
        return self.panel(self.block) <= RESIDENT_PANEL_BYTES


def fits(conv: Conv) -> bool:
    """Whether the channels of a pixel are neighbours, and the weights constants, or a matrix that multiplies uint8."""
    contiguous = conv.input_strides[3] == 1 or conv.in_channels == 1
    sixteenfold = conv.packing is not None and not conv.packing.group
    exact = not sixteenfold or prod(conv.kernel) * conv.in_channels <= DEEPEST_HALVES
    known = conv.weight_strides is None or conv.input_dtype == "uint8"
    return conv.input_dtype != "float32" and known and contiguous and exact


def plan(conv: Conv, target: Target) -> GroupedPlan:
    """The register tile with the smallest cost estimate (see :func:`cost`)."""
    return candidates(conv, target)[0]


def candidates(conv: Conv, target: Target) -> list[GroupedPlan]:
    """Every register tile that fits, the cheapest first."""
    return sorted(register_tiles(conv, Isa.of(target)), key=lambda p: (cost(p), p.vectors, p.rows, p.columns))


def register_tiles(conv: Conv, isa: Isa) -> Iterator[GroupedPlan]:
    """Every register tile that fits the register file."""
    copies = 1 if isa.vnni or conv.input_dtype == "int16" else 2
    copies += 2 if conv.packing is not None and conv.packing.group else 0
    for vectors in range(1, min(8, -(-conv.out_channels // isa.lanes)) + 1):
        pixels = (isa.registers - 1 - copies * (vectors + 1)) // vectors
        for columns in range(1, min(conv.out_width, max(1, pixels)) + 1):
            for rows in range(1, min(conv.out_height, max(1, pixels // columns)) + 1):
                yield GroupedPlan(conv, rows, columns, vectors, isa.lanes, isa)


def cost(p: GroupedPlan) -> float:
    """Cycles, about, of the whole convolution: products, loads or latency, whichever bounds a tile."""
    conv, total, steps = p.conv, 0.0, p.run_count * p.groups
    for _, rows, row_tiles in tiles(conv.out_height, p.rows):
        for _, columns, column_tiles in tiles(conv.out_width, p.columns):
            for _, channels, blocks in tiles(conv.out_channels, p.block):
                widths = p.widths(channels)
                pixels, share = rows * columns, sum(widths) / p.lanes
                products = pixels * share * (1 if p.isa.vnni else 2 if p.words else 3)
                step = max(products + _widening(p, pixels, share), pixels / 2 + share, LATENCY) + 0.5
                setup = TILE_OVERHEAD + EPILOGUE_CYCLES * pixels * share
                total += conv.batch * row_tiles * column_tiles * blocks * (steps * step + setup)
                total += pixels * len(widths) * CODE_CYCLES
    return total


def _widening(p: GroupedPlan, pixels: int, vectors: float) -> float:
    """Cycles, about, of making vectors of rows, and int16 of the inputs and weights of a step."""
    if p.conv.weight_strides is not None:
        return INTERLEAVING * vectors + (0 if p.isa.vnni else 2 * pixels + 3 * vectors)
    if p.words:
        return vectors
    return 0 if p.isa.vnni else 2 * pixels + 3 * vectors


def pack(p: GroupedPlan, weight: np.ndarray) -> np.ndarray:
    """The weight [kh, kw, ci, co] as panels, one a block of channels (see :class:`Panel`); a matrix stays as it is."""
    if p.conv.weight_strides is not None:
        return weight
    sums = weight.sum((0, 1, 2), np.int32)
    weight, factors = split_factors(weight, p.group)
    matrix = p.by_runs(weight)
    padded = np.zeros((matrix.shape[0], p.groups * p.together, p.conv.out_channels), np.int8)
    padded[:, : matrix.shape[1]] = matrix
    padded = padded.reshape(-1, p.together, p.conv.out_channels)
    if p.halves:
        padded = _in_halves(padded.reshape(-1, p.groups, *padded.shape[1:]) + (EIGHT if p.group else 0))
        sums = sums if p.group else sums * SIXTEEN
    panels = []
    for start, channels, count in tiles(p.conv.out_channels, p.block):
        for first in range(start, start + channels * count, channels):
            own, lanes = slice(first, first + channels), sum(p.widths(channels))
            panels.append(p.layout.pack(padded[:, :, own], lanes, sums[own]))
            panels.append(p.of_block(factors, first, channels).ravel())
    return np.concatenate(panels)


def _in_halves(runs: np.ndarray) -> np.ndarray:
    """[runs, groups, …] of 4 bits as [runs · groups / 2, …]: two groups a byte, zeros behind an odd last one."""
    count, groups, *rest = runs.shape
    even = np.zeros((count, groups + groups % 2, *rest), np.int8)
    even[:, :groups] = runs
    return ((even[:, ::2] & 15) | (even[:, 1::2] << 4)).reshape(-1, *rest)


def generate(p: GroupedPlan, dtypes: list[str]) -> Any:
    """The kernel, as ``tirx.PrimFunc``."""
    kernel = Kernel(dtypes, special(p.isa))
    _GroupedWriter(p, kernel).write()
    return kernel.function()


class _GroupedWriter(ConvWriter):
    plan: GroupedPlan

    def __init__(self, p: GroupedPlan, kernel: Kernel) -> None:
        super().__init__(p, kernel)
        # 16 times a bias might not fit
        epilogue, self.bias = (p.conv.epilogue, None) if p.halves else bias_apart(p.conv.epilogue, "int32")
        self.target = Store(self.body, kernel.buffers[:-1], kernel.buffers[-1], epilogue, p.conv.store)
        self.multiplier = (WordMultiplier if p.words else Multiplier)(p.isa, self.body)
        self.sign: Any = None
        self.factors: list[tuple[Any, Any]] = []

    def _accumulators(
        self, points: list[Point], widths: list[int], origin: dict[int, Any], channels: int, panel: Any
    ) -> IntegerTile:
        start = bias_vectors(self.body, self.target.operands, self.bias, origin, widths, channels)
        if self.plan.layout.signed:
            self.sign, start = read_head(self.body, self.weight, panel, start, widths)
        return IntegerTile(self.body, self.plan.isa, points, widths, [self.body.hold(value) for value in start])

    def _weights(self, row: Any, first: int, width: int, taps: int) -> Any:
        """The bytes of a group for each of ``width`` channels from ``first`` on; of a matrix, of ``taps`` rows."""
        together = self.plan.together
        if self.conv.weight_strides is None:
            return vector_load(self.weight, row + first * together, width * together)
        lanes = f"uint32x{width}"
        words = tirx.Broadcast(tirx.const(0, "uint32"), width)
        for tap in range(taps):
            each = vector_load(self.weight, row + first + tap * self.conv.weight_strides[1], width)
            each = tirx.reinterpret(f"uint8x{width}", each).astype(lanes)
            words = tirx.bitwise_or(words, tirx.shift_left(each, tirx.Broadcast(tirx.const(8 * tap, "uint32"), width)))
        return tirx.reinterpret(f"int8x{TAPS * width}", words)

    def _reduce(self, acc: Accumulators, corner: Any, panel: Any, k_step: int) -> None:
        assert isinstance(acc, IntegerTile)
        outer, lanes = self.plan.runs[0], sum(acc.widths)
        size, head = self.plan.stored_groups * self.plan.together * lanes, self.plan.layout.head(lanes)
        factors = panel + self.plan.layout.size(lanes)

        def multiply(source: Any, run: Any) -> None:
            weights = panel + head + run * size
            if self.plan.group:
                self._factored_run(acc, source, weights, factors + run * (self.plan.factors * lanes))
            else:
                self._steps(acc, source, weights, self.plan.stored_groups)

        reduce_over(self.body, outer, corner, multiply)
        if self.plan.halves and not self.plan.group:
            acc.divide_by_sixteen()

    def _factored_run(self, acc: IntegerTile, source: Any, weights: Any, factors: Any) -> None:
        """The products of one run, group by group of those that share factors."""
        lanes, steps = sum(acc.widths), self.plan.group // (2 * TAPS)
        whole, rest = divmod(self.plan.stored_groups, steps)

        def group(index: Any, count: int) -> None:
            self._load_factors(factors + index * lanes, acc.widths)
            offset = index * (steps * TAPS)
            self._steps(acc, source + 2 * offset, weights + offset * lanes, count)

        if whole:
            with self.body.loop(whole) as index:
                group(index, steps)
        if rest:
            group(tirx.const(whole, "int32"), rest)

    def _load_factors(self, row: Any, widths: Sequence[int]) -> None:
        """For each vector of channels its factors in every int16, and eight times them in every byte."""
        self.factors = []
        for first, width in zip(starts(widths), widths, strict=True):
            each = vector_load(self.weight, row + first, width).astype(f"uint32x{width}")
            words, eights = (
                self.body.hold(tirx.reinterpret(f"uint{bits}x{32 // bits * width}", each * _same(times, width)))
                for bits, times in ((16, 0x0001_0001), (8, EIGHT * 0x0101_0101))
            )
            self.factors.append((words, eights))

    def _steps(self, acc: IntegerTile, source: Any, weights: Any, groups: int) -> None:
        """The products of ``groups`` stored one after the other."""
        matrix, each = self.conv.weight_strides, 2 if self.plan.halves else 1
        row = self.plan.together * (sum(acc.widths) if matrix is None else matrix[1])
        rest = self.plan.runs[1] % self.plan.together if matrix is not None else 0
        if rest:
            groups -= 1
        step_size = self.plan.together * each
        step = self._two_steps if self.plan.halves else self._step
        unroll = max(1, min(groups, -(-UNROLL_PRODUCTS // (len(acc.points) * len(acc.widths) * each))))
        with self.body.loop(groups // unroll) as index:
            for group in (index * unroll + number for number in range(unroll)):
                step(acc, source + group * step_size, weights + group * row)
        for group in range(groups // unroll * unroll, groups):
            step(acc, source + group * step_size, weights + group * row)
        if rest:  # no row behind the last may be read
            self._step(acc, source + groups * step_size, weights + groups * row, rest)

    def _step(self, acc: IntegerTile, source: Any, weights: Any, taps: int = TAPS) -> None:
        """One group of the run for the whole tile."""
        vectors = [
            self.multiplier.weights(self._weights(weights, first, width, taps))
            for first, width in zip(starts(acc.widths), acc.widths, strict=True)
        ]
        self._products(acc, source, vectors)

    def _two_steps(self, acc: IntegerTile, source: Any, weights: Any) -> None:
        """Eight bytes of the run, whose weights are halves of bytes."""
        stored = [
            self.body.hold(self._weights(weights, first, width, TAPS))
            for first, width in zip(starts(acc.widths), acc.widths, strict=True)
        ]
        for half in range(2):
            if self.plan.group:
                halves = [_times(value, half, *own) for value, own in zip(stored, self.factors, strict=True)]
            else:
                halves = [_sixteenfold(value, half) for value in stored]
            self._products(acc, source + half * TAPS, [self.multiplier.weights(value) for value in halves])

    def _products(self, acc: IntegerTile, source: Any, vectors: list[list[Any]]) -> None:
        """One group of every pixel, from ``source`` on, times the weights."""
        _, h_step, w_step, _ = self.conv.input_strides
        sh, sw = self.conv.stride
        for pixel, point in enumerate(acc.points):
            offset = source + point.row * sh * h_step + point.column * sw * w_step
            inputs = self.multiplier.inputs(self._pixel(offset, max(acc.widths)))
            for index, vector in enumerate(vectors):
                own = [part(x, 0, acc.widths[index] * self.plan.together // len(inputs)) for x in inputs]
                acc.update(pixel, index, self.multiplier.add(acc.value(pixel, index), own, vector))

    def _pixel(self, offset: Any, lanes: int) -> Any:
        """One group of the input, bytes unsigned, in each of ``lanes`` lanes."""
        together = self.plan.together
        word = tirx.reinterpret("int32", vector_load(self.input, offset, together))
        kind = "int16" if self.plan.words else "uint8"
        value = tirx.reinterpret(f"{kind}x{together * lanes}", tirx.Broadcast(word, lanes))
        if self.plan.layout.signed:
            value = tirx.bitwise_xor(value, part(self.sign, 0, TAPS * lanes))
        return self.body.bind("x", value)


def _sixteenfold(value: Any, half: int) -> Any:
    """16 times the int4 in the lower (0) or upper (1) half of each byte, as int8."""
    words = tirx.reinterpret(f"uint16x{lanes_of(value) // 2}", value)
    if half == 0:
        words = tirx.shift_left(words, tirx.Broadcast(tirx.const(4, "uint16"), lanes_of(words)))
    kept = tirx.bitwise_and(words, tirx.Broadcast(tirx.const(0xF0F0, "uint16"), lanes_of(words)))
    return tirx.reinterpret(f"int8x{lanes_of(value)}", kept)


def _times(value: Any, half: int, words: Any, eights: Any) -> Any:
    """The integers plus 8 in the lower (0) or upper (1) half of each byte, times factors and without the 8, as int8."""
    pairs = tirx.reinterpret(f"uint16x{lanes_of(value) // 2}", value)
    if half:
        pairs = tirx.shift_right(pairs, tirx.Broadcast(tirx.const(4, "uint16"), lanes_of(pairs)))
    each = tirx.bitwise_and(pairs, tirx.Broadcast(tirx.const(0x0F0F, "uint16"), lanes_of(pairs)))
    products = tirx.reinterpret(f"uint8x{lanes_of(value)}", each * words)
    return tirx.reinterpret(f"int8x{lanes_of(value)}", products - eights)


def _same(value: int, lanes: int) -> Any:
    return tirx.Broadcast(tirx.const(value, "uint32"), lanes)


def contract(p: GroupedPlan) -> str:
    """The kernel's name."""
    c = p.conv
    how, kind = "vnni" if p.isa.vnni else "madd", "gemm_rt" if c.weight_strides else "conv"
    return f"{shape_name(c, kind)}i{c.in_channels}__t{p.rows}x{p.columns}v{p.vectors}_{how}{p.storage}"
