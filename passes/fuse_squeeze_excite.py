"""Fuse squeeze-and-excitation that is spelled out into one operator.

    y = x · gate(W₂ · act(W₁ · mean(x) + b₁) + b₂)      with x [N, C, H, W], the mean over H and W

is a global average pool, two linear layers and a product per channel (Hu et al., arXiv 1709.01507; act is ReLU or
SiLU, gate a sigmoid or a hard sigmoid, as in MobileNet v3 and EfficientNet). The linear layers may be 1×1 convolutions,
Gemm or MatMul with their bias in an Add, and what turns [N, C, 1, 1] into [N, C] and back may be any reshape. The
weights become matrices [inputs, outputs], so that the two layers are products of one row an image.

The pass runs behind the quantisation: pruning and integers see the layers one by one, and what is fused here stayed
float.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from edgec.frontend.values import constant_of, input_of, shape_of
from edgec.passes.functions import DOMAIN, call
from edgec.passes.fuse import FusePass, Match, initializer, operands, producer

_RESHAPES = ("Reshape", "Flatten", "Squeeze", "Unsqueeze")


class FuseSqueezeExcite(FusePass):
    """Recognises squeeze-and-excitation gates."""

    name: ClassVar[str] = "fuse-squeeze-excite"

    def match(self, model: ir.Model, node: ir.Node) -> Match | None:
        if node.op_type != "Mul" or node.outputs[0].dtype != ir.DataType.FLOAT:
            return None
        return next((found for x, gate in operands(node) if (found := _gated(model, node, x, gate))), None)


@dataclass(frozen=True)
class _Linear:
    """source · weight + bias, with weight [inputs, outputs] and bias [outputs], and the nodes that compute it."""

    source: ir.Value
    weight: np.ndarray
    bias: np.ndarray
    nodes: tuple[ir.Node, ...]


@dataclass(frozen=True)
class _Gate:
    """The operator's name and attributes, its layers, and all nodes from the pool to the gate."""

    name: str
    attributes: Mapping[str, float]
    squeeze: _Linear
    excite: _Linear
    nodes: tuple[ir.Node, ...]


def _gated(model: ir.Model, node: ir.Node, x: ir.Value, value: ir.Value) -> Match | None:
    """``node`` as the product of ``x`` and its gate ``value``."""
    if len(shape_of(x)) != 4 or shape_of(x) != shape_of(node.outputs[0]):
        return None
    gate = _read_gate(value, x)
    return None if gate is None else Match(gate.name, gate.nodes, lambda: [_fused(model, node, x, gate)])


def _fused(model: ir.Model, node: ir.Node, x: ir.Value, gate: _Gate) -> ir.Node:
    constants = [
        initializer(model, f"{node.name}_{name}", array)
        for layer, names in ((gate.squeeze, ("squeeze", "squeeze_bias")), (gate.excite, ("excite", "excite_bias")))
        for name, array in zip(names, (layer.weight, layer.bias), strict=True)
    ]
    return call(model, gate.name, [x, *constants], gate.attributes, node.name)


def _read_gate(value: ir.Value, x: ir.Value) -> _Gate | None:
    """The gate of ``x`` that ends in ``value``, from its last operator back."""
    batch, channels, *_ = shape_of(x)
    if shape_of(value) != (batch, channels, 1, 1):
        return None
    gate, behind = _behind_reshapes(value, batch)
    bounded = producer(gate, "Sigmoid", "HardSigmoid")
    excite = None if bounded is None else _read_linear(bounded.inputs[0], batch)
    activation = None if excite is None else _read_activation(excite.source)
    if bounded is None or excite is None or activation is None:
        return None
    kind, active, source = activation
    squeeze = _read_linear(source, batch)
    pooled = None if squeeze is None else _read_pool(squeeze.source, x)
    if squeeze is None or pooled is None or squeeze.weight.shape[0] != channels:
        return None
    hard = bounded.op_type == "HardSigmoid"
    attributes = {"alpha": 0.2, "beta": 0.5} if hard else {}
    attributes = {name: bounded.attributes.get_float(name, default) for name, default in attributes.items()}
    nodes = (*behind, bounded, *excite.nodes, *active, *squeeze.nodes, *pooled)
    return _Gate(f"SqueezeExcite{kind}{'Hard' if hard else ''}", attributes, squeeze, excite, nodes)


