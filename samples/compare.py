"""One table: models compiled for this machine, beside other runtimes, one thread, in one run.

    python samples/compare.py MODEL.onnx [MODEL.onnx ...] [--against onnxruntime,openvino,litert,mnn,ncnn] [--json]
                              [--tflite FILE.tflite ...] [--tune MINUTES] [--tune-db FILE] [--threads N]

A model with QuantizeLinear nodes makes a row for int8, any other for fp32; dynamic batch dimensions are pinned to 1.
LiteRT runs ``--tflite`` files, one a model in the same order (``-`` for none), or a file of the model's name beside it.
MNN and ncnn take part in fp32 rows. Each row is min latency in ms of interleaved rounds on the same random input, the
ratio to the fastest peer (below 1: edgec is faster), the worst output difference relative to the output's range (of the
peers that compute the same network; a star marks the others), and the artifact's sizes.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import onnx
import typer

import edgec
from edgec.benchmark import bench
from edgec.errors import EdgecError
from edgec.runtimes.peers import open_peer

FLOAT_ONLY = ("mnn", "ncnn")
"""Peers whose converters make no integers of a QDQ model."""


@dataclass(frozen=True)
class Row:
    """One model; sizes in bytes, times in ms and s. ``disagree`` names peers that compute something else."""

    model: str
    precision: str
    edgec_ms: float
    peers_ms: dict[str, float]
    ratio: float
    relative_error: float
    disagree: tuple[str, ...]
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


def precision_of(path: Path) -> str:
    """``int8`` for a quantised model, else ``fp32``."""
    nodes = onnx.load(path, load_external_data=False).graph.node
    return "int8" if any(node.op_type == "QuantizeLinear" for node in nodes) else "fp32"


def able(path: Path, peers: Sequence[str], files: Mapping[str, Path]) -> list[str]:
    """The peers that load the model; why the others do not is printed on stderr."""
    found = []
    for peer in peers:
        try:
            open_peer(peer, files.get(peer, path), shapes=pinned(path))
        except EdgecError as error:
            print(error, file=sys.stderr)
        else:
            found.append(peer)
    return found


def measure(
    path: Path,
    peers: Sequence[str],
    rounds: int,
    folder: Path,
    *,
    name: str | None = None,
    files: Mapping[str, Path] | None = None,
    inputs: Path | None = None,
    threads: int = 1,
    **options: Any,
) -> Row:
    """Compile one model and time it beside its peers.

    Args:
        path: the ONNX file.
        peers: what to compare with; those that cannot load the model are left out.
        rounds: turns of each contender.
        folder: for the artifact.
        name: of the row; the model's folder by default.
        files: other files by peer.
        inputs: an ``.npz`` whose first sample is used instead of random values.
        threads: of every contender.
        options: of :func:`edgec.compile`.
    """
    start, precision = time.perf_counter(), precision_of(path)
    compiled = edgec.compile(path, "host", folder / f"{path.stem}.so", shapes=pinned(path), **options)
    seconds = time.perf_counter() - start
    chosen = [peer for peer in peers if precision == "fp32" or peer not in FLOAT_ONLY]
    there = able(path, chosen, files or {})
    named = {peer: file for peer, file in (files or {}).items() if peer in there}
    found = bench(
        compiled.path, against=there, model=path, peer_models=named, inputs=inputs, rounds=rounds, threads=threads
    )
    own, *others = found.timings
    facts = compiled.manifest
    return Row(
        name or path.parent.name,
        precision,
        own.min_ms,
        {other.name: other.min_ms for other in others},
        found.ratio or float("nan"),
        max((other.relative_error for other in others if other.agrees), default=float("nan")),
        tuple(other.name for other in others if not other.agrees),
        facts["arena_bytes"],
        facts["arena_lower_bound"],
        facts["weights_bytes"],
        compiled.report.artifact_bytes,
        seconds,
    )


def table(rows: Sequence[Row], peers: Sequence[str]) -> str:
    """The rows as Markdown; the fastest peer is bold."""
    head = ["model", "", "edgec ms", *(f"{peer} ms" for peer in peers), "ratio", "worst error", "arena / bound"]
    head += ["weights kB", "artifact kB", "compile s"]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for row in rows:
        cells = [row.model, row.precision, f"{row.edgec_ms:.3f}", *(_cell(row, peer) for peer in peers)]
        cells += [f"{row.ratio:.2f}", f"{row.relative_error:.1e}"]
        cells += [f"{row.arena_bytes / max(1, row.arena_lower_bound):.2f}", f"{row.weights_bytes / 1000:.0f}"]
        cells += [f"{row.artifact_bytes / 1000:.0f}", f"{row.compile_s:.1f}"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(row: Row, peer: str) -> str:
    if peer not in row.peers_ms:
        return "–"
    text = f"{row.peers_ms[peer]:.3f}" + (" *" if peer in row.disagree else "")
    return f"**{text}**" if row.peers_ms[peer] == min(row.peers_ms.values()) else text


def main(
    models: Annotated[list[Path], typer.Argument(help="ONNX files")],
    against: Annotated[str, typer.Option(help="peers, separated by commas")] = "onnxruntime",
    tflite: Annotated[list[str] | None, typer.Option(help="LiteRT's file of each model in turn; - for none")] = None,
    rounds: Annotated[int, typer.Option(help="turns of each contender")] = 20,
    threads: Annotated[int, typer.Option(help="of every contender")] = 1,
    tune: Annotated[float | None, typer.Option(help="minutes to tune each model")] = None,
    tune_db: Annotated[Path | None, typer.Option(help="tuning records")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
) -> None:
    """Compile MODELS and print the comparison."""
    peers = against.split(",")
    given = [None if file == "-" else Path(file) for file in tflite or ()]
    files = [{"litert": file} if file else {} for file in given] + [{}] * (len(models) - len(given))
    with tempfile.TemporaryDirectory() as folder:
        rows = [
            measure(path, peers, rounds, Path(folder), files=own, threads=threads, tune=tune, tune_db=tune_db)
            for path, own in zip(models, files, strict=True)
        ]
    typer.echo(json.dumps([asdict(row) for row in rows], indent=1) if as_json else table(rows, peers))


if __name__ == "__main__":
    typer.run(main)
