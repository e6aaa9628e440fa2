"""Scales that are powers of two: grids, the quantiser, shifts that keep the bits, and a core without a float unit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

import edgec
from edgec.building.toolchain import find_toolchain
from edgec.data.samples import Samples
from edgec.devices.device import open_device
from edgec.grid import Grid, powers_of_two
from edgec.passes.quantize.lowbit import fit_low_bit
from edgec.planning.fixed_point import use_shifts
from edgec.quantisation.quantise import companions
from edgec.scalar import walk
from tests import graphs
from tests.operators import node
from tests.programs import HostProgram, program_of, run_reference
from tests.test_cli import results_of, sentence_of
from tests.test_cortex_m import bare_metal  # noqa: F401 (a fixture)
from tests.test_integer_kernels import SHAPES, layer


def is_power(scales: np.ndarray) -> np.ndarray:
    """Whether each is a power of two."""
    return np.frexp(np.abs(scales))[0] == 0.5


def test_powers_of_two_are_the_next_above() -> None:
    given = np.array([1.0, 0.75, 0.5, 0.500001, 3e-30, 5.0])
    np.testing.assert_array_equal(powers_of_two(given), np.float32([1, 1, 0.5, 1, 2.0**-98, 8]))


@pytest.mark.parametrize(
    "grid", [Grid(0.03, -128), Grid(0.03, 5), Grid(0.25, 7), Grid(0.007, 127), Grid(0.01, 0, "int16")]
)
def test_a_grid_lies_between_two_of_powers_of_two(grid: Grid) -> None:
    wider, finer = (grid.by_power_of_two(each) for each in (True, False))
    assert is_power(np.array([wider.scale, finer.scale])).all() and grid.scale / 2 < finer.scale <= grid.scale
    assert grid.scale <= wider.scale < 2 * grid.scale and finer.zero == grid.zero
    step = wider.scale / 2
    assert wider.range[0] <= grid.range[0] + step and wider.range[1] >= grid.range[1] - step


def test_weights_of_four_bits_have_them_too() -> None:
    generator = np.random.default_rng(0)
    rows, x = generator.standard_normal((9, 40)).astype(np.float32), generator.standard_normal((200, 40))
    fit = fit_low_bit(rows, x.T @ x, 4, 40, symmetric=True, fixed_point=True)
    assert is_power(fit.scales).all() and np.square(fit.rows - rows).mean() < 0.02


# ---- shifts ---------------------------------------------------------------------------------------------------


def by_powers(model: onnx.ModelProto, spread: int = 1) -> onnx.ModelProto:
    """``model`` with the next powers of two as its scales, those of weights up to ``spread`` times as large."""
    generator = np.random.default_rng(spread)
    for each in model.graph.initializer:
        if each.name in ("xs", "ws", "ys"):
            scales = powers_of_two(onnx.numpy_helper.to_array(each))
            if each.name == "ws":
                scales = scales * np.exp2(generator.integers(0, spread, scales.shape)).astype(np.float32)
            each.CopyFrom(onnx.numpy_helper.from_array(scales, each.name))
    return model


@pytest.mark.parametrize("dtype", ["int8", "uint8"])
@pytest.mark.parametrize("name", SHAPES)
def test_shifts_keep_the_bits(name: str, dtype: str, tmp_path: Path) -> None:
    """Of convolutions of every kind: the reference of floats, and the reference and the kernel of shifts."""
    model, inputs = layer(*SHAPES[name], dtype)
    program = program_of(by_powers(model, 3))
    wanted = run_reference(program, inputs)["y"]
    assert use_shifts(program) >= 1
    assert not any(each.dtype == "float32" for step in program.steps for each in walk(step.kernel.result))
    np.testing.assert_array_equal(run_reference(program, inputs)["y"], wanted)
    np.testing.assert_array_equal(HostProgram(program, tmp_path).run(inputs, threads=2)["y"], wanted)


@pytest.mark.parametrize(("multiplier", "bias", "shifts"), [
    (-6, 2**29, True), (-15, 2**30, True), (-16, 2**20, True), (-16, 2**25, True), (-17, 2**25, False), (0, 0, False),
    (-29, 2**22, True), (-30, 0, False),
])  # fmt: skip
def test_halves_and_ends(multiplier: int, bias: int, shifts: bool) -> None:
    """Sums around halves, and so large that their floats are rounded: shifted only where that keeps the bits."""
    generator = np.random.default_rng(1)
    values = generator.integers(-128, 128, (1, 1, 64, 64)).astype(np.int8)
    values[..., 0, :8] = [-128, 127, -1, 0, 1, 2, 32, -32]
    starts = np.concatenate([[bias, -bias, bias // 3 + 1], np.arange(-3, 3), 2 ** np.arange(0, 12)]).astype(np.int32)
    constants = {
        "xs": np.float32(1), "xz": np.int8(3), "w": generator.integers(1, 127, (len(starts), 1, 1, 1)).astype(np.int8),
        "ws": np.full(len(starts), 2.0**multiplier, np.float32), "wz": np.zeros(len(starts), np.int8),
        "ys": np.float32(1), "yz": np.int8(-5), "b": starts,
    }  # fmt: skip
    nodes = [node("QLinearConv", "x xs xz w ws wz ys yz b", "y")]
    model = graphs.build(nodes, {"x": values.shape}, ["y"], constants, types={"x": onnx.TensorProto.INT8})
    program = program_of(model)
    wanted = run_reference(program, {"x": values})["y"]
    assert bool(use_shifts(program)) is shifts
    np.testing.assert_array_equal(run_reference(program, {"x": values})["y"], wanted)


def test_other_multipliers_stay_floats() -> None:
    model, _ = layer(*SHAPES["pointwise"], "int8")
    assert use_shifts(program_of(model)) == 0


# ---- the command ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def fixed_digits(sample_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sample model by the command, for this machine."""
    path = tmp_path_factory.mktemp("fixed") / "digits.so"
    calib = sample_model.with_name("digits_calib.npz")
    results_of("compile", sample_model, "--quantize", "int8", "--fixed-point", "--calib", calib, "-o", path)
    return path


