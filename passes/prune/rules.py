"""What each operator does to labels: which indices of its inputs and outputs stay or go together.

``RULES`` has one function for each operator. An input that its function does not ask labels of is no data (a
shape, an index) and is pinned; so is everything that an operator without a rule touches.

An operator that works on several groups at once (a convolution with groups, a group norm, an axis that is split
in two) can lose whole groups (the outer unit) or the same place of every group (the inner unit). Which of them
is meant is the :class:`Tracer`'s ``outer``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from edgec.frontend.values import constant_of, input_of, shape_of
from edgec.passes.prune.labels import Labels
from edgec.passes.rewriting import named


@dataclass(frozen=True)
class Linear:
    """A product with a constant weight.

    Attributes:
        node: Conv, ConvTranspose, Gemm or MatMul.
        weight: its constant.
        source: the other factor.
        in_axis: the weight's axis that is summed over (of one group, where there are groups).
        out_axis: the weight's axis that becomes the output's channels.
        groups: how many independent products there are side by side.
    """

    node: ir.Node
    weight: ir.Value
    source: ir.Value
    in_axis: int
    out_axis: int
    groups: int = 1

    @property
    def reading(self) -> Reading:
        """Where the node sums over its source."""
        return Reading(self.node, 1 if self.node.inputs[0] is self.weight else 0, self.source_axis)

    @property
    def source_axis(self) -> int:
        """The axis of the source that is summed over."""
        if self.node.op_type in ("Conv", "ConvTranspose", "Gemm"):
            return 1
        left = self.node.inputs[0] is self.weight
        return len(shape_of(self.source)) - (2 if left else 1)

    @property
    def output_axis(self) -> int:
        """The axis of the output that has its channels."""
        if self.node.op_type in ("Conv", "ConvTranspose", "Gemm"):
            return 1
        left = self.node.inputs[0] is self.weight
        return len(shape_of(self.node.outputs[0])) - (2 if left else 1)

    @property
    def bias(self) -> ir.Value | None:
        """The constant that the node itself adds."""
        return None if self.node.op_type == "MatMul" else input_of(self.node, 2)


@dataclass(frozen=True)
class Reading:
    """Where a node sums over an axis of one of its operands, so that a zero there is as good as nothing."""

    node: ir.Node
    operand: int
    axis: int

    @property
    def value(self) -> ir.Value:
        """The operand."""
        value = self.node.inputs[self.operand]
        assert value is not None
        return value


@dataclass
class Tracer:
    """Labels while the rules run over a graph, and what they find on the way.

    Attributes:
        labels: of every value.
        outer: whether whole groups go, or one place of every group.
        linears: the products with constant weights.
        contractions: where computed operands are summed over, by themselves or times each other.
        chosen: whether some rule had the choice that ``outer`` makes.
    """

    labels: Labels
    outer: bool
    linears: list[Linear] = field(default_factory=list)
    contractions: list[Reading] = field(default_factory=list)
    chosen: bool = False
    _touched: set[ir.Value] = field(default_factory=set)

    def trace(self, node: ir.Node) -> None:
        """Apply the rule of ``node``."""
        rule = RULES.get(node.op_type) if node.domain in ("", "edgec") else None
        self._touched = set()
        if rule is None:
            self._pin_all(node, f"{named(node)} is not known to keep channels apart")
            return
        rule(self, node)
        for value in node.inputs:
            if value is not None and value not in self._touched:
                self.pin_axes(value, range(len(shape_of(value))), f"{named(node)} takes it for more than data")

    def of(self, value: ir.Value | None) -> tuple[np.ndarray, ...]:
        """The labels of an operand that is present."""
        assert value is not None
        self._touched.add(value)
        return self.labels.of(value)

    def same(self, value: ir.Value, other: ir.Value, axes: Sequence[int] | None = None) -> None:
        """Axis by axis two values of one rank are labelled alike (on ``axes`` only, if given)."""
        ours, theirs = self.of(value), self.of(other)
        for axis in range(len(ours)) if axes is None else axes:
            self.labels.unite(ours[axis], theirs[axis])

    def pin_axes(self, value: ir.Value | None, axes: Sequence[int], reason: str) -> None:
        """The ``axes`` of a value keep all their indices."""
        for axis in axes:
            self.labels.pin(self.of(value)[axis], reason)

    def _pin_all(self, node: ir.Node, reason: str) -> None:
        for value in (*node.inputs, *node.outputs):
            if value is not None and value.shape is not None:
                self.pin_axes(value, range(len(shape_of(value))), reason)


Rule = Callable[[Tracer, ir.Node], None]


def _source(node: ir.Node) -> ir.Value:
    value = node.inputs[0]
    assert value is not None
    return value


def _elementwise(tracer: Tracer, node: ir.Node) -> None:
    """Every output index needs the same index of each operand that is not spread over it."""
    output = node.outputs[0]
    wanted = tracer.of(output)
    for value in node.inputs:
        if value is None:
            continue
        labels = tracer.of(value)
        for ours, theirs in zip(reversed(labels), reversed(wanted), strict=False):
            if len(ours) == len(theirs):
                tracer.labels.unite(theirs, ours)
            else:
                tracer.labels.pin(ours, f"{named(node)} spreads it over a longer axis")


def _unary(tracer: Tracer, node: ir.Node) -> None:
    """One operand; further inputs are scalars."""
    tracer.same(node.outputs[0], _source(node))


def _spatial(tracer: Tracer, node: ir.Node) -> None:
    """Batch and channels as they were; the axes behind them slide."""
    value, output = _source(node), node.outputs[0]
    tracer.same(output, value, (0, 1))
    for each in (value, output):
        tracer.pin_axes(each, range(2, len(shape_of(each))), f"{named(node)} slides along it")


def _conv(tracer: Tracer, node: ir.Node) -> None:
    weight = _windows(tracer, node)
    _products(tracer, Linear(node, weight, _source(node), 1, 0, node.attributes.get_int("group", 1)), axis=1)


def _conv_transpose(tracer: Tracer, node: ir.Node) -> None:
    weight = _windows(tracer, node)
    _products(tracer, Linear(node, weight, _source(node), 0, 1, node.attributes.get_int("group", 1)), axis=1)


def _windows(tracer: Tracer, node: ir.Node) -> ir.Value:
    """Batch as it was, and no axis of positions or of the kernel changes; the weight."""
    value, weight, output = _source(node), node.inputs[1], node.outputs[0]
    assert weight is not None
    tracer.same(output, value, (0,))
    for each in (value, weight, output):
        tracer.pin_axes(each, range(2, len(shape_of(each))), f"{named(node)} slides along it")
    return weight


def _products(tracer: Tracer, linear: Linear, axis: int) -> None:
    """Channels at ``axis`` of the source and the output meet the weight's two axes, whose shorter is one group's."""
    output, weight, groups = linear.node.outputs[0], tracer.of(linear.weight), linear.groups
    inputs, outputs = tracer.of(linear.source)[axis], tracer.of(output)[axis]
    sides = ((inputs, weight[linear.in_axis]), (outputs, weight[linear.out_axis]))
    if groups > 1 and _by_group(tracer, groups, len(inputs), len(outputs)):
        _couple_groups(tracer, linear, sides)
    else:
        for channels, row in sides:
            _couple_places(tracer.labels, channels, row, groups)
    if linear.bias is not None:
        tracer.labels.unite(outputs, tracer.of(linear.bias)[-1])
    _note(tracer, linear)


def _by_group(tracer: Tracer, groups: int, *channels: int) -> bool:
    """Whether whole groups go: always where a group has a single channel on one side."""
    single = groups in channels
    tracer.chosen |= not single
    return single or tracer.outer


def _couple_groups(tracer: Tracer, linear: Linear, sides: Sequence[tuple[np.ndarray, np.ndarray]]) -> None:
    """All inputs and outputs of a group are one unit."""
    first = sides[0][0].reshape(linear.groups, -1)[:, 0]
    for channels, row in sides:
        for labels in channels.reshape(linear.groups, -1).T:
            tracer.labels.unite(first, labels)
        if len(row) == len(channels):
            tracer.labels.unite(channels, row)
        else:
            tracer.labels.pin(row, f"{named(linear.node)} keeps the width of its groups")


def _couple_places(labels: Labels, channels: np.ndarray, row: np.ndarray, groups: int) -> None:
    """The same place of every group is one unit."""
    parts = channels.reshape(groups, -1)
    for part in parts:
        labels.unite(parts[0], part)
    labels.unite(row, channels if len(row) == len(channels) else parts[0])


def _note(tracer: Tracer, linear: Linear) -> None:
    """Keep a product whose weight is a constant; of two computed operands only what they are summed over."""
    if linear.weight.const_value is not None:
        tracer.linears.append(linear)
    else:
        tracer.contractions.append(Reading(linear.node, 0, linear.source_axis))


def _matmul(tracer: Tracer, node: ir.Node) -> None:
    left, right = node.inputs[:2]
    assert left is not None and right is not None
    if min(len(shape_of(left)), len(shape_of(right))) < 2:
        for value in (left, right, node.outputs[0]):
            tracer.pin_axes(value, range(len(shape_of(value))), f"{named(node)} multiplies a vector")
        return
    _batches(tracer, node, (left, right))
    a, b, c = tracer.of(left), tracer.of(right), tracer.of(node.outputs[0])
    tracer.labels.unite(a[-1], b[-2])
    tracer.labels.unite(c[-2], a[-2])
    tracer.labels.unite(c[-1], b[-1])
    rank = len(b)
    if left.const_value is not None and rank == len(a) == 2:
        _note(tracer, Linear(node, left, right, 1, 0))
    else:
        _note(tracer, Linear(node, right, left, rank - 2, rank - 1))


def _batches(tracer: Tracer, node: ir.Node, operands: Sequence[ir.Value | None]) -> None:
    """The axes in front of the last two are paired, or spread where one of them is 1."""
    output = tracer.of(node.outputs[0])[:-2]
    for value in operands:
        for ours, theirs in zip(reversed(tracer.of(value)[:-2]), reversed(output), strict=False):
            if len(ours) == len(theirs):
                tracer.labels.unite(theirs, ours)
            else:
                tracer.labels.pin(ours, f"{named(node)} spreads it over a longer axis")


def _attention(tracer: Tracer, node: ir.Node) -> None:
    """softmax(q·k)·v with k transposed; a mask on the scores is spread over the batch."""
    query, key, value = (tracer.of(each) for each in node.inputs[:3])
    output = tracer.of(node.outputs[0])
    _batches(tracer, node, node.inputs[:3])
    tracer.labels.unite(query[-1], key[-2])
    tracer.labels.unite(output[-2], query[-2])
    tracer.labels.unite(output[-1], value[-1])
    tracer.labels.unite(key[-1], value[-2])
    tracer.labels.pin(key[-1], f"{named(node)} takes the softmax along it")
    tracer.contractions.append(Reading(node, 0, len(query) - 1))
    if len(node.inputs) > 3:
        mask = node.inputs[3]
        tracer.pin_axes(mask, range(-min(2, len(shape_of(mask))), 0), f"{named(node)} masks positions by it")
        _batches(tracer, node, (mask,))


def _gemm(tracer: Tracer, node: ir.Node) -> None:
    left, right = node.inputs[:2]
    assert left is not None and right is not None
    a, b, output = tracer.of(left), tracer.of(right), tracer.of(node.outputs[0])
    a_in = 0 if node.attributes.get_int("transA", 0) else 1
    b_in = 1 if node.attributes.get_int("transB", 0) else 0
    tracer.labels.unite(a[a_in], b[b_in])
    tracer.labels.unite(output[0], a[1 - a_in])
    tracer.labels.unite(output[1], b[1 - b_in])
    addend = input_of(node, 2)
    if addend is not None:
        for ours, theirs in zip(reversed(tracer.of(addend)), reversed(output), strict=False):
            if len(ours) == len(theirs):
                tracer.labels.unite(theirs, ours)
            else:
                tracer.labels.pin(ours, f"{named(node)} spreads it over a longer axis")
    if a_in == 1:
        _note(tracer, Linear(node, right, left, b_in, 1 - b_in))
    else:
        tracer.contractions.append(Reading(node, 0, a_in))


def _batch_norm(tracer: Tracer, node: ir.Node) -> None:
    tracer.same(node.outputs[0], _source(node))
    _parameters(tracer, node)


def _parameters(tracer: Tracer, node: ir.Node) -> None:
    """Every input but the first has one number a channel."""
    channels = tracer.of(_source(node))[1]
    for value in node.inputs[1:]:
        if value is not None:
            tracer.labels.unite(channels, tracer.of(value)[0])


def _instance_norm(tracer: Tracer, node: ir.Node) -> None:
    tracer.same(node.outputs[0], _source(node), (0, 1))
    _parameters(tracer, node)
    for each in (_source(node), node.outputs[0]):
        tracer.pin_axes(each, range(2, len(shape_of(each))), f"{named(node)} takes means along it")


def _group_norm(tracer: Tracer, node: ir.Node) -> None:
    """Means over a group's channels change when some go, so only whole groups can."""
    groups = node.attributes.get_int("num_groups", 1)
    _instance_norm(tracer, node)
    channels = tracer.of(_source(node))[1]
    tracer.chosen = True
    if groups == 1 or not tracer.outer:
        tracer.labels.pin(channels, f"{named(node)} takes means over the channels of a group")
        return
    for labels in channels.reshape(groups, -1).T:
        tracer.labels.unite(channels.reshape(groups, -1)[:, 0], labels)


