"""Winograd's convolution (:mod:`.winograd`) whose weights are made for the 36 points as they are needed.

There they would take four times their memory, in the artifact and in the caches, so that they are made block by block
of output channels, from the nine. All of a thread's tiles are transformed first.

Packed integer weights (see :mod:`.unpacking`) are unpacked in registers on their way: of each block of channels they
lie as [input channels, vector, tap, byte, lane], as many input channels together as a byte holds, or of 3 bits eight.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import prod
from typing import Any

import numpy as np

from edgec.building.lazy_tvm import tirx
from edgec.program import Conv, Packing
from edgec.targets.cpu.tile import load_channels, tiles
from edgec.targets.cpu.tir import Kernel
from edgec.targets.cpu.unpacking import EIGHT, Unpacker, bytes_of, in_bytes, nibbles, scales
from edgec.targets.cpu.winograd import POINTS, WinogradPlan, WinogradWriter, times
from edgec.targets.cpu.winograd import contract as contract_floats

TAPS = 9
SPREAD_BYTES = 320 * 1024
"""Of the transformed inputs of an image, and of the weights of a block, at most: they lie on the stack."""

Window = list[list[Any]]
"""Three by three vectors of weights."""


def fits(conv: Conv) -> bool:
    """Whether weights such as those of ``conv``, which Winograd's transforms are for, can be spread."""
    packing = conv.packing
    if conv.input_dtype != "float32" or packing is None:
        return conv.input_dtype == "float32"
    return not packing.parts and not conv.grouped and conv.in_channels % together(packing) == 0


def together(packing: Packing | None) -> int:
    """Input channels whose weights share bytes."""
    if packing is None:
        return 1
    return 2 if packing.nested else {8: 1, 4: 2, 3: EIGHT, 2: 4}[packing.bits]


def fits_stack(p: WinogradPlan) -> bool:
    """Whether transformed inputs and a block's weights lie within :data:`SPREAD_BYTES` each."""
    depth = 4 * POINTS * p.conv.in_channels
    return max(depth * prod(p.grid), depth * p.block) <= SPREAD_BYTES


def pack(p: WinogradPlan, weight: np.ndarray) -> np.ndarray:
    """The weight [3, 3, ci, co] as [block of channels][kh, kw, ci, channel], channels padded with zeros; packed ones
    as bytes, see the module."""
    taps = weight.reshape(TAPS, *weight.shape[2:])
    if p.conv.packing is None:
        return np.concatenate([block.ravel() for block in _blocks(p, taps)])
    planes = nibbles(taps) if p.conv.packing.nested else (taps,)
    return np.concatenate([_in_bytes(p, block) for plane in planes for block in _blocks(p, plane)])


def _blocks(p: WinogradPlan, taps: np.ndarray) -> Iterator[np.ndarray]:
    """[tap, ci, channel] of each block of channels."""
    for first in range(0, taps.shape[2], p.block):
        block = taps[:, :, first : first + p.block]
        channels = block.shape[2]
        yield np.pad(block, ((0, 0), (0, 0), (0, sum(p.widths(channels)) - channels)))


