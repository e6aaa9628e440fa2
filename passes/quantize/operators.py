"""What each operator is to quantisation.

=========  ============================================================================================
role       treatment
=========  ============================================================================================
PRODUCT    convolution or matrix product with constant weights: integer input, integer weights
BIAS       addition of a constant vector to a matrix product: part of the product
EPILOGUE   Relu, Clip, PRelu or BatchNormalization on the only use of a product's, a sum's or each other's result:
           computed with it, before it becomes an integer
POINTWISE  a function of one tensor, element by element: integers in and out, a table of 256 entries
SUM        arithmetic of several tensors: integers in and out
POOL       averages and interpolation: integers in and out, each with a scale of its own
MOVE       moves or selects values: integers in and out on one scale
FLOAT      stays float: norms, products of two activations and what stands between them, what is not known
=========  ============================================================================================
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import Enum, auto

import numpy as np
import onnx_ir as ir

from edgec.frontend.values import constant_of, input_of, shape_of


class Role(Enum):
    """See the module."""

    PRODUCT = auto()
    BIAS = auto()
    EPILOGUE = auto()
    POINTWISE = auto()
    SUM = auto()
    POOL = auto()
    MOVE = auto()
    FLOAT = auto()


_PRODUCTS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
_CLAMPS = ("Relu", "Clip")
_CHANNEL_FUNCTIONS = ("BatchNormalization", "PRelu")
_ROLES: Mapping[Role, frozenset[str]] = {
    Role.POINTWISE: frozenset({
        "Abs", "BatchNormalization", "Celu", "Clip", "Elu", "Erf", "Exp", "Gelu", "GeluTanh", "HardSigmoid",
        "HardSwish", "LeakyRelu", "Log", "Mish", "Neg", "PRelu", "Reciprocal", "Relu", "Selu", "Sigmoid", "Sin",
        "Cos", "Softplus", "Softsign", "Sqrt", "Swish", "Tanh", "ThresholdedRelu",
    }),
    Role.SUM: frozenset({"Add", "Div", "Max", "Mean", "Min", "Mul", "Sub", "Sum"}),
    Role.POOL: frozenset({"AveragePool", "GlobalAveragePool", "ReduceMean", "Resize", "Softmax"}),
    Role.MOVE: frozenset({
        "Concat", "DepthToSpace", "Expand", "Flatten", "Gather", "GlobalMaxPool", "Identity", "MaxPool", "Pad",
        "ReduceMax", "ReduceMin", "Reshape", "Slice", "SpaceToDepth", "Split", "Squeeze", "Tile", "Transpose",
        "Unsqueeze",
    }),
}  # fmt: skip
_JOINING = frozenset({"Concat"})
"""Movements of all their inputs; the others move their first one, and the rest says how."""


def role_of(node: ir.Node) -> Role:
    """The role that ``node`` plays; FLOAT where anything about it is unusual."""
    if node.domain not in ("", "edgec") or not _is_float32(node.outputs[0]):
        return Role.FLOAT
    if node.op_type in _PRODUCTS:
        return Role.PRODUCT if _is_product(node) else Role.FLOAT
    if is_bias(node):
        return Role.BIAS
    if _is_epilogue(node):
        return Role.EPILOGUE
    role = next((role for role, operators in _ROLES.items() if node.op_type in operators), Role.FLOAT)
    check = _CHECKS.get(node.op_type)
    return check(node, role) if check else role


def quantised_inputs(node: ir.Node) -> list[int]:
    """The indices of the inputs that are integers where ``node`` is quantised."""
    role = role_of(node)
    if role in (Role.FLOAT, Role.BIAS, Role.EPILOGUE):
        return []
    if role is Role.SUM or node.op_type in _JOINING:
        return [i for i, value in enumerate(node.inputs) if value is not None and not _is_scalar_constant(value)]
    return [0]


def moved_values(node: ir.Node) -> list[ir.Value]:
    """The inputs and outputs that share their numbers where ``node`` is a movement."""
    return [value for index in quantised_inputs(node) if (value := node.inputs[index]) is not None] + list(node.outputs)


def is_bias(node: ir.Node) -> bool:
    """Whether ``node`` adds a constant vector to the only use of a matrix product."""
    return node.op_type == "Add" and node.domain == "" and bias_index(node) is not None


def bias_index(node: ir.Node) -> int | None:
    """Which input of an Add is the constant vector of a matrix product's other input; None if neither."""
    for index in (0, 1):
        constant, other = constant_of(node.inputs[index]), node.inputs[1 - index]
        if constant is None or other is None or constant.ndim < 1 or constant.size != constant.shape[-1]:
            continue
        producer = other.producer()
        if producer is None or producer.op_type != "MatMul" or not _is_product(producer) or not is_private(other):
            continue
        if constant.shape[-1] == shape_of(other)[-1]:
            return index
    return None


