"""Register tiles of int32 sums: they start from the bias, and leave four vectors at a time as bytes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tvm import tirx
from tvm.tirx import stmt

from edgec import scalar
from edgec.nest import coefficient
from edgec.scalar import Expr
from edgec.targets.cpu.aarch64.neon import join, part
from edgec.targets.cpu.tile import CHANNEL_AXIS, Accumulators, Point, Store
from edgec.targets.cpu.tir import Body, Emitter, vector_load, vector_store

LANES = 4
"""int32 sums in a register."""
RESULTS = 16
"""Bytes in a register: as many channels leave at a time."""


def bias_apart(epilogue: Expr) -> tuple[Expr, Expr | None]:
    """``epilogue`` of sums that start from the bias, and the bias: a load for each channel that is added to the sum,
    which is used nowhere else. None where there is no such."""
    acc = scalar.accumulator("int32")
    users = [node for node in scalar.walk(epilogue) if any(child is acc for child in node.children)]
    if len(users) != 1 or users[0].op != "add":
        return epilogue, None
    left, right = users[0].args
    bias = right if left is acc else left
    fixed = bias.op == "load" and all(coefficient(bias.args[1], axis) == 0 for axis in range(CHANNEL_AXIS))
    if not fixed or coefficient(bias.args[1], CHANNEL_AXIS) != 1:
        return epilogue, None
    return scalar.rewrite(epilogue, lambda node: acc if node is users[0] else None), bias


def start_vectors(
    body: Body,
    operands: Sequence[Any],
    bias: Expr | None,
    channel: Any,
    channels: int,
    count: int,
    head: tuple[Any, Any] | None,
) -> list[Any]:
    """What the sums of ``channels`` from ``channel`` on start from, in ``count`` vectors.

    Args:
        body: the kernel in hand.
        operands: its buffers.
        bias: see :func:`bias_apart`; it is not read past the last channel.
        channel: the first one.
        channels: how many there are.
        count: vectors that cover them.
        head: a buffer and an offset in it, where an int32 for each lane is to be added; or None.
    """
    vectors = []
    for index in range(count):
        value = _bias_vector(body, operands, bias, channel + index * LANES, channels - index * LANES)
        if head is not None:
            buffer, offset = head
            value = value + tirx.reinterpret("int32x4", vector_load(buffer, offset + index * RESULTS, RESULTS))
        vectors.append(body.hold(value))
    return vectors


def _bias_vector(body: Body, operands: Sequence[Any], bias: Expr | None, channel: Any, channels: int) -> Any:
    zero = tirx.const(0, "int32")
    if bias is None or channels <= 0:
        return tirx.Broadcast(zero, LANES)
    axes = dict.fromkeys(range(CHANNEL_AXIS), zero)
    if channels >= LANES:
        return Emitter(body, operands, {**axes, CHANNEL_AXIS: channel}, CHANNEL_AXIS, LANES).vector(bias)
    each = [Emitter(body, operands, {**axes, CHANNEL_AXIS: channel + lane})(bias) for lane in range(channels)]
    return join([*each, *[zero] * (LANES - channels)])


def result_widths(channels: int) -> list[int]:
    """How many channels leave at a time: 16, then 8, 4, 2 and 1."""
    widths = [RESULTS] * (channels // RESULTS)
    return widths + [width for width in (8, 4, 2, 1) if channels % RESULTS & width]


class IntegerTile(Accumulators):
    """A register tile of int32 vectors, ``start`` in every pixel's row to begin with."""

    def __init__(self, body: Body, points: Sequence[Point], start: Sequence[Any]) -> None:
        super().__init__(body, "int32", points, [LANES] * len(start), start)

    def update(self, pixel: int, vector: int, value: Any) -> None:
        """Replace one vector of sums."""
        self.body.emit(stmt.BufferStore(self.buffer, value, [self._index(pixel, vector, LANES)]))

    def value(self, pixel: int, vector: int) -> Any:
        """One vector of sums."""
        return tirx.BufferLoad(self.buffer, [self._index(pixel, vector, LANES)])

    def write(self, target: Store, origin: dict[int, Any], channels: int) -> None:
        """See :meth:`Accumulators.write`; each pixel's results leave in vectors as wide as a register of bytes."""
        for pixel, axes in enumerate(self.axes(origin)):
            first = 0
            for width in result_widths(channels):
                offset, value = target.evaluate(axes, first, width, self._sums(pixel, first, width))
                self.body.emit(vector_store(target.output, value, offset))
                first += width

    def _sums(self, pixel: int, first: int, width: int) -> Any:
        if width < LANES:
            return part(self.value(pixel, first // LANES), first % LANES, width)
        return join([self.value(pixel, index // LANES) for index in range(first, first + width, LANES)])


def load_input(buffer: Any, offset: Any, lanes: int = RESULTS) -> Any:
    """``lanes`` bytes of an input as int8; of a uint8 input, less 128."""
    value = vector_load(buffer, offset, lanes)
    if buffer.dtype == "int8":
        return value
    return tirx.reinterpret(f"int8x{lanes}", tirx.bitwise_xor(value, tirx.Broadcast(tirx.const(128, "uint8"), lanes)))
