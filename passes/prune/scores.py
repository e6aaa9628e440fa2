"""How much a unit is worth: the lower its score, the sooner it goes.

==========  =====================================================================================================
magnitude   norms of all weights that a unit cuts, layer by layer over the layer's mean (as group norms do in
            DepGraph: Fang et al. 2023); L2, or L1 as ``magnitude-l1``
norm-scale  |γ| of the batch norms that a unit passes (network slimming: Liu et al. 2017)
obs         what readers' outputs lose after the other weights have made up for the unit (optimal brain
            surgeon), one unit after the other; from activations, or from the weights in front where there are no
            samples
trajectory  how far later layers' outputs move when the unit is masked (as in OPTIN)
relevance   by how much the predicted class' score falls when the unit is masked, up or down: occlusion, which
            needs no gradients (after pruning by explaining: Yeom et al. 2021)
random      the baseline
==========  =====================================================================================================
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from edgec.errors import EdgecError
from edgec.frontend.values import constant_of
from edgec.passes.prune.activations import Sample, open_session
from edgec.passes.prune.compensation import Statistics, losses
from edgec.passes.prune.coupling import Coupling, Group, Unit
from edgec.passes.prune.masking import mask_units
from edgec.passes.prune.rules import Linear

Scores = Mapping[Unit, float]


@dataclass(frozen=True)
class Evidence:
    """What scores can look at.

    Attributes:
        model: the graph.
        coupling: its units.
        samples: calibration inputs; none where there are none.
        statistics: of the products' inputs.
        seed: of the random score.
    """

    model: ir.Model
    coupling: Coupling
    samples: Sequence[Sample]
    statistics: Statistics
    seed: int


def score_units(evidence: Evidence, name: str) -> Scores:
    """A score for every unit that the method ``name`` can judge; raises :class:`EdgecError` where it cannot."""
    if name not in SCORES:
        raise EdgecError(f"there is no score '{name}'; the scores are {', '.join(SCORES)}")
    if name in NEED_SAMPLES and not evidence.samples:
        raise EdgecError(f"--score {name} looks at activations; give it samples with --calib, or use --score magnitude")
    found = SCORES[name](evidence)
    if evidence.coupling.groups and not found:
        raise EdgecError(f"--score {name} finds nothing to judge in this model; use --score magnitude")
    return found


def _magnitude(order: int) -> Callable[[Evidence], Scores]:
    def score(evidence: Evidence) -> Scores:
        return _by_group(evidence.coupling, lambda group: _norms(group, order))

    return score


def _by_group(coupling: Coupling, judge: Callable[[Group], np.ndarray]) -> dict[Unit, float]:
    return {
        unit: float(value) for group in coupling.groups for unit, value in zip(group.units, judge(group), strict=True)
    }


def _norms(group: Group, order: int) -> np.ndarray:
    """float64 [units]: the sum over layers of the norm of what is cut, each layer's mean being 1."""
    total = np.zeros(len(group.units))
    cuts = {(each.weight, each.out_axis) for each in group.producers}
    cuts |= {(each.weight, each.in_axis) for each in group.mixers}
    for weight, axis in sorted(cuts, key=lambda cut: (str(cut[0].name), cut[1])):
        array = np.abs(_constant(weight).astype(np.float64)) ** order
        slices = np.array([array.take(unit.cuts[weight, axis], axis).sum() for unit in group.units]) ** (1 / order)
        total += slices / (slices.mean() or 1.0)
    return total / max(len(cuts), 1)


def _norm_scale(evidence: Evidence) -> Scores:
    """Only units that pass a batch norm are judged; the others stay."""
    found: dict[Unit, float] = {}
    scales = [node.inputs[1] for node in evidence.model.graph if node.op_type == "BatchNormalization"]
    for group in evidence.coupling.groups:
        for unit in group.units:
            gammas = [
                np.abs(_constant(scale)[unit.cuts[scale, 0]]).mean()
                for scale in scales
                if scale is not None and scale.const_value is not None and (scale, 0) in unit.cuts
            ]
            if gammas:
                found[unit] = float(np.mean(gammas))
    return found


