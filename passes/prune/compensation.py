"""Optimal compensation of the weights that stay for those that go: least squares on the inputs' covariance.

A product y = Wᵀx + b loses the inputs R. The weights of the others that lose the least of y, on inputs with
covariance C, and the bias free, are W'_S = W_S + C_SS⁻¹ C_SR W_R, and what is lost is the trace of
W_Rᵀ (C⁻¹_RR)⁻¹ W_R (the optimal brain surgeon: Hassibi and Stork 1993; for blocks as in optimal brain
compression: Frantar and Alistarh 2022). Without samples the covariance is that of white inputs behind the layers
which produce x: outer products of their weights.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from edgec.frontend.values import shape_of
from edgec.passes.prune.coupling import Coupling, Group, Unit
from edgec.passes.prune.products import Moments, has_rows, matrix, set_matrix, taps
from edgec.passes.prune.rules import Linear

ASSUMED = 0.5
"""How much of a correlation before an activation is left behind it, as far as weights can tell."""

DAMPING = 0.01
"""Added to the diagonal, as a share of its mean, so that inputs which hardly vary do not get huge weights."""


_ROUNDS = 128
"""Units go one at a time where there are no more than so many, in as many rounds where there are."""


@dataclass(frozen=True)
class Inputs:
    """What is known of a product's inputs.

    Attributes:
        covariance: float64 [groups, depth, depth].
        mean: float64 [groups, depth]; zeros where the product has no bias, the covariance being around zero then.
    """

    covariance: np.ndarray
    mean: np.ndarray


Statistics = Mapping[Linear, Inputs]
"""For the products whose inputs are known."""


def from_moments(moments: Mapping[Linear, Moments]) -> Statistics:
    """What samples showed."""
    return {linear: _measured(linear, each) for linear, each in moments.items()}


def _measured(linear: Linear, moments: Moments) -> Inputs:
    if linear.node.op_type == "MatMul":
        return Inputs(moments.shrunk(moments.squares / max(moments.count, 1)), np.zeros_like(moments.sums))
    return Inputs(moments.covariance, moments.sums / max(moments.count, 1))


def from_weights(coupling: Coupling) -> Statistics:
    """What can be assumed without samples, from the weights of the layers in front."""
    found = {}
    for linear in coupling.linears:
        if has_rows(linear):
            covariance = _assumed(coupling, linear)
            found[linear] = Inputs(covariance, np.zeros(covariance.shape[:2]))
    return found


def _assumed(coupling: Coupling, linear: Linear) -> np.ndarray:
    """Channels made by one layer vary together as its rows do; all others are independent, of variance 1."""
    count = shape_of(linear.source)[linear.source_axis]
    channels = np.eye(count)
    for group in coupling.groups:
        place = (linear.source, linear.source_axis)
        if linear not in group.mixers or any(len(unit.cuts[place]) != 1 for unit in group.units):
            continue
        index = np.concatenate([unit.cuts[place] for unit in group.units])
        shared = sum((_correlations(group, each) for each in group.producers if each.groups == 1), np.zeros(()))
        if shared.ndim and len(shared) == len(index):
            alone = np.diag(np.diag(shared))
            channels[np.ix_(index, index)] = ASSUMED * shared + (1 - ASSUMED) * alone
    width = count // linear.groups
    return np.stack(
        [
            np.kron(channels[start : start + width, start : start + width], np.eye(taps(linear)))
            for start in range(0, count, width)
        ]
    )


def _correlations(group: Group, producer: Linear) -> np.ndarray:
    """Products of the rows that make the units; empty where a unit is not one row."""
    cuts = [unit.cuts.get((producer.weight, producer.out_axis)) for unit in group.units]
    if any(cut is None or len(cut) != 1 for cut in cuts):
        return np.zeros(())
    rows = matrix(producer)[0].T[np.concatenate([cut for cut in cuts if cut is not None])]
    return rows @ rows.T


def damped(covariance: np.ndarray) -> np.ndarray:
    """The covariance with ``DAMPING`` on its diagonal."""
    depth = covariance.shape[-1]
    mean = np.trace(covariance, axis1=-2, axis2=-1) / depth
    return covariance + np.eye(depth) * (DAMPING * np.maximum(mean, 1e-12))[..., np.newaxis, np.newaxis]


def depth_mask(linear: Linear, units: Iterable[Unit]) -> np.ndarray:
    """bool [groups, depth]: the rows of the product's matrix that ``units`` take away."""
    channels = np.zeros(shape_of(linear.source)[linear.source_axis], bool)
    for unit in units:
        cut = unit.cuts.get((linear.source, linear.source_axis))
        if cut is not None:
            channels[cut] = True
    return np.repeat(channels.reshape(linear.groups, -1), taps(linear), axis=1)


