"""How well a model or an artifact does on samples: top-1 accuracy, agreement with a reference, time."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from edgec.artifact import is_artifact, read_manifest
from edgec.data.samples import Array, Samples, TensorSpec, batch_size, in_reals, load_samples, specs
from edgec.devices.device import Device, LocalDevice, Progress, Results, open_device
from edgec.devices.machine import Machine
from edgec.errors import EdgecError
from edgec.runtimes.peers import Peer, open_peer
from edgec.targets.formats import format_of


@dataclass(frozen=True)
class Agreement:
    """How close outputs come to a reference's.

    Attributes:
        top1: share of samples for which the first output's largest value stands at the same place; None where a
            sample has a single value.
        relative_error: for every output the largest absolute difference over the reference's range.
    """

    top1: float | None
    relative_error: dict[str, float]


@dataclass(frozen=True)
class Evaluation:
    """What :func:`evaluate` found.

    Attributes:
        samples: how many there were.
        ms_per_sample: median wall time of a run divided by its batch; None on an emulator.
        top1: share of samples whose largest value stands at the label; None without labels.
        agreement: with the reference; None without one.
        machine: where it ran, if that was over ssh or adb.
    """

    samples: int
    ms_per_sample: float | None
    top1: float | None
    agreement: Agreement | None
    machine: Machine | None = None


def evaluate(
    path: Path,
    data: Path,
    *,
    shapes: Mapping[str, Sequence[int]] | None = None,
    device: str = "local",
    preprocess: Path | None = None,
    reference: Path | None = None,
    threads: int = 1,
    width: int | None = None,
    progress: Progress | None = None,
) -> Evaluation:
    """Run an artifact, or an ONNX model through ONNX Runtime, on samples.

    Args:
        path: the artifact or the model.
        data: what :func:`edgec.data.samples.load_samples` takes.
        shapes: pins dynamic inputs of the ONNX models.
        device: where an artifact runs.
        preprocess: the recipe for a folder of images.
        reference: an ONNX model to compare the outputs with.
        threads: how many share the work of a run.
        width: the bits at which nested weights are read.
        progress: told (what, done, total).

    Raises:
        EdgecError: something does not fit, or there is neither a label nor a reference to judge by.
    """
    where = open_device(device, path, width)
    peer = None if is_artifact(path) or format_of(path) else _reference(path, where, threads, shapes)
    manifest = {} if peer else read_manifest(path)
    inputs = peer.inputs if peer else specs(manifest["inputs"])
    samples = load_samples(data, inputs, preprocess)
    if samples.labels is None and reference is None:
        raise EdgecError(
            f"'{data}' has no labels to judge by; add an array (or labels.csv) 'labels', "
            "or compare with --reference MODEL.onnx"
        )
    if peer:
        results = run_peer(peer, samples, progress)
    else:
        results = where.run(path, samples, threads=threads, progress=progress)
    count = len(samples) * batch_size(inputs)
    return Evaluation(
        samples=count,
        ms_per_sample=None if where.is_emulated else _median_ms(results) / batch_size(inputs),
        top1=None if samples.labels is None else _accuracy(results, samples.labels),
        agreement=_compare(results, manifest, reference, inputs, samples, threads, progress) if reference else None,
        machine=results.machine,
    )


def run_peer(peer: Peer, samples: Samples, progress: Progress | None = None) -> Results:
    """Run ``samples`` one after the other in another runtime."""
    collected: list[list[Array]] = []
    run_ns = []
    for index, inputs in enumerate(samples):
        peer.bind(inputs)
        start = time.perf_counter_ns()
        peer.invoke()
        run_ns.append(time.perf_counter_ns() - start)
        collected.append(peer.outputs())
        if progress:
            progress(f"runs in {peer.name}", index + 1, len(samples))
    outputs = dict(zip(peer.output_names, map(np.stack, zip(*collected, strict=True)), strict=True))
    return Results(outputs, tuple(run_ns))


def relative_error(found: Array, wanted: Array) -> float:
    """The largest absolute difference over the range of ``wanted`` (over its largest magnitude if it is flat).

    Infinite where one of the two has a NaN, or an infinity of its own.
    """
    if found.shape != wanted.shape:
        raise EdgecError(f"an output has shape {list(found.shape)} and in the reference {list(wanted.shape)}")
    if not wanted.size or np.array_equal(found, wanted, equal_nan=wanted.dtype.kind in "fc"):
        return 0.0
    ours, theirs = found.astype(np.float64), wanted.astype(np.float64)
    with np.errstate(invalid="ignore"):
        difference = float(np.max(np.abs(ours - theirs)))
        scale = float(np.ptp(theirs)) or float(np.max(np.abs(theirs))) or 1.0
    return difference / scale if np.isfinite(difference) and np.isfinite(scale) else float("inf")


def classes(output: Array, samples: int) -> Array | None:
    """The class that ``output`` [runs, batch, …] gives each sample: int64[samples].

    It is where the largest value stands, or an integer output itself; None where a sample has one real value.
    """
    rows = output.reshape(samples, -1)
    if rows.shape[1] > 1:
        return np.asarray(rows.argmax(axis=1))
    return rows[:, 0].astype(np.int64) if output.dtype.kind in "iu" else None


def _reference(model: Path, device: Device, threads: int, shapes: Mapping[str, Sequence[int]] | None) -> Peer:
    if not isinstance(device, LocalDevice):
        raise EdgecError(
            f"'{model}' is a model, which ONNX Runtime runs on this machine; compile it for --device qemu or another"
        )
    return open_peer("onnxruntime", model, threads=threads, shapes=shapes)


def _median_ms(results: Results) -> float:
    return float(np.median(results.run_ns)) / 1e6


def _accuracy(results: Results, labels: Array) -> float:
    name, output = next(iter(results.outputs.items()))
    if output.size % len(labels):
        raise EdgecError(
            f"the output '{name}' has shape {list(output.shape[1:])}, which is not a row of classes for each sample"
        )
    found = classes(output, len(labels))
    if found is None:
        raise EdgecError(f"the output '{name}' has one value for each sample, so there is no class to compare")
    return float(np.mean(found == labels))


def _compare(
    results: Results,
    manifest: Mapping[str, Any],
    reference: Path,
    inputs: Sequence[TensorSpec],
    samples: Samples,
    threads: int,
    progress: Progress | None,
) -> Agreement:
    """Run the reference on the same samples; what integers stand for is compared."""
    peer = open_peer("onnxruntime", reference, threads=threads, shapes={s.name: s.shape for s in inputs})
    reals = replace(samples, read=lambda index: in_reals(inputs, samples.read(index)))
    wanted = run_peer(peer, reals, progress)
    results = replace(results, outputs=in_reals(specs(manifest.get("outputs", ())), results.outputs))
    if len(wanted.outputs) != len(results.outputs):
        raise EdgecError(f"'{reference}' has {len(wanted.outputs)} outputs, and {len(results.outputs)} are compared")
    pairs = list(zip(results.outputs.items(), wanted.outputs.values(), strict=True))
    return Agreement(
        top1=_same_class(pairs[0][0][1], pairs[0][1], len(samples) * batch_size(inputs)),
        relative_error={name: relative_error(found, theirs) for (name, found), theirs in pairs},
    )


def _same_class(found: Array, wanted: Array, samples: int) -> float | None:
    if found.size % samples or found.shape != wanted.shape:
        return None
    ours, theirs = classes(found, samples), classes(wanted, samples)
    return None if ours is None or theirs is None else float(np.mean(ours == theirs))
