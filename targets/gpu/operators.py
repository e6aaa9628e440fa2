"""Scalar operators in OpenCL C, for scalars and vectors alike: the text of each, given that of its arguments."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from edgec import scalar
from edgec.scalar import Expr
from edgec.targets.gpu.opencl import IN_REGISTER, VECTOR_DTYPES, literal, register_type

_INFIX = {
    "add": "+", "sub": "-", "mul": "*", "bitand": "&", "bitor": "|", "bitxor": "^", "shiftleft": "<<",
    "shiftright": ">>",
}  # fmt: skip
_COMPARE = {"eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">="}
_BUILTIN = {
    name: name
    for name in ("floor", "ceil", "sqrt", "sin", "cos", "tan", "asin", "acos", "atan", "sinh", "cosh", "asinh",
                 "acosh", "atanh", "pow")
} | {"round": "rint"}  # fmt: skip
"""Functions that OpenCL C has, of floats of any width."""
_OWN = {
    "exp": "exponential", "log": "logarithm", "log1p": "logarithm_1p", "sigmoid": "sigmoid",
    "tanh": "hyperbolic_tangent", "erf": "error_function",
}  # fmt: skip
"""Functions of ``math.cl``, of float32."""

_FLOATS = ("float32", "float16")


def supported(node: Expr, double: bool) -> bool:
    """Whether there is code for ``node``; ``double`` tells whether the device computes in float64."""
    dtypes = {node.dtype, *(child.dtype for child in node.children)}
    if "float64" in dtypes and (not double or node.op in (*_OWN, "floormod", "sign")):
        return False
    return node.op != "pow" or node.dtype.startswith("float")


def applied(node: Expr, args: Sequence[str], dtypes: Sequence[str], lanes: int) -> str:
    """The text of ``node``'s operator on ``args``, all of them ``lanes`` wide."""
    op, kind = node.op, dtypes[0]
    if op in _COMPARE or op in ("isnan", "isinf", "not", "and", "or"):
        return _predicate(op, args, kind, lanes)
    if op == "cast":
        return _cast(args[0], kind, node.dtype, lanes)
    if op == "select":
        return _selected(args[1], args[2], args[0], node.dtype, lanes)
    if op == "saturate":
        _, zero, low, high, _ = node.args
        limits = f"{literal(low - zero, 'float32')}, {literal(high - zero, 'float32')}"
        return _cast(f"(saturate_{lanes}({args[0]}, {limits}) + {zero})", "int32", node.dtype, lanes)
    if op in _INFIX:
        return _wrapped(f"({args[0]} {_INFIX[op]} {args[1]})", node.dtype, lanes)
    if kind in _FLOATS or kind == "float64":
        return _float_function(op, args, kind, lanes)
    return _integer_function(op, args, kind, lanes)


def _wrapped(text: str, dtype: str, lanes: int) -> str:
    """Arithmetic of short integers, which C widens where a vector does not."""
    narrow = lanes == 1 and dtype in ("int8", "uint8", "int16", "uint16")
    return f"({IN_REGISTER[dtype]}){text}" if narrow else text


def _mask(text: str, dtype: str, lanes: int) -> str:
    """What a comparison of ``dtype`` values gives, as a bool in a register."""
    if lanes == 1:
        return f"(-{text})"
    return text if np.dtype(dtype).itemsize == 4 or dtype in ("float16", "bool") else f"convert_int{lanes}{text}"


def _predicate(op: str, args: Sequence[str], kind: str, lanes: int) -> str:
    if op in _COMPARE:
        if kind == "bool":
            args = [f"({arg} & 1)" for arg in args]
        return _mask(f"({args[0]} {_COMPARE[op]} {args[1]})", kind, lanes)
    if op == "isnan":
        return _mask(f"({args[0]} != {args[0]})", kind, lanes)
    if op == "isinf":
        return _mask(f"(fabs({args[0]}) == ({register_type(kind, lanes)})(INFINITY))", kind, lanes)
    return f"(~{args[0]})" if op == "not" else f"({args[0]} {'&' if op == 'and' else '|'} {args[1]})"


