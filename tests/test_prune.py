"""Pruning from end to end: budgets, scores, compensation, repair, low ranks, and the commands."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx_ir.passes.common import RemoveUnusedNodesPass
from typer.testing import CliRunner

import edgec
from edgec.cli import app
from edgec.errors import EdgecError
from edgec.frontend.shapes import infer_shapes
from edgec.frontend.summary import node_macs
from edgec.graph import load_graph
from edgec.passes.pipeline import FLOAT, run
from edgec.passes.prune import low_rank
from edgec.passes.prune.activations import capture, distance, open_session, outputs
from edgec.passes.prune.allocation import Limits
from edgec.passes.prune.compensation import compensated, damped, depth_mask, from_moments, from_weights, losses
from edgec.passes.prune.cost import MEASURES, Cost, Measure
from edgec.passes.prune.coupling import find_coupling
from edgec.passes.prune.low_rank import Split, factorise, measure_ranks
from edgec.passes.prune.products import input_rows, matrix, measure_moments, output_rows, own_biases, places, weight_of
from edgec.passes.prune.pruning import Prune, Settings
from edgec.passes.prune.repair import Rows, fit_bounded
from edgec.passes.prune.rounding import vector_step
from edgec.passes.prune.scores import SCORES
from edgec.pruning import prune_to_latency
from tests.graphs import build, load, node
from tests.graphs import run as infer
from tests.prunable import CASES, Drawing

SAMPLES = Path(__file__).parent.parent / "samples" / "models"
COUNT = 40
"""Calibration samples that the tests use."""


@pytest.fixture(scope="module")
def digits() -> list[dict[str, np.ndarray]]:
    """Calibration samples of the sample model."""
    with np.load(SAMPLES / "digits_calib.npz") as data:
        return [{"image": image.reshape(1, 1, 8, 8)} for image in data["image"][:COUNT]]


def folded(path: Path) -> ir.Model:
    model = load_graph(path)
    run(model, FLOAT)
    return model


def accuracy(model: ir.Model, data: dict[str, np.ndarray]) -> float:
    session = open_session(model)
    found = [session.run(None, {"image": image.reshape(1, 1, 8, 8)})[0].argmax() for image in data["image"]]
    return float(np.mean(np.array(found) == data["labels"]))


def pruned(path: Path, samples: list[dict[str, np.ndarray]], **choices: Any) -> ir.Model:
    model = folded(path)
    Prune(Settings(**{"curve_samples": 8, **choices}), samples).apply(model)
    return model


def shapes(model: ir.Model) -> dict[str, tuple[int, ...]]:
    return {str(v.name): v.shape.numpy() for v in (*model.graph.inputs, *model.graph.outputs)}


@pytest.mark.parametrize("measure", MEASURES)
def test_budgets_are_met(sample_model: Path, measure: Measure) -> None:
    before = folded(sample_model)
    model = pruned(sample_model, [], fraction=0.4, measure=measure)
    assert Cost(model, measure).total <= 0.6 * Cost(before, measure).total
    assert Cost(model, measure).total >= 0.5 * Cost(before, measure).total
    assert shapes(model) == shapes(before)
    onnx.checker.check_model(ir.to_proto(model), full_check=True)


@pytest.mark.parametrize("name", [*SCORES])
def test_every_score_prunes(name: str, sample_model: Path, digits: list[dict[str, np.ndarray]]) -> None:
    model = load_graph(sample_model) if name == "norm-scale" else folded(sample_model)
    macs = Cost(model, "macs").total
    report = Prune(Settings(0.3, score=name, repair=False, curve_samples=0), digits).apply(model)
    assert report.matched > 0
    assert report.after.macs <= 0.7 * macs
    open_session(model)


def test_half_of_the_sample_model_can_go(
    sample_model: Path, sample_data: dict[str, np.ndarray], digits: list[dict[str, np.ndarray]]
) -> None:
    """Without labels; magnitude alone, and a random choice repaired, are worse."""
    whole = accuracy(folded(sample_model), sample_data)
    ours = accuracy(pruned(sample_model, digits, fraction=0.5), sample_data)
    alone = pruned(sample_model, digits, fraction=0.5, score="magnitude", repair=False, curve_samples=0)
    random = pruned(sample_model, digits, fraction=0.5, score="random", repair=False, curve_samples=0)
    assert ours >= whole - 0.02
    assert ours >= accuracy(alone, sample_data) + 0.05
    assert ours >= accuracy(random, sample_data) + 0.05


def test_compensation_without_samples_beats_none(sample_model: Path, digits: list[dict[str, np.ndarray]]) -> None:
    wanted = outputs(folded(sample_model), digits)
    ours = outputs(pruned(sample_model, [], fraction=0.3, score="obs"), digits)
    other = outputs(pruned(sample_model, [], fraction=0.3, score="random"), digits)
    assert distance(ours, wanted) < distance(other, wanted)


def test_pruning_is_deterministic(sample_model: Path, digits: list[dict[str, np.ndarray]]) -> None:
    first, second = (pruned(sample_model, digits[:8], fraction=0.4) for _ in range(2))
    assert ir.to_proto(first).SerializeToString() == ir.to_proto(second).SerializeToString()


@pytest.mark.parametrize("name", sorted(CASES))
def test_every_kind_of_coupling_is_pruned_and_repaired(name: str) -> None:
    original = CASES[name]()
    model = load(original)
    rng = np.random.default_rng(0)
    shape = model.graph.inputs[0].shape
    assert shape is not None
    samples = [{"x": rng.standard_normal(shape.numpy()).astype(np.float32)} for _ in range(12)]
    before, macs = shapes(model), Cost(model, "macs").total
    Prune(Settings(0.25, curve_samples=4, limits=Limits(floor=0.01)), samples).apply(model)
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
    assert shapes(model) == before
    assert Cost(model, "macs").total <= 0.75 * macs
    wanted, found = infer(original, samples[0]), infer(model, samples[0])
    assert all(np.isfinite(found[key]).all() and found[key].shape == wanted[key].shape for key in wanted)


def test_dead_channels_alone_change_nothing(digits: list[dict[str, np.ndarray]]) -> None:
    """A budget that dead channels meet needs no more."""
    d = Drawing()
    hidden = d.conv("x", 3, 8, bias=False)
    d.constants["c0"][:4] = 0
    model = load(d.finish(d.conv(hidden, 8, 4), (1, 3, 5, 7)))
    x = {"x": np.random.default_rng(1).standard_normal((1, 3, 5, 7)).astype(np.float32)}
    wanted = infer(model, x)
    report = Prune(Settings(0.4)).apply(model)
    assert report.matched == 4
    np.testing.assert_allclose(*(next(iter(run_.values())) for run_ in (infer(model, x), wanted)), atol=1e-6)


def test_channels_are_rounded_to_the_vector(sample_model: Path) -> None:
    model = pruned(sample_model, [], fraction=0.4, limits=Limits(multiple=4))
    widths = [node.inputs[1].shape.numpy()[0] for node in model.graph if node.op_type == "Conv" and node.inputs[1]]
    assert all(width % 4 == 0 for width in widths)


@pytest.mark.parametrize("width", [13, 15, 29, 61])
def test_channels_that_are_no_multiple_become_one(width: int) -> None:
    """Where dead channels went first, say: the first step is a small one, those after it are of vectors."""
    rng = np.random.default_rng(0)
    nodes = [
        node("Conv", ["x", "a"], ["h"], pads=[1, 1, 1, 1]),
        node("Relu", ["h"], ["r"]),
        node("Conv", ["r", "b"], ["y"]),
    ]
    shapes = {"a": (width, 3, 3, 3), "b": (5, width, 1, 1)}
    constants = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    model = load(build(nodes, {"x": (1, 3, 8, 8)}, ["y"], constants))
    Prune(Settings(0.3, score="magnitude", limits=Limits(multiple=8))).apply(model)
    left = next(each.inputs[1].shape.numpy()[0] for each in model.graph if each.op_type == "Conv" and each.inputs[1])
    assert left < 0.75 * width
    assert left % 4 == 0


@pytest.mark.parametrize(
    ("multiple", "count", "step"), [(8, 64, 8), (8, 28, 4), (16, 15, 4), (8, 5, 2), (8, 1, 1), (1, 9, 1)]
)
def test_few_channels_go_in_smaller_steps(multiple: int, count: int, step: int) -> None:
    assert vector_step(multiple, count) == step


def test_ranks_are_rounded_as_channels_are(sample_model: Path, digits: list[dict[str, np.ndarray]]) -> None:
    prune = Prune(Settings(0.3, curve_samples=4, limits=Limits(multiple=8)), digits)
    prune.apply(folded(sample_model))
    sides = [
        [split.rank for split in curve.splits if split.at_inputs == at_inputs]
        for curve in prune.ranks
        for at_inputs in (False, True)
    ]
    assert any(sides)
    assert all(rank % 4 == 0 for ranks in sides for rank in ranks if max(ranks) >= 8)


def test_a_floor_stays(sample_model: Path) -> None:
    before = {n.name: n.outputs[0].shape.numpy()[1] for n in folded(sample_model).graph if n.op_type == "Conv"}
    model = pruned(sample_model, [], fraction=0.6, limits=Limits(floor=0.5))
    after = {n.name: n.outputs[0].shape.numpy()[1] for n in model.graph if n.op_type == "Conv"}
    assert all(after[name] >= before[name] / 2 for name in before)


def test_too_much_names_the_largest_share(sample_model: Path) -> None:
    with pytest.raises(EdgecError, match=r"80\.0% of the model cannot be pruned: at most .* --prune 0\.\d+ or less"):
        pruned(sample_model, [], fraction=0.8, limits=Limits(floor=0.5))


def test_nothing_to_prune_is_a_sentence() -> None:
    d = Drawing()
    model = load(d.finish(d.conv("x", 3, 4), (1, 3, 5, 7)))
    with pytest.raises(EdgecError, match="nothing of this model can be pruned; edgec inspect --prunable says why"):
        Prune(Settings(0.3)).apply(model)


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({"fraction": 1.0}, "--prune 1 is no share to remove"),
        ({"fraction": 0.3, "score": "best"}, "there is no score 'best'; the scores are magnitude"),
        ({"fraction": 0.3, "score": "trajectory"}, "--score trajectory looks at activations; give it samples"),
        ({"fraction": 0.3, "score": "norm-scale"}, "--score norm-scale finds nothing to judge"),
    ],
)
def test_wrong_settings_are_sentences(choices: dict[str, Any], message: str, sample_model: Path) -> None:
    with pytest.raises(EdgecError, match=message):
        pruned(sample_model, [], **choices)


CONVOLUTIONS: list[dict[str, Any]] = [
    {"pads": [1, 0, 2, 1], "strides": [2, 1]},
    {"auto_pad": "SAME_LOWER", "strides": [2, 2]},
    {"auto_pad": "SAME_UPPER", "strides": [2, 3]},
    {"auto_pad": "VALID"},
    {"group": 2, "dilations": [2, 1]},
    {"group": 4},
]


@pytest.mark.parametrize("attributes", CONVOLUTIONS)
def test_rows_times_the_matrix_are_the_convolution(attributes: dict[str, Any]) -> None:
    rng = np.random.default_rng(3)
    weight = rng.standard_normal((8, 4 // attributes.get("group", 1), 3, 2)).astype(np.float32)
    model = load(build([node("Conv", ["x", "w"], ["y"], **attributes)], {"x": (2, 4, 9, 7)}, ["y"], {"w": weight}))
    linear = find_coupling(model).linears[0]
    x = {"x": rng.standard_normal((2, 4, 9, 7)).astype(np.float32)}
    where = places(linear, 1000, rng)
    found = np.einsum("pgd,gdo->pgo", input_rows(linear, x["x"], where), matrix(linear)).reshape(len(where), -1)
    np.testing.assert_allclose(found, output_rows(linear, infer(model, x)["y"], where), rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(weight_of(linear, matrix(linear)), weight)


def mixed_product(count: int = 4000) -> tuple[Any, np.ndarray]:
    """A Gemm of 7 inputs that vary together, and ``count`` rows of them."""
    rng = np.random.default_rng(4)
    d = Drawing()
    flat = d.add("Flatten", "x")
    model = load(d.finish(d.add("Gemm", flat, d.weight(7, 5), d.weight(5)), (1, 7)))
    rows = rng.standard_normal((count, 4)) @ rng.standard_normal((4, 7)) + rng.standard_normal((count, 7)) + 2
    return model, rows.astype(np.float32)


def test_compensation_is_least_squares() -> None:
    """The weights that stay are those of a fit to the original's outputs, and the loss is what it leaves."""
    model, rows = mixed_product()
    linear = find_coupling(model).linears[0]
    moments = measure_moments(model, [linear], [{"x": row[np.newaxis]} for row in rows], 1, 0)
    inputs = from_moments(moments)[linear]
    gone = np.zeros((1, 7), bool)
    gone[0, [1, 4]] = True
    found = compensated(linear, inputs.covariance, gone)[0]
    centred = rows - rows.mean(axis=0)
    target = centred @ matrix(linear)[0]
    best = np.linalg.lstsq(centred[:, ~gone[0]], target, rcond=None)[0]
    left = np.square(target - centred @ found).sum()
    assert not found[gone[0]].any()
    assert left <= 1.02 * np.square(target - centred[:, ~gone[0]] @ best).sum()
    assert left < 0.5 * np.square(target - centred @ np.where(gone[0][:, np.newaxis], 0, matrix(linear)[0])).sum()


