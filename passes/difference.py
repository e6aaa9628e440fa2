"""How far the outputs of a model are from those it had before, by ONNX Runtime on samples."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import onnx_ir as ir

from edgec.errors import EdgecError

_FATAL_ONLY = 4


class Comparison:
    """Remembers what a model computes, to compare it with what becomes of it."""

    def __init__(self, model: ir.Model, samples: Iterable[Mapping[str, np.ndarray]]) -> None:
        """``samples``: arrays by input name, of exactly the inputs' shapes and dtypes.

        Raises:
            EdgecError: ONNX Runtime cannot run the model on them.
        """
        self._samples = [dict(sample) for sample in samples]
        self._wanted = self._outputs(model)
        self._ranges = [_range(arrays) for arrays in zip(*self._wanted, strict=True)]

    def worst(self, model: ir.Model) -> float:
        """The largest difference of any output on any sample, over that output's range on all samples."""
        worst = 0.0
        for found, wanted in zip(self._outputs(model), self._wanted, strict=True):
            for array, expected, extent in zip(found, wanted, self._ranges, strict=True):
                if array.size:
                    difference = np.abs(array.astype(np.float64) - expected.astype(np.float64)).max()
                    worst = max(worst, float(difference) / extent)
        return worst

    def _outputs(self, model: ir.Model) -> list[list[np.ndarray]]:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = _FATAL_ONLY
        options.intra_op_num_threads = 1
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        content = ir.to_proto(model).SerializeToString()
        try:
            session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
            return [session.run(None, sample) for sample in self._samples]
        except Exception as error:  # ONNX Runtime's exceptions have no common base class
            reason = " ".join(str(error).split())
            raise EdgecError(f"ONNX Runtime cannot run the model on the samples of --check: {reason}") from error


def _range(arrays: Iterable[np.ndarray]) -> float:
    """Largest minus least element of all arrays; 1 where they are all equal."""
    filled = [array.astype(np.float64) for array in arrays if array.size]
    extent = max(map(np.max, filled), default=0.0) - min(map(np.min, filled), default=0.0)
    return float(extent) or 1.0
