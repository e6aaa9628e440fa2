"""Cross-layer equalisation: channels of one tensor scaled against each other, at no cost in the float model.

A channel of what a product gives can be divided by s > 0 in its weights and bias, if what reads it, through functions
that keep a positive factor, is products only, whose weights for this input channel are then multiplied by s (Nagel et
al. 2019, arXiv 1906.04721). All channels of the tensor share one grid, so it is finer for those that were small; the
reader's weights, one scale for each of its outputs, may get coarser. Between the two stands an exponent α, s =
rᵅ · uᵅ⁻¹ with the channel's range r and the magnitude u of the weights that read it (as in SmoothQuant, Xiao et al.
2023, arXiv 2211.10438); it is chosen by the error of the readers' results, with no equalisation as one of the choices.

A ReLU6 does not keep a factor where it clamps. Channels that come near 6 on the samples are left alone, and the others
are enlarged no further than their range still fits below 6.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from edgec.passes.quantize.execution import NodeRunner, Sample
from edgec.passes.quantize.grid import grid_of, round_weights, weight_scales
from edgec.passes.quantize.operators import Role, channel_axis, is_clamp, role_of, weight_axis
from edgec.passes.quantize.placement import is_float
from edgec.passes.quantize.products import Product, product_of
from edgec.passes.quantize.recipe import Recipe
from edgec.passes.quantize.statistics import Statistics
from edgec.passes.quantize.tape import Tape, few
from edgec.values import constant_of, input_of, shape_of

_EXPONENTS = (1.0, 0.75, 0.5, 0.25)
_GAIN = 0.95
"""An equalisation is made where it lowers the error to this share at least."""

_MOST = 64.0
"""Largest factor between channels."""

_HEADROOM = 1.1
"""Room that is kept between a channel's range on samples and the clamp behind it."""

_SAMPLES = 16
_HOMOGENEOUS = (
    "AveragePool", "GlobalAveragePool", "GlobalMaxPool", "Identity", "LeakyRelu", "MaxPool", "PRelu", "Relu",
)  # fmt: skip


@dataclass(frozen=True)
class Link:
    """A product whose output channels can be scaled, and what reads them.

    Attributes:
        writer: the product.
        value: what the readers read, behind the functions between.
        readers: products.
        bound: the least upper clamp on the way; infinite where there is none.
    """

    writer: Product
    value: ir.Value
    readers: tuple[Product, ...]
    bound: float


def links(graph: ir.Graph, recipe: Recipe) -> list[Link]:
    """The places where ``graph`` can be equalised, in order."""
    found = []
    for node in graph:
        product = product_of(node)
        if product is not None and not is_float(node, recipe.layers) and (link := _follow(product, recipe)):
            found.append(link)
    return found


def equalise(
    model: ir.Model,
    statistics: Statistics,
    samples: Sequence[Sample],
    found: Sequence[Link],
    progress: Callable[[int, int], None] | None = None,
) -> int:
    """Scale channels of ``model`` in place; how many of the links ``found`` gained by it.

    ``statistics`` has the ranges of the channels of each link's value.
    """
    runner, tape = NodeRunner(model), Tape(model.graph, few(model.graph, samples, _SAMPLES))
    waiting = {link.readers[0].node: link for link in found}
    largest = dict(statistics.channels)
    done = changed = 0
    for node in model.graph:
        if node in waiting:
            link = waiting[node]
            factors = _best_factors(link, largest[link.value], tape[link.value], runner)
            if factors is not None:
                _apply(link, factors, model.graph)
                tape[link.value] = tape[link.value] / _along(factors, link.value)
                changed += 1
            done += 1
            if progress:
                progress(done, len(found))
        weights = {i: a for i, v in enumerate(node.inputs[1:], 1) if (a := constant_of(v)) is not None}
        product = product_of(node)
        tape.store(node, runner.run(node, tape.inputs(node), weights if product else None))
    return changed


def _follow(writer: Product, recipe: Recipe) -> Link | None:
    """The readers of ``writer``, if all are products that read its channels as they are."""
    value, bound = writer.result, float("inf")
    while True:
        if value.is_graph_output() or not value.uses():
            return None
        readers = [product_of(reader) for reader in value.consumers()]
        if all(reader is not None for reader in readers):
            found = tuple(reader for reader in readers if reader is not None)
            fits = all(_reads_channels(use.idx, value, each, writer, recipe)
                       for use, each in zip(value.uses(), found, strict=True))
            return Link(writer, value, found, bound) if fits else None
        if len(value.uses()) > 1:
            return None
        (node,) = value.consumers()
        if not _keeps_factors(node, writer):
            return None
        if node.op_type == "Clip":
            high = constant_of(input_of(node, 2))
            bound = min(bound, float("inf") if high is None else float(high.reshape(-1)[0]))
        value = node.outputs[0]


