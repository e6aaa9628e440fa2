"""Normalisations. Variances are sums of squared differences from the mean, never differences of sums."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod

import numpy as np
import onnx_ir as ir

from edgec.frontend.values import is_used
from edgec.lowering.context import Lowering, Operands, array_of, attribute, dtype_of, lowers, refuse
from edgec.lowering.reduction import lp_norm, reduce_view, working_dtype
from edgec.program import CONSTANT, View
from edgec.scalar import Expr, binary, cast, const, select, unary


@dataclass(frozen=True)
class Source:
    """A view that is read in the dtype ``dtype``."""

    view: View
    dtype: str

    def __call__(self, ops: Operands, *indices: Expr) -> Expr:
        return cast(ops.load(self.view, *indices), self.dtype)


def mean_of(ctx: Lowering, x: Source, axes: Sequence[int]) -> View:
    """The mean over ``axes``, which stay as unit axes."""
    count = prod(x.view.shape[axis] for axis in axes)
    return reduce_view(
        ctx, x.view, axes, x.dtype, "sum", x, lambda ops, acc, *_: binary("div", acc, const(count, x.dtype))
    )


def mean_square(
    ctx: Lowering, x: Source, axes: Sequence[int], finish: str, epsilon: float, mean: View | None = None
) -> View:
    """``finish`` of the mean of (x − mean)² over ``axes``.

    Args:
        ctx: the model in hand.
        x: what is measured.
        axes: stay as unit axes.
        finish: "rsqrt" for 1 / sqrt(m + epsilon), "sqrt" for sqrt(m) + epsilon.
        epsilon: keeps the result finite.
        mean: unit along ``axes``; 0 where it is left out.
    """
    count = prod(x.view.shape[axis] for axis in axes)
    centre = None if mean is None else mean.broadcast_to(x.view.shape)

    def term(ops: Operands, *i: Expr) -> Expr:
        value = x(ops, *i) if centre is None else binary("sub", x(ops, *i), ops.load(centre, *i))
        return binary("mul", value, value)

    def result(ops: Operands, acc: Expr, *_: Expr) -> Expr:
        mean = binary("div", acc, const(count, x.dtype))
        small = const(epsilon, x.dtype)
        if finish == "sqrt":
            return binary("add", unary("sqrt", mean), small)
        return binary("div", const(1, x.dtype), unary("sqrt", binary("add", mean, small)))

    return reduce_view(ctx, x.view, axes, x.dtype, "sum", term, result)


def _affine(ops: Operands, value: Expr, scale: View | None, bias: View | None, indices: Sequence[Expr]) -> Expr:
    """value · scale + bias, in the dtype of ``value``; the views are of the value's shape."""
    if scale is not None:
        value = binary("mul", value, cast(ops.load(scale, *indices), value.dtype))
    return value if bias is None else binary("add", value, cast(ops.load(bias, *indices), value.dtype))


def normalised(
    ctx: Lowering,
    out: View,
    x: Source,
    mean: View | None,
    inverse: View,
    scale: View | None = None,
    bias: View | None = None,
) -> View:
    """Fill ``out`` with (x − mean) · inverse · scale + bias; everything broadcasts to ``out``."""
    shape = out.shape
    wide = [None if view is None else view.broadcast_to(shape) for view in (mean, inverse, scale, bias)]

    def body(ops: Operands, *i: Expr) -> Expr:
        centre, factor, gain, shift = wide
        value = x(ops, *i) if centre is None else binary("sub", x(ops, *i), ops.load(centre, *i))
        assert factor is not None
        value = binary("mul", value, ops.load(factor, *i))
        return cast(_affine(ops, value, gain, shift, i), out.dtype)

    return ctx.compute(out, body)


def _per_channel(view: View, rank: int) -> View:
    """A vector (C) as (C, 1, …), to broadcast along axis 1 of a tensor of ``rank`` axes."""
    ones = max(0, rank - 2)
    return replace(view, shape=(*view.shape, *(1,) * ones), strides=(*view.strides, *(0,) * ones))


