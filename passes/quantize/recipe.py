"""What a quantisation does: the choices that a user can make, each with a default that needs no thought."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

OBSERVERS = ("auto", "minmax", "percentile", "mse", "entropy")
ROUNDINGS = ("learned", "nearest")
PRECISIONS: Mapping[str, int | None] = {"int8": 8, "int16": 16, "float": None}
"""What a layer can be told, and the bits of its activations; None leaves them float."""


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
        layers: node name to one of ``PRECISIONS``: ``int8``, ``int16`` (16-bit activations, int8 weights) or
            ``float``; layers that are not named are int8.
    """

    observer: str = "auto"
    equalise: bool = True
    correct_bias: bool = True
    rounding: str = "learned"
    refine: bool = True
    layers: Mapping[str, str] = field(default_factory=dict)
