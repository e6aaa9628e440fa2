"""Simplification: what is folded, bypassed and merged, what must stay, and that nothing changes in value."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from edgec.errors import EdgecError
from edgec.frontend.values import is_static
from edgec.graph import load_graph
from edgec.passes.functions import DOMAIN
from edgec.passes.pipeline import run as run_passes
from edgec.passes.simplify import Simplify
from tests.graphs import BOOL, FLOAT, assert_same, build, load, node, operators

IMAGE = {"x": [1, 3, 7, 5]}


def simplified(original: onnx.ModelProto, **shapes: list[int]) -> list[str]:
    """Operators after simplification, which must keep the values and change nothing when applied again."""
    model = load(original, **shapes)
    Simplify().apply(model)
    assert_same(original, model)
    found = operators(model)
    again = Simplify().apply(model)
    assert (again.matched, operators(model)) == (0, found)
    assert again.before == again.after
    return found


def ints(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


def floats(*values: float) -> np.ndarray:
    return np.array(values, np.float32)


NO_OPS = {
    "identity": (node("Identity", ["h"], ["k"]), {}),
    "dropout": (node("Dropout", ["h"], ["k"]), {}),
    "dropout with a ratio": (node("Dropout", ["h", "r"], ["k"]), {"r": np.float32(0.4)}),
    "dropout told not to train": (
        node("Dropout", ["h", "r", "t"], ["k"]),
        {"r": np.float32(0.4), "t": np.array(False)},
    ),
    "cast": (node("Cast", ["h"], ["k"], to=FLOAT), {}),
    "reshape": (node("Reshape", ["h", "s"], ["k"]), {"s": ints(1, 3, -1, 5)}),
    "expand": (node("Expand", ["h", "s"], ["k"]), {"s": ints(7, 1)}),
    "tile": (node("Tile", ["h", "s"], ["k"]), {"s": ints(1, 1, 1, 1)}),
    "transpose": (node("Transpose", ["h"], ["k"], perm=[0, 1, 2, 3]), {}),
    "pad": (node("Pad", ["h", "p"], ["k"]), {"p": ints(0, 0, 0, 0, 0, 0, 0, 0)}),
    "slice": (node("Slice", ["h", "s", "e"], ["k"]), {"s": ints(0), "e": ints(2**62)}),
    "concat of one": (node("Concat", ["h"], ["k"], axis=1), {}),
    "concat with nothing": (node("Concat", ["h", "n"], ["k"], axis=1), {"n": np.zeros((1, 0, 7, 5), np.float32)}),
    "sum of one": (node("Sum", ["h"], ["k"]), {}),
    "add zero": (node("Add", ["z", "h"], ["k"]), {"z": np.zeros((3, 1, 1), np.float32)}),
    "subtract zero": (node("Sub", ["h", "z"], ["k"]), {"z": floats(0)}),
    "times one": (node("Mul", ["h", "o"], ["k"]), {"o": floats(1, 1, 1, 1, 1)}),
    "divide by one": (node("Div", ["h", "o"], ["k"]), {"o": np.float32(1)}),
    "power of one": (node("Pow", ["h", "o"], ["k"]), {"o": np.float32(1)}),
    "pool of one": (node("MaxPool", ["h"], ["k"], kernel_shape=[1, 1], strides=[1, 1]), {}),
    "where always": (node("Where", ["c", "h", "z"], ["k"]), {"c": np.ones((7, 5), bool), "z": floats(0)}),
    "where never": (node("Where", ["c", "z", "h"], ["k"]), {"c": np.zeros(1, bool), "z": floats(0)}),
    "clip without bounds": (node("Clip", ["h"], ["k"]), {}),
    "resize by sizes": (node("Resize", ["h", "", "", "s"], ["k"], mode="cubic"), {"s": ints(1, 3, 7, 5)}),
    "resize by one": (node("Resize", ["h", "", "s"], ["k"], mode="linear"), {"s": floats(1, 1, 1, 1)}),
    "split in one": (node("Split", ["h"], ["k"], axis=1, num_outputs=1), {}),
}

NOT_NO_OPS = {
    "transpose of equal axes": (node("Transpose", ["h"], ["k"], perm=[0, 1, 3, 2]), {}, [1, 3, 5, 5]),
    "reversing slice": (
        node("Slice", ["h", "s", "e", "a", "t"], ["k"]),
        {"s": ints(-1), "e": ints(-99), "a": ints(2), "t": ints(-1)},
        [1, 3, 7, 5],
    ),
    "shifting pad": (
        node("Pad", ["h", "p"], ["k"]),
        {"p": ints(0, 0, 1, 0, 0, 0, -1, 0)},
        [1, 3, 7, 5],
    ),
    "zero that broadcasts": (node("Add", ["h", "z"], ["k"]), {"z": np.zeros((2, 3, 7, 5), np.float32)}, [1, 3, 7, 5]),
    "zero minus": (node("Sub", ["z", "h"], ["k"]), {"z": floats(0)}, [1, 3, 7, 5]),
    "one over": (node("Div", ["o", "h"], ["k"]), {"o": floats(1)}, [1, 3, 7, 5]),
    "resize that rounds to the same size": (
        node("Resize", ["h", "", "s"], ["k"], mode="linear"),
        {"s": floats(1, 1, 1.1, 1.1)},
        [1, 3, 7, 5],
    ),
    "crop and resize": (
        node("Resize", ["h", "r", "", "s"], ["k"], coordinate_transformation_mode="tf_crop_and_resize"),
        {"r": floats(0, 0, 0.2, 0, 1, 1, 0.7, 1), "s": ints(1, 3, 7, 5)},
        [1, 3, 7, 5],
    ),
    "pool that skips": (
        node("MaxPool", ["h"], ["k"], kernel_shape=[1, 1], strides=[2, 2], ceil_mode=1),
        {},
        [1, 3, 3, 5],
    ),
    "where sometimes": (
        node("Where", ["c", "h", "z"], ["k"]),
        {"c": np.arange(5) > 2, "z": floats(0)},
        [1, 3, 7, 5],
    ),
    "maximum with a constant": (node("Max", ["h", "z"], ["k"]), {"z": floats(0)}, [1, 3, 7, 5]),
    "clip": (node("Clip", ["h", "z"], ["k"]), {"z": np.float32(0.1)}, [1, 3, 7, 5]),
}


class TestNoOps:
    @pytest.mark.parametrize("name", NO_OPS)
    @pytest.mark.parametrize("place", ["middle", "first", "last"])
    def test_bypassed(self, name: str, place: str) -> None:
        operator, constants = NO_OPS[name]
        before = [] if place == "first" else [node("Neg", ["x"], ["h"])]
        after = [] if place == "last" else [node("Sin", ["k"], ["y"])]
        chain = [*before, renamed(operator, "h", "x" if place == "first" else "h"), *after]
        output = "k" if place == "last" else "y"
        kept = [each.op_type for each in (*before, *after)]
        assert simplified(build(chain, IMAGE, [output], constants)) == kept

    @pytest.mark.parametrize("name", NOT_NO_OPS)
    def test_kept(self, name: str) -> None:
        operator, constants, shape = NOT_NO_OPS[name]
        chain = [node("Neg", ["x"], ["h"]), operator, node("Sin", ["k"], ["y"])]
        assert operator.op_type in simplified(build(chain, {"x": shape}, ["y"], constants))

    def test_dropout_in_training_stays(self) -> None:
        dropout = node("Dropout", ["x", "r", "t"], ["y"], seed=1)
        model = load(build([dropout], IMAGE, ["y"], {"r": np.float32(0.5), "t": np.array(True)}))
        Simplify().apply(model)
        assert operators(model) == ["Dropout"]

    def test_input_handed_to_an_output_keeps_both_names(self) -> None:
        chain = [node("Identity", ["x"], ["y"]), node("Relu", ["x"], ["z"])]
        assert simplified(build(chain, IMAGE, ["y", "z"])) == ["Identity", "Relu"]

    def test_one_value_as_two_outputs(self) -> None:
        chain = [node("Relu", ["x"], ["h"]), node("Identity", ["h"], ["y"]), node("Identity", ["h"], ["z"])]
        assert simplified(build(chain, IMAGE, ["y", "z"])) == ["Identity", "Relu"]


def renamed(operator: onnx.NodeProto, old: str, new: str) -> onnx.NodeProto:
    copy = onnx.NodeProto()
    copy.CopyFrom(operator)
    copy.input[:] = [new if name == old else name for name in operator.input]
    return copy


class TestFolding:
    def test_weight_expressions(self) -> None:
        nodes = [
            node("Transpose", ["w"], ["t"], perm=[1, 0]),
            node("Mul", ["t", "s"], ["m"]),
            node("Softmax", ["m"], ["n"]),
            node("MatMul", ["x", "n"], ["y"]),
        ]
        constants = {"w": np.random.default_rng(0).standard_normal((5, 7)).astype(np.float32), "s": floats(2)}
        assert simplified(build(nodes, {"x": [3, 7]}, ["y"], constants)) == ["MatMul"]

    def test_operator_with_several_outputs(self) -> None:
        """One fused weight for query, key and value, split while the model runs."""
        nodes = [node("Split", ["w"], ["q", "k", "v"], axis=1, num_outputs=3)]
        nodes += [node("MatMul", ["x", each], [f"{each}_out"]) for each in "qkv"]
        weight = np.random.default_rng(0).standard_normal((5, 21)).astype(np.float32)
        model = build(nodes, {"x": [3, 5]}, ["q_out", "k_out", "v_out"], {"w": weight})
        assert simplified(model) == ["MatMul"] * 3

    def test_quantised_weights_of_a_float_model(self) -> None:
        """A product's stay integers, which a later pass may keep; any others become constants."""
        constants = {"w": np.arange(-17, 18, dtype=np.int8).reshape(5, 7), "s": floats(*range(1, 8))}
        real = node("DequantizeLinear", ["w", "s"], ["f"], axis=1)
        product = build([real, node("MatMul", ["x", "f"], ["y"])], {"x": [3, 5]}, ["y"], constants)
        assert simplified(product) == ["DequantizeLinear", "MatMul"]
        assert simplified(build([real, node("Add", ["x", "f"], ["y"])], {"x": [5, 7]}, ["y"], constants)) == ["Add"]

    def test_quantised_model_keeps_its_integers(self) -> None:
        nodes = [
            node("QuantizeLinear", ["x", "s", "z"], ["q"]),
            node("DequantizeLinear", ["q", "s", "z"], ["d"]),
            node("DequantizeLinear", ["w", "s"], ["f"]),
            node("MatMul", ["d", "f"], ["y"]),
        ]
        constants = {
            "w": np.arange(-17, 18, dtype=np.int8).reshape(5, 7),
            "s": np.float32(0.05),
            "z": np.uint8(128),
        }
        found = simplified(build(nodes, {"x": [3, 5]}, ["y"], constants))
        assert found == ["DequantizeLinear", "DequantizeLinear", "MatMul", "QuantizeLinear"]

    def test_random_numbers_are_not_constants(self) -> None:
        nodes = [
            node("RandomNormal", [], ["r"], shape=[1, 3, 7, 5]),
            node("Bernoulli", ["p"], ["b"]),
            node("Add", ["r", "b"], ["n"]),
            node("Add", ["x", "n"], ["y"]),
        ]
        model = load(build(nodes, IMAGE, ["y"], {"p": np.full((1, 3, 7, 5), 0.5, np.float32)}))
        Simplify().apply(model)
        assert operators(model) == ["Add", "Add", "Bernoulli", "RandomNormal"]

    def test_what_would_bloat_the_model_stays(self) -> None:
        nodes = [node("Expand", ["c", "s"], ["e"]), node("Add", ["x", "e"], ["y"])]
        constants = {"c": floats(3), "s": ints(1, 2**21)}
        model = build(nodes, {"x": [1, 2**21]}, ["y"], constants)
        assert simplified(model) == ["Add", "Expand"]

    def test_shape_arithmetic_disappears(self) -> None:
        nodes = [
            node("Shape", ["x"], ["s"]),
            node("Gather", ["s", "one"], ["length"]),
            node("Range", ["zero", "length", "one"], ["positions"]),
            node("Cast", ["positions"], ["f"], to=FLOAT),
            node("Add", ["x", "f"], ["y"]),
        ]
        constants = {"zero": np.int64(0), "one": np.int64(1)}
        assert simplified(build(nodes, {"x": ["N", "L"]}, ["y"], constants), x=[2, 5]) == ["Add"]

    @pytest.mark.parametrize("taken", [True, False])
    def test_if_with_a_constant_condition(self, taken: bool) -> None:
        shape = [1, 3, 7, 5]
        then = helper.make_graph([node("Relu", ["x"], ["t"])], "t", [], [info("t", shape)])
        other = helper.make_graph([node("Sin", ["x"], ["e"])], "e", [], [info("e", shape)])
        nodes = [
            node("Shape", ["x"], ["s"]),
            node("Gather", ["s", "one"], ["channels"]),
            node("Equal", ["channels", "wanted"], ["c"]),
            node("If", ["c"], ["h"], then_branch=then, else_branch=other),
            node("Neg", ["h"], ["y"]),
        ]
        original = build(nodes, IMAGE, ["y"], {"one": np.int64(1), "wanted": np.int64(3 if taken else 4)})
        assert simplified(original) == sorted(["Neg", "Relu" if taken else "Sin"])


