"""Every scalar operator in machine code against numpy: accuracy in ulp, special values, odd lengths, dtypes."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper

import edgec
from edgec import reference, scalar
from edgec.data.samples import Samples
from edgec.devices.device import open_device
from edgec.program import INPUT, OUTPUT, Buffer, Loops, Program, Step, Tensor
from edgec.scalar import Expr
from edgec.targets.cpu import math as cpu_math
from tests.programs import HostProgram

rng = np.random.default_rng(11)

ULP = {
    "exp": 1.0, "log": 0.8, "log1p": 1.5, "sigmoid": 2.2, "tanh": 1.4, "erf": 1.3, "sqrt": 0.5, "sin": 1.0, "cos": 1.0,
    "tan": 1.5, "asin": 1.5, "acos": 1.5, "atan": 1.5, "sinh": 2.5, "cosh": 2.5, "asinh": 2.5, "acosh": 2.5,
    "atanh": 2.5,
}  # fmt: skip
"""Largest error in float32 of each function, in units in the last place of the result."""

SPECIAL = [0.0, -0.0, 1.0, -1.0, np.inf, -np.inf, np.nan, 88.72283, 88.72284, -87.4, -103.9, -104.1, 1e-45, -1e-45]
"""Where functions change their ways: zeros, infinities, NaN, the edges of exp, the smallest subnormals."""


def map_program(functions: dict[str, Callable[..., Expr]], *inputs: np.ndarray) -> Program:
    """A program with one output per function of the inputs ``x0``, ``x1`` …, element by element."""
    count = inputs[0].size
    sources = [Buffer(f"x{i}", str(x.dtype), count, INPUT) for i, x in enumerate(inputs)]
    program = Program("math", [Tensor(buffer.name, (count,), buffer) for buffer in sources], [])
    loads = [scalar.load(i, scalar.axis(0), buffer.dtype) for i, buffer in enumerate(sources)]
    for name, function in functions.items():
        body = function(*loads)
        out = Buffer(name, body.dtype, count, OUTPUT)
        nest = Loops((count,), body, scalar.axis(0), body.dtype)
        program.steps.append(Step(nest, sources, out, (name,)))
        program.outputs.append(Tensor(name, (count,), out))
    return program


def compute(folder: Path, functions: dict[str, Callable[..., Expr]], *inputs: np.ndarray) -> dict[str, np.ndarray]:
    """What the machine makes of ``functions``."""
    program = map_program(functions, *inputs)
    # a folder of its own: a library under a path that is already loaded would not be loaded again
    return HostProgram(program, Path(tempfile.mkdtemp(dir=folder))).run({f"x{i}": x for i, x in enumerate(inputs)})


def unary(*names: str) -> dict[str, Callable[..., Expr]]:
    return {name: lambda x, name=name: scalar.unary(name, x) for name in names}


def binary(*names: str) -> dict[str, Callable[..., Expr]]:
    return {name: lambda a, b, name=name: scalar.binary(name, a, b) for name in names}


def exact(name: str, x: np.ndarray) -> np.ndarray:
    """The function in float64; erf by the C library."""
    wide = x.astype(np.float64)
    with np.errstate(all="ignore"):
        if name == "erf":
            return np.array([math.erf(value) for value in wide])
        if name == "sigmoid":
            e = np.exp(-np.abs(wide))
            return np.where(wide < 0, e, 1) / (1 + e)
        return np.asarray(reference.OPERATORS[name](wide))


def errors_in_ulp(found: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Distance from ``wanted`` (float64) in units in the last place; infinite where only one is finite or NaN."""
    with np.errstate(all="ignore"):
        rounded = wanted.astype(found.dtype)
        alike = (found == rounded) | (np.isnan(found) & np.isnan(rounded))
        spacing = np.spacing(np.abs(rounded)).astype(np.float64)
        distance = np.abs(found.astype(np.float64) - wanted) / spacing
    return np.where(alike, 0.0, np.where(np.isfinite(distance), distance, np.inf))


def everywhere(dtype: str) -> np.ndarray:
    """Random bit patterns, dense values where functions bend, and special values: of no round length."""
    unsigned = {"float16": np.uint16, "float32": np.uint32, "float64": np.uint64}[dtype]
    patterns = rng.integers(0, np.iinfo(unsigned).max, 30_001, dtype=unsigned, endpoint=True).view(dtype)
    ranges = [rng.uniform(-bound, bound, 10_007) for bound in (1, 10, 110)]
    with np.errstate(over="ignore"):
        return np.concatenate([patterns, *(r.astype(dtype) for r in ranges), np.array(SPECIAL).astype(dtype)])


@pytest.fixture(scope="module")
def float32_results(tmp_path_factory: pytest.TempPathFactory) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    x = everywhere("float32")
    return x, compute(tmp_path_factory.mktemp("float32"), unary(*ULP), x)


