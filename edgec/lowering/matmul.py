"""Gemm and MatMul: as 1×1 convolutions of height 1, one output pixel a row."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod

import numpy as np
import onnx_ir as ir

from edgec import scalar
from edgec.lowering.context import Lowering, Operands, array_of, attribute, dtype_of, lowers, shape_of
from edgec.lowering.reduction import working_dtype
from edgec.program import CONSTANT, Conv, Packing, View, dense_strides
from edgec.scalar import binary, cast, const

_FEW_ROWS = 6
"""Rows up to which dot products cost less than a copy, measured at depths of 64 and 128."""

_LONG = 16
"""Elements from which on a dot product fills the vectors of every processor."""


@lowers("Gemm")
def lower_gemm(ctx: Lowering, node: ir.Node) -> None:
    """alpha · A′ · B′ + beta · C."""
    a, b, c = ctx.input(node, 0), ctx.input(node, 1), ctx.optional(node, 2)
    a = a.permute((1, 0)) if attribute(node, "transA", 0) else a
    b = b.permute((1, 0)) if attribute(node, "transB", 0) else b
    alpha, beta = float(attribute(node, "alpha", 1.0)), float(attribute(node, "beta", 1.0))
    if alpha != 1.0 and b.buffer.space == CONSTANT and b.dtype.startswith("float"):
        b, alpha = ctx.constant((array_of(b) * alpha).astype(b.dtype), b.buffer.name), 1.0
    if c is not None and beta != 1.0 and c.buffer.space == CONSTANT:
        c, beta = ctx.constant((array_of(c) * beta).astype(c.dtype), c.buffer.name), 1.0
    multiply(ctx, node.outputs[0], a, b, c, alpha, beta)


@lowers("MatMul")
def lower_matmul(ctx: Lowering, node: ir.Node) -> None:
    """Batched matrix product; vectors gain a unit axis."""
    a, b = ctx.input(node, 0), ctx.input(node, 1)
    if len(a.shape) == 1:
        a = View(a.buffer, (1, *a.shape), (0, *a.strides), a.offset)
    if len(b.shape) == 1:
        b = View(b.buffer, (*b.shape, 1), (*b.strides, 0), b.offset)
    multiply(ctx, node.outputs[0], a, b, None, 1.0, 1.0)


def multiply(ctx: Lowering, value: ir.Value, a: View, b: View, c: View | None, alpha: float, beta: float) -> None:
    """value = alpha · a · b + beta · c, where batch axes of a and b broadcast."""
    batch = np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    shape = (*batch, a.shape[-2], b.shape[-1])
    out = ctx.new(shape, dtype_of(value), name=str(value.name))
    product(ctx, out, a, b, c, alpha, beta)
    ctx.set(value, ctx.reshape(out, shape_of(value)))


def product(
    ctx: Lowering, out: View, a: View, b: View, c: View | None = None, alpha: float = 1.0, beta: float = 1.0
) -> None:
    """Emit out = alpha · a · b + beta · c for any dtype; ``out`` is dense in row-major order."""
    if out.dtype == "float32" and a.shape[-1] > 0 and not _are_dots(a, b, out):
        matrix_product(ctx, out, a, b, c, alpha, beta)
    else:
        _general_product(ctx, out, a, b, c, alpha, beta)


def _are_dots(a: View, b: View, out: View) -> bool:
    """Whether so few rows meet columns that lie one after the other, as the keys of a cache do, that dot products in
    place cost less than the copy that a product of matrices needs."""
    rows, columns = with_joined_rows(a, b, out.shape[:-2])[0].shape[-2], b.shape[-1]
    lie = b.buffer.space != CONSTANT and b.strides[-2] == 1 and a.strides[-1] == 1 and b.strides[-1] != 1
    return lie and columns > 1 and rows <= _FEW_ROWS and b.shape[-2] >= _LONG


def matrix_product(
    ctx: Lowering, out: View, a: View, b: View, c: View | None = None, alpha: float = 1.0, beta: float = 1.0
) -> None:
    """Emit the float product as a :class:`Conv`; ``out`` is dense in row-major order, ``c`` at most a matrix."""
    shape = (with_joined_rows(a, b, out.shape[:-2])[0].shape[-2], b.shape[-1])
    emit_product(ctx, out, a, b, lambda operands: _scaled_sum(operands, c, alpha, beta, shape))


def emit_product(
    ctx: Lowering, out: View, a: View, b: View, finish: Callable[[Operands], scalar.Expr],
    packing: Packing | None = None, extra: Sequence[View] = (),
) -> None:  # fmt: skip
    """Emit out = finish(a · b) as a :class:`Conv`: float32, or int8, uint8 or int16 ``a`` and int8 ``b``, summed as
    int32. Integers that are not constants lie in the arena.

    ``out`` is dense in row-major order; the epilogue's axes 2 and 3 are the row and the column. A constant int8 ``b``
    can be stored by ``packing``, with the ``extra`` operands that it asks for, for a float ``a``, too.
    """
    a, batch = with_joined_rows(a, b, out.shape[:-2])
    rows, depth, columns = a.shape[-2], a.shape[-1], b.shape[-1]
    count = prod(batch)
    left = as_batch(ctx, a, batch)
    operands = Operands()
    operands.index(left.buffer)
    weight_strides, weight_offset = _right_side(ctx, operands, b, batch)
    operands.buffers += [view.buffer for view in extra]
    n, h, w, channel = (scalar.axis(i) for i in range(4))
    batch_step, row_step, column_step = left.strides
    kernel = Conv(
        batch=count, out_height=1, out_width=rows, out_channels=columns, in_channels=depth, kernel=(1, 1),
        stride=(1, 1), dilation=(1, 1), input_strides=(batch_step, 0, row_step, column_step),
        input_offset=left.offset, epilogue=finish(operands),
        store=View(out.buffer, (count, 1, rows, columns), dense_strides((count, 1, rows, columns)), out.offset).at(
            n, h, w, channel
        ),
        dtype=out.dtype, input_dtype=a.dtype, weight_strides=weight_strides, weight_offset=weight_offset,
        packing=packing,
    )  # fmt: skip
    ctx.emit(kernel, operands.buffers, out.buffer)


def with_joined_rows(a: View, b: View, batch: tuple[int, ...]) -> tuple[View, tuple[int, ...]]:
    """With one ``b`` for all batches of ``a``, their rows are the rows of one product."""
    rows = prod(a.shape[:-1])
    joined = a.reshape((1, rows, a.shape[-1])) if prod(b.shape[:-2]) == 1 and a.shape[:-2] == batch else None
    return (a, batch) if joined is None else (joined, (1,))


def _right_side(
    ctx: Lowering, operands: Operands, b: View, batch: tuple[int, ...]
) -> tuple[tuple[int, int] | None, int]:
    """Add ``b`` as operand 1: a packed constant (no strides), or matrices read in place (strides and offset)."""
    if b.buffer.space == CONSTANT and prod(b.shape[:-2]) == 1:
        data = array_of(b).reshape(1, 1, *b.shape[-2:])
        operands.buffers.append(ctx.constant(data, b.buffer.name).buffer)
        return None, 0
    if prod(b.shape[:-2]) == 1:
        b = View(b.buffer, b.shape[-2:], b.strides[-2:], b.offset)
    in_place = b if b.shape[-1] == 1 or b.strides[-1] == 1 else ctx.dense(b)
    right = as_batch(ctx, in_place, batch)
    operands.buffers.append(right.buffer)
    return right.strides[:2], right.offset  # type: ignore[return-value]


def _scaled_sum(operands: Operands, c: View | None, alpha: float, beta: float, shape: tuple[int, int]) -> scalar.Expr:
    """alpha · acc + beta · c."""
    result = scalar.accumulator("float32")
    if alpha != 1.0:
        result = binary("mul", result, const(alpha, "float32"))
    if c is None:
        return result
    term = operands.load(c.broadcast_to(shape), scalar.axis(2), scalar.axis(3))
    return binary("add", result, term if beta == 1.0 else binary("mul", term, const(beta, "float32")))


def as_batch(ctx: Lowering, view: View, batch: tuple[int, ...]) -> View:
    """``view`` as (batch, rows, columns), copied where that cannot be a view."""
    wide = view.broadcast_to((*batch, *view.shape[-2:]))
    shape = (prod(batch), *view.shape[-2:])
    as_view = wide.reshape(shape)
    if as_view is not None:
        return as_view
    return View(ctx.copy(wide, ctx.new(wide.shape, wide.dtype)).buffer, shape, dense_strides(shape))


def _general_product(ctx: Lowering, out: View, a: View, b: View, c: View | None, alpha: float, beta: float) -> None:
    """Any dtype, as a loop nest; integers accumulate in their own dtype, half floats in float32."""
    batch, dtype = out.shape[:-2], working_dtype(out.dtype)
    a = a.broadcast_to((*batch, *a.shape[-2:]))
    b = b.broadcast_to((*batch, *b.shape[-2:]))

    def term(ops: Operands, *i: scalar.Expr) -> scalar.Expr:
        *outer, row, column, k = i
        return binary("mul", cast(ops.load(a, *outer, row, k), dtype), cast(ops.load(b, *outer, k, column), dtype))

    def finish(ops: Operands, acc: scalar.Expr, *i: scalar.Expr) -> scalar.Expr:
        result = acc if alpha == 1.0 else binary("mul", acc, const(alpha, acc.dtype))
        if c is None:
            return cast(result, out.dtype)
        added = cast(ops.load(c.broadcast_to(out.shape), *i), dtype)
        added = added if beta == 1.0 else binary("mul", added, const(beta, dtype))
        return cast(binary("add", result, added), out.dtype)

    ctx.compute(out, term, reduce=(a.shape[-1],), reducer="sum", epilogue=finish)
