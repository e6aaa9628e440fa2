"""Einsum: operands are contracted two at a time, as batched matrix products where they have that form."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod

import onnx_ir as ir

from edgec.lowering.context import Lowering, Operands, attribute, lowers
from edgec.lowering.matmul import product
from edgec.lowering.reduction import reduce_view, working_dtype
from edgec.program import View
from edgec.scalar import Expr, binary, cast

Labels = tuple[str, ...]
"""One label an axis; the axes of an ellipsis are "...1", "...2" and so on, counted from the last."""


@dataclass(frozen=True)
class Term:
    """A tensor whose axes have different labels."""

    view: View
    labels: Labels

    def extent(self, label: str) -> int:
        """The extent along ``label``, 1 without such an axis."""
        return self.view.shape[self.labels.index(label)] if label in self.labels else 1

    def arranged(self, labels: Sequence[str]) -> View:
        """The view with its axes in the order of ``labels``, unit axes for those it has not."""
        view = self.view
        for label in labels:
            if label not in self.labels:
                view = replace(view, shape=(*view.shape, 1), strides=(*view.strides, 0))
        have = [*self.labels, *(label for label in labels if label not in self.labels)]
        return view.permute([have.index(label) for label in labels])


def parse(equation: str, ranks: Sequence[int]) -> tuple[list[Labels], Labels]:
    """The labels of each operand and of the result (numpy.einsum's notation).

    Without an arrow the result has the ellipsis and then the labels that occur once, in alphabetical order.
    """
    left, arrow, right = equation.replace(" ", "").partition("->")
    operands = [_labels(text, rank) for text, rank in zip(left.split(","), ranks, strict=True)]
    widest = max((sum(label.startswith("...") for label in labels) for labels in operands), default=0)
    dots = tuple(f"...{axis}" for axis in range(widest, 0, -1))
    if arrow:
        before, _, after = right.partition("...")
        return operands, (*before, *(dots if "..." in right else ()), *after)
    seen = [label for labels in operands for label in labels if not label.startswith("...")]
    return operands, (*dots, *sorted(label for label in set(seen) if seen.count(label) == 1))


def _labels(text: str, rank: int) -> Labels:
    if "..." not in text:
        return tuple(text)
    before, _, after = text.partition("...")
    count = rank - len(before) - len(after)
    return (*before, *(f"...{axis}" for axis in range(count, 0, -1)), *after)


def diagonal(view: View, labels: Labels) -> Term:
    """``view`` with equal labels as one axis, which walks along their diagonal."""
    unique = tuple(dict.fromkeys(labels))
    axes = [[axis for axis, own in enumerate(labels) if own == label] for label in unique]
    shape = tuple(max(view.shape[axis] for axis in group) for group in axes)
    strides = tuple(sum(view.strides[axis] for axis in group if view.shape[axis] > 1) for group in axes)
    return Term(replace(view, shape=shape, strides=strides), unique)


@lowers("Einsum")
def lower_einsum(ctx: Lowering, node: ir.Node) -> None:
    views = [ctx.view(value) for value in node.inputs]
    labels, result = parse(str(attribute(node, "equation", "")), [len(view.shape) for view in views])
    terms = [diagonal(view, own) for view, own in zip(views, labels, strict=True)]
    while len(terms) > 1:
        first, second, *rest = terms
        needed = {label for term in rest for label in term.labels} | set(result)
        terms = [_contracted(ctx, first, second, needed), *rest]
    ctx.set(node.outputs[0], _summed(ctx, terms[0], set(result)).arranged(result))


def _summed(ctx: Lowering, term: Term, kept: set[str]) -> Term:
    """``term`` summed over the labels that are not ``kept``."""
    axes = [axis for axis, label in enumerate(term.labels) if label not in kept]
    if not axes:
        return term
    dtype = working_dtype(term.view.dtype)
    total = reduce_view(
        ctx, term.view, axes, term.view.dtype, "sum", lambda ops, *i: cast(ops.load(term.view, *i), dtype)
    )
    return Term(total.drop(*axes), tuple(label for label in term.labels if label in kept))


def _contracted(ctx: Lowering, a: Term, b: Term, needed: set[str]) -> Term:
    """a · b summed over the labels that are no longer needed."""
    a, b = _summed(ctx, a, needed | set(b.labels)), _summed(ctx, b, needed | set(a.labels))
    every = list(dict.fromkeys((*a.labels, *b.labels)))
    inner = [label for label in every if label not in needed]
    outer = [label for label in every if label in needed]
    batch = [label for label in outer if label in a.labels and label in b.labels]
    rows = [label for label in outer if label not in b.labels]
    columns = [label for label in outer if label not in a.labels]
    fits = all(a.extent(label) == b.extent(label) for label in inner)
    if inner and fits and a.view.dtype == "float32":
        return _as_product(ctx, a, b, (batch, rows, inner, columns))
    return _as_nest(ctx, a, b, outer, inner)


def _as_product(ctx: Lowering, a: Term, b: Term, groups: tuple[list[str], ...]) -> Term:
    """The contraction as a batched matrix product [batch, rows, inner] · [batch, inner, columns]."""
    batch, rows, inner, columns = groups

    def matrix(term: Term, first: list[str], second: list[str]) -> View:
        sizes = [prod(term.extent(label) for label in group) for group in (first, second)]
        outer = [term.extent(label) for label in batch]
        return ctx.reshape(term.arranged([*batch, *first, *second]), (*outer, *sizes))

    left, right = matrix(a, rows, inner), matrix(b, inner, columns)
    outer = [max(a.extent(label), b.extent(label)) for label in batch]
    out = ctx.new((*outer, left.shape[-2], right.shape[-1]), a.view.dtype)
    product(ctx, out, left, right)
    free = [a.extent(label) for label in rows] + [b.extent(label) for label in columns]
    return Term(ctx.reshape(out, (*outer, *free)), (*batch, *rows, *columns))


def _as_nest(ctx: Lowering, a: Term, b: Term, outer: list[str], inner: list[str]) -> Term:
    """The contraction as a loop nest of any dtype."""
    dtype = working_dtype(a.view.dtype)
    extents = {label: max(a.extent(label), b.extent(label)) for label in (*outer, *inner)}
    shape = [extents[label] for label in (*outer, *inner)]
    left, right = (term.arranged([*outer, *inner]).broadcast_to(shape) for term in (a, b))
    out = ctx.new(shape[: len(outer)], a.view.dtype)

    def term(ops: Operands, *i: Expr) -> Expr:
        return binary("mul", cast(ops.load(left, *i), dtype), cast(ops.load(right, *i), dtype))

    if inner:
        ctx.compute(
            out, term, reduce=shape[len(outer) :], reducer="sum", epilogue=lambda ops, acc, *_: cast(acc, out.dtype)
        )
    else:
        ctx.compute(out, lambda ops, *i: cast(term(ops, *i), out.dtype))
    return Term(out, tuple(outer))
