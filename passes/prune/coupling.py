"""Coupling: which channels of a graph can only go together, found by propagation through the graph.

Every index of every axis has a label (:mod:`edgec.passes.prune.labels`), and the rules of the operators
(:mod:`edgec.passes.prune.rules`) make labels equal. Labels that are equal and that nothing pins are a unit: the
smallest thing that can be removed. Units that cut the same axes of the same constants are a group: the channels
of a layer, the heads of an attention, the hidden units of an MLP.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from edgec.errors import Refusal
from edgec.frontend.values import node_shapes
from edgec.passes.prune.labels import Labels
from edgec.passes.prune.reshapes import trace_reshape
from edgec.passes.prune.rules import RESHAPES, Linear, Reading, Tracer
from edgec.passes.rewriting import named

Axis = tuple[ir.Value, int]
"""One axis of a value."""

_NAMED_AT_MOST = 4
"""Nodes that a sentence lists of each kind."""

_JOINING = frozenset({"Add", "Sub", "Mul", "Div", "Concat", "Sum", "Max", "Min", "Attention", "MaskedAttention"})


@dataclass(frozen=True, eq=False)
class Unit:
    """What can only go as a whole.

    Attributes:
        cuts: for every axis it shortens, the indices that go.
    """

    cuts: dict[Axis, np.ndarray]


@dataclass(frozen=True, eq=False)
class Group:
    """Units that cut the same axes of the same constants.

    Attributes:
        units: in order of their first index.
        producers: the products whose outputs they are.
        readers: the products that sum over them.
        joins: nodes where several computed values meet in them.
        contractions: where computed values are summed over them, by themselves or times each other.
    """

    units: tuple[Unit, ...]
    producers: tuple[Linear, ...]
    readers: tuple[Linear, ...]
    joins: tuple[ir.Node, ...]
    contractions: tuple[Reading, ...]

    @property
    def name(self) -> str:
        """The producers' names, which tell groups apart for people."""
        found = [str(linear.node.name) for linear in self.producers or self.readers]
        return "+".join(found[:_NAMED_AT_MOST]) + ("+…" if len(found) > _NAMED_AT_MOST else "")

    @property
    def mixers(self) -> tuple[Linear, ...]:
        """The readers that sum the units up with others; a depthwise convolution does not."""
        return tuple(each for each in self.readers if each.groups == 1 or each not in self.producers)

    @property
    def readings(self) -> tuple[Reading, ...]:
        """Everywhere the units are summed over: with zeros there the graph computes what it does without them."""
        return (*(linear.reading for linear in self.mixers), *self.contractions)

    @property
    def width(self) -> int:
        """Indices that one unit takes from the longest axis that it cuts."""
        return max((len(cut) for cut in self.units[0].cuts.values()), default=1)

    def __str__(self) -> str:
        count = len(self.units)
        kind = "channel" if self.width == 1 else f"unit of up to {self.width} channels"
        parts = [f"{count} {kind.replace('unit', 'units') if count > 1 and self.width > 1 else kind}"]
        parts[0] += "s" if count > 1 and self.width == 1 else ""
        parts.append(f"made by {_listed([each.node for each in self.producers])}" if self.producers else "")
        parts.append(f"tied together in {_listed(self.joins)}" if self.joins else "")
        parts.append(f"read by {_listed([each.node for each in self.readers])}" if self.readers else "")
        return ", ".join(part for part in parts if part)


@dataclass(frozen=True)
class Coupling:
    """All groups of a graph, its products with constant weights, and what cannot be pruned.

    Attributes:
        groups: in the order of the graph.
        linears: every product with a constant weight, in the order of the graph.
        refusals: the products none of whose output channels can go, and why.
    """

    groups: tuple[Group, ...]
    linears: tuple[Linear, ...]
    refusals: tuple[Refusal, ...]


def find_coupling(model: ir.Model) -> Coupling:
    """The groups of a graph with static shapes.

    Where whole groups or one place of every group can go (heads or the width of heads), both are found; their
    units overlap, and removing any set of them leaves a valid graph.
    """
    outer = _trace(model, outer=True)
    traces = [outer, _trace(model, outer=False)] if outer.chosen else [outer]
    groups: list[Group] = []
    seen: set[frozenset[tuple[Axis, tuple[int, ...]]]] = set()
    for tracer in traces:
        for group in _groups(model, tracer):
            units = tuple(unit for unit in group.units if _signature(unit) not in seen)
            seen.update(map(_signature, units))
            if units:
                groups.append(Group(units, group.producers, group.readers, group.joins, group.contractions))
    order = {node: index for index, node in enumerate(model.graph)}
    groups.sort(key=lambda group: min((order[each.node] for each in group.producers or group.readers), default=0))
    return Coupling(tuple(groups), tuple(outer.linears), tuple(_refusals(traces)))


