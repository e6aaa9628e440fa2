"""What 8 bits cost trained models: calibrated on the calibration split, measured on the evaluation split."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from edgec.graph import load_graph
from edgec.passes.pipeline import run
from edgec.passes.quantize import Recipe, quantize
from samples.accuracy import decibels, onnxruntime_predictor, quantised_by_edgec
from tests import shared_models
from tests.shared_models import SharedModel

heavy = pytest.mark.heavy


def predictions(model: SharedModel, shared: Path) -> tuple[np.ndarray, np.ndarray]:
    """Outputs of edgec's QDQ model and of the float model on the evaluation split."""
    samples = model.samples(shared, model.evaluation)
    found = onnxruntime_predictor(quantised_by_edgec(model, shared))(samples)
    return found, onnxruntime_predictor(str(model.onnx(shared)))(samples)


def classes(output: np.ndarray) -> np.ndarray:
    return np.asarray(output.reshape(len(output), -1).argmax(axis=1))


@pytest.mark.parametrize("observer", ["auto", "minmax", "percentile", "mse", "entropy"])
def test_sample_model_keeps_its_accuracy(
    observer: str, sample_model: Path, sample_data: dict[str, np.ndarray]
) -> None:
    with np.load(sample_model.with_name("digits_calib.npz")) as data:
        images = data["image"]
    graph = load_graph(sample_model)
    run(graph)
    samples = [{"image": image[None]} for image in images]
    found = quantize(graph, samples, Recipe(observer=observer, refine=observer == "auto"))
    predict = onnxruntime_predictor(ir.to_proto(found.model).SerializeToString())
    labels = sample_data["labels"]
    exact = classes(onnxruntime_predictor(str(sample_model))(sample_data["image"])) == labels
    assert (classes(predict(sample_data["image"])) == labels).sum() >= exact.sum() - 2


@pytest.mark.parametrize(
    ("model", "points"),
    [
        (shared_models.KWS, 0.2),
        (shared_models.RESNET8, 0.2),
        pytest.param(shared_models.RESNET20, 0.2, marks=heavy),
        pytest.param(shared_models.REPVGG, 0.2, marks=heavy),
        pytest.param(shared_models.VIT, 0.5, marks=heavy),
        pytest.param(shared_models.MOBILENET, 0.5, marks=heavy),
        pytest.param(shared_models.SQUEEZENET, 0.5, marks=heavy),
        pytest.param(shared_models.MNIST, 0.2, marks=heavy),
    ],
    ids=lambda each: getattr(each, "name", None),
)
def test_classifiers_keep_their_accuracy(model: SharedModel, points: float, shared: Path) -> None:
    found, wanted = predictions(model, shared)
    assert model.labels is not None
    labels = model.labels(shared)[: len(found)]
    drop = (classes(wanted) == labels).mean() - (classes(found) == labels).mean()
    assert 100 * drop <= points + 1e-9


@heavy
def test_decisions_agree(shared: Path) -> None:
    found, wanted = predictions(shared_models.VWW, shared)
    assert (classes(found) == classes(wanted)).mean() >= 0.98


@heavy
@pytest.mark.parametrize(
    ("model", "least"),
    [(shared_models.AUTOENCODER, 30), (shared_models.FASTESTDET, 20), (shared_models.SINET, 20)],
    ids=lambda each: getattr(each, "name", None),
)
def test_maps_keep_their_signal(model: SharedModel, least: float, shared: Path) -> None:
    found, wanted = predictions(model, shared)
    assert decibels(found, wanted) >= least


@heavy
@pytest.mark.xfail(
    reason="the person has 0.979 (both classes 0.986); 16 bits in every layer would be slower than floats"
)
def test_masks_overlap(shared: Path) -> None:
    """SINet's second channel is the person."""
    found, wanted = (output.argmax(axis=1) == 1 for output in predictions(shared_models.SINET, shared))
    assert (found & wanted).sum() / (found | wanted).sum() >= 0.98
