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
from edgec.data.samples import Samples
from edgec.devices.device import LocalDevice, QemuDevice
from tests import graphs
from tests.operators import node
from tests.programs import assert_close, model, program_of, run_reference
from tests.quantised import Graph
from tests.test_integer_kernels import DTYPES, SHAPES, layer

MORE_SHAPES = {
    "one channel in, dilated": ((1, 1, 20, 9), (5, 1, 2, 3), {"dilations": [3, 2]}),
    "few channels in": ((1, 2, 9, 9), (12, 2, 1, 5), {}),
    "127 columns": ((1, 5, 3, 127), (18, 5, 3, 3), {"pads": [1, 0, 0, 2], "strides": [1, 2]}),
    "run of 17": ((1, 17, 4, 7), (6, 17, 1, 1), {}),
    "run of 51": ((1, 17, 7, 5), (7, 17, 2, 3), {"pads": [1, 1, 0, 1]}),
    "run of 127": ((1, 127, 3, 3), (127, 127, 1, 1), {}),
    "overlapping, 16 channels": ((1, 16, 7, 17), (20, 16, 3, 3), {"pads": [1, 1, 1, 1]}),
    "overlapping, 8 channels": ((1, 8, 5, 7), (17, 8, 3, 5), {"pads": [1, 0, 0, 2], "strides": [1, 2]}),
    "run of 70": ((1, 70, 5, 7), (23, 70, 1, 1), {}),
    "batch": ((3, 20, 5, 5), (21, 20, 3, 3), {"pads": [1, 1, 1, 1]}),
    "grouped, deep": ((1, 64, 5, 7), (48, 32, 3, 3), {"group": 2, "strides": [2, 1]}),
    "depthwise, 17 columns": ((1, 16, 5, 17), (16, 1, 3, 3), {"group": 16, "pads": [1, 1, 1, 1]}),
    "depthwise, 127": ((1, 127, 7, 9), (127, 1, 3, 3), {"group": 127, "pads": [1, 0, 1, 2], "strides": [1, 2]}),
    "depthwise, 5x5, strided": ((1, 24, 17, 13), (24, 1, 5, 5), {"group": 24, "pads": [1, 2, 2, 1], "strides": [2, 2]}),
    "depthwise, 1x1": ((1, 12, 5, 5), (12, 1, 1, 1), {"group": 12}),
    "depthwise, 3x4": ((1, 33, 6, 8), (33, 1, 3, 4), {"group": 33, "dilations": [1, 2]}),
    "depthwise, dilated": ((2, 12, 9, 11), (12, 1, 3, 3), {"group": 12, "dilations": [2, 3], "strides": [2, 1]}),
    "depthwise, two rows": ((1, 21, 8, 7), (21, 1, 2, 2), {"group": 21, "pads": [0, 1, 0, 0]}),
    "depthwise, one row": ((1, 9, 5, 9), (9, 1, 1, 3), {"group": 9, "strides": [1, 2]}),
    "depthwise, wide strides": ((1, 8, 5, 127), (8, 1, 3, 2), {"group": 8, "strides": [1, 3]}),
    "depthwise, 5 channels": ((2, 5, 8, 6), (5, 1, 3, 3), {"group": 5, "pads": [1, 1, 1, 1]}),
}  # fmt: skip
"""Input, weights, attributes, beside those that every target is tested with."""

CORES = [("rpi3", "cortex-a53", 1), ("rpi3", "cortex-a72", 3), ("rpi5", "cortex-a76", 3), ("rpi5", "max", 1),
         ("arm64-i8mm", "max", 2)]  # fmt: skip
"""Targets without and with dot product, and with matrix products, the cores that run them, and on how many threads."""

LAYERS = [
    (name, shape, ("int8", "uint8")[index % 2]) for index, (name, shape) in enumerate((SHAPES | MORE_SHAPES).items())
]


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


def emulated(
    model: onnx.ModelProto, inputs: dict[str, np.ndarray], folder: Path, target: str, cpu: str, threads: int = 1
) -> dict[str, np.ndarray]:
    """The outputs of ``model``, compiled for ``target``, on an emulated ``cpu``."""
    path = folder / f"{target}.so"
    if not path.exists():
        edgec.compile(model, target, path)
    results = QemuDevice(cpu).run(path, Samples(1, None, lambda index: inputs), threads=threads)
    return {name: array[0] for name, array in results.outputs.items()}


@pytest.fixture(scope="module")
def layers() -> tuple[onnx.ModelProto, dict[str, np.ndarray]]:
    """Integer convolutions of int8 and uint8 in turn."""
    made = [layer(*shape, dtype) for _, shape, dtype in LAYERS]
    inputs = {f"{index}_x": values["x"] for index, (_, values) in enumerate(made)}
    return together(model for model, _ in made), inputs


@pytest.fixture(scope="module")
def wanted(layers) -> dict[str, np.ndarray]:
    model, inputs = layers
    return run_reference(program_of(model), inputs)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("aarch64")


