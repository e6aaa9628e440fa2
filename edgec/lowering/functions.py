"""The fused operators of domain ``edgec``; :mod:`edgec.passes.functions` says what each computes."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from edgec.lowering.context import Lowering, Operands, attribute, lowers
from edgec.lowering.elementwise import elementwise, gelu, lower_parametric
from edgec.lowering.matmul import product
from edgec.lowering.normalization import lower_group_normalization, lower_rms_normalization
from edgec.lowering.reduction import reduce_view, working_dtype
from edgec.program import View
from edgec.scalar import Expr, binary, cast, unary

lowers("Gelu", "Swish", domain="edgec")(lower_parametric)
lowers("RMSNormalization", domain="edgec")(lower_rms_normalization)
lowers("GroupNormalization", domain="edgec")(lower_group_normalization)


@lowers("GeluTanh", domain="edgec")
def lower_gelu_tanh(ctx: Lowering, node: ir.Node) -> None:
    """x · Φ(x) by the tanh approximation."""
    elementwise(ctx, node, lambda x: gelu(x, "tanh"))


@lowers("Attention", "MaskedAttention", domain="edgec")
def lower_attention(ctx: Lowering, node: ir.Node) -> None:
    """softmax(scale · q·k + mask)·v. The softmax's division waits until behind the second product.

    There it takes S × E elements instead of the S × T of the weights, and no pass over memory of its own.
    """
    query, key, value = (ctx.input(node, index) for index in range(3))
    scores = _new_product(ctx, query, key)
    product(ctx, scores, query, key, alpha=float(attribute(node, "scale", 1.0)))
    powers, total = _powers(ctx, _masked(ctx, scores, ctx.optional(node, 3)))
    weighted = _new_product(ctx, powers, value)
    product(ctx, weighted, powers, value)
    divisor = total.broadcast_to(weighted.shape)

    def quotient(ops: Operands, *i: Expr) -> Expr:
        found = binary("div", cast(ops.load(weighted, *i), divisor.dtype), ops.load(divisor, *i))
        return cast(found, weighted.dtype)

    ctx.compute(ctx.new_for(node.outputs[0]), quotient)


def _new_product(ctx: Lowering, a: View, b: View) -> View:
    """Where a·b will stand, its batch axes broadcast."""
    batch = np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    return ctx.new((*batch, a.shape[-2], b.shape[-1]), a.dtype)


def _masked(ctx: Lowering, scores: View, mask: View | None) -> View:
    if mask is None:
        return scores
    wide = mask.broadcast_to(scores.shape)
    return ctx.compute(
        ctx.new(scores.shape, scores.dtype), lambda ops, *i: binary("add", ops.load(scores, *i), ops.load(wide, *i))
    )


def _powers(ctx: Lowering, scores: View) -> tuple[View, View]:
    """exp(score − the largest of its row), and the sum of each row."""
    dtype, last = working_dtype(scores.dtype), len(scores.shape) - 1

    def wide(view: View, ops: Operands, *i: Expr) -> Expr:
        return cast(ops.load(view, *i), dtype)

    top = reduce_view(ctx, scores, [last], dtype, "max", lambda ops, *i: wide(scores, ops, *i))
    largest = top.broadcast_to(scores.shape)
    powers = ctx.compute(
        ctx.new(scores.shape, scores.dtype),
        lambda ops, *i: cast(unary("exp", binary("sub", wide(scores, ops, *i), ops.load(largest, *i))), scores.dtype),
    )
    return powers, reduce_view(ctx, powers, [last], dtype, "sum", lambda ops, *i: wide(powers, ops, *i))
