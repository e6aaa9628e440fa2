"""Cross-layer equalisation: channels of one tensor scaled against each other, at no cost in the float model.

A channel can be divided by s > 0 in the weights of what writes it, if the weights of all that read it are multiplied by
s (Nagel et al. 2019, arXiv 1906.04721; :mod:`edgec.passes.quantize.channels` finds the channels, also behind
concatenations, shuffles and sums). All channels of a tensor share one grid, so it gets finer for those that were small;
the readers' weights, one scale for each of their outputs, may get coarser. Between the two stands an exponent α,
s = rᵅ · uᵅ⁻¹ with the channel's range r and the magnitude u of the weights that read it (as in SmoothQuant, Xiao et al.
2023, arXiv 2211.10438). It is chosen by the error of the readers' results, with no equalisation as one of the choices,
for each region: the channels that meet in a tensor, which choose together.

A ReLU6 does not keep a factor where it clamps. Channels that come near 6 on the samples are left alone, and the others
are enlarged no further than their range still fits below 6.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from edgec.passes.quantize.channels import (
    Channels,
    Port,
    divide_outputs,
    magnitudes,
    multiply_inputs,
    scaled_parameters,
)
from edgec.passes.quantize.execution import NodeRunner, Sample
from edgec.passes.quantize.grid import grid_of, round_weights, weight_scales
from edgec.passes.quantize.operators import weight_axis
from edgec.passes.quantize.products import product_of
from edgec.passes.quantize.tape import Tape, few
from edgec.values import shape_of

_EXPONENTS = (1.0, 0.75, 0.5, 0.25)
_GAIN = 0.95
"""An equalisation is made where it lowers the error to this share at least."""

_MOST = 64.0
"""Largest factor between channels."""

_HEADROOM = 1.1
"""Room that is kept between a channel's range on samples and the clamp behind it."""

_SAMPLES = 16


@dataclass
class Region:
    """Channels that choose their factors together.

    Attributes:
        readers: what reads them, in the order of the graph.
        channels: the numbers that can be scaled.
    """

    readers: list[Port]
    channels: list[int]


def regions(found: Channels) -> list[Region]:
    """The regions of a graph's channels that have anything to scale."""
    parent = list(range(found.count))

    def find(number: int) -> int:
        while parent[number] != number:
            parent[number] = number = parent[parent[number]]
        return number

    free = [[n for n in dict.fromkeys(found.roots(port.numbers).tolist()) if n] for port in found.readers]
    for numbers in free:
        for number in numbers[1:]:
            parent[find(number)] = find(numbers[0])
    grouped: dict[int, Region] = {}
    for port, numbers in zip(found.readers, free, strict=True):
        if numbers:
            region = grouped.setdefault(find(numbers[0]), Region([], []))
            region.readers.append(port)
            region.channels += [n for n in numbers if n not in region.channels]
    return list(grouped.values())


def equalise(
    model: ir.Model,
    found: Channels,
    largest: Mapping[ir.Value, np.ndarray],
    samples: Sequence[Sample],
    progress: Callable[[int, int], None] | None = None,
) -> int:
    """Scale channels of ``model`` in place; how many regions gained by it.

    ``largest`` is the largest magnitude of each channel of what the readers read.
    """
    waiting = {region.readers[-1].node: region for region in regions(found)}
    kept = {port.node: port for region in waiting.values() for port in region.readers}
    runner, tape = NodeRunner(model), Tape(model.graph, few(model.graph, samples, _SAMPLES))
    read: dict[ir.Node, np.ndarray] = {}
    factors = np.ones(found.count, np.float32)
    changed = 0
    nodes = list(model.graph)
    for done, node in enumerate(nodes, 1):
        if node in kept:
            read[node] = tape[kept[node].value]
        tape.store(node, runner.run(node, tape.inputs(node)))
        if node in waiting:
            region = waiting[node]
            changed += _choose(region, found, factors, largest, read, runner)
            for port in region.readers:
                del read[port.node]
        if progress:
            progress(done, len(nodes))
    _apply(found, factors, model.graph)
    return changed


