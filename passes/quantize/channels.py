"""Which channels can be scaled together without changing what a network computes.

Every output channel of a product or of a batch norm gets a number. The numbers are carried through the graph: functions
with f(s·x) = s·f(x) keep them, movements move them, a sum makes the numbers of its two inputs one. What reads them last
is a product or a batch norm, which can take the factor back in its weights. A channel that anything else reads, or that
is an output of the graph, is not free.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from edgec.frontend.values import constant_of, input_of, shape_of
from edgec.passes.quantize.execution import NodeRunner
from edgec.passes.quantize.operators import Role, channel_axis, is_clamp, quantised_inputs, role_of, weight_axis
from edgec.passes.quantize.products import Product, product_of
from edgec.passes.rewriting import new_constant

_HOMOGENEOUS = frozenset({
    "AveragePool", "Clip", "GlobalAveragePool", "GlobalMaxPool", "Identity", "LeakyRelu", "MaxPool", "Pad", "PRelu",
    "Relu", "Resize",
})  # fmt: skip
_MOVING = frozenset({
    "Concat", "Flatten", "Gather", "Reshape", "Slice", "Split", "Squeeze", "Transpose", "Unsqueeze",
})  # fmt: skip
_FIXED = 0
"""The number of all channels that cannot be scaled."""


@dataclass(frozen=True)
class Port:
    """Where numbered channels enter or leave a product or a batch norm.

    Attributes:
        node: that one.
        value: its data input, or its result.
        numbers: int64 [channels].
        axis: where the channels lie in the value.
    """

    node: ir.Node
    value: ir.Value
    numbers: np.ndarray
    axis: int


@dataclass(frozen=True)
class Tap:
    """A term of a sum, or a factor of a product: it has a grid of its own before its channels are read.

    Attributes:
        node: the sum or the product.
        value: the term, or the factor whose channels are numbered.
        gate: the other factor; None for a sum.
        numbers: int64 [channels].
        axis: where the channels lie in the value.
    """

    node: ir.Node
    value: ir.Value
    gate: ir.Value | None
    numbers: np.ndarray
    axis: int


@dataclass
class Channels:
    """The numbered channels of a graph.

    Attributes:
        writers: where they come from.
        readers: where they go.
        taps: where else they become integers on the way.
        bounds: the least upper clamp that a channel passes.
    """

    writers: list[Port] = field(default_factory=list)
    readers: list[Port] = field(default_factory=list)
    taps: list[Tap] = field(default_factory=list)
    bounds: dict[int, float] = field(default_factory=dict)
    _parent: list[int] = field(default_factory=lambda: [_FIXED])

    @property
    def count(self) -> int:
        """How many numbers there are."""
        return len(self._parent)

    def new(self, count: int) -> np.ndarray:
        """``count`` new numbers."""
        first = len(self._parent)
        self._parent += range(first, first + count)
        return np.arange(first, first + count)

    def find(self, number: int) -> int:
        """What ``number`` became by joins; ``_FIXED`` where it cannot be scaled."""
        while (up := self._parent[number]) != number:
            self._parent[number] = number = self._parent[up]
        return number

    def join(self, first: np.ndarray, second: np.ndarray) -> None:
        """Make the numbers at the same places one; the lesser stays, so that what is fixed remains so."""
        for pair in {(int(a), int(b)) for a, b in zip(first.reshape(-1), second.reshape(-1), strict=True)}:
            low, high = sorted(map(self.find, pair))
            self._parent[high] = low

    def fix(self, numbers: np.ndarray) -> None:
        """These cannot be scaled."""
        self.join(numbers, np.zeros_like(numbers))

    def roots(self, numbers: np.ndarray) -> np.ndarray:
        """``find`` of each."""
        return np.array([self.find(int(number)) for number in numbers], np.int64)


def trace(model: ir.Model, layers: Mapping[str, str]) -> Channels:
    """Number the channels of ``model`` and follow them; nodes that ``layers`` says are float do not take part."""
    found, runner = Channels(), NodeRunner(model)
    numbers: dict[ir.Value, np.ndarray] = {}
    for node in model.graph:
        kept = layers.get(str(node.name)) != "float"
        if not (kept and _step(node, numbers, found, runner)):
            for value in node.inputs:
                if value in numbers:
                    found.fix(numbers[value])
    for value in model.graph.outputs:
        if value in numbers:
            found.fix(numbers[value])
    return found


def _step(node: ir.Node, numbers: dict[ir.Value, np.ndarray], found: Channels, runner: NodeRunner) -> bool:
    """Carry the numbers of the inputs of ``node`` to its outputs; False where it cannot take them."""
    role, output = role_of(node), node.outputs[0]
    known = [value is not None and value in numbers for value in node.inputs]
    if role is Role.PRODUCT or (node.op_type == "BatchNormalization" and role is not Role.FLOAT):
        return _port(node, numbers, found)
    if role is Role.FLOAT or not any(known):
        return False
    source = node.inputs[known.index(True)]
    assert source is not None
    if role is Role.BIAS or (node.op_type in _HOMOGENEOUS and _keeps_factors(node)):
        return _pass_on(node, source, numbers, found)
    if node.op_type == "Add" and all(known) and shape_of(node.inputs[0]) == shape_of(node.inputs[1]):
        first, second = (numbers[value] for value in node.inputs if value is not None)
        found.join(first, second)
        numbers[output] = first
        for value in node.inputs:
            _tap(node, value, None, numbers, found)
        return True
    if node.op_type == "Mul" and len(node.inputs) == 2:
        return _gate(node, numbers, found)
    if node.op_type in _MOVING or node.op_type == "ReduceMean":
        _move(node, numbers, runner)
        return True
    return False


def _gate(node: ir.Node, numbers: dict[ir.Value, np.ndarray], found: Channels) -> bool:
    """Carry the numbers of one factor of a product, as large as the result; the other factor's stay as they are."""
    for value, other in (node.inputs, reversed(node.inputs)):
        if value in numbers and shape_of(value) == shape_of(node.outputs[0]) and value is not other:
            if other in numbers:
                found.fix(numbers[other])
            numbers[node.outputs[0]] = numbers[value]
            _tap(node, value, other, numbers, found)
            return True
    return False


