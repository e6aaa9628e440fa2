"""Shapes that must fit each other but that ONNX's checker and shape inference do not compare.

A model that fails here would fail in any runtime, mostly only once it runs; the compiler refuses it first.
Every check gets a node with static shapes and returns what does not fit, or None.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from math import prod

import numpy as np
import onnx_ir as ir

from edgec.errors import Refusal, UnsupportedModelError
from edgec.frontend.values import constant_of, input_of, node_shapes, shape_of, shape_text

_LARGEST_INDEX = 2**31 - 1
"""Places in a tensor are computed in 32 bits."""


def reject_inconsistent_nodes(graph: ir.Graph) -> None:
    """Raise :class:`UnsupportedModelError` with every node of ``graph`` whose shapes do not fit."""
    refusals = []
    for node in graph:
        check = _CHECKS.get(node.op_type) if node.domain == "" else None
        reason = check(node) if check else None
        if reason:
            refusals.append(
                Refusal(str(node.name), node.op_type, node_shapes(node), reason, "the model is broken; export it again")
            )
    if refusals:
        raise UnsupportedModelError(refusals)


def _conv(node: ir.Node) -> str | None:
    data, weight = shape_of(node.inputs[0]), shape_of(node.inputs[1])
    groups = node.attributes.get_int("group", 1)
    if len(weight) != len(data):
        return f"its input has {len(data)} axes and its weight {len(weight)}"
    if groups < 1 or data[1] != weight[1] * groups or weight[0] % groups:
        return f"{data[1]} input channels do not fit the weight in {groups} groups"
    return _window(node, weight[2:]) or _per_channel(node, (2,), weight[0])


def _conv_transpose(node: ir.Node) -> str | None:
    data, weight = shape_of(node.inputs[0]), shape_of(node.inputs[1])
    groups = node.attributes.get_int("group", 1)
    if len(weight) != len(data):
        return f"its input has {len(data)} axes and its weight {len(weight)}"
    if groups < 1 or data[1] != weight[0] or weight[0] % groups:
        return f"{data[1]} input channels do not fit the weight in {groups} groups"
    return _window(node, weight[2:]) or _per_channel(node, (2,), weight[1] * groups)


def _window(node: ir.Node, kernel: Sequence[int]) -> str | None:
    """``kernel`` is what the weight says; empty where the operator has none."""
    declared = node.attributes.get_ints("kernel_shape", kernel)
    steps = [*node.attributes.get_ints("strides", ()), *node.attributes.get_ints("dilations", ())]
    if kernel and tuple(declared) != tuple(kernel):
        return f"kernel_shape {list(declared)} is not the weight's {list(kernel)}"
    if any(extent < 1 for extent in (*declared, *steps)):
        return "kernel, strides and dilations must be positive"
    if max((*declared, *steps, *node.attributes.get_ints("pads", ())), default=0) > _LARGEST_INDEX:
        return "kernel, strides, dilations and padding must be below 2³¹"
    return None if min(shape_of(node.outputs[0])) > 0 else "its window is larger than its padded input"


def _pool(node: ir.Node) -> str | None:
    kernel = node.attributes.get_ints("kernel_shape", ())
    pads = node.attributes.get_ints("pads", [0] * 2 * len(kernel))
    if any(pad >= extent for pad, extent in zip(pads, [*kernel, *kernel], strict=True)):
        return "its padding is as large as its window"
    return _window(node, ())


def _norm(node: ir.Node) -> str | None:
    return _per_channel(node, range(1, len(node.inputs)), shape_of(node.inputs[0])[1])


def _per_channel(node: ir.Node, indices: Iterable[int], channels: int) -> str | None:
    for value in (input_of(node, index) for index in indices):
        if value is not None and shape_of(value) != (channels,):
            return f"its parameter {shape_text(value)} is not one value a channel ({channels})"
    return None


def _gemm(node: ir.Node) -> str | None:
    return _broadcasts(input_of(node, 2), shape_of(node.outputs[0]))


def _prelu(node: ir.Node) -> str | None:
    return _broadcasts(node.inputs[1], shape_of(node.inputs[0]))


def _broadcasts(value: ir.Value | None, target: tuple[int, ...]) -> str | None:
    if value is None:
        return None
    try:
        fits = np.broadcast_shapes(shape_of(value), target) == target
    except ValueError:
        fits = False
    return None if fits else f"its parameter {shape_text(value)} does not broadcast to {list(target)}"


def _reshape(node: ir.Node) -> str | None:
    count, wanted = prod(shape_of(node.inputs[0])), prod(shape_of(node.outputs[0]))
    return None if count == wanted else f"{count} elements do not fill {wanted}"


def _gather(node: ir.Node) -> str | None:
    indices = constant_of(node.inputs[1])
    extent = shape_of(node.inputs[0])[node.attributes.get_int("axis", 0)]
    if indices is None or not indices.size:
        return None
    inside = -extent <= indices.min() and indices.max() < extent
    return None if inside else f"an index is outside the {extent} entries"


def _grid(node: ir.Node) -> str | None:
    """A scale for all elements, for each index of an axis, or for blocks along it; and as many zero points."""
    data, scale, zero = shape_of(node.inputs[0]), shape_of(node.inputs[1]), input_of(node, 2)
    axis = node.attributes.get_int("axis", 1)
    if zero is not None and prod(shape_of(zero)) != prod(scale):
        return f"its zero point {shape_text(zero)} does not fit its scale {shape_text(node.inputs[1])}"
    if prod(scale) == 1:
        return None
    if not -len(data) <= axis < len(data):
        return f"its axis {axis} is none of the {len(data)} axes of its input"
    if node.attributes.get_int("block_size", 0):
        return None if len(scale) == len(data) else f"its scales {list(scale)} are no blocks of {list(data)}"
    if len(scale) > 1 or scale == (data[axis],):
        return None  # what has scales for blocks and does not say how large they are is told so by its lowering
    return f"its scales {list(scale)} are not one for each of {data[axis]} indices"


def _cast(node: ir.Node) -> str | None:
    wanted = node.attributes.get_int("to", 0)
    return None if wanted and wanted in set(ir.DataType) else f"there is no dtype {wanted}"


_CHECKS: Mapping[str, Callable[[ir.Node], str | None]] = {
    "AveragePool": _pool,
    "BatchNormalization": _norm,
    "Cast": _cast,
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "DequantizeLinear": _grid,
    "Gather": _gather,
    "Gemm": _gemm,
    "InstanceNormalization": _norm,
    "LpPool": _pool,
    "MaxPool": _pool,
    "PRelu": _prelu,
    "QuantizeLinear": _grid,
    "Reshape": _reshape,
}
