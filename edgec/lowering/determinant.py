"""Det of small matrices, expanded along rows."""

from __future__ import annotations

import onnx_ir as ir

from edgec.lowering.context import Lowering, Operands, lowers, refuse
from edgec.lowering.reduction import working_dtype
from edgec.program import View
from edgec.scalar import Expr, binary, cast

LARGEST = 4
"""Larger matrices need an elimination with pivots, which depends on the data."""


@lowers("Det")
def lower_det(ctx: Lowering, node: ir.Node) -> None:
    x = ctx.input(node, 0)
    size = x.shape[-1]
    if size > LARGEST:
        refuse(f"its matrices have {size} rows, and {LARGEST} are the most", "compute it outside the model")
    out = ctx.new_for(node.outputs[0])
    ctx.compute(out, lambda ops, *i: cast(_expanded(ops, x, i, 0, tuple(range(size))), out.dtype))


def _expanded(ops: Operands, x: View, batch: tuple[Expr, ...], row: int, columns: tuple[int, ...]) -> Expr:
    """The determinant of the rows from ``row`` on and ``columns``, by Laplace's expansion along the first row."""
    total = None
    for position, column in enumerate(columns):
        value = cast(ops.load(x, *batch, row, column), working_dtype(x.dtype))
        rest = columns[:position] + columns[position + 1 :]
        term = binary("mul", value, _expanded(ops, x, batch, row + 1, rest)) if rest else value
        total = term if total is None else binary("sub" if position % 2 else "add", total, term)
    assert total is not None
    return total
