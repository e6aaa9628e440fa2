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
from functools import partial

import numpy as np
import onnx_ir as ir

from edgec.frontend.values import constant_of, shape_of
from edgec.passes.quantize.channels import (
    Channels,
    Port,
    Tap,
    divide_outputs,
    magnitudes,
    multiply_inputs,
    scaled_parameters,
    trace,
)
from edgec.passes.quantize.execution import NodeRunner, Sample
from edgec.passes.quantize.grid import grid_between, round_weights, weight_scales
from edgec.passes.quantize.operators import weight_axis
from edgec.passes.quantize.products import product_of
from edgec.passes.quantize.recipe import Recipe
from edgec.passes.quantize.statistics import observe
from edgec.passes.quantize.tape import Tape, few

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
        taps: sums and products that read them on the way.
        channels: the numbers that can be scaled.
    """

    readers: list[Port]
    taps: list[Tap]
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
            region = grouped.setdefault(find(numbers[0]), Region([], [], []))
            region.readers.append(port)
            region.channels += [n for n in numbers if n not in region.channels]
    for tap in found.taps:
        numbers = [n for n in found.roots(tap.numbers).tolist() if n]
        if numbers and (owner := grouped.get(find(numbers[0]))):
            owner.taps.append(tap)
    return list(grouped.values())


def equalised(
    model: ir.Model, samples: Sequence[Sample], recipe: Recipe, tell: Callable[[str, int, int], None]
) -> int:
    """Scale in place what the channels of ``model`` gain by on ``samples``; how many regions did.

    Layers that ``recipe`` leaves float do not take part. ``tell`` is told (what, done, total).
    """
    found = trace(model, recipe.layers)
    axes = {port.value: port.axis for port in found.readers} | {tap.value: tap.axis for tap in found.taps}
    seen = observe(model, samples, axes, progress=lambda done: tell("channels", done, len(samples)))
    return _equalise(model, found, seen.channels, samples, partial(tell, "equalisation"))


def _equalise(
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
    kept = {value for region in waiting.values() for value in _values_of(region)}
    runner, tape = NodeRunner(model), Tape(model.graph, few(model.graph, samples, _SAMPLES))
    seen: dict[ir.Value, np.ndarray] = {v: tape[v] for v in model.graph.inputs if v in kept}
    factors = np.ones(found.count, np.float32)
    changed = 0
    nodes = list(model.graph)
    for done, node in enumerate(nodes, 1):
        if node in waiting:
            changed += _choose(waiting[node], found, factors, largest, seen, runner)
            for value in _values_of(waiting.pop(node)) - {v for region in waiting.values() for v in _values_of(region)}:
                del seen[value]
        outputs = runner.run(node, tape.inputs(node))
        seen.update({v: array for v, array in zip(node.outputs, outputs, strict=True) if v in kept})
        tape.store(node, outputs)
        if progress:
            progress(done, len(nodes))
    _apply(found, factors, model.graph)
    return changed


def _values_of(region: Region) -> set[ir.Value]:
    """What has to be seen to choose the factors of ``region``."""
    gates = {tap.gate for tap in region.taps if tap.gate is not None and tap.gate.const_value is None}
    return {port.value for port in region.readers} | {tap.value for tap in region.taps} | gates


def _choose(
    region: Region,
    found: Channels,
    factors: np.ndarray,
    largest: Mapping[ir.Value, np.ndarray],
    seen: Mapping[ir.Value, np.ndarray],
    runner: NodeRunner,
) -> bool:
    """Set the factors of a region in place to the ones with the least error; False where none is worth it."""
    exact = {port.node: runner.run(port.node, {0: seen[port.value]})[0] for port in region.readers}
    best, chosen = _GAIN * _error(region, found, factors, seen, exact, runner), None
    uses = _spread(region.readers, [magnitudes(port) for port in region.readers], found)[region.channels]
    choices: list[list[Port | Tap]] = [[*region.readers], [*region.readers, *region.taps]]
    for sources in choices[: 2 if region.taps else 1]:
        ranges = _spread(sources, [largest[source.value] for source in sources], found)[region.channels]
        for exponent in _EXPONENTS:
            tried = factors.copy()
            tried[region.channels] = _factors(region, found, ranges, uses, exponent)
            error = _error(region, found, tried, seen, exact, runner)
            if error < best:
                best, chosen = error, tried
    if chosen is None:
        return False
    factors[:] = chosen
    return True


def _spread(places: Sequence[Port | Tap], values: Sequence[np.ndarray], found: Channels) -> np.ndarray:
    """The largest of the ``values`` of the channels at all ``places``, by number."""
    result = np.zeros(found.count)
    for place, each in zip(places, values, strict=True):
        np.maximum.at(result, found.roots(place.numbers), each)
    return result


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
    seen: Mapping[ir.Value, np.ndarray],
    exact: Mapping[ir.Node, np.ndarray],
    runner: NodeRunner,
) -> float:
    """Sum over the readers of the mean square error of their quantised results, over their variance."""
    noises = [(found.roots(tap.numbers), _tap_noise(tap, found, factors, seen)) for tap in region.taps]
    total = 0.0
    for port in region.readers:
        roots = found.roots(port.numbers)
        scaled = seen[port.value] / _along(factors[roots], port)
        rounded = _rounded(scaled)
        for numbers, noise in noises:
            if noise.shape == rounded.shape and np.array_equal(numbers, roots):
                rounded = rounded + noise
        constants = {i: a.astype(np.float32) for i, a in scaled_parameters(port, factors[roots]).items()}
        if product_of(port.node) is not None:
            axis = weight_axis(port.node)
            constants[1] = round_weights(constants[1], weight_scales(constants[1], axis), axis).dequantise()
        result, wanted = runner.run(port.node, {0: rounded}, constants)[0], exact[port.node]
        total += float(np.square(result - wanted).mean() / max(float(wanted.var()), 1e-20))
    return total


def _tap_noise(tap: Tap, found: Channels, factors: np.ndarray, seen: Mapping[ir.Value, np.ndarray]) -> np.ndarray:
    """What rounding the term or factor adds to the result."""
    scaled = seen[tap.value] / _along(factors[found.roots(tap.numbers)], tap)
    noise = _rounded(scaled) - scaled
    if tap.gate is None:
        return noise
    constant = constant_of(tap.gate)
    return noise * (seen[tap.gate] if constant is None else constant)


def _rounded(x: np.ndarray) -> np.ndarray:
    """``x`` on the 8-bit grid of its range."""
    return grid_between(float(x.min()), float(x.max())).round(x)


def _apply(found: Channels, factors: np.ndarray, graph: ir.Graph) -> None:
    for ports, change in ((found.writers, divide_outputs), (found.readers, multiply_inputs)):
        for port in ports:
            own = factors[found.roots(port.numbers)]
            if (own != 1).any():
                change(port, own, graph)


def _along(factors: np.ndarray, port: Port | Tap) -> np.ndarray:
    """``factors`` in the shape that meets [samples, *shape] at the channels."""
    shape = [1] * (len(shape_of(port.value)) + 1)
    shape[port.axis + 1] = -1
    return factors.reshape(shape)