def compensated(linear: Linear, covariance: np.ndarray, gone: np.ndarray) -> np.ndarray:
    """The product's matrix with zeros in the rows ``gone`` and the others moved to make up for them."""
    found = matrix(linear)
    for group, (rows, spread, out) in enumerate(zip(found, damped(covariance), gone, strict=True)):
        if not out.any():
            continue
        kept = ~out
        shift = np.linalg.solve(spread[np.ix_(kept, kept)], spread[np.ix_(kept, out)] @ rows[out])
        found[group, kept] = rows[kept] + shift
        found[group, out] = 0
    return found


def compensate(linear: Linear, inputs: Inputs, gone: np.ndarray) -> None:
    """Give the product the matrix of :func:`compensated`, its output's mean kept."""
    set_matrix(linear, compensated(linear, inputs.covariance, gone), inputs.mean)


def losses(readers: Mapping[Linear, np.ndarray], units: Sequence[Unit]) -> np.ndarray:
    """float64 [units]: what each unit costs when they go one after the other, the cheapest first.

    That is the share of each reader's output variance which is lost although the weights that are left make up for
    the unit, so that of two units that tell the same only the first is cheap (the order of optimal brain
    compression, for channels as in ZipLM: Kurtić, Frantar and Alistarh 2023). No unit costs less than those before.

    Args:
        readers: by product, its inputs' covariance [groups, depth, depth].
    """
    states = [
        _Surgery(rows, spread, cuts)
        for linear, covariance in readers.items()
        for rows, spread, cuts in _surgeries(linear, covariance, units)
    ]
    left, prices, last = np.ones(len(units), bool), np.zeros(len(units)), 0.0
    at_once = -(-len(units) // _ROUNDS)
    while left.any():
        price = np.where(left, sum((state.prices() for state in states), np.zeros(len(units))), np.inf)
        for unit in np.argsort(price, kind="stable")[: min(at_once, int(left.sum()))]:
            last = prices[unit] = max(float(price[unit]), float(np.nextafter(last, np.inf)))
            left[unit] = False
            for state in states:
                state.remove(int(unit))
    return prices


def _surgeries(
    linear: Linear, covariance: np.ndarray, units: Sequence[Unit]
) -> Iterator[tuple[np.ndarray, np.ndarray, list[np.ndarray]]]:
    """For each group of a product its weights as shares, its inputs' covariance, and the rows that each unit cuts."""
    rows = matrix(linear)
    total = float(np.einsum("gio,gij,gjo->", rows, covariance, rows, optimize=True)) or 1.0
    masks = np.array([depth_mask(linear, (unit,)) for unit in units])
    for group, spread in enumerate(damped(covariance)):
        yield rows[group] / np.sqrt(total), spread, [np.flatnonzero(mask[group]) for mask in masks]


class _Surgery:
    """One matrix product that loses inputs.

    Units that cut fewer rows than others cut dummies besides: rows of zeros whose inputs are independent.
    """

    def __init__(self, rows: np.ndarray, covariance: np.ndarray, cuts: Sequence[np.ndarray]) -> None:
        depth, width = rows.shape
        most = max(map(len, cuts))
        self._rows = np.concatenate([rows, np.zeros((most, width))])
        self._inverse = np.eye(depth + most)
        self._inverse[:depth, :depth] = np.linalg.inv(covariance)
        dummies = np.arange(depth, depth + most)
        self._cuts = np.array([np.append(cut, dummies[len(cut) :]) for cut in cuts])

    def prices(self) -> np.ndarray:
        """float64 [units]: W_Rᵀ (C⁻¹_RR)⁻¹ W_R of each, 0 of those that are gone."""
        blocks = self._inverse[self._cuts[:, :, np.newaxis], self._cuts[:, np.newaxis]]
        lost = self._rows[self._cuts]
        found: np.ndarray = np.einsum("uko,uko->u", lost, np.linalg.solve(blocks, lost))
        return found

    def remove(self, unit: int) -> None:
        """Move the other rows, and the inverse, as if the unit's inputs had never been."""
        cut = self._cuts[unit]
        beside, block = self._inverse[:, cut], self._inverse[np.ix_(cut, cut)]
        moved = np.linalg.solve(block, np.concatenate([self._rows[cut], beside.T], axis=1))
        width = self._rows.shape[1]
        self._rows -= beside @ moved[:, :width]
        self._inverse -= beside @ moved[:, width:]
        self._rows[cut], self._inverse[cut], self._inverse[:, cut] = 0, 0, 0
        self._inverse[cut, cut] = 1
