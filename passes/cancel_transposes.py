"""Move transposes through what does not care about the order of axes, so that they meet and cancel.

An elementwise operator f commutes with a transpose P, f(P·x, P·y) = P·f(x, y), and so do Concat and Softmax with
their axis renamed, and a batch norm, written as its scale and shift along the renamed axis. A region of such
operators whose inputs are P·x and whose results are read through P⁻¹ computes the same without either. In general

    transposes saved = transposes P that only the region reads + transposes P⁻¹ that read the region
                     - inputs of the region that are no P·x - results that others read as they are

and the region is turned where that is more than zero. Constants are transposed with it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as common_passes

from edgec.errors import Refusal
from edgec.frontend.shapes import infer_shapes
from edgec.frontend.values import constant_of, is_static, shape_of
from edgec.passes.affine import Channels, read_affine
from edgec.passes.base import Pass
from edgec.passes.no_ops import bypass_no_ops
from edgec.passes.rewriting import new_constant, replace_node

_ELEMENTWISE = frozenset(
    {
        *("Abs", "Ceil", "Celu", "Clip", "Cos", "Elu", "Erf", "Exp", "Floor", "Gelu", "HardSigmoid", "HardSwish"),
        *("LeakyRelu", "Log", "Mish", "Neg", "Not", "Reciprocal", "Relu", "Round", "Selu", "Sigmoid", "Sign", "Sin"),
        *("Softplus", "Softsign", "Sqrt", "Swish", "Tanh", "ThresholdedRelu", "Cast"),
        *("Add", "Sub", "Mul", "Div", "Pow", "Max", "Min", "Sum", "Mean", "PRelu"),
    }
)
_ALONG_AN_AXIS = frozenset({"Concat", "Softmax", "LogSoftmax"})


class CancelTransposes(Pass):
    """Moves transposes through elementwise operators where that lets more of them cancel than it adds."""

    name: ClassVar[str] = "cancel-transposes"

    def transform(self, model: ir.Model) -> tuple[int, Sequence[Refusal]]:
        """Counts the regions that were turned; there is nothing to refuse."""
        matched = 0
        while (region := next(_regions(model.graph), None)) is not None:
            _turn(region, model.graph)
            bypass_no_ops(model.graph)
            common_passes.RemoveUnusedNodesPass()(model)
            infer_shapes(model)
            matched += 1
        return matched, ()


@dataclass(frozen=True)
class _Region:
    """Nodes, in the graph's order, whose values are in the order of axes ``perm`` of what is transposed to them."""

    nodes: tuple[ir.Node, ...]
    perm: tuple[int, ...]

    def inputs(self) -> list[ir.Value]:
        """What the region reads and neither computes nor holds as a constant."""
        found = dict.fromkeys(value for node in self.nodes for value in _varying(node))
        return [value for value in found if value.producer() not in self.nodes]

    def results(self) -> list[ir.Value]:
        """What others read of the region."""
        return [
            node.outputs[0]
            for node in self.nodes
            if node.outputs[0].is_graph_output() or not _within(node.outputs[0].consumers(), self.nodes)
        ]

    def saved(self) -> int:
        """Transposes that turning the region saves."""
        return sum(map(self._saved_before, self.inputs())) + sum(map(self._saved_behind, self.results()))

    def _saved_before(self, value: ir.Value) -> int:
        if _perm_of(value.producer()) != self.perm:
            return -1
        return int(not value.is_graph_output() and _within(value.consumers(), self.nodes))

    def _saved_behind(self, value: ir.Value) -> int:
        others = [reader for reader in value.consumers() if reader not in self.nodes]
        removed = [reader for reader in others if _perm_of(reader) == _inverse(self.perm)]
        kept = value.is_graph_output() or any(_perm_of(reader) is None for reader in others)
        return len(removed) - kept


def _within(nodes: Iterable[ir.Node], region: Sequence[ir.Node]) -> bool:
    return all(node in region for node in nodes)


def _regions(graph: ir.Graph) -> Iterator[_Region]:
    """The regions behind transposes that are worth turning."""
    for node in graph:
        perm = _perm_of(node)
        if perm is None:
            continue
        region = _grow(node, perm, graph)
        if region.nodes and region.saved() > 0:
            yield region


def _grow(transpose: ir.Node, perm: tuple[int, ...], graph: ir.Graph) -> _Region:
    """All indifferent nodes that are connected behind the transpose."""
    found: set[ir.Node] = set()
    pending = list(transpose.outputs[0].consumers())
    while pending:
        node = pending.pop()
        if node in found or not _is_indifferent(node, len(perm)):
            continue
        found.add(node)
        pending += node.outputs[0].consumers()
        pending += [producer for value in _varying(node) if (producer := value.producer()) is not None]
    return _Region(tuple(node for node in graph if node in found), perm)


def _is_indifferent(node: ir.Node, rank: int) -> bool:
    if node.domain != "" or len(node.outputs) != 1 or not is_static(node.outputs[0]):
        return False
    shape = shape_of(node.outputs[0])
    if len(shape) != rank or not all(is_static(value) for value in _varying(node)):
        return False
    if node.op_type in _ALONG_AN_AXIS:
        return all(value.const_value is None for value in node.inputs if value is not None)
    same = all(shape_of(value) == shape for value in _varying(node)) and bool(_varying(node))
    return same and (node.op_type in _ELEMENTWISE or _is_norm(node))


def _is_norm(node: ir.Node) -> bool:
    constant = all(constant_of(value) is not None for value in node.inputs[1:])
    return node.op_type == "BatchNormalization" and constant and node.attributes.get_int("training_mode", 0) != 1


