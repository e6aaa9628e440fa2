"""libedgert for every system that a compiler is found for: installed with CMake, a folder each."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from edgec.building.toolchain import Toolchain, find_toolchain
from edgec.errors import EdgecError
from edgec.runtimes.build import SOURCE_FOLDER
from edgec.targets.target import load_target


@dataclass(frozen=True)
class Variant:
    """A system that libedgert is built for.

    Attributes:
        name: of its folder.
        triple: the compiler's.
        processor: as CMake names it.
        system: as CMake names it; ``Generic`` is none.
        flags: what the compiler is told about the processor.
    """

    name: str
    triple: str
    processor: str
    system: str = "Linux"
    flags: tuple[str, ...] = ()


def _cortex(name: str) -> Variant:
    target = load_target(name)
    return Variant(name, target.triple, "arm", "Generic", target.c_flags)


def variants() -> tuple[Variant, ...]:
    """Every system, by the name that its users know."""
    return (
        Variant("linux-x86_64", "x86_64-linux-gnu", "x86_64"),
        Variant("linux-aarch64", "aarch64-linux-gnu", "aarch64"),
        Variant("linux-armv7", "arm-linux-gnueabihf", "arm"),
        Variant("android-arm64-v8a", "aarch64-linux-android", "aarch64"),
        Variant("android-armeabi-v7a", "armv7a-linux-androideabi", "arm"),
        Variant("android-x86_64", "x86_64-linux-android", "x86_64"),
        *map(_cortex, ("cortex-m3", "cortex-m4", "cortex-m7", "cortex-m55")),
    )


@dataclass(frozen=True)
class Built:
    """What became of a variant.

    Attributes:
        name: the variant's.
        folder: what to give CMake as prefix; None where it could not be built.
        compiler: the compiler's own first line about itself.
        shared_bytes: size of the shared library; 0 where there is none.
        static_bytes: size of the static library.
        missing: what it takes to build it; empty if it is built.
    """

    name: str
    folder: Path | None
    compiler: str = ""
    shared_bytes: int = 0
    static_bytes: int = 0
    missing: str = ""


def build_all(output: Path, names: Sequence[str] = ()) -> list[Built]:
    """Build the variants called ``names``, all by default, into folders of ``output``.

    Raises:
        EdgecError: a name that there is not, no CMake, a build that fails, or not one that can be built.
    """
    known = {variant.name: variant for variant in variants()}
    unknown = [name for name in names if name not in known]
    if unknown:
        raise EdgecError(f"there is no libedgert for '{unknown[0]}'; there is one for {', '.join(known)}")
    if shutil.which("cmake") is None:
        raise EdgecError("libedgert is built with CMake, which is missing; run: pip install cmake")
    built = [_build(known[name], output / name) for name in names or known]
    if not any(each.folder for each in built):
        raise EdgecError(f"libedgert was built for no system: {built[0].missing}")
    return built


def _build(variant: Variant, folder: Path) -> Built:
    try:
        toolchain = find_toolchain(variant.triple)
    except EdgecError as error:
        return Built(variant.name, None, missing=str(error))
    with tempfile.TemporaryDirectory(prefix="edgec-prebuilt-") as scratch:
        build, stage = Path(scratch) / "build", Path(scratch) / "stage"
        settings = _settings(variant, toolchain, Path(scratch))
        _cmake("-S", SOURCE_FOLDER, "-B", build, f"-DCMAKE_INSTALL_PREFIX={folder}", *settings)
        _cmake("--build", build, "-j", str(os.cpu_count() or 1))
        _cmake("--install", build, "--prefix", stage)
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(stage, folder, symlinks=True)
    shared, static = folder / "lib" / "libedgert.so", folder / "lib" / "libedgert.a"
    size = shared.stat().st_size if shared.exists() else 0
    return Built(variant.name, folder, toolchain.version, size, static.stat().st_size)


def _settings(variant: Variant, toolchain: Toolchain, scratch: Path) -> list[str]:
    """What CMake has to be told to build for another system."""
    settings = [
        "-DCMAKE_BUILD_TYPE=MinSizeRel" if variant.system == "Generic" else "-DCMAKE_BUILD_TYPE=Release",
        "-DCMAKE_INSTALL_LIBDIR=lib",
        f"-DCMAKE_SYSTEM_NAME={variant.system}",
        f"-DCMAKE_SYSTEM_PROCESSOR={variant.processor}",
        f"-DCMAKE_C_COMPILER={';'.join(toolchain.cc)}",
        f"-DCMAKE_C_FLAGS={shlex.join((*toolchain.flags, *variant.flags))}",
        "-DCMAKE_TRY_COMPILE_TARGET_TYPE=STATIC_LIBRARY",
    ]
    if toolchain.freestanding:
        libraries = [*toolchain.system_libraries(scratch), "-ldl"]
        settings.append(f"-DCMAKE_C_STANDARD_LIBRARIES={shlex.join(libraries)}")
    flags = {"SHARED": ["-s"], "EXE": ["-s", *toolchain.executable_flags()]}
    return settings + [f"-DCMAKE_{kind}_LINKER_FLAGS={shlex.join(each)}" for kind, each in flags.items()]


def _cmake(*arguments: str | Path) -> None:
    command = ["cmake", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    if done.returncode != 0:
        lines = (done.stdout + done.stderr).strip().splitlines()[-8:]
        raise EdgecError(f"CMake failed ({' '.join(command[:4])} …):\n  " + "\n  ".join(lines))
