"""Making a model smaller from its ends: inputs that become constants, and parts that are cut off.

An exporter may leave choices open that a device never makes: the sampling rate of a voice detector, the
``use_cache_branch`` of a merged decoder, whole branches of ``If`` with them. And it may put into the graph what
belongs in the program around it, such as the choice of boxes, whose number depends on the data.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from difflib import get_close_matches

import numpy as np
import onnx_ir as ir

from edgec.errors import EdgecError
from edgec.frontend.shapes import infer_where_possible
from edgec.frontend.values import inputs_text, is_used, shape_text

Number = bool | int | float

_WORDS: Mapping[str, Number] = {"true": True, "false": False}


def parse_value_flags(flags: Sequence[str]) -> dict[str, tuple[Number, ...]]:
    """``["sr=16000", "scales=0.7,1,0.8"]`` as ``{"sr": (16000,), "scales": (0.7, 1, 0.8)}``; true and false are known.

    Raises :class:`EdgecError` for a flag of another form, or a name given twice.
    """
    values: dict[str, tuple[Number, ...]] = {}
    for flag in flags:
        name, _, text = flag.rpartition("=")
        numbers = [_number(each.strip()) for each in text.split(",")]
        if not name or None in numbers:
            raise EdgecError(f"--value {flag} is not of the form NAME=16000, NAME=true or NAME=0.7,1,0.8.")
        if name in values:
            raise EdgecError(f"--value is given twice for input '{name}'; give it once.")
        values[name] = tuple(each for each in numbers if each is not None)
    return values


def set_inputs(model: ir.Model, values: Mapping[str, Sequence[Number]]) -> None:
    """Turn inputs into constants, in place: one number for all elements, or one for each.

    Raises :class:`EdgecError` for an unknown name, a wrong count, and numbers that the input's dtype does not have.
    """
    graph = model.graph
    inputs = {str(value.name): value for value in graph.inputs}
    for name, numbers in values.items():
        if name not in inputs:
            raise EdgecError(f"--value names '{name}', but the model's inputs are: {inputs_text(graph.inputs)}.")
        value = inputs[name]
        constant = _constant(value, numbers)
        value.const_value, value.shape = ir.tensor(constant, name=name), ir.Shape(constant.shape)
        graph.inputs.remove(value)
        graph.register_initializer(value)


def cut(model: ir.Model, inputs: Sequence[str], outputs: Sequence[str]) -> None:
    """Keep what lies between ``inputs`` and ``outputs``, values of the graph, in place.

    Without ``outputs`` the model ends where it did; without ``inputs`` it begins there, but for those nobody reads now.

    Raises :class:`EdgecError` for a name that no value has, and for outputs that need an input that is cut off.
    """
    infer_where_possible(model)  # the new ends need a type
    graph = model.graph
    known = {str(value.name): value for node in graph for value in node.outputs}
    known |= {str(value.name): value for value in graph.inputs}
    for flag, names in (("--inputs", inputs), ("--outputs", outputs)):
        for name in names:
            if name not in known:
                raise EdgecError(f"{flag} names '{name}', and no value of the graph has that name{_hint(graph, name)}.")
    starts = [known[name] for name in inputs] or list(graph.inputs)
    ends = [known[name] for name in outputs] or list(graph.outputs)
    try:
        model.graph = ir.convenience.extract(graph, starts, ends)
    except ValueError as error:
        raise EdgecError(
            f"--inputs {','.join(inputs)} leaves out what the outputs are computed from, too; "
            f"name these as well: {_missing(error)}."
        ) from error
    if not inputs:
        for value in [each for each in model.graph.inputs if not is_used(each)]:
            model.graph.inputs.remove(value)


def _hint(graph: ir.Graph, name: str) -> str:
    """What may be meant by a name that no value has: what the node of that name computes, or similar names."""
    values = {str(node.name): [str(value.name) for value in node.outputs] for node in graph}
    if name in values:
        return f"; the node of that name computes {', '.join(values[name])}"
    similar = get_close_matches(name, [each for names in values.values() for each in names])
    return f"; similar ones are {', '.join(similar)}" if similar else ""


def _missing(error: ValueError) -> str:
    """The names at the end of what onnx_ir says of a cut that is not closed."""
    return str(error).rpartition(": ")[2].rstrip(".")


def _number(text: str) -> Number | None:
    if text.lower() in _WORDS:
        return _WORDS[text.lower()]
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            pass
    return None


def _constant(value: ir.Value, numbers: Sequence[Number]) -> np.ndarray:
    """``numbers`` in the dtype and the shape of the input; an axis that is not static fits itself to their count."""
    flag = f"--value {value.name}={','.join(map(str, numbers))}"
    assert value.dtype is not None and value.shape is not None
    axes = [axis if isinstance(axis, int) and axis > 0 else -1 for axis in value.shape]
    given = np.array(numbers)
    with np.errstate(all="ignore"):
        typed = given.astype(value.dtype.numpy())
    kept = np.isclose(typed.astype(np.float64), given.astype(np.float64), rtol=1e-2, atol=0, equal_nan=True)
    if not kept.all() or (np.issubdtype(typed.dtype, np.integer) and (typed != given).any()):
        raise EdgecError(f"{flag}: input '{value.name}' is {value.dtype.name.lower()}, which has no such number.")
    if typed.size == 1:
        return np.full([max(axis, 1) for axis in axes], typed[0])
    try:
        return typed.reshape(axes)
    except ValueError as error:
        raise EdgecError(
            f"{flag} has {typed.size} numbers, but the model declares '{value.name}' as {shape_text(value)}."
        ) from error
