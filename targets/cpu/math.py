"""Scalar operators in TIR, for scalars and vectors alike.

Exponentials, logarithms, tanh, sigmoid and erf of float32 are polynomials, so that they vectorise; the other
transcendental functions are the C library's, a lane at a time. Half floats are widened for all of these.

Every operator that reads an argument more than once is given a way to name a value (:data:`Bind`): TIR is a
tree, so a value that is not named is copied into every place that reads it.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

from edgec.building.lazy_tvm import tirx, tvm

Bind = Callable[[Any], Any]
"""Computes a TIR value where it is called, and answers with how to read it (see ``tir.Body.hold``)."""


_WHOLE = 1.5 * 2**23
"""Up to 2^22 from here every float32 is an integer, and every integer one."""
_WHOLE_BITS = 0x4B400000
"""Its bits."""


def constant(value: float | int, like: Any) -> Any:
    """``value`` with the dtype and lanes of ``like``."""
    return _constant(value, _kind(like), like)


def _constant(value: float | int, dtype: str, like: Any) -> Any:
    single = tirx.const(value, dtype)
    lanes = _lanes(like)
    return single if lanes == 1 else tirx.Broadcast(single, lanes)


def vector_type(dtype: str, like: Any) -> str:
    """``dtype`` with as many lanes as ``like``."""
    lanes = _lanes(like)
    return dtype if lanes == 1 else f"{dtype}x{lanes}"


def _lanes(value: Any) -> int:
    return int(tvm.DataType(str(value.ty.dtype)).lanes)


def _kind(value: Any) -> str:
    return str(value.ty.dtype).partition("x")[0]


def _is_float(value: Any) -> bool:
    return _kind(value).startswith("float")


def _is_simple(value: Any) -> bool:
    """Whether a value is a name, a constant or a place in memory already."""
    inner = value.value if isinstance(value, tirx.Broadcast) else value
    return isinstance(inner, (tirx.Var, tirx.IntImm, tirx.FloatImm, tvm.ir.TensorLoad))


# ---- transcendental functions of float32 ------------------------------------------------------------------


def _polynomial(bind: Bind, x: Any, coefficients: Sequence[float]) -> Any:
    """Horner's scheme, the highest power's coefficient first."""
    total = constant(coefficients[0], x)
    for c in coefficients[1:]:
        total = total * x + constant(c, x)
    return bind(total)


LN2_HIGH, LN2_LOW = 0.693359375, -2.12194440e-4
"""ln 2 in two parts; the high one has few bits, so that small multiples of it are exact."""


def _exp(bind: Bind, x: Any) -> Any:
    """exp: 2^n · p(r) with |r| <= ln(2) / 2 (the polynomial is Cephes' expf's).

    Adding 1.5 · 2^23 leaves the nearest integer in a float's low bits. 2^n is applied in two factors, so that
    results overflow to infinity and underflow through the subnormals as they should; NaN passes through.
    """
    high, low, magic = constant(89.0, x), constant(-104.0, x), constant(_WHOLE, x)
    clamped = bind(tirx.Select(x > high, high, x))
    clamped = bind(tirx.Select(clamped < low, low, clamped))
    shifted = bind(clamped * constant(1.44269504088896341, x) + magic)
    n = bind(shifted - magic)
    r = bind(clamped - n * constant(LN2_HIGH, x))
    r = bind(r - n * constant(LN2_LOW, x))
    p = _polynomial(
        bind, r,
        (1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1),
    )  # fmt: skip
    p = p * (r * r) + r + constant(1.0, x)
    whole = bind(_bits(shifted) - _constant(_WHOLE_BITS, "int32", x))
    half = bind(tirx.shift_right(whole, _constant(1, "int32", x)))
    return p * _power_of_two(half) * _power_of_two(whole - half)


def _bits(x: Any) -> Any:
    return tirx.reinterpret(vector_type("int32", x), x)


def _power_of_two(n: Any) -> Any:
    """2^n as float32 for −127 < n < 128."""
    biased = tirx.shift_left(n + _constant(127, "int32", n), _constant(23, "int32", n))
    return tirx.reinterpret(vector_type("float32", n), biased)


def _log(bind: Bind, x: Any) -> Any:
    """log: e·ln 2 + p(m − 1) with m = x / 2^e in [√½, √2) (the polynomial is Cephes' logf's)."""
    zero, smallest = constant(0.0, x), constant(1.17549435e-38, x)
    subnormal = bind(x < smallest)
    scaled = bind(tirx.Select(subnormal, x * constant(8388608.0, x), x))
    root_half = _constant(0x3F3504F3, "int32", x)
    exponent = bind(tirx.shift_right(_bits(scaled) - root_half, _constant(23, "int32", x)))
    mantissa = _bits(scaled) - tirx.shift_left(exponent, _constant(23, "int32", x))
    f = bind(tirx.reinterpret(str(x.ty.dtype), mantissa) - constant(1.0, x))
    e = tirx.Cast(str(x.ty.dtype), exponent)
    e = bind(e - tirx.Select(subnormal, constant(23.0, x), zero))
    square = bind(f * f)
    p = _polynomial(
        bind, f,
        (7.0376836292e-2, -1.1514610310e-1, 1.1676998740e-1, -1.2420140846e-1, 1.4249322787e-1, -1.6668057665e-1,
         2.0000714765e-1, -2.4999993993e-1, 3.3333331174e-1),
    )  # fmt: skip
    rest = p * f * square + e * constant(LN2_LOW, x) - square * constant(0.5, x)
    value = bind(rest + f + e * constant(LN2_HIGH, x))
    infinity = constant(float("inf"), x)
    value = tirx.Select(tirx.EQ(x, zero), constant(float("-inf"), x), value)
    value = tirx.Select(x < zero, constant(float("nan"), x), value)
    return tirx.Select(tirx.Or(tirx.EQ(x, infinity), _is_nan(x)), x, value)


def _log1p(bind: Bind, x: Any) -> Any:
    """log(1 + x): what rounding 1 + x to u lost is put back as (x − (u − 1)) / u."""
    one, infinity = constant(1.0, x), constant(float("inf"), x)
    u = bind(one + x)
    lost = (x - (u - one)) / u
    exact = tirx.Or(tirx.EQ(u, infinity), u <= constant(0.0, x))
    value = bind(_log(bind, u))
    return tirx.Select(exact, value, value + lost)


def _sigmoid(bind: Bind, x: Any) -> Any:
    """1 / (1 + e) for x >= 0 and e / (1 + e) below, with e = exp(−|x|), which never overflows."""
    one = constant(1.0, x)
    e = bind(_function(bind, "exp", [bind(constant(0.0, x) - tirx.abs(x))]))
    return tirx.Select(x < constant(0.0, x), e, one) / (one + e)


def _tanh(bind: Bind, x: Any) -> Any:
    """tanh: an odd polynomial below 0.625, 1 − 2 / (exp(2|x|) + 1) above (Cephes' tanhf)."""
    magnitude, square = bind(tirx.abs(x)), bind(x * x)
    near = _polynomial(
        bind, square,
        (-5.70498872745e-3, 2.06390887954e-2, -5.37397155531e-2, 1.33314422036e-1, -3.33332819422e-1),
    )  # fmt: skip
    near = bind(near * square * x + x)
    one, two = constant(1.0, x), constant(2.0, x)
    far = bind(one - two / (_exp(bind, bind(magnitude * two)) + one))
    far = tirx.Select(x < constant(0.0, x), constant(0.0, x) - far, far)
    return tirx.Select(magnitude < constant(0.625, x), near, far)


def _erf(bind: Bind, x: Any) -> Any:
    """erf: x + x·p(x²) below 0.9, ±(1 − exp(|x|·q(|x|))) above.

    p is the minimax fit of erf(x) / x − 1 on [0, 0.93], q that of log(erfc(x)) / x on [0.88, 3.95], weighted by
    the relative error of the result: 0.01 and 0.05 ulp.
    """
    magnitude, square, four = bind(tirx.abs(x)), bind(x * x), constant(4.0, x)
    near = _polynomial(
        bind, square,
        (8.316764433402568e-05, -0.0008130010101012886, 0.005199906416237354, -0.026858940720558167,
         0.11283687502145767, -0.37612631916999817, 0.12837916612625122),
    )  # fmt: skip
    near = bind(near * x + x)
    t = bind(tirx.Select(magnitude > four, four, magnitude))
    far = _polynomial(
        bind, t,
        (0.00021511080558411777, -0.0032241935841739178, 0.022919438779354095, -0.10530756413936615,
         -0.6356838345527649, -1.1285245418548584),
    )  # fmt: skip
    far = bind(constant(1.0, x) - _exp(bind, bind(far * t)))
    far = tirx.Select(x < constant(0.0, x), constant(0.0, x) - far, far)
    return tirx.Select(magnitude < constant(0.9, x), near, far)


_FLOAT32: dict[str, Callable[[Bind, Any], Any]] = {
    "exp": _exp,
    "log": _log,
    "log1p": _log1p,
    "sigmoid": _sigmoid,
    "tanh": _tanh,
    "erf": _erf,
}

# ---- the C library's functions ----------------------------------------------------------------------------

_LIBRARY_NAMES = {
    **{name: name for name in ("exp", "log", "log1p", "tanh", "erf", "sin", "cos", "tan", "asin", "acos", "atan")},
    **{name: name for name in ("sinh", "cosh", "asinh", "acosh", "atanh", "pow")},
    "truncmod": "fmod",
}
"""Operators that are functions of libm where there is no polynomial for them, and what libm calls them."""


def _from_library(bind: Bind, op: str, args: Sequence[Any]) -> Any:
    """A libm function of each lane."""
    dtype, lanes = _kind(args[0]), _lanes(args[0])
    name = _LIBRARY_NAMES[op] + ("f" if dtype == "float32" else "")
    if lanes == 1:
        return tirx.call_pure_extern(dtype, name, *args)
    args = [bind(arg) for arg in args]
    single = [
        tirx.call_pure_extern(dtype, name, *(tirx.Shuffle([arg], [tirx.const(lane, "int32")]) for arg in args))
        for lane in range(lanes)
    ]
    return tirx.Shuffle(single, [tirx.const(lane, "int32") for lane in range(lanes)])


def _transcendental(bind: Bind, op: str, args: Sequence[Any]) -> Any:
    """A transcendental function of floats of any width; integers have one, pow, which goes by way of float64."""
    dtype, args = _kind(args[0]), [bind(arg) for arg in args]
    if dtype in ("float32", "float64"):
        return _function(bind, op, args)
    wide = "float32" if dtype == "float16" else "float64"
    widened = [bind(tirx.Cast(vector_type(wide, arg), arg)) for arg in args]
    return tirx.Cast(str(args[0].ty.dtype), _function(bind, op, widened))


def _function(bind: Bind, op: str, args: Sequence[Any]) -> Any:
    """A transcendental function of float32 or float64."""
    if op == "sigmoid" or (_kind(args[0]) == "float32" and op in _FLOAT32):
        return _FLOAT32[op](bind, *args)
    return _from_library(bind, op, args)


# ---- arithmetic -------------------------------------------------------------------------------------------


def _is_nan(x: Any) -> Any:
    """An intrinsic, because TVM folds x ≠ x to false."""
    return tirx.isnan(x)


def _floor_mod(bind: Bind, a: Any, b: Any) -> Any:
    """The remainder that has the sign of ``b``, even if it is zero (as numpy's mod)."""
    if not _is_float(a):
        return tirx.floormod(a, _safe_divisor(bind, b))
    b = bind(b)
    zero, rest = constant(0.0, a), bind(_truncated_mod(bind, a, b))
    wrong = tirx.Or(tirx.And(rest < zero, b > zero), tirx.And(rest > zero, b < zero))
    return tirx.Select(wrong, rest + b, tirx.Select(tirx.EQ(rest, zero), tirx.abs(rest) / b, rest))


def _truncated_mod(bind: Bind, a: Any, b: Any) -> Any:
    return _transcendental(bind, "truncmod", [a, b]) if _is_float(a) else tirx.truncmod(a, _safe_divisor(bind, b))


def _safe_divisor(bind: Bind, b: Any) -> Any:
    """``b``, or 1 where the machine would trap: at 0, and at −1, by which the least integer overflows."""
    if isinstance(b, tirx.IntImm):
        return b
    one, b = constant(1, b), bind(b)
    traps = tirx.EQ(b, constant(0, b))
    if not _kind(b).startswith("uint"):
        traps = tirx.Or(traps, tirx.EQ(b, constant(-1, b)))
    return tirx.Select(traps, one, b)


def _divide(bind: Bind, a: Any, b: Any) -> Any:
    """a / b; integers truncate, and a / 0 is a."""
    if _is_float(a):
        return a / b
    if isinstance(b, tirx.IntImm):
        return tirx.truncdiv(a, b)
    a, b = bind(a), bind(b)
    quotient = tirx.truncdiv(a, bind(_safe_divisor(bind, b)))
    if _kind(b).startswith("uint"):
        return quotient
    return tirx.Select(tirx.EQ(b, constant(-1, b)), constant(0, a) - a, quotient)


def _sign(bind: Bind, x: Any) -> Any:
    zero, one, x = constant(0, x), constant(1, x), bind(x)
    below = zero if _kind(x).startswith("uint") else tirx.Select(x < zero, zero - one, zero)
    return tirx.Select(x > zero, one, tirx.Select(_is_nan(x), x, below) if _is_float(x) else below)


def _minimum(bind: Bind, a: Any, b: Any) -> Any:
    """min that keeps NaN, as ONNX (and numpy) do."""
    if not _is_float(a):
        return tirx.min(a, b)
    a, b = bind(a), bind(b)
    return tirx.Select(_is_nan(b), b, bind(tirx.Select(b < a, b, a)))


def _maximum(bind: Bind, a: Any, b: Any) -> Any:
    """max that keeps NaN; the inner selection is one instruction of x86."""
    if not _is_float(a):
        return tirx.max(a, b)
    a, b = bind(a), bind(b)
    return tirx.Select(_is_nan(b), b, bind(tirx.Select(b > a, b, a)))


def _negate(x: Any) -> Any:
    """−x; for unsigned integers the two's complement, since TVM folds 0 − x to 0."""
    if _is_float(x):
        return x * constant(-1.0, x)
    return tirx.bitwise_not(x) + constant(1, x) if _kind(x).startswith("uint") else constant(0, x) - x


def _number(x: Any) -> Any:
    """``x``, as an integer if it is a bool, since LLVM code for comparing bools is wrong in TVM."""
    return tirx.Cast(vector_type("uint8", x), x) if _kind(x) == "bool" else x


def _not(x: Any) -> Any:
    """Not x, through an integer: TVM would turn not(a < b) into b <= a, which differs for NaN."""
    return tirx.EQ(_number(x), constant(0, _number(x)))


def _not_equal(bind: Bind, a: Any, b: Any) -> Any:
    """a ≠ b, true where one is NaN."""
    if not _is_float(a):
        return tirx.NE(_number(a), _number(b))
    a, b = bind(a), bind(b)
    return tirx.Or(tirx.NE(a, b), tirx.Or(_is_nan(a), _is_nan(b)))


_TWICE: dict[str, Callable[..., Any]] = {
    "div": _divide,
    "floormod": _floor_mod,
    "truncmod": _truncated_mod,
    "min": _minimum,
    "max": _maximum,
    "ne": _not_equal,
    "sign": _sign,
}
"""Operators that read an argument more than once."""

_ONCE: dict[str, Callable[..., Any] | str] = {
    "add": operator.add,
    "sub": operator.sub,
    "mul": operator.mul,
    "floordiv": "floordiv",
    "eq": lambda a, b: tirx.EQ(_number(a), _number(b)),
    "lt": "LT",
    "le": "LE",
    "gt": "GT",
    "ge": "GE",
    "and": "And",
    "or": "Or",
    "not": _not,
    "bitand": "bitwise_and",
    "bitor": "bitwise_or",
    "bitxor": "bitwise_xor",
    "bitnot": "bitwise_not",
    "shiftleft": "shift_left",
    "shiftright": "shift_right",
    "neg": _negate,
    "abs": "abs",
    "floor": "floor",
    "ceil": "ceil",
    "round": "nearbyint",
    "sqrt": "sqrt",
    "isnan": _is_nan,
    "isinf": lambda x: tirx.EQ(tirx.abs(x), constant(float("inf"), x)),
    "select": "Select",
}
"""Operators that read each argument once: a function, or the name of TIR's."""

OPERATORS = frozenset({*_ONCE, *_TWICE, *_FLOAT32, *_LIBRARY_NAMES, "cast"})
"""Every operator that this target has code for."""


def apply(op: str, args: Sequence[Any], dtype: str, bind: Bind) -> Any:
    """``op`` of TIR values of equal lanes; ``dtype`` is the result's. ``bind`` names what is read again."""

    def name(value: Any) -> Any:
        return value if _is_simple(value) else bind(value)

    if op == "cast":
        return _cast(name, args[0], dtype)
    if op in _ONCE:
        once = _ONCE[op]
        return getattr(tirx, once)(*args) if isinstance(once, str) else once(*args)
    return _TWICE[op](name, *args) if op in _TWICE else _transcendental(name, op, args)


def saturate(bind: Bind, value: Any, zero: int, low: int, high: int, dtype: str) -> Any:
    """See :func:`edgec.scalar.saturate`.

    The bounds are compared first. An addition then rounds: next to 1.5 · 2^23 a float32 has no fraction, and its bits
    count up by one from an integer to the next. (A function that rounds is called lane by lane on 32-bit ARM.)
    """
    least, most = constant(float(low - zero), value), constant(float(high - zero), value)
    above = bind(tirx.Select(value > least, value, least))
    inside = bind(tirx.Select(above < most, above, most))
    bits = _bits(bind(inside + constant(_WHOLE, value)))
    whole = bind(bits + _constant(zero - _WHOLE_BITS, "int32", value))  # held: TVM would multiply the constant further
    return tirx.Cast(vector_type(dtype, value), whole)


def _cast(bind: Bind, value: Any, dtype: str) -> Any:
    if dtype == "bool":
        return _not_equal(bind, value, constant(0, value))
    return tirx.Cast(vector_type(dtype, value), value)
