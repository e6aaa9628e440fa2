"""Fold linear operators that follow each other into one, where that is cheaper.

Filters compose (:mod:`edgec.passes.filters`): 1×1→k×k and k×k→1×1, products in a row, a scale and shift or batch
norm before, between or behind them, over chains of any length:

    W₂·(W₁·x + b₁) + b₂ = (W₂·W₁)·x + (W₂·b₁ + b₂)

The composition is made where it has fewer nodes, no more MACs and no more weights; a bottleneck (a low-rank pair,
a depthwise filter before a pointwise one) is cheaper as it is and stays. It is exact unless the second operator
pads: there it reads zeros, while the composition reads what the first yields beyond its border. That is zero only
if the first has no bias and, of its own kernel, reaches nothing there; otherwise the fold is refused.

A map per channel that several linear operators read, and nobody else, goes into each of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from math import prod
from typing import ClassVar

import onnx_ir as ir
import onnx_ir.passes.common as common_passes

from edgec.errors import Refusal
from edgec.frontend.values import node_shapes
from edgec.passes.affine import AFFINE_OPERATORS
from edgec.passes.base import Pass
from edgec.passes.filters import Filter, Geometry, composed_geometry
from edgec.passes.linear import (
    Convolutions,
    Family,
    Products,
    build,
    compose_chain,
    filter_cost,
    node_cost,
    size_of,
    trace,
)
from edgec.passes.rewriting import Refused, is_private, replace_node

_FAMILIES: tuple[Family, ...] = (Convolutions(), Products())


class FoldSequences(Pass):
    """Folds consecutive convolutions, products, scales and shifts into one operator where that is cheaper."""

    name: ClassVar[str] = "fold-sequences"

    def transform(self, model: ir.Model) -> tuple[int, Sequence[Refusal]]:
        matched = 0
        while count := _sweep(model.graph, {}):
            matched += count
        refusals: dict[str, Refusal] = {}
        _sweep(model.graph, refusals)
        common_passes.RemoveUnusedNodesPass()(model)
        return matched, list(refusals.values())


def _sweep(graph: ir.Graph, refusals: dict[str, Refusal]) -> int:
    """Fold what can be folded, from the end; note under each reason the first node where it forbids a fold."""
    matched = 0
    for node in reversed(list(graph)):
        for family in _FAMILIES:
            if node.graph is not graph:
                break
            try:
                matched += _fold_shared(node, family, graph) or _fold_chain(node, family, graph)
            except Refused as refused:
                if str(refused):
                    refusal = Refusal(str(node.name), node.op_type, node_shapes(node), str(refused), _FIX)
                    refusals.setdefault(str(refused), refusal)
    return matched


_FIX = "it stays a node of its own"


def _fold_chain(root: ir.Node, family: Family, graph: ir.Graph) -> bool:
    """Fold as many operators as pay, from ``root`` backwards; raises :class:`Refused` where exactness forbids it."""
    before = trace(family.operand(root), family)
    nodes = (root, *before.nodes)
    reason = None
    for count in range(len(nodes), 1, -1):
        try:
            if _pays(nodes[:count], family) and _replace(nodes[:count], family, graph):
                return True
        except Refused as refused:
            reason = reason or refused
    if reason is not None:
        raise reason
    if before.blocked and _would_pay(nodes, before.source, family):
        raise Refused(before.blocked)
    return False


def _would_pay(nodes: Sequence[ir.Node], source: ir.Value, family: Family) -> bool:
    """Whether only its other readers keep the operator that yields ``source`` from joining ``nodes``."""
    node = source.producer()
    if node is None or is_private(node) or not _pays((*nodes, node), family):
        return False
    try:
        family.filter_of(node)
    except Refused:
        return False
    return True


def _pays(nodes: Sequence[ir.Node], family: Family) -> bool:
    """Whether the composition of ``nodes``, the last one first, takes no more MACs and weights than they do."""
    geometries = [family.geometry_of(node) for node in nodes]
    folded = reduce(composed_geometry, geometries)
    weights = sum(map(_weights, geometries))
    cost = sum(map(node_cost, nodes))
    return _weights(folded) <= weights and filter_cost(folded, nodes[0].outputs[0]) <= cost


def _weights(geometry: Geometry) -> int:
    return 0 if geometry.is_diagonal else prod(geometry.weight_shape)


def _replace(nodes: Sequence[ir.Node], family: Family, graph: ir.Graph) -> bool:
    """Put the composition in the place of ``nodes``, if it has fewer."""
    filter_ = compose_chain(nodes, family)
    source = family.operand(nodes[-1])
    if size_of(filter_, source, family) >= len(nodes) or filter_.is_identity:
        return False
    _insert(filter_, source, nodes[0], max(nodes, key=node_cost), family, graph)
    for node in nodes:
        graph.remove(node, safe=True)
    return True


def _insert(
    filter_: Filter, source: ir.Value, root: ir.Node, named_after: ir.Node, family: Family, graph: ir.Graph
) -> None:
    made = build(filter_, source, root.outputs[0], str(named_after.name), family, graph)
    graph.insert_before(root, made)
    replace_node(root, made[-1])


def _fold_shared(node: ir.Node, family: Family, graph: ir.Graph) -> bool:
    """Fold a map per channel into all its readers, if they are linear and have a place for its shift."""
    source, readers = family.operand(node), list(node.outputs[0].consumers())
    if node.op_type not in AFFINE_OPERATORS or len(readers) < 2 or node.outputs[0].is_graph_output():
        return False
    if not all(_takes(reader, node, family) for reader in readers):
        return False
    filters = [compose_chain((reader, node), family) for reader in readers]
    for reader, filter_ in zip(readers, filters, strict=True):
        _insert(filter_, source, reader, reader, family, graph)
        graph.remove(reader, safe=True)
    graph.remove(node, safe=True)
    return True


def _takes(reader: ir.Node, affine: ir.Node, family: Family) -> bool:
    """Whether the reader is a filter on the map's result that takes it without a node more."""
    if reader.op_type not in family.operators or family.operand(reader) is not affine.outputs[0]:
        return False
    own, folded = family.filter_of(reader), compose_chain((reader, affine), family)
    source = family.operand(affine)
    grown = size_of(folded, source, family) > size_of(own, source, family)
    return not grown or _has_shift_behind(reader, family)


def _has_shift_behind(reader: ir.Node, family: Family) -> bool:
    """Whether a shift is all that reads the result, so that the new shift goes into that."""
    behind = next(iter(reader.outputs[0].consumers()), None)
    if behind is None or not is_private(reader) or behind.op_type not in ("Add", "Sub"):
        return False
    try:
        family.operand(behind)
        family.filter_of(behind)
    except Refused:
        return False
    return True
