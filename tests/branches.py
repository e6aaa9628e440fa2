"""Networks of multi-branch blocks with random weights: ``python -m tests.branches FOLDER`` writes two as ONNX files.

``mobileone_s0.onnx`` has the widths and depths of MobileOne-S0, ``repmixer.onnx`` RepMixer blocks in the four stages
of a small FastViT; ``python samples/passes.py`` shows what the passes make of them.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx

from tests.folding import batch_norm, norm
from tests.graphs import build, node


class Block:
    """Nodes and constants of a network under construction; ``value`` is its last value, of ``channels``."""

    def __init__(self, channels: int) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, np.ndarray] = {}
        self.value, self.channels = "x", channels

    def add(self, operator: str, inputs: Sequence[str], **attributes: object) -> str:
        name = f"v{len(self.nodes)}"
        self.nodes.append(node(operator, inputs, [name], name=f"n{len(self.nodes)}", **attributes))
        return name

    def constant(self, *shape: int) -> str:
        rng = np.random.default_rng(len(self.constants))
        return self.keep((rng.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))).astype(np.float32))

    def keep(self, array: np.ndarray) -> str:
        """The name of a new constant."""
        name = f"c{len(self.constants)}"
        self.constants[name] = np.asarray(array)
        return name

    def norm(self, source: str, channels: int) -> str:
        prefix = f"bn{len(self.nodes)}"
        self.constants |= norm(channels, prefix, seed=len(self.nodes))
        self.nodes.append(batch_norm(source, prefix, prefix))
        return prefix

    def conv(self, source: str, channels: int, kernel: Sequence[int], **attributes: object) -> str:
        """Convolution, without a bias, and batch norm."""
        group = int(str(attributes.get("group", 1)))
        weight = self.constant(channels, self.channels // group, *kernel)
        return self.norm(self.add("Conv", [source, weight], **attributes), channels)

    def repvgg(self, channels: int, stride: int, group: int = 1) -> None:
        """RepVGG (arXiv 2101.03697): 3×3, 1×1 and, where it fits, identity."""
        source, shared = self.value, {"strides": [stride] * 2, "group": group}
        total = self.add(
            "Add",
            [
                self.conv(source, channels, (3, 3), pads=[1] * 4, **shared),
                self.conv(source, channels, (1, 1), **shared),
            ],
        )
        if stride == 1 and channels == self.channels:
            total = self.add("Add", [total, self.norm(source, channels)])
        self.value, self.channels = self.add("Relu", [total]), channels

    def mobileone(self, channels: int, stride: int) -> None:
        """MobileOne (arXiv 2206.04040): four depthwise 3×3 + 1×1 + identity, then four pointwise + identity."""
        source, group = self.value, self.channels
        shared = {"strides": [stride] * 2, "group": group}
        branches = [self.conv(source, group, (3, 3), pads=[1] * 4, **shared) for _ in range(4)]
        branches.append(self.conv(source, group, (1, 1), **shared))
        if stride == 1:
            branches.append(self.norm(source, group))
        self.value = self.add("Relu", [self.add("Sum", branches)])
        branches = [self.conv(self.value, channels, (1, 1)) for _ in range(4)]
        if channels == group:
            branches.append(self.norm(self.value, channels))
        self.value, self.channels = self.add("Relu", [self.add("Sum", branches)]), channels

    def repmixer(self) -> None:
        """RepMixer (FastViT, arXiv 2303.14189): x + scale·(mixer(x) − norm(x)), the mixer a MobileOne block."""
        source, channels = self.value, self.channels
        shared = {"group": channels}
        mixed = self.add(
            "Add",
            [
                self.add(
                    "Add",
                    [
                        self.conv(source, channels, (7, 7), pads=[3] * 4, **shared),
                        self.conv(source, channels, (1, 1), **shared),
                    ],
                ),
                self.norm(source, channels),
            ],
        )
        difference = self.add("Sub", [mixed, self.norm(source, channels)])
        scaled = self.add("Mul", [self.constant(channels, 1, 1), difference])
        self.value = self.add("Relu", [self.add("Add", [source, scaled])])

    def acnet(self, channels: int) -> None:
        """ACNet (arXiv 1908.03930): 3×3 + 1×3 + 3×1, each with its norm."""
        branches = [
            self.conv(self.value, channels, kernel, pads=[(size - 1) // 2 for size in kernel] * 2)
            for kernel in ((1, 3), (3, 3), (3, 1))
        ]
        self.value = self.add("Relu", [self.add("Add", [self.add("Add", branches[:2]), branches[2]])])
        self.channels = channels

    def diverse(self, channels: int) -> None:
        """DBB (arXiv 2103.13425): 3×3 + 1×1 + 1×1→3×3 + 1×1→average, with the padding before the 1×1."""
        source = self.value
        sequence = self.conv(source, channels, (1, 1), pads=[1] * 4)
        averaged = self.conv(source, channels, (1, 1), pads=[1] * 4)
        pool = self.add("AveragePool", [averaged], kernel_shape=[3, 3])
        inner, self.channels = self.channels, channels
        last = self.conv(sequence, channels, (3, 3))
        self.channels = inner
        branches = [
            self.conv(source, channels, (3, 3), pads=[1] * 4),
            self.conv(source, channels, (1, 1)),
            last,
            self.norm(pool, channels),
        ]
        self.value = self.add("Relu", [self.add("Sum", branches)])
        self.channels = channels

    def bordered(self, channels: int, height: int, width: int) -> None:
        """DBB as its code exports it: 3×3 + 1×1→norm→border→3×3 + 1×1→norm→border→average.

        The border holds what the norm makes of zeros, in float32 as training code has it, and is written side by side.
        """
        source, inner = self.value, self.channels
        sequence, averaged = (self._with_border(self.conv(source, channels, (1, 1)), height, width) for _ in range(2))
        self.channels = channels
        last = self.conv(sequence, channels, (3, 3))
        self.channels = inner
        pool = self.norm(self.add("AveragePool", [averaged], kernel_shape=[3, 3]), channels)
        branches = [self.conv(source, channels, (3, 3), pads=[1] * 4), last, pool]
        self.value = self.add("Relu", [self.add("Sum", branches)])
        self.channels = channels

    def _with_border(self, normed: str, height: int, width: int) -> str:
        """``normed`` (1, C, height, width), the output of a norm, in a border of the norm's value of 0."""
        norm = next(each for each in self.nodes if each.output[0] == normed)
        scale, bias, mean, variance = (self.constants[name] for name in norm.input[1:])
        border = bias - mean * scale / np.sqrt(variance + np.float32(1e-5))
        value = self.add("Pad", [normed, self.keep(np.array([0, 0, 1, 1, 0, 0, 1, 1]))])
        for rows, columns in (([0], None), ([height + 1], None), (None, [0]), (None, [width + 1])):
            rows, columns = rows or range(height + 2), columns or range(width + 2)
            indices = np.stack(np.meshgrid([0], range(border.size), rows, columns, indexing="ij"), axis=-1)
            updates = np.broadcast_to(border.reshape(1, -1, 1, 1), indices.shape[:-1])
            value = self.add("ScatterND", [value, self.keep(indices), self.keep(updates)])
        return value

    def model(self, shape: Sequence[int]) -> onnx.ModelProto:
        """The network on an input ``x`` of ``shape``."""
        return build(self.nodes, {"x": shape}, [self.value], self.constants)


def mobileone_s0(side: int = 224) -> onnx.ModelProto:
    """MobileOne-S0 without its classifier, on square images of ``side`` pixels; each stage halves them."""
    network = Block(3)
    for blocks, channels in [(1, 48), (2, 48), (8, 128), (10, 256), (1, 1024)]:
        for index in range(blocks):
            network.mobileone(channels, 2 if index == 0 else 1)
    return network.model((1, 3, side, side))


def repmixers(side: int = 256) -> onnx.ModelProto:
    """RepMixer blocks in four stages, a MobileOne block of stride 2 before each, on images of ``side`` pixels."""
    network = Block(3)
    network.mobileone(24, 2)
    for blocks, channels in [(2, 48), (2, 96), (4, 192), (2, 384)]:
        network.mobileone(channels, 2)
        for _ in range(blocks):
            network.repmixer()
    return network.model((1, 3, side, side))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path, help="where the files are written")
    folder = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    for name, model in {"mobileone_s0": mobileone_s0(), "repmixer": repmixers()}.items():
        onnx.save(model, folder / f"{name}.onnx")


if __name__ == "__main__":
    main()