def info(name: str, shape: list[int]) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, FLOAT, shape)


def test_a_branch_that_hands_on_an_outer_value_stays_valid() -> None:
    shape = [1, 3, 7, 5]
    then = helper.make_graph([node("Identity", ["r"], ["t"])], "t", [], [info("t", shape)])
    other = helper.make_graph([node("Reshape", ["r", "s"], ["e"])], "e", [], [info("e", shape)])
    nodes = [node("Relu", ["x"], ["r"]), node("If", ["c"], ["y"], then_branch=then, else_branch=other)]
    original = build(nodes, {**IMAGE, "c": []}, ["y"], {"s": ints(*shape)}, types={"c": BOOL})
    model = load(original)
    Simplify().apply(model)
    for condition in (True, False):
        inputs = {"x": np.full(shape, 0.5, np.float32), "c": np.array(condition)}
        assert_same(original, model, inputs)


class TestMerging:
    def test_chains(self) -> None:
        nodes = [
            node("Transpose", ["x"], ["a"], perm=[0, 2, 3, 1]),
            node("Transpose", ["a"], ["b"], perm=[0, 3, 2, 1]),
            node("Reshape", ["b", "s"], ["c"]),
            node("Reshape", ["c", "t"], ["y"]),
        ]
        found = simplified(build(nodes, IMAGE, ["y"], {"s": ints(105), "t": ints(0, 1)}))
        assert found == ["Reshape", "Transpose"]

    def test_inverse_transposes_vanish(self) -> None:
        nodes = [
            node("Neg", ["x"], ["h"]),
            node("Transpose", ["h"], ["a"], perm=[0, 2, 3, 1]),
            node("Transpose", ["a"], ["b"], perm=[0, 3, 1, 2]),
            node("Sin", ["b"], ["y"]),
        ]
        assert simplified(build(nodes, IMAGE, ["y"])) == ["Neg", "Sin"]

    def test_narrowing_casts_stay(self) -> None:
        nodes = [node("Cast", ["x"], ["h"], to=TensorProto.INT32), node("Cast", ["h"], ["y"], to=FLOAT)]
        assert simplified(build(nodes, IMAGE, ["y"])) == ["Cast", "Cast"]

    def test_equal_nodes(self) -> None:
        nodes = [node("Sin", ["x"], ["a"]), node("Sin", ["x"], ["b"]), node("Add", ["a", "b"], ["y"])]
        assert simplified(build(nodes, IMAGE, ["y"])) == ["Add", "Sin"]

    def test_equal_outputs_keep_their_names(self) -> None:
        nodes = [node("Sin", ["x"], [name]) for name in "abc"]
        assert simplified(build(nodes, IMAGE, ["a", "b", "c"])) == ["Identity", "Identity", "Sin"]

    def test_equal_initialisers(self) -> None:
        nodes = [node("Add", ["x", "a"], ["h"]), node("Mul", ["h", "b"], ["y"])]
        constants = {name: np.arange(5, dtype=np.float32) for name in "ab"}
        model = load(build(nodes, IMAGE, ["y"], constants))
        Simplify().apply(model)
        assert len(model.graph.initializers) == 1

    def test_what_nobody_reads(self) -> None:
        nodes = [node("Sin", ["x"], ["unused"]), node("Relu", ["x"], ["y"])]
        model = load(build(nodes, IMAGE, ["y"], {"spare": floats(1)}))
        Simplify().apply(model)
        assert operators(model) == ["Relu"]
        assert not model.graph.initializers


