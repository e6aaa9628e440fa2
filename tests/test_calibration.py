"""Calibration samples: what fits is taken as it is, what is odd is said, what teaches nothing is refused."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from edgec.calibration import FEW_SAMPLES, load_calibration
from edgec.errors import EdgecError
from tests import graphs
from tests.operators import node

SHAPE = (1, 3, 4)


@pytest.fixture(scope="module")
def model() -> ir.Model:
    return graphs.load(graphs.build([node("Relu", "x", "y")], {"x": SHAPE}, ["y"]))


def samples(count: int = FEW_SAMPLES) -> list[dict[str, np.ndarray]]:
    generator = np.random.default_rng(3)
    return [{"x": generator.standard_normal(SHAPE, np.float32)} for _ in range(count)]


def test_files_and_arrays_give_the_same(model: ir.Model, tmp_path: Path) -> None:
    given = samples()
    np.savez(tmp_path / "x.npz", x=np.concatenate([each["x"] for each in given]))
    for source in (given, iter(given), tmp_path / "x.npz", str(tmp_path / "x.npz")):
        found = load_calibration(source, model)
        assert len(found) == len(given) and found.warnings == ()
        for one, other in zip(found.samples, given, strict=True):
            np.testing.assert_array_equal(one["x"], other["x"])


@pytest.mark.parametrize(
    ("sample", "sentence"),
    [
        ({}, "has no array for the input 'x'"),
        ({"y": np.zeros(SHAPE, np.float32)}, "it holds 'y'"),
        ({"x": np.zeros((3, 4), np.float32)}, r"float32\[3, 4\]"),
        ({"x": np.zeros(SHAPE, np.float64)}, r"float64\[1, 3, 4\]"),
        ({"x": np.full(SHAPE, np.nan, np.float32)}, "NaN or infinite"),
        ({"x": np.full(SHAPE, np.inf, np.float32)}, "NaN or infinite"),
    ],
)
def test_a_sample_that_does_not_fit_is_named(model: ir.Model, sample: dict[str, np.ndarray], sentence: str) -> None:
    with pytest.raises(EdgecError, match=sentence) as raised:
        load_calibration([*samples(3), sample], model)
    assert "sample 3" in str(raised.value)


def test_nothing_to_learn_from_is_refused(model: ir.Model) -> None:
    with pytest.raises(EdgecError, match="holds no samples"):
        load_calibration([], model)
    with pytest.raises(EdgecError, match=r"every value of the input 'x' .* is 7, which says nothing"):
        load_calibration([{"x": np.full(SHAPE, 7, np.float32)}] * 5, model)


@pytest.mark.parametrize(
    ("given", "warning"),
    [
        (samples(1), "holds a single sample"),
        (samples(1) * 20, "all 20 samples .* are the same"),
        (samples(5), "holds only 5 samples"),
    ],
)
def test_odd_samples_are_taken_with_a_warning(
    model: ir.Model, given: list[dict[str, np.ndarray]], warning: str
) -> None:
    found = load_calibration(given, model)
    assert len(found) == len(given)
    (sentence,) = found.warnings
    assert re.search(warning, sentence)


def test_a_recipe_for_images_needs_a_folder(model: ir.Model, tmp_path: Path) -> None:
    with pytest.raises(EdgecError, match="the samples are arrays"):
        load_calibration(samples(), model, tmp_path / "recipe.toml")
