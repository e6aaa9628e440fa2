"""Simplify: compute at compile time what does not depend on the inputs, and drop what does nothing.

In order, until the graph stops shrinking:

1. constant folding (:mod:`edgec.passes.constants`); ``If`` with a constant condition becomes its branch, and
   shape arithmetic disappears, because every shape is static;
2. no-ops (:mod:`edgec.passes.no_ops`): a node whose output equals its input is bypassed;
3. chains: Transpose∘Transpose, Reshape∘Reshape, Unsqueeze∘Unsqueeze and widening Cast∘Cast become one node;
4. common subexpressions and equal initialisers are merged, and what nobody reads is removed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import onnx_ir as ir
import onnx_ir.passes.common as common_passes
from onnxscript.rewriter import RewriteRuleSet
from onnxscript.rewriter.rules.common import (
    cast_cast_rule,
    reshape_reshape_rule,
    transpose_transpose_rule,
    unsqueeze_unsqueeze_rule,
)

from edgec.errors import Refusal
from edgec.frontend.shapes import infer_shapes
from edgec.passes.base import Pass
from edgec.passes.constants import fold_constants
from edgec.passes.no_ops import bypass_no_ops

_LARGEST_MERGED = 2**24
"""Elements up to which equal initialisers are looked for; comparing takes a second copy in memory."""


class Simplify(Pass):
    """Folds constants, bypasses no-ops, merges equal nodes and removes unused ones."""

    name: ClassVar[str] = "simplify"

    def transform(self, model: ir.Model) -> tuple[int, Sequence[Refusal]]:
        """Counts the nodes that are gone; there is nothing to refuse."""
        nodes, size = len(model.graph), None
        while size != (size := _size(model.graph)):
            _simplify_once(model)
        common_passes.NameFixPass()(model)
        return nodes - len(model.graph), ()


def _size(graph: ir.Graph) -> tuple[int, int]:
    return len(graph), len(graph.initializers)


def _simplify_once(model: ir.Model) -> None:
    fold_constants(model)
    bypass_no_ops(model.graph)
    _merge_chains(model)
    common_passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    common_passes.DeduplicateInitializersPass(size_limit=_LARGEST_MERGED)(model)
    _merge_common_subexpressions(model)
    common_passes.RemoveUnusedNodesPass()(model)
    common_passes.RemoveUnusedOpsetsPass()(model)
    infer_shapes(model)


def _merge_chains(model: ir.Model) -> None:
    rules = [cast_cast_rule, reshape_reshape_rule, transpose_transpose_rule, unsqueeze_unsqueeze_rule]
    RewriteRuleSet(rules).apply_to_model(model)


def _merge_common_subexpressions(model: ir.Model) -> None:
    """Merge equal nodes. Two outputs of the graph that become one value get their own names back."""
    names = [value.name for value in model.graph.outputs]
    common_passes.CommonSubexpressionEliminationPass()(model)
    seen: set[ir.Value] = set()
    for index, (value, name) in enumerate(zip(model.graph.outputs, names, strict=True)):
        if value in seen:
            copy = ir.node("Identity", [value], name=name)
            model.graph.append(copy)
            copy.outputs[0].name = name
            model.graph.outputs[index] = copy.outputs[0]
        else:
            value.name = name
        seen.add(value)
