"""The Verilog engines compute what the reference does, and the estimator knows what they take."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from edgec.targets.fpga import resources, rounding
from edgec.targets.fpga.engines import (
    Engine,
    example_weights,
    integers,
    matrix_vector_engine,
    requantiser_engine,
    simulate,
    sliding_window_engine,
    synthesise,
)
from edgec.targets.fpga.folding import Folding, window_steps
from edgec.targets.fpga.layers import Feature, MaxPool, Requantisation, Window
from tests.conftest import ROOT


@pytest.fixture(params=["iverilog", pytest.param("verilator", marks=pytest.mark.heavy)])
def tool(request: pytest.FixtureRequest) -> str:
    """A simulator that is installed."""
    if shutil.which(request.param) is None:
        pytest.skip(f"{request.param} is not installed; .ci/install-tools does it")
    return request.param


def answers(
    engine: Engine, inputs: np.ndarray, bits: int, results: int, folder: Path, tool: str, out: int
) -> np.ndarray:
    """The output words as integers of ``out`` bits."""
    words, _ = simulate(engine, inputs, bits, results, folder, tool)
    return np.array([integers(word, out, engine.out_bits // out) for word in words])


@pytest.mark.parametrize(
    ("simd", "pe", "steps", "folds", "bits", "multiplier"),
    [
        (4, 2, 8, 4, 8, "dsp"), (3, 5, 7, 3, 8, "lut"), (1, 1, 1, 1, 8, "dsp"), (4, 4, 6, 2, 4, "shift"),
        (2, 3, 5, 4, 8, "shift"), (8, 2, 3, 1, 4, "lut"), (5, 7, 17, 1, 8, "dsp"),
    ],
)  # fmt: skip
def test_matrix_vector(
    simd: int, pe: int, steps: int, folds: int, bits: int, multiplier: str, tool: str, tmp_path: Path
) -> None:
    generator = np.random.default_rng(simd * pe)
    weights = example_weights(generator, steps * folds, pe, simd, bits)
    x = generator.integers(-128, 128, (5, steps, simd))
    engine = matrix_vector_engine(weights, folds, 24, multiplier, bits)
    found = answers(engine, x.reshape(-1, simd), 8, 5 * folds, tmp_path, tool, 24)
    wanted = np.einsum("pks,nkes->pne", x, weights.reshape(folds, steps, pe, simd).astype(np.int64))
    np.testing.assert_array_equal(found, wanted.reshape(-1, pe))


@pytest.mark.parametrize(
    ("height", "width", "channels", "simd", "kernel", "stride", "pad"),
    [
        (8, 8, 4, 4, 3, 1, 1), (7, 5, 6, 3, 3, 2, 1), (9, 17, 2, 1, 3, 1, 0), (6, 6, 4, 2, 1, 2, 0),
        (5, 7, 3, 3, 5, 1, 2),
    ],
)  # fmt: skip
def test_sliding_window(
    height: int, width: int, channels: int, simd: int, kernel: int, stride: int, pad: int, tool: str, tmp_path: Path
) -> None:
    """Three frames, one behind the other."""
    x = np.random.default_rng(width).integers(-128, 128, (3, height, width, channels))
    framed = np.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)), constant_values=-7)
    windows = np.lib.stride_tricks.sliding_window_view(framed, (kernel, kernel), (1, 2))[:, ::stride, ::stride]
    wanted = windows.transpose(0, 1, 2, 4, 5, 3).reshape(-1, simd)
    engine = sliding_window_engine(height, width, channels, simd, kernel, stride, pad, fill=-7)
    found = answers(engine, x.reshape(-1, simd), 8, len(wanted), tmp_path, tool, 8)
    np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize(
    ("accumulator", "channels", "exponent"), [(20, 16, -10), (25, 5, -14), (28, 1, -17), (32, 7, -22)]
)
def test_requantiser(accumulator: int, channels: int, exponent: int, tool: str, tmp_path: Path) -> None:
    """Sums of every size, half of them beside a tie."""
    generator = np.random.default_rng(accumulator)
    multiplier = np.exp2(generator.uniform(exponent - 3, exponent, channels)).astype(np.float32)
    bias = generator.integers(-1000, 1000, channels).astype(np.int32)
    end = Requantisation(bias, multiplier, -3, -120, 127)
    channel = np.arange(4000 // channels * channels) % channels
    largest = 2 ** (accumulator - 1) - 2000
    sums = generator.integers(-largest, largest, channel.size) >> generator.integers(0, accumulator - 3, channel.size)
    ties = ((generator.integers(-130, 130, channel.size) + 0.5) / multiplier[channel]).astype(np.int64) - bias[channel]
    sums = np.where((generator.random(channel.size) < 0.5) & (np.abs(ties) < largest), ties, sums)
    engine = requantiser_engine(end, accumulator)
    found = answers(engine, sums[:, None], accumulator, sums.size, tmp_path, tool, 8)
    mantissa, shift = end.factors
    total = (sums + bias[channel]).astype(np.int32)
    wanted = rounding.requantise(total, mantissa[channel], shift[channel], -3, -120, 127)
    np.testing.assert_array_equal(found[:, 0], wanted)


def test_cycles_are_the_estimated_steps(tool: str, tmp_path: Path) -> None:
    """One step a cycle, a pipeline to fill, and in the line buffer two cycles to turn at the end of a row."""
    generator = np.random.default_rng(0)
    engine = matrix_vector_engine(example_weights(generator, 24, 2, 4), 3, 24)
    _, cycles = simulate(engine, generator.integers(-128, 128, (80, 4)), 8, 30, tmp_path, tool, pauses=False)
    assert 240 <= cycles <= 240 + 6
    feature, window = Feature(9, 7, 6), Window((3, 3), (2, 2), (1, 1), (1, 1), 0)
    layer = MaxPool("pool", "pool", ("x",), "y", feature, Feature(5, 4, 6), window)
    steps = window_steps(layer, Folding(3, 3))
    engine = sliding_window_engine(9, 7, 6, 3, stride=2)
    inputs = generator.integers(-128, 128, (feature.elements // 3, 3))
    _, cycles = simulate(engine, inputs, 8, 5 * 4 * 9 * 2, tmp_path, tool, pauses=False)
    assert steps - 7 * 2 <= cycles <= steps + 2 * 6 + 3  # the last row of all need not be read to the end


@pytest.mark.parametrize(
    ("depth", "width", "wanted"),
    [
        (144, 128, 4), (576, 512, 29), (2304, 128, 18), (10240, 64, 36), (4096, 64, 15), (2304, 16, 3), (108, 96, 3),
        (256, 62, 2), (2304, 8, 2),
    ],
)  # fmt: skip
def test_block_memories_as_yosys_maps_them(depth: int, width: int, wanted: int) -> None:
    assert resources.block_memories(depth, width) == wanted


def calibration() -> ModuleType:
    spec = importlib.util.spec_from_file_location("calibrate", ROOT / "samples" / "fpga" / "calibrate.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.heavy
def test_estimates_against_synthesis(tmp_path: Path) -> None:
    """DSP slices and block memories exactly, lookup tables within a quarter."""
    if shutil.which("yosys") is None:
        pytest.skip("yosys is not installed; .ci/install-tools does it")
    engines = list(calibration().engines())
    assert len(engines) >= 12
    for index, (name, engine) in enumerate(engines):
        folder = tmp_path / f"{index}"
        folder.mkdir()
        found, guess = synthesise(engine, folder), engine.estimate
        assert (found.dsp, found.bram18) == (guess.dsp, guess.bram18), name
        assert abs(guess.lut / found.lut - 1) <= 0.25, (name, found.lut, guess.lut)
