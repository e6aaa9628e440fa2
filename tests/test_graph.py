"""Import: what is accepted, what it becomes, and the sentence for everything that is refused."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper

from edgec.errors import EdgecError, UnsupportedModelError
from edgec.frontend.shapes import parse_shape_flags
from edgec.frontend.summary import summarise
from edgec.frontend.values import is_static
from edgec.graph import load_graph
from tests import graphs
from tests.graphs import BOOL, INT64, assert_same, build, load, node, operators

IMAGE = {"x": [1, 3, 7, 5]}


def relu_model() -> onnx.ModelProto:
    return build([node("Relu", ["x"], ["y"])], IMAGE, ["y"])


def conv_model(*, kernel: int = 3, groups: int = 1, opset: int = 18, **shape: list[int | str]) -> onnx.ModelProto:
    weight = np.random.default_rng(1).standard_normal((4, 4 // groups, kernel, kernel)).astype(np.float32)
    conv = node("Conv", ["x", "w"], ["y"], group=groups, name="conv")
    return build([conv], {"x": shape.get("x", [1, 4, 7, 5])}, ["y"], {"w": weight}, opset=opset)


class TestShapes:
    def test_flags(self) -> None:
        flags = ["input=1x3x224x224", "a=b=5", "lengths=7"]
        assert parse_shape_flags(flags) == {"input": (1, 3, 224, 224), "a=b": (5,), "lengths": (7,)}

    @pytest.mark.parametrize("flag", ["input", "=1x3", "x=", "x=1xN", "x=0x3", "x=-1", "x=1x", "x=1.5", "x=²"])
    def test_malformed_flag(self, flag: str) -> None:
        with pytest.raises(EdgecError, match="NAME=1x3x224x224"):
            parse_shape_flags([flag])

    def test_flag_given_twice(self) -> None:
        with pytest.raises(EdgecError, match="twice for input 'x'"):
            parse_shape_flags(["x=1", "x=2"])

    def test_dynamic_input_names_the_ready_flag(self) -> None:
        with pytest.raises(EdgecError) as refused:
            load(conv_model(x=["N", 4, 7, 5]))
        assert str(refused.value) == "Input 'x' has dynamic shape [N,4,7,5]; pin it with --shape x=1x4x7x5"

    def test_every_dynamic_input_is_named(self) -> None:
        model = build([node("Add", ["a", "b"], ["y"])], {"a": ["N", 3, "H", "W"], "b": ["T", 1]}, ["y"])
        with pytest.raises(EdgecError, match="--shape a=1x3x224x224 --shape b=1x1"):
            load(model)

    @pytest.mark.parametrize("extent", [0, -1])
    def test_numbers_that_mean_dynamic(self, extent: int) -> None:
        model = conv_model()
        model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = extent
        with pytest.raises(EdgecError, match="pin it with --shape x=1x4x7x5"):
            load(model)

    def test_pinning_makes_every_value_static(self) -> None:
        model = load(conv_model(x=["N", 4, "H", 5]), x=(2, 4, 17, 5))
        assert model.graph.outputs[0].shape == (2, 4, 15, 3)
        assert all(is_static(value) for each in model.graph for value in each.outputs)

    def test_one_name_is_pinned_everywhere(self) -> None:
        model = build([node("Add", ["a", "b"], ["y"])], {"a": ["N", 3], "b": ["N", 3]}, ["y"])
        assert load(model, a=(5, 3)).graph.inputs[1].shape == (5, 3)

    def test_axes_that_nobody_could_name_are_not_equal(self) -> None:
        model = build([node("Relu", ["x"], ["y"])], {"x": ["?", 3, "?", "?"]}, ["y"])
        assert load(model, x=(1, 3, 48, 192)).graph.outputs[0].shape == (1, 3, 48, 192)

    def test_an_output_of_another_rank_than_declared(self) -> None:
        model = relu_model()
        del model.graph.output[0].type.tensor_type.shape.dim[0]
        assert load(model).graph.outputs[0].shape == (1, 3, 7, 5)

    def test_one_name_pinned_differently(self) -> None:
        model = build([node("Add", ["a", "b"], ["y"])], {"a": ["N", 3], "b": ["N", 3]}, ["y"])
        with pytest.raises(EdgecError, match="axis 'N' 2, but another --shape made it 5"):
            load(model, a=(5, 3), b=(2, 3))

    def test_unknown_input_lists_the_inputs(self) -> None:
        with pytest.raises(EdgecError, match=r"names 'image', but the model's inputs are: 'x' \[1,4,7,5\]"):
            load(conv_model(), image=(1, 4, 7, 5))

    def test_wrong_rank(self) -> None:
        with pytest.raises(EdgecError, match=r"x=1x4 has 2 axes, but the model declares 'x' as \[N,4,7,5\]"):
            load(conv_model(x=["N", 4, 7, 5]), x=(1, 4))

    def test_contradicting_a_static_axis(self) -> None:
        with pytest.raises(EdgecError, match=r"contradicts the model.* \[1,4,7,5\]"):
            load(conv_model(), x=(1, 4, 8, 5))

    def test_static_shapes_may_be_repeated(self) -> None:
        assert load(conv_model(), x=(1, 4, 7, 5)).graph.inputs[0].shape == (1, 4, 7, 5)

    def test_shape_arithmetic_is_resolved(self) -> None:
        """Flatten as old exporters spell it: Shape → Gather → Unsqueeze → Concat → Reshape."""
        nodes = [
            node("Shape", ["x"], ["shape"]),
            node("Gather", ["shape", "zero"], ["batch"]),
            node("Unsqueeze", ["batch", "axis"], ["first"]),
            node("Concat", ["first", "rest"], ["target"], axis=0),
            node("Reshape", ["x", "target"], ["y"]),
        ]
        constants = {"zero": np.int64(0), "axis": np.array([0]), "rest": np.array([-1])}
        original = build(nodes, {"x": ["N", 3, 5]}, ["y"], constants)
        model = load(original, x=(2, 3, 5))
        assert model.graph.outputs[0].shape == (2, 15)
        assert_same(original, model)

    def test_expanded_constants_are_resolved(self) -> None:
        nodes = [
            node("Shape", ["x"], ["shape"]),
            node("ConstantOfShape", ["shape"], ["zeros"]),
            node("Add", ["zeros", "x"], ["z"]),
            node("Shape", ["z"], ["again"]),
            node("ConstantOfShape", ["again"], ["pads"], value=helper.make_tensor("v", INT64, [1], [1])),
            node("Gather", ["pads", "six"], ["padded"]),
            node("Pad", ["x", "padded"], ["y"]),
        ]
        original = build(nodes, {"x": ["N"]}, ["y"], {"six": np.zeros(2, np.int64)})
        model = load(original, x=(7,))
        assert model.graph.outputs[0].shape == (9,)
        assert_same(original, model)


class TestForm:
    def test_initialisers_listed_as_inputs_are_constants(self) -> None:
        original = conv_model()
        original.graph.input.append(helper.make_tensor_value_info("w", graphs.FLOAT, [4, 4, 3, 3]))
        model = load(original)
        assert [value.name for value in model.graph.inputs] == ["x"]
        assert model.graph.initializers["w"].const_value is not None

    def test_constant_nodes_become_initialisers(self) -> None:
        two = helper.make_tensor("two", graphs.FLOAT, [], [2.0])
        original = build([node("Constant", [], ["c"], value=two), node("Mul", ["x", "c"], ["y"])], IMAGE, ["y"])
        model = load(original)
        assert operators(model) == ["Mul"]
        assert_same(original, model)

    def test_functions_are_inlined(self) -> None:
        body = [node("Mul", ["a", "a"], ["b"])]
        square = helper.make_function("local", "Square", ["a"], ["b"], body, [helper.make_opsetid("", 18)])
        calls = [
            node("Square", ["x"], ["h"], domain="local"),
            node("Square", ["h"], ["y"], domain="local"),
        ]
        original = build(calls, IMAGE, ["y"], functions=[square], domains={"local": 1})
        model = load(original)
        assert operators(model) == ["Mul", "Mul"]
        assert not model.functions
        assert "local" not in model.opset_imports
        assert_same(original, model)

    def test_rotary_embedding_is_expanded(self) -> None:
        rng = np.random.default_rng(0)
        tables = {name: rng.standard_normal((1, 5, 4)).astype(np.float32) for name in ("cos", "sin")}
        original = build(
            [node("RotaryEmbedding", ["x", "cos", "sin"], ["y"])], {"x": [1, 2, 5, 8]}, ["y"], tables, opset=23
        )
        model = load(original)
        assert [value.name for value in model.graph.inputs] == ["x"]
        assert "RotaryEmbedding" not in operators(model)
        assert_same(original, model)

    def test_every_node_has_its_own_name(self) -> None:
        nodes = [node("Relu", ["x"], ["a"], name="same"), node("Relu", ["a"], ["b"], name="same")]
        model = load(build([*nodes, node("Relu", ["b"], ["y"])], IMAGE, ["y"]))
        assert len({each.name for each in model.graph} - {None, ""}) == 3

    def test_the_model_given_stays_as_it_is(self) -> None:
        proto = conv_model(x=["N", 4, 7, 5])
        before = proto.SerializeToString()
        given = ir.from_proto(proto)
        load_graph(given, shapes={"x": (1, 4, 7, 5)})
        load(proto, x=(1, 4, 7, 5))
        assert proto.SerializeToString() == before
        assert ir.to_proto(given).graph.input[0].type.tensor_type.shape.dim[0].dim_param == "N"

    def test_external_data(self, tmp_path: Path) -> None:
        original = conv_model()
        onnx.save_model(original, tmp_path / "m.onnx", save_as_external_data=True, location="m.bin", size_threshold=0)
        assert_same(conv_model(), load_graph(tmp_path / "m.onnx"))

    def test_external_data_below_opset_18(self, tmp_path: Path) -> None:
        onnx.save_model(
            conv_model(opset=11), tmp_path / "m.onnx", save_as_external_data=True, location="m.bin", size_threshold=0
        )
        assert_same(conv_model(), load_graph(str(tmp_path / "m.onnx")))


OLD_FORMS = {
    "softmax of opset 7 flattens": (7, node("Softmax", ["x"], ["y"], axis=1), {}),
    "pads as attribute": (9, node("Pad", ["x"], ["y"], pads=[0, 0, 1, 2, 0, 0, 0, 3], value=1.0), {}),
    "bounds as attributes": (9, node("Clip", ["x"], ["y"], min=0.0, max=0.5), {}),
    "slice by attributes": (9, node("Slice", ["x"], ["y"], starts=[1], ends=[6], axes=[2]), {}),
    "axes as attribute": (11, node("ReduceSum", ["x"], ["y"], axes=[2, 3], keepdims=1), {}),
    "mean over axes": (13, node("ReduceMean", ["x"], ["y"], axes=[1], keepdims=0), {}),
    "split by attribute": (11, node("Split", ["x"], ["y", "z"], axis=2, split=[3, 4]), {}),
    "equal split": (13, node("Split", ["x"], ["y", "z", "w"], axis=1), {}),
    "scales as attribute": (7, node("Upsample", ["x"], ["y"], scales=[1.0, 1.0, 2.0, 3.0]), {}),
    "linear upsample": (
        9,
        node("Upsample", ["x", "s"], ["y"], mode="linear"),
        {"s": np.array([1, 1, 2, 2], np.float32)},
    ),
    "dropout without input": (7, node("Dropout", ["x"], ["y"], ratio=0.3), {}),
}


class TestOpset:
    @pytest.mark.parametrize("name", OLD_FORMS)
    def test_old_forms_are_converted(self, name: str) -> None:
        opset, operator, constants = OLD_FORMS[name]
        original = build([operator], IMAGE, list(operator.output), constants, opset=opset)
        model = load(original)
        assert model.opset_imports[""] == 18
        assert_same(original, model)

    @pytest.mark.parametrize("factor", [0.5, 0.7, 1.5, 2.0])
    @pytest.mark.parametrize("mode", ["nearest", "linear"])
    def test_resize_keeps_its_old_coordinates(self, factor: float, mode: str) -> None:
        scales = np.array([1, 1, factor, factor], np.float32)
        original = build([node("Resize", ["x", "s"], ["y"], mode=mode)], IMAGE, ["y"], {"s": scales}, opset=10)
        assert_same(original, load(original))

    def test_resize_that_cannot_be_said_today(self) -> None:
        scales = np.array([1, 1, 0.5, 2], np.float32)
        original = build([node("Resize", ["x", "s"], ["y"])], IMAGE, ["y"], {"s": scales}, opset=10)
        with pytest.raises(EdgecError, match=r"from opset 10 to 18: .* enlarges one axis and shrinks another"):
            load(original)

    def test_operator_that_changed_its_meaning(self) -> None:
        with pytest.raises(EdgecError, match="Hardmax changed its meaning in opset 13; export it with opset 18"):
            load(build([node("Hardmax", ["x"], ["y"])], IMAGE, ["y"], opset=11))

    def test_newer_opsets_are_kept(self) -> None:
        newest = onnx.defs.onnx_opset_version()
        assert load(build([node("Gelu", ["x"], ["y"])], IMAGE, ["y"], opset=newest)).opset_imports[""] == newest

    def test_opset_that_onnx_does_not_know(self) -> None:
        model = relu_model()
        model.opset_import[0].version = 999
        with pytest.raises(EdgecError, match="uses opset 999"):
            load(model)


def write_empty(path: Path) -> None:
    path.write_bytes(b"")


def write_text(path: Path) -> None:
    path.write_text("This is no model.\n" * 9)


def write_truncated(path: Path) -> None:
    data = conv_model().SerializeToString()
    path.write_bytes(data[: len(data) // 2])


def write_png(path: Path) -> None:
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(range(256)))


def make_folder(path: Path) -> None:
    path.mkdir()


class TestBadFiles:
    @pytest.mark.parametrize(
        ("write", "sentence"),
        [
            (lambda path: None, "There is no file"),
            (make_folder, "is a folder"),
            (write_empty, "is empty"),
            (write_text, "is not an ONNX model"),
            (write_truncated, "is not an ONNX model"),
            (write_png, "is not an ONNX model"),
        ],
    )
    def test_sentence(self, tmp_path: Path, write: Callable[[Path], None], sentence: str) -> None:
        path = tmp_path / "model.onnx"
        write(path)
        with pytest.raises(EdgecError, match=sentence) as refused:
            load_graph(path)
        assert str(path) in str(refused.value)
        assert "\n" not in str(refused.value)

    def test_unreadable_file(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def denied(*_: object, **__: object) -> None:
            raise PermissionError(13, "Permission denied")

        path = tmp_path / "model.onnx"
        path.write_bytes(relu_model().SerializeToString())
        monkeypatch.setattr(onnx, "load", denied)
        with pytest.raises(EdgecError, match="cannot be read: Permission denied"):
            load_graph(path)

    def test_missing_external_data(self, tmp_path: Path) -> None:
        path = tmp_path / "m.onnx"
        onnx.save_model(conv_model(), path, save_as_external_data=True, location="m.bin", size_threshold=0)
        (tmp_path / "m.bin").unlink()
        with pytest.raises(EdgecError, match=r"keeps tensor 'w' in 'm\.bin', which is not beside it"):
            load_graph(path)

    def test_short_external_data(self, tmp_path: Path) -> None:
        path = tmp_path / "m.onnx"
        onnx.save_model(conv_model(), path, save_as_external_data=True, location="m.bin", size_threshold=0)
        (tmp_path / "m.bin").write_bytes(b"\0" * 16)
        with pytest.raises(EdgecError, match="too short to hold tensor 'w'"):
            load_graph(path)

    @pytest.mark.parametrize("content", [{"raw_data": b"\0" * 28}, {"raw_data": b"\0" * 25}, {"float_data": [0.0] * 7}])
    @pytest.mark.parametrize("is_attribute", [False, True])
    def test_tensor_with_more_values_than_its_shape(self, content: dict[str, object], is_attribute: bool) -> None:
        tensor = onnx.TensorProto(name="w", data_type=onnx.TensorProto.FLOAT, dims=[2, 3], **content)
        constant = [helper.make_node("Constant", [], ["w"], value=tensor)] if is_attribute else []
        model = build([*constant, node("Add", ["x", "w"], ["y"])], {"x": [2, 3]}, ["y"])
        model.graph.output[0].CopyFrom(helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [2, 3]))
        if not is_attribute:
            model.graph.initializer.append(tensor)
        with pytest.raises(EdgecError, match=r"tensor 'w' cannot be read: .*; export or copy it again\."):
            load_graph(model)

    @pytest.mark.parametrize("seed", range(40))
    def test_damaged_bytes_never_end_in_a_traceback(self, tmp_path: Path, seed: int) -> None:
        rng = random.Random(seed)
        data = bytearray(conv_model(opset=11 + seed % 8).SerializeToString())
        for _ in range(rng.randrange(1, 5)):
            position = rng.randrange(len(data))
            if rng.random() < 0.5:
                data[position] = rng.randrange(256)
            else:
                del data[position : position + rng.randrange(1, 9)]
        path = tmp_path / "damaged.onnx"
        path.write_bytes(data)
        try:
            load_graph(path)
        except EdgecError as refused:
            assert str(refused)


def edited(model: onnx.ModelProto, edit: Callable[[onnx.GraphProto], object]) -> onnx.ModelProto:
    edit(model.graph)
    return model


def attribute(name: str, value: object) -> Callable[[onnx.GraphProto], object]:
    return lambda graph: graph.node[0].attribute.append(helper.make_attribute(name, value))


def weight(shape: tuple[int, ...], dtype: type = np.float32) -> Callable[[onnx.GraphProto], object]:
    tensor = onnx.numpy_helper.from_array(np.ones(shape, dtype), "w")
    return lambda graph: graph.initializer[0].CopyFrom(tensor)


class TestBrokenModels:
    @pytest.mark.parametrize(
        ("edit", "sentence"),
        [
            (lambda graph: graph.node[0].input.__setitem__(0, "nowhere"), "input 'nowhere' of node"),
            (attribute("colour", 3), "Unrecognized attribute: colour"),
            (lambda graph: graph.output[0].type.tensor_type.ClearField("shape"), "no shape for its output 'y'"),
            (weight((4, 5, 3, 3)), "4 input channels do not fit the weight in 1 groups"),
            (weight((4, 4, 3)), "Number of spatial dimensions in the weight"),
            (weight((4, 4, 3, 3), np.float64), "not a valid ONNX model"),
            (attribute("kernel_shape", [5, 3]), r"kernel_shape \[5, 3\] is not the weight's \[3, 3\]"),
            (attribute("strides", [0, 1]), "strides must only contain positive values"),
            (attribute("dilations", [9, 9]), "window is larger than its padded input"),
        ],
    )
    def test_conv(self, edit: Callable[[onnx.GraphProto], object], sentence: str) -> None:
        with pytest.raises(EdgecError, match=sentence):
            load(edited(conv_model(), edit))

    @pytest.mark.parametrize(
        ("operator", "constants", "sentence"),
        [
            (node("Gemm", ["m", "w", "b"], ["y"]), {"w": (3, 4), "b": (7,)}, r"\[7\] does not broadcast to \[5, 4\]"),
            (node("PRelu", ["x", "s"], ["y"]), {"s": (7,)}, r"\[7\] does not broadcast to \[1, 3, 7, 5\]"),
            (
                node("InstanceNormalization", ["x", "a", "b"], ["y"]),
                {"a": (3,), "b": (4,)},
                r"\[4\] is not one value a channel \(3\)",
            ),
            (node("Gather", ["x", "i"], ["y"], axis=1), {"i": np.array([0, 3])}, "an index is outside the 3 entries"),
            (node("Reshape", ["x", "t"], ["y"]), {"t": np.array([4, 5])}, "105 elements do not fill 20"),
            (node("MaxPool", ["x"], ["y"], kernel_shape=[2, 2], pads=[2, 0, 0, 0]), {}, "padding is as large"),
            (node("MaxPool", ["x"], ["y"], kernel_shape=[2, 2], strides=[1, 2**62]), {}, "must be below 2³¹"),
            (node("ConvTranspose", ["x", "w"], ["y"]), {"w": (4, 2, 3, 3)}, "3 input channels do not fit"),
        ],
    )
    def test_parameters(self, operator: onnx.NodeProto, constants: dict[str, object], sentence: str) -> None:
        arrays = {
            name: np.ones(value, np.float32) if isinstance(value, tuple) else value for name, value in constants.items()
        }
        inputs = {name: shape for name, shape in {**IMAGE, "m": [5, 3]}.items() if name in operator.input}
        with pytest.raises(EdgecError, match=sentence):
            load(build([operator], inputs, ["y"], arrays))

    def test_every_dynamic_node_is_listed_at_once(self) -> None:
        nodes = [node("NonZero", ["x"], ["a"], name="first"), node("Unique", ["x"], ["b"], name="second")]
        with pytest.raises(UnsupportedModelError) as refused:
            load(build(nodes, IMAGE, ["a", "b"]))
        assert [each.node for each in refused.value.refusals] == ["first", "second"]
        assert "NonZero node 'first' [1,3,7,5] -> [4,?]: the output's shape depends on the data" in str(refused.value)

    def test_foreign_operator(self) -> None:
        model = build([node("Blur", ["x"], ["h"], domain="acme")], IMAGE, [], domains={"acme": 1})
        model.graph.node.append(node("Relu", ["h"], ["y"]))
        model.graph.output.append(helper.make_tensor_value_info("y", graphs.FLOAT, [1, 3, 7, 5]))
        with pytest.raises(UnsupportedModelError, match=r"acme\.Blur .* is not a standard ONNX operator"):
            load(model)

    def test_input_that_is_no_tensor(self) -> None:
        model = build([node("SequenceAt", ["s", "i"], ["y"])], {"i": []}, ["y"], types={"i": INT64})
        model.graph.input.append(helper.make_tensor_sequence_value_info("s", graphs.FLOAT, [3]))
        model.graph.output[0].CopyFrom(helper.make_tensor_value_info("y", graphs.FLOAT, [3]))
        with pytest.raises(EdgecError, match="Input 's' is not a dense tensor"):
            load(model)


class TestSummary:
    @pytest.mark.parametrize(
        ("operator", "inputs", "constants", "macs"),
        [
            (node("Conv", ["x", "w"], ["y"], group=2, strides=[2, 1]), {"x": [2, 4, 7, 5]}, {"w": (6, 2, 3, 3)}, 1944),
            (node("ConvTranspose", ["x", "w"], ["y"]), {"x": [1, 4, 7, 5]}, {"w": (4, 3, 2, 2)}, 1680),
            (node("Gemm", ["x", "w"], ["y"], transA=1), {"x": [5, 3]}, {"w": (5, 7)}, 105),
            (node("MatMul", ["x", "w"], ["y"]), {"x": [2, 3, 5]}, {"w": (5, 7)}, 210),
            (node("Relu", ["x"], ["y"]), {"x": [5]}, {}, 0),
        ],
    )
    def test_macs(
        self, operator: onnx.NodeProto, inputs: dict[str, list[int]], constants: dict[str, tuple[int, ...]], macs: int
    ) -> None:
        arrays = {name: np.ones(shape, np.float32) for name, shape in constants.items()}
        found = summarise(load(build([operator], inputs, ["y"], arrays)))
        assert found.macs == macs
        assert found.parameters == sum(array.size for array in arrays.values())
        assert found.bytes == 4 * found.parameters

    def test_text(self) -> None:
        text = str(summarise(load(conv_model())))
        assert text == "1 nodes (1 Conv), 144 parameters in 576 bytes, 2,160 MACs"


def test_dynamic_control_flow_stays_valid() -> None:
    """A branch may hand on a value from outside; nothing in it is renamed or lifted."""
    then = helper.make_graph([node("Identity", ["r"], ["t"])], "then", [], [helper.make_empty_tensor_value_info("t")])
    other = helper.make_graph([node("Neg", ["r"], ["e"])], "else", [], [helper.make_empty_tensor_value_info("e")])
    for branch, name in ((then, "t"), (other, "e")):
        branch.output[0].CopyFrom(helper.make_tensor_value_info(name, graphs.FLOAT, [1, 3, 7, 5]))
    nodes = [node("Relu", ["x"], ["r"]), node("If", ["c"], ["y"], then_branch=then, else_branch=other)]
    original = build(nodes, {**IMAGE, "c": []}, ["y"], types={"c": BOOL})
    model = load(original)
    inputs = {"x": np.ones((1, 3, 7, 5), np.float32), "c": np.array(False)}
    assert_same(original, model, inputs)
