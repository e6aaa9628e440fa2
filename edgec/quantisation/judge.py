"""How many points a model loses against the float one it was made of, on samples.

With labels that is the fall of the top-1 accuracy, in percent.

Without, it lies between two numbers. Let the float model give class k of sample x the probability p_k(x), and let it
pick c, and another model d. If it is calibrated, that is, if of the samples with the same probabilities a share of p_k
are of class k, a change costs p_c − p_d in expectation (no bias, and no more variance than labels: Rao and Blackwell).
If it is always right, a change costs 1. A network trained to be unsure, by smoothed labels, is nearer to the second
than it says (MobileNet v2: some 0.8, where p_c − p_d is 0.1), one that is surer than it is right (Guo et al. 2017,
arXiv 1706.04599) is below both. Which it is, samples alone do not tell; counted is the mean of the two,

    points = 100 · mean over the samples of cost(c, d),    cost = ½ (1 + p_c − p_d) where c ≠ d, 0 where c = d

Probabilities are the outputs themselves, or their softmax.

Few samples change their class, so that this varies by chance. To choose among many models there is a steadier number,
which takes the error of a sample's logits for one that any other could have had: with the mean over all pairs

    g, e_j: least squares of (other model's logits = g · z_j + e_j);  d_ij = argmax (g · z_i + e_j)

instead of d, and a standard error more. It has a bias where errors depend on what a sample is, and so judges nothing in
the end.

Where outputs are no such probabilities every sample that changes its class costs one; where there are no classes,
points are the root mean square error of the outputs over that of the float model's outputs, in percent.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from edgec.data.samples import Array
from edgec.errors import EdgecError
from edgec.evaluation import classes
from edgec.passes.quantize.execution import ModelRunner
from edgec.passes.quantize.prediction import Prediction

if TYPE_CHECKING:
    import onnx_ir as ir

Sample = Mapping[str, Array]

HELD_OUT = 4
"""Every so many calibration samples one is kept to judge by, where there are no others for that."""

_SURE = 0.25
"""The least mean probability of the classes picked: outputs whose softmax has less were not trained to be one."""

_LEAST = 1e-7
"""Probability below which nothing is told apart."""

_PAIRS = 64
"""Errors that each row meets, at most."""


@dataclass(frozen=True)
class Judge:
    """Measures models on samples against a float model, by the first output.

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
        if labels is not None and judge._labelled(wanted) is None:
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
        if self._float_rows is None:
            return "100 − relative error, %"
        return "same class as float, %" if self._probabilities is None else "expected accuracy, float = 100"

    def score(self, outputs: Sequence[Sequence[Array]]) -> float:
        """How good ``outputs`` are, 100 at best."""
        if self.labels is not None:
            return 100.0 * float(np.mean(self._labelled(outputs) == self.labels))
        own, found = self._float_rows, self._rows(outputs)
        if own is None or found is None:
            return 100.0 * (1.0 - _relative_error(outputs, self.wanted))
        picked, wanted = _picked(found), _picked(own)
        if self._probabilities is None:
            return 100.0 * float(np.mean(picked == wanted))
        return 100.0 * float(1.0 - np.mean(_costs(self._probabilities, wanted, picked)))

    def steady_drop(self, outputs: Sequence[Sequence[Array]]) -> float:
        """Points that are lost by the errors of all samples on each, and a standard error; as by :meth:`score` where
        there are no probabilities."""
        if self.labels is not None or self._probabilities is None:
            return self.float_score - self.score(outputs)
        own, found = (self._logits(each) for each in (self.wanted, outputs))
        costs = _paired_costs(self._probabilities, own, found)
        return 100.0 * float(costs.mean() + costs.std() / np.sqrt(len(costs)))

    def score_of(self, model: ir.Model) -> float:
        """The score of a quantised model, executed by ONNX Runtime."""
        return self.score(ModelRunner(model).run_all(self.samples))

    def distance_of(self, model: ir.Model) -> float:
        """How far a quantised model's prediction is from the float one's, by the first output where that has classes,
        else by all; see :class:`Prediction`."""
        judged = slice(None) if self._float_rows is None else slice(1)
        found = ModelRunner(model).run_all(self.samples)
        return Prediction([run[judged] for run in self.wanted]).distance([run[judged] for run in found])

    def steady_drop_of(self, model: ir.Model) -> float:
        """The same of a quantised model, executed by ONNX Runtime."""
        return self.steady_drop(ModelRunner(model).run_all(self.samples))

    @property
    def float_score(self) -> float:
        """The float model's own."""
        return self.score(self.wanted)

    @property
    def _batch(self) -> int:
        """Samples of a run."""
        return int(np.prod(next(iter(self.samples[0].values())).shape[:1]))

    def _labelled(self, outputs: Sequence[Sequence[Array]]) -> Array | None:
        """The class of each sample, for which there is one label."""
        return classes(np.stack([each[0] for each in outputs]), len(self.samples) * self._batch)

    @cached_property
    def _float_rows(self) -> Array | None:
        return self._rows(self.wanted)

    @cached_property
    def _probabilities(self) -> Array | None:
        """Of the float model's classes, float64 [rows, classes]; None where there is no telling."""
        from scipy.special import softmax

        rows = self._float_rows
        if rows is None or rows.dtype.kind in "iu":
            return None
        if _sum_to_one(rows):
            return rows.astype(np.float64)
        found = softmax(rows.astype(np.float64), axis=1)
        unit = bool((rows >= 0).all() and (rows <= 1).all())  # probabilities that do not exclude each other
        return None if unit or found.max(axis=1).mean() < _SURE else found

    def _logits(self, outputs: Sequence[Sequence[Array]]) -> Array:
        """Of rows of classes, float64 [rows, classes]: what they are, or of probabilities the logarithms."""
        own, found = self._float_rows, self._rows(outputs)
        assert own is not None and found is not None
        found = found.astype(np.float64)
        return np.log(np.maximum(found, _LEAST)) if _sum_to_one(own) else found

    def _rows(self, outputs: Sequence[Sequence[Array]]) -> Array | None:
        """The first output as rows [rows, classes], integers as [rows, 1]; None where it has no classes.

        Classes lie along the only axis with an extent; along the last where integers, the tokens of a text, have a row
        each; or along one where each row sums to one.
        """
        first = np.stack([each[0] for each in outputs])
        if first.dtype.kind in "iu":
            return first.reshape(-1, 1)
        start = 2 if first.ndim > 2 and first.shape[1] == self._batch else 1
        extents = [axis for axis in range(start, first.ndim) if first.shape[axis] > 1]
        tokens = [x for x in self.samples[0].values() if x.dtype.kind in "iu" and x.shape == first.shape[1:-1]]
        if len(extents) != 1:
            extents = [first.ndim - 1] if tokens else self._summing_axes(start)
        return _along(first, extents[0]) if extents else None

    def _summing_axes(self, start: int) -> list[int]:
        """The axes from ``start`` on, of runs and the float model's first output, along which that sums to one."""
        wanted = np.stack([each[0] for each in self.wanted])
        return [axis for axis in range(start, wanted.ndim) if _sum_to_one(_along(wanted, axis))]


