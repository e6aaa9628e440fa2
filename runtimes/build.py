"""Builds libedgert and its runner for a system, once: later calls find the files in the user's cache."""

from __future__ import annotations

import functools
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from edgec.building.toolchain import ANDROID_FOLDER, Toolchain, find_toolchain, is_android
from edgec.errors import EdgecError

SOURCE_FOLDER = Path(__file__).parent / "c"

SOURCES = ("include/edgert/*.h", "src/*.[ch]", "tools/*.c")
"""What is compiled, below the source folder."""

FLAGS = ("-std=c11", "-fvisibility=hidden", "-ffunction-sections", "-fdata-sections")
LINK_FLAGS = ("-s", "-Wl,--gc-sections", "-Wl,-z,norelro", "-ldl")
"""With RELRO the file would hold a hole as large as the largest page, 64 KiB on aarch64."""


@dataclass(frozen=True)
class RuntimeFiles:
    """libedgert for one system: shared and static library, the tools, and the folder of its headers."""

    shared: Path
    static: Path
    runner: Path
    selftest: Path
    include: Path


def cache_folder() -> Path:
    """Where edgec keeps what it can build again: ``EDGEC_CACHE_DIR``, or ``edgec`` in the user's cache.

    Raises:
        EdgecError: for a user without a home folder.
    """
    own, system = os.environ.get("EDGEC_CACHE_DIR"), os.environ.get("XDG_CACHE_HOME")
    if own:
        return Path(own)
    try:
        return Path(system or Path.home() / ".cache") / "edgec"
    except RuntimeError as error:
        raise EdgecError("this user has no home folder; set EDGEC_CACHE_DIR to a folder for edgec's cache") from error


def build_runtime(triple: str, *, cache_dir: Path | None = None) -> RuntimeFiles:
    """libedgert for ``triple``, built if the cache does not have it. Safe under concurrent calls.

    Args:
        triple: system triple, e.g. ``aarch64-linux-gnu``.
        cache_dir: instead of :func:`cache_folder`.

    Raises:
        EdgecError: without a compiler or a writable cache folder.
    """
    return _build_once(triple, find_toolchain(triple), Path(cache_dir or cache_folder()))


@functools.cache
def _build_once(triple: str, toolchain: Toolchain, cache: Path) -> RuntimeFiles:
    folder = cache / "runtime" / f"{triple}-{_key(toolchain)}"
    if not folder.is_dir():
        try:
            _build_beside(toolchain, folder)
        except OSError as error:
            raise EdgecError(
                f"libedgert cannot be written to '{folder.parent}': {error.strerror}; set EDGEC_CACHE_DIR to "
                f"a folder that can be written"
            ) from error
    return _files(folder)


def _files(folder: Path) -> RuntimeFiles:
    shared, static = folder / "libedgert.so", folder / "libedgert.a"
    return RuntimeFiles(shared, static, folder / "edgert-run", folder / "edgert-selftest", SOURCE_FOLDER / "include")


def _sources() -> list[Path]:
    return sorted(SOURCE_FOLDER.glob("src/*.c"))


def _key_parts(toolchain: Toolchain) -> Iterator[bytes]:
    yield repr((toolchain.cc, toolchain.flags, toolchain.version, FLAGS, LINK_FLAGS)).encode()
    files = [path for folder in SOURCES for path in SOURCE_FOLDER.glob(folder)]
    if toolchain.freestanding:
        files += ANDROID_FOLDER.rglob("*.[ch]")
    for path in sorted(files):
        yield os.path.relpath(path, SOURCE_FOLDER).encode()
        yield hashlib.sha256(path.read_bytes()).digest()


def _key(toolchain: Toolchain) -> str:
    """What the built files depend on, as 16 hexadecimal digits."""
    digest = hashlib.sha256()
    for part in _key_parts(toolchain):
        digest.update(part)
    return digest.hexdigest()[:16]


def _build_beside(toolchain: Toolchain, folder: Path) -> None:
    """Build into a scratch folder and rename it: whoever comes second takes what the first has built."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        _build_into(toolchain, _files(scratch))
        scratch.chmod(0o755)
        _rename(scratch, folder)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _rename(scratch: Path, folder: Path) -> None:
    try:
        scratch.rename(folder)
    except OSError:
        if not folder.is_dir():
            raise


def _build_into(toolchain: Toolchain, files: RuntimeFiles) -> None:
    compile_flags = [*FLAGS, f"-I{files.include}", f"-I{SOURCE_FOLDER / 'src'}"]
    toolchain.archive(_sources(), files.static, flags=compile_flags)
    # Android's C library has the threads in it
    link_flags = [*LINK_FLAGS, *([] if is_android(toolchain.triple) else ["-lpthread"])]
    soname = f"-Wl,-soname,{files.shared.name}"
    toolchain.compile(_sources(), files.shared, flags=[*compile_flags, soname, *link_flags])
    for tool in (files.runner, files.selftest):
        source = SOURCE_FOLDER / "tools" / f"{tool.name.replace('-', '_')}.c"
        toolchain.compile([source, files.static], tool, shared=False, flags=[*compile_flags, *link_flags])