def test_a_loss_is_what_compensation_leaves() -> None:
    model = load(CASES["mlp"]())
    linear = next(each for each in find_coupling(model).linears if each.weight.shape == (20, 12))
    group = next(g for g in find_coupling(model).groups if len(g.units) == 20)
    unit, reader = group.units[3], group.readers[0]
    inputs = from_weights(find_coupling(model))
    covariance = next(each.covariance for key, each in inputs.items() if key.node is reader.node)
    (loss,) = losses({reader: covariance}, [unit])
    gone = np.zeros((1, 20), bool)
    gone[0, 3] = True
    moved = compensated(reader, covariance, gone)[0] - matrix(reader)[0]
    total = np.einsum("io,ij,jo->", matrix(reader)[0], covariance[0], matrix(reader)[0])
    assert linear.node is reader.node
    lost = np.einsum("io,ij,jo->", moved, damped(covariance)[0], moved)
    np.testing.assert_allclose(loss, lost / total, rtol=1e-9)


def test_of_two_channels_that_tell_the_same_one_is_cheap() -> None:
    """Each alone costs nothing; the second of them costs what it tells, which no other does."""
    model = load(CASES["mlp"]())
    group = next(g for g in find_coupling(model).groups if len(g.units) == 20)
    reader = group.mixers[0]
    spread = np.eye(20)
    spread[3, 11] = spread[11, 3] = 1
    prices = losses({reader: spread[np.newaxis]}, group.units)
    order = list(np.argsort(prices))
    assert order[0] in (3, 11)
    assert prices[order[0]] < 0.1 * prices[order[1]]
    found = [depth_mask(reader, [unit])[0].argmax() for unit in group.units]
    gone = np.isin(found, order[:7])[np.newaxis]
    moved = compensated(reader, spread[np.newaxis], gone)[0] - matrix(reader)[0]
    total = np.einsum("io,ij,jo->", matrix(reader)[0], spread, matrix(reader)[0])
    lost = np.einsum("io,ij,jo->", moved, damped(spread[np.newaxis])[0], moved)
    np.testing.assert_allclose(prices[order[:7]].sum(), lost / total, rtol=1e-6)


