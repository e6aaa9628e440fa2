"""Convolutions and matrix products as weights times patches: reading and writing their weights and biases.

Every product is, for each of its groups, ``y = W·p + b`` with rows W [outputs, depth] and a patch p [depth] of the
input for each position of the output.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from edgec.frontend.values import constant_of, input_of
from edgec.grid import factor_group
from edgec.lowering.window import window
from edgec.passes.quantize.grid import Weights
from edgec.passes.quantize.lowbit import LowBit
from edgec.passes.quantize.operators import Role, bias_index, channel_axis, role_of, weight_axis
from edgec.passes.rewriting import new_constant

_POSITIONS = 4096
"""Patches to estimate second moments from, at least; deeper patches take more."""


@dataclass
class Product:
    """A product of the graph.

    Attributes:
        node: the convolution or matrix product.
        adder: the Add of its bias, where that is a node of its own.
    """

    node: ir.Node
    adder: ir.Node | None

    @property
    def weight(self) -> np.ndarray:
        """float32, as the node has it."""
        weight = constant_of(self.node.inputs[1])
        assert weight is not None
        return weight

    @property
    def bias(self) -> np.ndarray | None:
        """float32 [channels]; None where there is none."""
        holder, index = self.bias_place
        bias = constant_of(input_of(holder, index))
        return None if bias is None else bias.reshape(-1)

    @property
    def can_have_bias(self) -> bool:
        """Whether there is a place for a bias."""
        return self.adder is not None or self.node.op_type != "MatMul"

    @property
    def result(self) -> ir.Value:
        """The value with the bias in it."""
        return (self.adder or self.node).outputs[0]

    @property
    def groups(self) -> int:
        """Groups of channels that do not see each other."""
        return self.node.attributes.get_int("group", 1)

    def set_weight(self, weight: np.ndarray, graph: ir.Graph) -> None:
        """Replace the weight by a constant of this node's own."""
        self._replace(self.node, 1, weight, f"{self.node.inputs[1].name}_scaled", graph)  # type: ignore[union-attr]

    def set_bias(self, bias: np.ndarray, graph: ir.Graph) -> None:
        """Replace or add the bias [channels]."""
        holder, index = self.bias_place
        before, shaped = input_of(holder, index), self.shaped_bias(bias)
        name = f"{self.node.name}_bias" if before is None else f"{before.name}_scaled"
        self._replace(holder, index, shaped, name, graph)

    def shaped_bias(self, bias: np.ndarray) -> np.ndarray:
        """``bias`` [channels] in the shape that the node has it in."""
        before = constant_of(input_of(*self.bias_place))
        return bias if before is None else bias.reshape(before.shape)

    def rows(self, weight: np.ndarray) -> np.ndarray:
        """``weight`` as [groups, outputs of a group, depth]."""
        if self.node.op_type == "Conv":
            return weight.reshape(self.groups, weight.shape[0] // self.groups, -1)
        return (weight if weight_axis(self.node) == 0 else weight.T)[np.newaxis]

    def from_rows(self, rows: np.ndarray) -> np.ndarray:
        """The inverse of ``rows``, contiguous."""
        if self.node.op_type == "Conv":
            return rows.reshape(self.weight.shape)
        return np.ascontiguousarray(rows[0] if weight_axis(self.node) == 0 else rows[0].T)

    @property
    def depth_order(self) -> np.ndarray:
        """Indices that bring the depth of ``rows`` into the order of kernels: input channels innermost."""
        shape = self.weight.shape[1:] if self.node.op_type == "Conv" else (self.rows(self.weight).shape[2],)
        indices = np.arange(int(np.prod(shape))).reshape(shape)
        return np.moveaxis(indices, 0, -1).reshape(-1)

    def group_size(self, wanted: int) -> int:
        """How many neighbours along the depth share a scale: ``wanted`` (0: all), where kernels can tell them apart.

        They count the depth in eights, which a window's channels must fill.
        """
        depth = self.rows(self.weight).shape[2]
        window_of_few = self.node.op_type == "Conv" and depth != self.weight.shape[1] and self.weight.shape[1] % 8 != 0
        return depth if not wanted or wanted >= depth or window_of_few else wanted

    @property
    def factor_group(self) -> int:
        """How many neighbours along the depth share a factor under integer activations; 0 where a channel's all do."""
        depth = self.rows(self.weight).shape[2]
        channels = self.weight.shape[1] if self.node.op_type == "Conv" else depth
        group = factor_group(channels, depth // channels)
        return group if self.groups == 1 and group < depth else 0

    def mixes_widths(self, group: int) -> bool:
        """Whether kernels can tell widths of groups of ``group`` along the depth apart: see ``parts`` of a Packing."""
        depth = self.rows(self.weight).shape[2]
        channels = self.weight.shape[1] if self.node.op_type == "Conv" else depth
        return depth % group == 0 and channels % 8 == 0 and group < depth

    def real_weight(self, weights: Weights | LowBit) -> np.ndarray:
        """The float32 weight, as the node has it, that integers stand for."""
        if isinstance(weights, Weights):
            return weights.dequantise()
        return self.from_rows(self.unordered(weights.rows))

    def unordered(self, rows: np.ndarray) -> np.ndarray:
        """``rows`` [outputs, depth] in ``depth_order`` as :meth:`rows` has them."""
        found = np.empty_like(rows)
        found[:, self.depth_order] = rows
        return found[np.newaxis]

    def scaled_inputs(self, weight: np.ndarray, factors: np.ndarray) -> np.ndarray:
        """``weight`` with what multiplies each input channel multiplied by that of ``factors`` [input channels]."""
        if self.node.op_type != "Conv":
            shape = [1, -1] if weight_axis(self.node) == 0 else [-1, 1]
            return weight * factors.reshape(shape)
        split = weight.reshape(self.groups, -1, *weight.shape[1:])
        spread = factors.reshape(self.groups, 1, -1, *(1 for _ in weight.shape[2:]))
        return (split * spread).reshape(weight.shape)

    def scaled_outputs(self, weight: np.ndarray, factors: np.ndarray) -> np.ndarray:
        """``weight`` with what makes each output channel multiplied by that of ``factors`` [output channels]."""
        shape = [1] * weight.ndim
        shape[weight_axis(self.node)] = -1
        return weight * factors.reshape(shape)

    def patches(self, x: np.ndarray) -> np.ndarray:
        """Patches [groups, positions, depth] from inputs ``x`` [samples, *shape], evenly chosen of them all."""
        if self.node.op_type != "Conv":
            axis = channel_axis(self.node) + 1
            flat = np.moveaxis(x, axis, -1).reshape(-1, x.shape[axis])
            return flat[_evenly(len(flat), x.shape[axis])][np.newaxis]
        return self._windows(x.reshape(-1, *x.shape[2:]))

    def _windows(self, x: np.ndarray) -> np.ndarray:
        """Patches of ``x`` [images, channels, *extents]."""
        w = window(self.node, x.shape[2:], self.weight.shape[2:])
        spans = [(k - 1) * d + 1 for k, d in zip(w.kernel, w.dilations, strict=True)]
        steps = tuple(slice(None, None, s) for s in w.strides)
        inner = tuple(slice(None, None, d) for d in w.dilations)

        def view(image: np.ndarray) -> np.ndarray:
            padded = np.pad(image, [(0, 0), *w.pads])
            windows = np.lib.stride_tricks.sliding_window_view(padded, spans, axis=tuple(range(1, image.ndim)))
            wanted = (slice(None), *steps, *inner)
            return windows[wanted]

        places = (len(x), *view(x[0]).shape[1 : x.ndim - 1])
        depth = int(np.prod(self.weight.shape[1:]))
        images, *position = np.unravel_index(_evenly(int(np.prod(places)), depth), places)
        found = np.empty((len(images), self.groups, depth), x.dtype)
        for index in np.unique(images):  # one by one, for a copy with padding of them all is large
            own = images == index
            patch: tuple[Any, ...] = (slice(None), *(axis[own] for axis in position))
            found[own] = np.moveaxis(view(x[index])[patch], 1, 0).reshape(-1, self.groups, depth)
        return np.ascontiguousarray(found.transpose(1, 0, 2))

    @property
    def bias_place(self) -> tuple[ir.Node, int]:
        """The node and the index of its input where the bias is, or would be."""
        if self.adder is None:
            return self.node, 2
        index = bias_index(self.adder)
        assert index is not None
        return self.adder, index

    def _replace(self, node: ir.Node, index: int, array: np.ndarray, name: str, graph: ir.Graph) -> None:
        value = new_constant(np.ascontiguousarray(array, np.float32), name, graph)
        value.shape, value.type = ir.Shape(array.shape), ir.TensorType(ir.DataType.FLOAT)
        if index >= len(node.inputs):
            node.resize_inputs(index + 1)
        node.replace_input_with(index, value)


def product_of(node: ir.Node) -> Product | None:
    """``node`` as a product that has rows and patches; None where it is none."""
    if role_of(node) is not Role.PRODUCT:
        return None
    readers = node.outputs[0].consumers()
    adder = readers[0] if len(readers) == 1 and role_of(readers[0]) is Role.BIAS else None
    return Product(node, adder)


def _evenly(count: int, depth: int) -> np.ndarray:
    """Indices of the patches to take out of ``count``: enough to tell ``depth`` directions apart."""
    wanted = max(_POSITIONS, 4 * depth)
    return np.arange(count) if count <= wanted else np.linspace(0, count - 1, wanted).astype(np.int64)