def _layer_norm(tracer: Tracer, node: ir.Node) -> None:
    """Every index behind ``axis`` has a share in the mean and the variance."""
    rank = len(shape_of(_source(node)))
    first = node.attributes.get_int("axis", -1) % rank
    tracer.same(node.outputs[0], _source(node))
    for value in (_source(node), *node.inputs[1:]):
        if value is not None:
            axes = range(first, rank) if value is _source(node) else range(len(shape_of(value)))
            tracer.pin_axes(value, axes, f"{named(node)} normalises over it")


def _along_axis(default: int) -> Rule:
    """An operator that mixes what lies along its attribute ``axis``, and nothing else."""

    def rule(tracer: Tracer, node: ir.Node) -> None:
        axis = node.attributes.get_int("axis", default) % len(shape_of(_source(node)))
        tracer.same(node.outputs[0], _source(node))
        tracer.pin_axes(_source(node), (axis,), f"{named(node)} mixes what lies along it")

    return rule


def _reduce(tracer: Tracer, node: ir.Node) -> None:
    """Removing a summand of zero does no harm; to a mean or a maximum it does."""
    value, output = _source(node), node.outputs[0]
    rank = len(shape_of(value))
    axes = reduced_axes(node, rank)
    kept = [axis for axis in range(rank) if axis not in axes]
    keeps = node.attributes.get_int("keepdims", 1)
    for place, axis in enumerate(kept):
        tracer.labels.unite(tracer.of(output)[axis if keeps else place], tracer.of(value)[axis])
    if node.op_type == "ReduceSum":
        tracer.contractions.extend(Reading(node, 0, axis) for axis in axes)
    else:
        tracer.pin_axes(value, axes, f"{named(node)} reduces it")


