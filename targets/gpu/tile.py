"""What the matrix-like kernels share: a tile of pixels by vectors of channels, in registers, and its epilogue."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from edgec.program import Conv, Depthwise
from edgec.targets.gpu.emitter import Emitter
from edgec.targets.gpu.opencl import Body, Value, register_type
from edgec.targets.vectors import CHANNEL_AXIS, padded_pieces, pieces


def blocks(channels: int, block: int) -> list[tuple[int, int]]:
    """The sizes of channel blocks, and how many have each: the whole ones, then the rest."""
    whole, rest = divmod(channels, block)
    return [(size, count) for size, count in ((block, whole), (rest, 1 if rest else 0)) if count]


@dataclass(frozen=True)
class Point:
    """One output pixel of a tile: its row and column, and where it may lie beyond the map, what tells that it does
    not."""

    row: str
    column: str
    inside: str | None


def points(body: Body, row: str, column: str, tile: tuple[int, int], extents: tuple[int, int]) -> list[Point]:
    """The pixels of the ``tile`` whose corner is (``row``, ``column``), clamped to the map where they leave it."""
    (rows, columns), (height, width) = tile, extents
    found = []
    for r in range(rows):
        for c in range(columns):
            at_row, row_inside = _clamped(body, row, r, rows, height)
            at_column, column_inside = _clamped(body, column, c, columns, width)
            conditions = [each for each in (row_inside, column_inside) if each]
            found.append(Point(at_row, at_column, " && ".join(conditions) or None))
    return found


def placed(
    body: Body, conv: Conv | Depthwise, position: Sequence[str], tile: tuple[int, int]
) -> tuple[str, str, list[Point]]:
    """The block of channels, the image and the pixels of the work item at ``position``, whose ``tile`` it computes."""
    block, across, z = position
    (rows, columns), (height, width) = tile, (conv.out_height, conv.out_width)
    tiles = -(-height // rows)
    image = body.index("n", f"{z} / {tiles}") if conv.batch > 1 else "0"
    down = f"({z} % {tiles})" if conv.batch > 1 else z
    row = body.index("row", f"{down} * {rows}")
    column = body.index("column", f"{across} * {columns}")
    return block, image, points(body, row, column, tile, (height, width))


def _clamped(body: Body, first: str, by: int, size: int, extent: int) -> tuple[str, str | None]:
    place = f"{first} + {by}" if by else first
    if extent % size == 0 or by == 0:
        return (body.index("at", place) if by else first), None
    return body.index("at", f"min({place}, {extent - 1})"), f"{place} < {extent}"


class Sums(Protocol):
    """What an epilogue takes."""

    def parts(self, pixel: int, channels: int) -> Iterator[tuple[int, Value]]:
        """The sums of the first ``channels`` channels of a pixel, in vectors: (first channel, value)."""
        ...


class Accumulators:
    """A register tile: one row of vectors per pixel, zero to begin with."""

    def __init__(self, body: Body, dtype: str, pixels: int, widths: Sequence[int]) -> None:
        self.body, self.dtype, self.widths = body, dtype, widths
        self._names = [[self._start(width) for width in widths] for _ in range(pixels)]

    @property
    def values(self) -> list[Value]:
        """Every sum, a variable."""
        return [
            Value(name, self.dtype, width, simple=True)
            for names in self._names
            for name, width in zip(names, self.widths, strict=True)
        ]

    def _start(self, width: int) -> str:
        name = self.body.name("acc")
        self.body.line(f"{register_type(self.dtype, width)} {name} = 0;")
        return name

    def add_product(self, pixel: int, vector: int, left: str, right: str) -> None:
        """acc[pixel, vector] += left · right: a scalar and a vector, or two vectors, converted already."""
        name, width = self._names[pixel][vector], self.widths[vector]
        kind = register_type(self.dtype, width)
        function = "MULTIPLY_ADD" if self.dtype == "float32" else "mad24"
        self.body.line(f"{name} = {function}(({kind})({left}), {right}, {name});")

    def add(self, pixel: int, vector: int, values: Sequence[str]) -> None:
        """acc[pixel, vector] += values, one a channel."""
        kind = register_type(self.dtype, len(values))
        total = values[0] if len(values) == 1 else f"({kind})({', '.join(values)})"
        self.body.line(f"{self._names[pixel][vector]} += {total};")

    def parts(self, pixel: int, channels: int) -> Iterator[tuple[int, Value]]:
        """The sums of the first ``channels`` channels of a pixel, in vectors: (first channel, value)."""
        start = 0
        for name, width in zip(self._names[pixel], self.widths, strict=True):
            skip = 0
            for part in pieces(max(0, min(width, channels - start)), width):
                lanes = "".join(f"{lane:x}" for lane in range(skip, skip + part))
                text = name if part == width else f"{name}.s{lanes}"
                yield start + skip, Value(text, self.dtype, part, simple=True)
                skip += part
            start += width


def write(
    body: Body, kernel: Conv | Depthwise, acc: Sums, pixels: Sequence[Point], image: str, channel: str,
    channels: int, dtypes: Sequence[str],
) -> None:  # fmt: skip
    """Apply the epilogue to ``channels`` channels from ``channel`` on of every pixel, and store them."""
    for index, point in enumerate(pixels):
        with _where(body, point.inside):
            for first, value in acc.parts(index, channels):
                at = f"{channel} + {first}" if first else channel
                axes = {0: image, 1: point.row, 2: point.column, CHANNEL_AXIS: at}
                emitter = Emitter(body, axes, dtypes, CHANNEL_AXIS, value.lanes, value)
                result = emitter.vector(kernel.epilogue)
                result = Value(result.text, kernel.dtype, result.lanes, result.simple)
                emitter.store(f"p{len(dtypes) - 1}", kernel.store, result)


@contextmanager
def _where(body: Body, condition: str | None) -> Iterator[None]:
    with body.block(f"if ({condition})" if condition else ""):
        yield


def packed(weight: np.ndarray, channels: int, block: int, lanes: int, least: int = 1) -> np.ndarray:
    """A matrix [depth, channels] as panels of a block each, [depth, channel], filled up with zeros to whole vectors,
    of ``least`` channels or more."""
    matrix, panels, first = weight.reshape(-1, channels), [], 0
    for size, count in blocks(channels, block):
        for _ in range(count):
            panel = np.zeros((matrix.shape[0], sum(padded_pieces(size, lanes, least))), weight.dtype)
            panel[:, :size] = matrix[:, first : first + size]
            panels.append(panel.ravel())
            first += size
    return np.concatenate(panels)


def window(kernel: Conv | Depthwise) -> str:
    """The window in a kernel's name."""
    (kh, kw), (sh, sw), (dh, dw) = kernel.kernel, kernel.stride, kernel.dilation
    return f"k{kh}x{kw}s{sh}x{sw}d{dh}x{dw}"
