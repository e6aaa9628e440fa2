"""Winograd's convolution (:mod:`edgec.targets.cpu.winograd`) for 64-bit ARM: products by element (``fmla``).

Floats lie in the artifact as they are at the 36 points, and packed weights as they are stored (:mod:`..spreading`).
"""

from __future__ import annotations

from typing import Any

from edgec.program import Conv
from edgec.targets.cpu.aarch64 import assembly
from edgec.targets.cpu.aarch64.assembly import FMLA, Products
from edgec.targets.cpu.aarch64.neon import special
from edgec.targets.cpu.aarch64.tile import LANES
from edgec.targets.cpu.spreading import SpreadingWriter, fits_stack
from edgec.targets.cpu.spreading import fits as can_spread
from edgec.targets.cpu.tile import Accumulators
from edgec.targets.cpu.tir import Kernel
from edgec.targets.cpu.winograd import WinogradPlan, WinogradWriter, block_tiles
from edgec.targets.cpu.winograd import fits as fits_transforms
from edgec.targets.target import Target

BLOCK_TILES = 4
"""Tiles of a block, at most: as many rows of sums as registers hold beside four vectors of channels."""
BLOCK_VECTORS = 4
LEAST_CHANNELS = 16
"""With fewer channels the transforms cost more than the products that they save."""


def fits(conv: Conv) -> bool:
    """Whether the transforms pay, in whole vectors, and several tiles a block share the weights that are loaded."""
    channels = (conv.in_channels, conv.out_channels)
    enough = min(channels) >= LEAST_CHANNELS and all(count % LANES == 0 for count in channels)
    if not (fits_transforms(conv) and enough and block_tiles(conv, BLOCK_TILES) > 1):
        return False
    return conv.packing is None or (can_spread(conv) and fits_stack(_plan(conv)))


def plan(conv: Conv, target: Target) -> WinogradPlan:
    """The largest block."""
    return _plan(conv)


def _plan(conv: Conv) -> WinogradPlan:
    return WinogradPlan(conv, block_tiles(conv, BLOCK_TILES), BLOCK_VECTORS, LANES)


def generate(p: WinogradPlan, dtypes: list[str]) -> Any:
    """The kernel, as ``tirx.PrimFunc``."""
    kernel = Kernel(dtypes, special)
    (_Writer if p.conv.packing is None else _SpreadingWriter)(p, kernel).write()
    return kernel.function()


class _Writer(WinogradWriter):
    def _sum_up(self, acc: Accumulators, source: Any, weights: Any) -> None:
        _sum_up(self, acc, source, assembly.address(self.weight, weights))


class _SpreadingWriter(SpreadingWriter):
    def _sum_up(self, acc: Accumulators, source: Any, weights: Any) -> None:
        _sum_up(self, acc, source, assembly.address(self.spread, weights))


def _sum_up(writer: WinogradWriter, acc: Accumulators, source: Any, weights: Any) -> None:
    """The products of the tiles' inputs from ``source`` on and the weights at an address."""
    depth = writer.conv.in_channels
    offsets = tuple(tile * depth for tile in range(writer.plan.tiles))
    products = Products(FMLA, offsets, len(acc.widths), (), (LANES,) * (depth // LANES), start=False)
    inputs = [assembly.address(writer.inputs, source + products.offsets[pixel]) for pixel in products.pointers]
    assembly.call(writer.kernel, products, lambda: assembly.inline(products), acc.buffer, [weights, *inputs])
