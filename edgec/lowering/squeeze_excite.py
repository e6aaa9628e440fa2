"""Squeeze-and-excitation: a mean per channel, two products of one row an image, and a product per channel."""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir

from edgec.lowering.context import Lowering, Operands, attribute, lowers
from edgec.lowering.elementwise import hard_sigmoid, leading_order, relu, sigmoid
from edgec.lowering.matmul import product
from edgec.lowering.reduction import REDUCTIONS, pooled
from edgec.program import View
from edgec.scalar import Expr, binary


@lowers(*(f"SqueezeExcite{kind}{gate}" for kind in ("", "Swish") for gate in ("", "Hard")), domain="edgec")
def lower_squeeze_excite(ctx: Lowering, node: ir.Node) -> None:
    """x · gate(act(mean(x) · squeeze + bias) · excite + bias), the layers' weights [inputs, outputs]."""
    x, squeeze, squeeze_bias, excite, excite_bias = (ctx.input(node, index) for index in range(5))
    rows = ctx.reshape(pooled(ctx, x, REDUCTIONS["ReduceMean"]), x.shape[:2])
    hidden = _layer(ctx, rows, squeeze, squeeze_bias, _swish if "Swish" in node.op_type else relu)
    gates = _layer(ctx, hidden, excite, excite_bias, _gate(node))
    wide = ctx.reshape(gates, (*x.shape[:2], 1, 1)).broadcast_to(x.shape)
    out = ctx.new_for(node.outputs[0], leading_order([x], x.shape))
    ctx.compute(out, lambda ops, *i: binary("mul", ops.load(x, *i), ops.load(wide, *i)))


def _layer(ctx: Lowering, rows: View, weight: View, bias: View, function: Callable[[Expr], Expr]) -> View:
    """function(rows · weight + bias)."""
    sums = ctx.new((rows.shape[0], weight.shape[1]), rows.dtype)
    product(ctx, sums, rows, weight, bias)

    def value(ops: Operands, *i: Expr) -> Expr:
        return function(ops.load(sums, *i))

    return ctx.compute(ctx.new(sums.shape, sums.dtype), value)


def _swish(x: Expr) -> Expr:
    return binary("mul", x, sigmoid(x))


def _gate(node: ir.Node) -> Callable[[Expr], Expr]:
    if not node.op_type.endswith("Hard"):
        return sigmoid
    alpha, beta = float(attribute(node, "alpha", 0.2)), float(attribute(node, "beta", 0.5))
    return lambda x: hard_sigmoid(x, alpha, beta)
