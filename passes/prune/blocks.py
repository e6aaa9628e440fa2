"""Repair without labels, block by block: products that work into each other are fitted together.

Least squares fit one product at a time (:mod:`edgec.passes.prune.repair`), each to what it computed itself. But what
leaves a network's stream and comes back to it, a residual branch say, only has to be right where it comes back. So
all products f₁ … fₙ of such a block move together, to the minimum of

    mean ‖f(x) - y‖² / var y,    f = fₙ ∘ … ∘ f₁,

x what the pruned model computes in front of the block, with all errors made so far, and y what the original computes
behind it (the reconstruction of blocks of Li et al. 2021, there for rounding). The weights start from the least
squares. Adam (Kingma and Ba 2015) lowers the distance in torch, its step being a share of each tensor's root mean
square, since folded batch norms leave weights of all sizes. Samples that take no part decide whether a block's new
weights are kept.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from edgec.errors import EdgecError
from edgec.frontend.values import shape_of
from edgec.passes.prune.activations import Sample, capture
from edgec.passes.prune.in_torch import distances, load_torch, reject_unknown, stacked_runner, tensor_of
from edgec.passes.prune.removal import Kept, set_constant
from edgec.passes.prune.rules import Linear

STEPS, BATCH, RATE = 100, 64, 0.01
"""Of Adam; the rate is that of the first step, from where it falls to zero as a cosine."""

_PARTS = 8
"""A step sees no more than such a part of the samples."""

JUDGED = 8
"""One sample of so many judges a block and takes no part in its fit."""

_SAMPLES, _NUMBERS = 4096, 2**28
"""Samples that a block is fitted to at most, spread over all, and numbers in front of it and behind it in all."""

_PRODUCTS = 3
"""A block that does not end by itself ends behind so many products."""


@dataclass(frozen=True)
class Block:
    """A part of a graph between two values that alone lead from what is before them to what is behind.

    Attributes:
        start: the name of the value in front.
        end: of the value behind.
        kept: for each axis of the end, bool for each index of the original: whether it is left.
    """

    start: str
    end: str
    kept: tuple[np.ndarray, ...]


def find_blocks(model: ir.Model, linears: Sequence[Linear], kept: Kept) -> list[Block]:
    """The blocks of ``model``, which has one input, before it is cut, in order.

    A block ends at a value that several nodes read, or that leads from one product straight into others, or behind
    enough products.
    """
    graph, products = model.graph, {linear.node for linear in linears}
    last = {value: index for index, node in enumerate(graph) for value in node.inputs if value is not None}
    found, start, count, alive = [], str(graph.inputs[0].name), 0, {graph.inputs[0]}
    for index, node in enumerate(graph):
        count += node in products
        alive |= set(node.outputs)
        alive -= {value for value in alive if last.get(value, index) <= index and not value.is_graph_output()}
        if len(alive) != 1 or not count:
            continue
        (value,) = alive
        readers = set(value.consumers())
        if len(readers) != 1 or (node in products and readers <= products) or count >= _PRODUCTS:
            masks = tuple(kept.mask(value, axis) for axis in range(len(shape_of(value))))
            found.append(Block(start, str(value.name), masks))
            start, count = str(value.name), 0
    return found


def check_fit(model: ir.Model, samples: Sequence[Sample]) -> None:
    """Tell before anything is pruned whether the blocks of ``model`` can be fitted.

    Raises:
        EdgecError: torch is not installed, an operator is not known there, the model has several inputs, or there are
            too few samples.
    """
    load_torch()
    reject_unknown(model)
    if len(model.graph.inputs) != 1:
        raise EdgecError(f"--blockwise takes models of one input, and this one has {len(model.graph.inputs)}")
    if len(samples) < 2 * JUDGED:
        raise EdgecError(f"--blockwise needs at least {2 * JUDGED} samples, and --calib has {len(samples)}")


def fit_blocks(
    model: ir.Model, linears: Sequence[Linear], original: ir.Model, blocks: Sequence[Block],
    samples: Sequence[Sample], seed: int,
) -> None:  # fmt: skip
    """Fit the products ``linears`` of ``model``, a pruned copy of ``original``, in place, block by block."""
    load_torch().manual_seed(seed)
    for block in blocks:
        part = _cut_out(model, block)
        names = {node.name for node in part.graph}
        inside = [linear for linear in linears if linear.node.name in names]
        if len(inside) > 1:
            used = _spread(part, samples)
            given = _stack(model, block.start, used)
            whole = _stack(original, block.end, used)
            wanted = whole[np.ix_(np.ones(len(whole), bool), *block.kept)]
            _fit(part, inside, given, wanted)


def _cut_out(model: ir.Model, block: Block) -> ir.Model:
    """A copy of the block alone, from its start as input to its end."""
    part = model.clone()
    graph = part.graph
    values = {value.name: value for node in graph for value in node.outputs} | {v.name: v for v in graph.inputs}
    start, end = values[block.start], values[block.end]
    given = ir.val(f"{block.start}_given", start.dtype, start.shape)
    graph.inputs[:], graph.outputs[:] = [given], [end]
    start.replace_all_uses_with(given)
    RemoveUnusedNodesPass()(part)
    return part


def _spread(part: ir.Model, samples: Sequence[Sample]) -> Sequence[Sample]:
    """Samples from first to last, so many as may be used for a block."""
    numbers = sum(prod(shape_of(value)) for value in (*part.graph.inputs, *part.graph.outputs))
    most = max(2 * JUDGED, min(_SAMPLES, _NUMBERS // numbers))
    return samples[:: -(-len(samples) // most)]


def _stack(model: ir.Model, name: str, samples: Sequence[Sample]) -> np.ndarray:
    """The value called ``name`` for all samples: [samples, *shape]."""
    return np.stack([values[name] for values in capture(model, [name], samples)])


def _fit(part: ir.Model, linears: Sequence[Linear], given: np.ndarray, wanted: np.ndarray) -> None:
    """Move the weights and biases of ``linears``, which are in the model that ``part`` is a copy of, if that helps.

    Args:
        given: [samples, *shape] of the part's input.
        wanted: [samples, *shape], what it should compute.
    """
    torch = load_torch()
    tensors = {
        value: torch.nn.Parameter(tensor_of(torch, value))
        for linear in linears
        for value in (linear.weight, linear.bias)
        if value is not None and value.const_value is not None
    }
    copies = {part.graph.initializers[str(value.name)]: tensor for value, tensor in tensors.items()}
    run, name = stacked_runner(part, copies), str(part.graph.inputs[0].name)
    judged = np.arange(len(given)) % JUDGED == 0

    def compute(x: Any) -> Any:
        return run({name: x})[0]

    def judge() -> float:
        with torch.no_grad():
            found = torch.cat([compute(each) for each in torch.from_numpy(given[judged]).split(BATCH)])
            return float(distances(torch, [found], [torch.from_numpy(wanted[judged])]))

    before, seen = judge(), ~judged
    _descend(torch, list(tensors.values()), compute, torch.from_numpy(given[seen]), torch.from_numpy(wanted[seen]))
    if judge() < before:
        for value, tensor in tensors.items():
            set_constant(value, tensor.detach().contiguous().numpy())


def _descend(torch: Any, tensors: Sequence[Any], compute: Callable[[Any], Any], x: Any, y: Any) -> None:
    """Adam's steps towards ``y`` from drawn samples ``x``, in place."""
    sizes = [float(each.detach().square().mean().sqrt()) for each in tensors]
    optimiser = torch.optim.Adam([{"params": [each]} for each in tensors])
    for step in range(STEPS):
        share = RATE * 0.5 * (1 + np.cos(np.pi * step / STEPS))
        for group, size in zip(optimiser.param_groups, sizes, strict=True):
            group["lr"] = share * size
        drawn = torch.randint(len(x), (min(BATCH, -(-len(x) // _PARTS)),))
        optimiser.zero_grad()
        distances(torch, [compute(x[drawn])], [y[drawn]]).mean().backward()
        optimiser.step()
