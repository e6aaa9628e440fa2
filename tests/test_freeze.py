"""edgec freeze: shapes and choices that are fixed before anything else, and models that are cut off."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

import edgec
from edgec.errors import EdgecError, UnsupportedModelError
from edgec.frontend.ends import parse_value_flags
from edgec.graph import load_graph
from tests.graphs import build, node
from tests.test_cli import call, results_of, sentence_of

RNG = np.random.default_rng(0)
X = RNG.standard_normal((1, 4, 8)).astype(np.float32)


@pytest.fixture
def branching() -> onnx.ModelProto:
    """y = pad(x) at 16000 Hz and x[..., :6] otherwise, times a gain: shapes that hang on the value of ``rate``."""
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 4, "T"])
    rate = helper.make_tensor_value_info("rate", TensorProto.INT64, [])
    gain = helper.make_tensor_value_info("gain", TensorProto.FLOAT, [4, 1])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 4, "U"])
    inner = helper.make_tensor_value_info("z", TensorProto.FLOAT, None)
    constants = {"pads": np.array([0, 0, 1, 0, 0, 1]), "begin": np.array([0]), "end": np.array([6]),
                 "axis": np.array([2]), "high": np.array(16000)}  # fmt: skip
    then = helper.make_graph([node("Pad", ["x", "pads"], ["z"])], "then", [], [inner])
    other = helper.make_graph([node("Slice", ["x", "begin", "end", "axis"], ["z"])], "else", [], [inner])
    nodes = [
        node("Equal", ["rate", "high"], ["is_high"]),
        node("If", ["is_high"], ["w"], name="choice", then_branch=then, else_branch=other),
        node("Mul", ["w", "gain"], ["y"], name="product"),
    ]
    stored = [onnx.numpy_helper.from_array(array, name) for name, array in constants.items()]
    graph = helper.make_graph(nodes, "branching", [x, rate, gain], [y], stored)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def run_onnx(model: onnx.ModelProto | Path, feeds: dict[str, np.ndarray]) -> np.ndarray:
    source = str(model) if isinstance(model, Path) else model.SerializeToString()
    return onnxruntime.InferenceSession(source).run(None, feeds)[0]


class TestValues:
    def test_flags(self) -> None:
        flags = ["rate=16000", "cached=true", "scales=0.7,1,-2e-3", "a=b=False"]
        assert parse_value_flags(flags) == {
            "rate": (16000,), "cached": (True,), "scales": (0.7, 1, -0.002), "a=b": (False,),
        }  # fmt: skip

    @pytest.mark.parametrize("flag", ["rate", "=1", "rate=", "rate=1,", "rate=high", "rate=1;2"])
    def test_malformed_flag(self, flag: str) -> None:
        with pytest.raises(EdgecError, match="NAME=16000"):
            parse_value_flags([flag])

    def test_flag_given_twice(self) -> None:
        with pytest.raises(EdgecError, match="twice for input 'rate'"):
            parse_value_flags(["rate=1", "rate=2"])

    @pytest.mark.parametrize(("rate", "frames"), [(16000, 10), (8000, 6)])
    def test_a_branch_on_a_constant_input_is_taken(
        self, branching: onnx.ModelProto, tmp_path: Path, rate: int, frames: int
    ) -> None:
        frozen = edgec.freeze(
            branching, tmp_path / "m.onnx", shapes={"x": X.shape}, values={"rate": (rate,), "gain": (1, 2, 3, 4)}
        )
        assert [(each.name, each.shape) for each in frozen.inputs] == [("x", (1, 4, 8))]
        assert [(each.name, each.shape) for each in frozen.outputs] == [("y", (1, 4, frames))]
        assert {each.op_type for each in onnx.load(frozen.path).graph.node} <= {"Pad", "Slice", "Mul"}
        gain = np.float32([[1], [2], [3], [4]])
        expected = run_onnx(branching, {"x": X, "rate": np.array(rate), "gain": gain})
        np.testing.assert_array_equal(run_onnx(frozen.path, {"x": X}), expected)
        edgec.compile(frozen.path, output=tmp_path / "m.so")
        with edgec.load(tmp_path / "m.so") as session:
            np.testing.assert_allclose(session.run({"x": X})["y"], expected, rtol=1e-6)

    def test_one_number_fills_an_input(self, branching: onnx.ModelProto) -> None:
        model = load_graph(branching, shapes={"x": X.shape}, values={"rate": (8000,), "gain": (2.5,)})
        assert model.graph.initializers["gain"].const_value.numpy().tolist() == [[2.5]] * 4  # type: ignore[union-attr]

    @pytest.mark.parametrize(
        ("values", "sentence"),
        [
            ({"rat": (1,)}, r"--value names 'rat', but the model's inputs are: 'x' .*, 'rate' .*, 'gain'"),
            ({"rate": (0.5,)}, "input 'rate' is int64, which has no such number"),
            ({"rate": (1, 2)}, r"has 2 numbers, but the model declares 'rate' as \[\]"),
            ({"gain": (1, 2, 3)}, r"has 3 numbers, but the model declares 'gain' as \[4,1\]"),
        ],
    )
    def test_refused(self, branching: onnx.ModelProto, values: dict[str, tuple[float, ...]], sentence: str) -> None:
        with pytest.raises(EdgecError, match=sentence):
            load_graph(branching, shapes={"x": X.shape}, values=values)

    def test_an_open_choice_is_refused_with_the_command(self, branching: onnx.ModelProto) -> None:
        with pytest.raises(UnsupportedModelError, match="edgec freeze MODEL --value rate=…"):
            load_graph(branching, shapes={"x": X.shape})


class TestEnds:
    @pytest.fixture
    def chain(self) -> onnx.ModelProto:
        nodes = [
            node("Relu", ["x"], ["a"], name="first"),
            node("Exp", ["a"], ["b"], name="second"),
            node("Add", ["b", "x"], ["c"], name="third"),
            node("NonZero", ["c"], ["y"], name="last"),
        ]
        model = build(nodes, {"x": [1, 4, 8]}, [])
        model.graph.output.append(helper.make_tensor_value_info("y", TensorProto.INT64, [3, "found"]))
        return model

    def test_a_dynamic_end_is_refused_with_the_command(self, chain: onnx.ModelProto) -> None:
        with pytest.raises(UnsupportedModelError, match=r"edgec freeze MODEL --outputs c$"):
            load_graph(chain)

    def test_the_end_is_cut_off(self, chain: onnx.ModelProto, tmp_path: Path) -> None:
        frozen = edgec.freeze(chain, tmp_path / "m.onnx", outputs=["c"])
        assert [(each.name, each.shape, each.dtype) for each in frozen.outputs] == [("c", (1, 4, 8), "float32")]
        np.testing.assert_allclose(run_onnx(frozen.path, {"x": X}), np.exp(np.maximum(X, 0)) + X, rtol=1e-6)

    def test_the_begin_is_cut_off(self, chain: onnx.ModelProto, tmp_path: Path) -> None:
        frozen = edgec.freeze(chain, tmp_path / "m.onnx", inputs=["a"], outputs=["b"])
        assert [each.name for each in frozen.inputs] == ["a"]
        np.testing.assert_allclose(run_onnx(frozen.path, {"a": X}), np.exp(X), rtol=1e-6)

    def test_inputs_of_what_was_cut_off_are_gone(self, branching: onnx.ModelProto) -> None:
        model = load_graph(branching, shapes={"x": X.shape}, values={"rate": (8000,)}, outputs=["w"])
        assert [value.name for value in model.graph.inputs] == ["x"]

    @pytest.mark.parametrize(
        ("names", "sentence"),
        [
            ({"outputs": ["second"]}, "no value of the graph has that name; the node of that name computes b"),
            ({"inputs": ["nothing"]}, "--inputs names 'nothing', and no value of the graph has that name"),
            ({"inputs": ["b"], "outputs": ["c"]}, r"--inputs b leaves out .*; name these as well: x"),
        ],
    )
    def test_refused(self, chain: onnx.ModelProto, names: dict[str, list[str]], sentence: str) -> None:
        with pytest.raises(EdgecError, match=sentence):
            load_graph(chain, **names)


def test_command(branching: onnx.ModelProto, tmp_path: Path) -> None:
    onnx.save(branching, tmp_path / "m.onnx")
    arguments = ["freeze", str(tmp_path / "m.onnx"), "--shape", "x=1x4x8", "-o", str(tmp_path / "f.onnx")]
    found = results_of(*arguments, "--value", "rate=16000", "--value", "gain=1")
    assert found["inputs"] == [{"name": "x", "shape": [1, 4, 8], "dtype": "float32"}]
    assert "saved to" in call(*arguments, "--value", "rate=8000", "--outputs", "w").stdout
    (tmp_path / "f.onnx").unlink()
    assert "no such number" in sentence_of(*arguments, "--value", "rate=0.5")
    assert not (tmp_path / "f.onnx").exists()
