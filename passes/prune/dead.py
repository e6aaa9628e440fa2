"""Exactly dead units: what can go without a loss, as sparse training leaves it.

A unit is dead if every product that reads it has zeros for it, or if it is a constant whatever the input is: its
producers' weights are zeros, so that the bias is all that comes out, and what follows maps a channel to itself. A
constant other than 0 goes into the readers' biases, where it can: not where a convolution pads with zeros beside
it. ``constants`` follows channels through the graph; what it does not know is no constant.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping

import numpy as np
import onnx_ir as ir

from edgec.frontend.values import constant_of, input_of, shape_of
from edgec.passes.prune.cost import Cost
from edgec.passes.prune.coupling import Coupling, Group, Unit
from edgec.passes.prune.products import add_bias, has_rows
from edgec.passes.prune.rules import Linear, pad_widths, reduced_axes

Channels = Mapping[ir.Value, np.ndarray]
"""float64 for every index of a value's channels: the constant that stands there, NaN where the input decides."""


def dead_units(model: ir.Model, coupling: Coupling) -> list[Unit]:
    """The units that can go at no loss; every axis keeps an index."""
    known, cost = constants(model, coupling), Cost(model, "parameters")
    found: list[Unit] = []
    for group in coupling.groups:
        for unit in group.units:
            if (_is_unread(group, unit) or _is_constant(group, unit, known)) and cost.smallest(unit) > 0:
                cost.remove(unit)
                found.append(unit)
    return found


def absorb(model: ir.Model, coupling: Coupling, units: Iterable[Unit]) -> None:
    """Add to the readers' biases what ``units``, which are dead, contribute; they can be cut out then.

    The biases must be the readers' own (:func:`edgec.passes.prune.products.own_biases`).
    """
    known, gone = constants(model, coupling), set(units)
    places: dict[Linear, list[np.ndarray]] = defaultdict(list)
    for group in coupling.groups:
        for linear in group.mixers:
            places[linear] += [unit.cuts[linear.source, linear.source_axis] for unit in group.units if unit in gone]
    for linear, cuts in places.items():
        if cuts:
            channels = np.unique(np.concatenate(cuts))
            values = np.nan_to_num(_known(known, linear.source)[channels])
            if values.any():
                _add_to_bias(linear, channels, values)


def constants(model: ir.Model, coupling: Coupling) -> Channels:
    """Which channels are constant, by value, from the inputs on."""
    linears = {linear.node: linear for linear in coupling.linears}
    known: dict[ir.Value, np.ndarray] = {}
    for node in model.graph:
        output, linear = node.outputs[0], linears.get(node)
        rule = _RULES.get(node.op_type) if node.domain in ("", "edgec") else None
        if _axis(output) is None or (linear is not None and linear.output_axis != _axis(output)):
            continue
        found = _of_linear(linear, known) if linear is not None else rule(node, known) if rule is not None else None
        if found is not None:
            known[output] = found
    return known


def _axis(value: ir.Value) -> int | None:
    """Where the channels of a value are: axis 1 of an image or a row, the last of a sequence."""
    rank = len(shape_of(value))
    return None if rank < 2 else 2 if rank == 3 else 1