def _tap(
    node: ir.Node,
    value: ir.Value | None,
    gate: ir.Value | None,
    numbers: Mapping[ir.Value, np.ndarray],
    found: Channels,
) -> None:
    assert value is not None
    axis = _axis_of(numbers[value])
    if axis is not None:
        own = _by_channel(numbers[value], axis)
        assert own is not None
        found.taps.append(Tap(node, value, gate, own, axis))


def _axis_of(numbers: np.ndarray) -> int | None:
    """The axis of the channels: 1 or the last; None where a channel has several numbers."""
    return next((axis for axis in (1, numbers.ndim - 1) if _by_channel(numbers, axis) is not None), None)


def _port(node: ir.Node, numbers: dict[ir.Value, np.ndarray], found: Channels) -> bool:
    """End the channels that a product or batch norm reads, and begin those that it writes."""
    value, product = node.inputs[0], product_of(node)
    result = node.outputs[0] if product is None else product.result
    assert value is not None
    axis = 1 if product is None else channel_axis(node)
    count = shape_of(result)[axis]
    writer = Port(node, result, found.new(count), axis)
    found.writers.append(writer)
    numbers[node.outputs[0]] = _spread(writer.numbers, node.outputs[0], axis)
    if value not in numbers or (product is not None and node.op_type == "ConvTranspose"):
        return False
    read = _by_channel(numbers[value], axis)
    if read is None:
        return False
    found.readers.append(Port(node, value, read, axis))
    return True


def _pass_on(node: ir.Node, source: ir.Value, numbers: dict[ir.Value, np.ndarray], found: Channels) -> bool:
    """Keep each channel's number where ``node`` is a function of each channel, which lie along axis 1 or the last."""
    before, after = shape_of(source), shape_of(node.outputs[0])
    axis = _axis_of(numbers[source])
    if axis is None or len(before) != len(after) or before[axis] != after[axis]:
        return False
    own = _by_channel(numbers[source], axis)
    assert own is not None
    numbers[node.outputs[0]] = _spread(own, node.outputs[0], axis)
    if node.op_type == "Clip" and (high := constant_of(input_of(node, 2))) is not None:
        for number in own:
            found.bounds[int(number)] = min(found.bounds.get(int(number), np.inf), float(high.reshape(-1)[0]))
    return True


def _keeps_factors(node: ir.Node) -> bool:
    """Whether f(s·x) = s·f(x) for s > 0, but for the upper end of a Clip."""
    if node.op_type == "Clip":
        low = constant_of(input_of(node, 1))
        return is_clamp(node) and low is not None and not low.any()
    return node.op_type != "Resize" or node.attributes.get_string("mode", "nearest") != "cubic"


