"""Layers that keep 8-bit weights, since fewer bits cost them most for the bytes that they save.

The loss of each layer is the change of the float model's prediction, with the weights of that layer alone at their few
bits, on samples that it was not fitted to: on those that it was, deep layers with few positions seem to lose next to
nothing. Losses of layers add up, near enough. Those with the most loss a weight keep 8 bits, up to a share of all
weights of few bits, or until the losses of the others are small. In convolutional networks they are the narrow layers
near the input, few weights, each of which is used at many positions and whose errors everything behind them reads, and
the deep ones of which samples tell least.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import numpy as np
import onnx_ir as ir

from edgec.passes.quantize.execution import ModelRunner, Sample
from edgec.passes.quantize.learn import Fit
from edgec.passes.quantize.prediction import Prediction
from edgec.passes.quantize.products import Product, product_of
from edgec.passes.quantize.tape import few

_SAMPLES = 32

_ENOUGH = 0.01
"""Loss of the layers of few bits, all together, at which no more of them need 8; see :class:`Prediction`."""

_MOST = 0.4
"""Share of the weights that keeps 8 bits at most for the sake of that."""


def salient(
    model: ir.Model,
    fits: Mapping[ir.Node, Fit],
    samples: Sequence[Sample],
    keep: float | Literal["auto"],
    progress: Callable[[int, int], None] | None = None,
) -> list[ir.Node]:
    """The products of ``model`` that keep 8 bits, the most salient first.

    Args:
        model: the float model.
        fits: its products whose weights have few bits.
        samples: inputs by name, which should have had no part in the fits.
        keep: a share of these weights, from 0 to 1; ``auto`` stops where what is left loses little.
        progress: told how many of how many layers were tried.
    """
    products = {node: product for node in fits if (product := product_of(node)) is not None}
    share, enough = (_MOST, _ENOUGH) if keep == "auto" else (keep, -np.inf)
    if not products or share <= 0:
        return []
    chosen = few(model.graph, samples, _SAMPLES)
    prediction = Prediction(ModelRunner(model).run_all(chosen))
    exact = {node: _constants(product, product.weight, product.bias) for node, product in products.items()}
    runner = ModelRunner(model, open_constants=sorted({name for each in exact.values() for name in each}))
    whole = {name: array for each in exact.values() for name, array in each.items()}
    losses = {}
    for done, (node, product) in enumerate(products.items(), 1):
        own = _constants(product, product.real_weight(fits[node].weights), fits[node].bias)
        losses[node] = prediction.distance(runner.run_all(chosen, {**whole, **own}))
        if progress:
            progress(done, len(products))
    room, left = share * sum(product.weight.size for product in products.values()), sum(losses.values())
    found = []
    for node in sorted(products, key=lambda node: -losses[node] / products[node].weight.size):
        if left > enough and products[node].weight.size <= room:
            found.append(node)
            room -= products[node].weight.size
            left -= losses[node]
    return found


def _constants(product: Product, weight: np.ndarray, bias: np.ndarray | None) -> dict[str, np.ndarray]:
    """Weight and bias by the names of the constants that hold them in the float model."""
    holder, index = product.bias_place
    found = {str(product.node.inputs[1].name): weight}  # type: ignore[union-attr]
    if bias is not None and product.bias is not None:
        found[str(holder.inputs[index].name)] = product.shaped_bias(bias)  # type: ignore[union-attr]
    return found
