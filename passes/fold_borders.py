"""Turn a border that is written into a padded map back into padding with zeros.

A block whose norm stands before the padding has a border of the norm's shift instead of zeros (BNAndPad of DBB, arXiv
2103.13425), which exporters write with one ScatterND a side. Where in the end the inside is untouched and the border
holds one constant v[c] per channel,

    border(x; v) = Pad(x − v; 0) + v

exactly; the two maps per channel are folded into the linear operators before and behind by
:mod:`edgec.passes.fold_affine`, and the zeros into the convolution behind. The v that training code computes and the
shift that a folded norm leaves before the padding differ by their rounding: within 10⁻⁵ of the largest they are taken
to be the same.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import onnx_ir as ir

from edgec.frontend.values import constant_of, input_of, shape_of
from edgec.passes.fuse import FusePass, Match, initializer, producer
from edgec.passes.rewriting import Refused, named

TOLERANCE = 1e-5


class FoldBorders(FusePass):
    """Replaces constant borders that ScatterND writes by zero padding between two shifts."""

    name: ClassVar[str] = "fold-borders"

    def match(self, model: ir.Model, node: ir.Node) -> Match | None:
        if node.op_type != "ScatterND" or _continues(node):
            return None
        writes = _writes(node)
        pad = producer(writes[-1].inputs[0], "Pad")
        if pad is None or pad.inputs[0] is None:
            return None
        values = _border(pad, writes)
        if values is None:
            return None
        shift = _rounded_to_bias(pad.inputs[0], values)
        return Match("a constant border", [*writes[1:], pad], lambda: _padded(model, node, pad, shift))


def _continues(node: ir.Node) -> bool:
    """Whether another write follows, which is looked at instead."""
    written = node.outputs[0]
    return any(each.op_type == "ScatterND" and each.inputs[0] is written for each in written.consumers())


def _writes(last: ir.Node) -> list[ir.Node]:
    """The writes to one map, the last first."""
    found = [last]
    while (before := producer(found[-1].inputs[0], "ScatterND")) is not None:
        found.append(before)
    return found


def _border(pad: ir.Node, writes: list[ir.Node]) -> np.ndarray | None:
    """What each channel's border holds in the end, float64 [channels]; None where anything is not constant.

    Raises:
        Refused: the writes do more than fill the border with one value a channel.
    """
    pads, fill = constant_of(input_of(pad, 1)), constant_of(input_of(pad, 2))
    shape = shape_of(pad.outputs[0])
    if pads is None or input_of(pad, 3) is not None or len(shape) != 4 or (pads < 0).any() or pads[[0, 1, 4, 5]].any():
        return None
    values = np.full(shape, 0.0 if fill is None else float(fill.reshape(-1)[0]))
    touched = np.zeros(shape, bool)
    for write in reversed(writes):
        indices, updates = (constant_of(input_of(write, index)) for index in (1, 2))
        if indices is None or updates is None or write.attributes.get_string("reduction", "none") != "none":
            return None
        place = tuple(np.moveaxis(indices, -1, 0))
        values[place], touched[place] = updates, True
    top, left, height, width = pads[2], pads[3], *shape_of(pad.inputs[0])[2:]
    inside = np.zeros(shape, bool)
    inside[:, :, top : top + height, left : left + width] = True
    if touched[inside].any():
        raise Refused(f"what is written into the map of {named(pad)} reaches beyond its border")
    borders = np.where(inside, np.nan, values).transpose(1, 0, 2, 3).reshape(shape[1], -1)
    low, high = np.nanmin(borders, axis=1), np.nanmax(borders, axis=1)
    if (low != high).any():
        raise Refused(f"the border of {named(pad)} holds several values in a channel")
    return low


def _rounded_to_bias(source: ir.Value, values: np.ndarray) -> np.ndarray:
    """The bias of the convolution before the padding, if ``values`` are it up to rounding, else ``values``."""
    conv = producer(source, "Conv")
    bias = None if conv is None else constant_of(input_of(conv, 2))
    if bias is not None and np.abs(bias - values).max() <= TOLERANCE * np.abs(bias).max():
        return bias.astype(np.float64)
    return values


def _padded(model: ir.Model, node: ir.Node, pad: ir.Node, shift: np.ndarray) -> list[ir.Node]:
    source, name = pad.inputs[0], node.name
    assert source is not None and source.dtype is not None
    constant = initializer(model, f"{name}_border", shift.astype(source.dtype.numpy()).reshape(1, -1, 1, 1))
    less = ir.node("Sub", [source, constant], name=f"{name}_less")
    zeros = ir.node("Pad", [less.outputs[0], pad.inputs[1]], name=pad.name)
    return [less, zeros, ir.node("Add", [zeros.outputs[0], constant], name=name)]
