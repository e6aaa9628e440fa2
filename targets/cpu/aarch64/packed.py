"""Code for :class:`edgec.program.Conv` of float32 with packed integer weights, for 64-bit ARM: ``fmla`` by element.

Weights lie as in :mod:`edgec.targets.cpu.packed`. The products of an eight and all pixels of a tile are assembly: left
to itself the compiler unpacks all weights before the first product, and spills them. Four elements of four channels
are unpacked together, while the four before them are multiplied: bits look up (``tbl``) the upper byte of a float16,
whose lower one is 0 for such small integers, and ``shll`` and ``fcvtl`` make float32 of it; bytes are widened and
converted.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from edgec.building.lazy_tvm import stmt, tirx
from edgec.program import Conv
from edgec.targets.cpu.aarch64.assembly import FAR, KINDS, REGISTERS, address
from edgec.targets.cpu.aarch64.neon import BYTES, special
from edgec.targets.cpu.aarch64.tile import LANES
from edgec.targets.cpu.packed import PackedPlan, PackedWriter
from edgec.targets.cpu.tile import Accumulators, starts, tiles
from edgec.targets.cpu.tir import Kernel, join
from edgec.targets.cpu.unpacking import EIGHT
from edgec.targets.target import Target

FOUR = 4
"""Elements of an eight whose inputs are in registers, and whose weights are unpacked, together."""
TILE_OVERHEAD, EIGHT_OVERHEAD = 14, 8
"""Instructions to set up a tile, and those around the products of an eight."""
EPILOGUE = 4
"""Instructions that each vector of sums costs beside the products: start, epilogue and store."""
VECTOR = "<4 x float>"

FREED = (1, 3)
"""The registers of four weights that are multiplied first, and in which the next four are prepared meanwhile."""
_NIBBLES = ("shl {1}.8b, {3}.8b, #4", "zip1 {3}.4s, {1}.4s, {3}.4s", "ushr {3}.16b, {3}.16b, #4")
_PAIRS = ("dup {3}.4s, {3}.s[0]", "ushl {3}.16b, {3}.16b, {pairs}.16b", "ushr {3}.16b, {3}.16b, #6")
_THIRD = (
    "dup {1}.4s, {1}.s[0]", "ushl {1}.16b, {1}.16b, {singles}.16b", "ushr {1}.16b, {1}.16b, #7",
    "sli {3}.16b, {1}.16b, #2",
)  # fmt: skip
_LOOK_UP = ("tbl {3}.16b, {{{table}.16b}}, {3}.16b", "shll {1}.8h, {3}.8b, #8", "shll2 {3}.8h, {3}.16b, #8")
_FROM_HALVES = (
    "fcvtl {0}.4s, {1}.4h", "fcvtl2 {1}.4s, {1}.8h", "fcvtl {2}.4s, {3}.4h", "fcvtl2 {3}.4s, {3}.8h",
)  # fmt: skip
_WIDEN = ("sshll {1}.8h, {3}.8b, #0", "sshll2 {3}.8h, {3}.16b, #0")
_FROM_WORDS = (
    "sshll {0}.4s, {1}.4h, #0", "sshll2 {1}.4s, {1}.8h, #0", "sshll {2}.4s, {3}.4h, #0", "sshll2 {3}.4s, {3}.8h, #0",
    *(f"scvtf {{{i}}}.4s, {{{i}}}.4s" for i in range(FOUR)),
)  # fmt: skip
UNPACK = {
    8: (_WIDEN, _FROM_WORDS),
    4: ((*_NIBBLES, *_LOOK_UP), _FROM_HALVES),
    3: ((*_PAIRS, *_THIRD, *_LOOK_UP), _FROM_HALVES),
    2: ((*_PAIRS, *_LOOK_UP), _FROM_HALVES),
}
"""Four elements of four channels, by the bits of each: from what is loaded into the register {3}, and of 3 bits the
highest ones into {1}, to float32 in four registers. Bytes [element, channel] of the bits are made first."""


def _table(bits: int) -> np.ndarray:
    """The upper bytes, as float16, of integers of ``bits``, by the bits."""
    fields = np.arange(BYTES) & (2**bits - 1)
    signed = np.where(fields < 2 ** (bits - 1), fields, fields - 2**bits).astype(np.float16)
    return (signed.view(np.uint16) >> 8).astype(np.uint8)


SHIFTS = {"pairs": (6, 4, 2, 0), "singles": (7, 6, 5, 4)}
"""By how much the bytes of each element move up, to bring its bits to the top."""


@dataclass(frozen=True)
class Products:
    """The products of an eight of a register tile.

    Attributes:
        bits: of a weight.
        offsets: where each pixel's inputs begin, in bytes behind those of the first.
        vectors: of channels.
        scaled: whether the weights are multiplied by a scale for each channel.
    """

    bits: int
    offsets: tuple[int, ...]
    vectors: int
    scaled: bool

    @property
    def pixels(self) -> int:
        return len(self.offsets)

    @property
    def apart(self) -> tuple[int, ...]:
        """The pixels whose addresses are given: the first, and those that no offset from it reaches."""
        return tuple(p for p, by in enumerate(self.offsets) if p == 0 or by % BYTES or not 0 <= by < FAR * BYTES)

    @property
    def constants(self) -> dict[str, np.ndarray]:
        """What lies in registers, by name: uint8 [16]."""
        known = {name: np.repeat(np.array(by, np.uint8), LANES) for name, by in SHIFTS.items()}
        known["table"] = _table(self.bits)
        text = "".join(UNPACK[self.bits][0])
        return {name: value for name, value in known.items() if f"{{{name}}}" in text}

    @property
    def temporaries(self) -> int:
        """Registers of inputs and of weights."""
        return self.pixels + FOUR

    @property
    def registers(self) -> int:
        """How many are needed."""
        return self._sums + self.temporaries + self._scales + len(self.constants)

    @cached_property
    def lines(self) -> list[str]:
        """The instructions; ``$n`` are the sums, temporaries, addresses, scales and constants, in this order."""
        groups = [(half, vector) for half in range(EIGHT // FOUR) for vector in range(self.vectors)]
        lines = [*self._inputs(0), *self._bits(*groups[0]), *self._floats(groups[0][1])]
        for (half, vector), (next_half, next_vector) in zip(groups, [*groups[1:], (-1, -1)], strict=True):
            lines += [line for lane in FREED for line in self._multiply(vector, lane)]
            rest = [line for lane in range(FOUR) if lane not in FREED for line in self._multiply(vector, lane)]
            if next_half < 0:
                lines += rest
                break
            lines += _between(rest, self._bits(next_half, next_vector))
            lines += [*(self._inputs(next_half) if next_half > half else []), *self._floats(next_vector)]
        return lines

    def _inputs(self, half: int) -> list[str]:
        """The loads of four inputs of every pixel."""
        lines = list[str]()
        for pixel, by in enumerate(self.offsets):
            own = pixel in self.apart
            pointer = self.apart.index(pixel) if own else 0
            place = half * BYTES + (0 if own else by)
            lines.append(f"ldr ${{{self._input(pixel)}:q}}, [{self._given(1 + pointer)}, #{place}]")
        return lines

    def _bits(self, half: int, vector: int) -> list[str]:
        """What unpacks half an eight of a vector of channels, as far as it needs no registers but those of FREED."""
        one, three = (self._weights + register for register in FREED)
        first, size = vector * self.bits * LANES, BYTES * self.bits // 8 if self.bits != 3 else LANES
        lines = [f"ldr ${{{three}:{KINDS[size]}}}, [{self._given(0)}, #{first + half * size}]"]
        if self.bits == 3:
            lines.append(f"ldr ${{{one}:s}}, [{self._given(0)}, #{first + 2 * LANES}]")
            lines += [f"ushr ${one}.8b, ${one}.8b, #{FOUR}"] * half
        return [*lines, *self._named(UNPACK[self.bits][0])]

    def _floats(self, vector: int) -> list[str]:
        """The rest of what unpacks, and scales."""
        lines = self._named(UNPACK[self.bits][1])
        if self.scaled:
            names, scale = self._named([f"{{{i}}}.4s" for i in range(FOUR)]), self._given(1 + len(self.apart) + vector)
            lines += [f"fmul {name}, {name}, {scale}.4s" for name in names]
        return lines

    def _named(self, lines: Sequence[str]) -> list[str]:
        """Lines of :data:`UNPACK` with the names of registers."""
        first = 1 + len(self.apart) + self._scales
        constants = {name: self._given(first + index) for index, name in enumerate(self.constants)}
        return [line.format(*(f"${self._weights + index}" for index in range(FOUR)), **constants) for line in lines]

    def _multiply(self, vector: int, lane: int) -> list[str]:
        """A vector of weights times one element of every pixel."""
        weight, rows = f"${self._weights + lane}.4s", range(self.pixels)
        return [f"fmla ${p * self.vectors + vector}.4s, {weight}, ${self._input(p)}.s[{lane}]" for p in rows]

    @property
    def _sums(self) -> int:
        return self.pixels * self.vectors

    @property
    def _scales(self) -> int:
        return self.vectors if self.scaled else 0

    def _input(self, pixel: int) -> int:
        return self._sums + pixel

    @property
    def _weights(self) -> int:
        return self._sums + self.pixels

    def _given(self, index: int) -> str:
        """An address, a scale or a constant, which come behind all results."""
        return f"${self._sums + self.temporaries + index}"

    def function(self, name: str) -> str:
        """LLVM's IR of ``name(sums, weights, inputs …, scales …, constants …)``, which adds to the sums.

        Their memory becomes registers once the function is inlined.
        """
        results, loads = self._sums + self.temporaries, 1 + len(self.apart)
        given = [f"ptr %a{i}" for i in range(loads)]
        given += [f"{VECTOR} %s{i}" for i in range(self._scales)]
        given += [f"<{BYTES} x i8> %c{i}" for i in range(len(self.constants))]
        # registers by number: with so few left the compiler finds no others
        constraints = [f"=&{{v{register}}}" for register in range(results)] + ["r"] * loads
        constraints += [f"{{v{results + index}}}" for index in range(len(given) - loads)]
        constraints += [*map(str, range(self._sums)), "~{memory}"]
        kind, text = "{ " + ", ".join([VECTOR] * results) + " }", "\\0A".join(self.lines)
        lines = [f"define linkonce_odr hidden void @{name}({', '.join(['ptr %sums', *given])}) alwaysinline {{"]
        for index in range(self._sums):
            lines += [
                f"  %p{index} = getelementptr i8, ptr %sums, i64 {BYTES * index}",
                f"  %v{index} = load {VECTOR}, ptr %p{index}, align 4",
            ]
        sums = [f"{VECTOR} %v{index}" for index in range(self._sums)]
        values = ", ".join(given + sums)
        lines.append(f'  %r = call {kind} asm sideeffect "{text}", "{",".join(constraints)}"({values})')
        for index in range(self._sums):
            lines += [
                f"  %w{index} = extractvalue {kind} %r, {index}",
                f"  store {VECTOR} %w{index}, ptr %p{index}, align 4",
            ]
        return "\n".join([*lines, "  ret void", "}", ""])


def _between(lines: Sequence[str], others: Sequence[str]) -> list[str]:
    """``lines`` with ``others`` spread out between them."""
    places = [(index / len(lines), line) for index, line in enumerate(lines)]
    places += [((index + 0.5) / len(others), line) for index, line in enumerate(others)]
    return [line for _, line in sorted(places, key=lambda each: each[0])]


def fits(conv: Conv) -> bool:
    """Whether ``conv`` is for this module: many pixels, whose inputs are read in eights of neighbours."""
    assert conv.packing is not None
    (_, run, step), pixels = PackedPlan(conv, 1, 1, 1, LANES).runs, conv.out_height * conv.out_width
    return not conv.packing.nested and pixels > 1 and step == 1 and run >= EIGHT


def plan(conv: Conv, target: Target) -> PackedPlan:
    """The register tile of the fewest instructions."""
    return candidates(conv, target)[0]


def candidates(conv: Conv, target: Target) -> list[PackedPlan]:
    """Every register tile that fits, that of the fewest instructions first."""
    return sorted(_register_tiles(conv), key=lambda p: (_instructions(p), p.rows, p.columns))


def _register_tiles(conv: Conv) -> Iterator[PackedPlan]:
    for vectors in range(1, min(8, -(-conv.out_channels // LANES)) + 1):
        for columns in range(1, min(conv.out_width, REGISTERS) + 1):
            for rows in range(1, conv.out_height + 1):
                p = PackedPlan(conv, rows, columns, vectors, LANES)
                tile = [_products(p, bits, rows, columns, vectors) for bits, _ in p.shares]
                if max(each.registers for each in tile) > REGISTERS:
                    break
                yield p


def _products(p: PackedPlan, bits: int, rows: int, columns: int, vectors: int) -> Products:
    """Those of a tile of so many pixels and vectors of channels, and weights of ``bits``."""
    _, h_step, w_step, _ = p.conv.input_strides
    down, right = (step * along * 4 for step, along in zip((h_step, w_step), p.conv.stride, strict=True))
    offsets = tuple(row * down + column * right for row in range(rows) for column in range(columns))
    return Products(bits, offsets, vectors, bool(p.group))


def _instructions(p: PackedPlan) -> float:
    """Instructions, about, of the whole convolution."""
    conv, total = p.conv, 0.0
    for _, rows, row_tiles in tiles(conv.out_height, p.rows):
        for _, columns, column_tiles in tiles(conv.out_width, p.columns):
            for _, channels, blocks in tiles(conv.out_channels, p.block):
                vectors, work = len(p.widths(channels)), 0.0
                for bits, share in p.shares:
                    products = _products(p, bits, rows, columns, vectors)
                    work += share * (len(products.lines) + EIGHT_OVERHEAD + len(products.apart))
                around = EPILOGUE * rows * columns * vectors + TILE_OVERHEAD
                total += row_tiles * column_tiles * blocks * (p.depth / EIGHT * work + around)
    return total


def generate(p: PackedPlan, dtypes: list[str]) -> Any:
    """The kernel, as ``tirx.PrimFunc``."""
    kernel = Kernel(dtypes, special)
    _Writer(p, kernel).write()
    return kernel.function()


class _Writer(PackedWriter):
    def _eight(self, acc: Accumulators, source: Any, weights: Any, start: Any, step: int, count: int) -> None:
        if count < EIGHT or len(acc.points) == 1:
            super()._eight(acc, source, weights, start, step, count)
            return
        scales = [self._scale(start, first, LANES, sum(acc.widths)) for first in starts(acc.widths)]
        last = acc.points[-1]
        products = _products(self.plan, self.unpacker.bits, last.row + 1, last.column + 1, len(acc.widths))
        inputs = [address(self.input, source + products.offsets[pixel] // 4) for pixel in products.apart]
        name = self.kernel.import_function(products, products.function)
        given = [address(acc.buffer, tirx.const(0, "int32")), address(self.weight, weights), *inputs]
        given += [scale for scale in scales if scale is not None]
        given += [_constant(value) for value in products.constants.values()]
        self.body.emit(stmt.Evaluate(tirx.call_extern("void", name, *given)))


def _constant(values: np.ndarray) -> Any:
    """uint8 [16] as a vector."""
    words = join([tirx.const(int(word), "int32") for word in values.view("<i4")])
    return tirx.reinterpret(f"uint8x{BYTES}", words)
