"""The fused operators of domain ``edgec``; :mod:`edgec.passes.functions` says what each computes."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from edgec.lowering.attention import attend
from edgec.lowering.context import Lowering, attribute, lowers
from edgec.lowering.elementwise import elementwise, gelu, lower_parametric
from edgec.lowering.matmul import product
from edgec.lowering.normalization import lower_group_normalization, lower_rms_normalization
from edgec.program import View
from edgec.scalar import binary

lowers("Gelu", "Swish", domain="edgec")(lower_parametric)
lowers("RMSNormalization", domain="edgec")(lower_rms_normalization)
lowers("GroupNormalization", domain="edgec")(lower_group_normalization)


@lowers("GeluTanh", domain="edgec")
def lower_gelu_tanh(ctx: Lowering, node: ir.Node) -> None:
    """x · Φ(x) by the tanh approximation."""
    elementwise(ctx, node, lambda x: gelu(x, "tanh"))


@lowers("Attention", "MaskedAttention", domain="edgec")
def lower_attention(ctx: Lowering, node: ir.Node) -> None:
    """softmax(scale · q·k + mask)·v."""
    query, key, value = (ctx.input(node, index) for index in range(3))
    batch = np.broadcast_shapes(query.shape[:-2], key.shape[:-2])
    scores = ctx.new((*batch, query.shape[-2], key.shape[-1]), query.dtype)
    product(ctx, scores, query, key, alpha=float(attribute(node, "scale", 1.0)))
    ctx.set(node.outputs[0], attend(ctx, _masked(ctx, scores, ctx.optional(node, 3)), value))


def _masked(ctx: Lowering, scores: View, mask: View | None) -> View:
    if mask is None:
        return scores
    wide = mask.broadcast_to(scores.shape)
    return ctx.compute(
        ctx.new(scores.shape, scores.dtype), lambda ops, *i: binary("add", ops.load(scores, *i), ops.load(wide, *i))
    )
