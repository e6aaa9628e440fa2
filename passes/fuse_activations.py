"""Fuse an activation that is spelled out in small operators into the one operator that it is.

Exporters spell one function in many ways: x / 2 · (1 + erf(x / √2)) has its factors in any order, divides or
multiplies, and a hard swish is clipped by Clip, Min and Max or Relu6. So nothing is matched by its spelling.
From a node back, the elementwise operators between it and *one* value x are a function f of that value and of
constants; f is evaluated in float64 where it matters and compared with each known activation g, whose
parameters follow from a few values of f:

    Relu, Clip        g(x) = min(max(x, lo), hi),        lo = f(−∞), hi = f(∞)
    HardSigmoid       g(x) = min(max(αx + β, 0), 1),     β = f(0), α the slope there
    HardSwish         g(x) = x · min(max(x / 6 + 1/2, 0), 1)
    Sigmoid           g(x) = 1 / (1 + e⁻ˣ)
    Swish             g(x) = x · sigmoid(αx),            α = logit(f(1)): 1 for SiLU, 1.702 for the fast GELU
    Gelu, GeluTanh    g(x) = x · Φ(x), by erf or by tanh
    Softplus          g(x) = log(1 + eˣ)
    Mish              g(x) = x · tanh(softplus(x))
    LeakyRelu, PRelu  g(x) = max(x, 0) + α · min(x, 0),  α = −f(−1), one number or one a channel

f and g are equal if they differ by at most 10⁻⁶ · max(1, |x|) at every point of a grid that is dense where
activations bend and reaches to ±10³⁰ (constants are rounded to float32, which moves f by up to 10⁻⁷). The
longest chain that is an activation, and whose inside nobody else reads, is taken.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from edgec.frontend.values import constant_of, is_static, shape_of
from edgec.passes.functions import call
from edgec.passes.fuse import FusePass, Match, initializer, outside_use

Function = Callable[..., np.ndarray]


class FuseActivations(FusePass):
    """Recognises activations in whichever way they are spelled out."""

    name: ClassVar[str] = "fuse-activations"

    def match(self, model: ir.Model, node: ir.Node) -> Match | None:
        best = None
        for source, chain in _chains(node):
            activation = _recognise(source, chain, node)
            if activation is not None:
                longer = _as_match(model, node, source, chain, activation)
                best = longer if best is None or outside_use(longer, node) is None else best
        return best


@dataclass(frozen=True)
class Activation:
    """A known activation with the parameters found for it."""

    name: str
    function: Function
    attributes: Mapping[str, float] = field(default_factory=dict)
    constants: Sequence[np.ndarray | None] = ()


# ---- evaluation -------------------------------------------------------------------------------------------


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def _softplus(x: np.ndarray) -> np.ndarray:
    return np.logaddexp(0, x)


_erf = np.vectorize(math.erf, otypes=[np.float64])


def _clip(x: np.ndarray, low: np.ndarray | float = -np.inf, high: np.ndarray | float = np.inf) -> np.ndarray:
    return np.minimum(np.maximum(x, low), high)


def _hard_sigmoid(x: np.ndarray, alpha: float = 0.2, beta: float = 0.5) -> np.ndarray:
    return _clip(alpha * x + beta, 0, 1)


def _leaky_relu(x: np.ndarray, alpha: np.ndarray | float = 0.01) -> np.ndarray:
    return np.where(x < 0, alpha * x, x)


def _swish(x: np.ndarray, alpha: float = 1.0) -> np.ndarray:
    return x * _sigmoid(alpha * x)


def _gelu(x: np.ndarray) -> np.ndarray:
    return 0.5 * x * (1 + _erf(x * math.sqrt(0.5)))


def _gelu_tanh(x: np.ndarray) -> np.ndarray:
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def _hard_swish(x: np.ndarray) -> np.ndarray:
    return x * _hard_sigmoid(x, 1 / 6)


def _mish(x: np.ndarray) -> np.ndarray:
    return x * np.tanh(_softplus(x))


_OPERATORS: Mapping[str, Function] = {
    "Add": np.add, "Sub": np.subtract, "Mul": np.multiply, "Div": np.divide, "Pow": np.power,
    "Max": np.maximum, "Min": np.minimum, "Neg": np.negative, "Abs": np.abs, "Reciprocal": np.reciprocal,
    "Exp": np.exp, "Log": np.log, "Tanh": np.tanh, "Erf": _erf, "Sigmoid": _sigmoid, "Softplus": _softplus,
    "Relu": lambda x: np.maximum(x, 0), "Clip": _clip, "HardSigmoid": _hard_sigmoid, "LeakyRelu": _leaky_relu,
    "PRelu": _leaky_relu,
}  # fmt: skip
"""Elementwise operators in numpy; attributes go by their names."""

_LONGEST = 16
"""Nodes of the longest chain: a GELU by tanh takes 10, a Mish without Softplus 6."""

_POINTS = np.unique(
    np.concatenate([np.linspace(-12, 12, 481), *(sign * np.geomspace(12, 1e30, 60) for sign in (-1, 1))])
)


def _is_elementwise(node: ir.Node | None) -> bool:
    """Whether the node computes, in floats of one dtype, element by element."""
    if node is None or node.domain != "" or node.op_type not in _OPERATORS or len(node.inputs) > 3:
        return False
    output = node.outputs[0]
    floats = output.dtype is not None and output.dtype.is_floating_point()
    return floats and all(value is None or is_static(value) for value in (*node.inputs, output))


def _chains(last: ir.Node) -> Iterator[tuple[ir.Value, list[ir.Node]]]:
    """Each value that alone decides ``last``'s output, nearest first, and the nodes between in reverse order."""
    before = _elementwise_before(last)
    chain: list[ir.Node] = []
    front = [last.outputs[0]]
    while len(chain) < _LONGEST:
        makers = [value.producer() for value in front]
        ready = [node for node in makers if node in before and not _is_read_by(node, before - {*chain})]
        if not ready:
            return
        node = ready[0]
        chain.append(node)
        computed = [value for value in node.inputs if value is not None and value.const_value is None]
        front = list(dict.fromkeys([value for value in front if value.producer() is not node] + computed))
        if len(front) == 1 and shape_of(front[0]) == shape_of(last.outputs[0]):
            yield front[0], list(chain)


