"""Random models through random passes, against ONNX Runtime: ``python -m tests.fuzz --count 20000 --seed 0``.

Of ten cases four are float models, two quantised, three mutants of such, and one a damaged file. A sound model goes
through a random selection of the passes in random order; what they leave must compute in ONNX Runtime what the model
did, and so must the numpy reference of its program, before and after fusion. Some are compiled, too, and run on one
thread and on three. A mutant is what a selection of passes left of a model, changed in some places (values rerouted,
exposed, doubled) and put through another selection: graphs and orders of passes vary together, and passes meet what no
exporter writes. A damaged file must be refused in a sentence, or compiled. What fails is made smaller and printed as a
line for :data:`tests.test_fuzz.REGRESSIONS`.
"""

from __future__ import annotations

import argparse
import multiprocessing
import random
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
from onnxruntime.capi.onnxruntime_pybind11_state import NotImplemented

from edgec.building.lazy_tvm import load_tvm
from edgec.errors import EdgecError
from edgec.graph import load_graph
from edgec.lowering import lower
from edgec.passes.pipeline import pass_names, run, select
from edgec.planning import fusion, memory, tiling
from edgec.program import Program
from tests.programs import HostProgram, assert_close, run_reference
from tests.random_graphs import damaged, float_model, mutated, quantised_model

FLOAT_TOLERANCE = 1e-4
"""Of an output's range: sums are rounded in other orders."""
QUANTISED_TOLERANCE = 0.12
"""A rounding of one layer that goes the other way is carried on by those behind it."""
NEIGHBOURS = 8
"""Inputs a unit in the last place away, by which it is told whether a model's sums cancel."""
LARGEST = 1e4
"""Outputs beyond it have lost their digits on the way."""
KINDS = (
    "float", "float", "mutated float", "float", "quantised", "mutated quantised", "float", "mutated float", "quantised",
    "damaged",
)  # fmt: skip
"""Of the cases whose seeds end in these digits."""
CHUNK = 40
TOLD = 1000
"""After so many cases stderr says how far it is."""
PATIENCE_SECONDS = 600

Outputs = dict[str, np.ndarray]


@dataclass(frozen=True)
class Case:
    """One model and what is done to it, all of it decided by these."""

    kind: str
    seed: int
    nodes: int
    passes: tuple[str, ...]
    compiles: bool = False


@dataclass
class Tally:
    """How cases ended: agreed, overflowed, ill-conditioned, refused or failed; and what failed."""

    ends: Counter[str] = field(default_factory=Counter)
    failures: list[tuple[Case, str]] = field(default_factory=list)

    def add(self, case: Case, end: str, text: str = "") -> None:
        self.ends[f"{case.kind} {end}"] += 1
        if end == "failed":
            self.failures.append((case, text))

    def take(self, other: Tally) -> None:
        self.ends.update(other.ends)
        self.failures += other.failures


def case_of(seed: int, compile_every: int) -> Case:
    """The case of a seed."""
    choose = random.Random(seed)
    compiles = compile_every > 0 and seed % compile_every == 0
    return Case(KINDS[seed % 10], seed, 2 + seed % 9, some_passes(choose), compiles)


def some_passes(choose: random.Random) -> tuple[str, ...]:
    """Some of the passes in any order, a few of them again."""
    names = pass_names()
    return (*choose.sample(names, choose.randint(0, len(names))), *choose.choices(names, k=choose.randint(0, 3)))


class IllConditioned(Exception):
    """Results differ by no more than the model's own do between inputs that are neighbours in float32."""


def examine(case: Case) -> str:
    """How a case ends; an exception is its failure."""
    if case.kind == "damaged":
        return _examine_damaged(case)
    try:
        return _examine_sound(case)
    except IllConditioned:
        return "ill-conditioned"


