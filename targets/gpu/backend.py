"""From a program to a GPU's: plan each kernel, pack its weights, generate each distinct one once, and say what is
copied when.

A step that the device cannot compute (float64, mostly) runs on the host, as the same step of the processor's code in
the artifact. Inputs, outputs and what such steps read or write are copied by steps of their own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from edgec import scalar
from edgec.errors import EdgecError
from edgec.nest import rebased
from edgec.planning import memory
from edgec.program import ARENA, CONSTANT, INPUT, OUTPUT, Buffer, Conv, Depthwise, Fill, Kernel, Loops, Program, Step
from edgec.targets.binding import OperandBinder
from edgec.targets.gpu import conv, depthwise, fill, loops
from edgec.targets.gpu.opencl import Source
from edgec.targets.gpu.operators import supported
from edgec.targets.gpu.source import program_source
from edgec.targets.gpu.target import GpuTarget
from edgec.targets.half import store_in_half
from edgec.targets.template import Template
from edgec.tuning.records import Records

KERNEL, HOST, TO_DEVICE, TO_HOST = "kernel", "host", "to_device", "to_host"
"""Kinds of steps."""

_TEMPLATES: dict[type, Template] = {
    Loops: Template(loops.plan, loops.generate, loops.contract, candidates=loops.candidates),
    Conv: Template(conv.plan, conv.generate, conv.contract, conv.pack, candidates=conv.candidates),
    Depthwise: Template(
        depthwise.plan, depthwise.generate, depthwise.contract, depthwise.pack, candidates=depthwise.candidates
    ),
    Fill: Template(fill.plan, fill.generate, fill.contract, table=fill.table),
}


def template_for(kernel: Kernel, target: GpuTarget) -> Template:
    """The template that generates ``kernel``."""
    return _TEMPLATES[type(kernel)]


@dataclass(frozen=True)
class GpuStep:
    """One entry of the plan.

    Attributes:
        kind: one of :data:`KERNEL`, :data:`HOST`, :data:`TO_DEVICE` and :data:`TO_HOST`.
        name: the first ONNX node it computes and how many more, or what it copies.
        contract: the kernel's name, which spells the contract and the plan.
        macs: multiply-accumulates.
        function: the kernel's name in the source.
        operands: in order, the output last; for a copy, what is copied.
        items: work items along each axis.
        group: the work group, or None for the driver's choice.
        host: the index of the processor's step that is run.
        nodes: the ONNX nodes it computes.
        image: whether its weight, operand 1, is read as an image.
    """

    kind: str
    name: str
    contract: str
    macs: int = 0
    function: str = ""
    operands: tuple[Buffer, ...] = ()
    items: tuple[int, int, int] = (1, 1, 1)
    group: tuple[int, int, int] | None = None
    host: int = 0
    nodes: tuple[str, ...] = ()
    image: bool = False


@dataclass
class GpuCode:
    """A program's kernels as OpenCL C, the constants they read, and the plan of their calls."""

    source: str = ""
    steps: list[GpuStep] = field(default_factory=list)
    constants: list[Buffer] = field(default_factory=list)
    arena_bytes: int = 0

    def count(self, kind: str) -> int:
        """How many steps are of ``kind``."""
        return sum(step.kind == kind for step in self.steps)

    @property
    def copied_bytes(self) -> int:
        """Bytes that one run copies between host and device."""
        return sum(step.operands[0].nbytes for step in self.steps if step.kind in (TO_DEVICE, TO_HOST))


def compile_program(
    program: Program, target: GpuTarget, progress: Callable[[str, int, int], None], records: Records | None = None
) -> GpuCode:
    """Generate every kernel of ``program``.

    Args:
        program: lowered and planned.
        target: the GPU.
        progress: told (what, done, total) as kernels are generated.
        records: what was measured of plans; without them each template takes its own first choice.

    Raises:
        EdgecError: a step needs float64, and the program of the host has other buffers.
    """
    binder = Binder(target, records)
    copies = _Copies(program)
    for index, step in enumerate(program.steps):
        where = KERNEL if runs_on_device(step.kernel, target) else HOST
        if where == HOST and target.storage != "float32":
            raise EdgecError(
                f"node '{step.name}' needs float64, which {target.name} leaves to the processor, and with floats "
                "stored in 16 bits it cannot; compile for the target without -fp16"
            )
        binder.steps += copies.before(step, where)
        binder.bind(step, index, where)
        progress("GPU kernels", index + 1, len(program.steps))
    binder.steps += copies.outputs(program)
    return binder.code(program.arena_bytes)


def runs_on_device(kernel: Kernel, target: GpuTarget) -> bool:
    """Whether there is code for all that ``kernel`` computes."""
    expressions = [getattr(kernel, name, None) for name in ("body", "epilogue", "store")]
    nodes = [node for expr in expressions if expr is not None for node in scalar.walk(expr)]
    return kernel.dtype != "float64" and all(supported(node, target.double) for node in nodes)