@lowers("BatchNormalization")
def lower_batch_normalization(ctx: Lowering, node: ir.Node) -> None:
    """(x − mean) / sqrt(var + ε) · scale + B per channel; constants become one factor and one term."""
    if attribute(node, "training_mode", 0) or len(node.outputs) > 1:
        refuse("it is in training mode", "export the model for inference (model.eval())")
    x = ctx.input(node, 0)
    scale, bias, mean, variance = (ctx.input(node, index) for index in range(1, 5))
    epsilon, rank, dtype = attribute(node, "epsilon", 1e-5), len(x.shape), working_dtype(x.dtype)
    source, out = Source(x, dtype), ctx.new_for(node.outputs[0], x.order)
    if all(view.buffer.space == CONSTANT for view in (scale, bias, mean, variance)):
        s, b, m, v = (array_of(view).astype(np.float64) for view in (scale, bias, mean, variance))
        factor = s / np.sqrt(v + epsilon)
        gain, shift = (ctx.constant(a.astype(dtype), f"{out.buffer.name}_norm") for a in (factor, b - m * factor))
        wide = [_per_channel(view, rank).broadcast_to(x.shape) for view in (gain, shift)]
        ctx.compute(out, lambda ops, *i: cast(_affine(ops, source(ops, *i), wide[0], wide[1], i), x.dtype))
        return
    inverse = ctx.compute(
        ctx.new(variance.shape, dtype),
        lambda ops, i: _inverse_root(cast(ops.load(variance, i), dtype), epsilon),
    )
    centre = ctx.compute(ctx.new(mean.shape, dtype), lambda ops, i: cast(ops.load(mean, i), dtype))
    normalised(ctx, out, source, *(_per_channel(view, rank) for view in (centre, inverse, scale, bias)))


def _inverse_root(variance: Expr, epsilon: float) -> Expr:
    """1 / sqrt(variance + ε)."""
    root = unary("sqrt", binary("add", variance, const(epsilon, variance.dtype)))
    return binary("div", const(1, variance.dtype), root)


@lowers("InstanceNormalization")
def lower_instance_normalization(ctx: Lowering, node: ir.Node) -> None:
    """Each image's channel to mean 0 and variance 1, then scale and B per channel."""
    x, scale, bias = (ctx.input(node, index) for index in range(3))
    axes, source = range(2, len(x.shape)), Source(x, working_dtype(x.dtype))
    mean = mean_of(ctx, source, axes)
    inverse = mean_square(ctx, source, axes, "rsqrt", attribute(node, "epsilon", 1e-5), mean)
    out = ctx.new_for(node.outputs[0], x.order)
    wide = [_per_channel(view, len(x.shape)) for view in (scale, bias)]
    normalised(ctx, out, source, mean, inverse, *wide)


@lowers("LayerNormalization")
def lower_layer_normalization(ctx: Lowering, node: ir.Node) -> None:
    """Mean 0 and variance 1 over the axes from ``axis`` on; Mean and InvStdDev are outputs too."""
    x, scale, bias = ctx.input(node, 0), ctx.input(node, 1), ctx.optional(node, 2)
    axes, source = _from_axis(node, x), Source(x, working_dtype(x.dtype))
    mean = mean_of(ctx, source, axes)
    inverse = mean_square(ctx, source, axes, "rsqrt", attribute(node, "epsilon", 1e-5), mean)
    normalised(ctx, ctx.new_for(node.outputs[0], x.order), source, mean, inverse, scale, bias)
    for value, view in zip(node.outputs[1:], (mean, inverse), strict=False):
        if is_used(value):
            _set_as(ctx, value, view)


def _from_axis(node: ir.Node, x: View) -> range:
    return range(attribute(node, "axis", -1) % len(x.shape), len(x.shape))


def _set_as(ctx: Lowering, value: ir.Value, view: View) -> None:
    """Let ``value`` be ``view``, in the dtype that it is declared with."""
    if dtype_of(value) == view.dtype:
        ctx.set(value, view)
    else:
        out = ctx.new_for(value)
        ctx.compute(out, lambda ops, *i: cast(ops.load(view, *i), out.dtype))


@lowers("RMSNormalization")
def lower_rms_normalization(ctx: Lowering, node: ir.Node) -> None:
    """x / sqrt(mean(x²) + ε) · scale over the axes from ``axis`` on."""
    x, scale = ctx.input(node, 0), ctx.input(node, 1)
    source = Source(x, working_dtype(x.dtype))
    inverse = mean_square(ctx, source, _from_axis(node, x), "rsqrt", attribute(node, "epsilon", 1e-5))
    normalised(ctx, ctx.new_for(node.outputs[0], x.order), source, None, inverse, scale)


