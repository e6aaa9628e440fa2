"""The grids of a quantisation.

Activations have one grid a tensor: 8 bits with a zero point, 16 bits around zero. Weights have one scale an output
channel, around zero, in [−127, 127].
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from edgec.grid import Grid

WEIGHT_LIMIT = 127
_SMALLEST_SCALE = float(np.finfo(np.float32).tiny)
_SMALLEST_SHARE = 1e-9
_BIAS_LIMIT = 2.0**30
"""Largest bias in steps of its scale; half of int32, so that the sum of products of bytes has the other half."""
_SUM_LIMIT = 0.99 * 2.0**31
"""Largest sum of products and bias; the rest is for a bias that is corrected afterwards."""


def grid_between(low: float, high: float, bits: int = 8) -> Grid:
    """The grid from ``low`` to ``high``, which it is widened to hold 0 exactly; for 16 bits it is symmetric."""
    low, high = min(float(low), 0.0), max(float(high), 0.0)
    if bits == 16:
        return Grid(_float32(max(-low, high) / 32767), 0, "int16")
    scale = _float32((high - low) / 255)
    return Grid(scale, int(np.clip(np.rint(-128 - low / scale), -128, 127)))


def exact_grid(levels: np.ndarray) -> Grid | None:
    """The 8-bit grid on which all of the sorted, different ``levels`` lie, as pixels do; None where there is none."""
    if not 2 <= len(levels) <= 256:
        return None
    exact = levels.astype(np.float64)
    span = float(exact[-1] - exact[0])
    step = span / np.rint(span / np.diff(exact).min())  # not the least difference itself, which has lost digits
    steps = exact / step
    low, high = min(float(steps[0]), 0.0), max(float(steps[-1]), 0.0)
    if np.abs(steps - np.rint(steps)).max() > 0.01 or high - low > 255.01:
        return None
    return Grid(_float32(step), int(-128 - np.rint(low)))


def _float32(scale: float) -> float:
    """A positive scale that float32 can hold; 1 for a tensor that is always 0."""
    return float(np.float32(max(scale, _SMALLEST_SCALE))) if scale > 0 else 1.0


@dataclass(frozen=True)
class Weights:
    """A quantised weight.

    Attributes:
        values: int8, of the weight's shape.
        scales: float32, one for each index of ``axis``.
        axis: the one of the output channels.
    """

    values: np.ndarray
    scales: np.ndarray
    axis: int

    def dequantise(self) -> np.ndarray:
        """The float32 weight."""
        shape = [1] * self.values.ndim
        shape[self.axis] = -1
        return self.values.astype(np.float32) * self.scales.reshape(shape)


Nearest = Callable[[np.ndarray], np.ndarray]
"""From numbers in steps of their scale to the nearest that a weight can be."""


def nearest_integer(steps: np.ndarray) -> np.ndarray:
    """``steps`` rounded to [−127, 127]."""
    return np.clip(np.rint(steps), -WEIGHT_LIMIT, WEIGHT_LIMIT)


def nearest_sum(terms: int) -> Nearest:
    """Rounds to sums of at most ``terms`` signed powers of two in [−127, 127].

    The fewest terms of an integer n are the digits of its non-adjacent form, where n and 3n differ in binary.
    """
    whole = range(WEIGHT_LIMIT + 1)
    positive = np.array([n for n in whole if (n ^ 3 * n).bit_count() <= terms], np.float64)
    middles = (positive[1:] + positive[:-1]) / 2
    return lambda steps: np.copysign(positive[np.searchsorted(middles, np.abs(steps))], steps)


def weight_scales(weight: np.ndarray, axis: int) -> np.ndarray:
    """float32 scale of each output channel: its largest magnitude is 127 steps.

    A channel that is next to nothing beside the others has a scale that a product of scales does not underflow with.
    """
    others = tuple(index for index in range(weight.ndim) if index != axis)
    largest = np.abs(weight).max(axis=others)
    least = _SMALLEST_SHARE * largest.max()
    return (np.maximum(largest, least) / WEIGHT_LIMIT if least > 0 else np.ones(len(largest))).astype(np.float32)


def fitting_scales(scales: np.ndarray, rows: np.ndarray, bias: np.ndarray | None, x: Grid) -> np.ndarray:
    """``scales`` [channels], enlarged where int32 would not hold the sums of a product, or its bias.

    Args:
        scales: float32, of the output channels.
        rows: the float weights [channels, K].
        bias: [channels], which is to be an int32 in steps of ``x.scale`` · scale.
        x: the grid of the product's input.
    """
    start = np.zeros(len(scales)) if bias is None else np.abs(bias.astype(np.float64)) / x.scale
    least = start / _BIAS_LIMIT
    if x.bits == 16:
        # rounding moves a weight by half a step up, or by a whole one where it is learned
        room = max(_SUM_LIMIT - 2.0**15 * rows.shape[1], _SUM_LIMIT / 2)
        least = np.maximum(least, (2.0**15 * np.abs(rows.astype(np.float64)).sum(1) + start) / room)
    return np.maximum(scales, least.astype(np.float32))


def round_weights(
    weight: np.ndarray, scales: np.ndarray, axis: int, nearest: Nearest = nearest_integer
) -> Weights:
    """``weight`` rounded to the nearest integers, of those that ``nearest`` gives."""
    shape = [1] * weight.ndim
    shape[axis] = -1
    return Weights(nearest(weight / scales.reshape(shape)).astype(np.int8), scales, axis)
