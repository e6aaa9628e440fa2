"""C compilers: which one builds for a system triple, and running it.

Search order: ``EDGEC_CC_<triple>`` from the environment (``-`` written ``_``), the system's own or cross
compiler, for Android the NDK that ``ANDROID_NDK_HOME`` names, then ``zig cc`` from the ``ziglang`` wheel, which
needs nothing else to build for another machine.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from edgec import runtimes
from edgec.errors import EdgecError

HOST_TRIPLES = {
    "x86_64": "x86_64-linux-gnu",
    "amd64": "x86_64-linux-gnu",
    "aarch64": "aarch64-linux-gnu",
    "arm64": "aarch64-linux-gnu",
    "armv7l": "arm-linux-gnueabihf",
}

ZIG_TARGETS = {
    "x86_64-linux-gnu": "x86_64-linux-gnu.2.28",
    "aarch64-linux-gnu": "aarch64-linux-gnu.2.28",
    "arm-linux-gnueabihf": "arm-linux-gnueabihf.2.28",
    "aarch64-linux-android": "aarch64-linux-android.29",
    "armv7a-linux-androideabi": "arm-linux-androideabi.29",
    "x86_64-linux-android": "x86_64-linux-android.29",
}
"""The oldest glibc an artifact shall run with is 2.28 (Debian 10), the oldest Android is 10."""

ANDROID_FOLDER = Path(runtimes.__file__).parent / "android"
"""Neither zig nor a Debian package has Android's C library: here are the declarations that edgec needs of it."""

ANDROID_FLAGS = (
    "-fPIC",
    "-ffreestanding",
    "-nostdlib",
    f"-I{ANDROID_FOLDER / 'include'}",
    "-Wl,-z,max-page-size=16384",
    "-Wl,-z,norelro",
    "-Wl,--hash-style=both",
)
"""Android's loader rounds RELRO up to whole pages, of 16 KiB on new devices, and would protect data behind it."""

ANDROID_API = 24
"""Android 7; older systems' loaders know no GNU hash tables and lack functions of the C library."""

ANDROID_LIBRARIES = ("libm.so", "libc.so")
"""What everything is linked with; ``-ldl`` adds the third there is."""


