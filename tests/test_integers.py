"""Quantised graphs become integer operators, whose results are the same bits in the reference and in machine code.

Against ONNX Runtime, which computes them in floats, a result may differ by one step where the real value lies
halfway between two.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest

from edgec.graph import load_graph
from edgec.passes.fuse_integers import FuseIntegers
from edgec.passes.pipeline import run, select
from tests import graphs
from tests.programs import HostProgram, assert_close, program_of, run_reference
from tests.quantised import Graph, assert_within_one_step, operators_after_passes

STEP = 0.0517
"""The output's scale, unless a case needs another."""


def _conv(g: Graph, *, act: str = "", bias: bool = True, depthwise: bool = False, weights: str = "int8") -> str:
    channels, out = (12, 12) if depthwise else (5, 17)
    x = g.input(1, channels, 9, 7)
    w = g.weights(out, 1 if depthwise else channels, 3, 3, dtype=weights, axis=0 if weights == "int8" else None)
    names = f"{x} {w}" + (f" {g.constant(g.generator.normal(0, 1, out).astype(np.float32))}" if bias else "")
    y = g.add("Conv", names, pads=[1, 0, 2, 1], strides=[2, 1], group=channels if depthwise else 1)
    if act == "Clip":
        y = g.add("Clip", f"{y} {g.constant(np.float32(-0.5))} {g.constant(np.float32(0.7))}")
    elif act:
        y = g.add(act, y)
    return y


def _residual(g: Graph) -> str:
    """A sum of convolutions whose results are mostly beyond their grids; those of one do not leave its kernel."""
    total = g.pair(g.add("Add", f"{g.pair(_conv(g), STEP / 20)} {g.pair(_conv(g), STEP / 10)}"))
    return g.add("Conv", f"{total} {g.weights(5, 17, 1, 1)}")


def _gemm(g: Graph, transposed: bool) -> str:
    w = g.weights(13, 37) if transposed else g.weights(37, 13, axis=1)
    bias = g.constant(g.generator.normal(0, 1, 13).astype(np.float32))
    return g.add("Gemm", f"{g.input(3, 37)} {w} {bias}", transB=int(transposed))


def _matmul_bias(g: Graph) -> str:
    product = g.add("MatMul", f"{g.input(2, 5, 19)} {g.weights(19, 7, axis=1)}")
    return g.add("Add", f"{product} {g.constant(g.generator.normal(0, 1, 7).astype(np.float32))}")


def _broadcast(g: Graph, op: str) -> str:
    return g.add(op, f"{g.input(2, 5, 7, 3)} {g.input(1, 5, 1, 1, scale=0.011)}")


def _mean(g: Graph, keepdims: int) -> str:
    return g.add("ReduceMean", f"{g.input(2, 5, 7, 3)} {g.constant(np.array([2, 3]))}", keepdims=keepdims)


def _pool(g: Graph, included: int) -> str:
    attributes = {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1], "count_include_pad": included}
    return g.add("AveragePool", g.input(1, 17, 9, 8), **attributes)


def _prelu(g: Graph) -> str:
    return g.add(
        "PRelu", f"{g.input(1, 5, 7, 6)} {g.constant(np.linspace(-0.3, 1.5, 5, dtype=np.float32)[:, None, None])}"
    )


def _affine(g: Graph) -> str:
    scaled = g.add("Mul", f"{g.input(2, 5)} {g.constant(np.float32(-1.7))}")
    return g.add("Add", f"{scaled} {g.constant(np.array([0.3], np.float32))}")


def _batch_norm(g: Graph) -> str:
    names = [g.constant(g.generator.uniform(0.5, 2, 17).astype(np.float32)) for _ in range(4)]
    return g.add("BatchNormalization", " ".join([g.input(1, 17, 5, 6), *names]))


def _channel_scale(g: Graph) -> str:
    return g.add("Mul", f"{g.constant(np.linspace(-2, 2, 7, dtype=np.float32))} {g.input(2, 5, 7)}")


