"""Floats in 16 bits: the same program with half the bytes, computed in float32 as before, or in float16 itself.

GPUs store in half (:func:`store_in_half`). Processors with FEAT_FP16 compute in it (:func:`compute_in_half`): products
of a layer are added up in float16, too, as a widening of each would cost what the wider vectors gain. Float32 stays
where 16 bits are too few: in sums over an axis (means, norms, softmax), in functions that are not a single operation,
in what touches integers, and in constants above 65504.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from edgec import scalar
from edgec.errors import EdgecError
from edgec.program import ARENA, CONSTANT, Buffer, Conv, Depthwise, Fill, Kernel, Loops, Program, Step
from edgec.scalar import Expr
from edgec.targets.floats import FULL, HALF, SUFFIX

MOST = float(np.finfo(np.float16).max)
"""The largest finite float16."""
SINGLE = frozenset({
    "load", "acc", "const", "add", "sub", "mul", "div", "min", "max", "neg", "abs", "sign", "select", "floor", "ceil",
    "round", "sqrt",
})  # fmt: skip
"""Operators of floats that are one instruction, rounded once."""


def store_in_half(program: Program) -> Program:
    """``program`` with every float32 constant and every float32 buffer of the arena as float16.

    What the steps compute stays in float32; the model's own inputs and outputs do, too. The buffers of ``program`` are
    left as they are.

    Raises:
        EdgecError: a weight is too large for 16 bits.
    """
    buffers = _Buffers(lambda root: root.space in (ARENA, CONSTANT))
    return replace(program, steps=[_stored(step, buffers) for step in program.steps])


def compute_in_half(program: Program) -> Program:
    """``program`` with float16 in the arena and in the weights, and with steps that compute in it.

    The model's own inputs and outputs, states, and the weights and inputs of layers whose weights are packed integers
    stay as they are; the reference computes the same as the processor, but for the order of its sums. The buffers of
    ``program`` are left as they are.

    Raises:
        EdgecError: a weight is too large for 16 bits.
    """
    return _Computing(program).program


class _Buffers:
    """What stands for the buffers of a program; those roots are halved that ``halves`` says so of."""

    def __init__(self, halves: Callable[[Buffer], bool]) -> None:
        self._halves = halves
        self._made: dict[int, Buffer] = {}

    def of(self, buffer: Buffer) -> Buffer:
        """What stands for ``buffer``."""
        return self.halved(buffer) if self._halves(buffer.root) else buffer

    def halved(self, buffer: Buffer) -> Buffer:
        """``buffer`` as float16, where it is float32."""
        if id(buffer) not in self._made:
            dtype = HALF if buffer.dtype == FULL else buffer.dtype
            parent = None if buffer.parent is None else self.halved(buffer.parent)
            data = None if buffer.data is None else _rounded(buffer) if dtype == HALF else buffer.data
            self._made[id(buffer)] = replace(buffer, dtype=dtype, parent=parent, data=data, offset=None)
        return self._made[id(buffer)]


def _rounded(buffer: Buffer) -> np.ndarray:
    data = np.asarray(buffer.data)
    if not _fits(data):
        largest = float(np.max(np.abs(data)))
        raise EdgecError(
            f"the weight '{buffer.name}' has a value of {largest:.3g}, and 16-bit floats end at {MOST:.0f}; compile "
            f"for the target without {SUFFIX}"
        )
    return data.astype(np.float16)


def _fits(values: Any) -> bool:
    """Whether float16 has a number for every finite one of ``values``."""
    array = np.asarray(values)
    with np.errstate(over="ignore"):
        return not np.any(np.isinf(array.astype(np.float16)) & np.isfinite(array))


# ---- stored in float16, computed in float32 ----------------------------------------------------------------


def _stored(step: Step, buffers: _Buffers) -> Step:
    kernel = step.kernel
    inputs, output = [buffers.of(b) for b in step.inputs], buffers.of(step.output)
    dtype = HALF if output.dtype == HALF and kernel.dtype == FULL else kernel.dtype
    if isinstance(kernel, Fill):
        return Step(replace(kernel, dtype=dtype), inputs, output, step.nodes)
    changes = _rewritten(kernel, lambda expr: _widened(expr, inputs))
    if isinstance(kernel, Conv | Depthwise):
        changes["input_dtype"] = inputs[0].dtype
    return Step(replace(kernel, dtype=dtype, **changes), inputs, output, step.nodes)


def _rewritten(kernel: Kernel, rewrite: Callable[[Expr], Expr]) -> dict[str, Any]:
    """The expressions of ``kernel``, each of them rewritten."""
    found = {name: getattr(kernel, name, None) for name in ("body", "epilogue", "store")}
    return {name: rewrite(expr) for name, expr in found.items() if expr is not None}


def _widened(expr: Expr, operands: list[Buffer]) -> Expr:
    """``expr`` in float32, over operands of which some are float16."""

    def load(node: Expr) -> Expr | None:
        if node.op != "load" or node.dtype != FULL or operands[node.args[0]].dtype != HALF:
            return None
        return scalar.cast(scalar.load(node.args[0], node.args[1], HALF), FULL)

    return scalar.rewrite(expr, load)


# ---- computed in float16 -----------------------------------------------------------------------------------


class _Computing:
    """Makes the program that computes in float16, step by step."""

    def __init__(self, program: Program) -> None:
        kept = {id(step.inputs[0].root) for step in program.steps if _reads_full(step.kernel)}
        self.buffers = _Buffers(lambda root: root.space == ARENA and id(root) not in kept)
        self.steps: list[Step] = []
        for step in program.steps:
            self.steps.append(self._step(step))
        self.program = replace(program, steps=self.steps)

    def _step(self, step: Step) -> Step:
        kernel, output = step.kernel, self.buffers.of(step.output)
        dtype = output.dtype if kernel.dtype == FULL else kernel.dtype
        if isinstance(kernel, Fill):
            return Step(replace(kernel, dtype=dtype), step.inputs, output, step.nodes)
        own = kernel.own_operands if isinstance(kernel, Conv | Depthwise) else 0
        inputs = [self.buffers.of(buffer) for buffer in step.inputs]
        changes: dict[str, Any] = {}
        if isinstance(kernel, Conv | Depthwise) and _sums_reals(kernel):
            inputs[:own] = [self._as_half(buffer, step) for buffer in step.inputs[:own]]
            changes = {"input_dtype": HALF, "sum_dtype": HALF}
        if _fits_half(kernel, step.inputs[own:]):
            inputs[own:] = [self._constant(buffer) for buffer in inputs[own:]]
            changes |= _rewritten(kernel, lambda expr: _halved(expr, inputs))
        else:
            changes |= _rewritten(kernel, lambda expr: _widened(_with_sums(expr, changes), inputs))
        return Step(replace(kernel, dtype=dtype, **_converted(kernel, changes, dtype)), inputs, output, step.nodes)

    def _as_half(self, buffer: Buffer, step: Step) -> Buffer:
        """An operand of a product as float16: converted at compile time, or by a step of its own."""
        if buffer.root.space == CONSTANT:
            return self.buffers.halved(buffer)
        stored = self.buffers.of(buffer)
        if stored.dtype == HALF:
            return stored
        made = Buffer(f"{buffer.name}_half", HALF, buffer.elements)
        value = scalar.cast(scalar.load(0, scalar.axis(0), FULL), HALF)
        nest = Loops((buffer.elements,), value, scalar.axis(0), HALF)
        self.steps.append(Step(nest, [stored], made, step.nodes))
        return made

    def _constant(self, buffer: Buffer) -> Buffer:
        return self.buffers.halved(buffer) if buffer.root.space == CONSTANT else buffer


def _sums_reals(kernel: Conv | Depthwise) -> bool:
    """Whether float32 is multiplied by float32."""
    packed = kernel.packing if isinstance(kernel, Conv) else kernel.weight_dtype
    return kernel.input_dtype == FULL and packed is None


def _reads_full(kernel: Kernel) -> bool:
    """Whether the first operand has to be float32: its products are with integers."""
    return isinstance(kernel, Conv | Depthwise) and kernel.input_dtype == FULL and not _sums_reals(kernel)


def _fits_half(kernel: Conv | Depthwise | Loops, operands: list[Buffer]) -> bool:
    """Whether what ``kernel`` computes of floats are single operations, on numbers that float16 has.

    ``operands`` are those that expressions read.
    """
    if isinstance(kernel, Loops) and kernel.reducer in ("sum", "prod"):
        return False
    if isinstance(kernel, Conv | Depthwise) and not _sums_reals(kernel):
        return False
    expressions = [kernel.result, *([kernel.body] if isinstance(kernel, Loops) else [])]
    nodes = [node for expr in expressions for node in scalar.walk(expr)]
    reals = [node for node in nodes if node.dtype == FULL]
    converts = any(node.op in ("cast", "saturate") and node.children[0].dtype == FULL for node in nodes)
    constants = [buffer.data for buffer in operands if buffer.data is not None and buffer.dtype == FULL]
    numbers = [node.args[0] for node in reals if node.op == "const"]
    return not converts and all(node.op in SINGLE for node in reals) and all(map(_fits, (numbers, *constants)))


def _halved(expr: Expr, operands: list[Buffer]) -> Expr:
    """``expr`` in float16."""

    def half(node: Expr) -> Expr | None:
        if node.dtype != FULL:
            return None
        if node.op == "load":
            number, offset = node.args
            return scalar.cast(scalar.load(number, offset, operands[number].dtype), HALF)
        return scalar.const(node.args[0], HALF) if node.op == "const" else Expr(node.op, node.args, HALF)

    return scalar.rewrite(expr, half)


def _with_sums(expr: Expr, changes: dict[str, Any]) -> Expr:
    """``expr`` in float32, of sums in float16 where ``changes`` make them so."""
    wide = scalar.accumulator(FULL)
    narrow = scalar.cast(scalar.accumulator(HALF), FULL)
    return scalar.rewrite(expr, lambda node: narrow if node is wide else None) if "sum_dtype" in changes else expr


def _converted(kernel: Conv | Depthwise | Loops, changes: dict[str, Any], dtype: str) -> dict[str, Any]:
    """``changes`` with a result of ``dtype``, if the kernel's is a float."""
    if kernel.dtype != FULL:
        return changes
    if isinstance(kernel, Loops) and kernel.reducer is None:
        return {**changes, "body": scalar.cast(changes["body"], dtype)}
    total = scalar.accumulator(changes["body"].dtype) if isinstance(kernel, Loops) else None
    epilogue = changes.get("epilogue", total)
    assert epilogue is not None
    result = scalar.cast(epilogue, dtype)
    return {**changes, "epilogue": None if result is total else result}
