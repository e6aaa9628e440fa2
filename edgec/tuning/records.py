"""Tuning records: what was measured of a kernel's plans, one JSON line each.

A record fits where kernel, processor, pair of TVM packages and schema are the same. What counts of a kernel is its
signature: kind, shape, strides and the operators of its epilogue, not the constants in it, so that models share
records. A plan's cost stands beside that of the untuned plan from the same measurement: only their ratio is compared,
since it carries over from one state of a machine to another. What a kernel takes as a step of a model is on record,
too, for comparing one kernel with another. A file may be cut short, as by a kill while a line was written; lines of
several machines may stand in one file.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from edgec import scalar
from edgec.errors import EdgecError
from edgec.nest import coefficient
from edgec.program import Kernel, Loops
from edgec.scalar import Expr
from edgec.targets.gpu.target import GpuTarget
from edgec.targets.target import TARGET_FOLDER, Target
from edgec.tvm_adapter import TVM_PAIR

SCHEMA = 2
"""Of a line; raised when a field or the meaning of a plan's parameters changes."""

SHIPPED = TARGET_FOLDER / "records.jsonl"
"""The records that come with the package."""

METHODS = ("time", "cycles", "instructions")
"""How costs were found, the most trusted first: nanoseconds on the processor, instructions under an emulator times the
cycles that each takes in the hottest loop by LLVM's analyser, and those instructions alone."""

WORTH = 0.98
"""A plan replaces the untuned one when it costs at most this much of it: less is noise."""

STEP = "step"
"""The plan of a record that tells what a kernel takes untuned, as a step of a model on one machine."""

Parameters = dict[str, int | str]

Way = tuple[str, str | None]
"""How and on what costs were found, the method and the machine: only those of one way are compared."""

_NUMBER, _MAYBE_TEXT = (int, float), (str, type(None))
_KINDS: dict[str, type | tuple[type, ...]] = {
    "kernel": str, "processor": str, "tvm": str, "plan": str, "parameters": dict, "method": str,
    "cost": (*_NUMBER, type(None)), "untuned": _NUMBER, "error": _MAYBE_TEXT, "machine": _MAYBE_TEXT,
}  # fmt: skip
"""What JSON has in each field of a record."""

_IDLE = ("input_offset", "weight_offset", "value")
"""Fields of a kernel that say where its operands start or what is stored, and nothing of how long it takes."""


_UNTOLD = {"grouped": False}
"""What is left out of a signature: what a field says that kernels have got since records were made."""


@dataclass(frozen=True)
class Record:
    """One plan of one kernel, measured.

    Attributes:
        kernel: the kernel's signature (see :func:`signature`).
        processor: for what the code was generated (see :func:`processor`).
        tvm: the versions that generated it.
        plan: the class of the plan, or :data:`STEP`.
        parameters: what the plan chose.
        method: one of :data:`METHODS`.
        cost: nanoseconds, cycles or instructions of one call; None for a plan that failed.
        untuned: the same of the plan that is taken without records.
        error: why the plan failed.
        machine: what it was measured on.
    """

    kernel: str
    processor: str
    tvm: str
    plan: str
    parameters: Parameters
    method: str
    cost: float | None
    untuned: float
    error: str | None = None
    machine: str | None = None

    @property
    def ratio(self) -> float:
        """Cost over that of the untuned plan; infinite for a plan that failed."""
        return float("inf") if self.cost is None else self.cost / self.untuned

    @property
    def way(self) -> Way:
        """How and on what it was measured."""
        return self.method, self.machine

    @property
    def key(self) -> tuple[str, ...]:
        """What no two records of a collection share."""
        where = str(self.machine) if self.plan == STEP else ""
        return (self.kernel, self.processor, self.tvm, self.plan, self.method, json.dumps(self.parameters), where)

    def line(self) -> str:
        """The record as a line of a file."""
        return json.dumps({"schema": SCHEMA, **asdict(self)}) + "\n"


