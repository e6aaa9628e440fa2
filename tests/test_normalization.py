"""Normalisations, against ONNX Runtime or, where it lacks them, against numpy in float64."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgec.errors import UnsupportedModelError
from tests import graphs
from tests.operators import assert_agrees, compiled_outputs, node, normal

FAR = normal(2, 6, 5, 7) + 20
"""Values far from zero, whose variance would drown in a difference of sums."""


@pytest.mark.parametrize("axis", [-1, 1, 2])
@pytest.mark.parametrize("with_bias", [False, True])
def test_layer_normalization_and_its_statistics(with_bias: bool, axis: int, tmp_path: Path) -> None:
    shape = FAR.shape[axis % 4 :]
    constants = {"s": normal(*shape), "b": normal(*shape[::-1]).T.reshape(shape)}
    names = "x s b" if with_bias else "x s"
    made = node("LayerNormalization", names, "y mean inverse", axis=axis)
    assert_agrees(made, {"x": FAR}, tmp_path, constants, outputs="y mean inverse", tolerance=5e-5)


@pytest.mark.parametrize("count", [5, 17, 127, 768])
def test_layer_normalization_of_rows(count: int, tmp_path: Path) -> None:
    constants = {"s": normal(count), "b": normal(count) + 1}
    assert_agrees(node("LayerNormalization", "x s b", epsilon=1e-3), {"x": normal(7, count)}, tmp_path, constants)


@pytest.mark.parametrize("channels_last", [False, True])
def test_instance_normalization(channels_last: bool, tmp_path: Path) -> None:
    constants = {"s": normal(6), "b": normal(6) + 2}
    x = normal(2, 6, 5, 7) if channels_last else FAR
    made = node("InstanceNormalization", "x s b")
    assert_agrees(made, {"x": x}, tmp_path, constants, channels_last=channels_last, tolerance=1e-4)


@pytest.mark.parametrize("known", [False, True])
@pytest.mark.parametrize("shape", [(2, 6, 5, 7), (3, 6), (2, 6, 9)])
def test_batch_normalization(shape: tuple[int, ...], known: bool, tmp_path: Path) -> None:
    parameters = {"s": normal(6), "b": normal(6) + 1, "m": normal(6) - 1, "v": np.abs(normal(6)) + 0.1}
    made = node("BatchNormalization", "x s b m v", epsilon=1e-2)
    x = {"x": normal(*shape)}
    assert_agrees(made, x if known else {**x, **parameters}, tmp_path, parameters if known else {})


def test_batch_normalization_in_training_is_refused(tmp_path: Path) -> None:
    made = node("BatchNormalization", "x s b m v", "y mean var", training_mode=1)
    parameters = {name: np.ones(6, np.float32) for name in "sbmv"}
    model = graphs.build([made], {"x": (2, 6, 5)}, ["y", "mean", "var"], parameters)
    with pytest.raises(UnsupportedModelError, match="training mode; export the model for inference"):
        compiled_outputs(model, {"x": normal(2, 6, 5)}, tmp_path)


def normalised(x: np.ndarray, axes: tuple[int, ...], epsilon: float) -> np.ndarray:
    wide = x.astype(np.float64)
    mean, variance = wide.mean(axis=axes, keepdims=True), wide.var(axis=axes, keepdims=True)
    return (wide - mean) / np.sqrt(variance + epsilon)


@pytest.mark.parametrize("channels_last", [False, True])
def test_group_normalization(channels_last: bool, tmp_path: Path) -> None:
    x = normal(2, 6, 5, 7)
    constants = {"s": normal(6), "b": normal(6) + 1, "mix": np.eye(6, dtype=np.float32)[..., None, None]}
    nodes = [node("GroupNormalization", "h s b", num_groups=3)]
    nodes.insert(0, node("Conv", "x mix", "h") if channels_last else node("Identity", "x", "h"))
    model = graphs.build(nodes, {"x": x.shape}, ["y"], constants, opset=21)
    model.graph.output[0].CopyFrom(graphs.build([node("Identity", "x")], {"x": x.shape}, ["y"]).graph.output[0])
    scale, bias = (constants[name].reshape(6, 1, 1) for name in "sb")
    wanted = normalised(x.reshape(2, 3, 2, 5, 7), (2, 3, 4), 1e-5).reshape(x.shape) * scale + bias
    np.testing.assert_allclose(compiled_outputs(model, {"x": x}, tmp_path)["y"], wanted, rtol=1e-4, atol=2e-5)


def test_root_mean_square_normalization(tmp_path: Path) -> None:
    x, scale = normal(3, 5, 17), normal(17)
    model = graphs.build([node("RMSNormalization", "x s", epsilon=1e-3)], {"x": x.shape}, ["y"], {"s": scale}, opset=23)
    wide = x.astype(np.float64)
    wanted = wide / np.sqrt((wide**2).mean(-1, keepdims=True) + 1e-3) * scale
    np.testing.assert_allclose(compiled_outputs(model, {"x": x}, tmp_path)["y"], wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("beta", [0.75, 0.6])
def test_local_response_normalization(beta: float, channels_last: bool, tmp_path: Path) -> None:
    made = node("LRN", "x", size=5, alpha=0.02, beta=beta, bias=1.5)
    assert_agrees(made, {"x": normal(2, 17, 5, 3) * 3}, tmp_path, channels_last=channels_last)


@pytest.mark.parametrize("p", [1, 2])
def test_lp_normalization(p: int, tmp_path: Path) -> None:
    """Vectors of zeros stay zeros."""
    x = normal(3, 7, 5)
    x[1] = 0
    model = graphs.build([node("LpNormalization", "x", axis=1, p=p)], {"x": x.shape}, ["y"], opset=22)
    length = np.linalg.norm(x.astype(np.float64), p, axis=1, keepdims=True)
    wanted = x / np.where(length == 0, 1, length)
    np.testing.assert_allclose(compiled_outputs(model, {"x": x}, tmp_path)["y"], wanted, rtol=1e-5, atol=1e-6)


def test_mean_variance_normalization(tmp_path: Path) -> None:
    made = node("MeanVarianceNormalization", "x", axes=[0, 2, 3])
    model = graphs.build([made], {"x": FAR.shape}, ["y"])
    found = compiled_outputs(model, {"x": FAR}, tmp_path)["y"]
    np.testing.assert_allclose(found, normalised(FAR, (0, 2, 3), 0), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("dtype, tolerance", [("float16", 2e-3), ("float64", 1e-6)])
def test_other_floats(dtype: str, tolerance: float, tmp_path: Path) -> None:
    constants = {"s": normal(33, dtype=dtype), "b": normal(33, dtype=dtype)}
    made = node("LayerNormalization", "x s b")
    assert_agrees(made, {"x": normal(5, 33, dtype=dtype)}, tmp_path, constants, tolerance=tolerance)
