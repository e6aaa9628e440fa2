"""Integer kernels for every generation of x86: equal to the reference to the last bit."""

from __future__ import annotations

import platform
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

from edgec.program import Depthwise
from edgec.targets.cpu import x86
from edgec.targets.cpu.x86 import window
from edgec.targets.target import Target, load_target
from tests.programs import HostProgram, assert_close, program_of, run_reference
from tests.random_layers import random_layers
from tests.test_aarch64_kernels import FLOAT_SHAPES, float_layer, together
from tests.test_integer_kernels import SHAPES, layer

pytestmark = pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="x86 only")

GENERATIONS: dict[str, tuple[str, int, int, tuple[str, ...]]] = {
    "vbmi": ("x86-64-v4", 64, 32, ("avx512vnni", "avx512vbmi")),
    "vnni": ("x86-64-v4", 64, 32, ("avx512vnni",)),
    "avx512": ("x86-64-v4", 64, 32, ()),
    "avx2": ("x86-64-v3", 32, 16, ("avx2", "fma")),
    "sse2": ("x86-64", 16, 16, ()),
}
"""LLVM's processor, bytes of a vector, registers, features."""


def target(generation: str) -> Target:
    """This machine as a processor of ``generation``; the test is skipped where the machine is an older one."""
    host = load_target("host")
    cpu, size, registers, features = GENERATIONS[generation]
    if size > host.vector_bytes or not set(features) <= set(host.features):
        pytest.skip(f"this machine is older than {generation}")
    dropped = ("avx512vnni", "avx512vbmi")
    kept = tuple(feature for feature in host.features if cpu == "x86-64-v4" and feature not in dropped)
    return replace(host, cpu=cpu, vector_bytes=size, vector_registers=registers, features=(*kept, *features))


@pytest.mark.parametrize("generation", GENERATIONS)
def test_every_generation(generation: str, tmp_path: Path) -> None:
    layers = [layer(*shape, ("int8", "uint8")[index % 2]) for index, shape in enumerate(SHAPES.values())]
    inputs = {f"{index}_x": own["x"] for index, (_, own) in enumerate(layers)}
    check(together(model for model, _ in layers), inputs, tmp_path, target(generation))


BLOCKS = {
    "64 and 32": ((1, 96, 8, 7), (96, 1, 3, 3), {"group": 96, "pads": [1, 1, 1, 1], "strides": [2, 2]}),
    "128, 16 and 5": ((1, 149, 5, 9), (149, 1, 3, 3), {"group": 149, "pads": [1, 0, 1, 1]}),
    "64, twice, of a large window": ((2, 128, 7, 5), (128, 1, 5, 5), {"group": 128, "pads": [2, 2, 2, 2]}),
    "32, a column": ((1, 32, 17, 1), (32, 1, 3, 1), {"group": 32, "pads": [1, 0, 1, 0]}),
}
"""Depthwise layers whose channels fill blocks of several sizes."""


@pytest.mark.parametrize("generation", GENERATIONS)
def test_blocks_of_channels(generation: str, tmp_path: Path) -> None:
    layers = [layer(*shape, ("int8", "uint8")[index % 2]) for index, shape in enumerate(BLOCKS.values())]
    inputs = {f"{index}_x": own["x"] for index, (_, own) in enumerate(layers)}
    check(together(model for model, _ in layers), inputs, tmp_path, target(generation))


@pytest.mark.parametrize("generation", ["avx512", "avx2"])
def test_float_depthwise(generation: str, tmp_path: Path) -> None:
    layers = [float_layer(*shape) for name, shape in FLOAT_SHAPES.items() if "depthwise" in name]
    inputs = {f"{index}_x": own["x"] for index, (_, own) in enumerate(layers)}
    program = program_of(together(model for model, _ in layers))
    want = run_reference(program, inputs)
    compiled = HostProgram(program, tmp_path, target(generation))
    for threads in (1, 3):
        assert_close(compiled.run(inputs, threads), want)


def test_every_tile_of_a_float_window(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = target("avx512")
    model, inputs = float_layer((1, 21, 11, 9), (21, 1, 3, 3), {"group": 21, "pads": [1, 1, 0, 1], "strides": [2, 1]})
    program = program_of(model)
    want = run_reference(program, inputs)
    kernel = next(step.kernel for step in program.steps if isinstance(step.kernel, Depthwise))
    sizes = [(plan.rows, plan.columns) for plan in window.candidates(kernel, machine)]
    assert {(1, 1), (2, 5)} <= set(sizes)
    for rows, columns in sizes[::2]:
        folder = tmp_path / f"{rows}x{columns}"
        folder.mkdir()
        chosen = replace(x86.WINDOW, plan=lambda k, t, r=rows, c=columns: window.WindowPlan(k, c, t.lanes(4), r))
        monkeypatch.setattr(x86, "WINDOW", chosen)
        for threads in (1, 2):
            assert_close(HostProgram(program, folder, machine).run(inputs, threads), want)


@pytest.mark.heavy
@pytest.mark.parametrize("generation", GENERATIONS)
def test_many_random_layers_of_every_generation(generation: str, tmp_path: Path) -> None:
    for seed in range(3000, 3020):
        (tmp_path / str(seed)).mkdir()
        model, inputs = random_layers(seed, 20, ("int8", "uint8")[seed % 2])
        check(model, inputs, tmp_path / str(seed), target(generation))


def check(model: onnx.ModelProto, inputs: dict[str, np.ndarray], folder: Path, machine: Target) -> None:
    """Compare the kernels of a model with the reference, on one thread and on three."""
    program = program_of(model)
    want = run_reference(program, inputs)
    compiled = HostProgram(program, folder, machine)
    for threads in (1, 3):
        for name, values in compiled.run(inputs, threads).items():
            np.testing.assert_array_equal(values, want[name], err_msg=name)
