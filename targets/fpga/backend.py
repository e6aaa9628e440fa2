"""From a graph to an FPGA project: network → foldings → dataflow → files."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from edgec import reference
from edgec.lowering import lower
from edgec.planning import fusion
from edgec.report import Report, told
from edgec.targets.fpga.artifact import write_project
from edgec.targets.fpga.board import Board
from edgec.targets.fpga.design import Design, solve
from edgec.targets.fpga.layers import Array
from edgec.targets.fpga.network import Network, Port, read_network
from edgec.targets.fpga.project import Project, Vector, streamed

if TYPE_CHECKING:
    from edgec.passes.base import PassReport
    from edgec.program import Program

VECTORS = 2
"""Frames that the test bench carries."""


@dataclass(frozen=True)
class ProjectReport(Report):
    """The story of a compilation into an FPGA project."""

    def __str__(self) -> str:
        facts = self.manifest
        used = ", ".join(f"{used:,} of {facts['budget'][name]:,} {name}" for name, used in facts["resources"].items())
        lines = told(self.passes)
        lines += [
            f"estimated for {facts['part']} at {facts['clock_mhz']} MHz: {facts['frames_per_second']:,.0f} frames/s, "
            f"one every {facts['interval']:,} cycles",
            f"estimated resources: {used}",
            "time: " + ", ".join(f"{stage} {value:.2f} s" for stage, value in self.seconds.items()),
        ]
        return "\n".join(lines)


@dataclass(frozen=True)
class Written:
    """A project on disk: its manifest, the ONNX node of every layer, and its size in bytes."""

    manifest: dict[str, Any]
    nodes: tuple[tuple[str, ...], ...]
    nbytes: int

    def report(self, passes: tuple[PassReport, ...], seconds: dict[str, float]) -> ProjectReport:
        """The story of the compilation."""
        return ProjectReport(self.manifest, passes, self.nodes, self.nbytes, seconds)


def compile_project(
    graph: ir.Model, name: str, board: Board, path: Path, fps: float | None, facts: dict[str, Any],
    tell: Callable[[str, int, int], None],
) -> Written:  # fmt: skip
    """Write the project of a graph that has been through every pass.

    Args:
        graph: the integer graph.
        name: of the model.
        board: what to build for.
        path: the project's folder.
        fps: frames a second to reach with as little as possible; None for as many as fit.
        facts: of the model, for the manifest.
        tell: told (what, done, total).

    Raises:
        EdgecError: the model is not quantised, does not fit, or cannot be as fast as asked.
    """
    network = read_network(graph, name)
    tell("folding", 0, 1)
    design = solve(network, board, fps)
    tell("reference", 0, 1)
    project = Project(network, board, design.foldings, design.flow, _vectors(graph, network), {})
    project = replace(project, manifest=manifest_of(project, design, facts))
    files = project.files()
    write_project(path, files)
    nodes = tuple((layer.node,) for layer in network.layers)
    return Written(project.manifest, nodes, sum(map(len, files.values())))


def _vectors(graph: ir.Model, network: Network) -> list[Vector]:
    """Random frames and the reference's answers."""
    program = lower(whole_graph(graph, network))
    fusion.fuse(program)
    generator = np.random.default_rng(0)
    return [_vector(program, network, generator) for _ in range(VECTORS)]


def whole_graph(graph: ir.Model, network: Network) -> ir.Model:
    """A copy of ``graph`` that ends where the host goes on: with the numbers that streamed bytes stand for."""
    copy = graph.clone()
    for index, (value, port) in enumerate(zip(copy.graph.outputs, network.outputs, strict=True)):
        if port.softmax:
            copy.graph.outputs[index] = value.producer().inputs[0]  # type: ignore[union-attr,assignment]
    return copy


def _vector(program: Program, network: Network, generator: np.random.Generator) -> Vector:
    inputs = {port.name: generator.integers(-128, 128, port.shape).astype(np.int8) for port in network.inputs}
    answers = reference.run(program, {port.name: _real(port, inputs[port.name]) for port in network.inputs})
    outputs = [as_bytes(port, answer) for port, answer in zip(network.outputs, answers.values(), strict=True)]
    given = [streamed(inputs[port.name], port.shape) for port in network.inputs]
    return Vector(np.concatenate(given).tolist(), np.concatenate(outputs).tolist())


def _real(port: Port, whole: Array) -> Array:
    """Numbers that quantise to ``whole``."""
    return whole if not port.scale else ((whole.astype(np.float64) - port.zero) * port.scale).astype(np.float32)


def as_bytes(port: Port, real: Array) -> Array:
    """The int8 that stream where the host reads ``real``."""
    if port.factors:
        # exact for sums of up to 24 bits, which are float32 numbers
        sums = np.rint(streamed(real, port.shape).astype(np.float64) / np.tile(port.factors, port.feature.pixels))
        return sums.astype("<i4").view(np.int8)
    if not port.scale:
        return streamed(real, port.shape)
    return streamed((np.rint(real.astype(np.float64) / port.scale) + port.zero).astype(np.int8), port.shape)


def manifest_of(project: Project, design: Design, facts: dict[str, Any]) -> dict[str, Any]:
    """What the project says of itself; the resources are estimates."""
    board, network, flow = project.board, project.network, project.flow
    budget = {name: there for name, there in board.budget.as_dict().items() if there}  # no UltraRAM on most
    return {
        "edgec": metadata.version("edgec"),
        "name": network.name,
        "top": project.top,
        "target": board.name,
        "triple": board.part,
        "part": board.part,
        "clock_mhz": board.clock_mhz,
        "inputs": list(map(port_entry, network.inputs)),
        "outputs": list(map(port_entry, network.outputs)),
        "macs": network.macs,
        "interval": flow.interval,
        "frames_per_second": board.frames(flow.interval),
        "resources": {name: used for name, used in design.estimate.total.as_dict().items() if name in budget},
        "budget": budget,
        "ddr_bytes_per_frame": design.estimate.ddr_bytes,
        "layers": [asdict(layer) for layer in design.estimate.layers],
        **facts,
    }


def port_entry(port: Port) -> dict[str, Any]:
    """An input or output as the manifest lists it."""
    return {
        "name": port.name, "shape": list(port.shape), "dtype": port.dtype, "scale": port.scale, "zero": port.zero,
        "factors": list(port.factors), "softmax": port.softmax,
    }  # fmt: skip
