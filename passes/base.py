"""What every pass is: a name, a docstring that says what it does, and ``apply``, which reports."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from edgec.errors import Refusal
from edgec.summary import GraphSummary, summarise


@dataclass(frozen=True)
class PassReport:
    """What one pass did. ``refusals`` are the places that looked right but were left alone, and why."""

    name: str
    matched: int
    before: GraphSummary
    after: GraphSummary
    refusals: tuple[Refusal, ...] = ()

    def __str__(self) -> str:
        head = (
            f"{self.name}: {self.matched} matched, {_change('nodes', self.before.nodes, self.after.nodes)}, "
            f"{_change('parameters', self.before.parameters, self.after.parameters)}, "
            f"{_change('MACs', self.before.macs, self.after.macs)}"
        )
        return "\n".join([head, *(f"  left: {refusal}" for refusal in self.refusals)])


class Pass(ABC):
    """A graph to graph transformation. The result is a valid ONNX model with the same inputs and outputs."""

    name: ClassVar[str]

    def apply(self, model: ir.Model) -> PassReport:
        """Transform ``model`` in place; its shapes must be static. A second application changes nothing."""
        before = summarise(model)
        matched, refusals = self.transform(model)
        return PassReport(self.name, matched, before, summarise(model), tuple(refusals))

    @abstractmethod
    def transform(self, model: ir.Model) -> tuple[int, Sequence[Refusal]]:
        """Do the work: how many places were changed, and which were refused."""


def _change(what: str, before: int, after: int) -> str:
    return f"{before:,} {what}" if before == after else f"{before:,} → {after:,} {what}"
