"""Scalar operators in TIR, for scalars and vectors alike.

Exponentials, logarithms, tanh, sigmoid and erf of float32 are polynomials, so that they vectorise and give
the same bits on every CPU; the other transcendental functions are the C library's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import tvm
from tvm import tirx


def constant(value: float | int, like: Any) -> Any:
    """``value`` with the dtype and lanes of ``like``."""
    kind = tvm.DataType(str(like.ty.dtype))
    scalar_type = str(like.ty.dtype).partition("x")[0]
    single = tirx.const(value, scalar_type)
    return single if kind.lanes == 1 else tirx.Broadcast(single, kind.lanes)


def vector_type(dtype: str, like: Any) -> str:
    """``dtype`` with as many lanes as ``like``."""
    lanes = int(tvm.DataType(str(like.ty.dtype)).lanes)
    return dtype if lanes == 1 else f"{dtype}x{lanes}"


def _kind(value: Any) -> str:
    return str(value.ty.dtype).partition("x")[0]


def _is_float(value: Any) -> bool:
    return _kind(value).startswith("float")


def _polynomial(x: Any, coefficients: Sequence[float]) -> Any:
    """Horner's scheme, the highest power's coefficient first."""
    total = constant(coefficients[0], x)
    for c in coefficients[1:]:
        total = total * x + constant(c, x)
    return total


def _exp(x: Any) -> Any:
    """exp of float32 to about 1 ulp: 2^n · p(r) with |r| <= ln(2)/2 (Cephes' expf)."""
    if _kind(x) != "float32":
        return tirx.exp(x)
    high, low = constant(88.7228394, x), constant(-103.972084, x)
    # the comparison keeps NaN, which min and max may drop
    clamped = tirx.Select(x > high, high, tirx.Select(x < low, low, x))
    n = tirx.floor(clamped * constant(1.44269504088896341, x) + constant(0.5, x))
    r = clamped - n * constant(0.693359375, x) - n * constant(-2.12194440e-4, x)
    p = _polynomial(
        r,
        (
            1.9875691500e-4,
            1.3981999507e-3,
            8.3334519073e-3,
            4.1665795894e-2,
            1.6666665459e-1,
            5.0000001201e-1,
        ),
    )
    p = p * r * r + r + constant(1.0, x)
    # 2^n in two factors, so that results down to the subnormals are right
    half = tirx.shift_right(tirx.Cast(vector_type("int32", x), n), _int(1, x))
    rest = tirx.Cast(vector_type("int32", x), n) - half
    value = p * _power_of_two(half, x) * _power_of_two(rest, x)
    return tirx.Select(x > high, constant(float("inf"), x), tirx.Select(x < low, constant(0.0, x), value))


def _int(value: int, like: Any) -> Any:
    single = tirx.const(value, "int32")
    lanes = int(tvm.DataType(str(like.ty.dtype)).lanes)
    return single if lanes == 1 else tirx.Broadcast(single, lanes)


def _power_of_two(n: Any, like: Any) -> Any:
    return tirx.reinterpret(vector_type("float32", like), tirx.shift_left(n + _int(127, like), _int(23, like)))


def _log(x: Any) -> Any:
    return tirx.log(x)


def _sigmoid(x: Any) -> Any:
    one = constant(1.0, x)
    e = _exp(constant(0.0, x) - tirx.abs(x))
    small = e / (one + e)
    return tirx.Select(x >= constant(0.0, x), one - small, small)


def _tanh(x: Any) -> Any:
    """tanh of float32: odd polynomial below 0.625, 1 − 2/(exp(2|x|) + 1) above (Cephes' tanhf)."""
    if _kind(x) != "float32":
        return tirx.tanh(x)
    magnitude = tirx.abs(x)
    square = x * x
    near = _polynomial(
        square, (-5.70498872745e-3, 2.06390887954e-2, -5.37397155531e-2, 1.33314422036e-1, -3.33332819422e-1)
    )
    near = near * square * x + x
    one, two = constant(1.0, x), constant(2.0, x)
    far = one - two / (_exp(magnitude * two) + one)
    far = tirx.Select(x < constant(0.0, x), constant(0.0, x) - far, far)
    return tirx.Select(magnitude < constant(0.625, x), near, far)


def _erf(x: Any) -> Any:
    """erf of float32: the rational minimax approximation on [−4, 4] (as in Eigen)."""
    if _kind(x) != "float32":
        return tirx.erf(x)
    four = constant(4.0, x)
    clamped = tirx.Select(x > four, four, tirx.Select(x < constant(-4.0, x), constant(-4.0, x), x))
    square = clamped * clamped
    top = _polynomial(
        square,
        (-2.72614225801306e-10, 2.77068142495902e-08, -2.10102402082508e-06, -5.69250639462346e-05,
         -7.34990630326855e-04, -2.95459980854025e-03, -1.60960333262415e-02),
    )  # fmt: skip
    bottom = _polynomial(
        square,
        (-1.45660718464996e-05, -2.13374055278905e-04, -1.68282697438203e-03, -7.37332916720468e-03,
         -1.42647390514189e-02),
    )  # fmt: skip
    return clamped * top / bottom


def _is_nan(x: Any) -> Any:
    """An intrinsic, because TVM folds x ≠ x to false."""
    return tirx.isnan(x)


def _floor_mod(a: Any, b: Any) -> Any:
    if _is_float(a):
        rest = tirx.fmod(a, b)
        zero = constant(0.0, a)
        wrong = tirx.And(tirx.NE(rest, zero), tirx.NE(tirx.LT(rest, zero), tirx.LT(b, zero)))
        return tirx.Select(wrong, rest + b, rest)
    return tirx.floormod(a, b)


def _divide(a: Any, b: Any) -> Any:
    return a / b if _is_float(a) else tirx.truncdiv(a, b)


def _power(a: Any, b: Any) -> Any:
    if _is_float(a):
        return tirx.pow(a, b)
    wide = vector_type("float64", a)
    return tirx.Cast(str(a.ty.dtype), tirx.pow(tirx.Cast(wide, a), tirx.Cast(wide, b)))


def _round_even(x: Any) -> Any:
    return tirx.nearbyint(x)


def _sign(x: Any) -> Any:
    zero, one = constant(0, x), constant(1, x)
    below = constant(0, x) if _kind(x).startswith("uint") else tirx.Select(x < zero, zero - one, zero)
    return tirx.Select(x > zero, one, tirx.Select(_is_nan(x), x, below) if _is_float(x) else below)


def _is_constant(x: Any) -> bool:
    return isinstance(x.value if isinstance(x, tirx.Broadcast) else x, tirx.FloatImm)


def _minimum(a: Any, b: Any) -> Any:
    """min that keeps NaN, as ONNX (and numpy) do; a comparison with a constant becomes one instruction."""
    if not _is_float(a):
        return tirx.min(a, b)
    return tirx.Select(b < a, b, a) if _is_constant(b) else tirx.Select(tirx.Or(a < b, _is_nan(a)), a, b)


def _maximum(a: Any, b: Any) -> Any:
    """max that keeps NaN, likewise."""
    if not _is_float(a):
        return tirx.max(a, b)
    return tirx.Select(b > a, b, a) if _is_constant(b) else tirx.Select(tirx.Or(a > b, _is_nan(a)), a, b)


def _negate(x: Any) -> Any:
    if _is_float(x):
        return x * constant(-1.0, x)
    return constant(0, x) - x


_OPERATORS: dict[str, Callable[..., Any]] = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "div": _divide,
    "floordiv": tirx.floordiv,
    "floormod": _floor_mod,
    "truncmod": lambda a, b: tirx.fmod(a, b) if _is_float(a) else tirx.truncmod(a, b),
    "pow": _power,
    "min": _minimum,
    "max": _maximum,
    "eq": lambda a, b: tirx.EQ(a, b),
    "ne": lambda a, b: tirx.NE(a, b),
    "lt": lambda a, b: a < b,
    "le": lambda a, b: a <= b,
    "gt": lambda a, b: a > b,
    "ge": lambda a, b: a >= b,
    "and": tirx.And,
    "or": tirx.Or,
    "not": tirx.Not,
    "bitand": tirx.bitwise_and,
    "bitor": tirx.bitwise_or,
    "bitxor": tirx.bitwise_xor,
    "bitnot": tirx.bitwise_not,
    "shiftleft": tirx.shift_left,
    "shiftright": tirx.shift_right,
    "neg": _negate,
    "abs": tirx.abs,
    "sign": _sign,
    "floor": tirx.floor,
    "ceil": tirx.ceil,
    "round": _round_even,
    "sqrt": tirx.sqrt,
    "exp": _exp,
    "log": _log,
    "sigmoid": _sigmoid,
    "tanh": _tanh,
    "erf": _erf,
    "sin": tirx.sin,
    "cos": tirx.cos,
    "tan": tirx.tan,
    "asin": tirx.asin,
    "acos": tirx.acos,
    "atan": tirx.atan,
    "sinh": tirx.sinh,
    "cosh": tirx.cosh,
    "asinh": tirx.asinh,
    "acosh": tirx.acosh,
    "atanh": tirx.atanh,
    "isnan": _is_nan,
    "isinf": lambda x: tirx.EQ(tirx.abs(x), constant(float("inf"), x)),
    "select": tirx.Select,
}


def apply(op: str, args: Sequence[Any], dtype: str) -> Any:
    """``op`` of TIR values of equal lanes; ``dtype`` is the result's."""
    if op == "cast":
        return _cast(args[0], dtype)
    return _OPERATORS[op](*args)


def _cast(value: Any, dtype: str) -> Any:
    if dtype == "bool":
        return tirx.NE(value, constant(0, value))
    return tirx.Cast(vector_type(dtype, value), value)
