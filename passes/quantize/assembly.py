"""Quantised models put together from layers that were quantised on their own.

What a precision does to a layer is learned once, from the float model's values; any mix of precisions is then a graph
away, where :func:`edgec.passes.quantize.quantize` learns anew what each layer makes of those before it. So a mix is
judged in the time of its evaluation, and a little too hard: no layer takes back what others lost.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import onnx_ir as ir

from edgec.passes.quantize.emit import emit
from edgec.passes.quantize.equalise import equalised
from edgec.passes.quantize.execution import Sample
from edgec.passes.quantize.learn import Fit, learn_apart
from edgec.passes.quantize.placement import Placement, place
from edgec.passes.quantize.ranges import Ranges, choose_ranges
from edgec.passes.quantize.recipe import PRECISIONS, Recipe
from edgec.passes.quantize.statistics import observe, observe_groups

Progress = Callable[[str, int, int], None]


class Assembly:
    """A float model whose layers can be had at any precision.

    Attributes:
        model: the float model; its channels are equalised if the recipe has integer activations and says so.
    """

    def __init__(self, model: ir.Model, samples: Sequence[Sample], recipe: Recipe, tell: Progress) -> None:
        """
        Args:
            model: as for :func:`edgec.passes.quantize.quantize`; it is not changed.
            samples: to learn from.
            recipe: how; its precisions are those that layers have where :meth:`mixed` is not told another.
            tell: told (what, done, total).
        """
        self.model = model.clone()
        self._samples, self._recipe, self._tell = samples, recipe, tell
        if recipe.equalise and not recipe.keeps_activations:
            equalised(self.model, samples, recipe, tell)
        self._seen = observe(self.model, samples, progress=self._of_samples("ranges")).ranges
        self._uniform: dict[str, tuple[Placement, dict[ir.Node, Fit]]] = {}
        self._grids: dict[int, tuple[Placement, Ranges]] = {}

    def mixed(self, recipe: Recipe) -> ir.Model:
        """The QDQ model with the precision that ``recipe`` gives each layer."""
        placement = self._places(recipe)
        fits = {node: self._alone(recipe, node) for node in placement.weights}
        return emit(self.model, placement, self._ranges(placement), fits).model

    def weight_bits(self, precision: str) -> dict[str, int]:
        """The bits of the weights of every product that has integers where ``precision`` is asked for, by name."""
        weights = self._fits(precision)[0].weights
        return {str(node.name): bits for node, bits in weights.items()}

    def _places(self, recipe: Recipe) -> Placement:
        return place(self.model.graph, recipe, self._seen, quantise_outputs=False)

    def _alone(self, recipe: Recipe, node: ir.Node) -> Fit:
        name = str(node.name)
        return self._fits(recipe.layers.get(name, recipe.default))[1][node]

    def _fits(self, precision: str) -> tuple[Placement, dict[ir.Node, Fit]]:
        """Every product at one ``precision``, each learned from what it is in the float model."""
        if precision not in self._uniform:
            recipe = replace(self._recipe, default=precision, layers={})
            placement, tell = self._places(recipe), partial(self._tell, f"weights of {precision}")
            ranges = self._ranges(placement)
            fits = learn_apart(self.model, placement, ranges, self._samples, recipe, tell)
            self._uniform[precision] = placement, fits
        return self._uniform[precision]

    def _ranges(self, placement: Placement) -> Ranges:
        """Of every group of ``placement`` the range that it has where all activations are integers of its bits."""
        found: Ranges = {}
        for value, root in placement.group.items():
            for bits in placement.grids_of(value):
                whole, ranges = self._whole(bits)
                found[root, bits] = ranges[whole.group[value], bits]
        return found

    def _whole(self, bits: int) -> tuple[Placement, Ranges]:
        """Where all activations are integers of ``bits``, those that a sum could read at 16 too, and their ranges."""
        if bits not in self._grids:
            recipe = self._recipe
            default = next(name for name, each in PRECISIONS.items() if each.activations == bits)
            placement = self._places(replace(recipe, default=default, layers={}, wide_sums=False))
            statistics = observe_groups(
                self.model, self._samples, (placement,), self._seen, self._of_samples("histograms")
            )
            self._grids[bits] = placement, choose_ranges(
                self.model, placement, statistics, self._samples, recipe.observer, partial(self._tell, "observers"),
                recipe.fixed_point,
            )  # fmt: skip
        return self._grids[bits]

    def _of_samples(self, what: str) -> Callable[[int], None]:
        return lambda done: self._tell(what, done, len(self._samples))
