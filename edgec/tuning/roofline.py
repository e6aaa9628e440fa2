"""What this machine can do at best: multiply-adds a second from registers, and bytes a second from memory.

A kernel that does ``macs`` on operands of ``nbytes`` meets the lower of two roofs: the peak, and its intensity
``macs / nbytes`` times the rate of the memory or cache that holds them (Williams, Waterman & Patterson, "Roofline",
2009). Both are measured, on one thread.
"""

from __future__ import annotations

import ctypes
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgec.targets.target import Target

SIZES = tuple(2**exponent for exponent in range(13, 25, 2))
"""Bytes whose copying is measured: from the nearest cache to memory."""
SECONDS = 0.15
"""How long one measurement goes on; the fastest of its runs counts."""


@dataclass(frozen=True)
class Roofs:
    """Of one thread of this machine.

    Attributes:
        peaks: G MAC/s by the dtype of the operands, "float32" and "uint8"; empty where no loop is known to reach them.
        rates: G bytes/s of copying so many bytes, the fewest first; more bytes are never faster.
    """

    peaks: dict[str, float]
    rates: tuple[tuple[int, float], ...]

    def rate(self, nbytes: int) -> float:
        """G bytes/s of copying ``nbytes``."""
        return next((rate for size, rate in self.rates if nbytes <= size), self.rates[-1][1])

    def bound(self, dtype: str, macs: int, nbytes: int) -> float | None:
        """The G MAC/s where a kernel of these counts meets its roof; None where no peak is known."""
        if dtype not in self.peaks or not nbytes:
            return None
        return min(self.peaks[dtype], macs / nbytes * self.rate(nbytes))


def measure_roofs(target: Target) -> Roofs:
    """The roofs of ``target``, which must be this machine."""
    dtypes = ("float32", "uint8") if target.arch == "x86_64" else ()
    rates: list[tuple[int, float]] = []
    for size in reversed(SIZES):
        rates.insert(0, (size, max([copy_rate(size) / 1e9, *(rate for _, rate in rates)])))
    return Roofs({dtype: measure_peak(target, dtype) for dtype in dtypes}, tuple(rates))


def measure_peak(target: Target, dtype: str) -> float:
    """G MAC/s of a loop over registers on this x86 machine."""
    from edgec.building.toolchain import find_toolchain
    from edgec.targets.cpu.x86.peak import CHAINS, WIDEST, peak_loop
    from edgec.tvm_adapter import build_object

    function, macs = peak_loop(target, dtype)
    with tempfile.TemporaryDirectory(prefix="edgec-peak-") as folder:
        code = Path(folder) / "peak.o"
        code.write_bytes(build_object({"peak": function}, target))
        library = ctypes.CDLL(str(find_toolchain(target.triple).compile([code], Path(folder) / "peak.so")))
    arrays = [np.zeros(count * WIDEST, np.uint8) for count in (2, CHAINS)]
    pointers = [ctypes.c_void_p(array.ctypes.data) for array in arrays]
    return macs / fastest(lambda: library.peak(*pointers, ctypes.c_int32(0), ctypes.c_int32(1))) / 1e9


def copy_rate(nbytes: int) -> float:
    """Bytes per second, read and written, of copying an array: ``nbytes`` counts both."""
    source = np.zeros(max(nbytes // 2, 1), np.uint8)
    copied = source.copy()
    return 2 * source.nbytes / fastest(lambda: np.copyto(copied, source))


def fastest(call: Callable[[], object]) -> float:
    """Seconds of one call, the least of many."""
    best, end = float("inf"), time.perf_counter() + SECONDS
    while time.perf_counter() < end:
        start = time.perf_counter()
        call()
        best = min(best, time.perf_counter() - start)
    return best
