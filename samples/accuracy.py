"""One table: what 8 bits cost the trained models beside the project, by edgec and by other quantisers.

    python -m samples.accuracy [MODEL ...] [--shared FOLDER] [--json]

Everyone calibrates with the same samples of the calibration split, and is measured on the evaluation split: top-1
accuracy in %, or the share of classes that agree with float where there are no labels, or the signal-to-noise ratio of
the output in dB. Float and edgec's QDQ graph run in ONNX Runtime; so does what ONNX Runtime's static quantiser makes
(int8, one scale for each channel of a weight). OpenVINO with NNCF, and the int8 TFLite file of the same network, take
part where they are installed and where there is one. ``agree`` and ``dB`` compare edgec's int8 with float.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import onnx
import onnx_ir as ir
import typer

from edgec.graph import load_graph
from edgec.passes.pipeline import run as run_passes
from edgec.passes.quantize import Recipe, quantize
from tests.shared_models import MODELS, SharedModel

Predict = Callable[[np.ndarray], np.ndarray]
"""From samples [count, *shape] to the first output [count, *shape]."""

TFLITE: Mapping[str, str] = {
    "resnet8": "pretrainedResnet_quant.tflite",
    "vww": "vww_96_int8.tflite",
    "kws": "kws_ref_model.tflite",
    "autoencoder": "ad01_int8.tflite",
    "mobilenet_v2": "tf2_mobilenet_v2_1.0_224_ptq.tflite",
}
"""The published int8 file of the same network."""


SHARED = Path(os.environ.get("EDGEC_SHARED", "../shared"))


@dataclass(frozen=True)
class Row:
    """One model: the measure of each contender (None: not there), and how near edgec's int8 is to float."""

    model: str
    measure: str
    scores: dict[str, float | None]
    agreement: float | None
    decibels: float
    seconds: float


def onnxruntime_predictor(model: str | bytes) -> Predict:
    """Of an ONNX file or its content."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 3, 1
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda x: np.concatenate([session.run(None, {name: each[None]})[0] for each in x])


def quantised_by_edgec(model: SharedModel, shared: Path, recipe: Recipe | None = None) -> bytes:
    """The QDQ model of ``recipe``, the default one unless told otherwise."""
    samples = model.calibration_samples(shared)
    graph = load_graph(model.onnx(shared), shapes={name: array.shape for name, array in samples[0].items()})
    run_passes(graph)
    return ir.to_proto(quantize(graph, samples, recipe).model).SerializeToString()


def quantised_by_onnxruntime(model: SharedModel, shared: Path, folder: Path) -> Predict:
    """Static, per channel, S8S8, min-max, after its own preprocessing."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self._left = iter(model.calibration_samples(shared))

        def get_next(self) -> Any:
            return next(self._left, None)

    upgraded, prepared, result = (folder / f"{model.name}_{step}.onnx" for step in ("new", "prepared", "int8"))
    onnx.save(ir.to_proto(load_graph(model.onnx(shared), shapes={model.input: _shape(model, shared)})), upgraded)
    quant_pre_process(str(upgraded), str(prepared), skip_symbolic_shape=True)
    quantize_static(
        str(prepared), str(result), Reader(), quant_format=QuantFormat.QDQ, per_channel=True,
        activation_type=QuantType.QInt8, weight_type=QuantType.QInt8,
    )  # fmt: skip
    return onnxruntime_predictor(str(result))


def quantised_by_openvino(model: SharedModel, shared: Path, folder: Path) -> Predict:
    """NNCF's post-training quantisation with its defaults."""
    import nncf
    import openvino

    source = openvino.Core().read_model(str(model.onnx(shared)))
    source.reshape({model.input: _shape(model, shared)})
    samples = [sample[model.input] for sample in model.calibration_samples(shared)]
    quantised = nncf.quantize(source, nncf.Dataset(samples), subset_size=len(samples))
    compiled = openvino.Core().compile_model(quantised, "CPU")
    return lambda x: np.concatenate([np.array(compiled(each[None])[0]) for each in x])


