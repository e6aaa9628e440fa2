"""Sensitivity: how far the model's outputs move when one group alone loses a share of its units.

The readers' weights are compensated as the final model's will be, so that a curve tells what pruning costs and not
what it would cost without repair. Distances are squared, over the variance of the outputs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from edgec.passes.prune.activations import Sample, distance, outputs
from edgec.passes.prune.compensation import Statistics, compensate, depth_mask
from edgec.passes.prune.coupling import Coupling, Group, Unit
from edgec.passes.prune.masking import mask_units
from edgec.passes.prune.products import in_copy
from edgec.passes.prune.scores import Scores

SHARES = (0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875)
"""Of a group's units, at which a curve is measured."""


@dataclass(frozen=True)
class Curve:
    """What a group costs.

    Attributes:
        group: the group.
        order: its units, the first to go first.
        counts: how many of them are gone, ascending from 0.
        distances: of the outputs then, as many, never falling.
    """

    group: Group
    order: tuple[Unit, ...]
    counts: tuple[int, ...]
    distances: tuple[float, ...]

    def prices(self) -> np.ndarray:
        """float64 [units]: what each unit in order adds, linear between the points and rising towards the end."""
        known = np.interp(np.arange(len(self.order) + 1), self.counts, self.distances)
        return np.maximum.accumulate(np.diff(known))


def measure_curves(
    model: ir.Model,
    coupling: Coupling,
    scores: Scores,
    samples: Sequence[Sample],
    statistics: Statistics,
    shares: Sequence[float] = SHARES,
) -> list[Curve]:
    """A curve for every group whose units have scores; the samples are run for each point of each."""
    wanted = outputs(model, samples)
    return [
        _curve(model, Coupling((group,), coupling.linears, ()), scores, samples, statistics, shares, wanted)
        for group in coupling.groups
        if len(group.units) > 1 and all(unit in scores for unit in group.units)
    ]


def _curve(
    model: ir.Model,
    alone: Coupling,
    scores: Scores,
    samples: Sequence[Sample],
    statistics: Statistics,
    shares: Sequence[float],
    wanted: Sequence[np.ndarray],
) -> Curve:
    group = alone.groups[0]
    order = sorted(group.units, key=lambda unit: scores[unit])
    counts = sorted({min(max(1, round(share * len(order))), len(order) - 1) for share in shares})
    points = [0.0]
    for count in counts:
        masked = mask_units(model, alone)
        _compensate(model, masked.model, group, order[:count], statistics)
        feeds = masked.feeds(order[:count])
        found = outputs(masked.model, [{**sample, **feeds} for sample in samples])
        points.append(distance(found, wanted))
    if counts[-1] < len(order):
        counts.append(len(order))
        points.append(max(*points, 1.0))
    return Curve(group, tuple(order), (0, *counts), tuple(np.maximum.accumulate(points).tolist()))


def _compensate(model: ir.Model, copy: ir.Model, group: Group, gone: Sequence[Unit], statistics: Statistics) -> None:
    """Move the readers' weights in ``copy``, a copy of the graph with the masks."""
    nodes = {str(node.name): node for node in copy.graph}
    for linear in group.mixers:
        if linear in statistics and len(linear.weight.uses()) == 1:
            compensate(in_copy(linear, nodes), statistics[linear], depth_mask(linear, gone))


def as_table(curves: Sequence[Curve]) -> list[Mapping[str, object]]:
    """Plain data: each group's name, its units, and the distance at each count."""
    return [
        {"group": curve.group.name, "units": len(curve.order), "gone": curve.counts, "distance": curve.distances}
        for curve in curves
    ]