@dataclass(frozen=True)
class Toolchain:
    """A C compiler for one system.

    Attributes:
        triple: the system it builds for, e.g. ``aarch64-linux-gnu``.
        cc: the compiler's command, e.g. ``("aarch64-linux-gnu-gcc",)``.
        ar: the archiver's command.
        flags: what every call of the compiler gets.
        freestanding: whether there is no C library to link with, only the names of its functions.
    """

    triple: str
    cc: tuple[str, ...]
    ar: tuple[str, ...]
    flags: tuple[str, ...] = ()
    freestanding: bool = False

    @functools.cached_property
    def version(self) -> str:
        """The compiler's own first line about itself."""
        return self._run([*self.cc, "--version"]).partition("\n")[0]

    def compile(
        self,
        inputs: Iterable[str | os.PathLike[str]],
        output: str | os.PathLike[str],
        *,
        shared: bool = True,
        flags: Sequence[str] = (),
    ) -> Path:
        """Compile C sources and link them, with objects and archives, into one file.

        Args:
            inputs: ``.c``, ``.o`` and ``.a`` files.
            output: the file to write; after a failure it may be there half-written, so write to a scratch
                folder and move it.
            shared: a shared object, else an executable.
            flags: more flags, after the inputs so that ``-l`` works. ``-s`` strips.

        Raises:
            EdgecError: with the compiler's last lines.
        """
        kind = ["-shared"] if shared else self.executable_flags()
        with tempfile.TemporaryDirectory(prefix="edgec-link-") as scratch:
            system = self.system_libraries(Path(scratch))
            files = [os.fspath(path) for path in inputs]
            self._run([*self._command(), *kind, *files, "-o", os.fspath(output), *system, *flags])
        return Path(output)

    def archive(
        self,
        sources: Iterable[str | os.PathLike[str]],
        output: str | os.PathLike[str],
        *,
        flags: Sequence[str] = (),
    ) -> Path:
        """Compile C sources (with distinct names) into a static library.

        Raises:
            EdgecError: with the compiler's last lines.
        """
        with tempfile.TemporaryDirectory(prefix="edgec-archive-") as scratch:
            objects = []
            for source in map(Path, sources):
                objects.append(str(Path(scratch) / f"{source.stem}.o"))
                self.compile_object(source, objects[-1], flags=flags)
            self._run([*self.ar, "rcs", os.fspath(output), *objects])
        return Path(output)

    def compile_object(
        self, source: str | os.PathLike[str], output: str | os.PathLike[str], *, flags: Sequence[str] = ()
    ) -> None:
        """Compile one C source into an object.

        Raises:
            EdgecError: with the compiler's last lines.
        """
        self._run([*self._command(), *flags, "-c", os.fspath(source), "-o", os.fspath(output)])

    def _command(self) -> list[str]:
        position = [] if self.triple.endswith("-none-eabi") else ["-fPIC"]
        return [*self.cc, "-O2", *position, *self.flags]

    def tool(self, name: str) -> str:
        """A tool of the GNU binutils that belongs to the compiler, e.g. ``objcopy``.

        Raises:
            EdgecError: if there is none.
        """
        prefix = "" if HOST_TRIPLES.get(platform.machine().lower()) == self.triple else f"{self.triple}-"
        found = shutil.which(prefix + name)
        if found is None:
            package = f"binutils-{self.triple}" if prefix else "binutils"
            raise EdgecError(f"{prefix}{name} was not found; run: apt-get install {package}")
        return found

    def run_tool(self, name: str, *arguments: str | os.PathLike[str]) -> str:
        """Run :meth:`tool`, and answer with what it prints.

        Raises:
            EdgecError: if there is none, or it fails.
        """
        return self._run([self.tool(name), *(os.fspath(argument) for argument in arguments)])

    def unpadded_flags(self) -> list[str]:
        """Flags that keep code and constants in one segment, as lld does by itself: GNU's linker otherwise begins each
        on a page of its own, which makes every artifact some 4 kB larger."""
        return [] if any("zig" in part for part in self.cc) else ["-Wl,-z,noseparate-code"]

    def executable_flags(self) -> list[str]:
        """Flags of an executable. Of functions that no library here defines, a linker takes only shared objects."""
        return ["-shared", str(ANDROID_FOLDER / "start.c"), "-Wl,-e,_start"] if self.freestanding else []

    def system_libraries(self, scratch: Path) -> list[str]:
        """Link flags for a system without libraries: empty ones that leave only their names."""
        if not self.freestanding:
            return []
        source = scratch / "empty.c"
        source.write_text("", encoding="utf-8")
        for name in (*ANDROID_LIBRARIES, "libdl.so"):
            self._run([*self._command(), "-shared", str(source), f"-Wl,-soname,{name}", "-o", str(scratch / name)])
        libraries = [str(scratch / name) for name in ANDROID_LIBRARIES]
        return [f"-L{scratch}", "-Wl,--no-as-needed", *libraries, "-lcompiler_rt"]

    def _run(self, command: Sequence[str]) -> str:
        try:
            done = subprocess.run(
                command,
                capture_output=True,
                text=True,
                errors="replace",
                stdin=subprocess.DEVNULL,
                check=False,
            )
        except OSError as error:
            raise EdgecError(f"the C compiler '{command[0]}' cannot be started: {error.strerror}") from error
        if done.returncode != 0:
            raise EdgecError(_failure(self.triple, command, done))
        return done.stdout


def is_android(triple: str) -> bool:
    """Whether the system is Android, whose 32-bit ARM has a name of its own (``androideabi``)."""
    return "-android" in triple


def host_triple() -> str:
    """The system triple of this machine.

    Raises:
        EdgecError: on an architecture that edgec does not know.
    """
    machine = platform.machine().lower()
    if machine not in HOST_TRIPLES:
        raise EdgecError(f"edgec cannot build for a {machine} host; compile with --target rpi4 or another board")
    return HOST_TRIPLES[machine]


