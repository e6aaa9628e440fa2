"""GridSample, AffineGrid and RoiAlign against ONNX Runtime."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import numpy as np
import pytest
from onnx.reference import ReferenceEvaluator

from edgec.errors import UnsupportedModelError
from tests import graphs
from tests.operators import assert_agrees, compiled_outputs, node, normal

INPUT = normal(2, 5, 7, 9)
GRID = normal(2, 4, 6, 2) * 1.3
"""Reaches far outside of [-1, 1]."""


@pytest.mark.parametrize("mode", ["linear", "nearest", "cubic"])
@pytest.mark.parametrize("padding", ["zeros", "border", "reflection"])
@pytest.mark.parametrize("align", [0, 1])
def test_grid_sample(mode: str, padding: str, align: int, tmp_path: Path) -> None:
    """By ONNX's own reference: ONNX Runtime clamps both coordinates where one is outside, which cubic shows."""
    made = node("GridSample", "x g", mode=mode, padding_mode=padding, align_corners=align)
    model = graphs.build([made], {"x": INPUT.shape, "g": GRID.shape}, ["y"], opset=20)
    inputs = {"x": INPUT, "g": GRID}
    (wanted,) = ReferenceEvaluator(model).run(None, inputs)
    np.testing.assert_allclose(compiled_outputs(model, inputs, tmp_path)["y"], wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize("extent", [1, 2])
@pytest.mark.parametrize("align", [0, 1])
def test_grid_sample_reflects_tiny_axes(extent: int, align: int, tmp_path: Path) -> None:
    made = node("GridSample", "x g", mode="cubic", padding_mode="reflection", align_corners=align)
    x = normal(2, 3, extent, 5)
    assert_agrees(made, {"x": x, "g": np.clip(GRID, -1, 1)}, tmp_path, opset=20, channels_last=True)


def test_grid_sample_of_volumes(tmp_path: Path) -> None:
    assert_agrees(
        node("GridSample", "x g"), {"x": normal(1, 2, 3, 5, 4), "g": normal(1, 2, 4, 3, 3)}, tmp_path, opset=20
    )


def test_a_grid_of_nonsense_reads_no_foreign_memory(tmp_path: Path) -> None:
    model = graphs.build([node("GridSample", "x g")], {"x": (1, 1, 3, 5), "g": (1, 1, 4, 2)}, ["y"], opset=20)
    wild = np.array([[[[np.nan, 0], [np.inf, -np.inf], [3e38, 0], [-1e12, 1e9]]]], np.float32)
    found = compiled_outputs(model, {"x": np.ones((1, 1, 3, 5), np.float32), "g": wild}, tmp_path)["y"]
    assert found.ravel()[1:].tolist() == [0, 0, 0]


@pytest.mark.parametrize(("rank", "align"), list(product([2, 3], [0, 1])))
def test_affine_grid(rank: int, align: int, tmp_path: Path) -> None:
    theta, size = normal(2, rank, rank + 1), np.array([2, 3, 4, 5, 6][: rank + 2])
    made = node("AffineGrid", "t s", align_corners=align)
    assert_agrees(made, {"t": theta}, tmp_path, {"s": size}, opset=20)


@pytest.mark.parametrize("mode", ["avg", "max"])
@pytest.mark.parametrize("transformation", ["half_pixel", "output_half_pixel"])
def test_roi_align(mode: str, transformation: str, tmp_path: Path) -> None:
    made = node("RoiAlign", "x r b", mode=mode, coordinate_transformation_mode=transformation, output_height=3,
                output_width=2, sampling_ratio=2, spatial_scale=0.5)  # fmt: skip
    regions = np.array([[0, 0, 9, 7], [3, 2, 15.5, 13], [-4, -3, 22, 19], [6, 6, 6, 6]], np.float32)
    assert_agrees(made, {"x": INPUT, "r": regions, "b": np.array([1, 0, 0, 1])}, tmp_path, channels_last=True)


def test_roi_align_with_a_varying_number_of_samples_is_refused(tmp_path: Path) -> None:
    shapes = {"x": (1, 1, 4, 4), "r": (1, 4), "b": (1,)}
    model = graphs.build([node("RoiAlign", "x r b")], shapes, ["y"], types={"b": graphs.INT64})
    with pytest.raises(UnsupportedModelError, match="sampling_ratio 0"):
        compiled_outputs(model, {}, tmp_path)
