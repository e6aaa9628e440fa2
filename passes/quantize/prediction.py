"""How far a quantised model's predictions are from the float model's, on samples."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

_LEAST = 1e-7
"""Probability below which nothing is told apart."""


class Prediction:
    """The outputs of the float model, and the distance of others from them.

    A row of probabilities is compared by the Kullback-Leibler divergence, anything else by the mean square
    difference over the variance.
    """

    def __init__(self, outputs: Sequence[Sequence[np.ndarray]]) -> None:
        """``outputs``: for each sample, those of the model."""
        self._wanted = [np.stack([each.astype(np.float64) for each in column]) for column in zip(*outputs, strict=True)]
        self._probable = [_is_probability(array) for array in self._wanted]

    def distance(self, outputs: Sequence[Sequence[np.ndarray]]) -> float:
        """Sum over the outputs; 0 for the float model itself."""
        total = 0.0
        for wanted, probable, column in zip(self._wanted, self._probable, zip(*outputs, strict=True), strict=True):
            found = np.stack([each.astype(np.float64) for each in column])
            total += _divergence(found, wanted) if probable else _relative(found, wanted)
        return total

    def noise(self, outputs: Sequence[Sequence[np.ndarray]]) -> float:
        """The largest mean square difference over the variance of any output."""
        columns = zip(*outputs, strict=True)
        return max(
            _relative(np.stack([each.astype(np.float64) for each in column]), wanted)
            for wanted, column in zip(self._wanted, columns, strict=True)
        )


def _is_probability(array: np.ndarray) -> bool:
    sums = array.reshape(len(array), -1).sum(axis=1)
    return array[0].size > 1 and bool((array >= 0).all()) and bool((np.abs(sums - 1) < 1e-3).all())


def _divergence(found: np.ndarray, wanted: np.ndarray) -> float:
    p, q = np.maximum(wanted, _LEAST), np.maximum(found, _LEAST)
    return float((p * np.log(p / q)).sum() / len(p))


def _relative(found: np.ndarray, wanted: np.ndarray) -> float:
    return float(np.square(found - wanted).mean() / max(float(wanted.var()), 1e-20))
