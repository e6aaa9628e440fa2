"""Long products of pairs of bytes, written out: the inner loops of a register tile, as in :mod:`.assembly`.

Left to itself the compiler takes many products ahead of what adds them up, for the sake of an in-order core, and spills
them. Here as many products are begun (``smull``), completed (``smlal2``) and added to their sums (``sadalp``) together
as keep such a core from waiting for any; what loads the next weights and turns the inputs comes before the additions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby

from edgec.targets.cpu.aarch64.assembly import REGISTERS, STREAM, Instruction, Products, Text

PAIR = 2
HALF = 8
"""Bytes of half a vector."""
LANES = 4
"""Channels of a vector."""
LEAST, MOST = 7, 8
"""Products that are in registers together."""
LONG = Instruction("smlal", "4s", "<4 x i32>", "8b", "", 1, PAIR)
"""Of bytes; no element of the inputs is picked."""


def steps(chunk: int) -> int:
    """How many steps bring the pairs of a chunk to every channel."""
    return min(LANES, chunk // PAIR)


def halves(chunk: int) -> int:
    """How many halves of a vector a chunk fills."""
    return -(-chunk // HALF)


@dataclass(frozen=True)
class PairProducts(Products):
    """The products of a register tile (see :mod:`.pairs`): each pixel has its inputs in a register, which turns."""

    @cached_property
    def window(self) -> list[tuple[int, int]]:
        return []

    @cached_property
    def loads(self) -> list[int]:
        return list(self.chunks)

    @property
    def sets(self) -> int:
        return 2 if self._left >= 2 * STREAM + LEAST else 1

    @property
    def together(self) -> int:
        """Products that are in registers together."""
        return min(MOST, self._left - STREAM * self.sets)

    @property
    def _left(self) -> int:
        """Registers beside sums and inputs."""
        return REGISTERS - self.pixels * (self.vectors + 1)

    def _step(self, load: int) -> int:
        stream = steps(load) * self.vectors
        turns = (steps(load) - 1) * self.pixels + (self.pixels if load < HALF else 0)
        products = (halves(load) + 1) * stream * self.pixels
        return products + -(-stream // STREAM) + self.pixels + turns

    def text(self) -> Text:
        return _PairText(self)


def fits(pixels: int, vectors: int) -> bool:
    """Whether a tile leaves registers for weights and products."""
    return pixels * (vectors + 1) + STREAM + LEAST <= REGISTERS


class _PairText(Text):
    p: PairProducts

    def _chunk(self, load: int) -> None:
        kind = "8b" if halves(load) == 1 else "16b"
        groups, fill = self._stream(steps(load) * self.p.vectors, kind)
        self._load_inputs(load)
        inputs = [f"v{pixel}" for pixel in range(self.p.pixels)]
        if load < HALF:
            self.lines += [f"dup {v}.2s, {v}.s[0]" for v in inputs]
        for _ in range(self.p.sets):
            fill()
        step, adding = 0, list[str]()
        for registers, vectors in groups:
            for own, weights in groupby(zip(registers, vectors, strict=False), lambda each: each[1] // self.p.vectors):
                if own > step:
                    self.lines += [f"ext {v}.{kind}, {v}.{kind}, {v}.{kind}, #{PAIR}" for v in inputs]
                    step = own
                adding = self._multiply_all(list(weights), inputs, halves(load), adding)
            fill()
        self.lines += adding

    def _multiply_all(
        self, weights: Sequence[tuple[int, int]], inputs: Sequence[str], count: int, adding: list[str]
    ) -> list[str]:
        """The products of some weights and all inputs.

        Args:
            weights: vectors, each the register it is in and its number.
            inputs: the registers.
            count: halves of these that are multiplied.
            adding: what adds the products before these, which comes first.

        Returns:
            What adds the last ones.
        """
        first, rows = self.sums[-1][-1] + 1, list(enumerate(inputs))
        todo = [(f"v{register}", number % self.p.vectors, *row) for register, number in weights for row in rows]
        size = -(-len(todo) // -(-len(todo) // self.p.together))
        for start in range(0, len(todo), size):
            items = [(f"v{first + index}", *item) for index, item in enumerate(todo[start : start + size])]
            self.lines += adding
            self.lines += [f"smull {total}.8h, {v}.8b, {weight}.8b" for total, weight, _, _, v in items]
            if count == 2:
                self.lines += [f"smlal2 {total}.8h, {v}.16b, {weight}.16b" for total, weight, _, _, v in items]
            adding = [f"sadalp v{self.sums[pixel][vector]}.4s, {total}.8h" for total, _, vector, pixel, _ in items]
        return adding
