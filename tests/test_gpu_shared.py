"""Real trained models on the OpenCL device: floats near ONNX Runtime's, integers equal to the processor's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

import edgec
from edgec.quantisation.quantise import companions
from edgec.runtimes.python.session import Session
from tests.agreement import onnxruntime_outputs, worst_error
from tests.gpu import needs_device
from tests.shared_models import MODELS, SharedModel

TOLERANCE = 1e-3
"""Of the range of an output."""
FAST = ("resnet8", "kws")
SAMPLES = 3

pytestmark = needs_device

every_model = pytest.mark.parametrize(
    "model", [pytest.param(m, marks=() if m.name in FAST else pytest.mark.heavy, id=m.name) for m in MODELS]
)


@every_model
def test_floats_agree_with_onnxruntime(model: SharedModel, shared: Path, tmp_path: Path) -> None:
    samples = model.samples(shared, SAMPLES)
    wanted = onnxruntime_outputs(model.onnx(shared), model.input, samples)
    shapes = {model.input: (1, *samples.shape[1:])}
    artifact = edgec.compile(model.onnx(shared), "opencl", tmp_path / "model.so", shapes=shapes)
    assert artifact.manifest["gpu"]["host_steps"] == 0
    with edgec.load(artifact.path) as session:
        found = [next(iter(session.run({model.input: sample[None]}).values())) for sample in samples]
    assert worst_error(np.concatenate(found), wanted) <= TOLERANCE


def integer_part(path: Path) -> Path:
    """The quantised model without what computes in floats at its end: its outputs are what is dequantised last."""
    model = onnx.load(path)
    made = {name: node for node in model.graph.node for name in node.output}
    names = []
    for output in model.graph.output:
        name = output.name
        while made[name].op_type not in ("DequantizeLinear", "QuantizeLinear"):
            name = made[name].input[0]
        names.append(name)
    part = path.with_name("integers.onnx")
    onnx.utils.extract_model(str(path), str(part), [value.name for value in model.graph.input], names)
    return part


@every_model
def test_integers_equal_the_processors(model: SharedModel, shared: Path, tmp_path: Path) -> None:
    samples = model.samples(shared, SAMPLES)
    shapes = {model.input: (1, *samples.shape[1:])}
    path = tmp_path / "quantised.so"
    calibration = model.calibration_samples(shared)[:16]
    edgec.compile(model.onnx(shared), "host", path, shapes=shapes, quantize="int8", calib=calibration)
    part = edgec.compile(integer_part(companions(path)[2]), "opencl", tmp_path / "part.so").path
    with edgec.load(part) as device, Session(part, gpu=False) as processor:
        for sample in samples:
            found, wanted = (session.run({model.input: sample[None]}) for session in (device, processor))
            for name in wanted:
                np.testing.assert_array_equal(found[name], wanted[name], err_msg=name)
