"""Folding of adapters into the product beside them, and of weights written as expressions of factors."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from edgec.passes.fold_adapters import FoldAdapters
from edgec.passes.pipeline import run as run_passes
from edgec.passes.simplify import Simplify
from tests.folding import arrays, batch_norm, folded, norm, refusal
from tests.graphs import assert_same, build, load, node, operators

INPUTS = {"x": [2, 5, 7]}


def low_rank(result: str, prefix: str = "l") -> list[onnx.NodeProto]:
    """x·A·B, scaled: ``result`` of constants ``prefix``_a, _b and ``scale``."""
    return [
        node("MatMul", ["x", f"{prefix}_a"], [f"{prefix}_low"], name=f"{prefix}_down"),
        node("MatMul", [f"{prefix}_low", f"{prefix}_b"], [f"{prefix}_high"], name=f"{prefix}_up"),
        node("Mul", [f"{prefix}_high", "scale"], [result]),
    ]


BASE = [node("MatMul", ["x", "w"], ["p"], name="base"), node("Add", ["p", "b"], ["base"])]
SUM = node("Add", ["base", "adapter"], ["y"], name="sum")
CONSTANTS = {**arrays(w=(7, 9), b=(9,), l_a=(7, 2), l_b=(2, 9), k_a=(7, 3), k_b=(3, 9)), "scale": np.float32(0.25)}


class TestAdapters:
    def test_low_rank_beside_a_biased_product(self) -> None:
        found, report = folded(FoldAdapters(), [*BASE, *low_rank("adapter"), SUM], INPUTS, CONSTANTS)
        assert found == ["Add", "MatMul"]
        assert report.after.parameters == 7 * 9 + 9
        assert report.after.macs == 2 * 5 * 7 * 9

    def test_group_of_adapters(self) -> None:
        nodes = [*BASE, *low_rank("one"), *low_rank("two", "k"), node("Sum", ["one", "base", "two"], ["y"])]
        assert folded(FoldAdapters(), nodes, INPUTS, CONSTANTS)[0] == ["Add", "MatMul"]

    def test_gemm(self) -> None:
        nodes = [
            node("Gemm", ["x", "w", "b"], ["base"], transB=1, alpha=0.5, beta=2.0),
            node("Gemm", ["x", "a"], ["low"]),
            node("Gemm", ["low", "u"], ["adapter"], alpha=3.0),
            SUM,
        ]
        constants = arrays(w=(9, 7), b=(9,), a=(7, 2), u=(2, 9))
        assert folded(FoldAdapters(), nodes, {"x": [5, 7]}, constants)[0] == ["Gemm"]

    def test_residual_joins_a_square_product(self) -> None:
        nodes = [node("MatMul", ["x", "w"], ["h"]), node("Mul", ["h", "c"], ["s"]), node("Sub", ["x", "s"], ["y"])]
        assert folded(FoldAdapters(), nodes, INPUTS, arrays(w=(7, 7), c=(7,)))[0] == ["MatMul"]

    def test_scale_and_shift(self) -> None:
        """SSF (arXiv 2210.08823): behind the product, per channel."""
        nodes = [*BASE, node("Mul", ["base", "c"], ["s"]), node("Add", ["s", "d"], ["y"])]
        original = build(nodes, INPUTS, ["y"], CONSTANTS | arrays(3, c=(9,), d=(9,)))
        model = load(original)
        run_passes(model)
        assert operators(model) == ["Add", "MatMul"]
        assert_same(original, model)

    def test_norms_of_rank_two(self) -> None:
        nodes = [
            node("Gemm", ["x", "w"], ["g"]),
            batch_norm("g", "a", "one"),
            batch_norm("x", "b", "two"),
            node("Add", ["a", "b"], ["y"]),
        ]
        constants = {**arrays(w=(7, 7)), **norm(7, "one"), **norm(7, "two", seed=2)}
        assert folded(FoldAdapters(), nodes, {"x": [3, 7]}, constants)[0] == ["Gemm"]

    def test_activation_inside_keeps_an_adapter(self) -> None:
        nodes = [
            *BASE,
            node("MatMul", ["x", "l_a"], ["low"]),
            node("Relu", ["low"], ["r"]),
            node("MatMul", ["r", "l_b"], ["adapter"]),
            SUM,
        ]
        found, report = folded(FoldAdapters(), nodes, INPUTS, CONSTANTS)
        assert (len(found), report.matched, report.refusals) == (6, 0, ())

    def test_attention_scores_are_not_meant(self) -> None:
        nodes = [node("MatMul", ["x", "z"], ["a"]), node("MatMul", ["x", "u"], ["b"]), node("Add", ["a", "b"], ["y"])]
        inputs = {"x": [3, 5], "z": [5, 7], "u": [5, 7]}
        found, report = folded(FoldAdapters(), nodes, inputs, {})
        assert (len(found), report.refusals) == (3, ())


class TestRefusals:
    def test_low_rank_value_read_twice(self) -> None:
        nodes = [*BASE, *low_rank("adapter"), SUM, node("Relu", ["l_high"], ["z"], name="other")]
        reason = refusal(FoldAdapters(), nodes, INPUTS, CONSTANTS, ["y", "z"])
        assert "the result of MatMul 'l_up' has several readers" in reason

    def test_gemm_weight_computed_at_run_time(self) -> None:
        nodes = [
            node("Gemm", ["x", "w"], ["a"], name="base"),
            node("Gemm", ["x", "v"], ["b"]),
            node("Add", ["a", "b"], ["y"]),
        ]
        reason = refusal(FoldAdapters(), nodes, {"x": [3, 7], "w": [7, 5]}, arrays(v=(7, 5)))
        assert "the weight of Gemm 'base' is computed at run time" in reason


class TestWeightExpressions:
    """An adapter in the weight itself is a constant that the first pass computes."""

    def _check(self, nodes: list[onnx.NodeProto], constants: dict[str, np.ndarray]) -> None:
        original = build([*nodes, node("MatMul", ["x", "merged"], ["y"])], INPUTS, ["y"], constants)
        model = load(original)
        Simplify().apply(model)
        assert operators(model) == ["MatMul"]
        assert_same(original, model)

    def test_low_rank(self) -> None:
        self._check(
            [
                node("MatMul", ["up", "down"], ["delta"]),
                node("Mul", ["delta", "scale"], ["scaled"]),
                node("Add", ["w", "scaled"], ["sum"]),
                node("Transpose", ["sum"], ["merged"]),
            ],
            {**arrays(w=(9, 7), up=(9, 2), down=(2, 7)), "scale": np.float32(0.5)},
        )

    @pytest.mark.parametrize("by_einsum", [False, True])
    def test_kronecker(self, by_einsum: bool) -> None:
        """7×6 as the Kronecker product of 7×2 and 1×3, spelt by broadcasting or by Einsum."""
        product = (
            [node("Einsum", ["a", "b"], ["four"], equation="ij,kl->ikjl")]
            if by_einsum
            else [
                node("Unsqueeze", ["a", "inner"], ["wide"]),
                node("Unsqueeze", ["b", "outer"], ["high"]),
                node("Mul", ["wide", "high"], ["four"]),
            ]
        )
        indices = {"inner": np.array([1, 3]), "outer": np.array([0, 2]), "shape": np.array([7, 6])}
        reshape = node("Reshape", ["four", "shape"], ["kronecker"])
        self._check(
            [*product, reshape, node("Add", ["w", "kronecker"], ["merged"])],
            {**arrays(w=(7, 6), a=(7, 2), b=(1, 3)), **indices},
        )