@pytest.mark.parametrize("reader", ["Relu", "Clip"])
def test_a_fit_cares_only_for_what_the_reader_lets_through(reader: str) -> None:
    """After the fit, values behind the reader are nearer than those of plain least squares are."""
    rng = np.random.default_rng(4)
    inputs = np.concatenate([rng.standard_normal((2, 900, 8)), np.ones((2, 900, 1))], axis=2).astype(np.float32)
    wanted = np.maximum(inputs @ rng.standard_normal((2, 9, 5)), -1) ** 3
    bounds = (0.0, np.inf) if reader == "Relu" else (0.0, 6.0)
    rows = Rows(inputs, wanted.astype(np.float32), None, bounds)
    start = np.zeros((2, 9, 5))
    normal = rows.normal(start)
    plain = np.linalg.solve(normal.squares, normal.products)
    found = fit_bounded(rows, start, plain, normal, 1e-6)

    def away(weights: np.ndarray) -> float:
        return float(np.square(np.clip(inputs @ weights, *bounds) - np.clip(wanted, *bounds)).sum())

    assert away(found) < 0.8 * away(plain)


@pytest.mark.parametrize("shape", [(), (1,)])
def test_a_fit_in_front_of_a_clip(shape: tuple[int, ...]) -> None:
    """Its bounds may be scalars, or lists of one as some exporters write them."""
    d = Drawing()
    low, high = (d.constant(np.full(shape, bound, np.float32)) for bound in (0, 1))
    hidden = d.add("Clip", d.add("Conv", "x", d.weight(12, 3, 1, 1), d.weight(12)), low, high)
    original = load(d.finish(d.add("Conv", hidden, d.weight(4, 12, 1, 1)), (1, 3, 5, 7)))
    rng = np.random.default_rng(2)
    samples = [{"x": rng.standard_normal((1, 3, 5, 7)).astype(np.float32)} for _ in range(12)]
    wanted, away = outputs(original, samples), []
    for repair in (False, True):
        model = original.clone()
        Prune(Settings(0.4, score="magnitude", repair=repair, curve_samples=0), samples).apply(model)
        away.append(distance(outputs(model, samples), wanted))
    assert away[1] < 0.5 * away[0]


