"""Models of many random quantised layers side by side, of odd shapes, strides, groups and grids."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx

from tests.quantised import Array, Graph

Layer = Callable[[Graph], str]
CHANNELS = (1, 2, 3, 4, 5, 7, 8, 13, 16, 17, 24, 31, 32, 33, 48, 64, 65, 96, 127, 130)


def random_layers(seed: int, count: int, dtype: str) -> tuple[onnx.ModelProto, dict[str, Array]]:
    """``count`` layers, each with inputs and an output of its own, and samples for all of them."""
    g = Graph(dtype, seed)
    outputs = []
    for _ in range(count):
        layer = LAYERS[int(g.generator.integers(len(LAYERS)))]
        outputs.append(g.pair(layer(g), float(g.generator.uniform(0.01, 0.3))))
    return g.build(*outputs), g.samples()


def _pick(g: Graph, *options: int) -> int:
    return int(g.generator.choice(options))


def _size(g: Graph) -> int:
    return int(g.generator.integers(3, 15))


def _act(g: Graph, value: str) -> str:
    kind = _pick(g, 0, 0, 1, 2)
    if kind == 1:
        return g.add("Relu", value)
    if kind == 2:
        return g.add("Clip", f"{value} {g.constant(np.float32(0))} {g.constant(np.float32(6))}")
    return value


def _window(g: Graph, kernel: tuple[int, int]) -> dict[str, object]:
    kh, kw = kernel
    pads = [int(p) for p in g.generator.integers(0, (kh, kw, kh, kw))]
    return {"strides": [_pick(g, 1, 1, 2, 3), _pick(g, 1, 1, 2)], "pads": pads}


def _bias(g: Graph, channels: int) -> str:
    return g.constant(g.generator.normal(0, 0.5, channels).astype(np.float32)) if _pick(g, 0, 1) else ""


def _conv(g: Graph) -> str:
    ci, co, kernel = _pick(g, *CHANNELS), _pick(g, *CHANNELS), (_pick(g, 1, 1, 3, 5), _pick(g, 1, 1, 3, 4))
    h, w = _size(g) + kernel[0], _size(g) + kernel[1]
    dilation = _pick(g, 1, 1, 1, 2)
    if dilation == 2:
        h, w = h + kernel[0], w + kernel[1]
    weights = g.weights(co, ci, *kernel, axis=0 if _pick(g, 0, 1) else None)
    x = g.input(_pick(g, 1, 1, 2), ci, h, w)
    y = g.add("Conv", f"{x} {weights} {_bias(g, co)}", dilations=[dilation] * 2, **_window(g, kernel))
    return _act(g, y)


def _grouped(g: Graph) -> str:
    groups, kernel = _pick(g, 2, 3, 4), (3, _pick(g, 1, 3))
    weights = g.weights(groups * _pick(g, 1, 2, 5), _pick(g, 2, 4, 7), *kernel)
    channels = groups * g.constants[weights.removesuffix("_d")].shape[1]
    x = g.input(1, channels, _size(g) + 3, _size(g) + 3)
    return _act(g, g.add("Conv", f"{x} {weights}", group=groups, **_window(g, kernel)))


def _depthwise(g: Graph) -> str:
    channels, kernel = _pick(g, *CHANNELS[1:]), (_pick(g, 1, 3, 3, 5), _pick(g, 3, 3, 5))
    x = g.input(1, channels, _size(g) + 5, _size(g) + 5)
    names = f"{x} {g.weights(channels, 1, *kernel)} {_bias(g, channels)}"
    return _act(g, g.add("Conv", names, group=channels, **_window(g, kernel)))


def _gemm(g: Graph) -> str:
    rows, depth, columns = _pick(g, 1, 1, 2, 5, 17), _pick(g, *CHANNELS), _pick(g, *CHANNELS)
    x = g.input(rows, depth)
    return _act(g, g.add("Gemm", f"{x} {g.weights(columns, depth)} {_bias(g, columns)}", transB=1))


def _sum(g: Graph) -> str:
    shape = (1, _pick(g, *CHANNELS), _size(g), _size(g))
    a, b = (g.input(*shape, scale=float(g.generator.uniform(0.01, 0.2))) for _ in range(2))
    return _act(g, g.add(["Add", "Sub", "Mul"][_pick(g, 0, 1, 2)], f"{a} {b}"))


def _residual(g: Graph) -> str:
    channels, size = _pick(g, 8, 16, 17, 32), _size(g)
    x = g.input(1, channels, size, size)
    y = g.pair(g.add("Conv", f"{x} {g.weights(channels, channels, 3, 3)}", pads=[1, 1, 1, 1]), 0.05)
    return _act(g, g.add("Add", f"{x} {y}"))


def _function(g: Graph) -> str:
    name = ["Sigmoid", "Tanh", "HardSwish", "LeakyRelu", "Elu", "Softplus"][int(g.generator.integers(6))]
    return g.add(name, g.input(1, _pick(g, *CHANNELS), _size(g), _size(g)))


def _pool(g: Graph) -> str:
    x = g.input(1, _pick(g, *CHANNELS), _size(g) + 3, _size(g) + 3)
    kernel = (_pick(g, 2, 3), _pick(g, 2, 3))
    window = {"kernel_shape": kernel, "strides": [_pick(g, 1, 2)] * 2, "pads": [1, 0, 0, 1]}
    return g.add(["AveragePool", "MaxPool"][_pick(g, 0, 1)], x, **window)


def _mean(g: Graph) -> str:
    return g.add("GlobalAveragePool", g.input(1, _pick(g, *CHANNELS), _size(g), _size(g)))


def _softmax(g: Graph) -> str:
    return g.add("Softmax", g.input(_pick(g, 1, 3), _pick(g, *CHANNELS)), axis=-1)


LAYERS: tuple[Layer, ...] = (
    *(_conv, _conv, _conv, _conv, _depthwise, _depthwise, _depthwise, _grouped, _gemm, _gemm, _residual, _residual),
    *(_sum, _function, _pool, _mean, _softmax),
)
"""Convolutions more often than others, since their kernels have the most cases."""
