"""A vector of floats times a matrix of packed integer weights, by integer products: what the processors share.

Weights of few bits are cheap to turn into bytes and dear to turn into floats, so the vector is turned into integers
instead, once a call: the neighbours along the depth that share a scale (or :data:`RUN` of them) become fixed-point
numbers of 24 bits under a power of two of their own, and each number three signed bytes, its digits:

    x ≈ s · (65536 · d2 + 256 · d1 + d0),  |x − s · (…)| ≤ s / 2 ≤ 1.01 · 2^-23 · max |x|  (2^-126 where x is tiny).

The sums of the products of weights and digits are exact in int32, one for each digit, channel and group; they meet in
float32, and the scales of the group and of its digits multiply them there. A result is therefore as near to the exact
sum as float32 takes it: within 2^-22 · Σ scale · Σ |w| · max |x|, sums over groups, and the rounding of as many
additions as there are groups. A group that holds an infinity or NaN makes NaN.

Digits lie in a buffer on the stack: [group, digit, element], the lowest digit first. Scales lie as they are read, too:
[block of channels, group, channel].

Weights are panels, one a block of output channels, in the order in which they are read: [group, unit, vector of
channels, byte, channel, element]. Such a byte vector holds, for each channel, ``together`` neighbouring elements of the
depth, a step, and the next step in its next higher bits; a unit is as many steps as fill whole bytes. Weights of 3 bits
are the lower two and then the highest one, each so. Integers are stored without their sign, 2^(bits − 1) added, which
the sums start without. Nested weights are two such of 4 bits, the upper nibbles of all panels and then the lower ones.
Of groups of several widths a panel holds those of one width after those of another; a table says which group of the
input each multiplies.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import numpy as np

from edgec.building.lazy_tvm import tirx
from edgec.program import OVERREAD, SCALE_CHANNELS, Conv
from edgec.targets.cpu.conv import ConvWriter
from edgec.targets.cpu.math import constant
from edgec.targets.cpu.packed import PackedPlan
from edgec.targets.cpu.packed import contract as contract_packed
from edgec.targets.cpu.tile import Accumulators, Point, starts, tiles
from edgec.targets.cpu.tir import Kernel, join, vector_load, vector_store, widen
from edgec.targets.cpu.unpacking import as_floats, nibbles, same
from edgec.targets.target import Target
from edgec.targets.template import Template
from edgec.targets.vectors import pieces

DIGITS = 3
"""Bytes of a fixed-point number."""
RUN = 128
"""Neighbours along the depth that share an exponent where weights have one scale an output channel."""
BATCH = 32
"""Elements of the depth that are multiplied without a loop, and after which sums of 16 bits are full."""
DEEPEST = {8: 256, 4: 4096, 3: 4096, 2: 4096}
"""Neighbours that may share a scale, by the bits of a weight: 256 times the sum of a digit has to fit an int32."""
SCRATCH = 48 * 1024
"""Bytes on the stack, at most, for digits."""

_HALVES = 0x808080
"""Added to a fixed-point number it makes its digits unsigned; it is turned out of them again by the same bits."""
_CARRY = 0x010101
"""Added to the bits of a float, it makes those next to a power of two as large as that: the largest number of three
digits is 0x7F7F7F and not 2^23 − 1."""
_LEAST = 24
"""Exponent (biased) that tiny numbers are taken to have, so that neither their scale nor its inverse is subnormal."""
_BIAS, _MANTISSA = 127, 23
_INFINITY, _NAN = 0x7F800000, 0x7FC00000
"""Of float32."""

PLANES = {8: (8,), 4: (4,), 3: (2, 1), 2: (2,)}
"""Bits of a weight that lie together, the lowest first, by the bits of a weight."""


@dataclass(frozen=True)
class DigitPlan(PackedPlan):
    """A vector times a matrix of packed weights: ``vectors`` of channels at a time."""

    together: ClassVar[int] = 4
    """Neighbouring elements of the depth that a product of bytes sums up."""
    unsigned: ClassVar[bool] = True
    """Whether the weights' bytes are unsigned; weights of fewer than 8 bits may be either."""
    widest: ClassVar[int] = 8
    """Bits of an integer that sums do not overflow with."""
    most_vectors: ClassVar[int] = 5
    """Vectors of channels that registers reach for."""
    suffix: ClassVar[str]
    """What the kernel's name ends with."""

    @classmethod
    def lanes_on(cls, target: Target) -> int:
        """Channels of a vector."""
        return target.lanes(4)

    @property
    def run(self) -> int:
        """Neighbours along the depth that share an exponent."""
        return self.group or min(RUN, self.depth)

    @property
    def groups(self) -> int:
        """Groups of the depth; the last one may be shorter."""
        return -(-self.depth // self.run)

    @property
    def sections(self) -> list[tuple[int, int, int]]:
        """Groups that are alike, one after the other: bits of a weight, how many groups, and the elements of each."""
        if self.parts:
            return [(bits, count, self.run) for bits, count in self.parts]
        whole, rest = divmod(self.depth, self.run)
        return [(self.bits, count, size) for count, size in ((whole, self.run), (1, rest)) if count * size]

    def steps(self, elements: int, bits: int) -> int:
        """Steps that cover ``elements`` in whole units."""
        unit = unit_steps(bits)
        return -(-elements // (self.together * unit)) * unit

    def group_bytes(self, elements: int, bits: int) -> int:
        """Bytes of the weights of ``elements``, for each channel."""
        return self.steps(elements, bits) * self.together * bits // 8

    @property
    def depth_bytes(self) -> int:
        return sum(count * self.group_bytes(size, bits) for bits, count, size in self.sections)

    @property
    def row(self) -> int:
        """Bytes of one digit of a group, in whole vectors."""
        return max(self.written(size, bits) for bits, _, size in self.sections)

    def written(self, elements: int, bits: int) -> int:
        """Bytes of one digit of ``elements``, with the zeros that fill the last step and vector."""
        return -(-self.steps(elements, bits) * self.together // self.lanes) * self.lanes

    @property
    def passes(self) -> list[tuple[list[int], int]]:
        """Panels whose nibbles together are the integers that are multiplied, as places behind the first ones, and by
        how many bits the sums of their products are shifted: nested weights of 8 bits are too wide for some sums."""
        if self.lower is None:
            return [([0], 0)]
        return [([0, self.lower], 0)] if self.widest == 8 else [([0], 4), ([self.lower], 0)]

    def offset(self, bits: int) -> int:
        """By how much the integers that a kernel multiplies by are larger than weights of ``bits``."""
        if self.lower is not None:
            return 8 + (128 if self.unsigned or len(self.passes) > 1 else 0)
        return 2 ** (bits - 1) if bits < 8 or self.unsigned else 0


def unit_steps(bits: int) -> int:
    """Steps that fill whole bytes."""
    return 8 // min(PLANES[bits])


def fits(kind: type[DigitPlan], conv: Conv) -> bool:
    """Whether ``conv`` is a vector times a matrix of packed weights that plans of ``kind`` multiply."""
    if conv.packing is None or conv.input_dtype != "float32" or conv.weight_strides is not None or conv.grouped:
        return False
    p = kind(conv, 1, 1, 1, SCALE_CHANNELS)
    if (conv.batch, conv.out_height, conv.out_width) != (1, 1, 1) or p.reduction not in ([], [(p.depth, 1)]):
        return False
    units = [unit_steps(bits) * p.together for bits, _, _ in p.sections]
    exact = p.run <= DEEPEST[conv.packing.bits] and p.bits <= kind.widest
    in_units = not p.group or all(p.group % unit == 0 for unit in units)
    return exact and in_units and p.groups * DIGITS * p.row <= SCRATCH


def template(kind: type[DigitPlan], writer: type[DigitWriter]) -> Template:
    """The template of plans of ``kind``, whose kernels ``writer`` emits."""
    choose, every = partial(plan, kind), partial(candidates, kind)
    return Template(choose, partial(generate, writer), contract, pack, candidates=every, pack_scales=pack_scales)


def plan(kind: type[DigitPlan], conv: Conv, target: Target) -> DigitPlan:
    """The plan with the fewest products, about."""
    return candidates(kind, conv, target)[0]


def candidates(kind: type[DigitPlan], conv: Conv, target: Target) -> list[DigitPlan]:
    """Every number of vectors of channels that registers reach for, the best first."""
    lanes = kind.lanes_on(target)
    most = min(kind.most_vectors, -(-conv.out_channels // lanes))
    return sorted((kind(conv, 1, 1, vectors, lanes) for vectors in range(1, most + 1)), key=_cost)


def _cost(p: DigitPlan) -> float:
    """Products of a step, about: one a vector, and the digits are read for each block."""
    return sum(count * (len(p.widths(channels)) + 0.5) for _, channels, count in tiles(p.conv.out_channels, p.block))


def pack(p: DigitPlan, weight: np.ndarray) -> np.ndarray:
    """The weight int8 [1, 1, ci, co] as panels: uint8, see the module."""
    matrix = weight.reshape(p.depth, p.conv.out_channels)
    return np.concatenate([_panels(p, plane) for plane in (nibbles(matrix) if p.nested else (matrix,))])


def _panels(p: DigitPlan, matrix: np.ndarray) -> np.ndarray:
    edges = np.cumsum([count * size for _, count, size in p.sections])[:-1]
    sections = list(zip(p.sections, np.split(matrix, edges), strict=True))
    panels = []
    for start, channels, count in tiles(p.conv.out_channels, p.block):
        for first in range(start, start + channels * count, channels):
            for (bits, _, size), rows in sections:
                own = p.of_block(rows, first, channels)
                panels.append(_section(p, own.reshape(-1, size, own.shape[1]), bits, p.widths(channels)))
    return np.concatenate(panels)


def _section(p: DigitPlan, rows: np.ndarray, bits: int, widths: Sequence[int]) -> np.ndarray:
    """[group, element, channel] as [group, unit, vector of channels, byte, channel, element]."""
    groups, elements, _ = rows.shape
    unit, steps = unit_steps(bits), p.steps(elements, bits)
    sign = 2 ** (bits - 1) if bits < 8 or p.unsigned else 0
    padded = np.pad(rows, ((0, 0), (0, steps * p.together - elements), (0, 0))).view(np.uint8) + np.uint8(sign)
    vectors = []
    for vector in np.split(padded & (2**bits - 1), np.cumsum(widths)[:-1], axis=2):
        by_step = vector.reshape(groups, steps // unit, unit, p.together, -1).swapaxes(3, 4)
        vectors.append(np.concatenate(_planes(by_step.reshape(*by_step.shape[:3], -1), bits), axis=2))
    return np.concatenate([each.reshape(*each.shape[:2], -1) for each in vectors], axis=2).ravel()


def _planes(steps: np.ndarray, bits: int) -> list[np.ndarray]:
    """[group, unit, step, byte] of one unsigned integer a byte as [group, unit, stored byte vector, byte], by plane."""
    planes, first = [], 0
    for width in PLANES[bits]:
        each = 8 // width
        fields = (steps >> first & (2**width - 1)).reshape(*steps.shape[:2], -1, each, steps.shape[3])
        shifts = width * np.arange(each, dtype=np.uint8)[:, None]
        planes.append(np.bitwise_or.reduce(fields << shifts, axis=3))
        first += width
    return planes


def pack_scales(p: DigitPlan, scales: np.ndarray) -> np.ndarray:
    """The scales [group, channel] as a kernel reads them, [block of channels, group, channel]."""
    rows = scales.reshape(p.groups, -1)[:, : p.conv.out_channels]
    blocks = [
        p.of_block(rows, first, channels).ravel()
        for start, channels, count in tiles(p.conv.out_channels, p.block)
        for first in range(start, start + channels * count, channels)
    ]
    return np.concatenate(blocks)


class DigitWriter(ConvWriter):
    """Emits the digits of the vector and the loops over blocks of channels, groups and steps around what a subclass
    does with a step."""

    plan: DigitPlan

    def __init__(self, p: DigitPlan, kernel: Kernel) -> None:
        super().__init__(p, kernel)
        self.scales = kernel.buffers[2] if p.group else None
        self.order = kernel.buffers[3] if p.parts else None
        self.digits = self.body.local("int8", p.groups * DIGITS * p.row + OVERREAD)
        self.bases = self.body.local("int32", p.groups * DIGITS)
        self.units = self.body.local("float32", p.groups)

    @abstractmethod
    def _nearest(self, value: Any) -> Any:
        """float32 as int32, rounded to nearest; anything for what does not fit."""

    @abstractmethod
    def _digit(self, offset: Any, step: int) -> Any:
        """What :meth:`_add_products` takes as the digits of ``step``, of those that begin at ``offset``."""

    @abstractmethod
    def _add_products(self, sums: Accumulators, digit: int, vector: int, weights: Any, digits: Any) -> None:
        """Add the products of one step to the sums of a digit and a vector of channels."""

    def _settle(self, sums: Accumulators, shift: int) -> None:
        """Complete the sums of a batch of steps, whose products are shifted left by so many bits."""

    def write(self) -> None:
        """The kernel's statements."""
        for group, _, bits, size in self._groups():
            self._fixed_point(group, size, bits)
        super().write()

    def _groups(self) -> Iterator[tuple[Any, Any, int, int]]:
        """Inside of a loop over groups that are alike, once for each such loop: the group's number in the input, the
        bytes of weights of each channel that lie before its own, the bits of a weight, and its elements."""
        first = stored = 0
        for bits, count, size in self.plan.sections:
            own = self.plan.group_bytes(size, bits)
            with self.body.loop(count) as index:
                group = self.body.bind("group", tirx.const(first, "int32") + index)
                if self.order is not None:
                    group = self.body.bind("group", tirx.BufferLoad(self.order, [group]))
                yield group, tirx.const(stored, "int32") + index * own, bits, size
            first, stored = first + count, stored + count * own

    # ---- the vector -------------------------------------------------------------------------------------------

    def _fixed_point(self, group: Any, elements: int, bits: int) -> None:
        """The digits and the unit of a group of ``elements``, and what the sums of its products start from."""
        body, lanes, row = self.body, self.plan.lanes, self.plan.row
        unit, inverse = self._unit(group, elements)
        body.emit(vector_store(self.units, unit, group))
        place = body.bind("place", group * (DIGITS * row))
        totals = Accumulators(body, "int32", [Point(0, digit) for digit in range(DIGITS)], [lanes])

        def split(values: Any, first: Any) -> None:
            whole = self._nearest(body.hold(values * widen(inverse, lanes))) + same(_HALVES, lanes)
            whole = body.hold(tirx.bitwise_xor(whole, same(_HALVES, lanes)))
            for digit in range(DIGITS):
                top = tirx.shift_left(whole, same(24 - 8 * digit, lanes))
                each = body.hold(tirx.shift_right(top, same(24, lanes)))
                totals.update(digit, 0, totals.value(digit, 0) + each)
                body.emit(vector_store(self.digits, each.astype(f"int8x{lanes}"), place + digit * row + first))

        self._over(group, elements, split)
        for first in range(-(-elements // lanes) * lanes, self.plan.written(elements, bits), lanes):
            for digit in range(DIGITS):
                body.emit(vector_store(self.digits, same(0, lanes, "int8"), place + (digit * row + first)))
        for digit in range(DIGITS):
            total = _reduced("add", totals.value(digit, 0)) * tirx.const(-self.plan.offset(bits), "int32")
            body.emit(vector_store(self.bases, total, group * DIGITS + digit))

    def _unit(self, group: Any, elements: int) -> tuple[Any, Any]:
        """What the lowest digit of a group counts, NaN where one of its elements is no number, and its inverse."""
        body, lanes = self.body, self.plan.lanes
        largest = Accumulators(body, "int32", [Point(0, 0)], [lanes])

        def compare(values: Any, _: Any) -> None:
            bits = tirx.bitwise_and(tirx.reinterpret(f"int32x{lanes}", values), same(0x7FFFFFFF, lanes))
            largest.update(0, 0, tirx.max(largest.value(0, 0), bits))

        self._over(group, elements, compare)
        most = body.hold(tirx.reinterpret("uint32", _reduced("smax", largest.value(0, 0))))
        exponent = tirx.shift_right(most + _word(_CARRY), _word(_MANTISSA))
        exponent = body.hold(tirx.max(exponent, _word(_LEAST)))
        unit = tirx.shift_left(exponent - _word(_MANTISSA - 1), _word(_MANTISSA))
        unit = body.hold(tirx.Select(tirx.GE(most, _word(_INFINITY)), _word(_NAN), unit))
        inverse = tirx.shift_left(_word(2 * _BIAS + _MANTISSA - 1) - exponent, _word(_MANTISSA))
        unit = tirx.reinterpret("float32", unit)
        if self.plan.nested and self.plan.lower is None:  # the upper nibbles count sixteens
            unit = unit * tirx.const(16.0, "float32")
        return unit, body.hold(tirx.reinterpret("float32", inverse))

    def _over(self, group: Any, elements: int, visit: Callable[[Any, Any], None]) -> None:
        """``visit`` the floats of a group, a vector at a time with zeros behind the last one, and where each begins."""
        lanes, source = self.plan.lanes, self.conv.input_offset + group * self.plan.run
        whole, rest = divmod(elements, lanes)
        if whole:
            with self.body.loop(whole) as index:
                first = self.body.bind("first", tirx.const(0, "int32") + index * lanes)
                visit(self.body.hold(vector_load(self.input, source + first, lanes)), first)
        if rest:
            values, first = [], whole * lanes
            for width in pieces(rest, lanes):
                values.append(vector_load(self.input, source + first, width))
                first += width
            zeros = [tirx.const(0, "float32")] * (lanes - rest)
            visit(self.body.hold(join([*values, *zeros])), tirx.const(whole * lanes, "int32"))

    # ---- the matrix -------------------------------------------------------------------------------------------

    def _reduce(self, acc: Accumulators, corner: Any, panel: Any, k_step: int) -> None:
        for group, before, bits, size in self._groups():
            sums = Accumulators(self.body, "int32", [Point(0, digit) for digit in range(DIGITS)], acc.widths)
            for digit in range(DIGITS):
                base = self.body.hold(tirx.BufferLoad(self.bases, [group * DIGITS + digit]))
                for vector, width in enumerate(acc.widths):
                    sums.update(digit, vector, widen(base, width))
            place = self.body.bind("place", group * (DIGITS * self.plan.row))
            weights = self.body.bind("weights", panel + before * k_step)
            self._products(sums, place, weights, bits, self.plan.steps(size, bits))
            self._join(acc, sums, group)

    def _products(self, sums: Accumulators, digits: Any, weights: Any, bits: int, steps: int) -> None:
        """Those of the steps of a group, whose digits and weights begin at these places."""
        batch = BATCH // self.plan.together
        whole, rest = divmod(steps, batch)
        size = BATCH * bits // 8 * sum(sums.widths)
        if whole:
            with self.body.loop(whole) as index:
                self._batch(sums, digits + index * BATCH, weights + index * size, bits, batch)
        if rest:
            self._batch(sums, digits + whole * BATCH, weights + whole * size, bits, rest)

    def _batch(self, sums: Accumulators, digits: Any, weights: Any, bits: int, steps: int) -> None:
        """The products of up to :data:`BATCH` elements."""
        digits, weights = self.body.bind("digits", digits), self.body.bind("weights", weights)
        for panels, shift in self.plan.passes:
            for first in range(0, steps, unit_steps(bits)):
                vectors = self._stored(weights, panels, first, bits, sums.widths)
                for step in range(unit_steps(bits)):
                    values = [self._digit(digits + digit * self.plan.row, first + step) for digit in range(DIGITS)]
                    for vector, stored in enumerate(vectors):
                        own = self.body.hold(self._integers(stored, bits, step))
                        for digit, value in enumerate(values):
                            self._add_products(sums, digit, vector, own, value)
            self._settle(sums, shift)

    def _stored(
        self, weights: Any, panels: Sequence[int], first: int, bits: int, widths: Sequence[int]
    ) -> list[list[Any]]:
        """For each vector of channels the byte vectors of the unit that begins with the step ``first``, of one of the
        panels after the other."""
        together, unit, vectors = self.plan.together, unit_steps(bits), []
        for start, width in zip(starts(widths), widths, strict=True):
            offset, size = (first * sum(widths) + unit * start) * together * bits // 8, width * together
            places = [panel + offset + index * size for panel in panels for index in range(unit * bits // 8)]
            vectors.append([self.body.hold(vector_load(self.weight, weights + place, size)) for place in places])
        return vectors

    def _integers(self, stored: list[Any], bits: int, step: int) -> Any:
        """The unsigned integers of one step, a byte each; signed ones of 8 bits for kernels that multiply by those."""
        if len(self.plan.passes[0][0]) > 1:
            upper, lower = (_field(vector, 4, step) for vector in stored)
            both = tirx.bitwise_or(tirx.shift_left(upper, constant(4, upper)), lower)
            return both if self.plan.unsigned else tirx.bitwise_xor(both, constant(128, both))
        value, first = None, 0
        for width in PLANES[bits]:
            vector, place = divmod(step, 8 // width)
            index = sum(unit_steps(bits) * each // 8 for each in PLANES[bits] if each > width) + vector
            field = _field(stored[index], width, place)
            moved = tirx.shift_left(field, constant(first, field)) if first else field
            value, first = moved if value is None else tirx.bitwise_or(value, moved), first + width
        return value

    def _join(self, acc: Accumulators, sums: Accumulators, group: Any) -> None:
        """Add the sums of a group's digits, scaled."""
        unit = self.body.hold(tirx.BufferLoad(self.units, [group]))
        for vector, (start, width) in enumerate(zip(starts(acc.widths), acc.widths, strict=True)):
            low, middle, high = (sums.value(digit, vector) for digit in range(DIGITS))
            two = (tirx.shift_left(middle, same(8, width)) + low).astype(f"float32x{width}")
            total = high.astype(f"float32x{width}") * widen(tirx.const(65536.0, "float32"), width) + two
            scale = widen(unit, width)
            if self.scales is not None:
                scale = scale * self._scale(self.scales, group, sum(acc.widths), start, width)
            acc.update(0, vector, acc.value(0, vector) + self.body.hold(total) * self.body.hold(scale))

    def _scale(self, scales: Any, group: Any, row: int, start: int, width: int) -> Any:
        """A group's scales of a vector of channels, ``start`` channels behind the first of a block of ``row``."""
        value = vector_load(scales, self.channel * self.plan.groups + (group * row + start), width)
        return as_floats(value, scales.dtype)


def _field(value: Any, bits: int, index: int) -> Any:
    """The ``index``-th ``bits`` of each byte."""
    if index:
        value = tirx.shift_right(value, constant(bits * index, value))
    return value if bits * (index + 1) == 8 else tirx.bitwise_and(value, constant(2**bits - 1, value))


def _reduced(name: str, value: Any) -> Any:
    """A vector of int32 summed up, or the largest of its lanes."""
    return tirx.call_llvm_pure_intrin("int32", f"llvm.vector.reduce.{name}", value)


def _word(value: int) -> Any:
    return tirx.const(value, "uint32")


def generate(writer: type[DigitWriter], p: DigitPlan, dtypes: list[str]) -> Any:
    """The kernel, as ``tirx.PrimFunc``."""
    kernel = Kernel(dtypes)
    writer(p, kernel).write()
    return kernel.function()


def contract(p: DigitPlan) -> str:
    """The kernel's name."""
    return f"{contract_packed(p)}_{p.suffix}"
