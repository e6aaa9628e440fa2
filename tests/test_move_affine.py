"""Maps per channel that cross what commutes with them, and those that must not."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
import pytest

from edgec.passes.fold_affine import FoldAffine
from edgec.passes.fold_sequences import FoldSequences
from edgec.passes.move_affine import MoveAffine
from tests.folding import arrays, batch_norm, folded, norm, refusal
from tests.graphs import assert_same, build, load, node, operators

INPUTS = {"x": [2, 3, 9, 7]}
CONV = node("Conv", ["x", "w"], ["h"], name="conv")
WEIGHT = {"w": (5, 3, 3, 3)}
EXTRA = {
    "sizes": np.array([2, 5, 11, 4]),
    "axes": np.array([2, 3]),
    "line": np.array([2, 5, -1]),
    "low": np.array([1, 0]),
    "high": np.array([5, -1]),
    "pads": np.array([0, 0, 1, 2, 0, 0, 0, 3]),
}


def after_both(
    nodes: Sequence[onnx.NodeProto], constants: dict[str, np.ndarray], outputs: Sequence[str] = ("y",)
) -> list[str]:
    """Operators after moving and folding, the values checked."""
    original = build(nodes, INPUTS, outputs, constants)
    model = load(original)
    MoveAffine().apply(model)
    FoldAffine().apply(model)
    assert_same(original, model)
    return operators(model)


@pytest.mark.parametrize(
    "crossed",
    [
        node("Resize", ["h", "", "", "sizes"], ["m"], mode="linear", coordinate_transformation_mode="align_corners"),
        node("Resize", ["h", "", "", "sizes"], ["m"], mode="cubic"),
        node("Resize", ["h", "", "", "sizes"], ["m"], mode="nearest"),
        node("AveragePool", ["h"], ["m"], kernel_shape=[3, 2], pads=[1, 0, 1, 1], strides=[2, 1]),
        node("GlobalAveragePool", ["h"], ["m"]),
        node("ReduceMean", ["h", "axes"], ["m"]),
        node("ReduceMean", ["h", "axes"], ["m"], keepdims=0),
        node("Reshape", ["h", "line"], ["m"]),
        node("Slice", ["h", "low", "high", "axes"], ["m"]),
        node("Pad", ["h", "pads"], ["m"], mode="reflect"),
    ],
    ids=lambda each: each.op_type,
)
def test_norm_across(crossed: onnx.NodeProto) -> None:
    constants = {**arrays(**WEIGHT), **norm(5), **EXTRA}
    assert after_both([CONV, crossed, batch_norm("m", "y")], constants) == sorted(["Conv", crossed.op_type])
    folded(MoveAffine(), [CONV, crossed, batch_norm("m", "y")], INPUTS, constants)


@pytest.mark.parametrize(("axis", "channels"), [(1, 9), (-2, 5)])
def test_norm_across_a_concatenation(axis: int, channels: int) -> None:
    """Each operand takes its own part; one of them stands behind another mean."""
    nodes = [
        CONV,
        node("Conv", ["x", "v"], ["i"]),
        node("AveragePool", ["i"], ["j"], kernel_shape=[1, 1], strides=[1, 1]),
        node("Concat", ["h", "j"], ["m"], axis=axis),
        batch_norm("m", "y"),
    ]
    constants = {**arrays(**WEIGHT, v=(4 if axis == 1 else 5, 3, 3, 3)), **norm(channels)}
    assert after_both(nodes, constants) == ["AveragePool", "Concat", "Conv", "Conv"]


def test_chain_of_crossings() -> None:
    nodes = [
        CONV,
        node("Resize", ["h", "", "", "sizes"], ["m"], mode="linear"),
        node("GlobalAveragePool", ["m"], ["n"]),
        node("Flatten", ["n"], ["o"]),
        node("Mul", ["s", "o"], ["p"]),
        node("Sub", ["t", "p"], ["y"]),
    ]
    constants = {**arrays(**WEIGHT, s=(5,), t=(1, 5)), **EXTRA}
    assert after_both(nodes, constants) == ["Conv", "Flatten", "GlobalAveragePool", "Resize"]


@pytest.mark.parametrize(
    "crossed",
    [
        node("AveragePool", ["h"], ["m"], kernel_shape=[3, 3], pads=[1] * 4, count_include_pad=1),
        node("Pad", ["h", "pads"], ["m"]),
        node("MaxPool", ["h"], ["m"], kernel_shape=[3, 3]),
        node("Relu", ["h"], ["m"]),
    ],
    ids=lambda each: each.op_type,
)
def test_what_does_not_commute(crossed: onnx.NodeProto) -> None:
    nodes = [CONV, crossed, batch_norm("m", "y")]
    found, report = folded(MoveAffine(), nodes, INPUTS, {**arrays(**WEIGHT), **norm(5), **EXTRA})
    assert (len(found), report.matched) == (3, 0)


def test_nothing_to_fold_into() -> None:
    """One operand of the concatenation is an activation: two maps would come of one."""
    nodes = [CONV, node("Relu", ["x"], ["r"]), node("Conv", ["r", "w"], ["i"]), node("Relu", ["i"], ["j"])]
    nodes += [node("Concat", ["h", "j"], ["m"], axis=1), batch_norm("m", "y")]
    assert folded(MoveAffine(), nodes, INPUTS, {**arrays(**WEIGHT), **norm(10)})[1].matched == 0


@pytest.mark.parametrize("flatten", [node("Flatten", ["n"], ["f"]), node("Reshape", ["n", "rows"], ["f"])])
def test_norm_before_a_flatten(flatten: onnx.NodeProto) -> None:
    """Behind an activation nothing can take it, but the product behind the rows of features can."""
    nodes = [node("Relu", ["x"], ["r"]), batch_norm("r", "n"), flatten, node("Gemm", ["f", "g", "c"], ["y"])]
    constants = {**norm(3), **arrays(g=(3 * 9 * 7, 5), c=(5,)), "rows": np.array([2, -1])}
    original = build(nodes, INPUTS, ["y"], constants)
    model = load(original)
    MoveAffine().apply(model)
    FoldSequences().apply(model)
    assert_same(original, model)
    assert operators(model) == sorted(["Relu", flatten.op_type, "Gemm"])
    folded(MoveAffine(), nodes, INPUTS, constants)


def test_result_with_other_readers() -> None:
    nodes = [
        CONV,
        node("GlobalAveragePool", ["h"], ["m"], name="mean"),
        batch_norm("m", "y"),
        node("Relu", ["m"], ["z"], name="other"),
    ]
    reason = refusal(MoveAffine(), nodes, INPUTS, {**arrays(**WEIGHT), **norm(5)}, ["y", "z"])
    assert "the result of GlobalAveragePool 'mean' has several readers (bn, other)" in reason
