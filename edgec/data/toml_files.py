"""TOML files: edgec's own, and recipes that users write."""

from __future__ import annotations

import sys
from collections.abc import Collection
from pathlib import Path
from typing import Any

from edgec.errors import EdgecError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


def read_toml(path: Path) -> dict[str, Any]:
    """What the TOML file ``path`` says."""
    return tomllib.loads(path.read_text(encoding="utf-8"))


def read_settings(path: Path, known: Collection[str]) -> dict[str, Any]:
    """The keys and values of the recipe ``path``.

    Raises:
        EdgecError: the file cannot be read, or has a key that is not ``known``.
    """
    try:
        values = read_toml(path)
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise EdgecError(f"the recipe '{path}' cannot be read: {error}") from error
    for key in values:
        if key not in known:
            raise EdgecError(f"the recipe '{path}' has a key '{key}'; the keys are {', '.join(known)}")
    return values
