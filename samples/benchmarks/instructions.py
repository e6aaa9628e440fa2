"""Instructions of an inference on emulated ARM cores, beside the best other runtime, and on x86-64 with AVX2; and
whether they have grown.

    python -m samples.benchmarks.instructions [MODEL ...] [--shared FOLDER] [--check | --update] [--json]

``digits`` is the sample model of this repository; the others lie beside the project. ``expected.json`` holds what each
row cost when it was written, and what the best other runtime costs: instructions between two marks around one inference
in the steady state, counted by the same plugin of qemu on the same emulated core; rows of ``x86-64-v3`` are counted by
callgrind (``apt-get install valgrind``), and left out without it or elsewhere. ``--check`` fails where a row costs
more than it did by the margin of that file; ``--update`` writes the file anew. Counts are exact and repeatable, and say
nothing of cycles: never a latency.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

import edgec
from edgec.devices.counting import count_instructions
from edgec.devices.device import QemuDevice
from edgec.targets.target import load_target
from samples.accuracy import SHARED
from samples.benchmarks import callgrind
from samples.benchmarks.table import quantised
from samples.compare import pinned
from tests.shared_models import MODELS

EXPECTED = Path(__file__).with_name("expected.json")
SAMPLES = Path(__file__).parent.parent / "models"
SAMPLE = "digits"
AVX2 = "x86-64-v3"
"""The target that valgrind runs, on any x86-64 machine."""


@dataclass(frozen=True)
class Row:
    """One model on one core. Counts are instructions of an inference; None where no peer was counted."""

    model: str
    precision: str
    target: str
    instructions: int
    macs: int
    peer: str | None
    peer_instructions: int | None

    @property
    def key(self) -> tuple[str, str, str]:
        """What the row is about."""
        return self.model, self.precision, self.target

    @property
    def ratio(self) -> float | None:
        """To the best peer; below 1 edgec needs fewer."""
        return None if self.peer_instructions is None else self.instructions / self.peer_instructions


def expected() -> dict[str, Any]:
    """The file: ``margin``, and ``rows`` as :class:`Row`."""
    found = json.loads(EXPECTED.read_text(encoding="utf-8"))
    return {**found, "rows": [Row(**row) for row in found["rows"]]}


def count(row: Row, shared: Path, folder: Path, **options: Any) -> Row:
    """``row`` counted anew; ``options`` are those of :func:`edgec.compile`."""
    path, values = _model(row, shared, folder)
    output = folder / f"{row.model}_{row.target}.so"
    compiled = edgec.compile(path, row.target, output, shapes=pinned(path), **options)
    if row.target == AVX2:
        instructions = callgrind.count(compiled.path, values)
    else:
        instructions = count_instructions(compiled.path, values, QemuDevice()).instructions
    macs = sum(step["macs"] for step in compiled.manifest["steps"])
    return Row(row.model, row.precision, row.target, instructions, macs, row.peer, row.peer_instructions)


def can_count(row: Row) -> bool:
    """Whether this machine runs what counts the row."""
    return row.target != AVX2 or (callgrind.is_there() and load_target("host").arch == "x86_64")


def _model(row: Row, shared: Path, folder: Path) -> tuple[Path, dict[str, np.ndarray]]:
    """The file of a row's model, and one input."""
    if row.model == SAMPLE:
        with np.load(SAMPLES / "digits_eval.npz") as data:
            return SAMPLES / "digits_repvgg.onnx", {"image": data["image"][:1]}
    model = next(each for each in MODELS if each.name == row.model)
    path = model.onnx(shared) if row.precision == "fp32" else quantised(model, shared, folder)
    return path, {model.input: model.samples(shared, 1)}


def grown(counted: Sequence[Row], margin: float) -> list[str]:
    """A sentence for every row that costs more than ``margin`` × what is expected of it."""
    before = {row.key: row.instructions for row in expected()["rows"]}
    return [
        f"{' '.join(row.key)} takes {row.instructions:,} instructions and took {before[row.key]:,}: "
        f"more than {margin} ×"
        for row in counted
        if row.instructions > margin * before[row.key]
    ]


def table(rows: Sequence[Row]) -> str:
    """The rows as Markdown."""
    lines = [
        "| model | | target | M instructions | a MAC | best other | M instructions | ratio |",
        "|---|---|---|" + "---:|" * 5,
    ]
    for row in rows:
        peer = ["–", "–", "–"]
        if row.peer_instructions is not None:
            peer = [str(row.peer), f"{row.peer_instructions / 1e6:.3f}", f"{row.ratio:.2f}"]
        own = [f"{row.instructions / 1e6:.3f}", f"{row.instructions / row.macs:.3f}"]
        lines.append("| " + " | ".join([*row.key, *own, *peer]) + " |")
    return "\n".join(lines)


def main(
    models: Annotated[list[str] | None, typer.Argument(help="names; all by default")] = None,
    shared: Annotated[Path, typer.Option(help="the folder of models and data")] = SHARED,
    kept: Annotated[Path | None, typer.Option("--quantised", help="folder of the QDQ models")] = None,
    tune_db: Annotated[Path | None, typer.Option(help="tuning records")] = None,
    check: Annotated[bool, typer.Option("--check", help="fail where a count has grown")] = False,
    update: Annotated[bool, typer.Option("--update", help="write expected.json anew")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
) -> None:
    """Count, print, and compare with what is expected."""
    known = expected()
    with tempfile.TemporaryDirectory() as name:
        folder = kept or Path(name)
        wanted = [row for row in known["rows"] if (not models or row.model in models) and can_count(row)]
        rows = [count(row, shared, folder, tune_db=tune_db) for row in wanted]
    typer.echo(json.dumps([asdict(row) for row in rows], indent=1) if as_json else table(rows))
    if update:
        fresh = {row.key: row for row in rows}
        merged = [asdict(fresh.get(row.key, row)) for row in known["rows"]]
        EXPECTED.write_text(json.dumps({**known, "rows": merged}, indent=1) + "\n", encoding="utf-8")
    problems = grown(rows, known["margin"]) if check else []
    for problem in problems:
        typer.echo(problem, err=True)
    raise typer.Exit(bool(problems))


if __name__ == "__main__":
    typer.run(main)