@pytest.mark.parametrize("name", ULP)
def test_float32_functions_are_accurate(name: str, float32_results: tuple[np.ndarray, dict[str, np.ndarray]]) -> None:
    x, found = float32_results
    errors = errors_in_ulp(found[name], exact(name, x))
    worst = int(np.argmax(errors))
    assert errors[worst] <= ULP[name], (name, x[worst], found[name][worst])


@pytest.mark.parametrize("dtype, bound", [("float16", 0.51), ("float64", 2.5)])
def test_other_floats_are_accurate(dtype: str, bound: float, tmp_path: Path) -> None:
    x = everywhere(dtype)
    found = compute(tmp_path, unary(*ULP), x)
    for name in ULP:
        errors = errors_in_ulp(found[name], exact(name, x))
        worst = int(np.argmax(errors))
        assert errors[worst] <= bound, (name, x[worst], found[name][worst])


@pytest.mark.parametrize("count", [1, 5, 7, 17, 127])
def test_every_length_gives_the_same_values(
    count: int, tmp_path: Path, float32_results: tuple[np.ndarray, dict[str, np.ndarray]]
) -> None:
    x, whole = float32_results
    part = x[-count:]
    for name, found in compute(tmp_path, unary(*ULP), part).items():
        np.testing.assert_array_equal(found, whole[name][-count:], err_msg=name)


FLOATS = ["float16", "float32", "float64"]
INTEGERS = ["int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64"]


