"""x86-64: templates for kernels that its vector instructions are made for."""

from __future__ import annotations

from functools import partial

from edgec.program import Conv, Depthwise, Kernel, Loops
from edgec.targets.cpu import interleave, spreading
from edgec.targets.cpu.depthwise import pack as pack_floats
from edgec.targets.cpu.loops import contract
from edgec.targets.cpu.x86 import conv, depthwise, loops, vector, window, winograd
from edgec.targets.cpu.x86.isa import Isa
from edgec.targets.cpu.x86.narrow import special
from edgec.targets.target import Target
from edgec.targets.template import Template

CONV = Template(conv.plan, conv.generate, conv.contract, conv.pack, candidates=conv.candidates)
DEPTHWISE = Template(depthwise.plan, depthwise.generate, depthwise.contract, depthwise.pack)
WINDOW = Template(window.plan, window.generate, window.contract, pack_floats, candidates=window.candidates)
WINOGRAD = Template(winograd.plan, winograd.generate, spreading.contract, spreading.pack)


def template_for(kernel: Kernel, target: Target) -> Template | None:
    """The template of this architecture for ``kernel``, where there is one."""
    by_digits = vector.template_for(kernel, target) if isinstance(kernel, Conv) else None
    if by_digits is not None:
        return by_digits
    if isinstance(kernel, Conv) and conv.fits(kernel):
        return CONV
    if isinstance(kernel, Conv) and winograd.fits(kernel, target):
        return WINOGRAD
    if isinstance(kernel, Depthwise) and depthwise.fits(kernel):
        return DEPTHWISE
    if isinstance(kernel, Depthwise) and window.fits(kernel, target):
        return WINDOW
    if isinstance(kernel, Loops) and interleave.fits(kernel):
        return Template(interleave.plan, partial(interleave.generate, special(Isa.of(target))), interleave.contract)
    if isinstance(kernel, Loops):
        return Template(loops.plan, partial(loops.generate, target), contract)
    return None