def _obs(evidence: Evidence) -> Scores:
    """Shares of the variance that readers lose; units that no product reads are judged by their own energy."""
    found: dict[Unit, float] = {}
    for group in evidence.coupling.groups:
        known = [linear for linear in dict.fromkeys(group.mixers) if linear in evidence.statistics]
        readers = {linear: evidence.statistics[linear].covariance for linear in known}
        shares = losses(readers, group.units) if readers else _energies(group)
        found.update(zip(group.units, map(float, shares), strict=True))
    return found


def _energies(group: Group) -> np.ndarray:
    """float64 [units]: the share of the producers' squared weights."""
    total = np.zeros(len(group.units))
    linears: list[tuple[Linear, int]] = [(each, each.out_axis) for each in group.producers]
    linears += [(each, each.in_axis) for each in group.mixers]
    for linear, axis in linears:
        array = np.square(_constant(linear.weight).astype(np.float64))
        whole = array.sum() or 1.0
        total += [array.take(unit.cuts[linear.weight, axis], axis).sum() / whole for unit in group.units]
    return total / max(len(linears), 1)


def _trajectory(evidence: Evidence) -> Scores:
    """Squared movement of every later product's output and of the model's, over their own squares."""
    later = [str(linear.node.outputs[0].name) for linear in evidence.coupling.linears]
    return _by_masking(evidence, later, _movement)


def _movement(found: Sequence[np.ndarray], wanted: Sequence[np.ndarray]) -> float:
    shares = [
        float(np.square(a.astype(np.float64) - b).sum()) / (float(np.square(b.astype(np.float64)).sum()) or 1.0)
        for a, b in zip(found, wanted, strict=True)
    ]
    return float(np.mean(shares))


def _relevance(evidence: Evidence) -> Scores:
    """|fall| of the largest number of the first output."""
    return _by_masking(evidence, [], _fall)


def _fall(found: Sequence[np.ndarray], wanted: Sequence[np.ndarray]) -> float:
    place = int(wanted[0].argmax())
    return abs(float(wanted[0].reshape(-1)[place]) - float(found[0].reshape(-1)[place]))


def _by_masking(
    evidence: Evidence, names: Sequence[str], judge: Callable[[Sequence[np.ndarray], Sequence[np.ndarray]], float]
) -> dict[Unit, float]:
    """The mean of ``judge`` over samples: outputs (and the values called ``names``) with and without a unit."""
    masked = mask_units(evidence.model, evidence.coupling)
    graph = masked.model.graph
    values = {value.name: value for node in graph for value in node.outputs}
    graph.outputs.extend(values[name] for name in names if values[name] not in graph.outputs)
    session = open_session(masked.model)
    ones = masked.feeds()
    wanted = [session.run(None, {**sample, **ones}) for sample in evidence.samples]
    found = {}
    for unit in (unit for group in evidence.coupling.groups for unit in group.units):
        feeds = masked.feeds((unit,))
        runs = [session.run(None, {**sample, **feeds}) for sample in evidence.samples]
        found[unit] = float(np.mean([judge(a, b) for a, b in zip(runs, wanted, strict=True)]))
    return found


def _random(evidence: Evidence) -> Scores:
    rng = np.random.default_rng(evidence.seed)
    return _by_group(evidence.coupling, lambda group: rng.random(len(group.units)))


def _constant(value: ir.Value) -> np.ndarray:
    array = constant_of(value)
    assert array is not None
    return array


SCORES: Mapping[str, Callable[[Evidence], Scores]] = {
    "magnitude": _magnitude(2),
    "magnitude-l1": _magnitude(1),
    "norm-scale": _norm_scale,
    "obs": _obs,
    "trajectory": _trajectory,
    "relevance": _relevance,
    "random": _random,
}

NEED_SAMPLES = ("trajectory", "relevance")
"""Scores that mean nothing without activations."""
