"""Resize in all its modes, in both memory orders, against ONNX Runtime."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import numpy as np
import pytest

from edgec.errors import UnsupportedModelError
from edgec.graph import load_graph
from edgec.lowering import lower
from tests import graphs
from tests.operators import assert_agrees, compiled_outputs, node, normal

TRANSFORMATIONS = ["half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric", "half_pixel_symmetric"]
NEAREST = ["round_prefer_floor", "round_prefer_ceil", "floor", "ceil"]
INPUT = normal(2, 5, 7, 9)


def scales(*values: float) -> dict[str, np.ndarray]:
    return {"s": np.array(values, np.float32)}


def sizes(*values: int) -> dict[str, np.ndarray]:
    return {"n": np.array(values, np.int64)}


@pytest.mark.parametrize("mode", ["nearest", "linear", "cubic"])
@pytest.mark.parametrize("transformation", TRANSFORMATIONS)
def test_resizes_to_sizes(mode: str, transformation: str, tmp_path: Path) -> None:
    made = node("Resize", "x - - n", mode=mode, coordinate_transformation_mode=transformation)
    assert_agrees(made, {"x": INPUT}, tmp_path, sizes(2, 5, 17, 4), opset=19, channels_last=True)


@pytest.mark.parametrize(("height", "width"), [(2.0, 3.0), (0.5, 2.0), (1.7, 0.6), (1.0, 4.0)])
@pytest.mark.parametrize("mode", ["nearest", "linear", "cubic"])
@pytest.mark.parametrize("channels_last", [False, True])
def test_resizes_by_scales(mode: str, height: float, width: float, channels_last: bool, tmp_path: Path) -> None:
    made = node("Resize", "x - s", mode=mode)
    assert_agrees(made, {"x": INPUT}, tmp_path, scales(1, 1, height, width), channels_last=channels_last)


@pytest.mark.parametrize(("rounding", "transformation"), list(product(NEAREST, ["asymmetric", "half_pixel"])))
def test_rounds_as_asked(rounding: str, transformation: str, tmp_path: Path) -> None:
    """At scale 2 and 2/3 coordinates fall halfway between elements."""
    made = node("Resize", "x - s", coordinate_transformation_mode=transformation, nearest_mode=rounding)
    assert_agrees(made, {"x": INPUT}, tmp_path, scales(1, 1, 2, 2 / 3), channels_last=True)


@pytest.mark.parametrize("attributes", [{"cubic_coeff_a": -0.5}, {"exclude_outside": 1}])
def test_cubic_parameters(attributes: dict[str, float], tmp_path: Path) -> None:
    made = node("Resize", "x - s", mode="cubic", **attributes)
    assert_agrees(made, {"x": INPUT}, tmp_path, scales(1, 1, 2.3, 0.7))


@pytest.mark.parametrize("mode", ["nearest", "linear", "cubic"])
def test_crops_and_extrapolates(mode: str, tmp_path: Path) -> None:
    made = node("Resize", "x r - n", mode=mode, coordinate_transformation_mode="tf_crop_and_resize",
                extrapolation_value=7.5)  # fmt: skip
    crop = {"r": np.array([0, 0, -0.3, 0.25, 1, 1, 0.8, 1.4], np.float32)}
    assert_agrees(made, {"x": INPUT}, tmp_path, crop | sizes(2, 5, 11, 6), channels_last=True)


@pytest.mark.parametrize("policy", ["not_larger", "not_smaller"])
def test_keeps_the_aspect(policy: str, tmp_path: Path) -> None:
    made = node("Resize", "x - - n", mode="linear", axes=[2, 3], keep_aspect_ratio_policy=policy)
    assert_agrees(made, {"x": INPUT}, tmp_path, sizes(12, 14))


@pytest.mark.parametrize("mode", ["linear", "cubic"])
@pytest.mark.parametrize("channels_last", [False, True])
def test_antialiases_what_shrinks(mode: str, channels_last: bool, tmp_path: Path) -> None:
    """ONNX Runtime leaves out what lies outside of the image, as ``exclude_outside`` says."""
    made = node("Resize", "x - s", mode=mode, antialias=1, exclude_outside=1)
    assert_agrees(made, {"x": normal(1, 3, 17, 23)}, tmp_path, scales(1, 1, 0.35, 0.6), channels_last=channels_last)


@pytest.mark.parametrize("dtype", ["float16", "float64", "int8", "uint8", "int32"])
def test_nearest_takes_every_dtype(dtype: str, tmp_path: Path) -> None:
    x = normal(1, 3, 5, 4, dtype=dtype)
    made = node("Resize", "x - s", coordinate_transformation_mode="asymmetric", nearest_mode="floor")
    model = graphs.build(
        [made], {"x": x.shape}, ["y"], scales(1, 1, 2, 3), types={"x": graphs.helper.np_dtype_to_tensor_dtype(x.dtype)}
    )
    found = compiled_outputs(model, {"x": x}, tmp_path)["y"]
    np.testing.assert_array_equal(found, x.repeat(2, axis=2).repeat(3, axis=3))


def test_signals_and_volumes(tmp_path: Path) -> None:
    nodes = [node("Resize", "x - s", mode="linear")]
    assert_agrees(nodes, {"x": normal(2, 3, 17)}, tmp_path, scales(1, 1, 1.5))
    assert_agrees(nodes, {"x": normal(1, 2, 3, 5, 4)}, tmp_path, scales(1, 1, 2, 1.5, 0.5))


def test_doubling_is_a_copy_without_index_tables() -> None:
    made = node("Resize", "x - s", coordinate_transformation_mode="asymmetric", nearest_mode="floor")
    (step,) = lower(load_graph(graphs.build([made], {"x": (1, 3, 5, 7)}, ["y"], scales(1, 1, 2, 2)))).steps
    assert len(step.inputs) == 1


def test_linear_on_integers_is_refused(tmp_path: Path) -> None:
    made = node("Resize", "x - s", mode="linear")
    model = graphs.build([made], {"x": (1, 1, 4, 4)}, ["y"], scales(1, 1, 2, 2), types={"x": graphs.INT64})
    with pytest.raises(UnsupportedModelError, match="linear Resize of int64"):
        compiled_outputs(model, {}, tmp_path)
