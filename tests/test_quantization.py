"""Quantised operators: equal to ONNX Runtime to the last bit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto

from edgec.errors import UnsupportedModelError
from edgec.lowering.quantization import promised_bits
from edgec.scalar import WHOLE, WORD
from tests import graphs
from tests.operators import assert_agrees, compiled_outputs, node, normal

DTYPES = ["uint8", "int8", "uint16", "int16"]


def integers(dtype: str, *shape: int) -> np.ndarray:
    """Every part of the dtype's range, the same for the same shape."""
    limits = np.iinfo(dtype)
    return np.random.default_rng(shape).integers(limits.min, limits.max, shape, dtype, endpoint=True)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("granularity", ["tensor", "channel", "block"])
def test_quantize_and_dequantize(granularity: str, dtype: str, tmp_path: Path) -> None:
    """Halves round to even, and what is out of range saturates."""
    x = normal(2, 6, 5, 7) * 200
    x[0, 0, 0, :4] = [1e9, -1e9, 0.25, 0.75]
    shape = {"tensor": (), "channel": (6,), "block": (2, 2, 5, 7)}[granularity]
    scale = np.asarray(np.abs(normal(*shape)) + 0.5 if shape else 0.5, np.float32)
    constants = {"s": scale, "z": integers(dtype, *shape) if shape else np.array(7, dtype)}
    attributes = {"axis": 1, "block_size": 3} if granularity == "block" else {"axis": 1}
    nodes = [
        node("QuantizeLinear", "x s z", "q", **attributes),
        node("DequantizeLinear", "q s z", "d", **attributes),
    ]
    assert_agrees(nodes, {"x": x}, tmp_path, constants, outputs="q d", opset=21)


def test_quantizing_feature_maps(tmp_path: Path) -> None:
    constants = {"s": np.linspace(0.01, 0.1, 17, dtype=np.float32), "z": integers("int8", 17)}
    x = np.round(normal(2, 17, 5, 7) * 8) / 8
    quantize = [node("QuantizeLinear", "x s z", "q"), node("DequantizeLinear", "q s z", "y")]
    model = graphs.build([node("Relu", "x", "r"), *quantize][1:], {"x": x.shape}, ["y"], constants)
    wanted = graphs.run(model, {"x": x})["y"]
    np.testing.assert_array_equal(compiled_outputs(model, {"x": x}, tmp_path)["y"], wanted)


def test_infinities_saturate_and_nan_is_the_least(tmp_path: Path) -> None:
    x = np.array([np.inf, -np.inf, np.nan, 3.0], np.float32)
    constants = {"s": np.array(0.5, np.float32), "z": np.array(5, np.int8)}
    model = graphs.build([node("QuantizeLinear", "x s z")], {"x": x.shape}, ["y"], constants)
    assert compiled_outputs(model, {"x": x}, tmp_path)["y"].tolist() == [127, -128, -128, 11]


def test_scales_computed_while_running(tmp_path: Path) -> None:
    inputs = {"x": normal(3, 5, 7) * 9, "s": np.array(0.3, np.float32)}
    assert_agrees(node("QuantizeLinear", "x s z"), inputs, tmp_path, {"z": np.array(3, np.int8)})


def test_scales_of_several_axes_need_a_block_size(tmp_path: Path) -> None:
    constants = {"s": np.ones((2, 2), np.float32), "z": np.zeros((2, 2), np.int8)}
    model = graphs.build([node("QuantizeLinear", "x s z")], {"x": (2, 6)}, ["y"], constants, opset=21)
    with pytest.raises(UnsupportedModelError, match="set block_size on the node"):
        compiled_outputs(model, {}, tmp_path)


@pytest.mark.parametrize("values", [normal(3, 5, 7) * 9, normal(4, 4) + 7, normal(4, 4) - 7])
def test_dynamic_quantization(values: np.ndarray, tmp_path: Path) -> None:
    """The range always holds 0."""
    assert_agrees(node("DynamicQuantizeLinear", "x", "y s z"), {"x": values}, tmp_path, outputs="y s z")


CONVOLUTIONS = {
    "plain": ((1, 5, 9, 7), (17, 5, 3, 3), {"pads": [1, 0, 2, 1], "strides": [2, 1]}),
    "pointwise": ((2, 16, 5, 7), (8, 16, 1, 1), {}),
    "grouped": ((1, 6, 7, 7), (4, 3, 3, 3), {"group": 2, "dilations": [2, 1]}),
    "depthwise": ((1, 17, 7, 6), (17, 1, 3, 3), {"group": 17, "pads": [1, 1, 1, 1]}),
}