def find_toolchain(triple: str) -> Toolchain:
    """The compiler for ``triple``: see the search order above.

    Raises:
        EdgecError: if there is none, with the commands that install one.
    """
    found = _from_environment(triple) or _from_system(triple) or _from_ndk(triple) or _from_zig(triple)
    if found is None:
        raise EdgecError(f"no C compiler for {triple} was found; {_remedy(triple)}")
    return found


def _variable(triple: str) -> str:
    return f"EDGEC_CC_{triple.replace('-', '_')}"


def _from_environment(triple: str) -> Toolchain | None:
    command = os.environ.get(_variable(triple), "").strip()
    if not command:
        return None
    cc = tuple(shlex.split(command))
    if shutil.which(cc[0]) is None:
        raise EdgecError(f"{_variable(triple)} names '{cc[0]}', which is no program on this machine")
    return Toolchain(triple, cc, _archiver(cc[0]))


def _archiver(compiler: str) -> tuple[str, ...]:
    """``aarch64-linux-gnu-ar`` for ``aarch64-linux-gnu-gcc``, if there is one; else the system's ``ar``."""
    beside = compiler.rpartition("-")[0] + "-ar"
    return (beside,) if "-" in compiler and shutil.which(beside) else ("ar",)


def _from_system(triple: str) -> Toolchain | None:
    own = ("cc", "gcc", "clang") if HOST_TRIPLES.get(platform.machine().lower()) == triple else ()
    for compiler in (*own, f"{triple}-gcc"):
        if shutil.which(compiler):
            return Toolchain(triple, (compiler,), _archiver(compiler))
    return None


def _from_ndk(triple: str) -> Toolchain | None:
    """Android's own compiler, for the oldest system that has every function."""
    ndk = os.environ.get("ANDROID_NDK_HOME", "").strip()
    if not ndk or not is_android(triple):
        return None
    tools = Path(ndk) / "toolchains" / "llvm" / "prebuilt" / "linux-x86_64" / "bin"
    compiler = tools / f"{triple}{ANDROID_API}-clang"
    if not compiler.exists():
        raise EdgecError(f"ANDROID_NDK_HOME names '{ndk}', where there is no {compiler.relative_to(ndk)}")
    return Toolchain(triple, (str(compiler),), (str(tools / "llvm-ar"),), ("-Wl,-z,max-page-size=16384",))


def _from_zig(triple: str) -> Toolchain | None:
    if triple not in ZIG_TARGETS or importlib.util.find_spec("ziglang") is None:
        return None
    zig = (sys.executable, "-m", "ziglang")
    android = is_android(triple)
    cc = (*zig, "cc", "-target", ZIG_TARGETS[triple])
    return Toolchain(triple, cc, (*zig, "ar"), ANDROID_FLAGS if android else (), freestanding=android)


def _remedy(triple: str) -> str:
    package = {
        "aarch64-linux-gnu": "gcc-aarch64-linux-gnu",
        "arm-linux-gnueabihf": "gcc-arm-linux-gnueabihf",
        "x86_64-linux-gnu": "gcc-x86-64-linux-gnu",
        "arm-none-eabi": "gcc-arm-none-eabi libnewlib-arm-none-eabi",
    }
    own = HOST_TRIPLES.get(platform.machine().lower()) == triple
    system = "gcc" if own else package.get(triple)
    ways = [f"run: apt-get install {system}"] if system else []
    ways += ["run: pip install ziglang"] if triple in ZIG_TARGETS else []
    ways += ["set ANDROID_NDK_HOME to an NDK"] if is_android(triple) else []
    return " or ".join([*ways, f"set {_variable(triple)} to one"])


def _failure(triple: str, command: Sequence[str], done: subprocess.CompletedProcess[str]) -> str:
    output = (done.stderr + done.stdout).strip()
    if "No space left on device" in output:
        folder = tempfile.gettempdir()
        return f"the disk is full: the C compiler for {triple} could not write; free {folder} or set TMPDIR"
    lines = output.splitlines()[-8:]
    detail = "\n  ".join(lines) if lines else f"exit code {done.returncode}, without a message"
    return f"the C compiler for {triple} failed ({' '.join(command[:4])} …):\n  {detail}"
