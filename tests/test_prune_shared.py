"""Pruning of the larger trained models beside the project."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnx_ir.passes.common as common_passes
import pytest

from edgec import reference
from edgec.frontend.shapes import infer_shapes
from edgec.frontend.values import constant_of
from edgec.graph import load_graph
from edgec.lowering import lower
from edgec.passes.pipeline import FLOAT, run
from edgec.passes.prune.activations import open_session
from edgec.passes.prune.coupling import find_coupling
from edgec.passes.prune.products import own_biases
from edgec.passes.prune.pruning import Prune, Settings, remove_dead
from edgec.passes.prune.resolution import ReduceResolution
from tests.shared_models import EVALUATION, IMAGENET, MOBILENET, MODELS, SharedModel
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
    """Judged in float64: in float32 the order of a sum alone moves outputs of deep models by more than is asked for."""
    model = load_folded(shared, each)
    own_biases(model)
    coupling = find_coupling(model)
    kill_units(model, some_units(model, coupling, seed=7), coupling)
    samples = each.samples(shared, 3)
    wanted = _outputs(model, each, samples)
    _, count = remove_dead(model)
    assert count > 0
    for ours, theirs in zip(_outputs(model, each, samples), wanted, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-12 * float(np.abs(theirs).max()))


def _outputs(model: ir.Model, each: SharedModel, samples: np.ndarray) -> list[np.ndarray]:
    """By the reference, in float64."""
    program = lower(_widened(model))
    runs = (reference.run(program, {each.input: sample[np.newaxis].astype(np.float64)}) for sample in samples)
    return [output for run in runs for output in run.values()]


def _widened(model: ir.Model) -> ir.Model:
    """The same model in float64, but for the scales of a Resize, which ONNX has in float32 only."""
    copy = model.clone()
    common_passes.InlinePass()(copy)
    infer_shapes(copy)
    for value in copy.graph.initializers.values():
        array, scales = constant_of(value), any(node.op_type == "Resize" for node, _ in value.uses())
        if array is not None and array.dtype == np.float32 and not scales:
            value.const_value = ir.tensor(array.astype(np.float64), name=value.name)
            value.type = ir.TensorType(ir.DataType.DOUBLE)
    for value in (*copy.graph.inputs, *(output for node in copy.graph for output in node.outputs)):
        if value.dtype == ir.DataType.FLOAT:
            value.type = ir.TensorType(ir.DataType.DOUBLE)  # copies share their types' objects
    return copy


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


def test_a_quarter_of_mobilenet_can_go_by_smaller_images(shared: Path) -> None:
    """Without labels or training: far nearer to the float model than by channels, though 5 points below it."""
    model = load_folded(shared, MOBILENET)
    step = ReduceResolution(0.25, MOBILENET.calibration_samples(shared))
    report = step.apply(model)
    assert step.size == (192, 192)
    assert report.after.macs <= 0.75 * report.before.macs
    assert MOBILENET.labels is not None
    labels = MOBILENET.labels(shared)
    images = MOBILENET.load(shared, MOBILENET.evaluation, EVALUATION)
    session = open_session(model)
    found = [session.run(None, {MOBILENET.input: image[np.newaxis]})[0].argmax() for image in images]
    assert np.mean(np.array(found) == labels) >= 0.86 - 0.06
