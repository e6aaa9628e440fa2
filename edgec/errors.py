"""Errors that a user can cause, and nothing else.

Each message is one sentence that says what happened, to which node or file, why, and the command or
flag that mends it. The command line prints it and exits with 2; the Python calls raise it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


class EdgecError(Exception):
    """A mistake that the user can mend; ``str()`` is the whole sentence."""


@dataclass(frozen=True)
class Refusal:
    """One node the compiler cannot lower: where, what, and the smallest change that would help."""

    node: str
    op: str
    shapes: str
    reason: str
    fix: str

    def __str__(self) -> str:
        return f"{self.op} node '{self.node}' {self.shapes}: {self.reason}; {self.fix}"


class UnsupportedModelError(EdgecError):
    """The model holds nodes that cannot be lowered; ``refusals`` lists every one of them at once."""

    def __init__(self, refusals: Sequence[Refusal]) -> None:
        self.refusals = tuple(refusals)
        lines = "\n".join(f"  - {refusal}" for refusal in self.refusals)
        count = len(self.refusals)
        super().__init__(f"{count} node{'s' * (count != 1)} of the model cannot be compiled:\n{lines}")
