"""ONNX's own operator tests through compile, load and run: ``python -m tests.onnx_backend [REGEX]`` prints the table.

Each node case of ``onnx.backend.test`` is compiled for the host, run, and compared as ONNX's runner does it:
equal shapes and dtypes, values within the case's tolerances. The verdicts:

* passed;
* pinned: passed after inputs that decide shapes or structure, which the first refusal points at, were made
  constants with the values of the test data (the program is static, so they can be nothing else);
* folded: likewise, but no input was left, so that constant folding computed the answer and no kernel was tested;
* refused: the compiler said in a sentence why it does not compile the model;
* wrong: other values, or a crash, or no answer;
* left out: the case is not about static tensors of floats, integers or bools. That is: it holds strings,
  sequences, optionals, complex numbers or a dtype below one byte or of another float format (bfloat16, float8,
  …), or an operator whose output shape depends on the values in its input.

Workers are processes of their own, so that a crash costs one case.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import re
import select
import subprocess
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

import edgec
from edgec.errors import EdgecError, UnsupportedModelError

PASSED, PINNED, FOLDED, REFUSED, WRONG, LEFT_OUT = "passed", "pinned", "folded", "refused", "wrong", "left out"
VERDICTS = (PASSED, PINNED, FOLDED, REFUSED, WRONG, LEFT_OUT)

PATIENCE = 120.0
"""Seconds after which a case that has not answered counts as wrong."""

DTYPES = frozenset(
    getattr(TensorProto, name)
    for name in (
        "FLOAT16", "FLOAT", "DOUBLE", "INT8", "INT16", "INT32", "INT64", "UINT8", "UINT16", "UINT32", "UINT64", "BOOL",
    )
)  # fmt: skip
NOISY = dict.fromkeys(("test_dft_inverse", "test_dft_inverse_opset19"), 1e-6)
"""Absolute tolerances of cases whose expected values are further from the truth than their own tolerance: these
hold 1.9e-7 where the inverse transform is zero, and 1e-7 is allowed."""
DATA_DEPENDENT = frozenset({"Compress", "NonMaxSuppression", "NonZero", "Unique"})
"""Operators whose output shape depends on the values in their input."""


@dataclass(frozen=True)
class Outcome:
    """What became of one case. ``operator`` is the one the case is about; ``detail`` the reason in words."""

    case: str
    operator: str
    verdict: str
    detail: str = ""
    pinned: tuple[str, ...] = ()


def node_cases() -> list[Any]:
    """Every node case of the installed ``onnx``, by name."""
    from onnx.backend.test.case.node import collect_testcases

    with warnings.catch_warnings():
        # the generators divide by zero on purpose
        warnings.simplefilter("ignore")
        return sorted(collect_testcases(), key=lambda case: case.name)


@functools.cache
def _operators() -> list[str]:
    """Every operator of ONNX, longer names first."""
    return sorted({schema.name for schema in onnx.defs.get_all_schemas()}, key=lambda name: (-len(name), name))


def operator_of(case: Any) -> str:
    """The operator that a case is about: its only node's, or the one it is named after."""
    nodes = case.model.graph.node
    if len(nodes) == 1:
        return str(nodes[0].op_type)
    name = case.name.removeprefix("test_").replace("_", "")
    return next((op for op in _operators() if name.startswith(op.lower())), "several operators")


# ---- one case -----------------------------------------------------------------------------------------------


def left_out(model: onnx.ModelProto) -> str:
    """Why a case is none of static tensors of floats, integers or bools; empty if it is one."""
    graph = model.graph
    for value in (*graph.input, *graph.output, *graph.value_info):
        if not value.type.HasField("tensor_type"):
            return "a value that is no tensor"
        if value.type.tensor_type.elem_type not in DTYPES:
            return TensorProto.DataType.Name(value.type.tensor_type.elem_type).lower()
    for node in graph.node:
        if node.op_type in DATA_DEPENDENT:
            return "an output shape that depends on values"
        if "Sequence" in node.op_type or "Optional" in node.op_type:
            return "a value that is no tensor"
        for attribute in node.attribute:
            if attribute.name in ("to", "dtype", "output_dtype") and attribute.i not in (0, *DTYPES):
                return TensorProto.DataType.Name(attribute.i).lower()
    return ""


