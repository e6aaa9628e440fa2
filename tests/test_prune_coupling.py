"""Coupled channels: what is found, what is left alone and why, and that removal equals a mask in the graph."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgec.frontend.summary import summarise
from edgec.frontend.values import constant_of
from edgec.passes.functions import definition
from edgec.passes.prune.cost import MEASURES, Cost
from edgec.passes.prune.coupling import Coupling, Unit, find_coupling
from edgec.passes.prune.dead import absorb, dead_units
from edgec.passes.prune.masking import mask_units
from edgec.passes.prune.products import own_biases
from edgec.passes.prune.removal import remove_units, set_constant
from tests.graphs import build, load, random_inputs, run
from tests.prunable import CASES, Drawing, random_graph

CUT = 0.4
"""The share of the units that tests cut out."""


def some_units(model: ir.Model, coupling: Coupling, seed: int) -> list[Unit]:
    """A random part of the units, of which every axis keeps an index."""
    rng, cost = np.random.default_rng(seed), Cost(model, "parameters")
    found = []
    for unit in (unit for group in coupling.groups for unit in group.units):
        if rng.random() < CUT and cost.smallest(unit) > 0:
            cost.remove(unit)
            found.append(unit)
    return found


def assert_close(found: dict[str, np.ndarray], wanted: dict[str, np.ndarray], tolerance: float) -> None:
    """Largest difference within ``tolerance`` of the largest magnitude."""
    for name, array in wanted.items():
        assert found[name].shape == array.shape
        np.testing.assert_allclose(found[name], array, rtol=0, atol=tolerance * max(1, np.abs(array).max()))


def assert_removal_equals_masks(original: onnx.ModelProto, seed: int) -> None:
    model = load(original)
    coupling = find_coupling(model)
    units = some_units(model, coupling, seed)
    masked = mask_units(model, coupling)
    inputs = random_inputs(model, seed)
    wanted = run(masked.model, {**inputs, **masked.feeds(units)})
    costs = [Cost(model, measure) for measure in MEASURES]
    for cost in costs:
        for unit in units:
            cost.remove(unit)
    remove_units(model, units)
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
    assert_close(run(model, inputs), wanted, 1e-5)
    assert costs[0].total == summarise(model).macs


def kill_units(model: ir.Model, units: Sequence[Unit], coupling: Coupling) -> None:
    """Set all weights and biases that make the units to zero."""
    for linear in coupling.linears:
        for value, axis in ((linear.weight, linear.out_axis), (linear.bias, 0)):
            if value is None or value.const_value is None:
                continue
            array = constant_of(value)
            assert array is not None
            array = array.copy()
            for unit in units:
                if (linear.weight, linear.out_axis) in unit.cuts and (value, axis) in unit.cuts:
                    np.moveaxis(array, axis, 0)[unit.cuts[value, axis]] = 0
            set_constant(value, array)


def assert_dead_units_go_at_no_loss(original: onnx.ModelProto, seed: int) -> int:
    model = load(original)
    own_biases(model)
    coupling = find_coupling(model)
    kill_units(model, some_units(model, coupling, seed), coupling)
    inputs = random_inputs(model, seed)
    wanted = run(model, inputs)
    dead = dead_units(model, coupling)
    absorb(model, coupling, dead)
    remove_units(model, dead)
    assert_close(run(model, inputs), wanted, 1e-6)
    return len(dead)


@pytest.mark.parametrize("name", CASES)
def test_removed_units_equal_masked_units(name: str) -> None:
    assert_removal_equals_masks(CASES[name](), seed=1)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(st.integers(0, 10_000))
def test_removed_units_equal_masked_units_in_random_graphs(seed: int) -> None:
    assert_removal_equals_masks(random_graph(seed), seed)


@pytest.mark.parametrize("name", CASES)
def test_dead_units_go_at_no_loss(name: str) -> None:
    assert_dead_units_go_at_no_loss(CASES[name](), seed=2)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(st.integers(0, 10_000))
def test_dead_units_go_at_no_loss_in_random_graphs(seed: int) -> None:
    assert_dead_units_go_at_no_loss(random_graph(seed), seed)


@pytest.mark.parametrize("name", ["chain", "residual", "depthwise", "mlp", "concat_split", "flattened"])
def test_dead_units_are_found(name: str) -> None:
    assert assert_dead_units_go_at_no_loss(CASES[name](), seed=3) > 0


def test_units_that_readers_have_zeros_for_are_dead() -> None:
    model = load(CASES["mlp"]())
    hidden = next(g for g in find_coupling(model).groups if len(g.units) == 20)
    weight = hidden.readers[0].weight
    array = constant_of(weight)
    assert array is not None
    set_constant(weight, np.where(np.arange(20)[:, np.newaxis] < 5, 0, array).astype(np.float32))
    assert len(dead_units(model, find_coupling(model))) == 5


def test_a_constant_channel_goes_into_the_next_bias() -> None:
    """A channel without weights, but with a bias: what it adds is a constant behind a ReLU."""
    d = Drawing()
    hidden = d.conv("x", 3, 6)
    d.constants["c0"][2:4] = 0
    d.constants["c1"][2] = 3
    model = load(d.finish(d.conv(hidden, 6, 4), (1, 3, 5, 7)))
    inputs = random_inputs(model)
    wanted = run(model, inputs)
    coupling = find_coupling(model)
    dead = dead_units(model, coupling)
    absorb(model, coupling, dead)
    remove_units(model, dead)
    assert len(dead) == 2
    assert_close(run(model, inputs), wanted, 1e-6)


def test_a_constant_channel_stays_where_the_border_shows() -> None:
    d = Drawing()
    hidden = d.conv("x", 3, 6)
    d.constants["c0"][2] = 0
    d.constants["c1"][2] = 3
    model = load(d.finish(d.conv(hidden, 6, 4, kernel=3), (1, 3, 5, 7)))
    assert dead_units(model, find_coupling(model)) == []


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("chain", {(5, 1), (6, 1), (8, 1)}),
        ("residual", {(6, 1), (8, 1)}),
        ("grouped", {(8, 1), (3, 4), (4, 3), (2, 3), (5, 1)}),
        ("depthwise", {(8, 1), (6, 2), (5, 1)}),
        ("mlp", {(12, 1), (20, 1)}),
        ("heads", {(12, 1), (3, 4), (4, 3)}),
        ("shared_heads", {(12, 1), (2, 8), (4, 4)}),
        ("flattened", {(6, 35)}),
    ],
)
def test_groups_have_the_units_of_the_architecture(name: str, sizes: set[tuple[int, int]]) -> None:
    """Units and the most indices that one takes: heads whole, or one place of the width of all."""
    groups = find_coupling(load(CASES[name]())).groups
    assert {(len(group.units), group.width) for group in groups} == sizes


def test_a_group_explains_itself() -> None:
    first = find_coupling(load(CASES["residual"]())).groups[0]
    assert str(first) == (
        "8 channels, made by Conv 'conv0' and Conv 'conv4', tied together in Add 'add6', "
        "read by Conv 'conv2' and Gemm 'gemm9'"
    )


def test_a_head_explains_itself() -> None:
    groups = find_coupling(load(CASES["heads"]())).groups
    sentence = next(str(group) for group in groups if len(group.units) == 3)
    assert sentence.startswith("3 units of up to 4 channels, made by MatMul")
    assert sentence.count("MatMul") >= 4


def refusals(d: Drawing, result: str, shape: Sequence[int]) -> list[str]:
    return [str(refusal) for refusal in find_coupling(load(d.finish(result, shape))).refusals]


def test_outputs_of_the_model_stay() -> None:
    d = Drawing()
    (found,) = refusals(d, d.conv("x", 3, 4), (1, 3, 5, 7))
    assert "Conv node 'conv0'" in found
    assert "'relu1' is an output of the model" in found


@pytest.mark.parametrize(
    ("operator", "reason"),
    [
        ("LayerNormalization", "normalises over it"),
        ("Softmax", "mixes what lies along it"),
        ("ReduceMax", "reduces it"),
        ("TopK", "is not known to keep channels apart"),
    ],
)
def test_operators_over_channels_pin_them(operator: str, reason: str) -> None:
    d = Drawing()
    hidden = d.linear("x", 5, 6)
    if operator == "LayerNormalization":
        result = d.add(operator, hidden, d.weight(6), d.weight(6))
    elif operator == "TopK":
        result = d.add(operator, hidden, d.numbers(2), outputs=2, axis=-1) + "_0"
    elif operator == "ReduceMax":
        result = d.add(operator, hidden, d.numbers(-1))
    else:
        result = d.add(operator, hidden, axis=-1)
    if operator in ("LayerNormalization", "Softmax"):
        result = d.add("ReduceSum", result, d.numbers(-1))
    model = load(d.finish(result, (1, 6, 5)))
    (found,) = find_coupling(model).refusals
    assert operator in str(found)
    assert reason in str(found)
    assert find_coupling(model).groups == ()


def test_a_group_norm_loses_whole_groups() -> None:
    d = Drawing()
    hidden = d.add("Conv", "x", d.weight(8, 3, 1, 1))
    norm = d.add("GroupNormalization", hidden, d.weight(8), d.weight(8), num_groups=4, epsilon=1e-5, domain="edgec")
    result = d.add("Gemm", d.add("Flatten", d.add("GlobalAveragePool", norm)), d.weight(8, 2))
    functions = [ir.to_proto(definition("GroupNormalization", 18))]
    shape = (1, 3, 5, 7)
    original = build(d.nodes, {"x": shape}, [result], d.constants, functions=functions, domains={"edgec": 1})
    (group,) = find_coupling(load(original)).groups
    assert (len(group.units), group.width) == (4, 2)
    assert_removal_equals_masks(original, seed=5)
