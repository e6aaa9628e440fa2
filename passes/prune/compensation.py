"""Optimal compensation of the weights that stay for those that go: least squares on the inputs' covariance.

A product y = Wᵀx + b loses the inputs R. The weights of the others that lose the least of y, on inputs with
covariance C, and the bias free, are W'_S = W_S + C_SS⁻¹ C_SR W_R, and what is lost is the trace of
W_Rᵀ (C⁻¹_RR)⁻¹ W_R (the optimal brain surgeon: Hassibi and Stork 1993; for blocks as in optimal brain
compression: Frantar and Alistarh 2022). Without samples the covariance is that of white inputs behind the layers
which produce x: outer products of their weights.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np

from edgec.passes.prune.coupling import Coupling, Group, Unit
from edgec.passes.prune.products import Moments, has_rows, matrix, taps
from edgec.passes.prune.rules import Linear
from edgec.values import shape_of

DAMPING = 0.01
"""Added to the diagonal, as a share of its mean, so that inputs which hardly vary do not get huge weights."""

Covariances = Mapping[Linear, np.ndarray]
"""float64 [groups, depth, depth] for the products whose inputs are known."""


def from_moments(moments: Mapping[Linear, Moments]) -> Covariances:
    """The covariances that samples showed."""
    return {linear: each.covariance for linear, each in moments.items()}


def from_weights(coupling: Coupling) -> Covariances:
    """Covariances without samples, from the weights of the layers in front."""
    return {linear: _assumed(coupling, linear) for linear in coupling.linears if has_rows(linear)}


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
            channels[np.ix_(index, index)] = shared
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


def losses(linear: Linear, covariance: np.ndarray, units: Iterable[Unit]) -> np.ndarray:
    """float64 [units]: the share of the output's variance that each unit alone costs, after compensation."""
    rows, spread = matrix(linear), damped(covariance)
    inverse = np.linalg.inv(spread)
    total = float(np.einsum("gio,gij,gjo->", rows, covariance, rows)) or 1.0
    found = []
    for unit in units:
        loss = 0.0
        for group, out in enumerate(depth_mask(linear, (unit,))):
            if out.any():
                lost = rows[group, out]
                loss += float(np.sum(lost * np.linalg.solve(inverse[group][np.ix_(out, out)], lost)))
        found.append(loss / total)
    return np.array(found)


def bias_shift(linear: Linear, moments: Moments, before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """float64 [channels]: what keeps the output's mean when the matrix changes."""
    mean = moments.sums / max(moments.count, 1)
    return np.einsum("gi,gio->go", mean, before - after).reshape(-1)