def _varying(node: ir.Node) -> list[ir.Value]:
    return [value for value in node.inputs if value is not None and value.const_value is None]


def _perm_of(node: ir.Node | None) -> tuple[int, ...] | None:
    if node is None or node.op_type != "Transpose" or node.domain != "":
        return None
    rank = len(shape_of(node.inputs[0]))
    return tuple(node.attributes.get_ints("perm", tuple(range(rank))[::-1]))


def _inverse(perm: Sequence[int]) -> tuple[int, ...]:
    return tuple(int(axis) for axis in np.argsort(perm))


def _turn(region: _Region, graph: ir.Graph) -> None:
    """Let the region compute in the order of axes before ``perm``, between transposes that restore the old one."""
    turned = {value: _turned_input(value, region.perm, graph) for value in region.inputs()}
    results = region.results()
    for node in region.nodes:
        new = _turned_node(node, turned, region.perm, graph)
        turned[node.outputs[0]] = new.outputs[0]
    for value in results:
        _restore(value, turned[value], region, graph)
    for node in reversed(region.nodes):
        graph.remove(node, safe=True)


def _turned_input(value: ir.Value, perm: tuple[int, ...], graph: ir.Graph) -> ir.Value:
    """``value`` in the order of axes before ``perm``, by the transpose that stands there already, if one does."""
    node, own = value.producer(), _perm_of(value.producer())
    source = value if node is None or own is None else node.inputs[0]
    assert source is not None
    if own == perm:
        return source
    wanted = _inverse(perm)
    turn = _transpose(source, wanted if own is None else [own[axis] for axis in wanted])
    if node is None:
        graph.insert_before(graph[0], turn)
    else:
        graph.insert_after(node, turn)
    return turn.outputs[0]


def _restore(value: ir.Value, turned: ir.Value, region: _Region, graph: ir.Graph) -> None:
    """Let the readers outside the region, transposes first, read ``turned`` in the place of ``value``."""
    for reader in [reader for reader in value.consumers() if reader not in region.nodes]:
        perm = _perm_of(reader)
        if perm is not None:
            reader.replace_input_with(0, turned)
            reader.attributes["perm"] = ir.AttrInt64s("perm", [region.perm[axis] for axis in perm])
    others = [use for use in value.uses() if use.node not in region.nodes]
    if not others and not value.is_graph_output():
        return
    back = _transpose(turned, region.perm)
    graph.insert_after(_producer(turned), back)
    for reader, index in others:
        reader.replace_input_with(index, back.outputs[0])
    if value.is_graph_output():
        replace_node(_producer(value), back)


def _turned_node(node: ir.Node, turned: dict[ir.Value, ir.Value], perm: tuple[int, ...], graph: ir.Graph) -> ir.Node:
    """The node on turned operands, put behind the old one."""
    if node.op_type == "BatchNormalization" and perm[1] != 1:
        return _turned_norm(node, turned, perm, graph)
    inputs = [_operand(value, turned, perm, graph) for value in node.inputs]
    attributes = dict(node.attributes)
    if node.op_type in _ALONG_AN_AXIS:
        axis = node.attributes.get_int("axis", -1)
        attributes["axis"] = ir.AttrInt64("axis", perm[axis])
    new = ir.node(node.op_type, inputs, attributes=attributes, name=node.name)
    return _place(new, node, perm, graph)


def _turned_norm(node: ir.Node, turned: dict[ir.Value, ir.Value], perm: tuple[int, ...], graph: ir.Graph) -> ir.Node:
    """A batch norm as scale and shift, its channels on another axis than 1."""
    source, dtype = node.inputs[0], node.outputs[0].dtype
    assert source is not None and dtype is not None
    shape = [1] * len(perm)
    shape[perm[1]] = -1
    affine = read_affine(node, Channels(shape_of(source)[1], 1, len(perm), str(node.name)))
    last, value = node, turned[source]
    for operator, array, role in (("Mul", affine.scale, "scale"), ("Add", affine.shift, "shift")):
        constant = new_constant(array.astype(dtype.numpy()).reshape(shape), f"{node.name}_{role}", graph)
        last = _place(ir.node(operator, [value, constant], name=f"{node.name}_{role}"), last, perm, graph, node)
        value = last.outputs[0]
    return last


def _place(
    new: ir.Node, before: ir.Node, perm: tuple[int, ...], graph: ir.Graph, like: ir.Node | None = None
) -> ir.Node:
    """``new`` behind ``before``, its result the turned one of ``like`` (of ``before`` where that is not given)."""
    old = (like or before).outputs[0]
    shape = shape_of(old)
    new.outputs[0].shape = ir.Shape([shape[axis] for axis in _inverse(perm)])
    new.outputs[0].type = old.type
    graph.insert_after(before, new)
    return new


def _operand(
    value: ir.Value | None, turned: dict[ir.Value, ir.Value], perm: tuple[int, ...], graph: ir.Graph
) -> ir.Value | None:
    array = constant_of(value)
    if value is None or array is None:
        return None if value is None else turned[value]
    if array.size == 1:
        return value
    wide = array.reshape((1,) * (len(perm) - array.ndim) + array.shape)
    return new_constant(np.ascontiguousarray(wide.transpose(_inverse(perm))), f"{value.name}_turned", graph)


def _transpose(value: ir.Value, perm: Sequence[int]) -> ir.Node:
    node = ir.node("Transpose", [value], attributes={"perm": list(perm)}, name=f"{value.name}_transposed")
    shape = shape_of(value)
    node.outputs[0].shape, node.outputs[0].type = ir.Shape([shape[axis] for axis in perm]), value.type
    return node


def _producer(value: ir.Value) -> ir.Node:
    node = value.producer()
    assert node is not None
    return node
