"""Cortex-M: convolutions of bytes by instructions that multiply several at a time, and the M4's own roundings."""

from __future__ import annotations

from functools import partial

from edgec.program import Conv, Depthwise, Kernel, Loops
from edgec.targets.cpu import conv, depthwise, loops
from edgec.targets.cpu.cortex_m import dot
from edgec.targets.cpu.cortex_m.rounding import special
from edgec.targets.cpu.tir import Special, nothing_special
from edgec.targets.target import Target
from edgec.targets.template import Template

COLUMNS, COLUMNS_OF_VECTORS, LANES = 3, 2, 4
"""Pixels of a depthwise tile, at most, and with Helium pixels and channels: what the registers hold."""


def _plan(kernel: Depthwise, target: Target) -> depthwise.DepthwisePlan:
    """Equal tiles. LLVM's code for vectors of two lanes, which a rest of channels would have, is wrong for Helium."""
    lanes = LANES if dot.has_vectors(target) and kernel.channels % LANES == 0 else 1
    count = -(-kernel.out_width // (COLUMNS if lanes == 1 else COLUMNS_OF_VECTORS))
    return depthwise.DepthwisePlan(kernel, -(-kernel.out_width // count), lanes)


def _depthwise(special: Special) -> Template:
    generate = partial(depthwise.generate, special=special)
    return Template(_plan, generate, depthwise.contract, depthwise.pack)


CONV = Template(
    conv.plan, partial(conv.generate, special=special), conv.contract, conv.pack, candidates=conv.candidates
)
LOOPS = Template(loops.plan, partial(loops.generate, special=special), loops.contract)
DOT = Template(dot.plan, dot.generate, dot.contract, dot.pack, candidates=dot.candidates)
DEPTHWISE, ROUNDED_DEPTHWISE = _depthwise(nothing_special), _depthwise(special)


def template_for(kernel: Kernel, target: Target) -> Template | None:
    """The template of this architecture for ``kernel``, where there is one.

    Cores after the M4 round floats in one instruction, and the general code is as short.
    """
    rounds = target.cpu == "cortex-m4"
    if isinstance(kernel, Conv):
        return DOT if dot.fits(kernel, target) else CONV if rounds else None
    if isinstance(kernel, Depthwise) and kernel.input_dtype != "float32":
        return ROUNDED_DEPTHWISE if rounds else DEPTHWISE
    return LOOPS if rounds and isinstance(kernel, Loops) else None
