"""Masks in the graph: units switched off by inputs, without changing the graph for each of them.

Where something sums over units (a product with weights, an attention's scores), a factor of 0 on them is as good
as cutting them out. So one session can try every unit.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from edgec.frontend.shapes import infer_shapes
from edgec.frontend.values import shape_of
from edgec.passes.prune.coupling import Coupling, Unit
from edgec.passes.prune.rules import Reading


@dataclass(frozen=True)
class Masked:
    """A model with a mask as an additional input for every place that sums over units.

    Attributes:
        model: ONNX, with the original's inputs and the masks.
        masks: the name of the mask of each reading in the original.
    """

    model: ir.Model
    masks: dict[Reading, str]

    def feeds(self, units: Iterable[Unit] = ()) -> dict[str, np.ndarray]:
        """The masks by name: ones, and zeros for ``units``."""
        found = {name: _ones(reading) for reading, name in self.masks.items()}
        for unit in units:
            for reading, name in self.masks.items():
                cut = unit.cuts.get((reading.value, reading.axis))
                if cut is not None:
                    np.moveaxis(found[name], reading.axis, 0)[cut] = 0
        return found


def mask_units(model: ir.Model, coupling: Coupling) -> Masked:
    """``model`` with masks in front of everything that sums over a unit of ``coupling``; the original stays."""
    readings = list(dict.fromkeys(reading for group in coupling.groups for reading in group.readings))
    places = {node: index for index, node in enumerate(model.graph)}
    copy = model.clone()
    nodes = list(copy.graph)
    masks = {}
    for number, reading in enumerate(readings):
        node, ones = nodes[places[reading.node]], _ones(reading)
        mask = ir.val(f"unit_mask_{number}", dtype=ir.DataType.from_numpy(ones.dtype), shape=ir.Shape(ones.shape))
        product = ir.node("Mul", [node.inputs[reading.operand], mask], name=f"apply_unit_mask_{number}")
        product.outputs[0].name = f"unit_masked_{number}"
        copy.graph.inputs.append(mask)
        copy.graph.insert_before(node, product)
        node.replace_input_with(reading.operand, product.outputs[0])
        masks[reading] = str(mask.name)
    infer_shapes(copy)
    return Masked(copy, masks)


def _ones(reading: Reading) -> np.ndarray:
    """Ones of the reading's axis, 1 long everywhere else."""
    value = reading.value
    assert value.dtype is not None
    shape = [1] * len(shape_of(value))
    shape[reading.axis] = shape_of(value)[reading.axis]
    return np.ones(shape, value.dtype.numpy())
