"""``edgec freeze``: an ONNX model with what a device leaves open no longer, as an ONNX model."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import onnx
    import onnx_ir as ir

    from edgec.frontend.ends import Number
    from edgec.inspection import Value


@dataclass(frozen=True)
class Frozen:
    """What :func:`freeze` wrote."""

    path: Path
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    nodes: int

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {**asdict(self), "path": str(self.path)}


def freeze(
    model: str | os.PathLike[str] | onnx.ModelProto | ir.Model,
    output: str | os.PathLike[str],
    *,
    shapes: Mapping[str, Sequence[int]] | None = None,
    values: Mapping[str, Sequence[Number]] | None = None,
    inputs: Sequence[str] = (),
    outputs: Sequence[str] = (),
) -> Frozen:
    """Write ``model`` with static shapes, inputs made constants, and cut off at its ends.

    What depends on constants alone is computed, and an ``If`` that branches on them becomes its branch.

    Args:
        model: an ONNX file, or a model in memory.
        output: the ONNX file to write.
        shapes: pins dynamic inputs.
        values: inputs that become constants, one number for all elements or one for each.
        inputs: values of the graph to begin at; the model's inputs by default.
        outputs: values of the graph to end at; the model's outputs by default.

    Raises:
        EdgecError: in one sentence what is wrong with the model or a name. Nothing is written then.
    """
    from edgec.artifact import check_writable, write_atomically
    from edgec.graph import load_graph
    from edgec.inspection import describe_value
    from edgec.passes.simplify import Simplify
    from edgec.transformation import model_bytes

    path = Path(output)
    check_writable(path)
    frozen = load_graph(model, shapes=shapes, values=values, inputs=inputs, outputs=outputs)
    Simplify().apply(frozen)
    write_atomically({path: model_bytes(frozen)})
    graph = frozen.graph
    return Frozen(path, tuple(map(describe_value, graph.inputs)), tuple(map(describe_value, graph.outputs)), len(graph))
