"""Elementwise operators: each is its scalar expression."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import numpy as np
import onnx_ir as ir

from edgec import scalar
from edgec.lowering.context import Lowering, attribute, dtype_of, lowers, refuse, shape_of
from edgec.program import CONSTANT, View
from edgec.scalar import Expr, binary, cast, const, select, unary


def elementwise(ctx: Lowering, node: ir.Node, function: Callable[..., Expr], views: list[View] | None = None) -> None:
    """Lower ``node`` to ``function`` of its (broadcast) inputs, in the memory order of the largest."""
    value = node.outputs[0]
    views = [ctx.view(v) for v in node.inputs if v is not None] if views is None else views
    shape = shape_of(value)
    order = leading_order(views, shape)
    out = ctx.new_for(value, order)
    wide = [_in_order(ctx, view, order, len(shape)).broadcast_to(shape) for view in views]
    ctx.compute(out, lambda ops, *i: cast(function(*(ops.load(v, *i) for v in wide)), out.dtype), order=order)


def leading_order(views: list[View], shape: tuple[int, ...]) -> tuple[int, ...]:
    """The memory order of the first full-size run-time view, so that it is read straight through."""
    full = [v for v in views if v.elements == math.prod(shape) and v.buffer.space != CONSTANT]
    return full[0].broadcast_to(shape).order if full else tuple(range(len(shape)))


def _in_order(ctx: Lowering, view: View, order: tuple[int, ...], rank: int) -> View:
    """A constant of several axes is stored in the order in which it will be read."""
    if view.buffer.space != CONSTANT or sum(extent > 1 for extent in view.shape) < 2:
        return view
    missing = rank - len(view.shape)
    return ctx.dense(view, [axis - missing for axis in order if axis >= missing])


def _float(value: float, like: Expr) -> Expr:
    return const(value, like.dtype)


def relu(x: Expr) -> Expr:
    """max(x, 0)."""
    return binary("max", x, const(0, x.dtype))


def sigmoid(x: Expr) -> Expr:
    """1 / (1 + exp(−x))."""
    return unary("sigmoid", x)


def tanh(x: Expr) -> Expr:
    return unary("tanh", x)


def softplus(x: Expr) -> Expr:
    """log(1 + exp(x)), without overflow: max(x, 0) + log(1 + exp(−|x|))."""
    e = unary("exp", unary("neg", unary("abs", x)))
    return binary("add", relu(x), unary("log1p", e))


def _negative_part(x: Expr, negative: Expr) -> Expr:
    return select(binary("lt", x, _float(0, x)), negative, x)


def leaky_relu(x: Expr, alpha: float) -> Expr:
    return _negative_part(x, binary("mul", x, _float(alpha, x)))


def elu(x: Expr, alpha: float, gamma: float = 1.0) -> Expr:
    below = binary("mul", _float(alpha, x), binary("sub", unary("exp", x), _float(1, x)))
    both = _negative_part(x, below)
    return both if gamma == 1.0 else binary("mul", both, _float(gamma, x))


def thresholded_relu(x: Expr, alpha: float) -> Expr:
    """x above alpha, else 0."""
    return select(binary("gt", x, _float(alpha, x)), x, _float(0, x))


def hard_sigmoid(x: Expr, alpha: float, beta: float) -> Expr:
    line = binary("add", binary("mul", x, _float(alpha, x)), _float(beta, x))
    return clip(line, _float(0, x), _float(1, x))


def clip(x: Expr, low: Expr | None, high: Expr | None) -> Expr:
    """min(max(x, low), high)."""
    x = x if low is None else binary("max", x, low)
    return x if high is None else binary("min", x, high)


def gelu(x: Expr, approximate: str) -> Expr:
    """x · Φ(x), exactly by erf or by the tanh approximation."""
    half, one = _float(0.5, x), _float(1, x)
    if approximate == "tanh":
        cubic = binary("mul", _float(0.044715, x), binary("mul", binary("mul", x, x), x))
        inner = unary("tanh", binary("mul", _float(math.sqrt(2 / math.pi), x), binary("add", x, cubic)))
    else:
        inner = unary("erf", binary("mul", x, _float(math.sqrt(0.5), x)))
    return binary("mul", binary("mul", half, x), binary("add", one, inner))


def mish(x: Expr) -> Expr:
    return binary("mul", x, unary("tanh", softplus(x)))


def softsign(x: Expr) -> Expr:
    return binary("div", x, binary("add", _float(1, x), unary("abs", x)))


def reciprocal(x: Expr) -> Expr:
    return binary("div", _float(1, x), x)


def _reciprocal_root(x: Expr) -> Expr:
    return reciprocal(unary("sqrt", x))


UNARY: dict[str, Callable[[Expr], Expr]] = {
    "Relu": relu,
    "Sigmoid": sigmoid,
    "Tanh": tanh,
    "Softplus": softplus,
    "Softsign": softsign,
    "Mish": mish,
    "HardSwish": lambda x: binary("mul", x, hard_sigmoid(x, 1 / 6, 0.5)),
    "Reciprocal": reciprocal,
    "Not": lambda x: unary("not", x),
    "BitwiseNot": lambda x: unary("bitnot", x),
    "IsNaN": lambda x: unary("isnan", x),
    **{
        name: partial(unary, name.lower())
        for name in (
            "Neg", "Abs", "Sign", "Floor", "Ceil", "Round", "Sqrt", "Exp", "Log", "Erf", "Sin", "Cos", "Tan",
            "Asin", "Acos", "Atan", "Sinh", "Cosh", "Asinh", "Acosh", "Atanh",
        )
    },
}  # fmt: skip
"""Operators of one input and no attribute."""

BINARY = {
    "Add": "add", "Sub": "sub", "Mul": "mul", "Div": "div", "Pow": "pow", "Equal": "eq", "Less": "lt",
    "LessOrEqual": "le", "Greater": "gt", "GreaterOrEqual": "ge", "And": "and", "Or": "or",
    "BitwiseAnd": "bitand", "BitwiseOr": "bitor", "BitwiseXor": "bitxor",
}  # fmt: skip
"""Operators of two broadcast inputs and no attribute."""


@lowers(*UNARY)
def lower_unary(ctx: Lowering, node: ir.Node) -> None:
    elementwise(ctx, node, UNARY[node.op_type])


@lowers("Dropout")
def lower_dropout(ctx: Lowering, node: ir.Node) -> None:
    """Dropout in inference is the identity; its mask output is all true."""
    training = ctx.known(node, 2, "training mode")
    if training is not None and training.any() and _drops(ctx, node):
        refuse("it is in training mode and drops at random", "export the model in inference mode")
    ctx.set(node.outputs[0], ctx.input(node, 0))
    for mask in node.outputs[1:]:
        ctx.set(mask, ctx.constant(np.ones(shape_of(mask), bool)))


def _drops(ctx: Lowering, node: ir.Node) -> bool:
    """Whether the ratio, 0.5 where it is left out, is not zero."""
    ratio = ctx.known(node, 1, "ratio")
    return ratio is None or bool(ratio.any())


@lowers(*BINARY)
def lower_binary(ctx: Lowering, node: ir.Node) -> None:
    op = BINARY[node.op_type]
    elementwise(ctx, node, lambda a, b: _power(a, b) if op == "pow" else binary(op, a, b))


def _power(a: Expr, b: Expr) -> Expr:
    """Common constant exponents become multiplications and roots."""
    if b.op == "const" and a.dtype.startswith("float"):
        special = {
            2.0: lambda: binary("mul", a, a),
            3.0: lambda: binary("mul", binary("mul", a, a), a),
            0.5: lambda: unary("sqrt", a),
            1.0: lambda: a,
            -1.0: lambda: reciprocal(a),
        }
        if b.args[0] in special:
            return special[b.args[0]]()
    return binary("pow", a, cast(b, a.dtype))


@lowers("Xor")
def lower_xor(ctx: Lowering, node: ir.Node) -> None:
    elementwise(ctx, node, lambda a, b: binary("ne", cast(a, "uint8"), cast(b, "uint8")))


@lowers("Max", "Min", "Sum", "Mean")
def lower_variadic(ctx: Lowering, node: ir.Node) -> None:
    op = {"Max": "max", "Min": "min", "Sum": "add", "Mean": "add"}[node.op_type]

    def folded(first: Expr, *others: Expr) -> Expr:
        for other in others:
            first = binary(op, first, other)
        return binary("div", first, const(1 + len(others), first.dtype)) if node.op_type == "Mean" else first

    elementwise(ctx, node, folded)


@lowers("LeakyRelu", "Elu", "Selu", "Celu", "ThresholdedRelu", "HardSigmoid", "Shrink", "Gelu", "Swish")
def lower_parametric(ctx: Lowering, node: ir.Node) -> None:
    elementwise(ctx, node, _parametric(node))


def _parametric(node: ir.Node) -> Callable[[Expr], Expr]:
    def given(name: str, default: float) -> float:
        return float(attribute(node, name, default))

    match node.op_type:
        case "LeakyRelu":
            return lambda x: leaky_relu(x, given("alpha", 0.01))
        case "Elu":
            return lambda x: elu(x, given("alpha", 1.0))
        case "Selu":
            alpha, gamma = (
                given("alpha", 1.67326319217681884765625),
                given("gamma", 1.05070102214813232421875),
            )
            return lambda x: elu(x, alpha, gamma)
        case "Celu":
            return lambda x: _celu(x, given("alpha", 1.0))
        case "ThresholdedRelu":
            return lambda x: thresholded_relu(x, given("alpha", 1.0))
        case "HardSigmoid":
            return lambda x: hard_sigmoid(x, given("alpha", 0.2), given("beta", 0.5))
        case "Shrink":
            return lambda x: _shrink(x, given("lambd", 0.5), given("bias", 0.0))
        case "Swish":
            return lambda x: binary("mul", x, sigmoid(binary("mul", x, const(given("alpha", 1.0), x.dtype))))
        case _:
            return lambda x: gelu(x, str(attribute(node, "approximate", "none")))


def _celu(x: Expr, alpha: float) -> Expr:
    below = binary(
        "mul", _float(alpha, x), binary("sub", unary("exp", binary("div", x, _float(alpha, x))), _float(1, x))
    )
    return binary("add", relu(x), binary("min", _float(0, x), below))


def _shrink(x: Expr, threshold: float, bias: float) -> Expr:
    low, high = const(-threshold, x.dtype), const(threshold, x.dtype)
    shift = const(bias, x.dtype)
    inside = select(binary("gt", x, high), binary("sub", x, shift), const(0, x.dtype))
    return select(binary("lt", x, low), binary("add", x, shift), inside)


@lowers("PRelu")
def lower_prelu(ctx: Lowering, node: ir.Node) -> None:
    elementwise(ctx, node, lambda x, slope: _negative_part(x, binary("mul", x, slope)))


@lowers("Clip")
@lowers("ClipWords", domain="edgec")
def lower_clip(ctx: Lowering, node: ir.Node) -> None:
    views = [ctx.input(node, 0), ctx.optional(node, 1), ctx.optional(node, 2)]

    def clipped(x: Expr, *limits: Expr) -> Expr:
        rest = list(limits)
        low = rest.pop(0) if views[1] is not None else None
        return clip(x, low, rest.pop(0) if views[2] is not None else None)

    elementwise(ctx, node, clipped, [view for view in views if view is not None])


@lowers("Where")
def lower_where(ctx: Lowering, node: ir.Node) -> None:
    elementwise(ctx, node, select)


@lowers("Cast", "CastLike")
def lower_cast(ctx: Lowering, node: ir.Node) -> None:
    """Casts between numbers; floats to integers truncate, numbers to bool compare with zero."""
    dtype_of(node.outputs[0])
    if node.op_type == "CastLike":
        elementwise(ctx, node, lambda x: x, [ctx.input(node, 0)])
    else:
        elementwise(ctx, node, lambda x: x)


@lowers("Mod")
def lower_mod(ctx: Lowering, node: ir.Node) -> None:
    op = "truncmod" if attribute(node, "fmod", 0) else "floormod"
    elementwise(ctx, node, lambda a, b: binary(op, a, b))


@lowers("BitShift")
def lower_bit_shift(ctx: Lowering, node: ir.Node) -> None:
    """Shifts by the width or more, or by less than 0, push every bit out; the sign fills in from the left."""
    left = attribute(node, "direction", "LEFT") == "LEFT"

    def shifted(a: Expr, b: Expr) -> Expr:
        last = np.iinfo(a.dtype).bits - 1
        inside = binary("and", binary("ge", b, const(0, b.dtype)), binary("le", b, const(last, b.dtype)))
        distance = select(inside, b, const(0, b.dtype))
        if left:
            return select(inside, binary("shiftleft", a, distance), const(0, a.dtype))
        negative = binary("lt", a, const(0, a.dtype))
        empty = const(0, a.dtype)
        if a.dtype.startswith("int"):
            empty = select(negative, const(-1, a.dtype), empty)
        return select(inside, binary("shiftright", a, distance), empty)

    elementwise(ctx, node, shifted)


@lowers("IsInf")
def lower_is_inf(ctx: Lowering, node: ir.Node) -> None:
    positive, negative = attribute(node, "detect_positive", 1), attribute(node, "detect_negative", 1)

    def found(x: Expr) -> Expr:
        side = {(1, 0): "gt", (0, 1): "lt"}.get((positive, negative))
        infinite = unary("isinf", x)
        if side:
            return binary("and", infinite, binary(side, x, const(0, x.dtype)))
        return infinite if positive else binary("and", infinite, const(False, "bool"))

    elementwise(ctx, node, found)


def as_index(value: Expr) -> Expr:
    """An integer value as a load offset."""
    return cast(value, scalar.INDEX)
