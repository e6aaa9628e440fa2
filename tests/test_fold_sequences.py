"""Folding of operators in a row: exact with every padding, made only where it is cheaper."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from edgec.passes.fold_sequences import FoldSequences
from tests.folding import arrays, batch_norm, folded, norm, refusal
from tests.graphs import node

INPUTS = {"x": [2, 3, 9, 7]}


def first(weight: str = "u", *bias: str, **attributes: object) -> onnx.NodeProto:
    return node("Conv", ["x", weight, *bias], ["h"], name="first", **attributes)


def second(weight: str = "w", *bias: str, **attributes: object) -> onnx.NodeProto:
    return node("Conv", ["h", weight, *bias], ["y"], name="second", **attributes)


class TestConvolutions:
    @pytest.mark.parametrize("stride", [1, 2])
    @pytest.mark.parametrize("pads", [[0, 0, 0, 0], [1, 1, 1, 1], [0, 2, 1, 0]])
    def test_pointwise_before_padded(self, stride: int, pads: list[int]) -> None:
        """Without a bias between, the padding of the second is worth the same before the first."""
        nodes = [first(strides=[stride] * 2), second("w", "c", pads=pads, strides=[2, 1])]
        found, report = folded(FoldSequences(), nodes, INPUTS, arrays(u=(8, 3, 1, 1), w=(5, 8, 3, 3), c=(5,)))
        assert found == ["Conv"]
        assert report.after.parameters == 5 * 3 * 9 + 5

    @pytest.mark.parametrize("dilation", [1, 2])
    def test_padded_before_pointwise(self, dilation: int) -> None:
        nodes = [first("u", "b", pads=[1, 2, 0, 1], dilations=[dilation, 1]), second("w", "c")]
        constants = arrays(u=(8, 3, 3, 3), b=(8,), w=(5, 8, 1, 1), c=(5,))
        assert folded(FoldSequences(), nodes, INPUTS, constants)[0] == ["Conv"]

    def test_bias_before_an_unpadded_one(self) -> None:
        """The first pads; the second reads only what the first has computed."""
        nodes = [first("u", "b", pads=[1] * 4), second()]
        found, _ = folded(FoldSequences(), nodes, INPUTS, arrays(u=(8, 3, 1, 1), b=(8,), w=(5, 8, 3, 3)))
        assert found == ["Conv"]

    def test_kernels_and_strides_multiply(self) -> None:
        nodes = [first("u", "b", strides=[2, 3], group=3), second("w", "c", strides=[1, 2], dilations=[2, 1])]
        constants = arrays(u=(6, 1, 2, 1), b=(6,), w=(4, 6, 1, 1), c=(4,))
        assert folded(FoldSequences(), nodes, INPUTS, constants)[0] == ["Conv"]

    def test_depthwise_chain(self) -> None:
        nodes = [first("u", "b", group=3, strides=[2, 1]), second("w", "c", group=3)]
        constants = arrays(u=(3, 1, 1, 3), b=(3,), w=(3, 1, 1, 1), c=(3,))
        assert folded(FoldSequences(), nodes, INPUTS, constants)[0] == ["Conv"]

    def test_three_in_a_row(self) -> None:
        nodes = [
            first("u", "b"),
            node("Conv", ["h", "v", "c"], ["i"], name="middle"),
            node("Conv", ["i", "w", "d"], ["y"], name="last"),
        ]
        constants = arrays(u=(8, 3, 1, 1), b=(8,), v=(9, 8, 1, 1), c=(9,), w=(5, 9, 1, 1), d=(5,))
        assert folded(FoldSequences(), nodes, INPUTS, constants)[0] == ["Conv"]

    def test_bottleneck_stays(self) -> None:
        nodes = [first(), second()]
        found, report = folded(FoldSequences(), nodes, {"x": [1, 9, 5, 5]}, arrays(u=(2, 9, 1, 1), w=(9, 2, 1, 1)))
        assert (found, report.refusals) == (["Conv", "Conv"], ())

    def test_depthwise_before_pointwise_stays(self) -> None:
        nodes = [first(group=3, pads=[1] * 4), second()]
        found, report = folded(FoldSequences(), nodes, INPUTS, arrays(u=(3, 1, 3, 3), w=(5, 3, 1, 1)))
        assert (found, report.refusals) == (["Conv", "Conv"], ())


class TestMapsBefore:
    def test_norm_before_an_unpadded_convolution(self) -> None:
        nodes = [batch_norm("x", "h"), second("w", "c", group=3)]
        assert folded(FoldSequences(), nodes, INPUTS, {**arrays(w=(6, 1, 3, 3), c=(6,)), **norm(3)})[0] == ["Conv"]

    def test_scale_before_a_padded_convolution(self) -> None:
        nodes = [node("Div", ["x", "s"], ["h"]), second(pads=[1] * 4)]
        assert folded(FoldSequences(), nodes, INPUTS, arrays(w=(5, 3, 3, 3), s=(3, 1, 1)))[0] == ["Conv"]

    def test_normalised_pixels(self) -> None:
        """(x − mean) / deviation before a stem without padding."""
        nodes = [node("Sub", ["x", "m"], ["z"]), node("Div", ["z", "s"], ["h"]), second()]
        constants = arrays(w=(5, 3, 3, 3), m=(1, 3, 1, 1), s=(1, 3, 1, 1))
        assert folded(FoldSequences(), nodes, INPUTS, constants)[0] == ["Conv"]

    def test_map_before_a_product(self) -> None:
        nodes = [
            node("Mul", ["x", "s"], ["h"]),
            node("Add", ["h", "t"], ["i"]),
            node("MatMul", ["i", "w"], ["p"]),
            node("Add", ["p", "b"], ["y"]),
        ]
        constants = arrays(s=(7,), t=(7,), w=(7, 5), b=(5,))
        assert folded(FoldSequences(), nodes, {"x": [2, 3, 7]}, constants)[0] == ["Add", "MatMul"]

    def test_map_that_three_products_read(self) -> None:
        """As before query, key and value: it goes into each, its shift into their biases."""
        nodes = [node("Mul", ["x", "s"], ["h"]), node("Add", ["h", "t"], ["i"])]
        for name in "qkv":
            nodes += [node("MatMul", ["i", f"w{name}"], [f"p{name}"]), node("Add", [f"p{name}", f"b{name}"], [name])]
        constants = arrays(s=(7,), t=(7,), **{f"w{n}": (7, 5) for n in "qkv"}, **{f"b{n}": (5,) for n in "qkv"})
        found, _ = folded(FoldSequences(), nodes, {"x": [2, 3, 7]}, constants, ["q", "k", "v"])
        assert found == ["Add"] * 3 + ["MatMul"] * 3

    def test_shift_without_a_bias_to_go_into(self) -> None:
        nodes = [node("Add", ["x", "t"], ["i"], name="shift")]
        nodes += [node("MatMul", ["i", f"w{n}"], [n], name=f"p{n}") for n in "qk"]
        reason = refusal(FoldSequences(), nodes, {"x": [2, 3, 7]}, arrays(t=(7,), wq=(7, 5), wk=(7, 5)), ["q", "k"])
        assert "the result of Add 'shift' has several readers (pk, pq)" in reason

    def test_sum_before_two_convolutions_is_not_meant(self) -> None:
        nodes = [node("Add", ["x", "z"], ["h"]), second(), node("Conv", ["h", "w"], ["u"])]
        found, report = folded(FoldSequences(), nodes, INPUTS | {"z": [2, 3, 9, 7]}, arrays(w=(5, 3, 3, 3)), ["y", "u"])
        assert (len(found), report.refusals) == (3, ())

    def test_maps_in_a_row(self) -> None:
        nodes = [batch_norm("x", "a"), node("Mul", ["a", "c"], ["b"]), node("Add", ["b", "d"], ["y"])]
        constants = {**norm(3), **arrays(c=(3, 1, 1), d=(3, 1, 1))}
        assert folded(FoldSequences(), nodes, INPUTS, constants)[0] == ["Add", "Mul"]


class TestProducts:
    @pytest.mark.parametrize("shape", [[5, 7], [2, 5, 7]])
    def test_two_in_a_row(self, shape: list[int]) -> None:
        nodes = [
            node("MatMul", ["x", "u"], ["h"]),
            node("Add", ["h", "b"], ["i"]),
            node("MatMul", ["i", "w"], ["j"]),
            node("Add", ["c", "j"], ["y"]),
        ]
        constants = arrays(u=(7, 9), b=(9,), w=(9, 5), c=(5,))
        found, report = folded(FoldSequences(), nodes, {"x": shape}, constants)
        assert found == (["Gemm"] if len(shape) == 2 else ["Add", "MatMul"])
        assert report.after.parameters == 7 * 5 + 5

    def test_gemm_of_transposes(self) -> None:
        nodes = [
            node("Gemm", ["x", "u", "b"], ["h"], transB=1, alpha=2.0),
            node("Gemm", ["h", "w", "c"], ["y"], alpha=0.5, beta=3.0),
        ]
        assert folded(FoldSequences(), nodes, {"x": [3, 7]}, arrays(u=(9, 7), b=(9,), w=(9, 5), c=()))[0] == ["Gemm"]

    def test_low_rank_pair_stays(self) -> None:
        nodes = [node("MatMul", ["x", "u"], ["h"]), node("MatMul", ["h", "w"], ["y"])]
        found, report = folded(FoldSequences(), nodes, {"x": [5, 9]}, arrays(u=(9, 2), w=(2, 9)))
        assert (found, report.refusals) == (["MatMul", "MatMul"], ())


class TestRefusals:
    def test_bias_at_the_border(self) -> None:
        nodes = [first("u", "b"), second(pads=[0, 0, 0, 1])]
        reason = refusal(FoldSequences(), nodes, INPUTS, arrays(u=(8, 3, 1, 1), b=(8,), w=(5, 8, 3, 3)))
        assert reason == (
            "Conv node 'second' [2,8,9,7] [5,8,3,3] -> [2,5,7,6]: Conv 'second' pads the result of Conv 'first' with "
            "zeros, where a folded filter would see the shift of Conv 'first'; it stays a node of its own"
        )

    def test_norm_before_a_padded_convolution(self) -> None:
        nodes = [batch_norm("x", "h"), second(pads=[1] * 4)]
        reason = refusal(FoldSequences(), nodes, INPUTS, {**arrays(w=(5, 3, 3, 3)), **norm(3)})
        assert "see the shift of BatchNormalization 'bn'" in reason

    def test_values_beyond_the_border(self) -> None:
        """A wide first filter would still reach its input from where the second reads padding."""
        nodes = [first(pads=[0, 1, 0, 1]), second(pads=[0, 1, 0, 1])]
        constants = arrays(u=(20, 3, 1, 3), w=(5, 20, 1, 3))
        reason = refusal(FoldSequences(), nodes, INPUTS, constants)
        assert "where a folded filter would compute values" in reason

    @pytest.mark.parametrize("outputs", [["y", "z"], ["y", "h"]])
    def test_value_between_is_needed(self, outputs: list[str]) -> None:
        nodes = [first(), second()] + ([node("Relu", ["h"], ["z"], name="other")] if "z" in outputs else [])
        reason = refusal(FoldSequences(), nodes, INPUTS, arrays(u=(8, 3, 1, 1), w=(5, 8, 3, 3)), outputs)
        wanted = "has several readers (other, second)" if "z" in outputs else "is also an output of the model"
        assert f"the result of Conv 'first' {wanted}" in reason

    def test_constants_that_would_overflow(self) -> None:
        nodes = [first(), second(), node("IsInf", ["y"], ["z"])]
        constants = {"u": np.full((8, 3, 1, 1), 1e30, np.float32), "w": np.full((5, 8, 1, 1), 1e30, np.float32)}
        assert "would not be finite in float32" in refusal(FoldSequences(), nodes, INPUTS, constants, ["z"])