@pytest.mark.parametrize(("target", "cpu", "threads"), CORES)
def test_integer_convolutions(emulator, layers, wanted, folder, target, cpu, threads) -> None:
    got = emulated(*layers, folder, target, cpu, threads)
    same = [np.array_equal(got[f"{index}_y"], wanted[f"{index}_y"]) for index in range(len(LAYERS))]
    assert not [name for (name, _, _), equal in zip(LAYERS, same, strict=True) if not equal]


FLOAT_SHAPES = {
    "planes": ((1, 3, 9, 11), (13, 3, 3, 3), {"pads": [1, 1, 0, 1], "strides": [2, 2]}),
    "planes, 1x1": ((1, 3, 5, 7), (8, 3, 1, 1), {}),
    "one channel": ((1, 1, 17, 5), (20, 1, 5, 2), {}),
    "planes, overlapping": ((1, 3, 11, 19), (9, 3, 3, 3), {"strides": [2, 2]}),
    "planes, one channel": ((1, 1, 17, 13), (17, 1, 10, 4), {"pads": [4, 1, 5, 1], "strides": [2, 2]}),
    "pointwise": ((2, 17, 5, 5), (33, 17, 1, 1), {}),
    "pointwise, deep": ((1, 70, 5, 7), (23, 70, 1, 1), {}),
    "3x3": ((1, 7, 7, 17), (18, 7, 3, 3), {"pads": [1, 1, 1, 1]}),
    "3x3, transformed": ((2, 20, 12, 8), (36, 20, 3, 3), {"pads": [1, 1, 1, 1]}),
    "3x3, transformed, without padding": ((1, 64, 10, 14), (16, 64, 3, 3), {}),
    "dilated": ((1, 5, 9, 8), (127, 5, 3, 2), {"dilations": [2, 3], "strides": [1, 2]}),
    "grouped": ((1, 12, 5, 5), (20, 3, 3, 3), {"group": 4, "pads": [1, 0, 1, 2]}),
    "groups of 5, batch": ((2, 10, 5, 4), (14, 5, 3, 3), {"group": 2, "pads": [1, 0, 2, 1], "strides": [2, 1]}),
    "groups of 8": ((1, 24, 5, 7), (24, 8, 3, 3), {"group": 3, "pads": [1, 1, 1, 1]}),
    "groups of 4, dilated": ((1, 28, 4, 8), (28, 4, 2, 3), {"group": 7, "dilations": [2, 3]}),
    "groups of 16, transformed": ((1, 32, 8, 4), (40, 16, 3, 3), {"group": 2, "pads": [1, 1, 1, 1]}),
    "depthwise": ((1, 19, 7, 9), (19, 1, 3, 3), {"group": 19, "pads": [1, 1, 1, 1]}),
    "depthwise, 17 columns": ((2, 16, 5, 17), (16, 1, 3, 3), {"group": 16, "pads": [1, 1, 1, 1]}),
    "depthwise, 127": ((1, 127, 7, 9), (127, 1, 3, 3), {"group": 127, "pads": [1, 0, 1, 2], "strides": [1, 2]}),
    "depthwise, strided": ((1, 8, 17, 13), (8, 1, 3, 3), {"group": 8, "pads": [0, 1, 1, 0], "strides": [2, 2]}),
    "depthwise, 5x5": ((1, 24, 9, 8), (24, 1, 5, 5), {"group": 24, "pads": [2, 2, 2, 2]}),
    "depthwise, 3x4": ((1, 33, 6, 8), (33, 1, 3, 4), {"group": 33, "dilations": [1, 2]}),
    "depthwise, 1x1": ((1, 12, 5, 5), (12, 1, 1, 1), {"group": 12}),
    "depthwise, wide": ((1, 260, 3, 19), (260, 1, 2, 3), {"group": 260, "pads": [1, 1, 0, 1]}),
}  # fmt: skip
"""Input, weights, attributes."""


def float_layer(
    shape: tuple[int, ...], weight: tuple[int, ...], attributes: dict[str, object]
) -> tuple[onnx.ModelProto, dict[str, np.ndarray]]:
    """A Conv with bias and ReLU, and an input."""
    generator = np.random.default_rng([*shape, *weight])
    constants = {
        "w": generator.standard_normal(weight, np.float32),
        "b": generator.standard_normal(weight[0], np.float32),
    }
    nodes = [node("Conv", "x w b", "c", **attributes), node("Relu", "c", "y")]
    return graphs.build(nodes, {"x": shape}, ["y"], constants), {"x": generator.standard_normal(shape, np.float32)}


def test_float_convolutions(emulator, tmp_path) -> None:
    made = [float_layer(*shape) for shape in FLOAT_SHAPES.values()]
    inputs = {f"{index}_x": values["x"] for index, (_, values) in enumerate(made)}
    model = together(each for each, _ in made)
    wanted = run_reference(program_of(model), inputs)
    for threads in (1, 3):
        assert_close(emulated(model, inputs, tmp_path, "rpi5", "cortex-a76", threads), wanted)


