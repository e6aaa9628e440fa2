"""ONNX models as the converters of other runtimes take them: static shapes, and spellings that they misread mended."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper

from edgec.data.samples import TensorSpec
from edgec.errors import EdgecError
from edgec.runtimes.peers import Shapes, reject_unknown, static_shape

_BOUNDS = slice(1, 3)
"""Clip's inputs that hold its bounds."""


@dataclass(frozen=True)
class Prepared:
    """A model file for a converter, and its inputs and outputs in order."""

    path: Path
    inputs: tuple[TensorSpec, ...]
    output_names: tuple[str, ...]


def prepare(model: Path, shapes: Shapes, folder: Path, peer: str) -> Prepared:
    """Write ``model`` into ``folder`` with its inputs pinned to ``shapes``.

    Raises:
        EdgecError: the file is no model, or an input stays dynamic.
    """
    try:
        proto = onnx.load(model)
    except Exception as error:  # protobuf's and onnx's classes share no base but this one
        raise EdgecError(f"{peer} cannot load '{model}': it is no ONNX file; check it with edgec inspect") from error
    constants = {tensor.name for tensor in proto.graph.initializer}
    inputs = tuple(_pinned(value, shapes) for value in proto.graph.input if value.name not in constants)
    reject_unknown(inputs, shapes)
    _drop_inputs(proto.graph, constants)
    del proto.graph.value_info[:]
    _make_bounds_scalar(proto.graph)
    path = folder / "model.onnx"
    onnx.save(proto, path)
    return Prepared(path, inputs, tuple(value.name for value in proto.graph.output))


def convert(command: Sequence[str], folder: Path, result: Path, peer: str, model: Path) -> None:
    """Run a converter in ``folder``, which writes ``result``.

    Raises:
        EdgecError: it fails, or writes nothing.
    """
    done = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, errors="replace", stdin=subprocess.DEVNULL, check=False
    )
    if done.returncode != 0 or not result.is_file():
        lines = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
        reason = lines[-1].strip()[-200:] if lines else f"exit code {done.returncode}"
        raise EdgecError(f"{peer} cannot convert '{model}': {reason}; leave it out of --against")


def _pinned(value: onnx.ValueInfoProto, shapes: Shapes) -> TensorSpec:
    """The input as it is used; its dimensions become static in the model, too."""
    tensor = value.type.tensor_type
    declared = [axis.dim_value if axis.HasField("dim_value") else None for axis in tensor.shape.dim]
    shape = static_shape(value.name, declared, shapes)
    for axis, extent in zip(tensor.shape.dim, shape, strict=True):
        axis.Clear()
        axis.dim_value = extent
    return TensorSpec(value.name, shape, np.dtype(helper.tensor_dtype_to_np_dtype(tensor.elem_type)))


def _drop_inputs(graph: onnx.GraphProto, constants: set[str]) -> None:
    """Weights are listed as inputs, too, in old files, and converters take them for inputs."""
    inputs = [value for value in graph.input if value.name not in constants]
    del graph.input[:]
    graph.input.extend(inputs)


def _make_bounds_scalar(graph: onnx.GraphProto) -> None:
    """Bounds of Clip become scalars, as ONNX has them; MNN takes a bound of shape (1,) for another number."""
    bounds = {name for node in graph.node if node.op_type == "Clip" for name in node.input[_BOUNDS]}
    for tensor in _constants(graph):
        if tensor[0] in bounds and list(tensor[1].dims) == [1]:
            scalar = numpy_helper.from_array(numpy_helper.to_array(tensor[1]).reshape(()), tensor[1].name)
            tensor[1].CopyFrom(scalar)


def _constants(graph: onnx.GraphProto) -> Iterator[tuple[str, onnx.TensorProto]]:
    """Every constant tensor by the name it is used by."""
    for tensor in graph.initializer:
        yield tensor.name, tensor
    for node in graph.node:
        for attribute in node.attribute:
            if node.op_type == "Constant" and attribute.name == "value":
                yield node.output[0], attribute.t
