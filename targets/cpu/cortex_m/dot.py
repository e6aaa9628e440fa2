"""Code for :class:`edgec.program.Conv` of 8-bit integers on Cortex-M: four or sixteen elements of a run at a time.

Four bytes are loaded as a word; ``sxtb16`` (``uxtb16`` of an unsigned input) makes two pairs of half words of it, the
bytes 0 and 2 and the bytes 1 and 3, and ``smlad`` adds the products of two pairs to a sum. Helium (``mve`` among the
target's features) multiplies sixteen bytes by sixteen and adds all products to a sum, ``vmladava``; an unsigned input
is turned into a signed one by its highest bit there, x − 128: Σ x · w = Σ (x − 128) · w + 128 · Σ w, and the last term,
for each channel, stands at the head of its panel of weights.

A tile is a few pixels by a few channels, whose sums stay in the core's registers. What a run leaves of whole vectors
and words is multiplied one by one, or padded with zero weights where that is shorter; what the input holds behind its
end does not matter then. Weights lie as they are read: [vector or word of the run][channel][element].
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from edgec.building.lazy_tvm import tirx
from edgec.program import Conv
from edgec.targets.cpu.contiguous import ContiguousPlan
from edgec.targets.cpu.conv import ConvWriter
from edgec.targets.cpu.cortex_m.rounding import special
from edgec.targets.cpu.tile import Accumulators, Point, reduce_over, shape_name, tiles
from edgec.targets.cpu.tir import Kernel, nothing_special, vector_load
from edgec.targets.target import Target

WORD, VECTOR = 4, 16
"""Elements that are multiplied at a time."""
REGISTERS, WORKING = 13, 5
"""Of the core, and of them those that hold weights, addresses and counts."""
SUMS_OF_WORDS, SUMS_OF_VECTORS = 4, 6
"""Sums that stay in registers; ``vmladava`` adds to every other one only."""
SIGN = 128
HEAD = 4
"""Bytes in front of a panel for each channel, where the input is turned into a signed one."""
TILE_OVERHEAD, EPILOGUE = 14, 16
"""Instructions, about, to set up a tile, and to make a result of a sum."""


@dataclass(frozen=True)
class DotPlan(ContiguousPlan):
    """A convolution with its register tile of ``vectors`` channels; ``lanes`` is 1.

    Attributes:
        has_vectors: whether there is Helium.
        rounds: whether a requantisation takes instructions of its own (see :mod:`.rounding`).
    """

    has_vectors: bool
    rounds: bool

    @cached_property
    def chunks(self) -> list[tuple[int, int]]:
        """What a run is cut into, in order: elements that are multiplied at a time, and how often."""
        left, found = self.runs[1], []
        if self.has_vectors:
            count, left = divmod(left, VECTOR)
            if left > WORD:
                count, left = count + 1, 0
            found.append((VECTOR, count))
        count, left = divmod(left, WORD)
        if left == WORD - 1:
            count, left = count + 1, 0
        return [(size, times) for size, times in (*found, (WORD, count), (1, left)) if times]

    @property
    def run_elements(self) -> int:
        """Weights of a run, those of padding included."""
        return sum(size * times for size, times in self.chunks)

    @property
    def depth(self) -> int:
        return self.run_count * self.run_elements

    @property
    def head(self) -> int:
        """Bytes per channel in front of a panel."""
        is_turned = any(size == VECTOR for size, _ in self.chunks) and self.conv.input_dtype == "uint8"
        return HEAD if is_turned else 0

    def panel(self, channels: int) -> int:
        return (self.depth + self.head) * channels


def fits(conv: Conv, target: Target) -> bool:
    """Whether ``conv`` is of bytes, with known weights of a byte, and ``target`` multiplies several at once."""
    if "dsp" not in target.features:
        return False
    return conv.input_dtype in ("int8", "uint8") and conv.weight_strides is None and conv.packing is None


def has_vectors(target: Target) -> bool:
    """Whether there is Helium."""
    return any(feature.startswith("mve") for feature in target.features)


def plan(conv: Conv, target: Target) -> DotPlan:
    """The register tile of the fewest instructions."""
    return candidates(conv, target)[0]


def candidates(conv: Conv, target: Target) -> list[DotPlan]:
    """Every register tile, that of the fewest instructions first."""
    found = _register_tiles(conv, has_vectors(target), target.cpu == "cortex-m4")
    if has_vectors(target):
        return sorted(found, key=lambda p: (instructions(p), p.rows, p.columns))
    return sorted(found, key=lambda p: (instructions(p), p.columns, p.rows))  # LLVM spills less with pixels of two rows


def _register_tiles(conv: Conv, vectors: bool, rounds: bool) -> Iterator[DotPlan]:
    for channels in range(1, min(conv.out_channels, REGISTERS - WORKING) + 1):
        for columns in range(1, min(conv.out_width, REGISTERS) + 1):
            for rows in range(1, min(conv.out_height, 2) + 1):
                pixels = rows * columns
                sums = pixels * channels
                words_fit = 2 * pixels + sums + WORKING <= REGISTERS and sums <= SUMS_OF_WORDS
                if words_fit or (vectors and sums <= SUMS_OF_VECTORS):
                    yield DotPlan(conv, rows, columns, channels, 1, vectors, rounds)


def instructions(p: DotPlan) -> float:
    """Instructions, about, of the whole convolution."""
    conv, total = p.conv, 0.0
    for _, rows, row_tiles in tiles(conv.out_height, p.rows):
        for _, columns, column_tiles in tiles(conv.out_width, p.columns):
            for _, channels, blocks in tiles(conv.out_channels, p.block):
                run = sum(times * _products(p, size, rows * columns, channels) for size, times in p.chunks)
                each = p.run_count * run + EPILOGUE * rows * columns * channels + TILE_OVERHEAD
                total += row_tiles * column_tiles * blocks * each
    return total


def _products(p: DotPlan, size: int, pixels: int, channels: int) -> int:
    """Instructions of the products of ``size`` elements, loads and the loop included."""
    loop, sums = 3, pixels * channels
    if size == VECTOR:
        return pixels * (2 if p.head else 1) + channels + sums + loop
    if size == WORD:
        return 3 * (pixels + channels) + 2 * sums + loop
    return pixels + channels + sums


def pack(p: DotPlan, weight: np.ndarray) -> np.ndarray:
    """The weight int8 [kh, kw, ci, co] as panels, one after the other; see the module."""
    by_runs = p.by_runs(weight)
    matrix = np.zeros((len(by_runs), p.run_elements, p.conv.out_channels), np.int8)
    matrix[:, : p.runs[1]] = by_runs
    panels = []
    for start, channels, count in tiles(p.conv.out_channels, p.block):
        for first in range(start, start + channels * count, channels):
            block = matrix[:, :, first : first + channels]
            if p.head:
                signed = sum(size * times for size, times in p.chunks if size == VECTOR)
                panels.append((block[:, :signed].sum((0, 1), np.int32) * SIGN).view(np.int8))
            panels += [part for run in block for part in _arranged(p, run)]
    return np.concatenate(panels)


def _arranged(p: DotPlan, run: np.ndarray) -> Iterator[np.ndarray]:
    """[element, channel] as [vector or word, channel, element], one size after the other."""
    first = 0
    for size, times in p.chunks:
        part = run[first : first + size * times].reshape(times, size, -1)
        yield part.transpose(0, 2, 1).ravel()
        first += size * times


def generate(p: DotPlan, dtypes: list[str]) -> Any:
    """The kernel, as ``tirx.PrimFunc``."""
    kernel = Kernel(dtypes, special if p.rounds else nothing_special)
    _DotWriter(p, kernel).write()
    return kernel.function()


class _DotWriter(ConvWriter):
    plan: DotPlan

    def _accumulators(
        self, points: list[Point], widths: list[int], origin: dict[int, Any], channels: int, panel: Any
    ) -> Accumulators:
        start = None
        if self.plan.head:
            start = [self.body.bind("head", _word(self.weight, panel + HEAD * index)) for index in range(channels)]
        return Accumulators(self.body, self.conv.accumulator_dtype, points, widths, start)

    def _reduce(self, acc: Accumulators, corner: Any, panel: Any, k_step: int) -> None:
        outer, _ = self.plan.runs
        channels = len(acc.widths)
        panel = panel + self.plan.head * channels

        def multiply(source: Any, run: Any) -> None:
            self._run(acc, source, panel + run * (self.plan.run_elements * channels))

        reduce_over(self.body, outer, corner, multiply)

    def _run(self, acc: Accumulators, source: Any, weights: Any) -> None:
        """The products of one run."""
        multiply = {VECTOR: self._vectors, WORD: self._words, 1: self._elements}
        channels, done = len(acc.widths), 0
        for size, times in self.plan.chunks:
            with self.body.loop(times) as index:
                place = done + index * size
                multiply[size](acc, self._pixels(acc, source + place), weights + place * channels)
            done += size * times

    def _pixels(self, acc: Accumulators, source: Any) -> list[Any]:
        """Where each pixel's elements are."""
        _, h_step, w_step, _ = self.conv.input_strides
        sh, sw = self.conv.stride
        return [source + (point.row * sh * h_step + point.column * sw * w_step) for point in acc.points]

    def _vectors(self, acc: Accumulators, pixels: list[Any], weights: Any) -> None:
        values = [self._signed(vector_load(self.input, offset, VECTOR)) for offset in pixels]
        for channel in range(len(acc.widths)):
            weight = self.body.bind("w", vector_load(self.weight, weights + channel * VECTOR, VECTOR))
            for pixel, value in enumerate(values):
                acc.update(pixel, channel, _sum_of_products(acc.value(pixel, channel), value, weight))

    def _signed(self, value: Any) -> Any:
        if self.plan.head:
            sign = tirx.Broadcast(tirx.const(SIGN, "uint8"), VECTOR)
            value = tirx.reinterpret(f"int8x{VECTOR}", tirx.bitwise_xor(value, sign))
        return self.body.bind("x", value)

    def _words(self, acc: Accumulators, pixels: list[Any], weights: Any) -> None:
        extend = "llvm.arm.uxtb16" if self.conv.input_dtype == "uint8" else "llvm.arm.sxtb16"
        values = [self._pairs(extend, _word(self.input, offset)) for offset in pixels]
        for channel in range(len(acc.widths)):
            weight = self._pairs("llvm.arm.sxtb16", _word(self.weight, weights + channel * WORD))
            for pixel, value in enumerate(values):
                total = acc.value(pixel, channel)
                for left, right in zip(value, weight, strict=True):
                    total = tirx.call_llvm_pure_intrin("int32", "llvm.arm.smlad", left, right, total)
                acc.update(pixel, channel, total)

    def _pairs(self, extend: str, word: Any) -> tuple[Any, Any]:
        """The bytes 0 and 2, and 1 and 3, as half words."""
        word = self.body.hold(word)
        turned = tirx.call_llvm_pure_intrin("int32", "llvm.fshr.i32", word, word, tirx.const(8, "int32"))
        even, odd = (tirx.call_llvm_pure_intrin("int32", extend, each) for each in (word, turned))
        return self.body.hold(even), self.body.hold(odd)

    def _elements(self, acc: Accumulators, pixels: list[Any], weights: Any) -> None:
        values = [self.body.bind("x", tirx.BufferLoad(self.input, [offset])) for offset in pixels]
        for channel in range(len(acc.widths)):
            weight = self.body.bind("w", tirx.BufferLoad(self.weight, [weights + channel]))
            for pixel, value in enumerate(values):
                acc.add_product(pixel, channel, value, weight)


def _word(buffer: Any, offset: Any) -> Any:
    """Four bytes as they are in memory."""
    return tirx.reinterpret("int32", vector_load(buffer, offset, WORD))


def _sum_of_products(total: Any, left: Any, right: Any) -> Any:
    """``total`` + Σ left · right, of signed bytes."""
    signed, added, straight = (tirx.const(0, "int32") for _ in range(3))
    name = f"llvm.arm.mve.vmldava.v{VECTOR}i8"
    return tirx.call_llvm_pure_intrin("int32", name, signed, added, straight, total, left, right)


def contract(p: DotPlan) -> str:
    """The kernel's name."""
    c = p.conv
    how = "vmladava" if p.has_vectors else "smlad"
    return f"{shape_name(c, 'conv')}i{c.in_channels}__t{p.rows}x{p.columns}v{p.vectors}_{how}"
