"""What values the tensors of a float model take on samples: ranges, histograms, ranges of channels."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from edgec.passes.quantize.execution import ModelRunner, Sample, map_parallel
from edgec.passes.quantize.placement import Placement

BINS = 4096
_COUNTED = 2**15
"""Elements of a tensor that enter its histogram, for each sample; ranges are of all."""

_LEVELS = 257
"""Different values from which on a tensor is no set of pixels."""


@dataclass(frozen=True)
class Histogram:
    """How often values fall in each of ``BINS`` bins of equal width between ``low`` and ``high``."""

    low: float
    high: float
    counts: np.ndarray

    @property
    def centres(self) -> np.ndarray:
        """float64 middle of each bin."""
        width = (self.high - self.low) / len(self.counts)
        return self.low + width * (np.arange(len(self.counts)) + 0.5)


@dataclass(frozen=True)
class Statistics:
    """What was seen of each float value of a graph.

    Attributes:
        ranges: least and largest value.
        histograms: of the values that were asked for.
        channels: the largest magnitude of each channel, of the values that were asked for.
    """

    ranges: Mapping[ir.Value, tuple[float, float]]
    histograms: Mapping[ir.Value, Histogram]
    channels: Mapping[ir.Value, np.ndarray]


def float_values(graph: ir.Graph) -> list[ir.Value]:
    """The float32 values that are computed or fed, in order."""
    computed = [value for node in graph for value in node.outputs]
    return [v for v in [*graph.inputs, *computed] if v.name and v.dtype == ir.DataType.FLOAT]


def observe(
    model: ir.Model,
    samples: Sequence[Sample],
    channels: Mapping[ir.Value, int] | None = None,
    histograms: Sequence[ir.Value] = (),
    known: Mapping[ir.Value, tuple[float, float]] | None = None,
    progress: Callable[[int], None] | None = None,
) -> Statistics:
    """Run ``model`` on ``samples`` and watch its values.

    Args:
        model: is not changed.
        samples: inputs by name.
        channels: the channel axis of each value whose channels are wanted.
        histograms: the values whose histograms are wanted, within their ``known`` ranges.
        known: ranges from an earlier run.
        progress: told how many samples are done.
    """
    values = list(histograms) if known else float_values(model.graph)
    fed = {str(value.name) for value in model.graph.inputs}
    runner = ModelRunner(model, outputs=[str(v.name) for v in values if str(v.name) not in fed])

    def one(sample: Sample) -> list[tuple[float, float, np.ndarray | None, np.ndarray | None]]:
        computed = iter(runner.run(sample))
        arrays = [sample[str(v.name)] if str(v.name) in fed else next(computed) for v in values]
        return [_look(v, array, channels or {}, known) for v, array in zip(values, arrays, strict=True)]

    found = []
    step = 8
    for start in range(0, len(samples), step):
        found += map_parallel(one, samples[start : start + step])
        if progress:
            progress(len(found))
    return _merge(values, found, known)


def observe_groups(
    model: ir.Model,
    samples: Sequence[Sample],
    placements: Sequence[Placement],
    known: Mapping[ir.Value, tuple[float, float]],
    progress: Callable[[int], None] | None = None,
) -> Statistics:
    """The histograms of all computed or fed values that get integers in one of ``placements``; see :func:`observe`."""
    grouped = dict.fromkeys(v for each in placements for v in each.group if v.const_value is None)
    return observe(model, samples, histograms=list(grouped), known=known, progress=progress)


def _look(
    value: ir.Value,
    array: np.ndarray,
    channels: Mapping[ir.Value, int],
    known: Mapping[ir.Value, tuple[float, float]] | None,
) -> tuple[float, float, np.ndarray | None, np.ndarray | None]:
    counts = largest = None
    if known is not None:
        flat = array.reshape(-1)
        step = -(-flat.size // _COUNTED) | 1  # odd, so that it does not keep to one column of an image
        counts = np.histogram(flat[::step], BINS, _open_range(*known[value]))[0]
    elif value in channels:
        axis = channels[value]
        largest = np.abs(array).max(axis=tuple(i for i in range(array.ndim) if i != axis))
    return float(array.min()), float(array.max()), counts, largest


def _merge(
    values: Sequence[ir.Value],
    found: Sequence[Sequence[tuple[float, float, np.ndarray | None, np.ndarray | None]]],
    known: Mapping[ir.Value, tuple[float, float]] | None,
) -> Statistics:
    ranges, histograms, channels = {}, {}, {}
    for value, looks in zip(values, zip(*found, strict=True), strict=True):
        ranges[value] = min(look[0] for look in looks), max(look[1] for look in looks)
        if known is not None:
            counts = np.sum([look[2] for look in looks], axis=0)
            histograms[value] = Histogram(*_open_range(*known[value]), counts)
        elif looks[0][3] is not None:
            channels[value] = np.max([look[3] for look in looks], axis=0)
    return Statistics(dict(known or ranges), histograms, channels)


def histogram_of(array: np.ndarray) -> Histogram:
    """The histogram of a constant."""
    ends = _open_range(float(array.min()), float(array.max()))
    return Histogram(*ends, np.histogram(array, BINS, ends)[0])


def _open_range(low: float, high: float) -> tuple[float, float]:
    """A range that is not empty."""
    return (low, high) if high > low else (low - 0.5, low + 0.5)


def levels_of(arrays: Sequence[np.ndarray]) -> np.ndarray:
    """The sorted different values of all arrays, or the first ``_LEVELS`` and more of them."""
    found = np.empty(0, np.float32)
    for array in arrays:
        found = np.unique(np.concatenate([found, np.unique(array)]))
        if len(found) >= _LEVELS:
            break
    return found


def merged(histograms: Sequence[Histogram]) -> Histogram:
    """One histogram over the ranges of all, each with the weight of one tensor."""
    low, high = min(h.low for h in histograms), max(h.high for h in histograms)
    if len(histograms) == 1:
        return histograms[0]
    total = np.zeros(BINS)
    for each in histograms:
        counts = np.histogram(each.centres, BINS, (low, high), weights=each.counts / max(each.counts.sum(), 1))[0]
        total += counts
    return Histogram(low, high, total)
