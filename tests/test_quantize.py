"""Quantising small graphs: the form of the result, what the recipe says, and the same bits every time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from edgec.errors import EdgecError
from edgec.graph import load_graph
from edgec.passes.quantize import Quantized, Recipe, quantize
from edgec.passes.quantize.execution import ModelRunner
from edgec.passes.quantize.report import signal_to_noise
from tests.graphs import build, node

QUICK = Recipe(refine=False)


def random(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def quantised(
    nodes: Sequence[onnx.NodeProto],
    shape: tuple[int, ...],
    constants: Mapping[str, np.ndarray],
    recipe: Recipe = QUICK,
    count: int = 12,
) -> Quantized:
    """A model from ``x`` to ``y``, quantised on standard normal samples."""
    graph = load_graph(build(nodes, {"x": shape}, ["y"], constants))
    return quantize(graph, samples(shape, count), recipe)


def samples(shape: tuple[int, ...], count: int = 12) -> list[dict[str, np.ndarray]]:
    return [{"x": random(*shape, seed=seed)} for seed in range(count)]


def outputs(model: ir.Model, inputs: Sequence[Mapping[str, np.ndarray]]) -> np.ndarray:
    """Of ONNX Runtime as it comes, after ONNX's own checks."""
    import onnxruntime

    proto = ir.to_proto(model)
    onnx.checker.check_model(proto, full_check=True)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return np.stack([session.run(None, dict(each))[0] for each in inputs])


def named(model: ir.Model, name: str) -> ir.Node:
    return next(each for each in model.graph if each.name == name)


def feeds(each: ir.Node, index: int = 0) -> str:
    """The operator that makes an input."""
    producer = each.inputs[index].producer()  # type: ignore[union-attr]
    return "" if producer is None else producer.op_type


def reads(each: ir.Node) -> list[str]:
    return sorted(reader.op_type for reader in each.outputs[0].consumers())


def scale_of(each: ir.Node, index: int = 0) -> str | None:
    """The name of the scale of an integer input."""
    producer = each.inputs[index].producer()  # type: ignore[union-attr]
    assert producer is not None and producer.op_type == "DequantizeLinear"
    return producer.inputs[1].name  # type: ignore[union-attr]


def decibels(found: np.ndarray, wanted: np.ndarray) -> float:
    return float(10 * np.log10(np.square(wanted).sum() / np.square(found - wanted).sum()))


RESIDUAL = [
    node("Conv", ["x", "w", "b"], ["c"], name="first", pads=[1, 1, 1, 1]),
    node("Relu", ["c"], ["r"], name="relu"),
    node("Conv", ["r", "v"], ["d"], name="second", pads=[1, 1, 1, 1]),
    node("Add", ["d", "r"], ["s"], name="add"),
    node("Relu", ["s"], ["t"], name="relu_after"),
    node("GlobalAveragePool", ["t"], ["g"], name="pool"),
    node("Flatten", ["g"], ["f"], name="flatten"),
    node("Gemm", ["f", "m", "n"], ["y"], name="gemm"),
]
RESIDUAL_CONSTANTS = {
    "w": random(5, 3, 3, 3, seed=1), "b": random(5, seed=2), "v": random(5, 5, 3, 3, seed=3) / 5,
    "m": random(5, 7, seed=4), "n": random(7, seed=5),
}  # fmt: skip
SHAPE = (1, 3, 9, 7)


def residual(recipe: Recipe = QUICK) -> Quantized:
    return quantised(RESIDUAL, SHAPE, RESIDUAL_CONSTANTS, recipe)


def test_runs_and_stays_near_float() -> None:
    graph = load_graph(build(RESIDUAL, {"x": SHAPE}, ["y"], RESIDUAL_CONSTANTS))
    inputs = samples(SHAPE, 30)
    before = ir.to_proto(graph).SerializeToString(deterministic=True)
    found = quantize(graph, inputs[:20])
    assert ir.to_proto(graph).SerializeToString(deterministic=True) == before
    assert decibels(outputs(found.model, inputs[20:]), outputs(graph, inputs[20:])) > 25


