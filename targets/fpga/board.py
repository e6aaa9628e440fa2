"""FPGA boards: what is on the device, as data, one TOML file each beside this module."""

from __future__ import annotations

from dataclasses import dataclass
from math import floor
from pathlib import Path
from typing import ClassVar

from edgec.data.toml_files import read_toml
from edgec.targets.fpga.resources import Resources

BOARD_FOLDER = Path(__file__).parent

USABLE = 0.8
"""The share of a device that place and route can be expected to fill."""

INFRASTRUCTURE = Resources(dsp=0, lut=5000, ff=7000, bram18=10)
"""A DMA engine, interconnect and resets around the network, by the order of what vendors publish for them."""


@dataclass(frozen=True)
class Board:
    """An FPGA and what surrounds it.

    Attributes:
        name: what ``--target`` takes.
        description: one line for ``edgec targets``.
        part: the device, as the vendor's tools name it.
        family: ``xc7`` (7 series) or ``xcup`` (UltraScale+).
        dsp: DSP slices on the device.
        lut: 6-input lookup tables.
        ff: flip-flops.
        bram18: block memories of 18 kbit.
        uram: UltraRAM blocks of 288 kbit.
        clock_mhz: the clock that the project asks for.
        ddr_gb_s: what one memory port of 64 bits gives at this clock, in GB/s.
        processor: what runs the driver.
    """

    name: str
    description: str
    part: str
    family: str
    dsp: int
    lut: int
    ff: int
    bram18: int
    uram: int
    clock_mhz: int
    ddr_gb_s: float
    processor: str

    def lanes(self, dtype_bytes: int) -> int:
        """Channels that a pruned layer keeps multiples of: an engine folds them in parts of equal size."""
        return 4

    @property
    def budget(self) -> Resources:
        """What a network may take: :data:`USABLE` of the device, less the infrastructure around it."""
        device = Resources(self.dsp, self.lut, self.ff, self.bram18, self.uram)
        return Resources(*(floor(USABLE * there) for there in device)) - INFRASTRUCTURE

    @property
    def beats_per_cycle(self) -> float:
        """Words of 64 bits that DDR memory gives a cycle, at most one."""
        return min(1.0, self.ddr_gb_s * 1000 / (8 * self.clock_mhz))

    activation_dtype: ClassVar[str] = "int8"
    packs_weights: ClassVar[bool] = False
    fuses_sums: ClassVar[bool] = False
    weight_factors: ClassVar[bool] = False

    def default_output(self, name: str) -> Path:
        """Where the project of the model called ``name`` goes unless told otherwise."""
        return Path(f"{name}-{self.name}")

    def frames(self, cycles: int) -> float:
        """Frames a second, one every ``cycles``."""
        return self.clock_mhz * 1e6 / cycles


def board_names() -> list[str]:
    """Every board that ``--target`` takes."""
    return sorted(path.stem for path in BOARD_FOLDER.glob("*.toml"))


def load_board(name: str) -> Board:
    """The board called ``name``, one of :func:`board_names`."""
    return Board(name=name, **read_toml(BOARD_FOLDER / f"{name}.toml"))
