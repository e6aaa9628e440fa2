"""Labels through reshapes: which part of a merged or split axis can shrink.

A reshape is cut into blocks of axes with equal products, each of which merges or splits axes: (heads · width) into
(heads, width), (channels, height, width) into one axis. In a block of several factors only one can shrink, or
what is left would not be rectangular: all indices that fall on the same place of this carrier are one unit, and
the other factors stay. A factor that something else pins cannot be the carrier; of those left it is the first
(whole heads, whole groups) or the last (one place of every head or group), as the tracer says.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate, pairwise
from math import prod
from operator import mul

import numpy as np
import onnx_ir as ir

from edgec.frontend.values import shape_of
from edgec.passes.prune.rules import Tracer
from edgec.passes.rewriting import named


@dataclass(frozen=True)
class _Axis:
    """An axis of a block: its labels, and which consecutive factors it is the product of."""

    labels: np.ndarray
    first: int
    last: int


def trace_reshape(tracer: Tracer, node: ir.Node) -> None:
    """Relate the labels before and after a Reshape, Flatten, Squeeze or Unsqueeze."""
    value, output = node.inputs[0], node.outputs[0]
    assert value is not None
    before = [labels for labels in tracer.of(value) if len(labels) != 1]
    after = [labels for labels in tracer.of(output) if len(labels) != 1]
    if 0 in (*shape_of(value), *shape_of(output)):
        return
    while before or after:
        ours, theirs = _take_block(before, after)
        if len(ours) == len(theirs) == 1:
            tracer.labels.unite(ours[0], theirs[0])
        else:
            _trace_block(tracer, node, ours, theirs)


def _take_block(before: list[np.ndarray], after: list[np.ndarray]) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Remove the shortest runs of leading axes that have equal products."""
    ours, theirs = [before.pop(0)], [after.pop(0)]
    while (left := prod(map(len, ours))) != (right := prod(map(len, theirs))):
        if left < right:
            ours.append(before.pop(0))
        else:
            theirs.append(after.pop(0))
    return ours, theirs


def _trace_block(tracer: Tracer, node: ir.Node, ours: list[np.ndarray], theirs: list[np.ndarray]) -> None:
    factors = _factors([len(labels) for labels in ours], [len(labels) for labels in theirs])
    if factors is None:
        for labels in (*ours, *theirs):
            tracer.labels.pin(labels, f"{named(node)} draws new borders across it")
        return
    axes = [*_place(ours, factors), *_place(theirs, factors)]
    free = [index for index in range(len(factors)) if _is_free(tracer, axes, factors, index)]
    tracer.chosen |= len(free) > 1
    carrier = None if not free else free[0] if tracer.outer else free[-1]
    shared = None if carrier is None else tracer.labels.fresh(factors[carrier])
    for axis in axes:
        if carrier is not None and shared is not None and axis.first <= carrier < axis.last:
            tracer.labels.unite(shared[_positions(axis, factors, carrier)], axis.labels)
        else:
            tracer.labels.pin(axis.labels, f"{named(node)} merges or splits it")


def _factors(before: list[int], after: list[int]) -> list[int] | None:
    """The common refinement of two lists of extents with one product; None where there is none."""
    borders = sorted({1, *accumulate(before, mul), *accumulate(after, mul)})
    if any(high % low for low, high in pairwise(borders)):
        return None
    return [high // low for low, high in pairwise(borders)]


def _place(axes: list[np.ndarray], factors: list[int]) -> list[_Axis]:
    """Which factors each of consecutive axes consists of."""
    placed, first = [], 0
    for labels in axes:
        last, extent = first, 1
        while extent < len(labels):
            extent *= factors[last]
            last += 1
        placed.append(_Axis(labels, first, last))
        first = last
    return placed


def _positions(axis: _Axis, factors: list[int], factor: int) -> np.ndarray:
    """For every index of the axis the place along one of its factors."""
    stride = prod(factors[factor + 1 : axis.last])
    return np.arange(len(axis.labels)) // stride % factors[factor]


def _is_free(tracer: Tracer, axes: list[_Axis], factors: list[int], factor: int) -> bool:
    """Whether some place along the factor meets no pinned label in any axis that contains it."""
    pinned = np.zeros(factors[factor], bool)
    for axis in axes:
        if axis.first <= factor < axis.last:
            np.logical_or.at(pinned, _positions(axis, factors, factor), tracer.labels.pinned(axis.labels))
    return not bool(pinned.all())
