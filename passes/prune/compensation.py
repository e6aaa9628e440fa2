"""Optimal compensation of the weights that stay for those that go: least squares on the inputs' covariance.

A product y = Wᵀx + b loses the inputs R. The weights of the others that lose the least of y, on inputs with
covariance C, and the bias free, are W'_S = W_S + C_SS⁻¹ C_SR W_R, and what is lost is the trace of
W_Rᵀ (C⁻¹_RR)⁻¹ W_R (the optimal brain surgeon: Hassibi and Stork 1993; for blocks as in optimal brain
compression: Frantar and Alistarh 2022). Without samples the covariance is that of white inputs behind the layers
which produce x: outer products of their weights.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from edgec.passes.prune.coupling import Coupling, Group, Unit
from edgec.passes.prune.products import Moments, has_rows, matrix, set_matrix, taps
from edgec.passes.prune.rules import Linear
from edgec.values import shape_of

ASSUMED = 0.5
"""How much of a correlation before an activation is left behind it, as far as weights can tell."""

DAMPING = 0.01
"""Added to the diagonal, as a share of its mean, so that inputs which hardly vary do not get huge weights."""


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
