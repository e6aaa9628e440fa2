"""Entropy coding of an artifact's weights: canonical Huffman codes, which libedgert decodes when it opens the file.

The form is ``edgert_coded`` of ``runtimes/c/include/edgert/model.h``. Bytes are the symbols, since every weight is
whole ones or a share of one; those of wider elements are coded place by place, for exponents repeat and mantissas do
not. What does not become smaller is stored as it is.

Huffman, "A Method for the Construction of Minimum-Redundancy Codes" (1952); Larmore and Hirschberg, "A Fast Algorithm
for Optimal Length-Limited Huffman Codes" (1990), package-merge.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from edgec.data.samples import Array
from edgec.format.descriptor import Image
from edgec.program import Buffer

LONGEST = 11
"""Bits of the longest code; the decoder's table has an entry for each value of so many bits."""
STORED = 0xFFFF
"""In place of a table: the bytes as they are."""
HEADER = struct.Struct("<II")
RUN = struct.Struct("<IIIHH")
"""Offset of the first byte, how many, bytes of their code, distance from one to the next, table."""

_TABLE_BYTES = 128
_OWN_TABLE = 4096
_RUN_SYMBOLS = 1 << 20


@dataclass(frozen=True)
class _Plane:
    """The bytes at one place of all elements of a constant.

    Attributes:
        start: of the first, in the image.
        step: from one to the next.
        symbols: [elements] uint8.
    """

    start: int
    step: int
    symbols: Array


class _Coded:
    """Tables, runs and the runs' codes, as they are added."""

    def __init__(self) -> None:
        self.tables: list[bytes] = []
        self.runs: list[bytes] = []
        self.codes: list[bytes] = []

    def add_table(self, lengths: Array) -> None:
        self.tables.append(bytes((lengths[0::2] | lengths[1::2] << 4).astype(np.uint8)))

    def add(self, plane: _Plane, lengths: Array | None) -> None:
        """A plane by the last table, whose lengths are given, or as it is."""
        table = STORED if lengths is None else len(self.tables) - 1
        for first in range(0, len(plane.symbols), _RUN_SYMBOLS):
            part = plane.symbols[first : first + _RUN_SYMBOLS]
            code = part.tobytes() if lengths is None else _encode(part, lengths)
            self.runs.append(RUN.pack(plane.start + first * plane.step, len(part), len(code), plane.step, table))
            self.codes.append(code)

    def data(self) -> bytes:
        return b"".join([HEADER.pack(len(self.tables), len(self.runs)), *self.tables, *self.runs, *self.codes])


def code_weights(image: Image, constants: Sequence[Buffer]) -> bytes:
    """``image`` in coded form.

    Args:
        image: the constants as :func:`edgec.format.descriptor.lay_out` arranges them, less than 4 GiB.
        constants: the same ones, for the width of their elements.
    """
    data = np.frombuffer(image.data, np.uint8)
    planes = [_planes(image.offsets[id(buffer)], buffer, data) for buffer in constants]
    made, coded = _Coded(), set[int]()
    for group in _groups(constants, planes):
        lengths = _worthwhile(group)
        if lengths is None:
            continue
        made.add_table(lengths)
        for plane in group:
            made.add(plane, lengths)
            coded.add(plane.start)
    position = 0
    for own in planes:
        if not coded.intersection(plane.start for plane in own):
            continue
        for plane in own:
            if plane.start not in coded:
                made.add(plane, None)
        _add_rest(made, data, position, own[0].start)
        position = own[0].start + own[0].step * len(own[0].symbols)
    _add_rest(made, data, position, len(data))
    return made.data()


def _planes(start: int, buffer: Buffer, data: Array) -> list[_Plane]:
    width = np.dtype(buffer.dtype).itemsize
    own = data[start : start + buffer.nbytes]
    return [_Plane(start + place, width, own[place::width]) for place in range(width)] if len(own) else []


def _groups(constants: Sequence[Buffer], planes: Sequence[Sequence[_Plane]]) -> list[list[_Plane]]:
    """Planes that share a code: large ones have their own, the others one of each dtype and place."""
    groups: dict[tuple[object, ...], list[_Plane]] = {}
    for buffer, own in zip(constants, planes, strict=True):
        for place, plane in enumerate(own):
            key = (plane.start,) if len(plane.symbols) >= _OWN_TABLE else (buffer.dtype, place)
            groups.setdefault(key, []).append(plane)
    return list(groups.values())


def _worthwhile(group: Sequence[_Plane]) -> Array | None:
    """The lengths of a code that makes the planes smaller, table and heads included; None where there is none."""
    counts = np.sum([np.bincount(plane.symbols, minlength=256) for plane in group], axis=0)
    plain = int(counts.sum())
    room = 8 * (plain - _TABLE_BYTES - 2 * RUN.size * len(group))
    shares = counts[counts > 0] / plain
    if plain * -float(shares @ np.log2(shares)) >= room:
        return None
    lengths = code_lengths(counts)
    return lengths if int(counts @ lengths) < room else None


def _add_rest(made: _Coded, data: Array, start: int, end: int) -> None:
    """Constants that are stored as they are, with the zeros between them; the decoder starts from zeros."""
    if data[start:end].any():
        made.add(_Plane(start, 1, data[start:end]), None)


def code_lengths(counts: Array) -> Array:
    """The bits of each symbol's code: the shortest in sum with none longer than :data:`LONGEST`.

    Args:
        counts: [256], how often each symbol occurs.

    Returns:
        [256] uint8, 0 for symbols that do not occur. At least two have a code, so that the codes are complete.
    """
    used = [int(symbol) for symbol in np.flatnonzero(counts)]
    used += [symbol for symbol in range(2) if symbol not in used][: max(0, 2 - len(used))]
    leaves = sorted((int(counts[symbol]), (symbol,)) for symbol in used)
    packages: list[tuple[int, tuple[int, ...]]] = []
    for _ in range(LONGEST):
        pairs = zip(packages[0::2], packages[1::2], strict=False)
        packages = sorted([*leaves, *((a[0] + b[0], a[1] + b[1]) for a, b in pairs)], key=lambda each: each[0])
    lengths = np.zeros(256, np.uint8)
    for _, symbols in packages[: 2 * len(used) - 2]:
        np.add.at(lengths, list(symbols), 1)
    return lengths


def _codes(lengths: Array) -> Array:
    """The canonical code of each symbol: in the order of lengths, then of symbols."""
    codes = np.zeros(256, np.int64)
    code, last = 0, 0
    for symbol in sorted(np.flatnonzero(lengths), key=lambda each: (lengths[each], each)):
        code <<= int(lengths[symbol]) - last
        codes[symbol], last = code, int(lengths[symbol])
        code += 1
    return codes


def _encode(symbols: Array, lengths: Array) -> bytes:
    """The codes of ``symbols`` one after the other, the first bit the highest of the first byte."""
    places = np.arange(LONGEST)
    own = lengths.astype(np.int64)[:, None]
    bits = (_codes(lengths)[:, None] >> np.maximum(own - 1 - places, 0) & 1).astype(np.uint8)
    there = places < own
    chunks = (symbols[first : first + 65536] for first in range(0, len(symbols), 65536))
    return np.packbits(np.concatenate([bits[chunk][there[chunk]] for chunk in chunks])).tobytes()
