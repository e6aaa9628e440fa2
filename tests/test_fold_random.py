"""All passes on random graphs of linear operators: valid, exact, and nothing left to do the second time."""

from __future__ import annotations

import random

import numpy as np
import onnx
import pytest

from edgec.passes.pipeline import run as run_passes
from tests.folding import batch_norm, norm
from tests.graphs import assert_same, build, load, node

SHAPE = (1, 4, 6, 5)
Shape = tuple[int, ...]


class RandomGraph:
    """Operators put one behind the other, or beside each other on earlier values of fitting shapes."""

    def __init__(self, seed: int) -> None:
        self.choose = random.Random(seed)
        self.numbers = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, np.ndarray] = {}
        self.values: list[tuple[str, Shape]] = [("x", SHAPE)]
        steps = [self.conv, self.norm, self.scale, self.activate, self.turn, self.add, self.add, self.resize]
        steps += [self.concatenate, self.average, self.product, self.layer_norm, self.pad, self.conv]
        while len(self.nodes) < 9:
            earlier = self.values[-1] if self.choose.random() < 0.7 else self.choose.choice(self.values)
            self.choose.choice(steps)(*earlier)

    def emit(self, operator: str, inputs: list[str], shape: Shape, **attributes: object) -> None:
        name = f"v{len(self.nodes)}"
        self.nodes.append(node(operator, inputs, [name], name=name, **attributes))
        self.values.append((name, shape))

    def constant(self, *shape: int) -> str:
        """Random values that keep the size of what they are multiplied with."""
        name = f"c{len(self.constants)}"
        scale = max(1.0, float(np.sqrt(np.prod(shape[1:]))))
        self.constants[name] = (self.numbers.standard_normal(shape) / scale).astype(np.float32)
        return name

    def numbers_of(self, *values: int) -> str:
        name = f"c{len(self.constants)}"
        self.constants[name] = np.array(values)
        return name

    def conv(self, value: str, shape: Shape) -> None:
        outputs, kernel = self.choose.choice([shape[1], 4, 6]), self.choose.choice([1, 1, 3])
        pad = self.choose.choice([0, kernel // 2])
        extents = tuple(extent + 2 * pad - kernel + 1 for extent in shape[2:])
        group = self.choose.choice([1, 1, shape[1] if outputs % shape[1] == 0 else 1])
        weight = self.constant(outputs, shape[1] // group, kernel, kernel)
        bias = [self.constant(outputs)] if self.choose.random() < 0.5 else []
        if min(extents) > 0:
            self.emit("Conv", [value, weight, *bias], (1, outputs, *extents), pads=[pad] * 4, group=group)

    def norm(self, value: str, shape: Shape) -> None:
        prefix = f"v{len(self.nodes)}"
        self.constants |= norm(shape[1], prefix, seed=len(self.nodes))
        self.nodes.append(batch_norm(value, prefix, prefix))
        self.values.append((prefix, shape))

    def scale(self, value: str, shape: Shape) -> None:
        constant = self.constant(*self.choose.choice([(shape[1], 1, 1), (1,), shape[3:], (1, 1, shape[2], 1)]))
        self.emit(self.choose.choice(["Add", "Sub", "Mul"]), [constant, value], shape)

    def activate(self, value: str, shape: Shape) -> None:
        self.emit(self.choose.choice(["Relu", "Sigmoid", "Neg"]), [value], shape)

    def turn(self, value: str, shape: Shape) -> None:
        perm = self.choose.choice([[0, 2, 3, 1], [0, 3, 1, 2], [0, 1, 3, 2]])
        self.emit("Transpose", [value], tuple(shape[axis] for axis in perm), perm=perm)

    def add(self, value: str, shape: Shape) -> None:
        other = self.choose.choice([name for name, each in self.values if each == shape])
        self.emit(self.choose.choice(["Add", "Add", "Sub"]), [value, other], shape)

    def resize(self, value: str, shape: Shape) -> None:
        new = (*shape[:2], self.choose.randint(3, 8), self.choose.randint(3, 8))
        mode = self.choose.choice(["nearest", "linear"])
        self.emit("Resize", [value, "", "", self.numbers_of(*new)], new, mode=mode)

    def concatenate(self, value: str, shape: Shape) -> None:
        other, its = self.choose.choice([each for each in self.values if each[1][2:] == shape[2:]])
        self.emit("Concat", [value, other], (1, shape[1] + its[1], *shape[2:]), axis=1)

    def average(self, value: str, shape: Shape) -> None:
        counted = self.choose.choice([0, 1])
        if min(shape[2:]) > 1:
            window = {"kernel_shape": [2, 2], "pads": [0, 1, 1, 0]}
            self.emit("AveragePool", [value], shape, **window, count_include_pad=counted)

    def product(self, value: str, shape: Shape) -> None:
        outputs = self.choose.choice([shape[3], 5])
        self.emit("MatMul", [value, self.constant(shape[3], outputs)], (*shape[:3], outputs))

    def layer_norm(self, value: str, shape: Shape) -> None:
        """Of at least 3 channels: of two, one rounding decides between -1 and 1."""
        bias = [self.constant(shape[3])] if self.choose.random() < 0.5 else []
        if shape[3] > 2:
            self.emit("LayerNormalization", [value, self.constant(shape[3]), *bias], shape)

    def pad(self, value: str, shape: Shape) -> None:
        pads = self.numbers_of(0, 0, 1, 0, 0, 0, 0, 1)
        new = (*shape[:2], shape[2] + 1, shape[3] + 1)
        self.emit("Pad", [value, pads], new, mode=self.choose.choice(["constant", "edge"]))


@pytest.mark.parametrize("seed", range(80))
def test_random_graph(seed: int) -> None:
    graph = RandomGraph(seed)
    outputs = list(dict.fromkeys([graph.values[-1][0], graph.choose.choice(graph.values[1:])[0]]))
    original = build(graph.nodes, {"x": SHAPE}, outputs, graph.constants)
    model = load(original)
    run_passes(model)
    assert_same(original, model)
    assert [report.name for report in run_passes(model) if report.matched] == []