@lowers("GroupNormalization")
def lower_group_normalization(ctx: Lowering, node: ir.Node) -> None:
    """Mean 0 and variance 1 over each group of channels; scale and bias per channel."""
    x, scale, bias = (ctx.input(node, index) for index in range(3))
    groups = attribute(node, "num_groups", 1)
    n, channels, *spatial = x.shape
    grouped = ctx.reshape(x, (n, groups, channels // groups, *spatial))
    axes, source = range(2, len(grouped.shape)), Source(grouped, working_dtype(x.dtype))
    mean = mean_of(ctx, source, axes)
    inverse = mean_square(ctx, source, axes, "rsqrt", attribute(node, "epsilon", 1e-5), mean)
    out = ctx.new_for(node.outputs[0], x.order).reshape(grouped.shape)
    assert out is not None
    wide = [_per_group(view, groups, len(spatial)) for view in (scale, bias)]
    normalised(ctx, out, source, mean, inverse, *wide)


def _per_group(view: View, groups: int, spatial: int) -> View:
    """A vector (C) as (groups, C / groups, 1, …)."""
    split = view.reshape((groups, view.shape[0] // groups))
    assert split is not None
    return replace(split, shape=(*split.shape, *(1,) * spatial), strides=(*split.strides, *(0,) * spatial))


@lowers("MeanVarianceNormalization")
def lower_mean_variance_normalization(ctx: Lowering, node: ir.Node) -> None:
    """(x − mean) / (standard deviation + 1e-9)."""
    x = ctx.input(node, 0)
    axes = sorted(axis % len(x.shape) for axis in attribute(node, "axes", [0, 2, 3]))
    source = Source(x, working_dtype(x.dtype))
    mean = mean_of(ctx, source, axes)
    deviation = mean_square(ctx, source, axes, "sqrt", 1e-9, mean).broadcast_to(x.shape)
    centre = mean.broadcast_to(x.shape)

    def body(ops: Operands, *i: Expr) -> Expr:
        value = binary("sub", source(ops, *i), ops.load(centre, *i))
        return cast(binary("div", value, ops.load(deviation, *i)), x.dtype)

    ctx.compute(ctx.new_for(node.outputs[0], x.order), body)


@lowers("LpNormalization")
def lower_lp_normalization(ctx: Lowering, node: ir.Node) -> None:
    """x divided by its p-norm along the axis, 0 where that is 0."""
    x = ctx.input(node, 0)
    axis, rule = attribute(node, "axis", -1) % len(x.shape), lp_norm(attribute(node, "p", 2))
    source = Source(x, working_dtype(x.dtype))
    norm = reduce_view(
        ctx, x, [axis], source.dtype, "sum", lambda ops, *i: rule.term(source(ops, *i)),
        lambda ops, acc, *_: rule.finish(acc, 1),
    ).broadcast_to(x.shape)  # fmt: skip

    def body(ops: Operands, *i: Expr) -> Expr:
        length, zero = ops.load(norm, *i), const(0, source.dtype)
        quotient = binary("div", source(ops, *i), length)
        return cast(select(binary("eq", length, zero), zero, quotient), x.dtype)

    ctx.compute(ctx.new_for(node.outputs[0], x.order), body)


@lowers("LRN")
def lower_lrn(ctx: Lowering, node: ir.Node) -> None:
    """x / (bias + alpha / size · sum of x² over ``size`` neighbouring channels)^beta.

    The squares are kept with zeros around their channels, so that the sums run over whole vectors.
    """
    x = ctx.input(node, 0)
    size, beta = attribute(node, "size", 1), float(attribute(node, "beta", 0.75))
    alpha, bias = float(attribute(node, "alpha", 1e-4)), float(attribute(node, "bias", 1.0))
    source = Source(x, working_dtype(x.dtype))
    before, (n, channels, *spatial) = (size - 1) // 2, x.shape
    squares = ctx.new((n, channels + size - 1, *spatial), source.dtype, x.order)
    corner = (0,) * len(spatial)
    for start, count in ((0, before), (before + channels, size - 1 - before)):
        margin = squares.slice((0, start, *corner), (n, count, *spatial))
        ctx.compute(margin, lambda ops, *i: const(0, source.dtype))
    inside = squares.slice((0, before, *corner), x.shape)
    ctx.compute(inside, lambda ops, *i: binary("mul", source(ops, *i), source(ops, *i)))

    def finish(ops: Operands, acc: Expr, *i: Expr) -> Expr:
        total = binary("add", binary("mul", acc, const(alpha / size, acc.dtype)), const(bias, acc.dtype))
        return cast(binary("div", source(ops, *i), _positive_power(total, beta)), x.dtype)

    out = ctx.new_for(node.outputs[0], x.order)
    ctx.compute(
        out, lambda ops, n, c, *rest: ops.load(squares, n, c + rest[-1], *rest[:-1]),
        reduce=(size,), reducer="sum", epilogue=finish,
    )  # fmt: skip


def _positive_power(base: Expr, exponent: float) -> Expr:
    """base^exponent of a positive base; the exponent that every model uses is made of roots."""
    if exponent == 0.75:
        root = unary("sqrt", base)
        return binary("mul", root, unary("sqrt", root))
    return binary("pow", base, const(exponent, base.dtype))
