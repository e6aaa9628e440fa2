"""Repair without labels: every product is fitted again to what it computed before.

From the inputs on, one product after the other: its inputs are those of the pruned model, with all errors made so
far, its target is what the original computed there. Least squares give the weights and the bias (this is the
reconstruction of He, Zhang and Sun 2017, which also re-estimates what a batch norm behind it would). Where the
product ends in a sum with a value that is computed already, the target is the original's sum without that value, so
that a residual branch also makes up for errors of the stream beside it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from edgec.passes.prune.activations import Sample, capture
from edgec.passes.prune.compensation import from_moments
from edgec.passes.prune.low_rank import break_even, factorise
from edgec.passes.prune.products import (
    Moments,
    add_bias,
    has_rows,
    input_rows,
    matrix,
    output_rows,
    places,
    uncertainty,
    weight_of,
)
from edgec.passes.prune.removal import set_constant
from edgec.passes.prune.rules import Linear
from edgec.passes.rewriting import is_private
from edgec.values import constant_of, shape_of

RIDGE = 1e-3
"""How strongly the weights are held to what they were, as a share of the inputs' mean square."""


_BATCH = 128
"""Samples whose rows are summed up at once."""


@dataclass(frozen=True)
class _Fit:
    """A product to fit.

    Attributes:
        linear: as it is in the pruned model.
        original: the same in the original, whose positions of the output are the same.
        goal: the original's value to reach, and ``added``: what the pruned model adds to the output.
        kept: bool, the original's channels that are left.
    """

    linear: Linear
    original: Linear
    goal: str
    added: str | None
    kept: np.ndarray


@dataclass
class Targets:
    """Rows of the original's values at drawn positions, kept for all products at once.

    Attributes:
        rows: float32 [samples][places, channels] by the product's name.
        where: int64 [samples][places].
    """

    rows: dict[str, list[np.ndarray]] = field(default_factory=dict)
    where: dict[str, list[np.ndarray]] = field(default_factory=dict)


def refit(
    model: ir.Model, linears: Sequence[Linear], original: ir.Model, originals: Sequence[Linear],
    kept: Mapping[str, np.ndarray],
    ranks: Mapping[str, int], samples: Sequence[Sample], rows: int, seed: int,
) -> None:  # fmt: skip
    """Fit the products ``linears`` of ``model``, a pruned copy of ``original``, in place and in order.

    Args:
        originals: the same products in the original, by the same names; ``linears`` may lack some.
        kept: by the product's name, bool for each output channel of the original: whether it is left.
        ranks: by name, of the products that become two thin ones once they are fitted.
        samples: calibration inputs, run once for each product.
        rows: positions of each sample that take part.
        seed: of the positions.
    """
    by_name = {str(linear.node.name): linear for linear in originals}
    fits = [
        _plan(model, linear, by_name[str(linear.node.name)], kept[str(linear.node.name)])
        for linear in linears
        if str(linear.node.name) in by_name and has_rows(linear) and len(linear.weight.uses()) == 1
    ]
    targets = _targets(original, fits, samples, rows, seed)
    for fit in fits:
        _solve(model, fit, targets, samples, ranks.get(str(fit.linear.node.name)))


def _plan(model: ir.Model, linear: Linear, original: Linear, kept: np.ndarray) -> _Fit:
    """Aim behind a sum where the other summand is computed earlier, at the product's own output elsewhere."""
    goal, added = original.node.outputs[0], None
    output = linear.node.outputs[0]
    reader = next(iter(output.consumers()), None)
    if reader is not None and reader.op_type == "Add" and is_private(linear.node):
        other = next((value for value in reader.inputs if value is not output), None)
        earlier = {value for node in _before(model, linear.node) for value in node.outputs}
        if other in earlier and other is not None and other.shape == output.shape:
            old = next(iter(original.node.outputs[0].consumers()))
            goal, added = old.outputs[0], str(other.name)
    return _Fit(linear, original, str(goal.name), added, kept)


