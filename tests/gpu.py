"""Programs on this machine's OpenCL device: PoCL, which .ci/install-tools installs, or a GPU."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgec.artifact import build_artifact, tensor_entry
from edgec.devices.opencl import device_names
from edgec.planning import memory
from edgec.program import Program
from edgec.runtimes.python.session import Session
from edgec.targets.cpu.backend import compile_program
from edgec.targets.gpu.backend import GpuCode, GpuProgram
from edgec.targets.gpu.target import GpuTarget, load_gpu
from edgec.tuning.records import Records

needs_device = pytest.mark.skipif(not device_names(), reason="no OpenCL device; .ci/install-tools installs PoCL")


def quiet(what: str, done: int, total: int) -> None:
    """Progress that nobody looks at."""


def gpu_session(
    program: Program, folder: Path, target: str | GpuTarget = "opencl", records: Records | None = None
) -> tuple[Session, GpuCode]:
    """``program``, compiled for ``target`` by plans from ``records`` and opened, and its kernels."""
    chosen = load_gpu(target) if isinstance(target, str) else target
    made = GpuProgram(program, chosen)
    if made.program is not program:
        memory.plan(program)
    code = made.compile(quiet, records)
    facts = {
        "name": program.name, "inputs": [tensor_entry(t) for t in program.inputs],
        "outputs": [tensor_entry(t) for t in program.outputs], "steps": [],
    }  # fmt: skip
    data, _ = build_artifact(program, compile_program(program, chosen.host, quiet), chosen.host, facts, code)
    path = folder / f"{chosen.name}.so"
    path.write_bytes(data)
    return Session(path), code


def run_on_gpu(
    program: Program, folder: Path, inputs: dict[str, np.ndarray], target: str | GpuTarget = "opencl",
    records: Records | None = None,
) -> dict[str, np.ndarray]:
    """One run of ``program`` on the device."""
    with gpu_session(program, folder, target, records)[0] as session:
        return session.run(inputs)
