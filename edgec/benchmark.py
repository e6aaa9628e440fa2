"""Latency of an artifact on this machine, beside other runtimes.

Everything runs in one process, on the same input and number of threads. In every round each contender has a
turn, first the one, then the other in front; a turn begins with a call that is not measured, since the others
have emptied the caches.
"""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Protocol

import numpy as np

from edgec.artifact import read_manifest
from edgec.data import Array, TensorSpec, load_npz, specs
from edgec.devices import Progress, open_device
from edgec.errors import EdgecError
from edgec.evaluation import relative_error
from edgec.runtimes.peers import open_peer

if TYPE_CHECKING:
    from edgec.runtimes.python.session import Session, StepProfile

TURN_NS = 10_000_000
"""A turn measures about this long, in as many calls as it takes."""
MOST_CALLS = 200


@dataclass(frozen=True)
class Timing:
    """Wall time of one contender's calls, in milliseconds.

    Attributes:
        name: ``edgec`` or the peer.
        version: of the runtime.
        calls: how many were measured.
        min_ms: the fastest.
        median_ms: half were faster.
        p95_ms: 95 % were faster.
        ratio: its ``min_ms`` over that of edgec; above 1 edgec is faster.
        relative_error: of edgec's outputs against this contender's (see :func:`evaluation.relative_error`).
    """

    name: str
    version: str
    calls: int
    min_ms: float
    median_ms: float
    p95_ms: float
    ratio: float
    relative_error: float


@dataclass(frozen=True)
class Machine:
    """What there is to know about the state of the machine; None where the system does not tell."""

    cpu: str | None
    cores: int
    governor: str | None
    load: float | None


@dataclass(frozen=True)
class Benchmark:
    """What :func:`bench` measured; ``steps`` are edgec's, where a profile was asked for."""

    threads: int
    rounds: int
    machine: Machine
    timings: tuple[Timing, ...]
    steps: tuple[StepProfile, ...]


class Contender(Protocol):
    """A model that is loaded and has its input bound."""

    name: ClassVar[str]
    version: str

    def invoke(self) -> None:
        """One inference."""

    def outputs(self) -> list[Array]:
        """What the last inference computed."""


def bench(
    artifact: Path,
    *,
    against: Sequence[str] = (),
    model: Path | None = None,
    inputs: Path | None = None,
    threads: int = 1,
    rounds: int = 30,
    device: str = "local",
    profile: bool = False,
    seed: int = 0,
    progress: Progress | None = None,
) -> Benchmark:
    """Measure ``artifact``, and the ``model`` it was compiled from in other runtimes.

    Args:
        artifact: what ``edgec compile`` wrote.
        against: names of peers, as in :data:`edgec.runtimes.peers.PEERS`.
        model: the ONNX file; needed with ``against``.
        inputs: an ``.npz`` whose first sample is used; random values (``seed``) without it.
        threads: how many share the work of a run, in every contender.
        rounds: how often each contender has its turn.
        device: must be this machine.
        profile: measure every step, too, in rounds of its own.
        seed: of the random input.
        progress: told (what, done, total).

    Raises:
        EdgecError: an emulator, a peer that is not installed, an input that does not fit.
    """
    from edgec.runtimes.python.session import Session

    if Path(artifact).is_dir():
        raise EdgecError(
            f"'{artifact}' is an FPGA project, whose speed a C simulation does not show; edgec inspect has the estimate"
        )
    if open_device(device).is_emulated:
        raise EdgecError(
            "an emulator's time is not a device's latency, so edgec bench does not run on qemu; bench on the "
            "device, and check results with edgec run --device qemu"
        )
    if against and model is None:
        raise EdgecError("--against needs the ONNX file that the artifact was compiled from; add --model MODEL.onnx")
    if rounds < 1:
        raise EdgecError(f"a benchmark needs at least one round, not {rounds}")
    tensors = specs(read_manifest(artifact)["inputs"])
    values = load_npz(inputs, tensors).read(0) if inputs else random_inputs(tensors, seed)
    with ExitStack() as stack:
        session = stack.enter_context(Session(artifact, threads))
        contenders: list[Contender] = [_Artifact(session, values)]
        contenders += [_bound_peer(name, model, threads, values) for name in against if model is not None]
        times = _measure(contenders, rounds, progress)
        timings = tuple(_timings(contenders, times))
        steps = _profile(session, rounds) if profile else ()
    return Benchmark(threads, rounds, read_machine(), timings, steps)


