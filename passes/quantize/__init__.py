"""Post-training quantisation: a float graph and samples in, a standard QDQ graph of the same function out.

The steps, each in the module of its name: equalise channels, place the integers, choose their ranges, learn weights and
biases, promote what needs more, refine the scales by the prediction and learn again with those (unless that does worse
on samples that had no part in it), and quantise the outputs where that costs next to nothing. Where all activations
stay float, only the weights are left to learn.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from edgec.errors import EdgecError
from edgec.passes.activation_dtype import suit_onnxruntime
from edgec.passes.quantize.emit import Emitted, emit, obstacle_to_opset
from edgec.passes.quantize.equalise import equalised
from edgec.passes.quantize.execution import ModelRunner, Sample
from edgec.passes.quantize.learn import Fit, learn
from edgec.passes.quantize.placement import Placement, place
from edgec.passes.quantize.prediction import Prediction
from edgec.passes.quantize.promote import Promoter, output_decibels
from edgec.passes.quantize.ranges import Ranges, choose_ranges
from edgec.passes.quantize.recipe import GROUP_SIZES, OBSERVERS, PRECISIONS, ROUNDINGS, Recipe
from edgec.passes.quantize.refine import refine, unseen
from edgec.passes.quantize.report import LayerQuantization, Lifted, Quantized, TensorRange, describe
from edgec.passes.quantize.salience import salient
from edgec.passes.quantize.statistics import Statistics, observe, observe_groups

__all__ = ["LayerQuantization", "Lifted", "Quantized", "Recipe", "TensorRange", "quantize"]

Progress = Callable[[str, int, int], None]
"""Told (what, done, total) while work goes on."""

_OUTPUT_SHARE = 0.1
"""Outputs are quantised where that alone makes at most this share of the network's error."""

_PROMOTIONS = 3
"""How often layers are given 16 bits: what they make of the noise is only estimated before."""

_JUDGED = 64
"""Samples on which that is judged."""

_SALIENCE = 4
"""One sample of so many judges which layers keep 8 bits, and the layers that it judges are learned from the others: on
the samples that it is fitted to, a deep layer with few positions shows a fraction of its loss."""


def quantize(
    model: ir.Model,
    samples: Sequence[Mapping[str, np.ndarray]],
    recipe: Recipe | None = None,
    progress: Progress | None = None,
) -> Quantized:
    """Quantise ``model`` by what its values are on ``samples``.

    Args:
        model: as the passes of :mod:`edgec.passes.pipeline` leave it, with static shapes; it is not changed.
        samples: the inputs of one run each, of exactly the inputs' shapes and dtypes.
        recipe: the choices; all by default.
        progress: told (what, done, total).

    Raises:
        EdgecError: the model is quantised already, there are no samples, the recipe names what there is not, or
            ONNX Runtime cannot run the model.
    """
    recipe = recipe or Recipe()
    _check(model, samples, recipe)
    if obstacle_to_opset(model) is not None:
        recipe = replace(recipe, wide_sums=False)
    work = _Work(model.clone(), list(samples), recipe, progress or (lambda what, done, total: None))
    return work.run()


