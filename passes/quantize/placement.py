"""Which values become integers, at how many bits, and which of them share one grid.

An edge of the graph (a node's input) carries integers if the node reads integers there. A movement reads integers
where one of its readers does. Values that a movement connects share one grid; so do the inputs of a Concat, unless
another layer reads one of them too and would lose too much by the wider range.

What a convolution hands to nothing but a sum has 16 bits: fused, it is never stored, and rounding it to 8 costs a
residual network more than any other rounding does.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from math import prod

import onnx_ir as ir

from edgec.frontend.values import shape_of
from edgec.passes.quantize.operators import Role, is_private, quantised_inputs, role_of, weight_axis
from edgec.passes.quantize.recipe import Recipe

_WIDEST_SHARE = 2.0
"""How much wider than its own range the grid may be that a value shares with a Concat: one bit."""

LEAST_DEPTH = 32
"""Weights of an output channel, below which they keep 8 bits: they are few bytes, and each matters much."""

_ATTENTION = ("Attention", "MaskedAttention", "MultiHeadAttention")

_COUNTS = (ir.DataType.INT32, ir.DataType.INT64)
_COUNTING = frozenset({
    "Add", "Cast", "Div", "Expand", "Flatten", "Mul", "Neg", "Reshape", "Squeeze", "Sub", "Transpose", "Unsqueeze",
})  # fmt: skip
"""What makes other unlimited numbers of numbers without a limit."""


@dataclass
class Placement:
    """Where the integers are.

    Attributes:
        roles: of every node.
        bits: of a node's integer inputs, by node and input index; what is not there is float.
        weights: the bits of a product's weights, where they are integers.
        outputs: the bits of the graph's outputs that are on a grid.
        group: the representative of the values that share a grid, by value.
        terms: powers of two that a weight is a sum of at most, of products where that is asked for.
    """

    roles: Mapping[ir.Node, Role]
    bits: Mapping[tuple[ir.Node, int], int]
    weights: Mapping[ir.Node, int]
    outputs: Mapping[ir.Value, int]
    group: Mapping[ir.Value, ir.Value]
    terms: Mapping[ir.Node, int] = field(default_factory=dict)

    def grids_of(self, value: ir.Value) -> list[int]:
        """The different bits at which ``value`` is read, the graph's output counted."""
        found = {self.bits[use.node, use.idx] for use in value.uses() if (use.node, use.idx) in self.bits}
        return sorted(found | ({self.outputs[value]} if value in self.outputs else set()))

    def members(self) -> dict[ir.Value, list[ir.Value]]:
        """The values of each group."""
        found: dict[ir.Value, list[ir.Value]] = {}
        for value, root in self.group.items():
            found.setdefault(root, []).append(value)
        return found


@dataclass
class _Groups:
    """Union of values, each set named by the value that was there first."""

    parent: dict[ir.Value, ir.Value] = field(default_factory=dict)

    def find(self, value: ir.Value) -> ir.Value:
        while (up := self.parent.setdefault(value, value)) is not value:
            value = up
        return value

    def join(self, first: ir.Value, second: ir.Value) -> None:
        a, b = self.find(first), self.find(second)
        if a is not b:
            self.parent[b] = a


def place(
    graph: ir.Graph,
    recipe: Recipe,
    ranges: Mapping[ir.Value, tuple[float, float]],
    quantise_outputs: bool,
) -> Placement:
    """Decide for every edge of ``graph``.

    Args:
        graph: its shapes are static.
        recipe: has the precision of every node.
        ranges: the least and largest value on samples, for every float value of the graph.
        quantise_outputs: whether what follows the last products reads and gives integers, too.
    """
    roles = {node: role_of(node) for node in graph}
    for node in [*_token_sums(graph, roles), *_of_counts(graph, roles)]:
        roles[node] = Role.FLOAT
    if not quantise_outputs:
        for node in _tail(graph, roles):
            roles[node] = Role.FLOAT
    outputs = {v: 8 for v in graph.outputs if v.dtype == ir.DataType.FLOAT} if quantise_outputs else {}
    bits = _edges(graph, roles, recipe, outputs)
    if recipe.wide_sums and not recipe.fixed_point:
        bits |= dict.fromkeys(_fused_terms(graph, roles, bits), 16)
    weights, groups = _weights(roles, recipe), _groups(graph, roles, bits, outputs, ranges)
    sums = {node: recipe.precision_of(str(node.name)).terms for node in weights}
    return Placement(roles, bits, weights, outputs, groups, {node: terms for node, terms in sums.items() if terms})


def _weights(roles: Mapping[ir.Node, Role], recipe: Recipe) -> dict[ir.Node, int]:
    """The bits of every product's integer weights."""
    found = {}
    for node, role in roles.items():
        precision = recipe.precision_of(str(node.name))
        if role is Role.PRODUCT and precision.weights is not None:
            transposed = node.op_type == "ConvTranspose"
            if precision.activations is None and transposed:
                continue  # no kernel reads packed weights there
            narrow = not transposed and node.attributes.get_int("group", 1) == 1 and _depth(node) >= LEAST_DEPTH
            found[node] = precision.weights if narrow else 8
    return found