def pairs(dtype: str) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of values with every special value beside every other."""
    kind = np.dtype(dtype)
    if kind.kind == "f":
        values = np.concatenate([np.array(SPECIAL).astype(dtype), rng.uniform(-9, 9, 33).astype(dtype)])
    else:
        limits = np.iinfo(kind)
        edges = [limits.min, limits.min + 1, 0, 1, 2, 3, limits.max - 1, limits.max]
        values = np.array([*edges, *([-1, -2, -3] if limits.min else [])], dtype)
        values = np.concatenate([values, rng.integers(limits.min, limits.max, 33, dtype=dtype, endpoint=True)])
    a, b = np.meshgrid(values, values)
    return a.reshape(-1), b.reshape(-1)


@pytest.mark.parametrize("dtype", FLOATS)
def test_float_arithmetic_is_exact(dtype: str, tmp_path: Path) -> None:
    """IEEE arithmetic, and max and min that keep NaN wherever it stands."""
    a, b = pairs(dtype)
    names = ["add", "sub", "mul", "div", "min", "max", "truncmod", "floormod"]
    names += ["eq", "ne", "lt", "le", "gt", "ge"]
    with np.errstate(all="ignore"):
        for name, found in compute(tmp_path, binary(*names), a, b).items():
            wanted = reference.OPERATORS[name](a, b)
            np.testing.assert_array_equal(found, wanted, err_msg=name)
            if name not in ("min", "max"):
                zeros = wanted == 0
                np.testing.assert_array_equal(np.signbit(found[zeros]), np.signbit(wanted[zeros]), err_msg=name)
        for name in ("eq", "ne", "lt", "le", "gt", "ge"):
            negated = {name: lambda x, y, name=name: scalar.unary("not", scalar.binary(name, x, y))}
            wanted = ~reference.OPERATORS[name](a, b)
            np.testing.assert_array_equal(compute(tmp_path, negated, a, b)[name], wanted, err_msg=f"not {name}")


@pytest.mark.parametrize("dtype", FLOATS)
def test_float_predicates_and_rounding(dtype: str, tmp_path: Path) -> None:
    x = np.concatenate([everywhere(dtype), np.array([0.5, 1.5, 2.5, -0.5, -1.5], dtype)])
    with np.errstate(all="ignore"):
        names = ["isnan", "isinf", "neg", "abs", "sign", "floor", "ceil", "round"]
        for name, found in compute(tmp_path, unary(*names), x).items():
            np.testing.assert_array_equal(found, reference.OPERATORS[name](x), err_msg=name)


@pytest.mark.parametrize("dtype", INTEGERS)
def test_integer_arithmetic_wraps_and_never_traps(dtype: str, tmp_path: Path) -> None:
    """Division by 0, and of the least integer by −1, stop no program; their results are not looked at."""
    a, b = pairs(dtype)
    names = ["add", "sub", "mul", "min", "max", "div", "floormod", "truncmod", "bitand", "bitor", "bitxor"]
    names += ["eq", "ne", "lt", "le", "gt", "ge"]
    defined = (b != 0) & ~((a == np.iinfo(dtype).min) & (b.astype(np.int64) == -1))
    with np.errstate(all="ignore"):
        for name, found in compute(tmp_path, binary(*names), a, b).items():
            where = defined if name in ("div", "floormod", "truncmod") else slice(None)
            np.testing.assert_array_equal(found[where], reference.OPERATORS[name](a, b)[where], err_msg=name)


@pytest.mark.parametrize("dtype", INTEGERS)
def test_integer_unary_operators_and_shifts(dtype: str, tmp_path: Path) -> None:
    a, _ = pairs(dtype)
    names = ["abs", "neg", "sign", "bitnot"]
    for name, found in compute(tmp_path, unary(*names), a).items():
        np.testing.assert_array_equal(found, reference.OPERATORS[name](a), err_msg=name)
    shifts = (np.arange(a.size) % (8 * a.dtype.itemsize)).astype(dtype)
    for name, found in compute(tmp_path, binary("shiftleft", "shiftright"), a, shifts).items():
        np.testing.assert_array_equal(found, reference.OPERATORS[name](a, shifts), err_msg=name)


def test_powers(tmp_path: Path) -> None:
    for dtype in (*FLOATS, "int32", "int64"):
        a, b = pairs("int8") if dtype.startswith("int") else pairs(dtype)
        fitting = slice(None) if dtype.startswith("float") else (b >= 0) & (np.abs(a.astype(int)) < 4) & (b < 16)
        a, b = a[fitting].astype(dtype), b[fitting].astype(dtype)
        with np.errstate(all="ignore"):
            wanted = np.power(a.astype(np.float64), b.astype(np.float64)).astype(dtype)
        np.testing.assert_allclose(compute(tmp_path, binary("pow"), a, b)["pow"], wanted, rtol=2e-7, err_msg=dtype)


def test_casts_truncate_and_compare_with_zero(tmp_path: Path) -> None:
    x = np.array([0.0, -0.0, 0.5, -0.5, 1.99, -1.99, 100.7, -100.7, 2.5, 3.5, 127.0], np.float32)
    assert compute(tmp_path, {"y": lambda v: scalar.cast(v, "bool")}, np.array([np.nan, 0], np.float32))["y"][0]
    names = ["int8", "int16", "int32", "int64", "float16", "float64", "bool"]
    functions = {name: lambda v, name=name: scalar.cast(v, name) for name in names}
    for name, found in compute(tmp_path, functions, x).items():
        np.testing.assert_array_equal(found, x.astype(name), err_msg=name)
    y = np.array([-128, -1, 0, 1, 127], np.int8)
    functions = {name: lambda v, name=name: scalar.cast(v, name) for name in ["uint8", "int64", "float32", "bool"]}
    for name, found in compute(tmp_path, functions, y).items():
        np.testing.assert_array_equal(found, y.astype(name), err_msg=name)


def test_shared_subterms_stay_small(tmp_path: Path) -> None:
    """Nested functions of values that are read several times: code grows with the expression, not with its tree."""

    def nested(x: Expr) -> Expr:
        for _ in range(6):
            x = scalar.unary("tanh", scalar.binary("mul", scalar.unary("sigmoid", x), scalar.binary("max", x, x)))
        return x

    x = rng.uniform(-3, 3, 101).astype(np.float32)
    found = compute(tmp_path, {"y": nested}, x)["y"]
    wanted = x.astype(np.float64)
    for _ in range(6):
        wanted = np.tanh(wanted / (1 + np.exp(-wanted)))
    np.testing.assert_allclose(found, wanted, rtol=1e-5)


def test_every_operator_has_code_and_a_definition() -> None:
    assert set(reference.OPERATORS) | {"cast"} == cpu_math.OPERATORS


def test_functions_on_a_board(emulator: str, tmp_path: Path) -> None:
    """The polynomials and half floats on aarch64, where no compiler flag of this machine helps."""
    names = {"Exp": "exp", "Log": "log", "Sigmoid": "sigmoid", "Tanh": "tanh", "Erf": "erf", "Sin": "sin"}
    x = everywhere("float32")[-12_011:]
    half = x.astype(np.float16)
    nodes = [helper.make_node(op, ["x"], [name]) for op, name in names.items()]
    nodes += [helper.make_node(op, ["h"], [f"half_{name}"]) for op, name in names.items()]
    kinds = {"x": onnx.TensorProto.FLOAT, "h": onnx.TensorProto.FLOAT16}
    kinds |= dict.fromkeys(names.values(), kinds["x"]) | {f"half_{name}": kinds["h"] for name in names.values()}
    values = {name: helper.make_tensor_value_info(name, kind, x.shape) for name, kind in kinds.items()}
    graph = helper.make_graph(nodes, "functions", [values.pop("x"), values.pop("h")], list(values.values()))
    source = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    artifact = edgec.compile(source, "rpi4", tmp_path / "functions.so").path
    found = open_device(emulator).run(artifact, Samples(1, None, lambda run: {"x": x, "h": half})).outputs
    for name in names.values():
        assert errors_in_ulp(found[name][0], exact(name, x)).max() <= ULP[name], name
        assert errors_in_ulp(found[f"half_{name}"][0], exact(name, half)).max() <= 0.51, name
