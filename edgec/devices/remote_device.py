"""Artifacts on a machine that is reached over ssh or adb: the runner, the artifact and the inputs go there, the outputs
and the times come back, and the machine's state before and after is noted."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgec.artifact import read_manifest
from edgec.building.toolchain import is_android
from edgec.data.samples import Array, Samples, read_raw, specs, write_raw
from edgec.devices.device import Device, Progress, Results, end_of, width_flags
from edgec.devices.machine import Machine
from edgec.devices.remote import NOT_FOUND, Ended, Transport, open_transport, workplace
from edgec.devices.state import RUNS_ON, State, machine_of, read_state
from edgec.errors import EdgecError
from edgec.runtimes.build import build_runtime

_NOT_EXECUTABLE = 126


@dataclass(frozen=True)
class Profiled:
    """What the runner told: nanoseconds of each run, its steps if they were measured, outputs by name, the machine."""

    run_ns: tuple[int, ...]
    steps: list[dict[str, Any]]
    outputs: dict[str, Array]
    machine: Machine


class RemoteDevice(Device):
    """The machine at the end of a transport."""

    is_emulated = False

    def __init__(self, url: str, width: int | None = None) -> None:
        self.transport, self.width = open_transport(url), width

    def at_width(self, bits: int) -> RemoteDevice:
        return RemoteDevice(self.transport.url, bits)

    def run(self, artifact: Path, samples: Samples, *, threads: int = 1, progress: Progress | None = None) -> Results:
        with self.transport.connected():
            found = self.profile(artifact, samples, ["--threads", str(threads), "--no-steps"], progress)
        return Results(found.outputs, found.run_ns, found.machine)

    def profile(
        self, artifact: Path, samples: Samples, flags: Sequence[str], progress: Progress | None = None
    ) -> Profiled:
        """Run ``samples``, with more flags of ``edgert-run``.

        Raises:
            EdgecError: as :meth:`run`.
        """
        manifest = read_manifest(artifact)
        tell = progress or (lambda what, done, total: None)
        tell("copying", 0, 1)
        before = read_state(self.transport)
        _check(self.transport, artifact, manifest, before)
        runner = build_runtime(manifest["triple"]).runner
        with tempfile.TemporaryDirectory(prefix="edgec-remote-") as name, workplace(self.transport) as there:
            folder = Path(name)
            write_raw(folder / "inputs.bin", specs(manifest["inputs"]), samples)
            there.push(runner, artifact, folder / "inputs.bin")
            tell("runs", 0, len(samples))
            files = ["--inputs", "inputs.bin", "--outputs", "outputs.bin", "--profile", "profile.json"]
            more = ["--count", str(len(samples)), *flags, *width_flags(self.width)]
            _check_end(self.transport, there.run(runner.name, f"./{artifact.name}", *files, *more))
            for each in ("outputs.bin", "profile.json"):
                there.pull(each, folder / each)
            machine = machine_of(before, read_state(self.transport))
            profile = json.loads((folder / "profile.json").read_text(encoding="utf-8"))
            outputs = read_raw(folder / "outputs.bin", specs(manifest["outputs"]), len(samples))
        tell("runs", len(samples), len(samples))
        return Profiled(tuple(profile["runs_ns"]), profile["steps"], outputs, machine)


def _check(transport: Transport, artifact: Path, manifest: dict[str, Any], state: State) -> None:
    """Refuse an artifact that is for another system, before anything is copied."""
    triple, wants_android = manifest["triple"], transport.url.startswith("adb:")
    if is_android(triple) != wants_android:
        kind, target = ("Android", "android-arm64") if wants_android else ("no Android", "rpi4")
        raise EdgecError(
            f"'{artifact}' is for {triple} and {transport.url} is {kind}; compile it for {target}, for example"
        )
    if RUNS_ON.get(triple) != state.runs:
        raise EdgecError(
            f"'{artifact}' is for {triple} (target {manifest['target']}) and {transport.url} runs programs for "
            f"{state.runs}; compile it for that one"
        )


def _check_end(transport: Transport, ended: Ended) -> None:
    message = ended.errors.strip()
    if ended.code == 0:
        return
    if ended.code == 2 and message.startswith("edgert-run: "):
        raise EdgecError(message.removeprefix("edgert-run: "))
    if "GLIBC_" in message or ended.code in (NOT_FOUND, _NOT_EXECUTABLE):
        raise EdgecError(
            f"{transport.url} cannot start edgert-run ({message.rpartition(chr(10))[2] or 'no message'}); if its C "
            f"library is older than this machine's, link with zig: pip install ziglang, and set EDGEC_CC_<triple> "
            f"to 'python -m ziglang cc -target <triple>.2.28'"
        )
    raise EdgecError(f"edgert-run on {transport.url} {end_of(ended.code)}: {message or 'it left no message'}")
