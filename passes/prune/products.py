"""Products with constant weights as matrices: their inputs as rows, their weights, and their second moments.

A convolution is a matrix product of patches: a row has the source's channels, each with the kernel's taps, as
[groups, channels of a group · taps]. Positions are drawn at random, since neighbours tell much the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import prod

import numpy as np
import onnx_ir as ir

from edgec.frontend.values import constant_of, input_of, shape_of
from edgec.passes.prune.activations import Sample, capture
from edgec.passes.prune.removal import set_constant
from edgec.passes.prune.rules import Linear
from edgec.passes.rewriting import new_constant

_CHUNK = 4096
"""Rows that are summed up at once."""

SUPPORTED = ("Conv", "Gemm", "MatMul")
"""The products whose rows are known."""


def matrix(linear: Linear, weight: np.ndarray | None = None) -> np.ndarray:
    """The weight (its own by default) as float64 [groups, depth, outputs of a group]."""
    array = constant_of(linear.weight) if weight is None else weight
    assert array is not None
    moved = np.moveaxis(array, (linear.out_axis, linear.in_axis), (0, 1)).astype(np.float64)
    rows = moved.reshape(linear.groups, moved.shape[0] // linear.groups, -1)
    return rows.transpose(0, 2, 1)


def weight_of(linear: Linear, found: np.ndarray) -> np.ndarray:
    """The inverse of :func:`matrix`, in the shape and dtype of the product's weight."""
    array = constant_of(linear.weight)
    assert array is not None
    moved = np.moveaxis(array, (linear.out_axis, linear.in_axis), (0, 1))
    rows = found.transpose(0, 2, 1).reshape(moved.shape)
    return np.ascontiguousarray(np.moveaxis(rows, (0, 1), (linear.out_axis, linear.in_axis)), array.dtype)


def set_matrix(linear: Linear, found: np.ndarray, mean: np.ndarray) -> None:
    """Let the product have the matrix ``found``, and shift its bias so that its output's mean stays.

    ``mean`` is its inputs', float64 [groups, depth]; of a MatMul, which has no bias, it must be zero.
    """
    shift = np.einsum("gi,gio->go", mean, matrix(linear) - found).reshape(-1)
    array = weight_of(linear, found)
    set_constant(linear.weight, array)
    if shift.any():
        add_bias(linear, shift.astype(array.dtype))


def own_biases(model: ir.Model) -> None:
    """Give every convolution and Gemm a bias of its own, a number a channel, so that :func:`add_bias` can use it.

    This comes before the coupling is found, which then cuts the biases, too.
    """
    for node in model.graph:
        if node.domain != "" or node.op_type not in ("Conv", "Gemm") or node.attributes.get_float("beta", 1.0) != 1:
            continue
        weight, bias = constant_of(node.inputs[1]), input_of(node, 2)
        count = shape_of(node.outputs[0])[1]
        array = constant_of(bias)
        if weight is None or (bias is not None and (array is None or array.size not in (1, count))):
            continue
        if bias is not None and len(bias.uses()) == 1 and shape_of(bias) == (count,):
            continue
        zeros = np.zeros(count, weight.dtype)
        if len(node.inputs) < 3:
            node.resize_inputs(3)
        own = zeros if array is None else zeros + array.reshape(-1)
        node.replace_input_with(2, new_constant(own, f"{node.name}_bias", model.graph))


def drop_zero_biases(model: ir.Model) -> None:
    """Take away the biases of convolutions and Gemms that add nothing."""
    for node in model.graph:
        if node.domain == "" and node.op_type in ("Conv", "Gemm"):
            bias = constant_of(input_of(node, 2))
            if bias is not None and not bias.any():
                node.resize_inputs(2)


def add_bias(linear: Linear, extra: np.ndarray) -> None:
    """Add one number an output channel to the bias of a Conv or Gemm, which :func:`own_biases` gave it."""
    bias = constant_of(linear.bias)
    assert linear.bias is not None and bias is not None
    set_constant(linear.bias, (bias + extra).astype(bias.dtype))


def in_copy(linear: Linear, nodes: Mapping[str, ir.Node]) -> Linear:
    """The same product in a copy of the graph, whose ``nodes`` are given by name."""
    node, operand = nodes[str(linear.node.name)], linear.reading.operand
    source, weight = node.inputs[operand], node.inputs[1 - operand]
    assert source is not None and weight is not None
    return replace(linear, node=node, source=source, weight=weight)


def taps(linear: Linear) -> int:
    """Rows of the matrix for each input channel."""
    return prod(shape_of(linear.weight)[2:]) if linear.node.op_type == "Conv" else 1


def has_rows(linear: Linear) -> bool:
    """Whether the product is output = rows · matrix + a constant for each channel, with the rows known."""
    node, bias = linear.node, linear.bias
    if node.op_type not in SUPPORTED or any(node.attributes.get_float(name, 1.0) != 1 for name in ("alpha", "beta")):
        return False
    channels = shape_of(node.outputs[0])[linear.output_axis]
    return bias is None or (bias.const_value is not None and bias.const_value.size in (1, channels))


def places(linear: Linear, count: int, rng: np.random.Generator) -> np.ndarray:
    """At most ``count`` different positions of the output, flat over all axes but the channels'; int64, sorted."""
    shape = shape_of(linear.node.outputs[0])
    positions = prod(shape) // max(shape[linear.output_axis], 1)
    return np.sort(rng.permutation(positions)[:count])


