"""Ranges from histograms: what is cut off at the ends makes the steps between finer.

==========  =====================================================================================================
min-max     the range of all samples
percentile  all but a share of 10⁻⁴ of the values at either end
mse         the ends that minimise the mean squared error of rounding and clipping
entropy     the ends that lose least information: the least Kullback-Leibler divergence of the distribution from
            what 256 levels keep of it (as in the calibration of TensorRT, Migacz 2017)
==========  =====================================================================================================
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from edgec.grid import Grid
from edgec.passes.quantize.grid import grid_between
from edgec.passes.quantize.statistics import Histogram

_TAIL = 1e-4
_CUTS = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.65, 0.6, 0.5, 0.4, 0.3, 0.2)
"""Shares of an end of the range that the searches try."""


def minmax(histogram: Histogram) -> tuple[float, float]:
    """The whole range."""
    return histogram.low, histogram.high


def percentile(histogram: Histogram) -> tuple[float, float]:
    """The ends beyond which a share of ``_TAIL`` of the values lies on either side."""
    share = np.cumsum(histogram.counts) / max(histogram.counts.sum(), 1)
    edges = np.linspace(histogram.low, histogram.high, len(share) + 1)
    low, high = np.searchsorted(share, _TAIL), np.searchsorted(share, 1 - _TAIL)
    return float(edges[low]), float(edges[min(high + 1, len(share))])


def mse(histogram: Histogram) -> tuple[float, float]:
    """The ends with the least mean squared error."""
    return _search(histogram, lambda low, high: rounding_error(histogram, grid_between(low, high)))


def entropy(histogram: Histogram) -> tuple[float, float]:
    """The ends with the least divergence."""
    return _search(histogram, lambda low, high: _divergence(histogram, grid_between(low, high)))


OBSERVERS: Mapping[str, Callable[[Histogram], tuple[float, float]]] = {
    "minmax": minmax,
    "percentile": percentile,
    "mse": mse,
    "entropy": entropy,
}
"""The range of a tensor from its histogram, by the name in a recipe."""


def rounding_error(histogram: Histogram, grid: Grid) -> float:
    """Mean squared error of the values on ``grid``."""
    x = histogram.centres
    low, high = grid.range
    clipped = np.maximum(x - high, 0) + np.maximum(low - x, 0)
    error = np.where(clipped > 0, clipped**2, grid.scale**2 / 12)
    return float((error * histogram.counts).sum() / max(histogram.counts.sum(), 1))


def clipped_share(histogram: Histogram, grid: Grid) -> float:
    """Share of the values more than half a step outside ``grid``."""
    low, high = grid.range
    outside = (histogram.centres < low - grid.scale / 2) | (histogram.centres > high + grid.scale / 2)
    return float(histogram.counts[outside].sum() / max(histogram.counts.sum(), 1))


def _search(histogram: Histogram, error: Callable[[float, float], float]) -> tuple[float, float]:
    """The best ends; where all values have one sign, only the far end moves."""
    low, high = min(histogram.low, 0.0), max(histogram.high, 0.0)
    lows = [low * cut for cut in _CUTS] if low < 0 else [0.0]
    highs = [high * cut for cut in _CUTS] if high > 0 else [0.0]
    pairs = [(a, b) for a in lows for b in highs if b > a]
    return min(pairs, key=lambda ends: error(*ends), default=(low, high))


def _divergence(histogram: Histogram, grid: Grid) -> float:
    """Σ p · ln(p / q): p the clipped distribution, q with each level's share spread over the bins it stands for."""
    steps = np.rint(histogram.centres / grid.scale).astype(np.int64) + grid.zero
    level = np.clip(steps, *grid.limits) - grid.limits[0]
    total = max(histogram.counts.sum(), 1)
    p = histogram.counts / total
    inside = (steps >= grid.limits[0]) & (steps <= grid.limits[1]) & (p > 0)
    bins = np.bincount(level[inside], minlength=256)
    mass = np.bincount(level[inside], weights=p[inside], minlength=256)
    q = np.where(inside, (mass / np.maximum(bins, 1))[level], 0)
    clipped = np.bincount(level[~inside], weights=p[~inside], minlength=256)
    reference = p.copy()
    for end in (0, 255):
        edge = np.flatnonzero(inside & (level == end))
        if len(edge):
            reference[edge[-1 if end else 0]] += clipped[end]
    used = inside & (q > 0)
    return float((reference[used] * np.log(reference[used] / q[used])).sum())
