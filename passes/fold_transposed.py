"""Fold a scale per channel into the transposed convolution behind it.

ConvTranspose is linear in its input: with y = s_c·x_c, its input channel c adds x_c·(s_c·W_c), so the scale goes into
the weight [in, out / groups, kernel…], along axis 0. That holds at the border too, where fewer taps meet, since
nothing is added. A shift does not fold: how many taps carry it changes from one output position to the next, with
the stride and at the border. New weights are computed in float64 and rounded once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir
from onnxscript.rewriter import MatchResult, RewriteRule, RewriteRuleClassBase

from edgec.frontend.values import constant_of, shape_of
from edgec.passes.affine import AFFINE_OPERATORS, Channels, read_affine, varying_operand
from edgec.passes.base import RulePass
from edgec.passes.rewriting import Refused, free_name, named, require_single_reader, rounded


class FoldTransposed(RulePass):
    """Folds batch norms without a shift, and scales per channel, into the transposed convolution behind them."""

    name: ClassVar[str] = "fold-transposed"

    def rules(self) -> Sequence[RewriteRule]:
        return [_ScaleIntoTransposed.rule()]


class _ScaleIntoTransposed(RewriteRuleClassBase):
    def __init__(self) -> None:
        super().__init__("FoldTransposed", remove_nodes=False)

    def pattern(self, op: Any, x: Any, w: Any) -> Any:
        return op.ConvTranspose(x, w, _allow_other_inputs=True, _outputs=["result"])

    def check(self, context: Any, x: ir.Value, w: ir.Value, result: ir.Value) -> MatchResult:
        try:
            _scaled_weight(x, w, result)
        except Refused as refused:
            return MatchResult().fail(str(refused))
        return MatchResult()

    def rewrite(self, op: Any, x: ir.Value, w: ir.Value, result: ir.Value) -> ir.Value:
        scale, node = x.producer(), result.producer()
        assert scale is not None and node is not None and isinstance(node.graph, ir.Graph)
        weight = ir.tensor(_scaled_weight(x, w, result))
        folded = op.initializer(weight, name=free_name(node.graph, f"{w.name}_folded"))
        inputs = [varying_operand(scale), folded, *node.inputs[2:]]
        return op.ConvTranspose(*inputs, _name=node.name, **node.attributes)


def _scaled_weight(x: ir.Value, w: ir.Value, result: ir.Value) -> np.ndarray:
    """The weight with the scale of the map that computes ``x``; raises :class:`Refused`."""
    node, weight, owner = x.producer(), constant_of(w), result.producer()
    if node is None or owner is None or node.domain != "" or node.op_type not in AFFINE_OPERATORS or weight is None:
        raise Refused
    source = varying_operand(node)
    if source.shape != x.shape:
        raise Refused
    require_single_reader(node)
    shape = shape_of(x)
    affine = read_affine(node, Channels(shape[1], 1, len(shape), named(owner)))
    if affine.shift.any():
        raise Refused(f"{named(node)} shifts what {named(owner)} spreads over a varying number of taps")
    scaled = weight * affine.scale.reshape((-1,) + (1,) * (weight.ndim - 1))
    return rounded(scaled, weight.dtype, named(owner))
