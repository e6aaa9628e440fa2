"""Requantisations by shifts, for processors that have no float unit.

``clamp(rne(float32(acc) · m) + zero)`` with m = 2^−k is ``clamp(((acc + 2^(k−1) − 1 + (acc >> k & 1)) >> k) + zero)``,
to the last bit. Where |acc| ≤ 2^24 its float is exact, and so is the product with a power of two: both round the same
number, halves to the even one. A larger |acc| · m is at least 2^(24 − k) in either form, and clamped if the limits are
less than that.

The quantiser makes such multipliers where it is asked for scales that are powers of two (``fixed_point`` of a recipe).
What has others keeps its floats, which the C compiler's library then computes.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from edgec import scalar
from edgec.data.samples import Array
from edgec.program import CONSTANT, Buffer, Conv, Depthwise, Loops, Program, Step
from edgec.scalar import Expr, affine, binary, cast, const

_EXACT = 2.0**24
"""Integers up to here are numbers of float32."""

_SHIFTS = (1, 29)
_SUM = 2.0**31 - 1
_GROUP_AXIS, _CHANNEL_AXIS = 0, 3


def use_shifts(program: Program) -> int:
    """Make shifts of multipliers that are powers of two, wherever the bits stay; how many kernels have them now."""
    shifts: dict[int, Buffer] = {}
    return sum(_rewrite(step, shifts) for step in program.steps)


def _rewrite(step: Step, shifts: dict[int, Buffer]) -> bool:
    """Change ``step`` in place; ``shifts`` are the constants made so far, by the multipliers that they replace."""
    kernel = step.kernel
    if not isinstance(kernel, Conv | Depthwise | Loops):
        return False
    inputs = list(step.inputs)

    def shifted(node: Expr) -> Expr | None:
        found = _requantisation(node)
        if found is None:
            return None
        total, multiplier = found
        distance = _distance(multiplier, step)
        if distance is None or not _keeps_bits(node, distance, _bound(total, step)):
            return None
        if multiplier.op == "const":
            return _by_shift(node, total, const(int(distance[0]), "int32"))
        operand = multiplier.args[0]
        inputs[operand] = _shift_constant(step.inputs[operand], shifts)
        return _by_shift(node, total, scalar.load(operand, multiplier.args[1], "int32"))

    result = scalar.rewrite(kernel.result, shifted)
    mixed = any(load.dtype != inputs[load.args[0]].dtype for load in scalar.loads(result))
    if result is kernel.result or mixed:
        return False
    part = "body" if isinstance(kernel, Loops) and kernel.epilogue is None else "epilogue"
    step.kernel, step.inputs = replace(kernel, **{part: result}), inputs  # type: ignore[arg-type]
    return True


def _requantisation(node: Expr) -> tuple[Expr, Expr] | None:
    """The integer and the multiplier of a saturated product of both; None where ``node`` is something else."""
    if node.op != "saturate" or node.args[0].op != "mul":
        return None
    for whole, multiplier in (node.args[0].args, node.args[0].args[::-1]):
        if whole.op == "cast" and whole.args[0].dtype == "int32" and multiplier.op in ("const", "load"):
            return whole.args[0], multiplier
    return None


def _by_shift(node: Expr, total: Expr, distance: Expr) -> Expr:
    """The saturation ``node`` of total · 2^−distance."""
    _, zero, low, high, _ = node.args
    one = const(1, "int32")
    below_half = binary("sub", binary("shiftleft", one, binary("sub", distance, one)), one)
    odd = binary("bitand", binary("shiftright", total, distance), one)
    whole = binary("shiftright", binary("add", total, binary("add", below_half, odd)), distance)
    moved = binary("add", whole, const(zero, "int32"))
    return cast(binary("min", binary("max", moved, const(low, "int32")), const(high, "int32")), node.dtype)


def _keeps_bits(node: Expr, distance: Array, bound: Array) -> bool:
    """Whether a shift by ``distance`` of integers up to ``bound``, [channels] or [1], is the saturation ``node``."""
    _, zero, low, high, _ = node.args
    least, most = _SHIFTS
    clamped = np.ldexp(_EXACT, -distance) > max(abs(low), abs(high)) + abs(zero) + 1
    fits = bound + np.ldexp(0.5, distance) <= _SUM
    return bool(((distance >= least) & (distance <= most) & fits & (clamped | (bound <= _EXACT))).all())


def _distance(multiplier: Expr, step: Step) -> Array | None:
    """k of every multiplier 2^−k, int64 [channels] or [1]s of all that may be loaded; None where one is no such."""
    values = np.array([multiplier.args[0]]) if multiplier.op == "const" else _loaded(multiplier, step)
    if values is None or not (values > 0).all():
        return None
    fraction, exponent = np.frexp(values.astype(np.float64))
    return 1 - exponent.astype(np.int64) if (fraction == 0.5).all() else None


def _loaded(load: Expr, step: Step) -> Array | None:
    """What a load of a constant may give, [channels] if it is one value a channel; None where it is computed."""
    buffer = step.inputs[load.args[0]]
    if buffer.data is None:
        return None
    data = np.asarray(buffer.data).reshape(-1)
    steps, first = affine(load.args[1]) or ({}, 0)
    if isinstance(step.kernel, Conv | Depthwise) and steps == _channel_steps(step.kernel):
        return data[first : first + _channels(step.kernel)]
    return data


def _channels(kernel: Conv | Depthwise) -> int:
    """Output channels, of all groups."""
    groups = kernel.batch if isinstance(kernel, Conv) and kernel.grouped else 1
    return groups * kernel.extents[_CHANNEL_AXIS]


def _channel_steps(kernel: Conv | Depthwise) -> dict[int, int]:
    """How the number of an output channel, of all groups, moves with the axes."""
    groups = {_GROUP_AXIS: kernel.extents[_CHANNEL_AXIS]} if isinstance(kernel, Conv) and kernel.grouped else {}
    return {_CHANNEL_AXIS: 1, **groups}


def _shift_constant(multipliers: Buffer, shifts: dict[int, Buffer]) -> Buffer:
    if id(multipliers) not in shifts:
        distances = (1 - np.frexp(np.asarray(multipliers.data))[1]).astype(np.int32)
        shifts[id(multipliers)] = Buffer("shifts", "int32", distances.size, CONSTANT, distances)
    return shifts[id(multipliers)]


# ---- how large a sum can be -------------------------------------------------------------------------------------


def _bound(expr: Expr, step: Step) -> Array:
    """The largest magnitude of an integer, float64 [channels] or [1]; infinite where nothing is known."""
    if expr.op == "const":
        return np.array([abs(float(expr.args[0]))])
    if expr.op == "acc":
        return _sum_bound(step)
    if expr.op == "load":
        values = _loaded(expr, step)
        if values is None:
            return _dtype_bound(expr.dtype)
        per_channel = isinstance(step.kernel, Conv | Depthwise) and values.size == _channels(step.kernel)
        found = np.abs(values.astype(np.float64))
        return found if per_channel else found.max(keepdims=True)
    if expr.op == "saturate":
        return np.array([float(max(map(abs, expr.args[2:4])))])
    own = _dtype_bound(expr.dtype)
    parts = [_bound(child, step) for child in expr.children if not child.dtype.startswith("float")]
    if len(parts) < len(expr.children):
        return own
    if expr.op in ("cast", "shiftright"):
        return np.minimum(parts[0], own)
    joined = {"add": np.add, "sub": np.add, "mul": np.multiply, "min": np.maximum, "max": np.maximum}.get(expr.op)
    return own if joined is None else np.minimum(joined(*parts), own)


def _sum_bound(step: Step) -> Array:
    kernel = step.kernel
    if isinstance(kernel, Loops):
        return _bound(kernel.body, step) * (float(np.prod(kernel.reduce)) if kernel.reducer == "sum" else 1.0)
    assert isinstance(kernel, Conv | Depthwise)
    if step.inputs[1].data is None:
        return np.array([_SUM])
    channels = kernel.extents[_CHANNEL_AXIS]
    weights = np.abs(np.asarray(step.inputs[1].data).astype(np.float64))
    by_group = weights.reshape(_channels(kernel) // channels, -1, channels)
    return _dtype_bound(kernel.input_dtype) * by_group.sum(axis=1).reshape(-1)


def _dtype_bound(dtype: str) -> Array:
    limits = np.iinfo(dtype)
    return np.array([float(max(-int(limits.min), int(limits.max)))])
