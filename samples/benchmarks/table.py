"""The README's table: the trained models beside the project, in float and in 8 bits, beside every other runtime.

    python -m samples.benchmarks.table [MODEL ...] [--shared FOLDER] [--tune MINUTES] [--tune-db FILE] [--json]

The int8 models are what edgec's quantiser makes on the calibration split, as QDQ models, which ONNX Runtime and
OpenVINO run, too, with 8 bits before sums, since they have no kernels for more; LiteRT runs the .tflite files published
with the models. ``--quantised FOLDER`` keeps the QDQ models, and takes those that are there.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from edgec.passes.quantize import Recipe
from samples.accuracy import SHARED, TFLITE, quantised_by_edgec
from samples.compare import Row, measure, table
from tests.shared_models import MODELS, SharedModel

FLOAT_TFLITE: Mapping[str, str] = {"resnet8": "pretrainedResnet.tflite", "vww": "vww_96_float.tflite"}
"""The published float file of the same network; those of other models hold other numbers."""

QDQ_PEERS = ("onnxruntime", "openvino")
"""Those that run QDQ models."""

PEERS = "onnxruntime,openvino,litert,mnn,ncnn"


def quantised(model: SharedModel, shared: Path, folder: Path, wide_sums: bool = True) -> Path:
    """The QDQ model, made if it is not in ``folder``; without ``wide_sums`` as it is for other runtimes."""
    path = folder / f"{model.name}_int8{'' if wide_sums else '_narrow'}.onnx"
    if not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        path.write_bytes(quantised_by_edgec(model, shared, Recipe(wide_sums=wide_sums)))
    return path


def peer_files(model: SharedModel, shared: Path, folder: Path, kind: str) -> dict[str, Path]:
    """The files that peers run in place of edgec's, by peer."""
    if kind == "fp32":
        return tflite(FLOAT_TFLITE, model, shared)
    narrow = quantised(model, shared, folder, wide_sums=False)
    return {**dict.fromkeys(QDQ_PEERS, narrow), **tflite(TFLITE, model, shared)}


def tflite(names: Mapping[str, str], model: SharedModel, shared: Path) -> dict[str, Path]:
    """LiteRT's file of the model, where there is one."""
    folder = shared / "models" / model.name
    return {"litert": folder / names[model.name]} if model.name in names else {}


def main(
    models: Annotated[list[str] | None, typer.Argument(help="names; all by default")] = None,
    shared: Annotated[Path, typer.Option(help="the folder of models and data")] = SHARED,
    against: Annotated[str, typer.Option(help="peers, separated by commas")] = PEERS,
    precision: Annotated[str, typer.Option(help="fp32, int8, or both")] = "fp32,int8",
    kept: Annotated[Path | None, typer.Option("--quantised", help="folder of the QDQ models")] = None,
    rounds: Annotated[int, typer.Option(help="turns of each contender")] = 20,
    threads: Annotated[int, typer.Option(help="of every contender")] = 1,
    tune: Annotated[float | None, typer.Option(help="minutes to tune each model")] = None,
    tune_db: Annotated[Path | None, typer.Option(help="tuning records")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
) -> None:
    """Compile the models and print the comparison."""
    peers, rows = against.split(","), list[Row]()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for model in [each for each in MODELS if not models or each.name in models]:
            inputs = folder / f"{model.name}.npz"
            np.savez(inputs, **{model.input: model.samples(shared, 1)})
            for kind in precision.split(","):
                path = model.onnx(shared) if kind == "fp32" else quantised(model, shared, kept or folder)
                files = peer_files(model, shared, kept or folder, kind)
                options = {"threads": threads, "tune": tune, "tune_db": tune_db}
                rows.append(
                    measure(path, peers, rounds, folder, name=model.name, files=files, inputs=inputs, **options)
                )
    typer.echo(json.dumps([asdict(row) for row in rows], indent=1) if as_json else table(rows, peers))


if __name__ == "__main__":
    typer.run(main)
