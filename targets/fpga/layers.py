"""The layers that stream through an FPGA: bytes in, bytes out, pixel by pixel with the channels innermost.

A **feature** is a tensor on its way: ``height × width`` pixels of ``channels`` bytes, row by row. A layer reads words
of some of a pixel's channels (its input lanes) and writes words of some of its result's (its output lanes); how many
is its folding's affair (:mod:`edgec.targets.fpga.folding`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from math import prod
from typing import Any

import numpy as np

from edgec.targets.fpga import rounding

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class Feature:
    """The extents of a streamed tensor."""

    height: int
    width: int
    channels: int

    @property
    def pixels(self) -> int:
        return self.height * self.width

    @property
    def elements(self) -> int:
        return self.pixels * self.channels


@dataclass(frozen=True)
class Window:
    """A sliding window: per spatial axis, with ``pads`` before the first row and column and ``fill`` in them."""

    kernel: tuple[int, int]
    stride: tuple[int, int]
    dilation: tuple[int, int]
    pads: tuple[int, int]
    fill: int

    @property
    def taps(self) -> int:
        return prod(self.kernel)

    @property
    def span(self) -> int:
        """Rows from a window's first to its last."""
        return (self.kernel[0] - 1) * self.dilation[0] + 1

    def rows_wanted(self, out_row: int, height: int) -> int:
        """How many rows of the input must have arrived before ``out_row`` can be computed."""
        return min(height, max(0, out_row * self.stride[0] - self.pads[0] + self.span))

    def rows_held(self, height: int) -> int:
        """Rows of the line buffer: a window's, and those that arrive while it is read."""
        return max(min(self.span + self.stride[0], height), self.span)


@dataclass(frozen=True)
class Requantisation:
    """From int32 sums to bytes, by the rule of :mod:`edgec.targets.fpga.rounding`.

    Attributes:
        bias: int32, added to the sum: one a channel, with the input's zero point in it.
        multiplier: float32, one a channel.
        zero: the output's zero point.
        low: the least output.
        high: the largest output.
    """

    bias: Array
    multiplier: Array
    zero: int
    low: int = -128
    high: int = 127

    @cached_property
    def factors(self) -> tuple[Array, Array]:
        """The multipliers as (M, s), int64."""
        return rounding.factors(self.multiplier)

    @property
    def point(self) -> int:
        """The largest shift: where the binary point stands in a product that is aligned with the others."""
        mantissa, shift = self.factors
        return int(shift[mantissa > 0].max(initial=1))

    @property
    def offsets(self) -> Array:
        """How far each product is shifted left, so that its binary point stands at :attr:`point`."""
        mantissa, shift = self.factors
        return np.where(mantissa > 0, self.point - shift, 0)

    def clamped(self, low: int, high: int) -> Requantisation:
        """With a clamp behind it."""
        return replace(self, low=max(self.low, low), high=min(self.high, high))


@dataclass(frozen=True, eq=False)
class Layer:
    """One streaming layer.

    Attributes:
        name: a C identifier, unique in the network.
        node: the ONNX node that it computes.
        inputs: the streamed values that it reads.
        output: the streamed value that it writes.
        source: extents of each input.
        result: extents of the output.
    """

    name: str
    node: str
    inputs: tuple[str, ...]
    output: str
    source: Feature
    result: Feature

    @property
    def macs(self) -> int:
        return 0

    @property
    def line_window(self) -> Window | None:
        """The window whose rows must be held in a line buffer; None for a layer that takes pixels as they come."""
        return None


