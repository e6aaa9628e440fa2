"""Nodes that hand on an input unchanged.

A candidate counts only if its output has the shape and dtype of the input it would hand on; each entry of
``_NO_OPS`` decides what is left to decide then.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import prod

import numpy as np
import onnx_ir as ir

from edgec.frontend.values import constant_of, input_of, is_static, shape_of


def bypass_no_ops(graph: ir.Graph) -> None:
    """Connect the readers of each no-op to what it hands on.

    Where an output of the graph would lose its name (it hands on an input, a constant or another output), the
    node stays as an Identity.
    """
    for node in graph:
        kept = _passed_through(node)
        if kept is None:
            continue
        output = node.outputs[0]
        if not output.is_graph_output():
            output.replace_all_uses_with(kept)
            graph.remove(node, safe=True)
        elif kept.producer() is None or kept.is_graph_output():
            _become_identity(node, kept)
        else:
            output.replace_all_uses_with(kept, replace_graph_outputs=True)
            graph.remove(node, safe=True)
            kept.name = output.name


def _become_identity(node: ir.Node, kept: ir.Value) -> None:
    node.op_type = "Identity"
    node.attributes.clear()
    node.resize_inputs(1)
    node.replace_input_with(0, kept)
    node.resize_outputs(1)


def _passed_through(node: ir.Node) -> ir.Value | None:
    """The input that the node hands on unchanged; None where it computes something."""
    find = _NO_OPS.get(node.op_type) if node.domain == "" else None
    if find is None or any(value.uses() or value.is_graph_output() for value in node.outputs[1:]):
        return None
    kept = find(node)
    output = node.outputs[0]
    if kept is None or not is_static(kept) or not is_static(output):
        return None
    return kept if kept.shape == output.shape and kept.dtype == output.dtype else None


def _first(node: ir.Node) -> ir.Value | None:
    """For operators that only relabel: an output of the same shape and dtype is the input."""
    return node.inputs[0]


def _dropout(node: ir.Node) -> ir.Value | None:
    in_training = input_of(node, 2)
    return node.inputs[0] if in_training is None or _all_equal(constant_of(in_training), False) else None


def _transpose(node: ir.Node) -> ir.Value | None:
    """Axes of extent 1 may move; the others must keep their order."""
    shape = shape_of(node.inputs[0])
    perm = node.attributes.get_ints("perm", range(len(shape))[::-1])
    moved = [axis for axis in perm if shape[axis] != 1]
    return node.inputs[0] if moved == sorted(moved) else None


def _pad(node: ir.Node) -> ir.Value | None:
    return node.inputs[0] if _all_equal(constant_of(input_of(node, 1)), 0) else None


def _slice(node: ir.Node) -> ir.Value | None:
    """With the output as large as the input only a negative step can still reorder."""
    if input_of(node, 4) is None:
        return node.inputs[0]
    steps = constant_of(node.inputs[4])
    return node.inputs[0] if steps is not None and bool((steps > 0).all()) else None


def _concat(node: ir.Node) -> ir.Value | None:
    filled = [value for value in node.inputs if prod(shape_of(value))]
    return filled[0] if len(filled) == 1 else None


def _single(node: ir.Node) -> ir.Value | None:
    return node.inputs[0] if len(node.inputs) == 1 else None


def _neutral(element: int, *, commutes: bool) -> Callable[[ir.Node], ir.Value | None]:
    """For a binary operator: the other operand, where one is the constant neutral ``element``."""

    def find(node: ir.Node) -> ir.Value | None:
        if _all_equal(constant_of(input_of(node, 1)), element):
            return node.inputs[0]
        return node.inputs[1] if commutes and _all_equal(constant_of(input_of(node, 0)), element) else None

    return find


def _where(node: ir.Node) -> ir.Value | None:
    condition = constant_of(node.inputs[0])
    if condition is None or not (condition.all() or not condition.any()):
        return None
    return node.inputs[1] if condition.all() else node.inputs[2]


def _clip(node: ir.Node) -> ir.Value | None:
    return node.inputs[0] if not any(node.inputs[1:]) else None


def _pool(node: ir.Node) -> ir.Value | None:
    windows = [*node.attributes.get_ints("kernel_shape", ()), *node.attributes.get_ints("strides", ())]
    return node.inputs[0] if set(windows) == {1} else None


def _resize(node: ir.Node) -> ir.Value | None:
    cropped = node.attributes.get_string("coordinate_transformation_mode", "") == "tf_crop_and_resize"
    exact = input_of(node, 3) is not None or _all_equal(constant_of(input_of(node, 2)), 1)
    return node.inputs[0] if exact and not cropped else None


def _all_equal(constant: np.ndarray | None, wanted: int | bool) -> bool:
    return constant is not None and bool(np.all(constant == wanted))


_RELABELS = (
    *("Cast", "CastLike", "Identity"),
    *("Expand", "Flatten", "Reshape", "Split", "Squeeze", "Tile", "Unsqueeze"),
    *("DepthToSpace", "SpaceToDepth"),
    *("GlobalAveragePool", "GlobalMaxPool"),
    *("ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd", "ReduceSum"),
)

_NO_OPS: Mapping[str, Callable[[ir.Node], ir.Value | None]] = {
    **dict.fromkeys(_RELABELS, _first),
    **dict.fromkeys(("Max", "Mean", "Min", "Sum"), _single),
    "Add": _neutral(0, commutes=True),
    "Sub": _neutral(0, commutes=False),
    "Mul": _neutral(1, commutes=True),
    "Div": _neutral(1, commutes=False),
    "Pow": _neutral(1, commutes=False),
    "AveragePool": _pool,
    "MaxPool": _pool,
    "Clip": _clip,
    "Concat": _concat,
    "Dropout": _dropout,
    "Pad": _pad,
    "Resize": _resize,
    "Slice": _slice,
    "Transpose": _transpose,
    "Where": _where,
}
