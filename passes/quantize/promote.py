"""Layers that need 16 bits, where 8 bits everywhere would leave too much noise in the output.

A classifier's choice survives noise that a detector's boxes or a mask do not, so this is for outputs that are maps. The
tensors whose rounding alone makes most of the noise for the work of their readers get 16 bits, as few as bring it down
to ``_LEAST`` dB.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from math import prod

import numpy as np
import onnx_ir as ir

from edgec.passes.quantize.emit import Emitted, emit, obstacle_to_opset
from edgec.passes.quantize.execution import ModelRunner, Sample
from edgec.passes.quantize.grid import grid_of
from edgec.passes.quantize.operators import Role
from edgec.passes.quantize.placement import Placement
from edgec.passes.quantize.prediction import Prediction
from edgec.passes.quantize.ranges import Range, Ranges
from edgec.passes.quantize.tape import few
from edgec.summary import node_macs
from edgec.values import shape_of

_LEAST = 24.0
"""dB that the outputs are to have on samples: 20, and what unseen inputs may cost."""

_SAMPLES = 24
"""Samples on which tensors are told apart."""
_JUDGED = 128
"""Samples on which the noise is judged: few of them make most of it."""
_ELEMENT_WORK = 50
"""MACs that an element of a result counts as."""


def promote(
    model: ir.Model,
    placement: Placement,
    ranges: Ranges,
    emitted: Emitted,
    samples: Sequence[Sample],
    progress: Callable[[int, int], None] | None = None,
) -> list[ir.Node]:
    """The nodes of ``model`` to give 16 bits; ``emitted`` is what it is with 8.

    Args:
        model: the float model.
        placement: of the integers.
        ranges: of their groups.
        emitted: made of these.
        samples: inputs by name.
        progress: told how many of how many tensors were tried.
    """
    if not any(map(_is_map, model.graph.outputs)) or obstacle_to_opset(model) is not None:
        return []
    noise, allowed = _noise(model, emitted, samples[:: -(-len(samples) // _JUDGED)]), 10 ** (-_LEAST / 10)
    if noise <= allowed:
        return []
    chosen = few(model.graph, samples, _SAMPLES)
    prediction = Prediction(ModelRunner(model).run_all(chosen))
    shares = _shares(model, placement, ranges, chosen, prediction, progress)
    scale = noise / max(prediction.noise(ModelRunner(emitted.model).run_all(chosen)), 1e-20)
    shares = {root: scale * share for root, share in shares.items()}
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


def _noise(model: ir.Model, emitted: Emitted, samples: Sequence[Sample]) -> float:
    return Prediction(ModelRunner(model).run_all(samples)).noise(ModelRunner(emitted.model).run_all(samples))


def _shares(
    model: ir.Model,
    placement: Placement,
    ranges: Ranges,
    samples: Sequence[Sample],
    prediction: Prediction,
    progress: Callable[[int, int], None] | None,
) -> dict[ir.Value, float]:
    """The noise that rounding one group of values at 8 bits makes alone, by the group's representative.

    All others are at 16 bits meanwhile, and so is that one, but for its steps: one session serves all groups.
    """
    fine = {
        (root, 16): Range(grid_of(*each.grid.range, 16), each.observer) for (root, _), each in ranges.items()
    }  # fmt: skip
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
