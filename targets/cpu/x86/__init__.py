"""x86-64: templates for kernels that its vector instructions are made for."""

from __future__ import annotations

from edgec.program import Conv, Kernel
from edgec.targets.cpu.template import Template
from edgec.targets.cpu.x86 import conv
from edgec.targets.target import Target

CONV = Template(conv.plan, conv.generate, conv.contract, conv.pack)


def template_for(kernel: Kernel, target: Target) -> Template | None:
    """The template of this architecture for ``kernel``, where there is one."""
    if isinstance(kernel, Conv) and conv.fits(kernel):
        return CONV
    return None
