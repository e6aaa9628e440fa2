"""Fewer tokens: merging, what the graph does with merged tokens, and the search."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from typer.testing import CliRunner

import edgec
from edgec.cli import app
from edgec.errors import EdgecError
from edgec.passes.pipeline import FLOAT, run
from edgec.passes.prune.activations import outputs
from edgec.passes.prune.cost import Cost
from edgec.passes.prune.tokens import ReduceTokens, find_places, group_tokens, merge_tokens
from edgec.runtimes.python.session import Session
from tests.graphs import load
from tests.prunable import Drawing, heads

TOKENS, WIDTH = 6, 12


def drawn(reading: str = "mean") -> onnx.ModelProto:
    """Two blocks of attention and an MLP, and a ``reading`` of the tokens: their mean, the first, or all."""
    d = Drawing()
    stream = d.linear("x", WIDTH, WIDTH)
    for _ in range(2):
        stream = d.add("Add", stream, heads(d, stream))
        hidden = d.add("Relu", d.linear(stream, WIDTH, 2 * WIDTH))
        stream = d.add("Add", stream, d.linear(hidden, 2 * WIDTH, WIDTH))
    if reading == "all":
        return d.finish(d.linear(stream, WIDTH, 5), (1, TOKENS, WIDTH))
    if reading == "mean":
        token = d.add("ReduceMean", stream, d.numbers(1), keepdims=0)
    else:
        token = d.add("Gather", stream, d.constant(np.array(0, np.int64)), axis=1)
    return d.finish(d.add("Gemm", token, d.weight(WIDTH, 4), d.weight(4)), (1, TOKENS, WIDTH))


def folded(reading: str = "mean") -> ir.Model:
    model = load(drawn(reading))
    run(model, FLOAT)
    return model


def inputs(count: int, *, twins: bool = False) -> list[dict[str, np.ndarray]]:
    """Standard normal tokens; ``twins``: the last two the same, and the two before them."""
    found = np.random.default_rng(3).standard_normal((count, 1, TOKENS, WIDTH)).astype(np.float32)
    if twins:
        found[:, :, [3, 5]] = found[:, :, [2, 4]]
    return [{"x": each} for each in found]


@pytest.mark.parametrize("reading", ["mean", "first", "all"])
def test_tokens_that_are_the_same_are_merged_at_no_loss(reading: str) -> None:
    """Attention counts a merged token twice, and whoever wants all tokens gets them."""
    original, model = folded(reading), folded(reading)
    labels = np.array([0, 1, 2, 2, 3, 3])
    merge_tokens(model, {str(place.name): labels for place in find_places(model)})
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
    assert Cost(model, "macs").total < Cost(original, "macs").total
    (wanted,), (found,) = (outputs(each, inputs(5, twins=True)) for each in (original, model))
    np.testing.assert_allclose(found, wanted, rtol=0, atol=2e-6 * np.abs(wanted).max())


def test_groups_of_a_later_layer_join_those_of_an_earlier_one() -> None:
    original, model = folded("all"), folded("all")
    plan = [np.array([0, 1, 2, 2, 3, 4]), np.array([0, 1, 2, 2, 3, 3])]
    merge_tokens(model, {str(p.name): labels for p, labels in zip(find_places(model), plan, strict=True)})
    (wanted,), (found,) = (outputs(each, inputs(5, twins=True)) for each in (original, model))
    np.testing.assert_allclose(found, wanted, rtol=0, atol=2e-6 * np.abs(wanted).max())


def test_what_is_alike_is_joined_first() -> None:
    tokens = np.array([[0.0, 0], [5, 0], [0.1, 0], [0, 7], [5.3, 0]])
    assert group_tokens(tokens @ tokens.T, np.arange(5), 3).tolist() == [0, 1, 0, 2, 1]


def test_a_share_of_the_macs_goes(tmp_path: Path) -> None:
    """The smaller model also compiles, for integers, too, and computes what ONNX Runtime does."""
    model, samples = folded(), inputs(24, twins=True)
    before = Cost(model, "macs").total
    step = ReduceTokens(0.2, samples)
    report = step.apply(model)
    assert report.matched > 0
    assert report.after.macs <= 0.8 * before
    assert list(step.counts) == sorted(step.counts, reverse=True)
    (wanted,) = outputs(model, samples[:1])
    for kind, calib, away in (("none", None, 1e-5), ("int8", samples, 0.2)):
        path = edgec.compile(model.clone(), "host", tmp_path / f"{kind}.so", quantize=kind, calib=calib).path
        with Session(path, 1) as session:
            (found,) = session.run(samples[0]).values()
        assert np.abs(found - wanted[0]).max() <= away * np.abs(wanted).max()


def test_too_large_a_share_is_a_sentence() -> None:
    with pytest.raises(EdgecError, match=r"95.0% of the MACs cannot be saved by merging tokens: at most \d+\.\d% can"):
        ReduceTokens(0.95, inputs(8)).apply(folded())


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--calib", "digits_calib.npz"], "there are no tokens to merge"),
        ([], "give it some with --calib"),
    ],
)
def test_a_model_without_tokens_is_a_sentence(
    sample_model: Path, tmp_path: Path, flags: list[str], message: str
) -> None:
    out = tmp_path / "small.onnx"
    paths = [each if each.startswith("-") else str(sample_model.parent / each) for each in flags]
    found = CliRunner().invoke(
        app, ["prune", str(sample_model), "--remove", "0", "--tokens", "0.3", "-o", str(out), *paths]
    )
    assert found.exit_code == 2
    assert message in " ".join(found.output.split())
    assert not out.exists()
