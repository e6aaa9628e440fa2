"""Models of float16 with integer weights: kernels, quantisation by the command, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

import edgec
from edgec.artifact import read_manifest
from edgec.graph import load_graph
from edgec.passes.quantize.half import computes_in_half, narrow, widened
from edgec.program import Conv
from edgec.quantisation.quantise import companions
from tests import graphs
from tests.programs import HostProgram, program_of, run_reference
from tests.test_aarch64_kernels import emulated
from tests.test_cli import results_of, sentence_of
from tests.test_low_bit import CASES

NAMES = (
    "odd everything, 8 bits", "channels of eights, 4 bits by 8", "signal, 2 bits by 8", "MatMul, 3 bits by 32",
    "Gemm, 4 bits by 32", "MatMul of several widths", "depthwise, 4 bits",
)  # fmt: skip


def in_half(model: onnx.ModelProto | Path) -> onnx.ModelProto:
    """``model`` with float16 in the place of float32."""
    graph = load_graph(model)
    narrow(graph)
    return ir.to_proto(graph)


def halves(inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: array.astype(np.float16) for name, array in inputs.items()}


def assert_near(found: dict[str, np.ndarray], wanted: dict[str, np.ndarray]) -> None:
    """Within a thousandth of the range, two of its roundings."""
    for name, array in wanted.items():
        assert found[name].dtype == np.float16 == array.dtype
        np.testing.assert_allclose(found[name], array, rtol=0, atol=1e-3 * float(np.abs(array).max()), err_msg=name)


@pytest.mark.parametrize("name", NAMES)
def test_kernels_agree(name: str, tmp_path: Path) -> None:
    """Weights stay integers, and results are ONNX Runtime's, up to the rounding of float16."""
    model, inputs = CASES[name]
    model, inputs = in_half(model), halves(inputs)
    wanted = graphs.run(model, inputs)
    program = program_of(model)
    packed = [step for step in program.steps if isinstance(step.kernel, Conv) and step.kernel.packing is not None]
    assert packed or name.startswith("depthwise")
    assert_near(run_reference(program, inputs), wanted)
    assert_near(HostProgram(program, tmp_path).run(inputs, threads=2), wanted)


def test_arm_kernels_agree(emulator: str, tmp_path: Path) -> None:
    model, inputs = CASES["channels of eights, 4 bits by 8"]
    model, inputs = in_half(model), halves(inputs)
    for target, cpu in (("rpi4", "cortex-a72"), ("rpi5", "cortex-a76")):
        folder = tmp_path / target
        folder.mkdir()
        assert_near(emulated(model, inputs, folder, target, cpu, 1), graphs.run(model, inputs))


def test_there_and_back(sample_model: Path) -> None:
    graph = load_graph(sample_model)
    assert not computes_in_half(graph)
    narrow(graph)
    assert computes_in_half(graph)
    wide = widened(graph)
    assert not computes_in_half(wide) and computes_in_half(graph)
    images = {"image": np.ones((1, 1, 8, 8), np.float32)}
    np.testing.assert_allclose(
        graphs.run(wide, images)["logits"], graphs.run(load_graph(sample_model), images)["logits"], atol=0.05
    )


@pytest.fixture(scope="module")
def half_digits(sample_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sample model in float16."""
    path = tmp_path_factory.mktemp("half") / "digits.onnx"
    onnx.save(in_half(sample_model), path)
    return path


@pytest.fixture(scope="module")
def half_samples(sample_model: Path, half_digits: Path) -> Path:
    with np.load(sample_model.with_name("digits_calib.npz")) as data:
        path = half_digits.with_name("calib.npz")
        np.savez(path, image=data["image"][:60].astype(np.float16))
    return path


def test_command_keeps_the_accuracy(
    half_digits: Path, half_samples: Path, sample_data: dict[str, np.ndarray], tmp_path: Path
) -> None:
    """Of 4-bit weights; float32 is right on 99.1 %. ONNX Runtime runs what stands beside the artifact."""
    output = tmp_path / "digits.so"
    results_of("compile", half_digits, "--quantize", "w4", "--calib", half_samples, "-o", output)
    plain = edgec.compile(half_digits, output=tmp_path / "plain.so").manifest["weights_bytes"]
    assert read_manifest(output)["weights_bytes"] < 0.5 * plain
    twin = onnx.load(companions(output)[2])
    onnx.checker.check_model(twin, full_check=True)
    with edgec.load(output) as session:
        images = sample_data["image"][:, None].astype(np.float16)
        found = [session.run({"image": image})["logits"] for image in images]
    wanted = [graphs.run(twin, {"image": image})["logits"] for image in images[:20]]
    assert np.mean(np.array([each.argmax() for each in found]) == sample_data["labels"]) >= 0.98
    np.testing.assert_allclose(np.stack(found[:20]), np.stack(wanted), rtol=0, atol=0.05)


@pytest.mark.parametrize("mode", ["int8", "w4a8", "auto"])
def test_integer_activations_are_refused(mode: str, half_digits: Path, half_samples: Path, tmp_path: Path) -> None:
    said = sentence_of("compile", half_digits, "--quantize", mode, "--calib", half_samples, "-o", tmp_path / "x.so")
    assert "computes in float16" in said and "w8, w4, w3 or w2" in said and not list(tmp_path.iterdir())
