"""The kernels for 64-bit ARM under emulation: integers equal to the reference, floats within a stated tolerance.

All layers of a kind are one model, so that each emulated core needs one artifact and one process.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import compose, helper

import edgec
from edgec.data import Samples
from edgec.devices import QemuDevice
from tests.programs import program_of, run_reference
from tests.test_integer_kernels import SHAPES, layer

MORE_SHAPES = {
    "one channel in, dilated": ((1, 1, 20, 9), (5, 1, 2, 3), {"dilations": [3, 2]}),
    "few channels in": ((1, 2, 9, 9), (12, 2, 1, 5), {}),
    "127 columns": ((1, 5, 3, 127), (18, 5, 3, 3), {"pads": [1, 0, 0, 2], "strides": [1, 2]}),
    "run of 17": ((1, 17, 4, 7), (6, 17, 1, 1), {}),
    "run of 51": ((1, 17, 7, 5), (7, 17, 2, 3), {"pads": [1, 1, 0, 1]}),
    "run of 127": ((1, 127, 3, 3), (127, 127, 1, 1), {}),
    "batch": ((3, 20, 5, 5), (21, 20, 3, 3), {"pads": [1, 1, 1, 1]}),
    "grouped, deep": ((1, 64, 5, 7), (48, 32, 3, 3), {"group": 2, "strides": [2, 1]}),
    "depthwise, 17 columns": ((1, 16, 5, 17), (16, 1, 3, 3), {"group": 16, "pads": [1, 1, 1, 1]}),
    "depthwise, 127": ((1, 127, 7, 9), (127, 1, 3, 3), {"group": 127, "pads": [1, 0, 1, 2], "strides": [1, 2]}),
    "depthwise, 5x5, strided": ((1, 24, 17, 13), (24, 1, 5, 5), {"group": 24, "pads": [1, 2, 2, 1], "strides": [2, 2]}),
    "depthwise, 1x1": ((1, 12, 5, 5), (12, 1, 1, 1), {"group": 12}),
    "depthwise, 3x4": ((1, 33, 6, 8), (33, 1, 3, 4), {"group": 33, "dilations": [1, 2]}),
    "depthwise, 5 channels": ((2, 5, 8, 6), (5, 1, 3, 3), {"group": 5, "pads": [1, 1, 1, 1]}),
}  # fmt: skip
"""Input, weights, attributes, beside those that every target is tested with."""

BOARDS = {"rpi3": "cortex-a53", "rpi4": "cortex-a72", "rpi5": "cortex-a76"}


def together(models: Iterable[onnx.ModelProto]) -> onnx.ModelProto:
    """One model of independent ones: the names of number i begin with ``i_``."""
    parts = [compose.add_prefix(model, f"{index}_") for index, model in enumerate(models)]
    graph = helper.make_graph(
        [node for part in parts for node in part.graph.node],
        "together",
        [value for part in parts for value in part.graph.input],
        [value for part in parts for value in part.graph.output],
        [tensor for part in parts for tensor in part.graph.initializer],
    )
    return helper.make_model(graph, opset_imports=parts[0].opset_import, ir_version=parts[0].ir_version)


def emulated(model: onnx.ModelProto, inputs: dict[str, np.ndarray], folder: Path, target: str, cpu: str) -> dict[str, np.ndarray]:
    """The outputs of ``model``, compiled for ``target``, on an emulated ``cpu``."""
    path = folder / f"{target}.so"
    if not path.exists():
        edgec.compile(model, target, path)
    results = QemuDevice(cpu).run(path, Samples(1, None, lambda index: inputs))
    return {name: array[0] for name, array in results.outputs.items()}


@pytest.fixture(scope="module")
def layers() -> tuple[onnx.ModelProto, dict[str, np.ndarray]]:
    """Integer convolutions of int8 and uint8."""
    made = [layer(*shape, dtype) for shape in (SHAPES | MORE_SHAPES).values() for dtype in ("int8", "uint8")]
    inputs = {f"{index}_x": values["x"] for index, (_, values) in enumerate(made)}
    return together(model for model, _ in made), inputs


@pytest.fixture(scope="module")
def wanted(layers) -> dict[str, np.ndarray]:
    model, inputs = layers
    return run_reference(program_of(model), inputs)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("aarch64")


@pytest.mark.parametrize(("target", "cpu"), [*BOARDS.items(), ("rpi5", "max")])
def test_integer_convolutions(emulator, layers, wanted, folder, target, cpu) -> None:
    got = emulated(*layers, folder, target, cpu)
    names = [f"{name}, {dtype}" for name in SHAPES | MORE_SHAPES for dtype in ("int8", "uint8")]
    different = [name for index, name in enumerate(names) if not np.array_equal(got[f"{index}_y"], wanted[f"{index}_y"])]
    assert not different