def reduced_axes(node: ir.Node, rank: int) -> list[int]:
    """The axes that a Reduce operator takes away, from its input or its attribute; all by default."""
    given = constant_of(input_of(node, 1))
    axes = node.attributes.get_ints("axes", ()) if given is None else given.tolist()
    return sorted(axis % rank for axis in axes) or list(range(rank))


def _transpose(tracer: Tracer, node: ir.Node) -> None:
    value, output = tracer.of(_source(node)), tracer.of(node.outputs[0])
    order = node.attributes.get_ints("perm", range(len(value))[::-1])
    for ours, axis in zip(output, order, strict=True):
        tracer.labels.unite(ours, value[axis])


def _concat(tracer: Tracer, node: ir.Node) -> None:
    output = tracer.of(node.outputs[0])
    axis = node.attributes.get_int("axis", 0) % len(output)
    start = 0
    for value in node.inputs:
        for index, labels in enumerate(tracer.of(value)):
            theirs = output[index][start : start + len(labels)] if index == axis else output[index]
            tracer.labels.unite(theirs, labels)
        start += len(tracer.of(value)[axis])


def _split(tracer: Tracer, node: ir.Node) -> None:
    value = tracer.of(_source(node))
    axis = node.attributes.get_int("axis", 0) % len(value)
    start = 0
    for output in node.outputs:
        for index, labels in enumerate(tracer.of(output)):
            theirs = value[index][start : start + len(labels)] if index == axis else value[index]
            tracer.labels.unite(theirs, labels)
        start += len(tracer.of(output)[axis])