@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("dtypes", [("uint8", "int8"), ("int8", "int8"), ("uint8", "uint8")])
@pytest.mark.parametrize("case", CONVOLUTIONS)
def test_qlinear_convolution(case: str, dtypes: tuple[str, str], per_channel: bool, tmp_path: Path) -> None:
    shape, kernel, attributes = CONVOLUTIONS[case]
    channels = (kernel[0],) if per_channel else ()
    weight_zero = np.full(channels, 0 if dtypes[1] == "int8" else 120, dtypes[1])
    weight_scale = np.asarray(np.random.default_rng(5).uniform(0.001, 0.02, channels), np.float32)
    constants = {
        "xs": np.array(0.02, np.float32), "xz": np.array(13, dtypes[0]), "w": integers(dtypes[1], *kernel),
        "ws": weight_scale, "wz": weight_zero, "ys": np.array(0.31, np.float32), "yz": np.array(9, dtypes[0]),
        "b": np.arange(kernel[0], dtype=np.int32) * 100 - 500,
    }  # fmt: skip
    made = node("QLinearConv", "x xs xz w ws wz ys yz b", **attributes)
    assert_agrees(made, {"x": integers(dtypes[0], *shape)}, tmp_path, constants)


@pytest.mark.parametrize("known", [False, True])
@pytest.mark.parametrize("dtype", ["uint8", "int8"])
def test_integer_products(dtype: str, known: bool, tmp_path: Path) -> None:
    constants = {"b": integers(dtype, 33, 17), "p": np.array(3, dtype), "q": integers(dtype, 17)}
    inputs = {"a": integers(dtype, 2, 5, 33)}
    given = inputs if known else {**inputs, **constants}
    assert_agrees(node("MatMulInteger", "a b p q"), given, tmp_path, constants if known else {})


def test_integer_products_with_a_zero_point_for_each_row(tmp_path: Path) -> None:
    """ONNX Runtime has zero points of the left side only for the whole of it."""
    a, b, rows = integers("uint8", 5, 7), integers("uint8", 7, 3), integers("uint8", 5)
    model = graphs.build(
        [node("MatMulInteger", "a b p")], {"a": a.shape}, ["y"], {"b": b, "p": rows}, types={"a": TensorProto.UINT8}
    )
    wanted = (a.astype(np.int32) - rows.astype(np.int32)[:, None]) @ b.astype(np.int32)
    np.testing.assert_array_equal(compiled_outputs(model, {"a": a}, tmp_path)["y"], wanted)


@pytest.mark.parametrize("dtype", ["uint8", "int8"])
@pytest.mark.parametrize("per_column", [False, True])
def test_qlinear_product(per_column: bool, dtype: str, tmp_path: Path) -> None:
    columns = (17,) if per_column else ()
    constants = {
        "as": np.array(0.01, np.float32), "az": np.array(3, dtype), "b": integers(dtype, 33, 17),
        "bs": np.full(columns, 0.02, np.float32) * (1 + np.arange(17) % 3 if per_column else 1),
        "bz": np.full(columns, 4, dtype), "ys": np.array(0.3, np.float32), "yz": np.array(5, dtype),
    }  # fmt: skip
    constants["bs"] = np.asarray(constants["bs"], np.float32)
    assert_agrees(node("QLinearMatMul", "a as az b bs bz ys yz"), {"a": integers(dtype, 2, 5, 33)}, tmp_path, constants)


@pytest.mark.parametrize(("zero", "room"), [(0, 32766), (-128, 32638), (200, 32566)])
def test_results_are_promised_to_fit_16_bits_only_where_all_inputs_lead_there(zero: int, room: int) -> None:
    """The worst input of 8 bits takes the most negative x for negative weights, and the largest for the others."""
    rows, start = np.array([[3, -2], [-5, 0]]), np.array([10, -20])
    worst = max(127 * 3 + 128 * 2 + 10, 127 * 5 + 20)
    for largest, bits in ((room - 1, WORD), (room + 2, WHOLE), (2.0**31, 0)):
        multiplier = np.array([largest / worst], np.float32)
        assert promised_bits(rows, start, multiplier, "int8", zero) == bits
