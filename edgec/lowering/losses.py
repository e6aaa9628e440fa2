"""NegativeLogLikelihoodLoss and SoftmaxCrossEntropyLoss."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import onnx_ir as ir

from edgec.frontend.values import is_used
from edgec.lowering.context import Lowering, Operands, attribute, lowers
from edgec.lowering.elementwise import as_index
from edgec.lowering.reduction import reduce_view, softmax, working_dtype
from edgec.program import View
from edgec.scalar import Expr, binary, cast, clamp_index, const, select, unary


@dataclass(frozen=True)
class Labels:
    """The class of every place, the weight of every class, and the label (if any) that counts for nothing."""

    target: View
    weight: View | None
    ignored: int | None
    classes: int
    dtype: str

    def index(self, ops: Operands, *place: Expr) -> Expr:
        """The class at ``place``; some class where the label is ignored."""
        return clamp_index(as_index(ops.load(self.target, *place)), self.classes)

    def counted(self, ops: Operands, value: Expr, *place: Expr) -> Expr:
        """``value``, or 0 where the label is ignored."""
        if self.ignored is None:
            return value
        label = ops.load(self.target, *place)
        return select(binary("eq", label, const(self.ignored, label.dtype)), const(0, value.dtype), value)

    def share(self, ops: Operands, *place: Expr) -> Expr:
        """The weight of the label at ``place``."""
        if self.weight is None:
            return self.counted(ops, const(1, self.dtype), *place)
        return self.counted(ops, cast(ops.load(self.weight, self.index(ops, *place)), self.dtype), *place)


@lowers("NegativeLogLikelihoodLoss")
def lower_negative_log_likelihood_loss(ctx: Lowering, node: ir.Node) -> None:
    _loss(ctx, node, ctx.input(node, 0))


@lowers("SoftmaxCrossEntropyLoss")
def lower_softmax_cross_entropy_loss(ctx: Lowering, node: ir.Node) -> None:
    """The loss of the scores' log-softmax over classes, which is the second output."""
    log_prob = softmax(ctx, ctx.input(node, 0), 1, log=True)
    if len(node.outputs) > 1 and is_used(node.outputs[1]):
        ctx.set(node.outputs[1], log_prob)
    _loss(ctx, node, log_prob)


def _loss(ctx: Lowering, node: ir.Node, scores: View) -> None:
    """−weight[label] · scores[n, label, …] at every place, or their sum, or that over the sum of the weights."""
    value, reduction = node.outputs[0], str(attribute(node, "reduction", "mean"))
    dtype = working_dtype(scores.dtype)
    labels = Labels(
        ctx.input(node, 1), ctx.optional(node, 2), attribute(node, "ignore_index", None), scores.shape[1], dtype
    )
    target = labels.target

    def loss(ops: Operands, n: Expr, *rest: Expr) -> Expr:
        found = cast(ops.load(scores, n, labels.index(ops, n, *rest), *rest), dtype)
        return labels.counted(ops, unary("neg", binary("mul", labels.share(ops, n, *rest), found)), n, *rest)

    if reduction == "none":
        out = ctx.new_for(value, target.order)
        ctx.compute(out, lambda ops, *i: cast(loss(ops, *i), out.dtype))
        return
    every = range(len(target.shape))
    total = reduce_view(ctx, target, every, dtype, "sum", loss).drop(*every)
    divisor = None
    if reduction == "mean" and (labels.weight is not None or labels.ignored is not None):
        divisor = reduce_view(ctx, target, every, dtype, "sum", labels.share).drop(*every)
    count = prod(target.shape) if reduction == "mean" else 1
    out = ctx.new_for(value)

    def whole(ops: Operands) -> Expr:
        by = const(count, dtype) if divisor is None else ops.load(divisor)
        return cast(binary("div", ops.load(total), by), out.dtype)

    ctx.compute(out, whole)
