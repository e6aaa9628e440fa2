"""Simplify: compute at compile time what does not depend on the inputs, and drop what does nothing.

In order, until nothing changes:

1. constant folding: a node whose inputs are all constants becomes an initialiser; ``If`` with a constant
   condition becomes its branch; shape arithmetic disappears, because every shape is static;
2. no-ops: a node whose output equals its input bit for bit is bypassed (see ``_NO_OPS``);
3. chains: Transpose∘Transpose, Reshape∘Reshape, Unsqueeze∘Unsqueeze and widening Cast∘Cast become one node;
4. common subexpressions and equal initialisers are merged, and what nobody reads is removed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import prod
from typing import ClassVar

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as common_passes
from onnxscript.optimizer import fold_constants
from onnxscript.rewriter import RewriteRuleSet
from onnxscript.rewriter.rules.common import (
    cast_cast_rule,
    reshape_reshape_rule,
    transpose_transpose_rule,
    unsqueeze_unsqueeze_rule,
)

from edgec.errors import Refusal
from edgec.passes.base import Pass
from edgec.shapes import infer_shapes, is_static

_LARGEST_INPUT = 2**31
_LARGEST_GROWTH = 2**20
"""Elements by which one folded node may enlarge the model: 4 MB of float32. Beyond that (an expanded
constant, say) computing it at run time costs less than shipping it."""

_ROUNDS = 8
"""Each round can open new folds to the next; models in the wild settle in two or three."""


class Simplify(Pass):
    """Folds constants, bypasses no-ops, merges equal nodes and removes unused ones."""

    name: ClassVar[str] = "simplify"

    def transform(self, model: ir.Model) -> tuple[int, Sequence[Refusal]]:
        """Counts the nodes that are gone; there is nothing to refuse."""
        nodes = len(model.graph)
        for _ in range(_ROUNDS):
            if not _simplify_once(model):
                break
        common_passes.NameFixPass()(model)
        return nodes - len(model.graph), ()


def _simplify_once(model: ir.Model) -> bool:
    changed = [_fold(model), _bypass_no_ops(model), _merge_chains(model)]
    changed += [
        clean(model).modified
        for clean in (
            common_passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
            common_passes.LiftSubgraphInitializersToMainGraphPass(),
            common_passes.DeduplicateHashedInitializersPass(),
            common_passes.CommonSubexpressionEliminationPass(),
            common_passes.RemoveUnusedNodesPass(),
            common_passes.RemoveUnusedOpsetsPass(),
        )
    ]
    if any(changed):
        infer_shapes(model)
    return any(changed)


def _fold(model: ir.Model) -> bool:
    quantised = _quantises_activations(model)

    def should_fold(node: ir.Node) -> bool:
        return not (quantised and node.op_type == "DequantizeLinear")

    return fold_constants(
        model,
        onnx_shape_inference=True,
        input_size_limit=_LARGEST_INPUT,
        output_size_limit=_LARGEST_GROWTH,
        should_fold=should_fold,
    ).modified


def _quantises_activations(model: ir.Model) -> bool:
    """Whether integers are part of the model's arithmetic, so that its integer weights must stay integers."""
    return any(
        node.op_type == "QuantizeLinear" and node.inputs[0] is not None and node.inputs[0].const_value is None
        for node in model.graph.all_nodes()
    )


def _merge_chains(model: ir.Model) -> bool:
    rules = [cast_cast_rule, reshape_reshape_rule, transpose_transpose_rule, unsqueeze_unsqueeze_rule]
    return bool(RewriteRuleSet(rules).apply_to_model(model))


def _bypass_no_ops(model: ir.Model) -> bool:
    """Turn each no-op into an Identity and eliminate those; one from graph input to graph output stays."""
    for node in model.graph:
        kept = _passed_through(node)
        if kept is not None and node.op_type != "Identity":
            _become_identity(node, kept)
    return common_passes.IdentityEliminationPass()(model).modified


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


def _constant(node: ir.Node, index: int) -> np.ndarray | None:
    """The constant at input ``index``; None where the input is absent or computed."""
    value = node.inputs[index] if index < len(node.inputs) else None
    return None if value is None or value.const_value is None else value.const_value.numpy()


def _first(node: ir.Node) -> ir.Value | None:
    """For operators that only relabel: an output of the same shape and dtype is the input."""
    return node.inputs[0]


def _dropout(node: ir.Node) -> ir.Value | None:
    has_mode = len(node.inputs) > 2 and node.inputs[2] is not None
    return node.inputs[0] if not has_mode or _all_equal(_constant(node, 2), False) else None


def _transpose(node: ir.Node) -> ir.Value | None:
    """Axes of extent 1 may move; the others must keep their order."""
    shape = _extents(node.inputs[0])
    perm = node.attributes.get_ints("perm", range(len(shape))[::-1])
    moved = [axis for axis in perm if shape[axis] != 1]
    return node.inputs[0] if moved == sorted(moved) else None


def _pad(node: ir.Node) -> ir.Value | None:
    return node.inputs[0] if _all_equal(_constant(node, 1), 0) else None


def _slice(node: ir.Node) -> ir.Value | None:
    """With the output as large as the input only a negative step can still reorder."""
    if len(node.inputs) < 5 or node.inputs[4] is None:
        return node.inputs[0]
    steps = _constant(node, 4)
    return node.inputs[0] if steps is not None and bool((steps > 0).all()) else None


def _concat(node: ir.Node) -> ir.Value | None:
    filled = [value for value in node.inputs if prod(_extents(value))]
    return filled[0] if len(filled) == 1 else None


def _single(node: ir.Node) -> ir.Value | None:
    return node.inputs[0] if len(node.inputs) == 1 else None


def _neutral(element: int, *, commutes: bool) -> Callable[[ir.Node], ir.Value | None]:
    """For a binary operator: the other operand, where one is the constant neutral ``element``."""

    def find(node: ir.Node) -> ir.Value | None:
        if _all_equal(_constant(node, 1), element):
            return node.inputs[0]
        return node.inputs[1] if commutes and _all_equal(_constant(node, 0), element) else None

    return find


def _clip(node: ir.Node) -> ir.Value | None:
    return node.inputs[0] if not any(node.inputs[1:]) else None


def _pool(node: ir.Node) -> ir.Value | None:
    windows = [*node.attributes.get_ints("kernel_shape", ()), *node.attributes.get_ints("strides", ())]
    return node.inputs[0] if set(windows) == {1} else None


def _resize(node: ir.Node) -> ir.Value | None:
    cropped = node.attributes.get_string("coordinate_transformation_mode", "") == "tf_crop_and_resize"
    by_sizes = len(node.inputs) > 3 and node.inputs[3] is not None
    exact = by_sizes or _all_equal(_constant(node, 2), 1)
    return node.inputs[0] if exact and not cropped else None


def _extents(value: ir.Value | None) -> tuple[int, ...]:
    assert value is not None and value.shape is not None
    return value.shape.numpy()


def _all_equal(constant: np.ndarray | None, wanted: int | bool) -> bool:
    return constant is not None and bool(np.all(constant == wanted))


_RELABELS = (
    "Cast CastLike DepthToSpace Expand Flatten GlobalAveragePool GlobalMaxPool Identity ReduceMax ReduceMean "
    "ReduceMin ReduceProd ReduceSum Reshape SpaceToDepth Split Squeeze Tile Unsqueeze"
).split()

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
}
"""Operators that can be no-ops, and how to find the input that is handed on. The caller has checked nothing
yet about shapes; a candidate counts only if the output has its shape and dtype."""
