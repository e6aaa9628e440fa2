"""LiteRT (TensorFlow Lite) with XNNPACK, on a .tflite file of the same network.

Its inputs and outputs are the ONNX model's in order, channels last where those have them second. A quantised input is
quantised before the inference, unless it is given as integers, and a quantised output dequantised after it.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from ai_edge_litert.interpreter import Interpreter

from edgec.data.samples import Array, TensorSpec
from edgec.errors import EdgecError
from edgec.runtimes.peers import Peer, Shapes

_CHANNELS_LAST, _CHANNELS_SECOND = (0, 2, 3, 1), (0, 3, 1, 2)


class Adapter(Peer):
    """An interpreter with its default delegate, XNNPACK."""

    name: ClassVar[str] = "litert"

    def __init__(self, model: Path, threads: int, shapes: Shapes) -> None:
        self.version = metadata.version("ai-edge-litert")
        self._interpreter = _open(model, threads)
        details = self._interpreter.get_input_details()
        if len(details) != len(shapes):
            raise EdgecError(f"'{model}' has {len(details)} inputs and the artifact {len(shapes)}; give its own file")
        self._moved = []
        for detail, (name, shape) in zip(details, shapes.items(), strict=True):
            wanted, moved = _layout(tuple(shape), tuple(detail["shape_signature"]), name, model)
            self._interpreter.resize_tensor_input(detail["index"], wanted)
            self._moved.append(moved)
        self._interpreter.allocate_tensors()
        self._inputs = self._interpreter.get_input_details()
        self._outputs = self._interpreter.get_output_details()
        self.inputs = tuple(
            TensorSpec(name, tuple(shape), np.dtype(np.float32) if _scale(detail) else np.dtype(detail["dtype"]))
            for (name, shape), detail in zip(shapes.items(), self._inputs, strict=True)
        )
        self.output_names = tuple(detail["name"] for detail in self._outputs)

    def bind(self, inputs: Mapping[str, Array]) -> None:
        for spec, detail, moved in zip(self.inputs, self._inputs, self._moved, strict=True):
            value, wanted = inputs[spec.name], tuple(detail["shape"])
            value = value.transpose(_CHANNELS_LAST) if moved else value
            self._interpreter.set_tensor(detail["index"], _quantised(value.reshape(wanted), detail))

    def invoke(self) -> None:
        self._interpreter.invoke()

    def outputs(self) -> list[Array]:
        return [self._output(detail) for detail in self._outputs]

    def _output(self, detail: Mapping[str, Any]) -> Array:
        value, scale = self._interpreter.get_tensor(detail["index"]), _scale(detail)
        if scale:
            value = ((value.astype(np.float32) - detail["quantization"][1]) * scale).astype(np.float32)
        return np.ascontiguousarray(value.transpose(_CHANNELS_SECOND)) if value.ndim == len(_CHANNELS_SECOND) else value


def _open(model: Path, threads: int) -> Any:
    if model.suffix == ".onnx":
        beside = model.with_suffix(".tflite")
        if not beside.is_file():
            raise EdgecError(
                f"litert runs .tflite files and there is no '{beside}'; give the same network's with "
                "--peer-model litert=FILE.tflite, or leave it out of --against"
            )
        model = beside
    try:
        return Interpreter(str(model), num_threads=threads)
    except (ValueError, RuntimeError) as error:
        reason = str(error).partition("\n")[0]
        raise EdgecError(f"litert cannot load '{model}': {reason}; leave it out of --against") from error


def _layout(shape: tuple[int, ...], declared: tuple[int, ...], name: str, model: Path) -> tuple[tuple[int, ...], bool]:
    """``shape`` as the file has its axes, and whether it has channels last where the artifact has them second."""
    can_move = len(shape) == len(_CHANNELS_LAST)
    moved = tuple(shape[axis] for axis in _CHANNELS_LAST) if can_move else shape
    for found, is_moved in ((moved, can_move), (shape, False)):
        if len(found) == len(declared) and all(d in (-1, f) for d, f in zip(declared, found, strict=True)):
            return found, is_moved
    shown = "x".join(map(str, shape))
    raise EdgecError(f"'{model}' takes {list(declared)} where the artifact takes '{name}' {shown}; give its own file")


def _scale(detail: Mapping[str, Any]) -> float:
    """The scale of a quantised tensor; 0 for any other."""
    return float(detail["quantization"][0])


def _quantised(value: Array, detail: Mapping[str, Any]) -> Array:
    scale, zero = detail["quantization"]
    if not scale or value.dtype == detail["dtype"]:
        return value
    limits = np.iinfo(detail["dtype"])
    return np.clip(np.rint(value / scale) + zero, limits.min, limits.max).astype(detail["dtype"])