def run_case(case: Any, folder: Path) -> Outcome:
    """Compile, run and compare one case; never raises."""
    operator = operator_of(case)
    reason = left_out(case.model)
    if reason:
        return Outcome(case.name, operator, LEFT_OUT, reason)
    names = (value.name for value in case.model.graph.input)
    arrays = dict(zip(names, map(_array, case.data_sets[0][0]), strict=True))
    pinned: list[str] = []
    try:
        path, pinned = _compile(case.model, arrays, folder / "case.so")
        fault = _compare(case, path, {name: array for name, array in arrays.items() if name not in pinned})
    except EdgecError as error:
        return Outcome(case.name, operator, REFUSED, _reason(error))
    except Exception as error:
        return Outcome(case.name, operator, WRONG, f"{type(error).__name__}: {error}"[:300])
    right = PASSED if not pinned else PINNED if len(pinned) < len(arrays) else FOLDED
    verdict = WRONG if fault else right
    return Outcome(case.name, operator, verdict, fault, tuple(pinned))


def _array(value: Any) -> np.ndarray:
    """Test data as an array; some cases hold it as protobuf."""
    return numpy_helper.to_array(value) if isinstance(value, TensorProto) else np.asarray(value)


def _compile(model: onnx.ModelProto, arrays: dict[str, np.ndarray], path: Path) -> tuple[Path, list[str]]:
    """The artifact, and the names of the inputs that had to be pinned for it."""
    named = onnx.ModelProto()
    named.CopyFrom(model)
    for index, node in enumerate(named.graph.node):
        node.name = f"n{index}"
    try:
        return edgec.compile(named, "host", path).path, []
    except EdgecError as error:
        first = error
    for data_too in (False, True):
        pinned = _culprits(named, arrays, first, data_too)
        if not pinned:
            continue
        try:
            return edgec.compile(_pin(named, arrays, pinned), "host", path).path, pinned
        except EdgecError:
            continue
    raise first


def _culprits(model: onnx.ModelProto, arrays: dict[str, np.ndarray], refused: EdgecError, data_too: bool) -> list[str]:
    """Graph inputs of at most one axis that a refusal points at: those it quotes, else those that the refused nodes
    are computed from. Of the latter a node's first input is its data, which is pinned only if ``data_too``."""
    small = {name for name, array in arrays.items() if np.ndim(array) <= 1}
    if not isinstance(refused, UnsupportedModelError):
        return [name for name in arrays if name in small and f"'{name}'" in str(refused)]
    producers = {name: node for node in model.graph.node for name in node.output}
    found: set[str] = set()
    for refusal in refused.refusals:
        quoted = {name for name in arrays if f"'{name}'" in refusal.reason}
        node = next((n for n in model.graph.node if n.name == refusal.node), None)
        starts = list(node.input[0 if data_too else 1 :]) if node else list(arrays)
        found |= quoted or _ancestors(starts, producers)
    return [name for name in arrays if name in found & small]


def _ancestors(names: Sequence[str], producers: dict[str, onnx.NodeProto]) -> set[str]:
    seen: set[str] = set()
    pending = list(names)
    while pending:
        name = pending.pop()
        if name not in seen:
            seen.add(name)
            pending += producers[name].input if name in producers else []
    return seen


def _pin(model: onnx.ModelProto, arrays: dict[str, np.ndarray], names: Sequence[str]) -> onnx.ModelProto:
    """The model with the inputs ``names`` as initialisers."""
    pinned = onnx.ModelProto()
    pinned.CopyFrom(model)
    kept = [value for value in pinned.graph.input if value.name not in names]
    del pinned.graph.input[:]
    pinned.graph.input.extend(kept)
    pinned.graph.initializer.extend(numpy_helper.from_array(arrays[name], name) for name in names)
    return pinned


def _compare(case: Any, path: Path, inputs: dict[str, np.ndarray]) -> str:
    """What is wrong with the outputs; empty if nothing is."""
    with edgec.load(path) as session:
        found = session.run(inputs)
    for value, wanted in zip(case.model.graph.output, case.data_sets[0][1], strict=True):
        got, wanted = found[value.name], _array(wanted)
        if got.shape != wanted.shape or got.dtype != wanted.dtype:
            return f"'{value.name}' is {got.dtype}{list(got.shape)}, not {wanted.dtype}{list(wanted.shape)}"
        try:
            np.testing.assert_allclose(got, wanted, rtol=case.rtol, atol=NOISY.get(case.name, case.atol))
        except AssertionError as error:
            return f"'{value.name}': " + " ".join(str(error).split())[:250]
    return ""


