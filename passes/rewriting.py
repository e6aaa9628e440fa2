"""What the folds share: the refusal of a rewrite, names for messages, and new constants."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir


class Refused(Exception):
    """Why a rewrite that looked right is not made; without a message: nothing was meant to be rewritten."""


def named(node: ir.Node) -> str:
    """The node for a message: ``Conv 'stem'``."""
    return f"{node.op_type} '{node.name}'"


def require_single_reader(node: ir.Node) -> None:
    """Raises :class:`Refused` where someone besides the next node needs the first output of ``node``."""
    output = node.outputs[0]
    if output.is_graph_output():
        raise Refused(f"the result of {named(node)} is also an output of the model")
    if len(output.uses()) > 1:
        readers = sorted(str(reader.name) for reader in output.consumers())
        raise Refused(f"the result of {named(node)} has several readers ({', '.join(readers)})")


def is_private(node: ir.Node) -> bool:
    """Whether one node, and no output of the model, reads the first output of ``node``."""
    output = node.outputs[0]
    return not output.is_graph_output() and len(output.uses()) == 1


def replace_node(old: ir.Node, new: ir.Node) -> None:
    """Let the readers of ``old`` read ``new``, which takes over the name of its only output."""
    before, after = old.outputs[0], new.outputs[0]
    before.replace_all_uses_with(after, replace_graph_outputs=True)
    name, before.name = before.name, None
    after.name = name


def free_name(graph: ir.Graph, name: str) -> str:
    """``name``, lengthened until no initialiser of the graph has it."""
    while name in graph.initializers:
        name += "_"
    return name


def new_constant(array: np.ndarray, name: str, graph: ir.Graph) -> ir.Value:
    """A new initialiser of the graph, called ``name`` if that is free."""
    name = free_name(graph, name)
    value = ir.val(name, const_value=ir.tensor(array, name=name))
    graph.register_initializer(value)
    return value


def rounded(array: np.ndarray, dtype: np.dtype, owner: str) -> np.ndarray:
    """``array`` in ``dtype``; raises :class:`Refused` where it leaves the range of the dtype."""
    with np.errstate(over="ignore"):
        result = array.astype(dtype)
    if not np.isfinite(result.astype(np.float64)).all():
        raise Refused(f"the folded constants of {owner} would not be finite in {dtype}")
    return result
