"""Constant folding: what does not depend on the graph's inputs is computed once, at compile time.

The onnxscript optimiser folds what its partial evaluator and the ONNX reference implementation know. What
they leave (operators with several outputs, operator versions that the reference lacks) is evaluated by ONNX
Runtime, one node at a time. Two kinds of node are never folded: those that draw random numbers, and the
DequantizeLinear of a weight, which must stay integers: of any weight in a model that quantises its activations, and
of a product's in others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from math import prod

import numpy as np
import onnx
import onnx_ir as ir
from onnxscript.optimizer import fold_constants as fold_with_onnxscript

from edgec.frontend.shapes import RANDOM_OPERATORS
from edgec.frontend.values import is_static, shape_of

_UNLIMITED = 2**62
_PRODUCTS = ("Conv", "Gemm", "MatMul")
_LARGEST_GROWTH = 2**20
"""Elements by which one folded node may enlarge the model: 4 MB of float32. Beyond that (an expanded
constant, say) computing it at run time costs less than shipping it."""


def fold_constants(model: ir.Model) -> None:
    """Turn nodes whose inputs are all constants into initialisers, in place."""
    foldable = _folding_rule(model)
    fold_with_onnxscript(
        model,
        onnx_shape_inference=True,
        input_size_limit=_UNLIMITED,
        output_size_limit=_UNLIMITED,
        should_fold=foldable,
    )
    for node in _constant_nodes(model.graph):
        if foldable(node):
            _fold(node, model.opset_imports[""])


def _folding_rule(model: ir.Model) -> Callable[[ir.Node], bool]:
    kept = RANDOM_OPERATORS | ({"DequantizeLinear"} if _quantises_activations(model.graph) else set())

    def foldable(node: ir.Node) -> bool:
        allowed = node.op_type not in kept and not _makes_weights(node)
        return allowed and (_growth(node) <= _LARGEST_GROWTH or _turns_weights(node))

    return foldable


def _makes_weights(node: ir.Node) -> bool:
    """Whether ``node`` makes real numbers of integers that a product, behind nothing but movements, multiplies by."""
    if node.op_type != "DequantizeLinear":
        return False
    value = node.outputs[0]
    while len(value.uses()) == 1:
        (use,) = value.uses()
        if use.node.op_type in _PRODUCTS and use.idx == 1:
            return True
        if use.node.op_type not in ("Reshape", "Transpose"):
            return False
        value = use.node.outputs[0]
    return False


def _turns_weights(node: ir.Node) -> bool:
    """Whether ``node`` only turns what products multiply by, such as an embedding that is the head, too: they store
    weights in an order of their own anyhow."""
    uses = node.outputs[0].uses()
    return node.op_type == "Transpose" and all(use.node.op_type in _PRODUCTS and use.idx == 1 for use in uses)


def _growth(node: ir.Node) -> int:
    """Elements that the node's outputs have more than the constants that only it reads."""
    own = {value for value in node.inputs if value is not None and len(value.consumers()) == 1}
    removed = sum(value.const_value.size for value in own if value.const_value is not None)
    return sum(prod(shape_of(value)) for value in node.outputs if is_static(value)) - removed


def _quantises_activations(graph: ir.Graph) -> bool:
    return any(
        node.op_type == "QuantizeLinear" and node.inputs[0] is not None and node.inputs[0].const_value is None
        for node in graph.all_nodes()
    )


def _constant_nodes(graph: ir.Graph) -> Iterator[ir.Node]:
    """Standard nodes without a subgraph whose inputs are all constants, in order."""
    for node in graph:
        nested = any(
            attribute.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)
            for attribute in node.attributes.values()
        )
        inputs = [value for value in node.inputs if value is not None]
        if node.domain == "" and inputs and not nested and all(value.const_value is not None for value in inputs):
            yield node


def _fold(node: ir.Node, opset: int) -> None:
    """Replace the node's outputs by initialisers, unless ONNX Runtime cannot compute them."""
    arrays = _evaluate(node, opset)
    if not arrays:
        return
    graph = node.graph
    assert isinstance(graph, ir.Graph)
    for value, array in zip([value for value in node.outputs if value.name], arrays, strict=True):
        name, value.name = value.name, f"{value.name}_computed"
        constant = ir.val(name, const_value=ir.tensor(array, name=name))
        graph.register_initializer(constant)
        value.replace_all_uses_with(constant, replace_graph_outputs=True)
    graph.remove(node, safe=True)


def _evaluate(node: ir.Node, opset: int) -> list[np.ndarray]:
    """The outputs of the node, computed by ONNX Runtime; empty where it has no kernel for them."""
    import onnxruntime

    constants = [_named_tensor(value) for value in dict.fromkeys(node.inputs) if value is not None]
    outputs = [ir.to_proto(value) for value in node.outputs if value.name]
    graph = onnx.helper.make_graph([ir.to_proto(node)], "constant", [], outputs, constants)
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", opset)], ir_version=8)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    try:
        session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        return session.run(None, {})
    except Exception:  # ONNX Runtime's exceptions have no common base class
        return []


def _named_tensor(value: ir.Value) -> onnx.TensorProto:
    """The constant under the value's name, which the tensor itself need not bear."""
    assert value.const_value is not None
    tensor = onnx.TensorProto()
    tensor.CopyFrom(ir.to_proto(value.const_value))
    tensor.name = value.name
    return tensor
