"""Histograms of what a quantised layer reads and of its weights, with the ends of their grids."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from edgec.data.samples import Array
from edgec.passes.quantize.execution import ModelRunner, Sample
from edgec.passes.quantize.products import product_of

BINS = 48
MOST_SAMPLES = 8
"""All values of all layers on so many samples are held at once."""


@dataclass(frozen=True)
class Histogram:
    """One tensor of a layer; without a grid, its own ends stand for the grid's.

    Attributes:
        layer: the node's name.
        op: its operator.
        what: "weights", or "reads" for an activation.
        name: the value's.
        counts: int64[bins].
        edges: float64[bins + 1].
        low: the least real number of the grid.
        high: the largest.
        clipped: share of the values outside.
    """

    layer: str
    op: str
    what: str
    name: str
    counts: Array
    edges: Array
    low: float
    high: float
    clipped: float

    @property
    def outlier(self) -> float:
        """The largest magnitude over the root mean square: how far the last values are from the others."""
        middle = (self.edges[:-1] + self.edges[1:]) / 2
        rms = float(np.sqrt(np.average(np.square(middle), weights=self.counts)))
        return float(np.abs(self.edges).max()) / rms if rms else 1.0


def layer_histograms(
    model: ir.Model, layers: Sequence[Mapping[str, Any]], samples: Sequence[Sample]
) -> Iterator[Histogram]:
    """For each integer layer its weights and the first tensor that it reads.

    Args:
        model: the float model that was quantised.
        layers: the ``layers`` of the report's ``quantisation``.
        samples: inputs to see the activations on; the first :data:`MOST_SAMPLES` are taken.
    """
    nodes = {str(node.name): node for node in model.graph}
    chosen = [(nodes[layer["name"]], layer, _read(nodes[layer["name"]], layer)) for layer in layers if
              layer["name"] in nodes and layer["bits"] != "float"]  # fmt: skip
    values = _activations(model, [read["name"] for _, _, read in chosen if read], samples)
    for node, layer, read in chosen:
        if read:
            yield _histogram(layer, "reads", read, values[read["name"]])
        weight = next((tensor for tensor in layer["tensors"] if tensor["observer"] == "weight"), None)
        product = product_of(node) if weight else None
        if weight and product is not None:
            yield _histogram(layer, "weights", weight, np.asarray(product.weight))


def float_histograms(model: ir.Model, samples: Sequence[Sample]) -> Iterator[Histogram]:
    """For each product by a constant its weights and what it reads.

    Args:
        model: a float model.
        samples: inputs to see the activations on; the first :data:`MOST_SAMPLES` are taken.
    """
    products = [(node, product) for node in model.graph if (product := product_of(node)) is not None]
    names = {node: [str(value.name) for value in node.inputs if value is not None] for node, _ in products}
    values = _activations(model, [names[node][0] for node, _ in products], samples)
    for node, product in products:
        layer, (read, weight, *_) = {"name": str(node.name), "op": node.op_type}, names[node]
        for what, name, array in (("reads", read, values[read]), ("weights", weight, np.asarray(product.weight))):
            tensor = {"name": name, "low": float(array.min()), "high": float(array.max()), "clipped": 0.0}
            yield _histogram(layer, what, tensor, array)


def _read(node: ir.Node, layer: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The tensor of the layer that its node reads first."""
    names = [str(value.name) for value in node.inputs if value is not None]
    read = [tensor for tensor in layer["tensors"] if tensor["name"] in names]
    return min(read, key=lambda tensor: names.index(tensor["name"]), default=None)


def _activations(model: ir.Model, names: Sequence[str], samples: Sequence[Sample]) -> dict[str, Array]:
    """All values that the named tensors take on ``samples``."""
    inputs = {str(value.name) for value in model.graph.inputs}
    computed = [name for name in dict.fromkeys(names) if name not in inputs]
    runner = ModelRunner(model, outputs=computed) if computed else None
    found: dict[str, list[Array]] = {name: [] for name in names}
    for sample in samples[:MOST_SAMPLES]:
        results = dict(sample) | (runner.by_name(sample) if runner else {})
        for name, arrays in found.items():
            arrays.append(results[name].ravel())
    return {name: np.concatenate(arrays) for name, arrays in found.items()}


def _histogram(layer: Mapping[str, Any], what: str, tensor: Mapping[str, Any], values: Array) -> Histogram:
    flat = values.astype(np.float64).ravel()
    counts, edges = np.histogram(flat, BINS)
    return Histogram(
        layer["name"], layer["op"], what, tensor["name"], counts, edges, tensor["low"], tensor["high"],
        tensor["clipped"],
    )  # fmt: skip
