"""Operators on single elements, and reductions over axes."""

from __future__ import annotations

import numpy as np

from edgec.targets.tflite.convert import LAST, Call, Unsupported, Value, bounds, emits
from edgec.targets.tflite.writer import Quant

UNARY = {
    "Abs": "ABS", "Ceil": "CEIL", "Cos": "COS", "Elu": "ELU", "Exp": "EXP", "Floor": "FLOOR", "HardSwish": "HARD_SWISH",
    "Log": "LOG", "Neg": "NEG", "Round": "ROUND", "Sin": "SIN", "Sqrt": "SQRT",
}  # fmt: skip
OPTIONS = {"ABS": "AbsOptions", "COS": "CosOptions", "EXP": "ExpOptions", "HARD_SWISH": "HardSwishOptions",
           "NEG": "NegOptions"}  # fmt: skip
BINARY = {
    "Add": ("ADD", "AddOptions"), "Sub": ("SUB", "SubOptions"), "Mul": ("MUL", "MulOptions"),
    "Div": ("DIV", "DivOptions"), "Min": ("MINIMUM", "MaximumMinimumOptions"),
    "Max": ("MAXIMUM", "MaximumMinimumOptions"), "Pow": ("POW", "PowOptions"),
}  # fmt: skip
REDUCTIONS = {"ReduceMean": "MEAN", "ReduceSum": "SUM", "ReduceMax": "REDUCE_MAX", "ReduceMin": "REDUCE_MIN"}

LOGISTIC, TANH = Quant((1 / 256,), (-128,)), Quant((1 / 128,), (0,))
"""The grids that these operators' integers are on by the specification; for another they are computed in floats."""


def _require_grid(call: Call, grid: Quant) -> None:
    if call.quant not in (None, grid):
        raise Unsupported("its integers are on another grid")


@emits(*UNARY)
def unary(call: Call) -> Value:
    """A function of one element."""
    source, name = call.value(0), UNARY[call.node.op_type]
    return call.operator(name, [source], call.result(last=source.last), OPTIONS.get(name, ""))


@emits("Identity", "Dropout")
def identity(call: Call) -> Value:
    """The input itself."""
    return call.value(0)


@emits("Relu", integers=True)
def relu(call: Call) -> Value:
    """Integers may go to another grid on the way."""
    source = call.value(0)
    return call.operator("RELU", [source], call.result(last=source.last))


@emits("Clip")
def clip(call: Call) -> Value:
    """RELU and RELU6 where the bounds are theirs."""
    low, high = bounds(call.node)
    source = call.value(0)
    if np.isnan(low) or np.isnan(high):
        raise Unsupported("its bounds are computed when the model runs")
    name = {(0.0, float("inf")): "RELU", (0.0, 6.0): "RELU6", (-1.0, 1.0): "RELU_N1_TO_1"}.get((low, high))
    if name:
        return call.operator(name, [source], call.result(last=source.last))
    return _bounded(call, source, low, high)


def _bounded(call: Call, source: Value, low: float, high: float) -> Value:
    for name, bound in (("MAXIMUM", low), ("MINIMUM", high)):
        if np.isfinite(bound):
            limit = call.writer.constant("bound", np.asarray(bound, np.float32))
            source = call.operator(name, [source, limit], call.result(last=source.last), "MaximumMinimumOptions")
    return source


@emits("HardSigmoid")
def hard_sigmoid(call: Call) -> Value:
    """max(0, min(1, alpha · x + beta))."""
    value = call.value(0)
    for name, options, number in (
        ("MUL", "MulOptions", call.number("alpha", 0.2)), ("ADD", "AddOptions", call.number("beta", 0.5)),
    ):  # fmt: skip
        factor = call.writer.constant("factor", np.asarray(number, np.float32))
        value = call.operator(name, [value, factor], call.result(last=value.last), options)
    return _bounded(call, value, 0.0, 1.0)


@emits("Sigmoid", integers=True)
def sigmoid(call: Call) -> Value:
    """LOGISTIC."""
    _require_grid(call, LOGISTIC)
    source = call.value(0)
    return call.operator("LOGISTIC", [source], call.result(last=source.last))


@emits("Tanh", integers=True)
def tanh(call: Call) -> Value:
    """TANH."""
    _require_grid(call, TANH)
    source = call.value(0)
    return call.operator("TANH", [source], call.result(last=source.last))


@emits("Reciprocal")
def reciprocal(call: Call) -> Value:
    """1 / x."""
    source = call.value(0)
    one = call.writer.constant("one", np.ones((), np.float32))
    return call.operator("DIV", [one, source], call.result(last=source.last), "DivOptions")


@emits("LeakyRelu")
def leaky_relu(call: Call) -> Value:
    """LEAKY_RELU."""
    source, result = call.value(0), call.result(last=call.value(0).last)
    return call.operator("LEAKY_RELU", [source], result, "LeakyReluOptions", alpha=call.number("alpha", 0.01))


@emits("PRelu")
def prelu(call: Call) -> Value:
    """With one slope a channel."""
    source, slope = call.value(0), call.known(1, "slope")
    if source.last:
        slope = _spread(slope).transpose(LAST)[0]
    made = call.writer.constant("slope", np.ascontiguousarray(slope))
    return call.operator("PRELU", [source, made], call.result(last=source.last))


@emits("Gelu")
def gelu(call: Call) -> Value:
    """GELU."""
    source, approximate = call.value(0), call.text("approximate", "none") == "tanh"
    return call.operator("GELU", [source], call.result(last=source.last), "GeluOptions", approximate=approximate)


def _spread(array: np.ndarray) -> np.ndarray:
    """With four axes."""
    return array.reshape((1,) * (4 - array.ndim) + array.shape)


