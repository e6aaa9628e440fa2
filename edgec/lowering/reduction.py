"""Reductions over axes: Reduce*, global pooling, and the Softmax family that is made of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod

import numpy as np
import onnx_ir as ir

from edgec.lowering.context import Lowering, Operands, attribute, dtype_of, lowers, refuse, shape_of
from edgec.program import View
from edgec.scalar import Expr, binary, cast, const, select, unary


@dataclass(frozen=True)
class Reduction:
    """finish(reducer over the axes of term(x)); ``count`` is the number of elements reduced into one.

    ``identity`` is the result over no elements at all. ``wide`` says that integers are computed as float64,
    since ``finish`` or ``term`` leaves the integers.
    """

    reducer: str
    term: Callable[[Expr], Expr] = lambda x: x
    finish: Callable[[Expr, int], Expr] = lambda acc, count: acc
    identity: float = 0.0
    wide: bool = False


def _square(x: Expr) -> Expr:
    return binary("mul", x, x)


def _mean(acc: Expr, count: int) -> Expr:
    return binary("div", acc, const(count, acc.dtype))


REDUCTIONS: dict[str, Reduction] = {
    "ReduceSum": Reduction("sum"),
    "ReduceMean": Reduction("sum", finish=_mean, identity=np.nan),
    "ReduceMax": Reduction("max", identity=-np.inf),
    "ReduceMin": Reduction("min", identity=np.inf),
    "ReduceProd": Reduction("prod", identity=1.0),
    "ReduceL1": Reduction("sum", lambda x: unary("abs", x)),
    "ReduceL2": Reduction("sum", _square, lambda acc, count: unary("sqrt", acc), wide=True),
    "ReduceSumSquare": Reduction("sum", _square),
    "ReduceLogSum": Reduction("sum", finish=lambda acc, count: unary("log", acc), identity=-np.inf, wide=True),
}


def reduction_axes(ctx: Lowering, node: ir.Node, rank: int) -> list[int]:
    """The axes that a Reduce* node reduces, from its second input or its attribute (ONNX before 18)."""
    given = ctx.known(node, 1, "reduction axes")
    axes = attribute(node, "axes", []) if given is None else [int(axis) for axis in given.reshape(-1)]
    if not axes and not attribute(node, "noop_with_empty_axes", 0):
        return list(range(rank))
    return sorted({axis % rank for axis in axes})


def reduce_view(
    ctx: Lowering,
    x: View,
    axes: Sequence[int],
    dtype: str,
    reducer: str,
    term: Callable[..., Expr],
    finish: Callable[..., Expr] | None = None,
) -> View:
    """``reducer`` over ``axes`` of ``x``, which stay as unit axes.

    Args:
        ctx: the model in hand.
        x: what is reduced; its memory order is kept, and followed by the innermost loop.
        axes: logical axes of ``x``.
        dtype: of the result.
        reducer: "sum", "prod", "max" or "min".
        term: called with (operands, *indices of ``x``) for what is taken in.
        finish: called with (operands, acc, *indices of the result); its value is cast to ``dtype``.
    """
    shape = tuple(1 if i in axes else extent for i, extent in enumerate(x.shape))
    inner = [axis for axis in x.order if axis in axes]
    out = ctx.new(shape, dtype, x.order)

    def body(ops: Operands, *indices: Expr) -> Expr:
        own, reduced = list(indices[: len(shape)]), indices[len(shape) :]
        for axis, index in zip(inner, reduced, strict=True):
            own[axis] = index
        return term(ops, *own)

    def epilogue(ops: Operands, acc: Expr, *indices: Expr) -> Expr:
        return cast(acc if finish is None else finish(ops, acc, *indices), dtype)

    if not inner:
        return ctx.compute(out, lambda ops, *i: epilogue(ops, term(ops, *i), *i))
    return ctx.compute(out, body, reduce=[x.shape[a] for a in inner], reducer=reducer, epilogue=epilogue)


def working_dtype(dtype: str, wide: bool = False) -> str:
    """The dtype that sums are kept in: half floats as float32, and integers as float64 where ``wide``."""
    if dtype == "float16":
        return "float32"
    return "float64" if wide and not dtype.startswith("float") else dtype


@lowers(*REDUCTIONS)
def lower_reduce(ctx: Lowering, node: ir.Node) -> None:
    rule, x, value = REDUCTIONS[node.op_type], ctx.input(node, 0), node.outputs[0]
    axes = reduction_axes(ctx, node, len(x.shape))
    count = prod(x.shape[axis] for axis in axes)
    if count == 0:
        ctx.set(value, ctx.constant(_over_nothing(rule.identity, shape_of(value), dtype_of(value))))
        return
    dtype = working_dtype(x.dtype, rule.wide)
    if node.op_type == "ReduceMean" and not x.dtype.startswith("float"):
        dtype = "int64"
    reduced = reduce_view(
        ctx, x, axes, x.dtype, rule.reducer,
        lambda ops, *i: rule.term(cast(ops.load(x, *i), dtype)),
        lambda ops, acc, *i: rule.finish(acc, count),
    )  # fmt: skip
    _set_reduced(ctx, node, reduced, axes)


def _set_reduced(ctx: Lowering, node: ir.Node, reduced: View, axes: Sequence[int]) -> None:
    keep = attribute(node, "keepdims", 1)
    ctx.set(node.outputs[0], reduced if keep else reduced.drop(*axes))


def _over_nothing(identity: float, shape: tuple[int, ...], dtype: str) -> np.ndarray:
    """The result of reducing no elements; integers and bools have their own extremes."""
    kind = np.dtype(dtype)
    if np.isinf(identity) and kind.kind != "f":
        limits = (False, True) if dtype == "bool" else (np.iinfo(kind).min, np.iinfo(kind).max)
        return np.full(shape, limits[identity > 0], dtype)
    if np.isnan(identity) and kind.kind != "f":
        refuse("the mean of no integers is not defined", "remove the node, or give it elements to reduce")
    return np.full(shape, identity, dtype)


@lowers("ReduceLogSumExp")
def lower_reduce_log_sum_exp(ctx: Lowering, node: ir.Node) -> None:
    """m + log(sum(exp(x − m))) with m the greatest x, or 0 where that is infinite."""
    x, value = ctx.input(node, 0), node.outputs[0]
    axes = reduction_axes(ctx, node, len(x.shape))
    if prod(x.shape[axis] for axis in axes) == 0:
        ctx.set(value, ctx.constant(_over_nothing(-np.inf, shape_of(value), dtype_of(value))))
        return
    dtype = working_dtype(x.dtype, wide=True)

    def shift(ops: Operands, acc: Expr, *_: Expr) -> Expr:
        return select(unary("isinf", acc), const(0, dtype), acc)

    top = reduce_view(ctx, x, axes, dtype, "max", lambda ops, *i: cast(ops.load(x, *i), dtype), shift)
    wide = top.broadcast_to(x.shape)
    reduced = reduce_view(
        ctx, x, axes, x.dtype, "sum",
        lambda ops, *i: unary("exp", binary("sub", cast(ops.load(x, *i), dtype), ops.load(wide, *i))),
        lambda ops, acc, *i: binary("add", unary("log", acc), ops.load(top, *i)),
    )  # fmt: skip
    _set_reduced(ctx, node, reduced, axes)


@lowers("GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool")
def lower_global_pool(ctx: Lowering, node: ir.Node) -> None:
    """One value per image and channel."""
    p = attribute(node, "p", 2)
    match node.op_type:
        case "GlobalAveragePool":
            rule = REDUCTIONS["ReduceMean"]
        case "GlobalMaxPool":
            rule = REDUCTIONS["ReduceMax"]
        case _:
            rule = lp_norm(p)
    ctx.set(node.outputs[0], pooled(ctx, ctx.input(node, 0), rule))


def pooled(ctx: Lowering, x: View, rule: Reduction) -> View:
    """``x`` (N, C, …) reduced to one value per image and channel."""
    dtype, count = working_dtype(x.dtype), prod(x.shape[2:])
    return reduce_view(
        ctx, x, range(2, len(x.shape)), x.dtype, rule.reducer,
        lambda ops, *i: rule.term(cast(ops.load(x, *i), dtype)),
        lambda ops, acc, *i: rule.finish(acc, count),
    )  # fmt: skip


def lp_norm(p: int) -> Reduction:
    """(sum of |x|^p)^(1/p)."""
    if p in (1, 2):
        return REDUCTIONS[f"ReduceL{p}"]

    def term(x: Expr) -> Expr:
        return binary("pow", unary("abs", x), const(p, x.dtype))

    return Reduction("sum", term, lambda acc, count: binary("pow", acc, const(1 / p, acc.dtype)))


@lowers("Softmax", "LogSoftmax")
def lower_softmax(ctx: Lowering, node: ir.Node) -> None:
    x, value = ctx.input(node, 0), node.outputs[0]
    out = softmax(ctx, x, attribute(node, "axis", -1), node.op_type == "LogSoftmax")
    ctx.set(value, out)


def softmax(ctx: Lowering, x: View, axis: int, log: bool = False) -> View:
    """exp(x − m) / sum(exp(x − m)), m the maximum along ``axis``; its logarithm is x − m − log(sum).

    Every step is rounded to the dtype of ``x``, as in the function that defines the operator (ONNX Softmax). The
    exponentials are kept: an online softmax, which has the maximum and the sum in one pass, computes them again where
    it writes, and even without its maximum took 1.05 to 1.17 times as long (x86 with AVX-512, rows of 65 to 262,144).
    """
    axes, dtype = [axis % len(x.shape)], x.dtype
    out = ctx.new(x.shape, x.dtype, x.order)
    if 0 in x.shape:
        return out

    def value(ops: Operands, *i: Expr) -> Expr:
        return cast(ops.load(x, *i), dtype)

    top = reduce_view(ctx, x, axes, dtype, "max", value).broadcast_to(x.shape)

    def shifted(ops: Operands, *i: Expr) -> Expr:
        return binary("sub", value(ops, *i), ops.load(top, *i))

    if log:
        total = reduce_view(
            ctx, x, axes, dtype, "sum", lambda ops, *i: unary("exp", shifted(ops, *i)),
            lambda ops, acc, *i: unary("log", acc),
        ).broadcast_to(x.shape)  # fmt: skip
        return ctx.compute(out, lambda ops, *i: cast(binary("sub", shifted(ops, *i), ops.load(total, *i)), x.dtype))
    powers = ctx.compute(ctx.new(x.shape, dtype, x.order), lambda ops, *i: unary("exp", shifted(ops, *i)))
    total = reduce_view(ctx, powers, axes, dtype, "sum", lambda ops, *i: ops.load(powers, *i)).broadcast_to(x.shape)
    return ctx.compute(out, lambda ops, *i: cast(binary("div", ops.load(powers, *i), ops.load(total, *i)), x.dtype))


@lowers("Hardmax")
def lower_hardmax(ctx: Lowering, node: ir.Node) -> None:
    """1 at the first maximum along the axis, 0 elsewhere."""
    x = ctx.input(node, 0)
    axis = attribute(node, "axis", -1) % len(x.shape)
    extent = x.shape[axis]
    top = reduce_view(ctx, x, [axis], x.dtype, "max", lambda ops, *i: ops.load(x, *i)).broadcast_to(x.shape)

    def place(ops: Operands, *i: Expr) -> Expr:
        found = binary("eq", ops.load(x, *i), ops.load(top, *i))
        return select(found, i[axis], const(extent, "int32"))

    first = reduce_view(ctx, x, [axis], "int32", "min", place).broadcast_to(x.shape)
    out = ctx.new_for(node.outputs[0], x.order)
    ctx.compute(out, lambda ops, *i: cast(binary("eq", ops.load(first, *i), i[axis]), x.dtype))
