"""Folding of multi-branch blocks: whole networks become chains, exactly; what does not fit says why."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest

from edgec.graph import load_graph
from edgec.passes.fold_branches import FoldBranches
from edgec.passes.pipeline import run as run_passes
from tests.branches import Block, mobileone_s0, repmixers
from tests.folding import arrays, batch_norm, folded, norm, refusal
from tests.graphs import assert_same, load, node, operators


def check(network: Block, shape: Sequence[int], expected: Sequence[str]) -> None:
    """The passes turn the network into ``expected``, and change nothing the second time."""
    original = network.model(shape)
    model = load(original)
    run_passes(model)
    assert operators(model) == sorted(expected)
    assert_same(original, model)
    again = run_passes(model)
    assert [report.matched for report in again] == [0] * len(again)
    assert operators(model) == sorted(expected)


class TestNetworks:
    def test_repvgg_of_22_blocks(self) -> None:
        """RepVGG-A's 22 blocks in five stages, narrow, with the grouped blocks of its g variants."""
        network = Block(3)
        for stage, (blocks, channels) in enumerate([(1, 6), (2, 6), (4, 8), (14, 10), (1, 12)]):
            for index in range(blocks):
                network.repvgg(channels, 2 if index == 0 else 1, 2 if stage and index % 2 else 1)
        check(network, [1, 3, 37, 41], ["Conv", "Relu"] * 22)

    def test_mobileone(self) -> None:
        network = Block(5)
        for channels, stride in [(7, 2), (7, 1), (9, 2), (9, 1)]:
            network.mobileone(channels, stride)
        check(network, [2, 5, 17, 23], ["Conv", "Relu"] * 8)

    def test_repmixer(self) -> None:
        network = Block(7)
        network.repmixer()
        network.repmixer()
        check(network, [1, 7, 11, 9], ["Conv", "Relu"] * 2)

    @pytest.mark.parametrize("made", [mobileone_s0, repmixers])
    def test_published_depths(self, made: Callable[[int], onnx.ModelProto]) -> None:
        """The models of the README's table, on small images: no norm and no sum of branches is left."""
        original = made(64)
        model = load(original)
        run_passes(model)
        assert set(operators(model)) == {"Conv", "Relu"}
        assert_same(original, model)

    def test_acnet(self) -> None:
        network = Block(3)
        network.acnet(5)
        network.acnet(4)
        check(network, [1, 3, 7, 17], ["Conv", "Relu"] * 2)

    def test_diverse_branches(self) -> None:
        network = Block(3)
        network.diverse(5)
        network.diverse(5)
        check(network, [1, 3, 9, 7], ["Conv", "Relu"] * 2)

    def test_diverse_branches_with_borders(self) -> None:
        network = Block(3)
        network.bordered(5, 9, 7)
        network.bordered(4, 9, 7)
        check(network, [1, 3, 9, 7], ["Conv", "Relu"] * 2)

    @pytest.mark.parametrize(("channels", "group"), [(6, 3), (6, 6)])
    def test_groups(self, channels: int, group: int) -> None:
        network = Block(channels)
        network.repvgg(channels, 1, group)
        check(network, [1, channels, 5, 7], ["Conv", "Relu"])

    def test_sample_model(self, sample_model: Path) -> None:
        self._check_chain(sample_model, {}, {"Conv": 8, "Relu": 8, "GlobalAveragePool": 1, "Flatten": 1, "Gemm": 1})

    def test_shared_repvgg(self, shared: Path) -> None:
        path = shared / "models" / "repvgg_tiny" / "repvgg_tiny.onnx"
        expected = {"Conv": 10, "Relu": 10, "GlobalAveragePool": 1, "Flatten": 1, "Gemm": 1}
        self._check_chain(path, {"input": [3, 3, 32, 32]}, expected)

    def _check_chain(self, path: Path, shapes: Mapping[str, Sequence[int]], expected: Mapping[str, int]) -> None:
        model = load_graph(path, shapes=shapes)
        reports = run_passes(model)
        assert reports[-1].after.operators == expected
        assert_same(onnx.load(path), model)


def conv(result: str, weight: str, **attributes: object) -> onnx.NodeProto:
    return node("Conv", ["x", weight], [result], name=result, **attributes)


ADD = node("Add", ["a", "b"], ["y"], name="sum")
INPUTS = {"x": [1, 4, 9, 7]}


