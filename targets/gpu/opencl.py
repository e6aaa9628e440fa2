"""From scalar expressions to OpenCL C: one element, or one vector of neighbouring elements, at a time.

The text is our own and not that of TVM's OpenCL generator, which prints float constants with six decimals (a
requantisation would no longer be exact) and keeps every accumulator in an array. In a register a bool is an int, all
of whose bits are set if it holds, for scalars as OpenCL has it for vectors; a float16 is a float, which is rounded
where it is stored.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import isinf, isnan
from pathlib import Path

import numpy as np

from edgec import scalar
from edgec.nest import coefficient
from edgec.scalar import Expr

MATH = Path(__file__).parent / "math.cl"

IN_MEMORY = {
    "float32": "float", "float16": "half", "float64": "double", "bool": "uchar", "int8": "char", "uint8": "uchar",
    "int16": "short", "uint16": "ushort", "int32": "int", "uint32": "uint", "int64": "long", "uint64": "ulong",
}  # fmt: skip
"""What OpenCL C calls a dtype in memory."""

IN_REGISTER = {**IN_MEMORY, "float16": "float", "bool": "int"}
"""What it calls it in a register."""

WIDTHS = (2, 4, 8, 16)
"""Lanes of OpenCL's vectors."""

VECTOR_DTYPES = frozenset({"float32", "float16", "int8", "uint8", "int32", "bool"})
"""What vectors are made of here; expressions of other dtypes are computed an element at a time."""


def register_type(dtype: str, lanes: int = 1) -> str:
    """The type of a variable that holds ``lanes`` values."""
    return IN_REGISTER[dtype] + (str(lanes) if lanes > 1 else "")


