"""What models take of a microcontroller: flash, RAM and instructions, as 8-bit integers with integer inputs.

    python -m samples.microcontrollers [MODEL ...] [--shared FOLDER] [--count]

The four models of MLPerf Tiny lie beside the project, calibrated as in ``samples.accuracy``. ``mbv2-w0.35`` is the
MobileNet v2 of width 0.35 for 144 × 144 pixels and 1,000 classes that TinyEngine's README measures (23.5 M
multiplications, 0.75 M parameters), with random weights: memory does not depend on them. RAM is the arena, inputs and
outputs; flash is code, weights and what they need of the C library.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import numpy as np
import onnx
import typer
from onnx import TensorProto, helper, numpy_helper

import edgec
from edgec.calibration import Source
from tests.shared_models import AUTOENCODER, KWS, RESNET8, VWW

TINY = {model.name: model for model in (RESNET8, VWW, KWS, AUTOENCODER)}
MOBILENET = "mbv2-w0.35"
WIDTH, PIXELS, CLASSES = 0.35, 144, 1000
BLOCKS = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
"""Expansion, channels, repetitions and stride of each stage (Sandler et al., MobileNetV2, table 2)."""
SHARED = Path(os.environ.get("EDGEC_SHARED", "../shared"))


class Network:
    """A chain of convolutions under construction, each with a random weight and ReLU6 where it has an activation."""

    def __init__(self) -> None:
        self.generator = np.random.default_rng(0)
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []

    def convolution(self, x: str, shape: tuple[int, ...], stride: int = 1, group: int = 1, clip: bool = True) -> str:
        """The output of a convolution with weights of ``shape`` [co, ci/groups, k, k]."""
        name = f"c{len(self.nodes)}"
        deviation = np.sqrt(2 / np.prod(shape[1:]))
        weight = (self.generator.standard_normal(shape) * deviation).astype(np.float32)
        self.weights.append(numpy_helper.from_array(weight, f"{name}_w"))
        pads = [shape[2] // 2] * 4
        strides = [stride, stride]
        node = helper.make_node("Conv", [x, f"{name}_w"], [name], name=name, pads=pads, strides=strides, group=group)
        return self.add(node, clip)

    def add(self, node: onnx.NodeProto, clip: bool = False) -> str:
        """The output of ``node``, or of a Clip to 0 and 6 behind it."""
        self.nodes.append(node)
        name = str(node.output[0])
        return self.add(helper.make_node("Clip", [name, "low", "high"], [f"{name}_6"])) if clip else name


def rounded(channels: float) -> int:
    """As MobileNet rounds scaled channels: to multiples of 8, never by more than a tenth down."""
    nearest = max(8, int(channels + 4) // 8 * 8)
    return nearest + 8 if nearest < 0.9 * channels else nearest


def mobilenet() -> onnx.ModelProto:
    """The network of :data:`MOBILENET`: ``input`` float32 [1, 3, 144, 144], ``output`` [1, 1000]."""
    network, channels = Network(), rounded(32 * WIDTH)
    value = network.convolution("input", (channels, 3, 3, 3), 2)
    for expansion, width, repetitions, stride in BLOCKS:
        for repetition in range(repetitions):
            before, source, inner = channels, value, channels * expansion
            channels, step = rounded(width * WIDTH), stride if repetition == 0 else 1
            value = network.convolution(value, (inner, before, 1, 1)) if expansion > 1 else value
            value = network.convolution(value, (inner, 1, 3, 3), step, inner)
            value = network.convolution(value, (channels, inner, 1, 1), clip=False)
            if step == 1 and before == channels:
                value = network.add(helper.make_node("Add", [source, value], [f"{value}_sum"]))
    head = rounded(1280 * WIDTH)
    value = network.convolution(value, (head, channels, 1, 1))
    value = network.add(helper.make_node("GlobalAveragePool", [value], ["pooled"]))
    value = network.convolution(value, (CLASSES, head, 1, 1), clip=False)
    network.add(helper.make_node("Flatten", [value], ["output"]))
    bounds = [numpy_helper.from_array(np.array(end, np.float32), name) for name, end in (("low", 0), ("high", 6))]
    graph = helper.make_graph(
        network.nodes, MOBILENET,
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, (1, 3, PIXELS, PIXELS))],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, (1, CLASSES))], [*network.weights, *bounds],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def models(names: list[str], shared: Path) -> Iterator[tuple[str, Path | onnx.ModelProto, Source]]:
    """Name, model and calibration samples of each."""
    for name in names or [*TINY, MOBILENET]:
        if name == MOBILENET:
            values = np.random.default_rng(1).standard_normal((2, 1, 3, PIXELS, PIXELS)).astype(np.float32)
            yield name, mobilenet(), [{"input": value} for value in values]
        else:
            yield name, TINY[name].onnx(shared), TINY[name].calibration_samples(shared)


def main(
    names: Annotated[list[str] | None, typer.Argument(metavar="[MODEL]...")] = None,
    shared: Annotated[Path, typer.Option(help="The folder of models and data.")] = SHARED,
    count: Annotated[bool, typer.Option("--count", help="Count instructions, too, in the emulator.")] = False,
) -> None:
    """Print a table."""
    from edgec.data.samples import in_integers, specs
    from edgec.devices.counting import count_instructions
    from edgec.devices.device import QemuDevice

    print("| model | core | flash, bytes | of it code | RAM, bytes | M instructions |\n|---|---|---|---|---|---|")
    for name, model, samples in models(names or [], shared):
        with tempfile.TemporaryDirectory() as folder:
            host = Path(folder, "model.so")
            (first, *_) = samples
            shapes = {key: value.shape for key, value in first.items()}
            edgec.compile(model, "host", host, shapes=shapes, quantize="int8", calib=samples)
            for core in ("cortex-m4", "cortex-m7", "cortex-m55"):
                twin = host.with_name("model.so.quantised.onnx")
                made = edgec.compile(twin, core, Path(folder, "model.o"), integer_io=True)
                values = in_integers(specs(made.manifest["inputs"]), first)
                taken = count_instructions(made.path, values, QemuDevice()).instructions / 1e6 if count else None
                flash, code, ram = (made.manifest[f"{what}_bytes"] for what in ("flash", "code", "ram"))
                print(f"| {name} | {core} | {flash:,} | {code:,} | {ram:,} | {f'{taken:.2f}' if taken else '–'} |")


if __name__ == "__main__":
    typer.run(main)
