"""Reading constant integer weights that a graph makes real numbers of: scales for a tensor, channels or blocks."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from edgec.frontend.values import constant_of, input_of, shape_of
from edgec.passes.rewriting import Refused, is_private, named

_SCALES = (np.float32, np.float16)
_INTEGERS = frozenset({"int8", "uint8", "int4", "uint4", "int2", "uint2"})


@dataclass(frozen=True)
class IntegerWeights:
    """real = scale · value.

    Attributes:
        values: int8, less their zero points, of the shape that is read.
        scales: float32 or float16, one for each value.
        nodes: what makes them real numbers and moves these, the last first.
    """

    values: np.ndarray
    scales: np.ndarray
    nodes: tuple[ir.Node, ...]

    @property
    def real(self) -> np.ndarray:
        """The float32 weights."""
        return (self.values.astype(np.float32) * self.scales).astype(np.float32)


def integer_weights(value: ir.Value | None) -> IntegerWeights | None:
    """The weights behind ``value``: DequantizeLinear of constants, then movements that nobody else reads.

    Raises:
        Refused: an integer less its zero point does not fit a byte.
    """
    chain: list[ir.Node] = []
    while value is not None and (made := value.producer()) is not None and made.op_type in ("Reshape", "Transpose"):
        if not is_private(made):
            return None
        chain.append(made)
        value = made.inputs[0]
    source = None if value is None else value.producer()
    if source is None or not _dequantises(source):
        return None
    integers, scales = _centred(source)
    for each in reversed(chain):
        integers, scales = _moved(each, integers), _moved(each, scales)
    return IntegerWeights(integers, scales, (*chain, source))


def _dequantises(node: ir.Node) -> bool:
    """Whether ``node`` makes real numbers of constant integers of 8 bits or less."""
    values = constant_of(node.inputs[0]) if node.op_type == "DequantizeLinear" and node.domain == "" else None
    scale = None if values is None else constant_of(node.inputs[1])
    known = scale is not None and scale.dtype in _SCALES and is_private(node)
    return known and values is not None and str(values.dtype) in _INTEGERS


def _centred(node: ir.Node) -> tuple[np.ndarray, np.ndarray]:
    """The integers less their zero points as int8, and the scale of each, of one shape."""
    values, scale, zero = (constant_of(input_of(node, index)) for index in range(3))
    assert values is not None and scale is not None
    wide = values.astype(np.int16)
    if zero is not None:
        wide = wide - _spread(zero.astype(np.int16), node, wide.shape)
    if wide.min(initial=0) < -128 or wide.max(initial=0) > 127:
        raise Refused(f"the weights of {named(node)} less their zero points do not fit a byte")
    return wide.astype(np.int8), _spread(scale, node, wide.shape)


def _spread(parameter: np.ndarray, node: ir.Node, shape: tuple[int, ...]) -> np.ndarray:
    """A scale or zero point for each element of ``shape``."""
    axis, block = node.attributes.get_int("axis", 1) % len(shape), node.attributes.get_int("block_size", 0)
    if parameter.size == 1:
        return np.broadcast_to(parameter.reshape(()), shape)
    if parameter.ndim == 1:
        return np.broadcast_to(parameter.reshape([-1 if i == axis else 1 for i in range(len(shape))]), shape)
    return np.repeat(parameter, block, axis).take(range(shape[axis]), axis)


def _moved(node: ir.Node, array: np.ndarray) -> np.ndarray:
    if node.op_type == "Reshape":
        return array.reshape(shape_of(node.outputs[0]))
    return array.transpose(node.attributes.get_ints("perm", tuple(reversed(range(array.ndim)))))
