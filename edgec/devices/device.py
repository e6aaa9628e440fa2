"""Where an artifact runs: this machine, or an emulated one, behind one interface.

``local`` runs in this process through libedgert. ``qemu[:cpu]`` runs the same library, built for the artifact's
system, under qemu-user, and objects for Cortex-M in qemu-system-arm (:mod:`edgec.devices.cortex_m`): it shows what a
board computes, and says nothing about how long the board takes. ``ssh://``, ``adb://`` and ``rpc://`` are machines
elsewhere (:mod:`edgec.devices.remote_device`).
"""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from edgec.data.samples import Array, Samples, TensorSpec, in_integers, read_raw, specs, write_raw
from edgec.devices import cortex_m
from edgec.devices.machine import Machine
from edgec.errors import EdgecError
from edgec.targets.formats import format_of

WORKING = "local, qemu[:cpu], ssh://[user@]host[:port], adb://serial and rpc://tracker[:port]/key"


@dataclass(frozen=True)
class Emulator:
    """What runs artifacts of another system: qemu-user, and that system's C library where Debian keeps it.

    Attributes:
        triple: the system's.
        command: of qemu.
        loader: the file name of the system's loader.
        package: Debian's package of the C library.
    """

    triple: str
    command: str
    loader: str
    package: str

    @property
    def sysroot(self) -> Path:
        """The folder of the C library."""
        return Path("/usr") / self.triple

    @property
    def has_library(self) -> bool:
        """Whether the C library is installed."""
        return (self.sysroot / "lib" / self.loader).exists()

    def require(self) -> None:
        """Refuse to go on where it is not installed.

        Raises:
            EdgecError: saying what to install.
        """
        if shutil.which(self.command) is None:
            raise EdgecError(f"--device qemu needs {self.command}; run: apt-get install qemu-user")
        if not self.has_library:
            raise EdgecError(
                f"--device qemu needs the C library of {self.triple} in {self.sysroot}; "
                f"run: apt-get install {self.package}"
            )

    def run(self, cpu: str) -> list[str]:
        """The command that runs a program on an emulated ``cpu``, named as LLVM names it."""
        return [self.command, "-cpu", "max" if cpu == "generic" else cpu, "-L", str(self.sysroot)]


EMULATORS = {
    emulator.triple: emulator
    for emulator in (
        Emulator("aarch64-linux-gnu", "qemu-aarch64", "ld-linux-aarch64.so.1", "libc6-arm64-cross"),
        Emulator("arm-linux-gnueabihf", "qemu-arm", "ld-linux-armhf.so.3", "libc6-armhf-cross"),
    )
}
"""By the system's triple; every Linux board among the targets has one of these systems."""

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Results:
    """What the runs gave.

    Attributes:
        outputs: for every output an array [runs, *shape].
        run_ns: wall time of every run on the device, in nanoseconds; the emulator's time on an emulator.
        machine: its state meanwhile, of a device that is another machine.
    """

    outputs: dict[str, Array]
    run_ns: tuple[int, ...]
    machine: Machine | None = None

    def by_sample(self, batch: int) -> dict[str, Array]:
        """The outputs with samples as first axis, as files of inputs have it.

        An output whose own first axis is not the ``batch`` keeps its runs as first axis, if there are several.
        """
        return {name: _by_sample(array, batch) for name, array in self.outputs.items()}


class Device(ABC):
    """A machine that runs artifacts. ``is_emulated`` tells that its times are not a device's latency."""

    is_emulated: ClassVar[bool]

    def at_width(self, bits: int) -> Device:
        """The same device, on which nested weights are read at ``bits`` (see :mod:`edgec.format.widths`).

        Raises:
            EdgecError: what it runs has no widths.
        """
        raise EdgecError(f"--width {bits} is for artifacts that libedgert runs; leave it out")

    @abstractmethod
    def run(self, artifact: Path, samples: Samples, *, threads: int = 1, progress: Progress | None = None) -> Results:
        """Run ``samples`` one after the other.

        Args:
            artifact: what ``edgec compile`` wrote.
            samples: the inputs of every run.
            threads: how many share the work of a run.
            progress: told (what, done, total).

        Raises:
            EdgecError: the artifact is damaged or not for this device, or the device cannot be used.
        """


