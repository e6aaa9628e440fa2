"""From an ONNX graph, float or QDQ, to TensorFlow Lite operators.

Values of four axes are kept with the channels last, as TensorFlow Lite's operators want them, and are transposed only
where an operator looks at the order of their axes. An operator that reads dequantised values and whose result is only
quantised becomes one on 8-bit integers; what has no such form is computed in floats between DEQUANTIZE and QUANTIZE.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from edgec.data.samples import Array
from edgec.errors import EdgecError, Refusal, UnsupportedModelError
from edgec.frontend.values import constant_of
from edgec.grid import Grid
from edgec.targets.tflite.writer import Quant, Writer

LAST, SECOND = (0, 2, 3, 1), (0, 3, 1, 2)
"""Axes of NCHW as NHWC has them, and back."""


class Unsupported(Exception):
    """A node that has no form here: the reason, and what would help."""

    def __init__(self, reason: str, fix: str = "compile for another target") -> None:
        self.reason, self.fix = reason, fix
        super().__init__(reason)


@dataclass(frozen=True)
class Value:
    """A tensor of the file. ``shape`` is ONNX's; with ``last`` the tensor has the channels last."""

    tensor: int
    shape: tuple[int, ...]
    dtype: str = "float32"
    last: bool = False
    quant: Quant | None = None

    @property
    def stored(self) -> tuple[int, ...]:
        """The tensor's own shape."""
        return tuple(self.shape[axis] for axis in LAST) if self.last else self.shape


@dataclass(frozen=True)
class Constant:
    """A constant as floats; of a quantised one also the integers."""

    array: Array
    integers: Array | None = None
    quant: Quant | None = None


Emitter = Callable[["Call"], "Value | list[Value]"]
EMITTERS: dict[str, Emitter] = {}
INTEGERS: set[str] = set()
"""Operators whose emitters also work on 8-bit integers."""
FUSING = {"Conv", "Gemm", "Add", "Sub", "Mul", "MatMul"}
"""Operators that TensorFlow Lite gives an activation."""


def emits(*names: str, integers: bool = False) -> Callable[[Emitter], Emitter]:
    """Register the emitter of ONNX operators."""

    def register(emitter: Emitter) -> Emitter:
        for name in names:
            EMITTERS[name] = emitter
        if integers:
            INTEGERS.update(names)
        return emitter

    return register


class Call:
    """One node for its emitter: operands and results, in floats or with ``quant`` in 8-bit integers."""

    def __init__(self, converter: Converter, node: ir.Node, quant: Quant | None, activation: str) -> None:
        self.converter, self.node, self.quant, self.activation = converter, node, quant, activation
        self.writer = converter.writer
        self.shape = shape_of(node.outputs[0])

    @property
    def dtype(self) -> str:
        """Of activations."""
        return "float32" if self.quant is None else "int8"

    @property
    def activation_code(self) -> int:
        """As the schema has it."""
        return int(getattr(self.writer.schema.ActivationFunctionType, self.activation))

    def integer(self, name: str, default: int = 0) -> int:
        """An attribute."""
        return int(self.node.attributes.get_int(name, default))

    def integers(self, name: str, default: Sequence[int]) -> list[int]:
        """An attribute."""
        return list(self.node.attributes.get_ints(name, list(default)))

    def number(self, name: str, default: float) -> float:
        """An attribute."""
        return float(self.node.attributes.get_float(name, default))

    def text(self, name: str, default: str) -> str:
        """An attribute."""
        return str(self.node.attributes.get_string(name, default))

    def has(self, index: int) -> bool:
        """Whether there is such an input."""
        return index < len(self.node.inputs) and self.node.inputs[index] is not None

    def constant(self, index: int) -> Constant | None:
        """The input, if it is a constant."""
        return self.converter.constants.get(self._name(index)) if self.has(index) else None

    def known(self, index: int, what: str) -> Array:
        """The constant input.

        Raises:
            Unsupported: it is computed.
        """
        found = self.constant(index)
        if found is None:
            raise Unsupported(f"its {what} is computed when the model runs")
        return found.array

    def value(self, index: int) -> Value:
        """The input, in the type of the call; constants become tensors."""
        name = self._name(index)
        constant = self.converter.constants.get(name)
        if constant is None:
            return self.converter.value(name, self.quant is not None)
        if self.quant is None:
            return Value(self.writer.constant(name, constant.array), constant.array.shape, str(constant.array.dtype))
        if constant.integers is None or constant.quant is None or len(constant.quant.scales) != 1:
            raise Unsupported("a constant that it reads is not quantised")
        made = self.writer.constant(name, constant.integers, constant.quant)
        return Value(made, constant.integers.shape, "int8", quant=constant.quant)

    def _name(self, index: int) -> str:
        value = self.node.inputs[index]
        assert value is not None
        return str(value.name)

    def result(self, shape: Sequence[int] | None = None, last: bool = False, quant: Quant | None = None) -> Value:
        """A new tensor for the result, or for a step on the way to it; quantised as the result unless told."""
        shape, dtype = tuple(self.shape if shape is None else shape), self.dtype
        own = (quant or self.quant) if dtype == "int8" else None
        return self.converter.tensor(str(self.node.outputs[0].name), shape, dtype, last, own)

    def operator(
        self, name: str, inputs: Sequence[Value | int], output: Value, options: str = "", **fields: Any
    ) -> Value:
        """Append an operator; answers ``output``."""
        indices = [each.tensor if isinstance(each, Value) else each for each in inputs]
        self.writer.operator(name, indices, [output.tensor], options, **fields)
        return output

    def numbers(self, values: Sequence[int] | Array) -> int:
        """A constant of 32-bit integers."""
        return self.writer.constant(f"{self.node.name}_numbers", np.asarray(values, np.int32))

    def last(self, value: Value) -> Value:
        """The value with channels last."""
        return self.converter.last(value)

    def plain(self, value: Value) -> Value:
        """The value with its axes in ONNX's order."""
        return self.converter.plain(value)

    def finished(self, value: Value) -> Value:
        """``value``, whose integers may be on another grid, on that of the result."""
        if self.quant is None or value.quant == self.quant:
            return value
        return self.operator("QUANTIZE", [value], self.result(value.shape, value.last), "QuantizeOptions")

    def axis(self, value: Value, axis: int) -> int:
        """Where an axis of ONNX's stands in the tensor."""
        axis %= len(value.shape)
        return LAST.index(axis) if value.last else axis


