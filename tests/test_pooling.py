"""Pooling over one to three axes: pads, dilations, ceil_mode, indices, dtypes, against ONNX Runtime."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from edgec.errors import UnsupportedModelError
from edgec.lowering.window import Window, window
from tests import graphs
from tests.operators import assert_agrees, compiled_outputs, node, normal

WINDOWS = {
    "halving": {"kernel_shape": [2, 2], "strides": [2, 2]},
    "overlapping": {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]},
    "asymmetric": {"kernel_shape": [3, 4], "strides": [1, 2], "pads": [0, 2, 1, 1]},
    "ceil": {"kernel_shape": [3, 2], "strides": [2, 3], "pads": [1, 0, 0, 1], "ceil_mode": 1},
    "dilated": {"kernel_shape": [2, 3], "dilations": [3, 2], "pads": [1, 2, 1, 2]},
    "same upper": {"kernel_shape": [3, 2], "strides": [2, 2], "auto_pad": "SAME_UPPER"},
    "same lower": {"kernel_shape": [2, 3], "strides": [2, 1], "auto_pad": "SAME_LOWER"},
    "valid": {"kernel_shape": [3, 3], "strides": [2, 2], "auto_pad": "VALID"},
}


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("case", WINDOWS)
def test_pooling_of_images(case: str, channels_last: bool, tmp_path: Path) -> None:
    attributes = WINDOWS[case]
    without_ceil = {name: value for name, value in attributes.items() if name != "ceil_mode"}
    nodes = [
        node("MaxPool", "x", "max", **attributes),
        node("AveragePool", "x", "mean", **attributes),
        node("AveragePool", "x", "whole", count_include_pad=1, **attributes),
        node("LpPool", "x", "l3", p=3, **without_ceil),
    ]
    x = normal(2, 17, 9, 11)
    assert_agrees(nodes, {"x": x}, tmp_path, outputs="max mean whole l3", opset=22, channels_last=channels_last)


@pytest.mark.parametrize("spatial", [(13,), (5, 6, 7)])
def test_pooling_of_signals_and_volumes(spatial: tuple[int, ...], tmp_path: Path) -> None:
    rank = len(spatial)
    attributes = {"kernel_shape": [3] * rank, "strides": [2] * rank, "pads": [1] * rank + [0] * rank}
    nodes = [node("MaxPool", "x", "max", **attributes), node("AveragePool", "x", "mean", **attributes)]
    assert_agrees(nodes, {"x": normal(2, 5, *spatial)}, tmp_path, outputs="max mean")


@pytest.mark.parametrize("column_major", [0, 1])
@pytest.mark.parametrize("channels_last", [False, True])
def test_indices_of_the_first_maximum(channels_last: bool, column_major: int, tmp_path: Path) -> None:
    pool = node(
        "MaxPool", "x", "y i", kernel_shape=[3, 3], strides=[2, 1], pads=[1, 1, 1, 1], storage_order=column_major
    )
    x = normal(2, 5, 7, 9)
    if not channels_last:
        x = np.round(x)  # many equal values
    assert_agrees(pool, {"x": x}, tmp_path, outputs="y i", channels_last=channels_last)


@pytest.mark.parametrize("dtype", ["uint8", "int8", "float64", "float16"])
def test_maximum_of_other_dtypes(dtype: str, tmp_path: Path) -> None:
    x = np.abs(normal(1, 17, 6, 7)) * 9 if dtype == "uint8" else normal(1, 17, 6, 7) * 9
    pool = node("MaxPool", "x", kernel_shape=[3, 3], pads=[1, 1, 1, 1])
    assert_agrees(pool, {"x": x.astype(dtype)}, tmp_path)


def test_nan_wins(tmp_path: Path) -> None:
    x = normal(1, 3, 4, 4)
    x[0, 1, 2, 2] = np.nan
    model = graphs.build([node("MaxPool", "x", kernel_shape=[2, 2], strides=[2, 2])], {"x": x.shape}, ["y"])
    found = compiled_outputs(model, {"x": x}, tmp_path)["y"]
    np.testing.assert_array_equal(found, x.reshape(1, 3, 2, 2, 2, 2).max(axis=(3, 5)))


REFUSED = {
    "wholly in the padding": {"kernel_shape": [2], "dilations": [4], "pads": [1, 1]},
    "starts in the padding": {"kernel_shape": [2], "strides": [3], "pads": [0, 1], "ceil_mode": 1},
}


@pytest.mark.parametrize("reason", REFUSED)
def test_windows_without_elements_are_refused(reason: str, tmp_path: Path) -> None:
    model = graphs.build([node("MaxPool", "x", **REFUSED[reason])], {"x": (1, 1, 3)}, ["y"])
    with pytest.raises(UnsupportedModelError, match=reason):
        compiled_outputs(model, {"x": normal(1, 1, 3)}, tmp_path)


def test_same_padding_is_split_as_onnx_says() -> None:
    made = ir.node("Conv", [], {"auto_pad": "SAME_UPPER", "strides": [2, 2]})
    assert window(made, (5, 6), (3, 3)) == Window((3, 3), (2, 2), (1, 1), ((1, 1), (0, 1)))