def _trace(model: ir.Model, outer: bool) -> Tracer:
    """Labels of all values, united and pinned by every node, the reshapes last."""
    tracer = Tracer(Labels(), outer)
    graph = model.graph
    for value in (*graph.inputs, *graph.outputs):
        role = "an output" if value in graph.outputs else "an input"
        tracer.pin_axes(value, range(len(value.shape or ())), f"'{value.name}' is {role} of the model")
    for node in graph:
        tracer.trace(node)
    for value in _captured(model):
        tracer.pin_axes(value, range(len(value.shape or ())), f"a nested graph reads '{value.name}'")
    for node in graph:
        if node.op_type in RESHAPES and node.domain == "":
            trace_reshape(tracer, node)
    return tracer


def _captured(model: ir.Model) -> Iterator[ir.Value]:
    """Values of the main graph that bodies of control flow read."""
    for node in model.graph.all_nodes():
        if node.graph is not model.graph:
            yield from (value for value in node.inputs if value is not None and value.graph is model.graph)


def _groups(model: ir.Model, tracer: Tracer) -> list[Group]:
    """Units by the axes of constants that they cut."""
    families: dict[frozenset[Axis], list[Unit]] = defaultdict(list)
    for unit in _units(tracer):
        constants = frozenset(axis for axis in unit.cuts if axis[0].const_value is not None)
        if constants:
            families[constants].append(unit)
    return [_group(model, tracer, units, constants) for constants, units in families.items()]


def _units(tracer: Tracer) -> list[Unit]:
    """The labels that nothing pins, by root, with every axis that they stand on."""
    cuts: dict[int, dict[Axis, np.ndarray]] = defaultdict(dict)
    for value in tracer.labels.values():
        for axis, labels in enumerate(tracer.labels.of(value)):
            free = np.flatnonzero(~tracer.labels.pinned(labels))
            roots = tracer.labels.roots(labels[free])
            for root in dict.fromkeys(roots.tolist()):
                cuts[root][value, axis] = free[roots == root]
    return [Unit(each) for each in cuts.values()]


def _group(model: ir.Model, tracer: Tracer, units: Sequence[Unit], constants: frozenset[Axis]) -> Group:
    first = units[0].cuts
    joins = [
        node
        for node in model.graph
        if node.op_type in _JOINING
        and sum(value in {v for v, _ in first} and value.const_value is None for value in set(node.inputs) if value) > 1
    ]
    return Group(
        tuple(units),
        tuple(each for each in tracer.linears if (each.weight, each.out_axis) in constants),
        tuple(each for each in tracer.linears if (each.weight, each.in_axis) in constants),
        tuple(joins),
        tuple(each for each in tracer.contractions if (each.value, each.axis) in first),
    )


def _signature(unit: Unit) -> frozenset[tuple[Axis, tuple[int, ...]]]:
    """What makes two units the same."""
    return frozenset((axis, tuple(cut.tolist())) for axis, cut in unit.cuts.items() if axis[0].const_value is not None)


def _refusals(traces: Sequence[Tracer]) -> Iterator[Refusal]:
    """Products whose output channels are all pinned in every trace."""
    for linear in traces[0].linears:
        reasons = [_pinned_reason(tracer.labels, linear) for tracer in traces]
        if all(reason is not None for reason in reasons):
            node = linear.node
            yield Refusal(str(node.name), node.op_type, node_shapes(node), str(reasons[0]), "its channels all stay")


def _pinned_reason(labels: Labels, linear: Linear) -> str | None:
    """Why none of the output channels can go; None where one can."""
    rows = labels.of(linear.weight)[linear.out_axis]
    return labels.reason(int(rows[0])) if labels.pinned(rows).all() else None


def _listed(nodes: Sequence[ir.Node]) -> str:
    found = [named(node) for node in dict.fromkeys(nodes)]
    listed = " and ".join(found[:_NAMED_AT_MOST])
    return listed if len(found) <= _NAMED_AT_MOST else f"{listed} and {len(found) - _NAMED_AT_MOST} more"
