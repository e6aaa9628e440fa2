"""Folding: exactness over shapes, strides, groups and pads, and the sentence for every refusal."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from edgec.passes.fold_affine import FoldAffine
from edgec.passes.fold_padding import FoldPadding
from edgec.passes.pipeline import DEFAULT
from edgec.passes.pipeline import run as run_passes
from tests.folding import arrays, batch_norm, folded, norm, refusal
from tests.graphs import assert_same, build, load, node, operators

LINEAR = {
    "conv": (
        node("Conv", ["x", "w"], ["h"], strides=[2, 1], pads=[0, 2, 1, 0], name="linear"),
        {"x": [2, 3, 17, 7]},
        {"w": (5, 3, 3, 2)},
        5,
    ),
    "conv with a bias": (
        node("Conv", ["x", "w", "b"], ["h"], name="linear"),
        {"x": [1, 3, 5, 7]},
        {"w": (7, 3, 1, 1), "b": (7,)},
        7,
    ),
    "grouped, dilated conv": (
        node("Conv", ["x", "w", "b"], ["h"], group=3, dilations=[2, 1], pads=[2, 1, 2, 0], name="linear"),
        {"x": [1, 6, 9, 7]},
        {"w": (9, 2, 3, 3), "b": (9,)},
        9,
    ),
    "depthwise conv": (
        node("Conv", ["x", "w"], ["h"], group=5, name="linear"),
        {"x": [1, 5, 7, 7]},
        {"w": (5, 1, 3, 3)},
        5,
    ),
    "conv over a line": (
        node("Conv", ["x", "w"], ["h"], pads=[3, 0], name="linear"),
        {"x": [1, 2, 17]},
        {"w": (5, 2, 5)},
        5,
    ),
    "transposed conv": (
        node("ConvTranspose", ["x", "w", "b"], ["h"], strides=[2, 3], output_padding=[1, 0], name="linear"),
        {"x": [1, 3, 5, 4]},
        {"w": (3, 5, 3, 2), "b": (5,)},
        5,
    ),
    "grouped transposed conv": (
        node("ConvTranspose", ["x", "w"], ["h"], group=2, pads=[1, 0, 0, 1], name="linear"),
        {"x": [1, 6, 5, 4]},
        {"w": (6, 2, 3, 3)},
        4,
    ),
    "gemm": (
        node("Gemm", ["x", "w", "b"], ["h"], alpha=0.5, beta=2.0, name="linear"),
        {"x": [3, 5]},
        {"w": (5, 7), "b": (7,)},
        7,
    ),
    "gemm of transposes": (
        node("Gemm", ["x", "w", "b"], ["h"], transA=1, transB=1, name="linear"),
        {"x": [5, 3]},
        {"w": (7, 5), "b": (1, 7)},
        7,
    ),
    "gemm with one bias for all": (
        node("Gemm", ["x", "w", "b"], ["h"], beta=3.0, name="linear"),
        {"x": [3, 5]},
        {"w": (5, 7), "b": ()},
        7,
    ),
    "gemm without a bias": (node("Gemm", ["x", "w"], ["h"], name="linear"), {"x": [3, 5]}, {"w": (5, 7)}, 7),
    "matmul": (node("MatMul", ["x", "w"], ["h"], name="linear"), {"x": [3, 5]}, {"w": (5, 7)}, 7),
}


def channel_shape(operator: onnx.NodeProto, channels: int, rank: int) -> tuple[int, ...]:
    """The shape in which one value a channel broadcasts to the operator's output."""
    return (channels,) if operator.op_type in ("Gemm", "MatMul") else (channels, *(1,) * (rank - 2))