def input_rows(linear: Linear, source: np.ndarray, where: np.ndarray) -> np.ndarray:
    """What the product sees at output positions ``where``: float32 [places, groups, depth]."""
    if linear.node.op_type != "Conv":
        rows = np.moveaxis(source, linear.source_axis, -1)
        return rows.reshape(-1, rows.shape[-1])[where][:, np.newaxis]
    patches = _patches(linear, source, where)
    return patches.reshape(len(where), linear.groups, -1)


def output_rows(linear: Linear, output: np.ndarray, where: np.ndarray) -> np.ndarray:
    """The output's channels at positions ``where``: float32 [places, channels]."""
    rows = np.moveaxis(output, linear.output_axis, -1)
    return rows.reshape(-1, rows.shape[-1])[where]


def _patches(linear: Linear, source: np.ndarray, where: np.ndarray) -> np.ndarray:
    """[places, channels, *kernel]."""
    node, kernel = linear.node, shape_of(linear.weight)[2:]
    spatial = shape_of(node.outputs[0])[2:]
    strides = node.attributes.get_ints("strides", (1,) * len(kernel))
    dilations = node.attributes.get_ints("dilations", (1,) * len(kernel))
    low, high = _pads(linear, source.shape[2:], strides, dilations)
    padded = np.pad(source, [(0, 0), (0, 0), *zip(low, high, strict=True)])
    image, *position = np.unravel_index(where, (source.shape[0], *spatial))
    index: list[np.ndarray] = []
    for axis, start in enumerate(position):
        places_ = start[:, np.newaxis] * strides[axis] + np.arange(kernel[axis]) * dilations[axis]
        index.append(places_.reshape(len(where), *(-1 if other == axis else 1 for other in range(len(kernel)))))
    taken = (image.reshape(-1, *(1,) * len(kernel)), *index)
    return np.moveaxis(np.moveaxis(padded, 1, -1)[taken], -1, 1)


def _pads(
    linear: Linear, extents: Sequence[int], strides: Sequence[int], dilations: Sequence[int]
) -> tuple[list[int], list[int]]:
    """Zeros in front of and behind each spatial axis."""
    node, kernel = linear.node, shape_of(linear.weight)[2:]
    mode = node.attributes.get_string("auto_pad", "NOTSET")
    if mode in ("NOTSET", "VALID"):
        pads = (
            list(node.attributes.get_ints("pads", (0,) * (2 * len(kernel))))
            if mode == "NOTSET"
            else [0] * 2 * len(kernel)
        )
        return pads[: len(kernel)], pads[len(kernel) :]
    spatial = shape_of(node.outputs[0])[2:]
    wanted = [
        max(0, (out - 1) * stride + (width - 1) * dilation + 1 - extent)
        for out, stride, width, dilation, extent in zip(spatial, strides, kernel, dilations, extents, strict=True)
    ]
    smaller, larger = [each // 2 for each in wanted], [each - each // 2 for each in wanted]
    return (smaller, larger) if mode == "SAME_UPPER" else (larger, smaller)


@dataclass
class Moments:
    """Sums over rows of a product's inputs, for least squares with a bias.

    Attributes:
        squares: float64 [groups, depth, depth], sum of x·xᵀ.
        sums: float64 [groups, depth], sum of x.
        count: rows.
    """

    squares: np.ndarray
    sums: np.ndarray
    count: int = 0
    _waiting: list[np.ndarray] = field(default_factory=list)

    def add(self, rows: np.ndarray) -> None:
        """Take in rows [places, groups, depth]."""
        self._waiting.append(rows)
        if sum(map(len, self._waiting)) >= _CHUNK:
            self.settle()

    def settle(self) -> None:
        """Sum up the rows that wait; one large product is faster than many small ones."""
        if not self._waiting:
            return
        rows = np.concatenate(self._waiting)
        self._waiting.clear()
        wide = rows.astype(np.float64).transpose(1, 0, 2)
        self.squares += wide.transpose(0, 2, 1) @ wide
        self.sums += wide.sum(axis=1)
        self.count += len(rows)

    @property
    def covariance(self) -> np.ndarray:
        """float64 [groups, depth, depth] of the inputs around their means, shrunk."""
        mean = self.sums / max(self.count, 1)
        return self.shrunk(self.squares / max(self.count, 1) - mean[:, :, np.newaxis] * mean[:, np.newaxis])

    def shrunk(self, found: np.ndarray) -> np.ndarray:
        """Second moments moved towards their diagonal, by how little the rows tell."""
        share = uncertainty(found.shape[-1], self.count)
        alone = np.einsum("gii->gi", found)[:, :, np.newaxis] * np.eye(found.shape[-1])
        return (1 - share) * found + share * alone


def uncertainty(depth: int, count: int) -> float:
    """How little ``count`` rows say of how ``depth`` inputs vary together: 0 for very many rows, 1 for none.

    Covariances are shrunk by this share to their diagonals (as Ledoit and Wolf 2004 do, with a simpler share).
    """
    return depth / (depth + count)


def measure_moments(
    model: ir.Model, linears: Sequence[Linear], samples: Iterable[Sample], rows: int, seed: int
) -> dict[Linear, Moments]:
    """The moments of every product's inputs over the samples, at ``rows`` positions of each sample."""
    known = [linear for linear in linears if has_rows(linear)]
    found = {}
    for linear in known:
        groups, depth, _ = matrix(linear).shape
        found[linear] = Moments(np.zeros((groups, depth, depth)), np.zeros((groups, depth)))
    rng = np.random.default_rng(seed)
    for values in capture(model, [str(linear.source.name) for linear in known], samples):
        for linear in known:
            where = places(linear, rows, rng)
            found[linear].add(input_rows(linear, values[str(linear.source.name)], where))
    for each in found.values():
        each.settle()
    return found
