"""Activations of 16 bits as integers: what becomes of them in the graph, and the same bits on every target."""

from __future__ import annotations

import platform
from pathlib import Path

import numpy as np
import onnx
import pytest

from edgec.graph import load_graph
from edgec.passes.pipeline import run, select
from edgec.program import Conv, Depthwise
from tests import graphs
from tests.programs import HostProgram, program_of, run_reference
from tests.quantised import Array, Graph, assert_within_one_step, operators_after_passes
from tests.random_layers import random_layers
from tests.test_aarch64_kernels import CORES, MORE_SHAPES, emulated
from tests.test_integer_kernels import SHAPES
from tests.test_x86_kernels import GENERATIONS, check, target

CONVOLUTIONS = [(name, *shape) for name, shape in (SHAPES | MORE_SHAPES).items()]
DTYPES = [("int16", "int16"), ("int16", "int8"), ("int8", "int16"), ("uint16", "int16")]
"""What a convolution reads and makes."""


def convolutions(step: int = 1) -> tuple[onnx.ModelProto, dict[str, Array]]:
    """Every ``step``-th shape as a convolution with a bias, its dtypes in turn, side by side in one model."""
    g, outputs = Graph("int16", seed=5), []
    for index, (_, shape, weight, attributes) in enumerate(CONVOLUTIONS[::step]):
        read, made = DTYPES[index % len(DTYPES)]
        g.dtype = read
        x = g.input(*shape)
        g.dtype = "int16"
        w = g.weights(*weight)
        # whole steps of the products, so that rounding the bias to them changes nothing
        product = g.scale(x) * g.scale(w).astype(np.float64)
        bias = g.constant((np.rint(g.generator.normal(0, 0.5, weight[0]) / product) * product).astype(np.float32))
        y = g.add("Conv", f"{x} {w} {bias}", **attributes)
        g.dtype = made
        outputs.append(g.pair(y, 0.05))
    g.dtype = "int16"
    return g.build(*outputs), g.samples()


@pytest.fixture(scope="module")
def layers() -> tuple[onnx.ModelProto, dict[str, Array], dict[str, Array]]:
    """The model, its inputs, and what the reference makes of them."""
    model, inputs = convolutions()
    return model, inputs, run_reference(program_of(model), inputs)


def test_convolutions_multiply_integers_and_are_onnxruntimes(layers) -> None:
    model, inputs, wanted = layers
    kernels = [step.kernel for step in program_of(model).steps]
    read = [kernel.input_dtype for kernel in kernels if isinstance(kernel, Conv | Depthwise)]
    assert len(read) >= len(CONVOLUTIONS) and set(read) == {"int8", "int16"}
    steps = [0.05 / (256 if DTYPES[i % len(DTYPES)][1] == "int16" else 1) for i in range(len(CONVOLUTIONS))]
    found = graphs.run(model, inputs)
    # ONNX Runtime rounds deep sums to float32 on the way, which takes a few to the other side of a step of 16 bits
    assert_within_one_step(wanted, found, steps, share=0.02)
    apart = [np.abs(found[name] - wanted[name]) > step / 2 for name, step in zip(wanted, steps, strict=True)]
    assert np.concatenate([each.ravel() for each in apart]).mean() <= 0.001


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="x86 only")
@pytest.mark.parametrize("generation", GENERATIONS)
def test_every_generation_of_x86(generation: str, layers, tmp_path: Path) -> None:
    check(*layers[:2], tmp_path, target(generation))


@pytest.mark.parametrize(("board", "cpu", "threads"), [*CORES, ("rpi2", None, 2)])
def test_every_arm(emulator, layers, tmp_path: Path, board: str, cpu: str | None, threads: int) -> None:
    model, inputs, wanted = layers
    found = emulated(model, inputs, tmp_path, board, cpu, threads)
    assert not [name for name, array in wanted.items() if not np.array_equal(found[name], array)]


@pytest.mark.parametrize("dtype", ["int16", "uint16", "mixed"])
def test_random_layers(dtype: str, tmp_path: Path) -> None:
    """All operators with rules, on this machine as in the reference."""
    model, inputs = random_layers(7, 20, dtype)
    program = program_of(model)
    wanted = run_reference(program, inputs)
    compiled = HostProgram(program, tmp_path)
    for threads in (1, 3):
        for name, array in compiled.run(inputs, threads).items():
            np.testing.assert_array_equal(array, wanted[name], err_msg=name)


@pytest.mark.parametrize(("board", "cpu"), [("rpi5", "cortex-a76"), ("rpi2", None)])
def test_random_layers_on_emulated_boards(emulator, tmp_path: Path, board: str, cpu: str | None) -> None:
    model, inputs = random_layers(8, 20, "mixed")
    found = emulated(model, inputs, tmp_path, board, cpu)
    for name, array in run_reference(program_of(model), inputs).items():
        np.testing.assert_array_equal(found[name], array, err_msg=name)