def slice_bounds(node: ir.Node) -> list[tuple[int, slice]]:
    """The axis and the range of every cut that a Slice makes; its bounds must be constants."""
    shape = shape_of(node.inputs[0])
    arrays = [constant_of(input_of(node, index)) for index in range(1, 5)]
    starts, ends = (array.tolist() for array in arrays[:2] if array is not None)
    axes = range(len(starts)) if arrays[2] is None else arrays[2].tolist()
    steps = [1] * len(starts) if arrays[3] is None else arrays[3].tolist()
    return [
        (axis % len(shape), slice(start, None if step < 0 and end < -shape[axis] else end, step))
        for axis, start, end, step in zip(axes, starts, ends, steps, strict=True)
    ]


def _slice(tracer: Tracer, node: ir.Node) -> None:
    """A cut without steps can move with what is left; one with steps cannot."""
    if any(constant_of(value) is None for value in node.inputs[1:] if value is not None):
        tracer.pin_axes(_source(node), range(len(shape_of(_source(node)))), f"{named(node)} cuts at computed places")
        return
    value, output = list(tracer.of(_source(node))), tracer.of(node.outputs[0])
    for axis, bounds in slice_bounds(node):
        cut = value[axis][bounds]
        if bounds.step != 1:
            tracer.labels.pin(value[axis], f"{named(node)} takes every {bounds.step}th of it")
        value[axis] = cut
    for ours, theirs in zip(output, value, strict=True):
        tracer.labels.unite(ours, theirs)


