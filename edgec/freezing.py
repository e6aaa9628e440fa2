"""``edgec freeze``: an ONNX model with what a device leaves open no longer, as an ONNX model."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgec.errors import EdgecError

if TYPE_CHECKING:
    import onnx
    import onnx_ir as ir

    from edgec.frontend.ends import Number
    from edgec.inspection import Value

_COMPARED = 3
"""Tokens behind which caches of fixed size are compared with those that grow."""

_TOLERANCE = 1e-3
"""Of an output's range: float16 is that exact, and a wrong place of a token is not."""


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
    context: int | None = None,
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
        context: tokens that the caches of a decoder are to hold, which grow as it was exported: they get fixed size,
            and ``position``, int64 [1], takes the place of masks and position ids (:mod:`edgec.passes.fix_caches`).

    Raises:
        EdgecError: in one sentence what is wrong with the model or a name. Nothing is written then.
    """
    from edgec.artifact import check_writable, write_atomically
    from edgec.graph import load_graph
    from edgec.inspection import describe_value
    from edgec.passes.fix_caches import fix_caches
    from edgec.passes.simplify import Simplify
    from edgec.transformation import model_bytes

    path = Path(output)
    check_writable(path)

    def load(places: int | None) -> ir.Model:
        loaded = load_graph(model, shapes=shapes, values=values, inputs=inputs, outputs=outputs, places=places)
        Simplify().apply(loaded)
        return loaded

    frozen = load(context)
    if context is not None:
        fix_caches(frozen)
        _compare(load(min(context, _COMPARED)), frozen)
        Simplify().apply(frozen)
    write_atomically({path: model_bytes(frozen)})
    graph = frozen.graph
    return Frozen(path, tuple(map(describe_value, graph.inputs)), tuple(map(describe_value, graph.outputs)), len(graph))


def _compare(grown: ir.Model, fixed: ir.Model) -> None:
    """Compare a run of the decoder as it was exported with one of the decoder whose caches have fixed size.

    Raises:
        EdgecError: something in the model depends on how long its caches are.
    """
    from edgec.passes.quantize.execution import ModelRunner

    before, after = _same_run(grown, fixed)
    found = ModelRunner(fixed).by_name(after)
    for name, wanted in ModelRunner(grown).by_name(before).items():
        filled = found[name][tuple(map(slice, wanted.shape))].astype(np.float64)
        worst = float(np.abs(filled - wanted).max()) / (float(np.ptp(wanted)) or 1.0)
        if not worst <= _TOLERANCE:
            raise EdgecError(
                f"with caches of fixed size the output '{name}' is {worst:.1g} of its range from what it was: "
                "the model counts tokens by the length of its caches; export it with position_ids as an input."
            )


def _same_run(grown: ir.Model, fixed: ir.Model) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Inputs of both models by name: the same tokens behind the same random ones."""
    from edgec.frontend.caches import growing_caches, is_mask, is_position
    from edgec.frontend.values import shape_of
    from edgec.passes.fix_caches import POSITION

    random = np.random.default_rng(0)
    caches = growing_caches(grown.graph)
    tokens = shape_of(caches[0].past)[caches[0].axis]
    before = {}
    for value in grown.graph.inputs:
        assert value.dtype is not None
        shape, real = shape_of(value), value.dtype.is_floating_point()
        if is_mask(value):
            array = np.full(shape, 0 if real and len(shape) > 2 else 1)
        elif is_position(value):
            array = np.full(shape, tokens)
        else:
            array = random.standard_normal(shape) if real else np.ones(shape)
        before[str(value.name)] = array.astype(value.dtype.numpy())
    after = {POSITION: np.array([tokens])}
    for value in fixed.graph.inputs:
        if str(value.name) in before:
            own = before[str(value.name)]
            longer = zip(own.shape, shape_of(value), strict=True)
            after[str(value.name)] = np.pad(own, [(0, extent - present) for present, extent in longer])
    return before, after
