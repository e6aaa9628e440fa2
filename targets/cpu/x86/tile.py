"""Register tiles of int32 sums: they start from the bias, and leave four vectors at a time as bytes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgec.building.lazy_tvm import tirx
from edgec.scalar import Expr
from edgec.targets.cpu.tile import Accumulators, Point, Store, starts
from edgec.targets.cpu.tir import TURN, Body, Emitter, join, part, vector_load, vector_store
from edgec.targets.cpu.x86.isa import Isa, dot, pair_sums, word_dot
from edgec.targets.cpu.x86.narrow import GROUP, bytes_of, narrowing
from edgec.targets.vectors import CHANNEL_AXIS, pieces

TAPS = 4
"""Products that one int32 lane takes in at a time."""
SIGN = 128
"""What makes an int8 a uint8, as a difference or by its highest bit."""
SIGN_BYTES = 64
"""Bytes of :data:`SIGN` in front of a panel for int8; as constants, LLVM 22 would loop over them for ever."""


@dataclass(frozen=True)
class Panel:
    """How the weights of a block of channels lie: its head, then [step, channel, tap], ``taps`` of them a step.

    The head is there for an int8 input, which is read as the uint8 x + 128: 64 bytes of 128, and for each channel
    −128 · Σ w as int32.
    """

    steps: int
    signed: bool
    taps: int = TAPS

    def size(self, lanes: int) -> int:
        """Bytes of a panel of ``lanes`` channels."""
        return self.head(lanes) + self.steps * lanes * self.taps

    def head(self, lanes: int) -> int:
        """Bytes in front of the weights."""
        return SIGN_BYTES + 4 * lanes if self.signed else 0

    def pack(self, weight: np.ndarray, lanes: int, sums: np.ndarray) -> np.ndarray:
        """[steps, taps, channels] int8, the channels filled up to ``lanes``; ``sums`` of each channel's weights."""
        block = np.zeros((*weight.shape[:2], lanes), np.int8)
        block[:, :, : weight.shape[2]] = weight
        packed = block.transpose(0, 2, 1).ravel()
        if not self.signed:
            return packed
        start = np.zeros(lanes, np.int32)
        start[: weight.shape[2]] = -SIGN * sums
        return np.concatenate([np.full(SIGN_BYTES, SIGN, np.uint8).view(np.int8), start.view(np.int8), packed])


@dataclass(frozen=True)
class Multiplier:
    """Products of four unsigned bytes by four signed ones, summed up in int32, exactly.

    Without VNNI even and odd bytes are products of int16, because the instruction for bytes saturates.
    """

    isa: Isa
    body: Body

    def weights(self, value: Any) -> list[Any]:
        """A vector of weights, as :meth:`add` takes it."""
        if self.isa.vnni:
            return [self.body.bind("w", value)]
        words = tirx.reinterpret(f"int16x{_lanes(value) // 2}", value)
        eight = tirx.Broadcast(tirx.const(8, "int16"), _lanes(words))
        even = tirx.shift_right(tirx.shift_left(words, eight), eight)
        return [self.body.hold(even), self.body.hold(tirx.shift_right(words, eight))]

    def inputs(self, value: Any) -> list[Any]:
        """A vector of unsigned bytes, as :meth:`add` takes it."""
        if self.isa.vnni:
            return [value]
        words = tirx.reinterpret(f"uint16x{_lanes(value) // 2}", value)
        even = tirx.bitwise_and(words, tirx.Broadcast(tirx.const(255, "uint16"), _lanes(words)))
        odd = tirx.shift_right(words, tirx.Broadcast(tirx.const(8, "uint16"), _lanes(words)))
        return [self.body.hold(tirx.reinterpret(f"int16x{_lanes(words)}", x)) for x in (even, odd)]

    def add(self, total: Any, inputs: Sequence[Any], weights: Sequence[Any]) -> Any:
        """``total`` and the products."""
        if self.isa.vnni:
            return dot(total, inputs[0], weights[0])
        for left, right in zip(inputs, weights, strict=True):
            total = total + pair_sums(left, right)
        return total


@dataclass(frozen=True)
class WordMultiplier:
    """Products of pairs of int16 by pairs of int8, summed up in int32, exactly: two products are below 2^23."""

    isa: Isa
    body: Body

    def weights(self, value: Any) -> list[Any]:
        """A vector of weights, as :meth:`add` takes it."""
        return [self.body.hold(value.astype(f"int16x{_lanes(value)}"))]

    def inputs(self, value: Any) -> list[Any]:
        """A vector of int16, as :meth:`add` takes it."""
        return [value]

    def add(self, total: Any, inputs: Sequence[Any], weights: Sequence[Any]) -> Any:
        """``total`` and the products."""
        if self.isa.vnni:
            return word_dot(total, inputs[0], weights[0])
        return total + pair_sums(inputs[0], weights[0])


def _lanes(value: Any) -> int:
    return int(str(value.ty.dtype).partition("x")[2])


