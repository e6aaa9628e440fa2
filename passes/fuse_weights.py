"""Make one operator of a product and of the integer weights that it reads as real numbers.

``Conv``, ``Gemm`` and ``MatMul`` of float activations, whose weights DequantizeLinear makes of constants (a scale for
each output channel or for each block along the depth, with zero points or without), become the functions
``ConvOfWeights`` and ``MatMulOfWeights``: the integers are unpacked inside the product and never in memory.

Zero points go into the integers, where these then still fit a byte.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from edgec.frontend.values import constant_of, input_of, shape_of
from edgec.passes.functions import call
from edgec.passes.fuse import FusePass, Match, initializer
from edgec.passes.grids import dequantised
from edgec.passes.integer_weights import IntegerWeights, integer_weights
from edgec.passes.rewriting import Refused, named

_BLOCKS_OPSET = 21


class FuseWeights(FusePass):
    """Keeps integer weights of float products as integers."""

    name: ClassVar[str] = "fuse-weights"

    def match(self, model: ir.Model, node: ir.Node) -> Match | None:
        if model.opset_imports[""] < _BLOCKS_OPSET or node.op_type not in ("Conv", "Gemm", "MatMul"):
            return None
        if dequantised(node.inputs[0]) is not None or constant_of(node.inputs[0]) is not None:
            return None
        found = integer_weights(node.inputs[1])
        if found is None:
            return None
        weights = _convolution(node, found) if node.op_type == "Conv" else _matrix(node, found)
        return Match(f"{node.op_type} of integer weights", found.nodes, lambda: _build(model, node, weights))


@dataclass(frozen=True)
class _Weights:
    """Integers [outputs, depth], for a convolution with the input channels innermost, and scales [outputs, blocks]."""

    values: np.ndarray
    scales: np.ndarray
    block: int


def _build(model: ir.Model, node: ir.Node, weights: _Weights) -> list[ir.Node]:
    name, x = str(node.outputs[0].name), node.inputs[0]
    assert x is not None
    bias = input_of(node, 2)
    if bias is None:
        bias = initializer(model, f"{name}_bias", np.zeros(len(weights.values), weights.scales.dtype))
    if node.op_type != "Conv":
        operands = _constants(model, name, weights.values.T, weights.scales.T)
        return [call(model, "MatMulOfWeights", [x, *operands, bias], {"block_size": weights.block}, str(node.name))]
    operands = _constants(model, name, weights.values, weights.scales)
    outputs, channels, *kernel = shape_of(node.inputs[1])
    shape = initializer(model, f"{name}_shape", np.array([outputs, *kernel, channels], np.int64))
    rank, attributes = len(kernel) + 2, node.attributes
    given: dict[str, int | list[int]] = {
        "block_size": weights.block,
        "perm": [0, rank - 1, *range(1, rank - 1)],
        "dilations": list(attributes.get_ints("dilations", [1] * len(kernel))),
        "group": attributes.get_int("group", 1),
        "kernel_shape": list(kernel),
        "pads": list(attributes.get_ints("pads", [0] * 2 * len(kernel))),
        "strides": list(attributes.get_ints("strides", [1] * len(kernel))),
    }
    return [call(model, "ConvOfWeights", [x, *operands, shape, bias], given, str(node.name))]


def _constants(model: ir.Model, name: str, values: np.ndarray, scales: np.ndarray) -> list[ir.Value]:
    """Both as constants of the graph."""
    return [
        initializer(model, f"{name}_weights", np.ascontiguousarray(values)),
        initializer(model, f"{name}_weights_scale", np.ascontiguousarray(scales)),
    ]


def _convolution(node: ir.Node, found: IntegerWeights) -> _Weights:
    if node.attributes.get_string("auto_pad", "NOTSET") != "NOTSET":
        raise Refused(f"{named(node)} pads by itself (auto_pad)")
    if found.values.ndim > 4:
        raise Refused(f"{named(node)} is a convolution over volumes")
    rows, scales = (np.moveaxis(a, 1, -1).reshape(len(a), -1) for a in (found.values, found.scales))
    return _blocked(rows, scales, node)


def _matrix(node: ir.Node, found: IntegerWeights) -> _Weights:
    if found.values.ndim != 2:
        raise Refused(f"{named(node)} multiplies by a batch of matrices")
    if node.op_type == "Gemm":
        factors = node.attributes.get_float("alpha", 1.0), node.attributes.get_float("beta", 1.0)
        if factors != (1.0, 1.0) or node.attributes.get_int("transA", 0) != 0:
            raise Refused(f"{named(node)} scales or transposes what it multiplies")
        bias = input_of(node, 2)
        if bias is not None and (constant_of(bias) is None or len(shape_of(bias)) != 1):
            raise Refused(f"the bias of {named(node)} is no constant vector")
    if node.op_type == "Gemm" and node.attributes.get_int("transB", 0) == 1:
        return _blocked(found.values, found.scales, node)
    return _blocked(found.values.T, found.scales.T, node)


def _blocked(rows: np.ndarray, scales: np.ndarray, node: ir.Node) -> _Weights:
    """``rows`` [outputs, depth] with as few scales as say the same as ``scales`` for each of them.

    Raises:
        Refused: scales change in the middle of what a kernel reads at a time: within eight neighbours along the depth.
    """
    depth = rows.shape[1]
    changes = np.flatnonzero((scales[:, 1:] != scales[:, :-1]).any(axis=0)) + 1
    block = depth if not len(changes) else int(np.gcd.reduce(changes))
    if block % 8 and block != depth:
        raise Refused(f"the scales of the weights of {named(node)} change every {block} elements, which is no eight")
    return _Weights(np.ascontiguousarray(rows), scales[:, ::block], block)
