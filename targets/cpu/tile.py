"""What the matrix-like kernels share: vectors across channels, accumulators, epilogues and stores."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

from edgec import scalar
from edgec.building.lazy_tvm import stmt, tirx
from edgec.nest import coefficient
from edgec.program import Conv, Depthwise
from edgec.scalar import Expr
from edgec.targets.cpu.tir import Body, Emitter, Kernel, lanes_of, vector_load, vector_store, widen
from edgec.targets.vectors import CHANNEL_AXIS, SHORT, pieces

PIXEL_AXES = (1, 2)
"""Rows and columns among the axes of a convolution."""


def starts(widths: Sequence[int]) -> list[int]:
    """Where each of the vectors starts."""
    return [sum(widths[:index]) for index in range(len(widths))]


def bias_apart(epilogue: Expr, dtype: str) -> tuple[Expr, Expr | None]:
    """``epilogue`` of sums (of ``dtype``) that start from the bias, and the bias: a load that is added to the sum,
    which is used nowhere else, and is the same for all pixels. None where there is no such."""
    acc = scalar.accumulator(dtype)
    users = [node for node in scalar.walk(epilogue) if any(child is acc for child in node.children)]
    if len(users) != 1 or users[0].op != "add":
        return epilogue, None
    left, right = users[0].args
    bias = right if left is acc else left
    fixed = bias.op == "load" and all(coefficient(bias.args[1], axis) == 0 for axis in PIXEL_AXES)
    if not fixed or coefficient(bias.args[1], CHANNEL_AXIS) != 1:
        return epilogue, None
    return scalar.rewrite(epilogue, lambda node: acc if node is users[0] else None), bias


@dataclass(frozen=True)
class Point:
    """One output pixel of a tile: its row and column from the tile's corner."""

    row: int
    column: int


class Accumulators:
    """A register tile: one row of vectors per pixel, zero or ``start`` (a row) to begin with."""

    def __init__(
        self, body: Body, dtype: str, points: Sequence[Point], widths: Sequence[int], start: Sequence[Any] | None = None
    ) -> None:
        self.body, self.points, self.widths, self.dtype = body, points, widths, dtype
        self._starts, self._row = starts(widths), sum(widths)
        self.buffer = body.local(dtype, self._row * len(points))
        for pixel in range(len(points)):
            for vector, width in enumerate(widths):
                first = start[vector] if start else widen(tirx.const(0, dtype), width)
                self.body.emit(stmt.BufferStore(self.buffer, first, [self._index(pixel, vector, width)]))

    def _index(self, pixel: int, vector: int, width: int, skip: int = 0) -> Any:
        first = tirx.const(pixel * self._row + self._starts[vector] + skip, "int32")
        return first if width == 1 else tirx.Ramp(first, tirx.const(1, "int32"), width)

    def value(self, pixel: int, vector: int) -> Any:
        """One vector of sums."""
        return tirx.BufferLoad(self.buffer, [self._index(pixel, vector, self.widths[vector])])

    def update(self, pixel: int, vector: int, value: Any) -> None:
        """Replace one vector of sums."""
        self.body.emit(stmt.BufferStore(self.buffer, value, [self._index(pixel, vector, self.widths[vector])]))

    def add_product(self, pixel: int, vector: int, left: Any, right: Any) -> None:
        """acc[pixel, vector] += left · right, both converted to the sum's dtype; ``left`` may be a scalar."""
        width = self.widths[vector]
        index = [self._index(pixel, vector, width)]
        if self.dtype == "int32":  # vectors first, so that the compiler finds the long products of short integers
            left, right = (widen(_words(value), width) for value in (left, right))
        total = tirx.BufferLoad(self.buffer, index) + widen(self._wide(left), width) * self._wide(right)
        self.body.emit(stmt.BufferStore(self.buffer, total, index))

    def _wide(self, value: Any) -> Any:
        lanes = lanes_of(value)
        return value.astype(self.dtype if lanes == 1 else f"{self.dtype}x{lanes}")

    def write(self, target: Store, origin: dict[int, Any], channels: int) -> None:
        """Apply the epilogue to the first ``channels`` channels of every pixel and store them.

        All values are computed before the first is stored: a store might alias an epilogue's operand, and
        the compiler would have to load bias and scale again after it.
        """
        results = []
        for pixel, axes in enumerate(self.axes(origin)):
            for vector, width in enumerate(self.widths):
                skip = 0
                for part in pieces(max(0, min(width, channels - self._starts[vector])), width):
                    value = tirx.BufferLoad(self.buffer, [self._index(pixel, vector, part, skip)])
                    results.append(target.evaluate(axes, self._starts[vector] + skip, part, value))
                    skip += part
        for offset, value in results:
            self.body.emit(vector_store(target.output, value, offset))

    def axes(self, origin: dict[int, Any]) -> list[dict[int, Any]]:
        """The axes of every pixel of the tile at ``origin``."""
        return [
            {
                **origin,
                1: origin[1] + point.row if point.row else origin[1],
                2: origin[2] + point.column if point.column else origin[2],
            }
            for point in self.points
        ]


