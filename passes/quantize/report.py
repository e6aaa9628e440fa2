"""What a quantisation decided, layer by layer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from edgec.frontend.summary import operator_name
from edgec.passes.quantize.learn import Fit
from edgec.passes.quantize.observers import clipped_share, rounding_error
from edgec.passes.quantize.operators import Role
from edgec.passes.quantize.placement import Placement
from edgec.passes.quantize.products import product_of
from edgec.passes.quantize.ranges import Range, Ranges, group_histogram
from edgec.passes.quantize.recipe import PRECISIONS, Precision
from edgec.passes.quantize.statistics import Histogram, Statistics

LOSSLESS_DB = 200.0
"""dB that stand for no error at all."""


@dataclass(frozen=True)
class TensorRange:
    """One tensor of a layer.

    Attributes:
        name: the value's.
        scale: real size of a step; for a weight the largest of its output channels'.
        zero_point: the integer that stands for 0.
        low: the least real that the integers reach.
        high: the largest.
        observer: where the range comes from; ``weight`` for weights.
        clipped: share of the values on the samples that lie outside.
        sqnr: ratio of the tensor's mean square to that of its error, in dB.
    """

    name: str
    scale: float
    zero_point: int
    low: float
    high: float
    observer: str
    clipped: float
    sqnr: float

    def __str__(self) -> str:
        return (
            f"{self.name} [{self.low:.4g}, {self.high:.4g}] {self.observer}, "
            f"{self.clipped:.2%} clipped, {self.sqnr:.1f} dB"
        )


@dataclass(frozen=True)
class LayerQuantization:
    """One node: its precision (see :data:`PRECISIONS`) and its integer inputs, weight and outputs."""

    name: str
    op: str
    bits: str
    tensors: tuple[TensorRange, ...]

    def __str__(self) -> str:
        return "\n".join([f"{self.name} ({self.op}): {self.bits}", *(f"  {tensor}" for tensor in self.tensors)])


@dataclass(frozen=True)
class Lifted:
    """What more than 8 bits was needed for, which the recipe did not ask for.

    Attributes:
        layers: how many read activations of 16 bits.
        floats: the products that stay float, by name.
        before: the outputs' signal-to-noise ratio on calibration samples in dB, with 8 bits everywhere.
        after: the same as it is.
    """

    layers: int
    floats: tuple[str, ...]
    before: float
    after: float

    def __str__(self) -> str:
        parts = [f"{self.layers} layers read 16 bits"] if self.layers else []
        parts += [f"{len(self.floats)} stay float ({', '.join(self.floats)})"] if self.floats else []
        return (
            f"{' and '.join(parts)}, which the recipe did not ask for: with 8 the outputs had "
            f"{self.before:.1f} dB on the samples, now {self.after:.1f} dB"
        )


@dataclass(frozen=True)
class Quantized:
    """What :func:`edgec.passes.quantize.quantize` made.

    Attributes:
        model: standard ONNX, integers between QuantizeLinear and DequantizeLinear.
        twin: the float model that it was made of: the original with its channels equalised.
        layers: one for each node of the model that was quantised, in order.
        equalised: how many tensors had their channels scaled against each other.
        kept: the layers that keep 8 bits for their salience, the most salient first.
        lifted: what 16 bits were chosen for; None where 8 sufficed.
    """

    model: ir.Model
    twin: ir.Model
    layers: tuple[LayerQuantization, ...]
    equalised: int
    kept: tuple[str, ...] = ()
    lifted: Lifted | None = None

    def __str__(self) -> str:
        summary = f"{len(self.layers)} layers: {counts(self.layers)}; {self.equalised} tensors equalised"
        return "\n".join([summary, *([str(self.lifted)] if self.lifted else []), *map(str, self.layers)])


def counts(layers: Sequence[LayerQuantization]) -> str:
    """How many layers there are of each precision."""
    numbers = {name: sum(layer.bits == name for layer in layers) for name in PRECISIONS}
    return ", ".join(f"{count} {name}" for name, count in numbers.items() if count)


def describe(
    graph: ir.Graph,
    placement: Placement,
    ranges: Ranges,
    fits: Mapping[ir.Node, Fit],
    statistics: Statistics,
) -> Iterator[LayerQuantization]:
    """A line for each node of the float ``graph``."""
    members = placement.members()
    histograms = {root: group_histogram(values, statistics) for root, values in members.items()}

    def tensor(value: ir.Value, bits: int) -> TensorRange:
        own = statistics.histograms.get(value, histograms[placement.group[value]])
        return _activation(value, ranges[placement.group[value], bits], own)

    for node in graph:
        edges = {(v, placement.bits[node, i]) for i, v in enumerate(node.inputs) if (node, i) in placement.bits and v}
        tensors = [tensor(v, bits) for v, bits in sorted(edges, key=lambda edge: str(edge[0].name))]
        if node in fits:
            tensors.append(_weight(node, fits[node]))
        results = [(v, bits) for v in node.outputs for bits in (placement.grids_of(v) if v in placement.group else [])]
        tensors += [tensor(v, bits) for v, bits in results]
        yield LayerQuantization(str(node.name), operator_name(node), _precision(node, placement), tuple(tensors))


def _precision(node: ir.Node, placement: Placement) -> str:
    """The node's; an epilogue or a bias has that of what it belongs to, and a sum that of its narrower term."""
    while placement.roles[node] in (Role.EPILOGUE, Role.BIAS):
        feeding = [v.producer() for v in node.inputs if v is not None and v.const_value is None]
        assert feeding[0] is not None
        node = feeding[0]
    activations = min((bits for (each, _), bits in placement.bits.items() if each is node), default=None)
    weights = placement.weights.get(node)
    if activations is not None and (weights is None or activations == 16):
        weights = 8
    wanted = Precision(activations, weights, placement.terms.get(node) if activations == 8 else None)
    return next(name for name, each in PRECISIONS.items() if each == wanted)


