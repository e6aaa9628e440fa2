"""Cortex-M4: the general templates, with instructions that the compiler does not find for a requantisation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from edgec.lazy_tvm import tirx
from edgec.program import Conv, Depthwise, Kernel, Loops
from edgec.scalar import Expr
from edgec.targets.cpu import conv, depthwise, loops
from edgec.targets.cpu.math import Bind, constant
from edgec.targets.cpu.tir import lanes_of
from edgec.targets.target import Target
from edgec.targets.template import Template


def special(node: Expr, value_of: Callable[[Expr], Any], operands: Sequence[Any], bind: Bind) -> Any | None:
    """Code for ``node`` where it is shorter than the general one; else None.

    The general code calls the C library to round, and compares floats, which takes three instructions each time.
    """
    if node.op != "saturate" or lanes_of(value_of(node.args[0])) > 1:
        return None
    _, zero, low, high = node.args
    value = bind(value_of(node.args[0]))
    least = constant(float(low - zero), value)
    numeric = bind(tirx.Select(value > least, value, least))  # NaN becomes the least value, as everywhere
    # vcvtr: to an integer, nearest even, and saturated
    whole = tirx.reinterpret("int32", tirx.call_llvm_pure_intrin("float32", "llvm.arm.vcvtr.f32", numeric))
    moved = tirx.call_llvm_pure_intrin("int32", "llvm.arm.qadd", whole, tirx.const(zero, "int32")) if zero else whole
    return tirx.Cast(node.dtype, tirx.min(moved, tirx.const(high, "int32")))


CONV = Template(
    conv.plan, partial(conv.generate, special=special), conv.contract, conv.pack, candidates=conv.candidates
)
DEPTHWISE = Template(
    depthwise.plan, partial(depthwise.generate, special=special), depthwise.contract, depthwise.pack,
    candidates=depthwise.candidates,
)  # fmt: skip
LOOPS = Template(loops.plan, partial(loops.generate, special=special), loops.contract)


def template_for(kernel: Kernel, target: Target) -> Template | None:
    """The template of this architecture for ``kernel``, where there is one.

    Cores after the M4 round floats in one instruction, and the general code is as short.
    """
    if target.cpu != "cortex-m4":
        return None
    if isinstance(kernel, Conv):
        return CONV
    if isinstance(kernel, Depthwise):
        return DEPTHWISE
    return LOOPS if isinstance(kernel, Loops) else None
