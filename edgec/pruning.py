"""Pruning of whole models: what ``--prune``, ``edgec prune`` and ``edgec inspect --prunable`` do."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgec.calibration import Source, load_calibration
from edgec.errors import EdgecError

if TYPE_CHECKING:
    import onnx_ir as ir

    from edgec.errors import Refusal
    from edgec.passes.base import PassReport
    from edgec.passes.prune.activations import Sample
    from edgec.passes.prune.coupling import Coupling
    from edgec.passes.prune.pruning import Settings
    from edgec.targets.formats import Format
    from edgec.targets.fpga.board import Board
    from edgec.targets.gpu.target import GpuTarget
    from edgec.targets.target import Target

CURVE_SHARES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7)
"""Of the MACs, at which ``--curve`` prunes."""

EXPECTED_GAIN = 0.7
"""Of the share of the MACs that is gone, what should be gone of the time; a version that gains less is told of."""

_LARGEST_SHARE, _BISECTIONS = 0.9, 5
"""Between nothing and this share of the MACs, a latency is looked for in so many steps."""

MULTIPLE = 8
"""Channels are rounded to no more than so many: half a vector of 512 bits costs half of a whole one, or little more."""

_TURNS, _CALLS = 20, 20
"""Each version's turns when latencies are measured, and the calls in one."""


@dataclass(frozen=True)
class Prunable:
    """What :func:`find_prunable` tells of a model.

    Attributes:
        groups: a sentence for every group of units that go together.
        refusals: the layers that stay as they are, and why.
        largest: the share of the MACs that can go at most.
    """

    groups: tuple[str, ...]
    refusals: tuple[Refusal, ...]
    largest: float


@dataclass(frozen=True)
class Version:
    """A model as it is before or after pruning.

    Attributes:
        removed: the share of the MACs that is gone.
        macs: of one inference; ``parameters`` and ``bytes`` of its constants.
        ms: the fastest inference on this machine, on one thread.
        faster: the share of the original's time that is gone.
        top1: accuracy in ONNX Runtime; None without labelled data.
    """

    removed: float
    macs: int
    parameters: int
    bytes: int
    ms: float
    faster: float
    top1: float | None

    @property
    def gains_little(self) -> bool:
        """Whether the time fell by far less than the MACs."""
        return self.faster < EXPECTED_GAIN * self.removed


@dataclass(frozen=True)
class Comparison:
    """The original and its pruned versions, and the file that was written: a model, or a plot."""

    path: Path
    versions: tuple[Version, ...]


def compare_pruned(
    model: Path, output: Path, settings: Settings, measure: str, *, calib: Source | None, data: Path | None,
    shapes: Mapping[str, Sequence[int]],
) -> Comparison:  # fmt: skip
    """Prune ``model``, write it as ``output``, and compare the two on this machine.

    Args:
        model: an ONNX file.
        output: the ONNX file to write.
        settings: what share goes, and how.
        measure: what the share is of: macs, parameters, bytes, or latency, which is measured on this machine.
        calib: samples to prune by.
        data: labelled samples for the accuracy.
        shapes: pins dynamic inputs.

    Raises:
        EdgecError: in one sentence what is wrong, or how much can be pruned at most. Nothing is written then.
    """
    import onnx_ir as ir

    from edgec.artifact import check_writable, write_atomically
    from edgec.graph import load_graph
    from edgec.passes.prune.cost import check_measure

    check_writable(output)
    original = load_graph(model, shapes=shapes)
    if measure == "latency":
        pruned = prune_to_latency(original, settings, calib)
    else:
        pruned = original.clone()
        prune_graph(pruned, replace(settings, measure=check_measure(measure)), calib)
    versions = _versions(original, [pruned], data)
    write_atomically({output: ir.to_proto(pruned).SerializeToString()})
    return Comparison(output, versions)


def plot_curve(
    model: Path, output: Path, settings: Settings, *, calib: Source | None, data: Path | None,
    shapes: Mapping[str, Sequence[int]],
) -> Comparison:  # fmt: skip
    """Prune ``model`` by growing shares of its MACs, and plot accuracy against latency as an SVG file.

    Raises:
        EdgecError: something does not fit, or ``data`` has no labels.
    """
    from edgec.artifact import check_writable, write_atomically
    from edgec.graph import load_graph

    if data is None:
        raise EdgecError("--curve plots accuracies; name labelled samples with --eval PATH")
    check_writable(output)
    original = load_graph(model, shapes=shapes)
    samples = _samples(original, calib)
    largest = find_prunable(model, shapes).largest
    pruned = []
    for share in (each for each in CURVE_SHARES if each < largest):
        pruned.append(original.clone())
        prune_graph(pruned[-1], replace(settings, fraction=share), samples or None)
    versions = _versions(original, pruned, data)
    write_atomically({output: draw_curve(versions).encode()})
    return Comparison(output, versions)


