"""Layers that need more than 8 bits, where 8 bits everywhere would leave too much noise in the output.

A classifier's choice survives noise that a detector's boxes or a mask do not, so this is for outputs that are maps. The
tensors whose rounding alone makes most of the noise get 16 bits, and the products whose weights make most of it stay
float where they are few of the multiplications and of the bytes; those come first that take away most noise for their
work. It goes on to ``_LEAST`` dB whatever it takes; for pictures and masks, whose every pixel counts, to ``_FINE`` dB
within a budget.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import log10, prod
from typing import Any

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
from edgec.passes.quantize.products import product_of
from edgec.passes.quantize.ranges import Range, Ranges
from edgec.passes.quantize.tape import few

_LEAST = 24.0
"""dB that the outputs are to have on samples: 20, and what unseen inputs may cost."""
_FINE = 34.0
"""The same for pictures and masks: the borders between classes hardly move."""
_BUDGET = 0.6
"""What may be spent for that, as a share of the work of all layers that read integers. Sixteen bits at most double the
time of a layer."""
_PIXELS = 1 / 16
"""Positions of an output from which on it is a picture or a mask, as a share of the input's."""

_OVER_WEIGHTS = 1.3
"""How much more noise than the weights alone make is never worth more bits for activations."""

_SAMPLES = 16
"""Samples on which tensors are told apart."""
_JUDGED = 128
"""Samples on which the noise is judged: few of them make most of it."""
_HEADROOM = 4.0
"""How much wider the grids of 16 bits are, against which those of 8 bits are measured."""
_ELEMENT_WORK = 50
"""MACs that an element of a result counts as."""
_FLOAT_WORK = 3
"""How many more integer MACs a MAC in floats takes the time of."""
_MOST_FLOAT = 0.15
"""The share of all MACs that may become float."""
_MOST_BYTES = 0.4
"""By what share of their bytes in integers the weights may grow: one that stays float takes four times as many."""


@dataclass(frozen=True)
class _Promotion:
    """One that can be made: of which nodes to which precision, the ``noise`` that goes with it, and what it takes:
    ``work``, and MACs that become float and bytes of their weights."""

    nodes: tuple[ir.Node, ...]
    precision: str
    noise: float
    work: float
    macs: int = 0
    bytes: int = 0


