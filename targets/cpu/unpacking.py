"""Integer weights of 8, 4, 3 or 2 bits: how up to eight of them lie in bytes, and code that takes them out of these in
registers, for any processor.

Eight neighbours along the depth take ``bits`` vectors of bytes, of a vector of channels each, which hold, from the
lowest bit,

* 4 bits: the elements 0 and 1, 2 and 3, 4 and 5, 6 and 7;
* 2 bits: the elements 0 to 3, 4 to 7;
* 3 bits: the lower two bits of all eight in two bytes, as above, and the eight highest bits in a third;
* 8 bits: a byte an element.

Fewer are cut short to the bytes that they need. Nested weights are two such of 4 bits, 16 · upper + lower.

For sums of integers a field is moved to the top of an int32 and back down, which extends its sign: two shifts. For
floats it becomes the lowest bits of the significand of a power of two, its sign bit turned, and what was added so is
subtracted: two instructions instead of two shifts and a conversion.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from edgec.building.lazy_tvm import tirx
from edgec.program import SCALE_CHANNELS, Packing
from edgec.targets.cpu.tile import load_channels
from edgec.targets.cpu.tir import Body, lanes_of, widen

EIGHT = 8


def bytes_of(count: int, bits: int) -> int:
    """Bytes that ``count`` elements of an eight take."""
    if bits == 3:
        return -(-count // 4) + (count > 0)
    return -(-count * bits // EIGHT)


def in_bytes(eight: np.ndarray, bits: int) -> np.ndarray:
    """Up to eight elements uint8 [count, lanes], of which the lowest bits count, as [bytes_of(count, bits), lanes]."""
    if bits == 8:
        return eight
    if bits == 3:
        high = np.zeros((1, eight.shape[1]), np.uint8)
        for index, row in enumerate(eight):
            high[0] |= (row >> 2 & 1) << index
        return np.concatenate([in_bytes(eight & 3, 2), high])
    each = EIGHT // bits
    found = np.zeros((-(-len(eight) // each), eight.shape[1]), np.uint8)
    for index, row in enumerate(eight):
        found[index // each] |= (row & (2**bits - 1)) << (bits * (index % each))
    return found


def nibbles(weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The upper and the lower ones of nested weights, int8."""
    upper = (weight.astype(np.int16) + 8 >> 4).astype(np.int8)
    return upper, weight - 16 * upper


class Unpacker:
    """Takes elements of ``bits`` out of the bytes of ``buffer``, as vectors of channels in ``dtype``."""

    def __init__(self, body: Body, buffer: Any, bits: int, dtype: str) -> None:
        self.body, self.buffer, self.bits, self.dtype = body, buffer, bits, dtype

    def byte(self, offset: Any, width: int) -> Any:
        """A vector of bytes as int32."""
        return self.body.hold(load_channels(self.buffer, offset, width).astype(vector("int32", width)))

    def element(self, planes: list[list[Any]], element: int, width: int) -> Any:
        """One element of an eight, whose bytes are given; of nested weights those of each nibble, the upper one's
        first."""
        return joined(self.body, [self._number(row, element, width) for row in planes])

    def _number(self, row: list[Any], element: int, width: int) -> Any:
        """The element as it stands in one plane."""
        bits, dtype = self.bits, self.dtype
        if bits == 8:
            return self.body.hold(_extended(row[element], 0, 8, width).astype(vector(dtype, width)))
        field, first = self._field(row, element, width)
        if dtype == "float32":
            return self.body.hold(_real(field, first, bits, width))
        return self.body.hold(_extended(field, first, bits, width).astype(vector(dtype, width)))

    def _field(self, row: list[Any], element: int, width: int) -> tuple[Any, int]:
        """int32 whose bits from the second result on are the element's, with others around them."""
        bits = self.bits
        if bits != 3:
            each = EIGHT // bits
            return row[element // each], bits * (element % each)
        first = 2 * (element % 4)
        low = tirx.bitwise_and(row[element // 4], same(3 << first, width))
        turn = first + 2 - element
        shift = tirx.shift_left if turn >= 0 else tirx.shift_right
        high = tirx.bitwise_and(shift(row[-1], same(abs(turn), width)), same(4 << first, width))
        return tirx.bitwise_or(low, high), first


def joined(body: Body, planes: Sequence[Any]) -> Any:
    """A vector of weights; of nested ones the floats of each nibble are given, the upper one's first."""
    whole, *lower = planes
    for each in lower:
        whole = body.hold(whole * widen(tirx.const(16.0, "float32"), lanes_of(whole)) + each)
    return whole


def scales(buffer: Any, packing: Packing, element: Any, out_channels: int, channel: Any, width: int) -> Any:
    """The scales of the channels from ``channel`` on for an ``element`` along the depth, as floats (see
    :class:`edgec.program.Packing`)."""
    group = tirx.truncdiv(element + tirx.const(0, "int32"), tirx.const(packing.group, "int32"))
    row = -(-out_channels // SCALE_CHANNELS) * SCALE_CHANNELS
    value = as_floats(load_channels(buffer, group * row + channel, width), buffer.dtype)
    if packing.nested and packing.bits == 4:  # the upper nibbles count sixteens
        value = value * same(16, width, "float32")
    return value


def as_floats(value: Any, dtype: str) -> Any:
    """Scales in the ``dtype`` in which they are stored, bfloat16 in a uint16 or float32, as float32."""
    if dtype != "uint16":
        return value
    width = lanes_of(value)
    wide = tirx.shift_left(value.astype(vector("uint32", width)), same(16, width, "uint32"))
    return tirx.reinterpret(vector("float32", width), wide)


def vector(dtype: str, width: int) -> str:
    """The type of ``width`` lanes."""
    return dtype if width == 1 else f"{dtype}x{width}"


def same(value: int, width: int, dtype: str = "int32") -> Any:
    """``value`` in ``width`` lanes."""
    return widen(tirx.const(value, dtype), width)


def _extended(word: Any, first: int, bits: int, width: int) -> Any:
    """``bits`` of each int32 from bit ``first`` on, as signed integers."""
    top = tirx.shift_left(word, same(32 - bits - first, width))
    return tirx.shift_right(top, same(32 - bits, width))


def _real(word: Any, first: int, bits: int, width: int) -> Any:
    """``bits`` of each int32 from bit ``first`` on, as signed integers in float32.

    Below 2^(23 - first), whose significand counts in steps of 2^-first, they count ones.
    """
    half, base = 2 ** (bits - 1), np.float32(2.0 ** (23 - first))
    field = tirx.bitwise_and(word, same((2**bits - 1) << first, width))
    turned = tirx.bitwise_xor(field, same(int(base.view(np.int32)) | half << first, width))
    offset = widen(tirx.const(float(base) + half, "float32"), width)
    return tirx.reinterpret(vector("float32", width), turned) - offset
