"""A vector of floats times packed weights on x86, by products of bytes: see :mod:`edgec.targets.cpu.digits`.

``vpdpbusd`` multiplies four unsigned bytes of weights a channel by four digits and adds them to an int32. AVX2 has
``pmaddubsw``, which sums up two such products as int16, saturated: weights of up to 4 bits leave room for 16 products
before the sums are widened.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from edgec.building.lazy_tvm import tirx
from edgec.program import Conv
from edgec.targets.cpu import digits
from edgec.targets.cpu.digits import DIGITS, DigitPlan, DigitWriter
from edgec.targets.cpu.tile import Accumulators
from edgec.targets.cpu.tir import vector_load
from edgec.targets.cpu.x86.isa import Isa, byte_pair_sums, dot, nearest, pair_sums
from edgec.targets.target import Target
from edgec.targets.template import Template

LEAST_LANES = 8
"""32-bit lanes of a register of AVX2."""


@dataclass(frozen=True)
class DotPlan(DigitPlan):
    """By ``vpdpbusd``."""

    suffix: ClassVar[str] = "vnni"


@dataclass(frozen=True)
class PairPlan(DigitPlan):
    """By ``pmaddubsw``."""

    suffix: ClassVar[str] = "maddubs"
    widest: ClassVar[int] = 4
    most_vectors: ClassVar[int] = 2


class _DotWriter(DigitWriter):
    def _nearest(self, value: Any) -> Any:
        return nearest(value)

    def _digit(self, offset: Any, step: int) -> Any:
        together = self.plan.together
        four = vector_load(self.digits, offset + step * together, together)
        return self.body.hold(tirx.reinterpret("int32", four))

    def _add_products(self, sums: Accumulators, digit: int, vector: int, weights: Any, digits: Any) -> None:
        sums.update(digit, vector, dot(sums.value(digit, vector), weights, self._spread(digits, sums.widths[vector])))

    def _spread(self, digits: Any, width: int) -> Any:
        """Four digits in each of ``width`` lanes."""
        return tirx.reinterpret(f"int8x{self.plan.together * width}", tirx.Broadcast(digits, width))


class _PairWriter(_DotWriter):
    words: Any = None

    def _add_products(self, sums: Accumulators, digit: int, vector: int, weights: Any, digits: Any) -> None:
        if self.words is None:
            self.words = Accumulators(self.body, "int16", sums.points, [2 * width for width in sums.widths])
        products = byte_pair_sums(weights, self._spread(digits, sums.widths[vector]))
        self.words.update(digit, vector, self.words.value(digit, vector) + products)

    def _settle(self, sums: Accumulators, shift: int) -> None:
        for digit in range(DIGITS):
            for vector, width in enumerate(sums.widths):
                factor = tirx.Broadcast(tirx.const(1 << shift, "int16"), 2 * width)
                each = pair_sums(self.words.value(digit, vector), factor)
                sums.update(digit, vector, sums.value(digit, vector) + each)
        self.words = None


DOT = digits.template(DotPlan, _DotWriter)
PAIRS = digits.template(PairPlan, _PairWriter)


def template_for(conv: Conv, target: Target) -> Template | None:
    """The template of ``conv`` where it is a vector of floats times packed weights."""
    isa = Isa.of(target)
    if isa.vnni:
        return DOT if digits.fits(DotPlan, conv) else None
    return PAIRS if isa.lanes >= LEAST_LANES and digits.fits(PairPlan, conv) else None