@dataclass(frozen=True)
class LocalDevice(Device):
    """This machine, in this process; with ``fallback`` "cpu" an artifact for a GPU may run without one."""

    fallback: str | None = None
    width: int | None = None
    is_emulated = False

    def at_width(self, bits: int) -> Device:
        return replace(self, width=bits)

    def run(self, artifact: Path, samples: Samples, *, threads: int = 1, progress: Progress | None = None) -> Results:
        from edgec.runtimes.python.session import Session

        if artifact.suffix == ".o":
            raise EdgecError(
                f"'{artifact}' is an object to link into a program; compile with -o {artifact.stem}.so to run it here, "
                f"or give --device qemu if it is for a Cortex-M"
            )

        with Session(artifact, threads, fallback=self.fallback) as session:
            if self.width is not None:
                session.set_width(self.width)
            outputs = _empty_outputs(specs_of(session.outputs), len(samples))
            run_ns = []
            for index, inputs in enumerate(samples):
                results = session.bind(inputs)
                start = time.perf_counter_ns()
                session.invoke()
                run_ns.append(time.perf_counter_ns() - start)
                for name, array in results.items():
                    outputs[name][index] = array
                if progress:
                    progress("runs", index + 1, len(samples))
        return Results(outputs, tuple(run_ns))


@dataclass(frozen=True)
class RuntimeDevice(Device):
    """Another runtime on this machine, for files that edgec compiled to its format; ``name`` is its adapter's."""

    name: str
    is_emulated = False

    def run(self, artifact: Path, samples: Samples, *, threads: int = 1, progress: Progress | None = None) -> Results:
        from edgec.artifact import read_manifest
        from edgec.evaluation import run_peer
        from edgec.runtimes.peers import open_peer

        manifest = read_manifest(artifact)
        shapes = {spec.name: spec.shape for spec in specs(manifest["inputs"])}
        results = run_peer(open_peer(self.name, artifact, threads=threads, shapes=shapes), samples, progress)
        return replace(results, outputs=in_integers(specs(manifest["outputs"]), results.outputs))


@dataclass(frozen=True)
class QemuDevice(Device):
    """An emulated ``cpu`` (as ``qemu-aarch64 -cpu help`` lists them); None takes the artifact's own."""

    cpu: str | None = None
    width: int | None = None
    is_emulated = True

    def at_width(self, bits: int) -> Device:
        return replace(self, width=bits)

    def run(self, artifact: Path, samples: Samples, *, threads: int = 1, progress: Progress | None = None) -> Results:
        from edgec.artifact import read_manifest

        manifest = read_manifest(artifact)
        if progress:
            progress("runs", 0, len(samples))
        if manifest["triple"] == cortex_m.TRIPLE:
            return self._run_bare_metal(artifact, manifest, samples)
        with tempfile.TemporaryDirectory(prefix="edgec-qemu-") as name:
            folder = Path(name)
            flags = ["--profile", "profile.json", "--threads", str(threads), *width_flags(self.width)]
            emulate(artifact, manifest, samples, folder, cpu=self.cpu, flags=flags)
            profile = json.loads((folder / "profile.json").read_text(encoding="utf-8"))
            outputs = read_raw(folder / "outputs.bin", specs(manifest["outputs"]), len(samples))
        return Results(outputs, tuple(profile["runs_ns"]))

    def _run_bare_metal(self, artifact: Path, manifest: dict[str, Any], samples: Samples) -> Results:
        if self.width is not None:
            raise EdgecError("--width does not reach a microcontroller's program, which calls edgert_set_width itself")
        if self.cpu is not None:
            raise EdgecError(f"'{artifact}' runs only on the core it was compiled for; use --device qemu")
        with tempfile.TemporaryDirectory(prefix="edgec-qemu-") as name:
            start = time.perf_counter_ns()
            run = cortex_m.emulate(artifact, manifest, samples, Path(name))
            each = (time.perf_counter_ns() - start) // max(1, len(samples))
            outputs = read_raw(run.outputs, specs(manifest["outputs"]), len(samples))
        return Results(outputs, (each,) * len(samples))


def width_flags(width: int | None) -> list[str]:
    """How ``edgert-run`` is told of a width."""
    return [] if width is None else ["--width", str(width)]


