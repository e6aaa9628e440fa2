"""From a program to CPU code: plan each kernel, pack its weights, generate each distinct one once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

from edgec.building.kernel_cache import KernelCache, kernel_key
from edgec.nest import rebased
from edgec.program import Buffer, Conv, Depthwise, Fill, Kernel, Loops, Program, Step
from edgec.targets.binding import OperandBinder
from edgec.targets.cpu import conv, depthwise, fill, loops, packed
from edgec.targets.target import Target
from edgec.targets.template import Template
from edgec.tuning.records import Records
from edgec.tvm_adapter import build_object


@dataclass(frozen=True)
class Call:
    """One step, bound: the C function, its operands in order (the output last), and who may run it.

    ``narrow`` is the function at the fewer bits of nested weights, where there is one; the operands are the same.
    """

    symbol: str
    contract: str
    operands: tuple[Buffer, ...]
    parallel: bool
    step: Step
    narrow: str = ""


@dataclass
class Code:
    """A program's machine code: one object file for each kernel by its symbol, and the calls into them."""

    calls: list[Call] = field(default_factory=list)
    objects: dict[str, bytes] = field(default_factory=dict)
    constants: list[Buffer] = field(default_factory=list)

    def write_objects(self, folder: Path) -> list[Path]:
        """Write the object files into ``folder``, for a linker: in the order of the program."""
        paths = [folder / f"{symbol}.o" for symbol in self.objects]
        for path, content in zip(paths, self.objects.values(), strict=True):
            path.write_bytes(content)
        return paths


_TEMPLATES: dict[type, Template] = {
    Loops: Template(loops.plan, loops.generate, loops.contract),
    Conv: Template(conv.plan, conv.generate, conv.contract, conv.pack, candidates=conv.candidates),
    Depthwise: Template(
        depthwise.plan, depthwise.generate, depthwise.contract, depthwise.pack, candidates=depthwise.candidates
    ),
    Fill: Template(fill.plan, fill.generate, fill.contract, table=fill.table),
}
"""What any processor runs."""

_PACKED = Template(packed.plan, packed.generate, packed.contract, packed.pack, candidates=packed.candidates)

_SPECIAL = {"aarch64": "aarch64", "cortex-m": "cortex_m", "x86_64": "x86"}
"""By architecture: the package whose ``template_for`` has a faster template for a kernel, where there is one."""


def template_for(kernel: Kernel, target: Target) -> Template:
    """The template that generates ``kernel`` for ``target``; other architectures' are not loaded."""
    special = _SPECIAL.get(target.arch)
    found = import_module(f"edgec.targets.cpu.{special}").template_for(kernel, target) if special else None
    if found is None and isinstance(kernel, Conv) and packed.fits(kernel):
        return _PACKED
    return found or _TEMPLATES[type(kernel)]


def compile_program(
    program: Program, target: Target, progress: Callable[[str, int, int], None], records: Records | None = None
) -> Code:
    """Generate and compile every kernel of ``program``.

    Args:
        program: lowered and planned.
        target: the CPU.
        progress: told (what, done, total) as kernels are generated.
        records: what was measured of plans; without them each template chooses by its estimate.
    """
    binder = _Binder(target, records or Records(), KernelCache.of_user())
    for index, step in enumerate(program.steps):
        binder.bind(step)
        progress("kernels", index + 1, len(program.steps))
    return Code(binder.calls, binder.objects, binder.constants)


class _Binder(OperandBinder):
    """Binds steps to functions and constants, sharing equal ones."""

    def __init__(self, target: Target, records: Records, cache: KernelCache) -> None:
        super().__init__(target, records)
        self.cache = cache
        self.objects: dict[str, bytes] = {}
        self.calls: list[Call] = []
        self._symbols: dict[tuple[Any, ...], str] = {}

    def bind(self, step: Step) -> None:
        kernel, inputs, output = rebased(step)
        template = template_for(kernel, self.target)
        planned = self.plan(template, kernel)
        operands = self.operands(template, planned, kernel, inputs, output)
        dtypes = [buffer.dtype for buffer in operands]
        symbol, narrow = self._symbol(template, planned, dtypes), ""
        if isinstance(kernel, Conv) and kernel.packing is not None and kernel.packing.nested:
            narrow = self._symbol(template, packed.narrowed(planned), dtypes)
        parallel = _parallel(step.kernel)
        self.calls.append(Call(symbol, template.contract(planned), tuple(operands), parallel, step, narrow))

    def _symbol(self, template: Template, planned: Any, dtypes: list[str]) -> str:
        key = (planned, tuple(dtypes))
        if key not in self._symbols:
            self._symbols[key] = self._compile(template, planned, dtypes)
        return self._symbols[key]

    def _compile(self, template: Template, planned: Any, dtypes: list[str]) -> str:
        """The symbol of the kernel, which its digest names, so that its object is the same in every program."""
        digest = kernel_key(template.generate, planned, dtypes, self.target)
        symbol = f"k{digest}"
        content = self.cache.get(digest)
        if content is None:
            content = build_object({symbol: template.generate(planned, dtypes)}, self.target)
            self.cache.put(digest, content)
        self.objects[symbol] = content
        return symbol


def _parallel(kernel: Kernel) -> bool:
    return loops.is_parallel(kernel) if isinstance(kernel, Loops) else not isinstance(kernel, Fill)
