"""Measures plans of a kernel: many are built at once, and one small program calls each of them in turn.

The program (``runtimes/tuning``) is linked with the plans' code and started where the kernel shall run: here, on a
device, or under an emulator that counts instructions. A plan that cannot be built, or in whose call the program ends,
has failed; the others are measured without it.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from edgec.artifact import read_manifest
from edgec.benchmark import profile_steps, random_inputs
from edgec.building.toolchain import find_toolchain, is_android
from edgec.data.samples import Array, Samples, specs
from edgec.devices.counting import CLOCK_CALLS, count, plugin
from edgec.devices.device import EMULATORS, QemuDevice
from edgec.devices.machine import cpu_model
from edgec.devices.remote import Ended, Lost, Timeout, open_transport, workplace
from edgec.devices.remote_device import RemoteDevice
from edgec.devices.state import RUNS_ON, read_state
from edgec.errors import EdgecError
from edgec.nest import rebased
from edgec.program import CONSTANT, Buffer, Kernel, Program
from edgec.runtimes.build import SOURCE_FOLDER
from edgec.targets.cpu.backend import template_for
from edgec.targets.gpu import backend as gpu
from edgec.targets.gpu.target import GpuTarget
from edgec.targets.target import Target
from edgec.targets.template import Template
from edgec.tuning.cycles import Analyser, find_analyser, functions
from edgec.tuning.records import signature
from edgec.tvm_adapter import assembly, build_object

PROGRAM_FOLDER = SOURCE_FOLDER.parent / "tuning"
TRIPLES = {"x86_64": "x86_64-linux-gnu", "aarch64": "aarch64-linux-gnu", "armv7": "arm-linux-gnueabihf"}
"""The system that the measuring program is built for, by architecture, but for Android."""
BATCH_SECONDS = 0.4
"""About how long the calls of one batch of plans take together."""
MOST_ROUNDS = 300
STEP_ROUNDS = 60
"""How often the steps of an artifact are measured; the fastest counts."""
PATIENCE_SECONDS = 120
"""After so long a program that measures one batch is given up."""

_WEIGHT = 1
"""The operand that templates pack."""


def program_triple(target: Target) -> str:
    """The system that the measuring program is built for; kernels call nothing of a system."""
    return target.triple if is_android(target.triple) else TRIPLES[target.arch]


@dataclass
class Task:
    """A kernel whose plan is to be chosen.

    Attributes:
        name: the first step that runs it.
        kernel: the contract.
        template: generates the code of a plan.
        plans: to choose from, the untuned one first.
        operands: in order, the output last.
        count: how many steps run it.
    """

    name: str
    kernel: Kernel
    template: Template
    plans: Sequence[Any]
    operands: tuple[Buffer, ...]
    count: int = 1

    @property
    def dtypes(self) -> list[str]:
        """Of the operands."""
        return [buffer.dtype for buffer in self.operands]


def tasks_of(program: Program, target: Target | GpuTarget) -> list[Task]:
    """The kernels of ``program`` that have more than one plan, each once."""
    found: dict[str, Task] = {}
    for step in program.steps:
        kernel, inputs, output = rebased(step)
        template = _template(kernel, target)
        if template is None or template.candidates is None:
            continue
        key = signature(kernel)
        if key in found:
            found[key].count += 1
            continue
        plans = template.candidates(kernel, target)
        if len(plans) > 1:
            found[key] = Task(step.name, kernel, template, plans, (*inputs, output))
    return list(found.values())


def _template(kernel: Kernel, target: Target | GpuTarget) -> Template | None:
    """What generates ``kernel``; None for one that a GPU leaves to its host."""
    if isinstance(target, GpuTarget):
        return gpu.template_for(kernel, target) if gpu.runs_on_device(kernel, target) else None
    return template_for(kernel, target)


@dataclass(frozen=True)
class Outcome:
    """What came of a plan: its cost, or why it has none."""

    cost: float | None = None
    error: str | None = None


class Meter(ABC):
    """Finds the cost of plans. ``method`` is one of :data:`edgec.tuning.records.METHODS`; ``machine`` says where."""

    method: str
    machine: str | None
    note: str = ""
    """What is to be said of the costs, in a sentence."""
    boards: int = 1
    """How many tasks can be measured at a time, by as many threads."""

    @abstractmethod
    def measure(self, task: Task, plans: Sequence[Any]) -> list[Outcome]:
        """The outcome of every plan, all of them under the same conditions."""


class Crashed(Exception):
    """The measuring program did not reach its end; ``output`` is what it printed until then."""

    def __init__(self, output: str, reason: str) -> None:
        self.output = output
        super().__init__(reason)


class ProgramMeter(Meter):
    """Builds the measuring program, and starts it until every plan is measured or has failed."""

    def __init__(self, target: Target) -> None:
        self.target = target
        self._building = threading.Lock()  # TVM compiles for one thread at a time

    @abstractmethod
    def costs(self, program: Path, plans: int) -> list[float]:
        """Start the program and read the cost of each of its plans.

        Raises:
            Crashed: it ended before its time.
        """

    @abstractmethod
    def steps(self, artifact: Path) -> list[float]:
        """What each step of an artifact costs, one after the other as in use, of random inputs.

        Raises:
            EdgecError: it cannot be run.
        """

    def measure(self, task: Task, plans: Sequence[Any]) -> list[Outcome]:
        with self._building:
            batch = _Batch(task, plans, self.target)
        while batch.left:
            with tempfile.TemporaryDirectory(prefix="edgec-tune-") as folder:
                with self._building:
                    program = batch.link(Path(folder))
                try:
                    batch.succeed(self.costs(program, len(batch.left)))
                except Crashed as error:
                    batch.fail(_last_tried(error.output), str(error))
        return batch.outcomes


@dataclass
class _Batch:
    """Plans on their way to an outcome; ``left`` are the places of those that have none."""

    task: Task
    plans: Sequence[Any]
    target: Target
    functions: dict[int, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.outcomes = [Outcome()] * len(self.plans)
        self.left: list[int] = []
        for place, plan in enumerate(self.plans):
            try:
                self.functions[place] = self.task.template.generate(plan, self.task.dtypes)
                self.left.append(place)
            except Exception as error:  # whatever a generator or TVM trips over is the plan's failure
                self.outcomes[place] = Outcome(error=reason_of(error))

    def succeed(self, costs: Iterable[float]) -> None:
        """Give those left their costs."""
        for place, cost in zip(self.left, costs, strict=True):
            self.outcomes[place] = Outcome(cost)
        self.left = []

    def fail(self, index: int, reason: str) -> None:
        """The plan at ``index`` of those left has failed."""
        self.outcomes[self.left.pop(index)] = Outcome(error=reason)

    def link(self, folder: Path) -> Path:
        """The program with the plans that are left, in ``folder``.

        Raises:
            EdgecError: no plan can be built, or there is no compiler.
        """
        (folder / "kernels.o").write_bytes(self._object())
        (folder / "table.c").write_text(self._table(), encoding="utf-8")
        toolchain = find_toolchain(program_triple(self.target))
        sources = [PROGRAM_FOLDER / "measure_kernels.c", folder / "table.c", folder / "kernels.o"]
        flags = ["-std=c11", f"-I{PROGRAM_FOLDER}", "-lm"]
        return toolchain.compile(sources, folder / "measure_kernels", shared=False, flags=flags)

    def _object(self) -> bytes:
        """Machine code of the plans that are left; those that cannot be compiled fail here."""
        try:
            return build_object({f"k{place}": self.functions[place] for place in self.left}, self.target)
        except EdgecError:
            raise
        except Exception as error:  # TVM's compiler has no common class of errors
            if len(self.left) == 1:
                raise EdgecError(f"no plan of '{self.task.name}' can be compiled: {reason_of(error)}") from error
        for place in list(self.left):
            try:
                build_object({f"k{place}": self.functions[place]}, self.target)
            except Exception as error:
                self.fail(self.left.index(place), reason_of(error))
        return self._object()

    def _table(self) -> str:
        """The C file that lists operands and candidates."""
        buffers = self.task.operands
        pointers = ", ".join("void *" for _ in buffers)
        arguments = ", ".join(f"p[{index}]" for index in range(len(buffers)))
        lines = ['#include "measure_kernels.h"']
        for place in self.left:
            lines.append(f"void k{place}({pointers}, int32_t, int32_t);")
            lines.append(f"static void call{place}(void *const *p) {{ k{place}({arguments}, 0, 1); }}")
        entries = ", ".join(f"{{call{place}, {self._weight_bytes(place)}u}}" for place in self.left)
        sizes = ", ".join(f"{{{b.root.nbytes}u, {int(b.dtype == 'float32')}}}" for b in buffers)
        lines += [
            f"const candidate candidates[] = {{{entries}}};",
            f"const uint32_t candidate_count = {len(self.left)};",
            f"const operand operands[] = {{{sizes}}};",
            f"const uint32_t operand_count = {len(buffers)};",
        ]
        return "\n".join(lines) + "\n"

    def _weight_bytes(self, place: int) -> int:
        weight = self.task.operands[_WEIGHT]
        if self.task.template.pack is None or weight.root.space != CONSTANT:
            return 0
        return int(self.task.template.packed(self.plans[place], self.task.kernel, np.asarray(weight.data)).nbytes)


class HostMeter(ProgramMeter):
    """This machine: the fastest of many rounds, in nanoseconds."""

    method = "time"

    def __init__(self, target: Target) -> None:
        super().__init__(target)
        self.machine = cpu_model()

    def costs(self, program: Path, plans: int) -> list[float]:
        output = start([str(program), str(BATCH_SECONDS), str(MOST_ROUNDS)])
        return list(_best(output))

    def steps(self, artifact: Path) -> list[float]:
        return [float(max(1, step.min_ns)) for step in profile_steps(artifact, _inputs(artifact), STEP_ROUNDS)]


class QemuMeter(ProgramMeter):
    """An emulated processor: the instructions of one call, times the cycles that each takes in the plan's hottest loop
    (see :mod:`.cycles`) where those can be told. It is no time."""

    def __init__(self, target: Target, cpu: str | None = None) -> None:
        super().__init__(target)
        self.emulator = EMULATORS[TRIPLES[target.arch]]
        self.emulator.require()
        self.cpu = cpu or target.cpu
        self.machine = f"qemu {self.cpu}"
        self.analyser, self.note = find_analyser(target, self.cpu)
        self.method = "cycles" if self.analyser else "instructions"

    def measure(self, task: Task, plans: Sequence[Any]) -> list[Outcome]:
        outcomes = super().measure(task, plans)
        if self.analyser is None:
            return outcomes
        good = {f"k{place}": plans[place] for place, outcome in enumerate(outcomes) if outcome.cost is not None}
        with self._building:
            generated = {symbol: task.template.generate(plan, task.dtypes) for symbol, plan in good.items()}
            texts = functions(assembly(generated, self.target)) if good else {}
        for place, outcome in enumerate(outcomes):
            if outcome.cost is not None:
                outcomes[place] = _in_cycles(outcome.cost, self.analyser, texts[f"k{place}"])
        return outcomes

    def costs(self, program: Path, plans: int) -> list[float]:
        mark = CLOCK_CALLS[self.emulator.triple]
        counting = ["-plugin", f"{plugin()},out=counts.txt,mark={mark}"]
        start([*self.emulator.run(self.cpu), *counting, str(program), "count"], program.parent)
        counts = [int(line) for line in (program.parent / "counts.txt").read_text(encoding="utf-8").split()]
        # two readings a plan, and the end of the process
        marks = counts[-2 * plans - 1 : -1]
        return [float(end - begin) for begin, end in zip(marks[::2], marks[1::2], strict=True)]

    def steps(self, artifact: Path) -> list[float]:
        return [float(step.instructions) for step in count(artifact, QemuDevice(self.cpu)).steps]


def _in_cycles(instructions: float, analyser: Analyser, text: str) -> Outcome:
    try:
        return Outcome(instructions * analyser.per_instruction(text))
    except ValueError as error:
        return Outcome(error=reason_of(error))


class RemoteMeter(ProgramMeter):
    """A device over ssh or adb, or those of a tracker: the program is copied there, and deleted after it."""

    method = "time"

    def __init__(self, target: Target, url: str) -> None:
        super().__init__(target)
        self.url, transport = url, open_transport(url)
        state = read_state(transport)
        if RUNS_ON.get(program_triple(target)) != state.runs:
            raise EdgecError(f"the device {url} is {state.runs} and the target {target.name} {target.arch}")
        self.machine, self.boards = transport.name, transport.boards

    def costs(self, program: Path, plans: int) -> list[float]:
        arguments = (str(BATCH_SECONDS), str(MOST_ROUNDS))
        ended = retried(self.boards, lambda: self._ended(program, arguments))
        if ended.code != 0:
            raise Crashed(ended.output, f"ended with code {ended.code}: {ended.errors.strip()[-200:]}")
        return list(_best(ended.output))

    def steps(self, artifact: Path) -> list[float]:
        inputs = _inputs(artifact)
        samples, flags = Samples(1, None, lambda index: inputs), ["--warmup", "1", "--repeat", str(STEP_ROUNDS)]
        found = retried(self.boards, lambda: RemoteDevice(self.url).profile(artifact, samples, flags))
        return [float(max(1, step["min_ns"])) for step in found.steps]

    def _ended(self, program: Path, arguments: Sequence[str]) -> Ended:
        transport = open_transport(self.url)  # of its own: other threads have other boards
        with transport.connected(), workplace(transport) as there:
            there.push(program)
            try:
                return there.run(program.name, *arguments, seconds=PATIENCE_SECONDS)
            except Timeout as error:
                raise Crashed(error.output, str(error)) from error


T = TypeVar("T")


def retried(boards: int, measure: Callable[[], T]) -> T:
    """What ``measure`` gives, on another of the ``boards`` if one is lost meanwhile.

    Raises:
        Lost: each time.
    """
    for _ in range(boards - 1):
        try:
            return measure()
        except Lost:
            continue
    return measure()


def start(
    command: Sequence[str], folder: Path | None = None, environment: Mapping[str, str] | None = None
) -> str:
    """Run a command, and answer with its output.

    Raises:
        Crashed: it ended badly, or did not end.
    """
    try:
        done = subprocess.run(
            command, cwd=folder, env=environment, capture_output=True, text=True, errors="replace",
            stdin=subprocess.DEVNULL, timeout=PATIENCE_SECONDS, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        printed = error.stdout or b""
        output = printed.decode(errors="replace") if isinstance(printed, bytes) else printed
        raise Crashed(output, f"did not end within {PATIENCE_SECONDS} s") from error
    if done.returncode != 0:
        raise Crashed(done.stdout, f"ended with code {done.returncode}: {done.stderr.strip()[-200:]}")
    return done.stdout


def _inputs(artifact: Path) -> dict[str, Array]:
    """Random ones."""
    return random_inputs(specs(read_manifest(artifact)["inputs"]))


def _best(output: str) -> Iterator[float]:
    for nanoseconds in re.findall(r"^best \d+ (\d+)$", output, re.MULTILINE):
        yield float(max(1, int(nanoseconds)))


def _last_tried(output: str) -> int:
    """The plan that was called last.

    Raises:
        EdgecError: none was called: the program itself does not run.
    """
    tried = re.findall(r"^try (\d+)$", output, re.MULTILINE)
    if not tried:
        raise EdgecError("the program that measures kernels does not start; run: edgec doctor")
    return int(tried[-1])


def reason_of(error: Exception) -> str:
    """The last line of a message, where TVM says what happened."""
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[-1][:200]