def _of_linear(linear: Linear, known: Channels) -> np.ndarray:
    """The bias, where a channel's weights are zeros or meet nothing but zeros."""
    weight, output = _weight(linear), linear.node.outputs[0]
    count = shape_of(output)[linear.output_axis]
    zero = np.asarray(~weight.any(axis=tuple(axis for axis in range(weight.ndim) if axis != linear.out_axis)))
    zero = np.tile(zero, count // len(zero))
    source = _known(known, linear.source)
    if linear.groups == len(source) and linear.source_axis == _axis(linear.source):
        zero = zero | np.repeat(source == 0, count // len(source))
    bias = None if linear.bias is None else constant_of(linear.bias)
    if linear.bias is not None and (bias is None or bias.size not in (1, count)):
        return np.full(count, np.nan)
    values = np.zeros(count) if bias is None else np.broadcast_to(bias.reshape(-1), count).astype(np.float64)
    return np.where(zero, values, np.nan)


def _known(known: Channels, value: ir.Value) -> np.ndarray:
    axis = _axis(value)
    count = 0 if axis is None else shape_of(value)[axis]
    return known.get(value, np.full(count, np.nan))


def _is_unread(group: Group, unit: Unit) -> bool:
    """Whether products alone read the unit, and all have zeros for it."""
    return (
        bool(group.mixers)
        and not group.contractions
        and not any(
            _weight(linear).take(unit.cuts[linear.weight, linear.in_axis], linear.in_axis).any()
            for linear in group.mixers
        )
    )


def _weight(linear: Linear) -> np.ndarray:
    weight = constant_of(linear.weight)
    assert weight is not None
    return weight


def _is_constant(group: Group, unit: Unit, known: Channels) -> bool:
    """Whether the unit is constant wherever a product sums over it, and the product's bias can take that."""
    for linear in group.mixers:
        if _axis(linear.source) != linear.source_axis:
            return False
        values = _known(known, linear.source)[unit.cuts[linear.source, linear.source_axis]]
        if np.isnan(values).any() or (values.any() and not _takes_constants(linear)):
            return False
    return bool(group.mixers) and not group.contractions


def _takes_constants(linear: Linear) -> bool:
    """Whether a constant channel adds the same to every place of the output, and the node has a bias for that."""
    node = linear.node
    if node.op_type == "Conv":
        pads = node.attributes.get_ints("pads", (0,))
        return (
            linear.groups == 1
            and has_rows(linear)
            and not any(pads)
            and node.attributes.get_string("auto_pad", "NOTSET") == "NOTSET"
        )
    return node.op_type == "Gemm" and has_rows(linear)


def _add_to_bias(linear: Linear, channels: np.ndarray, values: np.ndarray) -> None:
    rows = np.moveaxis(_weight(linear).astype(np.float64), (linear.out_axis, linear.in_axis), (0, 1))[:, channels]
    extra = np.einsum("oik,i->o", rows.reshape(*rows.shape[:2], -1), values)
    add_bias(linear, extra.astype(_weight(linear).dtype))


Rule = Callable[[ir.Node, Channels], "np.ndarray | None"]


def _map(function: Callable[[np.ndarray], np.ndarray]) -> Rule:
    """A function of one operand, place by place."""

    def rule(node: ir.Node, known: Channels) -> np.ndarray | None:
        found = known.get(node.inputs[0]) if node.inputs[0] is not None else None
        return None if found is None else function(found)

    return rule


def _clip(node: ir.Node, known: Channels) -> np.ndarray | None:
    found = known.get(node.inputs[0]) if node.inputs[0] is not None else None
    low, high = constant_of(input_of(node, 1)), constant_of(input_of(node, 2))
    return None if found is None else np.clip(found, low, high)


def _keep(node: ir.Node, known: Channels) -> np.ndarray | None:
    """Channels stay where they are, each with its constant."""
    source = node.inputs[0]
    found = None if source is None else known.get(source)
    return found if found is not None and len(found) == len(_known({}, node.outputs[0])) else None


def _keep_zeros(node: ir.Node, known: Channels) -> np.ndarray | None:
    """Only a zero survives: beside a border, or a function that is not written down here."""
    found = _keep(node, known)
    return None if found is None else np.where(found == 0, 0.0, np.nan)


def _batch_norm(node: ir.Node, known: Channels) -> np.ndarray | None:
    """An affine map of each channel; of a scale of 0 only the shift is left."""
    scale, shift, mean, variance = (constant_of(value) for value in node.inputs[1:5])
    if scale is None or shift is None or mean is None or variance is None:
        return None
    factor = scale.astype(np.float64) / np.sqrt(
        variance.astype(np.float64) + node.attributes.get_float("epsilon", 1e-5)
    )
    assert node.inputs[0] is not None
    source = np.where(factor == 0, 0.0, _known(known, node.inputs[0]))
    return source * factor + shift - mean * factor


def _combine(function: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> Rule:
    """A function of two operands, each of them computed or a constant of one number a channel."""

    def rule(node: ir.Node, known: Channels) -> np.ndarray | None:
        operands = [_operand(value, node.outputs[0], known) for value in node.inputs]
        with np.errstate(invalid="ignore", divide="ignore"):
            return function(operands[0], operands[1])

    return rule


def _operand(value: ir.Value | None, output: ir.Value, known: Channels) -> np.ndarray:
    """The operand's constants by the output's channels."""
    axis = _axis(output)
    assert value is not None and axis is not None
    count, rank = shape_of(output)[axis], len(shape_of(output))
    array = constant_of(value)
    if array is None:
        return known[value] if value in known and len(known[value]) == count else np.full(count, np.nan)
    wide = array.reshape((1,) * (rank - array.ndim) + array.shape).astype(np.float64)
    if wide.size not in (1, wide.shape[axis]):
        return np.full(count, np.nan)
    return np.broadcast_to(wide.reshape(-1), count)


def _times(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Zero times anything that is computed is zero."""
    return np.where((a == 0) | (b == 0), 0.0, a * b)


def _concat(node: ir.Node, known: Channels) -> np.ndarray | None:
    axis = _axis(node.outputs[0])
    if node.attributes.get_int("axis", 0) % len(shape_of(node.outputs[0])) != axis:
        return None
    return np.concatenate([_known(known, value) for value in node.inputs if value is not None])


def _pad(node: ir.Node, known: Channels) -> np.ndarray | None:
    """New channels of zeros; beside zeros a channel of zeros stays one."""
    source, output = node.inputs[0], node.outputs[0]
    axis, value = _axis(output), constant_of(input_of(node, 2))
    widths = pad_widths(node)
    if source is None or axis is None or not widths or min(widths[axis]) < 0 or (value is not None and value.any()):
        return None
    if node.attributes.get_string("mode", "constant") != "constant":
        return None
    found = _known(known, source)
    flat = all(not any(width) for other, width in widths.items() if other != axis)
    return np.pad(found if flat else np.where(found == 0, 0.0, np.nan), widths[axis])


def _reduce_mean(node: ir.Node, known: Channels) -> np.ndarray | None:
    """The mean over positions of a constant is the constant."""
    source = node.inputs[0]
    assert source is not None
    return None if _axis(source) in reduced_axes(node, len(shape_of(source))) else _keep(node, known)


def _flatten(node: ir.Node, known: Channels) -> np.ndarray | None:
    """(channels, positions) become one axis, a channel's positions side by side."""
    source, output = node.inputs[0], node.outputs[0]
    assert source is not None
    found, shape, flat = known.get(source), shape_of(source), shape_of(output)
    if found is None or _axis(source) != 1 or len(flat) != 2 or flat[0] != shape[0] or flat[1] % shape[1]:
        return None
    return np.repeat(found, flat[1] // shape[1])


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


_RULES: Mapping[str, Rule] = {
    "Abs": _map(np.abs),
    "Add": _combine(np.add),
    "BatchNormalization": _batch_norm,
    "Clip": _clip,
    "Concat": _concat,
    "Flatten": _flatten,
    "Mul": _combine(_times),
    "Neg": _map(np.negative),
    "Pad": _pad,
    "ReduceMean": _reduce_mean,
    "Relu": _map(lambda x: np.maximum(x, 0)),
    "Reshape": _flatten,
    "Sigmoid": _map(_sigmoid),
    "Sub": _combine(np.subtract),
    "Tanh": _map(np.tanh),
    **dict.fromkeys(("Dropout", "GlobalAveragePool", "GlobalMaxPool", "Identity", "MaxPool", "Slice"), _keep),
    **dict.fromkeys(
        ("AveragePool", "Elu", "Erf", "Gelu", "GeluTanh", "HardSwish", "LeakyRelu", "PRelu", "Resize", "Selu",
         "Softsign", "Swish"),
        _keep_zeros,
    ),
}  # fmt: skip