def random_inputs(inputs: Sequence[TensorSpec], seed: int = 0) -> dict[str, Array]:
    """Standard normal floats, bytes over their whole range, and 0 or 1 for wider integers, mostly indices."""
    generator = np.random.default_rng(seed)
    return {spec.name: _random(generator, spec) for spec in inputs}


def _random(generator: np.random.Generator, spec: TensorSpec) -> Array:
    if spec.dtype.kind == "f":
        return np.asarray(generator.standard_normal(spec.shape)).astype(spec.dtype)
    if spec.dtype.kind in "iu" and spec.dtype.itemsize == 1:
        limits = np.iinfo(spec.dtype)
        return np.asarray(generator.integers(limits.min, limits.max, spec.shape, spec.dtype, endpoint=True))
    return np.asarray(generator.integers(0, 2, spec.shape)).astype(spec.dtype)


class _Artifact:
    """The artifact as a contender."""

    name: ClassVar[str] = "edgec"

    def __init__(self, session: Session, values: Mapping[str, Array]) -> None:
        import edgec

        self.version = edgec.__version__
        self.invoke = session.invoke
        self._outputs = session.bind(values)

    def outputs(self) -> list[Array]:
        return list(self._outputs.values())


def _bound_peer(name: str, model: Path, threads: int, values: Mapping[str, Array]) -> Contender:
    shapes = {each: array.shape for each, array in values.items()}
    peer = open_peer(name, model, threads=threads, shapes=shapes)
    for spec in peer.inputs:
        if spec.name not in values or values[spec.name].dtype != spec.dtype:
            raise EdgecError(f"'{model}' has the input {spec}, which the artifact lacks; give the model it came from")
    peer.bind(values)
    return peer


def _measure(contenders: Sequence[Contender], rounds: int, progress: Progress | None) -> list[list[int]]:
    """Nanoseconds of every measured call of every contender."""
    calls = [_calls(contender.invoke) for contender in contenders]
    times: list[list[int]] = [[] for _ in contenders]
    order = list(range(len(contenders)))
    with _collector_off():
        for index in range(rounds):
            for turn in order if index % 2 == 0 else reversed(order):
                times[turn] += _turn(contenders[turn].invoke, calls[turn])
            if progress:
                progress("rounds", index + 1, rounds)
    return times


def _calls(invoke: Callable[[], None]) -> int:
    """How many calls make a turn; warms up on the way."""
    invoke()
    fastest = min(_turn(invoke, 2))
    return min(MOST_CALLS, max(1, TURN_NS // max(fastest, 1)))


def _turn(invoke: Callable[[], None], calls: int) -> list[int]:
    invoke()
    times = []
    for _ in range(calls):
        start = time.perf_counter_ns()
        invoke()
        times.append(time.perf_counter_ns() - start)
    return times


@contextmanager
def _collector_off() -> Iterator[None]:
    """Python's garbage collector would be measured, too."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def _timings(contenders: Sequence[Contender], times: Sequence[Sequence[int]]) -> Iterator[Timing]:
    ours = contenders[0].outputs()
    for contender, taken in zip(contenders, times, strict=True):
        low, median, high = np.percentile(taken, [0, 50, 95]) / 1e6
        theirs = contender.outputs()
        yield Timing(
            name=contender.name,
            version=contender.version,
            calls=len(taken),
            min_ms=float(low),
            median_ms=float(median),
            p95_ms=float(high),
            ratio=min(taken) / min(times[0]),
            relative_error=max((relative_error(a, b) for a, b in zip(ours, theirs, strict=True)), default=0.0),
        )


def _profile(session: Session, rounds: int) -> tuple[StepProfile, ...]:
    session.start_profile()
    for _ in range(rounds):
        session.invoke()
    return tuple(session.profile())


def read_machine() -> Machine:
    """The processor, the cores this process may use, the frequency governor, and the load of the last minute."""
    governor = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")
    return Machine(
        cpu=_cpu_model(),
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        governor=governor.read_text().strip() if governor.is_file() else None,
        load=os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
    )


def _cpu_model() -> str | None:
    """What Linux calls the processor (x86) or the board (ARM)."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    named = (line.partition(":") for line in lines)
    return next((value.strip() for key, _, value in named if key.strip() in ("model name", "Model")), None)
