"""Transposes that meet and cancel through what stands between them; the values stay the same."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from edgec.passes.cancel_transposes import CancelTransposes
from tests.folding import arrays, batch_norm, folded, norm
from tests.graphs import node

TO_LAST, TO_FIRST = [0, 2, 3, 1], [0, 3, 1, 2]
INPUTS = {"x": [1, 3, 5, 7]}


def turn(source: str, result: str, perm: list[int]) -> onnx.NodeProto:
    return node("Transpose", [source], [result], perm=perm)


@pytest.mark.parametrize(
    "between",
    [
        [node("Relu", ["a"], ["b"])],
        [node("Clip", ["a", "low", "high"], ["b"])],
        [node("Mul", ["a", "s"], ["h"]), node("Add", ["c", "h"], ["b"])],
        [node("Sigmoid", ["a"], ["h"]), node("Mul", ["a", "h"], ["b"])],
        [node("Softmax", ["a"], ["b"])],
        [node("Softmax", ["a"], ["b"], axis=1)],
        [batch_norm("a", "b")],
        [node("PRelu", ["a", "s"], ["b"])],
    ],
)
def test_through(between: list[onnx.NodeProto]) -> None:
    nodes = [turn("x", "a", TO_LAST), *between, turn("b", "y", TO_FIRST)]
    constants = {**arrays(s=(3,), c=(5, 1, 3)), **norm(5), "low": np.float32(-0.5), "high": np.float32(0.5)}
    found, report = folded(CancelTransposes(), nodes, INPUTS, constants)
    assert "Transpose" not in found
    assert report.matched == 1


def test_two_that_only_merge() -> None:
    nodes = [turn("x", "a", TO_LAST), node("Relu", ["a"], ["b"]), turn("b", "y", TO_LAST)]
    assert folded(CancelTransposes(), nodes, INPUTS, {})[0] == ["Relu", "Transpose"]


def test_branches_of_a_sum() -> None:
    nodes = [
        turn("x", "a", TO_LAST),
        turn("z", "b", TO_LAST),
        node("Tanh", ["b"], ["c"]),
        node("Add", ["a", "c"], ["d"]),
        turn("d", "y", TO_FIRST),
    ]
    assert folded(CancelTransposes(), nodes, {**INPUTS, "z": [1, 3, 5, 7]}, {})[0] == ["Add", "Tanh"]


def test_concatenation_renames_its_axis() -> None:
    nodes = [
        turn("x", "a", TO_LAST),
        turn("z", "b", TO_LAST),
        node("Concat", ["a", "b"], ["d"], axis=-1),
        turn("d", "y", TO_FIRST),
    ]
    assert folded(CancelTransposes(), nodes, {**INPUTS, "z": [1, 2, 5, 7]}, {})[0] == ["Concat"]


def test_two_readers_behind() -> None:
    nodes = [
        turn("x", "a", TO_LAST),
        node("Relu", ["a"], ["b"]),
        turn("b", "y", TO_FIRST),
        turn("b", "c", TO_FIRST),
        node("Exp", ["c"], ["z"]),
    ]
    assert folded(CancelTransposes(), nodes, INPUTS, {}, ["y", "z"])[0] == ["Exp", "Relu"]


def test_result_that_is_also_an_output() -> None:
    """Two turns before and one behind go, one comes for the output: the names stay with their values."""
    nodes = [
        turn("x", "a", TO_LAST),
        turn("z", "c", TO_LAST),
        node("Add", ["a", "c"], ["b"]),
        turn("b", "y", TO_FIRST),
    ]
    inputs = {**INPUTS, "z": [1, 3, 5, 7]}
    assert folded(CancelTransposes(), nodes, inputs, {}, ["y", "b"])[0] == ["Add", "Transpose"]


def test_turns_that_others_need_stay() -> None:
    nodes = [turn("x", "a", TO_LAST), node("Relu", ["a"], ["b"]), node("Add", ["b", "w"], ["y"])]
    found, report = folded(CancelTransposes(), nodes, {**INPUTS, "w": [1, 5, 7, 3]}, {})
    assert (found, report.matched) == (["Add", "Relu", "Transpose"], 0)


def test_shuffle_is_not_meant() -> None:
    nodes = [
        node("Reshape", ["x", "five"], ["a"]),
        turn("a", "b", [0, 2, 1, 3, 4]),
        node("Reshape", ["b", "four"], ["y"]),
    ]
    constants = {"five": np.array([1, 2, 3, 5, 7]), "four": np.array([1, 6, 5, 7])}
    found, report = folded(CancelTransposes(), nodes, {"x": [1, 6, 5, 7]}, constants)
    assert (len(found), report.matched) == (3, 0)
