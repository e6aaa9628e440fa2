"""Integer weights as a constant and the nodes that make it real: standard ONNX.

Weights of 8 bits and one scale an output channel are a DequantizeLinear of the weight as it is; so are those of
4 bits or less, as int4 (int2 for 2 bits where the opset has it; 3 bits are an int4 that uses half of its range). In
groups the blocks of DequantizeLinear lie along the depth. For a convolution that is its flat row with the input
channels innermost, which a Reshape and a Transpose turn into the kernel.
"""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx_ir as ir

from edgec.passes.quantize.grid import Weights
from edgec.passes.quantize.lowbit import LowBit
from edgec.passes.quantize.operators import weight_axis
from edgec.passes.quantize.products import Product
from edgec.passes.rewriting import free_name, new_constant

_INT2_OPSET = 25


def real_weights(product: Product, weights: Weights | LowBit, graph: ir.Graph) -> list[ir.Node]:
    """The nodes, in order, the last of which gives ``weights`` as the node of ``product`` reads them."""
    name = f"{product.node.name}_weight"
    if isinstance(weights, Weights):
        integers = constant(graph, weights.values, f"{name}_quantized")
        scales = constant(graph, weights.scales, f"{name}_scale")
        zeros = constant(graph, np.zeros(weights.scales.shape, np.int8), f"{name}_zero_point")
        parts = [integers, scales, zeros]
        return [dequantise("DequantizeLinear", parts, f"{name}_dequantized", integers, weights.axis)]
    dtype = _narrow_dtype(weights.bits, graph)
    if weights.scales.shape[1] == 1:
        shaped = product.from_rows(product.unordered(weights.values)).astype(dtype)
        parts = [constant(graph, shaped, f"{name}_quantized"), constant(graph, weights.scales[:, 0], f"{name}_scale")]
        return [dequantise("DequantizeLinear", parts, f"{name}_dequantized", parts[0], weight_axis(product.node))]
    return _in_groups(product, weights, dtype, name, graph)


def _in_groups(product: Product, weights: LowBit, dtype: np.dtype, name: str, graph: ir.Graph) -> list[ir.Node]:
    columns = product.node.op_type != "Conv" and weight_axis(product.node) == 1
    turn = np.transpose if columns else np.asarray
    integers = constant(graph, np.ascontiguousarray(turn(weights.values)).astype(dtype), f"{name}_quantized")
    scales = constant(graph, np.ascontiguousarray(turn(weights.scales)), f"{name}_scale")
    flat = dequantise("DequantizeLinear", [integers, scales], f"{name}_dequantized", integers, 0 if columns else 1)
    flat.attributes["block_size"] = ir.AttrInt64("block_size", weights.group)
    if product.node.op_type != "Conv":
        return [flat]
    outputs, channels, *kernel = product.weight.shape
    shape = constant(graph, np.array([outputs, *kernel, channels], np.int64), f"{name}_shape")
    rank = len(kernel) + 2
    split = ir.node("Reshape", [flat.outputs[0], shape], name=f"{name}_split")
    turned = ir.node(
        "Transpose", [split.outputs[0]], {"perm": [0, rank - 1, *range(1, rank - 1)]}, name=f"{name}_turned"
    )
    for node, extents in ((split, [outputs, *kernel, channels]), (turned, [outputs, channels, *kernel])):
        output = node.outputs[0]
        output.name, output.shape, output.type = node.name, ir.Shape(extents), ir.TensorType(ir.DataType.FLOAT)
    return [flat, split, turned]


def _narrow_dtype(bits: int, graph: ir.Graph) -> np.dtype:
    two = bits == 2 and graph.opset_imports.get("", 0) >= _INT2_OPSET
    return np.dtype(ml_dtypes.int2 if two else ml_dtypes.int4)


def constant(graph: ir.Graph, array: np.ndarray, name: str) -> ir.Value:
    """A new initialiser."""
    value = new_constant(array, free_name(graph, name), graph)
    value.shape, value.type = ir.Shape(array.shape), ir.TensorType(ir.DataType.from_numpy(array.dtype))
    return value


def dequantise(op: str, inputs: list[ir.Value], name: str, like: ir.Value, axis: int | None = None) -> ir.Node:
    """A QuantizeLinear or DequantizeLinear whose output is float32 of the shape of ``like``."""
    made = ir.node(op, inputs, {} if axis is None else {"axis": axis}, name=name)
    (output,) = made.outputs
    output.name, output.shape, output.type = name, like.shape, ir.TensorType(ir.DataType.FLOAT)
    return made
