"""What a machine that is reached over ssh or adb tells of itself: processor, governor, temperature, throttling."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from edgec.devices.machine import Machine
from edgec.devices.remote import Transport

SCRIPT = r"""
echo arch $(uname -m) $(getconf LONG_BIT 2>/dev/null)
echo cores $(nproc 2>/dev/null || grep -c ^processor /proc/cpuinfo)
sed -nE 's/^(model name|Model|Hardware)[[:space:]]*: */cpu /p' /proc/cpuinfo
echo board $(getprop ro.product.model 2>/dev/null)
cut -d ' ' -f 1 /proc/loadavg 2>/dev/null | sed 's/^/load /'
for cpu in /sys/devices/system/cpu/cpu[0-9]*/cpufreq; do
  cd $cpu 2>/dev/null && echo core $(cat scaling_governor scaling_max_freq cpuinfo_max_freq 2>/dev/null)
done
for zone in /sys/class/thermal/thermal_zone*; do
  cd $zone 2>/dev/null && echo zone $(cat temp 2>/dev/null) $(cat type 2>/dev/null)
done
echo firmware $(vcgencmd get_throttled 2>/dev/null)
"""
"""Prints a line for each thing; of what the system does not tell only the first word."""

FIRMWARE = {
    0: "under-voltage", 1: "frequency capped", 2: "throttled", 3: "temperature limit", 16: "under-voltage before",
    17: "frequency capped before", 18: "throttled before", 19: "temperature limit before",
}  # fmt: skip
"""Bits of ``vcgencmd get_throttled``, of the Raspberry Pi's firmware."""

RUNS_ON = {
    "x86_64-linux-gnu": "x86_64", "aarch64-linux-gnu": "aarch64", "arm-linux-gnueabihf": "armv7l",
    "aarch64-linux-android": "aarch64", "armv7a-linux-androideabi": "armv7l", "x86_64-linux-android": "x86_64",
}  # fmt: skip
"""What the systems of these artifacts say of themselves, by triple."""

HOTTEST = 150.0
"""Degrees; sensors that are off tell more, or less than none."""


@dataclass(frozen=True)
class State:
    """At one moment. ``bits`` are of the system's programs; ``limits`` is what holds the processor's speed down."""

    arch: str
    bits: int | None
    cpu: str | None
    cores: int
    governors: tuple[str, ...]
    load: float | None
    temperature: float | None
    limits: tuple[str, ...]

    @property
    def runs(self) -> str:
        """The architecture of programs: a 64-bit kernel may carry a 32-bit system."""
        is_small = self.bits == 32 and self.arch == "aarch64"
        return "armv7l" if is_small or self.arch == "armv8l" else self.arch


def read_state(transport: Transport) -> State:
    """Ask the machine.

    Raises:
        EdgecError: it cannot be reached.
    """
    return parse_state(transport.require(transport.shell(SCRIPT), "tell its state"))


def parse_state(text: str) -> State:
    """What :data:`SCRIPT` printed."""
    rows: dict[str, list[list[str]]] = {}
    for line in text.splitlines():
        kind, _, rest = line.strip().partition(" ")
        rows.setdefault(kind, []).append(rest.split())

    def words(kind: str) -> list[str]:
        return next((each for each in rows.get(kind, []) if each), [])

    arch, load, cores = words("arch"), words("load"), words("cores")
    names = [" ".join(each) for kind in ("board", "cpu") for each in rows.get(kind, []) if each]
    return State(
        arch=arch[0] if arch else "unknown",
        bits=int(arch[1]) if len(arch) > 1 and arch[1].isdigit() else None,
        cpu=names[0] if words("board") else next(reversed(names), None),
        cores=int(cores[0]) if cores and cores[0].isdigit() else 1,
        governors=tuple(sorted({each[0] for each in rows.get("core", []) if each})),
        load=float(load[0]) if load else None,
        temperature=_temperature(rows.get("zone", [])),
        limits=_limits(rows.get("core", []), words("firmware")),
    )


def _temperature(zones: Sequence[Sequence[str]]) -> float | None:
    """The hottest of the processor's sensors, of all where none is called so; in degrees."""
    found = []
    for value, *kind in (zone for zone in zones if zone and zone[0].lstrip("-").isdigit()):
        degrees = int(value) / 1000 if abs(int(value)) > HOTTEST else float(value)
        found.append((degrees, " ".join(kind).lower()))
    found = [each for each in found if 0 < each[0] < HOTTEST]
    own = [each for each in found if "cpu" in each[1] or "soc" in each[1] or "pkg" in each[1]]
    return max((degrees for degrees, _ in own or found), default=None)


def _limits(cores: Sequence[Sequence[str]], firmware: Sequence[str]) -> tuple[str, ...]:
    speeds = [(int(each[1]), int(each[2])) for each in cores if len(each) == 3 and "".join(each[1:]).isdigit()]
    capped = [(now, most) for now, most in speeds if now < most]
    found = []
    if capped:
        now, most = capped[0]
        found.append(f"{len(capped)} of {len(speeds)} cores capped, one to {now // 1000} of {most // 1000} MHz")
    if firmware and firmware[0].startswith("throttled=0x"):
        bits = int(firmware[0].partition("=")[2], 16)
        found += [text for bit, text in FIRMWARE.items() if bits >> bit & 1]
    return tuple(found)


def machine_of(before: State, after: State) -> Machine:
    """The machine during a measurement between the two moments."""
    degrees = (before.temperature, after.temperature)
    return Machine(
        cpu=after.cpu or after.arch,
        cores=after.cores,
        governor=" and ".join(after.governors) or None,
        load=before.load,
        temperatures=None if None in degrees else degrees,  # type: ignore[arg-type]
        limits=tuple(dict.fromkeys((*before.limits, *after.limits))),
    )
