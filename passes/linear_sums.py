"""Merge the branches of a sum that read the same value, each a chain of linear operators.

A sum is written with Add, Sub and Sum, nested in each other and under maps per channel:

    y = Σ_j s_j·v_j + t,     v_j = F_j(x_j) by a chain of filters (:mod:`edgec.passes.linear`)

with the maps above the sum gathered in s_j and t. Filters are linear in their weights, so the branches that read
one x become a single filter, Σ_j s_j·F_j, and a branch that is x itself is the filter that picks the centre tap of
its own channel. Branches of other sources keep their filter, with s_j in its weight; t goes into the first bias.

The rewrite is made where it leaves fewer nodes and costs no more MACs (an elementwise operator counts as one an
output element): a depthwise branch beside a pointwise one, say, stays, because their sum is a full convolution.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import ClassVar

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as common_passes

from edgec.errors import Refusal
from edgec.frontend.values import constant_of, node_shapes, shape_of
from edgec.passes.affine import AFFINE_OPERATORS, read_affine
from edgec.passes.base import Pass
from edgec.passes.filters import Filter, add, diagonal, united_geometry
from edgec.passes.linear import (
    Chain,
    Family,
    build,
    compose_chain,
    filter_cost,
    node_cost,
    size_of,
    trace,
    yielding,
)
from edgec.passes.rewriting import Refused, is_private, named, replace_node

_SUMS = ("Add", "Sub", "Sum")


class LinearSumPass(Pass):
    """Merges branches of sums, outermost sums first; subclasses name the family of operators."""

    family: ClassVar[Family]

    def transform(self, model: ir.Model) -> tuple[int, Sequence[Refusal]]:
        matched = 0
        while count := self._sweep(model.graph, {}):
            matched += count
        refusals: dict[str, Refusal] = {}
        self._sweep(model.graph, refusals)
        common_passes.RemoveUnusedNodesPass()(model)
        return matched, list(refusals.values())

    def _sweep(self, graph: ir.Graph, refusals: dict[str, Refusal]) -> int:
        """Rewrite each sum that pays, and note under each reason the first sum it keeps as it is."""
        matched = 0
        for root in reversed(list(graph)):
            expression = _expand(root, self.family) if root.graph is graph else None
            if expression is None:
                continue
            plan = _Plan(expression, self.family)
            if plan.apply(graph):
                matched += 1
                continue
            for reason in plan.reasons:
                refusal = Refusal(str(root.name), root.op_type, node_shapes(root), reason, "its branches stay apart")
                refusals.setdefault(reason, refusal)
        return matched


@dataclass(frozen=True)
class _Term:
    """One summand: ``scale`` (float64 [channels]) times ``value``."""

    value: ir.Value
    scale: np.ndarray


@dataclass(frozen=True)
class _Expression:
    """What ``root`` yields: the sum of ``terms`` plus ``shift``; ``nodes`` compute it, ``root`` among them."""

    root: ir.Node
    nodes: tuple[ir.Node, ...]
    terms: tuple[_Term, ...]
    shift: np.ndarray


def _expand(root: ir.Node, family: Family) -> _Expression | None:
    """The sum that ends in ``root``; None where there is none."""
    output = root.outputs[0]
    if not _leads_to_sum(root, family):
        return None
    count = family.channels(output, "").count
    nodes, terms, shift = [], [], np.zeros(count)
    pending = [_Term(output, np.ones(count))]
    while pending:
        term = pending.pop()
        node = term.value.producer()
        if node is None or not (node is root or is_private(node)) or not _leads_to_sum(node, family):
            terms.append(term)
            continue
        parts, constant = _split(node, family)
        nodes.append(node)
        shift = shift + term.scale * constant
        pending += [_Term(part.value, part.scale * term.scale) for part in reversed(parts)]
    return _Expression(root, tuple(nodes), tuple(terms), shift)


def _leads_to_sum(node: ir.Node | None, family: Family) -> bool:
    """Whether the node is a sum, or a map per channel that stands, perhaps behind others, on a private one."""
    while node is not None:
        try:
            parts, _ = _split(node, family)
        except Refused:
            return False
        if len(parts) > 1:
            return True
        node = parts[0].value.producer()
        if node is not None and not is_private(node):
            return False
    return False


def _split(node: ir.Node, family: Family) -> tuple[list[_Term], np.ndarray]:
    """The summands of a sum, or the operand of a map per channel, and the constant; raises :class:`Refused`."""
    output = node.outputs[0]
    varying = [value for value in node.inputs if value is not None and value.const_value is None]
    if node.op_type not in _SUMS or len(varying) == 1:
        operand = family.operand(node)
        if node.op_type not in AFFINE_OPERATORS:
            raise Refused
        affine = read_affine(node, family.channels(output, named(node)))
        return [_Term(operand, affine.scale)], affine.shift
    if output.dtype is None or not output.dtype.is_floating_point() or not family.suits(output):
        raise Refused
    if node.domain != "" or any(value.shape != output.shape for value in varying):
        raise Refused
    channels = family.channels(output, named(node))
    ones = np.ones(channels.count)
    constants = [channels.per_channel(array) for array in map(constant_of, node.inputs) if array is not None]
    signs = (1, -1) if node.op_type == "Sub" else (1,) * len(varying)
    terms = [_Term(value, sign * ones) for value, sign in zip(varying, signs, strict=True)]
    return terms, sum(constants, 0 * ones)


@dataclass
class _Part:
    """A summand of the new sum: a filter on ``source``, which takes the place of ``nodes``."""

    source: ir.Value
    filter: Filter
    nodes: tuple[ir.Node, ...]


class _Plan:
    """The new sum, and why branches that looked mergeable are not in it."""

    def __init__(self, expression: _Expression, family: Family) -> None:
        self._expression = expression
        self._family = family
        self._like = expression.root.outputs[0]
        self.reasons: list[str] = []
        chains = [trace(term.value, family) for term in expression.terms]
        self._parts = self._merge(chains)

    def _merge(self, chains: Sequence[Chain]) -> list[_Part]:
        """One part for each source with several branches, then the other branches as they are."""
        self._note_blocked(chains)
        branches: defaultdict[ir.Value, list[int]] = defaultdict(list)
        for index, chain in enumerate(chains):
            branches[chain.source].append(index)
        parts, left = [], []
        for source, indices in branches.items():
            merged, others = self._merge_branches(source, {index: chains[index] for index in indices})
            parts += [merged] if merged else []
            left += others
        for index in sorted(left):
            parts.append(self._lone_part(index, chains[index], needs_bias=not _has_bias(parts)))
        shift = self._expression.shift
        carrier = next((part for part in parts if _has_bias([part])), parts[0])
        carrier.filter = replace(carrier.filter, bias=carrier.filter.bias + shift)
        return parts

    def _note_blocked(self, chains: Sequence[Chain]) -> None:
        """Chains that would read the source of another branch, were they not cut short."""
        for chain in chains:
            others = {each.source for each in chains if each is not chain}
            others |= {each.beyond[0] for each in chains if each.beyond and each.source is not chain.source}
            if chain.blocked and others.intersection(chain.beyond):
                self.reasons.append(chain.blocked)

    def _merge_branches(self, source: ir.Value, chains: Mapping[int, Chain]) -> tuple[_Part | None, list[int]]:
        """The sum of the branches that may join, and the indices of those that are not in it."""
        found = self._read_branches(chains) if len(chains) > 1 else {}
        joined: list[int] = []
        for index in sorted(found, key=lambda each: -found[each].weight.size):
            try:
                self._require_cheaper([*joined, index], found, chains)
                joined.append(index)
            except Refused as refused:
                self._note(refused)
        if len(joined) < 2:
            return None, list(chains)
        nodes = tuple(node for index in joined for node in chains[index].nodes)
        return _Part(source, add([found[index] for index in joined]), nodes), [i for i in chains if i not in joined]

    def _read_branches(self, chains: Mapping[int, Chain]) -> dict[int, Filter]:
        """The branches that are exact filters on their source, under the scales of their terms."""
        found = {}
        for index, chain in chains.items():
            try:
                found[index] = self._scaled(index, chain.nodes)
            except Refused as refused:
                self._note(refused)
        return found

    def _note(self, refused: Refused) -> None:
        if str(refused):
            self.reasons.append(str(refused))

    def _require_cheaper(
        self, indices: Sequence[int], found: Mapping[int, Filter], chains: Mapping[int, Chain]
    ) -> None:
        """Raises :class:`Refused` where one filter for these branches would cost more than they do."""
        nodes = [node for index in indices for node in chains[index].nodes]
        sums = (len(indices) - 1) * prod(shape_of(self._like))
        before = sum(map(node_cost, nodes)) + sums
        after = filter_cost(united_geometry([found[index].geometry for index in indices]), self._like)
        if len(indices) > 1 and after > before:
            names = ", ".join(named(chains[index].nodes[0]) for index in indices if chains[index].nodes)
            raise Refused(f"one filter for {names} would take {after:,} MACs instead of {before:,}")

    def _scaled(self, index: int, nodes: Sequence[ir.Node]) -> Filter:
        """The branch as a filter under the scale of its term."""
        scale = self._expression.terms[index].scale
        behind = diagonal(scale, np.zeros_like(scale), len(self._family.extents(self._like)))
        return compose_chain(nodes, self._family, behind) if nodes else behind

    def _lone_part(self, index: int, chain: Chain, needs_bias: bool) -> _Part:
        """A branch of its own: untouched where it need not take the scale or the shift of the sum."""
        scaled = bool((self._expression.terms[index].scale != 1).any())
        takes_shift = needs_bias and bool(self._expression.shift.any())
        nodes = self._last_filter(chain) if scaled or takes_shift else ()
        source = self._family.operand(nodes[-1]) if nodes else chain.value
        return _Part(source, self._scaled(index, nodes) if scaled or nodes else self._family.identity(source), nodes)

    def _last_filter(self, chain: Chain) -> tuple[ir.Node, ...]:
        """The nodes up to the first that is more than a map per channel; none where the chain has none."""
        for index, node in enumerate(chain.nodes):
            if node.op_type in self._family.operators:
                return chain.nodes[: index + 1]
        return ()

    def apply(self, graph: ir.Graph) -> bool:
        """Put the new sum in the place of the old one, if it has fewer nodes."""
        root = self._expression.root
        removed = [*self._expression.nodes, *(node for part in self._parts for node in part.nodes)]
        kept = sum(size_of(part.filter, part.source, self._family) for part in self._parts)
        if kept + len(self._parts) - 1 >= len(removed):
            self._note_unscaled()
            return False
        try:
            nodes = self._build(graph)
        except Refused as refused:
            self._note(refused)
            return False
        graph.insert_before(root, nodes)
        replace_node(root, nodes[-1])
        for node in removed:
            graph.remove(node, safe=True)
        return True

    def _note_unscaled(self) -> None:
        """Why the map above the sum does not go into its summands."""
        for term in self._expression.terms:
            node = term.value.producer()
            if node is None or not (term.scale != 1).any():
                continue
            if node.op_type not in self._family.operators:
                self.reasons.append(f"its summand comes from {named(node)}, which does not take a scale")
            elif not is_private(node):
                self.reasons.append(f"its summand comes from {named(node)}, which is read elsewhere without the scale")

    def _build(self, graph: ir.Graph) -> list[ir.Node]:
        """The nodes of the new sum; raises :class:`Refused` where a constant overflows or nothing is left to do."""
        nodes: list[ir.Node] = []
        values: list[ir.Value] = []
        root = self._expression.root
        for part in self._parts:
            name = str(max(part.nodes, key=node_cost, default=root).name)
            made = build(part.filter, part.source, self._like, name, self._family, graph)
            nodes += made
            values.append(made[-1].outputs[0] if made else part.source)
        total = values[0]
        for index, value in enumerate(values[1:]):
            nodes.append(yielding(self._like, "Add", [total, value], f"{root.name}_{index}"))
            total = nodes[-1].outputs[0]
        if not nodes:
            raise Refused
        return nodes


def _has_bias(parts: Sequence[_Part]) -> bool:
    return any(not part.filter.geometry.is_diagonal for part in parts)
