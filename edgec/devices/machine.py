"""The state of the machine while something is measured, as Linux tells it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

CPU_FOLDER = Path("/sys/devices/system/cpu")
THROTTLE_COUNTS = ("thermal_throttle/core_throttle_count", "thermal_throttle/package_throttle_count")
_USER, _NICE, _SYSTEM, _IDLE, _WAIT, _IRQ, _SOFTIRQ, _STEAL = range(8)
"""Columns of a line ``cpu`` in /proc/stat, in ticks."""


@dataclass(frozen=True)
class Machine:
    """What there is to know about the state of the machine; None where the system does not tell.

    Attributes:
        cpu: the processor (x86) or the board (ARM).
        cores: that this process may use.
        governor: of the frequency.
        load: mean number of runnable processes in the last minute, before the measurement.
        others: share of the time of all cores that other processes, or other virtual machines, took meanwhile.
        throttled: how often a core was slowed down meanwhile because of heat.
        temperatures: of the processor before and after, in degrees Celsius, of a machine that is not this one.
        limits: what holds its processor's speed down.
    """

    cpu: str | None
    cores: int
    governor: str | None
    load: float | None
    others: float | None = None
    throttled: int | None = None
    temperatures: tuple[float, float] | None = None
    limits: tuple[str, ...] = ()


class Observation:
    """Filled in when the block of :func:`observed` ends."""

    machine: Machine


@contextmanager
def observed() -> Iterator[Observation]:
    """Observe the machine while the block runs."""
    observation = Observation()
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    throttled, ticks, own = _throttled(), _ticks(), _own_ticks()
    yield observation
    observation.machine = Machine(
        cpu=cpu_model(),
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        governor=_text(CPU_FOLDER / "cpu0" / "cpufreq" / "scaling_governor"),
        load=load,
        others=_share_of_others(ticks, _ticks(), _own_ticks() - own),
        throttled=_difference(throttled, _throttled()),
    )


def cpu_model() -> str | None:
    """What Linux calls the processor (x86) or the board (ARM)."""
    lines = (_text(Path("/proc/cpuinfo")) or "").splitlines()
    named = (line.partition(":") for line in lines)
    return next((value.strip() for key, _, value in named if key.strip() in ("model name", "Model")), None)


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError:
        return None


def _throttled() -> int | None:
    """How often cores were throttled since the machine started."""
    counts = [_text(path) for name in THROTTLE_COUNTS for path in CPU_FOLDER.glob(f"cpu[0-9]*/{name}")]
    found = [int(count) for count in counts if count is not None and count.isdigit()]
    return sum(found) if found else None


def _difference(before: int | None, after: int | None) -> int | None:
    return None if before is None or after is None else after - before


def _ticks() -> list[int]:
    """Ticks of all cores since the machine started, by column."""
    line = (_text(Path("/proc/stat")) or "").partition("\n")[0]
    return [int(word) for word in line.split()[1:]]


def _own_ticks() -> float:
    times = os.times()
    return (times.user + times.system) * os.sysconf("SC_CLK_TCK")


def _share_of_others(before: list[int], after: list[int], own: float) -> float | None:
    """What of all cores' time was neither idle nor this process's."""
    spent = [b - a for a, b in zip(before, after, strict=True)][: _STEAL + 1]
    total = sum(spent)
    if len(spent) <= _STEAL or total <= 0:
        return None
    return max(0.0, (total - spent[_IDLE] - spent[_WAIT] - own) / total)
