"""Fourier transforms, the constants of signal processing, determinants and losses."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgec.errors import UnsupportedModelError
from tests import graphs
from tests.operators import assert_agrees, compiled_outputs, node, normal


def parts(values: np.ndarray) -> np.ndarray:
    """Complex values as pairs of real and imaginary part."""
    return np.stack([values.real, values.imag], axis=-1)


@pytest.mark.parametrize("length", [None, 16, 40])
@pytest.mark.parametrize("kind", ["real", "real, one side", "complex", "inverse"])
def test_fourier_transforms(kind: str, length: int | None, tmp_path: Path) -> None:
    x = normal(3, 21, 2, 1 if kind.startswith("real") else 2)
    values = x[..., 0] if x.shape[-1] == 1 else x[..., 0] + 1j * x[..., 1]
    wanted = (np.fft.ifft if kind == "inverse" else np.fft.fft)(values.astype(np.complex128), length, axis=1)
    if kind.endswith("one side"):
        wanted = wanted[:, : wanted.shape[1] // 2 + 1]
    made = node(
        "DFT", "x n" if length else "x", axis=1, inverse=int(kind == "inverse"), onesided=int(kind.endswith("side"))
    )
    model = graphs.build([made], {"x": x.shape}, ["y"], {"n": np.array(length)} if length else {})
    found = compiled_outputs(model, {"x": x}, tmp_path)["y"]
    np.testing.assert_allclose(found, parts(wanted), rtol=0, atol=3e-6 * float(np.abs(wanted).max()))


@pytest.mark.parametrize("axis", [0, 1, -2])
def test_the_axis_is_an_input_since_opset_20(axis: int, tmp_path: Path) -> None:
    x = normal(5, 6, 7, 1)
    model = graphs.build([node("DFT", "x - a")], {"x": x.shape}, ["y"], {"a": np.array(axis)}, opset=20)
    wanted = np.fft.fft(x[..., 0].astype(np.float64), axis=axis if axis >= 0 else axis + 1)
    np.testing.assert_allclose(compiled_outputs(model, {"x": x}, tmp_path)["y"], parts(wanted), rtol=0, atol=2e-5)


def test_long_transforms_are_refused(tmp_path: Path) -> None:
    model = graphs.build([node("DFT", "x")], {"x": (1, 5000, 1)}, ["y"])
    with pytest.raises(UnsupportedModelError, match="transform shorter frames"):
        compiled_outputs(model, {}, tmp_path)


@pytest.mark.parametrize("window", ["none", "known", "computed"])
def test_short_time_transform(window: str, tmp_path: Path) -> None:
    constants = {"s": np.array(7), "n": np.array(16)}
    inputs = {"x": normal(2, 100, 1)}
    if window != "none":
        (constants if window == "known" else inputs)["w"] = normal(16)
    made = node("STFT", f"x s {'-' if window == 'none' else 'w'} n")
    assert_agrees(made, inputs, tmp_path, constants)


@pytest.mark.parametrize("periodic", [0, 1])
@pytest.mark.parametrize("op", ["HannWindow", "HammingWindow", "BlackmanWindow"])
def test_windows(op: str, periodic: int, tmp_path: Path) -> None:
    nodes = [node(op, "n", "w", periodic=periodic), node("Mul", "x w")]
    assert_agrees(nodes, {"x": normal(17)}, tmp_path, {"n": np.array(17)})


def test_mel_weights(tmp_path: Path) -> None:
    values = {"bins": 10, "length": 64, "rate": 8192, "low": np.float32(100), "high": np.float32(4000)}
    constants = {name: np.asarray(value) for name, value in values.items()}
    nodes = [node("MelWeightMatrix", " ".join(constants), "m"), node("MatMul", "x m")]
    assert_agrees(nodes, {"x": normal(3, 33)}, tmp_path, constants)


@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_determinants(size: int, tmp_path: Path) -> None:
    x = normal(3, 2, size, size)
    model = graphs.build([node("Det", "x")], {"x": x.shape}, ["y"])
    found = compiled_outputs(model, {"x": x}, tmp_path)["y"]
    np.testing.assert_allclose(found, np.linalg.det(x.astype(np.float64)), rtol=1e-4, atol=1e-6)


def test_large_determinants_are_refused(tmp_path: Path) -> None:
    model = graphs.build([node("Det", "x")], {"x": (5, 5)}, ["y"])
    with pytest.raises(UnsupportedModelError, match="its matrices have 5 rows, and 4 are the most"):
        compiled_outputs(model, {}, tmp_path)


@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("ignore", [None, 2])
def test_losses(ignore: int | None, weighted: bool, reduction: str, tmp_path: Path) -> None:
    labels = np.random.default_rng(3).integers(0, 5, (3, 4, 7))
    constants = {"w": np.abs(normal(5)) + 0.1} if weighted else {}
    attributes = {"reduction": reduction} | ({} if ignore is None else {"ignore_index": ignore})
    names = " ".join(["x t", *constants])
    nodes = [
        node("SoftmaxCrossEntropyLoss", names, "loss log", **attributes),
        node("NegativeLogLikelihoodLoss", names, "likelihood", **attributes),
    ]
    inputs = {"x": normal(3, 5, 4, 7), "t": labels}
    # the range of a single value is taken for a hundredth of it
    tolerance = 2e-5 if reduction == "none" else 1e-3
    assert_agrees(nodes, inputs, tmp_path, constants, outputs="loss log likelihood", tolerance=tolerance)


def test_labels_that_are_no_class_may_be_ignored(tmp_path: Path) -> None:
    labels = np.array([1, -100, 4, -100])
    made = node("SoftmaxCrossEntropyLoss", "x t", ignore_index=-100)
    assert_agrees(made, {"x": normal(4, 5), "t": labels}, tmp_path, tolerance=1e-3)
