"""Allocation: which units go, so that a budget is met and the least is lost.

Each group offers its units in the order of their scores, in packs that keep what is left a multiple of the vector
width. The next pack is always the one that costs least for what it saves. Prices are the sensitivities' where
curves were measured, the scores themselves elsewhere.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import gcd

import numpy as np
import onnx_ir as ir

from edgec.errors import EdgecError
from edgec.passes.prune.cost import Cost, attainable
from edgec.passes.prune.coupling import Group, Unit
from edgec.passes.prune.low_rank import RankCurve, Split
from edgec.passes.prune.rounding import vector_step
from edgec.passes.prune.rules import Linear
from edgec.passes.prune.scores import Scores
from edgec.passes.prune.sensitivity import Curve


@dataclass(frozen=True)
class Limits:
    """What is left of every axis at least, and what counts are rounded to.

    Attributes:
        floor: the share of each axis' indices that stays.
        multiple: kept channels are a multiple of this, where a group is wide enough.
    """

    floor: float = 0.1
    multiple: int = 1


@dataclass(frozen=True)
class Choice:
    """What goes: units, and how products become two."""

    units: tuple[Unit, ...]
    splits: Mapping[Linear, Split]


@dataclass(frozen=True)
class _Pack:
    """Units that go at once, and their price."""

    units: tuple[Unit, ...]
    price: float

    def saving(self, cost: Cost) -> int:
        return sum(cost.saving(unit) for unit in self.units)

    def take(self, cost: Cost, floor: float) -> bool:
        """Count without the units; False where an axis would have less than its floor left."""
        lost: dict[tuple[ir.Value, int], set[int]] = {}
        for unit in self.units:
            for axis, cut in unit.cuts.items():
                lost.setdefault(axis, set()).update(cut.tolist())
        whole = Unit({axis: np.array(sorted(cut)) for axis, cut in lost.items()})
        share = cost.smallest(whole)
        if share < floor or share <= 0:
            return False
        cost.remove(whole)
        return True


@dataclass(frozen=True)
class _Rank:
    """A split of a product, and the price of going there from the one before."""

    linear: Linear
    split: Split
    price: float

    def saving(self, cost: Cost) -> int:
        return cost.saving_at(self.linear, self.split)

    def take(self, cost: Cost, floor: float) -> bool:
        """Count with this split; the curves' smallest rank is its floor."""
        del floor
        cost.set_split(self.linear, self.split)
        return True


_Point = tuple[int, float, Split | None]
"""What a split saves, how far it moves the outputs, and the split."""


@dataclass(frozen=True)
class Offers:
    """What can be had at which price.

    Attributes:
        groups: of units.
        scores: of the units; groups with a unit that has none stay.
        curves: sensitivities of groups.
        ranks: sensitivities of products to their rank.
    """

    groups: Sequence[Group]
    scores: Scores
    curves: Sequence[Curve] = ()
    ranks: Sequence[RankCurve] = ()


def allocate(cost: Cost, offers: Offers, whole: int, fraction: float, limits: Limits) -> Choice:
    """What brings the cost below 1 - ``fraction`` of ``whole``; ``cost`` counts without it afterwards.

    Raises:
        EdgecError: so much cannot go; says how much could.
    """
    goal = whole * (1 - fraction)
    queues: list[Sequence[_Pack | _Rank]] = [_packs(group, offers, limits.multiple) for group in offers.groups]
    queues += [_ranks(curve, cost) for curve in offers.ranks]
    heap = [(_ratio(queue[0], cost), index, 0) for index, queue in enumerate(queues) if queue]
    heapq.heapify(heap)
    taken: list[_Pack | _Rank] = []
    while heap and cost.total > goal:
        _, index, place = heapq.heappop(heap)
        ratio = _ratio(queues[index][place], cost)
        if heap and ratio > heap[0][0]:
            heapq.heappush(heap, (ratio, index, place))
        elif queues[index][place].take(cost, limits.floor):
            taken.append(queues[index][place])
            if place + 1 < len(queues[index]):
                heapq.heappush(heap, (_ratio(queues[index][place + 1], cost), index, place + 1))
    if cost.total > goal:
        raise _unreachable(fraction, 1 - cost.total / whole)
    return Choice(
        tuple(unit for each in taken if isinstance(each, _Pack) for unit in each.units),
        {each.linear: each.split for each in taken if isinstance(each, _Rank)},
    )


def _unreachable(fraction: float, possible: float) -> EdgecError:
    if possible <= 0:
        return EdgecError("nothing of this model can be pruned; edgec inspect --prunable says why for every layer")
    least = attainable(possible)
    return EdgecError(
        f"{fraction:.1%} of the model cannot be pruned: at most {least:.1%} can go with the floor of each layer; "
        f"ask for --prune {least:g} or less"
    )


def _packs(group: Group, offers: Offers, multiple: int) -> list[_Pack]:
    """The group's units in the order in which they go, none of them where some have no score."""
    scores = offers.scores
    if any(unit not in scores for unit in group.units):
        return []
    order = sorted(group.units, key=lambda unit: scores[unit])
    curve = next((each for each in offers.curves if each.group is group), None)
    prices = np.array([scores[unit] for unit in order]) if curve is None else curve.prices()
    step = vector_step(multiple // gcd(multiple, group.width), len(order))
    borders = [0, *range(len(order) % step or step, len(order) + 1, step)]
    return [_Pack(tuple(order[low:high]), float(prices[low:high].sum())) for low, high in pairwise(borders)]


def _ranks(curve: RankCurve, cost: Cost) -> list[_Rank]:
    """The splits on the lower convex hull of distance over saving: each step costs more for what it saves."""
    hull: list[_Point] = [(0, 0.0, None)]
    points = [(cost.saving_at(curve.linear, split), away, split) for split, away in curve.points()]
    for point in sorted(points, key=lambda point: point[:2]):
        if point[0] <= hull[-1][0]:
            continue
        while len(hull) > 1 and _slope(hull[-2], hull[-1]) >= _slope(hull[-1], point):
            hull.pop()
        hull.append(point)
    return [
        _Rank(curve.linear, split, away - before)
        for (_, before, _), (_, away, split) in pairwise(hull)
        if split is not None
    ]


def _slope(first: _Point, second: _Point) -> float:
    return (second[1] - first[1]) / (second[0] - first[0])


def _ratio(offer: _Pack | _Rank, cost: Cost) -> float:
    """Price for what is saved; infinite where nothing is."""
    saved = offer.saving(cost)
    return offer.price / saved if saved > 0 else float("inf")
