"""x86 vector instructions in TIR, on vectors of one register."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from edgec.building.lazy_tvm import tirx
from edgec.targets.cpu.tir import lanes_of
from edgec.targets.target import Target

_PAIR_PRODUCTS = {4: "sse2.pmadd.wd", 8: "avx2.pmadd.wd", 16: "avx512.pmaddw.d.512"}
_BYTE_PAIR_PRODUCTS = {4: "ssse3.pmadd.ub.sw.128", 8: "avx2.pmadd.ub.sw", 16: "avx512.pmaddubs.w.512"}
_WORD_PACKS = {4: "sse2.packssdw.128", 8: "avx2.packssdw", 16: "avx512.packssdw.512"}
_SIGNED_BYTE_PACKS = {4: "sse2.packsswb.128", 8: "avx2.packsswb", 16: "avx512.packsswb.512"}
_UNSIGNED_BYTE_PACKS = {4: "sse2.packuswb.128", 8: "avx2.packuswb", 16: "avx512.packuswb.512"}
"""LLVM's names of instructions, by the 32-bit lanes of a register."""


@dataclass(frozen=True)
class Isa:
    """What the kernels ask of a processor.

    Attributes:
        lanes: 32-bit lanes of its widest register: 4, 8 or 16.
        registers: how many there are.
        vnni: whether it sums up products of bytes in fours (``vpdpbusd``), and of int16 in pairs (``vpdpwssd``).
        vbmi: whether it permutes the bytes of a register (``vpermb``).
    """

    lanes: int
    registers: int
    vnni: bool
    vbmi: bool

    @classmethod
    def of(cls, target: Target) -> Isa:
        """The instructions of ``target``, an x86 processor."""
        wide = target.vector_bytes == 64
        vnni, vbmi = (wide and feature in target.features for feature in ("avx512vnni", "avx512vbmi"))
        return cls(target.lanes(4), target.vector_registers, vnni, vbmi)


def instruction(dtype: str, name: str, *args: Any) -> Any:
    """An instruction by LLVM's name for it, without side effects."""
    return tirx.call_llvm_pure_intrin(dtype, f"llvm.{name}", *args)


def dot(total: Any, unsigned: Any, signed: Any) -> Any:
    """``total`` int32 plus the products of bytes summed in groups of four (``vpdpbusd``)."""
    lanes = lanes_of(total)
    return instruction(f"int32x{lanes}", f"x86.avx512.vpdpbusd.{32 * lanes}", total, unsigned, signed)


def word_dot(total: Any, left: Any, right: Any) -> Any:
    """``total`` int32 plus the products of int16 summed in pairs (``vpdpwssd``)."""
    lanes = lanes_of(total)
    return instruction(f"int32x{lanes}", f"x86.avx512.vpdpwssd.{32 * lanes}", total, left, right)


def pair_sums(left: Any, right: Any) -> Any:
    """The products of int16 summed in pairs, as int32 (``pmaddwd``)."""
    lanes = lanes_of(left) // 2
    return instruction(f"int32x{lanes}", f"x86.{_PAIR_PRODUCTS[lanes]}", left, right)


def byte_pair_sums(unsigned: Any, signed: Any) -> Any:
    """The products of bytes summed in pairs, as int16, saturated (``pmaddubsw``)."""
    lanes = lanes_of(unsigned) // 4
    return instruction(f"int16x{2 * lanes}", f"x86.{_BYTE_PAIR_PRODUCTS[lanes]}", unsigned, signed)


def nearest(value: Any) -> Any:
    """float32 as int32, rounded to nearest even; 0x80000000 where that does not fit (``cvtps2dq``)."""
    return instruction(f"int32x{lanes_of(value)}", "lrint", value)


def saturated_sum(left: Any, right: Any) -> Any:
    """The sum of int16 or uint8, saturated (``paddsw``, ``paddusb``)."""
    dtype = str(left.ty.dtype)
    return instruction(dtype, "uadd.sat" if dtype.startswith("u") else "sadd.sat", left, right)


def pack_words(left: Any, right: Any) -> Any:
    """Two int32 vectors as int16, saturated, 128 bits of each in turn (``packssdw``)."""
    lanes = lanes_of(left)
    return instruction(f"int16x{2 * lanes}", f"x86.{_WORD_PACKS[lanes]}", left, right)


def pack_bytes(left: Any, right: Any, dtype: str) -> Any:
    """Two int16 vectors as int8 or uint8, saturated, 128 bits of each in turn (``packsswb``, ``packuswb``)."""
    lanes = lanes_of(left) // 2
    names = _SIGNED_BYTE_PACKS if dtype == "int8" else _UNSIGNED_BYTE_PACKS
    return instruction(f"{dtype}x{4 * lanes}", f"x86.{names[lanes]}", left, right)


def unpacked(left: Any, right: Any, size: int) -> list[Any]:
    """Elements of ``size`` bytes of both in turn, of the lower and of the upper halves of each 128 bits (``punpckl``
    and ``punpckh``)."""
    lanes, step = lanes_of(left), 128 // 8
    return [
        tirx.Shuffle(
            [left, right],
            [
                tirx.const(source * lanes + group + half + element + byte, "int32")
                for group in range(0, lanes, step)
                for element in range(0, step // 2, size)
                for source in range(2)
                for byte in range(size)
            ],
        )
        for half in (0, step // 2)
    ]
