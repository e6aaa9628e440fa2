"""Learned rounding: up or down for each weight, so that the layer's results on real inputs change least.

With the second moment H of the patches, rounding errors E of one output's weights change its results by E·H·Eᵀ in
the mean square. Rounding to the nearest minimises the diagonal of that sum only. From there, each weight in turn
takes the neighbour that lowers the whole sum, given the others, until none moves. The objective is AdaRound's
(Nagel et al. 2020, arXiv 2004.10568) and GPTQ's (Frantar et al. 2022, arXiv 2210.17323); coordinate descent on it
needs no gradient steps, and gives the same bits every time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from edgec.passes.quantize.grid import WEIGHT_LIMIT, Nearest, nearest_integer

_DAMPING = 0.01
"""Share of the mean diagonal that is added to H: the samples do not show every direction."""

_SWEEPS = 4
SHARES = (1.0, 0.97, 0.94, 0.9, 0.85)
"""Shares of the whole range that an output's weights may be clipped to."""

HALVES = (1.0, 0.5)
"""The same where scales stay powers of two."""


OCTAVE = tuple(np.linspace(1.0, 0.55, 10))
"""The same where weights are powers of two, among which a factor of two changes nothing."""

def second_moment(patches: np.ndarray, centred: bool) -> np.ndarray:
    """H [groups, depth, depth] in float64 of ``patches`` [groups, positions, depth], damped.

    ``centred`` leaves out the mean, whose effect the bias takes up.
    """
    wide = patches.astype(np.float32)
    if centred:
        wide = wide - wide.mean(axis=1, keepdims=True)
    moment = (wide.transpose(0, 2, 1) @ wide).astype(np.float64) / wide.shape[1]
    diagonal = np.einsum("gkk->gk", moment)
    diagonal += _DAMPING * diagonal.mean(axis=1, keepdims=True) + 1e-12
    return moment


def output_error(errors: np.ndarray, moment: np.ndarray) -> np.ndarray:
    """Mean square change [groups, outputs] of the results by weight ``errors`` [groups, outputs, depth]."""
    return np.einsum("gmk,gmk->gm", errors @ moment, errors)


def shares_of(terms: int | None, fixed_point: bool) -> Sequence[float]:
    """What clipping tries, for weights of so many powers of two (None: integers), and scales of powers of two."""
    if fixed_point:
        return HALVES
    return SHARES if terms is None else OCTAVE


def clip_scales(
    rows: np.ndarray, scales: np.ndarray, moment: np.ndarray, shares: Sequence[float] = SHARES,
    nearest: Nearest = nearest_integer,
) -> np.ndarray:  # fmt: skip
    """For each output the share of its scale [groups, outputs] with the least error when rounded to the nearest."""
    candidates = [scales * np.float32(share) for share in shares]
    errors = [output_error(nearest(rows / each[..., None]) * each[..., None] - rows, moment) for each in candidates]
    return np.take_along_axis(np.stack(candidates), np.argmin(errors, axis=0)[None], 0)[0]


def learn_rounding(rows: np.ndarray, scales: np.ndarray, moment: np.ndarray) -> np.ndarray:
    """Integers [groups, outputs, depth] as int8 for ``rows`` at ``scales`` [groups, outputs]."""
    steps = rows.astype(np.float64) / scales[..., None]
    low = np.clip(np.floor(steps), -WEIGHT_LIMIT, WEIGHT_LIMIT)
    high = np.clip(np.ceil(steps), -WEIGHT_LIMIT, WEIGHT_LIMIT)
    start = nearest_integer(rows / scales[..., None])
    return _descended(start, steps, moment, lambda ideal, k: np.clip(np.rint(ideal), low[:, :, k], high[:, :, k]))


def learn_sums(rows: np.ndarray, scales: np.ndarray, moment: np.ndarray, nearest: Nearest) -> np.ndarray:
    """The same with weights that ``nearest`` gives, however far from where they were: these lie unevenly."""
    steps = rows.astype(np.float64) / scales[..., None]
    return _descended(nearest(steps), steps, moment, lambda ideal, k: nearest(ideal))


def _descended(
    start: np.ndarray, steps: np.ndarray, moment: np.ndarray, best: Callable[[np.ndarray, int], np.ndarray]
) -> np.ndarray:
    """``start`` after sweeps in which every weight takes in turn what is ``best`` for (its ideal, its depth)."""
    chosen = start.astype(np.float64)
    slope = (chosen - steps) @ moment
    diagonal = np.einsum("gkk->gk", moment)
    for _ in range(_SWEEPS):
        if not _sweep(chosen, slope, moment, diagonal, best):
            break
    return chosen.astype(np.int8)


def _sweep(
    chosen: np.ndarray, slope: np.ndarray, moment: np.ndarray, diagonal: np.ndarray,
    best: Callable[[np.ndarray, int], np.ndarray],
) -> bool:  # fmt: skip
    """Move every weight once, in place; whether any did. ``slope`` is half the gradient of the error."""
    moved = False
    for k in range(chosen.shape[2]):
        ideal = chosen[:, :, k] - slope[:, :, k] / diagonal[:, None, k]
        step = best(ideal, k) - chosen[:, :, k]
        group, output = np.nonzero(step)
        if len(group):
            moved = True
            chosen[group, output, k] += step[group, output]
            slope[group, output] += step[group, output, None] * moment[group, k]
    return moved
