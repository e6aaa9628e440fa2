"""Pruning of the larger trained models beside the project."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from edgec.graph import load_graph
from edgec.passes.pipeline import FLOAT, run
from edgec.passes.prune.activations import open_session
from edgec.passes.prune.coupling import find_coupling
from edgec.passes.prune.products import own_biases
from edgec.passes.prune.pruning import Prune, Settings, remove_dead
from tests.shared_models import IMAGENET, MODELS, SharedModel
from tests.test_prune_coupling import kill_units, some_units

pytestmark = pytest.mark.heavy


def load_folded(shared: Path, each: SharedModel) -> ir.Model:
    """The model as the passes leave it, its batch 1."""
    proto = onnx.load(each.onnx(shared))
    declared = next(value for value in proto.graph.input if value.name == each.input)
    axes = declared.type.tensor_type.shape.dim
    pinned = None if axes[0].dim_value else {each.input: (1, *(axis.dim_value for axis in axes[1:]))}
    model = load_graph(proto, shapes=pinned)
    run(model, FLOAT)
    return model


@pytest.mark.parametrize("each", MODELS, ids=lambda each: each.name)
def test_dead_channels_go_at_no_loss(each: SharedModel, shared: Path) -> None:
    """Channels whose weights and biases are zero: what changes is the order in which float32 numbers are summed up."""
    model = load_folded(shared, each)
    own_biases(model)
    coupling = find_coupling(model)
    kill_units(model, some_units(model, coupling, seed=7), coupling)
    samples = each.samples(shared, 3)
    wanted = _outputs(model, each, samples)
    _, count = remove_dead(model)
    assert count > 0
    for ours, theirs in zip(_outputs(model, each, samples), wanted, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=2e-6 * float(np.abs(theirs).max()))


def _outputs(model: ir.Model, each: SharedModel, samples: np.ndarray) -> list[np.ndarray]:
    session = open_session(model)
    return [output for sample in samples for output in session.run(None, {each.input: sample[np.newaxis]})]


def test_half_of_resnet20_can_go(shared: Path) -> None:
    """Without labels: better than magnitudes alone by far, on images of the training split that no step sees."""
    with np.load(shared / "data" / "cifar10_train.npz") as data:
        images, labels = IMAGENET(data["images"][:1000]), data["labels"][500:1000]
    samples = [{"input": image[np.newaxis]} for image in images]
    each = next(model for model in MODELS if model.name == "resnet20")

    def accuracy(**choices: object) -> float:
        model = load_folded(shared, each)
        macs = Prune(Settings(0.5, **choices), samples[:500]).apply(model).after.macs  # type: ignore[arg-type]
        assert macs <= 0.5 * 40_551_040
        session = open_session(model)
        found = [session.run(None, sample)[0].argmax() for sample in samples[500:]]
        return float(np.mean(np.array(found) == labels))

    alone = accuracy(score="magnitude", repair=False, curve_samples=0)
    compensated, repaired = accuracy(repair=False), accuracy()
    assert compensated >= alone + 0.05
    assert repaired >= compensated + 0.05
