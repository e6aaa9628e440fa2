"""GPU kernels against the numpy reference: odd shapes, every plan, integers to the last bit, every operator."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

from edgec import reference, scalar
from edgec.program import Kernel, Program
from edgec.scalar import Expr
from edgec.targets.gpu.target import load_gpu
from edgec.tuning.records import Record, Records
from tests.gpu import gpu_session, needs_device, run_on_gpu
from tests.programs import assert_close, model, program_of, random_inputs, run_reference
from tests.random_models import RandomModel
from tests.test_integer_kernels import SHAPES, layer
from tests.test_kernels import CONVS, conv_model
from tests.test_math import INTEGERS, SPECIAL, ULP, binary, errors_in_ulp, exact, map_program, pairs, unary
from tests.test_words import convolutions

pytestmark = needs_device

RANDOM, MANY = range(6), range(6, 60)


def compute(folder: Path, functions: dict[str, Callable[..., Expr]], *inputs: np.ndarray) -> dict[str, np.ndarray]:
    """What the device makes of ``functions``."""
    program = map_program(functions, *inputs)
    session, code = gpu_session(program, folder)
    assert code.count("host") == 0
    with session:
        return session.run({f"x{i}": x for i, x in enumerate(inputs)})


@pytest.mark.parametrize("name", CONVS)
def test_convolution(name: str, tmp_path: Path) -> None:
    program = program_of(CONVS[name])
    inputs = random_inputs(program)
    assert_close(run_on_gpu(program, tmp_path, inputs), run_reference(program, inputs))


@pytest.mark.parametrize("dtype", ["int8", "uint8"])
@pytest.mark.parametrize("name", SHAPES)
def test_integer_convolution(name: str, dtype: str, tmp_path: Path) -> None:
    source, inputs = layer(*SHAPES[name], dtype)
    program = program_of(source, activation_dtype="uint8")
    want = run_reference(program, inputs)["y"]
    np.testing.assert_array_equal(run_on_gpu(program, tmp_path, inputs)["y"], want)


def test_integers_of_16_bits(tmp_path: Path) -> None:
    """Convolutions that read them, make them, or both."""
    source, inputs = convolutions(step=2)
    program = program_of(source, activation_dtype="uint8")
    want = run_reference(program, inputs)
    for name, found in run_on_gpu(program, tmp_path, inputs).items():
        np.testing.assert_array_equal(found, want[name], err_msg=name)


class Picked(Records):
    """Chooses the first plan that has certain parameters, where there is one."""

    def __init__(self, **wanted: int) -> None:
        super().__init__()
        self.wanted, self.found = wanted, 0

    def of(self, kernel: Kernel, target: Any) -> list[Record]:
        """One of anything, so that it is asked for its choice."""
        return [Record("", "", "", "", {}, "time", 1.0, 1.0)]

    def choice(self, kernel: Kernel, target: Any, plans: Sequence[Any]) -> Any:
        matching = [plan for plan in plans if all(getattr(plan, n, None) == v for n, v in self.wanted.items())]
        self.found += bool(matching)
        return matching[0] if matching else plans[0]


def reductions() -> onnx.ModelProto:
    """Long reductions to few values, along channels and across them, whole vectors and not."""
    axes = {"mean": [2, 3], "most": [1, 2, 3], "least": [3], "length": [1, 3]}
    kinds = dict(zip(axes, ("ReduceMean", "ReduceMax", "ReduceMin", "ReduceL2"), strict=True))
    nodes = [helper.make_node(kinds[name], ["x", f"{name}_axes"], [name], keepdims=0) for name in axes]
    shapes = {"mean": (1, 12), "most": (1,), "least": (1, 12, 17), "length": (1, 17)}
    constants = {f"{name}_axes": np.array(values, np.int64) for name, values in axes.items()}
    return model(nodes, {"x": (1, 12, 17, 37)}, shapes, constants)


@pytest.mark.parametrize("team", [4, 16])
@pytest.mark.parametrize("name", ["pointwise, many channels", "kernel as large as the input", "3x3, whole tiles, deep"])
def test_teams_of_items_share_sums(name: str, team: int, tmp_path: Path) -> None:
    program, picked = program_of(CONVS[name]), Picked(team=team)
    inputs = random_inputs(program)
    found = run_on_gpu(program, tmp_path, inputs, records=picked)
    assert picked.found
    assert_close(found, run_reference(program, inputs))


FROM_IMAGES = replace(load_gpu("opencl"), weights="image")
"""As Adreno's is; PoCL makes such images, too."""


