"""Products of two integer matrices that are both computed, as attention has them: equal to the last bit everywhere."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from tests import graphs
from tests.gpu import run_on_gpu
from tests.operators import node
from tests.programs import HostProgram, program_of, run_reference
from tests.test_aarch64_kernels import emulated, together
from tests.test_integer_kernels import DTYPES
from tests.test_x86_kernels import GENERATIONS, check, target

SHAPES = {
    "heads": ((1, 6, 17, 64), (1, 6, 64, 17), "uint8", (120, 131)),
    "keys by rows": ((2, 17, 5), (2, 127, 5), "int8", (0, 0)),
    "depth 127": ((2, 3, 5, 127), (2, 3, 127, 33), "int8", (-3, 7)),
    "depth 7": ((5, 7), (7, 40), "uint8", (0, 128)),
    "depth 1": ((3, 17, 1), (3, 1, 7), "int8", (5, 0)),
    "one row": ((4, 1, 65), (4, 65, 24), "uint8", (160, 110)),
    "one column": ((3, 9, 22), (3, 22, 1), "int8", (-40, 20)),
    "one matrix for all": ((2, 3, 5, 9), (9, 19), "uint8", (7, 0)),
    "batches that broadcast": ((2, 1, 5, 12), (3, 12, 16), "int8", (1, 2)),
    "whole vectors": ((1, 32, 32), (1, 32, 64), "uint8", (128, 128)),
}  # fmt: skip
"""Left, right (transposed where the depths would not fit), dtype of both, zero points."""


def product(name: str) -> tuple[onnx.ModelProto, dict[str, np.ndarray]]:
    """A QLinearMatMul of two inputs."""
    left, right, dtype, zeros = SHAPES[name]
    generator, limits = np.random.default_rng([*left, *right]), np.iinfo(dtype)
    inputs = {
        key: generator.integers(limits.min, limits.max, shape, dtype, endpoint=True)
        for key, shape in (("a", left), ("b", right))
    }
    turned = left[-1] != right[-2]
    axes = [*range(len(right) - 2), len(right) - 1, len(right) - 2]
    b = inputs["b"].transpose(axes) if turned else inputs["b"]
    sums = (inputs["a"].astype(np.int32) - zeros[0]) @ (b.astype(np.int32) - zeros[1])
    step = max(np.abs(sums).max() / 140, 1)
    constants = {
        "s": np.float32(0.02), "az": np.array(zeros[0], dtype), "bz": np.array(zeros[1], dtype),
        "ys": np.float32(0.02 * 0.02 * step),
        "yz": np.array(limits.min + 128, dtype),
    }  # fmt: skip
    nodes = [node("Transpose", "b", "c", perm=axes)] if turned else []
    nodes.append(node("QLinearMatMul", f"a s az {'c' if turned else 'b'} s bz ys yz", "y"))
    types = dict.fromkeys(inputs, DTYPES[dtype])
    return graphs.build(nodes, {key: x.shape for key, x in inputs.items()}, ["y"], constants, types=types), inputs


def products() -> tuple[onnx.ModelProto, dict[str, np.ndarray]]:
    """All of them as one model."""
    made = [product(name) for name in SHAPES]
    inputs = {f"{index}_{key}": x for index, (_, own) in enumerate(made) for key, x in own.items()}
    return together(model for model, _ in made), inputs


@pytest.mark.parametrize("name", SHAPES)
def test_host(name: str, tmp_path: Path) -> None:
    model, inputs = product(name)
    program = program_of(model)
    want = run_reference(program, inputs)["y"]
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    np.testing.assert_array_equal(want, session.run(None, inputs)[0])
    assert len(np.unique(want)) > min(20, want.size // 4)
    compiled = HostProgram(program, tmp_path)
    for threads in (1, 3):
        np.testing.assert_array_equal(compiled.run(inputs, threads)["y"], want)


@pytest.mark.parametrize("generation", GENERATIONS)
def test_every_generation_of_x86(generation: str, tmp_path: Path) -> None:
    machine = target(generation)
    check(*products(), tmp_path, machine)


@pytest.mark.parametrize(("board", "cpu", "threads"), [("rpi3", "cortex-a53", 1), ("rpi5", "cortex-a76", 3)])
def test_aarch64(emulator, board: str, cpu: str, threads: int, tmp_path: Path) -> None:
    _same(emulated(*products(), tmp_path, board, cpu, threads))


def test_armv7(emulator_32, tmp_path: Path) -> None:
    _same(emulated(*products(), tmp_path, "rpi2", "cortex-a7"))


def test_gpu(tmp_path: Path) -> None:
    model, inputs = products()
    _same(run_on_gpu(program_of(model), tmp_path, inputs))


def _same(got: dict[str, np.ndarray]) -> None:
    model, inputs = products()
    wanted = run_reference(program_of(model), inputs)
    assert not [name for name in wanted if not np.array_equal(got[name], wanted[name])]


def test_vectors_of_rows_multiply_bytes(tmp_path: Path) -> None:
    """On x86 computed matrices go the way of constant weights, and do not fall back on widened integers."""
    machine = target("avx2")
    code = HostProgram(program_of(product("heads")[0]), tmp_path, machine).code
    assert any("gemm_rt" in call.contract and call.contract.endswith("_madd") for call in code.calls)
