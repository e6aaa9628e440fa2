"""Layer norms of a residual stream become RMS norms, exactly, wherever the stream can be centred by its weights."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from edgec.passes.fold_norms import FoldNorms
from edgec.passes.pipeline import DEFAULT
from edgec.passes.pipeline import run as run_passes
from tests.folding import arrays, folded, refusal
from tests.graphs import INT64, assert_same, build, load, node, operators

WIDTH, LENGTH = 7, 5


class Transformer:
    """A small pre-norm transformer under construction; ``value`` is its residual stream [1, LENGTH, WIDTH]."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, np.ndarray] = {}
        self.value = ""

    def add(self, operator: str, inputs: list[str], **attributes: object) -> str:
        name = f"v{len(self.nodes)}"
        self.nodes.append(node(operator, inputs, [name], name=f"n{len(self.nodes)}", **attributes))
        return name

    def constant(self, *shape: int) -> str:
        """Random, with a mean well off zero."""
        name = f"c{len(self.constants)}"
        self.constants |= {name: arrays(len(self.constants), c=shape)["c"] + np.float32(0.5)}
        return name

    def linear(self, source: str, inputs: int, outputs: int) -> str:
        product = self.add("MatMul", [source, self.constant(inputs, outputs)])
        return self.add("Add", [product, self.constant(outputs)])

    def norm(self) -> str:
        scale, bias = self.constant(WIDTH), self.constant(WIDTH)
        return self.add("LayerNormalization", [self.value, scale, bias], epsilon=1e-6)

    def block(self) -> None:
        """Attention of one head, then two layers with an activation between."""
        normal = self.norm()
        query, key, value = (self.linear(normal, WIDTH, 4) for _ in range(3))
        scores = self.add("MatMul", [query, self.add("Transpose", [key], perm=[0, 2, 1])])
        mixed = self.add("MatMul", [self.add("Softmax", [scores]), value])
        self.value = self.add("Add", [self.value, self.linear(mixed, 4, WIDTH)])
        hidden = self.add("Relu", [self.linear(self.norm(), WIDTH, 11)])
        self.value = self.add("Add", [self.linear(hidden, 11, WIDTH), self.value])

    def build(self, shape: list[int], dtype: int) -> onnx.ModelProto:
        return build(self.nodes, {"x": shape}, [self.value], self.constants, types={"x": dtype})

    def check(self, shape: list[int], dtype: int, norms: int) -> None:
        original = self.build(shape, dtype)
        model = load(original)
        report = FoldNorms().apply(model)
        assert (report.matched, report.refusals) == (norms, ())
        found = operators(model)
        assert (found.count("RMSNormalization"), found.count("LayerNormalization")) == (norms, 0)
        inputs = {"x": np.arange(LENGTH)[None]} if dtype == INT64 else None
        assert_same(original, model, inputs)
        assert FoldNorms().apply(model).matched == 0
        assert operators(model) == found


def test_language_model() -> None:
    """Embeddings of tokens and positions, two blocks, the last norm, a head."""
    network = Transformer()
    tokens = network.add("Gather", [network.constant(13, WIDTH), "x"])
    network.value = network.add("Add", [tokens, network.constant(LENGTH, WIDTH)])
    network.block()
    network.block()
    network.value = network.linear(network.norm(), WIDTH, 3)
    network.check([1, LENGTH], INT64, 5)


def test_pipeline_folds_the_shifts_of_the_norms() -> None:
    """β goes into the biases behind each norm, so that an RMS norm is all that stays."""
    network = Transformer()
    network.value = network.linear("x", 3, WIDTH)
    network.block()
    network.value = network.linear(network.norm(), WIDTH, 3)
    original = network.build([1, LENGTH, 3], onnx.TensorProto.FLOAT)
    model = load(original)
    run_passes(model)
    found = operators(model)
    assert (found.count("RMSNormalization"), found.count("MatMul"), found.count("Add")) == (3, 8, 10)
    assert_same(original, model)
    assert [report.matched for report in run_passes(model)] == [0] * len(DEFAULT)


