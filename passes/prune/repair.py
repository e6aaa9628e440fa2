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

from edgec.frontend.values import constant_of, input_of, shape_of
from edgec.passes.prune.activations import Sample, capture
from edgec.passes.prune.compensation import from_moments
from edgec.passes.prune.low_rank import Split, break_even, factorise
from edgec.passes.prune.products import (
    Moments,
    add_bias,
    has_rows,
    input_rows,
    matrix,
    output_rows,
    places,
    weight_of,
)
from edgec.passes.prune.removal import set_constant
from edgec.passes.prune.rules import Linear
from edgec.passes.rewriting import is_private

RIDGES = (1e-3, 1e-2, 1e-1, 1.0, 10.0)
"""How strongly the weights may be held to what they were, as shares of the inputs' mean square."""

_CHECKED = 4
"""One sample of so many takes no part in a fit that is judged by it."""

_CHUNK = 8192
"""Rows that are summed up at once."""

_STEPS = 12
"""Fits to targets that the reader's bounds make, each from the one before."""


@dataclass(frozen=True)
class _Fit:
    """A product to fit.

    Attributes:
        linear: as it is in the pruned model.
        original: the same in the original, whose positions of the output are the same.
        goal: the original's value to reach, and ``added``: what the pruned model adds to the output.
        kept: bool, the original's channels that are left.
        bounds: where all readers of the goal cut it off.
    """

    linear: Linear
    original: Linear
    goal: str
    added: str | None
    kept: np.ndarray
    bounds: tuple[float, float]


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
    splits: Mapping[str, Split], samples: Sequence[Sample], rows: int, seed: int,
) -> None:  # fmt: skip
    """Fit the products ``linears`` of ``model``, a pruned copy of ``original``, in place and in order.

    Args:
        originals: the same products in the original, by the same names; ``linears`` may lack some.
        kept: by the product's name, bool for each output channel of the original: whether it is left.
        splits: by name, of the products that become two thin ones once they are fitted.
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
        _solve(model, fit, targets, samples, splits.get(str(fit.linear.node.name)))


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
    return _Fit(linear, original, str(goal.name), added, kept, _bounds(goal))


def _bounds(value: ir.Value) -> tuple[float, float]:
    """Where every reader of ``value`` cuts it off; infinities where one does not."""
    readers = list(value.consumers())
    found = [_cut(node) for node in readers]
    if not found or value.is_graph_output() or any(each != found[0] for each in found):
        return -np.inf, np.inf
    return found[0]


def _cut(node: ir.Node) -> tuple[float, float]:
    if node.op_type == "Relu":
        return 0.0, np.inf
    if node.op_type == "Clip":
        low, high = (constant_of(input_of(node, index)) for index in (1, 2))
        return (-np.inf if low is None else low.item()), (np.inf if high is None else high.item())
    return -np.inf, np.inf


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


@dataclass
class _Normal:
    """The normal equations of a fit's change: S · change = P.

    Attributes:
        squares: float64 [groups, depth + 1, depth + 1], of the inputs and a one for the bias.
        products: float64 [groups, depth + 1, width], of those and what the product falls short of its target.
        rows: how many there are.
    """

    squares: np.ndarray
    products: np.ndarray
    rows: int = 0

    def __add__(self, other: _Normal) -> _Normal:
        return _Normal(self.squares + other.squares, self.products + other.products, self.rows + other.rows)


@dataclass(frozen=True)
class Rows:
    """What a product sees and should give, a row for each position of each sample.

    Attributes:
        inputs: float32 [groups, rows, depth + 1], the last a one for the bias, or a zero where the product has none.
        goal: float32 [groups, rows, width], the original's values.
        added: float32 [groups, rows, width], what the pruned model adds to the output; or None.
        bounds: where the reader cuts the values off: ReLU at (0, inf).
    """

    inputs: np.ndarray
    goal: np.ndarray
    added: np.ndarray | None
    bounds: tuple[float, float]

    def part(self, keep: np.ndarray) -> Rows:
        """Those where ``keep``, bool [rows], is true."""
        added = None if self.added is None else self.added[:, keep]
        return Rows(self.inputs[:, keep], self.goal[:, keep], added, self.bounds)

    def normal(self, weights: np.ndarray, *, bounded: bool = False) -> _Normal:
        """The equations for a change of ``weights``, float64 [groups, depth + 1, width].

        With ``bounded``, values that the reader cuts off as it does the original's are not wrong.
        """
        groups, size, width = weights.shape
        found = _Normal(np.zeros((groups, size, size)), np.zeros((groups, size, width)))
        for low in range(0, self.inputs.shape[1], _CHUNK):
            rows = self.inputs[:, low : low + _CHUNK]
            short = self._short(weights, low, bounded)
            turned = rows.transpose(0, 2, 1)
            found.products += turned @ short
            found.squares += turned @ rows
            found.rows += rows.shape[1]
        return found

    def short(self, weights: np.ndarray) -> np.ndarray:
        """float64 [groups, depth + 1, width]: the products of the bounded equations alone."""
        found = np.zeros(weights.shape)
        for low in range(0, self.inputs.shape[1], _CHUNK):
            found += self.inputs[:, low : low + _CHUNK].transpose(0, 2, 1) @ self._short(weights, low, True)
        return found

    def _short(self, weights: np.ndarray, low: int, bounded: bool) -> np.ndarray:
        rows, goal = self.inputs[:, low : low + _CHUNK], self.goal[:, low : low + _CHUNK]
        found = rows @ weights.astype(np.float32)
        if self.added is not None:
            found += self.added[:, low : low + _CHUNK]
        short = goal - found
        if bounded:
            least, most = self.bounds
            short = np.where(goal <= least, np.minimum(least - found, 0), short)
            short = np.where(goal >= most, np.maximum(most - found, 0), short)
        return short


def _solve(model: ir.Model, fit: _Fit, targets: Targets, samples: Sequence[Sample], split: Split | None) -> None:
    """Least squares of one product with the bias of its node, then split in two where that is still cheaper."""
    linear, bias = fit.linear, _bias(fit.linear)
    old = matrix(linear)
    groups, depth, width = old.shape
    start = np.concatenate([old, bias.reshape(groups, width)[:, np.newaxis]], axis=1)
    rows, index = _gather(model, fit, targets, samples)
    checked = index % _CHECKED == 0
    parts = [rows.part(~checked).normal(start), rows.part(checked).normal(start)]
    whole = parts[0] + parts[1]
    ridge = _best_ridge(*parts)
    change = _ridge(whole, ridge)
    if any(map(np.isfinite, rows.bounds)):
        change = fit_bounded(rows, start, change, whole, ridge)
    set_constant(linear.weight, weight_of(linear, (start + change)[:, :depth]))
    if linear.node.op_type != "MatMul":
        add_bias(linear, change[:, depth].reshape(-1).astype(_dtype(linear)))
    if split is not None and split.rank < break_even(linear, at_inputs=split.at_inputs):
        moments = Moments(whole.squares[:, :depth, :depth], whole.squares[:, :depth, depth], whole.rows)
        factorise(linear, from_moments({linear: moments})[linear], split)


def fit_bounded(rows: Rows, start: np.ndarray, change: np.ndarray, normal: _Normal, ridge: float) -> np.ndarray:
    """The change that brings nearest what the reader makes of the output.

    Where the original's value is cut off, a value that is cut off as well is its own target; least squares on
    these targets, again and again, never raise the distance (as Zhang et al. 2016 fit what a ReLU lets through).
    """
    penalty = _penalty(normal, ridge)
    inverse = np.linalg.inv(normal.squares + penalty)
    ahead, last = change, change
    for step in range(_STEPS):
        new = ahead + inverse @ (rows.short(start + ahead) - penalty @ ahead)
        ahead = new + step / (step + 3) * (new - last)
        last = new
    return last


def _gather(model: ir.Model, fit: _Fit, targets: Targets, samples: Sequence[Sample]) -> tuple[Rows, np.ndarray]:
    """The rows of all samples, and int [rows] the sample that each comes from."""
    linear, name = fit.linear, str(fit.linear.node.name)
    source = str(linear.source.name)
    inputs, added, index = [], [], []
    one = np.float32(linear.node.op_type != "MatMul")
    runs = capture(model, [source] if fit.added is None else [source, fit.added], samples)
    for number, (values, where) in enumerate(zip(runs, targets.where[name], strict=True)):
        seen = input_rows(linear, values[source], where)
        inputs.append(np.concatenate([seen, np.full((*seen.shape[:2], 1), one)], axis=2).astype(np.float32))
        index.append(np.full(len(where), number))
        if fit.added is not None:
            added.append(output_rows(linear, values[fit.added], where))

    def split(rows: Sequence[np.ndarray]) -> np.ndarray:
        whole = np.concatenate(rows)
        return np.ascontiguousarray(whole.reshape(len(whole), linear.groups, -1).transpose(1, 0, 2), np.float32)

    wide = np.ascontiguousarray(np.concatenate(inputs).transpose(1, 0, 2))
    goal = split(targets.rows[name])
    return Rows(wide, goal, split(added) if added else None, fit.bounds), np.concatenate(index)


def _best_ridge(seen: _Normal, checked: _Normal) -> float:
    """The ridge of ``RIDGES`` whose fit to the samples seen does best on those that it did not see."""
    if not seen.rows:
        return RIDGES[-1]
    gains = []
    for ridge in RIDGES:
        change = _ridge(seen, ridge)
        better = 2 * np.sum(change * checked.products) - np.sum(change * (checked.squares @ change))
        gains.append(float(better))
    return RIDGES[int(np.argmax(gains))]


def _ridge(normal: _Normal, ridge: float) -> np.ndarray:
    """(S + λ·I)⁻¹ P for each group; λ is a share of the inputs' mean square, and next to nothing for the bias."""
    return np.linalg.solve(normal.squares + _penalty(normal, ridge), normal.products)


def _penalty(normal: _Normal, ridge: float) -> np.ndarray:
    """float64 [groups, depth + 1, depth + 1]: λ·I."""
    size = normal.squares.shape[-1]
    mean = np.trace(normal.squares[:, :-1, :-1], axis1=1, axis2=2) / max(size - 1, 1) + 1e-12
    penalties = np.append(np.full(size - 1, ridge), 1e-6)
    found: np.ndarray = mean[:, np.newaxis, np.newaxis] * np.diag(penalties)
    return found


def _bias(linear: Linear) -> np.ndarray:
    """float64 [channels]; zeros where the node adds nothing."""
    count = shape_of(linear.node.outputs[0])[linear.output_axis]
    found = constant_of(linear.bias)
    return np.zeros(count) if found is None else np.broadcast_to(found.reshape(-1), count).astype(np.float64)


def _dtype(linear: Linear) -> np.dtype[np.generic]:
    weight = constant_of(linear.weight)
    assert weight is not None
    return weight.dtype