@pytest.mark.parametrize(("reader", "left"), [("MatMul rows turned", 0), ("Add turned offset", 1)])
def test_a_large_constant_is_turned_for_products_alone(reader: str, left: int) -> None:
    """An embedding that is the head, too: a product stores its weights in an order of its own anyhow."""
    operator, *inputs = reader.split()
    nodes = [
        node("Gather", ["w", "x"], ["rows"]),
        node("Transpose", ["w"], ["turned"], perm=[1, 0]),
        node("ReduceMax", ["rows"], ["offset"]),
        node(operator, inputs, ["y"]),
    ]
    table = onnx.numpy_helper.from_array(np.random.default_rng(0).standard_normal((1100, 1000), np.float32), "w")
    tokens = helper.make_tensor_value_info("x", TensorProto.INT64, [1000])
    graph = helper.make_graph(nodes, "tied", [tokens], [info("y", [1000, 1100])], [table])
    model = load_graph(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10))
    Simplify().apply(model)
    assert [each.op_type for each in model.graph].count("Transpose") == left


def test_report() -> None:
    nodes = [node("Identity", ["x"], ["h"]), node("Relu", ["h"], ["y"])]
    model = load(build(nodes, IMAGE, ["y"], {"spare": floats(1)}))
    report = Simplify().apply(model)
    assert str(report) == "simplify: 1 matched, 2 → 1 nodes, 0 parameters, 0 MACs"


