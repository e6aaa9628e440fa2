"""OpenVINO's CPU plugin, in float32, one stream."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import openvino

from edgec.data.samples import Array, TensorSpec
from edgec.errors import EdgecError
from edgec.runtimes.peers import Peer, Shapes, reject_unknown, static_shape


class Adapter(Peer):
    """A compiled model and one inference request."""

    name: ClassVar[str] = "openvino"

    def __init__(self, model: Path, threads: int, shapes: Shapes) -> None:
        self.version = openvino.__version__.partition("-")[0]
        graph = _read(model)
        self.inputs = tuple(_spec(port, shapes) for port in graph.inputs)
        reject_unknown(self.inputs, shapes)
        self.output_names = tuple(port.get_any_name() for port in graph.outputs)
        graph.reshape({spec.name: list(spec.shape) for spec in self.inputs})
        settings = {
            "INFERENCE_NUM_THREADS": threads,
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": "f32",
        }
        self._compiled = _compiled(model, graph, settings)
        self._request = self._compiled.create_infer_request()
        self._bound: list[Array] = []

    def bind(self, inputs: Mapping[str, Array]) -> None:
        self._bound = [np.ascontiguousarray(inputs[spec.name]) for spec in self.inputs]
        for spec, array in zip(self.inputs, self._bound, strict=True):
            self._request.set_tensor(spec.name, openvino.Tensor(array, shared_memory=True))

    def invoke(self) -> None:
        self._request.infer()

    def outputs(self) -> list[Array]:
        return [self._request.get_tensor(port).data.copy() for port in self._compiled.outputs]


def _read(model: Path) -> Any:
    try:
        return openvino.Core().read_model(str(model))
    except RuntimeError as error:
        raise _refusal(model, error) from error


def _compiled(model: Path, graph: Any, settings: Mapping[str, Any]) -> Any:
    try:
        return openvino.Core().compile_model(graph, "CPU", settings)
    except RuntimeError as error:
        raise _refusal(model, error) from error


def _refusal(model: Path, error: RuntimeError) -> EdgecError:
    reason = str(error).strip().rpartition("\n")[2]
    return EdgecError(f"openvino cannot load '{model}': {reason}; leave it out of --against")


def _spec(port: Any, shapes: Shapes) -> TensorSpec:
    axes = [None if axis.is_dynamic else axis.get_length() for axis in port.get_partial_shape()]
    name = port.get_any_name()
    return TensorSpec(name, static_shape(name, axes, shapes), np.dtype(port.get_element_type().to_dtype()))