def _resize(g: Graph, transformation: str, *sizes: int) -> str:
    x, shape = g.input(1, 5, 6, 7), g.constant(np.array([1, 5, *sizes]))
    return g.add("Resize", f"{x} - - {shape}", mode="linear", coordinate_transformation_mode=transformation)


CASES: dict[str, tuple[Callable[[Graph], str], list[str]]] = {
    "conv": (_conv, ["QLinearConv"]),
    "conv without a bias": (lambda g: _conv(g, bias=False), ["QLinearConv"]),
    "conv, relu": (lambda g: _conv(g, act="Relu"), ["Clip", "QLinearConv"]),
    "conv, clip": (lambda g: _conv(g, act="Clip"), ["Clip", "QLinearConv"]),
    "conv with uint8 weights": (lambda g: _conv(g, weights="uint8"), ["QLinearConv"]),
    "depthwise": (lambda g: _conv(g, depthwise=True), ["QLinearConv"]),
    "saturated, add": (_residual, ["QLinearAdd", *["QLinearConv"] * 3]),
    "gemm": (lambda g: _gemm(g, False), ["QLinearGemm"]),
    "gemm, transposed weights": (lambda g: _gemm(g, True), ["QLinearGemm"]),
    "matmul": (lambda g: g.add("MatMul", f"{g.input(2, 3, 5, 19)} {g.weights(19, 7, axis=1)}"), ["QLinearGemm"]),
    "matmul and bias": (_matmul_bias, ["QLinearGemm"]),
    "matmul at run time": (
        lambda g: g.add("MatMul", f"{g.input(2, 3, 5, 7)} {g.input(2, 3, 7, 4, scale=0.02)}"), ["QLinearMatMul"],
    ),
    "add": (lambda g: g.add("Add", f"{g.input(1, 5, 7, 3)} {g.input(1, 5, 7, 3, scale=0.011)}"), ["QLinearAdd"]),
    "add, relu": (
        lambda g: g.add("Relu", g.add("Add", f"{g.input(1, 5, 7)} {g.input(1, 5, 7, scale=0.2)}")),
        ["Clip", "QLinearAdd"],
    ),
    "sub": (lambda g: g.add("Sub", f"{g.input(3, 17)} {g.input(17, scale=0.011)}"), ["QLinearSub"]),
    "mul": (lambda g: _broadcast(g, "Mul"), ["QLinearMul"]),
    "add, broadcast": (lambda g: _broadcast(g, "Add"), ["QLinearAdd"]),
    "global average": (lambda g: g.add("GlobalAveragePool", g.input(2, 5, 7, 3)), ["QLinearMean"]),
    "mean": (lambda g: _mean(g, 1), ["QLinearMean"]),
    "mean, axes gone": (lambda g: _mean(g, 0), ["QLinearMean"]),
    "average pool": (lambda g: _pool(g, 0), ["QLinearAveragePool"]),
    "average pool with its padding": (lambda g: _pool(g, 1), ["QLinearAveragePool"]),
    "batch norm": (_batch_norm, ["QLinearAffine"]),
    "a scale for each channel": (_channel_scale, ["QLinearAffine"]),
    "resize": (lambda g: _resize(g, "half_pixel", 12, 14), ["QLinearResize"]),
    "resize, aligned corners": (lambda g: _resize(g, "align_corners", 11, 7), ["QLinearResize"]),
    "resize, smaller": (lambda g: _resize(g, "asymmetric", 5, 3), ["QLinearResize"]),
    "prelu": (_prelu, ["QLinearPRelu"]),
    "sigmoid": (lambda g: g.add("Sigmoid", g.input(2, 5, 7)), ["Table"]),
    "chain": (lambda g: g.add("HardSwish", g.add("Tanh", g.add("Abs", g.input(2, 127)))), ["Table"]),
    "constants": (_affine, ["Table"]),
    "requantise": (lambda g: g.add("Identity", g.input(3, 5)), ["Table"]),
}  # fmt: skip