@pytest.mark.parametrize("storage", ["float32", "float16"])
@pytest.mark.parametrize("name", ["pointwise, many channels", "3x3, whole tiles", "grouped", "depthwise"])
def test_weights_from_images(name: str, storage: str, tmp_path: Path) -> None:
    program, target = program_of(CONVS[name]), replace(FROM_IMAGES, storage=storage)
    inputs = random_inputs(program)
    session, code = gpu_session(program, tmp_path, target)
    assert any(step.image for step in code.steps)
    with session:
        assert_close(session.run(inputs), run_reference(program, inputs), 1e-5 if storage == "float32" else 4e-3)


@pytest.mark.parametrize("name", ["3x3", "depthwise"])
def test_integer_weights_from_images(name: str, tmp_path: Path) -> None:
    source, inputs = layer(*SHAPES[name], "int8")
    program = program_of(source, activation_dtype="uint8")
    session, code = gpu_session(program, tmp_path, FROM_IMAGES)
    assert any(step.image for step in code.steps)
    with session:
        np.testing.assert_array_equal(session.run(inputs)["y"], run_reference(program, inputs)["y"])


WINOGRAD = {
    "whole tiles": conv_model((2, 16, 12, 8), 48, (3, 3), pads=(1, 1, 1, 1), act="Relu"),
    "odd map and channels": conv_model((1, 32, 7, 5), 17, (3, 3), pads=(1, 0, 1, 2)),
    "groups": conv_model((1, 48, 8, 6), 30, (3, 3), group=3, pads=(1, 1, 1, 1)),
}


@pytest.mark.parametrize("group", [(1, 1), (4, 1), (4, 4)], ids=str)
@pytest.mark.parametrize("out", [2, 4])
@pytest.mark.parametrize("name", WINOGRAD)
def test_winograd(name: str, out: int, group: tuple[int, int], tmp_path: Path) -> None:
    """Shared transforms where the group has several channels; no output of a tile beyond the map is kept."""
    program, picked = program_of(WINOGRAD[name]), Picked(out=out, group_x=group[0], group_y=group[1])
    inputs = random_inputs(program)
    found = run_on_gpu(program, tmp_path, inputs, FROM_IMAGES if group == (4, 1) else "opencl", picked)
    assert picked.found
    assert_close(found, run_reference(program, inputs), 1e-5)


@pytest.mark.parametrize("out", [2, 4])
def test_winograd_with_floats_stored_in_16_bits(out: int, tmp_path: Path) -> None:
    program, picked = program_of(WINOGRAD["odd map and channels"]), Picked(out=out)
    inputs = random_inputs(program)
    want = run_reference(program, inputs)
    assert_close(run_on_gpu(program, tmp_path, inputs, "opencl-fp16", picked), want, 4e-3)
    assert picked.found


@pytest.mark.parametrize("team", [1, 8])
def test_teams_of_items_share_reductions(team: int, tmp_path: Path) -> None:
    program, picked = program_of(reductions()), Picked(team=team)
    inputs = random_inputs(program)
    found = run_on_gpu(program, tmp_path, inputs, records=picked)
    assert picked.found > 3
    assert_close(found, run_reference(program, inputs))


@pytest.mark.parametrize("wanted", [{"team": 4}, {"flat": 1}, {"flat": 1, "dot": 1}, {"team": 4, "dot": 1}], ids=str)
def test_integers_are_the_same_whatever_the_plan(wanted: dict[str, int], tmp_path: Path) -> None:
    source, inputs = layer(*SHAPES["3x3"], "int8")
    program, picked = program_of(source, activation_dtype="uint8"), Picked(**wanted)
    target = replace(load_gpu("opencl"), integer_dot="dot" in wanted)
    want = run_reference(program, inputs)["y"]
    np.testing.assert_array_equal(run_on_gpu(program, tmp_path, inputs, target, picked)["y"], want)
    assert picked.found


@pytest.mark.parametrize("seed", [*RANDOM, *(pytest.param(seed, marks=pytest.mark.heavy) for seed in MANY)])
def test_random_model(seed: int, tmp_path: Path) -> None:
    program = program_of(RandomModel(seed, nodes=4 + seed % 12).build())
    inputs = random_inputs(program, seed)
    want = run_reference(program, inputs)
    if all(np.isfinite(value).all() and np.abs(value).max(initial=0) < 1e6 for value in want.values()):
        assert_close(run_on_gpu(program, tmp_path, inputs), want, 1e-4)