def _activation(value: ir.Value, chosen: Range, histogram: Histogram) -> TensorRange:
    grid = chosen.grid
    power = float((np.square(histogram.centres) * histogram.counts).sum() / max(histogram.counts.sum(), 1))
    error = 0.0 if chosen.observer == "exact" else rounding_error(histogram, grid)
    return TensorRange(
        str(value.name), grid.scale, grid.zero, *grid.range, chosen.observer, clipped_share(histogram, grid),
        decibels(power, error),
    )  # fmt: skip


def _weight(node: ir.Node, fit: Fit) -> TensorRange:
    product = product_of(node)
    assert product is not None
    exact, found = product.weight, product.real_weight(fit.weights)
    largest = float(np.abs(fit.weights.scales).max())
    clipped = np.abs(exact) > np.abs(found).max() + largest / 2
    return TensorRange(
        f"{node.name}_weight", largest, 0, float(found.min()), float(found.max()), "weight",
        float(clipped.mean()), decibels(float(np.square(exact).mean()), float(np.square(found - exact).mean())),
    )  # fmt: skip


def decibels(power: float, error: float) -> float:
    """The ratio of two mean squares (or sums of squares) in dB, at most ``LOSSLESS_DB`` either way."""
    if error <= 0:
        return LOSSLESS_DB
    return float(np.clip(10 * np.log10(max(power, 1e-30) / error), -LOSSLESS_DB, LOSSLESS_DB))


def signal_to_noise(found: Sequence[np.ndarray], wanted: Sequence[np.ndarray]) -> float:
    """Ratio of the mean square of ``wanted`` to that of its difference from ``found``, in dB."""
    pairs = list(zip(found, wanted, strict=True))
    error = sum(float(np.square(f.astype(np.float64) - w).sum()) for f, w in pairs)
    return decibels(sum(float(np.square(w.astype(np.float64)).sum()) for _, w in pairs), error)
