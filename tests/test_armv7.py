"""Artifacts for 32-bit ARM under emulation: integers equal to the reference, floats close to it."""

from __future__ import annotations

import numpy as np

from tests.programs import assert_close, program_of, run_reference
from tests.test_aarch64_kernels import FLOAT_SHAPES, LAYERS, emulated, float_layer, together
from tests.test_integer_kernels import layer

INTEGER_LAYERS = [each for index, each in enumerate(LAYERS) if index % 5 == 0 or each[0].startswith("group")]
"""Every fifth, int8 and uint8 in turn, and those in groups."""


def test_convolutions(emulator_32, tmp_path) -> None:
    made = [layer(*shape, dtype) for _, shape, dtype in INTEGER_LAYERS]
    made += [float_layer(*shape) for shape in FLOAT_SHAPES.values()]
    model = together(each for each, _ in made)
    inputs = {f"{index}_x": values["x"] for index, (_, values) in enumerate(made)}
    wanted = run_reference(program_of(model), inputs)
    got = emulated(model, inputs, tmp_path, "rpi2", "cortex-a7")
    for index, (name, _, _) in enumerate(INTEGER_LAYERS):
        np.testing.assert_array_equal(got.pop(f"{index}_y"), wanted.pop(f"{index}_y"), err_msg=name)
    assert_close(got, wanted)
