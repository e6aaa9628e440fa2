"""One table: what the graph passes do to models, and what that is worth.

    python samples/passes.py MODEL.onnx [MODEL.onnx ...]

Nodes, parameters and MACs of the graph as it was trained and as it is compiled, and the latency (minimum of
interleaved rounds on this machine, one thread) of two artifacts: one of the simplified graph, one of all passes.
Both have the same kernels and the same fusion in the program.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Annotated

import typer
from compare import pinned

import edgec
from edgec.benchmark import random_inputs
from edgec.data.samples import specs
from edgec.frontend.summary import summarise
from edgec.graph import load_graph
from edgec.passes.pipeline import run
from edgec.runtimes.python.session import Session

CALLS = 20
"""Calls per turn; the fastest counts."""


def interleaved(artifacts: list[Path], inputs: list[dict[str, object]], rounds: int) -> list[float]:
    """The fastest call of each artifact, in ms."""
    sessions = [Session(path) for path in artifacts]
    for session in sessions:
        session.bind(random_inputs(specs(inputs)))
    best = [float("inf")] * len(sessions)
    for _ in range(rounds):
        for index, session in enumerate(sessions):
            for _ in range(CALLS):
                start = time.perf_counter()
                session.invoke()
                best[index] = min(best[index], 1e3 * (time.perf_counter() - start))
    return best


def row(path: Path, rounds: int, folder: Path) -> str:
    """One model's line of the table."""
    graph = load_graph(path, shapes=pinned(path))
    before = summarise(graph)
    run(graph)
    after = summarise(graph)
    plain = edgec.compile(path, "host", folder / "plain.so", shapes=pinned(path), passes=["simplify"])
    folded = edgec.compile(path, "host", folder / "folded.so", shapes=pinned(path))
    times = interleaved([plain.path, folded.path], folded.manifest["inputs"], rounds)
    cells = [
        path.stem,
        f"{before.nodes} → {after.nodes}",
        f"{before.parameters:,} → {after.parameters:,}",
        f"{before.macs / 1e6:.2f} → {after.macs / 1e6:.2f}",
        f"{times[0]:.3f} → {times[1]:.3f}",
    ]
    return "| " + " | ".join(cells) + " |"


def main(
    models: Annotated[list[Path], typer.Argument(help="ONNX files")],
    rounds: Annotated[int, typer.Option(help="turns of each artifact")] = 10,
) -> None:
    """Run the passes over MODELS and print the table."""
    typer.echo("| model | nodes | parameters | M MACs | ms |\n|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for path in models:
            typer.echo(row(path, rounds, Path(folder)))


if __name__ == "__main__":
    typer.run(main)