@pytest.mark.parametrize("name", LINEAR)
class TestAffineMaps:
    def test_batch_norm(self, name: str) -> None:
        linear, inputs, shapes, channels = LINEAR[name]
        constants = {**arrays(**shapes), **norm(channels)}
        found, _ = folded(FoldAffine(), [linear, batch_norm("h", "y", epsilon=0.01)], inputs, constants)
        assert found == sorted([linear.op_type, "Add"] if linear.op_type == "MatMul" else [linear.op_type])

    @pytest.mark.parametrize("operator", ["Mul", "Div"])
    def test_scale(self, name: str, operator: str) -> None:
        linear, inputs, shapes, channels = LINEAR[name]
        constants = {**arrays(**shapes), **arrays(2, c=channel_shape(linear, channels, len(inputs["x"])))}
        scale = node(operator, ["h", "c"], ["y"])
        assert folded(FoldAffine(), [linear, scale], inputs, constants)[0] == [linear.op_type]

    def test_scale_by_one_number(self, name: str) -> None:
        linear, inputs, shapes, _ = LINEAR[name]
        constants = {**arrays(**shapes), "c": np.float32(-1.5)}
        scale = node("Mul", ["c", "h"], ["y"])
        assert folded(FoldAffine(), [linear, scale], inputs, constants)[0] == [linear.op_type]

    @pytest.mark.parametrize("operands", [("Add", "h", "c"), ("Add", "c", "h"), ("Sub", "h", "c"), ("Sub", "c", "h")])
    def test_shift(self, name: str, operands: tuple[str, str, str]) -> None:
        linear, inputs, shapes, channels = LINEAR[name]
        operator, left, right = operands
        constants = {**arrays(**shapes), **arrays(2, c=channel_shape(linear, channels, len(inputs["x"])))}
        found, _ = folded(FoldAffine(), [linear, node(operator, [left, right], ["y"])], inputs, constants)
        if linear.op_type != "MatMul":
            assert found == [linear.op_type]

    def test_chain(self, name: str) -> None:
        linear, inputs, shapes, channels = LINEAR[name]
        shape = channel_shape(linear, channels, len(inputs["x"]))
        constants = {**arrays(**shapes), **norm(channels), **arrays(3, c=shape, d=shape)}
        nodes = [linear, node("Add", ["h", "c"], ["i"]), batch_norm("i", "j"), node("Mul", ["d", "j"], ["y"])]
        found, report = folded(FoldAffine(), nodes, inputs, constants)
        assert found == sorted([linear.op_type, "Add"] if linear.op_type == "MatMul" else [linear.op_type])
        assert report.after.macs == report.before.macs


class TestMatMul:
    def test_bias_and_scale_of_a_batch(self) -> None:
        nodes = [
            node("MatMul", ["x", "w"], ["h"]),
            node("Add", ["b", "h"], ["i"]),
            node("Div", ["i", "s"], ["j"]),
            node("Sub", ["t", "j"], ["y"]),
        ]
        constants = arrays(w=(5, 7), b=(7,), s=(1, 1, 7), t=(1,))
        assert folded(FoldAffine(), nodes, {"x": [2, 3, 5]}, constants)[0] == ["Add", "MatMul"]

    def test_batch_norm_over_another_axis(self) -> None:
        nodes = [node("MatMul", ["x", "w"], ["h"], name="product"), batch_norm("h", "y")]
        reason = refusal(FoldAffine(), nodes, {"x": [2, 3, 5]}, {**arrays(w=(5, 7)), **norm(3)})
        assert reason == (
            "BatchNormalization node 'bn' [2,3,7] [3] [3] [3] [3] -> [2,3,7]: its channels are axis 1, those of "
            "MatMul 'product' are axis 2; it stays a node of its own"
        )

    def test_scaled_attention_scores_are_not_meant(self) -> None:
        nodes = [node("MatMul", ["x", "z"], ["h"]), node("Mul", ["h", "s"], ["y"])]
        found, report = folded(FoldAffine(), nodes, {"x": [3, 5], "z": [5, 7]}, {"s": np.float32(0.3)})
        assert (found, report.refusals) == (["MatMul", "Mul"], ())


CONV = node("Conv", ["x", "w"], ["h"], name="conv")
CONV_INPUTS = {"x": [1, 3, 7, 5]}
CONV_WEIGHT = {"w": (5, 3, 3, 3)}


