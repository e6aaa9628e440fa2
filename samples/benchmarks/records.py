"""The records that come with edgec: plans that take fewer cycles on emulated ARM cores than the untuned ones.

    python -m samples.benchmarks.records [MODEL ...] [--targets rpi3,rpi5] [--minutes M] [--shared FOLDER]

Tunes the trained models beside the project for each target, in float and in 8 bits, and keeps the best plan of each
kernel where it is better than the untuned one. Only what is counted is kept (instructions, and cycles by LLVM's
analyser), as it is the same wherever it is counted, while times belong to one machine.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Annotated

import typer

import edgec
from edgec.tuning import records
from edgec.tuning.records import METHODS, SHIPPED, WORTH, Record
from samples.accuracy import SHARED
from samples.benchmarks.table import quantised
from samples.compare import pinned
from tests.shared_models import MODELS


def best(found: list[Record]) -> list[Record]:
    """The best counted plan of each kernel on each processor, where it is worth it; cycles say more."""
    chosen: dict[tuple[str, str], Record] = {}
    for record in sorted(found, key=lambda each: (METHODS.index(each.method), each.ratio), reverse=True):
        if record.method != "time" and record.ratio <= WORTH:
            chosen[record.kernel, record.processor] = record
    return [chosen[key] for key in sorted(chosen)]


def main(
    models: Annotated[list[str] | None, typer.Argument(help="names; all by default")] = None,
    targets: Annotated[str, typer.Option(help="separated by commas")] = "rpi3,rpi5",
    minutes: Annotated[float, typer.Option(help="for each model, precision and target")] = 1.0,
    shared: Annotated[Path, typer.Option(help="the folder of models and data")] = SHARED,
    kept: Annotated[Path | None, typer.Option("--quantised", help="folder of the QDQ models")] = None,
) -> None:
    """Tune, and add what is worth it to the records that come with edgec."""
    with tempfile.TemporaryDirectory() as name:
        database = Path(name) / "records.jsonl"
        for model in [each for each in MODELS if not models or each.name in models]:
            for path in (model.onnx(shared), quantised(model, shared, kept or Path(name))):
                for target in targets.split(","):
                    tuned = edgec.tune(path, target, minutes, database, shapes=pinned(path))
                    typer.echo(f"{path.stem} {target}: {tuned.measured} plans, {tuned.ratio:.3f} × untuned")
        found = best([*records.shipped(), *records.read(database)])
    SHIPPED.write_text("".join(record.line() for record in found), encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
