"""The samples on which the artifact's answers are furthest from the model's, and both answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from edgec.data.samples import Array

SHOWN = 6
"""Samples on the page."""
MOST_SAMPLES = 256
"""So many are looked through."""
MOST_CLASSES = 4096
_TOP = 3

Sample = Mapping[str, Array]
Run = Callable[[Sample], Sequence[Array]]


@dataclass(frozen=True)
class Score:
    """One class of an answer: its index and value."""

    index: int
    value: float


@dataclass(frozen=True)
class Answer:
    """One sample and what both made of it.

    Attributes:
        index: of the sample in the data.
        input: its first input.
        label: its class, where it is known.
        error: root mean square difference of the first output over the model's root mean square.
        wanted: the model's first output.
        found: the artifact's.
        top: the largest of both: pairs (the model's, the artifact's) for outputs that are rows of classes.
    """

    index: int
    input: Array
    label: int | None
    error: float
    wanted: Array
    found: Array
    top: tuple[tuple[Score, Score], ...]

    @property
    def same_class(self) -> bool:
        """Whether both give the same class; true where there are none."""
        return not self.top or self.top[0][0].index == self.top[0][1].index


def differing(samples: Sequence[Sample], labels: Array | None, model: Run, artifact: Run) -> tuple[Answer, ...]:
    """The :data:`SHOWN` samples whose answers differ most: those of another class first, then by their error.

    Args:
        samples: inputs of batch 1 or more; of a batch only the first is shown.
        labels: the class of each sample, or None.
        model: the float model.
        artifact: what was compiled from it.
    """
    found = []
    for index, sample in enumerate(samples[:MOST_SAMPLES]):
        wanted, ours = np.asarray(model(sample)[0]), np.asarray(artifact(sample)[0])
        first, batch = next(iter(sample.values())), len(wanted) if wanted.ndim else 1
        label = None if labels is None or batch != 1 else int(labels[index])
        found.append(Answer(index, first, label, _error(ours, wanted), wanted, ours, _top(wanted, ours)))
    return tuple(sorted(found, key=lambda answer: (answer.same_class, -answer.error))[:SHOWN])


def _error(found: Array, wanted: Array) -> float:
    difference = found.astype(np.float64) - wanted
    power = float(np.sqrt(np.mean(np.square(wanted.astype(np.float64)))) or 1.0)
    return float(np.sqrt(np.mean(np.square(difference)))) / power


def _top(wanted: Array, found: Array) -> tuple[tuple[Score, Score], ...]:
    """Of outputs [1, classes] (unit axes apart) the largest values."""
    if wanted.size != max(wanted.shape, default=0) or not 2 <= wanted.size <= MOST_CLASSES:
        return ()
    ranked = [[Score(int(i), float(row[i])) for i in np.argsort(-row.ravel())[:_TOP]] for row in
              (wanted.ravel(), found.ravel())]  # fmt: skip
    return tuple(zip(*ranked, strict=True))