SHARED = {
    "autoencoder/ad01_autoencoder.onnx": [1, 640],
    "fastestdet/FastestDet.onnx": [1, 3, 352, 352],
    "kws/kws_dscnn.onnx": [1, 1, 49, 10],
    "mnist/mnist.onnx": [1, 1, 28, 28],
    "mobilenet_v2/tf2_mobilenet_v2_1.0_224_dequant.onnx": [1, 3, 224, 224],
    "repvgg_tiny/repvgg_tiny.onnx": [1, 3, 32, 32],
    "resnet20/resnet20_cifar10.onnx": [1, 3, 32, 32],
    "resnet8/resnet8_cifar10.onnx": [1, 3, 32, 32],
    "sinet/sinet_224.onnx": [1, 3, 224, 224],
    "squeezenet/squeezenet_fp32.onnx": [1, 3, 224, 224],
    "vit/vit_ibp_3_3_8.onnx": [1, 3, 32, 32],
    "vww/vww_mobilenetv1_025_96.onnx": [1, 3, 96, 96],
}


class TestTrainedModels:
    @pytest.mark.parametrize("name", SHARED)
    def test_shared(self, shared: Path, name: str) -> None:
        self.check(shared / "models" / name, SHARED[name])

    def test_sample(self, sample_model: Path) -> None:
        self.check(sample_model, [1, 1, 8, 8])

    def check(self, path: Path, shape: list[int]) -> None:
        original = onnx.load(path)
        constants = {tensor.name for tensor in original.graph.initializer}
        (name,) = (each.name for each in original.graph.input if each.name not in constants)
        model = load_graph(path, shapes={name: shape})
        reports = run_passes(model)
        assert all(is_static(value) for each in model.graph for value in each.outputs)
        assert all(function.domain == DOMAIN for function in model.functions.values())
        assert "Constant" not in reports[-1].after.operators
        assert_same(original, model)
        assert [report.matched for report in run_passes(model)] == [0] * len(reports)

    def test_dynamic_batch_is_refused(self, shared: Path) -> None:
        with pytest.raises(EdgecError, match="pin it with --shape input=1x3x32x32"):
            load_graph(shared / "models/vit/vit_ibp_3_3_8.onnx")
