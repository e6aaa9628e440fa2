"""The values of a graph on a few samples, kept while a walk from input to output needs them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from edgec.frontend.values import shape_of
from edgec.passes.quantize.execution import NodeRunner, Sample

_BYTES = 128 * 2**20
"""Memory for the largest value on all samples of a walk."""

MORE_BYTES = 640 * 2**20
"""The same for weights of less than 8 bits, which overfit to few samples."""

_MOST_SAMPLES = 256


class Tape:
    """Arrays [samples, *shape] by value; a value is dropped after its last reader."""

    def __init__(self, graph: ir.Graph, samples: Sequence[Sample]) -> None:
        self._left = Counter(value for node in graph for value in set(node.inputs) if value is not None)
        self._count = len(samples)
        self._arrays = {v: np.stack([sample[str(v.name)] for sample in samples]) for v in graph.inputs}

    def __getitem__(self, value: ir.Value) -> np.ndarray:
        return self._arrays[value]

    def __setitem__(self, value: ir.Value, array: np.ndarray) -> None:
        self._arrays[value] = array

    def inputs(self, node: ir.Node) -> dict[int, np.ndarray]:
        """The arrays of the inputs that are no constants, by index."""
        return {
            index: self._arrays[value]
            for index, value in enumerate(node.inputs)
            if value is not None and value.const_value is None
        }

    def store(self, node: ir.Node, outputs: Sequence[np.ndarray]) -> None:
        """Keep the outputs of ``node``, and drop the inputs that it was the last to read.

        What is computed of constants alone, [1, *shape], is the same for every sample.
        """
        named = [value for value in node.outputs if value.name]
        for made, array in zip(named, outputs, strict=True):
            if self._left[made]:
                self._arrays[made] = np.broadcast_to(array, (self._count, *array.shape[1:]))
        for value in set(node.inputs):
            if value is not None:
                self._left[value] -= 1
                if not self._left[value]:
                    self._arrays.pop(value, None)


@dataclass(frozen=True)
class Visit:
    """A node that a walk comes by: its inputs that are no constants, by index, and its outputs, [samples, *shape]."""

    node: ir.Node
    inputs: Mapping[int, np.ndarray]
    outputs: Sequence[np.ndarray]


def walk(
    model: ir.Model, runner: NodeRunner, samples: Sequence[Sample], progress: Callable[[int, int], None] | None
) -> Iterator[Visit]:
    """Every node of ``model`` on ``samples``, in order; ``progress`` is told how many of how many were done."""
    nodes, tape = list(model.graph), Tape(model.graph, samples)
    for done, node in enumerate(nodes, 1):
        inputs = tape.inputs(node)
        outputs = runner.run(node, inputs)
        yield Visit(node, inputs, outputs)
        tape.store(node, outputs)
        if progress:
            progress(done, len(nodes))


def few(graph: ir.Graph, samples: Sequence[Sample], most: int = _MOST_SAMPLES, bytes: int = _BYTES) -> list[Sample]:
    """As many of ``samples``, evenly chosen, as a walk has memory for, at most ``most``."""
    largest = max(int(np.prod(shape_of(value))) for node in graph for value in node.outputs if value.name)
    count = min(len(samples), most, max(8, bytes // (4 * largest)))
    return [samples[index] for index in np.linspace(0, len(samples) - 1, count).astype(int)]
