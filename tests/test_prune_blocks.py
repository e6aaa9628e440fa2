"""Blocks of layers fitted as a whole, in torch where it is installed."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from typer.testing import CliRunner

from edgec.cli import app
from edgec.errors import EdgecError
from edgec.passes.prune import blocks
from edgec.passes.prune.activations import Sample, distance, outputs
from edgec.passes.prune.blocks import find_blocks, fit_blocks
from edgec.passes.prune.coupling import find_coupling
from edgec.passes.prune.products import own_biases
from edgec.passes.prune.pruning import Prune, Settings
from edgec.passes.prune.removal import Kept
from tests.graphs import load
from tests.prunable import CASES, Drawing


@pytest.fixture
def few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "STEPS", 30)


def bottlenecks(count: int = 1) -> ir.Model:
    """A stem, residual blocks of a wide middle on an image of 6 × 6, and a classifier behind their mean."""
    d = Drawing()
    value = d.conv("x", 3, 6, 3)
    for _ in range(count):
        wide = d.conv(d.conv(value, 6, 16), 16, 16, 3, group=16)
        value = d.add("Add", d.add("Conv", wide, d.weight(6, 16, 1, 1, scale=0.2), d.weight(6)), value)
    flat = d.add("Flatten", d.add("GlobalAveragePool", value))
    model = load(d.finish(d.add("Gemm", flat, d.weight(6, 4), d.weight(4)), (1, 3, 6, 6)))
    own_biases(model)
    return model


def drawn_samples(count: int, shape: tuple[int, ...] = (1, 3, 6, 6)) -> list[Sample]:
    return [{"x": each} for each in np.random.default_rng(5).standard_normal((count, *shape)).astype(np.float32)]


def test_blocks_end_where_branches_meet() -> None:
    """And the last one at the output; what a residual branch holds is no end."""
    model = bottlenecks(2)
    found = find_blocks(model, find_coupling(model).linears, Kept(()))
    stem = next(node for node in model.graph if node.op_type == "Relu")
    sums = [node for node in model.graph if node.op_type == "Add"]
    assert [block.end for block in found] == [node.outputs[0].name for node in (stem, *sums, model.graph[-1])]


@pytest.mark.parametrize("name", ["chain", "residual", "depthwise", "shuffle", "heads"])
def test_blocks_join(name: str) -> None:
    """Each begins where the one before ends, from the input to the output."""
    model = load(CASES[name]())
    found = find_blocks(model, find_coupling(model).linears, Kept(()))
    assert [block.start for block in found] == ["x", *(block.end for block in found[:-1])]
    assert found[-1].end == model.graph.outputs[0].name


@pytest.mark.usefixtures("few_steps")
def test_blocks_come_nearer_to_the_original() -> None:
    """On samples that no fit has seen, and channels of the stream that are gone are not missed."""
    pytest.importorskip("torch")
    original, samples = bottlenecks(2), drawn_samples(96)
    fitted, plain = original.clone(), original.clone()
    Prune(Settings(0.4, blockwise=True, low_rank=False), samples[:64]).apply(fitted)
    Prune(Settings(0.4, low_rank=False), samples[:64]).apply(plain)
    wanted = outputs(original, samples[64:])
    assert distance(outputs(fitted, samples[64:]), wanted) < 0.9 * distance(outputs(plain, samples[64:]), wanted)


@pytest.mark.usefixtures("few_steps")
def test_what_does_not_help_is_not_kept() -> None:
    """The original fits itself best."""
    pytest.importorskip("torch")
    model, samples = bottlenecks(), drawn_samples(16)
    linears = find_coupling(model).linears
    before = outputs(model, samples)
    fit_blocks(model, linears, model.clone(), find_blocks(model, linears, Kept(())), samples, seed=0)
    np.testing.assert_array_equal(outputs(model, samples), before)


def test_too_few_samples_are_a_sentence() -> None:
    pytest.importorskip("torch")
    with pytest.raises(EdgecError, match="--blockwise needs at least 16 samples, and --calib has 3"):
        Prune(Settings(0.3, blockwise=True), drawn_samples(3)).apply(bottlenecks())


def test_a_model_of_several_inputs_is_a_sentence() -> None:
    pytest.importorskip("torch")
    model = bottlenecks()
    model.graph.inputs.append(ir.val("y", ir.DataType.FLOAT, ir.Shape((1, 2))))
    with pytest.raises(EdgecError, match="--blockwise takes models of one input, and this one has 2"):
        Prune(Settings(0.3, blockwise=True), drawn_samples(16)).apply(model)


def test_without_torch_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(EdgecError, match=r"run pip install 'edgec\[train\]'"):
        Prune(Settings(0.3, blockwise=True), drawn_samples(16)).apply(bottlenecks())


@pytest.mark.usefixtures("few_steps")
def test_the_command_fits_blocks(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    path, calib, out = tmp_path / "net.onnx", tmp_path / "calib.npz", tmp_path / "small.onnx"
    ir.save(bottlenecks(), path)
    np.savez(calib, x=np.concatenate([each["x"] for each in drawn_samples(32)]))
    command = ["prune", str(path), "--remove", "0.3", "--blockwise", "-o", str(out)]
    refused = CliRunner().invoke(app, command)
    assert refused.exit_code == 2
    assert "--blockwise needs at least 16 samples" in " ".join(refused.output.split())
    found = CliRunner().invoke(app, [*command, "--calib", str(calib)])
    assert found.exit_code == 0, found.output
    assert out.exists()
