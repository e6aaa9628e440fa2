"""Pruning of whole models: what ``--prune``, ``edgec prune`` and ``edgec inspect --prunable`` do."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgec.errors import EdgecError

if TYPE_CHECKING:
    import onnx
    import onnx_ir as ir

    from edgec.errors import Refusal
    from edgec.passes.base import PassReport
    from edgec.passes.prune.activations import Sample
    from edgec.passes.prune.coupling import Coupling
    from edgec.passes.prune.pruning import Settings
    from edgec.targets.target import Target

Calibration = str | os.PathLike[str] | Iterable[Mapping[str, np.ndarray]]
"""Samples without labels: an ``.npz`` with arrays named as the inputs, or arrays by input name."""

MOST_SAMPLES = 2048
"""Calibration samples that are looked at; more cost time and move little."""


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


def prune_model(
    model: str | os.PathLike[str] | onnx.ModelProto | ir.Model,
    output: str | os.PathLike[str],
    settings: Settings,
    *,
    calib: Calibration | None = None,
    shapes: Mapping[str, Sequence[int]] | None = None,
) -> tuple[PassReport, ...]:
    """Prune ``model`` and write the smaller ONNX model; the reports of all passes that ran.

    Args:
        model: an ONNX file, or a model in memory.
        output: the ONNX file to write.
        settings: the budget, and how it is met.
        calib: samples for scores, sensitivities and repair; without any, the weights alone decide.
        shapes: pins dynamic inputs.

    Raises:
        EdgecError: in one sentence what is wrong, or how much can be pruned at most. Nothing is written then.
    """
    import onnx_ir as ir

    from edgec.artifact import check_writable, write_atomically
    from edgec.graph import load_graph

    path = Path(output)
    check_writable(path)
    graph = load_graph(model, shapes=shapes)
    reports = prune_graph(graph, settings, calib)
    write_atomically({path: ir.to_proto(graph).SerializeToString()})
    return reports


def prune_graph(graph: ir.Model, settings: Settings, calib: Calibration | None) -> tuple[PassReport, ...]:
    """Fold and prune an imported graph, in place.

    Folding comes first, since what is counted and fitted then is what will run; only the score that reads batch
    norms has to come before they are folded.
    """
    from edgec.passes.pipeline import FLOAT, run
    from edgec.passes.prune.pruning import Prune

    passes = FLOAT[:1] if settings.score == "norm-scale" else FLOAT
    return (*run(graph, passes), Prune(settings, _samples(graph, calib)).apply(graph))


def settings_for(fraction: float, target: Target, **choices: Any) -> Settings:
    """The default settings, with channels rounded to the target's vectors."""
    from edgec.passes.prune.allocation import Limits
    from edgec.passes.prune.pruning import Settings

    return replace(Settings(fraction, limits=Limits(multiple=target.lanes(4))), **choices)


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


def _samples(graph: ir.Model, calib: Calibration | None) -> list[Sample]:
    """At most ``MOST_SAMPLES`` samples that fit the graph's inputs."""
    from edgec.data import TensorSpec, load_npz

    if calib is None:
        return []
    inputs = [TensorSpec(str(v.name), v.shape.numpy(), v.dtype.numpy()) for v in graph.graph.inputs]  # type: ignore[union-attr]
    if isinstance(calib, str | os.PathLike):
        found: Iterable[Mapping[str, np.ndarray]] = load_npz(Path(calib), inputs)
    else:
        found = calib
    samples: list[Sample] = [dict(sample) for sample in islice(found, MOST_SAMPLES)]
    if not samples:
        raise EdgecError("there are no calibration samples; give some with --calib, or leave the flag out")
    for sample in samples:
        _check(sample, inputs)
    return samples


def _check(sample: Sample, inputs: Sequence[Any]) -> None:
    for spec in inputs:
        array = sample.get(spec.name)
        if array is None:
            raise EdgecError(f"a calibration sample has no array for the input {spec}; it holds {', '.join(sample)}")
        if array.shape != spec.shape or array.dtype != spec.dtype:
            raise EdgecError(
                f"a calibration sample has {array.dtype}{list(array.shape)} for the input {spec}; it must fit exactly"
            )