@dataclass
class Store:
    """Where results go: the epilogue over ``operands``, stored to ``output`` at the kernel's offsets."""

    body: Body
    operands: Sequence[Any]
    output: Any
    epilogue: Expr
    store: Expr

    def evaluate(
        self, axes: dict[int, Any], channel: int, lanes: int, value: Any, turns: int = 1
    ) -> tuple[Any, Any]:
        """The offset of one vector of results, and the results, computed but not stored (see :class:`.tir.Emitter`)."""
        point = {**axes, CHANNEL_AXIS: axes[CHANNEL_AXIS] + channel if channel else axes[CHANNEL_AXIS]}
        emitter = Emitter(self.body, self.operands, point, CHANNEL_AXIS, lanes, value, turns)
        result = emitter.vector(self.epilogue)
        if self.epilogue is not scalar.accumulator(self.epilogue.dtype):
            result = self.body.bind("y", result)
        else:
            result = self.body.bind("y", value)
        return emitter.offset(self.store)[0], result


def _words(value: Any) -> Any:
    """Bytes as int16; other integers as they are."""
    kind, _, lanes = str(value.ty.dtype).partition("x")
    return value.astype(f"int16x{lanes}" if lanes else "int16") if kind in ("int8", "uint8") else value


def window_uses(
    rows: int, columns: int, kernel: tuple[int, int], stride: tuple[int, int], dilation: tuple[int, int]
) -> dict[tuple[int, int], list[tuple[int, int]]]:
    """For every input of a tile of ``rows`` × ``columns`` pixels, by its row and column from the tile's corner and in
    their order: the pixels and taps of the window that it is multiplied for."""
    found: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for pixel in range(rows * columns):
        row, column = divmod(pixel, columns)
        for tap in range(kernel[0] * kernel[1]):
            down, right = divmod(tap, kernel[1])
            place = row * stride[0] + down * dilation[0], column * stride[1] + right * dilation[1]
            found.setdefault(place, []).append((pixel, tap))
    return {place: found[place] for place in sorted(found)}


def tiles(extent: int, size: int) -> list[tuple[int, int, int]]:
    """``extent`` cut into tiles: (start, tile size, how many) for the whole tiles and for the rest."""
    whole = extent // size
    cut = [(0, size, whole)] if whole else []
    if extent % size:
        cut.append((whole * size, extent % size, 1))
    return cut


def share_rows(kernel: Kernel, extent: int, size: int, inner: Callable[[Any, int], None]) -> None:
    """``inner`` with the first row of each tile and how many it has; threads share the tiles of ``size`` rows, and the
    last one has what is left."""
    for start, rows, count in tiles(extent, size):
        if count > 1:
            first, own = kernel.share(count)
            with kernel.body.loop(own, first) as index:
                inner(start + index * rows, rows)
        else:
            with kernel.body.when(tirx.EQ(kernel.thread, kernel.threads - 1)):
                inner(tirx.const(start, "int32"), rows)


def over_channels(body: Body, channels: int, lanes: int, inner: Callable[[Any, Any, int], None]) -> None:
    """``inner`` with the number of each vector of channels, its first channel and its width: whole vectors in a loop,
    and narrower ones for what is left."""
    whole = channels // lanes
    if whole:
        with body.loop(whole) as block:
            inner(block, block * lanes, lanes)
    first = whole * lanes
    for index, width in enumerate(pieces(channels - first, lanes)):
        inner(tirx.const(whole + index, "int32"), tirx.const(first, "int32"), width)
        first += width


def reduce_over(body: Body, loops: Sequence[tuple[int, int]], source: Any, visit: Callable[[Any, Any], None]) -> None:
    """``visit`` inside the loops over a sum, with the input element (from ``source`` on) and the number of the round.

    The loops, (extent, input elements a round) each, are not unrolled: the compiler then hoists input loads out of
    order and spills the register tile.
    """

    def level(depth: int, element: Any, index: Any) -> None:
        if depth == len(loops):
            visit(element, index)
            return
        extent, step = loops[depth]
        inner = prod(extent for extent, _ in loops[depth + 1 :])
        with body.loop(extent) as round_:
            level(depth + 1, element + round_ * step, index + round_ * inner)

    level(0, source, tirx.const(0, "int32"))


def shape_name(conv: Conv | Depthwise, kind: str) -> str:
    """How a kernel's name begins: ``f32_conv_n1h8w8c16_k3x3s1x1d1x1``, with ``g`` for ``n`` where images are groups."""
    (n, h, w, c), pairs = conv.extents, zip("ksd", (conv.kernel, conv.stride, conv.dilation), strict=True)
    images = "g" if isinstance(conv, Conv) and conv.grouped else "n"
    window = "".join(f"{letter}{along[0]}x{along[1]}" for letter, along in pairs)
    return f"{SHORT[conv.input_dtype]}_{kind}_{images}{n}h{h}w{w}c{c}_{window}"


def load_channels(buffer: Any, offset: Any, lanes: int) -> Any:
    """``lanes`` neighbouring channels."""
    return vector_load(buffer, offset, lanes)