def _along(array: Array, axis: int) -> Array:
    """Rows [rows, extent] of ``array`` along ``axis``."""
    return np.moveaxis(array, axis, -1).reshape(-1, array.shape[axis])


def _picked(rows: Array) -> Array:
    """The class of each row, int64 [rows]; integers [rows, 1] are classes themselves."""
    return rows[:, 0] if rows.dtype.kind in "iu" else np.asarray(rows.argmax(axis=1))


def _costs(probabilities: Array, wanted: Array, picked: Array) -> Array:
    """What it costs, float64 [rows], to pick these classes [rows] instead of those ``wanted``."""
    row = np.arange(len(wanted))
    fall = probabilities[row, wanted] - probabilities[row, picked]
    return np.where(picked == wanted, 0.0, 0.5 * (1.0 + fall))


def _paired_costs(probabilities: Array, own: Array, found: Array) -> Array:
    """What each row costs where its logits meet the errors of any row, on average, float64 [rows].

    Args:
        probabilities: of the float model's classes, as all float64 [rows, classes].
        own: the float model's logits.
        found: another model's.
    """
    own, found = (each - each.mean(axis=1, keepdims=True) for each in (own, found))
    scaled = own * float((own * found).sum() / max(float(np.square(own).sum()), 1e-30))
    errors, wanted = found - scaled, own.argmax(axis=1)
    shifts = np.linspace(0, len(own), min(len(own), _PAIRS), endpoint=False).astype(int)
    picked = [(scaled + np.roll(errors, shift, axis=0)).argmax(axis=1) for shift in shifts]
    return np.asarray(np.mean([_costs(probabilities, wanted, each) for each in picked], axis=0))


def _sum_to_one(rows: Array) -> bool:
    return rows.shape[1] > 1 and bool((rows >= 0).all()) and bool((np.abs(rows.sum(axis=1) - 1) < 1e-3).all())


def _relative_error(found: Sequence[Sequence[Array]], wanted: Sequence[Sequence[Array]]) -> float:
    pairs = [(f, w) for fs, ws in zip(found, wanted, strict=True) for f, w in zip(fs, ws, strict=True)]
    error = sum(float(np.square(f.astype(np.float64) - w).sum()) for f, w in pairs)
    power = sum(float(np.square(w.astype(np.float64)).sum()) for _, w in pairs)
    return float(np.sqrt(error / max(power, 1e-30)))
