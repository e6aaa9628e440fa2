"""NEON in TIR: instructions by their names, on vectors of one register, and the operators that are made of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from edgec.building.lazy_tvm import tirx
from edgec.nest import looked_up
from edgec.scalar import WORD, Expr
from edgec.targets.cpu.math import Bind, constant, vector_type
from edgec.targets.cpu.tir import join, lanes_of, part, vector_load, widen

BYTES = 16
"""Bytes in a register."""

Values = Callable[[Expr], Any]
"""The TIR value of an expression's argument."""


def instruction(dtype: str, name: str, *args: Any) -> Any:
    """An instruction by LLVM's name for it, without side effects."""
    return tirx.call_llvm_pure_intrin(dtype, f"llvm.{name}", *args)


def split(value: Any, lanes: int) -> list[Any]:
    """``value`` in parts of ``lanes``."""
    return [part(value, first, lanes) for first in range(0, lanes_of(value), lanes)]


def repeated(value: Any, group: int) -> Any:
    """Bytes ``4 · group`` to ``4 · group + 3`` of an int8x16 in each of the vector's four groups of four."""
    words = tirx.reinterpret("int32x4", value)
    return tirx.reinterpret("int8x16", tirx.Shuffle([words], [tirx.const(group, "int32")] * 4))


def half_of(value: Any, half: int) -> Any:
    """The int4 in the lower (0) or upper (1) half of each byte, as int8 (``shl``, ``sshr``)."""
    four = constant(4, value)
    top = tirx.shift_left(value, four) if half == 0 else value
    return tirx.shift_right(top, four)


def turned(value: Any, by: int, lanes: int) -> Any:
    """The first ``lanes`` of a vector, turned ``by`` lanes toward the first (``ext``); the others do not matter."""
    order = [(lane + by) % lanes if lane < lanes else lane for lane in range(lanes_of(value))]
    return tirx.Shuffle([value], [tirx.const(lane, "int32") for lane in order])


def zipped(left: Any, right: Any, first: int, count: int) -> Any:
    """``count`` elements of two vectors from ``first`` on, in turns (``zip1``, ``zip2``)."""
    lanes = lanes_of(left)
    order = [lane for index in range(first, first + count) for lane in (index, lanes + index)]
    return tirx.Shuffle([left, right], [tirx.const(lane, "int32") for lane in order])


def dot(total: Any, left: Any, right: Any) -> Any:
    """``total`` int32x4 plus the products of int8x16, summed in groups of four (``sdot``)."""
    return instruction("int32x4", "aarch64.neon.sdot.v4i32.v16i8", total, left, right)


def matrix_product(total: Any, left: Any, right: Any) -> Any:
    """``total`` int32 [2, 2] plus int8 ``left`` [2, 8] times ``right`` [2, 8] transposed (``smmla``)."""
    return instruction("int32x4", "aarch64.neon.smmla.v4i32.v16i8", total, left, right)


def long_product(left: Any, right: Any) -> Any:
    """Products of int8x8 as int16x8 (``smull``)."""
    return instruction("int16x8", "aarch64.neon.smull.v8i16", left, right)


def pair_sums(value: Any) -> Any:
    """Sums of neighbouring lanes of int16x8 as int32x4 (``saddlp``; with an addition ``sadalp``)."""
    return instruction("int32x4", "aarch64.neon.saddlp.v4i32.v8i16", value)


def neighbour_sums(left: Any, right: Any) -> Any:
    """Sums of neighbouring lanes of two int32x4, those of ``left`` first (``addp``)."""
    return instruction("int32x4", "aarch64.neon.addp.v4i32", left, right)


