"""Store 8-bit activations as the target reads them best: int8, or uint8 with everything moved up by 128. Those of 16
bits become int16, which the products of every processor read.

q and q' = q ± 128 with z' = z ± 128 (for 16 bits, 2¹⁵) stand for the same real number, s · (q − z), so the change is
exact: what QuantizeLinear clamps, and every sum over (q − z), stays what it was.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as common_passes

from edgec.errors import Refusal
from edgec.frontend.shapes import infer_shapes
from edgec.grid import Grid
from edgec.passes.base import Pass
from edgec.passes.fuse import initializer
from edgec.passes.grids import BYTES, grid_of

FOR_ONNXRUNTIME = "uint8"
"""In which ONNX Runtime reads 8-bit activations best.

It has kernels for unsigned ones on every processor. On x86, release 1.32 makes signed ones unsigned, but not those that
two operators read, whose layers it then computes in floats.
"""

_OUTPUT_DTYPE_OPSET = 21
"""The opset from which QuantizeLinear has an ``output_dtype``."""


@dataclass(frozen=True)
class ActivationDtype(Pass):
    """Moves pairs of Quantize and Dequantize to ``dtype``: "int8" or "uint8"."""

    dtype: str

    name: ClassVar[str] = "activation-dtype"

    def __post_init__(self) -> None:
        assert self.dtype in BYTES

    def transform(self, model: ir.Model) -> tuple[int, Sequence[Refusal]]:
        """Counts the tensors that were moved; one that is more than dequantised is left as it is."""
        matched = 0
        for node in list(model.graph):
            grid = grid_of(node, "QuantizeLinear")
            if grid is None or grid.dtype == self._wanted(grid) or node.outputs[0].is_graph_output():
                continue
            readers = list(node.outputs[0].consumers())
            if all(grid_of(reader, "DequantizeLinear") == grid for reader in readers):
                self._move(model, node, readers, grid)
                matched += 1
        if matched:
            common_passes.RemoveUnusedNodesPass()(model)
            infer_shapes(model)
        return matched, ()

    def _wanted(self, grid: Grid) -> str:
        """The dtype that integers of ``grid`` are to have."""
        return self.dtype if grid.bits == 8 else "int16"

    def _move(self, model: ir.Model, quantise: ir.Node, readers: Sequence[ir.Node], grid: Grid) -> None:
        dtype = self._wanted(grid)
        zero = grid.zero + int(np.iinfo(dtype).min) - grid.limits[0]
        constant = initializer(model, f"{quantise.outputs[0].name}_zero_point", np.array(zero, dtype))
        quantise.outputs[0].dtype = ir.DataType.from_numpy(np.dtype(dtype))
        for node in (quantise, *readers):
            node.resize_inputs(3)
            node.replace_input_with(2, constant)


def suit_onnxruntime(model: ir.Model) -> None:
    """Make bytes unsigned, in place, where ONNX Runtime would refuse ``model`` for signed ones.

    What it makes unsigned by itself keeps its ``output_dtype``, if there is such an attribute, at the nodes that it has
    put behind movements of its own, and it refuses the contradiction.
    """
    if model.opset_imports[""] >= _OUTPUT_DTYPE_OPSET:
        ActivationDtype(FOR_ONNXRUNTIME).transform(model)
