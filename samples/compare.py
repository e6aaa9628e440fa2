"""One table: models compiled untuned for this machine, beside ONNX Runtime, one thread, in one run.

    python samples/compare.py MODEL.onnx [MODEL.onnx ...] [--against onnxruntime,openvino] [--json]

Dynamic batch dimensions are pinned to 1. Each row is min latency in ms of interleaved rounds on the same random
input, the ratio to the fastest peer (below 1: edgec is faster), the worst output difference relative to the
output's range, and the artifact's sizes.
"""

from __future__ import annotations

import json
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import onnx
import typer

import edgec
from edgec.benchmark import bench


@dataclass(frozen=True)
class Row:
    """One model; sizes in bytes, times in ms and s."""

    model: str
    edgec_ms: float
    peers_ms: dict[str, float]
    ratio: float
    relative_error: float
    arena_bytes: int
    arena_lower_bound: int
    weights_bytes: int
    artifact_bytes: int
    compile_s: float


def pinned(path: Path) -> dict[str, tuple[int, ...]]:
    """Every run-time input of the model with its unknown dimensions as 1."""
    graph = onnx.load(path, load_external_data=False).graph
    constants = {tensor.name for tensor in graph.initializer}
    return {
        value.name: tuple(d.dim_value or 1 for d in value.type.tensor_type.shape.dim)
        for value in graph.input
        if value.name not in constants
    }


def measure(path: Path, peers: list[str], rounds: int, folder: Path) -> Row:
    """Compile one model and time it beside its peers."""
    start = time.perf_counter()
    compiled = edgec.compile(path, "host", folder / f"{path.stem}.so", shapes=pinned(path))
    seconds = time.perf_counter() - start
    own, *others = bench(compiled.path, against=peers, model=path, rounds=rounds).timings
    facts = compiled.manifest
    return Row(
        path.parent.name,
        own.min_ms,
        {other.name: other.min_ms for other in others},
        own.min_ms / min(other.min_ms for other in others),
        max(other.relative_error for other in others),
        facts["arena_bytes"],
        facts["arena_lower_bound"],
        facts["weights_bytes"],
        compiled.report.artifact_bytes,
        seconds,
    )


def table(rows: list[Row], peers: list[str]) -> str:
    """The rows as Markdown."""
    head = ["model", "edgec ms", *(f"{peer} ms" for peer in peers), "ratio", "worst error", "arena / bound"]
    head += ["weights kB", "artifact kB", "compile s"]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for row in rows:
        cells = [row.model, f"{row.edgec_ms:.3f}", *(f"{row.peers_ms[peer]:.3f}" for peer in peers)]
        cells += [f"{row.ratio:.2f}", f"{row.relative_error:.1e}"]
        cells += [f"{row.arena_bytes / max(1, row.arena_lower_bound):.2f}", f"{row.weights_bytes / 1000:.0f}"]
        cells += [f"{row.artifact_bytes / 1000:.0f}", f"{row.compile_s:.1f}"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main(
    models: Annotated[list[Path], typer.Argument(help="ONNX files")],
    against: Annotated[str, typer.Option(help="peers, separated by commas")] = "onnxruntime",
    rounds: Annotated[int, typer.Option(help="turns of each contender")] = 20,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
) -> None:
    """Compile MODELS and print the comparison."""
    peers = against.split(",")
    with tempfile.TemporaryDirectory() as folder:
        rows = [measure(path, peers, rounds, Path(folder)) for path in models]
    typer.echo(json.dumps([asdict(row) for row in rows], indent=1) if as_json else table(rows, peers))


if __name__ == "__main__":
    typer.run(main)
