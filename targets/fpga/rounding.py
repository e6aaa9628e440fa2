"""Requantisation without floats: float32's roundings of a product, in the integers that an FPGA computes with.

The rule of every target is q = clamp(rne(fl(fl(acc) · m)) + z), where fl rounds to the 24 bits of a float32 and rne
to an integer, both to nearest and halves to even. Here m = M · 2^−s with an integer M < 2^24.

1. fl(|acc|) = a · 2^e with a ≤ 2^24: dropping e = max(0, bits(|acc|) − 24) bits, halves to even.
2. p = a · M is exact in 48 bits, and v = p · 2^(e−s) is the real number to round: first by fl, then by rne. Let
   n = floor(v). A result beyond 9 bits is clamped whatever it is, so n ≤ 511 may be taken for larger ones.
3. fl is monotone and leaves n, n + ½ and n + 1 as they are, for they have fewer than 24 bits. So for v < n + ½ either
   fl(v) < n + ½, and the result is n, or fl(v) = n + ½, a tie; and likewise above. What remains is when fl(v) = n + ½:
   exactly if |v − (n + ½)| ≤ u/2 with u = 2^(k−23) the spacing of float32 at v, 2^k ≤ v < 2^(k+1). At equality v lies
   halfway between two float32 numbers, and n + ½ = (2n + 1) · 2^(22−k) · u is the even one for every k ≤ 21.
4. k is bits(n) − 1 for n ≥ 1; for n = 0 it is −1 above ½ and −2 in [¼, ½); below ¼ there is no tie to find.

So the two roundings cost one comparison of the dropped bits with ½ and a tolerance of u/2, which is a power of two.
"""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]

MANTISSA = 24
"""Bits of a float32's significand."""

LARGEST_SHIFT = 50
"""From here on a · M · 2^−s < ¼, whose result is 0."""

LARGEST_RESULT = 511
"""Larger than any difference of two bytes and a half."""

LARGEST_FACTOR = 2.0**13
"""Above it a shift could be smaller than what an accumulator of 32 bits drops."""


def factors(multipliers: Array) -> tuple[Array, Array]:
    """float32 ``multipliers`` ≥ 0 below :data:`LARGEST_FACTOR` as (M, s): int64, M < 2^24, 1 ≤ s ≤ 50.

    Exact, but for multipliers so small that every result is 0: those get M = 0.
    """
    fraction, exponent = np.frexp(multipliers.astype(np.float64))
    mantissa = np.ldexp(fraction, MANTISSA).astype(np.int64)
    shift = MANTISSA - exponent.astype(np.int64)
    # |acc| < 2^32, so that below 2^-34 every product is less than ¼
    negligible = (shift > LARGEST_SHIFT + 8) | (mantissa == 0)
    return np.where(negligible, 0, mantissa), np.where(negligible, LARGEST_SHIFT, shift)


def bits(values: Array) -> Array:
    """The number of bits of integers in [0, 2^52]."""
    return np.frexp(values.astype(np.float64))[1].astype(np.int64)


def round_bits(values: Array, dropped: Array) -> Array:
    """values · 2^−dropped to the nearest integer, halves to even, for values ≥ 0."""
    whole = values >> dropped
    rest, half = values - (whole << dropped), np.where(dropped > 0, 1 << np.maximum(dropped - 1, 0), 1)
    return whole + ((rest > half) | ((rest == half) & (whole & 1 == 1)))


def to_float(magnitude: Array) -> tuple[Array, Array]:
    """fl(magnitude) as (a, e): a · 2^e with a ≤ 2^24, for int64 magnitudes below 2^32."""
    dropped = np.maximum(bits(magnitude) - MANTISSA, 0)
    return round_bits(magnitude, dropped), dropped


def round_product(a: Array, mantissa: Array, shift: Array) -> Array:
    """rne(fl(a · M · 2^−s)), or any number above 510 where that is: step 2 to 4 of the module's proof."""
    shift = np.clip(shift, 1, LARGEST_SHIFT)
    product = a * mantissa
    whole = np.minimum(product >> shift, LARGEST_RESULT)
    rest = product & ((1 << shift) - 1)
    distance = rest - (1 << (shift - 1))
    exponent = np.where(whole > 0, bits(whole) - 1, np.where(distance < 0, -2, -1))
    place = shift + exponent - MANTISSA
    tolerance = np.where(place >= 0, 1 << np.maximum(place, 0), 0)
    tie = np.abs(distance) <= tolerance
    return whole + np.where(tie, whole & 1, distance > 0)


def requantise(acc: Array, mantissa: Array, shift: Array, zero: int, low: int, high: int) -> Array:
    """clamp(rne(fl(fl(acc) · M · 2^−s)) + zero, low, high) of int32 sums, as int8; M and s from :func:`factors`."""
    wide = acc.astype(np.int64)
    a, dropped = to_float(np.abs(wide))
    magnitude = round_product(a, mantissa, shift - dropped)
    return np.clip(np.where(wide < 0, -magnitude, magnitude) + zero, low, high).astype(np.int8)


def share(part: Array, total: Array, mantissa: int, shift: int, zero: int, low: int, high: int) -> Array:
    """clamp(rne(fl(fl(fl(part) / fl(total)) · M · 2^−s)) + zero, low, high) of 0 ≤ part ≤ total < 2^31, as int8.

    With both significands normalised to 24 bits their quotient lies in (½, 2). Its first 25 or 26 bits, and whether
    anything remains, decide how it rounds to 24.
    """
    top, top_exponent = _normalised(part)
    bottom, bottom_exponent = _normalised(total)
    scaled = top << (MANTISSA + 1)
    quotient = scaled // np.maximum(bottom, 1)
    remains = (quotient * bottom != scaled).astype(np.int64)
    dropped = np.where(quotient >= 1 << (MANTISSA + 1), 2, 1)
    # one more bit holds what remains, so that it is no tie
    rounded = round_bits(2 * quotient + remains, dropped + 1)
    exponent = top_exponent - bottom_exponent - (MANTISSA + 1) + dropped
    magnitude = round_product(rounded, np.full_like(rounded, mantissa), shift - exponent)
    return np.clip(magnitude + zero, low, high).astype(np.int8)


def _normalised(values: Array) -> tuple[Array, Array]:
    """fl(values) as a · 2^e with 2^23 ≤ a ≤ 2^24 (a = 0 for 0)."""
    a, exponent = to_float(values.astype(np.int64))
    lacking = np.where(a > 0, np.maximum(MANTISSA - bits(a), 0), 0)
    return a << lacking, exponent - lacking