def test_pairs_stand_around_products_and_sums() -> None:
    model = residual().model
    assert reads(named(model, "first")) == ["Relu"]
    assert reads(named(model, "relu")) == ["QuantizeLinear"]
    assert reads(named(model, "second")) == ["QuantizeLinear"]
    assert reads(named(model, "add")) == ["Relu"]
    assert [feeds(named(model, "add"), i) for i in (0, 1)] == ["DequantizeLinear"] * 2
    assert feeds(named(model, "pool")) == feeds(named(model, "gemm")) == "DequantizeLinear"


def zero_points(model: ir.Model, name: str) -> list[str]:
    """The dtypes of the integers that ``name`` reads, ``int8`` also for bytes that are unsigned."""
    producers = [value.producer() for value in named(model, name).inputs if value is not None]
    kinds = [str(each.inputs[2].const_value.dtype.name).lower() for each in producers]  # type: ignore[union-attr]
    return [kind.replace("uint8", "int8") for kind in kinds]


def test_a_convolution_hands_16_bits_to_its_sum() -> None:
    found = residual()
    assert zero_points(found.model, "add") == ["int16", "int8"]
    assert {layer.name: layer.bits for layer in found.layers}["add"] == "int8"
    for recipe in (Recipe(refine=False, wide_sums=False), Recipe(refine=False, fixed_point=True)):
        assert zero_points(residual(recipe).model, "add") == ["int8", "int8"]


def test_of_two_convolutions_the_last_is_the_wide_one() -> None:
    nodes = [
        node("Conv", ["x", "w"], ["a"], name="shortcut"),
        node("Conv", ["x", "w"], ["b"], name="main"),
        node("Add", ["b", "a"], ["s"], name="add"),
        node("Conv", ["s", "v"], ["y"], name="last"),
    ]
    found = quantised(nodes, SHAPE, {"w": random(4, 3, 1, 1), "v": random(2, 4, 1, 1)})
    assert zero_points(found.model, "add") == ["int16", "int8"]


def test_a_term_that_others_read_keeps_8_bits() -> None:
    nodes = [*RESIDUAL[:4], node("Add", ["s", "d"], ["e"], name="again"), node("Conv", ["e", "u"], ["y"], name="last")]
    found = quantised(nodes, SHAPE, {**RESIDUAL_CONSTANTS, "u": random(2, 5, 1, 1)})
    assert zero_points(found.model, "add") == zero_points(found.model, "again") == ["int8", "int8"]


def test_wide_sums_lower_the_error() -> None:
    graph = load_graph(build(RESIDUAL, {"x": SHAPE}, ["y"], RESIDUAL_CONSTANTS))
    inputs, wanted = samples(SHAPE, 60), outputs(graph, samples(SHAPE, 60)[20:])
    wide, narrow = (quantize(graph, inputs[:20], Recipe(refine=False, wide_sums=each)).model for each in (True, False))
    assert decibels(outputs(wide, inputs[20:]), wanted) > decibels(outputs(narrow, inputs[20:]), wanted)


def test_form_of_weights_and_biases() -> None:
    model = residual().model
    weight, bias = (named(model, "first").inputs[i].producer() for i in (1, 2))  # type: ignore[union-attr]
    assert weight is not None and bias is not None
    integers, scales, zeros = (value.const_value.numpy() for value in weight.inputs)  # type: ignore[union-attr]
    assert integers.dtype == zeros.dtype == np.int8 and integers.min() >= -127
    assert scales.shape == (5,) and not zeros.any() and weight.attributes["axis"].as_int() == 0
    values, bias_scales = (value.const_value.numpy() for value in bias.inputs[:2])  # type: ignore[union-attr]
    x_scale = named(model, "first").inputs[0].producer().inputs[1].const_value.numpy()  # type: ignore[union-attr]
    assert values.dtype == np.int32
    np.testing.assert_array_equal(bias_scales, x_scale * scales)


