"""Caches that grow: how exporters write a decoder, and the static shapes in which it can be looked at.

A decoder that has read t tokens takes ``past`` [1, heads, t, width], gives ``present = Concat (past, new)`` and reads a
mask of t + 1 ones. Its axes of t and t + 1 places are dynamic; :mod:`edgec.passes.fix_caches` makes n of both.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod

import onnx_ir as ir

from edgec.errors import EdgecError

_INTEGERS = (ir.DataType.INT64, ir.DataType.INT32)


@dataclass(frozen=True)
class GrowingCache:
    """``present = Concat (past, new)``.

    Attributes:
        past: an input of the graph.
        joined: the Concat, whose result is an output of the graph.
        axis: that grows, counted from the front.
    """

    past: ir.Value
    joined: ir.Node
    axis: int


def growing_caches(graph: ir.Graph) -> list[GrowingCache]:
    """The caches, in the order of the outputs."""
    found = []
    for output in graph.outputs:
        node = _behind_identities(output).producer()
        if node is None or node.op_type != "Concat" or len(node.inputs) != 2 or node.inputs[0] is None:
            continue
        past = _behind_identities(node.inputs[0])
        if past.is_graph_input() and past.shape is not None:
            found.append(GrowingCache(past, node, node.attributes.get_int("axis", 0) % len(past.shape)))
    return found


def is_mask(value: ir.Value) -> bool:
    """Whether an input tells by its name that it masks what may be attended to."""
    return "mask" in str(value.name).lower()


def is_position(value: ir.Value) -> bool:
    """Whether an input tells by its name that it counts tokens."""
    return "position" in str(value.name).lower() and value.dtype in _INTEGERS


def shapes_for(graph: ir.Graph, places: int, shapes: Mapping[str, Sequence[int]]) -> dict[str, tuple[int, ...]]:
    """Static shapes of the inputs for the run of one token behind ``places`` − 1 others.

    The last axis of a mask has ``places``, the axis of a cache that grows one less, and other open axes of caches,
    masks and integers (the batch, the tokens of a run) are 1. Where ``shapes`` name an input, they hold.

    Raises:
        EdgecError: no output is a cache that grows, a run reads several tokens, or a mask has another length.
    """
    caches = {str(cache.past.name): cache.axis for cache in growing_caches(graph)}
    if not caches:
        raise EdgecError(
            "--context makes caches that grow, present = Concat (past, new), caches of fixed size, and no output of "
            "the model is one; leave it out."
        )
    found = {name: tuple(shape) for name, shape in shapes.items()}
    for value in graph.inputs:
        name = str(value.name)
        known = name in caches or is_mask(value) or value.dtype in _INTEGERS
        if name not in found and known and value.shape is not None:
            axes = [axis if isinstance(axis, int) else 1 for axis in value.shape]
            if name in caches:
                axes[caches[name]] = places - 1
            elif is_mask(value) and not isinstance(value.shape[-1], int):
                axes[-1] = places
            found[name] = tuple(axes)
        if name in found:
            _require_one_token(value, found[name], places)
    return found


def _require_one_token(value: ir.Value, shape: Sequence[int], places: int) -> None:
    text = f"'{value.name}' [{','.join(map(str, shape))}]"
    if is_mask(value):
        if shape[-1] != places:
            raise EdgecError(f"{text} does not mask a context of {places}; pin its last axis at {places} with --shape.")
    elif value.dtype in _INTEGERS and prod(shape) > 1:
        raise EdgecError(
            f"{text} has several tokens, and caches of fixed size are for runs of one; export the model with a dynamic "
            "length, or pin it at 1 with --shape."
        )


def _behind_identities(value: ir.Value) -> ir.Value:
    """What ``value`` is a copy of."""
    while (node := value.producer()) is not None and node.op_type == "Identity" and node.inputs[0] is not None:
        value = node.inputs[0]
    return value