def pieces(extent: int, lanes: int) -> list[int]:
    """``extent`` elements as vectors of at most ``lanes``, each a power of two wide: 27 → 16, 8, 2, 1."""
    widths = [lanes] * (extent // lanes)
    rest = extent % lanes
    return widths + [1 << bit for bit in reversed(range(rest.bit_length())) if rest >> bit & 1]


@dataclass(frozen=True)
class Value:
    """Text that gives ``lanes`` values of ``dtype``; ``simple`` if it may be repeated at no cost."""

    text: str
    dtype: str
    lanes: int = 1
    simple: bool = False


@dataclass(frozen=True)
class Source:
    """A kernel: its statements, how many work items it wants along each axis, and how wide its vectors are.

    ``group`` is the work group's size; the driver chooses it where it is None.
    """

    text: str
    items: tuple[int, int, int]
    group: tuple[int, int, int] | None
    widths: frozenset[int]


@dataclass
class Body:
    """Statements of a kernel, collected in order."""

    lines: list[str] = field(default_factory=list)
    widths: set[int] = field(default_factory=lambda: {1})
    _depth: int = 1
    _names: int = 0

    def line(self, text: str) -> None:
        """Add one line."""
        self.lines.append("  " * self._depth + text)

    def name(self, prefix: str) -> str:
        """A name not used before in this kernel."""
        self._names += 1
        return f"{prefix}{self._names}"

    def bind(self, prefix: str, value: Value) -> Value:
        """Give ``value`` a name, so that it is computed once."""
        if value.simple:
            return value
        name = self.name(prefix)
        self.line(f"const {register_type(value.dtype, value.lanes)} {name} = {value.text};")
        return Value(name, value.dtype, value.lanes, simple=True)

    def index(self, prefix: str, text: str) -> str:
        """Give an index a name."""
        return self.bind(prefix, Value(text, scalar.INDEX)).text

    @contextmanager
    def block(self, head: str) -> Iterator[None]:
        """``head { … }``."""
        self.line(head + " {")
        self._depth += 1
        yield
        self._depth -= 1
        self.line("}")

    @contextmanager
    def loop(self, extent: int, step: int = 1) -> Iterator[str]:
        """A loop over [0, extent); one iteration needs no loop."""
        if 0 < extent <= step:
            yield "0"
            return
        name = self.name("i")
        with self.block(f"for (int {name} = 0; {name} < {extent}; {name} += {step})"):
            yield name

    def source(self, items: Sequence[int], group: tuple[int, int, int] | None) -> Source:
        """The kernel as it was written, for ``items`` work items along up to three axes."""
        x, y, z = (*items, 1, 1, 1)[:3]
        return Source("\n".join(self.lines), (x, y, z), group, frozenset(self.widths))


def literal(value: float | int | bool, dtype: str) -> str:
    """A constant, exact to the last bit."""
    if dtype == "bool":
        return "-1" if value else "0"
    if dtype in ("float32", "float16", "float64"):
        return _float_literal(float(value), dtype)
    number = int(value)
    if dtype in ("int64", "uint64"):
        least = number == np.iinfo(np.int64).min
        return "LONG_MIN" if least else f"{number}{'UL' if dtype == 'uint64' else 'L'}"
    if number == np.iinfo(np.int32).min:
        return "INT_MIN"
    return f"{number}u" if dtype == "uint32" else str(number)


def _float_literal(value: float, dtype: str) -> str:
    if isnan(value):
        return "NAN"
    if isinf(value):
        return "INFINITY" if value > 0 else "(-INFINITY)"
    text = repr(value) if dtype == "float64" else str(np.float32(value))
    text = text if any(c in text for c in ".e") else text + ".0"
    text += "" if dtype == "float64" else "f"
    return f"({text})" if text.startswith("-") else text


def widened(value: Value, lanes: int) -> str:
    """The text of ``value`` in every one of ``lanes`` lanes."""
    return value.text if value.lanes == lanes else f"({register_type(value.dtype, lanes)})({value.text})"


def load_vector(pointer: str, offset: str, dtype: str, lanes: int) -> str:
    """``lanes`` neighbours from ``offset`` on, as they are in a register."""
    if dtype == "float16":
        return f"vload_half({offset}, {pointer})" if lanes == 1 else f"vload_half{lanes}(0, {pointer} + {offset})"
    text = f"{pointer}[{offset}]" if lanes == 1 else f"vload{lanes}(0, {pointer} + {offset})"
    if dtype == "bool":
        return f"-({text} != 0)" if lanes == 1 else f"convert_int{lanes}({text} != (uchar)0)"
    return text


def store_vector(body: Body, pointer: str, offset: str, value: Value) -> None:
    """Store neighbours from ``offset`` on."""
    lanes = value.lanes
    if value.dtype == "float16":
        width = "" if lanes == 1 else str(lanes)
        place = f"{offset}, {pointer}" if lanes == 1 else f"0, {pointer} + {offset}"
        body.line(f"vstore_half{width}_rte({value.text}, {place});")
        return
    text = value.text
    if value.dtype == "bool":
        text = f"convert_uchar{lanes}({text} & 1)" if lanes > 1 else f"{text} & 1"
    body.line(f"{pointer}[{offset}] = {text};" if lanes == 1 else f"vstore{lanes}({text}, 0, {pointer} + {offset});")


class Emitter:
    """Evaluates expressions at the point (``axes``) of a loop nest.

    Args:
        body: where shared subterms are named.
        axes: the text of each loop axis; that of ``vector_axis`` is its first lane.
        dtypes: of every operand, in memory.
        vector_axis: the axis along which a vector runs, or None.
        lanes: how many lanes the vector has.
        accumulator: the value of ``acc``.
    """

    def __init__(
        self, body: Body, axes: Mapping[int, str], dtypes: Sequence[str], vector_axis: int | None = None,
        lanes: int = 1, accumulator: Value | None = None,
    ) -> None:  # fmt: skip
        self.body, self.axes, self.dtypes = body, axes, dtypes
        self.vector_axis, self.lanes = (vector_axis, lanes) if lanes > 1 else (None, 1)
        self.accumulator = accumulator
        self._made: dict[int, Value] = {}
        body.widths.add(self.lanes)

    def __call__(self, expr: Expr) -> Value:
        """The value of ``expr``: scalar where every lane agrees, else a vector."""
        uses: dict[int, int] = {}
        for node in scalar.walk(expr):
            for child in node.children:
                uses[id(child)] = uses.get(id(child), 0) + 1
        for node in scalar.walk(expr):
            if id(node) not in self._made:
                value = self._node(node)
                self._made[id(node)] = self.body.bind("v", value) if uses.get(id(node), 0) > 1 else value
        return self._made[id(expr)]

    def preset(self, expr: Expr, value: Value) -> None:
        """Take ``value`` for what ``expr`` gives."""
        self._made[id(expr)] = value

    def vector(self, expr: Expr) -> Value:
        """The value of ``expr`` with all its lanes."""
        value = self(expr)
        return Value(widened(value, self.lanes), value.dtype, self.lanes, value.simple)

    def offset(self, expr: Expr) -> tuple[str, int | None]:
        """The first lane's value of an index expression, and how far each further lane lies."""
        if self.vector_axis is None:
            return self(expr).text, 0
        step = coefficient(expr, self.vector_axis)
        if step is None:
            return "", None
        return Emitter(self.body, self.axes, self.dtypes)(expr).text, step

    def store(self, pointer: str, offset: Expr, value: Value) -> None:
        """Store ``value``, all of whose lanes are there, at ``offset``."""
        first, step = self.offset(offset)
        if self.lanes == 1 or step == 1:
            store_vector(self.body, pointer, first, value)
            return
        value = self.body.bind("y", value)
        places = self.body.bind("at", self.vector(offset)) if step is None else None
        for lane in range(self.lanes):
            place = f"{places.text}.s{lane:x}" if places else f"{first} + {lane * (step or 0)}"
            store_vector(self.body, pointer, place, Value(f"{value.text}.s{lane:x}", value.dtype))

    def _node(self, node: Expr) -> Value:
        if node.op == "const":
            return Value(literal(node.args[0], node.dtype), node.dtype, simple=True)
        if node.op == "axis":
            return self._axis(node)
        if node.op == "acc":
            assert self.accumulator is not None
            return self.accumulator
        if node.op == "load":
            return self._load(node)
        args = [self._made[id(child)] for child in node.children]
        lanes = max((arg.lanes for arg in args), default=1)
        self.body.widths.add(lanes)
        texts = [widened(arg, lanes) for arg in args]
        return Value(_apply(node, texts, [arg.dtype for arg in args], lanes), node.dtype, lanes)

    def _axis(self, node: Expr) -> Value:
        base = self.axes[node.args[0]]
        if node.args[0] != self.vector_axis:
            return Value(base, scalar.INDEX, simple=True)
        count = ", ".join(map(str, range(self.lanes)))
        return Value(f"({base} + (int{self.lanes})({count}))", scalar.INDEX, self.lanes)

    def _load(self, node: Expr) -> Value:
        operand = node.args[0]
        pointer, dtype = f"p{operand}", self.dtypes[operand]
        first, step = self.offset(node.args[1])
        if step == 0:
            return Value(load_vector(pointer, first, dtype, 1), node.dtype)
        if step == 1:
            return Value(load_vector(pointer, first, dtype, self.lanes), node.dtype, self.lanes)
        if step is None:
            places = self._made[id(node.args[1])]
            if places.lanes == 1:
                return Value(load_vector(pointer, places.text, dtype, 1), node.dtype)
            places = self.body.bind("at", places)
            offsets = [f"{places.text}.s{lane:x}" for lane in range(self.lanes)]
        else:
            first = self.body.index("at", first)
            offsets = [f"{first} + {lane * step}" for lane in range(self.lanes)]
        values = ", ".join(load_vector(pointer, offset, dtype, 1) for offset in offsets)
        return Value(f"({register_type(node.dtype, self.lanes)})({values})", node.dtype, self.lanes)


# ---- operators --------------------------------------------------------------------------------------------

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


def _apply(node: Expr, args: Sequence[str], dtypes: Sequence[str], lanes: int) -> str:
    """The text of ``node``'s operator on ``args``, all of them ``lanes`` wide."""
    op, kind = node.op, dtypes[0]
    if op in _COMPARE or op in ("isnan", "isinf", "not", "and", "or"):
        return _predicate(op, args, kind, lanes)
    if op == "cast":
        return _cast(args[0], kind, node.dtype, lanes)
    if op == "select":
        return selected(args[1], args[2], args[0], node.dtype, lanes)
    if op == "saturate":
        _, zero, low, high = node.args
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


def selected(then: str, otherwise: str, condition: str, dtype: str, lanes: int) -> str:
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


# ---- the program ------------------------------------------------------------------------------------------

_HEAD = """\
#pragma OPENCL FP_CONTRACT OFF
#ifdef FP_FAST_FMAF
#define MULTIPLY_ADD(a, b, c) fma(a, b, c)
#else
#define MULTIPLY_ADD(a, b, c) mad(a, b, c)
#endif
"""

_DIVIDE = """\
#define DIVISIONS(T, TRAPS) \\
  static T div_##T(T a, T b) { return TRAPS(b) ? (b == 0 ? a : (T)-a) : (T)(a / b); } \\
  static T truncmod_##T(T a, T b) { return TRAPS(b) ? 0 : (T)(a % b); }
#define FLOORS(T) \\
  static T floordiv_##T(T a, T b) { \\
    T q = div_##T(a, b); \\
    return (T)(q - (b != 0 && (T)(q * b) != a && (a < 0) != (b < 0))); \\
  } \\
  static T floormod_##T(T a, T b) { T r = truncmod_##T(a, b); return (T)(r != 0 && (r < 0) != (b < 0) ? r + b : r); }
#define SIGNED_TRAPS(b) (b == 0 || b == -1)
#define UNSIGNED_TRAPS(b) (b == 0)
DIVISIONS(char, SIGNED_TRAPS) DIVISIONS(short, SIGNED_TRAPS) DIVISIONS(int, SIGNED_TRAPS) DIVISIONS(long, SIGNED_TRAPS)
FLOORS(char) FLOORS(short) FLOORS(int) FLOORS(long)
DIVISIONS(uchar, UNSIGNED_TRAPS) DIVISIONS(ushort, UNSIGNED_TRAPS) DIVISIONS(uint, UNSIGNED_TRAPS)
DIVISIONS(ulong, UNSIGNED_TRAPS)
"""
"""Division of any integers as :mod:`edgec.reference` has it: a / 0 is a, and nothing traps."""


def _math(lanes: int) -> str:
    """``math.cl`` for one width."""
    width = "" if lanes == 1 else str(lanes)
    macros = {
        "NAME(f)": f"f##_{lanes}",
        "FLOAT": f"float{width}",
        "INT": f"int{width}",
        "TO_INT": f"convert_int{width}",
        "TO_FLOAT": f"convert_float{width}",
        "AS_INT": f"as_int{width}",
        "AS_FLOAT": f"as_float{width}",
        "MASK(c)": "(-(c))" if lanes == 1 else "(c)",
        "SELECT(a, b, c)": "((c) ? (b) : (a))" if lanes == 1 else "select(a, b, c)",
        "VSTORE_HALF": f"vstore_half{width}_rte",
        "VLOAD_HALF": f"vload_half{width}",
        "USHORT": f"ushort{width}",
    }
    defined = "".join(f"#define {name} {text}\n" for name, text in macros.items())
    undefined = "".join(f"#undef {name.partition('(')[0]}\n" for name in macros)
    return defined + MATH.read_text(encoding="utf-8").partition("*/\n")[2] + undefined


def program_source(kernels: Mapping[str, tuple[Source, Sequence[str]]]) -> str:
    """The OpenCL C of a whole program.

    Args:
        kernels: by name, with the dtypes of their operands, the output last. Each operand is a buffer and the bytes
            from its start on at which the operand begins.
    """
    widths = sorted(set().union(*(source.widths for source, _ in kernels.values())))
    parts = [_HEAD, *map(_math, widths)]
    text = "\n".join(_function(name, source, dtypes) for name, (source, dtypes) in kernels.items())
    if any(f"{name}_" in text for name in ("div", "truncmod", "floordiv", "floormod")):
        parts.append(_DIVIDE)
    return "\n".join([*parts, text])


def _function(name: str, source: Source, dtypes: Sequence[str]) -> str:
    last = len(dtypes) - 1
    kinds = [f"__global {'' if index == last else 'const '}" for index in range(len(dtypes))]
    arguments = ", ".join(f"{kind}uchar *m{index}, const uint from{index}" for index, kind in enumerate(kinds))
    lines = [f"__kernel void {name}({arguments}) {{"]
    for index, (kind, dtype) in enumerate(zip(kinds, dtypes, strict=True)):
        pointer = f"{kind}{IN_MEMORY[dtype]} *"
        lines.append(f"  {pointer}const p{index} = ({pointer})(m{index} + from{index});")
    return "\n".join([*lines, source.text, "}\n"])