@pytest.mark.parametrize("dtype", ["int8", "uint8"])
@pytest.mark.parametrize("name", CASES)
def test_integer_operator(name: str, dtype: str, tmp_path: Path) -> None:
    make, wanted = CASES[name]
    g = Graph(dtype)
    model = g.build(g.pair(make(g), STEP))
    assert operators_after_passes(model, dtype) == wanted
    _assert_exact(model, g.samples(), [STEP], tmp_path)


def _assert_exact(model: onnx.ModelProto, inputs: dict[str, np.ndarray], steps: list[float], folder: Path) -> None:
    """Machine code equals the reference, on one thread and three, and ONNX Runtime to a step."""
    program = program_of(model)
    want = run_reference(program, inputs)
    assert_within_one_step(want, graphs.run(model, inputs), steps)
    compiled = HostProgram(program, folder)
    for threads in (1, 3):
        for output, array in compiled.run(inputs, threads).items():
            np.testing.assert_array_equal(array, want[output])


def test_softmax(tmp_path: Path) -> None:
    g = Graph()
    model = g.build(g.pair(g.add("Softmax", g.input(3, 17, scale=0.05)), 1 / 256, -128))
    assert operators_after_passes(model) == ["QLinearSoftmax"]
    _assert_exact(model, g.samples(), [1 / 256], tmp_path)


@pytest.mark.parametrize("name", ["conv", "depthwise", "gemm", "gemm, transposed weights", "matmul"])
def test_products_that_nobody_quantises(name: str, tmp_path: Path) -> None:
    """They are summed up in integers, and leave as floats."""
    g = Graph()
    model = g.build(CASES[name][0](g))
    wanted = "ConvDequantize" if name in ("conv", "depthwise") else "GemmDequantize"
    assert operators_after_passes(model) == [wanted]
    inputs = g.samples()
    program = program_of(model)
    want = run_reference(program, inputs)
    assert_close(want, graphs.run(model, inputs))
    for output, array in HostProgram(program, tmp_path).run(inputs).items():
        np.testing.assert_array_equal(array, want[output])


