"""The living definition of a program: every kernel contract and scalar operator in numpy.

Slow and plain on purpose. Kernels of every target are tested against it, and fusion is tested by running a
program here before and after.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from math import prod
from typing import Any

import numpy as np

from edgec import scalar
from edgec.program import SCALE_CHANNELS, Buffer, Conv, Depthwise, Fill, Kernel, Loops, Program, Step
from edgec.scalar import Expr

Array = np.ndarray[Any, np.dtype[Any]]


def run(program: Program, inputs: Mapping[str, Array]) -> dict[str, Array]:
    """Execute ``program``; arrays by the names of its inputs and outputs, in the model's own layout."""
    memory: dict[int, Array] = {}
    for tensor in program.inputs:
        memory[id(tensor.buffer)] = np.ascontiguousarray(inputs[tensor.name], tensor.dtype).reshape(-1)
    for step in program.steps:
        run_step(step, memory)
    return {t.name: elements_of(t.buffer, memory).reshape(t.shape).copy() for t in program.outputs}


def run_step(step: Step, memory: dict[int, Array]) -> None:
    """Execute one step on ``memory``: the flat elements of every root buffer, by ``id``."""
    operands = [elements_of(buffer, memory) for buffer in step.inputs]
    output = elements_of(step.output, memory)
    with np.errstate(all="ignore"):
        _RUN[type(step.kernel)](step.kernel, operands, output)


def elements_of(buffer: Buffer, memory: dict[int, Array]) -> Array:
    """The elements of ``buffer``, from its start to the end of its root; zeros before anything is stored."""
    root = buffer.root
    if id(root) not in memory:
        data = np.zeros(root.elements, root.dtype) if root.data is None else np.asarray(root.data).reshape(-1)
        memory[id(root)] = data
    return memory[id(root)].view(buffer.dtype)[buffer.root_offset :]


def _grid(extents: Sequence[int], first: int, rank: int) -> dict[int, Array]:
    """Index arrays of axes ``first``, ``first + 1`` … that broadcast to the whole iteration space."""
    axes = {}
    for position, extent in enumerate(extents):
        shape = [1] * rank
        shape[first + position] = extent
        axes[first + position] = np.arange(extent, dtype=np.int64).reshape(shape)
    return axes


def _loops(nest: Loops, operands: Sequence[Array], output: Array) -> None:
    if nest.combine is not None or nest.sequential:
        _one_by_one(nest, operands, output)
        return
    rank, reduced = len(nest.extents), len(nest.reduce)
    axes = _grid(nest.extents + nest.reduce, 0, rank + reduced)
    value = evaluate(nest.body, operands, axes)
    if nest.reducer is not None:
        whole = np.broadcast_to(value, nest.extents + nest.reduce)
        acc = _REDUCE[nest.reducer](whole, tuple(range(rank, rank + reduced))).astype(nest.body.dtype)
        outer = _grid(nest.extents, 0, rank)
        value = acc if nest.epilogue is None else evaluate(nest.epilogue, operands, outer, acc)
        _write(nest.store, value, operands, outer, nest.extents, output)
    else:
        _write(nest.store, value, operands, axes, nest.extents, output)


def _one_by_one(nest: Loops, operands: Sequence[Array], output: Array) -> None:
    """A nest whose order matters, point by point."""
    for point in np.ndindex(*nest.extents):
        axes = {axis: np.asarray(index) for axis, index in enumerate(point)}
        place = int(evaluate(nest.store, operands, axes))
        value = evaluate(nest.body, operands, axes)
        if nest.combine is not None:
            value = OPERATORS[nest.combine](output[place], value)
        output[place] = value


def _write(
    store: Expr, value: Array, operands: Sequence[Array], axes: dict[int, Array], extents: Sequence[int], output: Array
) -> None:
    places = np.broadcast_to(evaluate(store, operands, axes), extents)
    output[places.reshape(-1)] = np.broadcast_to(value, extents).reshape(-1)


