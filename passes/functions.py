"""The fused operators that ONNX lacks, as model-local functions of domain ``edgec``.

Each has a body in standard operators, so that a model which calls it still runs in ONNX Runtime and anywhere
else; the compiler lowers the call as a whole. Where the model's opset has the operator itself, ``call`` makes
that instead. Every attribute must be given.

====================  ======================  ===========  ==================================================
name                  inputs                  attributes   output
====================  ======================  ===========  ==================================================
Gelu                  x                                    x · Φ(x), Φ by erf
GeluTanh              x                                    x / 2 · (1 + tanh(√(2/π) · (x + 0.044715 · x³)))
Swish                 x                       alpha        x · sigmoid(alpha · x)
RMSNormalization      x, scale                epsilon      x / √(mean(x²) + epsilon) · scale, along the last axis
GroupNormalization    x [N, C, …], scale [C], epsilon,     per image and group of channels to mean 0 and
                      bias [C]                num_groups   variance 1, then · scale + bias per channel
Attention             q […, S, D], k […, D, T],  scale     softmax(scale · q·k)·v, the softmax along T
                      v […, T, E]
MaskedAttention       the same and mask       scale        softmax(scale · q·k + mask)·v
SqueezeExcite         x [N, C, H, W],                      x · σ(relu(mean(x)·w₁ + b₁)·w₂ + b₂), the mean over
                      w₁ [C, M], b₁ [M],                   H and W
                      w₂ [M, C], b₂ [C]
SqueezeExciteHard     the same                alpha, beta  the same with HardSigmoid for σ
SqueezeExciteSwish    the same                             SqueezeExcite with x · σ(x) for relu
SqueezeExciteSwishHard  the same              alpha, beta  both
====================  ======================  ===========  ==================================================

The key of an attention is transposed: columns are positions. The operators on integers are listed in
:mod:`edgec.passes.integer_functions`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx
import onnx_ir as ir

from edgec.passes.integer_functions import INTEGER_BODIES

DOMAIN, VERSION = "edgec", 1



def _squeeze_excite(activation: str, gate: str, attributes: str = "") -> str:
    """The body of a squeeze-and-excitation with these steps from ``hidden`` to ``active``, and of ``gate``."""
    return f"""{attributes} (x, w1, b1, w2, b2) => (y) {{
        spatial = Constant <value_ints: ints = [2, 3]> ()
        pooled = GlobalAveragePool (x)
        rows = Flatten (pooled)
        hidden = Gemm (rows, w1, b1)
        {activation}
        sums = Gemm (active, w2, b2)
        gates = {gate} (sums)
        wide = Unsqueeze (gates, spatial)
        y = Mul (x, wide)
    }}"""


_RELU = "active = Relu (hidden)"
_SWISH = """share = Sigmoid (hidden)
        active = Mul (hidden, share)"""
_HARD_SIGMOID = "HardSigmoid <alpha: float = @alpha, beta: float = @beta>"

_BODIES: Mapping[str, str] = {
    "Gelu": """(x) => (y) {
        root = Constant <value_float: float = 0.70710678118654752> ()
        half = Constant <value_float: float = 0.5> ()
        one = Constant <value_float: float = 1.0> ()
        root_x = CastLike (root, x)
        half_x = CastLike (half, x)
        one_x = CastLike (one, x)
        inner = Mul (x, root_x)
        erf = Erf (inner)
        sum = Add (erf, one_x)
        part = Mul (x, half_x)
        y = Mul (part, sum)
    }""",
    "GeluTanh": """(x) => (y) {
        factor = Constant <value_float: float = 0.79788456080286536> ()
        third = Constant <value_float: float = 0.044715> ()
        half = Constant <value_float: float = 0.5> ()
        one = Constant <value_float: float = 1.0> ()
        factor_x = CastLike (factor, x)
        third_x = CastLike (third, x)
        half_x = CastLike (half, x)
        one_x = CastLike (one, x)
        square = Mul (x, x)
        cube = Mul (square, x)
        cubic = Mul (cube, third_x)
        polynomial = Add (x, cubic)
        inner = Mul (polynomial, factor_x)
        tanh = Tanh (inner)
        sum = Add (tanh, one_x)
        part = Mul (x, half_x)
        y = Mul (part, sum)
    }""",
    "Swish": """<alpha> (x) => (y) {
        slope = Constant <value_float: float = @alpha> ()
        slope_x = CastLike (slope, x)
        scaled = Mul (x, slope_x)
        gate = Sigmoid (scaled)
        y = Mul (x, gate)
    }""",
    "RMSNormalization": """<epsilon> (x, scale) => (y) {
        small = Constant <value_float: float = @epsilon> ()
        small_x = CastLike (small, x)
        last = Constant <value_ints: ints = [-1]> ()
        square = Mul (x, x)
        mean = ReduceMean (square, last)
        sum = Add (mean, small_x)
        root = Sqrt (sum)
        normal = Div (x, root)
        y = Mul (normal, scale)
    }""",
    "GroupNormalization": """<num_groups, epsilon> (x, scale, bias) => (y) {
        kept = Constant <value_ints: ints = [0]> ()
        rest = Constant <value_ints: ints = [-1]> ()
        first = Constant <value_ints: ints = [1]> ()
        count = Constant <value_int: int = @num_groups> ()
        groups = Reshape (count, first)
        split = Concat <axis: int = 0> (kept, groups, rest)
        grouped = Reshape (x, split)
        one = Constant <value_float: float = 1.0> ()
        nought = Constant <value_float: float = 0.0> ()
        one_x = CastLike (one, x)
        nought_x = CastLike (nought, x)
        ones = Expand (one_x, groups)
        noughts = Expand (nought_x, groups)
        normal = InstanceNormalization <epsilon: float = @epsilon> (grouped, ones, noughts)
        flat = Constant <value_ints: ints = [0, 0, -1]> ()
        shape = Shape (x)
        plain = Reshape (normal, shape)
        channels = Reshape (plain, flat)
        gain = Unsqueeze (scale, first)
        shift = Unsqueeze (bias, first)
        scaled = Mul (channels, gain)
        moved = Add (scaled, shift)
        y = Reshape (moved, shape)
    }""",
    "Attention": """<scale> (q, k, v) => (y) {
        factor = Constant <value_float: float = @scale> ()
        factor_q = CastLike (factor, q)
        product = MatMul (q, k)
        scores = Mul (product, factor_q)
        weights = Softmax <axis: int = -1> (scores)
        y = MatMul (weights, v)
    }""",
    "MaskedAttention": """<scale> (q, k, v, mask) => (y) {
        factor = Constant <value_float: float = @scale> ()
        factor_q = CastLike (factor, q)
        product = MatMul (q, k)
        scaled = Mul (product, factor_q)
        scores = Add (scaled, mask)
        weights = Softmax <axis: int = -1> (scores)
        y = MatMul (weights, v)
    }""",
    "SqueezeExcite": _squeeze_excite(_RELU, "Sigmoid"),
    "SqueezeExciteHard": _squeeze_excite(_RELU, _HARD_SIGMOID, "<alpha, beta>"),
    "SqueezeExciteSwish": _squeeze_excite(_SWISH, "Sigmoid"),
    "SqueezeExciteSwishHard": _squeeze_excite(_SWISH, _HARD_SIGMOID, "<alpha, beta>"),
    **INTEGER_BODIES,
}

_STANDARD: Mapping[str, tuple[str, int, Mapping[str, str]]] = {
    "Gelu": ("Gelu", 20, {"approximate": "none"}),
    "GeluTanh": ("Gelu", 20, {"approximate": "tanh"}),
    "Swish": ("Swish", 24, {}),
    "RMSNormalization": ("RMSNormalization", 23, {}),
}
"""The standard operator, the opset from which it means the same, and the attributes it needs beside.

