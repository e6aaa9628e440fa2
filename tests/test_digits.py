"""Vectors of floats times packed weights by integer products: as exact as float32, on every processor."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import pytest

from edgec.format.widths import LIMITS, nest_widths
from edgec.passes.quantize.lowbit import limits
from edgec.targets.cpu import x86
from tests import graphs
from tests.operators import node
from tests.programs import HostProgram, program_of, run_reference
from tests.test_aarch64_kernels import emulated, together
from tests.test_low_bit import WIDTHS
from tests.test_x86_kernels import target

SHAPES = [
    (5, 5, 0), (7, 17, 0), (17, 127, 0), (127, 5, 0), (300, 17, 0),
    (17, 17, 8), (127, 127, 8), (127, 17, 16), (127, 40, 32), (100, 81, 32), (320, 5, 64), (256, 112, 128),
]  # fmt: skip
"""Depth, output channels, neighbours that share a scale (0: an output channel has one)."""

Product = tuple[onnx.ModelProto, np.ndarray, np.ndarray]
"""A model, float64 weights [depth, channels], and the group of each row of them."""


def product(depth: int, channels: int, group: int, bits: int) -> Product:
    """x [1, depth] times a matrix of integers of ``bits``, of which the least and the largest occur."""
    generator = np.random.default_rng(depth + bits)
    low, high = limits(bits)
    values = generator.integers(low, high + 1, (depth, channels)).astype(getattr(ml_dtypes, WIDTHS[bits], np.int8))
    values[:2, 0] = low, high
    scales = generator.uniform(-0.1, 0.1, (-(-depth // group) if group else 1, channels))
    scales = scales.astype(ml_dtypes.bfloat16).astype(np.float32)
    extra = {"axis": 0, "block_size": group} if group else {"axis": 1}
    nodes = [node("DequantizeLinear", "w s", "r", **extra), node("MatMul", "x r", "y")]
    constants = {"w": values, "s": scales if group else scales[0]}
    model = graphs.build(nodes, {"x": (1, depth)}, ["y"], constants, opset=21)
    groups = np.arange(depth) // (group or 128)
    rows = values.astype(np.float64) * (scales[groups] if group else scales[0])
    return model, rows, groups


CASES = {(*shape, bits): product(*shape, bits) for shape in SHAPES for bits in WIDTHS}


def vector(depth: int) -> np.ndarray:
    """Numbers of many sizes."""
    generator = np.random.default_rng(depth)
    return (generator.standard_normal((1, depth)) * np.exp2(generator.integers(-20, 20, (1, depth)))).astype(np.float32)


def bound(x: np.ndarray, rows: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """The largest error of a result [channel]: of the digits, and of adding the groups up in float32."""
    sizes = np.abs(x[0].astype(np.float64))
    largest = np.array([sizes[groups == group].max() for group in groups])
    return (2.0**-22 + (groups[-1] + 2) * 2.0**-24) * (largest @ np.abs(rows))


def errors(found: np.ndarray, x: np.ndarray, case: Product) -> np.ndarray:
    """Of the results, as shares of :func:`bound`."""
    _, rows, groups = case
    return np.abs(found[0] - x[0].astype(np.float64) @ rows) / bound(x, rows, groups)


def by_digits(program: HostProgram) -> bool:
    """Whether all of a program's products are by digits."""
    return all(call.contract.endswith(("vnni", "maddubs", "sdot", "smlal")) for call in program.code.calls)


@pytest.mark.parametrize("generation", ["vnni", "avx512", "avx2", "sse2"])
def test_as_exact_as_float32(generation: str, tmp_path: Path) -> None:
    """Of every width, and by a processor that has no such products, too."""
    machine = target(generation)
    program = program_of(together(model for model, _, _ in CASES.values()))
    inputs = {f"{index}_x": vector(depth) for index, (depth, *_) in enumerate(CASES)}
    compiled = HostProgram(program, tmp_path, machine)
    exact = run_reference(program, inputs)
    for threads in (1, 3):
        found = compiled.run(inputs, threads)
        for index, (name, case) in enumerate(CASES.items()):
            x = inputs[f"{index}_x"]
            assert errors(found[f"{index}_y"], x, case).max() < 1, name
            assert errors(exact[f"{index}_y"], x, case).max() < 1, name
    contracts = [call.contract for call in compiled.code.calls]
    ends = {"vnni": "vnni", "avx512": "maddubs", "avx2": "maddubs", "sse2": "_w4g32"}
    assert any(contract.endswith(ends[generation]) for contract in contracts)