class TestRefusals:
    def test_result_read_twice(self) -> None:
        nodes = [CONV, batch_norm("h", "i"), node("Add", ["h", "i"], ["y"], name="sum")]
        constants = {**arrays(**CONV_WEIGHT), **norm(5)}
        reason = refusal(FoldAffine(), nodes, CONV_INPUTS, constants)
        assert "the result of Conv 'conv' has several readers (bn, sum)" in reason

    def test_result_is_an_output(self) -> None:
        constants = {**arrays(**CONV_WEIGHT), **norm(5)}
        reason = refusal(FoldAffine(), [CONV, batch_norm("h", "y")], CONV_INPUTS, constants, ["h", "y"])
        assert "the result of Conv 'conv' is also an output of the model" in reason

    def test_weight_computed_at_run_time(self) -> None:
        inputs = {**CONV_INPUTS, "w": [5, 3, 3, 3]}
        reason = refusal(FoldAffine(), [CONV, batch_norm("h", "y")], inputs, norm(5))
        assert "the weight of Conv 'conv' is computed at run time" in reason

    def test_bias_computed_at_run_time(self) -> None:
        conv = node("Conv", ["x", "w", "b"], ["h"], name="conv")
        inputs = {**CONV_INPUTS, "b": [5]}
        reason = refusal(FoldAffine(), [conv, batch_norm("h", "y")], inputs, {**arrays(**CONV_WEIGHT), **norm(5)})
        assert "the bias of Conv 'conv' is computed at run time" in reason

    def test_statistics_computed_at_run_time(self) -> None:
        constants = {**arrays(**CONV_WEIGHT), **norm(5)}
        del constants["bn_scale"]
        reason = refusal(FoldAffine(), [CONV, batch_norm("h", "y")], {**CONV_INPUTS, "bn_scale": [5]}, constants)
        assert "its parameters are computed at run time" in reason

    def test_training_mode(self) -> None:
        norm_node = batch_norm("h", "y", training_mode=1)
        norm_node.output.extend(["mean", "var"])
        constants = {**arrays(**CONV_WEIGHT), **norm(5)}
        found, report = folded(FoldAffine(), [CONV, norm_node], CONV_INPUTS, constants)
        assert found == ["BatchNormalization", "Conv"]
        assert report.matched == 0

    @pytest.mark.parametrize("shape", [(3,), (5, 1), (5, 5, 3), (1, 5, 5, 1)])
    def test_constant_that_varies_elsewhere(self, shape: tuple[int, ...]) -> None:
        nodes = [CONV, node("Mul", ["h", "c"], ["y"])]
        reason = refusal(FoldAffine(), nodes, CONV_INPUTS, arrays(**CONV_WEIGHT, c=shape))
        assert f"its constant {list(shape)} varies along more than axis 1, the channels of Conv 'conv'" in reason

    def test_constant_that_adds_an_axis(self) -> None:
        nodes = [CONV, node("Add", ["h", "c"], ["y"])]
        assert "varies along more" in refusal(FoldAffine(), nodes, CONV_INPUTS, arrays(**CONV_WEIGHT, c=(1,) * 5))

    def test_constant_that_widens_one_channel(self) -> None:
        nodes = [CONV, node("Add", ["h", "c"], ["y"])]
        constants = arrays(w=(1, 3, 3, 3), c=(7, 1, 1))
        assert "varies along more" in refusal(FoldAffine(), nodes, CONV_INPUTS, constants)

    def test_division_by_zero(self) -> None:
        nodes = [CONV, node("Div", ["h", "c"], ["i"]), node("IsInf", ["i"], ["y"])]
        constants = {**arrays(**CONV_WEIGHT), "c": np.float32(0)}
        assert "it divides by zero" in refusal(FoldAffine(), nodes, CONV_INPUTS, constants)

    def test_constants_that_would_overflow(self) -> None:
        nodes = [CONV, node("Mul", ["h", "c"], ["i"]), node("IsInf", ["i"], ["y"])]
        constants = {"w": np.full((5, 3, 3, 3), 1e30, np.float32), "c": np.float32(1e30)}
        assert "would not be finite in float32" in refusal(FoldAffine(), nodes, CONV_INPUTS, constants)


class TestShared:
    def test_shared_weight_is_folded_apart(self) -> None:
        """Two convolutions with one weight: each folds its own norm, the third reader keeps the original."""
        nodes = [
            node("Conv", ["x", "w"], ["a"]),
            batch_norm("a", "na", "one"),
            node("Conv", ["x", "w"], ["b"], pads=[1, 1, 1, 1], strides=[2, 2]),
            batch_norm("b", "nb", "two"),
            node("Conv", ["x", "w"], ["c"], dilations=[2, 2]),
        ]
        constants = {**arrays(w=(5, 3, 3, 3)), **norm(5, "one"), **norm(5, "two", seed=7)}
        found, report = folded(FoldAffine(), nodes, {"x": [1, 3, 9, 7]}, constants, ["na", "nb", "c"])
        assert found == ["Conv"] * 3
        assert report.after.parameters == 3 * 135 + 2 * 5

    def test_shared_norm(self) -> None:
        nodes = [
            node("Conv", ["x", "w"], ["a"]),
            batch_norm("a", "na"),
            node("Conv", ["x", "v"], ["b"]),
            node("BatchNormalization", ["b", "bn_scale", "bn_bias", "bn_mean", "bn_var"], ["nb"]),
        ]
        constants = {**arrays(w=(5, 3, 3, 3), v=(5, 3, 1, 1)), **norm(5)}
        assert folded(FoldAffine(), nodes, CONV_INPUTS, constants, ["na", "nb"])[0] == ["Conv"] * 2

    def test_scaling_leaves_the_weight_of_a_mere_shift(self) -> None:
        nodes = [CONV, node("Add", ["h", "c"], ["y"])]
        _, report = folded(FoldAffine(), nodes, CONV_INPUTS, arrays(w=(5, 3, 3, 3), c=(5, 1, 1)))
        assert report.after.parameters == report.before.parameters

    def test_names_that_are_taken(self) -> None:
        nodes = [CONV, batch_norm("h", "i"), node("Conv", ["i", "w_folded", "conv_bias"], ["y"])]
        constants = {**arrays(**CONV_WEIGHT, w_folded=(2, 5, 1, 1), conv_bias=(2,)), **norm(5)}
        assert folded(FoldAffine(), nodes, CONV_INPUTS, constants)[0] == ["Conv", "Conv"]


