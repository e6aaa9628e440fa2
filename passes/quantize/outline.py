"""The outline of a quantised model: its nodes, without the care that its numbers take.

What a recipe costs in time shows in which values become integers and not in their scales. So grids reach from the
least to the largest value on samples, and weights are rounded to the nearest: one walk over a few samples serves any
number of recipes.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from edgec.grid import Grid
from edgec.passes.quantize.emit import emit
from edgec.passes.quantize.execution import Sample
from edgec.passes.quantize.grid import grid_between
from edgec.passes.quantize.learn import nearest_fit
from edgec.passes.quantize.placement import Placement, place
from edgec.passes.quantize.products import product_of
from edgec.passes.quantize.ranges import Range, Ranges
from edgec.passes.quantize.recipe import Recipe
from edgec.passes.quantize.statistics import observe


class Outlines:
    """Outlines of one model.

    Args:
        model: the float model; it is not changed.
        samples: inputs by name, a few of them.
    """

    def __init__(self, model: ir.Model, samples: Sequence[Sample]) -> None:
        self.model = model.clone()
        self._seen = observe(self.model, samples).ranges

    def of(self, recipe: Recipe) -> ir.Model:
        """A QDQ model with the precisions of ``recipe``, whose weights have 8 bits where they are integers."""
        placement = place(self.model.graph, recipe, self._seen, quantise_outputs=False)
        ranges = self._ranges(placement, recipe.fixed_point)
        fits = {}
        for node in placement.weights:
            product = product_of(node)
            assert product is not None
            fits[node] = nearest_fit(product, self._grid(node, placement, ranges), recipe.fixed_point)
        return emit(self.model, placement, ranges, fits).model

    def _ranges(self, placement: Placement, fixed_point: bool) -> Ranges:
        found: Ranges = {}
        for root, members in placement.members().items():
            low, high = (pick(self._range(value)[end] for value in members) for end, pick in enumerate((min, max)))
            for bits in {bits for member in members for bits in placement.grids_of(member)}:
                grid = grid_between(low, high, bits)
                found[root, bits] = Range(grid.by_power_of_two(wider=True) if fixed_point else grid, "minmax")
        return found

    def _range(self, value: ir.Value) -> tuple[float, float]:
        if value.const_value is None:
            return self._seen[value]
        array = value.const_value.numpy()
        return float(array.min()), float(array.max())

    @staticmethod
    def _grid(node: ir.Node, placement: Placement, ranges: Ranges) -> Grid | None:
        """The grid of a product's input; None where it stays float."""
        value, bits = node.inputs[0], placement.bits.get((node, 0))
        return None if bits is None or value is None else ranges[placement.group[value], bits].grid