@dataclass
class _Work:
    """One quantisation; ``model`` is a copy that equalisation changes."""

    model: ir.Model
    samples: list[Sample]
    recipe: Recipe
    tell: Progress

    def run(self) -> Quantized:
        if self.recipe.keeps_activations:
            return self._weights_only()
        count = self._equalise()
        graph, recipe = self.model.graph, self.recipe
        seen = observe(self.model, self.samples, progress=self._of_samples("ranges")).ranges
        inside, whole = self._places(recipe, seen)
        statistics = observe_groups(
            self.model, self.samples, (inside, whole), seen, self._of_samples("histograms")
        )
        learned, judging = self._parts(inside)
        ranges, fits, emitted = self._fit(inside, statistics, learned)
        precisions = dict(recipe.layers)
        kept = self._salient(inside, fits, judging)
        if kept:
            precisions |= kept
            inside, whole = self._places(replace(recipe, layers=precisions), seen)
        stale = bool(kept) or len(learned) < len(self.samples)
        if stale and not (kept and recipe.refine):  # which learns again
            ranges, fits, emitted = self._fit(inside, statistics, self.samples)
        eight, promoter = emitted, Promoter(self.model, self.samples, self._step("noise"))
        promoted: dict[str, str] = {}
        for _ in range(_PROMOTIONS if recipe.default == "int8" else 0):  # fewer bits are asked for as they are
            short = promoter.choose(inside, ranges, fits, emitted)
            more = {str(node.name): bits for node, bits in short.items() if str(node.name) not in precisions}
            if more.items() <= promoted.items():
                break
            promoted |= more
            inside, whole = self._places(replace(recipe, layers=precisions | promoted), seen)
            ranges, fits, emitted = self._fit(inside, statistics, self.samples)
        if recipe.refine:
            refined = self._refined(inside, ranges, emitted)
            if kept or self._generalises(ranges, emitted, refined[2]):  # what was kept is learned only now
                ranges, fits, emitted = refined
        placement, ranges, emitted = self._with_outputs(inside, whole, ranges, statistics, fits, emitted)
        layers = tuple(describe(graph, placement, ranges, fits, statistics))
        lifted = self._lifted(promoted, eight, emitted)
        suit_onnxruntime(emitted.model)
        return Quantized(emitted.model, self.model, layers, count, tuple(kept), lifted)

    def _refined(
        self, placement: Placement, ranges: Ranges, emitted: Emitted
    ) -> tuple[Ranges, dict[ir.Node, Fit], Emitted]:
        """With scales moved to where the prediction changes least, and weights learned again for these."""
        fixed_point = self.recipe.fixed_point
        ranges = refine(self.model, emitted, ranges, self.samples, self._step("scales"), fixed_point)
        fits = learn(self.model, placement, ranges, self.samples, self.recipe, self._step("weights again"))
        return ranges, fits, emit(self.model, placement, ranges, fits)

    def _generalises(self, ranges: Ranges, before: Emitted, after: Emitted) -> bool:
        """Whether the prediction is no worse after a refinement of ``ranges`` on samples that it has not seen."""
        others = unseen(self.model, ranges, self.samples)
        if not others:
            return True
        chosen = others[:: -(-len(others) // _JUDGED)]
        prediction = Prediction(ModelRunner(self.model).run_all(chosen))
        first, second = (prediction.distance(ModelRunner(each.model).run_all(chosen)) for each in (before, after))
        return second <= first

    def _lifted(self, promoted: Mapping[str, str], before: Emitted, after: Emitted) -> Lifted | None:
        """What the layers that were given other precisions are good for."""
        if not promoted:
            return None
        ends = (output_decibels(self.model, each.model, self.samples) for each in (before, after))
        floats = tuple(name for name, precision in promoted.items() if precision == "float")
        return Lifted(len(promoted) - len(floats), floats, *ends)

    def _weights_only(self) -> Quantized:
        placement = place(self.model.graph, self.recipe, {}, quantise_outputs=False)
        fits = learn(self.model, placement, {}, self.samples, self.recipe, self._step("weights"))
        emitted = emit(self.model, placement, {}, fits)
        layers = tuple(describe(self.model.graph, placement, {}, fits, Statistics({}, {}, {})))
        return Quantized(emitted.model, self.model, layers, 0)

    def _parts(self, placement: Placement) -> tuple[list[Sample], list[Sample]]:
        """The samples to learn from first, and those that judge which layers keep 8 bits: others, where there are
        layers to judge and samples enough."""
        samples = self.samples
        if not self.recipe.keep or not self._narrow(placement) or len(samples) < 2 * _SALIENCE:
            return samples, samples
        return [each for index, each in enumerate(samples) if index % _SALIENCE], samples[::_SALIENCE]

    def _narrow(self, placement: Placement) -> list[ir.Node]:
        """The layers whose weights have few bits, under integer activations, because the recipe's default has."""
        return [
            node
            for node, bits in placement.weights.items()
            if bits < 8 and (node, 0) in placement.bits and str(node.name) not in self.recipe.layers
        ]

    def _salient(
        self, placement: Placement, fits: Mapping[ir.Node, Fit], judging: Sequence[Sample]
    ) -> dict[str, str]:
        """The precision of 8 bits for the layers that keep it, by name."""
        free = {node: fits[node] for node in self._narrow(placement)}
        found = salient(self.model, free, judging, self.recipe.keep, self._step("salience"))
        return {str(node.name): "int8" for node in found}

    def _places(
        self, recipe: Recipe, seen: Mapping[ir.Value, tuple[float, float]]
    ) -> tuple[Placement, Placement]:
        """Where the integers are with float outputs, and with integers up to the outputs."""
        inside, whole = (place(self.model.graph, recipe, seen, quantise_outputs=each) for each in (False, True))
        return inside, whole

    def _fit(
        self, placement: Placement, statistics: Statistics, learned: Sequence[Sample]
    ) -> tuple[Ranges, dict[ir.Node, Fit], Emitted]:
        """Ranges, and weights learned from some of the samples."""
        observers = self._step("observers")
        ranges = choose_ranges(
            self.model, placement, statistics, self.samples, self.recipe.observer, observers, self.recipe.fixed_point
        )
        fits = learn(self.model, placement, ranges, learned, self.recipe, self._step("weights"))
        return ranges, fits, emit(self.model, placement, ranges, fits)

    def _equalise(self) -> int:
        return equalised(self.model, self.samples, self.recipe, self.tell) if self.recipe.equalise else 0

    def _with_outputs(
        self,
        inside: Placement,
        whole: Placement,
        ranges: Ranges,
        statistics: Statistics,
        fits: Mapping[ir.Node, Fit],
        emitted: Emitted,
    ) -> tuple[Placement, Ranges, Emitted]:
        """The model with integers up to its outputs, if these alone cost next to nothing; else as it is."""
        fixed_point = self.recipe.fixed_point
        open_ranges = choose_ranges(self.model, whole, statistics, self.samples, "minmax", fixed_point=fixed_point)
        only = Placement(
            whole.roles, {edge: bits for edge, bits in whole.bits.items() if edge not in inside.bits}, {},
            whole.outputs, whole.group,
        )  # fmt: skip
        chosen = self.samples[:: -(-len(self.samples) // _JUDGED)]
        prediction = Prediction(ModelRunner(self.model).run_all(chosen))
        alone = emit(self.model, only, open_ranges, {}).model
        inner, outer = (prediction.distance(ModelRunner(m).run_all(chosen)) for m in (emitted.model, alone))
        if outer > _OUTPUT_SHARE * inner:
            return inside, ranges, emitted
        merged = {**open_ranges, **{key: each for key, each in ranges.items() if key in open_ranges}}
        return whole, merged, emit(self.model, whole, merged, fits)

    def _step(self, what: str) -> Callable[[int, int], None]:
        return lambda done, total: self.tell(what, done, total)

    def _of_samples(self, what: str) -> Callable[[int], None]:
        return lambda done: self.tell(what, done, len(self.samples))


def _check(model: ir.Model, samples: Sequence[Sample], recipe: Recipe) -> None:
    for node in model.graph:
        if node.op_type in ("QuantizeLinear", "QLinearConv", "QLinearMatMul"):
            raise EdgecError(
                f"{node.op_type} node '{node.name}' shows that the model is quantised already; "
                "compile it as it is, without --quantize"
            )
    if not samples:
        raise EdgecError("there are no samples to calibrate with; give some tens of typical inputs with --calib")
    _check_choice("observer", recipe.observer, OBSERVERS)
    _check_choice("rounding", recipe.rounding, ROUNDINGS)
    _check_choice("default precision", recipe.default, tuple(PRECISIONS))
    _check_choice("group size", recipe.group_size, GROUP_SIZES)
    names = {str(node.name) for node in model.graph}
    for name, precision in recipe.layers.items():
        if name not in names:
            raise EdgecError(f"the recipe names the layer '{name}', which the model does not have after its passes")
        _check_choice(f"precision of layer '{name}'", precision, tuple(PRECISIONS))


def _check_choice(what: str, found: str | int, known: Sequence[str | int]) -> None:
    if found not in known:
        raise EdgecError(f"the {what} in the recipe is '{found}'; it can be {', '.join(map(str, known))}")
