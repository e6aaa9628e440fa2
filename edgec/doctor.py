"""Whether this machine has what edgec needs: each finding comes with the command that mends it."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata

from edgec.building.toolchain import ZIG_TARGETS, find_toolchain
from edgec.devices import cortex_m
from edgec.devices.device import EMULATORS
from edgec.devices.opencl import device_names
from edgec.errors import EdgecError
from edgec.runtimes.build import cache_folder
from edgec.targets.floats import FULL
from edgec.targets.fpga.artifact import COMPILERS
from edgec.targets.target import host_target, load_target, target_names
from edgec.tuning.cycles import COMMAND
from edgec.tvm_adapter import TVM_PAIR

OLDEST_PYTHON, NEWEST_PYTHON = (3, 10), (3, 13)
_LIBRARIES = ("onnx", "onnx-ir", "onnxscript", "onnxruntime", "numpy")


@dataclass(frozen=True)
class Check:
    """One finding.

    Attributes:
        name: what was looked for.
        ok: whether it is there.
        found: its version or place, or what is there instead.
        needed: whether edgec cannot do without it; the others open a target, a device or a format.
        remedy: the command that mends it; empty if it is ok.
    """

    name: str
    ok: bool
    found: str
    needed: bool
    remedy: str = ""


def examine() -> list[Check]:
    """Every check, the needed ones first."""
    here = [*_python(), *_compilers(), _cache(), _processor()]
    checks = [*here, *_emulator(), _analyser(), _gpu(), _simulator(), *_extras()]
    return sorted(checks, key=lambda check: not check.needed)


def _python() -> Iterator[Check]:
    version = sys.version_info[:2]
    fits = OLDEST_PYTHON <= version <= NEWEST_PYTHON
    yield Check("Python", fits, platform.python_version(), True, "" if fits else "install Python 3.10 to 3.13")
    pins = " ".join(f"'{name}=={wanted}'" for name, wanted in TVM_PAIR.items())
    for name, wanted in TVM_PAIR.items():
        found = _version(name)
        yield Check(name, found == wanted, found or "missing", True, "" if found == wanted else f"pip install {pins}")
    for name in _LIBRARIES:
        found = _version(name)
        yield Check(name, found is not None, found or "missing", True, "" if found else f"pip install {name}")


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _compilers() -> Iterator[Check]:
    """A C compiler for this machine, and for every other system among the targets."""
    own = host_target().triple
    triples = {own: "host"}
    for target in map(load_target, target_names()[1:]):
        if target.floats != FULL:  # the same processor once more
            continue
        name, triple = target.name, target.triple
        triples[triple] = f"{triples[triple]}, {name}" if triple in triples else name
    for triple, targets in triples.items():
        yield _compiler(triple, targets, needed=triple == own)


def _compiler(triple: str, targets: str, *, needed: bool) -> Check:
    name = f"C compiler for {triple} ({targets})"
    try:
        toolchain = find_toolchain(triple)
        version = toolchain.version
    except EdgecError as error:
        return Check(name, False, "missing", needed, str(error).rpartition("run: ")[2] or str(error))
    return Check(name, True, version if "ziglang" not in toolchain.cc else f"zig {version}", needed)


def _cache() -> Check:
    """The folder where libedgert is kept; it may not be there yet."""
    folder = cache_folder()
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    ok = existing.is_dir() and os.access(existing, os.W_OK)
    remedy = "" if ok else "set EDGEC_CACHE_DIR to a folder that can be written"
    return Check("cache folder", ok, str(folder), True, remedy)


def _processor() -> Check:
    try:
        return Check("CPU features", True, " ".join(host_target().features) or "none that kernels use", True)
    except EdgecError as error:
        return Check("CPU features", False, platform.machine(), True, str(error))


def _analyser() -> Check:
    """What tells the tuner cycles of a board that is not here."""
    there = shutil.which(COMMAND) is not None
    return Check(f"{COMMAND} (edgec tune --device qemu)", there, "found" if there else "missing", False,
                 "" if there else "apt-get install llvm")  # fmt: skip


def _emulator() -> Iterator[Check]:
    for emulator in EMULATORS.values():
        path, there = shutil.which(emulator.command), emulator.has_library
        yield Check(
            f"{emulator.command} (--device qemu)", path is not None, _qemu_version(path) if path else "missing", False,
            "" if path else "apt-get install qemu-user",
        )  # fmt: skip
        yield Check(
            f"C library of {emulator.triple} (--device qemu)", there, str(emulator.sysroot) if there else "missing",
            False, "" if there else f"apt-get install {emulator.package}",
        )  # fmt: skip
    path = shutil.which(cortex_m.EMULATOR)
    yield Check(
        f"{cortex_m.EMULATOR} (--device qemu, Cortex-M)", path is not None, _qemu_version(path) if path else "missing",
        False, "" if path else "apt-get install qemu-system-arm",
    )  # fmt: skip


def _gpu() -> Check:
    names = device_names()
    remedy = "" if names else "apt-get install ocl-icd-libopencl1 pocl-opencl-icd, or the GPU's own driver"
    return Check("OpenCL device (targets for GPUs)", bool(names), ", ".join(names) or "missing", False, remedy)


def _simulator() -> Check:
    found = next((path for path in map(shutil.which, COMPILERS) if path), None)
    remedy = "" if found else "apt-get install g++"
    return Check("C++ compiler (C simulation of FPGA projects)", found is not None, found or "missing", False, remedy)


def _qemu_version(path: str) -> str:
    done = subprocess.run([path, "--version"], capture_output=True, text=True, check=False)
    match = re.search(r"version (\S+)", done.stdout)
    return match[1] if match else path


def _extras() -> Iterator[Check]:
    extras = {"ziglang": "cross", "pillow": "vision", "openvino": "peers", "jinja2": "fpga"}
    uses = {
        "ziglang": f"builds for {', '.join(ZIG_TARGETS)}",
        "pillow": "reads folders of images",
        "openvino": "bench --against openvino",
        "jinja2": "writes FPGA projects",
    }
    for package, extra in extras.items():
        found = _version(package)
        remedy = "" if found else f"pip install 'edgec[{extra}]'"
        yield Check(f"{package} ({uses[package]})", found is not None, found or "missing", False, remedy)
