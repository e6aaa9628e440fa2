"""The Pareto front of an exploration: which versions of a model nothing beats, and how to choose one."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from edgec.errors import EdgecError

PICKS = ("fastest-within", "smallest-within", "most-accurate")
"""What ``--pick`` takes, the first two with a number of points."""


@dataclass(frozen=True)
class Point:
    """One way to compile a model: the share of MACs that is pruned, the mode of quantisation, pinned shapes."""

    prune: float
    quantize: str
    resolution: int | None = None

    def __str__(self) -> str:
        parts = [f"prune {self.prune:g}" if self.prune else "", self.quantize if self.quantize != "none" else "float"]
        return ", ".join(part for part in [*parts, f"{self.resolution} px" if self.resolution else ""] if part)


@dataclass(frozen=True)
class Result:
    """What came of a point.

    Attributes:
        key: the digest of everything that decides it.
        point: how it was compiled.
        score: its accuracy, 100 at best; None where it failed.
        bytes: the artifact's size.
        macs: multiply-adds of an inference.
        cost: of an inference, in the front's unit; None where it was not measured.
        error: why it failed.
    """

    key: str
    point: Point
    score: float | None = None
    bytes: int | None = None
    macs: int | None = None
    cost: float | None = None
    error: str | None = None

    @property
    def is_complete(self) -> bool:
        """Whether it can be compared with others."""
        return self.score is not None and self.cost is not None


@dataclass(frozen=True)
class Front:
    """All results of an exploration, and what they are results of.

    Attributes:
        model: the ONNX file, by absolute path.
        sha256: its digest.
        target: what it was compiled for.
        unit: of the cost: "ms", "M instructions" or "M MACs".
        measure: what the score counts.
        calib: the samples learned from, by absolute path.
        preprocess: how images become inputs.
        shapes: pinned inputs.
        results: all of them, failures too.
    """

    model: str
    sha256: str
    target: str
    unit: str
    measure: str
    calib: str | None
    preprocess: str | None
    shapes: dict[str, list[int]]
    results: tuple[Result, ...]

    @property
    def best(self) -> tuple[Result, ...]:
        """Those that no other beats in score, cost and size, the fastest first."""
        complete = [result for result in self.results if result.is_complete]
        unbeaten = [result for result in complete if not any(_beats(other, result) for other in complete)]
        return tuple(sorted(unbeaten, key=lambda result: result.cost or 0))

    def pick(self, choice: str) -> Result:
        """The result that ``choice`` names: one of :data:`PICKS`, the points after a colon.

        Points are lost against the best score of the front: ``fastest-within:1.0``, with a space for the colon, too.

        Raises:
            EdgecError: it is spelled otherwise, or there is no result.
        """
        name, _, number = ":".join(choice.split()).partition(":")
        try:
            points = float(number) if number else 0.0
        except ValueError:
            points = -1.0
        if name not in PICKS or points < 0 or (number and name == "most-accurate"):
            raise EdgecError(
                f"--pick takes fastest-within:POINTS, smallest-within:POINTS or most-accurate, and not '{choice}'"
            )
        best = self.best
        if not best:
            raise EdgecError("the front holds no version that was measured; explore again with a larger --budget")
        top = max(result.score or 0.0 for result in best)
        near = [result for result in best if (result.score or 0.0) >= top - points]
        return min(near, key=lambda r: ((r.bytes if name == "smallest-within" else r.cost) or 0, -(r.score or 0)))

    def check_model(self, model: Path) -> None:
        """Refuse another model than the one that was explored.

        Raises:
            EdgecError: naming it.
        """
        if not model.is_file() or hashlib.sha256(model.read_bytes()).hexdigest() != self.sha256:
            raise EdgecError(f"the front is of '{self.model}', and '{model}' is another file; give that one")

    def shapes_of(self, result: Result) -> dict[str, tuple[int, ...]]:
        """What the result's inputs were pinned to."""
        from edgec.exploration.search import pinned

        resolution = result.point.resolution
        shapes = self.shapes if resolution is None else pinned(Path(self.model), resolution)
        return {name: tuple(shape) for name, shape in shapes.items()}

    def samples_of(self, result: Result) -> tuple[Path | None, Path | None]:
        """The samples that it learns from, and the recipe of images; None where it learns nothing.

        Raises:
            EdgecError: it learned from images of another size than the recipe's.
        """
        if not result.point.prune and result.point.quantize == "none":
            return None, None
        if result.point.resolution is not None:
            raise EdgecError(f"'{result.point}' stands compiled beside the front, as {result.key}.so; take that file")
        return (Path(each) if each else None for each in (self.calib, self.preprocess))  # type: ignore[return-value]

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON; ``best`` are the keys of the front."""
        return {**asdict(self), "best": [result.key for result in self.best]}

    def save(self, path: Path) -> None:
        """Write it as JSON, whole or not at all."""
        from edgec.artifact import write_atomically

        write_atomically({path: json.dumps(self.as_dict(), indent=1).encode()})


def _beats(one: Result, other: Result) -> bool:
    """Whether ``one`` is nowhere worse than ``other`` and somewhere better."""
    ours, theirs = ((-(r.score or 0.0), r.cost or 0.0, float(r.bytes or 0)) for r in (one, other))
    return all(a <= b for a, b in zip(ours, theirs, strict=True)) and ours != theirs


def load_front(path: Path) -> Front:
    """The front that ``edgec explore`` wrote: ``front.json``, or the folder that holds it.

    Raises:
        EdgecError: it cannot be read, or is something else.
    """
    file = path / "front.json" if path.is_dir() else path
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
        values.pop("best")
        results = tuple(result_of(each) for each in values.pop("results"))
        return Front(results=results, **values)
    except OSError as error:
        raise EdgecError(f"the front '{file}' cannot be read: {error.strerror}; run edgec explore first") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise EdgecError(f"'{file}' is no front of edgec explore; give the front.json that it wrote") from error


def result_of(values: dict[str, Any]) -> Result:
    """A result from plain data."""
    return Result(**{**values, "point": Point(**values["point"])})


def draw_front(front: Front) -> str:
    """The front as an SVG element of the page: score against cost, the size as the area."""
    from edgec.html.figures import Figures

    complete = [result for result in front.results if result.is_complete]
    return Figures().front(complete, front.best, front.unit, front.measure)


def front_page(front: Front, command: str) -> str:
    """The front as a page that loads nothing."""
    from edgec.html.page import environment

    best = {result.key for result in front.best}
    order: Sequence[Result] = sorted(front.results, key=lambda r: (r.key not in best, r.cost is None, r.cost or 0))
    return environment().get_template("front.html.j2").render(
        front=front, results=order, best=best, figure=draw_front(front), command=command
    )  # fmt: skip
