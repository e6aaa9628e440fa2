"""64-bit ARM: templates for kernels that NEON has better instructions for than the general code finds."""

from __future__ import annotations

from edgec.program import Conv, Depthwise, Kernel
from edgec.targets.cpu.aarch64 import depthwise, dot, pairs, runs
from edgec.targets.cpu.template import Template
from edgec.targets.target import Target

DOT = Template(dot.plan, dot.generate, runs.contract, runs.pack)
PAIRS = Template(pairs.plan, pairs.generate, runs.contract, runs.pack)
DEPTHWISE = Template(depthwise.plan, depthwise.generate, depthwise.contract, depthwise.pack)


def template_for(kernel: Kernel, target: Target) -> Template | None:
    """The template of this architecture for ``kernel``, where there is one."""
    if isinstance(kernel, Conv) and runs.fits(kernel):
        return DOT if "dotprod" in target.features else PAIRS
    if isinstance(kernel, Depthwise) and depthwise.fits(kernel):
        return DEPTHWISE
    return None
