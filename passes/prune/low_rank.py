"""Low-rank factorisation: one product becomes two thin ones, which lose the least of its outputs on samples.

y = Wᵀx with outputs of covariance WᵀCW is nearest, among all products of rank r, to U·Uᵀ·y, U the r leading
eigenvectors of that covariance (reduced-rank regression; for convolutions Zhang et al. 2016). A convolution keeps
its kernel in the first factor; the second is 1×1.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from edgec.frontend.values import constant_of, shape_of
from edgec.passes.prune.activations import Sample, distance, outputs
from edgec.passes.prune.compensation import Inputs, Statistics
from edgec.passes.prune.products import has_rows, in_copy, matrix, set_matrix
from edgec.passes.prune.rounding import vector_step
from edgec.passes.prune.rules import Linear
from edgec.passes.rewriting import new_constant

STEPS = (0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125)
"""Ranks at which a curve is measured, as shares of the rank that saves nothing."""


@dataclass(frozen=True)
class RankCurve:
    """What a layer costs at lower ranks.

    Attributes:
        linear: the layer.
        ranks: descending.
        distances: of the model's outputs when the layer alone has that rank.
    """

    linear: Linear
    ranks: tuple[int, ...]
    distances: tuple[float, ...]


def is_factorable(linear: Linear) -> bool:
    """Whether the product can become two: one group, its own weight, its outputs next to each other."""
    return has_rows(linear) and linear.groups == 1 and len(linear.weight.uses()) == 1 and linear.reading.operand == 0


def break_even(depth: int, width: int) -> float:
    """The rank at which two factors cost what the product of depth × width does."""
    return depth * width / (depth + width)


def measure_ranks(
    model: ir.Model, linears: Sequence[Linear], samples: Sequence[Sample], statistics: Statistics, multiple: int
) -> list[RankCurve]:
    """A curve for every layer that can be factorised, at ranks that are multiples where it is wide enough."""
    wanted = outputs(model, samples)
    found = []
    for linear in linears:
        if linear in statistics and is_factorable(linear):
            _, depth, width = matrix(linear).shape
            ranks = tuple(_ranks(break_even(depth, width), multiple))
            if ranks:
                away = [_distance(model, linear, rank, samples, statistics[linear], wanted) for rank in ranks]
                found.append(RankCurve(linear, ranks, tuple(np.maximum.accumulate(away).tolist())))
    return found


def _ranks(limit: float, multiple: int) -> Iterator[int]:
    """Ranks below ``limit``, descending, each once."""
    step, last = vector_step(multiple, int(limit)), 0
    for share in STEPS:
        rank = int(limit * share) // step * step
        if rank not in (0, last):
            yield rank
            last = rank


def _distance(
    model: ir.Model, linear: Linear, rank: int, samples: Sequence[Sample], inputs: Inputs,
    wanted: Sequence[np.ndarray],
) -> float:  # fmt: skip
    copy = model.clone()
    weights = matrix(linear)
    basis = leading_directions(weights[0], inputs.covariance[0], rank)
    twin = in_copy(linear, {str(node.name): node for node in copy.graph})
    set_matrix(twin, weights @ basis @ basis.T, inputs.mean)
    return distance(outputs(copy, samples), wanted)


def leading_directions(weights: np.ndarray, covariance: np.ndarray, rank: int) -> np.ndarray:
    """float64 [width, rank]: orthonormal, the directions in which the outputs of ``weights`` vary most."""
    spread = weights.T @ covariance @ weights
    return np.linalg.eigh(spread)[1][:, ::-1][:, :rank]


def factorise(linear: Linear, inputs: Inputs, rank: int) -> None:
    """Replace the product by two, of ``rank`` channels in between."""
    node, graph = linear.node, linear.node.graph
    assert isinstance(graph, ir.Graph)
    weights, old = matrix(linear), constant_of(linear.weight)
    assert old is not None
    basis = leading_directions(weights[0], inputs.covariance[0], rank)
    set_matrix(linear, weights @ basis @ basis.T, inputs.mean)
    first = _narrow(linear, weights[0] @ basis, old)
    second = np.ascontiguousarray(basis.T if linear.out_axis else basis).astype(old.dtype)
    second = second.reshape(*second.shape, *(1,) * (old.ndim - 2))
    middle = ir.node(
        "Conv" if node.op_type == "Conv" else node.op_type,
        [linear.source, new_constant(first, f"{linear.weight.name}_narrow", graph)],
        dict(node.attributes) if node.op_type != "Gemm" else {"transB": node.attributes.get_int("transB", 0)},
        name=f"{node.name}/narrow",
    )
    middle.outputs[0].name = f"{node.outputs[0].name}_narrow"
    graph.insert_before(node, middle)
    node.replace_input_with(0, middle.outputs[0])
    node.replace_input_with(1, new_constant(second, f"{linear.weight.name}_wide", graph))
    if node.op_type == "Conv":
        _make_pointwise(node, len(shape_of(linear.weight)) - 2)


def _narrow(linear: Linear, found: np.ndarray, old: np.ndarray) -> np.ndarray:
    """The first factor's weight from its matrix [depth, rank], laid out as ``old``."""
    moved = np.moveaxis(old, (linear.out_axis, linear.in_axis), (0, 1))
    rows = found.T.reshape(found.shape[1], *moved.shape[1:])
    return np.ascontiguousarray(np.moveaxis(rows, (0, 1), (linear.out_axis, linear.in_axis)), old.dtype)


def _make_pointwise(node: ir.Node, axes: int) -> None:
    """Let a convolution be 1×1 without strides, pads or dilations."""
    for name in ("auto_pad", "pads", "strides", "dilations", "kernel_shape"):
        node.attributes.pop(name, None)
    node.attributes["kernel_shape"] = ir.AttrInt64s("kernel_shape", [1] * axes)
