"""Small graphs with every way in which channels are coupled, for the tests of pruning."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx

from tests.graphs import build, node


@dataclass
class Drawing:
    """A graph being drawn: nodes and seeded constants."""

    seed: int = 0
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    constants: dict[str, np.ndarray] = field(default_factory=dict)

    def add(self, operator: str, *inputs: str, outputs: int = 1, **attributes: object) -> str:
        """A node; the name of its only output, which all of several begin with."""
        name = f"{operator.lower()}{len(self.nodes)}"
        results = [name] if outputs == 1 else [f"{name}_{index}" for index in range(outputs)]
        self.nodes.append(node(operator, inputs, results, name=name, **attributes))
        return name

    def weight(self, *shape: int, scale: float = 0.5) -> str:
        """Standard normal values times ``scale``."""
        rng = np.random.default_rng((self.seed, len(self.constants)))
        return self.constant(rng.standard_normal(shape).astype(np.float32) * np.float32(scale))

    def constant(self, array: np.ndarray) -> str:
        name = f"c{len(self.constants)}"
        self.constants[name] = array
        return name

    def numbers(self, *values: int) -> str:
        return self.constant(np.array(values, np.int64))

    def conv(self, source: str, inputs: int, outputs: int, kernel: int = 1, group: int = 1, bias: bool = True) -> str:
        """A convolution that keeps the size, behind it a ReLU."""
        operands = [source, self.weight(outputs, inputs // group, kernel, kernel)]
        operands += [self.weight(outputs)] if bias else []
        pads = [kernel // 2] * 4
        return self.add("Relu", self.add("Conv", *operands, group=group, pads=pads, kernel_shape=[kernel, kernel]))

    def norm(self, source: str, channels: int) -> str:
        parts = [self.weight(channels) for _ in range(3)]
        variance = self.constant(np.abs(self.constants[self.weight(channels)]) + np.float32(0.1))
        return self.add("BatchNormalization", source, *parts, variance)

    def linear(self, source: str, inputs: int, outputs: int) -> str:
        return self.add(
            "Add", self.add("MatMul", source, self.weight(inputs, outputs, scale=0.2)), self.weight(outputs)
        )

    def finish(self, result: str, shape: Sequence[int]) -> onnx.ModelProto:
        """The model with input ``x`` of ``shape`` and the output ``result``."""
        return build(self.nodes, {"x": shape}, [result], self.constants)


def _image(body: Callable[[Drawing, str], tuple[str, int]]) -> Callable[[], onnx.ModelProto]:
    """An image [1, 3, 5, 7], a stem of 8 channels, the body, and a head that pools and classifies."""

    def draw() -> onnx.ModelProto:
        d = Drawing()
        result, channels = body(d, d.conv("x", 3, 8, 3))
        flat = d.add("Flatten", d.add("GlobalAveragePool", result))
        return d.finish(d.add("Gemm", flat, d.weight(4, channels), d.weight(4), transB=1), (1, 3, 5, 7))

    return draw


def _tokens(body: Callable[[Drawing, str], str]) -> Callable[[], onnx.ModelProto]:
    """Six tokens of 5 features, an embedding of 12, the body, and a head for each token."""

    def draw() -> onnx.ModelProto:
        d = Drawing()
        return d.finish(d.linear(body(d, d.linear("x", 5, 12)), 12, 3), (1, 6, 5))

    return draw


def chain(d: Drawing, x: str) -> tuple[str, int]:
    return d.conv(d.norm(d.conv(x, 8, 6, 3, bias=False), 6), 6, 5), 5


def residual(d: Drawing, x: str) -> tuple[str, int]:
    return d.add("Add", x, d.conv(d.conv(x, 8, 6, 3), 6, 8, 3)), 8


def concat_split(d: Drawing, x: str) -> tuple[str, int]:
    both = d.add("Concat", d.conv(x, 8, 6), d.conv(x, 8, 10), axis=1)
    parts = d.add("Split", both, d.numbers(4, 12), outputs=2, axis=1)
    return d.add("Concat", d.conv(f"{parts}_1", 12, 5), f"{parts}_0", axis=1), 9


def slices(d: Drawing, x: str) -> tuple[str, int]:
    wide = d.conv(x, 8, 10)
    low = d.add("Slice", wide, d.numbers(0), d.numbers(4), d.numbers(1))
    high = d.add("Slice", wide, d.numbers(-6), d.numbers(100), d.numbers(1))
    return d.add("Concat", high, d.conv(low, 4, 3), axis=1), 9


def grouped(d: Drawing, x: str) -> tuple[str, int]:
    return d.conv(d.conv(d.conv(x, 8, 12), 12, 6, 3, group=3), 6, 5), 5


def depthwise(d: Drawing, x: str) -> tuple[str, int]:
    """With two filters a channel."""
    return d.conv(d.conv(d.conv(x, 8, 6), 6, 12, 3, group=6), 12, 5), 5


def squeeze_excite(d: Drawing, x: str) -> tuple[str, int]:
    pooled = d.add("GlobalAveragePool", x)
    gate = d.add("Sigmoid", d.add("Conv", d.conv(pooled, 8, 3), d.weight(8, 3, 1, 1), d.weight(8)))
    return d.conv(d.add("Mul", x, gate), 8, 5), 5


def shuffle(d: Drawing, x: str) -> tuple[str, int]:
    wide = d.conv(x, 8, 12, group=2)
    split = d.add("Reshape", wide, d.numbers(1, 2, 6, 5, 7))
    mixed = d.add("Reshape", d.add("Transpose", split, perm=[0, 2, 1, 3, 4]), d.numbers(1, 12, 5, 7))
    return d.conv(mixed, 12, 6, 3, group=2), 6


def layouts(d: Drawing, x: str) -> tuple[str, int]:
    """Channels last between two transposes, with a product of matrices there."""
    last = d.linear(d.add("Transpose", x, perm=[0, 2, 3, 1]), 8, 6)
    return d.conv(d.add("Transpose", last, perm=[0, 3, 1, 2]), 6, 5), 5


def padded_shortcut(d: Drawing, x: str) -> tuple[str, int]:
    """The shortcut of the first residual networks: half the positions, zeros for the new channels."""
    thin = d.add("Slice", x, d.numbers(0, 0), d.numbers(5, 7), d.numbers(2, 3), d.numbers(2, 2))
    short = d.add("Pad", thin, d.numbers(0, 2, 0, 0, 0, 2, 0, 0))
    long = d.add("Conv", x, d.weight(12, 8, 1, 1), d.weight(12), strides=[2, 2])
    return d.conv(d.add("Add", short, long), 12, 5), 5


def depth_to_space(d: Drawing, x: str) -> tuple[str, int]:
    large = d.add("DepthToSpace", d.conv(x, 8, 12), blocksize=2, mode="DCR")
    crd = d.add("DepthToSpace", d.conv(x, 8, 12), blocksize=2, mode="CRD")
    return d.add("SpaceToDepth", d.conv(d.add("Add", large, crd), 3, 2), blocksize=2), 8


def transposed(d: Drawing, x: str) -> tuple[str, int]:
    up = d.add("ConvTranspose", x, d.weight(8, 6, 2, 2), d.weight(6), strides=[2, 2])
    return d.add("ConvTranspose", d.add("Relu", up), d.weight(6, 3, 2, 2), group=2), 6


def instance_norm(d: Drawing, x: str) -> tuple[str, int]:
    return d.conv(d.add("InstanceNormalization", x, d.weight(8), d.weight(8)), 8, 5), 5


def gathered(d: Drawing, x: str) -> tuple[str, int]:
    return d.add("Gather", x, d.numbers(6, 1, 4, 3, 0), axis=1), 5


def pooled(d: Drawing, x: str) -> tuple[str, int]:
    large = d.add("Resize", x, "", d.constant(np.array([1, 1, 2, 2], np.float32)), mode="nearest")
    return d.conv(d.add("MaxPool", large, kernel_shape=[2, 2], strides=[2, 2]), 8, 5), 5


def flattened() -> onnx.ModelProto:
    """A channel is several columns of the classifier."""
    d = Drawing()
    flat = d.add("Reshape", d.conv("x", 3, 6, 3), d.numbers(1, -1))
    return d.finish(d.add("Gemm", flat, d.weight(6 * 35, 4)), (1, 3, 5, 7))


def mlp(d: Drawing, x: str) -> str:
    return d.add("Add", x, d.linear(d.add("Relu", d.linear(x, 12, 20)), 20, 12))


def gated_mlp(d: Drawing, x: str) -> str:
    gate = d.add("Sigmoid", d.linear(x, 12, 20))
    return d.linear(d.add("Mul", gate, d.linear(x, 12, 20)), 20, 12)


def shared_weight(d: Drawing, x: str) -> str:
    """Two products of one weight."""
    weight = d.weight(12, 8)
    both = d.add("Add", d.add("MatMul", x, weight), d.add("MatMul", d.add("Relu", x), weight))
    return d.linear(both, 8, 12)


def heads(d: Drawing, x: str, queries: int = 3, pairs: int = 3, width: int = 4) -> str:
    """Attention spelled out, its keys and values shared by groups of queries where there are fewer."""

    def part(count: int, order: Sequence[int]) -> str:
        split = d.add("Reshape", d.linear(x, 12, count * width), d.numbers(1, 6, count, width))
        return d.add("Transpose", split, perm=order)

    query, key, value = part(queries, (0, 2, 1, 3)), part(pairs, (0, 2, 3, 1)), part(pairs, (0, 2, 1, 3))
    if pairs != queries:
        key = _repeat(d, key, pairs, queries, (width, 6))
        value = _repeat(d, value, pairs, queries, (6, width))
    weights = d.add("Softmax", d.add("MatMul", query, key), axis=-1)
    joined = d.add("Transpose", d.add("MatMul", weights, value), perm=[0, 2, 1, 3])
    return d.linear(d.add("Reshape", joined, d.numbers(1, 6, queries * width)), queries * width, 12)


def _repeat(d: Drawing, value: str, pairs: int, queries: int, rest: Sequence[int]) -> str:
    wide = d.add("Unsqueeze", value, d.numbers(2))
    copies = d.add("Expand", wide, d.numbers(1, pairs, queries // pairs, *rest))
    return d.add("Reshape", copies, d.numbers(1, queries, *rest))


def shared_heads(d: Drawing, x: str) -> str:
    """Grouped queries: four heads, two pairs of keys and values."""
    return heads(d, x, queries=4, pairs=2)


def fused_heads(d: Drawing, x: str) -> str:
    """Queries, keys and values by one product."""
    split = d.add("Reshape", d.linear(x, 12, 36), d.numbers(1, 6, 3, 3, 4))
    parts = d.add("Transpose", split, perm=[2, 0, 3, 1, 4])
    query, key, value = (d.add("Gather", parts, d.constant(np.array(i, np.int64)), axis=0) for i in range(3))
    scores = d.add("MatMul", query, d.add("Transpose", key, perm=[0, 1, 3, 2]))
    joined = d.add("MatMul", d.add("Softmax", scores, axis=-1), value)
    flat = d.add("Reshape", d.add("Transpose", joined, perm=[0, 2, 1, 3]), d.numbers(1, 6, 12))
    return d.linear(flat, 12, 12)


CASES: Mapping[str, Callable[[], onnx.ModelProto]] = {
    **{
        body.__name__: _image(body)
        for body in (
            chain, residual, concat_split, slices, grouped, depthwise, squeeze_excite, shuffle, layouts,
            padded_shortcut, depth_to_space, transposed, instance_norm, gathered, pooled,
        )
    },
    **{
        body.__name__: _tokens(body)
        for body in (mlp, gated_mlp, shared_weight, heads, shared_heads, fused_heads)
    },
    "flattened": flattened,
}  # fmt: skip
"""A graph for each kind of coupling."""

IMAGE_BODIES = (
    residual, concat_split, grouped, depthwise, squeeze_excite, shuffle, layouts, instance_norm, pooled, chain, slices
)  # fmt: skip
"""Bodies that random graphs are put together from; each takes 8 channels."""


def random_graph(seed: int) -> onnx.ModelProto:
    """Two or three bodies in a row, each brought back to 8 channels."""
    rng = np.random.default_rng(seed)
    d = Drawing(seed)
    result = d.conv("x", 3, 8, 3)
    for index in rng.integers(len(IMAGE_BODIES), size=rng.integers(2, 4)):
        result, channels = IMAGE_BODIES[index](d, result)
        result = d.conv(result, channels, 8)
    flat = d.add("Flatten", d.add("GlobalAveragePool", result))
    return d.finish(d.add("Gemm", flat, d.weight(4, 8), d.weight(4), transB=1), (1, 3, 5, 7))