def test_float_functions_are_accurate(tmp_path: Path) -> None:
    generator = np.random.default_rng(11)
    ranges = [generator.uniform(-bound, bound, 1007) for bound in (1, 10, 110)]
    x = np.concatenate([*ranges, SPECIAL]).astype(np.float32)
    for name, found in compute(tmp_path, unary(*ULP), x).items():
        # OpenCL lets its own functions err by 4 or 5 units; those of math.cl are the processors' polynomials
        assert errors_in_ulp(found, exact(name, x)).max() <= max(ULP[name], 5.0), name


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_float_arithmetic(dtype: str, tmp_path: Path) -> None:
    a, b = pairs(dtype)
    names = ["add", "sub", "mul", "div", "min", "max", "eq", "ne", "lt", "le", "gt", "ge", "floormod"]
    found = compute(tmp_path, binary(*names), a, b)
    with np.errstate(all="ignore"):
        for name in names:
            np.testing.assert_array_equal(found[name], reference.OPERATORS[name](a, b), err_msg=name)
        names = ["isnan", "isinf", "neg", "abs", "sign", "floor", "ceil", "round"]
        for name, values in compute(tmp_path, unary(*names), a).items():
            np.testing.assert_array_equal(values, reference.OPERATORS[name](a), err_msg=name)


@pytest.mark.parametrize("dtype", INTEGERS)
def test_integer_arithmetic(dtype: str, tmp_path: Path) -> None:
    a, b = pairs(dtype)
    names = ["add", "sub", "mul", "min", "max", "div", "floormod", "truncmod", "bitand", "bitor", "bitxor"]
    names += ["eq", "ne", "lt", "le", "gt", "ge"]
    defined = (b != 0) & ~((a == np.iinfo(dtype).min) & (b.astype(np.int64) == -1))
    found = compute(tmp_path, binary(*names), a, b)
    with np.errstate(all="ignore"):
        for name in names:
            where = defined if name in ("div", "floormod", "truncmod") else slice(None)
            wanted = reference.OPERATORS[name](a, b)[where]
            np.testing.assert_array_equal(found[name][where], wanted, err_msg=name)
        for name, values in compute(tmp_path, unary("abs", "neg", "sign", "bitnot"), a).items():
            np.testing.assert_array_equal(values, reference.OPERATORS[name](a), err_msg=name)


def test_casts(tmp_path: Path) -> None:
    x = np.array([0.0, -0.0, 0.5, -0.5, 1.99, -1.99, 100.7, -100.7, 2.5, 3.5, 127.0], np.float32)
    functions = {n: lambda v, n=n: scalar.cast(v, n) for n in ["int8", "int16", "int32", "int64", "float16", "bool"]}
    for name, found in compute(tmp_path, functions, x).items():
        np.testing.assert_array_equal(found, x.astype(name), err_msg=name)
    y = np.array([-128, -1, 0, 1, 127], np.int8)
    functions = {n: lambda v, n=n: scalar.cast(v, n) for n in ["uint8", "int64", "float32", "bool", "int32"]}
    for name, found in compute(tmp_path, functions, y).items():
        np.testing.assert_array_equal(found, y.astype(name), err_msg=name)


def float64_program() -> tuple[Program, dict[str, np.ndarray]]:
    """A float64 step between float32 ones, which the generic device leaves to the processor."""
    x = np.linspace(-3, 3, 37, dtype=np.float32)

    def between(v: Expr) -> Expr:
        return scalar.cast(scalar.unary("exp", scalar.cast(v, "float64")), "float32")

    return map_program({"y": between, "z": lambda v: scalar.unary("neg", v)}, x), {"x0": x}


def test_float64_runs_on_the_processor(tmp_path: Path) -> None:
    program, inputs = float64_program()
    session, code = gpu_session(program, tmp_path)
    assert code.count("host") == 1 and code.count("kernel") == 1
    with session:
        found = session.run(inputs)
    assert_close(found, run_reference(program, inputs))


@pytest.mark.parametrize("dtype", ["int8", "uint8"])
@pytest.mark.parametrize("name", ["pointwise", "3x3", "one row", "grouped"])
def test_four_products_at_once_are_the_same_sum(name: str, dtype: str, tmp_path: Path) -> None:
    """The kernels for devices that have an instruction for it; here each sum is spelled out."""
    source, inputs = layer(*SHAPES[name], dtype)
    program = program_of(source, activation_dtype="uint8")
    want = run_reference(program, inputs)["y"]
    target = replace(load_gpu("opencl"), integer_dot=True)
    session, code = gpu_session(program, tmp_path, target)
    assert ("DOT4(" in code.source) == (name != "grouped")
    with session:
        np.testing.assert_array_equal(session.run(inputs)["y"], want)