def test_relu_ends_the_range() -> None:
    report = next(layer for layer in residual().layers if layer.name == "relu")
    assert report.tensors[-1].zero_point == -128 and report.tensors[-1].low == 0


def test_movements_share_one_scale() -> None:
    model = residual().model
    assert scale_of(named(model, "flatten")) == scale_of(named(model, "gemm"))
    assert scale_of(named(model, "pool")) != scale_of(named(model, "flatten"))


def test_same_inputs_same_bits() -> None:
    first, second = (residual(Recipe()).model for _ in range(2))
    assert ir.to_proto(first).SerializeToString(deterministic=True) == ir.to_proto(second).SerializeToString(
        deterministic=True
    )


CONCAT = [
    node("Conv", ["x", "w"], ["a"], name="left"),
    node("Conv", ["x", "v"], ["b"], name="right"),
    node("Concat", ["a", "b"], ["c"], name="concat", axis=1),
    node("Conv", ["c", "u"], ["y"], name="last"),
]


def test_concat_shares_its_scale_with_its_inputs() -> None:
    constants = {"w": random(2, 3, 1, 1), "v": 20 * random(3, 3, 1, 1), "u": random(2, 5, 1, 1)}
    concat = named(quantised(CONCAT, SHAPE, constants, Recipe(equalise=False, refine=False)).model, "concat")
    assert scale_of(concat, 0) == scale_of(concat, 1)


def test_concat_rescales_what_another_layer_reads_finer() -> None:
    nodes = [*CONCAT[:3], node("Conv", ["a", "t"], ["d"], name="other"), node("Conv", ["c", "u"], ["e"], name="last"),
             node("Add", ["d", "e"], ["y"], name="add")]  # fmt: skip
    constants = {"w": random(2, 3, 1, 1), "v": 20 * random(3, 3, 1, 1), "u": random(2, 5, 1, 1),
                 "t": random(2, 2, 1, 1)}  # fmt: skip
    layers = {each.name: "int8" for each in nodes}
    model = quantised(nodes, SHAPE, constants, Recipe(equalise=False, refine=False, layers=layers)).model
    assert scale_of(named(model, "concat"), 0) == scale_of(named(model, "other")) != scale_of(named(model, "last"))


def test_recipe_leaves_a_layer_float() -> None:
    found = residual(Recipe(refine=False, layers={"second": "float"}))
    second = named(found.model, "second")
    assert feeds(second) == "Relu" and second.inputs[1].const_value is not None  # type: ignore[union-attr]
    assert {layer.name: layer.bits for layer in found.layers}["second"] == "float"
    outputs(found.model, samples(SHAPE, 1))


def test_recipe_gives_a_layer_16_bits() -> None:
    found = residual(Recipe(refine=False, layers={"second": "int16"}))
    quantise = named(found.model, "second").inputs[0].producer().inputs[0].producer()  # type: ignore[union-attr]
    assert quantise is not None and quantise.inputs[2].const_value.numpy().dtype == np.int16  # type: ignore[union-attr]
    assert {layer.name: layer.bits for layer in found.layers}["second"] == "int16"
    graph = load_graph(build(RESIDUAL, {"x": SHAPE}, ["y"], RESIDUAL_CONSTANTS))
    wanted = outputs(graph, samples(SHAPE))
    assert decibels(outputs(found.model, samples(SHAPE)), wanted) > 25


