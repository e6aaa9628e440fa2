"""What a graph costs without some units, counted without building it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import prod
from typing import Literal

import numpy as np
import onnx_ir as ir

from edgec.errors import EdgecError
from edgec.frontend.values import shape_of
from edgec.passes.prune.coupling import Axis, Unit
from edgec.passes.prune.low_rank import Split
from edgec.passes.prune.rules import Linear

Measure = Literal["macs", "parameters", "bytes"]

MEASURES: tuple[Measure, ...] = ("macs", "parameters", "bytes")
"""What a budget can be given in, besides a latency."""


Rates = Mapping[str, float]
"""Nanoseconds that a MAC takes, by the name of its node."""


def attainable(share: float) -> float:
    """``share`` of a cost rounded down to tenths of a percent, so that it can be had where it is asked for."""
    return int(share * 1000) / 1000


@dataclass(frozen=True)
class _Term:
    """A summand of the cost: a factor times the extents of some axes.

    Attributes:
        factor: what the extents are multiplied by.
        axes: whose extents count.
        node: the name of the node whose MACs it counts.
        product: whose weight it counts; split in two it costs rank · (one factor + the other).
        width: the axis of the product's output channels among ``axes``.
        depth: the axes of ``axes`` that the product sums over.
        channels: the one of ``depth`` that counts the input's channels.
        source: the axes whose extents count a pointwise factor in front.
    """

    factor: int
    axes: tuple[Axis, ...]
    node: str = ""
    product: Linear | None = None
    width: Axis | None = None
    depth: tuple[Axis, ...] = ()
    channels: Axis | None = None
    source: tuple[Axis, ...] = ()


class Cost:
    """The cost of a graph while units leave it.

    A sum of products of extents: of a convolution's output and filter for MACs, of a constant for parameters and
    bytes. With rates the MACs are counted in femtoseconds. Removing a unit changes the terms that count one of its
    axes; a split those of its product, which has to be among ``linears``.
    """

    def __init__(
        self, model: ir.Model, measure: Measure, linears: Sequence[Linear] = (), rates: Rates | None = None
    ) -> None:
        self._terms = _TERMS[measure](model, linears)
        if rates:
            self._terms = _timed(self._terms, rates)
        self._splits: dict[Linear, Split] = {}
        self._masks: dict[Axis, np.ndarray] = {}
        self._by_axis: dict[Axis, list[int]] = defaultdict(list)
        self.extents: dict[Axis, int] = {}
        for index, term in enumerate(self._terms):
            for axis in dict.fromkeys((*term.axes, *term.source)):
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

    def saving_at(self, linear: Linear, split: Split) -> int:
        """By how much the total falls when the product is split so."""
        before, total = self._splits.get(linear), self.total
        self.set_split(linear, split)
        saved = total - self.total
        self.set_split(linear, before)
        return saved

    def set_split(self, linear: Linear, split: Split | None) -> None:
        """Count the product as two from now on, where that is cheaper; None makes it one again."""
        self._splits.pop(linear, None)
        if split is not None:
            self._splits[linear] = split
        for index, term in enumerate(self._terms):
            if term.product == linear:
                self._values[index] = self._value(term, {})

    def _lost(self, unit: Unit) -> dict[Axis, int]:
        """Indices that the unit still takes from each axis; another may have taken some before."""
        return {
            axis: len(cut) if axis not in self._masks else int(self._masks[axis][cut].sum())
            for axis, cut in unit.cuts.items()
        }

    def _value(self, term: _Term, changed: Mapping[Axis, int]) -> int:
        whole = term.factor * self._extent(term.axes, changed)
        split = None if term.product is None else self._splits.get(term.product)
        if split is None or term.width is None or term.channels is None or not whole:
            return whole
        if split.at_inputs:
            thin = term.factor * self._extent(term.source, changed) + whole // self._extent((term.channels,), changed)
        else:
            thin = whole // self._extent(term.depth, changed) + whole // self._extent((term.width,), changed)
        return min(whole, split.rank * thin)

    def _extent(self, axes: Iterable[Axis], changed: Mapping[Axis, int]) -> int:
        return prod(changed.get(axis, self.extents[axis]) for axis in axes)


def check_measure(measure: str) -> Measure:
    """The measure called ``measure``; raises :class:`EdgecError` where there is none."""
    for each in MEASURES:
        if each == measure:
            return each
    raise EdgecError(f"there is no budget in '{measure}'; it can be in {', '.join(MEASURES)} or latency")


def _timed(terms: Sequence[_Term], rates: Rates) -> list[_Term]:
    """The same in femtoseconds; nodes without a rate have that of most."""
    usual = float(np.median(list(rates.values())))
    return [replace(term, factor=max(1, round(1e6 * term.factor * rates.get(term.node, usual)))) for term in terms]


def _mac_terms(model: ir.Model, linears: Sequence[Linear]) -> list[_Term]:
    by_node = {linear.node: linear for linear in linears if linear.node.op_type != "ConvTranspose"}
    terms: list[_Term] = []
    for node in model.graph:
        if node in by_node:
            linear = by_node[node]
            output, depth, channels = _axes(node.outputs[0]), _depth(linear), (linear.weight, linear.in_axis)
            width, source = output[linear.output_axis], _axes(linear.source)
            terms.append(_Term(1, (*output, *depth), str(node.name), linear, width, depth, channels, source))
        elif node.domain in ("", "edgec"):
            terms += (replace(term, node=str(node.name)) for term in _node_terms(node))
    return terms


def _depth(linear: Linear) -> tuple[Axis, ...]:
    return tuple(axis for axis in _axes(linear.weight) if axis[1] != linear.out_axis)


def _node_terms(node: ir.Node) -> Iterable[_Term]:
    """The MACs of one node, as :func:`edgec.frontend.summary.node_macs` counts them."""
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


def _parameter_terms(model: ir.Model, linears: Sequence[Linear], in_bytes: bool = False) -> list[_Term]:
    """Every constant; bytes count each element as large as it is."""
    by_weight = {linear.weight: linear for linear in linears}
    terms = []
    for value in model.graph.initializers.values():
        linear, tensor = by_weight.get(value), value.const_value
        if tensor is not None:
            factor = tensor.dtype.itemsize if in_bytes else 1
            if linear is None:
                terms.append(_Term(int(factor), _axes(value)))
                continue
            width, channels = (value, linear.out_axis), (value, linear.in_axis)
            terms.append(
                _Term(int(factor), _axes(value), "", linear, width, _depth(linear), channels, source=(channels,))
            )
    return terms


_TERMS: Mapping[Measure, Callable[[ir.Model, Sequence[Linear]], list[_Term]]] = {
    "macs": _mac_terms,
    "parameters": _parameter_terms,
    "bytes": partial(_parameter_terms, in_bytes=True),
}
