"""Measures plans of a GPU kernel: an artifact whose steps are the plans is run, and the GPU's own times are read.

Every plan works on the same random data. A plan that the driver cannot compile or run has failed; the others are
measured without it.
"""

from __future__ import annotations

import json
import os
import tempfile
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from edgec.artifact import build_artifact, tensor_entry
from edgec.building.toolchain import host_triple
from edgec.devices.opencl import device_names
from edgec.devices.remote import Timeout, open_transport, workplace
from edgec.devices.state import RUNS_ON, read_state
from edgec.errors import EdgecError
from edgec.program import CONSTANT, INPUT, Buffer, Program, Step, Tensor
from edgec.runtimes.build import build_runtime
from edgec.targets.cpu.backend import Code
from edgec.targets.gpu.backend import TO_DEVICE, Binder, GpuCode, GpuStep
from edgec.targets.gpu.target import GpuTarget
from edgec.tuning.measuring import PATIENCE_SECONDS, Crashed, Meter, Outcome, Task, reason_of, retried, start

ROUNDS = 15
"""How often every plan runs."""
ALIGNMENT = 256
PLANS, DATA, PROFILE = "plans.so", "data.bin", "profile.json"
"""Files of one measurement."""


class GpuMeter(Meter):
    """An OpenCL device: the fastest of many calls by its own clock, in nanoseconds."""

    method = "time"

    def __init__(self, target: GpuTarget, machine: str) -> None:
        self.target, self.machine = target, machine

    @abstractmethod
    def profile(self, folder: Path, runner: Path, arguments: Sequence[str]) -> None:
        """Run ``runner`` on the files of ``folder``, and leave its profile there.

        Raises:
            Crashed: it ended badly.
        """

    def measure(self, task: Task, plans: Sequence[Any]) -> list[Outcome]:
        """See :class:`Meter`; plans are measured together, and one by one where that fails."""
        try:
            return [Outcome(cost) for cost in self._costs(task, plans)]
        except (Crashed, EdgecError) as error:
            if len(plans) == 1:
                return [Outcome(error=reason_of(error))]
        return [self.measure(task, [plan])[0] for plan in plans]

    def _costs(self, task: Task, plans: Sequence[Any]) -> list[float]:
        program, operands, values = _shared_data(task)
        binder = Binder(self.target)
        data = program.inputs[0].buffer
        binder.steps.append(GpuStep(TO_DEVICE, "data to the GPU", "copy", operands=(data,)))
        for plan in plans:
            step = Step(task.kernel, list(operands[:-1]), operands[-1], (task.name,))
            binder.bind_plan(step, plan, task.template)
        code = binder.code(0)
        with tempfile.TemporaryDirectory(prefix="edgec-tune-") as folder:
            steps = self._run(Path(folder), program, code, values)
        return [float(max(1, step["min_ns"])) for step in steps[1:]]

    def _run(self, folder: Path, program: Program, code: GpuCode, values: np.ndarray) -> list[dict[str, Any]]:
        """Build the artifact, run it, and answer with the profile of its steps."""
        facts = {"name": program.name, "inputs": [tensor_entry(program.inputs[0])], "outputs": [], "steps": []}
        artifact, _ = build_artifact(program, Code(), self.target.host, facts, code)
        (folder / PLANS).write_bytes(artifact)
        values.tofile(folder / DATA)
        arguments = [
            f"./{PLANS}", "--inputs", DATA, "--outputs", "none.bin", "--count", "1", "--warmup", "1", "--repeat",
            str(ROUNDS), "--profile", PROFILE,
        ]  # fmt: skip
        self.profile(folder, build_runtime(self.target.triple).runner, arguments)
        steps: list[dict[str, Any]] = json.loads((folder / PROFILE).read_text(encoding="utf-8"))["steps"]
        return steps


class LocalGpuMeter(GpuMeter):
    """The device of this machine."""

    def __init__(self, target: GpuTarget) -> None:
        if target.triple != host_triple():
            raise EdgecError(
                f"this machine cannot run code for {target.name} ({target.triple}); tune on a device of that kind, "
                "with --device ssh://…, adb://… or rpc://…"
            )
        names = device_names()
        if not names:
            raise EdgecError("this machine has no OpenCL device to tune on; run: apt-get install pocl-opencl-icd")
        super().__init__(target, names[0])

    def profile(self, folder: Path, runner: Path, arguments: Sequence[str]) -> None:
        start([str(runner), *arguments], folder, environment={**os.environ, "EDGERT_CACHE_DIR": ""})


class RemoteGpuMeter(GpuMeter):
    """The device of a machine over ssh or adb, or of a tracker's: everything is copied there, and deleted after it."""

    def __init__(self, target: GpuTarget, url: str) -> None:
        self.url, transport = url, open_transport(url)
        state = read_state(transport)
        if RUNS_ON.get(target.triple) != state.runs:
            raise EdgecError(f"the device {url} is {state.runs} and the target {target.name} for {target.triple}")
        super().__init__(target, transport.name)
        self.boards = transport.boards

    def profile(self, folder: Path, runner: Path, arguments: Sequence[str]) -> None:
        retried(self.boards, lambda: self._profile(folder, runner, arguments))

    def _profile(self, folder: Path, runner: Path, arguments: Sequence[str]) -> None:
        transport = open_transport(self.url)  # of its own: other threads have other boards
        with transport.connected(), workplace(transport) as there:
            there.push(runner, folder / PLANS, folder / DATA)
            try:
                ended = there.run(runner.name, *arguments, seconds=PATIENCE_SECONDS)
            except Timeout as error:
                raise Crashed(error.output, str(error)) from error
            if ended.code != 0:
                raise Crashed(ended.output, f"ended with code {ended.code}: {ended.errors.strip()[-200:]}")
            there.pull(PROFILE, folder / PROFILE)


def _shared_data(task: Task) -> tuple[Program, list[Buffer], np.ndarray]:
    """One input that all operands of ``task`` lie in, but for constants, and its bytes."""
    starts: dict[int, int] = {}
    size = 0
    for buffer in task.operands:
        if buffer.root.space != CONSTANT and id(buffer.root) not in starts:
            starts[id(buffer.root)] = size
            size += -(-buffer.root.nbytes // ALIGNMENT) * ALIGNMENT + ALIGNMENT
    data = Buffer("data", "uint8", max(size, 1), INPUT)
    values = np.zeros(data.elements, np.uint8)
    operands = []
    for buffer in task.operands:
        if buffer.root.space == CONSTANT:
            operands.append(buffer)
            continue
        itemsize = np.dtype(buffer.dtype).itemsize
        first = starts[id(buffer.root)]
        values[first : first + buffer.root.nbytes] = _random(buffer.root)
        offset = first // itemsize + buffer.root_offset
        operands.append(replace(buffer, parent=data, parent_offset=offset, offset=None))
    return Program("plans", [Tensor("data", (data.elements,), data)], []), operands, values


def _random(buffer: Buffer) -> np.ndarray:
    """The bytes of random values: floats in [-0.5, 0.5), integers over their whole range."""
    generator = np.random.default_rng(buffer.elements)
    if buffer.dtype.startswith("float"):
        return (generator.random(buffer.elements) - 0.5).astype(buffer.dtype).view(np.uint8)
    return generator.integers(0, 256, buffer.nbytes, np.uint8)