def _in_bytes(p: WinogradPlan, block: np.ndarray) -> np.ndarray:
    """[tap, ci, channel] as uint8 [input channels, vector, tap, byte, lane]."""
    count, edges = together(p.conv.packing), np.arange(p.lanes, block.shape[2], p.lanes)
    units = np.split(block.view(np.uint8), block.shape[1] // count, axis=1)
    vectors = [vector for unit in units for vector in np.split(unit, edges, axis=2)]
    return np.concatenate([in_bytes(tap, _bits(p)).ravel() for vector in vectors for tap in vector])


def _bits(p: WinogradPlan) -> int:
    """Of a packed weight, or of a nibble of it."""
    assert p.conv.packing is not None
    return 4 if p.conv.packing.nested else p.conv.packing.bits


class SpreadingWriter(WinogradWriter):
    """Emits the spreading of a block's weights, and what follows for every block of tiles."""

    def __init__(self, p: WinogradPlan, kernel: Kernel) -> None:
        super().__init__(p, kernel)
        self.spread = self.body.local("float32", POINTS * (p.conv.in_channels * p.block + p.lanes))
        self.windows = _Windows(p, kernel) if p.conv.packing is None else _PackedWindows(p, kernel)

    def _scratch(self) -> tuple[int, int]:
        return POINTS * prod(self.plan.grid) * self.conv.in_channels, POINTS * self.plan.tiles * self.plan.block

    def write(self) -> None:
        span, blocks = self.plan.tiles, prod(self.plan.grid) // self.plan.tiles
        scratch = POINTS * span * self.conv.in_channels
        with self.body.loop(self.conv.batch) as image:
            first, count = self.kernel.share(blocks)
            with self.body.loop(count, first) as block:
                base = self.body.bind("base", block * scratch)
                self._each_tile(block * span, lambda *place: self._transform_inputs(image, base, *place))
            for start, channels, groups in tiles(self.conv.out_channels, self.plan.block):
                with self.body.loop(groups) as group:
                    channel = self.body.bind("channel", start + group * channels)
                    self._spread_weights(image, channel, sum(self.plan.widths(channels)))
                    with self.body.loop(count, first) as block:
                        self._block(image, block, channel, channels)

    def _block(self, image: Any, block: Any, channel: Any, channels: int) -> None:
        """The outputs of a block of tiles and a block of channels."""
        span, depth, widths = self.plan.tiles, self.conv.in_channels, self.plan.widths(channels)
        row = sum(widths)
        with self.body.loop(POINTS) as point:
            source = (block * POINTS + point) * (span * depth)
            self._products(source, widths, point * self.spread_step(row), point * (span * row), row)
        self._each_tile(block * span, lambda *place: self._transform_sums(image, channel, channels, *place))

    def _spread_weights(self, image: Any, channel: Any, row: int) -> None:
        """The weights of a block of ``row`` channels, zeros among them, at the 36 points, as [point, ci, channel]."""
        count = together(self.conv.packing)
        with self.body.loop(self.conv.in_channels // count) as unit:
            for start, width, number in tiles(row, self.plan.lanes):
                with self.body.loop(number) as index:
                    first = self.body.bind("first", start + index * width)
                    for element, given in enumerate(self.windows.of(image, channel, unit, first, width, row)):
                        place = self.body.bind("place", (unit * count + element) * row + first)
                        spread = self._both_ways(given, self._weight_axis)
                        self._put(spread, self.spread, place, self.spread_step(row))

    def spread_step(self, row: int) -> int:
        """From one point's weights to the next one's: not a power of two, whose lines would evict each other."""
        return self.conv.in_channels * row + self.plan.lanes

    def _weight_axis(self, g: Sequence[Any]) -> list[Any]:
        """G of the paper, along one axis."""
        hold = self.body.hold
        ends, near = hold(g[0] + g[2]), hold(times(1 / 24, g[0]) + times(1 / 6, g[2]))
        middle = hold(times(1 / 12, g[1]))
        values = (
            times(1 / 4, g[0]),
            times(-1 / 6, ends + g[1]),
            times(-1 / 6, ends - g[1]),
            near + middle,
            near - middle,
        )
        return [*(hold(value) for value in values), g[2]]


class _Windows:
    """Reads weights."""

    def __init__(self, p: WinogradPlan, kernel: Kernel) -> None:
        self.plan, self.conv, self.body, self.weight = p, p.conv, kernel.body, kernel.buffers[1]

    @property
    def panels(self) -> int:
        """Weights of all channels, zeros among them."""
        plan, channels = self.plan, self.conv.out_channels
        lanes = sum(sum(plan.widths(size)) * count for _, size, count in tiles(channels, plan.block))
        return TAPS * self.conv.in_channels * lanes

    def of(self, image: Any, channel: Any, unit: Any, first: Any, width: int, row: int) -> Iterator[Window]:
        """Those of a unit of input channels, one of them after the other, for ``width`` output channels.

        Args:
            image: whose weights are read, where each has its own.
            channel: the first of a block of output channels.
            unit: the number of the unit.
            first: where the ``width`` channels begin in the block.
            width: of the vectors.
            row: channels of the block.
        """
        depth = self.conv.in_channels
        base = image * self.panels if self.conv.grouped else tirx.const(0, "int32")
        start = self.body.bind("start", base + channel * (TAPS * depth) + unit * row + first)
        offsets = [[start + (3 * i + j) * (depth * row) for j in range(3)] for i in range(3)]
        yield [[self.body.bind("g", load_channels(self.weight, each, width)) for each in line] for line in offsets]


class _PackedWindows(_Windows):
    """Reads packed weights, and unpacks them in registers."""

    def __init__(self, p: WinogradPlan, kernel: Kernel) -> None:
        super().__init__(p, kernel)
        assert p.conv.packing is not None
        self.packing = p.conv.packing
        self.unpacker = Unpacker(kernel.body, self.weight, _bits(p), "float32")
        self.scales = kernel.buffers[2] if self.packing.group else None

    def of(self, image: Any, channel: Any, unit: Any, first: Any, width: int, row: int) -> Iterator[Window]:
        count, depth = together(self.packing), self.conv.in_channels
        size = bytes_of(count, self.unpacker.bits)
        start = self.body.bind("start", (channel * (depth // count) + unit * row + first) * (TAPS * size))
        taps_at = [start + tap * size * width for tap in range(TAPS)]
        tap_bytes = [[self._bytes(at + plane, size, width) for plane in self._planes] for at in taps_at]
        scaling = [self._scale(tap * depth + unit * count, channel + first, width) for tap in range(TAPS)]
        for element in range(count):
            taps = [self.unpacker.element(planes, element, width) for planes in tap_bytes]
            if self.scales is not None:
                taps = [self.body.hold(value * scale) for value, scale in zip(taps, scaling, strict=True)]
            yield [taps[i : i + 3] for i in range(0, TAPS, 3)]

    @property
    def _planes(self) -> tuple[int, ...]:
        """Where the bytes begin that are read: those of lower nibbles behind all others."""
        both = self.packing.nested and self.packing.bits == 8
        return (0, self.panels // 2) if both else (0,)

    def _bytes(self, start: Any, size: int, width: int) -> list[Any]:
        return [self.unpacker.byte(start + index * width, width) for index in range(size)]

    def _scale(self, element: Any, channel: Any, width: int) -> Any:
        """Of an element along the depth; None where the epilogue has the scale."""
        if self.scales is None:
            return None
        return self.body.hold(scales(self.scales, self.packing, element, self.conv.out_channels, channel, width))


def contract(p: WinogradPlan) -> str:
    """The kernel's name."""
    packing = p.conv.packing
    if packing is None:
        return contract_floats(p)
    bits = f"{packing.bits}{'n' * packing.nested}"
    return f"{contract_floats(p)}_w{bits}" + (f"g{packing.group}" if packing.group else "")
