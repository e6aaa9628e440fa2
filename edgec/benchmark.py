"""Latency of an artifact on this machine, beside other runtimes.

Everything runs in one process, on the same input and number of threads. In every round each contender has a
turn, first the one, then the other in front; a turn begins with a call that is not measured, since the others
have emptied the caches.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from edgec.artifact import read_manifest
from edgec.data.samples import Array, Samples, TensorSpec, in_reals, load_npz, specs
from edgec.devices.device import Progress, open_device, specs_of
from edgec.devices.machine import Machine, observed
from edgec.errors import EdgecError
from edgec.evaluation import relative_error
from edgec.runtimes.peers import Peer, open_peer
from edgec.targets.floats import SUFFIX
from edgec.targets.formats import Format, format_of

if TYPE_CHECKING:
    from edgec.runtimes.python.session import Session, StepProfile

TURN_NS = 10_000_000
"""A turn measures about this long, in as many calls as it takes."""
MOST_CALLS = 200
WARM_CALLS = 3
"""Before a machine elsewhere is measured."""
ON_CPU = "edgec on the CPU"
"""What the processor's code of an artifact for a GPU is called beside it."""
FLOAT_TOLERANCE, HALF_TOLERANCE, QUANTISED_TOLERANCE = 1e-3, 0.05, 0.25


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
        relative_error: of edgec's outputs against this contender's (see :func:`evaluation.relative_error`); infinite
            where they have other shapes.
        agrees: whether that is no more than rounding explains; else it may not compute the same network.
    """

    name: str
    version: str
    calls: int
    min_ms: float
    median_ms: float
    p95_ms: float
    ratio: float
    relative_error: float
    agrees: bool


@dataclass(frozen=True)
class Benchmark:
    """What :func:`bench` measured on ``device``; ``steps`` are edgec's, where a profile was asked for."""

    threads: int
    rounds: int
    machine: Machine
    timings: tuple[Timing, ...]
    steps: tuple[StepProfile, ...]
    device: str = "CPU"

    @property
    def ratio(self) -> float | None:
        """The time of edgec over that of the fastest peer: below 1 edgec is faster; None without peers."""
        theirs = [timing.min_ms for timing in self.timings[1:] if timing.name != ON_CPU]
        return self.timings[0].min_ms / min(theirs) if theirs else None

    @property
    def gpu_over_cpu(self) -> float | None:
        """The GPU's time over that of the processor with the same artifact: above 1 it had better run there; None
        for an artifact that is not for a GPU."""
        own = [timing.min_ms for timing in self.timings if timing.name == ON_CPU]
        return self.timings[0].min_ms / own[0] if own else None

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {**asdict(self), "ratio": self.ratio, "gpu_over_cpu": self.gpu_over_cpu}

    def markdown(self) -> str:
        """A table for a README or an issue; a star marks a peer whose outputs are others."""
        head = ["", "version", "min ms", "median ms", "p95 ms", "× edgec", "error"]
        rows = [
            [
                timing.name + ("" if timing.agrees else " *"), timing.version, f"{timing.min_ms:.3f}",
                f"{timing.median_ms:.3f}", f"{timing.p95_ms:.3f}", f"{timing.ratio:.2f}",
                f"{timing.relative_error:.1e}",
            ]
            for timing in self.timings
        ]  # fmt: skip
        lines = ["| " + " | ".join(cells) + " |" for cells in [head, *rows]]
        return "\n".join([lines[0], "|---|---|" + "---:|" * (len(head) - 2), *lines[1:]])


class Contender(Protocol):
    """A model that is loaded and has its input bound."""

    version: str

    @property
    def name(self) -> str:
        """What the tables call it."""

    def invoke(self) -> None:
        """One inference."""

    def outputs(self) -> list[Array]:
        """What the last inference computed."""