class TestPadding:
    @pytest.mark.parametrize("own", [[0, 0, 0, 0], [1, 0, 2, 3]])
    @pytest.mark.parametrize("pads", [[0, 0, 1, 2, 0, 0, 3, 0], [0, 0, 0, 0, 0, 0, 0, 1]])
    def test_zero_pad(self, own: list[int], pads: list[int]) -> None:
        nodes = [node("Pad", ["x", "p"], ["h"]), node("Conv", ["h", "w"], ["y"], pads=own, strides=[2, 3])]
        constants = {**arrays(w=(5, 3, 3, 3)), "p": np.array(pads)}
        assert folded(FoldPadding(), nodes, CONV_INPUTS, constants)[0] == ["Conv"]

    def test_named_axes(self) -> None:
        nodes = [node("Pad", ["x", "p", "", "a"], ["h"]), node("Conv", ["h", "w"], ["y"])]
        constants = {**arrays(w=(5, 3, 3, 3)), "p": np.array([2, 1]), "a": np.array([-1])}
        assert folded(FoldPadding(), nodes, CONV_INPUTS, constants)[0] == ["Conv"]

    def test_pad_that_others_read_too(self) -> None:
        nodes = [
            node("Pad", ["x", "p"], ["h"]),
            node("Conv", ["h", "w"], ["y"]),
            node("Relu", ["h"], ["z"]),
        ]
        constants = {**arrays(w=(5, 3, 3, 3)), "p": np.array([0, 0, 1, 2, 0, 0, 3, 0])}
        assert folded(FoldPadding(), nodes, CONV_INPUTS, constants, ["y", "z"])[0] == ["Conv", "Pad", "Relu"]

    @pytest.mark.parametrize(
        ("pads", "attributes", "value", "reason"),
        [
            ([0, 0, 1, 1, 0, 0, 1, 1], {}, 0.5, "must be equal to 0"),
            ([0, 0, 1, 1, 0, 0, 1, 1], {"mode": "reflect"}, 0.0, "mode must be 'constant'"),
            ([0, 1, 1, 1, 0, 0, 1, 1], {}, 0.0, "must be zero in non-spatial dimensions"),
            ([0, 0, -1, 1, 0, 0, 1, 1], {}, 0.0, "must not contain negative values"),
        ],
    )
    def test_refused(self, pads: list[int], attributes: dict[str, str], value: float, reason: str) -> None:
        channels = 3 + pads[1]
        nodes = [node("Pad", ["x", "p", "v"], ["h"], **attributes), node("Conv", ["h", "w"], ["y"])]
        constants = {**arrays(w=(5, channels, 3, 3)), "p": np.array(pads), "v": np.float32(value)}
        assert reason in refusal(FoldPadding(), nodes, CONV_INPUTS, constants)


class TestPipeline:
    def test_order_folds_what_one_pass_alone_would_not(self) -> None:
        """The weight is computed, the norm hides behind an Identity, and the pad stands before the conv."""
        nodes = [
            node("Pad", ["x", "p"], ["padded"]),
            node("Mul", ["v", "s"], ["w"]),
            node("Conv", ["padded", "w"], ["h"], name="conv"),
            node("Identity", ["h"], ["i"]),
            batch_norm("i", "y"),
        ]
        constants = {
            **arrays(v=(5, 3, 3, 3), s=(5, 1, 1, 1)),
            **norm(5),
            "p": np.array([0, 0, 1, 1, 0, 0, 1, 1]),
        }
        original = build(nodes, CONV_INPUTS, ["y"], constants)
        model = load(original)
        reports = run_passes(model)
        assert_same(original, model)
        assert operators(model) == ["Conv"]
        assert [report.name for report in reports] == [each.name for each in DEFAULT]
        affine = next(report for report in reports if report.name == "fold-affine")
        assert "fold-affine: 1 matched, 2 → 1 nodes" in str(affine)

    def test_every_pass_says_what_it_does(self) -> None:
        assert all(each.name and each.__doc__ for each in DEFAULT)

    def test_report_prints_its_refusals(self) -> None:
        nodes = [CONV, batch_norm("h", "i"), node("Add", ["h", "i"], ["y"], name="sum")]
        _, report = folded(FoldAffine(), nodes, CONV_INPUTS, {**arrays(**CONV_WEIGHT), **norm(5)})
        assert str(report).splitlines() == [
            "fold-affine: 0 matched, 3 nodes, 155 parameters, 2,025 MACs",
            "  left: BatchNormalization node 'bn' [1,5,5,3] [5] [5] [5] [5] -> [1,5,5,3]: the result of Conv 'conv' "
            "has several readers (bn, sum); it stays a node of its own",
        ]