def test_products_beside_16_bits_load_in_onnxruntime() -> None:
    """ONNX Runtime makes a Gemm, behind a Reshape of its own, of a product of matrices with a bias."""
    nodes = [
        node("MatMul", ["x", "w"], ["p"], name="first"),
        node("Add", ["p", "b"], ["h"], name="bias"),
        node("Relu", ["h"], ["r"], name="relu"),
        node("MatMul", ["r", "v"], ["q"], name="second"),
        node("Add", ["q", "x"], ["y"], name="sum"),
    ]
    shape, constants = (1, 5, 7), {"w": random(7, 9), "b": random(9, seed=1), "v": random(9, 7, seed=2)}
    found = quantised(nodes, shape, constants, Recipe(refine=False, layers={"second": "int16"}))
    wanted = outputs(load_graph(build(nodes, {"x": shape}, ["y"], constants)), samples(shape))
    assert decibels(outputs(found.model, samples(shape)), wanted) > 25


def test_functions_are_quantised_on_both_sides() -> None:
    nodes = [node("Conv", ["x", "w"], ["a"], name="conv"), node("Sigmoid", ["a"], ["b"], name="sigmoid"),
             node("Conv", ["b", "v"], ["y"], name="last")]  # fmt: skip
    model = quantised(nodes, SHAPE, {"w": random(4, 3, 1, 1), "v": random(2, 4, 1, 1)}).model
    assert feeds(named(model, "sigmoid")) == "DequantizeLinear" and reads(named(model, "sigmoid")) == ["QuantizeLinear"]


def test_norms_and_attention_stay_float() -> None:
    nodes = [
        node("MatMul", ["x", "w"], ["q"], name="query"),
        node("MatMul", ["x", "v"], ["k"], name="key"),
        node("MatMul", ["q", "k"], ["s"], name="scores"),
        node("Softmax", ["s"], ["p"], name="softmax", axis=-1),
        node("MatMul", ["p", "q"], ["o"], name="values"),
        node("LayerNormalization", ["o", "scale"], ["n"], name="norm"),
        node("MatMul", ["n", "u"], ["y"], name="last"),
    ]
    constants = {"w": random(6, 6), "v": random(6, 6), "scale": np.ones(6, np.float32), "u": random(6, 3)}
    found = quantised(nodes, (1, 6, 6), constants)
    bits = {layer.name: layer.bits for layer in found.layers}
    assert [bits[name] for name in ("query", "key", "last")] == ["int8"] * 3
    assert [bits[name] for name in ("scores", "softmax", "values", "norm")] == ["float"] * 4
    assert [feeds(named(found.model, "scores"), i) for i in (0, 1)] == ["MatMul"] * 2


def test_positions_are_not_clipped_where_the_samples_end() -> None:
    """What is computed of an integer input alone stays float; what a table of few values gives does not."""
    generator = np.random.default_rng(5)
    nodes = [
        node("Cast", ["place"], ["real"], to=onnx.TensorProto.FLOAT, name="real"),
        node("Mul", ["real", "rates"], ["angles"], name="angles"),
        node("Cos", ["angles"], ["cosine"], name="cosine"),
        node("Gather", ["table", "place"], ["row"], name="row"),
        node("Mul", ["row", "cosine"], ["turned"], name="turned"),
        node("MatMul", ["turned", "w"], ["y"], name="product"),
    ]
    constants = {
        "rates": np.float32([[0.5, 0.31, 0.17, 0.05]]),
        "table": generator.standard_normal((64, 4), np.float32),
        "w": generator.standard_normal((4, 8), np.float32),
    }
    types = {"place": onnx.TensorProto.INT64}
    graph = load_graph(build(nodes, {"place": (1, 1)}, ["y"], constants, types=types))
    found = quantize(graph, [{"place": np.array([[place]])} for place in range(16)])
    bits = {layer.name: layer.bits for layer in found.layers}
    assert bits == {**dict.fromkeys(bits, "int8"), "real": "float", "angles": "float", "cosine": "float"}
    beyond = [{"place": np.array([[place]])} for place in range(40, 64)]
    wanted, given = (ModelRunner(each).run_all(beyond) for each in (graph, found.model))
    assert signal_to_noise([run[0] for run in given], [run[0] for run in wanted]) > 25


