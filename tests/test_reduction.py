"""Reductions, the Softmax family and global pooling, against ONNX Runtime."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgec.errors import UnsupportedModelError
from tests import graphs
from tests.operators import assert_agrees, compiled_outputs, node, normal

KINDS = ["Sum", "Mean", "Max", "Min", "Prod", "L1", "L2", "SumSquare", "LogSum", "LogSumExp"]
AXES = {"first": [0], "middle": [1], "last": [-1], "outer": [0, 1], "inner": [1, 2], "ends": [0, 2], "all": None}


def reduce_nodes(kinds: list[str], keepdims: int, axes: list[int] | None) -> tuple[list, dict[str, np.ndarray]]:
    names = "x a" if axes is not None else "x"
    nodes = [node(f"Reduce{kind}", names, kind, keepdims=keepdims) for kind in kinds]
    return nodes, {} if axes is None else {"a": np.array(axes)}


@pytest.mark.parametrize("keepdims", [0, 1])
@pytest.mark.parametrize("where", AXES)
def test_reductions(where: str, keepdims: int, tmp_path: Path) -> None:
    nodes, constants = reduce_nodes(KINDS, keepdims, AXES[where])
    x = np.abs(normal(3, 17, 5)) * 0.5 + 0.5
    assert_agrees(nodes, {"x": x}, tmp_path, constants, outputs=" ".join(KINDS))


@pytest.mark.parametrize("dtype", ["int32", "int64", "float64"])
def test_reductions_of_other_dtypes(dtype: str, tmp_path: Path) -> None:
    kinds = ["Sum", "Max", "Min", "Prod", "SumSquare", "Mean"]
    nodes, constants = reduce_nodes(kinds, 0, [1])
    assert_agrees(nodes, {"x": normal(5, 7, 3, dtype=dtype)}, tmp_path, constants, outputs=" ".join(kinds))


@pytest.mark.parametrize("axes", [[1], [2, 3], [0, 2, 3]])
def test_reductions_of_feature_maps(axes: list[int], tmp_path: Path) -> None:
    kinds = ["Sum", "Mean", "Max", "L2", "LogSumExp"]
    nodes, constants = reduce_nodes(kinds, 1, axes)
    x, outputs = normal(2, 17, 5, 7), " ".join(kinds)
    assert_agrees(nodes, {"x": x}, tmp_path, constants, outputs=outputs, channels_last=True)


def test_long_rows_and_their_ends(tmp_path: Path) -> None:
    """Every way in which a row is cut into vectors."""
    for count in (15, 16, 33, 63, 64, 65, 127, 1000):
        nodes, constants = reduce_nodes(["Sum", "Max"], 0, [1])
        folder = tmp_path / str(count)
        folder.mkdir()
        assert_agrees(nodes, {"x": normal(3, count)}, folder, constants, outputs="Sum Max")


def test_no_axes_reduce_everything_or_nothing(tmp_path: Path) -> None:
    nodes = [
        node("ReduceSumSquare", "x none", "nothing", noop_with_empty_axes=1, keepdims=0),
        node("ReduceSumSquare", "x none", "everything", keepdims=0),
    ]
    model = graphs.build(nodes, {"x": (3, 5)}, ["nothing", "everything"], {"none": np.zeros(0, np.int64)})
    x = normal(3, 5)
    found = compiled_outputs(model, {"x": x}, tmp_path)
    np.testing.assert_allclose(found["nothing"], x * x, rtol=1e-6)
    np.testing.assert_allclose(found["everything"], np.sum(x * x), rtol=1e-6)


def test_extremes_keep_nan_and_logarithms_keep_infinities(tmp_path: Path) -> None:
    x = normal(4, 20)
    x[0, 3], x[1, 19], x[2, 7], x[3, :] = np.nan, np.nan, np.inf, -np.inf
    nodes, constants = reduce_nodes(["Max", "Min", "LogSumExp"], 0, [1])
    model = graphs.build(nodes, {"x": x.shape}, ["Max", "Min", "LogSumExp"], constants)
    found = compiled_outputs(model, {"x": x}, tmp_path)
    np.testing.assert_array_equal(found["Max"], x.max(axis=1))
    np.testing.assert_array_equal(found["Min"], x.min(axis=1))
    assert np.isnan(found["LogSumExp"][:2]).all()
    assert found["LogSumExp"][2:].tolist() == [np.inf, -np.inf]


def test_axes_known_only_while_running_are_refused(tmp_path: Path) -> None:
    model = graphs.build([node("ReduceSum", "x a")], {"x": (3, 5), "a": (1,)}, ["y"], types={"a": graphs.INT64})
    model.graph.output[0].CopyFrom(graphs.build([node("ReduceSum", "x")], {"x": (3, 5)}, ["y"]).graph.output[0])
    with pytest.raises(UnsupportedModelError, match=r"ReduceSum node"):
        compiled_outputs(model, {"x": normal(3, 5), "a": np.array([1])}, tmp_path)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("axis", [0, 1, 3, -2])
def test_softmax_family(axis: int, channels_last: bool, tmp_path: Path) -> None:
    nodes = [node(op, "x", op, axis=axis) for op in ("Softmax", "LogSoftmax", "Hardmax")]
    x = normal(2, 5, 7, 17) * 10
    if channels_last:
        nodes.pop()  # the convolution before it may swap neighbours that are nearly equal
    outputs = " ".join(n.op_type for n in nodes)
    assert_agrees(nodes, {"x": x}, tmp_path, outputs=outputs, channels_last=channels_last)


def test_softmax_of_large_values_and_half_floats(tmp_path: Path) -> None:
    x = np.array([[1e4, 9.9e3, -1e4], [-1e4, -1e4, -1e4]], np.float32)
    assert_agrees(node("Softmax", "x"), {"x": x}, tmp_path)
    folder = tmp_path / "half"
    folder.mkdir()
    assert_agrees(node("Softmax", "x"), {"x": normal(5, 33, dtype="float16")}, folder, tolerance=2e-3)


@pytest.mark.parametrize("spatial", [(7,), (5, 7), (3, 5, 4)])
def test_global_pooling(spatial: tuple[int, ...], tmp_path: Path) -> None:
    nodes = [node("GlobalAveragePool", "x", "a"), node("GlobalMaxPool", "x", "m"), node("GlobalLpPool", "x", "l", p=3)]
    assert_agrees(nodes, {"x": normal(2, 17, *spatial)}, tmp_path, outputs="a m l")
