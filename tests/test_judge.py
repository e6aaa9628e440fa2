"""Points lost: by labels, as the float model expects them, by agreement, by error."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import softmax

from edgec.quantisation.judge import Judge

GENERATOR = np.random.default_rng(0)


def judge_of(outputs: np.ndarray, labels: np.ndarray | None = None, inputs: np.ndarray | None = None) -> Judge:
    """By the float model's ``outputs`` [runs, *shape]."""
    x = np.zeros((1, 3), np.float32) if inputs is None else inputs
    return Judge([{"x": x}] * len(outputs), labels, runs(outputs))


def runs(outputs: np.ndarray) -> list[list[np.ndarray]]:
    return [[each] for each in outputs]


def drop(judge: Judge, outputs: np.ndarray) -> float:
    return judge.float_score - judge.score(runs(outputs))


def logits(samples: int, classes: int, scale: float = 3.0) -> np.ndarray:
    """[samples, 1, classes] of a classifier that is fairly sure."""
    return GENERATOR.normal(0, scale, (samples, 1, classes)).astype(np.float32)


def test_expected_points_of_two_samples() -> None:
    """By hand: a change between two that are nearly as probable, and one to what is out of the question."""
    probabilities = np.array([[[0.5, 0.4, 0.1]], [[0.9, 0.09, 0.01]]])
    found = np.array([[[0.1, 0.8, 0.1]], [[0.1, 0.1, 0.8]]])
    for outputs in (probabilities, np.log(probabilities) + 7):
        judge = judge_of(outputs)
        assert judge.measure == "expected accuracy, float = 100" and judge.float_score == 100
        assert drop(judge, found) == pytest.approx(100 * (1.1 / 2 + 1.89 / 2) / 2)
        assert drop(judge, outputs * 0.5) == pytest.approx(0)


def test_points_lie_between_what_calibrated_labels_and_whole_changes_count() -> None:
    """Labels drawn by the float model's probabilities, and those of a model that is always right."""
    clean = logits(400, 10)
    noisy = clean + GENERATOR.normal(0, 1.5, clean.shape)
    probabilities = softmax(clean[:, 0].astype(np.float64), axis=1)
    counted = []
    for _ in range(400):
        chance = GENERATOR.uniform(size=(400, 1))
        labels = np.minimum((probabilities.cumsum(axis=1) < chance).sum(axis=1), 9)
        counted.append(drop(judge_of(clean, labels), noisy))
    right = drop(judge_of(clean, clean[:, 0].argmax(axis=1)), noisy)
    middle = (np.mean(counted) + right) / 2
    assert right > np.mean(counted) > 2
    assert drop(judge_of(clean), noisy) == pytest.approx(middle, abs=2 * np.std(counted) / 20)


def test_the_steady_number_varies_less() -> None:
    """Over sets of 40 samples: it is a little more than what many samples say, and nearer to it than what 40 do."""
    clean = logits(4000, 10)
    noisy = 0.8 * clean + GENERATOR.normal(0, 1, clean.shape)
    whole = drop(judge_of(clean), noisy)
    sets = [slice(first, first + 40) for first in range(0, 4000, 40)]
    plain = [drop(judge_of(clean[each]), noisy[each]) for each in sets]
    steady = [judge_of(clean[each]).steady_drop(runs(noisy[each])) for each in sets]
    assert np.mean(plain) == pytest.approx(whole) and whole < np.mean(steady) < 1.5 * whole
    assert np.std(steady) < 0.5 * np.std(plain)
    for same in (clean, 0.5 * clean, clean + 3):
        assert judge_of(clean).steady_drop(runs(same)) == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize(
    ("outputs", "inputs", "rows"),
    [
        (logits(40, 10).reshape(40, 1, 10, 1, 1), None, 40),  # what a pooling leaves
        (logits(40, 10).reshape(10, 4, 10), np.zeros((4, 3)), 40),  # four samples a run
        (logits(40, 10).reshape(5, 1, 8, 10), np.zeros((1, 8), np.int64), 40),  # a text of eight tokens
        (np.moveaxis(softmax(logits(72, 5).reshape(2, 1, 6, 6, 5), axis=-1), -1, 2), None, 72),  # a mask
    ],
)
def test_rows_of_classes(outputs: np.ndarray, inputs: np.ndarray | None, rows: int) -> None:
    judge = judge_of(outputs, inputs=inputs)
    found = judge._float_rows
    assert judge.measure == "expected accuracy, float = 100"
    assert found is not None and found.shape == (rows, outputs.size // rows)
    assert 0 < drop(judge, outputs[::-1]) < 100


@pytest.mark.parametrize(
    "outputs",
    [
        1 / (1 + np.exp(-logits(40, 10))),  # labels that do not exclude each other
        logits(40, 500, 0.05),  # an embedding
        logits(40, 10).argmax(axis=2),  # classes themselves
    ],
)
def test_a_change_costs_a_sample_where_there_are_no_probabilities(outputs: np.ndarray) -> None:
    judge = judge_of(outputs)
    assert judge.measure == "same class as float, %" and judge.float_score == 100
    changed = outputs.copy()
    changed[3] = changed[3].max() - changed[3] + 1
    assert drop(judge, changed) == pytest.approx(100 / 40)


@pytest.mark.parametrize("shape", [(20, 1, 1), (20, 1, 2, 6, 6)])
def test_maps_and_numbers_are_judged_by_their_error(shape: tuple[int, ...]) -> None:
    outputs = GENERATOR.normal(0, 3, shape)
    judge = judge_of(outputs)
    assert judge.measure == "100 − relative error, %" and drop(judge, 0.98 * outputs) == pytest.approx(2)
