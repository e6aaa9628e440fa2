"""The sample model from end to end: compiled, run on its whole held-out split, compared with ONNX Runtime."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

import edgec
from edgec import Compiled
from tests.agreement import TOLERANCE, artifact_outputs, onnxruntime_outputs, same_top1, worst_error

EMULATED_SAMPLES = 10


@pytest.fixture(scope="module")
def compiled(sample_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Compiled:
    return edgec.compile(sample_model, "host", tmp_path_factory.mktemp("host") / "digits.so")


@pytest.fixture(scope="module")
def wanted(sample_model: Path, sample_data: dict[str, np.ndarray]) -> np.ndarray:
    """ONNX Runtime's logits [450, 10]."""
    return onnxruntime_outputs(sample_model, "image", sample_data["image"])


def test_is_exported_unfolded(sample_model: Path) -> None:
    operators = [node.op_type for node in onnx.load(sample_model).graph.node]
    assert operators.count("BatchNormalization") == 17
    assert operators.count("Conv") == 14


def test_splits_do_not_overlap(sample_model: Path, sample_data: dict[str, np.ndarray]) -> None:
    with np.load(sample_model.with_name("digits_calib.npz")) as data:
        calibration = {image.tobytes() for image in data["image"]}
    assert not calibration & {image.tobytes() for image in sample_data["image"]}


def test_agrees_with_onnxruntime(compiled: Compiled, sample_data: dict[str, np.ndarray], wanted: np.ndarray) -> None:
    found = artifact_outputs(compiled.path, "image", sample_data["image"])
    assert worst_error(found, wanted) <= TOLERANCE
    assert same_top1(found, wanted)


def test_is_accurate(compiled: Compiled, sample_data: dict[str, np.ndarray]) -> None:
    found = artifact_outputs(compiled.path, "image", sample_data["image"])
    assert np.mean(found.argmax(1) == sample_data["labels"]) >= 0.97


def test_norms_sums_and_activations_take_no_step_of_their_own(sample_model: Path, compiled: Compiled) -> None:
    operators = {node.name: node.op_type for node in onnx.load(sample_model).graph.node}
    for nodes in compiled.report.nodes:
        assert {operators[node] for node in nodes} & {"Conv", "GlobalAveragePool", "Gemm"}, nodes


@pytest.mark.parametrize("target", ["rpi3", "rpi4", "rpi5"])
def test_agrees_on_emulated_boards(
    target: str,
    sample_model: Path,
    sample_data: dict[str, np.ndarray],
    wanted: np.ndarray,
    tmp_path: Path,
    emulator: str,
) -> None:
    board = edgec.compile(sample_model, target, tmp_path / "digits.so")
    found = artifact_outputs(board.path, "image", sample_data["image"][:EMULATED_SAMPLES], emulator)
    assert worst_error(found, wanted) <= TOLERANCE
    assert same_top1(found, wanted)
