"""Inputs and outputs as the integers that the model computes with, so that a caller needs no memory for floats.

An input that is only quantised, on one grid, is taken quantised: QuantizeLinear leaves the graph. An output that
DequantizeLinear makes is given before it does. The grid of each stays known, real = scale · (q − zero point).
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from edgec.grid import Grid
from edgec.passes.grids import grid_of


def make_edges_integers(model: ir.Model) -> int:
    """Change what can be changed of the inputs and outputs of a model with QuantizeLinear and DequantizeLinear.

    The names stay. What is computed in floats, such as a softmax, stays a float output.

    Returns:
        How many inputs and outputs were changed.
    """
    count = sum(_quantised_input(value) for value in model.graph.inputs)
    count += sum(_integer_output(model, index) for index in range(len(model.graph.outputs)))
    RemoveUnusedNodesPass()(model)
    return count


def edge_grids(model: ir.Model) -> dict[str, Grid]:
    """The grids of inputs that are only dequantised, and of outputs that QuantizeLinear makes or that are both."""
    grids = {}
    for value in model.graph.inputs:
        found = {grid_of(reader, "DequantizeLinear") for reader in value.consumers()}
        if len(found) == 1 and (grid := found.pop()) is not None:
            grids[str(value.name)] = grid
    for value in model.graph.outputs:
        if (grid := grid_of(value.producer(), "QuantizeLinear")) is not None:
            grids[str(value.name)] = grid
    return grids


def _quantised_input(value: ir.Value) -> bool:
    readers = list(value.consumers())
    grids = {grid_of(reader, "QuantizeLinear") for reader in readers}
    if value.is_graph_output() or len(grids) != 1 or any(reader.outputs[0].is_graph_output() for reader in readers):
        return False
    grid = grids.pop()
    if grid is None:
        return False
    value.dtype = ir.DataType.from_numpy(np.dtype(grid.dtype))
    for reader in readers:
        reader.outputs[0].replace_all_uses_with(value)
    return True


def _integer_output(model: ir.Model, index: int) -> bool:
    value = model.graph.outputs[index]
    node = value.producer()
    integers = node.inputs[0] if node is not None and grid_of(node, "DequantizeLinear") is not None else None
    quantise = None if integers is None else integers.producer()
    if integers is None or integers.is_graph_output() or grid_of(quantise, "QuantizeLinear") is None:
        return False
    name = str(value.name)
    value.name, integers.name = f"{name}_real", name
    model.graph.outputs[index] = integers
    return True