def test_pixels_are_exact() -> None:
    graph = load_graph(build(CONCAT, {"x": SHAPE}, ["y"], {
        "w": random(2, 3, 1, 1), "v": random(3, 3, 1, 1), "u": random(2, 5, 1, 1)}))  # fmt: skip
    pixels = np.random.default_rng(0).integers(0, 256, (9, *SHAPE)).astype(np.float32)
    found = quantize(graph, [{"x": each} for each in pixels], QUICK)
    (tensor, *_) = next(layer for layer in found.layers if layer.name == "left").tensors
    assert (tensor.scale, tensor.zero_point, tensor.clipped) == (1.0, -128, 0.0)


@pytest.mark.parametrize("seed", range(4))
def test_odd_convolutions(seed: int) -> None:
    """Groups, strides, dilations, uneven padding, no bias, 1 and 3 spatial axes."""
    extents = [(17,), (7, 5), (5, 7), (5, 6, 7)][seed]
    rank, groups = len(extents), [1, 2, 6, 3][seed]
    attributes = {"strides": [2] * rank, "pads": [1] * rank + [0] * rank, "dilations": [1 + seed % 2] * rank}
    nodes = [node("Conv", ["x", "w", "b"][: 3 - seed % 2], ["a"], name="conv", group=groups, **attributes),
             node("Clip", ["a", "zero", "six"], ["c"], name="clip"), node("Abs", ["c"], ["y"], name="abs")]  # fmt: skip
    constants = {"w": random(6, 6 // groups, *[2] * rank), "b": random(6), "zero": np.float32(0), "six": np.float32(6)}
    shape = (1, 6, *extents)
    graph = load_graph(build(nodes, {"x": shape}, ["y"], {k: v for k, v in constants.items() if k in str(nodes)}))
    found = quantize(graph, samples(shape))
    assert decibels(outputs(found.model, samples(shape)), outputs(graph, samples(shape))) > 25


@pytest.mark.parametrize(
    ("recipe", "says"),
    [
        (Recipe(observer="guess"), "observer in the recipe is 'guess'"),
        (Recipe(rounding="up"), "rounding in the recipe is 'up'"),
        (Recipe(layers={"gone": "int8"}), "names the layer 'gone'"),
        (Recipe(layers={"add": "int4"}), "precision of layer 'add' in the recipe is 'int4'"),
    ],
)
def test_refuses_a_wrong_recipe(recipe: Recipe, says: str) -> None:
    with pytest.raises(EdgecError, match=says):
        residual(recipe)


def test_refuses_no_samples_and_quantised_models() -> None:
    graph = load_graph(build(RESIDUAL, {"x": SHAPE}, ["y"], RESIDUAL_CONSTANTS))
    with pytest.raises(EdgecError, match="no samples"):
        quantize(graph, [])
    with pytest.raises(EdgecError, match="quantised already"):
        quantize(residual().model, samples(SHAPE))


def test_tells_its_progress_and_prints() -> None:
    told: list[str] = []
    graph = load_graph(build(RESIDUAL, {"x": SHAPE}, ["y"], RESIDUAL_CONSTANTS))
    found = quantize(graph, samples(SHAPE), progress=lambda what, done, total: told.append(f"{what} {done}/{total}"))
    assert f"ranges {len(samples(SHAPE))}/{len(samples(SHAPE))}" in told
    assert "second (Conv): int8" in str(found) and "dB" in str(found)


def test_refuses_16_bits_beside_an_operator_that_their_opset_changes() -> None:
    nodes = [node("Conv", ["x", "w"], ["a"], name="conv"), node("DFT", ["a"], ["y"], name="transform", axis=2)]
    shape = (1, 3, 9, 1)
    with pytest.raises(EdgecError, match="'transform' means something else at opset 21"):
        quantised(nodes, shape, {"w": random(2, 3, 1, 1)}, Recipe(refine=False, layers={"conv": "int16"}))
