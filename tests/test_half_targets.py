"""Programs that compute in 16-bit floats: kernels for 64-bit ARM under emulation against the reference in float16.

A layer without bias adds its products up in the reference's order, so that its bits are equal. With one, sums start
from the bias and not from 0, and round otherwise: both lie within ``STEPS`` steps of the output's range; a step is
2⁻¹¹, the rounding error of a float16.
"""

from __future__ import annotations

import subprocess

import numpy as np
import onnx
import pytest
from onnx import helper

import edgec
from edgec.data.samples import Samples
from edgec.devices.device import EMULATORS, QemuDevice
from edgec.errors import EdgecError
from edgec.runtimes.build import build_runtime
from edgec.targets.half import compute_in_half
from edgec.targets.target import load_target, target_names
from tests import graphs
from tests.conftest import ROOT
from tests.operators import node
from tests.programs import program_of, run_reference
from tests.test_aarch64_kernels import FLOAT_SHAPES, emulated, float_layer, layer, together
from tests.test_integer_kernels import SHAPES

STEP = 2.0**-11
STEPS = 8

CORES = [("rpi5-fp16", "cortex-a76", 1), ("arm64-dotprod-fp16", "max", 3)]


def in_half(model: onnx.ModelProto, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The outputs by the reference, computed in float16."""
    return run_reference(compute_in_half(program_of(model)), inputs)


def assert_near(got: dict[str, np.ndarray], wanted: dict[str, np.ndarray], steps: float = STEPS) -> None:
    for name, array in wanted.items():
        scale = np.max(np.abs(array))
        assert np.max(np.abs(got[name].astype(np.float64) - array)) <= steps * STEP * scale, name


@pytest.fixture(scope="module")
def layers() -> tuple[onnx.ModelProto, dict[str, np.ndarray]]:
    """Float convolutions: every second one without bias and ReLU."""
    made = [float_layer(*shape) for shape in FLOAT_SHAPES.values()]
    for index, (model, _) in enumerate(made):
        if index % 2:
            del model.graph.node[0].input[2:]
    return together(model for model, _ in made), {f"{i}_x": values["x"] for i, (_, values) in enumerate(made)}


@pytest.mark.parametrize(("target", "cpu", "threads"), CORES)
def test_float_convolutions(emulator, layers, tmp_path, target, cpu, threads):
    wanted = in_half(*layers)
    got = emulated(*layers, tmp_path, target, cpu, threads)
    assert_near(got, wanted)
    planes = {"planes", "planes, 1x1", "planes, overlapping", "planes, one channel"}  # read in another order
    plain = [i for i, name in enumerate(FLOAT_SHAPES) if i % 2 and name not in planes]
    assert len(plain) >= 7
    same = [np.mean(got[f"{i}_y"] == wanted[f"{i}_y"]) for i in plain]
    assert min(same) > 0.98  # the reference rounds a sum twice, to float32 first, which shows now and then
    assert_near(wanted, graphs.run(*layers), 32)


def other_operators() -> tuple[onnx.ModelProto, dict[str, np.ndarray]]:
    """Pools, sums, products of two inputs, activations, softmax and a norm, at widths around a register's."""
    generator = np.random.default_rng(5)
    nodes, inputs, outputs, constants = [], {}, [], {}
    for index, channels in enumerate((3, 8, 17, 36)):
        def name(text: str, number: int = index) -> str:
            return " ".join(f"{word}{number}" for word in text.split())

        shape = (2, channels, 9, 7)
        inputs |= {name(key): shape for key in "ab"} | {name("m"): (2, 5, channels), name("n"): (2, channels, 11)}
        constants[name("g")] = generator.standard_normal(channels, np.float32)
        constants[name("w")] = generator.standard_normal((channels, channels, 1, 1), np.float32)
        nodes += [
            node("Conv", name("a w"), name("c")),
            node("HardSwish", name("c"), name("h")),
            node("MaxPool", name("h"), name("o"), kernel_shape=[3, 3], strides=[2, 2]),
            node("AveragePool", name("h"), name("p"), kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
            node("GlobalAveragePool", name("h"), name("q")),
            node("Add", name("c b"), name("r")),
            node("Sigmoid", name("r"), name("s")),
            node("Mul", name("s h"), name("t")),
            node("MatMul", name("m n"), name("u")),
            node("Softmax", name("u"), name("v"), axis=-1),
            node("LayerNormalization", name("m g"), name("x")),
            node("Neg", name("x"), name("y")),
        ]
        outputs += [name(key) for key in "opqtvy"]
    model = graphs.build(nodes, inputs, outputs, constants)
    return model, {key: generator.standard_normal(shape, np.float32) for key, shape in inputs.items()}


def test_other_operators(emulator, tmp_path):
    model, inputs = other_operators()
    wanted = in_half(model, inputs)
    assert_near(wanted, graphs.run(model, inputs), 24)
    for threads in (1, 3):
        assert_near(emulated(model, inputs, tmp_path, "rpi5-fp16", "cortex-a76", threads), wanted)


def test_integers_stay_as_they_are(emulator, tmp_path):
    made = [layer(*shape, ("int8", "uint8")[index % 2]) for index, shape in enumerate(list(SHAPES.values())[::2])]
    model = together(each for each, _ in made)
    inputs = {f"{index}_x": values["x"] for index, (_, values) in enumerate(made)}
    wanted = run_reference(program_of(model), inputs)
    got = emulated(model, inputs, tmp_path, "rpi5-fp16", "cortex-a76")
    for name, array in wanted.items():
        np.testing.assert_array_equal(got[name], array, err_msg=name)


def test_the_sample_model(emulator, sample_model, tmp_path):
    data = ROOT / "samples/models/digits_eval.npz"
    artifact = edgec.compile(sample_model, "rpi5-fp16", tmp_path / "m.so", bundle_tests=data)
    plain = edgec.compile(sample_model, "rpi5", tmp_path / "plain.so")
    assert artifact.manifest["arena_bytes"] < 0.6 * plain.manifest["arena_bytes"]
    assert all("f32" not in step["kernel"] for step in artifact.manifest["steps"])
    runner, machine = build_runtime("aarch64-linux-gnu"), EMULATORS["aarch64-linux-gnu"]
    command = [*machine.run("cortex-a76"), runner.selftest, artifact.path]
    bundled = subprocess.run(command, capture_output=True, text=True)
    assert (bundled.returncode, bundled.stderr) == (0, "")
    with np.load(data) as arrays:
        images, labels = arrays["image"][:100], arrays["labels"][:100]
    outputs = QemuDevice().run(artifact.path, Samples(100, None, lambda index: {"image": images[index : index + 1]}))
    classes = outputs.outputs["logits"].reshape(100, -1).argmax(-1)
    assert np.mean(classes == labels) >= 0.98


@pytest.mark.parametrize("mode", ["w8", "w4"])
def test_packed_weights_keep_their_floats(emulator, sample_model, tmp_path, mode):
    calib = ROOT / "samples/models/digits_calib.npz"
    with np.load(ROOT / "samples/models/digits_eval.npz") as data:
        image = data["image"][:1]
    found = {}
    for target in ("rpi5", "rpi5-fp16"):
        made = edgec.compile(sample_model, target, tmp_path / f"{target}.so", quantize=mode, calib=calib)
        samples = Samples(1, None, lambda index: {"image": image})
        found[target] = QemuDevice().run(made.path, samples).outputs["logits"]
    np.testing.assert_allclose(found["rpi5-fp16"], found["rpi5"], atol=32 * STEP * np.max(np.abs(found["rpi5"])))


def test_a_weight_above_65504_is_refused(tmp_path):
    weights = {"w": np.full((4, 4, 1, 1), 7e4, np.float32)}
    model = graphs.build([helper.make_node("Conv", ["x", "w"], ["y"], name="c")], {"x": (1, 4, 3, 3)}, ["y"], weights)
    with pytest.raises(EdgecError, match=r"has a value of 7e\+04, and 16-bit floats end at 65504"):
        edgec.compile(model, "rpi5-fp16", tmp_path / "m.so")
    assert not list(tmp_path.iterdir())


def test_large_constants_are_computed_in_float32(emulator, tmp_path):
    nodes = [node("Mul", "x k", "a"), node("Mul", "a l", "b"), node("Relu", "b", "y")]
    constants = {"k": np.float32(1e6), "l": np.float32(1e-6)}
    x = np.linspace(-2, 2, 40, dtype=np.float32).reshape(1, 40)
    got = emulated(graphs.build(nodes, {"x": (1, 40)}, ["y"], constants), {"x": x}, tmp_path, "rpi5-fp16", "cortex-a76")
    np.testing.assert_allclose(got["y"], np.maximum(x, 0), atol=2 * STEP)


def test_only_processors_with_16_bit_arithmetic_have_such_a_target():
    assert {"rpi5-fp16", "arm64-i8mm-fp16", "android-arm64-dotprod-fp16"} <= set(target_names())
    assert not {"rpi4-fp16", "cortex-m4-fp16"} & set(target_names())
    with pytest.raises(EdgecError, match=r"rpi4 has no arithmetic in 16-bit floats .*compile for rpi4, or .*rpi5-fp16"):
        load_target("rpi4-fp16")
    with pytest.raises(EdgecError, match="there is no target 'rpi9-fp16'"):
        load_target("rpi9-fp16")