def _choose(
    region: Region,
    found: Channels,
    factors: np.ndarray,
    largest: Mapping[ir.Value, np.ndarray],
    read: Mapping[ir.Node, np.ndarray],
    runner: NodeRunner,
) -> bool:
    """Set the factors of a region in place to the ones with the least error; False where none is worth it."""
    exact = {port.node: runner.run(port.node, {0: read[port.node]})[0] for port in region.readers}
    ranges, uses = _extents(region, found, largest)
    best, chosen = _GAIN * _error(region, found, factors, read, exact, runner), None
    for exponent in _EXPONENTS:
        tried = factors.copy()
        tried[region.channels] = _factors(region, found, ranges, uses, exponent)
        error = _error(region, found, tried, read, exact, runner)
        if error < best:
            best, chosen = error, tried
    if chosen is None:
        return False
    factors[:] = chosen
    return True


def _extents(
    region: Region, found: Channels, largest: Mapping[ir.Value, np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """The range of each channel of the region and the magnitude of the weights that read it."""
    ranges, uses = np.zeros(found.count), np.zeros(found.count)
    for port in region.readers:
        roots = found.roots(port.numbers)
        np.maximum.at(ranges, roots, largest[port.value])
        np.maximum.at(uses, roots, magnitudes(port))
    return ranges[region.channels], uses[region.channels]


def _factors(
    region: Region, found: Channels, ranges: np.ndarray, uses: np.ndarray, exponent: float
) -> np.ndarray:
    """What each channel is divided by, float32, 1 for the largest."""
    alive = (ranges > 0) & (uses > 0)
    if not alive.any():
        return np.ones(len(ranges), np.float32)
    raw = np.where(alive, np.maximum(ranges, 1e-12) ** exponent / np.maximum(uses, 1e-12) ** (1 - exponent), 0)
    factors = np.where(alive, np.maximum(raw / raw.max(), 1 / _MOST), 1)
    bounds = _bounds(found)
    bound = np.array([bounds.get(number, np.inf) for number in region.channels])
    least = np.where(np.isfinite(bound), np.minimum(1, _HEADROOM * ranges / bound), 0)
    return np.maximum(factors, least).astype(np.float32)


def _bounds(found: Channels) -> dict[int, float]:
    bounds: dict[int, float] = {}
    for number, bound in found.bounds.items():
        root = found.find(number)
        bounds[root] = min(bound, bounds.get(root, np.inf))
    return bounds


def _error(
    region: Region,
    found: Channels,
    factors: np.ndarray,
    read: Mapping[ir.Node, np.ndarray],
    exact: Mapping[ir.Node, np.ndarray],
    runner: NodeRunner,
) -> float:
    """Sum over the readers of the mean square error of their quantised results, over their variance."""
    total = 0.0
    for port in region.readers:
        own = factors[found.roots(port.numbers)]
        scaled = read[port.node] / _along(own, port)
        rounded = grid_of(float(scaled.min()), float(scaled.max())).round(scaled)
        constants = scaled_parameters(port, own)
        if product_of(port.node) is not None:
            weight, axis = constants[1].astype(np.float32), weight_axis(port.node)
            constants[1] = round_weights(weight, weight_scales(weight, axis), axis).dequantise()
        result = runner.run(port.node, {0: rounded}, {i: a.astype(np.float32) for i, a in constants.items()})[0]
        wanted = exact[port.node]
        total += float(np.square(result - wanted).mean() / max(float(wanted.var()), 1e-20))
    return total


def _apply(found: Channels, factors: np.ndarray, graph: ir.Graph) -> None:
    for ports, change in ((found.writers, divide_outputs), (found.readers, multiply_inputs)):
        for port in ports:
            own = factors[found.roots(port.numbers)]
            if (own != 1).any():
                change(port, own, graph)


def _along(factors: np.ndarray, port: Port) -> np.ndarray:
    """``factors`` in the shape that meets [samples, *shape] at the channels."""
    shape = [1] * (len(shape_of(port.value)) + 1)
    shape[port.axis + 1] = -1
    return factors.reshape(shape)
