"""Random valid models: diamonds, shared weights, odd shapes, layout changes, concatenations of anything."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
from onnx import helper, numpy_helper

Shape = tuple[int, ...]
SIZES = (1, 2, 3, 5, 7, 8, 16, 17)


class RandomModel:
    """Grows a model node by node from a seed; every value is a float32 feature map, matrix or batch of them."""

    def __init__(self, seed: int, nodes: int = 8) -> None:
        self.rng = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self.shapes: dict[str, Shape] = {}
        self.inputs = [self._input(i) for i in range(int(self.rng.integers(1, 3)))]
        while len(self.nodes) < nodes:
            self._pick(STEPS)(self)

    def _input(self, index: int) -> str:
        shape = (int(self.rng.integers(1, 3)), self._size(), self._size(), self._size())
        self.shapes[f"x{index}"] = shape
        return f"x{index}"

    def _size(self) -> int:
        return int(self.rng.choice(SIZES))

    def _pick(self, options):  # type: ignore[no-untyped-def]
        return options[int(self.rng.integers(len(options)))]

    def value(self, rank: int | None = None) -> str | None:
        """A value made before, the newest most likely."""
        names = [name for name, shape in self.shapes.items() if rank is None or len(shape) == rank]
        if not names:
            return None
        back = min(len(names), 1 + int(self.rng.geometric(0.4)))
        return names[-back]

    def constant(self, *shape: int, scale: float = 0.5) -> str:
        name = f"c{len(self.constants)}"
        data = (self.rng.standard_normal(shape) * scale).astype(np.float32)
        self.constants.append(numpy_helper.from_array(data, name))
        return name

    def integers(self, *values: int) -> str:
        name = f"c{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(values, np.int64), name))
        return name

    def emit(self, op: str, inputs: list[str], shape: Shape, **attributes: object) -> str:
        name = f"v{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, inputs, [name], f"{op}_{len(self.nodes)}", **attributes))
        self.shapes[name] = tuple(shape)
        return name

    def build(self) -> onnx.ModelProto:
        """The model; every value that nothing reads is an output, and sometimes one in the middle too."""
        read = {name for node in self.nodes for name in node.input}
        made = [name for node in self.nodes for name in node.output]
        outputs = [name for name in made if name not in read] + made[:1] * int(self.rng.integers(2))

        def info(name: str) -> onnx.ValueInfoProto:
            return helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, self.shapes[name])

        graph = helper.make_graph(
            self.nodes,
            "random",
            [info(n) for n in self.inputs],
            [info(n) for n in dict.fromkeys(outputs)],
            self.constants,
        )
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def conv(m: RandomModel) -> None:
    x = m.value(4)
    if x is None:
        return
    n, c, h, w = m.shapes[x]
    kh, kw = (int(m.rng.integers(1, 4)) for _ in range(2))
    pads = [int(m.rng.integers(0, 3)) for _ in range(4)]
    stride = [int(m.rng.integers(1, 3)) for _ in range(2)]
    oh, ow = (h + pads[0] + pads[2] - kh) // stride[0] + 1, (w + pads[1] + pads[3] - kw) // stride[1] + 1
    if min(oh, ow) < 1 or h + pads[0] + pads[2] < kh or w + pads[1] + pads[3] < kw:
        return
    group = c if m.rng.random() < 0.4 else 1
    co = c if group > 1 else m._size()
    weight = m.constant(co, c // group, kh, kw, scale=1 / np.sqrt(kh * kw * c / group))
    inputs = [x, weight] + ([m.constant(co)] if m.rng.random() < 0.7 else [])
    m.emit("Conv", inputs, (n, co, oh, ow), strides=stride, pads=pads, group=group)


def activation(m: RandomModel) -> None:
    x = m.value()
    assert x is not None
    op = m._pick(["Relu", "Sigmoid", "Tanh", "HardSwish", "LeakyRelu", "Elu", "Abs", "Neg", "Softplus", "Identity"])
    m.emit(op, [x], m.shapes[x])


def arithmetic(m: RandomModel) -> None:
    """Two values of one shape, or one with a broadcast constant or slice of itself."""
    x = m.value()
    assert x is not None
    shape = m.shapes[x]
    same = [name for name, s in m.shapes.items() if s == shape]
    op = m._pick(["Add", "Mul", "Sub", "Max"])
    if m.rng.random() < 0.6:
        m.emit(op, [x, m._pick(same)], shape)
    else:
        m.emit(op, [x, m.constant(*(d if m.rng.random() < 0.5 else 1 for d in shape))], shape)


def gate(m: RandomModel) -> None:
    """x · sigmoid(mean of x over space): squeeze and excite."""
    x = m.value(4)
    if x is not None:
        n, c, _, _ = m.shapes[x]
        mean = m.emit("GlobalAveragePool", [x], (n, c, 1, 1))
        scale = m.emit("Sigmoid", [mean], (n, c, 1, 1))
        m.emit("Mul", [x, scale], m.shapes[x])


def pool(m: RandomModel) -> None:
    x = m.value(4)
    if x is None or min(m.shapes[x][2:]) < 2:
        return
    n, c, h, w = m.shapes[x]
    pad = int(m.rng.integers(0, 2))
    op = m._pick(["MaxPool", "AveragePool"])
    out = tuple((d + 2 * pad - 2) // 2 + 1 for d in (h, w))
    m.emit(op, [x], (n, c, *out), kernel_shape=[2, 2], strides=[2, 2], pads=[pad] * 4)


def concat(m: RandomModel) -> None:
    x = m.value()
    assert x is not None
    shape = m.shapes[x]
    axis = int(m.rng.integers(len(shape)))
    fits = [
        n
        for n, s in m.shapes.items()
        if len(s) == len(shape) and s[:axis] + s[axis + 1 :] == shape[:axis] + shape[axis + 1 :]
    ]
    parts = [x] + [m._pick(fits) for _ in range(int(m.rng.integers(1, 3)))]
    total = sum(m.shapes[p][axis] for p in parts)
    m.emit("Concat", parts, (*shape[:axis], total, *shape[axis + 1 :]), axis=axis)


def slice_(m: RandomModel) -> None:
    x = m.value()
    assert x is not None
    shape = m.shapes[x]
    axis = int(m.rng.integers(len(shape)))
    if shape[axis] < 2:
        return
    step = int(m.rng.choice([1, 1, 2, -1]))
    start, end = (1, 1000) if step > 0 else (-1, -1000)
    count = len(range(*slice(start, end, step).indices(shape[axis])))
    inputs = [x, m.integers(start), m.integers(end), m.integers(axis), m.integers(step)]
    m.emit("Slice", inputs, (*shape[:axis], count, *shape[axis + 1 :]))


def transpose(m: RandomModel) -> None:
    x = m.value()
    assert x is not None
    perm = [int(i) for i in m.rng.permutation(len(m.shapes[x]))]
    m.emit("Transpose", [x], tuple(m.shapes[x][i] for i in perm), perm=perm)


def reshape(m: RandomModel) -> None:
    x = m.value()
    assert x is not None
    shape = m.shapes[x]
    if len(shape) == 4:
        new = (shape[0], shape[1], shape[2] * shape[3])
    elif len(shape) == 3:
        new = (shape[0], shape[1], 1, shape[2])
    else:
        new = (1, *shape)
    m.emit("Reshape", [x, m.integers(*new)], new)


def pad(m: RandomModel) -> None:
    x = m.value(4)
    if x is None:
        return
    pads = [0, 0, *(int(v) for v in m.rng.integers(0, 3, 2)), 0, 0, *(int(v) for v in m.rng.integers(0, 3, 2))]
    shape = tuple(d + pads[i] + pads[i + 4] for i, d in enumerate(m.shapes[x]))
    m.emit("Pad", [x, m.integers(*pads)], shape)


def softmax(m: RandomModel) -> None:
    x = m.value()
    assert x is not None
    m.emit("Softmax", [x], m.shapes[x], axis=int(m.rng.integers(len(m.shapes[x]))))


def mean(m: RandomModel) -> None:
    x = m.value()
    assert x is not None
    axis = int(m.rng.integers(len(m.shapes[x])))
    shape = list(m.shapes[x])
    shape[axis] = 1
    m.emit(m._pick(["ReduceMean", "ReduceMax"]), [x, m.integers(axis)], tuple(shape), keepdims=1)


def matmul(m: RandomModel) -> None:
    x = m.value()
    assert x is not None
    shape, columns = m.shapes[x], m._size()
    m.emit("MatMul", [x, m.constant(shape[-1], columns, scale=1 / np.sqrt(shape[-1]))], (*shape[:-1], columns))


def attention(m: RandomModel) -> None:
    """x · xᵀ · x over the last two axes."""
    x = m.value()
    assert x is not None
    shape = m.shapes[x]
    perm = [*range(len(shape) - 2), len(shape) - 1, len(shape) - 2]
    turned = m.emit("Transpose", [x], tuple(shape[i] for i in perm), perm=perm)
    scores = m.emit("MatMul", [x, turned], (*shape[:-1], shape[-2]))
    weights = m.emit("Softmax", [scores], m.shapes[scores], axis=-1)
    m.emit("MatMul", [weights, x], shape)


def resize(m: RandomModel) -> None:
    x = m.value(4)
    if x is None or max(m.shapes[x][2:]) > 16:
        return
    n, c, h, w = m.shapes[x]
    mode = m._pick(["nearest", "linear"])
    transform = "asymmetric" if mode == "nearest" else m._pick(["half_pixel", "align_corners"])
    extra = {"nearest_mode": "floor"} if mode == "nearest" else {}
    m.emit("Resize", [x, "", "", m.integers(n, c, 2 * h, 2 * w)], (n, c, 2 * h, 2 * w), mode=mode,
           coordinate_transformation_mode=transform, **extra)  # fmt: skip


STEPS: tuple[Callable[[RandomModel], None], ...] = (
    conv, conv, conv, activation, activation, arithmetic, arithmetic, gate, pool, concat, concat, slice_, transpose,
    reshape, pad, softmax, mean, matmul, attention, resize,
)  # fmt: skip