class TestGeometry:
    @pytest.mark.parametrize("stride", [1, 2, 3])
    @pytest.mark.parametrize(
        ("pads", "own"),
        [([1, 1, 1, 1], [0, 0, 0, 0]), ([0, 2, 2, 0], [0, 0, 0, 0]), ([2, 2, 2, 2], [1, 1, 1, 1])],
    )
    def test_where_the_single_tap_falls(self, stride: int, pads: list[int], own: list[int]) -> None:
        """Asymmetric padding puts the 1×1 beside the centre, and the larger kernel has room for it."""
        strides = [stride, stride]
        nodes = [conv("a", "w", pads=pads, strides=strides), conv("b", "v", pads=own, strides=strides), ADD]
        found, report = folded(FoldBranches(), nodes, INPUTS, arrays(w=(5, 4, 3, 3), v=(5, 4, 1, 1)))
        assert found == ["Conv"]
        assert report.after.parameters == 5 * 4 * 9

    def test_pads_that_only_shift_the_window(self) -> None:
        """Equal extents, other positions: the union is 3×3, which both together would cost too."""
        nodes = [conv("a", "w", pads=[1, 0, 0, 0]), conv("b", "v", pads=[0, 0, 1, 0]), ADD]
        found, report = folded(FoldBranches(), nodes, INPUTS, arrays(w=(5, 4, 2, 3), v=(5, 4, 2, 3)))
        assert (found, report.after.parameters) == (["Conv"], 5 * 4 * 9)

    def test_dilated_centre(self) -> None:
        nodes = [conv("a", "w", pads=[2] * 4, dilations=[2, 2]), conv("b", "v"), ADD]
        found, report = folded(FoldBranches(), nodes, INPUTS, arrays(w=(4, 4, 3, 3), v=(4, 4, 1, 1)))
        assert (found, report.after.parameters) == (["Conv"], 4 * 4 * 9)

    def test_same_padding_by_name(self) -> None:
        nodes = [
            conv("a", "w", auto_pad="SAME_LOWER", strides=[2, 3]),
            conv("b", "v", auto_pad="SAME_UPPER", strides=[2, 3]),
            ADD,
        ]
        assert folded(FoldBranches(), nodes, INPUTS, arrays(w=(4, 4, 3, 3), v=(4, 4, 3, 3)))[0] == ["Conv"]

    def test_average_with_its_padding(self) -> None:
        nodes = [
            conv("a", "w", pads=[1, 1, 1, 1], strides=[2, 2], group=2),
            node("AveragePool", ["x"], ["b"], kernel_shape=[3, 3], pads=[1] * 4, strides=[2, 2], count_include_pad=1),
            ADD,
        ]
        assert folded(FoldBranches(), nodes, INPUTS, arrays(w=(4, 2, 3, 3)))[0] == ["Conv"]

    def test_over_a_line(self) -> None:
        nodes = [conv("a", "w", pads=[2, 2]), conv("b", "v", pads=[1, 1]), node("Sub", ["b", "a"], ["y"])]
        inputs = {"x": [2, 3, 17]}
        assert folded(FoldBranches(), nodes, inputs, arrays(w=(5, 3, 5), v=(5, 3, 3)))[0] == ["Conv"]

    def test_over_a_volume(self) -> None:
        nodes = [conv("a", "w", pads=[1] * 6, group=2), node("Add", ["x", "a"], ["y"])]
        assert folded(FoldBranches(), nodes, {"x": [1, 4, 3, 5, 4]}, arrays(w=(4, 2, 3, 3, 3)))[0] == ["Conv"]

    def test_low_rank_beside_a_convolution(self) -> None:
        """LoRA on a convolution: k×k to few channels, 1×1 back."""
        nodes = [
            conv("a", "w", pads=[1] * 4),
            conv("low", "down", pads=[1] * 4),
            node("Conv", ["low", "up"], ["high"], name="up"),
            node("Mul", ["high", "scale"], ["b"]),
            ADD,
        ]
        constants = {**arrays(w=(7, 4, 3, 3), down=(2, 4, 3, 3), up=(7, 2, 1, 1)), "scale": np.float32(0.5)}
        assert folded(FoldBranches(), nodes, INPUTS, constants)[0] == ["Conv"]


