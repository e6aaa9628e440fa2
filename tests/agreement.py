"""Comparing artifacts with ONNX Runtime, sample by sample."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime

from edgec.data.samples import Samples
from edgec.devices.device import open_device

TOLERANCE = 1e-4
"""Of the output's range: both sides round float32 sums in an order of their own."""


def onnxruntime_outputs(model: Path, name: str, samples: np.ndarray) -> np.ndarray:
    """The only output of ``model`` [N, …] for ``samples`` [N, …], one sample a run."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    return np.concatenate([session.run(None, {name: sample[None]})[0] for sample in samples])


def artifact_outputs(artifact: Path, name: str, samples: np.ndarray, device: str = "local") -> np.ndarray:
    """The same of an artifact of batch 1 on ``device``."""
    runs = Samples(len(samples), None, lambda index: {name: samples[index : index + 1]})
    (output,) = open_device(device).run(artifact, runs).outputs.values()
    return output[:, 0]


def worst_error(found: np.ndarray, wanted: np.ndarray) -> float:
    """The largest difference of ``found`` from the first samples of ``wanted``, over the range of all of ``wanted``.

    NaN if ``found`` has a NaN, so that no bound holds.
    """
    first = wanted[: len(found)]
    assert found.shape == first.shape
    return float(np.abs(found - first).max() / np.ptp(wanted))


def same_top1(found: np.ndarray, wanted: np.ndarray) -> bool:
    """Whether ``found`` gives the first samples of ``wanted`` the same classes."""
    rows = len(found)
    return np.array_equal(found.reshape(rows, -1).argmax(1), wanted[:rows].reshape(rows, -1).argmax(1))