def _pad(tracer: Tracer, node: ir.Node) -> None:
    """What is added has labels of its own; only zeros can be added along an axis that shrinks."""
    value, output = tracer.of(_source(node)), tracer.of(node.outputs[0])
    mode = node.attributes.get_string("mode", "constant")
    for axis, (before, after) in pad_widths(node).items():
        inner = output[axis][max(before, 0) : len(output[axis]) - max(after, 0)]
        source = value[axis][max(-before, 0) : len(value[axis]) - max(-after, 0)]
        tracer.labels.unite(inner, source)
        if mode != "constant" or min(before, after) < 0:
            tracer.labels.pin(value[axis], f"{named(node)} pads it with its own values")


def pad_widths(node: ir.Node) -> dict[int, tuple[int, int]]:
    """What a Pad adds before and after, for every axis; nothing where its widths are computed."""
    rank = len(shape_of(node.inputs[0]))
    pads, axes = constant_of(input_of(node, 1)), constant_of(input_of(node, 3))
    if pads is None:
        return {}
    widths = dict.fromkeys(range(rank), (0, 0))
    named_axes = range(rank) if axes is None else [int(axis) % rank for axis in axes]
    half = len(pads) // 2
    for place, axis in enumerate(named_axes):
        widths[axis] = (int(pads[place]), int(pads[half + place]))
    return widths


def _gather(tracer: Tracer, node: ir.Node) -> None:
    """Constant indices of one axis pick labels; computed ones may need every row."""
    value, output = tracer.of(_source(node)), tracer.of(node.outputs[0])
    axis = node.attributes.get_int("axis", 0) % len(value)
    indices = constant_of(node.inputs[1])
    width = len(shape_of(node.inputs[1]))
    for place, labels in enumerate((*value[:axis], *value[axis + 1 :])):
        tracer.labels.unite(output[place if place < axis else place + width], labels)
    if indices is None or indices.ndim != 1:
        tracer.labels.pin(value[axis], f"{named(node)} picks from it")
    if indices is not None and indices.ndim == 1:
        tracer.labels.unite(output[axis], value[axis][indices])
    else:
        for place in range(axis, axis + width):
            tracer.labels.pin(output[place], f"{named(node)} picks what stands there")


def _expand(tracer: Tracer, node: ir.Node) -> None:
    value, output = tracer.of(_source(node)), tracer.of(node.outputs[0])
    offset = len(output) - len(value)
    for axis, labels in enumerate(output):
        theirs = value[axis - offset] if axis >= offset else None
        if theirs is not None and len(theirs) == len(labels):
            tracer.labels.unite(theirs, labels)
        else:
            tracer.labels.pin(labels, f"{named(node)} makes copies along it")