@pytest.mark.parametrize(
    ("operator", "at_inputs"), [("Conv", False), ("Conv", True), ("Gemm", False), ("MatMul", False)]
)
def test_a_full_rank_changes_nothing_and_a_lower_one_little(operator: str, at_inputs: bool) -> None:
    rng = np.random.default_rng(5)
    d = Drawing()
    if operator == "Conv":
        shape: tuple[int, ...] = (1, 6, 6, 5)
        result = d.add("Conv", "x", d.weight(6, 6, 3, 3), d.weight(6), strides=[2, 1], pads=[1, 1, 1, 1])
    else:
        shape = (1, 9)
        extra = (d.weight(6),) if operator == "Gemm" else ()
        result = d.add(operator, "x", d.weight(9, 6), *extra)
    samples = [{"x": rng.standard_normal(shape).astype(np.float32)} for _ in range(50)]
    away = []
    for rank in (6, 5, 2):
        model = load(d.finish(result, shape))
        own_biases(model)
        linear = find_coupling(model).linears[0]
        wanted = outputs(model, samples)
        seen = from_moments(measure_moments(model, [linear], samples, 50, 0))[linear]
        factorise(linear, seen, Split(rank, at_inputs))
        onnx.checker.check_model(ir.to_proto(model))
        away.append(distance(outputs(model, samples), wanted))
    assert away[0] < 1e-9
    assert away[0] < away[1] < away[2] < 1


