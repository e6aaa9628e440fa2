"""Affine maps per channel: z_c = s_c·y_c + t_c, and how the operators of a graph spell them.

    BatchNormalization   s = scale / √(var + ε),  t = bias - s·mean
    Add, Sub             s = 1,  t = ±constant           (constant - y:  s = -1, t = constant)
    Mul, Div             s = constant or 1 / constant,  t = 0
    Neg                  s = -1,  t = 0

The constants vary along the channel axis only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from edgec.frontend.values import constant_of
from edgec.passes.rewriting import Refused


@dataclass(frozen=True)
class Channels:
    """The channel axis of a value: its extent, its place, the value's rank, and whose channels they are."""

    count: int
    axis: int
    rank: int
    owner: str

    def per_channel(self, constant: np.ndarray) -> np.ndarray:
        """``constant`` as float64 [channels], if broadcasting it to the value repeats it so."""
        shape = (1,) * (self.rank - constant.ndim) + constant.shape
        others = [extent for axis, extent in enumerate(shape) if axis != self.axis]
        if constant.ndim > self.rank or set(others) - {1} or constant.size not in (1, self.count):
            raise Refused(
                f"its constant {list(constant.shape)} varies along more than axis {self.axis}, the "
                f"channels of {self.owner}"
            )
        return np.broadcast_to(constant.astype(np.float64).reshape(-1), (self.count,))


@dataclass(frozen=True)
class Affine:
    """z = scale·y + shift; float64 [channels]."""

    scale: np.ndarray
    shift: np.ndarray


def varying_operand(node: ir.Node) -> ir.Value:
    """What the map is applied to: the operand that is not constant, if exactly one of the first two is not."""
    operands = node.inputs[: 1 if node.op_type == "BatchNormalization" else 2]
    varying = [value for value in operands if value is not None and value.const_value is None]
    if len(varying) != 1:
        raise Refused
    return varying[0]


def read_affine(node: ir.Node, channels: Channels) -> Affine:
    """The map that ``node``, one of :data:`AFFINE_OPERATORS`, applies; raises :class:`Refused`."""
    return _MAPS[node.op_type](node, channels)


def _batch_norm(node: ir.Node, channels: Channels) -> Affine:
    constants = [array for array in map(constant_of, node.inputs[1:5]) if array is not None]
    if node.attributes.get_int("training_mode", 0):
        raise Refused("it is in training mode, so its statistics come from the batch")
    if channels.axis != 1:
        raise Refused(f"its channels are axis 1, those of {channels.owner} are axis {channels.axis}")
    if len(constants) < 4:
        raise Refused("its parameters are computed at run time")
    scale, bias, mean, variance = (constant.astype(np.float64) for constant in constants)
    scale = scale / np.sqrt(variance + node.attributes.get_float("epsilon", 1e-5))
    return Affine(scale, bias - scale * mean)


def _operand(node: ir.Node, channels: Channels) -> tuple[np.ndarray, bool]:
    """The constant operand per channel, and whether it is the left one."""
    left, right = map(constant_of, node.inputs)
    constant = right if left is None else left
    assert constant is not None
    return channels.per_channel(constant), left is not None


def _add(node: ir.Node, channels: Channels) -> Affine:
    constant, _ = _operand(node, channels)
    return Affine(np.ones_like(constant), constant)


def _sub(node: ir.Node, channels: Channels) -> Affine:
    constant, on_left = _operand(node, channels)
    ones = np.ones_like(constant)
    return Affine(-ones, constant) if on_left else Affine(ones, -constant)


def _mul(node: ir.Node, channels: Channels) -> Affine:
    constant, _ = _operand(node, channels)
    return Affine(constant, np.zeros_like(constant))


def _div(node: ir.Node, channels: Channels) -> Affine:
    constant, on_left = _operand(node, channels)
    if on_left:
        raise Refused
    if not constant.all():
        raise Refused("it divides by zero")
    return Affine(1 / constant, np.zeros_like(constant))


def _neg(node: ir.Node, channels: Channels) -> Affine:
    return Affine(-np.ones(channels.count), np.zeros(channels.count))


_MAPS: Mapping[str, Callable[[ir.Node, Channels], Affine]] = {
    "BatchNormalization": _batch_norm,
    "Add": _add,
    "Sub": _sub,
    "Mul": _mul,
    "Div": _div,
    "Neg": _neg,
}

AFFINE_OPERATORS = tuple(_MAPS)
"""Operators that are such a map where all but one of their inputs are constants."""
