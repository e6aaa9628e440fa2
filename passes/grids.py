"""Reading the quantisation of a graph: the grids on which integers stand for reals."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from edgec.frontend.values import constant_of, input_of
from edgec.grid import Grid
from edgec.passes.fuse import initializer

BYTES = ("int8", "uint8")
WORDS = ("int16", "uint16")
_MIDDLES = {"int8": 0, "uint8": 128, "int4": 0, "uint4": 8, "int2": 0, "uint2": 2}
"""dtypes of weights, and the integer in the middle of each."""


def grid_constants(model: ir.Model, grid: Grid, name: str) -> tuple[ir.Value, ir.Value]:
    """Scale and zero point of ``grid`` as constants of the graph."""
    scale = initializer(model, f"{name}_scale", np.array(grid.scale, np.float32))
    return scale, initializer(model, f"{name}_zero_point", np.array(grid.zero, grid.dtype))


def grid_of(node: ir.Node | None, op_type: str) -> Grid | None:
    """The grid of a QuantizeLinear or DequantizeLinear (``op_type``) of 8 or 16 bits with one constant scale."""
    if node is None or node.domain != "" or node.op_type != op_type or "block_size" in node.attributes:
        return None
    scale, zero = constant_of(node.inputs[1]), constant_of(input_of(node, 2))
    integers = node.outputs[0] if op_type == "QuantizeLinear" else node.inputs[0]
    known = input_of(node, 2) is None or zero is not None
    if scale is None or scale.size != 1 or scale.dtype != np.float32 or not known:
        return None
    if integers is None or integers.dtype is None or (zero is not None and zero.size != 1):
        return None
    dtype = str(integers.dtype.numpy())
    if dtype not in BYTES + WORDS or not float(scale.reshape(-1)[0]) > 0:
        return None
    return Grid(float(scale.reshape(-1)[0]), 0 if zero is None else int(zero.reshape(-1)[0]), dtype)


def dequantised(value: ir.Value | None) -> tuple[ir.Value, Grid] | None:
    """The integers and the grid of a value that DequantizeLinear computes; None where it is anything else."""
    node = None if value is None else value.producer()
    grid = grid_of(node, "DequantizeLinear")
    if node is None or grid is None or node.inputs[0] is None:
        return None
    return node.inputs[0], grid


def quantised_once(value: ir.Value) -> tuple[ir.Node, Grid] | None:
    """The QuantizeLinear that alone reads ``value``, and its grid."""
    readers = value.consumers()
    if len(value.uses()) != 1 or value.is_graph_output():
        return None
    grid = grid_of(readers[0], "QuantizeLinear")
    return None if grid is None else (readers[0], grid)


@dataclass(frozen=True)
class StoredWeights:
    """Constant int8 weights around zero: real = scale · q, one scale for all or one for each index of ``axis``."""

    values: np.ndarray
    scale: np.ndarray
    axis: int


def weights_of(value: ir.Value | None) -> StoredWeights | None:
    """The weights that DequantizeLinear makes of constants as int8, unsigned ones moved by half; None for others.

    Weights whose zero point is not the middle of their range have none.
    """
    node = None if value is None else value.producer()
    if node is None or node.domain != "" or node.op_type != "DequantizeLinear" or "block_size" in node.attributes:
        return None
    values, scale, zero = (constant_of(input_of(node, index)) for index in range(3))
    if values is None or scale is None or str(values.dtype) not in _MIDDLES or scale.dtype != np.float32:
        return None
    middle = _MIDDLES[str(values.dtype)]
    zeros = np.zeros(1, np.int64) if zero is None else zero.astype(np.int64)
    if (zeros != middle).any() or scale.ndim > 1:
        return None
    centred = (values.astype(np.int16) - middle).astype(np.int8)
    axis = node.attributes.get_int("axis", 1)
    return StoredWeights(centred, scale.reshape(-1), axis % values.ndim if values.ndim else 0)
