"""ONNX's Attention: heads, shared heads, masks, a past and every output, against ONNX Runtime or numpy in float64."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgec.frontend.summary import summarise
from edgec.graph import load_graph
from edgec.lowering import lower
from tests import graphs
from tests.operators import Array, assert_agrees, compiled_outputs, node, normal
from tests.programs import HostProgram

OPSET = 23
SEPARATE = {"q": normal(2, 4, 5, 17), "k": normal(2, 4, 7, 17), "v": normal(2, 4, 7, 3)}
"""Queries, keys and values, each as (batch, heads, positions, size)."""

JOINED = {"q": normal(2, 5, 28), "k": normal(2, 17, 14), "v": normal(2, 17, 10)}
"""The same as (batch, positions, heads · size): four heads of queries share two of keys and values."""


def softmax(scores: Array) -> Array:
    powers = np.exp(scores - scores.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


@pytest.mark.parametrize("causal", [0, 1])
@pytest.mark.parametrize("scale", [None, 0.3])
def test_heads_of_their_own(scale: float | None, causal: int, tmp_path: Path) -> None:
    given = {} if scale is None else {"scale": scale}
    assert_agrees(node("Attention", "q k v", is_causal=causal, **given), SEPARATE, tmp_path, opset=OPSET)


@pytest.mark.parametrize("causal", [0, 1])
def test_joined_heads_share_keys_and_values(causal: int, tmp_path: Path) -> None:
    made = node("Attention", "q k v", q_num_heads=4, kv_num_heads=2, is_causal=causal)
    assert_agrees(made, JOINED, tmp_path, opset=OPSET)


@pytest.mark.parametrize("shape", [(5, 7), (1, 1, 5, 7), (2, 1, 5, 7), (2, 4, 5, 7)])
@pytest.mark.parametrize("dtype", ["float32", "bool"])
def test_masks(dtype: str, shape: tuple[int, ...], tmp_path: Path) -> None:
    mask = normal(*shape) > -0.5 if dtype == "bool" else normal(*shape)
    assert_agrees(node("Attention", "q k v m"), {**SEPARATE, "m": mask}, tmp_path, opset=OPSET)


def test_a_past_and_its_present(tmp_path: Path) -> None:
    past = {"pk": normal(2, 4, 6, 17), "pv": normal(2, 4, 6, 3)}
    made = node("Attention", "q k v - pk pv", "y present_key present_value", is_causal=1)
    outputs = "y present_key present_value"
    assert_agrees(made, {**SEPARATE, **past}, tmp_path, outputs=outputs, opset=OPSET)


@pytest.mark.parametrize("mode", [0, 1, 2, 3])
def test_scores_as_an_output(mode: int, tmp_path: Path) -> None:
    """The stages in the order of ONNX 1.22: product, softcap, mask, softmax."""
    mask = normal(5, 7)
    made = node("Attention", "q k v m", "y - - scores", softcap=1.5, qk_matmul_output_mode=mode)
    model = graphs.build([made], {n: a.shape for n, a in SEPARATE.items()}, ["y", "scores"], {"m": mask}, opset=24)
    found = compiled_outputs(model, SEPARATE, tmp_path)
    product = SEPARATE["q"].astype(np.float64) @ SEPARATE["k"].swapaxes(2, 3) / np.sqrt(17)
    capped = 1.5 * np.tanh(product / 1.5)
    stages = [product, capped, capped + mask, softmax(capped + mask)]
    np.testing.assert_allclose(found["scores"], stages[mode], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(found["y"], stages[3] @ SEPARATE["v"], rtol=1e-5, atol=1e-5)


def test_a_query_that_sees_nothing_gets_zeros(tmp_path: Path) -> None:
    mask = np.ones((5, 7), bool)
    mask[2] = False
    made = node("Attention", "q k v m")
    model = graphs.build([made], {n: a.shape for n, a in SEPARATE.items()}, ["y"], {"m": mask}, opset=24)
    found = compiled_outputs(model, SEPARATE, tmp_path)["y"]
    assert (found[:, :, 2] == 0).all()
    assert np.isfinite(found).all()


def test_products_are_counted_with_the_past(tmp_path: Path) -> None:
    made = node("Attention", "q k v - pk pv", "y present_key present_value")
    shapes = {n: a.shape for n, a in SEPARATE.items()} | {"pk": (2, 4, 6, 17), "pv": (2, 4, 6, 3)}
    model = graphs.build([made], shapes, ["y", "present_key", "present_value"], opset=OPSET)
    assert summarise(load_graph(model)).macs == 2 * 4 * 5 * (7 + 6) * (17 + 3)


@pytest.mark.parametrize(("rows", "steps"), [(1, ["Loops"]), (5, ["Loops"]), (7, ["Loops", "Conv"])])
@pytest.mark.parametrize("depth", [17, 64])
def test_few_queries_meet_keys_where_they_lie(depth: int, rows: int, steps: list[str], tmp_path: Path) -> None:
    """Keys of a cache are not turned for one query; where there are many, that pays."""
    turn = node("Transpose", "k", "t", perm=[0, 1, 3, 2])
    inputs = {"q": normal(2, 3, rows, depth), "k": normal(2, 3, 127, depth)}
    model = graphs.build([turn, node("MatMul", "q t")], {name: each.shape for name, each in inputs.items()}, ["y"])
    program = lower(load_graph(model))
    assert [type(step.kernel).__name__ for step in program.steps] == steps
    found = HostProgram(program, tmp_path).run(inputs)["y"]
    np.testing.assert_allclose(found, inputs["q"] @ inputs["k"].swapaxes(-1, -2), rtol=0, atol=1e-5)
