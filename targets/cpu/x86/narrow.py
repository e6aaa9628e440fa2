"""Requantisation by x86 instructions: one rounding conversion, and packs that saturate, four vectors at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from edgec.building.lazy_tvm import tirx
from edgec.nest import looked_up
from edgec.scalar import Expr
from edgec.targets.cpu.math import Bind, constant
from edgec.targets.cpu.tir import Special, join, lanes_of, part, vector_load
from edgec.targets.cpu.x86.isa import Isa, instruction, nearest, pack_bytes, pack_words, saturated_sum

GROUP = 4
"""int32 vectors that fill one vector of bytes."""
REGISTER_BYTES = 64
TABLE = 256
"""Entries of a table of bytes."""


@dataclass(frozen=True)
class Narrowing:
    """A byte as clamp(round_half_even(real) + zero), or as a clamped int32 (``zero`` is None).

    ``value`` is the real number, or the integer; ``bounded`` says that the number surely fits an int32.
    """

    value: Expr
    zero: int | None
    low: int
    high: int
    dtype: str
    bounded: bool = False


def narrowing(node: Expr) -> Narrowing | None:
    """``node`` as a :class:`Narrowing`, if it is one."""
    if node.dtype not in ("int8", "uint8"):
        return None
    if node.op == "saturate":
        return _saturation(node)
    limits = np.iinfo(node.dtype)
    low, high, inner, clamps = int(limits.min), int(limits.max), node.args[0], set()
    if node.op != "cast" or inner.dtype != "int32":
        return None
    while inner.op in ("min", "max") and inner.args[1].op == "const":
        bound = inner.args[1].args[0]
        low, high = (low, min(high, bound)) if inner.op == "min" else (max(low, bound), high)
        clamps.add(inner.op)
        inner = inner.args[0]
    return Narrowing(inner, None, low, high, node.dtype) if clamps == {"min", "max"} and low <= high else None


def _saturation(node: Expr) -> Narrowing:
    value, zero, low, high, bits = node.args
    return Narrowing(value, zero, low, high, node.dtype, bits > 0)


def whole(narrow: Narrowing, value: Any) -> Any:
    """One vector of values as int32, without the zero point; it is right up to the saturation of int16.

    What is not ``bounded`` is at most the highest result already.
    """
    if narrow.zero is None:
        return value
    if narrow.bounded:
        return nearest(value)
    # the conversion makes the least integer of all that it cannot hold, which is right below and for NaN
    most = constant(float(narrow.high - narrow.zero), value)
    return nearest(tirx.Select(most < value, most, value))


def bytes_of(narrow: Narrowing, values: Sequence[Any], turns: int = 1) -> Any:
    """One to four vectors (of one register each) as the bytes of all of them, in order.

    ``turns`` vectors share the elements of a run, each of them four at a time (see :class:`.tir.Emitter`). All four
    do so in the order in which packs take 128 bits of each vector in turn.
    """
    wholes = [whole(narrow, value) for value in values]
    lanes, count = lanes_of(wholes[0]), len(wholes)
    wholes += [wholes[-1]] * (-count % 2)
    packed = _bytes(narrow, [pack_words(*wholes[index : index + 2]) for index in range(0, len(wholes), 2)])
    if lanes == GROUP:
        return part(packed, 0, count * lanes)
    # the groups of four bytes go back to where they belong
    groups = tirx.reinterpret(f"int32x{lanes}", packed)
    runs, chunks = range(0, count, turns), range(lanes // GROUP)
    order = [chunk * GROUP + run + vector for run in runs for chunk in chunks for vector in range(turns)]
    ordered = tirx.Shuffle([groups], [tirx.const(index, "int32") for index in order])
    return tirx.reinterpret(f"{narrow.dtype}x{count * lanes}", ordered)


def _bytes(narrow: Narrowing, words: Sequence[Any]) -> Any:
    """One or two vectors of int16, without the zero point, as one of bytes."""
    limits = np.iinfo(narrow.dtype)
    if narrow.low == narrow.zero:
        # nothing is below 0 before the zero point is added, so that the pack for unsigned bytes clamps
        value = pack_bytes(words[0], words[-1], "uint8")
        first = narrow.zero - limits.min
        value = saturated_sum(value, constant(first, value)) if first else value
        if narrow.dtype == "int8":
            value = tirx.reinterpret(f"int8x{lanes_of(value)}", tirx.bitwise_xor(value, constant(128, value)))
    else:
        if narrow.zero:
            words = [saturated_sum(x, constant(narrow.zero, x)) for x in words]
        value = pack_bytes(words[0], words[-1], narrow.dtype)
        value = tirx.max(value, constant(narrow.low, value)) if narrow.low > limits.min else value
    return tirx.min(value, constant(narrow.high, value)) if narrow.high < limits.max else value


def special(isa: Isa) -> Special:
    """The code of x86 for the nodes of an expression."""
    return partial(_special, isa)


def _special(isa: Isa, node: Expr, value_of: Callable[[Expr], Any], operands: Sequence[Any], bind: Bind) -> Any | None:
    byte = looked_up(node)
    if byte is not None:
        return _lookup(isa, operands[node.args[0]], value_of(byte), bind)
    found = narrowing(node)
    if found is not None:
        return _narrow(isa, found, value_of(found.value), bind)
    if node.op == "saturate" and node.dtype == "int32" and lanes_of(value_of(node.args[0])) % GROUP == 0:
        return _round(isa, _saturation(node), value_of(node.args[0]), bind)
    return None


def _registers(isa: Isa, value: Any) -> list[Any]:
    """``value`` in vectors of one register; shorter than one where it is shorter itself."""
    lanes = min(isa.lanes, lanes_of(value))
    return [part(value, first, lanes) for first in range(0, lanes_of(value), lanes)]


def _narrow(isa: Isa, narrow: Narrowing, value: Any, bind: Bind) -> Any | None:
    if lanes_of(value) % GROUP:
        return None
    vectors = _registers(isa, bind(value))
    return join([bytes_of(narrow, vectors[index : index + GROUP]) for index in range(0, len(vectors), GROUP)])


def _round(isa: Isa, narrow: Narrowing, value: Any, bind: Bind) -> Any:
    """A saturated int32, for what reads it again."""
    assert narrow.zero is not None
    rounded = [whole(narrow, vector) for vector in _registers(isa, bind(value))]
    if narrow.bounded:
        rounded = [tirx.min(x, constant(narrow.high - narrow.zero, x)) for x in rounded]
    # the least integer is below every bound, and a sum with it must not wrap
    total = join([tirx.max(x, constant(narrow.low - narrow.zero, x)) for x in rounded])
    return total + constant(narrow.zero, total) if narrow.zero else total


def _lookup(isa: Isa, table: Any, byte: Any, bind: Bind) -> Any | None:
    """Bytes from a table of 256 by the bytes of a register: two permutations of 128 entries, and a choice."""
    lanes = lanes_of(byte)
    if not isa.vbmi or lanes != REGISTER_BYTES:
        return None
    dtype = str(table.dtype)
    kind, index = f"{dtype}x{lanes}", bind(tirx.reinterpret(f"uint8x{lanes}", byte))
    rows = [bind(vector_load(table, tirx.const(first, "int32"), lanes)) for first in range(0, TABLE, lanes)]
    low, high = (
        bind(instruction(kind, "x86.avx512.vpermi2var.qi.512", rows[half], index, rows[half + 1])) for half in (0, 2)
    )
    # an index of int8 counts from the least one, so that its highest bit is turned
    first = tirx.LT(index, constant(128, index))
    return tirx.Select(first, low, high) if str(byte.ty.dtype).startswith("uint8") else tirx.Select(first, high, low)