def bias_vectors(
    body: Body, operands: Sequence[Any], bias: Expr | None, origin: dict[int, Any], widths: Sequence[int],
    channels: int, turns: int = 1,
) -> list[Any]:
    """The bias of ``channels`` from ``origin`` on in vectors of ``widths``, zeros behind the last; nothing is read
    past it.

    With ``turns`` above 1 the vectors share the channels (see :class:`.tir.Emitter`), and are whole.
    """
    if bias is None:
        return [tirx.Broadcast(tirx.const(0, "int32"), width) for width in widths]
    if turns > 1:
        points = [{**origin, CHANNEL_AXIS: origin[CHANNEL_AXIS] + turn * TURN} for turn in range(turns)]
        emitters = [Emitter(body, operands, point, CHANNEL_AXIS, widths[0], turns=turns) for point in points]
        return [emitter.vector(bias) for emitter in emitters]
    vectors = []
    for first, width in zip(starts(widths), widths, strict=True):
        values, read = [], min(width, channels - first)
        for lanes in pieces(read, width):
            point = {**origin, CHANNEL_AXIS: origin[CHANNEL_AXIS] + first}
            values.append(Emitter(body, operands, point, CHANNEL_AXIS, lanes).vector(bias))
            first += lanes
        vectors.append(join([*values, *[tirx.const(0, "int32")] * (width - read)]))
    return vectors


def read_head(
    body: Body, weights: Any, panel: Any, start: Sequence[Any], widths: Sequence[int]
) -> tuple[Any, list[Any]]:
    """The head of a signed :class:`Panel` at ``panel``: the register that turns int8 into uint8, and ``start``, the
    vectors that sums begin with, without what that adds."""
    sign = body.hold(tirx.reinterpret(f"uint8x{SIGN_BYTES}", vector_load(weights, panel, SIGN_BYTES)))
    heads = [
        tirx.reinterpret(f"int32x{width}", vector_load(weights, panel + SIGN_BYTES + 4 * first, 4 * width))
        for first, width in zip(starts(widths), widths, strict=True)
    ]
    return sign, [value + head for value, head in zip(start, heads, strict=True)]


class IntegerTile(Accumulators):
    """A register tile of int32 vectors, ``start`` in every pixel's row to begin with.

    With ``turns`` above 1 so many vectors, all whole, share the channels of a row in turns (see :class:`.tir.Emitter`),
    and the epilogue is a :class:`.narrow.Narrowing`.
    """

    def __init__(
        self, body: Body, isa: Isa, points: Sequence[Point], widths: Sequence[int], start: Sequence[Any], turns: int = 1
    ) -> None:
        super().__init__(body, "int32", points, widths, start)
        self.isa, self.turns = isa, turns

    def divide_by_sixteen(self) -> None:
        """Exactly: every sum is a multiple."""
        for pixel in range(len(self.points)):
            for vector, width in enumerate(self.widths):
                four = tirx.Broadcast(tirx.const(4, "int32"), width)
                self.update(pixel, vector, tirx.shift_right(self.value(pixel, vector), four))

    def write(self, target: Store, origin: dict[int, Any], channels: int) -> None:
        """See :meth:`Accumulators.write`; whole vectors leave four at a time."""
        narrow = narrowing(target.epilogue)
        if narrow is None:
            super().write(target, origin, channels)
            return
        grouped: dict[int, list[tuple[Any, list[Any]]]] = {}
        results = []
        inner = Store(self.body, target.operands, target.output, narrow.value, target.store)
        for pixel, axes in enumerate(self.axes(origin)):
            for vector in range(0, len(self.widths), self.turns):
                skip, first = 0, self._starts[vector]
                for lanes in pieces(max(0, min(self.widths[vector], channels - first)), self.widths[vector]):
                    sums = tirx.BufferLoad(self.buffer, [self._index(pixel, vector, lanes, skip)])
                    if lanes < GROUP:
                        results.append(target.evaluate(axes, first + skip, lanes, sums))
                    else:
                        grouped.setdefault(lanes, []).append(self._run(inner, axes, pixel, vector, lanes, skip))
                    skip += lanes
        for lanes, found in grouped.items():
            size = self.turns * lanes
            for index in range(0, len(found), GROUP // self.turns):
                own = found[index : index + GROUP // self.turns]
                values = [value for _, run in own for value in run]
                packed = self.body.bind("y", bytes_of(narrow, values, self.turns))
                results += [(offset, part(packed, n * size, size)) for n, (offset, _) in enumerate(own)]
        for offset, value in results:
            self.body.emit(vector_store(target.output, value, offset))

    def _run(
        self, inner: Store, axes: dict[int, Any], pixel: int, vector: int, lanes: int, skip: int
    ) -> tuple[Any, list[Any]]:
        """The vectors that share a run of channels, from ``vector`` on, as numbers to narrow, and where they go."""
        offsets, values = [], []
        for turn in range(self.turns):
            sums = tirx.BufferLoad(self.buffer, [self._index(pixel, vector + turn, lanes, skip)])
            channel = self._starts[vector] + skip + turn * TURN
            offset, value = inner.evaluate(axes, channel, lanes, sums, self.turns)
            offsets.append(offset)
            values.append(self.body.hold(value))
        return offsets[0], values