@pytest.mark.parametrize("scalar", [True, False])
def test_vision_transformer(scalar: bool) -> None:
    """Patches by a convolution, a class token in front of them, which alone is read in the end."""
    network = Transformer()
    weight, bias = network.constant(WIDTH, 3, 2, 2), network.constant(WIDTH)
    patches = network.add("Conv", ["x", weight, bias], strides=[2, 2])
    network.constants |= {"flat": np.array([1, WIDTH, 6]), "first": np.array(0 if scalar else [0])}
    rows = network.add("Transpose", [network.add("Reshape", [patches, "flat"])], perm=[0, 2, 1])
    tokens = network.add("Concat", [network.constant(1, 1, WIDTH), rows], axis=1)
    network.value = network.add("Add", [tokens, network.constant(1, 7, WIDTH)])
    network.block()
    network.value = network.add("Gather", [network.value, "first"], axis=1)
    network.value = network.linear(network.norm(), WIDTH, 3)
    network.check([1, 3, 4, 6], onnx.TensorProto.FLOAT, 3)


def test_gemm() -> None:
    nodes = [
        node("Gemm", ["x", "w", "b"], ["h"], transB=1),
        node("LayerNormalization", ["h", "s"], ["y"]),
    ]
    found, _ = folded(FoldNorms(), nodes, {"x": [3, 5]}, arrays(w=(7, 5), b=(1,), s=(7,)))
    assert found == ["Gemm", "RMSNormalization"]


NORM = node("LayerNormalization", ["h", "s"], ["y"], name="norm")
PRODUCT = node("MatMul", ["x", "w"], ["h"], name="product")
CONSTANTS = arrays(w=(5, 7), s=(7,))


class TestRefusals:
    def _reason(self, nodes: list[onnx.NodeProto], outputs: tuple[str, ...] = ("y",), **more: np.ndarray) -> str:
        return refusal(FoldNorms(), nodes, {"x": [2, 3, 5]}, CONSTANTS | more, outputs)

    def test_another_reader(self) -> None:
        nodes = [PRODUCT, NORM, node("Sigmoid", ["h"], ["z"], name="gate")]
        assert self._reason(nodes, ("y", "z")) == (
            "LayerNormalization node 'norm' [2,3,7] [7] -> [2,3,7]: its residual stream is also read by Sigmoid "
            "'gate', to which its mean may matter; it stays centred"
        )

    def test_another_writer(self) -> None:
        nodes = [PRODUCT, node("Relu", ["h"], ["r"], name="relu"), node("LayerNormalization", ["r", "s"], ["y"])]
        assert "is written by Relu 'relu', which is no linear layer" in self._reason(nodes)

    def test_output(self) -> None:
        assert "is also an output of the model, 'h'" in self._reason([PRODUCT, NORM], ("y", "h"))

    def test_input(self) -> None:
        nodes = [node("LayerNormalization", ["x", "s"], ["y"])]
        reason = refusal(FoldNorms(), nodes, {"x": [2, 3, 7]}, arrays(s=(7,)))
        assert "begins with 'x', an input of the model" in reason

    def test_shared_weight(self) -> None:
        nodes = [PRODUCT, NORM, node("MatMul", ["x", "w"], ["z"], name="head")]
        assert "is written with 'w', which MatMul 'head' reads too" in self._reason(nodes, ("y", "z"))

    def test_weight_computed_at_run_time(self) -> None:
        reason = refusal(FoldNorms(), [PRODUCT, NORM], {"x": [2, 3, 5], "w": [5, 7]}, arrays(s=(7,)))
        assert "is written by MatMul 'product', whose weight is computed at run time" in reason

    def test_groups(self) -> None:
        """The mean of all channels is no sum over the inputs of one group."""
        nodes = [
            node("Conv", ["x", "k"], ["c"], name="depthwise", group=7),
            node("Transpose", ["c"], ["h"], perm=[0, 2, 1]),
            NORM,
        ]
        reason = refusal(FoldNorms(), nodes, {"x": [2, 7, 5]}, arrays(k=(7, 1, 3), s=(7,)))
        assert "is written by Conv 'depthwise' in groups" in reason

    def test_channels_that_are_mixed(self) -> None:
        nodes = [
            node("Conv", ["x", "k"], ["c"]),
            node("Reshape", ["c", "shape"], ["h"], name="mix"),
            NORM,
        ]
        constants = {**arrays(k=(7, 5, 1), s=(7,)), "shape": np.array([2, 3, 7])}
        reason = refusal(FoldNorms(), nodes, {"x": [2, 5, 3]}, constants)
        assert "are not kept apart by Reshape 'mix'" in reason