def _reason(error: EdgecError) -> str:
    """The first refusal without the names of this model."""
    if isinstance(error, UnsupportedModelError):
        return f"{error.refusals[0].op}: {error.refusals[0].reason}"
    return str(error)


# ---- all cases, in workers ----------------------------------------------------------------------------------


def run_cases(pattern: str = "", workers: int | None = None) -> list[Outcome]:
    """The outcome of every case whose name matches ``pattern``, by name."""
    count = workers or os.cpu_count() or 1
    with ThreadPoolExecutor(count) as threads:
        shares = threads.map(lambda index: _share(pattern, index, count), range(count))
        return sorted((outcome for share in shares for outcome in share), key=lambda outcome: outcome.case)


def _share(pattern: str, index: int, count: int) -> list[Outcome]:
    """Every ``count``-th outcome from ``index`` on; a worker that dies is replaced after the case it died on."""
    outcomes: list[Outcome] = []
    while True:
        arguments = ["--work", f"{index}/{count}", "--skip", str(len(outcomes)), pattern]
        with subprocess.Popen(
            [sys.executable, "-m", "tests.onnx_backend", *arguments], stdout=subprocess.PIPE, bufsize=0
        ) as worker:  # fmt: skip
            planned = json.loads(_line(worker) or "[]")
            for case, operator in planned:
                line = _line(worker)
                if not line:
                    outcomes.append(Outcome(case, operator, WRONG, "the process crashed or gave no answer"))
                    break
                outcomes.append(Outcome(**json.loads(line)))
            else:
                return outcomes


def _line(worker: subprocess.Popen[bytes]) -> bytes:
    """The worker's next line; empty (and the worker dead) if it crashes or stays silent."""
    assert worker.stdout is not None
    if not select.select([worker.stdout], [], [], PATIENCE)[0]:
        worker.kill()
    return worker.stdout.readline()


def _work(pattern: str, share: str, skip: int) -> None:
    """Run cases in this process: one line to say which, then one line for each outcome."""
    index, count = map(int, share.split("/"))
    cases = [case for case in node_cases() if re.search(pattern, case.name)][index::count][skip:]
    print(json.dumps([(case.name, operator_of(case)) for case in cases]), flush=True)
    with tempfile.TemporaryDirectory() as folder:
        for number, case in enumerate(cases):
            # a folder each: a loaded library is found again by its path
            own = Path(folder) / str(number)
            own.mkdir()
            print(json.dumps(asdict(run_case(case, own))), flush=True)


# ---- the table ----------------------------------------------------------------------------------------------


def table(outcomes: Sequence[Outcome]) -> str:
    """Verdicts counted per operator, then every wrong case, then the refusals by reason."""
    lines = [f"{'operator':42}" + "".join(f"{verdict:>10}" for verdict in VERDICTS)]
    for operator in sorted({outcome.operator for outcome in outcomes}):
        lines.append(_row(operator, [outcome for outcome in outcomes if outcome.operator == operator]))
    lines.append(_row("all", outcomes))
    lines += [f"wrong: {o.case}: {o.detail}" for o in outcomes if o.verdict == WRONG]
    reasons = Counter(o.detail for o in outcomes if o.verdict == REFUSED)
    lines += [f"refused {count:4}: {reason}" for reason, count in reasons.most_common()]
    return "\n".join(lines)


def _row(label: str, outcomes: Sequence[Outcome]) -> str:
    counts = Counter(outcome.verdict for outcome in outcomes)
    return f"{label:42}" + "".join(f"{counts[verdict] or '':>10}" for verdict in VERDICTS)


def passed_share(outcomes: Sequence[Outcome]) -> float:
    """Passed and pinned cases over all that are not left out; folded ones count as not passed."""
    counts = Counter(outcome.verdict for outcome in outcomes)
    return (counts[PASSED] + counts[PINNED]) / max(1, len(outcomes) - counts[LEFT_OUT])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("pattern", nargs="?", default="", help="a regular expression that case names must match")
    parser.add_argument("--work", help=argparse.SUPPRESS)
    parser.add_argument("--skip", type=int, default=0, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.work:
        _work(arguments.pattern, arguments.work, arguments.skip)
        return
    outcomes = run_cases(arguments.pattern)
    print(table(outcomes))
    print(f"{passed_share(outcomes):.1%} of the cases that are not left out passed")


if __name__ == "__main__":
    main()
