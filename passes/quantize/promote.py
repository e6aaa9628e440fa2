"""Layers that need 16 bits, where 8 bits everywhere would leave too much noise in the output.

A classifier's choice survives noise that a detector's boxes or a mask do not, so this is for outputs that are maps. The
tensors whose rounding alone makes most of the noise for the work of their readers get 16 bits, as few as bring it down
to ``_LEAST`` dB, or near what the weights alone leave.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from math import log10, prod

import numpy as np
import onnx_ir as ir

from edgec.frontend.summary import node_macs
from edgec.frontend.values import shape_of
from edgec.passes.quantize.emit import Emitted, emit, obstacle_to_opset
from edgec.passes.quantize.execution import ModelRunner, Sample
from edgec.passes.quantize.grid import grid_between
from edgec.passes.quantize.learn import Fit
from edgec.passes.quantize.operators import Role
from edgec.passes.quantize.placement import Placement
from edgec.passes.quantize.prediction import Prediction
from edgec.passes.quantize.ranges import Range, Ranges
from edgec.passes.quantize.tape import few

_LEAST = 24.0
"""dB that the outputs are to have on samples: 20, and what unseen inputs may cost."""

_OVER_WEIGHTS = 1.3
"""How much more noise than the weights alone make is never worth more bits for activations."""

_SAMPLES = 24
"""Samples on which tensors are told apart."""
_JUDGED = 128
"""Samples on which the noise is judged: few of them make most of it."""
_HEADROOM = 4.0
"""How much wider the grids of 16 bits are, against which those of 8 bits are measured."""
_ELEMENT_WORK = 50
"""MACs that an element of a result counts as."""


def promote(
    model: ir.Model,
    placement: Placement,
    ranges: Ranges,
    fits: Mapping[ir.Node, Fit],
    emitted: Emitted,
    samples: Sequence[Sample],
    progress: Callable[[int, int], None] | None = None,
) -> list[ir.Node]:
    """The nodes of ``model`` to give 16 bits; ``emitted`` is what it is with 8.

    Args:
        model: the float model.
        placement: of the integers.
        ranges: of their groups.
        fits: the integer weights.
        emitted: made of these.
        samples: inputs by name.
        progress: told how many of how many tensors were tried.
    """
    if not any(map(_is_map, model.graph.outputs)) or obstacle_to_opset(model) is not None:
        return []
    noise, allowed = _noise(model, emitted.model, samples), 10 ** (-_LEAST / 10)
    if noise <= allowed:
        return []
    chosen = few(model.graph, samples, _SAMPLES)
    prediction = Prediction(ModelRunner(model).run_all(chosen))
    shares = _shares(model, placement, ranges, chosen, prediction, progress)
    # what the activations make together, of which each has its share; the rest is the weights'
    only_weights = emit(model, replace(placement, bits={}, outputs={}), ranges, fits).model
    together = max(prediction.noise(ModelRunner(emitted.model).run_all(chosen)), 1e-20)
    by_weights = min(prediction.noise(ModelRunner(only_weights).run_all(chosen)) / together, 1.0)
    scale = noise * (1 - by_weights) / max(sum(shares.values()), 1e-20)
    shares = {root: scale * share for root, share in shares.items()}
    allowed = max(allowed, _OVER_WEIGHTS * by_weights * noise)
    if noise <= allowed:
        return []
    work = _work(placement)
    worst = []
    for root in sorted(shares, key=lambda root: -shares[root] / work[root]):
        if noise <= allowed:
            break
        worst.append(root)
        noise -= shares[root]
    return [
        node
        for (node, index) in placement.bits
        if placement.roles[node] is not Role.MOVE and _group(placement, node, index) in worst
    ]


def output_decibels(model: ir.Model, quantised: ir.Model, samples: Sequence[Sample]) -> float:
    """The signal-to-noise ratio of the outputs of ``quantised`` on samples, of the worst of them, in dB."""
    return -10 * log10(max(_noise(model, quantised, samples), 1e-20))


def _noise(model: ir.Model, quantised: ir.Model, samples: Sequence[Sample]) -> float:
    chosen = samples[:: -(-len(samples) // _JUDGED)]
    return Prediction(ModelRunner(model).run_all(chosen)).noise(ModelRunner(quantised).run_all(chosen))


def _shares(
    model: ir.Model,
    placement: Placement,
    ranges: Ranges,
    samples: Sequence[Sample],
    prediction: Prediction,
    progress: Callable[[int, int], None] | None,
) -> dict[ir.Value, float]:
    """The noise that rounding one group of values at 8 bits makes alone, by the group's representative.

    All others are at 16 bits meanwhile, and so is that one, but for its steps: one session serves all groups. The
    ranges are wider than at 8 bits, so that what these clip of one tensor is not counted for all others.
    """
    ends = {root: [_HEADROOM * end for end in each.grid.range] for (root, _), each in ranges.items()}
    observers = {root: each.observer for (root, _), each in ranges.items()}
    fine = {(root, 16): Range(grid_between(low, high, 16), observers[root]) for root, (low, high) in ends.items()}
    whole = emit(model, replace(placement, bits=dict.fromkeys(placement.bits, 16)), fine, {})
    runner = ModelRunner(whole.model, open_constants=list(whole.scales.values()))
    shares = {}
    eights = [(root, each.grid.scale) for (root, bits), each in ranges.items() if bits == 8]
    for done, (root, scale) in enumerate(eights, 1):
        coarse = {whole.scales[root, 16]: np.array(scale, np.float32)}
        shares[root] = prediction.noise(runner.run_all(samples, coarse))
        if progress:
            progress(done, len(eights))
    return shares


def _work(placement: Placement) -> dict[ir.Value, float]:
    """What the readers of each group take, by the group's representative."""
    work: dict[ir.Value, float] = {}
    for node, index in placement.bits:
        elements = sum(prod(shape_of(value)) for value in node.outputs if value.name)
        root = _group(placement, node, index)
        work[root] = work.get(root, 0) + node_macs(node) + _ELEMENT_WORK * elements
    return work


def _is_map(value: ir.Value) -> bool:
    """Whether more than one axis of ``value`` has an extent."""
    return sum(extent > 1 for extent in shape_of(value)) > 1


def _group(placement: Placement, node: ir.Node, index: int) -> ir.Value:
    value = node.inputs[index]
    assert value is not None
    return placement.group[value]
