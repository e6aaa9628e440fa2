"""A seeded part of the fuzzer (:mod:`tests.fuzz`), what it found before, and passes on models of any shape."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgec.graph import load_graph
from edgec.passes.pipeline import DEFAULT, pass_names, run, select
from tests import graphs
from tests.fuzz import CHUNK, Case, IllConditioned, assert_alike, case_of, examine, main, reason_of, run_cases
from tests.operators import node
from tests.programs import assert_close, program_of, random_inputs, run_reference
from tests.random_graphs import float_model, quantised_model

REGRESSIONS = (
    Case("quantised", 26, 3, ()),
    Case("quantised", 57, 5, ()),
    Case("quantised", 1087, 5, (), compiles=True),
    Case("quantised", 1066, 5, ("move-quantisation", "activation-dtype", "fuse-integers")),
    Case("mutated quantised", 1495, 2, ("fuse-integers",)),
    Case("mutated quantised", 3065, 4, ("fuse-integers",)),
    Case("mutated quantised", 5225, 4, ("fuse-integers",), compiles=True),
    Case("damaged", 1269, 2, ()),
    Case("damaged", 1789, 1, ()),
    Case("damaged", 4319, 8, ()),
    Case("damaged", 11269, 1, ()),
    Case("damaged", 20149, 9, ()),
    Case("damaged", 35449, 6, ()),
    Case("damaged", 37319, 6, ()),
)
"""What failed once, made smaller."""


@pytest.mark.parametrize("case", REGRESSIONS, ids=lambda case: f"{case.kind}-{case.seed}")
def test_what_failed_once(case: Case) -> None:
    assert reason_of(case) is None


@pytest.mark.parametrize("seed, nodes", [(28392, 3), (31182, 2)])
def test_sums_that_cancel_are_counted_apart(seed: int, nodes: int) -> None:
    """A mean and a product of random values, some 0.005, in which the last bits of values of 1 remain."""
    assert examine(Case("mutated float", seed, nodes, ())) == "ill-conditioned"


def test_neighbouring_inputs_excuse_no_more_than_they_move() -> None:
    wanted = {"y": np.float32([0.005]), "z": np.float32([1, 2])}
    near, far = ({"y": wanted["y"] + np.float32(by), "z": wanted["z"]} for by in (1e-7, 1e-6))
    assert_alike(wanted, wanted, 1e-4)
    with pytest.raises(IllConditioned):
        assert_alike(near, wanted, 1e-4, lambda: {"y": 2e-7, "z": 0.0})
    for found, moved in ((far, {"y": 2e-7, "z": 0.0}), (near | {"z": wanted["z"] + 1}, {"y": 2e-7, "z": 1e-6})):
        with pytest.raises(AssertionError):
            assert_alike(found, wanted, 1e-4, lambda moved=moved: moved)
    with pytest.raises(AssertionError):
        assert_alike(near, wanted, 1e-4)


@pytest.mark.parametrize("first", range(0, 120, CHUNK))
def test_seeded_cases(first: int) -> None:
    tally = run_cases([case_of(seed, 60) for seed in range(first, first + CHUNK)])
    assert not tally.failures, tally.failures[0]
    assert tally.ends["float agreed"] > CHUNK // 4 and tally.ends["quantised agreed"] > CHUNK // 8
    assert tally.ends["mutated float agreed"] + tally.ends["mutated quantised agreed"] > CHUNK // 8


def test_damaged_files_are_refused_or_compiled() -> None:
    cases = [case_of(seed, 0) for seed in range(9, 900, 10)]
    tally = run_cases(cases)
    assert not tally.failures, tally.failures[0]
    assert tally.ends["damaged refused"] > len(cases) // 2


def test_program_prints_count_seed_and_time(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--count", "3", "--seed", "5", "--compile-every", "0"]) == 0
    assert capsys.readouterr().out.startswith("3 cases from seed 5 in ")


PROPERTIES = settings(
    max_examples=15, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
)
MODELS = st.builds(
    lambda quantised, seed, nodes: (quantised_model if quantised else float_model)(seed, nodes),
    st.booleans(), st.integers(0, 10_000), st.integers(1, 8),
)  # fmt: skip


@PROPERTIES
@given(MODELS)
def test_passes_have_nothing_left_to_do(source: object) -> None:
    graph = load_graph(source)  # type: ignore[arg-type]
    run(graph, DEFAULT)
    again = run(graph, DEFAULT)
    assert [report.name for report in again if report.matched] == []


@PROPERTIES
@given(MODELS, st.lists(st.sampled_from(pass_names()), max_size=4))
def test_passes_leave_interface_and_validity(source: object, names: list[str]) -> None:
    graph = load_graph(source)  # type: ignore[arg-type]
    before = [(value.name, value.shape, value.dtype) for value in (*graph.graph.inputs, *graph.graph.outputs)]
    reports = run(graph, select(names))
    after = [(value.name, value.shape, value.dtype) for value in (*graph.graph.inputs, *graph.graph.outputs)]
    assert after == before
    load_graph(ir.to_proto(graph))
    for first, second in pairwise(reports):
        assert second.before == first.after


@PROPERTIES
@given(st.integers(1, 3), st.integers(1, 9), st.integers(1, 3), st.integers(0, 2), st.integers(0, 2), st.booleans())
def test_convolution_by_weights_of_the_run(
    batch: int, size: int, kernel: int, before: int, after: int, depthwise: bool
) -> None:
    """The padded input is written by the step before, and its border not after it."""
    if size + before + after < kernel:
        return
    shape = (3, 1 if depthwise else 3, kernel, kernel)
    convolution = node(
        "Conv", "r w", "y", pads=[before, before, after, after], kernel_shape=[kernel] * 2, group=3 if depthwise else 1
    )
    source = graphs.build([node("Relu", "x", "r"), convolution], {"x": (batch, 3, size, size), "w": shape}, ["y"], {})
    program = program_of(source)
    inputs = random_inputs(program, size)
    wanted = run_reference(program_of(source, fuse=False), inputs)
    x, w = np.maximum(inputs["x"], 0), inputs["w"]
    padded = np.pad(x, ((0, 0), (0, 0), (before, after), (before, after)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (kernel, kernel), (2, 3))
    exact = np.einsum("nchwij,cij->nchw" if depthwise else "nchwij,ocij->nohw", windows, w[:, 0] if depthwise else w)
    assert_close(wanted, {"y": exact.astype(np.float32)})
    assert_close(run_reference(program, inputs), wanted)
