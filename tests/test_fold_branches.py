"""Folding of multi-branch blocks: whole networks become chains, exactly; what does not fit says why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest

from edgec.graph import load_graph
from edgec.passes.fold_branches import FoldBranches
from edgec.passes.pipeline import run as run_passes
from tests.folding import arrays, batch_norm, folded, norm, refusal
from tests.graphs import assert_same, build, load, node, operators


class Block:
    """Nodes and constants of a network under construction; ``value`` is its last value, of ``channels``."""

    def __init__(self, channels: int) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, np.ndarray] = {}
        self.value, self.channels = "x", channels

    def add(self, operator: str, inputs: Sequence[str], **attributes: object) -> str:
        name = f"v{len(self.nodes)}"
        self.nodes.append(node(operator, inputs, [name], name=f"n{len(self.nodes)}", **attributes))
        return name

    def constant(self, *shape: int) -> str:
        name = f"c{len(self.constants)}"
        rng = np.random.default_rng(len(self.constants))
        self.constants[name] = (rng.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))).astype(np.float32)
        return name

    def norm(self, source: str, channels: int) -> str:
        prefix = f"bn{len(self.nodes)}"
        self.constants |= norm(channels, prefix, seed=len(self.nodes))
        self.nodes.append(batch_norm(source, prefix, prefix))
        return prefix

    def conv(self, source: str, channels: int, kernel: Sequence[int], **attributes: object) -> str:
        """Convolution, without a bias, and batch norm."""
        group = int(str(attributes.get("group", 1)))
        weight = self.constant(channels, self.channels // group, *kernel)
        return self.norm(self.add("Conv", [source, weight], **attributes), channels)

    def repvgg(self, channels: int, stride: int, group: int = 1) -> None:
        """RepVGG (arXiv 2101.03697): 3×3, 1×1 and, where it fits, identity."""
        source, shared = self.value, {"strides": [stride] * 2, "group": group}
        total = self.add(
            "Add",
            [
                self.conv(source, channels, (3, 3), pads=[1] * 4, **shared),
                self.conv(source, channels, (1, 1), **shared),
            ],
        )
        if stride == 1 and channels == self.channels:
            total = self.add("Add", [total, self.norm(source, channels)])
        self.value, self.channels = self.add("Relu", [total]), channels

    def mobileone(self, channels: int, stride: int) -> None:
        """MobileOne (arXiv 2206.04040): four depthwise 3×3 + 1×1 + identity, then four pointwise + identity."""
        source, group = self.value, self.channels
        shared = {"strides": [stride] * 2, "group": group}
        branches = [self.conv(source, group, (3, 3), pads=[1] * 4, **shared) for _ in range(4)]
        branches.append(self.conv(source, group, (1, 1), **shared))
        if stride == 1:
            branches.append(self.norm(source, group))
        self.value = self.add("Relu", [self.add("Sum", branches)])
        branches = [self.conv(self.value, channels, (1, 1)) for _ in range(4)]
        if channels == group:
            branches.append(self.norm(self.value, channels))
        self.value, self.channels = self.add("Relu", [self.add("Sum", branches)]), channels

    def repmixer(self) -> None:
        """RepMixer (FastViT, arXiv 2303.14189): x + scale·(mixer(x) − norm(x)), the mixer a MobileOne block."""
        source, channels = self.value, self.channels
        shared = {"group": channels}
        mixed = self.add(
            "Add",
            [
                self.add(
                    "Add",
                    [
                        self.conv(source, channels, (7, 7), pads=[3] * 4, **shared),
                        self.conv(source, channels, (1, 1), **shared),
                    ],
                ),
                self.norm(source, channels),
            ],
        )
        difference = self.add("Sub", [mixed, self.norm(source, channels)])
        scaled = self.add("Mul", [self.constant(channels, 1, 1), difference])
        self.value = self.add("Relu", [self.add("Add", [source, scaled])])

    def acnet(self, channels: int) -> None:
        """ACNet (arXiv 1908.03930): 3×3 + 1×3 + 3×1, each with its norm."""
        branches = [
            self.conv(self.value, channels, kernel, pads=[(size - 1) // 2 for size in kernel] * 2)
            for kernel in ((1, 3), (3, 3), (3, 1))
        ]
        self.value = self.add("Relu", [self.add("Add", [self.add("Add", branches[:2]), branches[2]])])
        self.channels = channels

    def diverse(self, channels: int) -> None:
        """DBB (arXiv 2103.13425): 3×3 + 1×1 + 1×1→3×3 + 1×1→average, with the padding before the 1×1."""
        source = self.value
        sequence = self.conv(source, channels, (1, 1), pads=[1] * 4)
        averaged = self.conv(source, channels, (1, 1), pads=[1] * 4)
        pool = self.add("AveragePool", [averaged], kernel_shape=[3, 3])
        inner, self.channels = self.channels, channels
        last = self.conv(sequence, channels, (3, 3))
        self.channels = inner
        branches = [
            self.conv(source, channels, (3, 3), pads=[1] * 4),
            self.conv(source, channels, (1, 1)),
            last,
            self.norm(pool, channels),
        ]
        self.value = self.add("Relu", [self.add("Sum", branches)])
        self.channels = channels

    def check(self, shape: Sequence[int], expected: Sequence[str]) -> None:
        """The passes turn the network into ``expected``, and change nothing the second time."""
        original = build(self.nodes, {"x": shape}, [self.value], self.constants)
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
        network.check([1, 3, 37, 41], ["Conv", "Relu"] * 22)

    def test_mobileone(self) -> None:
        network = Block(5)
        for channels, stride in [(7, 2), (7, 1), (9, 2), (9, 1)]:
            network.mobileone(channels, stride)
        network.check([2, 5, 17, 23], ["Conv", "Relu"] * 8)

    def test_repmixer(self) -> None:
        network = Block(7)
        network.repmixer()
        network.repmixer()
        network.check([1, 7, 11, 9], ["Conv", "Relu"] * 2)

    def test_acnet(self) -> None:
        network = Block(3)
        network.acnet(5)
        network.acnet(4)
        network.check([1, 3, 7, 17], ["Conv", "Relu"] * 2)

    def test_diverse_branches(self) -> None:
        network = Block(3)
        network.diverse(5)
        network.diverse(5)
        network.check([1, 3, 9, 7], ["Conv", "Relu"] * 2)

    @pytest.mark.parametrize(("channels", "group"), [(6, 3), (6, 6)])
    def test_groups(self, channels: int, group: int) -> None:
        network = Block(channels)
        network.repvgg(channels, 1, group)
        network.check([1, channels, 5, 7], ["Conv", "Relu"])

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


class TestRefusals:
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
