"""Integer weights and corrected biases, product by product along the graph.

Two walks go side by side: the float model, and the model quantised as far as it is decided. So each product is fitted
on the inputs that it will really get, errors of the layers before it included.

A quantised product is off in the mean, too, by the mean of its rounding errors times that of its input (analytic) and
by what clipping before it shifted (seen only in the data); the bias takes both back (Nagel et al. 2019,
arXiv 1906.04721, sections 4.2 and D). What the data say is trusted as far as the samples agree on it, and not at all
behind weights of few bits, whose noise is no shift.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from edgec.grid import Grid, powers_of_two
from edgec.passes.quantize.execution import NodeRunner, Sample
from edgec.passes.quantize.grid import (
    Nearest,
    Weights,
    fitting_scales,
    nearest_integer,
    nearest_sum,
    round_weights,
    weight_scales,
)
from edgec.passes.quantize.lowbit import LowBit, aimed, fit_factored, fit_low_bit, nearest_low_bit, shrunk
from edgec.passes.quantize.operators import channel_axis, weight_axis
from edgec.passes.quantize.placement import Placement
from edgec.passes.quantize.products import Product, product_of
from edgec.passes.quantize.ranges import Ranges
from edgec.passes.quantize.recipe import Recipe
from edgec.passes.quantize.rounding import clip_scales, learn_rounding, learn_sums, second_moment, shares_of
from edgec.passes.quantize.tape import MORE_BYTES, Tape, few, walk


@dataclass(frozen=True)
class Fit:
    """A quantised product: integer weights, and the float32 bias [channels]; None for no bias."""

    weights: Weights | LowBit
    bias: np.ndarray | None


@dataclass(frozen=True)
class _Sight:
    """What a product sees, [samples, *shape] each: its input as it will be, and input and output in the float model.

    ``narrow`` says whether weights of few bits are before it.
    """

    x: np.ndarray
    exact: np.ndarray
    wanted: np.ndarray
    narrow: bool


def learn(
    model: ir.Model,
    placement: Placement,
    ranges: Ranges,
    samples: Sequence[Sample],
    recipe: Recipe,
    progress: Callable[[int, int], None] | None = None,
) -> dict[ir.Node, Fit]:
    """Weights and biases for every product whose weights are to be integers, fitted one behind the other."""
    runner, chosen = NodeRunner(model), _chosen(model.graph, placement, samples)
    quantised = Tape(model.graph, chosen)
    fits: dict[ir.Node, Fit] = {}
    moved: dict[ir.Node, dict[int, np.ndarray]] = {}
    narrow: set[ir.Value] = set()
    for visit in walk(model, runner, chosen, progress):
        node = visit.node
        behind = not narrow.isdisjoint(node.inputs)
        if behind or placement.weights.get(node, 8) < 8:
            narrow.update(node.outputs)
        inputs = _rounded(node, quantised.inputs(node), placement, ranges)
        product = product_of(node) if node in placement.weights else None
        if product is None:
            outputs = runner.run(node, inputs, moved.get(node))
        else:
            sight = _Sight(inputs[0], visit.inputs[0], visit.outputs[0], behind)
            fits[node], outputs = _fit(product, sight, placement, ranges, recipe, runner)
            bias = fits[node].bias
            if product.adder is not None and bias is not None:
                moved[product.adder] = {product.bias_place[1]: product.shaped_bias(bias)}
        quantised.store(node, outputs)
    return fits


def learn_apart(
    model: ir.Model,
    placement: Placement,
    ranges: Ranges,
    samples: Sequence[Sample],
    recipe: Recipe,
    progress: Callable[[int, int], None] | None = None,
) -> dict[ir.Node, Fit]:
    """The same with each product fitted as if it were the only one: on the inputs that it has in the float model."""
    runner, chosen = NodeRunner(model), _chosen(model.graph, placement, samples)
    fits: dict[ir.Node, Fit] = {}
    for visit in walk(model, runner, chosen, progress):
        product = product_of(visit.node) if visit.node in placement.weights else None
        if product is not None:
            inputs = _rounded(visit.node, visit.inputs, placement, ranges)
            sight = _Sight(inputs[0], visit.inputs[0], visit.outputs[0], narrow=False)
            fits[visit.node] = _fit(product, sight, placement, ranges, recipe, runner)[0]
    return fits


def _chosen(graph: ir.Graph, placement: Placement, samples: Sequence[Sample]) -> list[Sample]:
    """The samples to learn from: more of them for weights of few bits."""
    narrow = any(bits < 8 for bits in placement.weights.values())
    return few(graph, samples, bytes=MORE_BYTES) if narrow else few(graph, samples)


def _fit(
    product: Product, sight: _Sight, placement: Placement, ranges: Ranges, recipe: Recipe, runner: NodeRunner
) -> tuple[Fit, list[np.ndarray]]:
    """The product fitted to its input as it will be, and its outputs with that, without the bias of an Add."""
    bits = placement.weights[product.node]
    x = _grid(product.node, 0, placement, ranges) if (product.node, 0) in placement.bits else None
    correct = recipe.correct_bias and product.can_have_bias
    learned = recipe.rounding == "learned"
    patches = product.patches(sight.x) if product.node.op_type != "ConvTranspose" else None
    weights: Weights | LowBit
    if bits < 8 and patches is not None:
        seen = (patches[0], product.patches(sight.exact)[0]) if learned else None
        weights = _low_bit(product, seen, x, bits, recipe, correct, len(sight.x))
    elif learned and patches is not None:
        weights = _learned(product, patches, x, recipe, correct)
    else:
        scales = _scales(product, x, recipe.fixed_point)
        weights = round_weights(product.weight, scales, weight_axis(product.node), _terms(product, recipe)[1])
    real = product.real_weight(weights)
    found = runner.run(product.node, {0: sight.x}, {1: real})
    if not correct:
        return Fit(weights, product.bias), found
    known = None if patches is None else _analytic(product, real, patches)
    if known is not None and (bits < 8 or sight.narrow):
        shift = known
    else:
        shift = _correction(sight.wanted - found[0], channel_axis(product.node) + 1, known)
    bias = product.bias
    fit = Fit(weights, (np.zeros_like(shift) if bias is None else bias) + shift)
    if product.adder is not None:
        return fit, found
    shape = [1] * found[0].ndim
    shape[channel_axis(product.node) + 1] = -1
    found[0] += shift.reshape(shape)
    return fit, found


def _low_bit(
    product: Product, seen: tuple[np.ndarray, np.ndarray] | None, x: Grid | None, bits: int, recipe: Recipe,
    centred: bool, samples: int,
) -> Weights | LowBit:  # fmt: skip
    """Weights of less than 8 bits, for patches of the input as it will be and in the float model; without these
    rounded to the nearest."""
    order = product.depth_order
    rows = product.rows(product.weight)[0][:, order]
    group = product.group_size(recipe.group_size) if x is None else len(order)
    if seen is None:
        return nearest_low_bit(rows, bits, group, recipe.fixed_point)
    patches, exact = (each[:, order] for each in seen)
    moment = shrunk(second_moment(patches[np.newaxis], centred)[0], patches, samples)
    rows = aimed(rows, exact, patches, centred)
    if x is not None and bits == 4 and recipe.factors and not recipe.fixed_point and product.factor_group:
        group = product.factor_group
        values, scales = fit_factored(rows, moment, group, lambda each: _fitting(product, each, x, False))
        return Weights(product.from_rows(product.unordered(values)), scales, weight_axis(product.node))
    salient = recipe.salient_groups if x is None and product.mixes_widths(group) else 0.0
    return fit_low_bit(rows, moment, bits, group, x is not None, recipe.fixed_point, salient)


def _learned(product: Product, patches: np.ndarray, x: Grid | None, recipe: Recipe, centred: bool) -> Weights:
    axis, rows = weight_axis(product.node), product.rows(product.weight)
    moment, fixed_point = second_moment(patches, centred), recipe.fixed_point
    terms, nearest = _terms(product, recipe)
    whole = _scales(product, x, fixed_point).reshape(rows.shape[:2])
    clipped = clip_scales(rows, whole, moment, shares_of(terms, fixed_point), nearest)
    scales = _fitting(product, clipped.reshape(-1), x, fixed_point)
    by_row = scales.reshape(rows.shape[:2])
    if terms is None:
        return Weights(product.from_rows(learn_rounding(rows, by_row, moment)), scales, axis)
    return Weights(product.from_rows(learn_sums(rows, by_row, moment, nearest)), scales, axis)


def _terms(product: Product, recipe: Recipe) -> tuple[int | None, Nearest]:
    """How many powers of two a weight of ``product`` is a sum of, at most (None: any number), and their rounding."""
    terms = recipe.precision_of(str(product.node.name)).terms
    return terms, nearest_integer if terms is None else nearest_sum(terms)


def _scales(product: Product, x: Grid | None, fixed_point: bool) -> np.ndarray:
    return _fitting(product, weight_scales(product.weight, weight_axis(product.node)), x, fixed_point)


def _fitting(product: Product, scales: np.ndarray, x: Grid | None, fixed_point: bool) -> np.ndarray:
    """``scales``, with which int32 holds the sums for an input on the grid ``x``; for ``fixed_point`` powers of two."""
    if x is not None:
        rows = np.moveaxis(product.weight, weight_axis(product.node), 0).reshape(len(scales), -1)
        scales = fitting_scales(scales, rows, product.bias, x)
    return powers_of_two(scales) if fixed_point else scales


def _analytic(product: Product, real: np.ndarray, patches: np.ndarray) -> np.ndarray:
    """By how much the rounding to the weights ``real`` lowers the mean result, float32 [channels]."""
    errors = product.rows(product.weight) - product.rows(real)
    return np.einsum("gmk,gk->gm", errors, patches.mean(axis=1)).reshape(-1).astype(np.float32)


def _correction(difference: np.ndarray, axis: int, known: np.ndarray | None) -> np.ndarray:
    """What to add to the bias, float32 [channels], for a ``difference`` [samples, *shape] with channels at ``axis``.

    The mean over the samples beyond what is ``known`` is shrunk by the share of it that may be chance: by its
    variance over its square (James and Stein).
    """
    others = tuple(i for i in range(1, difference.ndim) if i != axis)
    means = difference.mean(axis=others)
    base = np.zeros(means.shape[1], np.float32) if known is None else known
    if len(means) < 2:
        return base
    rest = means.mean(axis=0) - base
    chance = means.var(axis=0, ddof=1) / len(means)
    trust = np.maximum(0, 1 - chance / np.maximum(np.square(rest), 1e-30))
    return (base + trust * rest).astype(np.float32)


def _rounded(
    node: ir.Node, inputs: Mapping[int, np.ndarray], placement: Placement, ranges: Ranges
) -> dict[int, np.ndarray]:
    return {
        index: _grid(node, index, placement, ranges).round(array) if (node, index) in placement.bits else array
        for index, array in inputs.items()
    }


def _grid(node: ir.Node, index: int, placement: Placement, ranges: Ranges) -> Grid:
    value = node.inputs[index]
    assert value is not None
    return ranges[placement.group[value], placement.bits[node, index]].grid
