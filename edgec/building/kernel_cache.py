"""Compiled kernels and descriptors, kept between runs by content, so that a change of one layer compiles one kernel.

An object file is found by a digest of everything that decides its bytes: the plan and the dtypes of its operands, the
target, the versions of TVM, and the sources of the generators. The text of the generated IR would say the same, but
generating it takes longer than all the rest. An object of a C file is found by its text, the compiler's version and
flags, and the headers. Any number of processes share the folder: a file is renamed into its place when it is complete,
carries a digest of itself, and what is damaged or gone is compiled again.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from edgec.building.toolchain import ANDROID_FOLDER, Toolchain
from edgec.errors import EdgecError
from edgec.runtimes.build import SOURCE_FOLDER, cache_folder
from edgec.scalar import Expr
from edgec.targets.target import TARGET_FOLDER, Target
from edgec.tuning.records import tvm_pair

SWITCH = "EDGEC_CACHE"
"""The environment variable that switches the cache off where it is ``off``; ``EDGEC_CACHE_DIR`` moves it."""

MOST_BYTES = 256_000_000
"""Of all files together; those that were not used for longest go first, down to :data:`_KEPT` of it."""

_KEPT = 0.8
_DIGEST_BYTES = 32
_TRIMS = 64
"""One of so many new files brings a look at the size of all."""


class KernelCache:
    """Object files by key. Without a folder that can be written it is empty and stays so.

    Attributes:
        hits: how many keys were found.
        misses: how many were not.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self.hits = self.misses = 0

    @classmethod
    def of_user(cls) -> KernelCache:
        """The one in the user's cache, unless it is switched off."""
        if os.environ.get(SWITCH, "").lower() == "off":
            return cls(None)
        try:
            return cls(cache_folder() / "kernels")
        except EdgecError:  # a user without a home folder compiles without a cache
            return cls(None)

    def get(self, key: str) -> bytes | None:
        """The object file of ``key``; None if it is not there."""
        content = self._read(key)
        if content is None:
            self.misses += 1
        else:
            self.hits += 1
        return content

    def put(self, key: str, content: bytes) -> None:
        """Keep ``content``; where the folder cannot be written, nothing is kept."""
        if self._folder is None:
            return
        with contextlib.suppress(OSError):
            self._folder.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=self._folder, prefix=".", delete=False) as file:
                file.write(hashlib.sha256(content).digest() + content)
            Path(file.name).replace(self._folder / key)
            if int(key, 16) % _TRIMS == 0:
                self.trim()

    def trim(self, most: int = MOST_BYTES) -> None:
        """Remove the files that were not used for longest, if all take more than ``most`` bytes."""
        files = sorted(self._files())
        total = sum(size for _, size, _ in files)
        if total <= most:
            return
        for _, size, path in files:
            if total <= most * _KEPT:
                break
            with contextlib.suppress(OSError):  # another process may have been faster
                path.unlink()
                total -= size

    def _read(self, key: str) -> bytes | None:
        if self._folder is None:
            return None
        path = self._folder / key
        try:
            data = path.read_bytes()
            os.utime(path)  # used now
        except OSError:
            return None
        content = data[_DIGEST_BYTES:]
        return content if hashlib.sha256(content).digest() == data[:_DIGEST_BYTES] else None

    def _files(self) -> Iterator[tuple[float, int, Path]]:
        """When each file was used last, and its size."""
        if self._folder is None:
            return
        with contextlib.suppress(OSError):
            for entry in os.scandir(self._folder):
                with contextlib.suppress(OSError):
                    found = entry.stat()
                    yield found.st_mtime, found.st_size, Path(entry.path)


def kernel_key(generator: Any, plan: Any, dtypes: Sequence[str], target: Target) -> str:
    """The digest of all that decides the object file of a kernel.

    Args:
        generator: the function that writes it.
        plan: what it is given; a frozen dataclass.
        dtypes: of its operands.
        target: the processor.
    """
    writer = _Writer()
    writer.write((_name(generator), plan, tuple(dtypes), sorted(target.llvm.items()), tvm_pair(), _sources_digest()))
    return writer.digest.hexdigest()[:40]


def source_key(toolchain: Toolchain, source: bytes, flags: Sequence[str]) -> str:
    """The digest of all that decides the object of a C file that includes libedgert's headers and no others of ours.

    Args:
        toolchain: the compiler.
        source: the file's content.
        flags: what the compiler is told.
    """
    writer = _Writer()
    folders = [SOURCE_FOLDER / "include", *([ANDROID_FOLDER] if toolchain.freestanding else [])]
    headers = [path.read_text(encoding="utf-8") for folder in folders for path in sorted(folder.rglob("*.h"))]
    # paths of headers move with the installation
    told = tuple(flag for flag in flags if not flag.startswith("-I"))
    compiler = (toolchain.triple, toolchain.cc, toolchain.flags, toolchain.version)
    writer.write((compiler, told, headers, hashlib.sha256(source).hexdigest()))
    return writer.digest.hexdigest()[:40]


class _Writer:
    """Takes values into a digest so that only equal ones give the same: types and lengths go in, too."""

    def __init__(self) -> None:
        self.digest = hashlib.sha256()
        self._places: dict[int, int] = {}

    def write(self, value: Any) -> None:
        if isinstance(value, Expr):
            self._write_expression(value)
        elif is_dataclass(value) and not isinstance(value, type):
            self._begin(_name(type(value)), len(fields(value)))
            for field in fields(value):
                self.write(getattr(value, field.name))
        elif isinstance(value, (tuple, list)):
            self._begin(type(value).__name__, len(value))
            for each in value:
                self.write(each)
        elif value is None or isinstance(value, (bool, int, float, str)):
            self._begin(type(value).__name__, repr(value))
        else:
            raise TypeError(f"a plan holds a {type(value).__name__}, which has no digest")

    def _write_expression(self, value: Expr) -> None:
        """Shared terms once, by their place: equal expressions are one object."""
        place = self._places.get(id(value))
        if place is not None:
            self._begin("seen", place)
            return
        self._begin("expr", value.op, value.dtype, len(value.args))
        for each in value.args:
            self.write(each)
        self._places[id(value)] = len(self._places)

    def _begin(self, *parts: object) -> None:
        self.digest.update("\0".join(map(str, parts)).encode() + b"\1")


def _name(what: Any) -> str:
    inner = getattr(what, "func", what)  # of a partial
    return f"{inner.__module__}.{inner.__qualname__}"


@functools.cache
def _sources_digest() -> str:
    """Of the generators' sources and of all that they may use: changed, they make other code of the same plan."""
    digest = hashlib.sha256()
    for path in [*sorted(Path(__file__).parents[1].rglob("*.py")), *sorted(TARGET_FOLDER.rglob("*.py"))]:
        digest.update(path.read_bytes())
    return digest.hexdigest()
