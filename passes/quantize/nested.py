"""Nested weights: to 4-bit weights in groups, four more bits below, so that the upper nibbles are the 4-bit model.

``q8 = 16 · q4 + r`` at a sixteenth of the scale, with r in [-8, 7]. What q4 was moved by to make up for the errors of
others is out of reach of r now and then, so r is fitted as q4 was: each integer in turn takes the value that is best
for the product's results on real inputs, given the others. From r = 0 on that never loses.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from edgec.frontend.values import constant_of
from edgec.passes.quantize.execution import NodeRunner, Sample
from edgec.passes.quantize.lowbit import descend, spread
from edgec.passes.quantize.operators import weight_axis
from edgec.passes.quantize.products import Product, product_of
from edgec.passes.quantize.real_weights import constant
from edgec.passes.quantize.rounding import second_moment
from edgec.passes.quantize.tape import Tape, few

_LEAST, _MOST = -8, 7
_SWEEPS = 12


def nest(model: ir.Model, twin: ir.Model, samples: Sequence[Sample]) -> None:
    """Extend the 4-bit weights in groups of ``model``, in place, by what they lack to those of ``twin``.

    Args:
        model: quantised, as :mod:`edgec.passes.quantize.emit` makes it.
        twin: the float model, with the same names of nodes.
        samples: those that the 4 bits were learned from.
    """
    sources = {str(node.name): source for node in model.graph if (source := _source(node)) is not None}
    chosen, runner = few(twin.graph, samples), NodeRunner(twin)
    tape = Tape(twin.graph, chosen)
    for node in twin.graph:
        inputs = tape.inputs(node)
        product = product_of(node) if str(node.name) in sources else None
        if product is not None:
            _extend(sources[str(node.name)], product, inputs[0], model.graph)
        tape.store(node, runner.run(node, inputs))


def _source(node: ir.Node) -> ir.Node | None:
    """The dequantisation of 4-bit weights in groups that ``node`` multiplies by."""
    made = node.inputs[1].producer() if len(node.inputs) > 1 and node.inputs[1] is not None else None
    while made is not None and made.op_type in ("Reshape", "Transpose"):
        made = made.inputs[0].producer() if made.inputs[0] is not None else None
    if made is None or made.op_type != "DequantizeLinear" or not made.attributes.get_int("block_size", 0):
        return None
    integers = constant_of(made.inputs[0])
    return made if integers is not None and str(integers.dtype) == "int4" else None


def _extend(source: ir.Node, product: Product, x: np.ndarray, graph: ir.Graph) -> None:
    integers, scales = constant_of(source.inputs[0]), constant_of(source.inputs[1])
    assert integers is not None and scales is not None
    columns = product.node.op_type != "Conv" and weight_axis(product.node) == 1
    upper, fine = integers.astype(np.float64), (scales / 16).astype(np.float32)
    if columns:
        upper, fine = upper.T, fine.T
    order = product.depth_order
    rows = product.rows(product.weight)[0][:, order].astype(np.float64)
    moment = second_moment(product.patches(x)[:, :, order], centred=False)[0]
    group = source.attributes.get_int("block_size", 0)
    values = _fitted(rows, 16 * upper, spread(fine, group, rows.shape[1]).astype(np.float64), moment)
    name = str(source.inputs[0].name)  # type: ignore[union-attr]
    kept = np.ascontiguousarray((values.T if columns else values).astype(np.int8))
    source.replace_input_with(0, constant(graph, kept, f"{name}_nested"))
    source.replace_input_with(1, constant(graph, np.ascontiguousarray(fine.T if columns else fine), f"{name}_fine"))


def _fitted(rows: np.ndarray, coarse: np.ndarray, steps: np.ndarray, moment: np.ndarray) -> np.ndarray:
    """Integers [outputs, depth] within what a nibble adds to ``coarse``, for ``rows`` at ``steps`` an integer."""
    low, high = np.maximum(coarse + _LEAST, -128), coarse + _MOST
    starts = [coarse, np.clip(np.rint(rows / steps), low, high)]
    found = [descend(rows, start, moment, steps, low, high, _SWEEPS) for start in starts]
    errors = [np.einsum("mk,mk->m", lost @ moment, lost) for lost in (each * steps - rows for each in found)]
    return np.where((errors[1] < errors[0])[:, None], found[1], found[0])