class TestOtherSources:
    def test_norm_behind_a_residual_sum(self) -> None:
        """The norm goes into both convolutions, although they read different values."""
        nodes = [conv("a", "w"), node("Conv", ["z", "v"], ["b"]), node("Add", ["a", "b"], ["s"]), batch_norm("s", "y")]
        inputs = {**INPUTS, "z": [1, 3, 9, 7]}
        constants = {**arrays(w=(5, 4, 1, 1), v=(5, 3, 1, 1)), **norm(5)}
        assert folded(FoldBranches(), nodes, inputs, constants)[0] == ["Add", "Conv", "Conv"]

    def test_shift_behind_a_residual_sum(self) -> None:
        nodes = [
            conv("a", "w"),
            node("Add", ["a", "z"], ["s"]),
            node("Add", ["s", "c"], ["y"]),
        ]
        inputs = {**INPUTS, "z": [1, 5, 9, 7]}
        constants = arrays(w=(5, 4, 1, 1), c=(5, 1, 1))
        assert folded(FoldBranches(), nodes, inputs, constants)[0] == ["Add", "Conv"]

    def test_third_operand_stays_an_operand(self) -> None:
        nodes = [
            conv("a", "w", pads=[1] * 4),
            conv("b", "v"),
            node("Sum", ["a", "z", "b"], ["s"]),
            node("Mul", ["s", "c"], ["y"]),
        ]
        inputs = {**INPUTS, "z": [1, 5, 9, 7]}
        constants = arrays(w=(5, 4, 3, 3), v=(5, 4, 1, 1), c=(5, 1, 1))
        assert folded(FoldBranches(), nodes, inputs, constants)[0] == ["Add", "Conv", "Mul"]

    def test_plain_residual_is_not_meant(self) -> None:
        nodes = [
            conv("a", "w", pads=[1] * 4),
            node("Relu", ["a"], ["r"]),
            node("Conv", ["r", "v"], ["b"]),
            node("Add", ["b", "x"], ["y"]),
        ]
        found, report = folded(FoldBranches(), nodes, INPUTS, arrays(w=(4, 4, 3, 3), v=(4, 4, 1, 1)))
        assert (found, report.refusals) == (["Add", "Conv", "Conv", "Relu"], ())

    def test_broadcast_sum_is_not_meant(self) -> None:
        nodes = [conv("a", "w"), node("GlobalAveragePool", ["a"], ["b"]), ADD]
        found, report = folded(FoldBranches(), nodes, INPUTS, arrays(w=(4, 4, 1, 1)))
        assert (len(found), report.refusals) == (3, ())

    def test_shared_weight_keeps_its_other_reader(self) -> None:
        nodes = [conv("a", "w"), conv("b", "w"), ADD, conv("z", "w", strides=[2, 2])]
        found, _ = folded(FoldBranches(), nodes, INPUTS, arrays(w=(4, 4, 1, 1)), ["y", "z"])
        assert found == ["Conv", "Conv"]


def test_norm_behind_a_sum_of_other_sources() -> None:
    """A residual sum hides the norm from both convolutions: each takes the scale, one of them the shift."""
    nodes = [conv("a", "w", pads=[1] * 4), node("Conv", ["z", "v"], ["b"], name="b"), ADD, batch_norm("y", "n", "n")]
    constants = {**arrays(w=(6, 4, 3, 3), v=(6, 3, 1, 1)), **norm(6, "n")}
    found, _ = folded(FoldBranches(), nodes, {**INPUTS, "z": [1, 3, 9, 7]}, constants, ["n"])
    assert found == ["Add", "Conv", "Conv"]