def _behind_reshapes(value: ir.Value | None, batch: int) -> tuple[ir.Value | None, tuple[ir.Node, ...]]:
    """What reshapes that keep the images apart read, and those nodes."""
    nodes: list[ir.Node] = []
    while (node := producer(value, *_RESHAPES)) is not None and shape_of(node.inputs[0])[:1] == (batch,):
        nodes.append(node)
        value = node.inputs[0]
    return value, tuple(nodes)


def _read_activation(value: ir.Value) -> tuple[str, tuple[ir.Node, ...], ir.Value] | None:
    """What the activation adds to the operator's name, its node, and what it reads."""
    node = value.producer()
    if node is None or node.domain not in ("", DOMAIN) or node.inputs[0] is None:
        return None
    if node.op_type == "Relu":
        return "", (node,), node.inputs[0]
    if node.op_type == "Swish" and node.attributes.get_float("alpha", 1.0) == 1.0:
        return "Swish", (node,), node.inputs[0]
    return None


def _read_pool(value: ir.Value, x: ir.Value) -> tuple[ir.Node, ...] | None:
    """The node that takes the mean of each channel of ``x``; None where ``value`` is something else."""
    node = producer(value, "GlobalAveragePool", "ReduceMean")
    if node is None or node.inputs[0] is not x:
        return None
    if node.op_type == "ReduceMean":
        listed = constant_of(input_of(node, 1))
        axes = node.attributes.get_ints("axes", ()) if listed is None else listed.tolist()
        if sorted(axis % 4 for axis in axes) != [2, 3]:
            return None
    return (node,)


def _read_linear(value: ir.Value | None, batch: int) -> _Linear | None:
    """The linear layer of one row an image that ends in ``value``."""
    value, behind = _behind_reshapes(value, batch)
    added = producer(value, "Add")
    found = None if value is None else _read_product(value)
    if found is None and added is not None:
        for inner, constant in operands(added):
            bias, product = constant_of(constant), _read_product(inner)
            if product is not None and bias is not None and bias.size in (1, product.bias.size):
                total = product.bias + bias.reshape(-1)
                found = _Linear(product.source, product.weight, total, (added, *product.nodes))
    if found is None:
        return None
    source, before = _behind_reshapes(found.source, batch)
    if source is None or prod(shape_of(source)) != batch * found.weight.shape[0]:
        return None
    return _Linear(source, found.weight, found.bias, (*behind, *found.nodes, *before))


def _read_product(value: ir.Value) -> _Linear | None:
    """A 1×1 convolution of one pixel, a Gemm or a MatMul with a constant matrix."""
    node = producer(value, "Conv", "Gemm", "MatMul")
    weight = None if node is None else constant_of(node.inputs[1])
    bias = None if node is None else constant_of(input_of(node, 2))
    if node is None or weight is None or node.inputs[0] is None or (input_of(node, 2) is not None and bias is None):
        return None
    matrix = _matrix(node, weight)
    if matrix is None:
        return None
    shift = np.zeros(matrix.shape[1], weight.dtype) if bias is None else bias.reshape(-1)
    return _Linear(node.inputs[0], matrix, np.broadcast_to(shift, matrix.shape[1:]), (node,))


def _matrix(node: ir.Node, weight: np.ndarray) -> np.ndarray | None:
    """The weight as a matrix [inputs, outputs]; None where the node is more than a product with one."""
    if node.op_type == "Conv":
        plain = weight.ndim == 4 and weight.shape[2:] == (1, 1) and shape_of(node.outputs[0])[2:] == (1, 1)
        return weight[:, :, 0, 0].T if plain and shape_of(node.inputs[0])[1] == weight.shape[1] else None
    if weight.ndim != 2:
        return None
    if node.op_type == "MatMul":
        return weight
    plain = all(node.attributes.get_float(name, 1.0) == 1.0 for name in ("alpha", "beta"))
    if not plain or node.attributes.get_int("transA", 0) == 1:
        return None
    return weight.T if node.attributes.get_int("transB", 0) == 1 else weight
