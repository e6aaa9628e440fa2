"""The pruning of a graph from end to end: dead units, scores, allocation, removal, repair."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from edgec.errors import EdgecError, Refusal
from edgec.frontend.shapes import infer_shapes
from edgec.passes.base import Pass
from edgec.passes.prune.activations import Sample
from edgec.passes.prune.allocation import Choice, Limits, Offers, allocate
from edgec.passes.prune.blocks import check_fit, find_blocks, fit_blocks
from edgec.passes.prune.compensation import Statistics, compensate, depth_mask, from_moments, from_weights
from edgec.passes.prune.cost import Cost, Measure, Rates
from edgec.passes.prune.coupling import Coupling, Unit, find_coupling
from edgec.passes.prune.dead import absorb, dead_units
from edgec.passes.prune.low_rank import RankCurve, measure_ranks
from edgec.passes.prune.products import drop_zero_biases, measure_moments, own_biases
from edgec.passes.prune.removal import Kept, remove_units
from edgec.passes.prune.repair import refit
from edgec.passes.prune.scores import Evidence, score_units
from edgec.passes.prune.sensitivity import Curve, measure_curves


@dataclass(frozen=True)
class Settings:
    """How a model is pruned.

    Attributes:
        fraction: of the measure that goes, 0 to below 1.
        measure: what the budget counts.
        rates: nanoseconds that a MAC takes on the target, by the node's name; MACs are counted in time with them.
        tokens: the share of the MACs that goes first by merging tokens (:mod:`edgec.passes.prune.tokens`).
        pixels: the share that goes first by smaller images (:mod:`edgec.passes.prune.resolution`).
        score: one of :data:`edgec.passes.prune.scores.SCORES`.
        limits: what every layer keeps.
        low_rank: whether products may become two thin ones, where sensitivities are measured and repaired.
        repair: whether the weights that stay are fitted to the calibration samples.
        rows: positions of each sample that moments and fits look at.
        curve_samples: samples that sensitivity curves are measured on; without curves for 0.
        mask_samples: samples that scores by masking run for each unit.
        blockwise: whether blocks are fitted then as a whole, in torch (:mod:`edgec.passes.prune.blocks`).
        distil_minutes: how long the pruned model then learns from the original in torch, 0 for not at all.
        seed: of everything that is drawn.
    """

    fraction: float
    measure: Measure = "macs"
    rates: Rates | None = None
    tokens: float = 0.0
    pixels: float = 0.0
    score: str = "obs"
    limits: Limits = field(default_factory=Limits)
    low_rank: bool = True
    repair: bool = True
    rows: int = 64
    curve_samples: int = 64
    mask_samples: int = 4
    blockwise: bool = False
    distil_minutes: float = 0.0
    seed: int = 0


class Prune(Pass):
    """Removes coupled channels until a budget is met.

    Dead units go first, at no loss. What they save counts towards the budget.
    """

    name: ClassVar[str] = "prune"

    def __init__(self, settings: Settings, samples: Sequence[Sample] = ()) -> None:
        if not 0 <= settings.fraction < 1:
            raise EdgecError(f"--prune {settings.fraction:g} is no share to remove; give one from 0 to below 1")
        self.settings = settings
        self.samples = samples
        self.curves: Sequence[Curve] = ()
        self.ranks: Sequence[RankCurve] = ()

    def transform(self, model: ir.Model) -> tuple[int, Sequence[Refusal]]:
        settings = self.settings
        if settings.blockwise:
            check_fit(model, self.samples)
        whole = Cost(model, settings.measure, rates=settings.rates).total
        own_biases(model)
        coupling, dead = remove_dead(model)
        cost = Cost(model, settings.measure, coupling.linears, settings.rates)
        changed = dead
        if cost.total > whole * (1 - settings.fraction):
            statistics = self._input_statistics(model, coupling)
            offers = self._offers(model, coupling, statistics)
            choice = allocate(cost, offers, whole, settings.fraction, settings.limits)
            self._apply(model, coupling, choice, statistics)
            changed += len(choice.units) + len(choice.splits)
        drop_zero_biases(model)
        RemoveUnusedNodesPass()(model)
        infer_shapes(model)
        return changed, coupling.refusals

    def _offers(self, model: ir.Model, coupling: Coupling, statistics: Statistics) -> Offers:
        """What can go, by scores and sensitivities."""
        settings = self.settings
        evidence = Evidence(model, coupling, self.samples[: settings.mask_samples], statistics, settings.seed)
        scores = score_units(evidence, settings.score)
        used = self._judged()
        if not used:
            return Offers(coupling.groups, scores)
        compensating = settings.repair or settings.score == "obs"
        known = statistics if compensating else {}
        self.curves = measure_curves(model, coupling, scores, used, known)
        if settings.low_rank and settings.repair:
            multiple = settings.limits.multiple
            self.ranks = measure_ranks(model, coupling.linears, used, statistics, multiple)
        return Offers(coupling.groups, scores, self.curves, self.ranks)

    def _apply(self, model: ir.Model, coupling: Coupling, choice: Choice, statistics: Statistics) -> None:
        """Cut the units out, and fit and factorise what is left."""
        settings, original = self.settings, model.clone()
        kept = _kept_channels(coupling, choice.units)
        blocks = find_blocks(model, coupling.linears, Kept(choice.units)) if settings.blockwise else ()
        if settings.score == "obs":
            self._compensate(coupling, choice.units, statistics)
        remove_units(model, choice.units)
        if settings.repair and self.samples:
            linears, originals = find_coupling(model).linears, find_coupling(original).linears
            splits = {str(linear.node.name): split for linear, split in choice.splits.items()}
            refit(model, linears, original, originals, kept, splits, self.samples, settings.rows, settings.seed)
            infer_shapes(model)
        if settings.blockwise:
            fit_blocks(model, find_coupling(model).linears, original, blocks, self.samples, settings.seed)

    def _compensate(self, coupling: Coupling, units: Sequence[Unit], statistics: Statistics) -> None:
        """Let the readers of what goes make up for it, which is what the score counted on."""
        for linear in dict.fromkeys(linear for group in coupling.groups for linear in group.mixers):
            gone = depth_mask(linear, units)
            if linear in statistics and len(linear.weight.uses()) == 1 and gone.any():
                compensate(linear, statistics[linear], gone)

    def _judged(self) -> Sequence[Sample]:
        """The samples for sensitivities: the last, a quarter at most, so that the statistics come from others."""
        count = min(self.settings.curve_samples, max(1, len(self.samples) // 4)) if self.samples else 0
        return self.samples[len(self.samples) - count :]

    def _input_statistics(self, model: ir.Model, coupling: Coupling) -> Statistics:
        """Of the inputs of all products; none where nothing asks for them."""
        if self.settings.score != "obs" and not (self.settings.repair and self._judged()):
            return {}
        if not self.samples:
            return from_weights(coupling)
        linears = [linear for linear in coupling.linears if linear.groups == 1]
        settings = self.settings
        others = self.samples[: max(1, len(self.samples) - len(self._judged()))]
        return from_moments(measure_moments(model, linears, others, settings.rows, settings.seed))


def remove_dead(model: ir.Model) -> tuple[Coupling, int]:
    """Cut dead units out of ``model`` until none is left; the coupling of what remains, and how many went.

    Its biases must be its own (:func:`edgec.passes.prune.products.own_biases`).
    """
    coupling, count = find_coupling(model), 0
    while units := dead_units(model, coupling):
        absorb(model, coupling, units)
        remove_units(model, units)
        coupling, count = find_coupling(model), count + len(units)
    return coupling, count


def _kept_channels(coupling: Coupling, units: Sequence[Unit]) -> dict[str, np.ndarray]:
    """By the name of each product, bool for every output channel: whether it stays."""
    kept = Kept(units)
    return {str(linear.node.name): kept.mask(linear.node.outputs[0], linear.output_axis) for linear in coupling.linears}
