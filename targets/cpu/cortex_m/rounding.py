"""Cortex-M4: instructions that the compiler does not find for a requantisation."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from edgec.building.lazy_tvm import tirx
from edgec.nest import coefficient
from edgec.scalar import Expr
from edgec.targets.cpu.math import Bind, constant
from edgec.targets.cpu.tir import lanes_of
from edgec.targets.vectors import CHANNEL_AXIS


def special(node: Expr, value_of: Callable[[Expr], Any], operands: Sequence[Any], bind: Bind) -> Any | None:
    """Code for ``node`` where it is shorter than the general one; else None.

    The general code calls the C library to round, and compares floats, which takes three instructions each time.
    """
    if node.op != "saturate" or lanes_of(value_of(node.args[0])) > 1:
        return None
    _, zero, low, high, _ = node.args
    value = bind(value_of(node.args[0]))
    is_number = _is_number(node.args[0])
    if not is_number:
        least = constant(float(low - zero), value)
        value = bind(tirx.Select(value > least, value, least))  # NaN becomes the least value, as everywhere
    # vcvtr: to an integer, nearest even, and saturated
    whole = tirx.reinterpret("int32", tirx.call_llvm_pure_intrin("float32", "llvm.arm.vcvtr.f32", value))
    moved = tirx.call_llvm_pure_intrin("int32", "llvm.arm.qadd", whole, tirx.const(zero, "int32")) if zero else whole
    inside = tirx.min(moved, tirx.const(high, "int32"))
    return tirx.Cast(node.dtype, tirx.max(inside, tirx.const(low, "int32")) if is_number else inside)


def _is_number(value: Expr) -> bool:
    """Whether a float is surely no NaN: integers, times the scale of their channel or a constant, and sums of such."""
    if value.op == "cast":
        return not value.args[0].dtype.startswith("float")
    if value.op == "const":
        return math.isfinite(value.args[0])
    if value.op in ("add", "sub"):
        return all(map(_is_number, value.args))
    if value.op != "mul":
        return False
    whole, scale = sorted(value.args, key=lambda each: each.op != "cast")
    return whole.op == "cast" and _is_number(whole) and (_is_number(scale) or _is_of_channel(scale))


def _is_of_channel(value: Expr) -> bool:
    """Whether it is loaded from one value a channel, as the scales of a requantisation are."""
    steps = [coefficient(value.args[1], axis) for axis in range(CHANNEL_AXIS + 1)] if value.op == "load" else []
    return steps == [0] * CHANNEL_AXIS + [1]