def _tile(tracer: Tracer, node: ir.Node) -> None:
    for ours, theirs in zip(tracer.of(node.outputs[0]), tracer.of(_source(node)), strict=True):
        for copy in ours.reshape(-1, len(theirs)):
            tracer.labels.unite(theirs, copy)


def _depth_to_space(tracer: Tracer, node: ir.Node) -> None:
    """Channels of the input are (block, block, channel) or (channel, block, block) of the output's."""
    value, output = _source(node), node.outputs[0]
    channels, inputs = tracer.of(output)[1], tracer.of(value)[1]
    blocks = len(inputs) // len(channels)
    channels_first = node.attributes.get_string("mode", "DCR") == "CRD"
    tracer.labels.unite(np.repeat(channels, blocks) if channels_first else np.tile(channels, blocks), inputs)
    _keep_positions(tracer, node)


def _space_to_depth(tracer: Tracer, node: ir.Node) -> None:
    channels, outputs = tracer.of(_source(node))[1], tracer.of(node.outputs[0])[1]
    tracer.labels.unite(np.tile(channels, len(outputs) // len(channels)), outputs)
    _keep_positions(tracer, node)


def _keep_positions(tracer: Tracer, node: ir.Node) -> None:
    value, output = _source(node), node.outputs[0]
    tracer.same(output, value, (0,))
    for each in (value, output):
        tracer.pin_axes(each, (2, 3), f"{named(node)} moves between it and the channels")


def _moved_later(tracer: Tracer, node: ir.Node) -> None:
    """Merged and split axes are traced when all pins are known: see :mod:`edgec.passes.prune.reshapes`."""
    tracer.of(_source(node))


RESHAPES = ("Reshape", "Flatten", "Squeeze", "Unsqueeze")
"""Operators that keep the order of the elements and only draw the borders of axes elsewhere."""

RULES: Mapping[str, Rule] = {
    **dict.fromkeys(
        ("Add", "Sub", "Mul", "Div", "Pow", "Max", "Min", "Mean", "Sum", "PRelu", "Where", "Mod", "Equal", "Greater",
         "GreaterOrEqual", "Less", "LessOrEqual", "And", "Or", "Xor"),
        _elementwise,
    ),
    **dict.fromkeys(
        ("Abs", "Acos", "Asin", "Atan", "Cast", "Ceil", "Celu", "Clip", "Cos", "Dropout", "Elu", "Erf", "Exp", "Floor",
         "Gelu", "GeluTanh", "HardSigmoid", "HardSwish", "Identity", "IsNaN", "LeakyRelu", "Log", "Mish", "Neg", "Not",
         "Reciprocal", "Relu", "Round", "Selu", "Shrink", "Sigmoid", "Sign", "Sin", "Sinh", "Softplus", "Softsign",
         "Sqrt", "Swish", "Tan", "Tanh", "ThresholdedRelu"),
        _unary,
    ),
    **dict.fromkeys(
        ("AveragePool", "MaxPool", "LpPool", "GlobalAveragePool", "GlobalMaxPool", "Resize"), _spatial
    ),
    **dict.fromkeys(("Softmax", "LogSoftmax", "Hardmax", "CumSum"), _along_axis(-1)),
    "LpNormalization": _along_axis(-1),
    "LRN": _along_axis(1),
    **dict.fromkeys(RESHAPES, _moved_later),
    **dict.fromkeys(
        ("ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceL1", "ReduceL2", "ReduceSumSquare",
         "ReduceLogSumExp", "ReduceLogSum"),
        _reduce,
    ),
    **dict.fromkeys(("LayerNormalization", "RMSNormalization"), _layer_norm),
    **dict.fromkeys(("Attention", "MaskedAttention"), _attention),
    "BatchNormalization": _batch_norm,
    "Concat": _concat,
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "DepthToSpace": _depth_to_space,
    "Expand": _expand,
    "Gather": _gather,
    "Gemm": _gemm,
    "GroupNormalization": _group_norm,
    "InstanceNormalization": _instance_norm,
    "MatMul": _matmul,
    "Pad": _pad,
    "Slice": _slice,
    "SpaceToDepth": _space_to_depth,
    "Split": _split,
    "Tile": _tile,
    "Transpose": _transpose,
}  # fmt: skip
