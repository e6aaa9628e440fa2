"""The random models of the fuzzer: float graphs with shared weights, quantised ones with diamonds, and mutants."""

from __future__ import annotations

import random

import onnx

from tests.quantised import Graph
from tests.random_models import RandomModel


class SharingModel(RandomModel):
    """A random float model in which one constant of three is one that stands elsewhere already."""

    def constant(self, *shape: int, scale: float = 0.5) -> str:
        fits = [each.name for each in self.constants if tuple(each.dims) == shape and each.data_type == 1]
        if fits and self.rng.random() < 0.33:
            return str(self._pick(fits))
        return super().constant(*shape, scale=scale)


def float_model(seed: int, nodes: int) -> onnx.ModelProto:
    """A float model of so many nodes or one more; a smaller number gives the beginning of the same one."""
    return SharingModel(seed, nodes).build()


class _QuantisedModel:
    """Grows a QDQ model: every layer reads a value made before, and two of one shape may be added or concatenated."""

    def __init__(self, seed: int, layers: int) -> None:
        self.choose = random.Random(seed)
        self.graph = Graph(self.choose.choice(["int8", "uint8"]), seed)
        shape = (1, self._channels(), self.choose.choice([3, 5, 7]), self.choose.choice([4, 5, 9]))
        self.values = [(self.graph.input(*shape), shape)]
        steps = [self.conv, self.conv, self.depthwise, self.add, self.add, self.concatenate, self.pool, self.matmul]
        for _ in range(layers):
            source = self.values[-1] if self.choose.random() < 0.6 else self.choose.choice(self.values)
            self.choose.choice(steps)(*source)

    def _channels(self) -> int:
        return self.choose.choice([1, 2, 3, 4, 7, 8, 16, 17])

    def _finish(self, value: str, shape: tuple[int, ...], activate: bool = True) -> None:
        if activate and self.choose.random() < 0.5:
            value = self.graph.add("Relu", value)
        self.values.append((self.graph.pair(value, self.choose.uniform(0.02, 0.2)), shape))

    def conv(self, value: str, shape: tuple[int, ...]) -> None:
        kernel, stride = self.choose.choice([1, 1, 2, 3]), self.choose.choice([1, 1, 2])
        pads = [self.choose.randint(0, kernel - 1) for _ in range(4)]
        extents = tuple((n + pads[i] + pads[i + 2] - kernel) // stride + 1 for i, n in enumerate(shape[2:]))
        if min(n + pads[i] + pads[i + 2] - kernel for i, n in enumerate(shape[2:])) < 0:
            return
        outputs = self._channels()
        weight = self.graph.weights(outputs, shape[1], kernel, kernel, axis=self.choose.choice([0, None]))
        out = self.graph.add("Conv", f"{value} {weight}", pads=pads, strides=[stride, stride])
        self._finish(out, (1, outputs, *extents))

    def depthwise(self, value: str, shape: tuple[int, ...]) -> None:
        weight = self.graph.weights(shape[1], 1, 3, 3)
        self._finish(self.graph.add("Conv", f"{value} {weight}", pads=[1, 1, 1, 1], group=shape[1]), shape)

    def add(self, value: str, shape: tuple[int, ...]) -> None:
        other = self.choose.choice([name for name, its in self.values if its == shape])
        self._finish(self.graph.add("Add", f"{value} {other}"), shape)

    def concatenate(self, value: str, shape: tuple[int, ...]) -> None:
        fits = [(name, its) for name, its in self.values if its[2:] == shape[2:]]
        other, its = self.choose.choice(fits)
        out = self.graph.add("Concat", f"{value} {other}", axis=1)
        self._finish(out, (1, shape[1] + its[1], *shape[2:]), activate=False)

    def pool(self, value: str, shape: tuple[int, ...]) -> None:
        if min(shape[2:]) < 2:
            return
        kind = self.choose.choice(["MaxPool", "AveragePool"])
        extents = tuple((n - 2) // 2 + 1 for n in shape[2:])
        out = self.graph.add(kind, value, kernel_shape=[2, 2], strides=[2, 2])
        self._finish(out, (*shape[:2], *extents), activate=False)

    def matmul(self, value: str, shape: tuple[int, ...]) -> None:
        outputs = self._channels()
        weight = self.graph.weights(shape[-1], outputs, axis=self.choose.choice([1, None]))
        if shape[2] * outputs <= 200:
            self._finish(self.graph.add("MatMul", f"{value} {weight}"), (*shape[:3], outputs))


def quantised_model(seed: int, layers: int) -> onnx.ModelProto:
    """A QDQ model of so many layers or fewer, whose last values are outputs."""
    made = _QuantisedModel(seed, layers)
    read = {name for node in made.graph.nodes for name in node.input}
    outputs = [name for name, _ in made.values if name not in read] or [made.values[-1][0]]
    return made.graph.build(*outputs)


def mutated(source: onnx.ModelProto, choose: random.Random) -> onnx.ModelProto:
    """A valid model that differs from ``source``, whose values' shapes are stated, in one to three places."""
    model = onnx.ModelProto()
    model.CopyFrom(source)
    for index in range(choose.randint(1, 3)):
        choose.choice((_expose, _reroute, _insert, _insert, _double, _share))(model.graph, f"mutant{index}", choose)
    return model


def _types(graph: onnx.GraphProto) -> dict[str, onnx.TypeProto]:
    """The types of the inputs and of what the nodes make, in an order in which they can be computed."""
    known = {each.name: each.type for each in (*graph.input, *graph.value_info, *graph.output)}
    made = [each.name for each in graph.input] + [name for node in graph.node for name in node.output]
    return {name: known[name] for name in made if name in known}


def _operands(graph: onnx.GraphProto) -> list[tuple[int, int]]:
    """Nodes and their inputs that other nodes make, by index."""
    types = _types(graph)
    return [(i, j) for i, node in enumerate(graph.node) for j, name in enumerate(node.input) if name in types]


def _expose(graph: onnx.GraphProto, name: str, choose: random.Random) -> None:
    """What a node makes for others becomes an output, too."""
    taken = {each.name for each in (*graph.output, *graph.input)}
    inner = {value: kind for value, kind in _types(graph).items() if value not in taken}
    if inner:
        value = choose.choice(list(inner))
        graph.output.add(name=value).type.CopyFrom(inner[value])


def _reroute(graph: onnx.GraphProto, name: str, choose: random.Random) -> None:
    """A node reads another value of the same type that is made before."""
    if not (places := _operands(graph)):
        return
    types = _types(graph)
    i, j = choose.choice(places)
    before = {each.name for each in graph.input} | {made for node in graph.node[:i] for made in node.output}
    fits = [value for value, kind in types.items() if value in before and kind == types[graph.node[i].input[j]]]
    graph.node[i].input[j] = choose.choice(fits)


def _insert(graph: onnx.GraphProto, name: str, choose: random.Random) -> None:
    """Something stands between a node and one of the float values that it reads."""
    types = _types(graph)
    places = [(i, j) for i, j in _operands(graph) if types[graph.node[i].input[j]].tensor_type.elem_type == 1]
    if not places:
        return
    i, j = choose.choice(places)
    source = graph.node[i].input[j]
    operator = choose.choice(["Identity", "Relu", "Neg", "Sigmoid", "Abs", "HardSwish"])
    graph.node[i].input[j] = name
    graph.node.insert(i, onnx.helper.make_node(operator, [source], [name], f"{name}_{operator}"))
    graph.value_info.add(name=name).type.CopyFrom(types[source])


def _double(graph: onnx.GraphProto, name: str, choose: random.Random) -> None:
    """A node is there twice, and what the second makes is an output."""
    types = _types(graph)
    places = [i for i, node in enumerate(graph.node) if node.output[0] in types]
    if not places:
        return
    i = choose.choice(places)
    twin = onnx.NodeProto()
    twin.CopyFrom(graph.node[i])
    twin.name = f"{name}_{twin.op_type}"
    outputs = [f"{name}_{index}" if made else "" for index, made in enumerate(twin.output)]
    twin.output[:] = outputs
    graph.node.insert(i + 1, twin)
    graph.output.add(name=outputs[0]).type.CopyFrom(types[graph.node[i].output[0]])


def _share(graph: onnx.GraphProto, name: str, choose: random.Random) -> None:
    """A node reads the weight of another."""
    weights = {each.name: (tuple(each.dims), each.data_type) for each in graph.initializer if len(each.dims) > 1}
    places = [(node, j) for node in graph.node for j, each in enumerate(node.input) if each in weights]
    if places:
        node, j = choose.choice(places)
        node.input[j] = choose.choice([each for each, kind in weights.items() if kind == weights[node.input[j]]])


def damaged(source: onnx.ModelProto, choose: random.Random) -> bytes:
    """The bytes of a model with something wrong: bytes changed, cut or doubled, or a field that says otherwise."""
    if choose.random() < 0.5:
        return _damaged_bytes(bytearray(source.SerializeToString()), choose)
    model = onnx.ModelProto()
    model.CopyFrom(source)
    for _ in range(choose.randint(1, 3)):
        choose.choice(_FIELDS)(model.graph, choose)
    return model.SerializeToString()


def _damaged_bytes(data: bytearray, choose: random.Random) -> bytes:
    for _ in range(choose.randint(1, 4)):
        place = choose.randrange(len(data))
        kind = choose.randrange(4)
        if kind == 0:
            data[place] = choose.randrange(256)
        elif kind == 1:
            data[place] ^= 1 << choose.randrange(8)
        elif kind == 2:
            del data[place : place + choose.randint(1, 20)]
        else:
            data[place:place] = data[place : place + choose.randint(1, 20)]
        if not data:
            break
    return bytes(data)


def _any(items: object, choose: random.Random) -> object:
    found = list(items)  # type: ignore[call-overload]
    return choose.choice(found) if found else None


def _rename_input(graph: onnx.GraphProto, choose: random.Random) -> None:
    node = choose.choice(list(graph.node)) if graph.node else None
    if node is not None and node.input:
        names = [each.name for each in graph.initializer] + [name for n in graph.node for name in n.output] + ["", "no"]
        node.input[choose.randrange(len(node.input))] = choose.choice(names)


def _rename_operator(graph: onnx.GraphProto, choose: random.Random) -> None:
    names = ["Conv", "Gemm", "Concat", "Resize", "If", "Loop", "NonZero", "Foo", "Reshape", "Softmax", ""]
    if graph.node:
        choose.choice(list(graph.node)).op_type = choose.choice(names)


def _change_attribute(graph: onnx.GraphProto, choose: random.Random) -> None:
    nodes = [node for node in graph.node if node.attribute]
    if not nodes:
        return
    attribute = choose.choice(list(choose.choice(nodes).attribute))
    if attribute.ints:
        attribute.ints[choose.randrange(len(attribute.ints))] = choose.choice([-1, 0, 3, 1000, -(2**40), 2**62])
    else:
        attribute.i = choose.choice([-7, -1, 0, 5, 99, 2**40])


def _change_dimension(graph: onnx.GraphProto, choose: random.Random) -> None:
    tensor = _any(graph.initializer, choose)
    if tensor is not None and tensor.dims:  # type: ignore[attr-defined]
        tensor.dims[0] = choose.choice([-1, 0, 1, 2, 9, 2**33])  # type: ignore[attr-defined]


def _change_dtype(graph: onnx.GraphProto, choose: random.Random) -> None:
    tensor = _any(graph.initializer, choose)
    if tensor is not None:
        tensor.data_type = choose.choice([0, 1, 2, 3, 6, 7, 8, 9, 10, 11, 16, 99])  # type: ignore[attr-defined]


def _change_input(graph: onnx.GraphProto, choose: random.Random) -> None:
    if not graph.input:
        return
    kind = choose.choice(list(graph.input)).type.tensor_type
    if choose.random() < 0.5 and kind.shape.dim:
        kind.shape.dim[choose.randrange(len(kind.shape.dim))].dim_value = choose.choice([-3, 0, 1, 2, 6, 2**31])
    else:
        kind.elem_type = choose.choice([0, 1, 2, 7, 8, 9, 10, 11, 77])


def _repeat_node(graph: onnx.GraphProto, choose: random.Random) -> None:
    if graph.node:
        graph.node.add().CopyFrom(choose.choice(list(graph.node)))


def _drop(graph: onnx.GraphProto, choose: random.Random) -> None:
    items = choose.choice([graph.node, graph.initializer, graph.output, graph.input])
    if len(items):
        del items[choose.randrange(len(items))]


_FIELDS = (
    _rename_input, _rename_input, _rename_operator, _change_attribute, _change_attribute, _change_dimension,
    _change_dtype, _change_input, _repeat_node, _drop,
)  # fmt: skip