def signature(kernel: Kernel) -> str:
    """What of ``kernel`` decides how long it takes, in words."""
    parts = [type(kernel).__name__]
    for field in fields(kernel):
        value = getattr(kernel, field.name)
        if field.name == "store":
            value = [coefficient(value, axis) for axis in range(len(kernel.extents))]
        elif isinstance(value, Expr):
            value = _skeleton(value)
        if field.name not in _IDLE and value not in (None, _UNTOLD.get(field.name)):
            parts.append(f"{field.name}={value}".replace(" ", ""))
    if isinstance(kernel, Loops):
        parts.append(f"loads={_walks(kernel)}".replace(" ", ""))
    return " ".join(parts)


def _walks(nest: Loops) -> list[list[int | None]]:
    """How far each load of ``nest`` moves along each axis: a copy and a transposition have the same operators."""
    axes = range(len(nest.extents) + len(nest.reduce))
    exprs = [expr for expr in (nest.body, nest.epilogue) if expr is not None]
    return [[coefficient(load.args[1], axis) for axis in axes] for expr in exprs for load in scalar.loads(expr)]


def _skeleton(expr: Expr) -> str:
    """A digest of the operators of ``expr``, whatever the constants."""
    places: dict[int, int] = {}
    nodes = []
    for node in scalar.walk(expr):
        places[id(node)] = len(places)
        nodes.append((node.op, node.dtype, [places[id(child)] for child in node.children]))
    return hashlib.sha256(json.dumps(nodes).encode()).hexdigest()[:8]


def processor(target: Target | GpuTarget) -> str:
    """What code for ``target`` depends on."""
    return target.processor


def tvm_pair() -> str:
    """The versions of the packages that generate code."""
    return " ".join(f"{name}=={version}" for name, version in TVM_PAIR.items())


class Records:
    """A collection of records, the last of equal key in force."""

    def __init__(self, records: Iterable[Record] = ()) -> None:
        self._records: dict[tuple[str, ...], Record] = {}
        self._best: dict[tuple[str, str], list[Record]] = {}
        self.add(records)

    def __iter__(self) -> Iterator[Record]:
        return iter(self._records.values())

    def __len__(self) -> int:
        return len(self._records)

    def add(self, records: Iterable[Record]) -> None:
        """Take in ``records``, which replace those of equal key."""
        for record in records:
            self._records[record.key] = record
        self._best.clear()

    def of(self, kernel: Kernel, target: Target | GpuTarget) -> list[Record]:
        """All records of ``kernel`` on the processor of ``target``, the best first."""
        if not self._best:
            for record in self._records.values():
                self._best.setdefault((record.kernel, record.processor), []).append(record)
            for found in self._best.values():
                found.sort(key=lambda record: (METHODS.index(record.method), record.ratio))
        return self._best.get((signature(kernel), processor(target)), [])

    def ways(self, target: Target | GpuTarget) -> list[Way]:
        """How steps were measured on the processor of ``target``, the most trusted first."""
        wanted = processor(target)
        found = {record.way for record in self._records.values() if record.plan == STEP and record.processor == wanted}
        return sorted(found, key=lambda way: (METHODS.index(way[0]), str(way[1])))

    def cost(self, kernel: Kernel, target: Target | GpuTarget, way: Way) -> float | None:
        """What ``kernel`` takes as a step of a model, with the best plan on record; None where no step was measured.

        That is what the untuned plan takes, times what the best one costs of it.
        """
        found = self.of(kernel, target)
        step = next((record for record in found if record.plan == STEP and record.way == way), None)
        if step is None:
            return None
        best = next((record.ratio for record in found if record.plan != STEP), 1.0)
        return step.untuned * (best if best <= WORTH else 1.0)

    def choice(self, kernel: Kernel, target: Target | GpuTarget, plans: Sequence[Any]) -> Any:
        """The plan for ``kernel`` among ``plans``, the untuned one first: the best that was measured, or the untuned.

        A record of a plan that is not among them (the templates have changed since) is passed over.
        """
        from edgec.targets.template import parameters

        known = {(type(plan).__name__, json.dumps(parameters(plan))): plan for plan in plans}
        for record in self.of(kernel, target):
            plan = known.get((record.plan, json.dumps(record.parameters)))
            if plan is not None:
                return plan if record.ratio <= WORTH else plans[0]
        return plans[0]


