"""Models quantised by ONNX Runtime's quantiser, after the passes that come before a quantisation."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
from onnx import numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static

from edgec.graph import load_graph
from edgec.passes.pipeline import FLOAT, run


class _Reader(CalibrationDataReader):
    """One sample after the other, each as a batch of 1."""

    def __init__(self, name: str, samples: np.ndarray) -> None:
        self._samples: Iterator[dict[str, np.ndarray]] = iter([{name: sample[np.newaxis]} for sample in samples])

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self._samples, None)


def quantised_model(path: Path, name: str, samples: np.ndarray, weight_bits: int = 8) -> onnx.ModelProto:
    """The model in ``path`` with batch 1, int8 activations and per-channel weights of ``weight_bits``.

    Args:
        path: an ONNX file with one input.
        name: the input's.
        samples: float32 [count, *shape of the input without its batch], for calibration.
        weight_bits: 8, or fewer: then the int8 tensors hold weights rounded to that many bits.
    """
    graph = load_graph(path, shapes={name: (1, *samples.shape[1:])})
    run(graph, FLOAT)
    with tempfile.TemporaryDirectory() as folder:
        given, made = Path(folder) / "float.onnx", Path(folder) / "int8.onnx"
        onnx.save(ir.to_proto(graph), given)
        quantize_static(
            given, made, _Reader(name, samples), per_channel=True, activation_type=QuantType.QInt8,
            weight_type=QuantType.QInt8,
        )  # fmt: skip
        model = onnx.load(made)
    if weight_bits < 8:
        _narrow(model, weight_bits)
    return model


def _narrow(model: onnx.ModelProto, weight_bits: int) -> None:
    """Round int8 weights to fewer bits; scales and biases follow."""
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    factor = np.float32(127 / (2 ** (weight_bits - 1) - 1))
    for node in model.graph.node:
        weights = tensors.get(node.input[0]) if node.op_type == "DequantizeLinear" else None
        if weights is None:
            continue
        values, scale = numpy_helper.to_array(weights), tensors[node.input[1]]
        steps = numpy_helper.to_array(scale)
        if values.dtype == np.int8:
            narrow = np.rint(values.astype(np.float32) / factor).astype(np.int8)
        else:
            narrow = np.rint(values / factor).astype(values.dtype)
        weights.CopyFrom(numpy_helper.from_array(narrow, weights.name))
        scale.CopyFrom(numpy_helper.from_array((steps * factor).astype(np.float32), scale.name))
