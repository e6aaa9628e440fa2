"""A TensorFlow Lite file in the making: tensors, constants and operators, packed by ``ai-edge-litert``'s schema."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgec.data.samples import Array
from edgec.errors import EdgecError

SCHEMA_VERSION = 3

VERSIONS = {
    "CONV_2D": 3, "DEPTHWISE_CONV_2D": 3, "FULLY_CONNECTED": 2, "TRANSPOSE_CONV": 3, "ADD": 2, "SUB": 2, "MUL": 2,
    "CONCATENATION": 2, "MAX_POOL_2D": 2, "AVERAGE_POOL_2D": 2, "MEAN": 2, "SUM": 2, "REDUCE_MAX": 2, "REDUCE_MIN": 2,
    "SOFTMAX": 2, "TRANSPOSE": 2, "PAD": 2, "PADV2": 2, "DEQUANTIZE": 2, "RELU": 2, "RELU6": 2, "LOGISTIC": 2,
    "TANH": 2, "RESIZE_BILINEAR": 3, "RESIZE_NEAREST_NEIGHBOR": 3, "STRIDED_SLICE": 2, "LEAKY_RELU": 2, "GATHER": 2,
    "MINIMUM": 2, "MAXIMUM": 2, "DEPTH_TO_SPACE": 2, "MIRROR_PAD": 2, "BROADCAST_TO": 2,
}  # fmt: skip
"""Of operators whose first version does not take 8-bit integers; 1 for all others."""

_TYPES = {"float32": "FLOAT32", "int8": "INT8", "int32": "INT32", "int64": "INT64", "bool": "BOOL", "uint8": "UINT8"}
_LAST_OLD_CODE = 127


def schema() -> Any:
    """The generated classes of the file format.

    Raises:
        EdgecError: the package is not installed.
    """
    try:
        return importlib.import_module("ai_edge_litert.schema_py_generated")
    except ImportError as error:
        raise EdgecError("the target tflite needs ai-edge-litert; run: pip install 'edgec[tflite]'") from error


@dataclass(frozen=True)
class Quant:
    """``real = scale · (q − zero)``: one scale, or one a channel along ``axis``."""

    scales: tuple[float, ...]
    zeros: tuple[int, ...]
    axis: int = 0


class Writer:
    """Collects one subgraph."""

    def __init__(self) -> None:
        self.schema = schema()
        self._tensors: list[Any] = []
        self._buffers: list[Any] = [self.schema.BufferT()]
        self._codes: dict[str, int] = {}
        self._operators: list[Any] = []

    def tensor(self, name: str, shape: Sequence[int], dtype: str, quant: Quant | None = None, buffer: int = 0) -> int:
        """A new tensor; answers its index."""
        made = self.schema.TensorT()
        made.name, made.shape, made.buffer = name.encode(), [int(extent) for extent in shape], buffer
        made.type = getattr(self.schema.TensorType, _TYPES[dtype])
        if quant is not None:
            made.quantization = self.schema.QuantizationParametersT()
            made.quantization.scale, made.quantization.zeroPoint = list(quant.scales), list(quant.zeros)
            made.quantization.quantizedDimension = quant.axis
        self._tensors.append(made)
        return len(self._tensors) - 1

    def rename(self, tensor: int, name: str) -> None:
        """Give a tensor another name."""
        self._tensors[tensor].name = name.encode()

    def constant(self, name: str, array: Array, quant: Quant | None = None) -> int:
        """A tensor that holds ``array``."""
        buffer = self.schema.BufferT()
        buffer.data = np.frombuffer(np.ascontiguousarray(array).tobytes(), np.uint8)
        self._buffers.append(buffer)
        return self.tensor(name, array.shape, str(array.dtype), quant, len(self._buffers) - 1)

    def operator(
        self, name: str, inputs: Sequence[int], outputs: Sequence[int], options: str = "", **fields: Any
    ) -> None:
        """Append an operator, with its table of ``options`` if it has one."""
        made = self.schema.OperatorT()
        made.opcodeIndex = self._codes.setdefault(name, len(self._codes))
        made.inputs, made.outputs = list(inputs), list(outputs)
        if options:
            made.builtinOptionsType = getattr(self.schema.BuiltinOptions, options)
            made.builtinOptions = getattr(self.schema, f"{options}T")()
            for field, value in fields.items():
                setattr(made.builtinOptions, field, value)
        self._operators.append(made)

    @property
    def operators(self) -> int:
        """How many there are."""
        return len(self._operators)

    def pack(self, inputs: Sequence[int], outputs: Sequence[int], metadata: Mapping[str, bytes]) -> bytes:
        """The file."""
        import flatbuffers

        graph = self.schema.SubGraphT()
        graph.tensors, graph.operators, graph.name = self._tensors, self._operators, b"main"
        graph.inputs, graph.outputs = list(inputs), list(outputs)
        model = self.schema.ModelT()
        model.version, model.subgraphs, model.description = SCHEMA_VERSION, [graph], b"edgec"
        model.operatorCodes = [self._code(name) for name in self._codes]
        model.metadata = [self._metadata(name, data) for name, data in metadata.items()]
        model.buffers = self._buffers
        builder = flatbuffers.Builder(1024)
        builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
        return bytes(builder.Output())

    def _code(self, name: str) -> Any:
        code = self.schema.OperatorCodeT()
        code.builtinCode = getattr(self.schema.BuiltinOperator, name)
        code.deprecatedBuiltinCode, code.version = min(code.builtinCode, _LAST_OLD_CODE), VERSIONS.get(name, 1)
        return code

    def _metadata(self, name: str, data: bytes) -> Any:
        buffer = self.schema.BufferT()
        buffer.data = np.frombuffer(data, np.uint8)
        self._buffers.append(buffer)
        made = self.schema.MetadataT()
        made.name, made.buffer = name.encode(), len(self._buffers) - 1
        return made


def read_metadata(data: bytes, name: str) -> bytes | None:
    """The metadata called ``name`` of a file; None where there is none.

    Raises:
        EdgecError: the schema's package is not installed.
    """
    model = schema().ModelT.InitFromPackedBuf(data, 0)
    for entry in model.metadata or ():
        if entry.name == name.encode():
            return bytes(bytearray(model.buffers[entry.buffer].data))
    return None
