"""Real trained models beside the project: every one compiles, agrees with ONNX Runtime, and stays small."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
from onnx import numpy_helper

import edgec
from edgec import Compiled
from tests.agreement import TOLERANCE, artifact_outputs, onnxruntime_outputs, same_top1, worst_error
from tests.shared_models import EMULATED, MOBILENET, MODELS, SharedModel

EMULATED_SAMPLES = 3

every_model = pytest.mark.parametrize("model", MODELS, ids=lambda model: model.name)
emulated_model = pytest.mark.parametrize("model", EMULATED, ids=lambda model: model.name)

Compile = Callable[..., Compiled]


@pytest.fixture(scope="module")
def compiled(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Compile:
    """Compiles a model for a target, at most once."""
    folder = tmp_path_factory.mktemp("artifacts")
    done: dict[tuple[str, str], Compiled] = {}

    def compile(model: SharedModel, target: str = "host") -> Compiled:
        key = (model.name, target)
        if key not in done:
            shapes = {model.input: (1, *model.samples(shared, 1).shape[1:])}
            output = folder / f"{model.name}-{target}.so"
            done[key] = edgec.compile(model.onnx(shared), target, output, shapes=shapes)
        return done[key]

    return compile


@every_model
def test_agrees_with_onnxruntime(model: SharedModel, shared: Path, compiled: Compile) -> None:
    samples = model.samples(shared)
    assert len(samples) >= 20
    wanted = onnxruntime_outputs(model.onnx(shared), model.input, samples)
    found = artifact_outputs(compiled(model).path, model.input, samples)
    assert worst_error(found, wanted) <= TOLERANCE
    assert not model.classifier or same_top1(found, wanted)


@emulated_model
def test_agrees_on_an_emulated_board(model: SharedModel, shared: Path, compiled: Compile, emulator: str) -> None:
    samples = model.samples(shared)
    wanted = onnxruntime_outputs(model.onnx(shared), model.input, samples)
    found = artifact_outputs(compiled(model, "rpi4").path, model.input, samples[:EMULATED_SAMPLES], emulator)
    assert worst_error(found, wanted) <= TOLERANCE
    assert not model.classifier or same_top1(found, wanted)


@every_model
def test_arena_is_near_the_largest_live_set(model: SharedModel, compiled: Compile) -> None:
    manifest = compiled(model).manifest
    assert manifest["arena_bytes"] <= 1.15 * manifest["arena_lower_bound"]


@every_model
def test_artifact_is_little_more_than_its_weights(model: SharedModel, shared: Path, compiled: Compile) -> None:
    weights = min(compiled(model).manifest["weights_bytes"], weight_bytes(model.onnx(shared)))
    size = compiled(model).path.stat().st_size
    assert size <= 1.05 * weights + 100_000


def weight_bytes(path: Path) -> int:
    """What the initialisers and constants of the model hold."""
    graph = onnx.load(path).graph
    constants = [node.attribute[0].t for node in graph.node if node.op_type == "Constant"]
    return sum(numpy_helper.to_array(tensor).nbytes for tensor in [*graph.initializer, *constants])


def test_compiles_in_reasonable_time(shared: Path, tmp_path: Path) -> None:
    start = time.perf_counter()
    edgec.compile(MOBILENET.onnx(shared), "host", tmp_path / "model.so")
    assert time.perf_counter() - start < 30