def _before(model: ir.Model, node: ir.Node) -> Iterator[ir.Node]:
    for each in model.graph:
        if each is node:
            return
        yield each


def _targets(original: ir.Model, fits: Sequence[_Fit], samples: Sequence[Sample], rows: int, seed: int) -> Targets:
    found, rng = Targets(), np.random.default_rng(seed)
    for values in capture(original, [fit.goal for fit in fits], samples):
        for fit in fits:
            name = str(fit.linear.node.name)
            where = places(fit.original, rows, rng)
            found.where.setdefault(name, []).append(where)
            found.rows.setdefault(name, []).append(output_rows(fit.original, values[fit.goal], where)[:, fit.kept])
    return found


def _solve(model: ir.Model, fit: _Fit, targets: Targets, samples: Sequence[Sample], rank: int | None) -> None:
    """Least squares of one product, its bias with it where the node has one, at a rank where one is given."""
    linear, name = fit.linear, str(fit.linear.node.name)
    source = str(linear.source.name)
    old, bias = matrix(linear), _bias(linear)
    groups, depth, width = old.shape
    free = linear.node.op_type != "MatMul"
    squares, products = np.zeros((groups, depth + 1, depth + 1)), np.zeros((groups, depth + 1, width))
    names = [source] if fit.added is None else [source, fit.added]
    inputs, wanted = [], []
    runs = capture(model, names, samples)
    for values, where, goal in zip(runs, targets.where[name], targets.rows[name], strict=True):
        inputs.append(input_rows(linear, values[source], where))
        wanted.append(goal if fit.added is None else goal - output_rows(linear, values[fit.added], where))
    for low in range(0, len(inputs), _BATCH):
        rows = np.concatenate(inputs[low : low + _BATCH]).astype(np.float64).transpose(1, 0, 2)
        rows = np.concatenate([rows, np.full((*rows.shape[:2], 1), float(free))], axis=2)
        target = np.concatenate(wanted[low : low + _BATCH]) - (0 if free else bias)
        outputs = target.astype(np.float64).reshape(-1, groups, width).transpose(1, 0, 2)
        squares += rows.transpose(0, 2, 1) @ rows
        products += rows.transpose(0, 2, 1) @ outputs
    start = np.concatenate([old, bias.reshape(groups, width)[:, np.newaxis]], axis=1)
    found = start + _ridge(squares, products - squares @ start, sum(map(len, inputs)))
    set_constant(linear.weight, weight_of(linear, found[:, :depth]))
    if free:
        add_bias(linear, (found[:, depth].reshape(-1) - bias).astype(_dtype(linear)))
    if rank is not None and rank < break_even(depth, width):
        moments = Moments(squares[:, :depth, :depth], squares[:, :depth, depth], sum(map(len, inputs)))
        factorise(linear, from_moments({linear: moments})[linear], rank)


def _ridge(squares: np.ndarray, products: np.ndarray, count: int) -> np.ndarray:
    """(S + λ·I)⁻¹ P for each group, λ in proportion to the mean of the diagonal, and larger for few rows."""
    size = squares.shape[-1]
    share = RIDGE + uncertainty(size, count) ** 2
    mean = np.trace(squares, axis1=1, axis2=2) / size
    return np.linalg.solve(squares + np.eye(size) * (share * mean + 1e-12)[:, np.newaxis, np.newaxis], products)


def _bias(linear: Linear) -> np.ndarray:
    """float64 [channels]; zeros where the node adds nothing."""
    count = shape_of(linear.node.outputs[0])[linear.output_axis]
    found = constant_of(linear.bias)
    return np.zeros(count) if found is None else np.broadcast_to(found.reshape(-1), count).astype(np.float64)


def _dtype(linear: Linear) -> np.dtype[np.generic]:
    weight = constant_of(linear.weight)
    assert weight is not None
    return weight.dtype
