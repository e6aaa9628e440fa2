"""Grids: which reals the integers of a tensor stand for, ``real = scale · (q − zero)``."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np


def quantise(real: np.ndarray, scale: float, zero: int, dtype: str | np.dtype) -> np.ndarray:
    """``real``, float32 of any shape, as integers: round_half_even(real / scale) + zero, saturated.

    NaN becomes the least integer, as in every kernel (see :func:`edgec.scalar.saturate`). Sums that float32 does not
    hold are outside of any range.
    """
    limits = np.iinfo(dtype)
    whole = np.rint(np.asarray(real, np.float32) / np.float32(scale)) + np.float32(zero)
    return np.fmin(np.fmax(whole, np.float32(limits.min)), np.float32(limits.max)).astype(dtype)


def dequantise(q: np.ndarray, scale: float, zero: int) -> np.ndarray:
    """The float32 reals that the integers ``q`` stand for."""
    return (q.astype(np.float32) - np.float32(zero)) * np.float32(scale)


@dataclass(frozen=True)
class Grid:
    """A tensor's grid: ``scale`` is a float32 number, ``dtype`` one of integers of 8 or 16 bits."""

    scale: float
    zero: int
    dtype: str = "int8"

    @property
    def limits(self) -> tuple[int, int]:
        """The least and the largest integer."""
        info = np.iinfo(self.dtype)
        return int(info.min), int(info.max)

    @property
    def bits(self) -> int:
        """8 or 16."""
        return 8 * np.dtype(self.dtype).itemsize

    @property
    def largest(self) -> int:
        """The largest magnitude of q − zero."""
        return max(abs(limit - self.zero) for limit in self.limits)

    @property
    def range(self) -> tuple[float, float]:
        """The least and the largest real."""
        least, largest = self.limits
        return self.scale * (least - self.zero), self.scale * (largest - self.zero)

    def quantise(self, real: np.ndarray) -> np.ndarray:
        """See :func:`quantise`."""
        return quantise(real, self.scale, self.zero, self.dtype)

    def dequantise(self, q: np.ndarray) -> np.ndarray:
        """See :func:`dequantise`."""
        return dequantise(q, self.scale, self.zero)

    def round(self, real: np.ndarray) -> np.ndarray:
        """``real`` on the grid, float32."""
        return self.dequantise(self.quantise(real))

    def by_power_of_two(self, wider: bool) -> Grid:
        """The grid with the next power of two from the scale upwards (``wider``) or downwards.

        The wider one begins where this one does; the other one has the zero point, and cuts off both ends.
        """
        above = float(powers_of_two(np.array(self.scale)))
        scale = above if wider or above == self.scale else above / 2
        if self.bits == 16 or not wider:
            return replace(self, scale=scale)
        return replace(self, scale=scale, zero=int(np.rint(self.limits[0] - self.range[0] / scale)))

    def scaled(self, factor: float) -> Grid:
        """The grid with steps of ``factor`` times the size and the same zero."""
        return replace(self, scale=float(np.float32(self.scale * factor)))


def powers_of_two(scales: np.ndarray) -> np.ndarray:
    """The least powers of two that are no less than positive ``scales``, float32."""
    fraction, exponent = np.frexp(scales.astype(np.float64))
    return np.ldexp(1.0, np.where(fraction == 0.5, exponent - 1, exponent)).astype(np.float32)


FACTOR_GROUP = 32
"""Neighbours along the depth of a product of integers that share a factor, at most."""

LARGEST_FACTOR = 17
"""By which unsigned integers of 4 bits stay within a byte, so that a kernel can multiply two bytes at a time."""

FACTORED_LIMIT = 7
"""The largest magnitude of what a factor multiplies."""


def factor_group(channels: int, taps: int) -> int:
    """How many neighbours along a depth of ``taps`` times ``channels`` share a factor; 0: none do.

    Kernels count them in eights within the channels of a tap; only a single tap's last group may be shorter.
    """
    if channels % 8:
        return 0
    if taps == 1:
        return FACTOR_GROUP
    return next((size for size in (FACTOR_GROUP, FACTOR_GROUP // 2) if channels % size == 0), 0)


def common_factors(weight: np.ndarray, size: int) -> np.ndarray | None:
    """int8 [groups, outputs]: by what each ``size`` integers of ``weight`` [depth, outputs] are integers of 4 bits
    around zero; None where there is no such factor up to :data:`LARGEST_FACTOR`."""
    starts = np.arange(0, len(weight), size)
    magnitudes = np.abs(weight.astype(np.int32))
    divisors, largest = np.gcd.reduceat(magnitudes, starts), np.maximum.reduceat(magnitudes, starts)
    found = np.zeros(divisors.shape, np.int8)
    for factor in range(LARGEST_FACTOR, 0, -1):
        found[(divisors % factor == 0) & (largest <= FACTORED_LIMIT * factor)] = factor
    return found if found.all() else None


def spread_factors(factors: np.ndarray, size: int, depth: int) -> np.ndarray:
    """The factor of every weight, int8 [depth, outputs]."""
    return np.repeat(factors, size, axis=0)[:depth]


def split_factors(weight: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """``weight``, int8 [..., outputs] over a depth that has factors, without them, and these [groups, outputs].

    With ``size`` 0 there are none.
    """
    rows = weight.reshape(-1, weight.shape[-1])
    if not size:
        return weight, rows[:0]
    factors = common_factors(rows, size)
    if factors is None:
        raise ValueError(f"groups of {size} have no common factors")
    return (rows // spread_factors(factors, size, len(rows))).reshape(weight.shape), factors
