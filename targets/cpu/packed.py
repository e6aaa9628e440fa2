"""Code for :class:`edgec.program.Conv` with packed integer weights, for any processor: unpacked in registers.

Weights lie in panels, one a block of output channels. Along each run of the depth (what the input holds contiguously)
they come in eights, which hold the bytes of every vector of channels (see :mod:`.unpacking`). The upper nibbles of
nested weights come before all lower ones. Of groups of several widths a panel holds those of one width after those of
another; which group of the input each multiplies, a table says.

Integers of 4 bits that multiply bytes may have a factor for each group of the depth and channel: these lie behind the
weights of a panel, a byte each, [group, channel].

What a run leaves of an eight is cut short to the bytes that it needs. All pixels of a tile share an element of the
weights; where there is only one pixel, as in a product with a vector, the scale of a group multiplies the sum of an
eight, and not each weight.
"""

from __future__ import annotations

from dataclasses import replace
from math import prod
from typing import Any, TypeVar

import numpy as np

from edgec.building.lazy_tvm import tirx
from edgec.grid import split_factors
from edgec.program import Conv
from edgec.targets.cpu.conv import ConvPlan, ConvWriter, cost, register_tiles
from edgec.targets.cpu.conv import contract as contract_floats
from edgec.targets.cpu.tile import Accumulators, load_channels, reduce_over, starts, tiles
from edgec.targets.cpu.tir import Kernel, widen
from edgec.targets.cpu.unpacking import EIGHT, Unpacker, bytes_of, in_bytes, nibbles, scales, vector
from edgec.targets.cpu.winograd import WinogradPlan
from edgec.targets.target import Target

SPARE = 5
"""Registers beside the sums: a pixel's value and what a vector of weights passes through."""


