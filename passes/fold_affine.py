"""Fold a per-channel affine map into the linear operator before it.

A linear operator L (Conv, ConvTranspose, Gemm, or MatMul with a constant right side) with weight W and bias
b computes y_c = L(x; W_c) + b_c for each output channel c. Behind it stands z_c = s_c·y_c + t_c. Because L is
linear in W,

    z_c = L(x; s_c·W_c) + (s_c·b_c + t_c)

which is L with the weight s_c·W_c and the bias s_c·b_c + t_c. The map is

    BatchNormalization   s = scale / √(var + ε),  t = bias - s·mean
    Add, Sub             s = 1,  t = ±constant           (constant - y:  s = -1, t = constant)
    Mul, Div             s = constant or 1 / constant,  t = 0

with a constant that varies along the channel axis only. The channel is axis 0 of a Conv weight; axis 1,
within each group, of a ConvTranspose weight; the column of B' in Gemm, whose alpha stays and whose beta is
folded into b; the last axis of a MatMul weight, whose bias is the Add behind it. Padding does no harm, since
the map comes after the sum. New weights are computed in float64 and rounded once. Other readers of a shared
weight keep the old one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import onnx_ir as ir
from onnxscript.rewriter import MatchResult, RewriteRule, RewriteRuleClassBase

from edgec.passes.base import RulePass
from edgec.values import constant_of, input_of, shape_of


class FoldAffine(RulePass):
    """Folds batch norms and per-channel scales and shifts into the convolution or product before them."""

    name: ClassVar[str] = "fold-affine"

    def rules(self) -> Sequence[RewriteRule]:
        return [_FoldIntoLinear.rule(op_type) for op_type in _AFFINE_MAPS]


class _Refused(Exception):
    """Why a fold that looked right is not made; without a message: nothing was meant to be folded."""


@dataclass(frozen=True)
class _Linear:
    """A linear operator and its constants. ``bias`` is float64 [channels], or None where there is none."""

    node: ir.Node
    weight: np.ndarray
    bias: np.ndarray | None
    rank: int
    channel_axis: int
    channels: int

    def per_channel(self, constant: np.ndarray) -> np.ndarray:
        """``constant`` as float64 [channels], if broadcasting it to the output repeats it so."""
        shape = (1,) * (self.rank - constant.ndim) + constant.shape
        others = [extent for axis, extent in enumerate(shape) if axis != self.channel_axis]
        if constant.ndim > self.rank or set(others) - {1} or constant.size not in (1, self.channels):
            raise _Refused(
                f"its constant {list(constant.shape)} varies along more than axis {self.channel_axis}, the "
                f"channels of {_named(self.node)}"
            )
        return np.broadcast_to(constant.astype(np.float64).reshape(-1), (self.channels,))


@dataclass(frozen=True)
class _Affine:
    """z = scale·y + shift; float64 [channels]."""

    scale: np.ndarray
    shift: np.ndarray


@dataclass(frozen=True)
class _Folded:
    """The constants of the operator that replaces both; ``weight`` is None where the old one stays."""

    linear: ir.Node
    weight: np.ndarray | None
    bias: np.ndarray | None


class _FoldIntoLinear(RewriteRuleClassBase):
    def __init__(self, op_type: str) -> None:
        super().__init__(f"FoldAffine{op_type}", remove_nodes=False)
        self._op_type = op_type

    def pattern(self, op, first):
        return getattr(op, self._op_type)(first, _allow_other_inputs=True, _outputs=["result"])

    def check(self, context, first: ir.Value, result: ir.Value) -> MatchResult:
        try:
            _fold(result.producer())
        except _Refused as refused:
            return MatchResult().fail(str(refused))
        return MatchResult()

    def rewrite(self, op, first: ir.Value, result: ir.Value) -> ir.Value:
        return _rebuild(op, _fold(result.producer()))


def _fold(node: ir.Node) -> _Folded:
    """The constants after folding ``node`` into the operator before it; raises :class:`_Refused`."""
    linear = _read_linear(node.inputs[0] if node.op_type == "BatchNormalization" else _varying_operand(node))
    affine = _AFFINE_MAPS[node.op_type](node, linear)
    unscaled = bool(np.all(affine.scale == 1))
    if linear.node.op_type == "MatMul" and linear.bias is None and unscaled:
        raise _Refused
    dtype = linear.weight.dtype
    weight = None if unscaled else _rounded(_SCALE_FILTERS[linear.node.op_type](linear, affine.scale), dtype)
    shift = affine.shift if linear.bias is None else affine.scale * linear.bias + affine.shift
    bias = None if linear.bias is None and not shift.any() else _rounded(shift, dtype)
    if not all(np.isfinite(array.astype(np.float64)).all() for array in (weight, bias) if array is not None):
        raise _Refused(f"the folded constants of {_named(linear.node)} would not be finite in {dtype}")
    return _Folded(linear.node, weight, bias)


def _rounded(array: np.ndarray, dtype: np.dtype) -> np.ndarray:
    with np.errstate(over="ignore"):
        return array.astype(dtype)


def _rebuild(op, folded: _Folded) -> ir.Value:
    node = folded.linear
    inputs = [node.inputs[0], node.inputs[1]]
    if folded.weight is not None:
        inputs[1] = _initializer(op, node, f"{node.inputs[1].name}_folded", folded.weight)
    attributes = {name: attribute for name, attribute in node.attributes.items() if name != "beta"}
    if folded.bias is not None:
        inputs.append(_initializer(op, node, f"{node.name}_bias", folded.bias))
    if node.op_type != "MatMul":
        return getattr(op, node.op_type)(*inputs, _name=node.name, **attributes)
    product = op.MatMul(*inputs[:2], _name=node.name)
    product.shape, product.type = node.outputs[0].shape, node.outputs[0].type
    return product if folded.bias is None else op.Add(product, inputs[2], _name=f"{node.name}_bias")


def _initializer(op, node: ir.Node, name: str, array: np.ndarray) -> ir.Value:
    taken = node.graph.initializers
    while name in taken:
        name += "_"
    return op.initializer(ir.tensor(array), name=name)


def _named(node: ir.Node) -> str:
    return f"{node.op_type} '{node.name}'"


def _varying_operand(node: ir.Node) -> ir.Value:
    """The operand that is not constant, if exactly one of the first two is not."""
    varying = [value for value in node.inputs[:2] if value is not None and value.const_value is None]
    if len(varying) != 1:
        raise _Refused
    return varying[0]


def _read_linear(output: ir.Value) -> _Linear:
    """The linear operator that computes ``output`` and nothing else; raises :class:`_Refused`."""
    node = output.producer()
    if node is None or node.domain != "":
        raise _Refused
    if node.op_type == "Add":
        return _read_biased_matmul(node)
    if node.op_type not in _SCALE_FILTERS or output.dtype is None or not output.dtype.is_floating_point():
        raise _Refused
    return _read_product(node)


def _read_product(node: ir.Node) -> _Linear:
    weight = constant_of(node.inputs[1])
    if node.op_type == "MatMul" and (weight is None or weight.ndim < 2):
        raise _Refused
    if weight is None:
        raise _Refused(f"the weight of {_named(node)} is computed at run time")
    _require_single_reader(node)
    shape = shape_of(node.outputs[0])
    axis = len(shape) - 1 if node.op_type == "MatMul" else 1
    linear = _Linear(node, weight, None, len(shape), axis, shape[axis])
    return linear if node.op_type == "MatMul" else replace(linear, bias=_read_bias(linear))


def _read_bias(linear: _Linear) -> np.ndarray | None:
    node = linear.node
    if input_of(node, 2) is None:
        return None
    bias = constant_of(node.inputs[2])
    if bias is None:
        raise _Refused(f"the bias of {_named(node)} is computed at run time")
    if node.op_type == "Gemm":
        return linear.per_channel(bias) * node.attributes.get_float("beta", 1.0)
    return bias.astype(np.float64)


def _read_biased_matmul(add: ir.Node) -> _Linear:
    """A MatMul and the Add of its bias, as one linear operator."""
    product = _varying_operand(add).producer()
    bias = next((array for array in map(constant_of, add.inputs) if array is not None), None)
    if product is None or product.op_type != "MatMul" or product.domain != "" or bias is None:
        raise _Refused
    linear = _read_product(product)
    _require_single_reader(add)
    return replace(linear, bias=linear.per_channel(bias))


def _require_single_reader(node: ir.Node) -> None:
    output = node.outputs[0]
    if output.is_graph_output():
        raise _Refused(f"the result of {_named(node)} is also an output of the model")
    if len(output.uses()) > 1:
        readers = sorted(str(reader.name) for reader in output.consumers())
        raise _Refused(f"the result of {_named(node)} has several readers ({', '.join(readers)})")


def _batch_norm(node: ir.Node, linear: _Linear) -> _Affine:
    constants = [constant_of(value) for value in node.inputs[1:5]]
    if node.attributes.get_int("training_mode", 0):
        raise _Refused("it is in training mode, so its statistics come from the batch")
    if linear.channel_axis != 1:
        raise _Refused(f"its channels are axis 1, those of {_named(linear.node)} are axis {linear.channel_axis}")
    if any(constant is None for constant in constants):
        raise _Refused("its parameters are computed at run time")
    scale, bias, mean, variance = (constant.astype(np.float64) for constant in constants)
    scale = scale / np.sqrt(variance + node.attributes.get_float("epsilon", 1e-5))
    return _Affine(scale, bias - scale * mean)


def _operand(node: ir.Node, linear: _Linear) -> tuple[np.ndarray, bool]:
    """The constant operand per channel, and whether it is the left one."""
    left = constant_of(node.inputs[0])
    if left is not None:
        return linear.per_channel(left), True
    return linear.per_channel(constant_of(node.inputs[1])), False


def _add(node: ir.Node, linear: _Linear) -> _Affine:
    constant, _ = _operand(node, linear)
    return _Affine(np.ones_like(constant), constant)


def _sub(node: ir.Node, linear: _Linear) -> _Affine:
    constant, on_left = _operand(node, linear)
    ones = np.ones_like(constant)
    return _Affine(-ones, constant) if on_left else _Affine(ones, -constant)


def _mul(node: ir.Node, linear: _Linear) -> _Affine:
    constant, _ = _operand(node, linear)
    return _Affine(constant, np.zeros_like(constant))


def _div(node: ir.Node, linear: _Linear) -> _Affine:
    constant, on_left = _operand(node, linear)
    if on_left:
        raise _Refused
    if not constant.all():
        raise _Refused("it divides by zero")
    return _Affine(1 / constant, np.zeros_like(constant))


_AFFINE_MAPS: Mapping[str, Callable[[ir.Node, _Linear], _Affine]] = {
    "BatchNormalization": _batch_norm,
    "Add": _add,
    "Sub": _sub,
    "Mul": _mul,
    "Div": _div,
}


def _scale_conv(linear: _Linear, scale: np.ndarray) -> np.ndarray:
    return linear.weight * scale.reshape((-1,) + (1,) * (linear.weight.ndim - 1))


def _scale_conv_transpose(linear: _Linear, scale: np.ndarray) -> np.ndarray:
    """Weight [group · in, out, kernel…], where output channel = group index · out + index in the group."""
    groups = linear.node.attributes.get_int("group", 1)
    split = linear.weight.reshape(groups, -1, linear.weight.shape[1], *linear.weight.shape[2:])
    fitted = scale.reshape(groups, 1, -1, *(1,) * (linear.weight.ndim - 2))
    return (split * fitted).reshape(linear.weight.shape)


def _scale_gemm(linear: _Linear, scale: np.ndarray) -> np.ndarray:
    return linear.weight * (scale[:, None] if linear.node.attributes.get_int("transB", 0) else scale)


def _scale_matmul(linear: _Linear, scale: np.ndarray) -> np.ndarray:
    return linear.weight * scale


_SCALE_FILTERS: Mapping[str, Callable[[_Linear, np.ndarray], np.ndarray]] = {
    "Conv": _scale_conv,
    "ConvTranspose": _scale_conv_transpose,
    "Gemm": _scale_gemm,
    "MatMul": _scale_matmul,
}
