"""Winograd's convolution on x86 against the numpy reference: channels in whole vectors and not, sums in place, and
weights of few bits."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
from onnx import helper

from edgec.program import Conv, Program
from edgec.targets.cpu.x86 import winograd
from edgec.targets.target import Target
from tests.programs import HostProgram, assert_close, model, program_of, random_inputs, run_reference
from tests.test_aarch64_kernels import together
from tests.test_kernels import weights
from tests.test_low_bit import WIDTHS, convolution
from tests.test_x86_kernels import pytestmark as pytestmark
from tests.test_x86_kernels import target

GENERATIONS = ("avx512", "avx2", "sse2")

CHANNELS = ((5, 17), (7, 40), (17, 5), (20, 24), (24, 20), (40, 7), (12, 33), (127, 12))
"""Inputs and outputs: fewer than a vector, a vector and a rest, and rests that take one store or three."""


def residual(inputs: int, outputs: int, shape: tuple[int, int, int]) -> onnx.ModelProto:
    """A 3×3 convolution of [batch, inputs, height, width] whose result is added to a copy of it that a 1×1 makes."""
    batch, height, width = shape
    nodes = [
        helper.make_node("Conv", ["x", "one"], ["stream"]),
        helper.make_node("Conv", ["x", "w", "b"], ["branch"], pads=(1, 1, 1, 1)),
        helper.make_node("Add", ["stream", "branch"], ["sum"]),
        helper.make_node("Relu", ["sum"], ["y"]),
    ]
    constants = {"one": weights(outputs, inputs, 1, 1), "w": weights(outputs, inputs, 3, 3), "b": weights(outputs)}
    return model(nodes, {"x": (batch, inputs, height, width)}, {"y": (batch, outputs, height, width)}, constants)


def taken(program: Program, machine: Target) -> bool:
    """Whether a step of the program is Winograd's."""
    return any(isinstance(step.kernel, Conv) and winograd.fits(step.kernel, machine) for step in program.steps)


@pytest.mark.parametrize("generation", GENERATIONS)
@pytest.mark.parametrize("channels", CHANNELS)
def test_any_number_of_channels(channels: tuple[int, int], generation: str, tmp_path: Path) -> None:
    program, machine = program_of(residual(*channels, (2, 16, 8))), target(generation)
    assert taken(program, machine)
    inputs = random_inputs(program)
    want = run_reference(program, inputs)
    compiled = HostProgram(program, tmp_path, machine)
    for threads in (1, 3):
        assert_close(compiled.run(inputs, threads), want)


@pytest.mark.parametrize("generation", GENERATIONS)
def test_weights_of_few_bits(generation: str, tmp_path: Path) -> None:
    """Unpacked on their way to the 36 points, with scales of the channels and of groups."""
    cases = [convolution("transformed", bits, group) for bits in WIDTHS for group in (0, 24)]
    inputs = {f"{index}_{name}": x for index, (_, values) in enumerate(cases) for name, x in values.items()}
    program, machine = program_of(together(model for model, _ in cases)), target(generation)
    packed = [step.kernel for step in program.steps if isinstance(step.kernel, Conv) and step.kernel.packing]
    assert len(packed) == len(cases) and all(winograd.fits(kernel, machine) for kernel in packed)
    want = run_reference(program, inputs)
    compiled = HostProgram(program, tmp_path, machine)
    for threads in (1, 3):
        assert_close(compiled.run(inputs, threads), want)


def test_transforms_of_few_channels_do_not_pay() -> None:
    """An image's three colours: the direct sum is as fast."""
    assert not taken(program_of(residual(3, 16, (1, 32, 32))), target("sse2"))
