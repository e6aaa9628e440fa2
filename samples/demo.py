"""From a trained ONNX model to artifacts for this machine and for a Raspberry Pi 4, on real input.

Compiles the sample model, runs the held-out digits through libedgert and through ONNX Runtime, and prints sizes,
accuracy, agreement and latency. Where an emulator is installed, the Pi's artifact runs there, to show that it
computes the same; an emulator's time says nothing about the Pi's.

    make demo      or      python samples/demo.py
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.table import Table

import edgec
from edgec.benchmark import bench
from edgec.evaluation import Evaluation, evaluate
from edgec.runtimes.build import build_runtime

MODELS = Path(__file__).parent / "models"
MODEL = MODELS / "digits_repvgg.onnx"
HELD_OUT = MODELS / "digits_eval.npz"
CALIBRATION = MODELS / "digits_calib.npz"
LARGEST_ERROR = 1e-4
"""Of the output's range: more than float32's rounding could explain."""


def sizes(artifacts: list[edgec.Compiled]) -> Table:
    """What would be copied to a device, and the memory it takes there."""
    table = Table(title="bytes")
    for column in ("target", "model (ONNX)", "artifact", "its weights", "libedgert", "arena"):
        table.add_column(column, justify="left" if column == "target" else "right")
    for compiled in artifacts:
        facts, library = compiled.manifest, build_runtime(compiled.manifest["triple"]).shared
        counts = [path.stat().st_size for path in (MODEL, compiled.path)]
        counts += [facts["weights_bytes"], library.stat().st_size, facts["arena_bytes"]]
        table.add_row(facts["target"], *(f"{count:,}" for count in counts))
    return table


def quality(results: dict[str, Evaluation]) -> Table:
    """Accuracy, and agreement with ONNX Runtime, for each place where the model ran."""
    table = Table("where", "digits", "right", "same class", "difference / range", title="beside ONNX Runtime")
    for where, result in results.items():
        agreement = result.agreement
        compared = ("", "") if agreement is None else (f"{agreement.top1:.2%}", f"{worst(result):.1e}")
        table.add_row(where, str(result.samples), f"{result.top1:.2%}", *compared)
    return table


def worst(result: Evaluation) -> float:
    """The largest difference from ONNX Runtime over its output's range; 0 where nothing was compared."""
    return max(result.agreement.relative_error.values(), default=0.0) if result.agreement else 0.0


def latency(artifact: Path) -> Table:
    """One digit, one thread, interleaved rounds."""
    result = bench(artifact, against=["onnxruntime"], model=MODEL, inputs=CALIBRATION)
    table = Table("runtime", "fastest µs", "median µs", "× edgec", title=f"latency, one thread, {result.machine.cpu}")
    for timing in result.timings:
        times = (f"{1000 * timing.min_ms:.1f}", f"{1000 * timing.median_ms:.1f}", f"{timing.ratio:.2f}")
        table.add_row(f"{timing.name} {timing.version}", *times)
    return table


def emulated(artifact: Path, console: Console) -> dict[str, Evaluation]:
    """The Pi's results; none where there is no emulator, which is said."""
    try:
        return {"rpi4, emulated": evaluate(artifact, HELD_OUT, reference=MODEL, device="qemu")}
    except edgec.EdgecError as error:
        console.print(f"The artifact for the Raspberry Pi was compiled but not run: {error}.")
        return {}


def main() -> int:
    """Print everything; 0 if all results agree with ONNX Runtime."""
    console = Console()
    with tempfile.TemporaryDirectory(prefix="edgec-demo-") as name:
        host = edgec.compile(MODEL, "host", Path(name) / "digits.so")
        console.print(f"{MODEL.name} compiled for this machine:\n{host.report}\n", highlight=False, soft_wrap=True)
        console.print("now for a Raspberry Pi 4, and both on digits held out of the training …\n")
        board = edgec.compile(MODEL, "rpi4", Path(name) / "digits_rpi4.so")
        results = {
            "ONNX Runtime": evaluate(MODEL, HELD_OUT),
            "this machine": evaluate(host.path, HELD_OUT, reference=MODEL),
            **emulated(board.path, console),
        }
        console.print(sizes([host, board]), quality(results), latency(host.path))
    return int(any(worst(result) > LARGEST_ERROR for result in results.values()))


if __name__ == "__main__":
    try:
        sys.exit(main())
    except edgec.EdgecError as error:
        sys.exit(f"edgec: {error}")
