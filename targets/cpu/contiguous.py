"""Plans of convolutions that read their input along its contiguous runs, several elements at a time.

A run is a row of the window with all its channels, or what of it is contiguous; of planes, a row of one channel.
"""

from __future__ import annotations

from math import prod

import numpy as np

from edgec.targets.cpu.conv import ConvPlan


class ContiguousPlan(ConvPlan):
    """A convolution with its register tile."""

    @property
    def planar(self) -> bool:
        """Whether neighbours in memory are columns of one channel, and not channels of one column."""
        (_, column), (channels, channel) = super().taps[1:]
        return channels > 1 and channel != 1 and column == 1

    @property
    def taps(self) -> list[tuple[int, int]]:
        """As :attr:`ConvPlan.taps`; of planes, the columns come last."""
        row, column, channel = super().taps
        return [row, channel, column] if self.planar else [row, column, channel]

    @property
    def runs(self) -> tuple[list[tuple[int, int]], int]:
        """The loops over the runs, as :attr:`ConvPlan.reduction`, and the elements of a run."""
        loops = self.reduction
        if loops and loops[-1][1] == 1:
            return loops[:-1], loops[-1][0]
        return loops, 1

    @property
    def run_count(self) -> int:
        """How many runs a window has."""
        return prod(extent for extent, _ in self.runs[0])

    @property
    def group(self) -> int:
        """Neighbours along a run whose weights share a factor for each channel; 0 where there are no factors."""
        return 0 if self.conv.packing is None else self.conv.packing.group

    @property
    def factors(self) -> int:
        """Groups of a run that have factors."""
        return -(-self.runs[1] // self.group) if self.group else 0

    @property
    def storage(self) -> str:
        """What a kernel's name says of weights of 4 bits, and of their factors."""
        if self.conv.packing is None:
            return ""
        return f"_w4g{self.group}" if self.group else "_w4"

    def by_runs(self, weight: np.ndarray) -> np.ndarray:
        """The weight [kh, kw, ci, co] as [run, element, co]."""
        weight = weight.transpose(0, 2, 1, 3) if self.planar else weight
        return weight.reshape(-1, self.runs[1], self.conv.out_channels)
