"""What a graph costs without some units, counted without building it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod
from typing import Literal

import numpy as np
import onnx_ir as ir

from edgec.errors import EdgecError
from edgec.passes.prune.coupling import Axis, Unit
from edgec.values import shape_of

Measure = Literal["macs", "parameters", "bytes"]

MEASURES: tuple[Measure, ...] = ("macs", "parameters", "bytes")
"""What a budget can be given in, besides a latency."""


@dataclass(frozen=True)
class _Term:
    """A summand of the cost: a weight times the extents of some axes."""

    weight: int
    axes: tuple[Axis, ...]


class Cost:
    """The cost of a graph while units leave it.

    A sum of products of extents: of a convolution's output and filter for MACs, of a constant for parameters and
    bytes. Removing a unit changes the terms that count one of its axes.
    """

    def __init__(self, model: ir.Model, measure: Measure) -> None:
        self._terms = _TERMS[measure](model)
        self._masks: dict[Axis, np.ndarray] = {}
        self._by_axis: dict[Axis, list[int]] = defaultdict(list)
        self.extents: dict[Axis, int] = {}
        for index, term in enumerate(self._terms):
            for axis in term.axes:
                self._by_axis[axis].append(index)
                self.extents[axis] = shape_of(axis[0])[axis[1]]
        self._values = [self._value(term, {}) for term in self._terms]

    @property
    def total(self) -> int:
        """MACs, elements or bytes of what is left."""
        return sum(self._values)

    def saving(self, unit: Unit) -> int:
        """By how much the total falls when the unit goes."""
        lost = self._lost(unit)
        changed = {axis: self.extents[axis] - count for axis, count in lost.items() if axis in self.extents}
        terms = {index for axis, count in lost.items() if count for index in self._by_axis.get(axis, ())}
        return sum(self._values[index] - self._value(self._terms[index], changed) for index in terms)

    def smallest(self, unit: Unit) -> float:
        """The least share of an axis' indices that would be left of any axis that the unit cuts; 0 if none."""
        shares = []
        for (value, axis), count in self._lost(unit).items():
            extent = shape_of(value)[axis]
            mask = self._masks.get((value, axis))
            left = (extent if mask is None else int(mask.sum())) - count
            shares.append(left / extent)
        return min(shares, default=1.0)

    def remove(self, unit: Unit) -> None:
        """Count without the unit from now on."""
        for (value, axis), cut in unit.cuts.items():
            mask = self._masks.setdefault((value, axis), np.ones(shape_of(value)[axis], bool))
            mask[cut] = False
            if (value, axis) in self.extents:
                self.extents[value, axis] = int(mask.sum())
        for index in {index for axis in unit.cuts for index in self._by_axis.get(axis, ())}:
            self._values[index] = self._value(self._terms[index], {})

    def _lost(self, unit: Unit) -> dict[Axis, int]:
        """Indices that the unit still takes from each axis; another may have taken some before."""
        return {
            axis: len(cut) if axis not in self._masks else int(self._masks[axis][cut].sum())
            for axis, cut in unit.cuts.items()
        }

    def _value(self, term: _Term, changed: Mapping[Axis, int]) -> int:
        return term.weight * prod(changed.get(axis, self.extents[axis]) for axis in term.axes)


def removable(model: ir.Model, units: Iterable[Unit], measure: Measure) -> int:
    """What the graph costs without all of ``units`` that can go together, one index of every axis kept."""
    cost = Cost(model, measure)
    for unit in units:
        if cost.smallest(unit) > 0:
            cost.remove(unit)
    return cost.total


def check_measure(measure: str) -> Measure:
    """The measure called ``measure``; raises :class:`EdgecError` where there is none."""
    for each in MEASURES:
        if each == measure:
            return each
    raise EdgecError(f"there is no budget in '{measure}'; it can be in {', '.join(MEASURES)} or latency")


def _mac_terms(model: ir.Model) -> list[_Term]:
    return [term for node in model.graph if node.domain in ("", "edgec") for term in _node_terms(node)]


def _node_terms(node: ir.Node) -> Iterable[_Term]:
    """The MACs of one node, as :func:`edgec.summary.node_macs` counts them."""
    output = _axes(node.outputs[0])
    if node.op_type == "Conv":
        yield _Term(1, (*output, *_axes(node.inputs[1])[1:]))
    elif node.op_type == "ConvTranspose":
        yield _Term(1, (*_axes(node.inputs[0]), *_axes(node.inputs[1])[1:]))
    elif node.op_type == "Gemm":
        transposed = node.attributes.get_int("transA", 0)
        yield _Term(1, (*output, _axes(node.inputs[0])[0 if transposed else 1]))
    elif node.op_type == "MatMul":
        yield _Term(1, (*output, _axes(node.inputs[0])[-1]))
    elif node.op_type in ("Attention", "MaskedAttention"):
        query, value = _axes(node.inputs[0]), _axes(node.inputs[2])
        yield _Term(1, (*output[:-2], query[-2], value[-2], query[-1]))
        yield _Term(1, (*output[:-2], query[-2], value[-2], value[-1]))


def _axes(value: ir.Value | None) -> tuple[Axis, ...]:
    assert value is not None
    return tuple((value, axis) for axis in range(len(shape_of(value))))


def _parameter_terms(model: ir.Model) -> list[_Term]:
    constants = [value for value in model.graph.initializers.values() if value.const_value is not None]
    return [_Term(1, _axes(value)) for value in constants]


def _byte_terms(model: ir.Model) -> list[_Term]:
    constants = [value for value in model.graph.initializers.values() if value.const_value is not None]
    return [_Term(value.const_value.dtype.itemsize, _axes(value)) for value in constants if value.const_value]


_TERMS = {"macs": _mac_terms, "parameters": _parameter_terms, "bytes": _byte_terms}