def word_graph(op: str, **attributes: object) -> tuple[Graph, str]:
    """One operator between tensors of 16 bits, around zero as the quantiser makes them."""
    g = Graph("int16", seed=2)
    shape = (1, 7, 10, 13)
    x = g.input(*shape, zero=0)
    if op in ("Add", "Sub", "Mul"):
        y = g.add(op, f"{x} {g.input(*shape, scale=0.07, zero=0)}")
    elif op == "Concat":
        y = g.add(op, f"{x} {g.input(*shape, zero=0)}", axis=1)
    elif op == "PRelu":
        y = g.add(op, f"{x} {g.constant(np.linspace(-0.5, 0.9, 7, dtype=np.float32).reshape(7, 1, 1))}")
    elif op == "Resize":
        sizes = g.constant(np.array([1, 7, 20, 26], np.int64))
        y = _resized(g, x, sizes)
    elif op == "affine":
        scale = g.constant(np.linspace(-0.5, 0.9, 7, dtype=np.float32).reshape(7, 1, 1))
        y = g.add("Mul", f"{x} {scale}")
    else:
        y = g.add(op, x, **attributes)
    return g, g.pair(y, 0.02, 0)


def _resized(g: Graph, x: str, sizes: str, transformation: str = "half_pixel") -> str:
    name = f"v{len(g.nodes)}"
    attributes = {"mode": "linear", "coordinate_transformation_mode": transformation}
    g.nodes.append(onnx.helper.make_node("Resize", [x, "", "", sizes], [name], name=name, **attributes))
    return name


RULES = {
    "Add": "QLinearAdd", "Sub": "QLinearSub", "Mul": "QLinearMul", "PRelu": "QLinearPRelu", "Relu": "QLinearAffine",
    "GlobalAveragePool": "QLinearMean", "Softmax": "QLinearSoftmax", "Resize": "QLinearResize",
    "affine": "QLinearAffine", "Sigmoid": "Table",
}  # fmt: skip
"""By operator, what it becomes."""


@pytest.mark.parametrize("op", [*RULES, "AveragePool", "Concat"])
def test_rules_are_onnxruntimes_within_a_step(op: str, tmp_path: Path) -> None:
    attributes = {"AveragePool": {"kernel_shape": [3, 2]}, "Softmax": {"axis": 1}}.get(op, {})
    g, y = word_graph(op, **attributes)
    model, inputs = g.build(y), g.samples()
    assert RULES.get(op, f"QLinear{op}" if op != "Concat" else op) in operators_after_passes(model)
    program = program_of(model)
    wanted = run_reference(program, inputs)
    assert_within_one_step(wanted, graphs.run(model, inputs), [0.02 / 256], share=0.3)
    np.testing.assert_array_equal(HostProgram(program, tmp_path).run(inputs)[y], wanted[y])


@pytest.mark.parametrize("transformation", ["half_pixel", "align_corners"])
@pytest.mark.parametrize("size", [(17, 31), (5, 6), (10, 31)])
def test_interpolation_is_nearly_as_exact_as_words(size: tuple[int, int], transformation: str, tmp_path: Path) -> None:
    """Weights that are no multiples of a power of two, and neighbours that differ by the whole range."""
    g = Graph("int16")
    shape, scale = (1, 7, 10, 13), 0.02
    x, sizes = g.input(*shape, scale=scale, zero=0), g.constant(np.array([1, 7, *size], np.int64))
    y = g.pair(_resized(g, x, sizes, transformation), scale, 0)
    model = g.build(y)
    assert operators_after_passes(model) == ["QLinearResize"]
    inputs = {"x0": np.random.default_rng(5).uniform(-128 * scale, 128 * scale, shape).astype(np.float32)}
    program = program_of(model)
    found = run_reference(program, inputs)[y]
    apart = np.abs(found - graphs.run(model, inputs)[y]) / (scale / 256)
    assert apart.max() <= 5 and apart.mean() <= 1
    np.testing.assert_array_equal(HostProgram(program, tmp_path).run(inputs)[y], found)


def test_the_graph_after_the_passes_runs_in_onnxruntime() -> None:
    model, inputs = random_layers(11, 12, "mixed")
    graph = load_graph(model)
    run(graph, select())
    found = graphs.run(graph, inputs)
    for name, array in graphs.run(model, inputs).items():
        apart = np.abs(found[name] - array).max()
        assert apart <= 1.01 * np.diff(np.unique(array)).min(initial=np.inf), name


def test_sums_that_might_not_fit_stay_real(tmp_path: Path) -> None:
    """65 536 · 2^15 is one more than 31 bits hold."""

    def graph(weight: int, count: int) -> onnx.ModelProto:
        g = Graph("int16")
        x = g.input(1, count, 1, 1, zero=0)
        w = g.weights(2, count, 1, 1)
        name = w.removesuffix("_d")
        g.constants[name] = np.full_like(g.constants[name], weight)
        return g.build(g.pair(g.add("Conv", f"{x} {w}"), 1.0, 0))

    fitting, beyond = graph(15, 4369), graph(16, 4096)
    assert "QLinearConvolution" in operators_after_passes(fitting)
    assert "QLinearConvolution" not in operators_after_passes(beyond)
    loaded = load_graph(beyond)
    said = [str(refusal) for report in run(loaded, select()) for refusal in report.refusals]
    assert any("might not fit 32 bits" in each for each in said)
    most = {name: np.full((1, 4369, 1, 1), -1e6, np.float32) for name in ("x0",)}
    program = program_of(fitting)
    wanted = run_reference(program, most)
    for name, array in HostProgram(program, tmp_path).run(most).items():
        np.testing.assert_array_equal(array, wanted[name])
    assert_within_one_step(wanted, graphs.run(fitting, most), [1 / 256])