@dataclass
class Promoter:
    """Chooses what gets more than 8 bits, in rounds: what a choice makes of the noise is only estimated before.

    Attributes:
        model: the float model.
        samples: inputs by name.
        tell: told how many of how many tensors, and of how many weights, were tried.
    """

    model: ir.Model
    samples: Sequence[Sample]
    tell: Callable[[int, int], None]
    _roundings: dict[ir.Value, float] = field(default_factory=dict)
    _weights: dict[ir.Node, float] = field(default_factory=dict)

    def choose(
        self, placement: Placement, ranges: Ranges, fits: Mapping[ir.Node, Fit], emitted: Emitted
    ) -> dict[ir.Node, str]:
        """The precision, ``int16`` or ``float``, of the nodes that are to have more bits than they have.

        Args:
            placement: of the integers.
            ranges: of their groups.
            fits: the integer weights.
            emitted: made of these.
        """
        if not any(map(_is_map, self.model.graph.outputs)) or obstacle_to_opset(self.model) is not None:
            return {}
        graph, least = self.model.graph, _power(_LEAST)
        aim = _power(_FINE) if _is_picture(graph) else least
        budget = _Budget.of(graph, placement)
        noise = _noise(self.model, emitted.model, self.samples)
        if noise <= aim or (noise <= least and budget.work <= 0):
            return {}
        options, by_weights = self._options(placement, ranges, fits, emitted, noise)
        found: dict[ir.Node, str] = {}
        for each in sorted(options, key=lambda each: -each.noise / each.work):
            if noise <= aim:
                break
            needed = noise > max(least, _OVER_WEIGHTS * by_weights)
            if not budget.allows(each, needed):
                continue
            budget.spend(each)
            noise -= each.noise
            if each.precision == "float":
                by_weights -= each.noise
            found |= {node: each.precision for node in each.nodes if found.get(node) != "float"}
        return found

    def _options(
        self, placement: Placement, ranges: Ranges, fits: Mapping[ir.Node, Fit], emitted: Emitted, noise: float
    ) -> tuple[list[_Promotion], float]:
        """What can be promoted, and how much of the ``noise`` of the outputs the weights make."""
        chosen = few(self.model.graph, self.samples, _SAMPLES)
        prediction = Prediction(ModelRunner(self.model).run_all(chosen))

        def noise_of(model: ir.Model) -> float:
            return prediction.noise(ModelRunner(model).run_all(chosen))

        floats = replace(placement, bits={}, outputs={})
        together = max(noise_of(emitted.model), 1e-20)
        by_weights = noise * min(noise_of(emit(self.model, floats, ranges, fits).model) / together, 1.0)
        self._measure_roundings(placement, ranges, chosen, prediction)
        for done, (node, fit) in enumerate(fits.items(), 1):
            if node not in self._weights:
                self._weights[node] = noise_of(emit(self.model, floats, ranges, {node: fit}).model)
            self.tell(done, len(fits))
        eights = [root for root, bits in ranges if bits == 8]
        words = _shares({root: self._roundings[root] for root in eights}, noise - by_weights)
        weights = _shares({node: self._weights[node] for node in fits if (node, 0) in placement.bits}, by_weights)
        work, readers = _work(placement), _readers(placement)
        return [
            *(_Promotion(tuple(readers[root]), "int16", words[root], work[root]) for root in eights if root in work),
            *(
                _Promotion((node,), "float", weights[node], _float_work(node), node_macs(node), _float_bytes(node))
                for node in weights
            ),
        ], by_weights

    def _measure_roundings(
        self, placement: Placement, ranges: Ranges, samples: Sequence[Sample], prediction: Prediction
    ) -> None:
        """The noise that rounding one group of values at 8 bits makes alone, by the group's representative.

        All others are at 16 bits meanwhile, and so is that one, but for its steps: one session serves all groups. The
        ranges are wider than at 8 bits, so that what these clip of one tensor is not counted for all others.
        """
        eights = [(root, each.grid.scale) for (root, bits), each in ranges.items() if bits == 8]
        eights = [(root, scale) for root, scale in eights if root not in self._roundings]
        if not eights:
            return
        ends = {root: [_HEADROOM * end for end in each.grid.range] for (root, _), each in ranges.items()}
        observers = {root: each.observer for (root, _), each in ranges.items()}
        fine = {(root, 16): Range(grid_between(low, high, 16), observers[root]) for root, (low, high) in ends.items()}
        whole = emit(self.model, replace(placement, bits=dict.fromkeys(placement.bits, 16)), fine, {})
        runner = ModelRunner(whole.model, open_constants=list(whole.scales.values()))
        for done, (root, scale) in enumerate(eights, 1):
            coarse = {whole.scales[root, 16]: np.array(scale, np.float32)}
            self._roundings[root] = prediction.noise(runner.run_all(samples, coarse))
            self.tell(done, len(eights))


@dataclass
class _Budget:
    """What may still be spent for more than the least: work, and MACs and bytes of products that become float."""

    work: float
    macs: float
    bytes: float

    @classmethod
    def of(cls, graph: ir.Graph, placement: Placement) -> _Budget:
        """What is left by a placement some of whose layers have more than 8 bits."""
        floats = [node for node in graph if placement.roles[node] is Role.PRODUCT and (node, 0) not in placement.bits]
        spent = sum(_work(placement, 16).values()) + sum(map(_float_work, floats))
        return cls(
            _BUDGET * sum(_work(placement).values()) - spent,
            _MOST_FLOAT * sum(map(node_macs, graph)) - sum(map(node_macs, floats)),
            _MOST_BYTES * sum(map(_weights, graph)) - sum(map(_float_bytes, floats)),
        )

    def allows(self, each: _Promotion, needed: bool) -> bool:
        """Whether ``each`` can be paid; work is no matter where it is ``needed``."""
        floats_fit = each.macs <= max(self.macs, 0) and each.bytes <= max(self.bytes, 0)
        return floats_fit and (needed or each.work <= self.work)

    def spend(self, each: _Promotion) -> None:
        """Take off what it costs."""
        self.work -= each.work
        self.macs -= each.macs
        self.bytes -= each.bytes


