"""Tuning: measure plans of a program's kernels within a budget of minutes, and keep what was found as records.

Kernels are taken up in the order of the time they are estimated to take. A batch of a kernel's plans is measured
against its untuned plan: first the most promising by the template's estimate, then the neighbours of the best so far
and the next by estimate. A kernel is done when a batch brings no improvement, the tuner when all kernels are done or
the budget is spent. Every batch is written down before the next begins, so that a run that was killed goes on where
it was, and a plan that failed is not tried again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgec.devices.device import EMULATORS
from edgec.errors import EdgecError
from edgec.runtimes.build import cache_folder
from edgec.targets.gpu.target import GpuTarget
from edgec.targets.template import parameters
from edgec.tuning import records
from edgec.tuning.measuring import TRIPLES, HostMeter, Meter, Outcome, QemuMeter, RemoteMeter, Task, tasks_of
from edgec.tuning.records import Parameters, Record, Records

if TYPE_CHECKING:
    from edgec.devices.device import Progress
    from edgec.program import Program
    from edgec.targets.target import Target

BATCH = 12
"""Plans that are measured together, the untuned one among them."""
GAIN = 0.99
"""A batch is an improvement when its best plan costs at most this much of the best before."""
FIRST_BATCH_SECONDS = 5.0
"""What a batch is expected to take before one was measured."""


@dataclass(frozen=True)
class Choice:
    """What the tuner found for one kernel; costs as the method counts them (see :class:`records.Record`)."""

    kernel: str
    steps: int
    plans: int
    failed: int
    untuned: float | None
    best: float | None
    parameters: Parameters

    @property
    def ratio(self) -> float | None:
        """Cost with the best plan over that with the untuned one."""
        return None if self.untuned is None or self.best is None else self.best / self.untuned


@dataclass(frozen=True)
class Tuned:
    """What one run of the tuner did.

    Attributes:
        method: how costs were found, one of :data:`records.METHODS`.
        machine: what they were found on.
        choices: one a kernel.
        measured: plans measured in this run.
        seconds: it took.
        ended: why it ended: ``nothing improved`` or ``the budget was spent``.
        records: the file, or None.
        note: what is to be said of the costs, or nothing.
    """

    method: str
    machine: str | None
    choices: tuple[Choice, ...]
    measured: int
    seconds: float
    ended: str
    records: Path | None
    note: str = ""

    @property
    def ratio(self) -> float:
        """Cost of all kernels with the best plans over that with the untuned ones."""
        return _ratio((c.steps, c.untuned, c.best) for c in self.choices)

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {**asdict(self), "records": None if self.records is None else str(self.records), "ratio": self.ratio}


def records_to_tune(path: Path | None) -> tuple[Records, Path]:
    """What is known before tuning, and the file that new records go to.

    Args:
        path: a file of records beside those that come with edgec; one in the user's cache by default.

    Raises:
        EdgecError: the file cannot be read.
    """
    known, path = records.shipped(), path or cache_folder() / "records.jsonl"
    if path.exists():
        known.add(records.read(path))
    return known, path


def meter_for(target: Target | GpuTarget, device: str | None = None) -> Meter:
    """What finds the cost of plans for ``target``.

    Args:
        target: the processor.
        device: ``local`` times plans on this machine, ``ssh://[user@]host[:port]`` and ``adb://serial`` on another,
            ``rpc://tracker[:port]/key`` on all boards of a key at a time, and ``qemu[:cpu]`` counts instructions under
            the emulator; by default the first for the target ``host`` and the last for any other.

    Raises:
        EdgecError: the device cannot measure plans for this target.
    """
    if isinstance(target, GpuTarget):
        return _gpu_meter(target, device)
    if device and "://" in device:
        return RemoteMeter(target, device)
    kind, _, cpu = (device or ("local" if target.name == "host" else "qemu")).partition(":")
    if kind == "local" and target.name == "host":
        return HostMeter(target)
    if kind == "local":
        raise EdgecError(f"this machine cannot run code for {target.name}; tune with --device qemu, or for host")
    if kind == "qemu" and TRIPLES[target.arch] in EMULATORS and target.name != "host":
        return QemuMeter(target, cpu or None)
    raise EdgecError(f"the device '{device}' cannot measure kernels for {target.name}; leave --device out")


def _gpu_meter(target: GpuTarget, device: str | None) -> Meter:
    from edgec.tuning.gpu_measuring import LocalGpuMeter, RemoteGpuMeter

    if device and "://" in device:
        return RemoteGpuMeter(target, device)
    if device not in (None, "local"):
        raise EdgecError(f"the device '{device}' cannot measure kernels for {target.name}; leave --device out")
    return LocalGpuMeter(target)


def _ratio(costs: Iterable[tuple[int, float | None, float | None]]) -> float:
    untuned = best = 0.0
    for steps, before, after in costs:
        if before is not None and after is not None:
            untuned, best = untuned + steps * before, best + steps * after
    return best / untuned if untuned else 1.0


def tune_program(
    program: Program,
    target: Target | GpuTarget,
    meter: Meter,
    *,
    minutes: float,
    known: Records,
    path: Path | None = None,
    progress: Progress | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> Tuned:
    """Find good plans for the kernels of ``program``.

    Args:
        program: lowered and planned.
        target: the processor.
        meter: finds the cost of plans.
        minutes: the budget; a batch that would not end within it is not begun.
        known: what was measured before; what is measured now is added.
        path: the file that new records are appended to.
        progress: told (what, seconds spent, seconds in all) before every batch.
        clock: seconds.

    Raises:
        EdgecError: the budget is not positive, the records cannot be written, or nothing can be measured.
    """
    require_budget(minutes)
    tuner = _Tuner([_Search(task, target, meter, known) for task in tasks_of(program, target)], minutes * 60, clock)
    tell = progress or (lambda what, done, total: None)
    with _workers(meter.boards) as pool:
        for found in tuner.run(pool, meter.boards, tell):
            known.add(found)
            if path is not None:
                records.append(path, found)
    choices = tuple(search.choice() for search in tuner.searches)
    ended = "the budget was spent" if any(not search.done for search in tuner.searches) else "nothing improved"
    return Tuned(meter.method, meter.machine, choices, tuner.measured, tuner.seconds, ended, path, meter.note)


def require_budget(minutes: float) -> None:
    """Refuse to tune in no time.

    Raises:
        EdgecError: the budget is not positive.
    """
    if not minutes > 0:
        raise EdgecError(f"tuning needs a budget above 0 minutes, not {minutes:g}; give --tune or --minutes more")


class _Here(Executor):
    """Does at once what it is given: an interruption arrives where the work is done."""

    def submit(self, work: Callable[..., Any], /, *arguments: Any, **named: Any) -> Future[Any]:
        done: Future[Any] = Future()
        done.set_result(work(*arguments, **named))
        return done


def _workers(boards: int) -> Executor:
    return _Here() if boards == 1 else ThreadPoolExecutor(boards, thread_name_prefix="edgec-tune")


@dataclass
class _Tuner:
    """Decides which kernel is next, and whether there is time for it."""

    searches: list[_Search]
    budget: float
    clock: Callable[[], float]
    measured: int = 0
    longest: float = 0.0

    def __post_init__(self) -> None:
        self.start = self.clock()

    @property
    def seconds(self) -> float:
        """Since the start."""
        return self.clock() - self.start

    def next(self) -> _Search | None:
        """The open kernel that takes most of the time; those never measured come first."""
        if self.seconds + (self.longest or min(FIRST_BATCH_SECONDS, self.budget / 2)) > self.budget:
            return None
        waiting = [search for search in self.searches if not search.done and not search.is_measured]
        return max(waiting, key=lambda s: (not s.begun, s.weight), default=None)

    def run(self, pool: Executor, boards: int, tell: Progress) -> Iterator[list[Record]]:
        """Measure batches, at most ``boards`` at a time, and hand out what each has found."""
        begun: dict[Future[list[Record]], tuple[_Search, float]] = {}
        while True:
            while len(begun) < boards and (search := self.next()) is not None:
                tell(self.status(), int(self.seconds), int(self.budget))
                search.is_measured, start = True, self.clock()
                begun[pool.submit(search.step)] = search, start
            if not begun:
                return
            for future in wait(begun, return_when=FIRST_COMPLETED).done:
                search, start = begun.pop(future)
                search.is_measured = False
                self.longest = max(self.longest, self.clock() - start)
                found = future.result()
                self.measured += len(found)
                yield found

    def status(self) -> str:
        """How far the tuner has come: the best so far is over the untuned plans of the kernels measured."""
        done = sum(search.done for search in self.searches)
        best = _ratio((s.task.count, s.untuned, s.best_cost) for s in self.searches)
        left = max(0, round(self.budget - self.seconds))
        return (
            f"tuning: {done} of {len(self.searches)} kernels, {self.measured} plans, best {best:.3f} × untuned, "
            f"at most {left // 60}:{left % 60:02} left"
        )


@dataclass
class _Search:
    """One kernel: what is known of its plans, and which to measure next."""

    task: Task
    target: Target | GpuTarget
    meter: Meter
    known: Records
    ratios: dict[int, float] = field(default_factory=dict)
    untuned: float | None = None
    done: bool = False
    is_measured: bool = False

    def __post_init__(self) -> None:
        places = {self._key(plan): place for place, plan in enumerate(self.task.plans)}
        for record in self.known.of(self.task.kernel, self.target):
            place = places.get((record.plan, repr(record.parameters)))
            if place is not None and record.method == self.meter.method:
                self.ratios[place] = record.ratio
                self.untuned = record.untuned

    @staticmethod
    def _key(plan: Any) -> tuple[str, str]:
        return type(plan).__name__, repr(parameters(plan))

    @property
    def begun(self) -> bool:
        return self.untuned is not None

    @property
    def weight(self) -> float:
        """What it costs now; before it was measured, its multiply-adds."""
        cost = self.best_cost
        return self.task.count * (float(self.task.kernel.macs) if cost is None else cost)

    @property
    def best(self) -> int:
        """The place of the best plan."""
        return min(self.ratios, key=lambda place: (self.ratios[place], place), default=0)

    @property
    def best_cost(self) -> float | None:
        return None if self.untuned is None else self.untuned * min(self.ratios[self.best], 1.0)

    def step(self) -> list[Record]:
        """Measure the next batch, and tell whether there is more to expect."""
        batch = self._batch()
        if not batch:
            self.done = True
            return []
        before = self.ratios[self.best] if self.ratios else 1.0
        places = [0, *batch]
        outcomes = self.meter.measure(self.task, [self.task.plans[place] for place in places])
        untuned = outcomes[0].cost
        if untuned is None:
            raise EdgecError(f"the untuned plan of '{self.task.name}' cannot be measured: {outcomes[0].error}")
        found = [self._record(place, outcome, untuned) for place, outcome in zip(places, outcomes, strict=True)]
        self.untuned = untuned
        first = len(self.ratios) == 0
        self.ratios |= {place: record.ratio for place, record in zip(places, found, strict=True)}
        self.done = (not first and self.ratios[self.best] > GAIN * before) or not self._batch()
        return found

    def _batch(self) -> list[int]:
        """Places of plans not measured yet: neighbours of the best, then the most promising."""
        fresh = [place for place in range(1, len(self.task.plans)) if place not in self.ratios]
        if len(self.ratios) > 1:
            fresh.sort(key=lambda place: (self._distance(place) > 1, place))
        return fresh[: BATCH - 1]

    def _distance(self, place: int) -> int:
        """In how many steps of one parameter a plan differs from the best one."""
        mine, best = parameters(self.task.plans[place]), parameters(self.task.plans[self.best])
        return sum(_steps(mine[name], best[name]) for name in mine) if mine.keys() == best.keys() else len(mine)

    def _record(self, place: int, outcome: Outcome, untuned: float) -> Record:
        plan = self.task.plans[place]
        return Record(
            kernel=records.signature(self.task.kernel),
            processor=records.processor(self.target),
            tvm=records.tvm_pair(),
            plan=type(plan).__name__,
            parameters=parameters(plan),
            method=self.meter.method,
            cost=outcome.cost,
            untuned=untuned,
            error=outcome.error,
            machine=self.meter.machine,
        )

    def choice(self) -> Choice:
        """What was found."""
        failed = sum(ratio == float("inf") for ratio in self.ratios.values())
        plan = self.task.plans[self.best]
        return Choice(
            self.task.name, self.task.count, len(self.ratios), failed, self.untuned, self.best_cost, parameters(plan)
        )


def _steps(left: int | str, right: int | str) -> int:
    if isinstance(left, int) and isinstance(right, int):
        return abs(left - right)
    return int(left != right)
