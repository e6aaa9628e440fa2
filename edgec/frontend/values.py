"""Reading the values of a graph: their shapes, their constants, and both as text for messages."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

_INVENTED_AXIS = "unk__"
"""How ONNX's shape inference begins the names of axes that it cannot tell."""

_UNKNOWN_AXIS = "?"
"""How PaddlePaddle names every axis that it cannot tell."""


def is_static(value: ir.Value) -> bool:
    """Whether the value has a dtype and a shape of integers."""
    return value.dtype is not None and value.shape is not None and value.shape.is_static()


def shape_of(value: ir.Value | None) -> tuple[int, ...]:
    """The static shape of a value that is present."""
    assert value is not None and value.shape is not None
    return value.shape.numpy()


def constant_of(value: ir.Value | None) -> np.ndarray | None:
    """What the value holds, if it is a constant; None where it is computed or absent."""
    return None if value is None or value.const_value is None else value.const_value.numpy()


def input_of(node: ir.Node, index: int) -> ir.Value | None:
    """The input at ``index``; None where an optional one is absent."""
    return node.inputs[index] if index < len(node.inputs) else None


def shape_text(value: ir.Value | None) -> str:
    """The value's shape for a message: ``[N,3,32,32]``, ``[]`` for a scalar, ``[?]`` where it is unknown."""
    if value is None or value.shape is None:
        return "[?]"
    return "[" + ",".join(_axis_text(axis) for axis in value.shape) + "]"


def node_shapes(node: ir.Node) -> str:
    """Input and output shapes of the node, for a message: ``[1,3,8,8] [4,3,3,3] -> [1,4,6,6]``."""
    inputs = " ".join(shape_text(value) for value in node.inputs if value is not None)
    return f"{inputs} -> {' '.join(shape_text(value) for value in node.outputs)}".strip()


def inputs_text(inputs: Sequence[ir.Value]) -> str:
    """Names and shapes of a graph's inputs, for a message: ``'a' [1,3], 'b' [N]``."""
    return ", ".join(f"'{value.name}' {shape_text(value)}" for value in inputs) or "none"


def axis_name(axis: int | ir.SymbolicDim) -> str | None:
    """The name that makes axes equal wherever it stands; None for a number, and for what only says "unknown"."""
    return None if isinstance(axis, int) or axis.value == _UNKNOWN_AXIS else axis.value


def _axis_text(axis: int | ir.SymbolicDim) -> str:
    if isinstance(axis, int):
        return str(axis)
    return _UNKNOWN_AXIS if axis.value is None or axis.value.startswith(_INVENTED_AXIS) else axis.value


def is_used(value: ir.Value) -> bool:
    """Whether anything reads ``value``; an optional output that is left out is read by nothing."""
    return bool(value.uses()) or value.is_graph_output()