def test_moves_happen_on_integers(tmp_path: Path) -> None:
    g = Graph()
    x = g.input(1, 8, 9, 7)
    x = g.add("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    x = g.add("Pad", f"{x} {g.constant(np.array([0, 0, 1, 0, 0, 0, 0, 2]))}")
    x = g.add("Transpose", x, perm=[0, 2, 3, 1])
    x = g.add("Reshape", f"{x} {g.constant(np.array([1, -1]))}")
    model = g.build(x)
    assert operators_after_passes(model) == ["MaxPool", "Pad", "Reshape", "Transpose"]
    inputs = g.samples()
    program = program_of(model)
    want = graphs.run(model, inputs)
    for found in (run_reference(program, inputs), HostProgram(program, tmp_path).run(inputs)):
        np.testing.assert_array_equal(found[x], want[x])


def test_the_class_is_taken_of_integers() -> None:
    g = Graph()
    model = g.build(g.add("ArgMax", g.input(1, 9, 4, 4), axis=1))
    assert operators_after_passes(model) == ["ArgMax"]


def test_concatenation_requantises_only_what_lies_on_another_grid(tmp_path: Path) -> None:
    g = Graph()
    parts = [
        g.input(1, 3, 5, 5, scale=STEP, zero=3),
        g.input(1, 4, 5, 5, scale=0.02),
        g.input(1, 5, 5, 5, scale=STEP, zero=3),
    ]
    model = g.build(g.pair(g.add("Concat", " ".join(parts), axis=1), STEP, 3))
    assert operators_after_passes(model) == ["Concat", "Table"]
    _assert_exact(model, g.samples(), [STEP], tmp_path)


def test_residual_block_is_two_steps(tmp_path: Path) -> None:
    """Conv → Add → Relu: the sum and the clamp are the convolution's epilogue, beside the quantisation of the input."""
    g = Graph()
    x = g.input(1, 16, 7, 5)
    y = g.pair(g.add("Conv", f"{x} {g.weights(16, 16, 1, 1)}"), 0.04)
    model = g.build(g.pair(g.add("Relu", g.add("Add", f"{y} {x}")), STEP, -128))
    program = program_of(model)
    assert len(program.steps) == 3  # with the output dequantised
    _assert_exact(model, g.samples(), [STEP], tmp_path)


def test_what_is_computed_in_floats_has_constant_weights_again(tmp_path: Path) -> None:
    g = Graph()
    x, w = g.input(1, 5, 6, 6), g.weights(8, 5, 3, 3, axis=1)
    model = g.build(g.pair(g.add("Conv", f"{x} {w}"), STEP))
    assert operators_after_passes(model) == ["Conv"]
    program = program_of(model)
    inputs = g.samples()
    assert_within_one_step(HostProgram(program, tmp_path).run(inputs), graphs.run(model, inputs), [STEP])


@pytest.mark.parametrize("channels", [3, 8, 17])
def test_table_of_what_a_pool_has_found(channels: int, tmp_path: Path) -> None:
    """The place in the table is another one in each lane of a vector."""
    g = Graph()
    x, w = g.input(1, 5, 6, 4), g.weights(channels, 5, 3, 3)
    swish = g.add("HardSwish", g.pair(g.add("Conv", f"{x} {w}")))
    model = g.build(g.pair(g.add("HardSwish", g.pair(g.add("MaxPool", swish, kernel_shape=[4, 2]))), STEP))
    _assert_exact(model, g.samples(), [STEP], tmp_path)


def test_a_weight_that_is_an_output_keeps_its_name() -> None:
    g = Graph()
    x, w = g.input(1, 5, 6, 6), g.weights(8, 5, 3, 3)
    model = g.build(g.pair(g.add("Conv", f"{x} {w}"), STEP), w)
    graph = load_graph(model)
    run(graph, select())
    assert [value.name for value in graph.graph.outputs] == [output.name for output in model.graph.output]
    inputs = g.samples()
    np.testing.assert_allclose(graphs.run(graph, inputs)[w], graphs.run(model, inputs)[w], rtol=1e-6)


def test_activations_move_to_the_targets_dtype() -> None:
    g = Graph("int8")
    model = g.build(g.pair(_conv(g), STEP))
    graph = load_graph(model)
    run(graph, select(activation_dtype="uint8"))
    conv = next(node for node in graph.graph if node.op_type == "QLinearConv")
    assert str(conv.inputs[0].dtype.numpy()) == "uint8"
    inputs = g.samples()
    for name, array in graphs.run(model, inputs).items():
        found = graphs.run(graph, inputs)[name]
        assert (np.abs(found - array) < 0.5 * STEP).mean() > 0.99


def test_sums_that_may_not_fit_are_left_to_floats() -> None:
    g = Graph()
    g.constants |= {"big": np.full((1, 70_000), 127, np.int8), "big_s": np.float32(0.01), "big_z": np.int8(0)}
    x = g.input(1, 70_000)
    g.nodes.append(onnx.helper.make_node("DequantizeLinear", ["big", "big_s", "big_z"], ["big_d"]))
    model = g.build(g.pair(g.add("Gemm", f"{x} big_d", transB=1), STEP))
    graph = load_graph(model)
    reports = run(graph, select())
    refusals = [refusal for report in reports if report.name == FuseIntegers.name for refusal in report.refusals]
    assert any("might not fit 32 bits" in str(refusal) for refusal in refusals)
    assert "Gemm" in graphs.operators(graph)


def test_passes_twice_change_nothing() -> None:
    g = Graph()
    y = g.pair(_conv(g, act="Relu"), 0.04, -128)
    model = g.build(g.pair(g.add("Sigmoid", y), 1 / 256, -128))
    graph = load_graph(model)
    run(graph, select())
    assert not any(report.matched for report in run(graph, select()))


@pytest.mark.parametrize("name", ["conv, relu", "add, relu", "gemm", "sigmoid", "average pool", "mean", "prelu"])
def test_fused_graph_runs_in_onnx_runtime(name: str) -> None:
    g = Graph()
    model = g.build(g.pair(CASES[name][0](g), STEP))
    graph = load_graph(model)
    run(graph, select())
    inputs = g.samples()
    assert_within_one_step(graphs.run(graph, inputs), graphs.run(model, inputs), [STEP])