def _elementwise_before(last: ir.Node) -> set[ir.Node]:
    """``last`` and the elementwise nodes that lead to it, no further back than the longest chain."""
    found: set[ir.Node] = set()
    front: set[ir.Node | None] = {last}
    for _ in range(_LONGEST):
        newest = {node for node in front if node is not None and node not in found and _is_elementwise(node)}
        found |= newest
        front = {value.producer() for node in newest for value in node.inputs if value is not None}
    return found


def _is_read_by(node: ir.Node, others: set[ir.Node]) -> bool:
    return any(reader in others for reader in node.outputs[0].consumers())


def _evaluate(source: ir.Value, chain: Sequence[ir.Node], x: np.ndarray) -> np.ndarray:
    """The chain's function at ``x`` [points], as [points, *the shape that its constants broadcast to]."""
    rank = len(shape_of(source))
    known = {source: x.reshape(-1, *(1,) * rank)}
    with np.errstate(all="ignore"):
        for node in reversed(chain):
            values = [_value(value, known, node) for value in node.inputs]
            attributes = {name: attribute.value for name, attribute in node.attributes.items()}
            given = [default if value is None else value for value, default in zip(values, _MISSING, strict=False)]
            known[node.outputs[0]] = _OPERATORS[node.op_type](*given, **attributes)
    return known[chain[0].outputs[0]]


_MISSING = (None, -np.inf, np.inf)
"""What stands for a missing input: only the bounds of Clip may be missing."""


def _value(value: ir.Value | None, known: Mapping[ir.Value, np.ndarray], node: ir.Node) -> np.ndarray | None:
    if value is None or value in known:
        return None if value is None else known[value]
    constant = constant_of(value)
    assert constant is not None
    return constant.astype(np.float64)


# ---- recognition ------------------------------------------------------------------------------------------