class TestRefusals:
    @pytest.mark.parametrize(
        ("between", "reason"),
        [
            ("Conv", "its summand comes from Conv 'a', which is read elsewhere without the scale"),
            ("Tanh", "its summand comes from Tanh 'a', which does not take a scale"),
        ],
    )
    def test_norm_behind_a_sum(self, between: str, reason: str) -> None:
        first = conv("a", "w", pads=[1] * 4) if between == "Conv" else node("Tanh", ["x"], ["a"], name="a")
        branch = [node("Relu", ["a"], ["h"]), node("Conv", ["h", "v"], ["b"], pads=[1] * 4)]
        rest = [*branch, ADD, batch_norm("y", "n", "n")]
        constants = {**arrays(w=(4, 4, 3, 3), v=(4, 4, 3, 3)), **norm(4, "n")}
        assert reason in refusal(FoldBranches(), [first, *rest], INPUTS, constants, ["n"])

    def test_result_read_twice(self) -> None:
        nodes = [conv("a", "w", pads=[1] * 4), conv("b", "v"), ADD, node("Relu", ["a"], ["z"], name="other")]
        reason = refusal(FoldBranches(), nodes, INPUTS, arrays(w=(4, 4, 3, 3), v=(4, 4, 1, 1)), ["y", "z"])
        assert reason == (
            "Add node 'sum' [1,4,9,7] [1,4,9,7] -> [1,4,9,7]: the result of Conv 'a' has several readers (other, sum); "
            "its branches stay apart"
        )

    def test_result_is_an_output(self) -> None:
        nodes = [conv("a", "w", pads=[1] * 4), conv("b", "v"), ADD]
        reason = refusal(FoldBranches(), nodes, INPUTS, arrays(w=(4, 4, 3, 3), v=(4, 4, 1, 1)), ["y", "a"])
        assert "the result of Conv 'a' is also an output of the model" in reason

    def test_weight_computed_at_run_time(self) -> None:
        nodes = [conv("a", "w", pads=[1] * 4), conv("b", "v"), ADD]
        reason = refusal(FoldBranches(), nodes, {**INPUTS, "w": [4, 4, 3, 3]}, arrays(v=(4, 4, 1, 1)))
        assert "the weight of Conv 'a' is computed at run time" in reason

    def test_depthwise_beside_pointwise(self) -> None:
        nodes = [conv("a", "w", pads=[1] * 4, group=4), conv("b", "v"), ADD]
        reason = refusal(FoldBranches(), nodes, INPUTS, arrays(w=(4, 1, 3, 3), v=(4, 4, 1, 1)))
        assert "one filter for Conv 'a', Conv 'b' would take 9,072 MACs instead of 3,528" in reason

    def test_average_without_its_padding(self) -> None:
        pool = node("AveragePool", ["x"], ["b"], name="pool", kernel_shape=[3, 3], pads=[1] * 4)
        reason = refusal(FoldBranches(), [conv("a", "w", pads=[1] * 4), pool, ADD], INPUTS, arrays(w=(4, 4, 3, 3)))
        assert "AveragePool 'pool' leaves the padding out of its averages" in reason

    def test_average_of_rounded_up_extents(self) -> None:
        window = {"kernel_shape": [2, 2], "strides": [2, 2]}
        pool = node("AveragePool", ["x"], ["b"], name="pool", **window, ceil_mode=1, count_include_pad=1)
        nodes = [conv("a", "w", pads=[0, 0, 1, 1], strides=[2, 2]), pool, ADD]
        reason = refusal(FoldBranches(), nodes, INPUTS, arrays(w=(4, 4, 2, 2)))
        assert "AveragePool 'pool' rounds its extents up" in reason

    def test_bias_at_the_border(self) -> None:
        """1×1→3×3 with a bias between and padding behind: zeros there, the bias in the folded one."""
        nodes = [
            node("Conv", ["x", "u", "c"], ["h"], name="point"),
            node("Conv", ["h", "w"], ["a"], name="wide", pads=[1] * 4),
            conv("b", "v", pads=[1] * 4),
            ADD,
        ]
        constants = arrays(u=(4, 4, 1, 1), c=(4,), w=(4, 4, 3, 3), v=(4, 4, 3, 3))
        reason = refusal(FoldBranches(), nodes, INPUTS, constants)
        assert "Conv 'wide' pads the result of Conv 'point' with zeros, where a folded filter would see" in reason

    def test_values_beyond_the_border(self) -> None:
        nodes = [
            node("Conv", ["x", "u"], ["h"], name="first", pads=[1] * 4),
            node("Conv", ["h", "w"], ["a"], name="second", pads=[1] * 4),
            conv("b", "v", pads=[2] * 4),
            ADD,
        ]
        constants = arrays(u=(4, 4, 3, 3), w=(4, 4, 3, 3), v=(4, 4, 5, 5))
        reason = refusal(FoldBranches(), nodes, INPUTS, constants)
        assert "Conv 'second' pads the result of Conv 'first' with zeros, where a folded filter would compute" in reason

    def test_other_strides(self) -> None:
        inputs = {"x": [1, 4, 1, 1]}
        nodes = [conv("a", "w", pads=[1] * 4, strides=[2, 2]), conv("b", "v"), ADD]
        reason = refusal(FoldBranches(), nodes, inputs, arrays(w=(4, 4, 3, 3), v=(4, 4, 1, 1)))
        assert "its branches have different strides (1×1, 2×2)" in reason

    def test_sum_that_would_overflow(self) -> None:
        nodes = [conv("a", "w"), conv("b", "w"), ADD, node("IsInf", ["y"], ["z"])]
        original = {"w": np.full((4, 4, 1, 1), 3e38, np.float32)}
        assert "would not be finite in float32" in refusal(FoldBranches(), nodes, INPUTS, original, ["z"])