def _examine_sound(case: Case) -> str:
    source = _model(case)
    inputs = _inputs(source, case.seed)
    try:
        wanted = _onnxruntime(source, inputs)
    except NotImplemented:  # ONNX Runtime lacks dtypes of integer operators, of which a mutant may be made
        return "unknown"
    if not all(np.isfinite(v).all() and np.abs(v).max(initial=0) < LARGEST for v in wanted.values()):
        return "overflowed"
    graph = load_graph(source)
    run(graph, select(case.passes))
    is_float = case.kind.endswith("float")
    tolerance = FLOAT_TOLERANCE if is_float else QUANTISED_TOLERANCE
    moved = (lambda: _moved(source, inputs, wanted)) if is_float else None
    with suppress(NotImplemented):  # the reference below has them
        assert_alike(_onnxruntime(ir.to_proto(graph), inputs), wanted, tolerance, moved)
    try:
        plain, fused = lower(graph), lower(graph)
    except EdgecError as error:
        _check_sentence(error)
        return "refused"
    reference = run_reference(plain, inputs)
    assert_alike(reference, wanted, tolerance, moved)
    fusion.fuse(fused)
    tiling.tile(fused)
    memory.plan(fused)
    # integers are the same to the last bit; so are their real values, up to the last Dequantize
    tolerance = FLOAT_TOLERANCE if is_float else 1e-6
    assert_alike(run_reference(fused, inputs), reference, tolerance, moved)
    if case.compiles:
        for results in _compiled_results(fused, inputs):
            assert_alike(results, reference, tolerance, moved)
    return "agreed"


def _compiled_results(program: Program, inputs: Outputs) -> list[Outputs]:
    """Of one thread and of three."""
    with tempfile.TemporaryDirectory(prefix="edgec-fuzz-") as folder:
        compiled = HostProgram(program, Path(folder))
        return [compiled.run(inputs, threads) for threads in (1, 3)]


def assert_alike(
    found: Outputs, wanted: Outputs, tolerance: float, moved: Callable[[], Mapping[str, float]] | None = None
) -> None:
    """Outputs that agree within the tolerance, of the wanted range.

    A sum whose terms cancel leaves a small result with the rounding of large terms. ``moved`` says how far the outputs
    go by themselves when the inputs go to a neighbouring float.

    Raises:
        AssertionError: they do not agree.
        IllConditioned: they do not, and a neighbouring input moves them as far.
    """
    try:
        assert_close(found, wanted, tolerance)
    except AssertionError:
        if moved is None or not _is_excused(found, wanted, tolerance, moved()):
            raise
        raise IllConditioned from None


def _is_excused(found: Outputs, wanted: Outputs, tolerance: float, moved: Mapping[str, float]) -> bool:
    for name, value in wanted.items():
        try:
            assert_close({name: found[name]}, {name: value}, tolerance)
        except AssertionError:
            if found[name].shape != value.shape or found[name].dtype != value.dtype or value.dtype.kind != "f":
                return False
            if not np.abs(found[name] - value).max() <= moved[name]:
                return False
    return True


def _moved(source: onnx.ModelProto, inputs: Outputs, wanted: Outputs) -> dict[str, float]:
    """The most that each output changes where every input goes a unit in the last place up or down."""
    generator = np.random.default_rng(0)
    most = dict.fromkeys(wanted, 0.0)
    for _ in range(NEIGHBOURS):
        ends = {name: generator.choice(np.float32([-np.inf, np.inf]), value.shape) for name, value in inputs.items()}
        near = {name: np.nextafter(value, ends[name]) for name, value in inputs.items()}
        for name, value in _onnxruntime(source, near).items():
            if value.dtype.kind == "f":
                most[name] = max(most[name], float(np.abs(value - wanted[name]).max(initial=0)))
    return most


def _examine_damaged(case: Case) -> str:
    choose = random.Random(case.seed)
    source = float_model(case.seed, case.nodes) if choose.random() < 0.6 else quantised_model(case.seed, case.nodes)
    with tempfile.TemporaryDirectory(prefix="edgec-fuzz-") as folder:
        path = Path(folder) / "model.onnx"
        path.write_bytes(damaged(source, choose))
        try:
            graph = load_graph(path)
            if _is_large(graph):
                return "too large"
            run(graph)
            lower(graph)
        except EdgecError as error:
            _check_sentence(error)
            return "refused"
    return "accepted"


def _is_large(graph: ir.Model) -> bool:
    """Whether a changed extent made tensors of which the fuzzer would only see the memory end."""
    values = [value for node in graph.graph for value in node.outputs] + list(graph.graph.inputs)
    return any(value.shape is not None and np.prod(value.shape.numpy(), dtype=float) > 1e7 for value in values)


