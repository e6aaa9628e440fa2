"""Programs for Android, run here: under an emulator, with glibc under the names of Android's libraries."""

from __future__ import annotations

import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

SOURCE = Path(__file__).with_name("bionic.c")


@dataclass(frozen=True)
class Phone:
    """One of Android's systems.

    Attributes:
        target: edgec's name of it.
        triple: the system's, as compilers name it.
        abi: the name of its libraries' folder in a package.
        emulator: the command that runs its programs, on the least processor that the system may have.
        glibc: zig's name of the same processor with glibc.
        loader: glibc's, whose folder has the other libraries, too.
        package: Debian's, with glibc.
        interpreter: the loader that its executables name.
    """

    target: str
    triple: str
    abi: str
    emulator: tuple[str, ...]
    glibc: str
    loader: Path
    package: str
    interpreter: str = "/system/bin/linker64"

    def require(self) -> None:
        """Skip the test where something to run programs with is missing."""
        if shutil.which(self.emulator[0]) is None or not self.loader.exists():
            pytest.skip(f"qemu-user or {self.package} is not installed; .ci/install-tools does it")

    def libraries(self, folder: Path) -> Path:
        """Fill ``folder`` with libraries of Android's names; the first brings glibc with it, the others are empty."""
        link = [sys.executable, "-m", "ziglang", "cc", "-target", self.glibc, "-shared", "-fPIC"]
        for name, source in (("libc.so", SOURCE), ("libm.so", "/dev/null"), ("libdl.so", "/dev/null")):
            files = ["-x", "c", source, "-o", folder / name, f"-Wl,-soname,{name}", "-lm"]
            subprocess.run([*link, *files], check=True)
        return folder

    def run(self, libraries: Path, program: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
        """Run a program for Android."""
        loader = [self.loader, "--library-path", f"{libraries}:{self.loader.parent}"]
        command = [*self.emulator, *loader, program, *arguments]
        return subprocess.run([str(each) for each in command], capture_output=True, text=True, check=False)


ARM64 = Phone(
    target="android-arm64",
    triple="aarch64-linux-android",
    abi="arm64-v8a",
    emulator=("qemu-aarch64", "-cpu", "cortex-a53"),
    glibc="aarch64-linux-gnu.2.28",
    loader=Path("/usr/aarch64-linux-gnu/lib/ld-linux-aarch64.so.1"),
    package="libc6-arm64-cross",
)
PHONES = (
    ARM64,
    Phone(
        target="android-armv7",
        triple="armv7a-linux-androideabi",
        abi="armeabi-v7a",
        emulator=("qemu-arm", "-cpu", "cortex-a9"),  # without VFPv4 and division
        glibc="arm-linux-gnueabi.2.28",  # as Android, it passes floats in integer registers
        loader=Path("/usr/arm-linux-gnueabi/lib/ld-linux.so.3"),
        package="libc6-armel-cross",
        interpreter="/system/bin/linker",
    ),
    Phone(
        target="android-x86_64",
        triple="x86_64-linux-android",
        abi="x86_64",
        emulator=("qemu-x86_64", "-cpu", "Nehalem"),  # without AVX
        glibc="x86_64-linux-gnu.2.28",
        loader=Path("/lib64/ld-linux-x86-64.so.2"),
        package="libc6",
    ),
)
