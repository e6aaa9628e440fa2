"""FPGA boards: what is on the device, as data, one TOML file each beside this module."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

BOARD_FOLDER = Path(__file__).parent


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

    activation_dtype: ClassVar[str] = "int8"

    def frames(self, cycles: int) -> float:
        """Frames a second, one every ``cycles``."""
        return self.clock_mhz * 1e6 / cycles


def board_names() -> list[str]:
    """Every board that ``--target`` takes."""
    return sorted(path.stem for path in BOARD_FOLDER.glob("*.toml"))


def load_board(name: str) -> Board:
    """The board called ``name``, one of :func:`board_names`."""
    return Board(name=name, **tomllib.loads((BOARD_FOLDER / f"{name}.toml").read_text(encoding="utf-8")))