def _check_sentence(error: EdgecError) -> None:
    text = str(error)
    assert text and "Traceback" not in text and len(text) < 20_000, text[:300]


def _model(case: Case) -> onnx.ModelProto:
    source = (float_model if case.kind.endswith("float") else quantised_model)(case.seed, case.nodes)
    if not case.kind.startswith("mutated"):
        return source
    choose = random.Random(case.seed + 1)
    graph = load_graph(source)
    run(graph, select(some_passes(choose)))
    return mutated(ir.to_proto(graph), choose)


def _inputs(source: onnx.ModelProto, seed: int) -> Outputs:
    generator = np.random.default_rng(seed)
    shapes = {each.name: [d.dim_value for d in each.type.tensor_type.shape.dim] for each in source.graph.input}
    return {name: generator.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def _onnxruntime(source: onnx.ModelProto, inputs: Outputs) -> Outputs:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(source.SerializeToString(), options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(None, inputs), strict=True))


def reason_of(case: Case) -> str | None:
    """Why a case fails; None where it does not."""
    try:
        examine(case)
    except Exception:
        return traceback.format_exc(limit=-3)
    return None


def minimised(case: Case) -> Case:
    """A smaller case that fails, too: fewer nodes, then fewer passes."""
    for nodes in range(1, case.nodes):
        if reason_of(smaller := Case(case.kind, case.seed, nodes, case.passes, case.compiles)):
            case = smaller
            break
    for name in case.passes:
        fewer = list(case.passes)
        fewer.remove(name)
        if reason_of(smaller := Case(case.kind, case.seed, case.nodes, tuple(fewer), case.compiles)):
            case = smaller
    return case


def run_cases(cases: Sequence[Case]) -> Tally:
    """Examine cases in this process."""
    tally = Tally()
    for case in cases:
        try:
            tally.add(case, examine(case))
        except Exception:
            tally.add(case, "failed", traceback.format_exc(limit=-3))
    return tally


def _isolated(cases: Sequence[Case]) -> Tally:
    """Examine cases in a process of its own; one that ends it is found by examining each alone."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=lambda: sender.send(run_cases(cases)))
    process.start()
    sender.close()
    tally: Tally | None = None
    if receiver.poll(PATIENCE_SECONDS):
        try:
            tally = receiver.recv()
        except EOFError:
            tally = None
    if tally is None:
        process.kill()
    process.join()
    if tally is not None:
        return tally
    tally = Tally()
    if len(cases) == 1:
        tally.add(cases[0], "failed", f"the process ended with code {process.exitcode}")
        return tally
    for case in cases:
        tally.take(_isolated([case]))
    return tally


def _chunks(first: int, count: int, compile_every: int) -> Iterator[list[Case]]:
    for start in range(first, first + count, CHUNK):
        yield [case_of(seed, compile_every) for seed in range(start, min(start + CHUNK, first + count))]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the fuzzer; the number of failures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0, help="of the first case; the others follow it")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="stop after so long")
    parser.add_argument("--compile-every", type=int, default=25, help="compile every so manieth; 0: none")
    options: Any = parser.parse_args(arguments)
    start, tally = time.monotonic(), Tally()
    load_tvm()  # once, before the processes are forked
    for chunk in _chunks(options.seed, options.count, options.compile_every):
        done = _isolated(chunk)
        tally.take(done)
        for case, text in done.failures:
            print(f"FAILED {minimised(case) if 'process ended' not in text else case}\n{text}", flush=True)
        if (done_cases := sum(tally.ends.values())) % TOLD < CHUNK:
            print(f"{done_cases} cases in {time.monotonic() - start:.0f} s", file=sys.stderr, flush=True)
        if time.monotonic() - start > 60 * options.minutes:
            break
    total, seconds = sum(tally.ends.values()), time.monotonic() - start
    ends = ", ".join(f"{count} {end}" for end, count in sorted(tally.ends.items()))
    print(f"{total} cases from seed {options.seed} in {seconds:.0f} s: {ends}", flush=True)
    return len(tally.failures)


if __name__ == "__main__":
    raise SystemExit(min(main(), 100))
