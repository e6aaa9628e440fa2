"""What a quantisation does: the choices that a user can make, each with a default that needs no thought."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

OBSERVERS = ("auto", "minmax", "percentile", "mse", "entropy")
ROUNDINGS = ("learned", "nearest")


@dataclass(frozen=True)
class Precision:
    """The bits of a layer's activations and of its weights; None leaves them float.

    With ``terms`` each weight is a sum of at most so many signed powers of two.
    """

    activations: int | None
    weights: int | None
    terms: int | None = None


PRECISIONS: Mapping[str, Precision] = {
    "int8": Precision(8, 8),
    "int16": Precision(16, 8),
    "w4a8": Precision(8, 4),
    "p2": Precision(8, 8, 2),
    "p1": Precision(8, 8, 1),
    "w8": Precision(None, 8),
    "w4": Precision(None, 4),
    "w3": Precision(None, 3),
    "w2": Precision(None, 2),
    "float": Precision(None, None),
}
"""What a layer can be told. One without weights takes only the activations' bits; a convolution in groups of channels,
and a product of a few weights an output channel, keeps weights of 8 bits."""

GROUP_SIZES = (0, 16, 32, 64, 128, 256)
"""Weights of an output channel that share a scale where activations are float; 0 is all of them."""


@dataclass(frozen=True)
class Recipe:
    """How to quantise a model.

    Attributes:
        observer: where a tensor's range comes from, one of ``OBSERVERS``; ``auto`` takes for each tensor the one
            that causes the least error in the layers that read it.
        equalise: scale channels of neighbouring layers against each other where that lowers the error.
        correct_bias: move biases by the mean error that quantisation causes.
        rounding: of weights, one of ``ROUNDINGS``.
        refine: adjust the scales of activations to the change of the network's prediction.
        group_size: one of ``GROUP_SIZES``, for weights of less than 8 bits.
        salient_groups: the share of the groups of each layer that have more bits than the others, 4 instead of 2 or 3
            and 8 instead of 4, where rounding changes the results most; where activations are float.
        factors: weights of 4 bits under integer activations are multiplied by an integer factor for each group of up to
            32 of them, for kernels that have it, instead of having one scale for an output channel.
        keep: the share of the weights of 4 bits under integer activations that keeps 8 bits instead, in whole layers
            where that is worth most, but not in layers that are named; ``auto`` is as little as the prediction needs
            (see :mod:`edgec.passes.quantize.salience`).
        wide_sums: let a convolution hand 16 bits to a sum that alone reads it, except for ``fixed_point``.
        fixed_point: make every scale a power of two, so that requantisations are shifts (dynamic fixed point).
        default: the precision, one of ``PRECISIONS``, of layers that are not named.
        layers: node name to one of ``PRECISIONS``.
    """

    observer: str = "auto"
    equalise: bool = True
    correct_bias: bool = True
    rounding: str = "learned"
    refine: bool = True
    group_size: int = 32
    salient_groups: float = 0.0
    factors: bool = True
    keep: float | Literal["auto"] = "auto"
    wide_sums: bool = True
    fixed_point: bool = False
    default: str = "int8"
    layers: Mapping[str, str] = field(default_factory=dict)

    def precision_of(self, layer: str) -> Precision:
        """Of the layer of this name."""
        return PRECISIONS[self.layers.get(layer, self.default)]

    @property
    def keeps_activations(self) -> bool:
        """Whether all activations stay float."""
        used = {self.default, *self.layers.values()}
        return all(PRECISIONS[name].activations is None for name in used)
