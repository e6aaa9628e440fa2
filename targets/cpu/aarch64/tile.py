"""Register tiles whose sums start from the bias; integers leave four vectors at a time, as bytes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgec.building.lazy_tvm import tirx
from edgec.program import Conv, Depthwise
from edgec.scalar import Expr
from edgec.targets.cpu.aarch64 import assembly
from edgec.targets.cpu.tile import Accumulators, Point, Store, bias_apart
from edgec.targets.cpu.tir import Body, Emitter, Kernel, join, part, vector_load, vector_store
from edgec.targets.vectors import CHANNEL_AXIS, pieces

LANES = 4
"""Sums in a register; in float16 there are twice as many, see :func:`lanes_of`."""
RESULTS = 16
"""Bytes in a register: as many channels leave at a time."""


def lanes_of(dtype: str) -> int:
    """Sums of ``dtype`` in a register."""
    return RESULTS // np.dtype(dtype).itemsize


@dataclass(frozen=True)
class Start:
    """What the sums of a tile start from.

    Attributes:
        body: the kernel in hand.
        operands: its buffers.
        dtype: of the sums.
        bias: see :func:`bias_apart`.
    """

    body: Body
    operands: Sequence[Any]
    dtype: str
    bias: Expr | None

    @property
    def lanes(self) -> int:
        """Sums in a register."""
        return lanes_of(self.dtype)

    def vectors(
        self, origin: dict[int, Any], channels: int, count: int, head: tuple[Any, Any] | None = None
    ) -> list[Any]:
        """The start of ``channels`` from ``origin`` on, in ``count`` vectors; no bias is read past the last channel.

        ``head`` is a buffer and an offset in it, where an int32 for each lane is to be added.
        """
        vectors = []
        for index in range(count):
            value = self._vector(origin, index * self.lanes, channels - index * self.lanes)
            if head is not None:
                buffer, offset = head
                value = value + tirx.reinterpret("int32x4", vector_load(buffer, offset + index * RESULTS, RESULTS))
            vectors.append(self.body.hold(value))
        return vectors

    def address(self, origin: dict[int, Any], channels: int, count: int) -> Any:
        """Of the same in memory: of the bias, or of a copy where that ends within a vector."""
        if self.bias is not None and channels == count * self.lanes:
            offset = Emitter(self.body, self.operands, origin)(self.bias.args[1])
            return assembly.address(self.operands[self.bias.args[0]], offset)
        copy = self.body.local(self.dtype, count * self.lanes)
        for index, value in enumerate(self.vectors(origin, channels, count)):
            self.body.emit(vector_store(copy, value, tirx.const(index * self.lanes, "int32")))
        return assembly.address(copy, tirx.const(0, "int32"))

    def _vector(self, origin: dict[int, Any], first: int, channels: int) -> Any:
        """That of up to a vector of ``channels``, ``first`` channels behind ``origin``."""
        zero, lanes = tirx.const(0, self.dtype), self.lanes
        if self.bias is None or channels <= 0:
            return tirx.Broadcast(zero, lanes)
        if channels >= lanes:
            return self._at(origin, first, lanes).vector(self.bias)
        each = [self._at(origin, first + lane, 1)(self.bias) for lane in range(channels)]
        return join([*each, *[zero] * (lanes - channels)])

    def _at(self, origin: dict[int, Any], first: int, lanes: int) -> Emitter:
        axes = {**origin, CHANNEL_AXIS: origin[CHANNEL_AXIS] + first}
        return Emitter(self.body, self.operands, axes, CHANNEL_AXIS, lanes)


def start_and_store(conv: Conv | Depthwise, kernel: Kernel) -> tuple[Start, Store]:
    """What the sums of ``conv`` start from, and where its results go."""
    operands, dtype = kernel.buffers[:-1], conv.accumulator_dtype
    epilogue, bias = bias_apart(conv.epilogue, dtype)
    store = Store(kernel.body, operands, kernel.buffers[-1], epilogue, conv.store)
    return Start(kernel.body, operands, dtype, bias), store


class Tile(Accumulators):
    """A register tile of vectors of ``dtype``, ``start`` in every pixel's row to begin with."""

    def __init__(self, body: Body, dtype: str, points: Sequence[Point], start: Sequence[Any]) -> None:
        self.lanes = lanes_of(dtype)
        super().__init__(body, dtype, points, [self.lanes] * len(start), start)

    def write(self, target: Store, origin: dict[int, Any], channels: int) -> None:
        """See :meth:`Accumulators.write`; each pixel's results leave before the next one's are computed."""
        for pixel, axes in enumerate(self.axes(origin)):
            first = 0
            for width in pieces(channels, RESULTS if self.dtype == "int32" else self.lanes):
                offset, value = target.evaluate(axes, first, width, self._sums(pixel, first, width))
                self.body.emit(vector_store(target.output, value, offset))
                first += width

    def _sums(self, pixel: int, first: int, width: int) -> Any:
        lanes = self.lanes
        if width < lanes:
            return part(self.value(pixel, first // lanes), first % lanes, width)
        return join([self.value(pixel, index // lanes) for index in range(first, first + width, lanes)])


def unset(dtype: str) -> Any:
    """A vector of sums that assembly is to set."""
    return tirx.Broadcast(tirx.const(0, dtype), lanes_of(dtype))


def load_input(buffer: Any, offset: Any, lanes: int = RESULTS) -> Any:
    """``lanes`` bytes of an input as int8; of a uint8 input, less 128."""
    value = vector_load(buffer, offset, lanes)
    if buffer.dtype == "int8":
        return value
    return tirx.reinterpret(f"int8x{lanes}", tirx.bitwise_xor(value, tirx.Broadcast(tirx.const(128, "uint8"), lanes)))
