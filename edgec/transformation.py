"""From graph to graph: the first half of a compilation, which can also be all of it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgec.errors import EdgecError

if TYPE_CHECKING:
    import onnx
    import onnx_ir as ir

    from edgec.passes.base import PassReport

Check = str | os.PathLike[str] | Iterable[Mapping[str, np.ndarray]]
"""Samples to compare outputs on: an ``.npz`` with arrays named as the inputs, or arrays by input name."""


@dataclass(frozen=True)
class Transformed:
    """What :func:`transform` wrote, and what each pass did."""

    path: Path
    passes: tuple[PassReport, ...]

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {"model": str(self.path), "passes": [asdict(report) for report in self.passes]}


def transform(
    model: str | os.PathLike[str] | onnx.ModelProto | ir.Model,
    output: str | os.PathLike[str],
    *,
    passes: Sequence[str] | None = None,
    stop_after: str | None = None,
    shapes: Mapping[str, Sequence[int]] | None = None,
    check: Check | None = None,
) -> Transformed:
    """Apply passes to ``model`` and write the ONNX model that they leave.

    Args:
        model: an ONNX file, or a model in memory.
        output: the ONNX file to write.
        passes: names of passes, in the order in which they run; all of them by default.
        stop_after: leave out what follows the last run of this pass.
        shapes: pins dynamic inputs.
        check: samples on which each pass's result is compared with the original.

    Raises:
        EdgecError: in one sentence what is wrong with the model, a name or the samples. Nothing is written then.
    """
    from edgec.artifact import check_writable, write_atomically
    from edgec.graph import load_graph
    from edgec.passes.pipeline import select

    path = Path(output)
    chosen = select(passes, stop_after)
    check_writable(path)
    graph = load_graph(model, shapes=shapes)
    reports = apply_passes(graph, chosen, check)
    write_atomically({path: model_bytes(graph)})
    return Transformed(path, reports)


def model_bytes(model: ir.Model) -> bytes:
    """The content of an ONNX file.

    Raises:
        EdgecError: it would be too large for one.
    """
    import onnx_ir as ir

    try:
        return ir.to_proto(model).SerializeToString()
    except ValueError as error:  # protobuf's limit of 2 GB
        raise EdgecError(f"the model is too large for one ONNX file: {error}") from error


def apply_passes(
    graph: ir.Model, passes: Sequence[Any], check: Check | None, score: Callable[[ir.Model], float] | None = None
) -> tuple[PassReport, ...]:
    """Apply ``passes`` to an imported graph in place.

    Args:
        graph: changed.
        passes: in their order.
        check: samples to compare outputs on after each of them.
        score: tells how good a graph is, after each of them.
    """
    from edgec.passes.pipeline import run

    return tuple(run(graph, passes, None if check is None else _samples(graph, check), score))


def _samples(graph: ir.Model, check: Check) -> Iterable[Mapping[str, np.ndarray]]:
    from edgec.data.samples import TensorSpec, load_npz

    if not isinstance(check, str | os.PathLike):
        return check
    inputs = [TensorSpec(str(v.name), v.shape.numpy(), v.dtype.numpy()) for v in graph.graph.inputs]  # type: ignore[union-attr]
    return load_npz(Path(check), inputs)
