"""Algebra of loop nests: how indices move with axes, unit axes dropped, axes merged, sums taken apart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from edgec import scalar
from edgec.program import CONSTANT, Buffer, Conv, Depthwise, Fill, Kernel, Loops, Step
from edgec.scalar import Expr


def coefficient(expr: Expr, axis: int) -> int | None:
    """How far ``expr`` moves for one step of ``axis``; None when that is not a constant."""
    if expr.op == "axis":
        return int(expr.args[0] == axis)
    moves = [coefficient(child, axis) for child in expr.children]
    if all(move == 0 for move in moves):
        return 0
    if expr.op not in ("add", "sub", "mul"):
        return None
    (left, right), (first, second) = expr.children, moves
    if expr.op == "mul":
        if right.op == "const" and first is not None:
            return first * int(right.args[0])
        return second * int(left.args[0]) if left.op == "const" and second is not None else None
    if first is None or second is None:
        return None
    return first + second if expr.op == "add" else first - second


def lane_step(expr: Expr, axis: int) -> int | None:
    """How far ``expr`` moves from one lane of a vector along ``axis`` to the next; None when that is not a constant.

    What a nest has accumulated is another value in each lane.
    """
    return None if any(node.op == "acc" for node in scalar.walk(expr)) else coefficient(expr, axis)


def merged_loops(loops: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """``loops`` (extent, elements per step) without those of extent 1, merged where what they read is contiguous."""
    merged: list[tuple[int, int]] = []
    for extent, step in loops:
        if extent == 1:
            continue
        if merged and merged[-1][1] == step * extent:
            merged[-1] = (merged[-1][0] * extent, step)
        else:
            merged.append((extent, step))
    return merged


def looked_up(node: Expr) -> Expr | None:
    """The byte by which ``node`` is a lookup in a table of 256 bytes: a load at a byte less its least value."""
    if node.op != "load" or np.dtype(node.dtype).itemsize != 1:
        return None
    index, least = node.args[1], 0
    if index.op == "sub" and index.args[1].op == "const":
        index, least = index.args[0], int(index.args[1].args[0])
    byte = index.args[0] if index.op == "cast" else index
    is_byte = isinstance(byte, Expr) and byte.dtype in ("int8", "uint8") and byte.op != "const"
    return byte if is_byte and least == np.iinfo(byte.dtype).min else None


def simplify(nest: Loops) -> Loops:
    """`nest`` without unit axes and with axes merged where every index expression allows it."""
    nest = _drop_unit_axes(nest)
    position = 0
    while position + 1 < len(nest.extents) + len(nest.reduce):
        if position + 1 != len(nest.extents) and _mergeable(nest, position):
            nest = _merge(nest, position)
        else:
            position += 1
    return nest


def _index_expressions(nest: Loops) -> list[Expr]:
    found = [nest.store]
    for expr in (nest.body, nest.epilogue):
        if expr is not None:
            found += [node.args[1] for node in scalar.loads(expr)]
    return found


def _mapped(nest: Loops, axes: dict[int, Expr], **changes: Any) -> Loops:
    def swap(expr: Expr) -> Expr:
        return scalar.substitute_axes(expr, axes)

    epilogue = None if nest.epilogue is None else swap(nest.epilogue)
    return replace(nest, body=swap(nest.body), store=swap(nest.store), epilogue=epilogue, **changes)


def _drop_unit_axes(nest: Loops) -> Loops:
    extents = nest.extents + nest.reduce
    keep = [i for i, extent in enumerate(extents) if extent != 1]
    axes = {i: scalar.const(0, scalar.INDEX) for i, extent in enumerate(extents) if extent == 1}
    axes |= {old: scalar.axis(new) for new, old in enumerate(keep)}
    outer = tuple(e for e in nest.extents if e != 1)
    return _mapped(nest, axes, extents=outer, reduce=tuple(e for e in nest.reduce if e != 1))


def _mergeable(nest: Loops, first: int) -> bool:
    """Whether axes ``first`` and ``first + 1`` are always walked as one."""
    inner = (nest.extents + nest.reduce)[first + 1]
    for expr in _index_expressions(nest):
        outer_step, inner_step = coefficient(expr, first), coefficient(expr, first + 1)
        if outer_step is None or inner_step is None or outer_step != inner_step * inner:
            return False
    return not _uses_axes_outside_loads(nest, {first, first + 1})


def _uses_axes_outside_loads(nest: Loops, axes: set[int]) -> bool:
    """Whether a value (not an offset) depends on ``axes``, which merging would change."""
    for expr in (nest.body, nest.epilogue):
        if expr is None:
            continue
        opaque = scalar.rewrite(
            expr, lambda node: scalar.load(node.args[0], 0, node.dtype) if node.op == "load" else None
        )
        if any(node.op == "axis" and node.args[0] in axes for node in scalar.walk(opaque)):
            return True
    return False


def _merge(nest: Loops, first: int) -> Loops:
    extents, outer = list(nest.extents + nest.reduce), len(nest.extents)
    axes = {first: scalar.const(0, scalar.INDEX), first + 1: scalar.axis(first)}
    axes |= {old: scalar.axis(old - 1) for old in range(first + 2, len(extents))}
    extents[first : first + 2] = [extents[first] * extents[first + 1]]
    outer -= first < outer
    return _mapped(nest, axes, extents=tuple(extents[:outer]), reduce=tuple(extents[outer:]))


def terms(offset: Expr) -> tuple[dict[int, Expr], int] | None:
    """``offset`` taken apart as sum(coefficient × index) + constant; None where a coefficient occurs twice."""
    found: dict[int, Expr] = {}
    constant = 0
    for factor, atom in _products(offset, 1):
        if atom.op == "const":
            constant += factor * int(atom.args[0])
        elif factor in found:
            return None
        else:
            found[factor] = atom
    return found, constant


def _products(expr: Expr, factor: int) -> list[tuple[int, Expr]]:
    if expr.op == "add":
        return [*_products(expr.args[0], factor), *_products(expr.args[1], factor)]
    if expr.op == "sub":
        return [*_products(expr.args[0], factor), *_products(expr.args[1], -factor)]
    if expr.op == "mul" and expr.args[1].op == "const":
        return [(factor * int(expr.args[1].args[0]), expr.args[0])]
    return [(factor, expr)]


def bounds(index: Expr, extents: Sequence[int]) -> tuple[int, int] | None:
    """The least and the greatest value of ``index`` over axes of ``extents``; None where it is not known."""
    if index.op == "const":
        return int(index.args[0]), int(index.args[0])
    if index.op == "axis":
        return 0, extents[index.args[0]] - 1
    if index.op not in ("add", "sub", "mul", "min", "max", "floordiv", "floormod") or index.dtype != scalar.INDEX:
        return None
    left, right = bounds(index.args[0], extents), bounds(index.args[1], extents)
    if left is None or right is None:
        # a clamp bounds whatever it is given
        return _clamped(index, left or right)
    if index.op in ("min", "max"):
        pick = min if index.op == "min" else max
        return pick(left[0], right[0]), pick(left[1], right[1])
    if index.op in ("floordiv", "floormod"):
        if right[0] != right[1] or right[0] <= 0:
            return None
        return (left[0] // right[0], left[1] // right[0]) if index.op == "floordiv" else (0, right[0] - 1)
    if index.op == "sub":
        return left[0] - right[1], left[1] - right[0]
    if index.op == "add":
        return left[0] + right[0], left[1] + right[1]
    corners = [a * b for a in left for b in right]
    return min(corners), max(corners)


def _clamped(index: Expr, known: tuple[int, int] | None) -> tuple[int, int] | None:
    """Bounds of min(max(unknown, low), high) with constant limits."""
    if index.op != "min" or known is None or index.args[1].op != "const" or index.args[0].op != "max":
        return None
    low = index.args[0].args[1]
    return (int(low.args[0]), known[1]) if low.op == "const" else None


def rebased(step: Step) -> tuple[Kernel, list[Buffer], Buffer]:
    """``step``'s kernel with constant offsets moved into its operands' addresses.

    Kernels that differ only in where their operands start (the steps of an unrolled recurrence, the groups of
    a convolution) become equal, and are compiled once.
    """
    kernel = step.kernel
    if isinstance(kernel, Fill):
        return kernel, step.inputs, step.output
    kernel, inputs = _apart(kernel, step.inputs)
    moved = {index: _common_start(kernel, index, buffer) for index, buffer in enumerate(inputs)}
    changes: dict[str, Any] = {}
    for name in ("body", "epilogue"):
        if getattr(kernel, name, None) is not None:
            changes[name] = scalar.rewrite(getattr(kernel, name), lambda node: _shifted_load(node, moved))
    if isinstance(kernel, Conv | Depthwise):
        moved[0] = kernel.input_offset
        changes["input_offset"] = 0
    if isinstance(kernel, Conv) and kernel.weight_strides is not None:
        moved[1] = kernel.weight_offset if inputs[1].root.space != CONSTANT else 0
        changes["weight_offset"] = kernel.weight_offset - moved[1]
    start = _start(kernel.store) or 0
    changes["store"] = _without_constant(kernel.store) if start else kernel.store
    windows = [_window(buffer, moved[index]) for index, buffer in enumerate(inputs)]
    return replace(kernel, **changes), windows, _window(step.output, start)


def _apart(kernel: Kernel, inputs: list[Buffer]) -> tuple[Kernel, list[Buffer]]:
    """A convolution whose epilogue reads its input or weight again has an operand more for that: the two may
    start at different places."""
    if not isinstance(kernel, Conv | Depthwise):
        return kernel, inputs
    again = sorted({node.args[0] for node in scalar.loads(kernel.epilogue) if node.args[0] < kernel.own_operands})
    numbers = {operand: len(inputs) + index for index, operand in enumerate(again)}
    epilogue = scalar.rename_operands(kernel.epilogue, numbers)
    return replace(kernel, epilogue=epilogue), [*inputs, *(inputs[operand] for operand in again)]


def _common_start(kernel: Kernel, operand: int, buffer: Buffer) -> int:
    """The constant that all of the kernel's offsets into ``operand`` share; 0 where there is none."""
    expressions = [e for e in (getattr(kernel, "body", None), getattr(kernel, "epilogue", None)) if e is not None]
    reads = [n.args[1] for e in expressions for n in scalar.loads(e) if n.args[0] == operand]
    starts = {_start(offset) for offset in reads}
    common = starts.pop() if len(starts) == 1 else None
    fixed = isinstance(kernel, Conv | Depthwise) and operand < kernel.own_operands
    return 0 if common is None or fixed or buffer.root.space == CONSTANT else common


def _start(offset: Expr) -> int | None:
    """The constant part of an offset, where it can be told and is a place inside the buffer."""
    parts = terms(offset)
    return parts[1] if parts is not None and parts[1] >= 0 else None


def _without_constant(offset: Expr) -> Expr:
    parts = terms(offset)
    assert parts is not None
    total = scalar.const(0, scalar.INDEX)
    for factor, atom in parts[0].items():
        total = atom * factor + total
    return total


def _shifted_load(node: Expr, moved: dict[int, int]) -> Expr | None:
    if node.op != "load" or not moved[node.args[0]]:
        return None
    return scalar.load(node.args[0], _without_constant(node.args[1]), node.dtype)


def _window(buffer: Buffer, start: int) -> Buffer:
    if not start:
        return buffer
    return Buffer(buffer.name, buffer.dtype, buffer.elements - start, buffer.space, parent=buffer, parent_offset=start)