@pytest.mark.parametrize(("name", "cpu"), [("rpi3", "cortex-a53"), ("rpi5", "cortex-a76"), ("rpi2", "cortex-a7")])
def test_as_exact_on_arm(name: str, cpu: str, emulator: str, tmp_path: Path) -> None:
    """With dot product, without, and with 32 bits, where floats are multiplied."""
    inputs = {f"{index}_x": vector(depth) for index, (depth, *_) in enumerate(CASES)}
    found = emulated(together(model for model, _, _ in CASES.values()), inputs, tmp_path, name, cpu, 2)
    for index, (case_name, case) in enumerate(CASES.items()):
        assert errors(found[f"{index}_y"], inputs[f"{index}_x"], case).max() < 1, case_name


@pytest.mark.parametrize("generation", ["vnni", "avx2"])
def test_errors_beside_those_of_multiplying_floats(
    generation: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The root of the mean square error is smaller for a vector of numbers of one size. Where one number of a group is
    far larger than the others, it is up to twice as large: a float has a bit more than its digits."""
    model, rows, _ = product(512, 96, 32, 4)
    (tmp_path / "digits").mkdir()
    own = HostProgram(program_of(model), tmp_path / "digits", target(generation))
    assert by_digits(own)
    monkeypatch.setattr(x86.vector, "template_for", lambda conv, target: None)
    floats = HostProgram(program_of(model), tmp_path, target(generation))
    assert not by_digits(floats)
    for x, most in ((np.random.default_rng(1).standard_normal((1, 512), np.float32), 1.0), (vector(512), 2.0)):
        exact = x[0].astype(np.float64) @ rows
        by, beside = (np.square(each.run({"x": x})["y"][0] - exact).mean() ** 0.5 for each in (own, floats))
        assert by <= most * beside


@pytest.mark.parametrize("generation", ["vnni", "avx2"])
@pytest.mark.parametrize(("depth", "channels", "group"), [(127, 21, 32), (24, 127, 8)])
def test_nested_weights_at_both_widths(generation: str, depth: int, channels: int, group: int, tmp_path: Path) -> None:
    """8 bits are as exact as unnested ones; 4 bits are the upper nibbles, rounded."""
    model, rows, groups = product(depth, channels, group, 8)
    program = program_of(model)
    (step,) = program.steps
    values = np.asarray(step.inputs[1].data)
    scales = rows / np.where(values == 0, 1, values).reshape(rows.shape)
    np.minimum(values, LIMITS[1], out=values)
    nest_widths(program)
    compiled, x = HostProgram(program, tmp_path, target(generation)), vector(depth)
    (call,) = compiled.code.calls
    upper = 16 * (values.astype(int) + 8 >> 4)
    for symbol, integers in ((call.symbol, values), (call.narrow, upper)):
        compiled.code.calls[0] = replace(call, symbol=symbol)
        found = compiled.run({"x": x}, threads=2)["y"]
        assert errors(found, x, (model, scales * integers.reshape(rows.shape), groups)).max() < 1


def of_several_widths(widths: tuple[int, ...]) -> Product:
    """As :func:`product` of depth 224, where groups of 32 have ``widths`` in turn."""
    generator, channels = np.random.default_rng(len(widths)), 39
    rows = np.empty((224, channels), np.int8)
    for group in range(7):
        low, high = limits(widths[group % len(widths)])
        rows[32 * group : 32 * (group + 1)] = generator.integers(low, high + 1, (32, channels))
    scales = generator.uniform(0.01, 0.1, (7, channels)).astype(np.float32)
    nodes = [node("DequantizeLinear", "w s", "r", axis=0, block_size=32), node("MatMul", "x r", "y")]
    model = graphs.build(nodes, {"x": (1, 224)}, ["y"], {"w": rows, "s": scales}, opset=21)
    groups = np.arange(224) // 32
    return model, rows.astype(np.float64) * scales[groups], groups


@pytest.mark.parametrize(("generation", "widths"), [("vnni", (2, 3, 8, 4)), ("avx2", (4, 2, 3))])
def test_groups_of_several_widths(generation: str, widths: tuple[int, ...], tmp_path: Path) -> None:
    case, x = of_several_widths(widths), vector(224)
    program = HostProgram(program_of(case[0]), tmp_path, target(generation))
    (call,) = program.code.calls
    assert by_digits(program) and "x2" in call.contract and "x1" in call.contract
    for threads in (1, 3):
        assert errors(program.run({"x": x}, threads)["y"], x, case).max() < 1


@pytest.mark.parametrize(
    ("name", "cpu", "widths"), [("rpi5", "cortex-a76", (2, 3, 8, 4)), ("rpi3", "cortex-a53", (4, 2, 3))]
)
def test_groups_of_several_widths_on_arm(
    name: str, cpu: str, widths: tuple[int, ...], emulator: str, tmp_path: Path
) -> None:
    case, x = of_several_widths(widths), vector(224)
    assert errors(emulated(case[0], {"x": x}, tmp_path, name, cpu, 2)["y"], x, case).max() < 1


SPECIAL = {
    "zeros": 0.0,
    "subnormal": 1e-40,
    "tiny": 1e-36,
    "huge": 8e37,
    "next to a power of two": np.float32(1) - np.float32(2.0**-24),
}


@pytest.mark.parametrize("generation", ["vnni", "avx2"])
def test_sizes_at_the_edges(generation: str, tmp_path: Path) -> None:
    """Zeros make zeros; the least and the largest numbers are what they are, or below what a digit counts."""
    case = product(127, 40, 32, 4)
    program = HostProgram(program_of(case[0]), tmp_path, target(generation))
    signs = np.random.default_rng(2).choice([-1, 1], (1, 127))
    for name, size in SPECIAL.items():
        x = (signs * size * (np.arange(127) % 40 == 0)).astype(np.float32)
        found, rows = program.run({"x": x})["y"][0], case[1]
        exact = x[0].astype(np.float64) @ rows
        room = bound(x, rows, case[2]) + 2.0**-126 * np.abs(rows).sum(axis=0)
        assert (np.abs(found - exact) <= room).all(), name
        assert name != "zeros" or not found.any()


@pytest.mark.parametrize("odd", [np.nan, np.inf, -np.inf])
def test_what_is_no_number_shows(odd: float, tmp_path: Path, emulator: str) -> None:
    """Every output, since every one adds up that group; the next vector is as good as any."""
    case = product(127, 40, 32, 4)
    model = case[0]
    x, good = vector(127), vector(127)
    x[0, 70] = odd
    program = HostProgram(program_of(model), tmp_path)
    assert not np.isfinite(program.run({"x": x})["y"]).any()
    assert errors(program.run({"x": good})["y"], good, case).max() < 1
    for name, cpu in (("rpi3", "cortex-a53"), ("rpi5", "cortex-a76")):
        assert not np.isfinite(emulated(model, {"x": x}, tmp_path, name, cpu)["y"]).any()


def test_deep_vectors_and_large_groups_are_left_to_floats(tmp_path: Path) -> None:
    """Whose digits take too much of the stack, or whose sums an int32 does not hold 256 times."""
    for depth, group, bits in ((20000, 32, 4), (1024, 512, 8)):
        model, _, _ = product(depth, 5, group, bits)
        folder = tmp_path / str(depth)
        folder.mkdir()
        assert not by_digits(HostProgram(program_of(model), folder, target("vnni")))
