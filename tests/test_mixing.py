"""Bits for each layer by an integer program: the choice is the best there is, and holds."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest

from edgec.mixing import FAMILIES, Mix, Option, _Measured, _solved
from tests.test_cli import results_of, sentence_of


def options(seed: int, layers: int) -> tuple[Option, ...]:
    """Random losses and sizes: more bits lose less."""
    generator = np.random.default_rng(seed)
    found = []
    for layer in range(layers):
        losses = np.sort(generator.exponential(1, 4))[::-1]
        sizes = np.sort(generator.integers(10, 200, 4))
        for precision, loss, size in zip(("w2", "w3", "w4", "w8"), losses, sizes, strict=True):
            found.append(Option(f"layer{layer}", precision, float(loss), int(size), float(generator.uniform(1, 2))))
    return tuple(found)


@pytest.mark.parametrize("seed", range(5))
def test_choice_is_the_best_of_all(seed: int) -> None:
    """Against every combination of five layers at four precisions."""
    measured = _Measured("w8", options(seed, 5), 0.5)
    by_layer = [[o for o in measured.options if o.layer == f"layer{i}"] for i in range(5)]
    combinations = list(itertools.product(*by_layer))
    for room in (120, 300, 500):
        made = _solved(measured, "loss", lambda option: option.bytes, room)
        fitting = [sum(o.loss for o in each) for each in combinations if sum(o.bytes for o in each) <= room]
        if made is None:
            assert not fitting
            continue
        taken = [option for option in made.options if option.chosen]
        assert len(taken) == 5 and made.bytes <= room
        assert sum(option.loss for option in taken) == pytest.approx(min(fitting))
        assert made.ms == pytest.approx(0.5 + sum(option.ms or 0 for option in taken))


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe that takes no time."""
    path = tmp_path_factory.mktemp("recipes") / "quick.toml"
    path.write_text('rounding = "nearest"\nequalise = false\nrefine = false\nobserver = "minmax"\n')
    return path


def test_auto_stays_within_bytes(sample_model: Path, quick: Path, tmp_path: Path) -> None:
    """The table names every option; the recipe beside the artifact has the choice, and can be edited."""
    calib, output = sample_model.with_name("digits_calib.npz"), tmp_path / "digits.so"
    printed = results_of(
        "compile", sample_model, "--quantize", "auto", "--calib", calib, "--max-bytes", "22000", "--recipe", quick,
        "-o", output,
    )  # fmt: skip
    found = Mix(**printed["quantisation"]["mix"])
    chosen = {option["layer"]: option for option in found.options if option["chosen"]}  # type: ignore[index]
    assert sum(option["bytes"] for option in chosen.values()) == found.bytes <= 22000  # type: ignore[index]
    assert printed["weights_bytes"] < 22000 + 4000
    assert {option["precision"] for option in found.options} <= set(FAMILIES["w8"])  # type: ignore[index]
    layers = {layer["name"]: layer["bits"] for layer in printed["quantisation"]["layers"]}
    recipe = output.with_name("digits.so.recipe.toml").read_text()
    for name, option in chosen.items():
        assert layers[name] == option["precision"] or layers[name] == "w8"  # type: ignore[index]
        assert f'"{name}"' in recipe


def test_auto_stays_within_points(sample_model: Path, tmp_path: Path) -> None:
    calib, labelled = (sample_model.with_name(f"digits_{name}.npz") for name in ("calib", "eval"))
    printed = results_of(
        "compile", sample_model, "--quantize", "auto", "--calib", calib, "--eval", labelled, "--max-drop", "1",
        "-o", tmp_path / "digits.so",
    )  # fmt: skip
    guard, found = printed["quantisation"]["guard"], printed["quantisation"]["mix"]
    assert guard["float_score"] - guard["score"] <= 1 and found["bytes"] < 57000


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--max-bytes", "1"], "no mix of precisions is within --max-bytes 1"),
        (["--max-bytes", "9", "--max-ms", "9"], "do not go together"),
        (["--target", "rpi4", "--max-ms", "9"], "--max-bytes instead"),
        (["--quantize", "w4", "--max-ms", "9"], "is for --quantize auto"),
    ],
)
def test_limits_that_cannot_hold_are_sentences(
    flags: list[str], said: str, sample_model: Path, quick: Path, tmp_path: Path
) -> None:
    calib = sample_model.with_name("digits_calib.npz")
    mode = [] if "--quantize" in flags else ["--quantize", "auto"]
    arguments = ["compile", sample_model, *mode, "--calib", calib, "--recipe", quick, *flags]
    assert said in sentence_of(*arguments, "-o", tmp_path / "x.so")
    assert not list(tmp_path.iterdir())