def bench(
    artifact: Path,
    *,
    against: Sequence[str] = (),
    model: Path | None = None,
    peer_models: Mapping[str, Path] | None = None,
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
        peer_models: other files by the name of the peer that shall run them, e.g. ``{"litert": Path("m.tflite")}``.
        inputs: an ``.npz`` whose first sample is used; random values (``seed``) without it.
        threads: how many share the work of a run, in every contender.
        rounds: how often each contender has its turn.
        device: this machine, or one over ssh or adb, where there are no peers.
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
    where = open_device(device, artifact)
    if where.is_emulated:
        raise EdgecError(
            "an emulator's time is not a device's latency; bench on the device, or count the instructions of the "
            "emulator with edgec bench --device qemu"
        )
    files = _files(against, model, peer_models or {})
    if rounds < 1:
        raise EdgecError(f"a benchmark needs at least one round, not {rounds}")
    manifest = read_manifest(artifact)
    tensors = specs(manifest["inputs"])
    values = load_npz(inputs, tensors).read(0) if inputs else random_inputs(tensors, seed)
    kind = format_of(artifact)
    if kind is not None:
        if profile:
            raise EdgecError(f"--profile measures edgec's own steps, and '{artifact}' has none; leave it out")
        return _foreign(kind, artifact, files, values, threads, rounds, progress)
    if device != "local":
        if files:
            raise EdgecError(f"other runtimes are measured on this machine only; leave out --against for {device}")
        return _remote(device, artifact, values, threads, rounds, profile, progress)
    with ExitStack() as stack:
        session = stack.enter_context(Session(artifact, threads))
        contenders: list[Contender] = [_Artifact(session, values)]
        if "gpu" in manifest:
            processor = stack.enter_context(Session(artifact, threads, gpu=False))
            contenders.append(_Artifact(processor, values, ON_CPU))
        contenders += [_bound_peer(name, path, threads, tensors, values) for name, path in files.items()]
        with observed() as observation:
            times = _measure(contenders, rounds, progress)
        timings = tuple(_timings(contenders, times, _tolerance(manifest)))
        steps = _profile(session, rounds) if profile else ()
        device_name = session.device
    return Benchmark(threads, rounds, observation.machine, timings, steps, device_name)


class _Exported:
    """A file of another runtime that edgec wrote, as a contender."""

    def __init__(self, runtime: str, artifact: Path, threads: int, values: Mapping[str, Array]) -> None:
        manifest = read_manifest(artifact)
        self._peer = _bound_peer(runtime, artifact, threads, specs(manifest["inputs"]), values)
        self._specs = specs(manifest["outputs"])
        self.name, self.version, self.invoke = f"edgec in {runtime}", self._peer.version, self._peer.invoke

    def outputs(self) -> list[Array]:
        return [spec.reals(array) for spec, array in zip(self._specs, self._peer.outputs(), strict=True)]


def _foreign(
    kind: Format, artifact: Path, files: Mapping[str, Path], values: dict[str, Array], threads: int, rounds: int,
    progress: Progress | None,
) -> Benchmark:  # fmt: skip
    """A file of another runtime in that runtime, beside others."""
    contenders: list[Contender] = [_Exported(kind.runtime, artifact, threads, values)]
    manifest = read_manifest(artifact)
    tensors = specs(manifest["inputs"])
    contenders += [_bound_peer(name, path, threads, tensors, values) for name, path in files.items()]
    with observed() as observation:
        times = _measure(contenders, rounds, progress)
    tolerance = QUANTISED_TOLERANCE if manifest["quantised"] else FLOAT_TOLERANCE
    return Benchmark(threads, rounds, observation.machine, tuple(_timings(contenders, times, tolerance)), ())


def _remote(
    url: str, artifact: Path, values: dict[str, Array], threads: int, rounds: int, profile: bool,
    progress: Progress | None,
) -> Benchmark:  # fmt: skip
    """The artifact alone, on a machine over ssh or adb: as many calls as rounds here have."""
    import edgec
    from edgec.devices.remote_device import RemoteDevice
    from edgec.runtimes.python.session import StepProfile

    device, sample = RemoteDevice(url), Samples(1, None, lambda index: values)
    flags = ["--threads", str(threads), "--warmup", str(WARM_CALLS)]
    with device.transport.connected():
        trial = device.profile(artifact, sample, [*flags, "--repeat", str(WARM_CALLS), "--no-steps"], progress)
        calls = rounds * min(MOST_CALLS, max(1, TURN_NS // max(1, min(trial.run_ns))))
        found = device.profile(artifact, sample, [*flags, "--repeat", str(calls), "--no-steps"], progress)
        stepwise = device.profile(artifact, sample, [*flags, "--repeat", str(rounds)], progress) if profile else None
    low, median, high = np.percentile(found.run_ns, [0, 50, 95]) / 1e6
    timing = Timing("edgec", edgec.__version__, calls, float(low), float(median), float(high), 1.0, 0.0, True)
    steps = tuple(StepProfile(**step) for step in stepwise.steps) if stepwise else ()
    return Benchmark(threads, rounds, found.machine, (timing,), steps)


def _files(against: Sequence[str], model: Path | None, peer_models: Mapping[str, Path]) -> dict[str, Path]:
    """The model file of every peer."""
    for name in peer_models:
        if name not in against:
            raise EdgecError(f"--peer-model names '{name}', which is not in --against; add it there")
    files = {name: peer_models.get(name, model) for name in against}
    if None in files.values():
        raise EdgecError("--against needs the ONNX file that the artifact was compiled from; add --model MODEL.onnx")
    return {name: path for name, path in files.items() if path is not None}


def _tolerance(manifest: Mapping[str, Any]) -> float:
    """The largest error that rounding explains: of floats, or of bytes, which runtimes round in different places."""
    if any(step["kernel"].startswith(("s8_", "u8_")) for step in manifest["steps"]):
        return QUANTISED_TOLERANCE
    return HALF_TOLERANCE if manifest["target"].endswith(SUFFIX) else FLOAT_TOLERANCE


def peer_files(flags: Sequence[str]) -> dict[str, Path]:
    """``NAME=FILE`` flags as paths by the name of the peer.

    Raises:
        EdgecError: a flag is spelled otherwise.
    """
    files = {}
    for flag in flags:
        name, equals, path = flag.partition("=")
        if not (name and equals and path):
            raise EdgecError(f"--peer-model takes NAME=FILE, such as litert=model.tflite, and not '{flag}'")
        files[name] = Path(path)
    return files


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

    def __init__(self, session: Session, values: Mapping[str, Array], name: str = "edgec") -> None:
        import edgec

        self.name = name
        self.version = edgec.__version__
        self.invoke = session.invoke
        self._specs, self._outputs = specs_of(session.outputs), session.bind(values)

    def outputs(self) -> list[Array]:
        return list(in_reals(self._specs, self._outputs).values())


def _bound_peer(
    name: str, model: Path, threads: int, tensors: Sequence[TensorSpec], values: Mapping[str, Array]
) -> Peer:
    """The peer with the artifact's inputs ``tensors`` bound: to ``values``, or to the reals that these stand for."""
    shapes = {each: array.shape for each, array in values.items()}
    peer, reals, bound = open_peer(name, model, threads=threads, shapes=shapes), in_reals(tensors, values), {}
    for spec in peer.inputs:
        found = (each[spec.name] for each in (values, reals) if spec.name in each)
        fitting = [array for array in found if array.dtype == spec.dtype]
        if not fitting:
            raise EdgecError(f"'{model}' has the input {spec}, which the artifact lacks; give the model it came from")
        bound[spec.name] = fitting[0]
    peer.bind(bound)
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


def _timings(contenders: Sequence[Contender], times: Sequence[Sequence[int]], tolerance: float) -> Iterator[Timing]:
    ours = contenders[0].outputs()
    for contender, taken in zip(contenders, times, strict=True):
        low, median, high = np.percentile(taken, [0, 50, 95]) / 1e6
        error = _error(ours, contender.outputs())
        yield Timing(
            name=contender.name,
            version=contender.version,
            calls=len(taken),
            min_ms=float(low),
            median_ms=float(median),
            p95_ms=float(high),
            ratio=min(taken) / min(times[0]),
            relative_error=error,
            agrees=error <= tolerance,
        )


def _error(ours: Sequence[Array], theirs: Sequence[Array]) -> float:
    """The largest error of any output; runtimes differ in unit axes."""
    if [array.size for array in ours] != [array.size for array in theirs]:
        return float("inf")
    pairs = zip(ours, theirs, strict=True)
    return max((relative_error(a, b.reshape(a.shape)) for a, b in pairs), default=0.0)


def profile_steps(artifact: Path, values: Mapping[str, Array], rounds: int = 30) -> tuple[StepProfile, ...]:
    """Every step of ``artifact`` on this machine, measured over ``rounds`` runs of one input, on one thread."""
    from edgec.runtimes.python.session import Session

    with Session(artifact, 1) as session:
        session.bind(values)
        session.invoke()
        return _profile(session, rounds)


def latencies(artifacts: Sequence[Path], values: Mapping[str, Array], rounds: int = 30) -> list[float]:
    """The fastest run of each of several artifacts, in turn, on one thread of this machine, in milliseconds."""
    from edgec.runtimes.python.session import Session

    with ExitStack() as stack:
        contenders = [_Artifact(stack.enter_context(Session(artifact, 1)), values) for artifact in artifacts]
        return [min(times) / 1e6 for times in _measure(contenders, rounds, None)]


def _profile(session: Session, rounds: int) -> tuple[StepProfile, ...]:
    session.start_profile()
    for _ in range(rounds):
        session.invoke()
    return tuple(session.profile())
