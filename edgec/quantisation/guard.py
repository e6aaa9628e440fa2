"""The accuracy guard: how much a quantised model loses, and which layers go back to more bits to keep it little.

A loss is counted in points. With labels it is the fall of the top-1 accuracy, in percent. Without, it is the share of
samples whose class changes against the float model, in percent; and where there are no classes, the root mean square
error of the outputs over that of the float model's outputs, in percent.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from edgec.data.samples import Array
from edgec.errors import EdgecError
from edgec.evaluation import classes
from edgec.passes.quantize import Quantized, Recipe
from edgec.passes.quantize.execution import ModelRunner

if TYPE_CHECKING:
    import onnx_ir as ir

    from edgec.quantisation.layer_errors import LayerErrors

Sample = Mapping[str, Array]

HELD_OUT = 4
"""Every so many calibration samples one is kept to judge by, where there are no others for that."""


@dataclass(frozen=True)
class Judge:
    """Measures models on samples against a float model.

    Attributes:
        samples: the inputs of each run.
        labels: class of each sample, or None.
        wanted: the float model's outputs for each run.
    """

    samples: Sequence[Sample]
    labels: Array | None
    wanted: Sequence[Sequence[Array]]

    @classmethod
    def of(cls, model: ir.Model, samples: Sequence[Sample], labels: Array | None) -> Judge:
        """The judge by the float ``model``.

        Raises:
            EdgecError: its outputs on the samples are not finite, or there are labels and no classes.
        """
        wanted = ModelRunner(model).run_all(samples)
        for index, outputs in enumerate(wanted):
            if not all(np.isfinite(output).all() for output in outputs):
                raise EdgecError(
                    f"the float model's outputs for sample {index} are not finite; are the samples preprocessed as "
                    "the model was trained?"
                )
        judge = cls(samples, labels, wanted)
        if labels is not None and judge._classes(wanted) is None:
            raise EdgecError(
                f"there are labels, and the model's first output {list(wanted[0][0].shape)} is not a row of classes "
                "for each sample; leave the labels out, and agreement with the float model is measured"
            )
        return judge

    @property
    def measure(self) -> str:
        """What :meth:`score` counts."""
        if self.labels is not None:
            return "top-1 accuracy, %"
        return "same class as float, %" if self._classes(self.wanted) is not None else "100 − relative error, %"

    def score(self, outputs: Sequence[Sequence[Array]]) -> float:
        """How good ``outputs`` are, 100 at best."""
        found, own = self._classes(outputs), self._classes(self.wanted)
        if found is None or own is None:
            return 100.0 * (1.0 - _relative_error(outputs, self.wanted))
        target = own if self.labels is None else self.labels
        return 100.0 * float(np.mean(found == target))

    def score_of(self, model: ir.Model) -> float:
        """The score of a quantised model, executed by ONNX Runtime."""
        return self.score(ModelRunner(model).run_all(self.samples))

    @property
    def float_score(self) -> float:
        """The float model's own."""
        return self.score(self.wanted)

    def _classes(self, outputs: Sequence[Sequence[Array]]) -> Array | None:
        """The class of each sample by the first output; None where that is not a row of classes for each."""
        first = np.stack([each[0] for each in outputs])
        batch = next(iter(self.samples[0].values())).shape[:1]
        return classes(first, len(self.samples) * int(np.prod(batch)))


def _relative_error(found: Sequence[Sequence[Array]], wanted: Sequence[Sequence[Array]]) -> float:
    pairs = [(f, w) for fs, ws in zip(found, wanted, strict=True) for f, w in zip(fs, ws, strict=True)]
    error = sum(float(np.square(f.astype(np.float64) - w).sum()) for f, w in pairs)
    power = sum(float(np.square(w.astype(np.float64)).sum()) for _, w in pairs)
    return float(np.sqrt(error / max(power, 1e-30)))


@dataclass(frozen=True)
class Attempt:
    """One quantised model that was judged: the precision of each layer that was put back, and its score."""

    put_back: Mapping[str, str]
    score: float


@dataclass(frozen=True)
class Guarded:
    """What the guard did.

    Attributes:
        measure: what the scores count.
        samples: on how many samples.
        float_score: the float model's, 100 at best.
        score: the quantised model's.
        first_score: what it was before any layer was put back.
        put_back: the precision of each layer that was.
        attempts: every model that was judged, in order; the last is the one that was taken.
    """

    measure: str
    samples: int
    float_score: float
    score: float
    first_score: float
    put_back: Mapping[str, str]
    attempts: tuple[Attempt, ...] = ()

    @property
    def drop(self) -> float:
        """Points lost against the float model."""
        return self.float_score - self.score

    def __str__(self) -> str:
        text = (
            f"{self.measure} on {self.samples} samples: float {self.float_score:.2f}, quantised {self.score:.2f} "
            f"({0 - self.drop:+.2f} points)"
        )
        if self.put_back:
            layers = ", ".join(f"{name} ({bits})" for name, bits in self.put_back.items())
            text += f"; it was {self.first_score:.2f} before these layers were put back: {layers}"
        return text


Quantise = Callable[[Recipe], Quantized]

LADDERS: Mapping[str, Sequence[str]] = {
    "int8": ("int16", "float"),
    "w4a8": ("int8", "int16", "float"),
    "p2": ("int8", "int16", "float"),
    "p1": ("p2", "int8", "int16", "float"),
    "w2": ("w4", "w8", "float"),
    "w3": ("w4", "w8", "float"),
    "w4": ("w8", "float"),
    "w8": ("float",),
}
"""By a recipe's default precision: what layers that lose too much are given."""


def guard(
    judge: Judge, quantise: Quantise, recipe: Recipe, most: float | None, rank: Callable[[Quantized], LayerErrors]
) -> tuple[Quantized, Guarded]:
    """Quantise, and put layers back until at most ``most`` points are lost.

    The layers that cost most go first, one, then two, four … of them: to the next precision of :data:`LADDERS`, and
    where that is not enough, to the one after it, up to float.

    Args:
        judge: measures.
        quantise: makes a quantised model by a recipe.
        recipe: where to start.
        most: points that may be lost; None only measures.
        rank: tells what each layer costs.

    Raises:
        EdgecError: even with every layer put back the loss is more than ``most``.
    """
    found = quantise(recipe)
    score = first = judge.score_of(found.model)
    put_back: dict[str, str] = {}
    attempts = [Attempt({}, first)]
    if most is not None and judge.float_score - score > most:
        worst = rank(found).worst_first()
        for bits in LADDERS[recipe.default]:
            count = 1
            while judge.float_score - score > most and count < 2 * len(worst):
                put_back = {**put_back, **dict.fromkeys(worst[:count], bits)}
                found = quantise(replace(recipe, layers={**recipe.layers, **put_back}))
                score = judge.score_of(found.model)
                attempts.append(Attempt(put_back, score))
                count *= 2
    guarded = Guarded(
        judge.measure, len(judge.samples), judge.float_score, score, first, put_back, tuple(attempts)
    )  # fmt: skip
    if most is not None and guarded.drop > most:
        raise EdgecError(
            f"quantisation loses {guarded.drop:.2f} points ({guarded.measure}), more than --max-drop {most:g}, even "
            "with every layer put back; give more calibration samples or allow more"
        )
    return found, guarded
