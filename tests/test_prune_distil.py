"""Distillation in torch, where it is installed."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from edgec.errors import EdgecError
from edgec.graph import load_graph
from edgec.passes.pipeline import FLOAT, run
from edgec.passes.prune import distil as distillation
from edgec.passes.prune.activations import distance, outputs
from edgec.passes.prune.coupling import find_coupling
from edgec.passes.prune.distil import Distil, distil
from edgec.passes.prune.in_torch import stacked_runner
from edgec.passes.prune.pruning import Prune, Settings
from edgec.passes.prune.resolution import shrink_image
from edgec.pruning import prune_graph
from tests.graphs import load
from tests.prunable import CASES
from tests.test_prune_resolution import drawn, images

RUNNABLE = ("chain", "residual", "depthwise", "grouped", "squeeze_excite", "shuffle", "padded_shortcut", "mlp", "heads")


@pytest.mark.parametrize("name", RUNNABLE)
def test_torch_computes_what_onnx_runtime_does(name: str) -> None:
    torch = pytest.importorskip("torch")
    model = load(CASES[name]())
    shape = model.graph.inputs[0].shape
    assert shape is not None
    x = np.random.default_rng(1).standard_normal((3, *shape.numpy())).astype(np.float32)
    (wanted,) = outputs(model, [{"x": each} for each in x])
    (found,) = stacked_runner(model, {})({"x": torch.from_numpy(x)})
    np.testing.assert_allclose(found.numpy(), wanted, rtol=1e-4, atol=1e-4 * np.abs(wanted).max())


def test_distillation_does_no_harm(sample_model: Path) -> None:
    pytest.importorskip("torch")
    with np.load(sample_model.parent / "digits_calib.npz") as data:
        samples = [{"image": image.reshape(1, 1, 8, 8)} for image in data["image"][:40]]
    original = load_graph(sample_model)
    run(original, FLOAT)
    model = original.clone()
    Prune(Settings(0.5, repair=False, curve_samples=0)).apply(model)
    wanted, before = outputs(original, samples[::8]), outputs(model, samples[::8])
    distil(model, find_coupling(model).linears, original, samples, minutes=0.03, seed=0)
    assert distance(outputs(model, samples[::8]), wanted) < distance(before, wanted)


def test_torch_resizes_as_onnx_runtime_does() -> None:
    torch = pytest.importorskip("torch")
    model, samples = drawn(), images(5)
    shrink_image(model, (12, 8))
    (wanted,) = outputs(model, samples)
    (found,) = stacked_runner(model, {})({"x": torch.from_numpy(np.stack([each["x"] for each in samples]))})
    np.testing.assert_allclose(found.numpy(), wanted, rtol=1e-4, atol=1e-4 * np.abs(wanted).max())


def test_smaller_images_are_distilled_from_the_original(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where no channel goes."""
    pytest.importorskip("torch")
    original, model, samples = drawn(), drawn(), images(20)
    seen: list[ir.Model] = []
    monkeypatch.setattr(distillation, "distil", lambda model, linears, original, *rest: seen.append(original))
    reports = prune_graph(model, Settings(0.0, pixels=0.4, distil_minutes=1), samples)
    assert reports[-1].name == "distil"
    np.testing.assert_allclose(outputs(seen[0], samples), outputs(original, samples), rtol=1e-4)


def test_an_operator_that_torch_is_not_taught_is_a_sentence() -> None:
    pytest.importorskip("torch")
    model = load(CASES["depth_to_space"]())
    samples = [{"x": np.zeros((1, 3, 5, 7), np.float32)}] * 20
    with pytest.raises(EdgecError, match=r"DepthToSpace 'depthtospace.*' cannot be trained through"):
        Distil(model, samples, minutes=0.01)


def test_too_few_samples_are_a_sentence() -> None:
    pytest.importorskip("torch")
    with pytest.raises(EdgecError, match="distillation needs at least 16 samples, and --calib has 3"):
        Distil(load(CASES["chain"]()), images(3), minutes=1)


def test_without_torch_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(EdgecError, match=r"run pip install 'edgec\[train\]'"):
        Distil(load(CASES["chain"]()), [], minutes=1)
