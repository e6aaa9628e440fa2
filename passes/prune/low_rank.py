"""Low-rank factorisation: one product becomes two thin ones, which lose the least of its outputs on samples.

At the outputs: y = Wᵀx with outputs of covariance WᵀCW is nearest, among all products of rank r, to U·Uᵀ·y, U the r
leading eigenvectors of that covariance (reduced-rank regression; for convolutions Zhang et al. 2016). A convolution
keeps its kernel in the first factor; the second is 1×1.

At the inputs of a convolution: a 1×1 convolution leaves r channels of the input, and the kernel reads those. The
channels are the r leading left singular vectors of C_x^½·W, C_x the covariance of the channels at one position and W
[channels, taps · outputs]; from there least squares fit the kernel to the channels and the channels to the kernel in
turn. Activations vary in fewer directions than they have channels, and a direction that is dropped is dropped at all
taps.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod

import numpy as np
import onnx_ir as ir

from edgec.frontend.values import constant_of, shape_of
from edgec.passes.prune.activations import Sample, distance, outputs
from edgec.passes.prune.compensation import Inputs, Statistics, damped
from edgec.passes.prune.products import has_rows, in_copy, matrix, set_matrix, taps
from edgec.passes.prune.rounding import vector_step
from edgec.passes.prune.rules import Linear
from edgec.passes.rewriting import new_constant

STEPS = (0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125)
"""Ranks at which a curve is measured, as shares of the rank that saves nothing."""

ROUNDS = 2
"""How often the two factors at the inputs are fitted in turn."""

_ALTERNATED = 1024
"""Numbers in the first of them up to which they are, since they are the unknowns of one system of equations."""


@dataclass(frozen=True)
class Split:
    """How one product becomes two.

    Attributes:
        rank: how many channels there are in between.
        at_inputs: whether the first factor is the one without a kernel; the last is, where not.
    """

    rank: int
    at_inputs: bool = False


@dataclass(frozen=True)
class RankCurve:
    """What a layer costs at lower ranks.

    Attributes:
        linear: the layer.
        splits: those at the outputs and then those at the inputs, ranks descending.
        distances: of the model's outputs when the layer alone is split so.
    """

    linear: Linear
    splits: tuple[Split, ...]
    distances: tuple[float, ...]

    def points(self) -> Iterator[tuple[Split, float]]:
        """Each split with its distance."""
        return zip(self.splits, self.distances, strict=True)


def is_factorable(linear: Linear) -> bool:
    """Whether the product can become two: one group, its own weight, its outputs next to each other."""
    return has_rows(linear) and linear.groups == 1 and len(linear.weight.uses()) == 1 and linear.reading.operand == 0


def break_even(linear: Linear, *, at_inputs: bool = False) -> float:
    """The rank at which two factors take the MACs of the product."""
    _, depth, width = matrix(linear).shape
    if not at_inputs:
        return depth * width / (depth + width)
    positions = prod(shape_of(linear.node.outputs[0])) // width
    return depth * width / (prod(shape_of(linear.source)) / positions + taps(linear) * width)


def measure_ranks(
    model: ir.Model, linears: Sequence[Linear], samples: Sequence[Sample], statistics: Statistics, multiple: int
) -> list[RankCurve]:
    """A curve for every layer that can be factorised, at ranks that are multiples where it is wide enough."""
    wanted = outputs(model, samples)
    found = []
    for linear in linears:
        if linear in statistics and is_factorable(linear):
            splits: list[Split] = []
            distances: list[float] = []
            for at_inputs in (False, True) if taps(linear) > 1 else (False,):
                ranks = list(_ranks(break_even(linear, at_inputs=at_inputs), multiple))
                side = [Split(rank, at_inputs) for rank in ranks]
                away = [_distance(model, linear, each, samples, statistics[linear], wanted) for each in side]
                splits += side
                distances += np.maximum.accumulate(away).tolist()
            if splits:
                found.append(RankCurve(linear, tuple(splits), tuple(distances)))
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
    model: ir.Model, linear: Linear, split: Split, samples: Sequence[Sample], inputs: Inputs,
    wanted: Sequence[np.ndarray],
) -> float:  # fmt: skip
    copy = model.clone()
    twin = in_copy(linear, {str(node.name): node for node in copy.graph})
    first, second = _factors(linear, inputs, split)
    set_matrix(twin, _product(first, second)[np.newaxis], inputs.mean)
    return distance(outputs(copy, samples), wanted)


def _factors(linear: Linear, inputs: Inputs, split: Split) -> tuple[np.ndarray, np.ndarray]:
    """Two matrices: [depth, rank] and [rank, width], or [channels, rank] and [rank · taps, width] at the inputs."""
    weights, covariance = matrix(linear)[0], inputs.covariance[0]
    if not split.at_inputs:
        basis = leading_directions(weights, covariance, split.rank)
        return weights @ basis, basis.T
    narrow, back = leading_channels(weights, covariance, taps(linear), split.rank)
    second = _fit_second(weights, covariance, narrow, _through(back, weights))
    for _ in range(ROUNDS if narrow.size <= _ALTERNATED else 0):
        narrow = _fit_first(weights, covariance, narrow, second)
        second = _fit_second(weights, covariance, narrow, second)
    return narrow, second


def _fit_second(weights: np.ndarray, covariance: np.ndarray, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Least squares of the kernel [rank · taps, width] behind the channels ``first``, from ``second`` on."""
    seen = _through(first.T, covariance)
    moments = damped(_through(first.T, seen.T)[np.newaxis])[0]
    return second + np.linalg.solve(moments, seen @ (weights - _through(first, second)))


