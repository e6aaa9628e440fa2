"""64-bit ARM: templates for kernels that NEON has better instructions for than the general code finds."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from edgec.program import Conv, Depthwise, Kernel, Loops
from edgec.targets.cpu import interleave, spreading
from edgec.targets.cpu.aarch64 import (
    depthwise,
    depthwise_dot,
    dot,
    floats,
    loops,
    matrix,
    packed,
    pairs,
    runs,
    vector,
    window,
    winograd,
)
from edgec.targets.cpu.aarch64.neon import special
from edgec.targets.cpu.loops import contract
from edgec.targets.cpu.packed import contract as contract_packed
from edgec.targets.cpu.packed import pack as pack_packed
from edgec.targets.cpu.winograd import contract as contract_winograd
from edgec.targets.cpu.winograd import pack as pack_winograd
from edgec.targets.target import Target
from edgec.targets.template import Template

Plan = Callable[[Conv, Target], runs.RunPlan]
Generate = Callable[[Any, list[str]], Any]


def _tiled(kind: type[runs.RunPlan], plan: Plan, generate: Generate) -> Template:
    """The template of plans of ``kind``."""
    return Template(plan, generate, runs.contract, runs.pack, candidates=lambda conv, target: runs.ranked(kind, conv))


DOT = _tiled(dot.DotPlan, dot.plan, dot.generate)
MATRIX = _tiled(matrix.MatrixPlan, matrix.plan, matrix.generate)
PAIRS = _tiled(pairs.PairPlan, pairs.plan, pairs.generate)
FLOATS = _tiled(floats.FloatPlan, floats.plan, floats.generate)
HALVES = _tiled(floats.HalfPlan, floats.half_plan, floats.generate)
WINOGRAD = Template(winograd.plan, winograd.generate, contract_winograd, pack_winograd)
SPREADING = Template(winograd.plan, winograd.generate, spreading.contract, spreading.pack)
PACKED = Template(packed.plan, packed.generate, contract_packed, pack_packed, candidates=packed.candidates)
DEPTHWISE = Template(depthwise.plan, depthwise.generate, depthwise.contract, depthwise.pack)
DEPTHWISE_DOT = Template(depthwise_dot.plan, depthwise_dot.generate, depthwise_dot.contract, depthwise_dot.pack)
WINDOW = Template(window.plan, window.generate, window.contract, window.pack, candidates=window.candidates)
INTERLEAVE = Template(interleave.plan, partial(interleave.generate, special), interleave.contract)
LOOPS = Template(loops.plan, loops.generate, contract)


def template_for(kernel: Kernel, target: Target) -> Template | None:
    """The template of this architecture for ``kernel``, where there is one."""
    by_digits = vector.template_for(kernel, target) if isinstance(kernel, Conv) else None
    if by_digits is not None:
        return by_digits
    if isinstance(kernel, Conv) and kernel.weight_strides is None:
        if kernel.input_dtype == "float32" and kernel.packing is not None:
            return SPREADING if winograd.fits(kernel) else PACKED if packed.fits(kernel) else None
        if kernel.input_dtype == "float32":
            return WINOGRAD if winograd.fits(kernel) else FLOATS
        if kernel.sum_dtype == "float16":
            return HALVES
        if kernel.input_dtype in ("int16", "float16"):
            return None
        if "i8mm" in target.features and kernel.packing is None:
            return MATRIX
        return DOT if "dotprod" in target.features else PAIRS
    if isinstance(kernel, Depthwise) and depthwise.fits(kernel):
        return DEPTHWISE_DOT if "dotprod" in target.features and depthwise_dot.fits(kernel) else DEPTHWISE
    if isinstance(kernel, Depthwise) and window.fits(kernel):
        return WINDOW
    if isinstance(kernel, Loops):
        return INTERLEAVE if interleave.fits(kernel) else LOOPS
    return None