def _reads_channels(index: int, value: ir.Value, reader: Product, writer: Product, recipe: Recipe) -> bool:
    axis, rank = channel_axis(reader.node), len(shape_of(value))
    plain = reader.node.op_type != "ConvTranspose" and not is_float(reader.node, recipe.layers)
    return plain and index == 0 and shape_of(value)[axis] == _channels(writer) and (axis == 1 or axis == rank - 1)


def _channels(product: Product) -> int:
    return int(product.weight.shape[weight_axis(product.node)])


def _keeps_factors(node: ir.Node, writer: Product) -> bool:
    """Whether ``node`` computes f(s·x) = s·f(x) channel by channel, and leaves the channels where they are."""
    value, output = node.inputs[0], node.outputs[0]
    if role_of(node) is Role.FLOAT:
        return False
    if node.op_type == "Clip":
        low = constant_of(input_of(node, 1))
        return is_clamp(node) and low is not None and not low.any()
    if node.op_type in ("Flatten", "Reshape"):
        before, after = shape_of(value), shape_of(output)
        return len(before) > 2 and after == (*before[:2],) and writer.node.op_type == "Conv"
    return node.op_type in _HOMOGENEOUS and not (node.op_type == "PRelu" and channel_axis(writer.node) != 1)


def _best_factors(link: Link, largest: np.ndarray, x: np.ndarray, runner: NodeRunner) -> np.ndarray | None:
    """The factors [channels] with the least error of the readers; None where none is worth it."""
    exact = [_run(reader, x, reader.weight, runner) for reader in link.readers]
    best, chosen = _GAIN * _error(link, np.ones(len(largest), np.float32), x, exact, runner), None
    for exponent in _EXPONENTS:
        factors = _factors(link, largest, exponent)
        if np.ptp(factors) == 0:
            continue
        error = _error(link, factors, x, exact, runner)
        if error < best:
            best, chosen = error, factors
    return chosen


def _factors(link: Link, largest: np.ndarray, exponent: float) -> np.ndarray:
    """What each channel is divided by, float32 [channels], 1 for the largest."""
    use = np.max([_magnitudes(reader, len(largest)) for reader in link.readers], axis=0)
    alive = (largest > 0) & (use > 0)
    raw = np.where(alive, np.maximum(largest, 1e-12) ** exponent / np.maximum(use, 1e-12) ** (1 - exponent), 0)
    if not alive.any():
        return np.ones(len(largest), np.float32)
    factors = np.where(alive, np.maximum(raw / raw.max(), 1 / _MOST), 1)
    if np.isfinite(link.bound):
        factors = np.clip(factors, np.minimum(1, _HEADROOM * largest / link.bound), 1)
    return factors.astype(np.float32)


def _magnitudes(reader: Product, channels: int) -> np.ndarray:
    """How large the weights of each input channel are, as a share of the largest of the same output."""
    rows = np.abs(reader.rows(reader.weight))
    share = rows / np.maximum(rows.max(axis=2, keepdims=True), 1e-30)
    return share.reshape(reader.groups, rows.shape[1], channels // reader.groups, -1).max(axis=(1, 3)).reshape(-1)


def _error(
    link: Link, factors: np.ndarray, x: np.ndarray, exact: Sequence[np.ndarray], runner: NodeRunner
) -> float:
    """Sum over the readers of the mean square error of their quantised results, over their variance."""
    scaled = x / _along(factors, link.value)
    rounded = grid_of(float(scaled.min()), float(scaled.max())).round(scaled)
    total = 0.0
    for reader, wanted in zip(link.readers, exact, strict=True):
        weight, axis = reader.scaled_inputs(reader.weight, factors), weight_axis(reader.node)
        weight = round_weights(weight, weight_scales(weight, axis), axis).dequantise()
        found = _run(reader, rounded, weight, runner)
        total += float(np.square(found - wanted).mean() / max(float(wanted.var()), 1e-20))
    return total


def _run(product: Product, x: np.ndarray, weight: np.ndarray, runner: NodeRunner) -> np.ndarray:
    constants = {i: a for i, v in enumerate(product.node.inputs[1:], 1) if (a := constant_of(v)) is not None}
    return runner.run(product.node, {0: x}, {**constants, 1: weight})[0]


def _apply(link: Link, factors: np.ndarray, graph: ir.Graph) -> None:
    writer = link.writer
    writer.set_weight(writer.scaled_outputs(writer.weight, 1 / factors), graph)
    if writer.bias is not None:
        writer.set_bias(writer.bias / factors, graph)
    for reader in link.readers:
        reader.set_weight(reader.scaled_inputs(reader.weight, factors), graph)


def _along(factors: np.ndarray, value: ir.Value) -> np.ndarray:
    """``factors`` in the shape that meets [samples, *shape] at the channels."""
    rank, channels = len(shape_of(value)), len(factors)
    axis = 1 if shape_of(value)[1] == channels and rank != 3 else rank - 1
    shape = [1] * (rank + 1)
    shape[axis + 1] = channels
    return factors.reshape(shape)
