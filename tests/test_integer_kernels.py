"""Integer convolutions in machine code: equal to the reference and to ONNX Runtime to the last bit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from tests import graphs
from tests.operators import node
from tests.programs import HostProgram, program_of, run_reference

DTYPES = {"int8": onnx.TensorProto.INT8, "uint8": onnx.TensorProto.UINT8}

SHAPES = {
    "first layer": ((1, 3, 17, 19), (24, 3, 3, 3), {"pads": [0, 0, 1, 1], "strides": [2, 2]}),
    "one channel": ((1, 1, 49, 10), (64, 1, 10, 4), {"pads": [4, 1, 5, 1], "strides": [2, 2]}),
    "pointwise": ((1, 64, 7, 7), (128, 64, 1, 1), {}),
    "pointwise, odd": ((2, 127, 5, 5), (17, 127, 1, 1), {}),
    "pointwise, few": ((1, 8, 7, 5), (16, 8, 1, 1), {"strides": [2, 2]}),
    "3x3": ((1, 16, 9, 11), (32, 16, 3, 3), {"pads": [1, 1, 1, 1]}),
    "3x3, odd, dilated": ((1, 5, 11, 13), (7, 5, 3, 3), {"pads": [2, 3, 2, 3], "dilations": [2, 3]}),
    "5x3": ((1, 7, 9, 8), (33, 7, 5, 3), {"pads": [0, 2, 1, 1]}),
    "grouped": ((1, 12, 7, 7), (20, 3, 3, 3), {"group": 4, "pads": [1, 1, 1, 1]}),
    "groups of 5, batch": ((2, 15, 7, 6), (21, 5, 3, 3), {"group": 3, "pads": [1, 0, 2, 1], "strides": [2, 1]}),
    "groups of 8": ((1, 56, 9, 7), (56, 8, 3, 3), {"group": 7, "pads": [1, 1, 1, 1]}),
    "groups of 4, dilated": ((1, 20, 9, 11), (40, 4, 2, 3), {"group": 5, "dilations": [2, 3]}),
    "groups of 16, 1x1": ((1, 32, 5, 7), (34, 16, 1, 1), {"group": 2}),
    "one row": ((1, 640, 1, 1), (128, 640, 1, 1), {}),
    "one output channel": ((1, 17, 6, 6), (1, 17, 3, 3), {}),
    "depthwise": ((1, 64, 9, 11), (64, 1, 3, 3), {"group": 64, "pads": [1, 1, 1, 1]}),
    "depthwise, odd": ((1, 17, 15, 13), (17, 1, 3, 3), {"group": 17, "pads": [0, 0, 1, 1], "strides": [2, 2]}),
    "depthwise, 5x5": ((2, 40, 12, 7), (40, 1, 5, 5), {"group": 40, "pads": [2, 2, 2, 2]}),
    "depthwise, dilated": ((1, 24, 9, 9), (24, 1, 3, 3), {"group": 24, "pads": [2, 2, 2, 2], "dilations": [2, 2]}),
    "depthwise, doubled": ((1, 17, 7, 9), (34, 1, 3, 3), {"group": 17, "pads": [1, 0, 1, 1], "strides": [2, 1]}),
    "depthwise, 7x1": ((1, 16, 9, 9), (16, 1, 7, 1), {"group": 16, "pads": [3, 0, 3, 0]}),
}  # fmt: skip
"""Input, weights, attributes."""


def layer(
    shape: tuple[int, ...], weight: tuple[int, ...], attributes: dict[str, object], dtype: str, seed: int = 0,
    most: int = 127,
) -> tuple[onnx.ModelProto, dict[str, np.ndarray]]:
    """A QLinearConv whose results use the whole range of ``dtype``, some of them beyond it, and an input.

    ``most`` is the largest weight; the least is −127, or −8 for 4 bits.
    """
    generator = np.random.default_rng([seed, *shape, *weight])
    limits = np.iinfo(dtype)
    x = generator.integers(limits.min, limits.max, shape, dtype, endpoint=True)
    kernel = generator.integers(-127 if most == 127 else -most - 1, most, weight, np.int8, endpoint=True)
    spread = 74 * 74 * most / 127 * np.sqrt(np.prod(weight[1:]))
    constants = {
        "xs": np.float32(0.02),
        "xz": np.array(generator.integers(limits.min, limits.max), dtype),
        "w": kernel,
        "ws": generator.uniform(0.5, 1.5, weight[0]).astype(np.float32) * np.float32(50 / 0.02 / spread),
        "wz": np.zeros(weight[0], np.int8),
        "ys": np.float32(1.0),
        "yz": np.array(generator.integers(limits.min, limits.max), dtype),
        "b": generator.integers(-int(spread), int(spread), weight[0], np.int32),
    }
    nodes = [node("QLinearConv", "x xs xz w ws wz ys yz b", "y", **attributes)]
    return graphs.build(nodes, {"x": shape}, ["y"], constants, types={"x": DTYPES[dtype]}), {"x": x}


@pytest.mark.parametrize("dtype", ["int8", "uint8"])
@pytest.mark.parametrize("name", SHAPES)
def test_integer_convolution(name: str, dtype: str, tmp_path: Path) -> None:
    model, inputs = layer(*SHAPES[name], dtype)
    program = program_of(model)
    want = run_reference(program, inputs)["y"]
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    np.testing.assert_array_equal(want, session.run(None, inputs)[0])
    compiled = HostProgram(program, tmp_path)
    for threads in (1, 3):
        np.testing.assert_array_equal(compiled.run(inputs, threads)["y"], want)
