"""Latency against MACs, and compile time against distinct layers: plots of MobileNet v2 over widths and resolutions.

    python -m samples.benchmarks.sweep [--folder OUT] [--threads N] [--rounds N]

The networks have MobileNet v2's layers with random weights. Latency is that of widths 0.35 to 1.4 and inputs of 96² to
224²: the minimum of rounds in which every network has its turn; on one thread the time that it had a processor, which
holds on a busy machine, too. Compile time, in seconds of a processor, is that of its first 1 to 7 stages with no kernel
in the cache, the least of three. A straight line is fitted to each plot, and its R² printed.
Needs matplotlib: pip install 'edgec[dev]'.
"""

from __future__ import annotations

import math
import os
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Annotated

import numpy as np
import onnx
import typer
from onnx import TensorProto, helper, numpy_helper

import edgec
from edgec.benchmark import random_inputs
from edgec.building.kernel_cache import SWITCH
from edgec.devices.device import specs_of
from edgec.runtimes.python.session import Session

WIDTHS = (0.35, 0.5, 0.75, 1.0, 1.4)
SIZES = (96, 128, 160, 192, 224)
BLOCKS = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
"""Expansion, channels, repeats and stride of each stage (Sandler et al., MobileNetV2, 2018, table 2)."""


@dataclass(frozen=True)
class Point:
    """One network: its stages, multiply-adds, distinct kernels, seconds to compile, and ms of an inference."""

    width: float
    size: int
    stages: int
    macs: int
    kernels: int
    compile_s: float
    ms: float = float("inf")


class Network:
    """MobileNet v2 under construction."""

    def __init__(self, width: float) -> None:
        self.width, self.nodes, self.weights = width, list[onnx.NodeProto](), list[onnx.TensorProto]()
        self._generator = np.random.default_rng(0)

    def channels(self, count: int) -> int:
        """``count`` channels at this width, a multiple of 8."""
        return max(8, int(count * self.width + 4) // 8 * 8)

    def conv(self, source: str, inputs: int, outputs: int, kernel: int, stride: int = 1, *, group: int = 1,
             active: bool = True) -> str:  # fmt: skip
        """A convolution, with ReLU6 where it is active."""
        name = f"c{len(self.nodes)}"
        shape = (outputs, inputs // group, kernel, kernel)
        values = self._generator.standard_normal(shape, np.float32) / math.sqrt(inputs // group * kernel * kernel)
        self.weights.append(numpy_helper.from_array(values, f"{name}_w"))
        pads = [kernel // 2] * 4
        attributes = {"kernel_shape": [kernel] * 2, "strides": [stride] * 2, "pads": pads, "group": group}
        self.nodes.append(helper.make_node("Conv", [source, f"{name}_w"], [name], **attributes))
        if not active:
            return name
        self.nodes.append(helper.make_node("Clip", [name, "low", "high"], [f"{name}_a"]))
        return f"{name}_a"

    def block(self, source: str, inputs: int, outputs: int, expansion: int, stride: int) -> str:
        """An inverted residual."""
        wide = inputs * expansion
        value = self.conv(source, inputs, wide, 1) if expansion > 1 else source
        value = self.conv(value, wide, wide, 3, stride, group=wide)
        value = self.conv(value, wide, outputs, 1, active=False)
        if stride > 1 or inputs != outputs:
            return value
        self.nodes.append(helper.make_node("Add", [source, value], [f"{value}_s"]))
        return f"{value}_s"

    def model(self, size: int, stages: int) -> onnx.ModelProto:
        """The network of the first ``stages`` for images of ``size`` × ``size``."""
        channels = self.channels(32)
        value = self.conv("x", 3, channels, 3, 2)
        for expansion, count, repeats, stride in BLOCKS[:stages]:
            for index in range(repeats):
                outputs = self.channels(count)
                value = self.block(value, channels, outputs, expansion, stride if index == 0 else 1)
                channels = outputs
        features = self.channels(1280) if self.width > 1 else 1280
        value = self.conv(value, channels, features, 1)
        self.nodes.append(helper.make_node("GlobalAveragePool", [value], ["y"]))
        bounds = [numpy_helper.from_array(np.float32(v), n) for n, v in (("low", 0), ("high", 6))]
        graph = helper.make_graph(
            self.nodes,
            "mobilenet_v2",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, (1, 3, size, size))],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, (1, features, 1, 1))],
            [*self.weights, *bounds],
        )
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)


