"""Scales folded into the transposed convolution behind them, and the maps that must stay."""

from __future__ import annotations

import numpy as np
import pytest

from edgec.passes.fold_transposed import FoldTransposed
from tests.folding import arrays, batch_norm, folded, norm, refusal
from tests.graphs import node

INPUTS = {"x": [2, 6, 5, 7]}
SCALE = (1, 6, 1, 1)


@pytest.mark.parametrize(
    "attributes",
    [
        {},
        {"strides": [2, 3], "pads": [1, 0, 0, 2], "output_padding": [1, 0]},
        {"group": 3, "dilations": [2, 1], "pads": [1, 1, 1, 1]},
    ],
    ids=["plain", "strides and pads", "groups"],
)
@pytest.mark.parametrize("before", ["Mul", "Div", "Neg"])
def test_a_scale_is_folded(before: str, attributes: dict[str, object]) -> None:
    operands = ["x"] if before == "Neg" else ["x", "s"]
    constants = {**arrays(s=SCALE, b=(2 * int(str(attributes.get("group", 1))),)), **arrays(1, w=(6, 2, 3, 3))}
    nodes = [node(before, operands, ["h"]), node("ConvTranspose", ["h", "w", "b"], ["y"], **attributes)]
    found, report = folded(FoldTransposed(), nodes, INPUTS, constants)
    assert (found, report.matched) == (["ConvTranspose"], 1)


def test_a_norm_without_a_shift_is_folded() -> None:
    constants = {**arrays(w=(6, 2, 3, 3)), **norm(6)}
    constants |= {name: np.zeros_like(constants[name]) for name in ("bn_bias", "bn_mean")}
    nodes = [batch_norm("x", "h"), node("ConvTranspose", ["h", "w"], ["y"], strides=[2, 2])]
    assert folded(FoldTransposed(), nodes, INPUTS, constants)[0] == ["ConvTranspose"]


def test_other_readers_of_the_weight_keep_it() -> None:
    nodes = [
        node("Mul", ["x", "s"], ["h"]),
        node("ConvTranspose", ["h", "w"], ["y"]),
        node("ConvTranspose", ["x", "w"], ["z"]),
    ]
    constants = arrays(s=SCALE, w=(6, 2, 3, 3))
    assert folded(FoldTransposed(), nodes, INPUTS, constants, ["y", "z"])[0] == ["ConvTranspose"] * 2


def test_a_shift_is_refused() -> None:
    nodes = [batch_norm("x", "h"), node("ConvTranspose", ["h", "w"], ["y"], name="up", strides=[2, 2])]
    reason = refusal(FoldTransposed(), nodes, INPUTS, {**arrays(w=(6, 2, 3, 3)), **norm(6)})
    assert "shifts what ConvTranspose 'up' spreads over a varying number of taps" in reason


def test_a_scale_that_others_read_is_refused() -> None:
    nodes = [node("Mul", ["x", "s"], ["h"], name="scale"), node("ConvTranspose", ["h", "w"], ["y"])]
    reason = refusal(FoldTransposed(), nodes, INPUTS, arrays(s=SCALE, w=(6, 2, 3, 3)), ["h", "y"])
    assert "the result of Mul 'scale' is also an output of the model" in reason


def test_a_map_that_varies_within_a_channel_is_refused() -> None:
    nodes = [node("Mul", ["x", "s"], ["h"]), node("ConvTranspose", ["h", "w"], ["y"])]
    assert "varies along more" in refusal(FoldTransposed(), nodes, INPUTS, arrays(s=(5, 7), w=(6, 2, 3, 3)))
