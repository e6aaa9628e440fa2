"""64-bit ARM: templates for kernels that NEON has better instructions for than the general code finds."""

from __future__ import annotations

from edgec.program import Conv, Depthwise, Kernel, Loops
from edgec.targets.cpu.aarch64 import depthwise, dot, floats, interleave, loops, pairs, runs, winograd
from edgec.targets.cpu.loops import contract
from edgec.targets.cpu.template import Template
from edgec.targets.target import Target

DOT = Template(dot.plan, dot.generate, runs.contract, runs.pack)
PAIRS = Template(pairs.plan, pairs.generate, runs.contract, runs.pack)
FLOATS = Template(floats.plan, floats.generate, runs.contract, runs.pack)
WINOGRAD = Template(winograd.plan, winograd.generate, winograd.contract, winograd.pack)
DEPTHWISE = Template(depthwise.plan, depthwise.generate, depthwise.contract, depthwise.pack)
INTERLEAVE = Template(interleave.plan, interleave.generate, interleave.contract)
LOOPS = Template(loops.plan, loops.generate, contract)


def template_for(kernel: Kernel, target: Target) -> Template | None:
    """The template of this architecture for ``kernel``, where there is one."""
    if isinstance(kernel, Conv) and kernel.weight_strides is None:
        if kernel.input_dtype == "float32":
            return WINOGRAD if winograd.fits(kernel) else FLOATS
        return DOT if "dotprod" in target.features else PAIRS
    if isinstance(kernel, Depthwise) and depthwise.fits(kernel):
        return DEPTHWISE
    if isinstance(kernel, Loops):
        return INTERLEAVE if interleave.fits(kernel) else LOOPS
    return None
