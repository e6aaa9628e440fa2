"""What the tests share: the sample model and its data, and the larger models beside the project."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper

import edgec
from tests.programs import model

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with larger trained models and their data, which is no part of the project."""
    folder = Path(os.environ.get("EDGEC_SHARED", ROOT.parent / "shared"))
    if not (folder / "models").is_dir():
        pytest.skip(f"no shared models in {folder}; set EDGEC_SHARED to their folder")
    return folder


@pytest.fixture(scope="session")
def sample_model() -> Path:
    """The RepVGG-style digits classifier: input ``image`` float32 [1, 1, 8, 8], output ``logits`` [1, 10]."""
    return ROOT / "samples" / "models" / "digits_repvgg.onnx"


@pytest.fixture(scope="session")
def sample_data() -> dict[str, np.ndarray]:
    """Its held-out split: ``image`` float32 [450, 1, 8, 8] and ``labels`` int64 [450]."""
    with np.load(ROOT / "samples" / "models" / "digits_eval.npz") as data:
        return dict(data)


@pytest.fixture(scope="session")
def emulator() -> str:
    """The URL of an emulated aarch64 board."""
    for tool in ("qemu-aarch64", "aarch64-linux-gnu-gcc"):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not installed; .ci/install-tools does it")
    return "qemu"


@pytest.fixture(scope="session")
def emulator_32() -> str:
    """The URL of an emulated 32-bit ARM board."""
    for tool in ("qemu-arm", "arm-linux-gnueabihf-gcc"):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not installed; .ci/install-tools does it")
    return "qemu"


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Conv, Relu, Flatten, Gemm: input ``x`` float32 [1, 3, 7, 5], output ``y`` [1, 4]."""
    generator = np.random.default_rng(5)
    nodes = [
        helper.make_node("Conv", ["x", "w", "b"], ["c"], name="conv"),
        helper.make_node("Relu", ["c"], ["r"], name="relu"),
        helper.make_node("Flatten", ["r"], ["f"], name="flatten"),
        helper.make_node("Gemm", ["f", "g"], ["y"], name="gemm"),
    ]
    shapes = {"w": (5, 3, 3, 3), "b": (5,), "g": (75, 4)}
    weights = {name: generator.standard_normal(shape, np.float32) for name, shape in shapes.items()}
    path = tmp_path_factory.mktemp("tiny") / "tiny.onnx"
    onnx.save(model(nodes, {"x": (1, 3, 7, 5)}, {"y": (1, 4)}, weights), path)
    return path


@pytest.fixture(scope="session")
def tiny_artifact(tiny_model: Path) -> Path:
    """The tiny model, compiled for this machine."""
    return edgec.compile(tiny_model, "host", tiny_model.with_suffix(".so")).path


@pytest.fixture(scope="session")
def tiny_board_artifact(tiny_model: Path) -> Path:
    """The tiny model, compiled for a Raspberry Pi 4."""
    return edgec.compile(tiny_model, "rpi4", tiny_model.with_name("tiny_rpi4.so")).path
