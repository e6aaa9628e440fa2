"""Gathers, scatters, ranks and running sums, against ONNX Runtime."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgec.errors import UnsupportedModelError
from tests import graphs
from tests.operators import assert_agrees, compiled_outputs, node, normal

INPUT = normal(2, 6, 5, 7)


def places(extent: int, *shape: int) -> np.ndarray:
    """Indices from -extent to extent − 1."""
    return np.random.default_rng(extent).integers(-extent, extent, shape)


GATHERS = {
    "gather one": (node("Gather", "x i", axis=1), np.array(-2)),
    "gather evenly": (node("Gather", "x i", axis=3), np.array([6, 4, 2])),
    "gather a matrix": (node("Gather", "x i", axis=2), places(5, 3, 2)),
    "gather channels": (node("Gather", "x i", axis=1), places(6, 11)),
    "gather elements": (node("GatherElements", "x i", axis=1), places(6, 2, 3, 5, 7)),
    "gather tuples": (node("GatherND", "x i"), places(2, 3, 4, 3)),
    "gather in batches": (node("GatherND", "x i", batch_dims=1), places(5, 2, 3, 2)),
}


@pytest.mark.parametrize("known", [False, True])
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("case", GATHERS)
def test_gathers(case: str, channels_last: bool, known: bool, tmp_path: Path) -> None:
    made, indices = GATHERS[case]
    inputs = {"x": INPUT} if known else {"x": INPUT, "i": indices}
    assert_agrees(made, inputs, tmp_path, {"i": indices} if known else {}, channels_last=channels_last)


def test_gathers_rows_of_an_embedding(tmp_path: Path) -> None:
    assert_agrees(node("Gather", "e i"), {"i": places(17, 3, 5)}, tmp_path, {"e": normal(17, 8)})


def test_an_index_outside_stays_inside_of_the_tensor(tmp_path: Path) -> None:
    model = graphs.build([node("Gather", "x i")], {"x": (5,), "i": (3,)}, ["y"], types={"i": graphs.INT64})
    found = compiled_outputs(model, {"x": np.arange(5, dtype=np.float32), "i": np.array([99, -99, 1])}, tmp_path)
    assert found["y"].tolist() == [4, 0, 1]


@pytest.mark.parametrize("reduction", ["none", "add", "mul", "max", "min"])
@pytest.mark.parametrize("channels_last", [False, True])
def test_scatters_elements(reduction: str, channels_last: bool, tmp_path: Path) -> None:
    """Without a reduction no place occurs twice, as ONNX demands."""
    order = np.argsort(normal(2, 6, 3, 7), axis=1)
    inputs = {"x": INPUT, "i": order[:, :4] if reduction == "none" else places(6, 2, 4, 3, 7), "u": normal(2, 4, 3, 7)}
    scatter = node("ScatterElements", "x i u", axis=1, reduction=reduction)
    assert_agrees(scatter, inputs, tmp_path, channels_last=channels_last)


@pytest.mark.parametrize("reduction", ["none", "add", "mul", "max", "min"])
def test_scatters_rows(reduction: str, tmp_path: Path) -> None:
    rows = np.array([[[0, 5], [1, -1]]]) if reduction == "none" else places(2, 3, 2, 2)
    inputs = {"x": INPUT, "i": rows, "u": normal(*rows.shape[:-1], 5, 7)}
    assert_agrees(node("ScatterND", "x i u", reduction=reduction), inputs, tmp_path, channels_last=True)


def test_what_is_scattered_into_is_still_read_elsewhere(tmp_path: Path) -> None:
    """The scatter must not change the tensor for its other reader, nor read indices that it overwrites."""
    nodes = [node("Relu", "x", "r"), node("Abs", "i", "j"), node("ScatterElements", "r j u", "s", axis=1),
             node("Sub", "s r")]  # fmt: skip
    inputs = {"x": normal(3, 7), "i": np.array([[0, -3], [6, 1], [-2, 5]]), "u": normal(3, 2)}
    assert_agrees(nodes, inputs, tmp_path)


@pytest.mark.parametrize("axis", [-1, 0, 1])
def test_one_hot(axis: int, tmp_path: Path) -> None:
    inputs = {"i": np.array([[0, -1, 4], [7, -6, 2]]), "v": np.array([-0.5, 2.0], np.float32)}
    assert_agrees(node("OneHot", "i d v", axis=axis), inputs, tmp_path, {"d": np.array(5)})


@pytest.mark.parametrize("op", ["ArgMax", "ArgMin"])
@pytest.mark.parametrize("last", [0, 1])
@pytest.mark.parametrize("axis", [1, -1])
def test_arg(op: str, last: int, axis: int, tmp_path: Path) -> None:
    """Rounded values, so that there are ties."""
    nodes = [node("Round", "x", "r"), node(op, "r", axis=axis, keepdims=last, select_last_index=last)]
    assert_agrees(nodes, {"x": INPUT}, tmp_path, channels_last=True)


@pytest.mark.parametrize("dtype", ["float32", "int64", "uint8"])
@pytest.mark.parametrize("largest", [0, 1])
@pytest.mark.parametrize("axis", [1, 2])
def test_top_k(dtype: str, largest: int, axis: int, tmp_path: Path) -> None:
    x = np.abs(normal(3, 17, 5)).round().astype(dtype)
    top = node("TopK", "x k", "y z", axis=axis, largest=largest)
    assert_agrees(top, {"x": x}, tmp_path, {"k": np.array([4])}, outputs="y z")


def test_top_k_of_all_sorts(tmp_path: Path) -> None:
    assert_agrees(node("TopK", "x k", "y z"), {"x": normal(127)}, tmp_path, {"k": np.array([127])}, outputs="y z")


def test_top_k_of_nan_is_a_permutation(tmp_path: Path) -> None:
    model = graphs.build([node("TopK", "x k", "y z")], {"x": (5,)}, ["y", "z"], {"k": np.array([5])})
    x = np.array([1, np.nan, 3, np.nan, -np.inf], np.float32)
    assert compiled_outputs(model, {"x": x}, tmp_path)["z"].tolist() == [1, 3, 2, 0, 4]


def test_top_k_of_very_many_is_refused(tmp_path: Path) -> None:
    model = graphs.build([node("TopK", "x k", "y z")], {"x": (1, 100_000)}, ["y", "z"], {"k": np.array([5])})
    with pytest.raises(UnsupportedModelError, match="TopK over 100000 elements in 1 rows"):
        compiled_outputs(model, {}, tmp_path)


@pytest.mark.parametrize("exclusive", [0, 1])
@pytest.mark.parametrize("reverse", [0, 1])
@pytest.mark.parametrize("axis", [1, -1])
@pytest.mark.parametrize("dtype", ["float32", "int32"])
def test_running_sums(exclusive: int, reverse: int, axis: int, dtype: str, tmp_path: Path) -> None:
    scan = node("CumSum", "x a", exclusive=exclusive, reverse=reverse)
    assert_agrees(scan, {"x": normal(2, 17, 7, dtype=dtype)}, tmp_path, {"a": np.array(axis)})


def test_max_unpool_reverses_max_pool(tmp_path: Path) -> None:
    inputs = {"x": normal(1, 2, 2, 3), "i": np.array([[[[0, 3, 5], [14, 12, 17]], [[25, 20, 22], [33, 31, 35]]]])}
    assert_agrees(node("MaxUnpool", "x i", kernel_shape=[2, 2], strides=[2, 2]), inputs, tmp_path)
