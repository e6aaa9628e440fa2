"""What a design takes of an FPGA, estimated before anything is synthesised.

The formulas describe the Verilog engines beside this module, counted by Yosys 0.23 for the 7 series: DSP slices and
block memories by how they are mapped, lookup tables and flip-flops by fits to those counts, which
``samples/fpga/calibrate.py`` repeats. An HLS tool arranges the same arithmetic otherwise, so that its numbers will
differ.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from math import ceil, log2
from typing import Any


@dataclass(frozen=True)
class Resources:
    """Counts of DSP slices, lookup tables, flip-flops, block memories of 18 kbit, and UltraRAM blocks of 288 kbit."""

    dsp: int = 0
    lut: int = 0
    ff: int = 0
    bram18: int = 0
    uram: int = 0

    def __add__(self, other: Resources) -> Resources:
        return Resources(*(a + b for a, b in zip(self, other, strict=True)))

    def __sub__(self, other: Resources) -> Resources:
        return Resources(*(a - b for a, b in zip(self, other, strict=True)))

    def __iter__(self) -> Iterator[int]:
        return iter((self.dsp, self.lut, self.ff, self.bram18, self.uram))

    def fits(self, budget: Resources) -> bool:
        """Whether there is enough of everything."""
        return all(used <= there for used, there in zip(self, budget, strict=True))

    def share(self, budget: Resources) -> float:
        """The largest share of anything in the budget."""
        return max(used / max(there, 1) for used, there in zip(self, budget, strict=True))

    def as_dict(self) -> dict[str, Any]:
        """Counts by name."""
        return asdict(self)

    @staticmethod
    def names() -> list[str]:
        """What is counted, in order."""
        return [field.name for field in fields(Resources)]


BLOCK_SHAPES = ((16384, 1), (8192, 2), (4096, 4), (2048, 9), (1024, 18), (512, 36))
"""Words and bits of a block memory of 18 kbit; two of them are one of 36 kbit with twice the words."""

SMALLEST_BLOCK_DEPTH = 65
"""Up to 64 words a bit of memory takes one lookup table, which is less than a block memory is worth."""

SMALLEST_BLOCK_BITS = 4096


def in_blocks(depth: int, width: int) -> bool:
    """Whether a memory is put into block memories rather than lookup tables."""
    return depth >= SMALLEST_BLOCK_DEPTH and depth * width >= SMALLEST_BLOCK_BITS


def block_memories(depth: int, width: int) -> int:
    """Block memories of 18 kbit for ``depth`` words: rows of one shape, whose left-over bits share memories."""
    return min(_blocks(depth, width, words, bits) for words, bits in _shapes())


def _shapes() -> Iterator[tuple[int, int]]:
    yield from BLOCK_SHAPES
    yield from ((2 * words, bits) for words, bits in BLOCK_SHAPES)
    yield 512, 72


def _blocks(depth: int, width: int, words: int, bits: int) -> int:
    """A shape of more than 18 kbit takes two."""
    size = 2 if words * bits > 18432 else 1
    return size * ceil(ceil(depth / words) * width / bits)


def block_rows(depth: int, width: int) -> int:
    """Rows of block memories, one of which is selected."""
    words, _ = min(_shapes(), key=lambda shape: (_blocks(depth, width, *shape), -shape[0]))
    return ceil(depth / words)


def selector_luts(rows: int, width: int) -> int:
    """Lookup tables that select one of ``rows`` words: three more rows a table."""
    return width * ceil((rows - 1) / 3)


def distributed_ram(depth: int, width: int) -> int:
    """Lookup tables of a memory that is written: four hold 3 bits of 64 words, or 6 bits of 32."""
    if depth <= 32:
        return 4 * ceil(width / 6)
    rows = ceil(depth / 64)
    return rows * 4 * ceil(width / 3) + selector_luts(rows, width)


def rom(depth: int, width: int) -> Resources:
    """A memory of constants."""
    if in_blocks(depth, width):
        return Resources(bram18=block_memories(depth, width), lut=selector_luts(block_rows(depth, width), width))
    if depth == 1:
        return Resources()
    return Resources(lut=width * ceil(depth / 64) + selector_luts(ceil(depth / 64), width))


def ram(depth: int, width: int) -> Resources:
    """A memory that is written and read."""
    if in_blocks(depth, width):
        return Resources(bram18=block_memories(depth, width), lut=selector_luts(block_rows(depth, width), width))
    return Resources(lut=distributed_ram(depth, width))


ULTRA_SHAPE = (4096, 72)
"""Words and bits of an UltraRAM block. It comes up empty, so that it can hold what is written and no constants."""

WORTH_AN_ULTRA = 8
"""Block memories that an UltraRAM block must replace: half of what it holds."""


def ultra_memories(depth: int, width: int) -> int:
    """UltraRAM blocks of a memory that is written and read; 0 where block memories are the better place."""
    words, bits = ULTRA_SHAPE
    blocks = ceil(depth / words) * ceil(width / bits)
    replaced = block_memories(depth, width) if in_blocks(depth, width) else 0
    return blocks if replaced >= WORTH_AN_ULTRA * blocks else 0


def channel(depth: int, width: int, ultra: int = 0) -> Resources:
    """A first-in, first-out channel and its two counters.

    Up to 32 words are shift registers, more a memory: ``ultra`` UltraRAM blocks if it is any.
    """
    if depth <= 32:
        return Resources(lut=width + 12, ff=width + 8)
    memory = Resources(uram=ultra) if ultra else ram(depth, width)
    return memory + Resources(lut=40 + 2 * ceil(log2(depth)), ff=width + 4 * ceil(log2(depth)))


def product_luts(multiplier: str, bits: int, terms: int) -> float:
    """Lookup tables of a product by a weight of so many bits that is a sum of so many signed powers of two."""
    shifted = 26.5 * terms if bits <= 4 else 70.0 * terms - 42
    return {"dsp": 0.0, "lut": 9.5 * bits, "shift": shifted}[multiplier]


def stored_bits(multiplier: str, bits: int, terms: int) -> int:
    """Bits that a weight takes in memory; of a signed power of two whether it is there, its sign, and the shift."""
    return terms * (2 + ceil(log2(bits))) if multiplier == "shift" else bits


def matrix_vector(
    simd: int, pe: int, steps: int, folds: int, weight_bits: int, accumulator: int, multiplier: str, terms: int,
    streamed: bool = False,
) -> Resources:  # fmt: skip
    """The engine of ``edgec_matrix_vector.v``; ``steps`` words of input, read ``folds`` times.

    ``weight_bits``, ``accumulator`` and ``terms`` are bits of a weight, bits of a sum, and signed powers of two in a
    weight; ``streamed`` weights take no memory.
    """
    products = simd * pe
    code = stored_bits(multiplier, weight_bits, terms)
    logic = 35 + 8 * simd + 1.9 * pe * accumulator + products * product_luts(multiplier, weight_bits, terms)
    registers = 30 + pe * accumulator
    if multiplier != "dsp":  # slices sum up and keep what they multiply
        logic += 18 * pe * (simd - 1)
        registers += 8 * simd + 16 * products
    own = Resources(products if multiplier == "dsp" else 0, round(logic), registers)
    kept = Resources(lut=distributed_ram(steps, 8 * simd)) if folds > 1 else Resources()
    return own + kept + (Resources() if streamed else rom(steps * folds, code * products))


def sliding_window(depth: int, simd: int) -> Resources:
    """The engine of ``edgec_sliding_window.v`` with a line buffer of ``depth`` words."""
    return Resources(lut=160 + 6 * simd, ff=105) + ram(depth, 8 * simd)


def requantiser(lanes: int, groups: int, accumulator: int, point: int, offsets: int) -> Resources:
    """``lanes`` engines of ``edgec_requantise.v``, each with the constants of ``groups`` channels."""
    wide = accumulator > 25
    levels = ceil(log2(offsets + 9 if wide else offsets)) if offsets > 1 or wide else 0
    logic = 60 + 1.2 * point + 25 * levels + 2.5 * accumulator + (185 if wide else 0)
    one = Resources(2, round(logic), 200 + (45 if wide else 0)) + rom(groups, 62)
    return Resources(*(lanes * count for count in one))