def published_tflite(model: SharedModel, shared: Path, folder: Path) -> Predict:
    """The int8 file beside the model; its images have their channels last."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_path=str(shared / "models" / model.name / TFLITE[model.name]), num_threads=1)
    interpreter.allocate_tensors()
    source, target = interpreter.get_input_details()[0], interpreter.get_output_details()[0]

    def one(x: np.ndarray) -> np.ndarray:
        real = (x.transpose(1, 2, 0) if x.ndim == 3 else x).reshape(source["shape"])
        interpreter.set_tensor(source["index"], _to_integers(real, source))
        interpreter.invoke()
        scale, zero = target["quantization"]
        found = interpreter.get_tensor(target["index"]).astype(np.float32)
        return (found - zero) * scale if scale else found

    return lambda x: np.concatenate([one(each) for each in x])


def _to_integers(real: np.ndarray, details: Mapping[str, Any]) -> np.ndarray:
    scale, zero = details["quantization"]
    if not scale:
        return real.astype(details["dtype"])
    limits = np.iinfo(details["dtype"])
    return np.clip(np.rint(real / scale) + zero, limits.min, limits.max).astype(details["dtype"])


CONTENDERS: Mapping[str, Callable[[SharedModel, Path, Path], Predict]] = {
    "onnxruntime": quantised_by_onnxruntime,
    "openvino": quantised_by_openvino,
    "tflite": published_tflite,
}


def measure(model: SharedModel, shared: Path, folder: Path, against: Sequence[str]) -> Row:
    """Quantise one model by everyone, and measure."""
    start = time.perf_counter()
    own = onnxruntime_predictor(quantised_by_edgec(model, shared))
    seconds = time.perf_counter() - start
    samples = model.samples(shared, model.evaluation)
    exact = onnxruntime_predictor(str(model.onnx(shared)))(samples)
    found = own(samples)
    name, score = measure_of(model, shared, exact)
    scores: dict[str, float | None] = {"float": score(exact), "edgec": score(found)}
    for peer in against:
        predict = _attempt(peer, model, shared, folder)
        scores[peer] = None if predict is None else score(predict(samples).reshape(exact.shape))
    agreement = _share_of_same(found, exact) if model.classifier else None
    return Row(model.name, name, scores, agreement, decibels(found, exact), seconds)


def _attempt(peer: str, model: SharedModel, shared: Path, folder: Path) -> Predict | None:
    """The peer's model; None where it is not installed, has no such model, or fails, which is said."""
    if peer == "tflite" and model.name not in TFLITE:
        return None
    try:
        return CONTENDERS[peer](model, shared, folder)
    except Exception as error:  # each peer has errors of its own
        typer.echo(f"{peer} leaves out {model.name}: {' '.join(str(error).split())[:160]}", err=True)
        return None


def measure_of(model: SharedModel, shared: Path, exact: np.ndarray) -> tuple[str, Callable[[np.ndarray], float]]:
    """What is measured of outputs, and the score of some; ``exact`` are those in float32."""
    if model.labels is not None:
        labels = model.labels(shared)[: len(exact)]
        return "top-1 %", lambda found: 100 * float((_classes(found) == labels).mean())
    if model.classifier:
        return "same class %", lambda found: _share_of_same(found, exact)
    return "dB", lambda found: decibels(found, exact)


def decibels(found: np.ndarray, wanted: np.ndarray) -> float:
    """Ratio of the mean square of ``wanted`` to that of its difference from ``found``; 200 where there is none."""
    error = np.square(found.astype(np.float64) - wanted).sum()
    return 200.0 if error == 0 else float(10 * np.log10(np.square(wanted.astype(np.float64)).sum() / error))


def _classes(output: np.ndarray) -> np.ndarray:
    return np.asarray(output.reshape(len(output), -1).argmax(axis=1))


def _share_of_same(found: np.ndarray, wanted: np.ndarray) -> float:
    return 100 * float((_classes(found) == _classes(wanted)).mean())


def _shape(model: SharedModel, shared: Path) -> tuple[int, ...]:
    return (1, *model.samples(shared, 1).shape[1:])


def table(rows: Sequence[Row], against: Sequence[str]) -> str:
    """The rows as Markdown."""
    names = ["float", "edgec", *against]
    lines = ["| " + " | ".join(["model", "measure", *names, "agree %", "dB", "s"]) + " |"]
    lines.append("|" + "---|" * (len(names) + 5))
    for row in rows:
        scores = ["–" if row.scores[name] is None else f"{row.scores[name]:.2f}" for name in names]
        agreement = "–" if row.agreement is None else f"{row.agreement:.2f}"
        cells = [row.model, row.measure, *scores, agreement, f"{row.decibels:.1f}", f"{row.seconds:.0f}"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main(
    models: Annotated[list[str] | None, typer.Argument(help="names of models; all by default")] = None,
    shared: Annotated[Path, typer.Option(help="the folder with the models and their data")] = SHARED,
    against: Annotated[str, typer.Option(help="other quantisers, separated by commas")] = ",".join(CONTENDERS),
    as_json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
) -> None:
    """Quantise MODELS and print how well they do."""
    peers = [peer for peer in against.split(",") if peer]
    with tempfile.TemporaryDirectory() as folder:
        chosen = [model for model in MODELS if not models or model.name in models]
        rows = [measure(model, shared, Path(folder), peers) for model in chosen]
    typer.echo(json.dumps([asdict(row) for row in rows], indent=1) if as_json else table(rows, peers))


if __name__ == "__main__":
    typer.run(main)
