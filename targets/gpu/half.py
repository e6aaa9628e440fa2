"""Floats in 16 bits of memory: the same program with half the bytes, computed in float32 as before."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from edgec import scalar
from edgec.errors import EdgecError
from edgec.program import ARENA, CONSTANT, Buffer, Conv, Depthwise, Fill, Loops, Program, Step
from edgec.scalar import Expr

FULL, HALF = "float32", "float16"


def store_in_half(program: Program) -> Program:
    """``program`` with every float32 constant and every float32 buffer of the arena as float16.

    What the steps compute stays in float32; the model's own inputs and outputs do, too. The buffers of ``program`` are
    left as they are.

    Raises:
        EdgecError: a weight is too large for 16 bits.
    """
    made: dict[int, Buffer] = {}
    steps = [_step(step, made) for step in program.steps]
    return Program(program.name, program.inputs, program.outputs, steps)


def _buffer(buffer: Buffer, made: dict[int, Buffer]) -> Buffer:
    """What stands for ``buffer``."""
    if buffer.root.space not in (ARENA, CONSTANT):
        return buffer
    if id(buffer) not in made:
        dtype = HALF if buffer.dtype == FULL else buffer.dtype
        parent = None if buffer.parent is None else _buffer(buffer.parent, made)
        data = None if buffer.data is None else _halved(buffer) if dtype == HALF else buffer.data
        made[id(buffer)] = replace(buffer, dtype=dtype, parent=parent, data=data, offset=None)
    return made[id(buffer)]


def _halved(buffer: Buffer) -> np.ndarray:
    data = np.asarray(buffer.data)
    with np.errstate(over="ignore"):
        found = data.astype(np.float16)
    if np.any(np.isinf(found) & np.isfinite(data)):
        largest = float(np.max(np.abs(data)))
        raise EdgecError(
            f"the weight '{buffer.name}' has a value of {largest:.3g}, and 16-bit floats end at 65504; compile for the "
            "target without -fp16"
        )
    return found


def _step(step: Step, made: dict[int, Buffer]) -> Step:
    kernel = step.kernel
    inputs, output = [_buffer(b, made) for b in step.inputs], _buffer(step.output, made)
    dtype = HALF if output.dtype == HALF and kernel.dtype == FULL else kernel.dtype
    if isinstance(kernel, Fill):
        return Step(replace(kernel, dtype=dtype), inputs, output, step.nodes)
    dtypes = [buffer.dtype for buffer in inputs]

    def widened(expr: Expr) -> Expr:
        return scalar.rewrite(expr, lambda node: _load(node, dtypes))

    if isinstance(kernel, Loops):
        epilogue = None if kernel.epilogue is None else widened(kernel.epilogue)
        nest = replace(kernel, body=widened(kernel.body), epilogue=epilogue, store=widened(kernel.store), dtype=dtype)
        return Step(nest, inputs, output, step.nodes)
    changes = {"epilogue": widened(kernel.epilogue), "store": widened(kernel.store), "dtype": dtype}
    assert isinstance(kernel, Conv | Depthwise)
    return Step(replace(kernel, input_dtype=dtypes[0], **changes), inputs, output, step.nodes)  # type: ignore[arg-type]


def _load(node: Expr, dtypes: list[str]) -> Expr | None:
    if node.op != "load" or node.dtype != FULL or dtypes[node.args[0]] != HALF:
        return None
    return scalar.cast(scalar.load(node.args[0], node.args[1], HALF), FULL)
