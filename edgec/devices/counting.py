"""Instructions that one inference takes on an emulated board: exact and repeatable, and never a time.

The emulator counts through a plugin (``runtimes/qemu``) and writes the count down whenever the runner reads the
clock: before and after a run, and before and after each step of a run that is profiled.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from edgec.artifact import read_manifest
from edgec.benchmark import random_inputs
from edgec.building.toolchain import find_toolchain, host_triple
from edgec.data.samples import Array, Samples, load_npz, specs
from edgec.devices import cortex_m
from edgec.devices.device import QemuDevice, emulate
from edgec.errors import EdgecError
from edgec.runtimes.build import SOURCE_FOLDER, cache_folder

PLUGIN_SOURCE = SOURCE_FOLDER.parent / "qemu" / "count_instructions.c"

CLOCK_CALLS = {"aarch64-linux-gnu": 113, "arm-linux-gnueabihf": 403}
"""The number of the system call ``clock_gettime`` (of 64 bits), by the system's triple."""

MARKS_BEFORE_RUNS = 2
"""How often the runner reads the clock before its first run: around opening the artifact."""


@dataclass(frozen=True)
class StepCount:
    """Instructions of one step of the program, and of reading the clock twice."""

    name: str
    kernel: str
    macs: int
    instructions: int


@dataclass(frozen=True)
class Counts:
    """What :func:`count_instructions` counted on the emulated ``cpu``.

    Attributes:
        cpu: the emulator's name of the processor.
        instructions: of one inference in the steady state, reading the clock twice included.
        macs: multiply-adds of the program.
        steps: the same inference, step by step.
    """

    cpu: str
    instructions: int
    macs: int
    steps: tuple[StepCount, ...]


def count(artifact: Path, device: QemuDevice, *, inputs: Path | None = None, seed: int = 0) -> Counts:
    """Count the instructions of one inference, of the first sample of an ``.npz`` or of random values.

    Args:
        artifact: what ``edgec compile`` wrote.
        device: the emulated board.
        inputs: the ``.npz``; random values (``seed``) without it.
        seed: of the random input.

    Raises:
        EdgecError: see :func:`count_instructions`; an input that does not fit.
    """
    tensors = specs(read_manifest(artifact)["inputs"])
    values = load_npz(inputs, tensors).read(0) if inputs else random_inputs(tensors, seed)
    return count_instructions(artifact, values, device)


def count_instructions(artifact: Path, values: Mapping[str, Array], device: QemuDevice) -> Counts:
    """Count the instructions of the inference of ``values``, on one thread, after one that is not counted.

    Args:
        artifact: what ``edgec compile`` wrote.
        values: an array for every input.
        device: the emulated board.

    Raises:
        EdgecError: the artifact does not fit, or the emulator or a C compiler for its plugin is missing.
    """
    manifest = read_manifest(artifact)
    if manifest["triple"] == cortex_m.TRIPLE:
        return _count_bare_metal(artifact, manifest, values)
    sample = Samples(1, None, lambda index: dict(values))
    whole = _marks(artifact, manifest, sample, device, ())
    steps = _marks(artifact, manifest, sample, device, ("--profile", "profile.json"))[1:-1]
    facts = manifest["steps"]
    counted = [end - start for start, end in zip(steps[::2], steps[1::2], strict=True)]
    return Counts(
        cpu=device.cpu or manifest["cpu"],
        instructions=whole[-1] - whole[0],
        macs=sum(step["macs"] for step in facts),
        steps=tuple(
            StepCount(step["name"], step["kernel"], step["macs"], instructions)
            for step, instructions in zip(facts, counted, strict=True)
        ),
    )


def _count_bare_metal(artifact: Path, manifest: dict[str, Any], values: Mapping[str, Array]) -> Counts:
    """The same on a Cortex-M: there is no system to call, and the program marks its runs and steps by ``yield``."""
    sample = Samples(1, None, lambda index: dict(values))
    facts = manifest["steps"]
    marks = []
    for by_step in (False, True):
        with tempfile.TemporaryDirectory(prefix="edgec-count-") as name:
            folder = Path(name)
            options = ["-plugin", f"{plugin()},out=counts.txt,yield=on"]
            cortex_m.emulate(artifact, manifest, sample, folder, options, by_step=by_step)
            marks.append([int(line) for line in (folder / "counts.txt").read_text(encoding="utf-8").split()])
    whole, steps = marks
    counted = [end - start for start, end in pairwise(steps[: len(facts) + 1])]
    return Counts(
        cpu=manifest["cpu"],
        instructions=whole[1] - whole[0],
        macs=sum(step["macs"] for step in facts),
        steps=tuple(
            StepCount(step["name"], step["kernel"], step["macs"], instructions)
            for step, instructions in zip(facts, counted, strict=True)
        ),
    )


def _marks(
    artifact: Path, manifest: dict[str, Any], sample: Samples, device: QemuDevice, flags: Sequence[str]
) -> list[int]:
    """The counts at every reading of the clock in the one run that is measured."""
    mark = CLOCK_CALLS[manifest["triple"]]
    with tempfile.TemporaryDirectory(prefix="edgec-count-") as name:
        folder = Path(name)
        options = ["-plugin", f"{plugin()},out=counts.txt,mark={mark}"]
        emulate(artifact, manifest, sample, folder, cpu=device.cpu, options=options, flags=["--warmup", "1", *flags])
        counts = [int(line) for line in (folder / "counts.txt").read_text(encoding="utf-8").split()]
    # the last count is the end of the process
    return counts[MARKS_BEFORE_RUNS:-1]


def plugin() -> Path:
    """The plugin, built for this machine if the cache does not have it."""
    toolchain = find_toolchain(host_triple())
    key = hashlib.sha256(PLUGIN_SOURCE.read_bytes() + repr((toolchain.cc, toolchain.version)).encode()).hexdigest()
    path = cache_folder() / "qemu" / f"count-{key[:16]}.so"
    if not path.exists():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            scratch = tempfile.mkdtemp(prefix=".count-", dir=path.parent)
            # renamed when it is complete, so that whoever comes second finds a whole file
            toolchain.compile([PLUGIN_SOURCE], Path(scratch) / path.name).replace(path)
            shutil.rmtree(scratch)
        except OSError as error:
            raise EdgecError(f"the counting plugin cannot be written to '{path.parent}': {error.strerror}") from error
    return path
