"""Removal: a graph without some units, smaller and dense.

Constants are cut along every axis that a unit shortens. What counts indices (the shape of a Reshape, the cuts of a
Split, the number of groups) is rewritten to what is left.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as common_passes

from edgec.frontend.shapes import forget_shapes, infer_shapes
from edgec.frontend.values import constant_of, input_of, shape_of
from edgec.passes.prune.coupling import Axis, Unit
from edgec.passes.prune.rules import pad_widths, slice_bounds
from edgec.passes.rewriting import new_constant


class Kept:
    """Which indices of every axis are left when some units go."""

    def __init__(self, units: Iterable[Unit]) -> None:
        self._masks: dict[Axis, np.ndarray] = {}
        for unit in units:
            for (value, axis), cut in unit.cuts.items():
                self._masks.setdefault((value, axis), np.ones(shape_of(value)[axis], bool))[cut] = False

    def mask(self, value: ir.Value, axis: int) -> np.ndarray:
        """bool, as long as the axis: what is left of it."""
        found = self._masks.get((value, axis))
        return np.ones(shape_of(value)[axis], bool) if found is None else found

    def count(self, value: ir.Value, axis: int) -> int:
        """How many indices are left."""
        found = self._masks.get((value, axis))
        return shape_of(value)[axis] if found is None else int(found.sum())

    def shape(self, value: ir.Value) -> tuple[int, ...]:
        """The value's shape without what goes."""
        return tuple(self.count(value, axis) for axis in range(len(shape_of(value))))

    def axes(self) -> Mapping[Axis, np.ndarray]:
        """The mask of every axis that shrinks."""
        return self._masks

    def array(self, value: ir.Value) -> np.ndarray:
        """What is left of a constant."""
        array = constant_of(value)
        assert array is not None
        for axis in range(array.ndim):
            if (value, axis) in self._masks:
                array = array.compress(self._masks[value, axis], axis)
        return array


def remove_units(model: ir.Model, units: Iterable[Unit]) -> None:
    """Cut the units out of ``model``, whose coupling they are of, in place; every axis must keep an index."""
    kept = Kept(units)
    touched = {value for value, _ in kept.axes()}
    for node in list(model.graph):
        rewrite = _REWRITES.get(node.op_type) if node.domain in ("", "edgec") else None
        if rewrite is not None and touched.intersection((*node.inputs, *node.outputs)):
            rewrite(node, kept)
    for value in touched:
        if value.const_value is not None:
            set_constant(value, kept.array(value))
    forget_shapes(model)
    infer_shapes(model)
    common_passes.RemoveUnusedNodesPass()(model)


def set_constant(value: ir.Value, array: np.ndarray) -> None:
    """Let an initialiser hold ``array``."""
    value.const_value = ir.tensor(np.ascontiguousarray(array), name=value.name)
    value.shape = ir.Shape(array.shape)


Rewrite = Callable[[ir.Node, Kept], None]


def _replace_input(node: ir.Node, index: int, array: np.ndarray) -> None:
    """Give the node a constant of its own as input ``index``."""
    graph = node.graph
    assert isinstance(graph, ir.Graph)
    if len(node.inputs) <= index:
        node.resize_inputs(index + 1)
    node.replace_input_with(index, new_constant(array, f"{node.name}_{node.op_type.lower()}_{index}", graph))


def _reshape(node: ir.Node, kept: Kept) -> None:
    _replace_input(node, 1, np.array(kept.shape(node.outputs[0]), np.int64))


def _conv(node: ir.Node, kept: Kept) -> None:
    source, weight = node.inputs[:2]
    assert source is not None and weight is not None
    if node.attributes.get_int("group", 1) > 1:
        node.attributes["group"] = ir.AttrInt64("group", kept.count(source, 1) // kept.count(weight, 1))


def _conv_transpose(node: ir.Node, kept: Kept) -> None:
    weight = node.inputs[1]
    assert weight is not None
    if node.attributes.get_int("group", 1) > 1:
        node.attributes["group"] = ir.AttrInt64("group", kept.count(node.outputs[0], 1) // kept.count(weight, 1))


def _group_norm(node: ir.Node, kept: Kept) -> None:
    groups = node.attributes.get_int("num_groups", 1)
    output = node.outputs[0]
    left = groups * kept.count(output, 1) // shape_of(output)[1]
    node.attributes["num_groups"] = ir.AttrInt64("num_groups", left)


def _split(node: ir.Node, kept: Kept) -> None:
    axis = node.attributes.get_int("axis", 0) % len(shape_of(node.outputs[0]))
    node.attributes.pop("num_outputs", None)
    _replace_input(node, 1, np.array([kept.count(output, axis) for output in node.outputs], np.int64))


def _slice(node: ir.Node, kept: Kept) -> None:
    source = node.inputs[0]
    assert source is not None
    bounds = slice_bounds(node)
    starts, ends = [], []
    for axis, cut in bounds:
        if cut.step != 1:
            starts.append(cut.start)
            ends.append(np.iinfo(np.int64).min if cut.stop is None else cut.stop)
            continue
        first, last, _ = cut.indices(shape_of(source)[axis])
        mask = kept.mask(source, axis)
        starts.append(int(mask[:first].sum()))
        ends.append(int(mask[:last].sum()))
    arrays = (starts, ends, [axis for axis, _ in bounds], [cut.step for _, cut in bounds])
    for index, numbers in enumerate(arrays, 1):
        _replace_input(node, index, np.array(numbers, np.int64))


def _pad(node: ir.Node, kept: Kept) -> None:
    widths = pad_widths(node)
    before, after = [], []
    for axis, (low, high) in widths.items():
        mask = kept.mask(node.outputs[0], axis)
        if mask.all():
            before.append(low)
            after.append(high)
        else:
            before.append(int(mask[:low].sum()))
            after.append(int(mask[len(mask) - high :].sum()))
    _replace_input(node, 1, np.array([*before, *after], np.int64))
    if input_of(node, 3) is not None:
        node.replace_input_with(3, None)


def _gather(node: ir.Node, kept: Kept) -> None:
    indices = constant_of(node.inputs[1])
    source = node.inputs[0]
    assert source is not None
    if indices is None or indices.ndim != 1:
        return
    axis = node.attributes.get_int("axis", 0) % len(shape_of(source))
    mask = kept.mask(source, axis)
    places = np.cumsum(mask) - 1
    left = indices[mask[indices]]
    _replace_input(node, 1, places[left % len(mask)].astype(indices.dtype))


def _resize(node: ir.Node, kept: Kept) -> None:
    """Sizes, where they are given, name every axis; factors stay as they are."""
    if constant_of(input_of(node, 3)) is not None and "axes" not in node.attributes:
        _replace_input(node, 3, np.array(kept.shape(node.outputs[0]), np.int64))


_REWRITES: Mapping[str, Rewrite] = {
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "Expand": _reshape,
    "Gather": _gather,
    "GroupNormalization": _group_norm,
    "Pad": _pad,
    "Reshape": _reshape,
    "Resize": _resize,
    "Slice": _slice,
    "Split": _split,
}
