"""Fold a per-channel affine map into the linear operator before it.

A linear operator L (Conv, ConvTranspose, Gemm, or MatMul with a constant right side) with weight W and bias
b computes y_c = L(x; W_c) + b_c for each output channel c. Behind it stands z_c = s_c·y_c + t_c. Because L is
linear in W,

    z_c = L(x; s_c·W_c) + (s_c·b_c + t_c)

which is L with the weight s_c·W_c and the bias s_c·b_c + t_c; :mod:`edgec.passes.affine` lists the operators
that are such a map. The channel is axis 0 of a Conv weight; axis 1,
within each group, of a ConvTranspose weight; the column of B' in Gemm, whose alpha stays and whose beta is
folded into b; the last axis of a MatMul weight, whose bias is the Add behind it. Padding does no harm, since
the map comes after the sum. New weights are computed in float64 and rounded once. Other readers of a shared
weight keep the old one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir
from onnxscript.rewriter import MatchResult, RewriteRule, RewriteRuleClassBase

from edgec.frontend.values import constant_of, input_of, shape_of
from edgec.passes.affine import AFFINE_OPERATORS, Channels, read_affine, varying_operand
from edgec.passes.base import RulePass
from edgec.passes.rewriting import Refused, free_name, named, require_single_reader, rounded


class FoldAffine(RulePass):
    """Folds batch norms and per-channel scales and shifts into the convolution or product before them."""

    name: ClassVar[str] = "fold-affine"

    def rules(self) -> Sequence[RewriteRule]:
        return [_FoldIntoLinear.rule(op_type) for op_type in AFFINE_OPERATORS]


@dataclass(frozen=True)
class _Linear:
    """A linear operator and its constants. ``bias`` is float64 [channels], or None where there is none."""

    node: ir.Node
    weight: np.ndarray
    bias: np.ndarray | None
    channels: Channels


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

    def pattern(self, op: Any, first: Any) -> Any:
        return getattr(op, self._op_type)(first, _allow_other_inputs=True, _outputs=["result"])

    def check(self, context: Any, first: ir.Value, result: ir.Value) -> MatchResult:
        try:
            _fold(_producer(result))
        except Refused as refused:
            return MatchResult().fail(str(refused))
        return MatchResult()

    def rewrite(self, op: Any, first: ir.Value, result: ir.Value) -> ir.Value:
        return _rebuild(op, _fold(_producer(result)))


def _producer(value: ir.Value) -> ir.Node:
    node = value.producer()
    assert node is not None
    return node


def _fold(node: ir.Node) -> _Folded:
    """The constants after folding ``node`` into the operator before it; raises :class:`Refused`."""
    linear = _read_linear(varying_operand(node))
    affine = read_affine(node, linear.channels)
    unscaled = bool(np.all(affine.scale == 1))
    if linear.node.op_type == "MatMul" and linear.bias is None and unscaled:
        raise Refused
    dtype, owner = linear.weight.dtype, named(linear.node)
    scaled = None if unscaled else _SCALE_FILTERS[linear.node.op_type](linear, affine.scale)
    weight = None if scaled is None else rounded(scaled, dtype, owner)
    shift = affine.shift if linear.bias is None else affine.scale * linear.bias + affine.shift
    bias = None if linear.bias is None and not shift.any() else rounded(shift, dtype, owner)
    return _Folded(linear.node, weight, bias)


def _rebuild(op: Any, folded: _Folded) -> ir.Value:
    node = folded.linear
    data, weight = node.inputs[:2]
    assert weight is not None
    if folded.weight is not None:
        weight = _initializer(op, node, f"{weight.name}_folded", folded.weight)
    inputs = [data, weight]
    attributes = {name: attribute for name, attribute in node.attributes.items() if name != "beta"}
    if folded.bias is not None:
        inputs.append(_initializer(op, node, f"{node.name}_bias", folded.bias))
    if node.op_type != "MatMul":
        return getattr(op, node.op_type)(*inputs, _name=node.name, **attributes)
    product = op.MatMul(*inputs[:2], _name=node.name)
    product.shape, product.type = node.outputs[0].shape, node.outputs[0].type
    return product if folded.bias is None else op.Add(product, inputs[2], _name=f"{node.name}_bias")


def _initializer(op: Any, node: ir.Node, name: str, array: np.ndarray) -> ir.Value:
    assert isinstance(node.graph, ir.Graph)
    return op.initializer(ir.tensor(array), name=free_name(node.graph, name))


def _read_linear(output: ir.Value | None) -> _Linear:
    """The linear operator that computes ``output`` and nothing else; raises :class:`Refused`."""
    node = None if output is None else output.producer()
    if node is None or node.domain != "":
        raise Refused
    if node.op_type == "Add":
        return _read_biased_matmul(node)
    if node.op_type not in _SCALE_FILTERS or not _is_float(node.outputs[0]):
        raise Refused
    return _read_product(node)


def _is_float(value: ir.Value) -> bool:
    return value.dtype is not None and value.dtype.is_floating_point()


def _read_product(node: ir.Node) -> _Linear:
    weight = constant_of(node.inputs[1])
    if node.op_type == "MatMul" and (weight is None or weight.ndim < 2):
        raise Refused
    if weight is None:
        raise Refused(f"the weight of {named(node)} is computed at run time")
    require_single_reader(node)
    shape = shape_of(node.outputs[0])
    axis = len(shape) - 1 if node.op_type == "MatMul" else 1
    linear = _Linear(node, weight, None, Channels(shape[axis], axis, len(shape), named(node)))
    return linear if node.op_type == "MatMul" else replace(linear, bias=_read_bias(linear))


def _read_bias(linear: _Linear) -> np.ndarray | None:
    node = linear.node
    if input_of(node, 2) is None:
        return None
    bias = constant_of(node.inputs[2])
    if bias is None:
        raise Refused(f"the bias of {named(node)} is computed at run time")
    if node.op_type == "Gemm":
        return linear.channels.per_channel(bias) * node.attributes.get_float("beta", 1.0)
    return bias.astype(np.float64)


def _read_biased_matmul(add: ir.Node) -> _Linear:
    """A MatMul and the Add of its bias, as one linear operator."""
    product = varying_operand(add).producer()
    bias = next((array for array in map(constant_of, add.inputs) if array is not None), None)
    if product is None or product.op_type != "MatMul" or product.domain != "" or bias is None:
        raise Refused
    linear = _read_product(product)
    require_single_reader(add)
    return replace(linear, bias=linear.channels.per_channel(bias))


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