def is_clamp(node: ir.Node) -> bool:
    """Whether ``node`` is a Relu, or a Clip between constants."""
    return node.domain == "" and node.op_type in _CLAMPS and _has_constant_parameters(node)


def weight_axis(node: ir.Node) -> int:
    """The axis of a product's weight along which its output channels lie."""
    if node.op_type == "Conv":
        return 0
    if node.op_type == "Gemm":
        return 0 if node.attributes.get_int("transB", 0) else 1
    return 1


def channel_axis(node: ir.Node) -> int:
    """The axis of a product's input and output along which its channels lie."""
    return 1 if node.op_type in ("Conv", "ConvTranspose", "Gemm") else len(shape_of(node.outputs[0])) - 1


def _is_epilogue(node: ir.Node) -> bool:
    """Whether ``node`` is a function channel by channel of a result that nothing else reads."""
    value = node.inputs[0] if node.domain == "" and node.inputs else None
    producer = None if value is None else value.producer()
    if value is None or producer is None or not is_private(value):
        return False
    if not is_clamp(node) and not (node.op_type in _CHANNEL_FUNCTIONS and _has_constant_parameters(node)):
        return False
    return producer.op_type in _CHANNEL_FUNCTIONS or role_of(producer) in (
        Role.PRODUCT, Role.BIAS, Role.EPILOGUE, Role.SUM
    )  # fmt: skip


def _has_constant_parameters(node: ir.Node) -> bool:
    return all(value is None or value.const_value is not None for value in node.inputs[1:])


def _is_product(node: ir.Node) -> bool:
    weight, bias = constant_of(node.inputs[1]), input_of(node, 2)
    if weight is None or not _is_float32(node.outputs[0]) or (bias is not None and bias.const_value is None):
        return False
    if node.op_type == "MatMul":
        return weight.ndim == 2 and len(shape_of(node.inputs[0])) > 1
    if node.op_type == "Gemm":
        plain = [node.attributes.get_float(name, 1.0) == 1.0 for name in ("alpha", "beta")]
        rows = bias is None or constant_of(bias).size == shape_of(node.outputs[0])[1]  # type: ignore[union-attr]
        return all(plain) and not node.attributes.get_int("transA", 0) and rows
    return node.op_type == "Conv" or node.attributes.get_int("group", 1) == 1


def is_private(value: ir.Value) -> bool:
    """Whether one node alone reads ``value``, once, and nobody outside."""
    return not value.is_graph_output() and len(value.uses()) == 1


def _is_float32(value: ir.Value) -> bool:
    return value.dtype == ir.DataType.FLOAT


def _is_scalar_constant(value: ir.Value) -> bool:
    return value.const_value is not None and value.const_value.size == 1


def _constant_parameters(node: ir.Node, role: Role) -> Role:
    return role if _has_constant_parameters(node) else Role.FLOAT


def _sum(node: ir.Node, role: Role) -> Role:
    """Arithmetic with a constant scalar is a function of one tensor; division by a tensor has no useful range."""
    varying = [value for value in node.inputs if value is not None and value.const_value is None]
    if len(varying) == 1 and all(_is_scalar_constant(v) for v in node.inputs if v is not None and v not in varying):
        return Role.SUM
    divides = node.op_type == "Div" and constant_of(node.inputs[1]) is None
    return Role.FLOAT if divides or not varying else role


def _pad(node: ir.Node, role: Role) -> Role:
    """A padding with anything but 0 might lie outside the range."""
    value = constant_of(input_of(node, 2))
    constant = node.attributes.get_string("mode", "constant") == "constant"
    computed = input_of(node, 2) is not None and value is None
    return Role.FLOAT if constant and (computed or (value is not None and np.any(value))) else role


def _resize(node: ir.Node, role: Role) -> Role:
    nearest = node.attributes.get_string("mode", "nearest") == "nearest"
    return _constant_parameters(node, Role.MOVE if nearest else role)


def _softmax(node: ir.Node, role: Role) -> Role:
    """The one inside an attention stays float like the two products around it."""
    readers = node.outputs[0].consumers()
    return Role.FLOAT if any(reader.op_type == "MatMul" and not _is_product(reader) for reader in readers) else role


def _one_output(node: ir.Node, role: Role) -> Role:
    return role if len(node.outputs) == 1 else Role.FLOAT


_CHECKS: Mapping[str, Callable[[ir.Node, Role], Role]] = {
    "BatchNormalization": _constant_parameters,
    "Clip": _constant_parameters,
    "PRelu": _constant_parameters,
    "Add": _sum, "Div": _sum, "Max": _sum, "Mean": _sum, "Min": _sum, "Mul": _sum, "Sub": _sum, "Sum": _sum,
    "MaxPool": _one_output,
    "Pad": _pad,
    "Resize": _resize,
    "Softmax": _softmax,
}  # fmt: skip