def test_command_keeps_the_accuracy(fixed_digits: Path, sample_data: dict[str, np.ndarray]) -> None:
    """Float is right on 99.1 %."""
    recipe, _, twin = companions(fixed_digits)
    assert "fixed_point = true" in recipe.read_text()
    arrays = {each.name: onnx.numpy_helper.to_array(each) for each in onnx.load(twin).graph.initializer}
    scales = [array for name, array in arrays.items() if name.endswith("_scale")]
    assert len(scales) > 10 and all(is_power(each).all() for each in scales)
    with edgec.load(fixed_digits) as session:
        found = [session.run({"image": image[None]})["logits"].argmax() for image in sample_data["image"]]
    assert np.mean(np.array(found) == sample_data["labels"]) >= 0.985


def test_a_core_without_a_float_unit_has_the_hosts_bits(
    bare_metal: None, fixed_digits: Path, sample_data: dict[str, np.ndarray], tmp_path: Path  # noqa: F811
) -> None:
    """Only the ten logits become floats there, by the compiler's library."""
    images = sample_data["image"][:20]
    samples = Samples(len(images), None, lambda index: {"image": images[index][None]})
    wanted = open_device("local").run(fixed_digits, samples).outputs["logits"]
    twin = companions(fixed_digits)[2]
    for core in ("cortex-m3", "cortex-m4"):
        board = edgec.compile(twin, core, tmp_path / f"{core[-2:]}.o").path
        np.testing.assert_array_equal(open_device("qemu").run(board, samples).outputs["logits"], wanted)
    integers = edgec.compile(twin, "cortex-m3", tmp_path / "integers.o", integer_io=True).path
    listing = find_toolchain("arm-none-eabi").run_tool("nm", "--undefined-only", integers)
    names = {line.split()[-1] for line in listing.splitlines() if line}
    assert names <= {"memset", "memcpy", "__mulsf3", "__floatsisf"}


def test_float_activations_have_no_use_for_it(sample_model: Path, tmp_path: Path) -> None:
    calib = sample_model.with_name("digits_calib.npz")
    said = sentence_of(
        "compile", sample_model, "--quantize", "w4", "--fixed-point", "--calib", calib, "-o", tmp_path / "x.so"
    )
    assert "--fixed-point is for integer activations" in said and "int8" in said and not list(tmp_path.iterdir())