def _recognise(source: ir.Value, chain: Sequence[ir.Node], last: ir.Node) -> Activation | None:
    """The activation that the chain computes, if that is another operator than ``last`` already is."""
    if len(chain) == 1 and last.op_type not in ("Max", "Min"):
        return None
    if any(array is not None and array.size > _CHANNELS for node in chain for array in map(constant_of, node.inputs)):
        return None
    values = _evaluate(source, chain, _POINTS)
    if values[0].size > 1:
        return _per_channel(source, values)
    found = values.reshape(-1)
    return next((each for each in _candidates(found) if _equal(each.function(_POINTS), found)), None)


_CHANNELS = 2**12
"""Elements of the largest constant that can be a slope per channel."""


def _equal(wanted: np.ndarray, found: np.ndarray) -> bool:
    """Within rounding at every point where both are finite (exponentials overflow far out)."""
    finite = np.isfinite(wanted) & np.isfinite(found)
    points = _POINTS.reshape(-1, *(1,) * (found.ndim - 1))
    error = np.abs(np.where(finite, wanted - found, 0)) / np.maximum(1, np.abs(points))
    return bool(finite[np.abs(_POINTS) <= 12].all() and error.max() <= 1e-6)


def _at(values: np.ndarray, x: float) -> np.ndarray:
    return values[np.searchsorted(_POINTS, x)]


def _candidates(f: np.ndarray) -> Iterator[Activation]:
    """The activations with the parameters that ``f`` [points] would have if it were one."""
    with np.errstate(all="ignore"):
        low, high, at_one = float(f[0]), float(f[-1]), float(_at(f, 1))
        yield Activation("Relu", lambda x: np.maximum(x, 0))
        yield Activation("HardSwish", _hard_swish)
        yield Activation("Sigmoid", _sigmoid)
        yield Activation("Gelu", _gelu)
        yield Activation("GeluTanh", _gelu_tanh)
        yield Activation("Softplus", _softplus)
        yield Activation("Mish", _mish)
        if 0 < at_one < 1:
            alpha = _rounded(math.log(at_one / (1 - at_one)))
            yield Activation("Swish", lambda x: _swish(x, alpha), {"alpha": alpha})
        yield from _bounded(f, low, high)
        slope = _rounded(-float(_at(f, -1)))
        yield Activation("LeakyRelu", lambda x: _leaky_relu(x, slope), {"alpha": slope})


def _bounded(f: np.ndarray, low: float, high: float) -> Iterator[Activation]:
    """Clip and HardSigmoid: both are level far out."""
    bounds = [None if abs(bound) >= _POINTS[-1] else np.float32(bound) for bound in (low, high)]
    if any(bound is not None for bound in bounds) and low < high:
        yield Activation("Clip", lambda x: _clip(x, low, high), constants=bounds)
    zero, step = float(_at(f, 0)), 0.05
    slope = _rounded(float(_at(f, step) - _at(f, -step)) / (2 * step))
    if 0 < zero < 1 and slope > 0:
        beta = _rounded(zero)
        yield Activation("HardSigmoid", lambda x: _hard_sigmoid(x, slope, beta), {"alpha": slope, "beta": beta})


def _per_channel(source: ir.Value, values: np.ndarray) -> Activation | None:
    """PRelu, whose slope must broadcast to x."""
    slope = -_at(values, -1)
    points = _POINTS.reshape(-1, *(1,) * slope.ndim)
    if len(slope.shape) > len(shape_of(source)) or not _equal(_leaky_relu(points, slope), values):
        return None
    return Activation("PRelu", _leaky_relu, constants=[slope])


def _rounded(value: float) -> float:
    """As an attribute holds it."""
    return float(np.float32(value))


def _as_match(
    model: ir.Model, last: ir.Node, source: ir.Value, chain: Sequence[ir.Node], activation: Activation
) -> Match:
    def build() -> list[ir.Node]:
        assert source.dtype is not None
        constants = [
            None if array is None else initializer(model, f"{last.name}_{index}", array.astype(source.dtype.numpy()))
            for index, array in enumerate(activation.constants)
        ]
        label, attributes = last.name, dict(activation.attributes)
        if activation.name in ("Swish", "Gelu", "GeluTanh"):
            return [call(model, activation.name, [source], attributes, label)]
        return [ir.node(activation.name, [source, *constants], attributes, name=label)]

    return Match(activation.name, chain[1:], build)
