"""One table: what weights of few bits cost trained models, in accuracy, bytes and time.

    python -m samples.low_bit [MODEL ...] [--modes w8,w4,…] [--shared FOLDER]

Everyone learns from the same samples of the calibration split, and is measured on the evaluation split: top-1 accuracy
in %, or for the language model of this repository the perplexity per byte (2 to the bits a byte). ``edgec`` is the
default recipe; ``nearest`` the same widths rounded to the nearest, without a corrected bias; ``onnxruntime`` its own
4-bit tool (round to nearest, 4 bits, blocks of 32, matrix products only), run by ONNX Runtime. Bytes are those of the
weights in the artifact, times the best of interleaved runs of one sample on one thread, in ms.
"""

from __future__ import annotations

import logging
import os
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import onnx
import typer

import edgec
from edgec.passes.quantize import Recipe
from tests.shared_models import MOBILENET, RESNET20, VIT, SharedModel

SHARED = Path(os.environ.get("EDGEC_SHARED", "../shared"))
LANGUAGE_MODEL = Path(__file__).parent / "models" / "bytes_lm.onnx"
MODES = ("none", "int8", "w8", "w4", "w3", "w2", "w4a8", "auto")
NEAREST = Recipe(rounding="nearest", correct_bias=False)
ROUNDS = 20

Run = Callable[[Mapping[str, np.ndarray]], np.ndarray]
"""From a sample's inputs to the first output."""


@dataclass(frozen=True)
class Subject:
    """A model with what it learns from and how it is measured.

    Attributes:
        name: in the table.
        path: of its ONNX file.
        options: more of :func:`edgec.compile`'s.
        calib: its calibration samples.
        measure: the score of a way to run it.
        unit: of the score.
    """

    name: str
    path: Path
    options: Mapping[str, Any]
    calib: Any
    measure: Callable[[Run], float]
    unit: str


@dataclass(frozen=True)
class Row:
    """One mode of one model; None for what does not apply."""

    model: str
    mode: str
    score: float
    nearest: float | None
    onnxruntime: float | None
    weight_bytes: int
    ms: float


def classifier(model: SharedModel, shared: Path) -> Subject:
    """A model of the folder beside the project, with its labels."""
    samples = model.samples(shared, model.evaluation)
    assert model.labels is not None
    labels = model.labels(shared)[: len(samples)]

    def top1(run: Run) -> float:
        found = [run({model.input: sample[None]}).argmax() for sample in samples]
        return 100 * float(np.mean(np.array(found) == labels))

    options = {"shapes": {model.input: (1, *samples.shape[1:])}}
    return Subject(model.name, model.onnx(shared), options, model.calibration_samples(shared), top1, "top-1 %")


def language_model() -> Subject:
    """The one of this repository, token by token with its caches in the artifact."""
    text = np.load(LANGUAGE_MODEL.with_name("bytes_eval.npz"))["text"][:12].astype(np.int64)

    def perplexity(run: Run) -> float:
        losses = []
        for window in text:
            for place, token in enumerate(window[:-1]):
                logits = run({"tokens": np.array([[token]]), "position": np.array([place])}).reshape(-1)
                shifted = logits.astype(np.float64) - logits.max()
                losses.append(np.log(np.exp(shifted).sum()) - shifted[window[place + 1]])
        return float(np.exp(np.mean(losses)))

    options = {"shapes": {"tokens": (1, 1)}, "states": "auto"}
    calib = LANGUAGE_MODEL.with_name("bytes_calib.npz")
    return Subject("bytes_lm", LANGUAGE_MODEL, options, calib, perplexity, "perplexity")


def measured(subject: Subject, mode: str, folder: Path) -> Row:
    """Compile the subject in a mode, and measure what comes out."""
    quantised = {} if mode == "none" else {"quantize": mode, "calib": subject.calib}
    compiled = edgec.compile(subject.path, "host", folder / "own.so", **subject.options, **quantised)
    score = _score(subject, compiled.path)
    nearest = None
    if mode.startswith("w") and mode != "w8":
        path = folder / "nearest.so"
        edgec.compile(subject.path, "host", path, **subject.options, **quantised, recipe=NEAREST)
        nearest = _score(subject, path)
    other = _onnxruntime_score(subject, folder) if mode == "w4" else None
    stored = int(compiled.manifest["weights_bytes"])
    return Row(subject.name, mode, score, nearest, other, stored, _milliseconds(compiled.path))


def _score(subject: Subject, artifact: Path) -> float:
    with edgec.load(artifact) as session:
        return subject.measure(lambda inputs: session.run(dict(inputs))[session.outputs[0].name])


def _milliseconds(artifact: Path) -> float:
    with edgec.load(artifact) as session:
        generator = np.random.default_rng(0)
        session.bind({t.name: generator.standard_normal(t.shape).astype(t.dtype) for t in session.inputs})
        times = []
        for _ in range(ROUNDS):
            start = time.perf_counter()
            session.invoke()
            times.append(time.perf_counter() - start)
        return 1e3 * min(times)


def _onnxruntime_score(subject: Subject, folder: Path) -> float | None:
    """By ONNX Runtime's 4-bit tool; None where the model has no matrix product that it takes."""
    import onnxruntime
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    logging.getLogger().setLevel(logging.WARNING)  # which that import has raised
    tool = MatMulNBitsQuantizer(onnx.load(subject.path), block_size=32, is_symmetric=True)
    tool.process()
    if not any(node.op_type == "MatMulNBits" for node in tool.model.model.graph.node):
        return None
    path = folder / "theirs.onnx"
    onnx.save(tool.model.model, path)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [each.name for each in session.get_outputs()]
    caches = {each.name: np.zeros(each.shape, np.float32) for each in session.get_inputs() if "past" in each.name}

    def run(inputs: Mapping[str, np.ndarray]) -> np.ndarray:
        outputs = dict(zip(names, session.run(None, {**inputs, **caches}), strict=True))
        caches.update({name: outputs[name.replace("past", "present")] for name in caches})
        return outputs[names[0]]

    return subject.measure(run)


def table(rows: Sequence[Row], units: Mapping[str, str]) -> str:
    """The rows as Markdown."""
    lines = ["| model | mode | measure | edgec | nearest | onnxruntime | weights kB | ms |", "|" + "---|" * 8]
    for row in rows:
        scores = ["–" if each is None else f"{each:.2f}" for each in (row.score, row.nearest, row.onnxruntime)]
        cells = [row.model, row.mode, units[row.model], *scores, f"{row.weight_bytes / 1000:.0f}", f"{row.ms:.3f}"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main(
    models: Annotated[list[str] | None, typer.Argument(help="names of models; all by default")] = None,
    modes: Annotated[str, typer.Option(help="separated by commas")] = ",".join(MODES),
    shared: Annotated[Path, typer.Option(help="the folder with the models and their data")] = SHARED,
) -> None:
    """Quantise MODELS in every mode, and print how well they do."""
    makers = {model.name: lambda model=model: classifier(model, shared) for model in (RESNET20, MOBILENET, VIT)}
    makers["bytes_lm"] = language_model
    rows, units = [], {}
    for name, make in makers.items():
        if models and name not in models:
            continue
        subject = make()
        units[name] = subject.unit
        for mode in modes.split(","):
            with tempfile.TemporaryDirectory() as folder:
                rows.append(measured(subject, mode, Path(folder)))
                typer.echo(str(rows[-1]), err=True)
    typer.echo(table(rows, units))


if __name__ == "__main__":
    typer.run(main)
