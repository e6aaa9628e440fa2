"""Fuse a normalisation that is spelled out in means, differences and roots into one operator.

What all of them share is

    n = d / √(mean(d², axes) + ε),   d = x − mean(x, axes)  or, without centring,  d = x
    y = n · scale + bias

The root divides, or its reciprocal multiplies; d² is a product or a power; scale and bias are constants, may
be absent, and scale may be merged with the reciprocal r first, as in x·(r·scale) + (bias − mean·(r·scale)).
What y is follows from the axes and from where scale and bias vary:

    LayerNormalization      the last axes; scale and bias within them
    InstanceNormalization   all axes behind the channels; scale and bias per channel
    RMSNormalization        the last axis, not centred; scale along it
    the first or the third between two transposes, where the only axis is that of the channels
    GroupNormalization      Reshape to [N, groups, …], one of the first two, Reshape back, scale and bias per
                            channel

Doubles stay as they are: ONNX Runtime has not all of these operators for them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from math import prod
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from edgec.frontend.values import constant_of, input_of, shape_of
from edgec.passes.functions import call
from edgec.passes.fuse import FusePass, Match, initializer, operands, producer, scalar_of
from edgec.passes.rewriting import Refused


class FuseNorms(FusePass):
    """Recognises layer, RMS, instance and group norms."""

    name: ClassVar[str] = "fuse-norms"

    def match(self, model: ir.Model, node: ir.Node) -> Match | None:
        if node.op_type not in ("Add", "Mul", "Div", "Reshape") or node.outputs[0].dtype is ir.DataType.DOUBLE:
            return None
        norm = _read_affine(node.outputs[0])
        if norm is None:
            return None
        absorbed = [each for each in dict.fromkeys(norm.nodes) if each is not node]
        if isinstance(norm, _Grouped):
            if not _vary_along(norm, (1,)):
                return None
            return Match("GroupNormalization", absorbed, lambda: [_group_norm(model, node, norm)])
        kind = _kind(norm)
        if kind is None and norm.scale is None and norm.bias is None:
            raise Refused(
                f"it normalises over axes {list(norm.axes)} of {len(norm.shape)}, which no operator of ONNX does"
            )
        if kind is None:
            return None
        return Match(kind.operator, absorbed, lambda: _norm(model, node, norm, kind))


# ---- reading ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Norm:
    """A normalisation read so far: its nodes, the last first, and its constants, still in their own shapes."""

    source: ir.Value
    axes: tuple[int, ...]
    epsilon: float
    centred: bool
    nodes: tuple[ir.Node, ...]
    scale: np.ndarray | None = None
    bias: np.ndarray | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        return shape_of(self.source)


@dataclass(frozen=True)
class _Grouped:
    """A group normalisation: ``source`` [N, C, …], scale and bias in their own shapes."""

    source: ir.Value
    groups: int
    epsilon: float
    nodes: tuple[ir.Node, ...]
    scale: np.ndarray | None = None
    bias: np.ndarray | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        return shape_of(self.source)


def _read_affine(output: ir.Value) -> _Norm | _Grouped | None:
    """normal · scale + bias, where either may be absent."""
    added = producer(output, "Add")
    if added is not None:
        for value, constant in operands(added):
            bias = constant_of(value) if constant_of(constant) is None else constant_of(constant)
            inner = constant if bias is constant_of(value) else value
            norm = None if bias is None or inner.const_value is not None else _read_scaled(inner)
            if norm is not None:
                return _keeping_shape(replace(norm, bias=bias, nodes=(added, *norm.nodes)), output)
        return _read_merged(added)
    norm = _read_scaled(output)
    return None if norm is None else _keeping_shape(norm, output)


def _keeping_shape(norm: _Norm | _Grouped, output: ir.Value) -> _Norm | _Grouped | None:
    """Scale and bias must not enlarge what they are applied to."""
    return norm if shape_of(output) == norm.shape else None


def _read_scaled(output: ir.Value) -> _Norm | _Grouped | None:
    norm = _read_normal(output) or _read_grouped(output)
    node = producer(output, "Mul")
    if norm is not None or node is None:
        return norm
    for value, constant in operands(node):
        scale = constant_of(constant)
        norm = None if scale is None else _read_normal(value) or _read_grouped(value)
        if norm is not None and norm.scale is None:
            return replace(norm, scale=scale, nodes=(node, *norm.nodes))
    return None


@dataclass(frozen=True)
class _Root:
    """√(mean(d², axes) + ε), and the nodes that compute it."""

    deviation: ir.Value
    axes: tuple[int, ...]
    epsilon: float
    nodes: tuple[ir.Node, ...]
    scale: np.ndarray | None = None


def _read_normal(output: ir.Value) -> _Norm | None:
    """d / root or d · (1 / root), the latter perhaps already with the scale in it."""
    node = producer(output, "Div", "Mul")
    if node is None:
        return None
    if node.op_type == "Div":
        pairs = [(node.inputs[0], _read_root(node.inputs[1]))]
    else:
        pairs = [(value, _read_inverse(other)) for value, other in operands(node)]
    for value, root in pairs:
        if root is not None and value is root.deviation:
            return replace(_centred(root), nodes=(node, *_centred(root).nodes), scale=root.scale)
    return None


def _centred(root: _Root) -> _Norm:
    """With d = x − mean(x, axes) it is x that is normalised, else d itself."""
    node = producer(root.deviation, "Sub")
    mean = None if node is None else _read_mean(node.inputs[1], "ReduceMean")
    if node is not None and mean is not None and mean[0] is node.inputs[0] and mean[1] == root.axes:
        return _Norm(mean[0], root.axes, root.epsilon, True, (*root.nodes, node, *mean[2]))
    return _Norm(root.deviation, root.axes, root.epsilon, False, root.nodes)


def _read_root(value: ir.Value | None) -> _Root | None:
    node = producer(value, "Sqrt", "Pow")
    if node is None or (node.op_type == "Pow" and scalar_of(node.inputs[1]) != 0.5):
        return None
    return _read_variance(node.inputs[0], (node,))


def _read_inverse(value: ir.Value | None) -> _Root | None:
    """1 / root, or scale / root."""
    node = producer(value, "Reciprocal", "Div", "Pow", "Mul")
    if node is None:
        return None
    match node.op_type:
        case "Reciprocal":
            root = _read_root(node.inputs[0])
        case "Div":
            root = _read_root(node.inputs[1])
            scale = constant_of(node.inputs[0])
            if root is None or scale is None:
                return None
            root = root if scale.size == 1 and scale.reshape(-1)[0] == 1 else replace(root, scale=scale)
        case "Pow":
            root = _read_variance(node.inputs[0], ()) if scalar_of(node.inputs[1]) == -0.5 else None
        case _:
            return _read_scaled_inverse(node)
    return None if root is None else replace(root, nodes=(node, *root.nodes))


def _read_scaled_inverse(node: ir.Node) -> _Root | None:
    for value, constant in operands(node):
        scale = constant_of(constant)
        root = None if scale is None else _read_inverse(value)
        if root is not None and root.scale is None:
            return replace(root, scale=scale, nodes=(node, *root.nodes))
    return None


def _read_variance(value: ir.Value | None, nodes: tuple[ir.Node, ...]) -> _Root | None:
    """mean(d²) + ε."""
    node = producer(value, "Add")
    for mean, constant in operands(node) if node is not None else ():
        epsilon, found = scalar_of(constant), _read_mean(mean, "ReduceMean")
        square = None if found is None else producer(found[0], "Mul", "Pow")
        if epsilon is None or found is None or square is None or node is None:
            continue
        same = square.inputs[0] is square.inputs[1] if square.op_type == "Mul" else scalar_of(square.inputs[1]) == 2
        if same and square.inputs[0] is not None:
            return _Root(square.inputs[0], found[1], epsilon, (*nodes, node, *found[2], square))
    return None


def _read_mean(value: ir.Value | None, op_type: str) -> tuple[ir.Value, tuple[int, ...], tuple[ir.Node, ...]] | None:
    """What is averaged, the axes, which stay as unit axes, and the node."""
    node = producer(value, op_type)
    if node is None or node.inputs[0] is None or not node.attributes.get_int("keepdims", 1):
        return None
    given, rank = input_of(node, 1), len(shape_of(node.inputs[0]))
    axes = constant_of(given)
    if axes is None:
        return None
    return node.inputs[0], tuple(sorted(int(axis) % rank for axis in axes.reshape(-1))), (node,)


def _read_merged(added: ir.Node) -> _Norm | None:
    """x·m + (bias − mean·m) with m = r·scale."""
    for left, right in operands(added):
        scaled, shift = producer(left, "Mul"), producer(right, "Sub")
        for x, factor in operands(scaled) if scaled is not None and shift is not None else ():
            assert scaled is not None and shift is not None
            root, bias = _read_inverse(factor), constant_of(shift.inputs[0])
            moved = producer(shift.inputs[1], "Mul")
            if root is None or bias is None or moved is None or factor not in moved.inputs:
                continue
            norm = _centred(root)
            mean = next((value for value in moved.inputs if value is not factor), None)
            found = _read_mean(mean, "ReduceMean")
            if norm.centred and norm.source is x and found is not None and found[:2] == (x, norm.axes):
                nodes = (added, scaled, shift, moved, *norm.nodes, *found[2])
                return replace(norm, nodes=nodes, scale=root.scale, bias=bias)
    return None


def _read_grouped(output: ir.Value) -> _Grouped | None:
    """Reshape back of the norm of a Reshape that splits the channels into groups."""
    back = producer(output, "Reshape")
    inner = None if back is None else producer(back.inputs[0], "InstanceNormalization", "LayerNormalization")
    split = None if inner is None else producer(inner.inputs[0], "Reshape")
    if back is None or inner is None or split is None or split.inputs[0] is None:
        return None
    source, shape = split.inputs[0], shape_of(split.inputs[0])
    groups = _group_count(inner, shape)
    if groups is None or len(shape) < 3 or shape_of(output) != shape or shape[1] % groups:
        return None
    if not (_all_equal(input_of(inner, 1), 1) and _all_equal(input_of(inner, 2), 0)):
        return None
    epsilon = inner.attributes.get_float("epsilon", 1e-5)
    return _Grouped(source, groups, epsilon, (back, inner, split))


def _all_equal(value: ir.Value | None, wanted: float) -> bool:
    """Whether the value is absent, or a constant of ``wanted`` only."""
    constant = constant_of(value)
    return value is None or (constant is not None and bool((constant == wanted).all()))


def _group_count(inner: ir.Node, shape: Sequence[int]) -> int | None:
    """Groups per image, where each slice that ``inner`` normalises is one group of one image."""
    grouped = shape_of(inner.inputs[0])
    if inner.op_type == "InstanceNormalization":
        return grouped[1] if grouped[0] == shape[0] else None
    axis = inner.attributes.get_int("axis", -1) % len(grouped)
    slices = prod(grouped[:axis])
    return slices // shape[0] if slices % shape[0] == 0 else None


# ---- writing ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Kind:
    """The operator that a normalisation is, and the shape of its constants; ``moved``: between transposes."""

    operator: str
    constants: tuple[int, ...]
    attributes: dict[str, int] = field(default_factory=dict)
    moved: bool = False


def _kind(norm: _Norm) -> _Kind | None:
    shape, rank = norm.shape, len(norm.shape)
    if norm.axes == tuple(range(norm.axes[0], rank)) and _vary_along(norm, norm.axes):
        if norm.centred:
            return _Kind("LayerNormalization", shape[norm.axes[0] :], {"axis": norm.axes[0] - rank})
        return _Kind("RMSNormalization", shape[-1:]) if len(norm.axes) == 1 and norm.bias is None else None
    if not _vary_along(norm, (1,)):
        return None
    if norm.axes == tuple(range(2, rank)) and norm.centred:
        return _Kind("InstanceNormalization", shape[1:2])
    if norm.axes == (1,) and (norm.centred or norm.bias is None):
        operator = "LayerNormalization" if norm.centred else "RMSNormalization"
        return _Kind(operator, shape[1:2], {"axis": -1} if norm.centred else {}, moved=True)
    return None


def _vary_along(norm: _Norm | _Grouped, axes: Iterable[int]) -> bool:
    """Whether scale and bias vary along ``axes`` of the source only."""
    kept, rank = set(axes), len(norm.shape)
    arrays = [array for array in (norm.scale, norm.bias) if array is not None]
    return all(
        array.ndim <= rank and all(e == 1 or rank - array.ndim + i in kept for i, e in enumerate(array.shape))
        for array in arrays
    )


def _norm(model: ir.Model, last: ir.Node, norm: _Norm, kind: _Kind) -> list[ir.Node]:
    if not kind.moved:
        return [_operator(model, last, norm, kind, norm.source)]
    rank = len(norm.shape)
    perm, back = (0, *range(2, rank), 1), (0, rank - 1, *range(1, rank - 1))
    first = ir.node("Transpose", [norm.source], {"perm": perm}, name=f"{last.name}_channels_last")
    fused = _operator(model, last, norm, kind, first.outputs[0])
    return [first, fused, ir.node("Transpose", fused.outputs, {"perm": back}, name=f"{last.name}_channels_first")]


def _operator(model: ir.Model, last: ir.Node, norm: _Norm, kind: _Kind, source: ir.Value) -> ir.Node:
    scale = _constant(model, last, "scale", norm, norm.scale, kind.constants, 1)
    if kind.operator == "RMSNormalization":
        return call(model, kind.operator, [source, scale], {"epsilon": norm.epsilon}, last.name)
    bias = _constant(model, last, "bias", norm, norm.bias, kind.constants, 0)
    attributes = {**kind.attributes, "epsilon": norm.epsilon}
    return ir.node(kind.operator, [source, scale, bias], attributes, name=last.name)


def _group_norm(model: ir.Model, last: ir.Node, norm: _Grouped) -> ir.Node:
    channels = norm.shape[1:2]
    scale = _constant(model, last, "scale", norm, norm.scale, channels, 1)
    bias = _constant(model, last, "bias", norm, norm.bias, channels, 0)
    attributes = {"num_groups": norm.groups, "epsilon": norm.epsilon}
    return call(model, "GroupNormalization", [norm.source, scale, bias], attributes, last.name)


def _constant(
    model: ir.Model,
    last: ir.Node,
    name: str,
    norm: _Norm | _Grouped,
    array: np.ndarray | None,
    shape: tuple[int, ...],
    neutral: float,
) -> ir.Value:
    """``array`` or, where there is none, ``neutral`` as a constant of ``shape``."""
    assert norm.source.dtype is not None
    given = np.asarray(neutral, norm.source.dtype.numpy()) if array is None else array
    squeezed = given.reshape([extent for extent in given.shape if extent > 1])
    fitted = given.reshape(given.shape[-len(shape) :]) if len(shape) > 1 and given.ndim >= len(shape) else squeezed
    return initializer(model, f"{last.name}_{name}", np.broadcast_to(fitted, shape).copy())
