"""Integer kernels for every generation of x86: equal to the reference to the last bit."""

from __future__ import annotations

import platform
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgec.targets.target import Target, load_target
from tests.programs import HostProgram, program_of, run_reference
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


@pytest.mark.parametrize("dtype", ["int8", "uint8"])
@pytest.mark.parametrize("generation", GENERATIONS)
@pytest.mark.parametrize("name", SHAPES)
def test_every_generation(name: str, generation: str, dtype: str, tmp_path: Path) -> None:
    check(layer(*SHAPES[name], dtype), tmp_path, target(generation))


def check(made: tuple[Any, dict[str, np.ndarray]], folder: Path, machine: Target | None = None) -> None:
    """Compare a layer's kernels with the reference, on one thread and on three."""
    model, inputs = made
    program = program_of(model)
    want = run_reference(program, inputs)["y"]
    compiled = HostProgram(program, folder, machine)
    for threads in (1, 3):
        np.testing.assert_array_equal(compiled.run(inputs, threads)["y"], want)


def random_layer(seed: int) -> tuple[Any, dict[str, np.ndarray]]:
    """A convolution of odd shape: dense, grouped or depthwise, of either dtype."""
    draw = np.random.default_rng(seed)
    kernel = [int(size) for size in draw.choice([1, 1, 2, 3, 3, 5], 2)]
    dilations = [int(step) if size > 1 else 1 for step, size in zip(draw.choice([1, 1, 2], 2), kernel, strict=True)]
    depthwise = bool(draw.integers(2))
    groups = 1 if depthwise else int(draw.choice([1, 1, 1, 2, 3]))
    inputs = int(draw.choice([1, 2, 3, 5, 7, 8, 16, 17, 24, 33, 48, 127]))
    inputs = max(inputs, 2) if depthwise else -(-inputs // groups) * groups
    outputs = inputs if depthwise else int(draw.choice([1, 3, 4, 7, 10, 16, 17, 24, 31, 40, 64])) * groups
    groups = inputs if depthwise else groups
    sizes = [int(draw.integers((size - 1) * step + 1, 17)) for size, step in zip(kernel, dilations, strict=True)]
    attributes = {
        "pads": [int(pad) for pad in draw.integers(0, 2, 4)],
        "strides": [int(stride) for stride in draw.choice([1, 1, 2, 3], 2)],
        "dilations": dilations,
        "group": groups,
    }
    shape = (int(draw.choice([1, 1, 2])), inputs, *sizes)
    return layer(shape, (outputs, inputs // groups, *kernel), attributes, str(draw.choice(["int8", "uint8"])), seed)


@pytest.mark.parametrize("seed", range(0, 200, 20))
def test_random_layers(seed: int, tmp_path: Path) -> None:
    for index in range(seed, seed + 20):
        folder = tmp_path / str(index)
        folder.mkdir()
        check(random_layer(index), folder)


@pytest.mark.heavy
@pytest.mark.parametrize("generation", GENERATIONS)
@pytest.mark.parametrize("seed", range(1000, 3000, 200))
def test_many_random_layers(seed: int, generation: str, tmp_path: Path) -> None:
    machine = target(generation)
    for index in range(seed, seed + 200):
        folder = tmp_path / str(index)
        folder.mkdir()
        check(random_layer(index), folder, machine)
