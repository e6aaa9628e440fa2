"""Random models: the numpy reference, the compiled program (fused, on 1 and 3 threads) and ONNX Runtime agree."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from tests.programs import HostProgram, assert_close, program_of, random_inputs, run_reference
from tests.random_models import RandomModel

FAST = range(40)
MANY = range(1000, 1600)


def check(seed: int, folder: Path) -> None:
    source = RandomModel(seed, nodes=4 + seed % 12).build()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(source.SerializeToString(), options, providers=["CPUExecutionProvider"])
    plain, fused = program_of(source, fuse=False), program_of(source)
    inputs = random_inputs(plain, seed)
    names = [output.name for output in session.get_outputs()]
    want = dict(zip(names, session.run(None, inputs), strict=True))
    if not all(np.isfinite(value).all() and np.abs(value).max(initial=0) < 1e6 for value in want.values()):
        return  # overflowed: nothing can be said of the digits
    assert_close(run_reference(plain, inputs), want, 1e-4)
    assert_close(run_reference(fused, inputs), want, 1e-4)
    compiled = HostProgram(fused, folder)
    for threads in (1, 3):
        assert_close(compiled.run(inputs, threads), want, 1e-4)


@pytest.mark.parametrize("seed", FAST)
def test_random_model(seed: int, tmp_path: Path) -> None:
    check(seed, tmp_path)


@pytest.mark.heavy
def test_many_random_models(tmp_path: Path) -> None:
    for seed in MANY:
        folder = tmp_path / str(seed)
        folder.mkdir()
        check(seed, folder)