def _fit_first(weights: np.ndarray, covariance: np.ndarray, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Least squares of the channels [channels, rank] in front of the kernel ``second``, from ``first`` on."""
    channels, rank = first.shape
    kernel, size = len(second) // rank, first.size
    short = covariance @ (weights - _through(first, second))
    right = np.einsum("cto,rto->cr", short.reshape(channels, kernel, -1), second.reshape(rank, kernel, -1))
    pairs = covariance.reshape(channels, kernel, channels, kernel).transpose(0, 2, 1, 3).reshape(channels**2, -1)
    reach = (second @ second.T).reshape(rank, kernel, rank, kernel).transpose(0, 2, 1, 3).reshape(rank**2, -1)
    moments = (pairs @ reach.T).reshape(channels, channels, rank, rank).transpose(0, 2, 1, 3).reshape(size, size)
    return first + np.linalg.solve(damped(moments[np.newaxis])[0], right.reshape(-1)).reshape(first.shape)


def _product(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """float64 [depth, width]: the matrix of both factors together."""
    found: np.ndarray = first @ second if first.shape[1] == len(second) else _through(first, second)
    return found


def _through(mixing: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """``mixing``, [m, n], at every tap of ``rows``, [n · taps, width]: float64 [m · taps, width]."""
    found: np.ndarray = mixing @ rows.reshape(mixing.shape[1], -1)
    return found.reshape(-1, rows.shape[1])


def leading_directions(weights: np.ndarray, covariance: np.ndarray, rank: int) -> np.ndarray:
    """float64 [width, rank]: orthonormal, the directions in which the outputs of ``weights`` vary most."""
    spread = weights.T @ covariance @ weights
    return np.linalg.eigh(spread)[1][:, ::-1][:, :rank]


def leading_channels(
    weights: np.ndarray, covariance: np.ndarray, kernel: int, rank: int
) -> tuple[np.ndarray, np.ndarray]:
    """Mixtures of input channels that tell most of the outputs: float64 [channels, rank], and [rank, channels] back.

    Args:
        weights: float64 [channels · taps, width].
        covariance: float64 [channels · taps, channels · taps], of the inputs.
        kernel: the number of taps.
    """
    channels = len(weights) // kernel
    alone = np.einsum("ctdt->cd", covariance.reshape(channels, kernel, channels, kernel)) / kernel
    values, vectors = np.linalg.eigh(damped(alone[np.newaxis])[0])
    roots = np.sqrt(np.maximum(values, 1e-30))
    left = np.linalg.svd((vectors * roots) @ vectors.T @ weights.reshape(channels, -1), full_matrices=False)[0]
    leading = left[:, :rank]
    return (vectors / roots) @ vectors.T @ leading, leading.T @ (vectors * roots) @ vectors.T


def factorise(linear: Linear, inputs: Inputs, split: Split) -> None:
    """Replace the product by two, of ``split.rank`` channels in between."""
    node, graph = linear.node, linear.node.graph
    assert isinstance(graph, ir.Graph)
    old = constant_of(linear.weight)
    assert old is not None
    first, second = _factors(linear, inputs, split)
    set_matrix(linear, _product(first, second)[np.newaxis], inputs.mean)
    kernel, point = old.shape[2:], (1,) * (old.ndim - 2)
    kernels = (point, kernel) if split.at_inputs else (kernel, point)
    thin, wide = (_laid_out(linear, each, size) for each, size in zip((first, second), kernels, strict=True))
    middle = ir.node(
        node.op_type,
        [linear.source, new_constant(thin, f"{linear.weight.name}_narrow", graph)],
        dict(node.attributes) if node.op_type != "Gemm" else {"transB": node.attributes.get_int("transB", 0)},
        name=f"{node.name}/narrow",
    )
    middle.outputs[0].name = f"{node.outputs[0].name}_narrow"
    graph.insert_before(node, middle)
    node.replace_input_with(0, middle.outputs[0])
    node.replace_input_with(1, new_constant(wide, f"{linear.weight.name}_wide", graph))
    if node.op_type == "Conv":
        _make_pointwise(middle if split.at_inputs else node, len(kernel))


def _laid_out(linear: Linear, found: np.ndarray, kernel: tuple[int, ...]) -> np.ndarray:
    """The weight of a factor from its matrix [channels · taps, outputs], with the product's axes and dtype."""
    old = constant_of(linear.weight)
    assert old is not None
    rows = found.T.reshape(found.shape[1], -1, *kernel)
    return np.ascontiguousarray(np.moveaxis(rows, (0, 1), (linear.out_axis, linear.in_axis)), old.dtype)


def _make_pointwise(node: ir.Node, axes: int) -> None:
    """Let a convolution be 1×1 without strides, pads or dilations."""
    for name in ("auto_pad", "pads", "strides", "dilations", "kernel_shape"):
        node.attributes.pop(name, None)
    node.attributes["kernel_shape"] = ir.AttrInt64s("kernel_shape", [1] * axes)
