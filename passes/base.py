"""What every pass is: a name, a docstring that says what it does, and ``apply``, which reports."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass
from onnxscript.rewriter import MatchingTracer, MatchResult, MatchStatus, RewriteRule, RewriteRuleSet

from edgec.errors import Refusal
from edgec.frontend.shapes import infer_shapes
from edgec.frontend.summary import GraphSummary, summarise
from edgec.frontend.values import node_shapes


@dataclass(frozen=True)
class PassReport:
    """What one pass did.

    Attributes:
        name: the pass's.
        matched: how many places it changed.
        before: counts of the graph it was given.
        after: counts of the graph it left.
        refusals: the places that looked right but were left alone, and why.
        difference: the largest difference of the outputs from the original model's, over their range on
            samples; None where there were none.
        score: how good the graph it left is on samples with labels or without, 100 at best (see
            :class:`edgec.quantisation.guard.Judge`); None where there were none.
    """

    name: str
    matched: int
    before: GraphSummary
    after: GraphSummary
    refusals: tuple[Refusal, ...] = ()
    difference: float | None = None
    score: float | None = None

    def __str__(self) -> str:
        head = (
            f"{self.name}: {self.matched} matched, {_change('nodes', self.before.nodes, self.after.nodes)}, "
            f"{_change('parameters', self.before.parameters, self.after.parameters)}, "
            f"{_change('MACs', self.before.macs, self.after.macs)}"
        )
        if self.difference is not None:
            head += f", outputs within {self.difference:.1e} of the original's"
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


class RulePass(Pass):
    """A pass made of rewrite rules, applied until none matches.

    A rule whose ``check`` fails with a reason is reported as a refusal; without a reason it only says that
    the pattern was not meant. Rules must leave the removal of the matched nodes to this class
    (``remove_nodes=False``), so that ``check`` sees the other readers of a value and can name them.
    """

    @abstractmethod
    def rules(self) -> Sequence[RewriteRule]:
        """The rules, tried in this order on each node."""

    def transform(self, model: ir.Model) -> tuple[int, Sequence[Refusal]]:
        rules = RewriteRuleSet(self.rules())
        matched = 0
        while count := _apply(rules, model):
            matched += count
            RemoveUnusedNodesPass()(model)
            infer_shapes(model)
        tracer = _RefusalTracer()
        _apply(rules, model, tracer)
        return matched, list(tracer.refusals.values())


def _apply(rules: RewriteRuleSet, model: ir.Model, tracer: MatchingTracer | None = None) -> int:
    """Apply the rules to the graph and not to the bodies of fused operators, which the lowering knows by heart."""
    functions = dict(model.functions)
    model.functions.clear()
    try:
        return rules.apply_to_model(model, tracer=tracer)
    finally:
        model.functions.update(functions)


class _RefusalTracer(MatchingTracer):
    """Collects, for each node, the first reason why a rule was not applied there."""

    def __init__(self) -> None:
        super().__init__()
        self.refusals: dict[ir.Node, Refusal] = {}

    def log(
        self,
        rule: RewriteRule,
        container: ir.Graph | ir.Function,
        node: ir.Node,
        match_result: MatchResult,
        status: MatchStatus,
    ) -> None:
        if status is MatchStatus.CONDITION_FAILED and match_result.reason:
            refusal = Refusal(
                str(node.name),
                node.op_type,
                node_shapes(node),
                match_result.reason,
                "it stays a node of its own",
            )
            self.refusals.setdefault(node, refusal)


def _change(what: str, before: int, after: int) -> str:
    return f"{before:,} {what}" if before == after else f"{before:,} → {after:,} {what}"