def special(node: Expr, value_of: Values, operands: Sequence[Any], bind: Bind) -> Any | None:
    """NEON code for ``node``, where it is shorter than what the compiler finds by itself; else None."""
    byte = looked_up(node)
    if byte is not None:
        return _lookup(operands[node.args[0]], value_of(byte), bind)
    if node.op == "saturate":
        return saturate(node, value_of(node.args[0]), bind)
    if node.op == "cast" and node.dtype in ("int8", "uint8"):
        return _narrow_clamped(node, value_of)
    if node.op in ("max", "min") and node.dtype in ("float32", "float16"):
        return _extreme(node.op, *map(value_of, node.args))
    return None


def _extreme(op: str, left: Any, right: Any) -> Any | None:
    """The larger or smaller of two vectors of floats that fill registers, NaN where one is NaN (``fmax``, ``fmin``)."""
    kind, lanes = _kind(left), max(lanes_of(left), lanes_of(right))
    bits = 8 * np.dtype(kind).itemsize
    if lanes * bits % (8 * BYTES):
        return None
    name, values = f"{op}imum.v{lanes}f{bits}", (widen(value, lanes) for value in (left, right))
    return instruction(vector_type(kind, widen(left, lanes)), name, *values)


_WIDE = {"int16": "sqxtn", "uint16": "sqxtun"}
"""Integers of 16 bits, and what narrows int32 to them."""


def saturate(node: Expr, value: Any, bind: Bind) -> Any | None:
    """See :func:`edgec.scalar.saturate`: one rounding conversion, and narrowing instructions that saturate."""
    real, zero, low, high, bits = node.args
    if lanes_of(value) % 4:
        return None
    parts = split(bind(value), 4)
    if bits == WORD and node.dtype in ("int8", "uint8"):
        return _clamp(_narrow_words(parts, zero, node.dtype, bind), low, high)
    if not _is_number(real) and low != zero:  # of NaN the conversion makes 0, which becomes ``zero``
        parts = [instruction("float32x4", "maxnum.v4f32", x, constant(float(low - zero), x)) for x in parts]
    whole = [instruction("int32x4", "aarch64.neon.fcvtns.v4i32.v4f32", x) for x in parts]
    if node.dtype == "int32":
        # the clamp comes first, so that the addition of a constant joins what multiplies the result
        return join([_clamp(x, low - zero, high - zero) + constant(zero, x) for x in whole])
    if node.dtype in _WIDE:
        moved = [_plus(x, zero, "v4i32") for x in whole]
        name = _WIDE[node.dtype]
        narrow = join([instruction(f"{node.dtype}x4", f"aarch64.neon.{name}.v4i16", x) for x in moved])
        return _clamp(narrow, low, high)
    return _clamp(_narrow(whole, zero, node.dtype), low, high)


def _is_number(real: Expr) -> bool:
    """Whether ``real`` is an integer times a scale, which is finite, and so is not NaN."""
    if real.op != "mul":
        return False
    left, right = real.args
    return left.op == "cast" and not left.args[0].dtype.startswith("float") and right.op in ("const", "load")


def _narrow_words(parts: Sequence[Any], zero: int, dtype: str, bind: Bind) -> Any:
    """float32x4 vectors, rounded, plus ``zero`` as 8-bit integers, saturated; all of these fit 16 bits.

    Next to 1.5 · 2^23 a float32 has no fraction, so that a sum rounds, and its lower half is the integer: with an even
    ``zero``, whose addition leaves the tie between two integers to the same one, that of the result.
    """
    apart = zero % 2
    middle = constant(1.5 * 2**23 + (0 if apart else zero), parts[0])
    # the fence keeps the product and the sum from being rounded as one
    fenced = [instruction("float32x4", "arithmetic.fence.v4f32", x) for x in parts]
    halves = [tirx.reinterpret("int16x8", bind(x + middle)) for x in fenced]
    pairs = [halves[index : index + 2] for index in range(0, len(halves), 2)]
    wide = [tirx.Shuffle(pair, [tirx.const(lane, "int32") for lane in range(0, 8 * len(pair), 2)]) for pair in pairs]
    if apart:
        wide = [x + constant(zero, x) for x in wide]
    return _bytes(wide, dtype)