def emulate(
    artifact: Path,
    manifest: dict[str, Any],
    samples: Samples,
    folder: Path,
    *,
    cpu: str | None = None,
    options: Sequence[str] = (),
    flags: Sequence[str] = (),
) -> None:
    """Run ``samples`` under qemu-user in ``folder``, which holds ``outputs.bin`` then.

    Args:
        artifact: what ``edgec compile`` wrote.
        manifest: the artifact's.
        samples: the inputs of every run.
        folder: an empty one.
        cpu: as ``qemu-aarch64 -cpu help`` lists them; None takes the artifact's own.
        options: more options of the emulator.
        flags: more flags of ``edgert-run``.

    Raises:
        EdgecError: the artifact is damaged or for another system, or the emulator cannot be used.
    """
    from edgec.runtimes.build import build_runtime

    emulator = _require_emulator(artifact, manifest)
    runner = build_runtime(emulator.triple).runner
    write_raw(folder / "inputs.bin", specs(manifest["inputs"]), samples)
    command = [
        *emulator.run(cpu or manifest["cpu"]), *options, str(runner), str(artifact.resolve()),
        "--inputs", "inputs.bin", "--outputs", "outputs.bin", "--count", str(len(samples)), *flags,
    ]  # fmt: skip
    _emulate(command, folder)


def open_device(url: str, artifact: Path | None = None, width: int | None = None) -> Device:
    """The device that a URL names; an FPGA project's own is its C simulation, here.

    Args:
        url: as :data:`WORKING` spells them.
        artifact: what it is to run.
        width: the bits at which nested weights are read; see :meth:`Device.at_width`.

    Raises:
        EdgecError: any other URL than :data:`WORKING`, and says which work; or a width where there are none.
    """
    device = _device_of(url, artifact)
    return device if width is None else device.at_width(width)


def _device_of(url: str, artifact: Path | None) -> Device:
    kind, colon, cpu = url.partition(":")
    if url == "local" and artifact is not None and artifact.is_dir():
        from edgec.targets.fpga.simulation import SimulatedDevice

        return SimulatedDevice()
    kind_of_file = None if artifact is None else format_of(artifact)
    if kind_of_file is not None:
        if url != "local":
            raise EdgecError(f"'{artifact}' is for {kind_of_file.name}, which runs on this machine; leave --device out")
        return RuntimeDevice(kind_of_file.runtime)
    if url == "local":
        return LocalDevice()
    if kind == "qemu" and bool(colon) == bool(cpu):
        return QemuDevice(cpu or None)
    if kind in ("ssh", "adb", "rpc"):
        from edgec.devices.remote_device import RemoteDevice

        return RemoteDevice(url)
    raise EdgecError(f"there is no device '{url}'; the devices that work are {WORKING}")


def _by_sample(output: Array, batch: int) -> Array:
    if output.ndim > 1 and output.shape[1] == batch:
        return output.reshape(-1, *output.shape[2:])
    return output[0] if len(output) == 1 else output


def specs_of(tensors: Sequence[Any]) -> tuple[TensorSpec, ...]:
    """The inputs or outputs of an open session."""
    return tuple(TensorSpec(t.name, t.shape, t.dtype, t.scale, t.zero_point) for t in tensors)


def _empty_outputs(outputs: Sequence[TensorSpec], runs: int) -> dict[str, Array]:
    return {spec.name: np.empty((runs, *spec.shape), spec.dtype) for spec in outputs}


def _require_emulator(artifact: Path, manifest: dict[str, Any]) -> Emulator:
    """The emulator of the artifact's system; refuses other systems, and says what to install when it cannot run."""
    emulator = EMULATORS.get(manifest["triple"])
    if emulator is None or artifact.suffix == ".o":
        raise EdgecError(
            f"'{artifact}' is for {manifest['triple']} (target {manifest['target']}), and qemu runs only "
            f"{' and '.join(EMULATORS)} artifacts; compile it for rpi4, for example, or use --device local"
        )
    emulator.require()
    return emulator


def _emulate(command: Sequence[str], folder: Path) -> None:
    done = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, errors="replace", stdin=subprocess.DEVNULL, check=False
    )
    if done.returncode == 0:
        return
    message = done.stderr.strip()
    if done.returncode == 2 and message.startswith("edgert-run: "):
        raise EdgecError(message.removeprefix("edgert-run: "))
    if "unable to find CPU model" in message:
        raise EdgecError(f"qemu knows no cpu '{command[2]}'; '{command[0]} -cpu help' lists those it knows")
    raise EdgecError(f"qemu with cpu '{command[2]}' {end_of(done.returncode)}: {message or 'it left no message'}")


def end_of(code: int) -> str:
    """How a process ended, in words."""
    number = -code if code < 0 else code - 128
    known = {each.value: each.name for each in signal.Signals}
    return f"ended by {known[number]}" if number in known else f"ended with exit code {code}"
