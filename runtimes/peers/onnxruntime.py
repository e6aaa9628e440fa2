"""ONNX Runtime's CPU provider, through an I/O binding so that only its kernels are timed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

import numpy as np
import onnxruntime

from edgec.data.samples import Array, TensorSpec
from edgec.errors import EdgecError
from edgec.runtimes.peers import Peer, Shapes, reject_unknown, static_shape

_ERRORS_ONLY = 3

_DTYPES = {"tensor(float)": "float32", "tensor(double)": "float64"}
"""ONNX Runtime's element types whose names are not ``tensor(<numpy's name>)``."""


class Adapter(Peer):
    """A session of its own, all graph optimisations on."""

    name: ClassVar[str] = "onnxruntime"

    def __init__(self, model: Path, threads: int, shapes: Shapes) -> None:
        self.version = onnxruntime.__version__
        self._session = _open(model, threads)
        self.inputs = tuple(
            TensorSpec(each.name, static_shape(each.name, each.shape, shapes), _dtype(each.type))
            for each in self._session.get_inputs()
        )
        reject_unknown(self.inputs, shapes)
        self.output_names = tuple(each.name for each in self._session.get_outputs())
        self._binding = self._session.io_binding()
        self._bound: list[Array] = []

    def bind(self, inputs: Mapping[str, Array]) -> None:
        self._binding.clear_binding_inputs()
        self._binding.clear_binding_outputs()
        self._bound = [np.ascontiguousarray(inputs[spec.name]) for spec in self.inputs]
        for spec, array in zip(self.inputs, self._bound, strict=True):
            self._binding.bind_cpu_input(spec.name, array)
        for name in self.output_names:
            self._binding.bind_output(name)

    def invoke(self) -> None:
        self._session.run_with_iobinding(self._binding)

    def outputs(self) -> list[Array]:
        return list(self._binding.copy_outputs_to_cpu())


def _open(model: Path, threads: int) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = _ERRORS_ONLY
    # else its idle threads would spin while another runtime is being timed
    options.add_session_config_entry("session.force_spinning_stop", "1")
    try:
        return onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its classes share no base but this one
        reason = str(error).partition("\n")[0]
        raise EdgecError(f"onnxruntime cannot load '{model}': {reason}; check the file with edgec inspect") from error


def _dtype(text: str) -> np.dtype[np.generic]:
    name = _DTYPES.get(text, text.removeprefix("tensor(").removesuffix(")"))
    try:
        return np.dtype(name)
    except TypeError as error:
        raise EdgecError(f"the model has an input of type {text}, which is no dense tensor of numbers") from error