def _narrow(parts: Sequence[Any], zero: int, dtype: str) -> Any:
    """int32x4 vectors plus ``zero`` as 8-bit integers, saturated.

    The sums of int16 saturate too, far outside the range of the result. −128 below an int8 is the sign bit of
    a uint8, turned.
    """
    halves = [instruction("int16x4", "aarch64.neon.sqxtn.v4i16", x) for x in parts]
    wide = [join(halves[index : index + 2]) for index in range(0, len(halves), 2)]
    if dtype == "uint8" or zero != -128:
        return _bytes([_plus(x, zero, f"v{lanes_of(x)}i16") for x in wide], dtype)
    narrow = _bytes(wide, "uint8")
    return tirx.reinterpret(vector_type("int8", narrow), tirx.bitwise_xor(narrow, constant(128, narrow)))


def _bytes(wide: Sequence[Any], dtype: str) -> Any:
    """int16x8 vectors, the last one perhaps of fewer lanes, as 8-bit integers, saturated."""
    lanes = sum(lanes_of(x) for x in wide)
    wide = [x if lanes_of(x) == 8 else join([x, x]) for x in wide]
    name = "sqxtn" if dtype == "int8" else "sqxtun"
    return part(join([instruction(f"{dtype}x8", f"aarch64.neon.{name}.v8i8", x) for x in wide]), 0, lanes)


def _plus(value: Any, amount: int, kind: str) -> Any:
    """``value`` plus a constant, saturated."""
    if not amount:
        return value
    return instruction(str(value.ty.dtype), f"aarch64.neon.sqadd.{kind}", value, constant(amount, value))


def _clamp(value: Any, low: int, high: int) -> Any:
    """``value`` in [low, high], as far as its dtype does not see to that."""
    limits = np.iinfo(_kind(value))
    value = tirx.max(value, constant(low, value)) if low > limits.min else value
    return tirx.min(value, constant(high, value)) if high < limits.max else value


def _lookup(table: Any, byte: Any, bind: Bind) -> Any | None:
    """Bytes from a table of 256 by the bytes of a register, 64 entries an instruction (``tbl``, ``tbx``)."""
    if lanes_of(byte) != BYTES:
        return None
    kind = f"{table.dtype}x{BYTES}"
    index = tirx.reinterpret("uint8x16", byte)
    if _kind(byte) == "int8":
        index = tirx.bitwise_xor(index, constant(128, index))
    index, result = bind(index), None
    for first in range(0, 256, 4 * BYTES):
        rows = [vector_load(table, tirx.const(first + BYTES * row, "int32"), BYTES) for row in range(4)]
        if result is None:
            result = instruction(kind, "aarch64.neon.tbl4.v16i8", *rows, index)
        else:
            # out of range for the other quarters, where tbx leaves what is there
            own = index - constant(first, index)
            result = instruction(kind, "aarch64.neon.tbx4.v16i8", result, *rows, own)
    return result


def _kind(value: Any) -> str:
    return str(value.ty.dtype).partition("x")[0]


def _narrow_clamped(node: Expr, value_of: Values) -> Any | None:
    """An int32 clamped to constants and cast to a byte: narrowed first, clamped then, in a quarter of the vectors."""
    least, most, inner = None, None, node.args[0]
    limits = np.iinfo(node.dtype)
    low, high = limits.min, limits.max
    while inner.op in ("min", "max") and inner.dtype == "int32" and inner.args[1].op == "const":
        bound = inner.args[1].args[0]
        if inner.op == "min":
            most, high = True, min(high, bound)
        else:
            least, low = True, max(low, bound)
        inner = inner.args[0]
    value = value_of(inner)
    if least is None or most is None or lanes_of(value) % 4 or low > high:
        return None
    return _clamp(_narrow(split(value, 4), 0, node.dtype), low, high)