def _depth(node: ir.Node) -> int:
    """Weights of an output channel."""
    shape = shape_of(node.inputs[1])
    return prod(shape) // shape[weight_axis(node)]


def _edges(
    graph: ir.Graph, roles: Mapping[ir.Node, Role], recipe: Recipe, outputs: Mapping[ir.Value, int]
) -> dict[tuple[ir.Node, int], int]:
    """The bits of every integer edge; readers come before what they read."""
    bits: dict[tuple[ir.Node, int], int] = {}
    for node in reversed(list(graph)):
        if roles[node] is Role.MOVE:
            wanted = [bits[use.node, use.idx] for v in node.outputs for use in v.uses() if (use.node, use.idx) in bits]
            wanted += [outputs[v] for v in node.outputs if v in outputs]
            own = max(wanted, default=None)
        else:
            own = recipe.precision_of(str(node.name)).activations
        if own is not None and roles[node] is not Role.FLOAT:
            bits.update({(node, index): own for index in quantised_inputs(node)})
    return bits


def _fused_terms(
    graph: ir.Graph, roles: Mapping[ir.Node, Role], bits: Mapping[tuple[ir.Node, int], int]
) -> Iterable[tuple[ir.Node, int]]:
    """The term of each sum of two tensors that a convolution of integers computes for it alone: of two such terms the
    one that is computed last, with which the sum is fused."""
    order = {node: position for position, node in enumerate(graph)}
    for node in graph:
        if node.op_type != "Add" or [bits.get((node, index)) for index in (0, 1)] != [8, 8]:
            continue
        terms = {index: value.producer() for index, value in enumerate(node.inputs) if value and is_private(value)}
        own = {
            order[producer]: index
            for index, producer in terms.items()
            if producer is not None and producer.op_type == "Conv" and (producer, 0) in bits
        }
        if own:
            yield node, own[max(own)]


def _groups(
    graph: ir.Graph,
    roles: Mapping[ir.Node, Role],
    bits: Mapping[tuple[ir.Node, int], int],
    outputs: Mapping[ir.Value, int],
    ranges: Mapping[ir.Value, tuple[float, float]],
) -> dict[ir.Value, ir.Value]:
    groups = _Groups()
    read = [*(node.inputs[index] for node, index in bits), *outputs]
    for node in graph:
        if roles[node] is Role.MOVE and any((node, index) in bits for index in quantised_inputs(node)):
            for index in quantised_inputs(node):
                value = node.inputs[index]
                assert value is not None
                if node.op_type != "Concat" or _shares(value, node.outputs[0], ranges):
                    groups.join(value, node.outputs[0])
            for other in node.outputs[1:]:
                groups.join(node.outputs[0], other)
    return {value: groups.find(value) for value in [*groups.parent, *read] if value is not None}


def _shares(value: ir.Value, joined: ir.Value, ranges: Mapping[ir.Value, tuple[float, float]]) -> bool:
    """Whether an input of a Concat takes the grid of its output, on which its numbers end up anyway."""
    if is_private(value):
        return True
    own, whole = (_width(*ranges[each]) for each in (value, joined))
    return whole <= _WIDEST_SHARE * own


def _width(low: float, high: float) -> float:
    return max(high, 0.0) - min(low, 0.0)


def _token_sums(graph: ir.Graph, roles: Mapping[ir.Node, Role]) -> Iterable[ir.Node]:
    """The sums of tokens [batch, tokens, channels] in a transformer: few elements, and its outliers meet there."""
    if not any(node.op_type in _ATTENTION or _is_activation_product(node, roles) for node in graph):
        return []
    return [node for node, role in roles.items() if role is Role.SUM and len(shape_of(node.outputs[0])) == 3]


def _of_counts(graph: ir.Graph, roles: Mapping[ir.Node, Role]) -> Iterable[ir.Node]:
    """What reads, as real numbers, integers that are fed or what is computed of these alone, such as the angles of
    positions in a text: samples need not show the largest, and a grid would clip it. Products do not count; nor do
    bytes, which are pixels."""
    counts = {value for value in graph.inputs if value.dtype in _COUNTS}
    for node in graph:
        inputs = {value for value in node.inputs if value is not None and value.const_value is None}
        if any(value.dtype == ir.DataType.FLOAT for value in inputs & counts) and roles[node] is not Role.PRODUCT:
            yield node
        if inputs and inputs <= counts and node.op_type in _COUNTING:
            counts.update(node.outputs)


def _is_activation_product(node: ir.Node, roles: Mapping[ir.Node, Role]) -> bool:
    return node.op_type == "MatMul" and roles[node] is Role.FLOAT


def _tail(graph: ir.Graph, roles: Mapping[ir.Node, Role]) -> set[ir.Node]:
    """The functions and movements through which the last results reach the graph's outputs."""
    kinds = (Role.MOVE, Role.POINTWISE)
    found: set[ir.Node] = set()
    values = list(graph.outputs)
    while values:
        node = values.pop().producer()
        if node is None or node in found or not (roles[node] in kinds or node.op_type == "Softmax"):
            continue
        if any(reader not in found for v in node.outputs for reader in v.consumers()):
            continue
        found.add(node)
        values += [value for value in node.inputs if value is not None and value.const_value is None]
    return found
