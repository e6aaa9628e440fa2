"""Where the binding finds the library that it calls, and the error that it raises."""

from __future__ import annotations

from pathlib import Path

__all__ = ["EdgecError", "library_path"]


class EdgecError(Exception):
    """Something that a user can mend, in one sentence."""


def library_path() -> str:
    """The shared library, which lies beside this file."""
    return str(Path(__file__).with_name("libedgert.so"))