def test_bytes(emulator, tmp_path) -> None:
    """Lookups, copies, sums, maxima and interleaved planes, at widths around a register's."""
    g = Graph("int8", seed=3)
    outputs = []
    for width in (5, 16, 17, 35):
        image = g.input(1, 3, 5, width)
        outputs.append(g.pair(g.add("Sigmoid", g.input(1, 7, 3, width))))
        outputs.append(g.pair(g.add("Add", f"{image} {g.input(1, 3, 5, width)}")))
        outputs.append(g.pair(g.add("MaxPool", image, kernel_shape=[3, 3])))
        outputs.append(g.pair(g.add("Conv", f"{image} {g.weights(4, 3, 2, 2)}")))
        outputs.append(g.pair(g.add("GlobalAveragePool", g.input(1, width, 4, 4))))
    model, inputs = g.build(*outputs), g.samples()
    wanted = run_reference(program_of(model), inputs)
    for target, cpu, threads in CORES[1:3]:
        got = emulated(model, inputs, tmp_path, target, cpu, threads)
        for name, array in wanted.items():
            np.testing.assert_array_equal(got[name], array, err_msg=name)


def halves(zero: int, dtype: str, factor: float) -> tuple[onnx.ModelProto, dict[str, np.ndarray]]:
    """A QLinearConv of every result from far below to far above the range, in steps of ``factor``."""
    limits = np.iinfo(dtype)
    x = np.arange(limits.min, limits.max + 1, dtype=dtype).reshape(1, 1, 16, 16)
    weights = np.arange(1, 21, dtype=np.int8).reshape(20, 1, 1, 1)
    constants = {
        "xs": np.float32(factor), "xz": np.array(0 if dtype == "int8" else 128, dtype), "w": weights,
        "ws": np.float32(1), "wz": np.int8(0), "ys": np.float32(1), "yz": np.array(zero, dtype),
        "b": np.arange(-10, 10, dtype=np.int32),
    }  # fmt: skip
    nodes = [node("QLinearConv", "x xs xz w ws wz ys yz b", "y")]
    return graphs.build(nodes, {"x": x.shape}, ["y"], constants, types={"x": DTYPES[dtype]}), {"x": x}


def test_halves_round_to_even(emulator, tmp_path) -> None:
    """Whatever the zero point, whether results surely fit 16 bits before they are saturated or not, and where it is the
    rounding of the product that makes a half."""
    cases = [(zero, "int8", factor) for zero in (-128, -3, 0, 7, 64, 127) for factor in (0.1, 0.25, 0.5, 16.5)]
    cases += [(zero, "uint8", 0.5) for zero in (0, 1, 128, 255)]
    made = [halves(*case) for case in cases]
    inputs = {f"{index}_x": values["x"] for index, (_, values) in enumerate(made)}
    model = together(each for each, _ in made)
    wanted = run_reference(program_of(model), inputs)
    for target, cpu, threads in CORES[::2]:
        got = emulated(model, inputs, tmp_path, target, cpu, threads)
        same = [np.array_equal(got[f"{index}_y"], wanted[f"{index}_y"]) for index in range(len(cases))]
        assert not [case for case, equal in zip(cases, same, strict=True) if not equal]


@pytest.mark.parametrize(("dtype", "zero"), [("int16", -32768), ("int16", -20000), ("int16", 0), ("uint16", 30000)])
@pytest.mark.parametrize("target", ["rpi4", "rpi5"])
def test_results_of_16_bits_are_those_of_this_machine(emulator, tmp_path, target, dtype, zero):
    generator = np.random.default_rng(3)
    scales = (generator.random(10) * 0.01 + 0.001).astype(np.float32)
    weights = {
        "s": np.float32(0.02), "z": np.int8(-3), "w": generator.integers(-127, 128, (10, 7, 3, 3), np.int8),
        "ws": scales, "wz": np.zeros(10, np.int8), "t": np.float32(0.001), "u": np.array(zero, dtype),
    }  # fmt: skip
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["a"], name="quantise"),
        helper.make_node("DequantizeLinear", ["a", "s", "z"], ["b"], name="dequantise"),
        helper.make_node("DequantizeLinear", ["w", "ws", "wz"], ["v"], name="weights", axis=0),
        helper.make_node("Conv", ["b", "v"], ["c"], name="conv", pads=[1, 1, 1, 1]),
        helper.make_node("QuantizeLinear", ["c", "t", "u"], ["d"], name="wide"),
        helper.make_node("DequantizeLinear", ["d", "t", "u"], ["y"], name="result"),
    ]
    graph = model(nodes, {"x": (1, 7, 5, 9)}, {"y": (1, 10, 5, 9)}, weights)
    graph.opset_import[0].version, graph.ir_version = 21, 10
    x = generator.standard_normal((1, 7, 5, 9), np.float32)
    samples = Samples(1, None, lambda index: {"x": x})
    found = {}
    for name, url in (("host", "local"), (target, emulator)):
        artifact = edgec.compile(graph, name, tmp_path / f"{name}.so").path
        found[name] = (QemuDevice() if url == emulator else LocalDevice()).run(artifact, samples).outputs["y"]
    assert np.array_equal(found["host"], found[target])
    assert len(np.unique(found["host"])) > 100
