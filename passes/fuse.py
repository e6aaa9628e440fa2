"""What the fusing passes share: from the node that ends a subgraph back to what it computes.

A fusing pass looks at every node, the last first, so that a whole is found before its parts. ``match`` reads
the graph backwards from the node and tells which nodes the fused operator absorbs and how it is built. Every
value inside must be read inside only: what somebody else needs is computed anyway, and the fusion is refused
with that reader's name.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as common_passes

from edgec.errors import Refusal
from edgec.frontend.shapes import infer_shapes
from edgec.frontend.values import constant_of, node_shapes
from edgec.passes.base import Pass
from edgec.passes.rewriting import Refused


@dataclass(frozen=True)
class Match:
    """A subgraph that ends in the node looked at.

    Attributes:
        name: of the operator it is, for messages.
        absorbed: its nodes, without the last.
        build: makes the new nodes in order; the only output of the last takes the place of the old output.
    """

    name: str
    absorbed: Sequence[ir.Node]
    build: Callable[[], Sequence[ir.Node]]


class FusePass(Pass):
    """Replaces subgraphs by one operator each."""

    @abstractmethod
    def match(self, model: ir.Model, node: ir.Node) -> Match | None:
        """The subgraph that ends in ``node``; None where there is none. Raises :class:`Refused`."""

    def transform(self, model: ir.Model) -> tuple[int, Sequence[Refusal]]:
        matched, count = 0, -1
        refusals: list[Refusal] = []
        while count:
            count, refusals = self._sweep(model)
            matched += count
        if matched:
            common_passes.RemoveUnusedNodesPass()(model)
            common_passes.NameFixPass()(model)
            infer_shapes(model)
        return matched, refusals

    def _sweep(self, model: ir.Model) -> tuple[int, list[Refusal]]:
        """Look at every node once: what is fused now can be part of something larger in the next sweep."""
        count, refusals = 0, []
        for node in reversed(list(model.graph)):
            if node.graph is None or node.domain != "" or len(node.outputs) != 1:
                continue
            try:
                found = self.match(model, node)
                if found is not None:
                    reason = outside_use(found, node)
                    if reason is not None:
                        raise Refused(reason)
                    _replace(model, node, found)
                    count += 1
            except Refused as refused:
                refusals.append(
                    Refusal(str(node.name), node.op_type, node_shapes(node), str(refused), "it stays as it is")
                )
        return count, refusals


def outside_use(found: Match, last: ir.Node) -> str | None:
    """Who needs a value inside the subgraph, as a sentence; None where nobody does."""
    inside = {*found.absorbed, last}
    for value in (output for node in found.absorbed for output in node.outputs):
        reader = next((reader for reader in value.consumers() if reader not in inside), None)
        if reader is not None:
            return f"it would be {found.name}, but {reader.op_type} '{reader.name}' also reads '{value.name}' inside it"
        if value.is_graph_output():
            return f"it would be {found.name}, but '{value.name}' inside it is an output of the model"
    return None


def _replace(model: ir.Model, last: ir.Node, found: Match) -> None:
    nodes, old = found.build(), list(dict.fromkeys([last, *found.absorbed]))
    ir.convenience.replace_nodes_and_values(model.graph, last, old, nodes, last.outputs, nodes[-1].outputs)


def initializer(model: ir.Model, name: str, array: np.ndarray) -> ir.Value:
    """A new constant of the graph, named ``name`` or, where that is taken, much the same."""
    graph = model.graph
    while name in graph.initializers:
        name += "_"
    value = ir.val(name, const_value=ir.tensor(array, name=name))
    graph.register_initializer(value)
    return value


def producer(value: ir.Value | None, *op_types: str) -> ir.Node | None:
    """The standard node of one of ``op_types`` that computes ``value``; None where it is something else."""
    node = None if value is None else value.producer()
    return node if node is not None and node.domain == "" and node.op_type in op_types else None


def scalar_of(value: ir.Value | None) -> float | None:
    """The constant ``value`` of one element; None where it is none."""
    constant = constant_of(value)
    return float(constant.reshape(-1)[0]) if constant is not None and constant.size == 1 else None


def operands(node: ir.Node) -> tuple[tuple[ir.Value, ir.Value], tuple[ir.Value, ir.Value]]:
    """The two operands of a commutative node in both orders."""
    first, second = node.inputs
    assert first is not None and second is not None
    return (first, second), (second, first)