def shipped() -> Records:
    """The records that come with the package."""
    return read(SHIPPED)


def for_target(target: Target | GpuTarget, path: Path | None) -> Records:
    """The records that come with the package, and those of the file ``path``, which wins where both have one.

    Raises:
        EdgecError: the file cannot be read, or has nothing for ``target``.
    """
    known = shipped()
    if path is not None:
        own = read(path)
        require_some(own, path, target)
        known.add(own)
    return known


def read(path: Path) -> Records:
    """The records of a file.

    Raises:
        EdgecError: a line is no record, or one that this version of edgec cannot use: which, and why.
    """
    return Records(_parse(path, number, line) for number, line in enumerate(_lines(path), 1))


def append(path: Path, records: Iterable[Record]) -> None:
    """Add ``records`` to the end of the file, which is created if it is not there.

    Raises:
        EdgecError: the file cannot be written.
    """
    text = "".join(record.line() for record in records)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab+") as file:
            _drop_cut_line(file)
            file.write(text.encode())
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise EdgecError(
            f"cannot write the tuning records {path}: {error.strerror}; choose another --tune-db"
        ) from error


def merge(path: Path, others: Sequence[Path]) -> Records:
    """Take the records of ``others`` into the file ``path``, later files in front, and rewrite it without repetitions.

    Raises:
        EdgecError: a file cannot be read or written, or holds a record that does not fit; nothing is changed then.
    """
    from edgec.artifact import check_writable, write_atomically

    check_writable(path)
    together = read(path) if path.exists() else Records()
    for other in others:
        together.add(read(other))
    write_atomically({path: "".join(record.line() for record in together).encode()})
    return together


def require_some(records: Records, path: Path, target: Target | GpuTarget) -> None:
    """Refuse a file without a single record for ``target``.

    Raises:
        EdgecError: saying what the records are for.
    """
    wanted = processor(target)
    if any(record.processor == wanted for record in records):
        return
    others = sorted({record.processor for record in records})
    found = f"its {len(records)} records are for {'; '.join(others)}" if others else "it holds no record"
    raise EdgecError(
        f"{path} has nothing for the target {target.name} ({wanted}): {found}; "
        f"run: edgec tune MODEL --target {target.name} --tune-db {path}"
    )


def _lines(path: Path) -> list[bytes]:
    """The complete lines; what follows the last line end was cut short."""
    try:
        return path.read_bytes().split(b"\n")[:-1]
    except OSError as error:
        raise EdgecError(f"cannot read the tuning records {path}: {error.strerror}; check --tune-db") from error


def _drop_cut_line(file: Any) -> None:
    end = file.seek(0, os.SEEK_END)
    if end == 0:
        return
    file.seek(0)
    kept = file.read().rpartition(b"\n")[0]
    file.truncate(len(kept) + 1 if kept else 0)


def _parse(path: Path, number: int, line: bytes) -> Record:
    where = f"line {number} of {path}"
    try:
        found = json.loads(line)
    except ValueError as error:
        raise EdgecError(f"{where} is not JSON ({error}); remove the line") from error
    if not isinstance(found, Mapping) or "schema" not in found:
        raise EdgecError(f"{where} is no tuning record; remove the line or give another --tune-db")
    values = dict(found)
    schema = values.pop("schema")
    if schema != SCHEMA:
        raise EdgecError(f"{where} has schema {schema} and this edgec reads {SCHEMA}; tune again with edgec tune")
    if odd := sorted(_KINDS.keys() ^ values.keys()):
        raise EdgecError(f"{where} lacks or should not have the fields {', '.join(odd)}; remove the line")
    wrong = [name for name, kinds in _KINDS.items() if not isinstance(values[name], kinds)]
    if wrong or values["method"] not in METHODS or not values["untuned"] > 0:
        raise EdgecError(f"{where} has a wrong value of {', '.join(wrong) or 'method or untuned'}; remove the line")
    record = Record(**values)
    if record.tvm != tvm_pair():
        raise EdgecError(f"{where} was measured with {record.tvm} and this is {tvm_pair()}; tune again with edgec tune")
    return record
