"""What is in a model or an artifact, found without running it."""

from __future__ import annotations

import math
import string
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgec.artifact import read_manifest
from edgec.errors import Refusal, UnsupportedModelError

if TYPE_CHECKING:
    import onnx_ir as ir

    from edgec.frontend.summary import GraphSummary

MAP_ROWS, MAP_COLUMNS = 16, 96
"""Largest size of the memory plan's drawing, in characters."""
_LETTERS = string.ascii_uppercase + string.ascii_lowercase + string.digits
_FREE = "·"


@dataclass(frozen=True)
class Value:
    """An input or output of a model: its name, shape and dtype."""

    name: str
    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True)
class Layer:
    """One node of a model; ``parameters`` are elements, ``shapes`` reads ``inputs -> outputs``."""

    name: str
    op: str
    shapes: str
    parameters: int
    macs: int


@dataclass(frozen=True)
class ModelInspection:
    """A model as it was imported; ``after`` the passes, and ``refusals``: the nodes that edgec cannot compile."""

    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    opset: int
    summary: GraphSummary
    after: GraphSummary
    layers: tuple[Layer, ...]
    refusals: tuple[Refusal, ...]


def inspect_model(path: Path, shapes: Mapping[str, Sequence[int]] | None = None) -> ModelInspection:
    """The layers of an ONNX model, its dynamic inputs pinned to ``shapes``, and what edgec cannot compile.

    Raises:
        EdgecError: the file is no valid model, or a shape in it cannot be known.
    """
    from edgec.frontend.summary import summarise
    from edgec.graph import load_graph
    from edgec.passes.pipeline import run as run_passes

    model = load_graph(path, shapes=shapes)
    transformed = model.clone()
    run_passes(transformed)
    return ModelInspection(
        inputs=tuple(map(describe_value, model.graph.inputs)),
        outputs=tuple(map(describe_value, model.graph.outputs)),
        opset=model.opset_imports.get("", 0),
        summary=summarise(model),
        after=summarise(transformed),
        layers=tuple(map(_layer, model.graph)),
        refusals=_refusals(transformed),
    )


def inspect_artifact(path: Path) -> dict[str, Any]:
    """The manifest of an artifact and its size in bytes, ``artifact_bytes``.

    Raises:
        EdgecError: not an artifact, truncated, or changed since it was written.
    """
    return {**read_manifest(path), "artifact_bytes": path.stat().st_size}


def draw_memory(manifest: Mapping[str, Any]) -> list[str]:
    """The memory plan as lines of text: offsets downwards, steps to the right, one letter for each buffer.

    A cell that stands for several steps or bytes shows the buffer that fills most of it. The letters follow the
    order of the manifest's ``memory``, as :func:`buffer_letter` gives them.
    """
    steps, size = len(manifest["steps"]), manifest["arena_bytes"]
    if not size or not steps:
        return []
    columns, rows = min(steps, MAP_COLUMNS), min(MAP_ROWS, -(-size // 64))
    width = len(f"{size:,}")
    lines = []
    for row in range(rows):
        low, high = size * row // rows, size * (row + 1) // rows
        cells = (_cell(manifest["memory"], low, high, column, columns, steps) for column in range(columns))
        lines.append(f"{low:>{width},} {''.join(cells)}")
    return lines


def buffer_letter(index: int) -> str:
    """The letter of buffer ``index`` in :func:`draw_memory`; they repeat in long plans."""
    return _LETTERS[index % len(_LETTERS)]


def _cell(memory: Sequence[Mapping[str, Any]], low: int, high: int, column: int, columns: int, steps: int) -> str:
    first, end = steps * column // columns, max(steps * (column + 1) // columns, steps * column // columns + 1)
    best, most = _FREE, 0
    for index, buffer in enumerate(memory):
        nbytes = min(high, buffer["offset"] + buffer["bytes"]) - max(low, buffer["offset"])
        span = min(end, buffer["last"] + 1) - max(first, buffer["first"])
        if nbytes > 0 and span > 0 and nbytes * span > most:
            best, most = buffer_letter(index), nbytes * span
    return best


def describe_value(value: ir.Value) -> Value:
    """Name, shape and dtype of a value that is static."""
    assert value.shape is not None and value.dtype is not None
    return Value(str(value.name), value.shape.numpy(), str(value.dtype.numpy()))


def _layer(node: ir.Node) -> Layer:
    from edgec.frontend.summary import node_macs
    from edgec.frontend.values import node_shapes

    return Layer(str(node.name), node.op_type, node_shapes(node), sum(_parameters(node)), node_macs(node))


def _parameters(node: ir.Node) -> Iterator[int]:
    """Elements of each initialiser that the node reads."""
    for value in node.inputs:
        if value is not None and value.is_initializer() and value.shape is not None:
            yield math.prod(value.shape.numpy())


def _refusals(model: ir.Model) -> tuple[Refusal, ...]:
    """What the lowering refuses of a model that the passes have changed."""
    from edgec.lowering import lower

    try:
        lower(model)
    except UnsupportedModelError as error:
        return error.refusals
    return ()
