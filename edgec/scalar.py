"""Scalar expressions: what one output element of a kernel is, written once for every target.

A kernel's body is a small expression over loop axes and loads. The numpy reference evaluates it, each
target's code generator turns it into its own instructions, and fusion is substitution: the expression of a
producer takes the place of the consumer's load. Expressions are immutable and hash-consed, so equal ones
are the same object, shared subterms are stored and evaluated once, and a kernel can be a dictionary key.

>>> x = load(0, axis(0), "float32")
>>> print(binary("max", x, const(0.0, "float32")))
max(in0[i0], 0.0)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar
from weakref import WeakValueDictionary

import numpy as np

INDEX = "int32"
"""dtype of loop axes and load offsets; a buffer holds fewer than 2**31 elements."""

COMPARISONS = frozenset({"eq", "ne", "lt", "le", "gt", "ge", "isnan", "isinf", "not", "and", "or"})
"""Operators whose result is ``bool``."""


class Expr:
    """One node of an expression: an operator, its arguments and the dtype of its value (an ONNX dtype)."""

    __slots__ = ("__weakref__", "args", "dtype", "op")
    _interned: ClassVar[WeakValueDictionary[tuple[Any, ...], Expr]] = WeakValueDictionary()

    op: str
    args: tuple[Any, ...]
    dtype: str

    def __new__(cls, op: str, args: tuple[Any, ...], dtype: str) -> Expr:
        key = (op, dtype, *(id(arg) if isinstance(arg, Expr) else (type(arg), repr(arg)) for arg in args))
        found = cls._interned.get(key)
        if found is None:
            found = object.__new__(cls)
            found.op, found.args, found.dtype = op, args, dtype
            cls._interned[key] = found
        return found

    def __add__(self, other: Expr | int) -> Expr:
        return binary("add", self, _index(other))

    def __sub__(self, other: Expr | int) -> Expr:
        return binary("sub", self, _index(other))

    def __mul__(self, other: Expr | int) -> Expr:
        return binary("mul", self, _index(other))

    def __floordiv__(self, other: Expr | int) -> Expr:
        return binary("floordiv", self, _index(other))

    def __mod__(self, other: Expr | int) -> Expr:
        return binary("floormod", self, _index(other))

    def __repr__(self) -> str:
        if self.op == "const":
            return repr(self.args[0])
        if self.op == "axis":
            return f"i{self.args[0]}"
        if self.op == "load":
            return f"in{self.args[0]}[{self.args[1]!r}]"
        name = self.dtype if self.op == "cast" else self.op
        return f"{name}({', '.join(map(repr, self.args))})"

    @property
    def children(self) -> tuple[Expr, ...]:
        """The arguments that are expressions themselves."""
        return tuple(arg for arg in self.args if isinstance(arg, Expr))


def _index(value: Expr | int) -> Expr:
    return value if isinstance(value, Expr) else const(value, INDEX)


def const(value: float | int | bool, dtype: str) -> Expr:
    """A constant of ``dtype``; the value is rounded to it here, once."""
    return Expr("const", (np.dtype(dtype).type(value).item(),), dtype)


def axis(index: int) -> Expr:
    """Loop axis ``index``: output axes count from 0, reduction axes follow them."""
    return Expr("axis", (index,), INDEX)


def load(operand: int, offset: Expr | int, dtype: str) -> Expr:
    """The element of input ``operand`` at ``offset`` elements from its start."""
    return Expr("load", (operand, _index(offset)), dtype)


def accumulator(dtype: str) -> Expr:
    """What a reduction or a matrix kernel has summed up, inside its epilogue."""
    return Expr("acc", (), dtype)


def unary(op: str, value: Expr) -> Expr:
    """``op`` of one value; the dtype stays, except for predicates."""
    return Expr(op, (value,), "bool" if op in COMPARISONS else value.dtype)


def binary(op: str, left: Expr, right: Expr) -> Expr:
    """``op`` of two values of one dtype; integer index arithmetic on constants is folded."""
    if op in ("min", "max") and left.op == "saturate" and right.op == "const":
        return _clamped(op, left, right.args[0])
    if left.dtype == INDEX == right.dtype:
        folded = _fold_index(op, left, right)
        if folded is not None:
            return folded
    return Expr(op, (left, right), "bool" if op in COMPARISONS else left.dtype)


def _clamped(op: str, value: Expr, bound: int) -> Expr:
    """A saturation with one of its bounds moved, which a clamp behind it comes to."""
    real, zero, *limits, bits = value.args
    low, high = (max(limit, bound) if op == "max" else min(limit, bound) for limit in limits)
    return saturate(real, zero, low, high, value.dtype, bits)


def _fold_index(op: str, left: Expr, right: Expr) -> Expr | None:
    if left.op == "const" and right.op == "const" and op in _INDEX_FOLDS:
        return const(_INDEX_FOLDS[op](left.args[0], right.args[0]), INDEX)
    zero, one = const(0, INDEX), const(1, INDEX)
    if op == "add" and zero in (left, right):
        return right if left is zero else left
    if op == "sub" and right is zero:
        return left
    if op == "mul" and zero in (left, right):
        return zero
    if op in ("mul", "floordiv") and right is one:
        return left
    if op == "mul" and left is one:
        return right
    return None


_INDEX_FOLDS: dict[str, Callable[[int, int], int]] = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "floordiv": lambda a, b: a // b,
    "floormod": lambda a, b: a % b,
    "min": min,
    "max": max,
}


def select(condition: Expr, then: Expr, otherwise: Expr) -> Expr:
    """``then`` where ``condition`` holds, else ``otherwise``; both are evaluated, so both must be safe."""
    return Expr("select", (condition, then, otherwise), then.dtype)


WORD, WHOLE = 16, 32
"""Bits that a value which is saturated may be promised to fit in, see :func:`saturate`."""


def saturate(value: Expr, zero: int, low: int, high: int, dtype: str, bits: int = 0) -> Expr:
    """clamp(round_half_even(value) + zero, low, high) of a float32 ``value``, as integer ``dtype``.

    ``bits`` promises that ``value`` is a number which, rounded, is an integer of so many bits, which saves guarding its
    conversion: :data:`WHOLE`, which is known of an integer times a constant below 1, or :data:`WORD`, and then the sum
    with ``zero`` is one, too. 0 promises nothing.

    The end of every requantisation, an operator of its own so that each target takes its shortest instructions
    for it. NaN becomes ``low``.
    """
    limits = np.iinfo(dtype)
    assert value.dtype == "float32" and limits.min <= low <= high <= limits.max
    return Expr("saturate", (value, zero, low, high, bits or (WHOLE if _is_fraction(value) else 0)), dtype)


def _is_fraction(value: Expr) -> bool:
    """Whether ``value`` is an integer of up to 32 bits times a constant below 1."""
    if value.op != "mul":
        return False
    whole, factor = value.args
    integer = whole.op == "cast" and whole.args[0].dtype in ("int8", "uint8", "int16", "int32")
    return bool(integer and factor.op == "const" and abs(factor.args[0]) < 1)


def cast(value: Expr, dtype: str) -> Expr:
    """``value`` converted to ``dtype`` as C does (floats to integers truncate toward zero)."""
    if value.op == "saturate" and dtype == "int32":
        return Expr("saturate", value.args, dtype)
    return value if value.dtype == dtype else Expr("cast", (value,), dtype)


def clamp_index(index: Expr, extent: int) -> Expr:
    """``index`` forced into [0, extent), for loads whose value a select then throws away."""
    return binary("min", binary("max", index, const(0, INDEX)), const(extent - 1, INDEX))


def in_range(index: Expr, extent: int) -> Expr:
    """Whether 0 <= index < extent."""
    return binary("and", binary("ge", index, const(0, INDEX)), binary("lt", index, const(extent, INDEX)))


def walk(expr: Expr) -> Iterator[Expr]:
    """Every distinct node of ``expr``, arguments first."""
    seen: set[int] = set()
    stack: list[tuple[Expr, bool]] = [(expr, False)]
    while stack:
        node, done = stack.pop()
        if done:
            yield node
        elif id(node) not in seen:
            seen.add(id(node))
            stack.append((node, True))
            stack.extend((child, False) for child in node.children)


def use_counts(expr: Expr) -> dict[int, int]:
    """By how many arguments each node of ``expr``, by its id, is read."""
    uses: dict[int, int] = {}
    for node in walk(expr):
        for child in node.children:
            uses[id(child)] = uses.get(id(child), 0) + 1
    return uses


def rewrite(expr: Expr, replace: Callable[[Expr], Expr | None]) -> Expr:
    """``expr`` with every node that ``replace`` answers taken by its answer, bottom up."""
    made: dict[int, Expr] = {}
    for node in walk(expr):
        rebuilt = rebuild(node, made)
        # folding may have answered with an argument, which was already looked at
        made[id(node)] = (replace(rebuilt) if rebuilt.op == node.op else None) or rebuilt
    return made[id(expr)]


def rebuild(node: Expr, made: Mapping[int, Expr]) -> Expr:
    """``node`` over what its arguments (by ``id``) have become, folding index arithmetic again."""
    args = tuple(made[id(arg)] if isinstance(arg, Expr) else arg for arg in node.args)
    if all(new is old for new, old in zip(args, node.args, strict=True)):
        return node
    if node.op in ("min", "max"):
        return binary(node.op, *args)
    if node.op == "cast":
        return cast(args[0], node.dtype)
    if node.dtype == INDEX and len(args) == 2 and all(isinstance(arg, Expr) for arg in args):
        return binary(node.op, *args)
    return Expr(node.op, args, node.dtype)


def substitute_axes(expr: Expr, axes: Mapping[int, Expr]) -> Expr:
    """``expr`` with loop axes replaced."""
    return rewrite(expr, lambda node: axes.get(node.args[0]) if node.op == "axis" else None)


def rename_operands(expr: Expr, operands: Mapping[int, int]) -> Expr:
    """``expr`` with its inputs renumbered."""

    def renamed(node: Expr) -> Expr | None:
        if node.op != "load" or operands.get(node.args[0], node.args[0]) == node.args[0]:
            return None
        return load(operands[node.args[0]], node.args[1], node.dtype)

    return rewrite(expr, renamed)


def loads(expr: Expr) -> list[Expr]:
    """The distinct loads in ``expr``."""
    return [node for node in walk(expr) if node.op == "load"]


def affine(expr: Expr) -> tuple[dict[int, int], int] | None:
    """``expr`` as sum(coefficient × axis) + constant: ``({axis: coefficient}, constant)``, else None."""
    if expr.op == "const":
        return {}, int(expr.args[0])
    if expr.op == "axis":
        return {expr.args[0]: 1}, 0
    if expr.op not in ("add", "sub", "mul") or expr.dtype != INDEX:
        return None
    left, right = affine(expr.args[0]), affine(expr.args[1])
    if left is None or right is None:
        return None
    if expr.op == "mul":
        if left[0] and right[0]:
            return None
        (terms, constant), (_, factor) = (left, right) if left[0] else (right, left)
        return {a: c * factor for a, c in terms.items() if c * factor}, constant * factor
    sign = 1 if expr.op == "add" else -1
    terms = dict(left[0])
    for a, c in right[0].items():
        terms[a] = terms.get(a, 0) + sign * c
    return {a: c for a, c in terms.items() if c}, left[1] + sign * right[1]


def linear(strides: Mapping[int, int], constant: int = 0) -> Expr:
    """The index expression sum(stride × axis) + constant."""
    total = const(constant, INDEX)
    for index in sorted(strides):
        total = axis(index) * strides[index] + total
    return total