@emits("Add", "Sub", "Mul", integers=True)
@emits("Div", "Min", "Max", "Pow")
def binary(call: Call) -> Value:
    """Operands are broadcast; those beside one with channels last get them last, too."""
    name, options = BINARY[call.node.op_type]
    if len(call.node.inputs) != 2:
        raise Unsupported("it has other than two operands")
    last = any(call.constant(index) is None and call.value(index).last for index in (0, 1))
    sources = [_operand(call, index, last) for index in (0, 1)]
    fused = {} if call.node.op_type in ("Min", "Max", "Pow") else {"fusedActivationFunction": call.activation_code}
    return call.operator(name, sources, call.result(last=last), options, **fused)


def _operand(call: Call, index: int, last: bool) -> Value:
    constant = call.constant(index)
    value = call.value(index)
    if not last or len(value.shape) == 0:
        return value
    if constant is not None:
        array = constant.array if call.quant is None else constant.integers
        assert array is not None
        moved = np.ascontiguousarray(_spread(array).transpose(LAST))
        index = call.writer.constant("operand", moved, value.quant)
        return Value(index, _spread(array).shape, value.dtype, True, value.quant)
    if len(value.shape) < 4:
        shape = (1,) * (4 - len(value.shape)) + value.shape
        made = call.converter.tensor("operand", shape, value.dtype, False, value.quant)
        value = call.operator("RESHAPE", [value, call.numbers(shape)], made, "ReshapeOptions", newShape=list(shape))
    return call.last(value)


@emits("Sum")
def total(call: Call) -> Value:
    """A chain of additions."""
    last = any(call.constant(index) is None and call.value(index).last for index in range(len(call.node.inputs)))
    value = _operand(call, 0, last)
    for index in range(1, len(call.node.inputs)):
        value = call.operator("ADD", [value, _operand(call, index, last)], call.result(last=last), "AddOptions")
    return value


@emits("BatchNormalization")
def batch_normalization(call: Call) -> Value:
    """Folded into a factor and a term."""
    scale, shift, mean, variance = (call.known(index, "parameter") for index in range(1, 5))
    factor = (scale / np.sqrt(variance + call.number("epsilon", 1e-5))).astype(np.float32)
    term = (shift - mean * factor).astype(np.float32)
    value = call.value(0)
    if not value.last:
        factor, term = (each.reshape(-1, *[1] * (len(value.shape) - 2)) for each in (factor, term))
    for name, options, array in (("MUL", "MulOptions", factor), ("ADD", "AddOptions", term)):
        parameter = call.writer.constant("parameter", array)
        value = call.operator(name, [value, parameter], call.result(last=value.last), options)
    return value


@emits("LayerNormalization")
def layer_normalization(call: Call) -> Value:
    """Spelled out over the last axes."""
    source = call.plain(call.value(0))
    axes = range(call.integer("axis", -1) % len(source.shape), len(source.shape))
    small = tuple(1 if axis in axes else extent for axis, extent in enumerate(source.shape))

    def mean(value: Value) -> Value:
        numbers = call.numbers(list(axes))
        return call.operator("MEAN", [value, numbers], call.result(small), "ReducerOptions", keepDims=True)

    def joined(name: str, options: str, first: Value, second: Value | int) -> Value:
        return call.operator(name, [first, second], call.result(first.shape), options)

    centred = joined("SUB", "SubOptions", source, mean(source))
    epsilon = call.writer.constant("epsilon", np.asarray(call.number("epsilon", 1e-5), np.float32))
    variance = joined("ADD", "AddOptions", mean(joined("MUL", "MulOptions", centred, centred)), epsilon)
    value = joined("MUL", "MulOptions", centred, call.operator("RSQRT", [variance], call.result(small)))
    for index, name, options in ((1, "MUL", "MulOptions"), (2, "ADD", "AddOptions")):
        if call.has(index):
            value = joined(name, options, value, call.value(index))
    return value


@emits("Softmax", integers=True)
def softmax(call: Call) -> Value:
    """Along the last axis of the tensor; integers are on the grid of LOGISTIC."""
    _require_grid(call, LOGISTIC)
    source, axis = call.value(0), call.integer("axis", -1) % len(call.shape)
    if source.last and axis != 1:
        source = call.plain(source)
    if call.axis(source, axis) != len(source.shape) - 1:
        raise Unsupported("its axis is not the last, nor the channels'", "transpose before it")
    return call.operator("SOFTMAX", [source], call.result(last=source.last), "SoftmaxOptions", beta=1.0)


@emits("GlobalAveragePool", "GlobalMaxPool")
def global_pool(call: Call) -> Value:
    """A reduction over the picture; on integers in floats, which rounds as edgec does."""
    source = call.value(0)
    name = "MEAN" if call.node.op_type == "GlobalAveragePool" else "REDUCE_MAX"
    axes = [call.axis(source, axis) for axis in range(2, len(source.shape))]
    return call.operator(
        name, [source, call.numbers(axes)], call.result(last=source.last), "ReducerOptions", keepDims=True
    )


@emits(*REDUCTIONS)
def reduction(call: Call) -> Value:
    """Over the axes of an attribute or of a constant."""
    source = call.value(0)
    axes = call.known(1, "list of axes").tolist() if call.has(1) else call.integers("axes", range(len(source.shape)))
    keeps = bool(call.integer("keepdims", 1))
    if source.last and not keeps:
        source = call.plain(source)
    result = call.result(last=source.last and keeps)
    places = [call.axis(source, axis) for axis in axes]
    name = REDUCTIONS[call.node.op_type]
    return call.operator(name, [source, call.numbers(places)], result, "ReducerOptions", keepDims=keeps)