def draw_curve(versions: Sequence[Version]) -> str:
    """An SVG of accuracy over latency, a point for each version with its removed share."""
    width, height, margin = 640, 400, 56
    slowest = max(each.ms for each in versions)
    tops = [100 * (each.top1 or 0.0) for each in versions]
    low, high = min(tops), max(max(tops), min(tops) + 1)
    points = [
        (
            margin + (width - 2 * margin) * each.ms / slowest,
            height - margin - (height - 2 * margin) * (top - low) / (high - low),
        )
        for each, top in zip(versions, tops, strict=True)
    ]
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    marks = [
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4"/><text x="{x + 7:.1f}" y="{y - 7:.1f}">'
        f"-{each.removed:.0%} MACs: {each.ms:.3g} ms, {top:.1f} %</text>"
        for (x, y), each, top in zip(points, versions, tops, strict=True)
    ]
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width + 2 * margin} {height}" '
            'font-family="sans-serif" font-size="11">',
            f'<path d="M{margin} {margin}V{height - margin}H{width - margin}" fill="none" stroke="grey"/>',
            f'<text x="{margin}" y="{margin - 12}">accuracy, {low:.1f} to {high:.1f} %</text>',
            f'<text x="{width - 2 * margin}" y="{height - margin + 24}">latency, 0 to {slowest:.3g} ms</text>',
            f'<polyline points="{line}" fill="none" stroke="black"/>',
            *marks,
            "</svg>",
        ]
    )


def prune_to_latency(original: ir.Model, settings: Settings, calib: Source | None) -> ir.Model:
    """The version that loses the least and is faster on this machine by the share.

    What goes is chosen by the time that it takes in the original as it was measured here, layer by layer (half the
    MACs are far from half the time); how much goes is bisected, and each version measured.
    """
    samples = _samples(original, calib)
    settings, asked = replace(settings, rates=_rates(original)), settings.fraction
    low, high, best = 0.0, _LARGEST_SHARE, 0.0
    found: ir.Model | None = None
    for _ in range(_BISECTIONS):
        share = (low + high) / 2
        pruned = original.clone()
        try:
            prune_graph(pruned, replace(settings, fraction=share), samples or None)
        except EdgecError:
            high = share
            continue
        before, after = _latencies([original, pruned])
        best = max(best, 1 - after / before)
        if after <= before * (1 - asked):
            found, high = pruned, share
        else:
            low = share
    if found is None:
        raise EdgecError(
            f"the latency cannot be made {asked:.0%} lower by pruning: at most {max(best, 0):.0%} was "
            "measured on this machine; ask for less"
        )
    return found


def _versions(original: ir.Model, pruned: Sequence[ir.Model], data: Path | None) -> tuple[Version, ...]:
    """The original as the passes fold it, which is what shares are of, and its pruned versions."""
    from edgec.frontend.summary import summarise
    from edgec.passes.pipeline import FLOAT, run

    folded = original.clone()
    run(folded, FLOAT)
    models = [folded, *pruned]
    times = _latencies(models)
    summaries = [summarise(each) for each in models]
    return tuple(
        Version(
            1 - s.macs / (summaries[0].macs or 1), s.macs, s.parameters, s.bytes, ms, 1 - ms / times[0],
            _accuracy(each, data),
        )
        for each, s, ms in zip(models, summaries, times, strict=True)
    )  # fmt: skip


def _accuracy(model: ir.Model, data: Path | None) -> float | None:
    import onnx_ir as ir

    from edgec.evaluation import evaluate

    if data is None:
        return None
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        ir.save(model, path)
        return evaluate(path, data).top1