@dataclass(frozen=True, eq=False)
class WeightedLayer(Layer):
    """Sums of products with constant weights: int8 [k, outputs], k in the order in which the layer reads."""

    window: Window | None
    weights: Array
    end: Requantisation

    @property
    def weight_bits(self) -> int:
        """Bits that the largest weight needs as a signed integer."""
        return max(2, int(np.abs(self.weights.astype(np.int64)).max(initial=0)).bit_length() + 1)

    @cached_property
    def weight_terms(self) -> int:
        """Signed powers of two that the weight with most of them is a sum of."""
        return max(1, int(np.abs(signed_digits(np.unique(self.weights))).sum(-1).max(initial=1)))

    @property
    def accumulator_bits(self) -> int:
        """Bits of a signed accumulator that no input can overflow; more than a byte has."""
        bound = np.abs(self.weights.astype(np.int64)).sum(0) * 128 + np.abs(self.end.bias.astype(np.int64))
        return max(9, int(bound.max()).bit_length() + 1)

    @property
    def line_window(self) -> Window | None:
        return self.window


@dataclass(frozen=True, eq=False)
class Product(WeightedLayer):
    """Convolution, or a dense layer without a window: every output channel of every input channel."""

    @property
    def depth(self) -> int:
        """Products in a sum."""
        return int(self.weights.shape[0])

    @property
    def macs(self) -> int:
        return self.result.elements * self.depth


@dataclass(frozen=True, eq=False)
class ExactProduct(Product):
    """A product at the end whose sums go out as they are, int32 in four bytes; the host makes them real."""


@dataclass(frozen=True, eq=False)
class Depthwise(WeightedLayer):
    """Convolution of each channel with its own filter: weights [taps, channels]."""

    window: Window

    @property
    def macs(self) -> int:
        return self.result.elements * self.window.taps


@dataclass(frozen=True, eq=False)
class MaxPool(Layer):
    """The largest of each window."""

    window: Window

    @property
    def line_window(self) -> Window | None:
        return self.window


@dataclass(frozen=True, eq=False)
class AveragePool(Layer):
    """The mean of each window, requantised.

    ``end`` has as many multipliers as there are output pixels, or one; ``x_zero`` is the input's zero point.
    """

    window: Window
    x_zero: int
    end: Requantisation

    @property
    def line_window(self) -> Window | None:
        return None if self.tiles else self.window

    @property
    def tiles(self) -> bool:
        """Whether no pixel lies in two windows and none in the padding, so that running sums do."""
        return (
            all(k <= s for k, s in zip(self.window.kernel, self.window.stride, strict=True))
            and self.window.pads == (0, 0)
            and self.window.dilation == (1, 1)
            and (self.result.height - 1) * self.window.stride[0] + self.window.kernel[0] <= self.source.height
            and (self.result.width - 1) * self.window.stride[1] + self.window.kernel[1] <= self.source.width
        )


@dataclass(frozen=True, eq=False)
class Sum(Layer):
    """clamp(((a · M_a + b · M_b + offset) >> shift) + zero) of two inputs."""

    factors: tuple[int, int]
    offset: int
    shift: int
    zero: int
    low: int = -128
    high: int = 127


@dataclass(frozen=True, eq=False)
class Lookup(Layer):
    """table[x + 128] for every byte."""

    table: Array


@dataclass(frozen=True, eq=False)
class Softmax(Layer):
    """Shares of exponentials: ``powers`` int32 [256] of the distance to the largest, times ``multiplier``."""

    powers: Array
    multiplier: float
    zero: int

    @property
    def factor(self) -> tuple[int, int]:
        """The multiplier as (M, s)."""
        mantissa, shift = rounding.factors(np.array([self.multiplier], np.float32))
        return int(mantissa[0]), int(shift[0])


def signed_digits(weights: Array) -> Array:
    """The canonical signed-digit form of int8 weights: int8 [..., 8], digit d ∈ {−1, 0, 1} stands for d · 2^place.

    No two neighbours differ from 0, so that a byte has at most four terms.
    """
    rest = weights.astype(np.int64)
    digits = np.zeros((*weights.shape, 8), np.int8)
    for place in range(8):
        odd = rest & 1
        digit = np.where(odd == 1, np.where(rest & 3 == 3, -1, 1), 0)
        digits[..., place] = digit
        rest = (rest - digit) >> 1
    assert not rest.any()
    return digits
