"""Allocation: which units go, so that a budget is met and the least is lost.

Each group offers its units in the order of their scores, in packs that keep what is left a multiple of the vector
width. The next pack is always the one that costs least for what it saves. Prices are the sensitivities' where
curves were measured, the scores themselves elsewhere.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import gcd

import numpy as np
import onnx_ir as ir

from edgec.errors import EdgecError
from edgec.passes.prune.cost import Cost, Measure
from edgec.passes.prune.coupling import Group, Unit
from edgec.passes.prune.scores import Scores
from edgec.passes.prune.sensitivity import Curve

_SMALLEST_PART = 4
"""Rounding never asks for more than this part of a group at once, or narrow layers could not be pruned at all."""


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
class _Pack:
    """Units that go at once, and their price."""

    units: tuple[Unit, ...]
    price: float


def allocate(
    model: ir.Model, groups: Sequence[Group], scores: Scores, curves: Sequence[Curve], measure: Measure, fraction: float,
    limits: Limits,
) -> list[Unit]:  # fmt: skip
    """Units whose removal takes at least ``fraction`` of the measure away.

    Raises:
        EdgecError: so much cannot go; says how much could.
    """
    cost = Cost(model, measure)
    goal = cost.total * (1 - fraction)
    queues = [_packs(group, scores, curves, limits.multiple) for group in groups]
    heap = [(_ratio(packs[0], cost), index, 0) for index, packs in enumerate(queues) if packs]
    heapq.heapify(heap)
    gone: list[Unit] = []
    total = cost.total
    while heap and cost.total > goal:
        _, index, place = heapq.heappop(heap)
        pack = queues[index][place]
        ratio = _ratio(pack, cost)
        if heap and ratio > heap[0][0]:
            heapq.heappush(heap, (ratio, index, place))
            continue
        if not _remove(cost, pack, limits.floor):
            continue
        gone += pack.units
        if place + 1 < len(queues[index]):
            heapq.heappush(heap, (_ratio(queues[index][place + 1], cost), index, place + 1))
    if cost.total > goal:
        raise _unreachable(measure, fraction, 1 - cost.total / total)
    return gone


def _unreachable(measure: Measure, fraction: float, possible: float) -> EdgecError:
    if possible <= 0:
        return EdgecError("nothing of this model can be pruned; edgec inspect --prunable says why for every layer")
    least = int(possible * 1000) / 1000
    return EdgecError(
        f"{fraction:.1%} of the {measure} cannot be pruned: at most {least:.1%} can go with the floor that each layer "
        f"keeps; ask for --prune {least:g} or less"
    )


def _packs(group: Group, scores: Scores, curves: Sequence[Curve], multiple: int) -> list[_Pack]:
    """The group's units in the order in which they go, none of them where some have no score."""
    if any(unit not in scores for unit in group.units):
        return []
    order = sorted(group.units, key=lambda unit: scores[unit])
    curve = next((each for each in curves if each.group is group), None)
    prices = np.array([scores[unit] for unit in order]) if curve is None else curve.prices()
    step = _step(group, multiple)
    first = len(order) % step or step
    borders = [0, *range(first, len(order) + 1, step)]
    return [
        _Pack(tuple(order[low:high]), float(prices[low:high].sum()))
        for low, high in zip(borders, borders[1:], strict=False)
    ]


def _step(group: Group, multiple: int) -> int:
    """Units that go at once, so that multiples of the channels stay multiples."""
    wanted = multiple // gcd(multiple, group.width)
    return max(1, min(wanted, len(group.units) // _SMALLEST_PART))


def _ratio(pack: _Pack, cost: Cost) -> float:
    """Price for what is saved; infinite where nothing is."""
    saved = sum(cost.saving(unit) for unit in pack.units)
    return pack.price / saved if saved > 0 else float("inf")


def _remove(cost: Cost, pack: _Pack, floor: float) -> bool:
    """Take the pack away unless an axis would have less than its floor left."""
    lost: dict[tuple[ir.Value, int], set[int]] = {}
    for unit in pack.units:
        for axis, cut in unit.cuts.items():
            lost.setdefault(axis, set()).update(cut.tolist())
    whole = Unit({axis: np.array(sorted(cut)) for axis, cut in lost.items()})
    share = cost.smallest(whole)
    if share < floor or share <= 0:
        return False
    cost.remove(whole)
    return True


def by_group(groups: Sequence[Group], gone: Sequence[Unit]) -> Mapping[Group, int]:
    """How many units of each group go."""
    chosen = set(gone)
    return {group: sum(unit in chosen for unit in group.units) for group in groups}