GroupNormalization is not here: of ONNX's own, shape inference cannot tell the output's shape.
"""


def definition(name: str, opset: int) -> ir.Function:
    """The function ``name`` with its body in operators of ``opset``."""
    head = f'<domain: "{DOMAIN}", opset_import: ["": {opset}]> {name} '
    return ir.from_proto(onnx.parser.parse_function(head + _BODIES[name]))


def is_own(function: ir.Function, opset: int) -> bool:
    """Whether ``function`` is what :func:`definition` makes, so that the lowering knows what it computes."""
    if function.domain != DOMAIN or function.name not in _BODIES:
        return False
    return _steps(function) == _steps(definition(function.name, opset))


def _steps(function: ir.Function) -> list[object]:
    """What the body does, without the names that passes may give its values."""
    numbers: dict[ir.Value | None, int] = {value: index for index, value in enumerate(function.inputs)}
    steps: list[object] = []
    for node in function:
        attributes = sorted(str(ir.to_proto(attribute)) for attribute in node.attributes.values())
        steps.append((node.domain, node.op_type, attributes, [numbers.get(value) for value in node.inputs]))
        numbers.update({value: len(numbers) + index for index, value in enumerate(node.outputs)})
    return [*steps, [numbers[value] for value in function.outputs], str(function.opset_imports)]


def call(
    model: ir.Model,
    name: str,
    inputs: Sequence[ir.Value],
    attributes: Mapping[str, float | int | str | Sequence[int]],
    label: str | None,
) -> ir.Node:
    """A node named ``label`` that computes function ``name``; its definition is added to ``model`` if it is new."""
    opset = model.opset_imports[""]
    operator, since, extra = _STANDARD.get(name, ("", 2**31, {}))
    if opset >= since:
        return ir.node(operator, inputs, {**attributes, **extra}, name=label)
    identifier = (DOMAIN, name, "")
    if identifier not in model.functions:
        model.functions[identifier] = definition(name, opset)
        model.opset_imports[DOMAIN] = VERSION
    return ir.node(name, inputs, attributes, domain=DOMAIN, name=label)