def _conv(conv: Conv, operands: Sequence[Array], output: Array) -> None:
    kh, kw = conv.kernel
    taps = _taps(conv, operands[0], conv.in_channels)
    if conv.weight_strides is None:
        count, depth = conv.batch if conv.grouped else 1, kh * kw * conv.in_channels
        matrix = operands[1][: count * depth * conv.out_channels].reshape(count, depth, conv.out_channels)
        if conv.packing and conv.packing.parts:
            groups = operands[3][: conv.in_channels * kh * kw // conv.packing.group]
            sorted_groups = matrix.reshape(len(groups), -1, conv.out_channels)
            matrix = np.empty_like(sorted_groups)
            matrix[groups] = sorted_groups
            matrix = matrix.reshape(1, -1, conv.out_channels)
        if conv.packing and conv.packing.group and conv.accumulator_dtype != "int32":
            matrix = matrix * _spread_scales(conv, operands[2])
    else:
        batch, k, column = np.ogrid[: conv.batch, : conv.in_channels, : conv.out_channels]
        batch_step, k_step = conv.weight_strides
        matrix = operands[1][conv.weight_offset + batch * batch_step + k * k_step + column]
    rows = taps.reshape(conv.batch, conv.out_height * conv.out_width, -1)
    if conv.accumulator_dtype == "float16":
        acc = _sums_in_half((rows[:, :, k, None], matrix[:, k, None]) for k in range(rows.shape[2]))
    else:
        acc = rows.astype(np.float64) @ matrix.astype(np.float64)
    _finish(conv, acc.reshape(conv.extents).astype(conv.accumulator_dtype), operands, output)


def _sums_in_half(products: Iterable[tuple[Array, Array]]) -> Array:
    """Sums of products of float16, each product exact and each sum rounded to float16, in order."""
    total: Array = np.zeros((), np.float16)
    for left, right in products:
        total = (total + left.astype(np.float32) * right.astype(np.float32)).astype(np.float16)
    return total


def _spread_scales(conv: Conv, scales: Array) -> Array:
    """The scale of every weight [depth, channel]."""
    assert conv.packing is not None
    group, depth = conv.packing.group, conv.in_channels * prod(conv.kernel)
    stored = scales.reshape(-1)[: -(-depth // group) * -(-conv.out_channels // SCALE_CHANNELS) * SCALE_CHANNELS]
    real = (stored.astype(np.uint32) << 16).view(np.float32) if stored.dtype == np.uint16 else stored
    rows = real.reshape(-(-depth // group), -1)[:, : conv.out_channels]
    return np.repeat(rows, group, axis=0)[:depth]


def _depthwise(conv: Depthwise, operands: Sequence[Array], output: Array) -> None:
    weight = operands[1].reshape(*conv.kernel, conv.channels)
    taps = _taps(conv, operands[0], conv.channels)
    if conv.accumulator_dtype == "float16":
        acc = _sums_in_half((taps[:, :, :, y, x], weight[y, x]) for y, x in np.ndindex(*conv.kernel))
    else:
        acc = np.einsum("nhwyxc,yxc->nhwc", taps.astype(np.float64), weight.astype(np.float64))
    _finish(conv, acc.astype(conv.accumulator_dtype), operands, output)


def _taps(conv: Conv | Depthwise, source: Array, channels: int) -> Array:
    """Every input element that every output pixel needs: [n, h, w, kh, kw, c]."""
    n_step, h_step, w_step, c_step = conv.input_strides
    (sh, sw), (dh, dw), (kh, kw) = conv.stride, conv.dilation, conv.kernel
    n, h, w, y, x, c = np.ogrid[: conv.batch, : conv.out_height, : conv.out_width, :kh, :kw, :channels]
    return source[conv.input_offset + n * n_step + (h * sh + y * dh) * h_step + (w * sw + x * dw) * w_step + c * c_step]


def _finish(conv: Conv | Depthwise, acc: Array, operands: Sequence[Array], output: Array) -> None:
    axes = _grid(conv.extents, 0, 4)
    value = evaluate(conv.epilogue, operands, axes, acc)
    _write(conv.store, value, operands, axes, conv.extents, output)


def _fill(fill: Fill, operands: Sequence[Array], output: Array) -> None:
    for offset, extents, strides in fill.regions:
        places = offset + sum(i * s for i, s in zip(np.indices(extents, sparse=True), strides, strict=True))
        output[places] = fill.value


_RUN: dict[type[Kernel], Callable[[Any, Sequence[Array], Array], None]] = {
    Loops: _loops,
    Conv: _conv,
    Depthwise: _depthwise,
    Fill: _fill,
}


def evaluate(
    expr: Expr, operands: Sequence[Array], axes: Mapping[int, Array], accumulator: Array | None = None
) -> Array:
    """The value of ``expr`` at every point of ``axes`` (broadcastable index arrays).

    Args:
        expr: any scalar expression.
        operands: the flat elements of each input.
        axes: the index array of each loop axis.
        accumulator: what ``acc`` stands for.
    """
    made: dict[int, Array] = {}
    for node in scalar.walk(expr):
        made[id(node)] = _value(node, made, operands, axes, accumulator)
    return made[id(expr)]


def _value(
    node: Expr,
    made: Mapping[int, Array],
    operands: Sequence[Array],
    axes: Mapping[int, Array],
    accumulator: Array | None,
) -> Array:
    if node.op == "const":
        # indices are computed in 64 bits here, so that a wrapped 32-bit offset would show
        return np.asarray(node.args[0], np.int64 if node.dtype == scalar.INDEX else node.dtype)
    if node.op == "axis":
        return axes[node.args[0]]
    if node.op == "load":
        return operands[node.args[0]][made[id(node.args[1])]]
    if node.op == "acc":
        assert accumulator is not None
        return accumulator
    args = [made[id(child)] for child in node.children]
    if node.op == "cast":
        return _cast(args[0], node.dtype)
    if node.op == "saturate":
        return _saturate(args[0], *node.args[1:4]).astype(node.dtype)
    result = OPERATORS[node.op](*args)
    return result if node.dtype == scalar.INDEX else np.asarray(result, node.dtype)


def _cast(value: Array, dtype: str) -> Array:
    return value.astype(np.int64 if dtype == scalar.INDEX and value.dtype == np.int64 else dtype)


def _saturate(value: Array, zero: int, low: int, high: int) -> Array:
    """See :func:`edgec.scalar.saturate`; float64 holds every sum exactly."""
    whole = np.rint(value.astype(np.float32)).astype(np.float64) + zero
    return np.where(np.isnan(whole), low, np.clip(whole, low, high))


def _divide(a: Array, b: Array) -> Array:
    if a.dtype.kind == "f":
        return a / b
    divisor = np.where(b == 0, 1, b).astype(a.dtype)
    floor = a // divisor
    return (floor + ((floor * divisor != a) & ((a < 0) != (divisor < 0)))).astype(a.dtype)


def _erf(x: Array) -> Array:
    from math import erf

    return np.vectorize(erf, otypes=[np.float64])(x).astype(x.dtype)


def _sigmoid(x: Array) -> Array:
    wide = x.astype(np.float64)
    return (1 / (1 + np.exp(-wide))).astype(x.dtype)


_REDUCE: dict[str, Callable[[Array, tuple[int, ...]], Array]] = {
    "sum": lambda x, axes: x.sum(axes, dtype=np.float64 if x.dtype.kind == "f" else x.dtype),
    "prod": lambda x, axes: x.prod(axes, dtype=np.float64 if x.dtype.kind == "f" else x.dtype),
    "max": lambda x, axes: x.max(axes),
    "min": lambda x, axes: x.min(axes),
}

OPERATORS: dict[str, Callable[..., Any]] = {
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "div": _divide,
    "floordiv": np.floor_divide,
    "floormod": np.mod,
    "truncmod": np.fmod,
    "pow": np.power,
    "min": np.minimum,
    "max": np.maximum,
    "eq": np.equal,
    "ne": np.not_equal,
    "lt": np.less,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
    "and": np.logical_and,
    "or": np.logical_or,
    "not": np.logical_not,
    "bitand": np.bitwise_and,
    "bitor": np.bitwise_or,
    "bitxor": np.bitwise_xor,
    "bitnot": np.bitwise_not,
    "shiftleft": np.left_shift,
    "shiftright": np.right_shift,
    "neg": np.negative,
    "abs": np.abs,
    "sign": np.sign,
    "floor": np.floor,
    "ceil": np.ceil,
    "round": np.rint,
    "sqrt": np.sqrt,
    "exp": np.exp,
    "log": np.log,
    "log1p": np.log1p,
    "sigmoid": _sigmoid,
    "tanh": np.tanh,
    "erf": _erf,
    "sin": np.sin,
    "cos": np.cos,
    "tan": np.tan,
    "asin": np.arcsin,
    "acos": np.arccos,
    "atan": np.arctan,
    "sinh": np.sinh,
    "cosh": np.cosh,
    "asinh": np.arcsinh,
    "acosh": np.arccosh,
    "atanh": np.arctanh,
    "isnan": np.isnan,
    "isinf": np.isinf,
    "select": np.where,
}
