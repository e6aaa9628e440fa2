"""What a graph costs: nodes, parameters, MACs and bytes, counted without running it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod

import onnx_ir as ir

from edgec.frontend.values import shape_of


@dataclass(frozen=True)
class GraphSummary:
    """Counts of one graph; ``parameters`` are elements and ``bytes`` the memory of the initialisers."""

    nodes: int
    operators: Mapping[str, int]
    parameters: int
    bytes: int
    macs: int

    def __str__(self) -> str:
        operators = ", ".join(f"{count} {name}" for name, count in self.operators.items())
        return (
            f"{self.nodes} nodes ({operators}), {self.parameters:,} parameters in {self.bytes:,} bytes, "
            f"{self.macs:,} MACs"
        )


def summarise(model: ir.Model) -> GraphSummary:
    """Counts over the main graph; its shapes must be static. The most frequent operator comes first."""
    operators = Counter(operator_name(node) for node in model.graph)
    tensors = [v.const_value for v in model.graph.initializers.values() if v.const_value is not None]
    return GraphSummary(
        nodes=len(model.graph),
        operators=dict(operators.most_common()),
        parameters=sum(tensor.size for tensor in tensors),
        bytes=sum(tensor.nbytes for tensor in tensors),
        macs=sum(map(node_macs, model.graph)),
    )


def operator_name(node: ir.Node) -> str:
    """``Conv`` for a standard operator, ``domain.Operator`` for any other."""
    return f"{node.domain}.{node.op_type}" if node.domain else node.op_type


def node_macs(node: ir.Node) -> int:
    """Multiply-accumulates of a convolution, matrix product (float or integer) or attention; 0 for the others."""
    count = _MACS.get(node.op_type) if node.domain in ("", "edgec") else None
    return count(node) if count else 0


def _conv_macs(node: ir.Node, weight: int = 1) -> int:
    """Each output element takes one MAC per weight of its filter: in channels / groups × kernel."""
    return prod(shape_of(node.outputs[0])) * prod(shape_of(node.inputs[weight])[1:])


def _conv_transpose_macs(node: ir.Node) -> int:
    """Each input element meets one filter: out channels / groups × kernel."""
    return prod(shape_of(node.inputs[0])) * prod(shape_of(node.inputs[1])[1:])


def _gemm_macs(node: ir.Node) -> int:
    depth = shape_of(node.inputs[0])[0 if node.attributes.get_int("transA", 0) else 1]
    return prod(shape_of(node.outputs[0])) * depth


def _matmul_macs(node: ir.Node) -> int:
    return prod(shape_of(node.outputs[0])) * shape_of(node.inputs[0])[-1]


def _attention_macs(node: ir.Node) -> int:
    """Two products: scores from queries and keys, the result from scores and values, those of the past among them."""
    rows, depth = shape_of(node.inputs[0])[-2:]
    *batch, _, columns = shape_of(node.outputs[0])
    positions = shape_of(node.inputs[2])[-2]
    if node.domain == "" and len(node.inputs) > 5 and node.inputs[5] is not None:
        positions += shape_of(node.inputs[5])[-2]
    return prod(batch) * rows * positions * (depth + columns)


def _squeeze_excite_macs(node: ir.Node) -> int:
    """Two products of one row an image."""
    batch = shape_of(node.inputs[0])[0]
    return batch * sum(prod(shape_of(node.inputs[index])) for index in (1, 3))


_MACS: Mapping[str, Callable[[ir.Node], int]] = {
    "Conv": _conv_macs,
    "ConvInteger": _conv_macs,
    "ConvOfWeights": _conv_macs,
    "QLinearConv": lambda node: _conv_macs(node, weight=3),
    "ConvTranspose": _conv_transpose_macs,
    "Gemm": _gemm_macs,
    "MatMul": _matmul_macs,
    "Attention": _attention_macs,
    "MaskedAttention": _attention_macs,
    "MatMulInteger": _matmul_macs,
    "MatMulOfWeights": _matmul_macs,
    **dict.fromkeys(
        ("SqueezeExcite", "SqueezeExciteHard", "SqueezeExciteSwish", "SqueezeExciteSwishHard"), _squeeze_excite_macs
    ),
    "QLinearMatMul": _matmul_macs,
}