def _move(node: ir.Node, numbers: dict[ir.Value, np.ndarray], runner: NodeRunner) -> None:
    """Run the movement on the numbers themselves."""
    moved = [i for i in quantised_inputs(node) if node.inputs[i] is not None]
    inputs = {i: _numbers_of(node.inputs[i], numbers) for i in moved if constant_of(node.inputs[i]) is None}
    zeros = {i: np.zeros(shape_of(node.inputs[i]), np.float32) for i in moved if i not in inputs}
    for value, array in zip(node.outputs, runner.run(node, inputs, zeros), strict=True):
        numbers[value] = np.rint(array[0]).astype(np.int64)


def _numbers_of(value: ir.Value | None, numbers: Mapping[ir.Value, np.ndarray]) -> np.ndarray:
    """The numbers as float32 [1, *shape], which holds them exactly up to 2²⁴."""
    assert value is not None
    found = numbers.get(value)
    return (np.zeros(shape_of(value)) if found is None else found)[None].astype(np.float32)


def _by_channel(numbers: np.ndarray, axis: int) -> np.ndarray | None:
    """The number of each index of ``axis``; None where one index has several."""
    rows = np.moveaxis(numbers, axis, 0).reshape(numbers.shape[axis], -1)
    return rows[:, 0] if (rows == rows[:, :1]).all() else None


def _spread(numbers: np.ndarray, value: ir.Value, axis: int) -> np.ndarray:
    shape = [1] * len(shape_of(value))
    shape[axis] = -1
    return np.broadcast_to(numbers.reshape(shape), shape_of(value))


def divide_outputs(port: Port, factors: np.ndarray, graph: ir.Graph) -> None:
    """Let the writer at ``port`` give each channel divided by its factor [channels]."""
    product = product_of(port.node)
    if product is None:
        for index in (1, 2):
            _scale_parameter(port.node, index, 1 / factors, graph)
        return
    product.set_weight(product.scaled_outputs(product.weight, 1 / factors), graph)
    if product.bias is not None:
        product.set_bias(product.bias / factors, graph)


def multiply_inputs(port: Port, factors: np.ndarray, graph: ir.Graph) -> None:
    """Let the reader at ``port`` take each channel times its factor [channels]."""
    for index, array in scaled_parameters(port, factors).items():
        value = new_constant(array.astype(np.float32), f"{port.node.inputs[index].name}_scaled", graph)  # type: ignore[union-attr]
        value.shape, value.type = ir.Shape(array.shape), ir.TensorType(ir.DataType.FLOAT)
        port.node.replace_input_with(index, value)


def scaled_parameters(port: Port, factors: np.ndarray) -> dict[int, np.ndarray]:
    """The constants, by input index, with which the reader at ``port`` takes its channels times ``factors``."""
    product = product_of(port.node)
    if product is not None:
        return {1: product.scaled_inputs(product.weight, factors)}
    scale, mean = constant_of(port.node.inputs[1]), constant_of(port.node.inputs[3])
    assert scale is not None and mean is not None
    return {1: scale * factors, 3: mean / factors}


def _scale_parameter(node: ir.Node, index: int, factors: np.ndarray, graph: ir.Graph) -> None:
    before = constant_of(node.inputs[index])
    assert before is not None
    value = new_constant((before * factors).astype(np.float32), f"{node.inputs[index].name}_scaled", graph)  # type: ignore[union-attr]
    value.shape, value.type = ir.Shape(before.shape), ir.TensorType(ir.DataType.FLOAT)
    node.replace_input_with(index, value)


def magnitudes(port: Port) -> np.ndarray:
    """How large the weights of each channel that is read are, as a share of the largest of the same output."""
    product = product_of(port.node)
    if product is None:
        return np.ones(len(port.numbers))
    rows = np.abs(product.rows(product.weight))
    share = rows / np.maximum(rows.max(axis=2, keepdims=True), 1e-30)
    return share.reshape(product.groups, rows.shape[1], -1, _taps(product)).max(axis=(1, 3)).reshape(-1)


def _taps(product: Product) -> int:
    return int(np.prod(product.weight.shape[2:])) if weight_axis(product.node) == 0 and product.weight.ndim > 2 else 1