@pytest.mark.parametrize("measure", ["macs", "parameters"])
@pytest.mark.parametrize("split", [Split(3), Split(2, at_inputs=True)], ids=["outputs", "inputs"])
def test_a_split_is_counted_as_what_it_becomes(split: Split, measure: Measure) -> None:
    d = Drawing()
    shape = (1, 6, 7, 9)
    result = d.add("Conv", "x", d.weight(8, 6, 3, 3), d.weight(8), strides=[2, 1], pads=[1, 1, 1, 1])
    model = load(d.finish(result, shape))
    linear = find_coupling(model).linears[0]
    cost = Cost(model, measure, [linear])
    before = cost.total
    saved = cost.saving_at(linear, split)
    assert 0 < saved < before == cost.total
    cost.set_split(linear, split)
    assert cost.total == before - saved
    seen = measure_moments(model, [linear], [{"x": np.ones(shape, np.float32)}], 9, 0)
    factorise(linear, from_moments(seen)[linear], split)
    infer_shapes(model)
    RemoveUnusedNodesPass()(model)
    assert Cost(model, measure).total == before - saved


def test_activations_of_few_directions_are_narrowed_at_the_inputs() -> None:
    """Six channels that are mixtures of two, behind a kernel whose outputs are all independent."""
    rng = np.random.default_rng(8)
    d = Drawing()
    shape = (1, 6, 5, 7)
    model = load(d.finish(d.add("Conv", "x", d.weight(6, 6, 3, 3), d.weight(6), pads=[1, 1, 1, 1]), shape))
    linear = find_coupling(model).linears[0]
    mixing = rng.standard_normal((6, 2))
    images = np.einsum("cd,ndhw->nchw", mixing, rng.standard_normal((20, 2, 5, 7))).astype(np.float32)
    samples = [{"x": image[np.newaxis]} for image in images]
    seen = from_moments(measure_moments(model, [linear], samples, 35, 0))
    (curve,) = measure_ranks(model, [linear], samples, seen, multiple=1)
    away = {(split.rank, split.at_inputs): each for split, each in curve.points()}
    assert away[2, True] < 1e-3 < 0.05 < away[2, False]


