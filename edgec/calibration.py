"""Calibration samples: what the quantiser and the pruner learn from, checked before anything is learned.

What cannot be learned from is refused in one sentence; what can, and is still odd, is said in a warning.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edgec.data.samples import Array, TensorSpec, load_samples
from edgec.errors import EdgecError

if TYPE_CHECKING:
    import onnx_ir as ir

Source = str | os.PathLike[str] | Iterable[Mapping[str, np.ndarray]]
"""An ``.npz`` with arrays named as the inputs (samples first), a folder of images, or arrays by input name."""

MOST_SAMPLES = 2048
"""More cost time and move little; the first so many are taken."""

FEW_SAMPLES = 16
"""Fewer than so many say little of what the model will see."""


@dataclass(frozen=True)
class Calibration:
    """Inputs for a number of runs, each of exactly the model's shapes and dtypes.

    Attributes:
        samples: the arrays of each run by input name.
        warnings: what is odd about them, a sentence each.
    """

    samples: tuple[Mapping[str, Array], ...]
    warnings: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.samples)


def input_specs(model: ir.Model) -> tuple[TensorSpec, ...]:
    """Name, shape and dtype of the model's inputs, whose shapes are static."""
    return tuple(
        TensorSpec(str(value.name), tuple(value.shape.numpy()), np.dtype(value.dtype.numpy()))
        for value in model.graph.inputs
        if value.shape is not None and value.dtype is not None
    )


def load_calibration(
    source: Source, model: ir.Model, preprocess: Path | None = None, states: Mapping[str, str] | str | None = None
) -> Calibration:
    """The samples of ``source`` for ``model``.

    Args:
        source: see :data:`Source`.
        model: with static shapes.
        preprocess: how images become inputs, for a folder of them.
        states: inputs that no sample has: they are what the model itself makes of the samples before (see
            :mod:`edgec.states`).

    Raises:
        EdgecError: a sample does not fit the model's inputs, is not finite, or there is nothing to learn from.
    """
    pairs = _pairs(model, states) if states else {}
    specs = tuple(spec for spec in input_specs(model) if spec.name not in pairs.values())
    if isinstance(source, str | os.PathLike):
        path, found = Path(source), f"'{source}'"
        runs: Iterable[Mapping[str, Array]] = load_samples(path, specs, preprocess)
    else:
        if preprocess is not None:
            raise EdgecError("preprocess is for a folder of images, and the samples are arrays; leave it out")
        found, runs = "the calibration data", source
    samples, left_out = [], False
    for index, sample in enumerate(runs):
        if index == MOST_SAMPLES:
            left_out = True
            break
        samples.append(_checked(sample, index, specs, found))
    if not samples:
        raise EdgecError(f"{found} holds no samples to calibrate with; give some tens of typical inputs")
    _reject_constant(samples, specs, found)
    warnings = list(_warnings(samples, found))
    if left_out:
        warnings.append(f"{found} holds more than {MOST_SAMPLES} samples; the first {MOST_SAMPLES} are used")
    return Calibration(tuple(_carried(samples, model, pairs) if pairs else samples), tuple(warnings))


def _pairs(model: ir.Model, states: Mapping[str, str] | str) -> dict[str, str]:
    """Names of inputs by those of outputs."""
    from edgec.states import Named, pair_states

    inputs = [Named(spec.name, spec.shape, str(spec.dtype)) for spec in input_specs(model)]
    outputs = [
        Named(str(value.name), tuple(value.shape.numpy()), str(value.dtype.numpy()))
        for value in model.graph.outputs
        if value.shape is not None and value.dtype is not None
    ]
    return pair_states(states, inputs, outputs)


def _carried(
    samples: list[Mapping[str, Array]], model: ir.Model, pairs: Mapping[str, str]
) -> Iterator[Mapping[str, Array]]:
    """``samples`` with the states before each run; those before the first are zero."""
    from edgec.passes.quantize.execution import ModelRunner

    runner = ModelRunner(model)
    state = {s.name: np.zeros(s.shape, s.dtype) for s in input_specs(model) if s.name in pairs.values()}
    for sample in samples:
        whole = {**sample, **state}
        yield whole
        outputs = runner.by_name(whole)
        state = {source: outputs[output] for output, source in pairs.items()}


def _checked(
    sample: Mapping[str, Array], index: int, specs: tuple[TensorSpec, ...], source: str
) -> Mapping[str, Array]:
    """One sample, of exactly the inputs' shapes and dtypes and finite."""
    for spec in specs:
        if spec.name not in sample:
            names = ", ".join(f"'{name}'" for name in sample) or "nothing"
            raise EdgecError(f"sample {index} of {source} has no array for the input {spec}; it holds {names}")
        array = np.asarray(sample[spec.name])
        if array.shape != spec.shape or array.dtype != spec.dtype:
            raise EdgecError(
                f"sample {index} of {source} has {array.dtype}{list(array.shape)} for the input {spec}; "
                "bring it to that shape and dtype"
            )
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise EdgecError(
                f"sample {index} of {source} has values that are NaN or infinite for the input {spec}; "
                "remove or repair it"
            )
    return {spec.name: np.ascontiguousarray(sample[spec.name]) for spec in specs}


def _reject_constant(samples: list[Mapping[str, Array]], specs: tuple[TensorSpec, ...], source: str) -> None:
    """Refuse inputs that hold one and the same number everywhere, of which no range can be learned."""
    for spec in specs:
        first = samples[0][spec.name]
        if first.size <= 1 or first.dtype.kind != "f":
            continue
        value = first.flat[0]
        if all((sample[spec.name] == value).all() for sample in samples):
            raise EdgecError(
                f"every value of the input {spec} in {source} is {value:g}, which says nothing of its range; "
                "give typical inputs"
            )


def _warnings(samples: list[Mapping[str, Array]], source: str) -> Iterator[str]:
    if len(samples) == 1:
        yield f"{source} holds a single sample; ranges learned from it will clip others, give some tens"
    elif all(_same(sample, samples[0]) for sample in samples):
        yield f"all {len(samples)} samples of {source} are the same; ranges learned from them will clip others"
    elif len(samples) < FEW_SAMPLES:
        yield f"{source} holds only {len(samples)} samples; some tens give steadier ranges"


def _same(one: Mapping[str, Array], other: Mapping[str, Array]) -> bool:
    return all(np.array_equal(one[name], other[name]) for name in one)
