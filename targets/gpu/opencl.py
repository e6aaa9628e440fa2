"""OpenCL C as text: types, constants, loads and stores, and the statements of a kernel.

The text is our own and not that of TVM's OpenCL generator, which prints float constants with six decimals (a
requantisation would no longer be exact) and keeps every accumulator in an array. In a register a bool is an int, all
of whose bits are set if it holds, for scalars as OpenCL has it for vectors; a float16 is a float, which is rounded
where it is stored.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import isinf, isnan

import numpy as np

from edgec import scalar

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

    ``group`` is the work group's size; the driver chooses it where it is None. With ``image`` the weight, operand 1, is
    read as an image of four numbers a point.
    """

    text: str
    items: tuple[int, int, int]
    group: tuple[int, int, int] | None
    widths: frozenset[int]
    image: bool = False


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
    def loop(self, extent: int, step: int = 1, first: str = "0") -> Iterator[str]:
        """A loop over [``first``, extent); one iteration needs no loop."""
        if 0 < extent <= step and first == "0":
            yield "0"
            return
        name = self.name("i")
        with self.block(f"for (int {name} = {first}; {name} < {extent}; {name} += {step})"):
            yield name

    def source(self, items: Sequence[int], group: tuple[int, int, int] | None, image: bool = False) -> Source:
        """The kernel as it was written, for ``items`` work items along up to three axes."""
        x, y, z = (*items, 1, 1, 1)[:3]
        return Source("\n".join(self.lines), (x, y, z), group, frozenset(self.widths), image)


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


IMAGE_LANES = 4
"""Numbers of a point of an image."""
IMAGE_DTYPES = {"float32": "f", "float16": "f", "int8": "i"}
"""Which function reads an image of these."""


def image_vector(operand: int, offset: str, dtype: str, lanes: int) -> str:
    """``lanes`` neighbours of an operand that is an image from ``offset``, a multiple of four, on.

    They are float32 or int32 already; see ``WEIGHT4`` in :mod:`edgec.targets.gpu.source`.
    """
    size = np.dtype(dtype).itemsize
    parts = [f"WEIGHT4_{dtype}(m{operand}, from{operand} / {4 * size} + ({offset}) / 4)"]
    parts += [
        f"WEIGHT4_{dtype}(m{operand}, from{operand} / {4 * size} + ({offset}) / 4 + {i})" for i in range(1, lanes // 4)
    ]
    kind = "float" if IMAGE_DTYPES[dtype] == "f" else "int"
    return parts[0] if lanes == 4 else f"({kind}{lanes})({', '.join(parts)})"


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
