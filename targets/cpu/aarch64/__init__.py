"""64-bit ARM: templates for kernels that NEON has better instructions for than the general code finds."""

from __future__ import annotations

from edgec.program import Conv, Kernel
from edgec.targets.cpu.aarch64 import conv
from edgec.targets.cpu.template import Template
from edgec.targets.target import Target

DOT = Template(conv.plan, conv.generate, conv.contract, conv.pack)


def template_for(kernel: Kernel, target: Target) -> Template | None:
    """The template of this architecture for ``kernel``, where there is one."""
    if isinstance(kernel, Conv) and conv.fits(kernel) and "dotprod" in target.features:
        return DOT
    return None
