"""A vector of floats times packed weights on 64-bit ARM, by products of bytes: see :mod:`edgec.targets.cpu.digits`.

``sdot`` by element multiplies four bytes of weights of each of four channels by four digits and adds them to an int32.
Without it ``smull`` and ``smlal`` multiply two bytes of weights of each of four channels by two digits, in sums of
int16 that take in 16 products of weights of up to 4 bits before ``sadalp`` adds neighbours to int32.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from edgec.building.lazy_tvm import tirx
from edgec.program import Conv
from edgec.targets.cpu import digits
from edgec.targets.cpu.aarch64.neon import BYTES, dot, instruction, long_product, pair_sums, repeated, split
from edgec.targets.cpu.aarch64.tile import LANES
from edgec.targets.cpu.digits import DIGITS, DigitPlan, DigitWriter
from edgec.targets.cpu.math import constant
from edgec.targets.cpu.tile import Accumulators
from edgec.targets.cpu.tir import join, lanes_of, vector_load
from edgec.targets.target import Target
from edgec.targets.template import Template

HALF = BYTES // 2


@dataclass(frozen=True)
class DotPlan(DigitPlan):
    """By ``sdot``."""

    suffix: ClassVar[str] = "sdot"
    unsigned: ClassVar[bool] = False


@dataclass(frozen=True)
class LongPlan(DigitPlan):
    """By ``smlal``."""

    suffix: ClassVar[str] = "smlal"
    unsigned: ClassVar[bool] = False
    together: ClassVar[int] = 2
    widest: ClassVar[int] = 4
    most_vectors: ClassVar[int] = 3

    @classmethod
    def lanes_on(cls, target: Target) -> int:
        return BYTES // cls.together


class _DotWriter(DigitWriter):
    def _nearest(self, value: Any) -> Any:
        return join([instruction("int32x4", "aarch64.neon.fcvtns.v4i32.v4f32", each) for each in split(value, LANES)])

    def _digit(self, offset: Any, step: int) -> Any:
        """A register of digits, and which step's are meant."""
        each = BYTES // self.plan.together
        held, lane = divmod(step, each)
        return self.body.hold(vector_load(self.digits, offset + held * BYTES, BYTES)), lane

    def _add_products(self, sums: Accumulators, digit: int, vector: int, weights: Any, digits: Any) -> None:
        register, lane = digits
        signed = tirx.reinterpret(f"int8x{lanes_of(weights)}", weights)
        sums.update(digit, vector, dot(sums.value(digit, vector), signed, repeated(register, lane)))


class _LongWriter(_DotWriter):
    words: Any = None

    def _add_products(self, sums: Accumulators, digit: int, vector: int, weights: Any, digits: Any) -> None:
        if self.words is None:
            self.words = Accumulators(self.body, "int16", sums.points, [2 * width for width in sums.widths])
        register, lane = digits
        pairs = tirx.Shuffle([tirx.reinterpret("int16x8", register)], [tirx.const(lane, "int32")] * (HALF // 2))
        pairs = tirx.reinterpret(f"int8x{HALF}", pairs)
        signed = tirx.reinterpret(f"int8x{lanes_of(weights)}", weights)
        halves = [long_product(each, pairs) for each in split(signed, HALF)]
        self.words.update(digit, vector, self.words.value(digit, vector) + join(halves))

    def _settle(self, sums: Accumulators, shift: int) -> None:
        for digit in range(DIGITS):
            for vector in range(len(sums.widths)):
                words = self.body.hold(self.words.value(digit, vector))
                wide = join([pair_sums(each) for each in split(words, HALF)])
                wide = tirx.shift_left(wide, constant(shift, wide)) if shift else wide
                sums.update(digit, vector, sums.value(digit, vector) + wide)
        self.words = None


DOT = digits.template(DotPlan, _DotWriter)
LONG = digits.template(LongPlan, _LongWriter)


def template_for(conv: Conv, target: Target) -> Template | None:
    """The template of ``conv`` where it is a vector of floats times packed weights."""
    if "dotprod" in target.features:
        return DOT if digits.fits(DotPlan, conv) else None
    return LONG if digits.fits(LongPlan, conv) else None
