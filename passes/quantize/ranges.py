"""The grid of each tensor: the observer is the one that causes the least error in the layers that read it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from edgec.grid import Grid
from edgec.passes.quantize.execution import NodeRunner, Sample
from edgec.passes.quantize.grid import exact_grid, grid_between
from edgec.passes.quantize.observers import OBSERVERS
from edgec.passes.quantize.operators import Role
from edgec.passes.quantize.placement import Placement
from edgec.passes.quantize.statistics import Histogram, Statistics, histogram_of, levels_of, merged
from edgec.passes.quantize.tape import Visit, few, walk

_SAMPLES = 16
_HEADROOM = 2.0
"""How much wider than what was seen the range of 16 bits is."""
EXACT = "exact"
"""The observer's name where the tensor holds at most 256 levels, and the grid has just those."""


@dataclass(frozen=True)
class Range:
    """A tensor's grid and where it comes from."""

    grid: Grid
    observer: str


Key = tuple[ir.Value, int]
"""A group's representative, and bits."""

Ranges = dict[Key, Range]


def choose_ranges(
    model: ir.Model,
    placement: Placement,
    statistics: Statistics,
    samples: Sequence[Sample],
    observer: str,
    progress: Callable[[int, int], None] | None = None,
    fixed_point: bool = False,
) -> Ranges:
    """The range of every group of values at each of its bits; for ``fixed_point`` all scales are powers of two."""
    candidates = {
        key: [found] if (found := _settled(key, members, placement, statistics, samples)) else
        _candidates(group_histogram(members, statistics), observer)
        for root, members in placement.members().items()
        for key in dict.fromkeys((root, bits) for member in members for bits in placement.grids_of(member))
    }  # fmt: skip
    if fixed_point:
        candidates = {key: _by_powers_of_two(ranges) for key, ranges in candidates.items()}
    open_keys = {key for key, ranges in candidates.items() if len(ranges) > 1}
    errors = _errors(model, placement, candidates, open_keys, samples, progress) if open_keys else {}
    return {key: ranges[int(np.argmin(errors.get(key, [0.0])))] for key, ranges in candidates.items()}


def _settled(
    key: Key,
    members: Sequence[ir.Value],
    placement: Placement,
    statistics: Statistics,
    samples: Sequence[Sample],
) -> Range | None:
    """The range where there is nothing to choose: 16 bits, of which one is kept for what other inputs reach, and
    inputs that are pixels."""
    if key[1] == 16:
        histogram = group_histogram(members, statistics)
        return Range(grid_between(_HEADROOM * histogram.low, _HEADROOM * histogram.high, 16), "minmax")
    fed = [value for value in members if value.is_graph_input()]
    if fed and all(value in fed or value.const_value is not None for value in members):
        grid = exact_grid(levels_of([sample[str(value.name)] for value in fed for sample in samples]))
        return None if grid is None else Range(grid, EXACT)
    return None


def _candidates(histogram: Histogram, observer: str) -> list[Range]:
    names = list(OBSERVERS) if observer == "auto" else [observer]
    found = [Range(grid_between(*OBSERVERS[name](histogram)), name) for name in names]
    return list({each.grid: each for each in reversed(found)}.values())[::-1]


def _by_powers_of_two(ranges: Sequence[Range]) -> list[Range]:
    """The two grids around each of ``ranges`` whose scales are powers of two; of 16 bits only the wider one."""
    found = [
        Range(each.grid.by_power_of_two(wider), each.observer if each.observer != EXACT else "minmax")
        for each in reversed(ranges)
        for wider in ((False, True) if each.grid.bits == 8 else (True,))
    ]
    return list({each.grid: each for each in found}.values())[::-1]


def group_histogram(members: Sequence[ir.Value], statistics: Statistics) -> Histogram:
    """All values of a group in one histogram."""
    return merged([
        statistics.histograms[value] if value.const_value is None else histogram_of(value.const_value.numpy())
        for value in members
    ])  # fmt: skip


def _errors(
    model: ir.Model,
    placement: Placement,
    candidates: Mapping[Key, Sequence[Range]],
    open_keys: set[Key],
    samples: Sequence[Sample],
    progress: Callable[[int, int], None] | None,
) -> dict[Key, np.ndarray]:
    """For each of a key's candidates the sum of the relative square errors of all its readers."""
    runner = NodeRunner(model)
    errors = {key: np.zeros(len(candidates[key])) for key in open_keys}
    for visit in walk(model, runner, few(model.graph, samples, _SAMPLES), progress):
        for index, array in visit.inputs.items():
            key = _key(placement, visit.node, index)
            if key in errors:
                errors[key] += [
                    _caused(visit, index, each.grid.round(array), placement, runner) for each in candidates[key]
                ]
    return errors


def _key(placement: Placement, node: ir.Node, index: int) -> Key | None:
    value, bits = node.inputs[index], placement.bits.get((node, index))
    return None if bits is None or value is None else (placement.group[value], bits)


def _caused(visit: Visit, index: int, rounded: np.ndarray, placement: Placement, runner: NodeRunner) -> float:
    """Square error of a product's result, over its variance; for other nodes that of the rounded input itself."""
    if placement.roles[visit.node] is not Role.PRODUCT:
        return _relative(rounded, visit.inputs[index])
    return _relative(runner.run(visit.node, {**visit.inputs, index: rounded})[0], visit.outputs[0])


def _relative(found: np.ndarray, wanted: np.ndarray) -> float:
    return float(np.square(found - wanted).mean() / max(float(wanted.var()), 1e-20))
