"""Gemm and MatMul: as 1×1 convolutions of height 1, one output pixel a row."""

from __future__ import annotations

from math import prod

import numpy as np
import onnx_ir as ir

from edgec import scalar
from edgec.lowering.context import Lowering, Operands, array_of, attribute, dtype_of, lowers, shape_of
from edgec.program import CONSTANT, Conv, View, dense_strides
from edgec.scalar import binary, const


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
    if dtype_of(value) == "float32" and a.shape[-1] > 0:
        matrix_product(ctx, out, a, b, c, alpha, beta)
    else:
        _general_product(ctx, out, a, b, c, alpha, beta)
    ctx.set(value, ctx.reshape(out, shape_of(value)))


def matrix_product(
    ctx: Lowering, out: View, a: View, b: View, c: View | None = None, alpha: float = 1.0, beta: float = 1.0
) -> None:
    """Emit the float product as a :class:`Conv`; ``out`` is dense in row-major order."""
    rows, depth, columns = a.shape[-2], a.shape[-1], b.shape[-1]
    batch = out.shape[:-2]
    if prod(b.shape[:-2]) == 1 and a.reshape((1, prod(a.shape[:-1]), depth)) is not None:
        # one matrix for all batches: their rows are rows of one product
        a, rows, batch = a.reshape((1, prod(a.shape[:-1]), depth)), prod(a.shape[:-1]), (1,)  # type: ignore[assignment]
        if prod(out.shape[:-1]) != rows:
            rows, batch = out.shape[-2], out.shape[:-2]
    count = prod(batch)
    a3 = _as_batch(ctx, a, batch, contiguous=True)
    b3 = _as_batch(ctx, b, batch, contiguous=True) if b.buffer.space != CONSTANT or prod(b.shape[:-2]) > 1 else b
    flat = View(out.buffer, (count, 1, rows, columns), dense_strides((count, 1, rows, columns)), out.offset)
    operands = Operands()
    operands.buffers = [a3.buffer]
    constant = b.buffer.space == CONSTANT and prod(b.shape[:-2]) == 1
    if constant:
        weight = ctx.constant(array_of(b).reshape(1, 1, depth, columns), b.buffer.name)
        operands.buffers.append(weight.buffer)
        strides, offset = None, 0
    else:
        operands.buffers.append(b3.buffer)
        strides, offset = (b3.strides[0], b3.strides[1]), b3.offset
    n, h, w, channel = (scalar.axis(i) for i in range(4))
    result = scalar.accumulator("float32")
    if alpha != 1.0:
        result = binary("mul", result, const(alpha, "float32"))
    if c is not None:
        bias = c.broadcast_to((*c.shape[:0], rows, columns))
        term = operands.load(bias, w, channel)
        result = binary("add", result, term if beta == 1.0 else binary("mul", term, const(beta, "float32")))
    kernel = Conv(
        batch=count, out_height=1, out_width=rows, out_channels=columns, in_channels=depth, kernel=(1, 1),
        stride=(1, 1), dilation=(1, 1), input_strides=(a3.strides[0], 0, a3.strides[1]), input_offset=a3.offset,
        epilogue=result, store=flat.at(n, h, w, channel), weight_strides=strides, weight_offset=offset,
    )  # fmt: skip
    ctx.emit(kernel, operands.buffers, out.buffer)


def _as_batch(ctx: Lowering, view: View, batch: tuple[int, ...], contiguous: bool) -> View:
    """``view`` as (batch, rows, columns) with contiguous columns, copied where it is not."""
    rows, columns = view.shape[-2:]
    if contiguous and columns > 1 and view.strides[-1] != 1:
        view = ctx.dense(view)
    wide = view.broadcast_to((*batch, rows, columns))
    return wide.reshape((prod(batch), rows, columns)) or _as_batch(
        ctx, ctx.copy(wide, ctx.new(wide.shape, wide.dtype)), batch, contiguous
    )


def _general_product(ctx: Lowering, out: View, a: View, b: View, c: View | None, alpha: float, beta: float) -> None:
    """Any dtype, as a loop nest; integers accumulate in their own dtype."""
    batch = out.shape[:-2]
    a = a.broadcast_to((*batch, *a.shape[-2:]))
    b = b.broadcast_to((*batch, *b.shape[-2:]))

    def product(ops: Operands, *i: scalar.Expr) -> scalar.Expr:
        *outer, row, column, k = i
        return binary("mul", ops.load(a, *outer, row, k), ops.load(b, *outer, k, column))

    def finish(ops: Operands, acc: scalar.Expr, *i: scalar.Expr) -> scalar.Expr:
        result = acc if alpha == 1.0 else binary("mul", acc, const(alpha, acc.dtype))
        if c is None:
            return result
        term = ops.load(c.broadcast_to(out.shape), *i)
        return binary("add", result, term if beta == 1.0 else binary("mul", term, const(beta, acc.dtype)))

    ctx.compute(out, product, reduce=(a.shape[-1],), reducer="sum", epilogue=finish)