def test_fitting_both_factors_in_turn_beats_leading_channels(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(9)
    d = Drawing()
    shape = (1, 7, 9, 8)
    model = load(d.finish(d.add("Conv", "x", d.weight(5, 7, 3, 3), d.weight(5), pads=[1, 1, 1, 1]), shape))
    linear = find_coupling(model).linears[0]
    smooth = rng.standard_normal((30, 1, 7, 9, 8)).cumsum(axis=3).cumsum(axis=4).astype(np.float32)
    samples = [{"x": image} for image in smooth]
    seen = from_moments(measure_moments(model, [linear], samples, 72, 0))
    away = []
    for rounds in (0, 1, 4):
        monkeypatch.setattr(low_rank, "ROUNDS", rounds)
        (curve,) = measure_ranks(model, [linear], samples, seen, multiple=1)
        away.append(sum(each for split, each in curve.points() if split.at_inputs))
    assert away[2] < away[1] < 0.95 * away[0]


def test_capture_runs_only_what_it_needs(sample_model: Path, digits: list[dict[str, np.ndarray]]) -> None:
    model = folded(sample_model)
    names = [str(node.outputs[0].name) for node in model.graph][:2]
    found = list(capture(model, ["image", *names], digits[:3]))
    assert [list(each) for each in found] == [["image", *names]] * 3


def test_compile_prunes(sample_model: Path, sample_data: dict[str, np.ndarray], tmp_path: Path) -> None:
    """The artifact computes what the pruned model computes, and the report says what went."""
    samples = [{"image": each.reshape(1, 1, 8, 8)} for each in np.load(SAMPLES / "digits_calib.npz")["image"][:8]]
    compiled = edgec.compile(sample_model, "host", tmp_path / "model.so", prune=0.4, calib=samples)
    report = next(each for each in compiled.report.passes if each.name == "prune")
    assert report.after.macs <= 0.6 * report.before.macs
    with edgec.load(compiled.path) as session:
        found = [session.run({"image": x.reshape(1, 1, 8, 8)})["logits"].argmax() for x in sample_data["image"][:200]]
    assert np.mean(np.array(found) == sample_data["labels"][:200]) >= 0.95


def call(*arguments: object) -> Any:
    return CliRunner().invoke(app, [str(each) for each in arguments])


def test_the_command_compares(sample_model: Path, tmp_path: Path) -> None:
    out = tmp_path / "small.onnx"
    found = call(
        "prune", sample_model, "--remove", 0.3, "--score", "magnitude", "--eval", SAMPLES / "digits_eval.npz",
        "-o", out, "--json",
    )  # fmt: skip
    assert found.exit_code == 0, found.output
    before, after = json.loads(found.stdout)["versions"]
    assert (before["removed"], before["top1"]) == (0, pytest.approx(0.99, abs=0.01))
    assert after["macs"] <= 0.7 * before["macs"]
    assert after["ms"] > 0
    onnx.checker.check_model(onnx.load(out), full_check=True)


def test_a_version_that_is_hardly_faster_is_told_of(
    sample_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgec.pruning._latencies", lambda models: [2.0, 1.9])
    found = call("prune", sample_model, "--remove", 0.3, "--score", "magnitude", "-o", tmp_path / "small.onnx")
    assert found.exit_code == 0, found.output
    assert "of the MACs it is only 5% faster on this machine" in found.stdout


def test_the_command_says_what_is_possible(sample_model: Path, tmp_path: Path) -> None:
    found = call("prune", sample_model, "--measure", "speed", "-o", tmp_path / "out.onnx")
    assert found.exit_code == 2
    assert "there is no budget in 'speed'" in found.output
    assert not (tmp_path / "out.onnx").exists()


def test_stopping_early_and_pruning_do_not_go_together(sample_model: Path) -> None:
    found = call("compile", sample_model, "--prune", 0.3, "--stop-after", "simplify")
    assert found.exit_code == 2
    assert "edgec prune writes the pruned ONNX model" in found.output


def test_the_curve_is_a_picture(sample_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgec.pruning.CURVE_SHARES", (0.2, 0.4))
    out = tmp_path / "curve.svg"
    found = call("prune", sample_model, "--curve", out, "--score", "obs", "--eval", SAMPLES / "digits_eval.npz")
    assert found.exit_code == 0, found.output
    picture = out.read_text()
    assert picture.count("<circle") == 3
    assert "% MACs" in picture


def test_a_latency_budget_is_measured(
    sample_model: Path, monkeypatch: pytest.MonkeyPatch, digits: list[dict[str, np.ndarray]]
) -> None:
    """With latencies in proportion to MACs, the share of MACs found is the latency's."""
    monkeypatch.setattr("edgec.pruning._latencies", lambda models: [float(Cost(m, "macs").total) for m in models])
    monkeypatch.setattr("edgec.pruning._rates", lambda model: {})
    original = folded(sample_model)
    found = prune_to_latency(original, Settings(0.4, repair=False, curve_samples=0), digits)
    share = 1 - Cost(found, "macs").total / Cost(original, "macs").total
    assert 0.4 <= share <= 0.5


def test_a_latency_is_counted_at_the_rates_of_the_layers(
    sample_model: Path, digits: list[dict[str, np.ndarray]]
) -> None:
    """The layer that is slow for its MACs loses more of them than it does where all are alike."""
    original = folded(sample_model)
    convolutions = [node for node in original.graph if node.op_type == "Conv"]
    last = str(convolutions[-1].name)
    rates = {str(node.name): 50.0 if str(node.name) == last else 1.0 for node in convolutions}

    def left(settings: Settings) -> int:
        model = original.clone()
        Prune(settings, digits).apply(model)
        return next(node_macs(node) for node in model.graph if node.name == last)

    plain = Settings(0.3, repair=False, curve_samples=0)
    assert left(replace(plain, rates=rates)) < left(plain)


def test_an_unreachable_latency_is_a_sentence(sample_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgec.pruning._latencies", lambda models: [2.0, 1.5])
    monkeypatch.setattr("edgec.pruning._rates", lambda model: {})
    with pytest.raises(EdgecError, match="cannot be made 40% lower by pruning: at most 25% was measured"):
        prune_to_latency(folded(sample_model), Settings(0.4), None)


def test_inspect_says_what_can_be_pruned(sample_model: Path) -> None:
    found = call("inspect", sample_model, "--prunable")
    assert found.exit_code == 0
    assert "16 channels, made by Conv" in found.stdout
    assert "'logits' is an output of the model" in found.stdout


def test_compile_refuses_samples_that_do_not_fit(sample_model: Path, tmp_path: Path) -> None:
    with pytest.raises(EdgecError, match="has no array for the input 'image'"):
        edgec.compile(sample_model, "host", tmp_path / "m.so", prune=0.3, calib=[{"picture": np.zeros((1, 1, 8, 8))}])