def _latencies(models: Sequence[ir.Model]) -> list[float]:
    """The fastest inference of each model on this machine in ms: compiled for it, measured in turn."""
    from edgec.artifact import read_manifest
    from edgec.compiler import compile
    from edgec.data.samples import specs
    from edgec.runtimes.python.session import load

    best = [float("inf")] * len(models)
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        paths = [compile(m, "host", Path(folder) / f"{i}.so").path for i, m in enumerate(models)]
        inputs = specs(read_manifest(paths[0])["inputs"])
        feeds = {spec.name: np.zeros(spec.shape, spec.dtype) for spec in inputs}
        sessions = [stack.enter_context(load(path, threads=1)) for path in paths]
        for _ in range(_TURNS):
            for index, session in enumerate(sessions):
                for _ in range(_CALLS):
                    start = time.perf_counter()
                    session.run(feeds)
                    best[index] = min(best[index], 1e3 * (time.perf_counter() - start))
    return best


def _rates(original: ir.Model) -> dict[str, float]:
    """Nanoseconds that a MAC takes on this machine, by the name of the node that a step of the artifact begins with."""
    from edgec.artifact import read_manifest
    from edgec.benchmark import profile_steps
    from edgec.compiler import compile
    from edgec.data.samples import specs

    with tempfile.TemporaryDirectory() as folder:
        path = compile(original, "host", Path(folder) / "original.so").path
        inputs = specs(read_manifest(path)["inputs"])
        steps = profile_steps(path, {spec.name: np.zeros(spec.shape, spec.dtype) for spec in inputs})
    return {step.name.partition(" +")[0]: step.min_ns / step.macs for step in steps if step.macs}


def prune_graph(graph: ir.Model, settings: Settings, calib: Source | None) -> tuple[PassReport, ...]:
    """Fold and prune an imported graph, in place.

    Folding comes first, since what is counted and fitted then is what will run; only the score that reads batch
    norms has to come before they are folded. Images get smaller and tokens are merged before channels go, whose share
    is of the rest. Distillation comes last, and learns from the graph as it was before all of that.
    """
    from edgec.passes.pipeline import FLOAT, run
    from edgec.passes.prune.distil import Distil
    from edgec.passes.prune.pruning import Prune
    from edgec.passes.prune.resolution import ReduceResolution
    from edgec.passes.prune.tokens import ReduceTokens

    folding = FLOAT[:1] if settings.score == "norm-scale" and not settings.tokens and not settings.pixels else FLOAT
    samples = _samples(graph, calib)
    reports = list(run(graph, folding))
    minutes = settings.distil_minutes
    distil = Distil(graph.clone(), samples, minutes, settings.seed) if minutes else None
    if settings.pixels:
        reports.append(ReduceResolution(settings.pixels, samples).apply(graph))
        reports += run(graph, folding)
    if settings.tokens:
        reports.append(ReduceTokens(settings.tokens, samples).apply(graph))
    reports.append(Prune(settings, samples).apply(graph))
    if distil is not None:
        reports.append(distil.apply(graph))
    return tuple(reports)


def settings_for(fraction: float, target: Target | GpuTarget | Board | Format, **choices: Any) -> Settings:
    """The default settings, with channels rounded to the target's vectors, up to ``MULTIPLE``."""
    from edgec.passes.prune.allocation import Limits
    from edgec.passes.prune.pruning import Settings

    return replace(Settings(fraction, limits=Limits(multiple=min(target.lanes(4), MULTIPLE))), **choices)


def find_prunable(path: Path, shapes: Mapping[str, Sequence[int]] | None = None) -> Prunable:
    """The groups of a model after the passes, and what stays.

    Raises:
        EdgecError: the file is no valid model, or a shape in it cannot be known.
    """
    from edgec.graph import load_graph
    from edgec.passes.pipeline import FLOAT, run
    from edgec.passes.prune.coupling import find_coupling

    graph = load_graph(path, shapes=shapes)
    run(graph, FLOAT)
    coupling = find_coupling(graph)
    return Prunable(tuple(map(str, coupling.groups)), coupling.refusals, _largest(graph, coupling))


def _largest(graph: ir.Model, coupling: Coupling) -> float:
    """The share of the MACs that can go with the floor of each layer."""
    from edgec.passes.prune.allocation import Limits
    from edgec.passes.prune.cost import Cost

    cost, floor = Cost(graph, "macs"), Limits().floor
    total = cost.total
    for unit in (unit for group in coupling.groups for unit in group.units):
        if cost.smallest(unit) >= floor:
            cost.remove(unit)
    return 1 - cost.total / total if total else 0.0


def _samples(graph: ir.Model, calib: Source | None) -> list[Sample]:
    """The calibration samples, checked; none without any."""
    return [] if calib is None else list(load_calibration(calib, graph).samples)