class Converter:
    """Walks a graph, node by node."""

    def __init__(self, model: ir.Model, grids: Mapping[str, Grid]) -> None:
        self.model, self.grids, self.writer = model, grids, Writer()
        self.values: dict[str, Value] = {}
        self.constants: dict[str, Constant] = {}
        self._integers: dict[str, Value] = {}
        self._moved: dict[tuple[int, bool], Value] = {}
        self._done: set[int] = set()
        self._named: set[int] = set()
        self._outputs = {str(value.name) for value in model.graph.outputs}

    def convert(self) -> tuple[list[Value], list[Value]]:
        """Everything; answers inputs and outputs.

        Raises:
            UnsupportedModelError: with every node that has no form here.
        """
        import edgec.targets.tflite.elementwise
        import edgec.targets.tflite.layers
        import edgec.targets.tflite.movement  # noqa: F401

        graph, refusals = self.model.graph, []
        inputs = [self._input(value) for value in graph.inputs]
        for value in graph.initializers.values():
            array = constant_of(value)
            assert array is not None
            self.constants[str(value.name)] = Constant(array)
        for node in graph:
            try:
                self._convert(node)
            except Unsupported as error:
                refusals.append(_refusal(node, error))
                for output in node.outputs:
                    self.values[str(output.name)] = Value(-1, shape_of(output), last=len(shape_of(output)) == 4)
        if refusals:
            raise UnsupportedModelError(refusals)
        return inputs, [self._output(value) for value in graph.outputs]

    def _input(self, value: ir.Value) -> Value:
        shape, dtype = shape_of(value), str(value.dtype.numpy()) if value.dtype else "float32"
        grid = self.grids.get(str(value.name))
        quant = Quant((grid.scale,), (grid.zero,)) if grid is not None and dtype == "int8" else None
        if quant is None and dtype not in ("float32", "int32", "int64", "bool"):
            raise EdgecError(f"the input '{value.name}' is {dtype}, which the target tflite does not take")
        made = self.tensor(str(value.name), shape, dtype, len(shape) == 4, quant)
        self.values[str(value.name)] = made
        self._named.add(made.tensor)
        return made

    def _output(self, value: ir.Value) -> Value:
        """The graph's output, with channels last, in a tensor of its own name."""
        name = str(value.name)
        if name in self.constants:
            raise EdgecError(f"the output '{name}' is a constant, which a TensorFlow Lite file cannot give")
        found = self.value(name, False)
        found = self.last(found) if len(found.shape) == 4 else found
        if found.tensor in self._named:
            copy = self.tensor(name, found.shape, found.dtype, found.last, found.quant)
            shape = self.writer.constant("shape", np.asarray(found.stored, np.int32))
            options = {"newShape": list(found.stored)}
            self.writer.operator("RESHAPE", [found.tensor, shape], [copy.tensor], "ReshapeOptions", **options)
            found = copy
        self.writer.rename(found.tensor, name)
        self._named.add(found.tensor)
        return found

    def tensor(self, name: str, shape: Sequence[int], dtype: str, last: bool, quant: Quant | None) -> Value:
        """A new tensor."""
        made = Value(-1, tuple(shape), dtype, last, quant)
        return Value(self.writer.tensor(name, made.stored, dtype, quant), made.shape, dtype, last, quant)

    def value(self, name: str, integers: bool) -> Value:
        """A computed value in floats, or the integers that it was dequantised from.

        Raises:
            Unsupported: there are no such integers.
        """
        if name in self.values and self.values[name].dtype == "int8":
            return self.values[name]
        if integers:
            if name not in self._integers:
                raise Unsupported("it reads a value that is not quantised")
            return self._integers[name]
        if name not in self.values:
            source = self._integers[name]
            made = self.tensor(name, source.shape, "float32", source.last, None)
            self.writer.operator("DEQUANTIZE", [source.tensor], [made.tensor], "DequantizeOptions")
            self.values[name] = made
        return self.values[name]

    def last(self, value: Value) -> Value:
        """With channels last."""
        return value if value.last else self._move(value, LAST, True)

    def plain(self, value: Value) -> Value:
        """With ONNX's order of axes."""
        return self._move(value, SECOND, False) if value.last else value

    def _move(self, value: Value, axes: Sequence[int], last: bool) -> Value:
        key = (value.tensor, last)
        if key not in self._moved:
            made = self.tensor("moved", value.shape, value.dtype, last, value.quant)
            if sum(extent > 1 for extent in value.shape[2:]) == 0 or value.shape[1] == 1:
                shape = self.writer.constant("shape", np.asarray(made.stored, np.int32))
                options = {"newShape": list(made.stored)}
                self.writer.operator("RESHAPE", [value.tensor, shape], [made.tensor], "ReshapeOptions", **options)
            else:
                order = self.writer.constant("axes", np.asarray(axes, np.int32))
                self.writer.operator("TRANSPOSE", [value.tensor, order], [made.tensor], "TransposeOptions")
            self._moved[key] = made
        return self._moved[key]

    def _convert(self, node: ir.Node) -> None:
        if id(node) in self._done:
            return
        if node.domain == "" and node.op_type == "QuantizeLinear":
            self._quantise(node)
        elif node.domain == "" and node.op_type == "DequantizeLinear":
            self._dequantise(node)
        else:
            self._compute(node)

    def _compute(self, node: ir.Node) -> None:
        emitter = EMITTERS.get(node.op_type) if node.domain == "" else None
        if emitter is None:
            raise Unsupported("TensorFlow Lite has no such operator, or it is not written here")
        moved = self.values.get(str(node.inputs[0].name)) if node.inputs and node.inputs[0] is not None else None
        if moved is not None and moved.dtype == "int8":
            self._move_integers(emitter, node, moved)
            return
        last, activation = self._activation(node)
        quantised = self._quantised_by(last)
        if quantised is not None and node.op_type in INTEGERS:
            quant = self._grid(quantised)
            if quant is not None and self._try_integers(emitter, node, quant, activation, quantised):
                self._done |= {id(last), id(quantised)}
                return
        found = emitter(Call(self, node, None, activation))
        for output, value in zip(last.outputs, found if isinstance(found, list) else [found], strict=False):
            self.values[str(output.name)] = value
        self._done.add(id(last))

    def _move_integers(self, emitter: Emitter, node: ir.Node, source: Value) -> None:
        """A node that stands between the integers of QuantizeLinear and DequantizeLinear, and only moves them."""
        if node.op_type not in INTEGERS:
            raise Unsupported("it computes with integers")
        found = emitter(Call(self, node, source.quant, "NONE"))
        for output, value in zip(node.outputs, found if isinstance(found, list) else [found], strict=True):
            self.values[str(output.name)] = value

    def _try_integers(self, emitter: Emitter, node: ir.Node, quant: Quant, activation: str, by: ir.Node) -> bool:
        """Emit the node on integers, if its operands are."""
        names = [str(value.name) for value in node.inputs if value is not None]
        if any(name not in self._integers for name in names if name not in self.constants):
            return False
        try:
            found = emitter(Call(self, node, quant, activation))
        except Unsupported:
            return False
        assert isinstance(found, Value)
        self.values[str(by.outputs[0].name)] = found
        return True

    def _activation(self, node: ir.Node) -> tuple[ir.Node, str]:
        """The node whose result an operator gives with its activation, and that activation."""
        after = self._only_reader(node)
        if node.op_type in FUSING and after is not None and after.domain == "":
            if after.op_type == "Relu":
                return after, "RELU"
            if after.op_type == "Clip" and bounds(after) == (0.0, 6.0):
                return after, "RELU6"
        return node, "NONE"

    def _only_reader(self, node: ir.Node) -> ir.Node | None:
        if len(node.outputs) != 1 or str(node.outputs[0].name) in self._outputs:
            return None
        uses = list(node.outputs[0].uses())
        return uses[0].node if len(uses) == 1 else None

    def _quantised_by(self, node: ir.Node) -> ir.Node | None:
        after = self._only_reader(node)
        return after if after is not None and after.op_type == "QuantizeLinear" else None

    def _grid(self, node: ir.Node) -> Quant | None:
        """Of QuantizeLinear or DequantizeLinear with one scale, if it is of signed bytes."""
        scale, zero = (constant_of(value) for value in node.inputs[1:3]) if len(node.inputs) > 2 else (None, None)
        if scale is None or zero is None or zero.dtype != np.int8 or scale.size != 1:
            return None
        return Quant((float(scale.ravel()[0]),), (int(zero.ravel()[0]),))

    def _quantise(self, node: ir.Node) -> None:
        quant, name = self._grid(node), str(node.inputs[0].name)  # type: ignore[union-attr]
        source = self.value(name, False)
        zero = constant_of(node.inputs[2]) if len(node.inputs) > 2 else None
        if quant is None and zero is not None and zero.dtype.itemsize > 1:
            self.values[str(node.outputs[0].name)] = self._limited(node, source)
            return
        if quant is None:
            raise Unsupported("it quantises to other integers than signed bytes with one scale", "use --quantize int8")
        made = self.tensor(str(node.outputs[0].name), source.shape, "int8", source.last, quant)
        self.writer.operator("QUANTIZE", [source.tensor], [made.tensor], "QuantizeOptions")
        self.values[str(node.outputs[0].name)] = made

    def _limited(self, node: ir.Node, source: Value) -> Value:
        """Floats in place of integers of 16 bits, which they are as exact as, between the ends of these."""
        scale, zero = (constant_of(value) for value in node.inputs[1:3])
        assert scale is not None and zero is not None
        if scale.size != 1:
            raise Unsupported("it quantises to 16 bits with more than one scale", "use --quantize int8")
        limits = np.iinfo(zero.dtype)
        low, high = ((end - int(zero.ravel()[0])) * float(scale.ravel()[0]) for end in (limits.min, limits.max))
        producer = node.inputs[0].producer()  # type: ignore[union-attr]
        is_positive = producer is not None and producer.op_type == "Relu"
        for name, end in (("MAXIMUM", low), ("MINIMUM", high)):
            if name == "MAXIMUM" and is_positive and end <= 0:
                continue
            made = self.tensor("limited", source.shape, "float32", source.last, None)
            bound = self.writer.constant("bound", np.asarray(end, np.float32))
            self.writer.operator(name, [source.tensor, bound], [made.tensor], "MaximumMinimumOptions")
            source = made
        return source

    def _dequantise(self, node: ir.Node) -> None:
        source, output = str(node.inputs[0].name), str(node.outputs[0].name)  # type: ignore[union-attr]
        if source in self.constants:
            self.constants[output] = _dequantised(node, self.constants[source].array)
            return
        found = self.values[source]
        (self._integers if found.dtype == "int8" else self.values)[output] = found


