"""Models that compute in float16: quantised as models of float32, and brought back with their weights as integers.

Statistics, fits and errors are of float32 numbers, in which every float16 is exact. What comes back has float16
activations, scales and biases around the integers, as it had before. Functions of domain ``edgec`` are written for
either and stay as they are.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import onnx_ir as ir

HALF, SINGLE = ir.DataType.FLOAT16, ir.DataType.FLOAT


def computes_in_half(model: ir.Model) -> bool:
    """Whether the floats of ``model`` are float16; where only some are, what can be quantised is the float32 part."""
    dtypes = {value.dtype for value in _values(model)}
    return HALF in dtypes and SINGLE not in dtypes


def widened(model: ir.Model) -> ir.Model:
    """A copy of a model of float16 that computes in float32."""
    copy = model.clone()
    _convert(copy, HALF, SINGLE)
    return copy


def widened_samples(samples: Sequence[Mapping[str, np.ndarray]]) -> tuple[dict[str, np.ndarray], ...]:
    """``samples`` with float32 in the place of float16."""
    return tuple(
        {name: array.astype(np.float32) if array.dtype == np.float16 else array for name, array in sample.items()}
        for sample in samples
    )


def narrow(model: ir.Model) -> None:
    """Let ``model``, whose floats are float32, compute in float16 again, in place."""
    _convert(model, SINGLE, HALF)


def _convert(model: ir.Model, old: ir.DataType, new: ir.DataType) -> None:
    for value in _values(model):
        if value.dtype != old:
            continue
        if value.const_value is not None:
            value.const_value = ir.tensor(value.const_value.numpy().astype(new.numpy()), name=value.name)
        value.type = ir.TensorType(new)
    for node in model.graph.all_nodes():
        for name, attribute in list(node.attributes.items()):
            if attribute.type == ir.AttributeType.TENSOR and attribute.as_tensor().dtype == old:
                array = attribute.as_tensor().numpy().astype(new.numpy())
                node.attributes[name] = ir.AttrTensor(name, ir.tensor(array))
            elif node.op_type == "Cast" and name == "to" and attribute.as_int() == old:
                node.attributes[name] = ir.AttrInt64(name, int(new))


def _values(model: ir.Model) -> Iterator[ir.Value]:
    """Inputs, constants and results, each once."""
    yield from dict.fromkeys(model.graph.inputs)
    yield from (value for value in model.graph.initializers.values() if not value.is_graph_input())
    for node in model.graph.all_nodes():
        yield from node.outputs
