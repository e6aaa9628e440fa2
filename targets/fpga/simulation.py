"""A project's C simulation as a device: what the FPGA would answer, computed by a C++ compiler's build of its sources.

The build is kept in edgec's cache under a digest of the sources, so that a project that was changed is built again.
"""

from __future__ import annotations

import hashlib
import os
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from edgec.data.samples import Array, Samples
from edgec.devices.device import Device, Progress, Results
from edgec.errors import EdgecError
from edgec.grid import dequantise, quantise
from edgec.runtimes.build import cache_folder
from edgec.targets.fpga.artifact import COMPILERS, read_project
from edgec.targets.fpga.project import DDR_WEIGHTS, streamed, unstreamed

FLAGS = ("-O2", "-std=c++14", "-Wno-unknown-pragmas", "-Isrc", "-Istubs")


class SimulatedDevice(Device):
    """The C simulation of an FPGA project; its times say nothing about an FPGA."""

    is_emulated = True

    def run(self, artifact: Path, samples: Samples, *, threads: int = 1, progress: Progress | None = None) -> Results:
        if progress:
            progress("C simulation", 0, len(samples))
        return Results(_outputs(simulated_frames(artifact, samples), read_project(artifact)), (0,) * len(samples))


def simulated_frames(project: Path, samples: Samples) -> Array:
    """The bytes that the project in a folder answers to each sample with: int8 [runs, bytes of all outputs]."""
    manifest = read_project(project)
    program = build_simulation(project, manifest)
    with tempfile.TemporaryDirectory(prefix="edgec-fpga-") as name:
        folder = Path(name)
        with (folder / "inputs.bin").open("wb") as file:
            for arrays in samples:
                file.write(b"".join(quantised(port, arrays[port["name"]]).tobytes() for port in manifest["inputs"]))
        if (project / DDR_WEIGHTS).exists():
            shutil.copy(project / DDR_WEIGHTS, folder)
        _simulate([str(program), "inputs.bin", "outputs.bin", str(len(samples))], folder)
        return np.fromfile(folder / "outputs.bin", np.int8).reshape(len(samples), -1)


def quantised(port: Mapping[str, Any], array: Array) -> Array:
    """An input as the bytes that stream for it."""
    if not port["scale"]:
        return streamed(array, port["shape"])
    return streamed(quantise(array, port["scale"], port["zero"], "int8"), port["shape"])


def dequantised(port: Mapping[str, Any], data: Array) -> Array:
    """An output of the bytes that streamed for it: (q − zero) · scale, or sums by their factors, in float32."""
    if port["factors"]:
        sums = np.ascontiguousarray(data).view("<i4").reshape(-1, len(port["factors"]))
        real = unstreamed(sums.astype(np.float32) * np.array(port["factors"], np.float32), port["shape"])
    elif port["scale"]:
        real = dequantise(unstreamed(data, port["shape"]), port["scale"], port["zero"])
    else:
        return unstreamed(data, port["shape"])
    return _softmax(real) if port["softmax"] else real


def _softmax(real: Array) -> Array:
    """Of one row of float32 numbers."""
    powers = np.exp(real - real.max())
    return powers / powers.sum(dtype=np.float32)


def _outputs(frames: Array, manifest: Mapping[str, Any]) -> dict[str, Array]:
    """Every output [runs, *shape] of the frames' bytes."""
    outputs, start = {}, 0
    for port in manifest["outputs"]:
        end = start + int(np.prod(port["shape"])) * (4 if port["factors"] else 1)
        outputs[port["name"]] = np.stack([dequantised(port, frame[start:end]) for frame in frames])
        start = end
    return outputs


def build_simulation(folder: Path, manifest: Mapping[str, Any]) -> Path:
    """The program of the project's test bench, built if the cache does not have it.

    Raises:
        EdgecError: there is no C++ compiler, or it refuses the sources.
    """
    compiler = _compiler()
    sources = [path for name in ("src", "stubs") for path in sorted((folder / name).glob("*")) if path.is_file()]
    digest = hashlib.sha256(repr((compiler, FLAGS)).encode())
    for path in sources:
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    program = cache_folder() / "fpga" / digest.hexdigest()[:16]
    if not program.exists():
        program.parent.mkdir(parents=True, exist_ok=True)
        part = program.with_name(f"{program.name}.{os.getpid()}")
        _compile([*compiler, *FLAGS, f"src/{manifest['top']}.cpp", "src/testbench.cpp", "-o", str(part)], folder)
        part.replace(program)
    return program


def _compiler() -> list[str]:
    """The C++ compiler's command: ``EDGEC_CXX``, or the first that is installed."""
    own = os.environ.get("EDGEC_CXX")
    if own:
        return shlex.split(own)
    found = next((name for name in COMPILERS if shutil.which(name)), None)
    if found is None:
        raise EdgecError("the C simulation of an FPGA project needs a C++ compiler; run: apt-get install g++")
    return [found]


def _compile(command: list[str], folder: Path) -> None:
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, errors="replace", check=False)
    except OSError as error:
        raise EdgecError(f"the C++ compiler '{command[0]}' cannot be run: {error.strerror}; mend EDGEC_CXX") from error
    if done.returncode != 0:
        lines = [line for line in done.stderr.splitlines() if "error" in line] or ["it left no message"]
        raise EdgecError(f"{command[0]} does not compile the project '{folder}': {lines[0]}")


def _simulate(command: list[str], folder: Path) -> None:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, errors="replace", check=False)
    if done.returncode != 0:
        message = done.stderr.strip() or f"it ended with exit code {done.returncode}"
        raise EdgecError(f"the C simulation failed: {message}")