def _dequantised(node: ir.Node, integers: Array) -> Constant:
    scale = constant_of(node.inputs[1])
    zero = constant_of(node.inputs[2]) if len(node.inputs) > 2 else None
    assert scale is not None
    zero = np.zeros_like(scale, integers.dtype) if zero is None else zero
    axis = node.attributes.get_int("axis", 1) % max(integers.ndim, 1)
    shape = [-1 if index == axis else 1 for index in range(integers.ndim)] if scale.size > 1 else [1] * integers.ndim
    if scale.size > 1 and scale.ndim > 1:
        raise Unsupported("its scales are of blocks")
    centred = integers.astype(np.float32) - zero.astype(np.float32).reshape(shape)
    quant = Quant(tuple(map(float, scale.ravel())), tuple(map(int, zero.ravel())), axis)
    return Constant((centred * scale.reshape(shape)).astype(np.float32), integers, quant)


def bounds(node: ir.Node) -> tuple[float, float]:
    """Of Clip, as floats; infinite where there is none, NaN where it is computed."""

    def bound(index: int, default: float) -> float:
        if index >= len(node.inputs) or node.inputs[index] is None:
            return default
        found = constant_of(node.inputs[index])
        return float("nan") if found is None else float(found.ravel()[0])

    return bound(1, float("-inf")), bound(2, float("inf"))


def shape_of(value: ir.Value) -> tuple[int, ...]:
    """Static, as import has made it."""
    assert value.shape is not None
    return tuple(int(extent) for extent in value.shape.numpy())


def _refusal(node: ir.Node, error: Unsupported) -> Refusal:
    shapes = " ".join(str(list(shape_of(value))) for value in node.outputs)
    return Refusal(str(node.name), node.op_type, shapes, error.reason, error.fix)