def output_decibels(model: ir.Model, quantised: ir.Model, samples: Sequence[Sample]) -> float:
    """The signal-to-noise ratio of the outputs of ``quantised`` on samples, of the worst of them, in dB."""
    return -10 * log10(max(_noise(model, quantised, samples), 1e-20))


def _noise(model: ir.Model, quantised: ir.Model, samples: Sequence[Sample]) -> float:
    chosen = samples[:: -(-len(samples) // _JUDGED)]
    return Prediction(ModelRunner(model).run_all(chosen)).noise(ModelRunner(quantised).run_all(chosen))


def _power(decibels: float) -> float:
    """The noise that leaves so many ``decibels``."""
    return float(10 ** (-decibels / 10))


def _shares(alone: Mapping[Any, float], together: float) -> dict[Any, float]:
    """What each has of what all make ``together``, by what it makes ``alone``."""
    scale = together / max(sum(alone.values()), 1e-20)
    return {key: scale * noise for key, noise in alone.items()}


def _work(placement: Placement, bits: int | None = None) -> dict[ir.Value, float]:
    """What the readers of each group take, those with ``bits`` or all, by the group's representative."""
    work: dict[ir.Value, float] = {}
    for (node, index), own in placement.bits.items():
        if bits in (None, own):
            root = _group(placement, node, index)
            work[root] = work.get(root, 0) + node_macs(node) + _ELEMENT_WORK * _elements(node.outputs)
    return work


def _float_work(node: ir.Node) -> float:
    """What a product takes more in floats, its borders included."""
    return _FLOAT_WORK * node_macs(node) + _ELEMENT_WORK * (_elements(node.inputs[:1]) + _elements(node.outputs))


def _weights(node: ir.Node) -> int:
    """How many weights a product has, and none what is no product."""
    product = product_of(node)
    return 0 if product is None else int(product.weight.size)


def _float_bytes(node: ir.Node) -> int:
    """What the weights of a product take more in floats."""
    return 3 * _weights(node)


def _elements(values: Sequence[ir.Value | None]) -> int:
    return sum(prod(shape_of(value)) for value in values if value is not None and value.name)


def _readers(placement: Placement) -> dict[ir.Value, list[ir.Node]]:
    """The nodes that read each group and have a precision of their own, by the group's representative."""
    readers: dict[ir.Value, list[ir.Node]] = {}
    for node, index in placement.bits:
        found = readers.setdefault(_group(placement, node, index), [])
        if placement.roles[node] is not Role.MOVE and node not in found:
            found.append(node)
    return readers


def _is_map(value: ir.Value) -> bool:
    """Whether more than one axis of ``value`` has an extent."""
    return sum(extent > 1 for extent in shape_of(value)) > 1


def _is_picture(graph: ir.Graph) -> bool:
    """Whether an output has about as many positions as the inputs have."""
    largest = max((_positions(value) for value in graph.inputs), default=1)
    return any(_positions(value) >= max(_PIXELS * largest, 2) for value in graph.outputs)


def _positions(value: ir.Value) -> int:
    """Positions of each channel [batch, channels, rows, ...]; 1 for what has no rows and columns."""
    shape = shape_of(value)
    return prod(shape[2:]) if len(shape) > 3 else 1


def _group(placement: Placement, node: ir.Node, index: int) -> ir.Value:
    value = node.inputs[index]
    assert value is not None
    return placement.group[value]
