"""What 16-bit floats cost the trained models beside the project, and what they save on an emulated Cortex-A76.

    python -m samples.half [MODEL ...] [--shared FOLDER] [--samples N] [--json]

Accuracy is of the artifact for ``rpi5-fp16`` under emulation, on the first samples of the evaluation split, beside
ONNX Runtime's in float32. The errors are of the reference on one sample, in dB below the output: with sums in float16,
as the artifact computes, and with everything stored in float16 and computed in float32. Instructions are of one
inference, and say nothing of cycles.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

import edgec
from edgec import reference
from edgec.data.samples import Samples
from edgec.devices.counting import count_instructions
from edgec.devices.device import QemuDevice
from edgec.graph import load_graph
from edgec.program import Program
from edgec.targets.half import compute_in_half, store_in_half
from samples.accuracy import SHARED, decibels, measure_of, onnxruntime_predictor
from samples.compare import pinned
from tests.programs import program_of
from tests.shared_models import MODELS, SharedModel

TARGET = "rpi5"


@dataclass(frozen=True)
class Row:
    """One model: its measure in float32 and in float16, the errors in dB, and instructions of an inference."""

    model: str
    measure: str
    full: float
    half: float
    sums_in_half: float
    sums_in_full: float
    instructions: int
    instructions_full: int


def measure(model: SharedModel, shared: Path, folder: Path, count: int) -> Row:
    """Compile one model for both, and compare."""
    path, samples = model.onnx(shared), model.samples(shared, count)
    exact = onnxruntime_predictor(str(path))(samples)
    name, score = measure_of(model, shared, exact)
    artifacts = [
        edgec.compile(path, target, folder / f"{target}.so", shapes=pinned(path)).path
        for target in (TARGET, f"{TARGET}-fp16")
    ]
    one = {model.input: samples[:1]}
    full, half = (count_instructions(artifact, one, QemuDevice()).instructions for artifact in artifacts)
    each = Samples(len(samples), None, lambda index: {model.input: samples[index : index + 1]})
    found = next(iter(QemuDevice().run(artifacts[1], each).outputs.values())).reshape(exact.shape)
    program = program_of(load_graph(path, shapes=pinned(path)))
    errors = [_error(program, made, one) for made in (compute_in_half, store_in_half)]
    return Row(model.name, name, score(exact), score(found), errors[0], errors[1], half, full)


def _error(program: Program, made: Callable[[Program], Program], inputs: dict[str, np.ndarray]) -> float:
    wanted, found = (next(iter(reference.run(each, inputs).values())) for each in (program, made(program)))
    return decibels(found, wanted)


def table(rows: list[Row]) -> str:
    """The rows as Markdown."""
    counted = "M instructions, float32 | float16 | ratio"
    lines = [
        f"| model | measure | float32 | float16 | dB, sums in float16 | in float32 | {counted} |",
        "|---|---|" + "---:|" * 7,
    ]
    for row in rows:
        numbers = (row.full, row.half, row.sums_in_half, row.sums_in_full)
        counts = [f"{n / 1e6:.3f}" for n in (row.instructions_full, row.instructions)]
        ratio = f"{row.instructions / row.instructions_full:.2f}"
        lines.append("| " + " | ".join([row.model, row.measure, *(f"{n:.2f}" for n in numbers), *counts, ratio]) + " |")
    return "\n".join(lines)


def main(
    models: Annotated[list[str] | None, typer.Argument(help="names; all by default")] = None,
    shared: Annotated[Path, typer.Option(help="the folder of models and data")] = SHARED,
    samples: Annotated[int, typer.Option(help="of the evaluation split")] = 100,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
) -> None:
    """Measure and print."""
    rows = []
    for model in [each for each in MODELS if not models or each.name in models]:
        with tempfile.TemporaryDirectory() as name:
            rows.append(measure(model, shared, Path(name), samples))
    typer.echo(json.dumps([asdict(row) for row in rows], indent=1) if as_json else table(rows))


if __name__ == "__main__":
    typer.run(main)