def compiled(folder: Path, width: float, size: int, stages: int = len(BLOCKS)) -> tuple[Point, Path]:
    """One network, compiled for this machine."""
    path, model = folder / f"{width}_{size}_{stages}.so", Network(width).model(size, stages)
    start = os.times()
    made = edgec.compile(model, "host", path)
    seconds = sum(os.times()[:4]) - sum(start[:4])
    steps = made.manifest["steps"]
    return Point(
        width, size, stages, sum(step["macs"] for step in steps), len({step["kernel"] for step in steps}), seconds
    ), made.path


def compiled_anew(folder: Path, stages: int) -> Point:
    """The smallest network's first ``stages``, compiled without the cache of kernels; the least of three times."""
    os.environ[SWITCH] = "off"
    points = [compiled(folder, 1.0, SIZES[0], stages)[0] for _ in range(3)]
    return min(points, key=lambda point: point.compile_s)


def timed(points: Sequence[tuple[Point, Path]], rounds: int, threads: int) -> list[Point]:
    """The points with their latency."""
    sessions = [Session(path, threads) for _, path in points]
    for session in sessions:
        session.bind(random_inputs(specs_of(session.inputs)))
    best = [float("inf")] * len(points)
    clock = time.thread_time if threads == 1 else time.perf_counter
    for _ in range(rounds):
        for index, session in enumerate(sessions):
            for _ in range(5):
                start = clock()
                session.invoke()
                best[index] = min(best[index], 1e3 * (clock() - start))
    return [Point(**{**vars(point), "ms": ms}) for (point, _), ms in zip(points, best, strict=True)]


def fit(x: Sequence[float], y: Sequence[float]) -> tuple[float, float, float]:
    """Slope, intercept and R² of the straight line through the points."""
    slope, intercept = np.polyfit(x, y, 1)
    residual = np.asarray(y) - (slope * np.asarray(x) + intercept)
    return float(slope), float(intercept), float(1 - residual.var() / np.var(y))


def plot(x: Sequence[float], y: Sequence[float], labels: tuple[str, str], path: Path) -> float:
    """Write the points and the fitted line as SVG; answers with R²."""
    from matplotlib.figure import Figure

    slope, intercept, quality = fit(x, y)
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    axes.scatter(x, y, s=16)
    ends = np.array([0, max(x)])
    axes.plot(ends, slope * ends + intercept, linewidth=1, color="grey", label=f"R² = {quality:.3f}")
    axes.set(xlabel=labels[0], ylabel=labels[1], xlim=(0, None), ylim=(0, None))
    axes.legend()
    figure.savefig(path, metadata={"Date": None})
    return quality


def main(
    folder: Annotated[Path, typer.Option(help="where the plots go")] = Path("build/sweep"),
    rounds: Annotated[int, typer.Option(help="turns of each network")] = 40,
    threads: Annotated[int, typer.Option(help="of each network")] = 1,
) -> None:
    """Compile and time the networks, and plot."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as name:
        made = [compiled(Path(name), width, size) for width, size in product(WIDTHS, SIZES)]
        points = timed(made, rounds, threads)
        depths = [compiled_anew(Path(name), stages) for stages in range(1, len(BLOCKS) + 1)]
    latency = plot(
        [p.macs / 1e6 for p in points], [p.ms for p in points],
        ("million multiply-adds", f"ms, {threads} thread{'s' * (threads > 1)}"), folder / "latency.svg",
    )  # fmt: skip
    seconds = plot(
        [p.kernels for p in depths], [p.compile_s for p in depths],
        ("distinct kernels", "s to compile"), folder / "compile_time.svg",
    )  # fmt: skip
    for p in (*points, *depths):
        typer.echo(
            f"width {p.width} size {p.size} stages {p.stages}: {p.macs / 1e6:.1f} M MACs, {p.ms:.3f} ms, "
            f"{p.kernels} kernels, {p.compile_s:.2f} s"
        )
    typer.echo(f"R²: latency {latency:.4f}, compile time {seconds:.4f}; plots in {folder}")


if __name__ == "__main__":
    typer.run(main)
