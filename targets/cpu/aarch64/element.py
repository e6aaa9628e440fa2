"""Convolutions that multiply by element (``fmla``, ``sdot``), with the inner loops of :mod:`.assembly`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from edgec.program import Conv
from edgec.targets.cpu.aarch64 import assembly
from edgec.targets.cpu.aarch64.assembly import Instruction, Products, load_elements, registers
from edgec.targets.cpu.aarch64.runs import REGISTERS, BiasedWriter, RunPlan
from edgec.targets.cpu.aarch64.tile import RESULTS, Tile, unset
from edgec.targets.cpu.tile import Accumulators, Point
from edgec.targets.vectors import pieces

EPILOGUE = 2
"""Instructions that each vector of float32 sums costs behind the products: epilogue and store."""
NARROWING = {16: 20, 8: 12, 4: 9, 2: 9, 1: 8}
"""Instructions that int32 sums cost behind the products, by how many leave as bytes together."""
KEPT, SPILLED = 20, 3
"""Vectors of int32 sums that the epilogue leaves in registers, and instructions that each further one costs."""
TILE_OVERHEAD = 8
"""Instructions to set up a tile, its inputs' addresses not counted."""


@dataclass(frozen=True)
class ElementPlan(RunPlan):
    """A convolution with its register tile: the whole register file but what the weights stream through."""

    instruction: ClassVar[Instruction]
    written: ClassVar[type[Products]] = Products
    """What writes the products out."""

    @property
    def written_out(self) -> bool:
        """Whether the inner loops are those of :mod:`.assembly`: bytes are to be int8, and one weight a byte."""
        return self.conv.input_dtype != "uint8" and self.conv.packing is None

    @classmethod
    def most_pixels(cls, conv: Conv, vectors: int) -> int:
        if conv.input_dtype == "uint8" or conv.packing is not None:
            return super().most_pixels(conv, vectors)
        return max(pixels for pixels in range(cls.instruction.reach + 1) if cls.fits(pixels, vectors))

    @classmethod
    def fits(cls, pixels: int, vectors: int) -> bool:
        """Whether a tile that is written out fits the registers."""
        return registers(pixels, vectors, 1) <= REGISTERS

    def products(self, chunk: int, pixels: int, vectors: int) -> float:
        return load_elements(chunk, self.instruction) * (pixels * vectors + vectors / 2) + pixels

    def tile(self, rows: int, columns: int, channels: int) -> Products:
        """The products of a tile of so many rows, columns and channels."""
        _, h_step, w_step, _ = self.conv.input_strides
        sh, sw = self.conv.stride
        offsets = [row * sh * h_step + column * sw * w_step for row in range(rows) for column in range(columns)]
        vectors, outer = len(self.widths(channels)), tuple(self.runs[0])
        return self.written(self.instruction, tuple(offsets), vectors, outer, tuple(self.chunks), True)

    def tile_instructions(self, rows: int, columns: int, channels: int) -> float:
        if not self.written_out:
            return super().tile_instructions(rows, columns, channels)
        products = self.tile(rows, columns, channels)
        behind: float = EPILOGUE * products.vectors
        if self.conv.accumulator_dtype == "int32":
            behind = sum(NARROWING[width] for width in pieces(channels, RESULTS))
            behind += SPILLED * max(0, products.vectors - KEPT / products.pixels)
        return products.instructions + len(products.pointers) + behind * products.pixels + TILE_OVERHEAD


class ElementWriter(BiasedWriter):
    """Emits the tiles around the inner loops."""

    plan: ElementPlan

    def _accumulators(
        self, points: list[Point], widths: list[int], origin: dict[int, Any], channels: int, panel: Any
    ) -> Accumulators:
        self._first = self.start.address(origin, channels, len(widths))
        return Tile(self.body, self.start.dtype, points, [unset(self.start.dtype)] * len(widths))

    def _reduce(self, acc: Accumulators, corner: Any, panel: Any, k_step: int) -> None:
        products = self.plan.tile(acc.points[-1].row + 1, acc.points[-1].column + 1, sum(acc.widths))
        inputs = [assembly.address(self.input, corner + products.offsets[pixel]) for pixel in products.pointers]
        addresses = [assembly.address(self.weight, panel), *inputs, self._first]
        assembly.call(self.kernel, products, lambda: assembly.inline(products), acc.buffer, addresses)