def _cast(text: str, source: str, dtype: str, lanes: int) -> str:
    if source == dtype or {source, dtype} == {"float32", "float16"}:
        return f"half_rounded_{lanes}({text})" if dtype == "float16" and source != dtype else text
    if dtype == "bool":
        return _mask(f"({text} != ({register_type(source, lanes)})(0))", source, lanes)
    if source == "bool":
        text = f"({text} & 1)"
    return f"convert_{register_type(dtype, lanes)}({text})"


def _selected(then: str, otherwise: str, condition: str, dtype: str, lanes: int) -> str:
    """``then`` where ``condition`` (a bool in a register) holds."""
    if lanes == 1:
        return f"({condition} ? {then} : {otherwise})"
    size = 4 if dtype in ("float16", "bool") else np.dtype(dtype).itemsize
    if size != 4:
        condition = f"convert_{ {1: 'char', 2: 'short', 8: 'long'}[size] }{lanes}({condition})"
    return f"select({otherwise}, {then}, {condition})"


def _float_function(op: str, args: Sequence[str], kind: str, lanes: int) -> str:
    listed = ", ".join(args)
    if op == "div":
        return f"({args[0]} / {args[1]})"
    if op in ("min", "max"):
        return f"keep_{op}_{lanes}({listed})" if kind != "float64" else _keep_double(op, args)
    if op in _OWN:
        return f"{_OWN[op]}_{lanes}({listed})"
    if op in _BUILTIN:
        return f"{_BUILTIN[op]}({listed})"
    named = {"abs": f"fabs({listed})", "neg": f"(-{args[0]})", "truncmod": f"fmod({listed})"}
    named |= {"floormod": f"floor_remainder_{lanes}({listed})", "sign": f"sign_of_{lanes}({listed})"}
    return named[op]


def _keep_double(op: str, args: Sequence[str]) -> str:
    a, b = args
    return f"({b} != {b} ? {b} : ({b} {'>' if op == 'max' else '<'} {a} ? {b} : {a}))"


def _integer_function(op: str, args: Sequence[str], kind: str, lanes: int) -> str:
    kept = register_type(kind, lanes)
    listed = ", ".join(args)
    signed = not kind.startswith("uint")
    if op in ("min", "max"):
        return f"{op}({', '.join(f'({kept})({arg})' for arg in args)})"
    if op in ("floordiv", "floormod") and kind == "int32":
        return f"floor_{op[5:]}_{lanes}({listed})"
    if op in ("div", "truncmod", "floordiv", "floormod"):
        name = op if signed or op in ("div", "truncmod") else {"floordiv": "div", "floormod": "truncmod"}[op]
        return f"{name}_{IN_REGISTER[kind]}({listed})"
    named: dict[str, Callable[[], str]] = {
        "neg": lambda: _wrapped(f"(-{args[0]})", kind, lanes),
        "abs": lambda: f"convert_{kept}(abs({args[0]}))",
        "bitnot": lambda: _wrapped(f"(~{args[0]})", kind, lanes),
        "sign": lambda: f"({args[0]} > 0) - ({args[0]} < 0)" if signed else f"({args[0]} > 0)",
    }
    return f"({named[op]()})"


DIVISIONS = frozenset({"div", "truncmod", "floordiv", "floormod", "sign"})
"""Integer operators that are computed an element at a time, but for the first two of index arithmetic."""


def vectorises(expr: Expr) -> bool:
    """Whether there is vector code for every node of ``expr``."""

    def fits(node: Expr) -> bool:
        integers = not node.dtype.startswith("float")
        if integers and node.op in DIVISIONS:
            return node.dtype == scalar.INDEX and node.op.startswith("floor")
        return node.dtype in VECTOR_DTYPES

    return all(fits(node) for node in scalar.walk(expr))
