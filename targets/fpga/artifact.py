"""A project as an artifact: a folder with a manifest, written whole or not at all."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgec.errors import EdgecError

MANIFEST = "manifest.json"

COMPILERS = ("g++", "clang++", "c++")
"""C++ compilers that build the simulation of a project, in the order in which they are looked for."""


def is_project(path: Path) -> bool:
    """Whether ``path`` is a folder that holds an FPGA project."""
    return path.is_dir() and (path / MANIFEST).is_file()


def read_project(path: Path) -> dict[str, Any]:
    """The manifest of the project in ``path``.

    Raises:
        EdgecError: the folder holds no project, or its manifest is damaged.
    """
    try:
        manifest: dict[str, Any] = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        return {**manifest, "inputs": list(manifest["inputs"]), "outputs": list(manifest["outputs"])}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise EdgecError(f"'{path}' holds no whole FPGA project; compile it again with edgec compile") from error


def check_project_path(path: Path) -> None:
    """Refuse a folder that cannot be written, or that holds anything but an older project.

    Raises:
        EdgecError: naming the folder and why.
    """
    parent = path.resolve().parent
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise EdgecError(f"the folder {parent} of output '{path}' cannot be written; create it or choose another -o")
    if path.exists() and not is_project(path) and (not path.is_dir() or any(path.iterdir())):
        raise EdgecError(f"the output '{path}' exists and is no FPGA project; choose another folder with -o")


def write_project(path: Path, files: Mapping[str, bytes]) -> None:
    """Write a project whole or not at all, in the place of an older one.

    Raises:
        EdgecError: the system refuses; nothing is written then.
    """
    parent = path.resolve().parent
    try:
        with tempfile.TemporaryDirectory(prefix=f".{path.name}-", dir=parent) as scratch:
            new, old = Path(scratch) / "new", Path(scratch) / "old"
            for name, data in files.items():
                (new / name).parent.mkdir(parents=True, exist_ok=True)
                (new / name).write_bytes(data)
            if path.exists():
                path.rename(old)
            new.rename(path)
    except OSError as error:
        raise EdgecError(
            f"could not write the project '{path}': {error.strerror}; free space or choose another -o"
        ) from error
