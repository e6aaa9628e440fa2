"""Scales of activations, moved to where the network's prediction changes least (PD-Quant, Liu et al. 2023,
arXiv 2212.07048): one tensor after the other, a few factors each.

What a layer's own error says of a tensor is local; which steps the prediction needs, only the prediction knows. A move
must help on either half of the samples, or it would only suit those that happen to be there. The work is bounded by a
count, not by a clock, so that the same inputs give the same scales everywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from math import prod

import numpy as np
import onnx_ir as ir

from edgec.frontend.summary import summarise
from edgec.frontend.values import shape_of
from edgec.passes.quantize.emit import Emitted
from edgec.passes.quantize.execution import ModelRunner, Sample
from edgec.passes.quantize.prediction import Prediction
from edgec.passes.quantize.ranges import EXACT, Key, Range, Ranges

_FACTORS = (0.93, 1.08)
_POWERS = (0.5, 2.0)
"""The same where scales are powers of two."""

_MOST_STEPS = 3
"""How often a tensor's scale may move by the same factor."""

_GAIN = 0.998
"""A move is kept where it lowers the distance on both halves to this share."""

_WORK = 2.0e12
"""MACs to spend, all evaluations together. An element of an activation counts as ``_ELEMENT_WORK`` of them, a node as
``_NODE_WORK``: about what they take in ONNX Runtime."""

_ELEMENT_WORK = 50
_NODE_WORK = 2e5
_TRIES = 3
"""Evaluations a tensor, about."""

_MOST_SAMPLES = 512
_FEWEST_SAMPLES = 16


def refine(
    float_model: ir.Model,
    quantised: Emitted,
    ranges: Ranges,
    samples: Sequence[Sample],
    progress: Callable[[int, int], None] | None = None,
    fixed_point: bool = False,
) -> Ranges:
    """``ranges`` with better scales; ``quantised`` is emitted with them, for ``fixed_point`` by powers of two."""
    factors = _POWERS if fixed_point else _FACTORS
    keys = _movable(ranges)
    chosen = [samples[index] for index in _chosen(float_model, len(samples), len(keys))]
    halves = [half for half in (chosen[::2], chosen[1::2]) if half]
    predictions = [Prediction(ModelRunner(float_model).run_all(half)) for half in halves]
    names = {key: quantised.scales[key] for key in keys}
    runner = ModelRunner(quantised.model, open_constants=list(names.values()))
    current = {names[key]: _array(ranges[key].grid.scale) for key in keys}

    def distance(scales: dict[str, np.ndarray]) -> np.ndarray:
        pairs = zip(predictions, halves, strict=True)
        return np.array([prediction.distance(runner.run_all(half, scales)) for prediction, half in pairs])

    best = distance(current)
    for done, key in enumerate(keys, 1):
        best = _move(names[key], current, best, distance, factors)
        if progress:
            progress(done, len(keys))
    return {
        key: each if key not in names else _moved(each, float(current[names[key]])) for key, each in ranges.items()
    }


def unseen(float_model: ir.Model, ranges: Ranges, samples: Sequence[Sample]) -> list[Sample]:
    """The samples by which :func:`refine` does not choose."""
    seen = set(_chosen(float_model, len(samples), len(_movable(ranges))))
    return [sample for index, sample in enumerate(samples) if index not in seen]


def _movable(ranges: Ranges) -> list[Key]:
    return [key for key, each in ranges.items() if each.observer != EXACT]


def _move(
    name: str, scales: dict[str, np.ndarray], best: np.ndarray,
    distance: Callable[[dict[str, np.ndarray]], np.ndarray], factors: Sequence[float],
) -> np.ndarray:  # fmt: skip
    """Move one scale in place as long as that helps; the distances of the halves afterwards."""
    for factor in factors:
        moved = False
        for _ in range(_MOST_STEPS):
            tried = {**scales, name: _array(float(scales[name]) * factor)}
            found = distance(tried)
            if (found >= _GAIN * best).any():
                break
            best, moved = found, True
            scales.update(tried)
        if moved:
            break
    return best


def _moved(before: Range, scale: float) -> Range:
    if scale == before.grid.scale:
        return before
    return replace(before, grid=replace(before.grid, scale=scale), observer=f"{before.observer}, refined")


def _chosen(model: ir.Model, there: int, keys: int) -> list[int]:
    """The indices of as many of the samples that are ``there`` as the work allows."""
    elements = sum(prod(shape_of(value)) for node in model.graph for value in node.outputs if value.name)
    run = summarise(model).macs + _ELEMENT_WORK * elements + _NODE_WORK * len(model.graph)
    cost = run * (_TRIES * keys + 1)
    count = int(np.clip(_WORK / cost, _FEWEST_SAMPLES, _MOST_SAMPLES))
    return [int(index) for index in np.linspace(0, there - 1, min(count, there)).astype(int)]


def _array(scale: float) -> np.ndarray:
    return np.array(scale, np.float32)