class GpuProgram:
    """A program as a GPU runs it: the host's own, or with floats in 16 bits a copy with a memory plan of its own."""

    def __init__(self, program: Program, target: GpuTarget) -> None:
        self.target = target
        self.program = program if target.storage == "float32" else store_in_half(program)
        self.lifetimes = memory.plan(self.program, target.arena_alignment)

    def compile(self, progress: Callable[[str, int, int], None], records: Records | None = None) -> GpuCode:
        """See :func:`compile_program`."""
        return compile_program(self.program, self.target, progress, records)

    def facts(self, code: GpuCode) -> dict[str, Any]:
        """What the manifest says of the GPU's part, whose steps and memory stand for the whole."""
        program, target = self.program, self.target
        at = [index for index, step in enumerate(code.steps) if step.kind in (KERNEL, HOST)]
        return {
            "target": target.name,
            "steps": [{"name": step.name, "kernel": step.contract, "macs": step.macs} for step in code.steps],
            "arena_bytes": program.arena_bytes,
            "arena_lower_bound": program.arena_lower_bound,
            "memory": [memory.entry(x) | {"first": at[x.first], "last": at[x.last]} for x in self.lifetimes],
            "gpu": _gpu_facts(code, target),
        }


def _gpu_facts(code: GpuCode, target: GpuTarget) -> dict[str, Any]:
    return {
        "api": "OpenCL 1.2",
        "storage": target.storage,
        "kernels": code.count(KERNEL),
        "host_steps": code.count(HOST),
        "copies": code.count(TO_DEVICE) + code.count(TO_HOST),
        "copied_bytes": code.copied_bytes,
        "source_bytes": len(code.source.encode()),
    }


class Binder(OperandBinder):
    """Binds steps to functions and constants, sharing equal ones."""

    def __init__(self, target: GpuTarget, records: Records | None = None) -> None:
        super().__init__(target, Records() if records is None else records)
        self.sources: dict[str, tuple[Source, list[str]]] = {}
        self.steps: list[GpuStep] = []
        self._functions: dict[tuple[Any, ...], str] = {}

    def bind(self, step: Step, index: int, where: str) -> None:
        if where == HOST:
            self.steps.append(GpuStep(HOST, step.name, "processor", step.kernel.macs, host=index, nodes=step.nodes))
            return
        kernel, inputs, output = rebased(step)
        template = template_for(kernel, self.target)
        self.bind_plan(Step(kernel, inputs, output, step.nodes), self.plan(template, kernel), template)

    def code(self, arena_bytes: int) -> GpuCode:
        """What was bound."""
        source = program_source(self.sources) if self.sources else ""
        return GpuCode(source, self.steps, self.constants, arena_bytes)

    def bind_plan(self, step: Step, planned: Any, template: Template) -> None:
        """An entry that runs ``step``, whose offsets are its operands' own, as ``planned`` by ``template``."""
        operands = self.operands(template, planned, step.kernel, step.inputs, step.output)
        dtypes = [buffer.dtype for buffer in operands]
        key = (planned, tuple(dtypes))
        if key not in self._functions:
            self._functions[key] = f"k{len(self._functions)}"
            self.sources[self._functions[key]] = (template.generate(planned, dtypes), dtypes)
        function = self._functions[key]
        source = self.sources[function][0]
        contract = template.contract(planned)
        self.steps.append(
            GpuStep(
                KERNEL, step.name, contract, step.kernel.macs, function, tuple(operands), source.items, source.group,
                nodes=step.nodes, image=source.image,
            )
        )


class _Copies:
    """Knows on which side each buffer is up to date, and what has to be copied before it is used."""

    def __init__(self, program: Program) -> None:
        self._on_device: dict[int, bool] = {}
        self._on_host = {id(tensor.buffer.root): True for tensor in program.inputs}

    def before(self, step: Step, where: str) -> list[GpuStep]:
        """The copies that ``step`` needs; afterwards its output is up to date on its own side only."""
        own, other = (self._on_device, self._on_host) if where == KERNEL else (self._on_host, self._on_device)
        copies = []
        for root in dict.fromkeys(buffer.root for buffer in step.buffers):
            if root.space != CONSTANT and other.get(id(root)) and not own.get(id(root)):
                copies.append(_copy(TO_DEVICE if where == KERNEL else TO_HOST, root))
                own[id(root)] = True
        own[id(step.output.root)], other[id(step.output.root)] = True, False
        return copies

    def outputs(self, program: Program) -> list[GpuStep]:
        """The copies of those outputs that the device has written."""
        roots = dict.fromkeys(tensor.buffer.root for tensor in program.outputs)
        written = [r for r in roots if self._on_device.get(id(r)) and not self._on_host.get(id(r))]
        return [_copy(TO_HOST, root) for root in written]


def _copy(kind: str, root: Buffer) -> GpuStep:
    assert root.space in (ARENA, INPUT, OUTPUT)
    words = "to the GPU" if kind == TO_DEVICE else "from the GPU"
    return GpuStep(kind, f"{root.name} {words}", "copy", operands=(root,))
