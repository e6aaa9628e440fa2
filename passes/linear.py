"""Linear operators of a graph as filters, and filters as nodes again.

Two families share the algebra of :mod:`edgec.passes.filters`: convolutions, whose channels are axis 1 (Conv,
AveragePool that counts its padding, maps per channel), and matrix products with a constant right side, whose
channels are the last axis (MatMul, Gemm, maps per channel), each of which is a filter without spatial axes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import prod
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from edgec.frontend.summary import node_macs
from edgec.frontend.values import constant_of, input_of, shape_of
from edgec.passes.affine import AFFINE_OPERATORS, Channels, read_affine, varying_operand
from edgec.passes.filters import Filter, Geometry, border_conflict, compose, diagonal
from edgec.passes.rewriting import Refused, named, new_constant, require_single_reader, rounded


class Family(ABC):
    """Operators of one kind that compose with each other."""

    operators: ClassVar[tuple[str, ...]]
    """Operators that mix channels or positions; the maps per channel come on top."""

    @abstractmethod
    def channel_axis(self, rank: int) -> int:
        """The axis of the channels in a value of ``rank`` axes."""

    @abstractmethod
    def extents(self, value: ir.Value) -> tuple[int, ...]:
        """The spatial extents of ``value``."""

    @abstractmethod
    def suits(self, value: ir.Value) -> bool:
        """Whether values of this rank have channels here."""

    @abstractmethod
    def build(self, filter_: Filter, source: ir.Value, like: ir.Value, name: str, graph: ir.Graph) -> list[ir.Node]:
        """Nodes, in order, that apply a filter (no diagonal one) to ``source``; the last yields a value as ``like``."""

    @abstractmethod
    def nodes_for(self, geometry: Geometry, source: ir.Value, has_bias: bool) -> int:
        """How many nodes :meth:`build` will need."""

    @abstractmethod
    def geometry(self, node: ir.Node) -> Geometry:
        """The geometry of one of the ``operators``; raises :class:`Refused` where it is no filter."""

    @abstractmethod
    def _mixing_filter(self, node: ir.Node) -> Filter:
        """One of the ``operators`` as a filter; raises :class:`Refused`."""

    def channels(self, value: ir.Value, owner: str) -> Channels:
        shape = shape_of(value)
        axis = self.channel_axis(len(shape))
        return Channels(shape[axis], axis, len(shape), owner)

    def operand(self, node: ir.Node) -> ir.Value:
        """What the linear operator ``node`` is applied to; raises :class:`Refused` where it is none."""
        if node.domain != "" or not _is_float(node.outputs[0]):
            raise Refused
        if node.op_type in AFFINE_OPERATORS:
            operand = varying_operand(node)
            if not self.suits(node.outputs[0]) or operand.shape != node.outputs[0].shape:
                raise Refused
            return operand
        if node.op_type not in self.operators:
            raise Refused
        data = node.inputs[0]
        if data is None or data.const_value is not None or not self.suits(data):
            raise Refused
        return data

    def geometry_of(self, node: ir.Node) -> Geometry:
        """The geometry of the linear operator ``node``, without its weight; raises :class:`Refused`."""
        if node.op_type in AFFINE_OPERATORS:
            return self.identity(node.outputs[0]).geometry
        return self.geometry(node)

    def filter_of(self, node: ir.Node) -> Filter:
        """The linear operator ``node`` as a filter; raises :class:`Refused`."""
        if node.op_type in AFFINE_OPERATORS:
            output = node.outputs[0]
            affine = read_affine(node, self.channels(output, named(node)))
            return diagonal(affine.scale, affine.shift, len(self.extents(output)))
        return self._mixing_filter(node)

    def identity(self, value: ir.Value) -> Filter:
        count = self.channels(value, "").count
        return diagonal(np.ones(count), np.zeros(count), len(self.extents(value)))


@dataclass(frozen=True)
class Chain:
    """Linear operators, the last one first, from the value they yield back to the one they read.

    ``blocked`` says why the operator before is not part of the chain, where it is linear; it and those before it
    read the values ``beyond``, the nearest first.
    """

    value: ir.Value
    nodes: tuple[ir.Node, ...]
    source: ir.Value
    blocked: str | None = None
    beyond: tuple[ir.Value, ...] = ()


def trace(value: ir.Value, family: Family) -> Chain:
    """The longest chain that ends in ``value`` and whose values between nobody else reads."""
    nodes: list[ir.Node] = []
    source = value
    while (node := source.producer()) is not None:
        try:
            before = family.operand(node)
        except Refused:
            break
        try:
            require_single_reader(node)
            _require_constants(node, family)
        except Refused as refused:
            return Chain(value, tuple(nodes), source, str(refused), (before, *_linear_ancestors(before, family)))
        nodes.append(node)
        source = before
    return Chain(value, tuple(nodes), source)


def _linear_ancestors(value: ir.Value, family: Family) -> Iterator[ir.Value]:
    """What the linear operators before ``value`` read, whoever else reads it."""
    while (node := value.producer()) is not None:
        try:
            value = family.operand(node)
        except Refused:
            return
        yield value


def _require_constants(node: ir.Node, family: Family) -> None:
    """Raises :class:`Refused` where the operator is no filter with constant weights."""
    if node.op_type in AFFINE_OPERATORS:
        family.filter_of(node)
    else:
        family.geometry(node)


def compose_chain(nodes: Sequence[ir.Node], family: Family, behind: Filter | None = None) -> Filter:
    """The filter of ``nodes``, the last one first, under the map ``behind``; raises :class:`Refused` at a border."""
    result = family.filter_of(nodes[0])
    result = result if behind is None else compose(behind, result)
    outputs = family.extents(nodes[0].outputs[0])
    for second, first in pairwise(nodes):
        inner = family.filter_of(first)
        middle, inputs = family.extents(first.outputs[0]), family.extents(family.operand(first))
        conflict = border_conflict(result.geometry, inner, inputs, middle, outputs)
        if conflict is not None:
            raise Refused(_CONFLICTS[conflict].format(first=named(first), second=named(second)))
        result = compose(result, inner)
    return result


_CONFLICTS = {
    "bias": "{second} pads the result of {first} with zeros, where a folded filter would see the shift of {first}",
    "values": "{second} pads the result of {first} with zeros, where a folded filter would compute values",
}


def build(
    filter_: Filter, source: ir.Value, like: ir.Value, name: str, family: Family, graph: ir.Graph
) -> list[ir.Node]:
    """Nodes that apply the filter to ``source``; none for the identity."""
    if filter_.is_identity:
        return []
    if not filter_.geometry.is_diagonal:
        return family.build(filter_, source, like, name, graph)
    shape = channel_shape(family, like)
    nodes = []
    if not (filter_.weight == 1).all():
        nodes.append(binary("Mul", source, filter_.weight.reshape(shape), like, f"{name}_scale", graph))
    if filter_.bias.any():
        before = nodes[-1].outputs[0] if nodes else source
        nodes.append(binary("Add", before, filter_.bias.reshape(shape), like, f"{name}_shift", graph))
    return nodes


def size_of(filter_: Filter, source: ir.Value, family: Family) -> int:
    """How many nodes :func:`build` makes of the filter on ``source``."""
    has_bias = bool(filter_.bias.any())
    if filter_.geometry.is_diagonal:
        return int((filter_.weight != 1).any()) + has_bias
    return family.nodes_for(filter_.geometry, source, has_bias)


def channel_shape(family: Family, like: ir.Value) -> tuple[int, ...]:
    """The shape in which one value a channel broadcasts to ``like``."""
    rank = len(shape_of(like))
    return (-1, *(1,) * (rank - 1 - family.channel_axis(rank)))


def binary(operator: str, left: ir.Value, constant: np.ndarray, like: ir.Value, name: str, graph: ir.Graph) -> ir.Node:
    """``left`` and a new constant under an elementwise operator."""
    return yielding(like, operator, [left, constant_like(constant, like, name, graph)], name)


def yielding(
    like: ir.Value, operator: str, inputs: Sequence[ir.Value], name: str, attributes: dict[str, object] | None = None
) -> ir.Node:
    """A node whose output has the shape and dtype of ``like``."""
    node = ir.node(operator, inputs, attributes=attributes or {}, name=name)
    node.outputs[0].shape, node.outputs[0].type = like.shape, like.type
    return node


def constant_like(array: np.ndarray, like: ir.Value, name: str, graph: ir.Graph) -> ir.Value:
    """A new initialiser in the dtype of ``like``; raises :class:`Refused` where it would overflow."""
    assert like.dtype is not None
    return new_constant(rounded(array, like.dtype.numpy(), f"'{name}'"), name, graph)


def node_cost(node: ir.Node) -> int:
    """MACs; an average counts as the filter it is, anything else as one operation an output element."""
    output = node.outputs[0]
    if node.op_type == "AveragePool":
        return prod(shape_of(output)) * prod(node.attributes.get_ints("kernel_shape", ()))
    return node_macs(node) or prod(shape_of(output))


def filter_cost(geometry: Geometry, like: ir.Value) -> int:
    """The cost of the nodes that compute ``like`` by the filter, in the unit of :func:`node_cost`."""
    return geometry.macs(prod(shape_of(like)) // geometry.outputs)


def _is_float(value: ir.Value) -> bool:
    return value.dtype is not None and value.dtype.is_floating_point() and value.shape is not None


class Convolutions(Family):
    """Channels on axis 1, then spatial axes."""

    operators: ClassVar[tuple[str, ...]] = ("Conv", "AveragePool")

    def channel_axis(self, rank: int) -> int:
        return 1

    def extents(self, value: ir.Value) -> tuple[int, ...]:
        return shape_of(value)[2:]

    def suits(self, value: ir.Value) -> bool:
        return len(shape_of(value)) >= 3

    def nodes_for(self, geometry: Geometry, source: ir.Value, has_bias: bool) -> int:
        return 1

    def geometry(self, node: ir.Node) -> Geometry:
        return _conv_geometry(node) if node.op_type == "Conv" else _pool_geometry(node)

    def _mixing_filter(self, node: ir.Node) -> Filter:
        geometry = self.geometry(node)
        if node.op_type == "AveragePool":
            share = np.full(geometry.weight_shape, 1 / prod(geometry.kernel))
            return Filter(geometry, share, np.zeros(geometry.outputs))
        bias = constant_of(input_of(node, 2))
        bias = np.zeros(geometry.outputs) if bias is None else bias.astype(np.float64)
        weight = constant_of(node.inputs[1])
        assert weight is not None
        return Filter(geometry, weight.astype(np.float64), bias)

    def build(self, filter_: Filter, source: ir.Value, like: ir.Value, name: str, graph: ir.Graph) -> list[ir.Node]:
        geometry = filter_.geometry
        inputs = [source, constant_like(filter_.weight, like, f"{name}_weight", graph)]
        if filter_.bias.any():
            inputs.append(constant_like(filter_.bias, like, f"{name}_bias", graph))
        attributes: dict[str, object] = {
            "kernel_shape": geometry.kernel,
            "strides": geometry.strides,
            "dilations": geometry.dilations,
            "pads": _pads(geometry, self.extents(source), self.extents(like)),
            "group": geometry.groups,
        }
        return [yielding(like, "Conv", inputs, name, attributes)]


def _pads(geometry: Geometry, inputs: Sequence[int], outputs: Sequence[int]) -> tuple[int, ...]:
    """The padding before and behind each axis that gives a convolution these extents."""
    reach = [
        (count - 1) * stride + start + span
        for count, stride, start, span in zip(outputs, geometry.strides, geometry.starts, geometry.spans, strict=True)
    ]
    behind = [max(0, last - extent + 1) for last, extent in zip(reach, inputs, strict=True)]
    return (*(-start for start in geometry.starts), *behind)


def _conv_geometry(node: ir.Node) -> Geometry:
    if constant_of(node.inputs[1]) is None:
        raise Refused(f"the weight of {named(node)} is computed at run time")
    if input_of(node, 2) is not None and constant_of(node.inputs[2]) is None:
        raise Refused(f"the bias of {named(node)} is computed at run time")
    groups = node.attributes.get_int("group", 1)
    outputs, columns, *kernel = shape_of(node.inputs[1])
    return _window(node, outputs, columns * groups, groups, tuple(kernel))


def _pool_geometry(node: ir.Node) -> Geometry:
    kernel = tuple(node.attributes.get_ints("kernel_shape", ()))
    count = shape_of(node.inputs[0])[1]
    geometry = _window(node, count, count, count, kernel)
    inputs, outputs = shape_of(node.inputs[0])[2:], shape_of(node.outputs[0])[2:]
    pads = _pads(geometry, inputs, outputs)
    if any(pads) and node.attributes.get_int("count_include_pad", 0) == 0:
        raise Refused(f"{named(node)} leaves the padding out of its averages")
    if node.attributes.get_int("ceil_mode", 0) == 1 and any(pads[len(kernel) :]):
        raise Refused(f"{named(node)} rounds its extents up, so its last averages are of fewer elements")
    return geometry


def _window(node: ir.Node, outputs: int, inputs: int, groups: int, kernel: tuple[int, ...]) -> Geometry:
    rank = len(kernel)
    strides = tuple(node.attributes.get_ints("strides", (1,) * rank))
    steps = node.attributes.get_ints("dilations", (1,) * rank)
    dilations = tuple(step if size > 1 else 1 for step, size in zip(steps, kernel, strict=True))
    geometry = Geometry(outputs, inputs, groups, kernel, strides, dilations, (0,) * rank)
    starts = tuple(-pad for pad in _pads_before(node, geometry))
    return Geometry(outputs, inputs, groups, kernel, strides, dilations, starts)


def _pads_before(node: ir.Node, geometry: Geometry) -> list[int]:
    rank = len(geometry.kernel)
    mode = node.attributes.get_string("auto_pad", "NOTSET")
    if not mode.startswith("SAME"):
        return list(node.attributes.get_ints("pads", (0,) * rank))[:rank]
    total = _pads(geometry, shape_of(node.inputs[0])[2:], shape_of(node.outputs[0])[2:])[rank:]
    return [pad // 2 if mode == "SAME_UPPER" else pad - pad // 2 for pad in total]


class Products(Family):
    """Matrix products with a constant right side: channels on the last axis, no spatial axes."""

    operators: ClassVar[tuple[str, ...]] = ("MatMul", "Gemm")

    def channel_axis(self, rank: int) -> int:
        return rank - 1

    def extents(self, value: ir.Value) -> tuple[int, ...]:
        return ()

    def suits(self, value: ir.Value) -> bool:
        return len(shape_of(value)) >= 2

    def nodes_for(self, geometry: Geometry, source: ir.Value, has_bias: bool) -> int:
        return 2 if has_bias and len(shape_of(source)) != 2 else 1

    def geometry(self, node: ir.Node) -> Geometry:
        weight = constant_of(node.inputs[1])
        if weight is None and node.op_type == "MatMul":
            raise Refused
        if weight is None:
            raise Refused(f"the weight of {named(node)} is computed at run time")
        if input_of(node, 2) is not None and constant_of(node.inputs[2]) is None:
            raise Refused(f"the bias of {named(node)} is computed at run time")
        if weight.ndim != 2 or node.attributes.get_int("transA", 0) == 1:
            raise Refused
        inputs, outputs = weight.shape[::-1] if node.attributes.get_int("transB", 0) else weight.shape
        return Geometry(outputs, inputs, 1)

    def _mixing_filter(self, node: ir.Node) -> Filter:
        geometry = self.geometry(node)
        weight, bias = constant_of(node.inputs[1]), constant_of(input_of(node, 2))
        assert weight is not None
        weight = weight.astype(np.float64) * node.attributes.get_float("alpha", 1.0)
        rows = weight if node.attributes.get_int("transB", 0) else weight.T
        if bias is None:
            return Filter(geometry, rows, np.zeros(geometry.outputs))
        shift = self.channels(node.outputs[0], named(node)).per_channel(bias)
        return Filter(geometry, rows, shift * node.attributes.get_float("beta", 1.0))

    def build(self, filter_: Filter, source: ir.Value, like: ir.Value, name: str, graph: ir.Graph) -> list[ir.Node]:
        weight = constant_like(filter_.grouped(1)[0].T, like, f"{name}_weight", graph)
        if not filter_.bias.any():
            return [yielding(like, "MatMul", [source, weight], name)]
        if len(shape_of(source)) == 2:
            bias = constant_like(filter_.bias, like, f"{name}_bias", graph)
            return [yielding(like, "Gemm", [source, weight, bias], name)]
        product = yielding(like, "MatMul", [source, weight], name)
        return [product, binary("Add", product.outputs[0], filter_.bias, like, f"{name}_bias", graph)]