class PackedPlan(ConvPlan):
    """A convolution with packed weights and its register tile."""

    @property
    def bits(self) -> int:
        """Of a weight, or of a nibble of it; of several widths the largest."""
        assert self.conv.packing is not None
        return 4 if self.conv.packing.nested else self.conv.packing.bits

    @property
    def nested(self) -> bool:
        """Whether weights are two nibbles."""
        return self.conv.packing is not None and self.conv.packing.nested

    @property
    def lower(self) -> int | None:
        """Where the lower nibbles begin; None where they are not read."""
        assert self.conv.packing is not None
        if not self.nested or self.conv.packing.bits == 4:
            return None
        return super().panels

    @property
    def panels(self) -> int:
        return super().panels * (1 + self.nested)

    @property
    def group(self) -> int:
        """Neighbours along the depth that share a scale or a factor; 0 where the epilogue has the scale."""
        assert self.conv.packing is not None
        return self.conv.packing.group

    @property
    def factors(self) -> int:
        """Groups that have factors: of integers."""
        integers = self.group and self.conv.accumulator_dtype == "int32"
        return -(-self.depth // self.group) if integers else 0

    @property
    def depth_bytes(self) -> int:
        """Vectors of bytes of all weights, for each vector of channels."""
        return sum(self.part_bytes) or prod(extent for extent, _ in self.runs[0]) * self.run_bytes

    @property
    def parts(self) -> tuple[tuple[int, int], ...]:
        """Bits and groups of each width, where there are several."""
        assert self.conv.packing is not None
        return self.conv.packing.parts

    @property
    def shares(self) -> list[tuple[int, float]]:
        """Bits of each width, and the share of the depth that has it."""
        parts = self.parts or ((self.bits, 1),)
        return [(bits, count / sum(each for _, each in parts)) for bits, count in parts]

    @property
    def part_bytes(self) -> list[int]:
        """Vectors of bytes of each part's weights, for each vector of channels."""
        return [bits * count * self.group // EIGHT for bits, count in self.parts]

    @property
    def runs(self) -> tuple[list[tuple[int, int]], int, int]:
        """The loops around a run, as :attr:`ConvPlan.reduction`; its length, and its step in the input."""
        loops = self.reduction
        return (loops[:-1], *loops[-1]) if loops else ([], 1, 0)

    @property
    def run_bytes(self) -> int:
        """Vectors of bytes of a run's weights, for each vector of channels."""
        whole, rest = divmod(self.runs[1], EIGHT)
        return whole * self.bits + bytes_of(rest, self.bits)

    def panel(self, channels: int) -> int:
        return (self.depth_bytes + self.factors) * sum(self.widths(channels))


NestedPlan = TypeVar("NestedPlan", PackedPlan, WinogradPlan)

_UNPACKING = {8: 2.0, 4: 3.5, 3: 6.0, 2: 4.0}
"""Instructions, about, for a vector of weights of so many bits."""


def fits(conv: Conv) -> bool:
    """Whether ``conv`` is for this module."""
    return conv.packing is not None


def plan(conv: Conv, target: Target) -> PackedPlan:
    """The register tile with the smallest cost estimate."""
    return candidates(conv, target)[0]


def candidates(conv: Conv, target: Target) -> list[PackedPlan]:
    """Every register tile that fits, the cheapest first."""
    found = register_tiles(PackedPlan, conv, target.lanes(4), target.vector_registers, SPARE)
    return sorted(found, key=lambda p: (_cost(p), p.rows, p.columns))


def _cost(p: PackedPlan) -> float:
    """As :func:`edgec.targets.cpu.conv.cost`, and what unpacking costs each tile."""
    conv, total = p.conv, cost(p)
    unpacking = sum(_UNPACKING[bits] * share for bits, share in p.shares) * (1 + p.nested) + bool(p.group)
    for _, _, row_tiles in tiles(conv.out_height, p.rows):
        for _, _, column_tiles in tiles(conv.out_width, p.columns):
            for _, channels, blocks in tiles(conv.out_channels, p.block):
                total += row_tiles * column_tiles * blocks * p.depth * len(p.widths(channels)) * unpacking
    return total


def pack(p: PackedPlan, weight: np.ndarray) -> np.ndarray:
    """The weight int8 [kh, kw, ci, co] as panels: uint8, see the module."""
    return np.concatenate([_panels(p, plane) for plane in (nibbles(weight) if p.nested else (weight,))])


def _panels(p: PackedPlan, weight: np.ndarray) -> np.ndarray:
    _, run, _ = p.runs
    weight, factors = split_factors(weight, p.group if p.factors else 0)
    runs = [(p.bits, each) for each in weight.reshape(-1, run, p.conv.out_channels)]
    if p.parts:
        edges = np.cumsum([p.group * count for _, count in p.parts])[:-1]
        split = np.split(weight.reshape(-1, p.conv.out_channels), edges)
        runs = [(bits, each) for (bits, _), each in zip(p.parts, split, strict=True)]
    panels = []
    for start, channels, count in tiles(p.conv.out_channels, p.block):
        for first in range(start, start + channels * count, channels):
            for bits, each in runs:
                panels.append(_run_panel(p.of_block(each, first, channels).view(np.uint8), bits, p))
            panels.append(p.of_block(factors, first, channels).view(np.uint8).ravel())
    return np.concatenate(panels)


def _run_panel(run: np.ndarray, bits: int, p: PackedPlan) -> np.ndarray:
    """[run, lanes] as [eight, vector, byte, lane]."""
    edges = np.cumsum(p.widths(run.shape[1]))[:-1]
    eights = [run[start : start + EIGHT] for start in range(0, len(run), EIGHT)]
    rows = [in_bytes(vector, bits).ravel() for eight in eights for vector in np.split(eight, edges, axis=1)]
    return np.concatenate(rows)


def narrowed(p: NestedPlan) -> NestedPlan:
    """The plan of the kernel that reads only the upper nibbles of nested weights."""
    assert p.conv.packing is not None
    return replace(p, conv=replace(p.conv, packing=replace(p.conv.packing, bits=4)))


def generate(p: PackedPlan, dtypes: list[str]) -> Any:
    """The kernel, as ``tirx.PrimFunc``."""
    kernel = Kernel(dtypes)
    PackedWriter(p, kernel).write()
    return kernel.function()


class PackedWriter(ConvWriter):
    plan: PackedPlan

    def __init__(self, p: PackedPlan, kernel: Kernel) -> None:
        super().__init__(p, kernel)
        self.scales = None if not p.group else self.weight if p.factors else kernel.buffers[2]
        self.groups = kernel.buffers[3] if p.parts else None
        self.unpacker = self._unpacker(p.bits)
        self.factors: Any = None

    def _unpacker(self, bits: int) -> Unpacker:
        return Unpacker(self.body, self.weight, bits, self.conv.accumulator_dtype)

    def _reduce(self, acc: Accumulators, corner: Any, panel: Any, k_step: int) -> None:
        if self.groups is not None:
            self._parts(acc, corner, panel)
            return
        outer, run, step = self.plan.runs
        lanes = sum(acc.widths)
        row, self.factors = self.plan.run_bytes * lanes, panel + self.plan.depth_bytes * lanes

        def multiply(source: Any, index: Any) -> None:
            self._run(acc, source, panel + index * row, index * run, step)

        reduce_over(self.body, outer, corner, multiply)

    def _parts(self, acc: Accumulators, corner: Any, panel: Any) -> None:
        """The products of groups of several widths, in the order of the table."""
        lanes, eights, first = sum(acc.widths), self.plan.group // EIGHT, 0
        for (bits, count), size in zip(self.plan.parts, self.plan.part_bytes, strict=True):
            self.unpacker = self._unpacker(bits)
            with self.body.loop(count) as index:
                own = tirx.BufferLoad(self.groups, [tirx.const(first, "int32") + index])
                group = self.body.bind("group", own * self.plan.group)
                with self.body.loop(eights) as eight:
                    start = self.body.bind("start", group + eight * EIGHT)
                    source, step = self._place(corner, start)
                    weights = panel + (index * eights + eight) * (bits * lanes)
                    self._eight(acc, source, weights, start, step, EIGHT)
            panel, first = panel + size * lanes, first + count

    def _place(self, corner: Any, start: Any) -> tuple[Any, int]:
        """Where the element ``start`` along the depth lies in the input, and the step to the next one of its tap."""
        (_, row), (columns, column), (channels, step) = self.plan.taps
        if prod(self.conv.kernel) == 1:
            return corner + start * step, step
        tap = self.body.bind("tap", tirx.truncdiv(start, tirx.const(channels, "int32")))
        y = self.body.bind("y", tirx.truncdiv(tap, tirx.const(columns, "int32")))
        channel, x = start - tap * channels, tap - y * columns
        return corner + y * row + x * column + channel * step, step

    def _run(self, acc: Accumulators, source: Any, weights: Any, start: Any, step: int) -> None:
        """The products of one run, whose first element is ``start`` along the depth."""
        whole, rest = divmod(self.plan.runs[1], EIGHT)
        row = self.plan.bits * sum(acc.widths)
        if whole:
            with self.body.loop(whole) as index:
                at = start + index * EIGHT
                self._eight(acc, source + index * (EIGHT * step), weights + index * row, at, step, EIGHT)
        if rest:
            at = start + whole * EIGHT
            self._eight(acc, source + whole * EIGHT * step, weights + whole * row, at, step, rest)

    def _eight(self, acc: Accumulators, source: Any, weights: Any, start: Any, step: int, count: int) -> None:
        """``count`` elements along the depth for the whole tile."""
        size = bytes_of(count, self.unpacker.bits)
        source, weights = self.body.bind("source", source), self.body.bind("weights", weights)
        lower = self.plan.lower
        rows, row_scales = [], []
        for first, width in zip(starts(acc.widths), acc.widths, strict=True):
            planes = [weights + first * size] if lower is None else [weights + first * size + at for at in (0, lower)]
            rows.append([[self.unpacker.byte(base + index * width, width) for index in range(size)] for base in planes])
            row_scales.append(self._scale(start, first, width, sum(acc.widths)))
        elements = [source + element * step for element in range(count)]
        if self.scales is not None and len(acc.points) == 1:
            self._scaled_sums(acc, elements, rows, row_scales)
            return
        for element, place in enumerate(elements):
            if self._overlap:
                self.kernel.load_anew()
            vectors = [
                self._scaled(self.unpacker.element(row, element, width), scale)
                for row, width, scale in zip(rows, acc.widths, row_scales, strict=True)
            ]
            self._multiply_element(acc, place, vectors)

    def _scaled_sums(
        self, acc: Accumulators, elements: list[Any], rows: list[list[list[Any]]], scales: list[Any]
    ) -> None:
        """The products of one pixel, summed up over the eight before they are scaled."""
        values = [self.body.bind("x", tirx.BufferLoad(self.input, [place])) for place in elements]
        for index, (row, width, scale) in enumerate(zip(rows, acc.widths, scales, strict=True)):
            total: Any = None
            for element, value in enumerate(values):
                product = widen(value, width) * self.unpacker.element(row, element, width)
                total = self.body.hold(product if total is None else total + product)
            acc.update(0, index, acc.value(0, index) + total * scale)

    def _scaled(self, weight: Any, scale: Any) -> Any:
        return weight if scale is None else self.body.hold(weight * scale)

    def _multiply_element(self, acc: Accumulators, source: Any, vectors: list[Any]) -> None:
        for pixel, offset in enumerate(self._pixel_offsets(acc)):
            value = self.body.bind("x", tirx.BufferLoad(self.input, [source + offset]))
            for index, weight in enumerate(vectors):
                acc.add_product(pixel, index, value, weight)

    @property
    def _overlap(self) -> bool:
        """Whether neighbouring pixels share inputs of an eight, which the compiler would keep, and spill sums for."""
        return self.conv.out_width > 1 and self.conv.stride[1] * self.conv.input_strides[2] < EIGHT

    def _pixel_offsets(self, acc: Accumulators) -> list[int]:
        """How far the inputs of each pixel of a tile lie behind those of the first."""
        _, h_step, w_step, _ = self.conv.input_strides
        sh, sw = self.conv.stride
        return [point.row * sh * h_step + point.column * sw * w_step for point in acc.points]

    def _scale(self, start: Any, first: int, width: int, lanes: int) -> Any:
        """The scales or factors of a vector of channels, of a block of ``lanes``, for the element ``start`` along the
        depth and its eight."""
        if self.scales is None:
            return None
        if self.plan.factors:
            group = tirx.truncdiv(start + tirx.const(0, "int32"), tirx.const(self.plan.group, "int32"))
            value = load_channels(self.scales, self.factors + group * lanes + first, width)
            return self.body.hold(value.astype(vector("int32", width)))
        assert self.conv.packing is not None
        value = scales(self.scales, self.conv.packing, start, self.conv.out_channels, self.channel + first, width)
        return self.body.hold(value)


def contract(p: PackedPlan) -> str:
    """The kernel's name."""
    assert p.conv.packing is not None
    bits = f"{p.conv.packing.bits}n" if p.nested else str(p.bits)
    bits = "_".join(f"{each}x{count}" for each, count in p.parts) or bits
    suffix = f"w{bits}g{p.group}" if p.group else f"w{bits}"
    return f"{contract_floats(p)}_{suffix}"
