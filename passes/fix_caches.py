"""Fix caches: a decoder whose caches grow, one whose caches have a place for every token of its context.

As exported, a run behind t tokens reads ``past`` [1, heads, t, width], gives ``present = Concat (past, new)``, attends
to all of it under a mask of t + 1 ones, and hears its place from ``position_ids``. With n places and the new input
``position`` p = t, int64 [1], 0 ≤ p < n:

    present[…, j, …] = new where j = p, past[…, j, …] elsewhere      j = 0 … n − 1
    mask[…, j]       = 1 where j ≤ p, 0 elsewhere
    position_ids     = p

Keys and values up to p are those that grew, in the same order, and what stands behind them is masked: softmax gives it
a share of 0. (Keys carry their positions with them, so that their place in the cache has no meaning of its own.)

That holds where nothing else depends on how long a cache is. What does, once constants are folded, counts n − 1
tokens: :func:`fix_caches` is therefore to be followed by a comparison with the model as it was.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from edgec.errors import EdgecError
from edgec.frontend.caches import GrowingCache, growing_caches, is_mask, is_position
from edgec.frontend.values import shape_of
from edgec.passes.rewriting import named, new_constant, replace_node

POSITION = "position"
"""The input that says which token it is, from 0 on."""


def fix_caches(model: ir.Model) -> None:
    """Give the caches of a simplified static model, whose masks have n places and whose caches n − 1, n places.

    Raises:
        EdgecError: in one sentence why its caches cannot be of fixed size.
    """
    graph = model.graph
    caches = growing_caches(graph)
    masks, places = [each for each in graph.inputs if is_mask(each)], _places(caches)
    if not masks:
        raise EdgecError(
            "the model reads no attention mask, and without one it would attend to the empty places of a cache of "
            "fixed size; export it with attention_mask as an input."
        )
    counters = [each for each in graph.inputs if is_position(each)]
    position = ir.val(POSITION, ir.DataType.INT64, ir.Shape([1]))
    first = graph[0]
    for mask in masks:
        _computed(graph, mask, _mask(graph, mask, position, places), first)
    for counter in counters:
        _computed(graph, counter, _counter(graph, counter, position), first)
    graph.inputs.append(position)
    for cache in caches:
        _fix(graph, cache, position, places)


def _places(caches: list[GrowingCache]) -> int:
    lengths = {shape_of(cache.joined.outputs[0])[cache.axis] for cache in caches}
    if len(lengths) != 1:
        raise EdgecError(f"the caches have {sorted(lengths)} places, and one context has one length.")
    for cache in caches:
        readers = [reader for reader in cache.past.consumers() if reader is not cache.joined]
        if readers:
            raise EdgecError(
                f"{named(readers[0])} reads the cache '{cache.past.name}' beside {named(cache.joined)}, and would see "
                "the empty places of one of fixed size; export the model without that."
            )
    return lengths.pop()


def _computed(graph: ir.Graph, source: ir.Value, nodes: list[ir.Node], first: ir.Node) -> None:
    """Let ``nodes`` compute what the input ``source`` was given."""
    for index, node in enumerate(nodes):
        node.name = f"{source.name}_{index}"
        node.outputs[0].name = f"{source.name}_{index}_output"
    graph.insert_before(first, nodes)
    source.replace_all_uses_with(nodes[-1].outputs[0])
    graph.inputs.remove(source)


def _mask(graph: ir.Graph, mask: ir.Value, position: ir.Value, places: int) -> list[ir.Node]:
    """1 (true; 0, where the mask is added to scores) up to the position; 0 (false; the least number) behind it."""
    assert mask.dtype is not None
    keys = new_constant(np.arange(places, dtype=np.int64), f"{mask.name}_places", graph)
    shape = new_constant(np.array(shape_of(mask), np.int64), f"{mask.name}_shape", graph)
    nodes = [ir.node("LessOrEqual", [keys, position])]
    nodes.append(ir.node("Reshape", [nodes[0].outputs[0], shape]))
    if mask.dtype.is_floating_point() and len(shape_of(mask)) > 2:
        dtype = mask.dtype.numpy()
        seen = new_constant(np.zeros((), dtype), f"{mask.name}_seen", graph)
        never = new_constant(np.array(np.finfo(dtype).min, dtype), f"{mask.name}_never", graph)
        nodes.append(ir.node("Where", [nodes[-1].outputs[0], seen, never]))
    elif mask.dtype != ir.DataType.BOOL:
        nodes.append(ir.node("Cast", [nodes[-1].outputs[0]], {"to": mask.dtype}))
    return nodes


def _counter(graph: ir.Graph, counter: ir.Value, position: ir.Value) -> list[ir.Node]:
    """The position in the shape and dtype of the input ``counter``."""
    shape = new_constant(np.array(shape_of(counter), np.int64), f"{counter.name}_shape", graph)
    nodes = [ir.node("Expand", [position, shape])]
    if counter.dtype != ir.DataType.INT64:
        assert counter.dtype is not None
        nodes.append(ir.node("Cast", [nodes[0].outputs[0]], {"to": counter.dtype}))
    return nodes


def _fix(graph: ir.Graph, cache: GrowingCache, position: ir.Value, places: int) -> None:
    """Store what is new at the position, instead of behind what is there."""
    past, joined = cache.past, cache.joined
    new = joined.inputs[1]
    axes = list(shape_of(past))
    axes[cache.axis] = places
    past.shape = ir.Shape(axes)
    shape = new_constant(np.array(shape_of(new), np.int64), f"{past.name}_step", graph)
    where = ir.node("Expand", [position, shape], name=f"{joined.name}_where")
    stored = ir.node("ScatterElements", [past, where.outputs[0], new], {"axis": cache.axis}, name=joined.name)
    where.outputs[0].name = f"{joined.name}_where_output"
    stored.outputs[0].shape, stored.outputs[0].type = joined.outputs[0].shape, joined.outputs[0].type
    graph.insert_before(joined, [where, stored])
    replace_node(joined, stored)
    graph.remove(joined, safe=True)
