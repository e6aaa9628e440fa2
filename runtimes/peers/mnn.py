"""MNN's CPU backend, in float32, on a model that MNN's own converter makes from the ONNX file.

MNN lays its input's memory out anew in every run, so copying the input in is part of :meth:`Adapter.invoke`.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import MNN
import numpy as np

from edgec.data.samples import Array
from edgec.errors import EdgecError
from edgec.runtimes.peers import Peer, Shapes
from edgec.runtimes.peers.conversion import Prepared, convert, prepare

_CONVERTER = "import sys, _tools; _tools.mnnconvert(['mnnconvert', *sys.argv[1:]])"
"""The converter without its command line, which would install a logger and report to its maker."""

_TYPES = {
    "float32": MNN.Halide_Type_Float, "int32": MNN.Halide_Type_Int, "uint8": MNN.Halide_Type_Uint8,
    "int64": MNN.Halide_Type_Int64,
}  # fmt: skip


class Adapter(Peer):
    """A session of an interpreter."""

    name: ClassVar[str] = "mnn"

    def __init__(self, model: Path, threads: int, shapes: Shapes) -> None:
        self.version = MNN.version()
        with tempfile.TemporaryDirectory(prefix="edgec-mnn-") as folder:
            prepared = prepare(model, shapes, Path(folder), self.name)
            self.inputs, self.output_names = prepared.inputs, prepared.output_names
            self._interpreter = _interpreter(prepared, model, Path(folder))
        settings = {"backend": "CPU", "numThread": threads, "precision": "high"}
        self._session = self._interpreter.createSession(settings)
        if self._session is None:
            raise EdgecError(f"mnn cannot run '{model}': it makes no session of it; leave it out of --against")
        self._tensors = [self._interpreter.getSessionInput(self._session, spec.name) for spec in self.inputs]
        self._bound: list[Any] = []

    def bind(self, inputs: Mapping[str, Array]) -> None:
        arrays = [np.ascontiguousarray(inputs[spec.name]) for spec in self.inputs]
        self._bound = [
            MNN.Tensor(array.shape, _TYPES[str(array.dtype)], array, MNN.Tensor_DimensionType_Caffe) for array in arrays
        ]

    def invoke(self) -> None:
        for tensor, bound in zip(self._tensors, self._bound, strict=True):
            tensor.copyFrom(bound)
        self._interpreter.runSession(self._session)

    def outputs(self) -> list[Array]:
        return [self._output(name) for name in self.output_names]

    def _output(self, name: str) -> Array:
        source = self._interpreter.getSessionOutput(self._session, name)
        host = MNN.Tensor(
            source.getShape(), source.getDataType(), np.zeros(source.getShape(), np.float32),
            MNN.Tensor_DimensionType_Caffe,
        )  # fmt: skip
        source.copyToHostTensor(host)
        return np.array(host.getNumpyData()).reshape(source.getShape())


def _interpreter(prepared: Prepared, model: Path, folder: Path) -> Any:
    """The converted model, loaded."""
    for spec in prepared.inputs:
        if str(spec.dtype) not in _TYPES:
            raise EdgecError(f"mnn takes no input of {spec.dtype}, as '{spec.name}' of '{model}' is; leave it out")
    result = folder / "model.mnn"
    command = [sys.executable, "-c", _CONVERTER, "-f", "ONNX", "--modelFile", str(prepared.path)]
    convert([*command, "--MNNModel", str(result), "--bizCode", "edgec"], folder, result, "mnn", model)
    return MNN.Interpreter(str(result))
