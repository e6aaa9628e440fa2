"""Small programs and models for the tests, and ways to run them."""

from __future__ import annotations

import ctypes
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper, numpy_helper

from edgec import reference
from edgec.graph import load_graph
from edgec.lowering import lower
from edgec.passes.pipeline import run as run_passes
from edgec.passes.pipeline import select
from edgec.planning import fusion, memory
from edgec.program import CONSTANT, Buffer, Program
from edgec.runtimes.build import SOURCE_FOLDER
from edgec.targets.cpu.backend import compile_program
from edgec.targets.target import Target, load_target
from edgec.tuning.records import Records


def model(
    nodes: Sequence[onnx.NodeProto],
    inputs: dict[str, Sequence[int]],
    outputs: dict[str, Sequence[int]],
    constants: dict[str, np.ndarray] | None = None,
    dtype: int = onnx.TensorProto.FLOAT,
) -> onnx.ModelProto:
    """A model of ``nodes``; constants become initialisers."""
    graph = helper.make_graph(
        [helper.make_node(n.op_type, n.input, n.output, n.name or f"{n.op_type}_{i}", **_attributes(n))
         for i, n in enumerate(nodes)],
        "test",
        [helper.make_tensor_value_info(name, dtype, shape) for name, shape in inputs.items()],
        [helper.make_tensor_value_info(name, dtype, shape) for name, shape in outputs.items()],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in (constants or {}).items()],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def _attributes(node: onnx.NodeProto) -> dict[str, Any]:
    return {a.name: helper.get_attribute_value(a) for a in node.attribute}


def program_of(
    source: onnx.ModelProto | ir.Model | str | Path, *, fuse: bool = True, activation_dtype: str = "int8"
) -> Program:
    """The lowered program."""
    graph = load_graph(source)
    run_passes(graph, select(activation_dtype=activation_dtype))
    program = lower(graph)
    if fuse:
        fusion.fuse(program)
    return program


def random_inputs(program: Program, seed: int = 0) -> dict[str, np.ndarray]:
    """Standard normal inputs."""
    generator = np.random.default_rng(seed)
    return {t.name: generator.standard_normal(t.shape).astype(t.dtype) for t in program.inputs}


def run_reference(program: Program, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The outputs by the numpy reference."""
    return reference.run(program, inputs)


class HostProgram:
    """A program compiled for the host and called kernel by kernel through ctypes, on any number of threads."""

    def __init__(
        self, program: Program, folder: Path, target: Target | None = None, records: Records | None = None
    ) -> None:
        memory.plan(program)
        self.program = program
        self.code = compile_program(program, target or load_target("host"), lambda what, done, total: None, records)
        objects = self.code.write_objects(folder)
        subprocess.run(["cc", "-shared", "-o", folder / "kernels.so", *objects, "-lm"], check=True, cwd=folder)
        self._library = ctypes.CDLL(str(folder / "kernels.so"))
        self._memory: dict[int, np.ndarray] = {}
        self._arena = np.zeros(program.arena_bytes + 64, np.uint8)

    def run(self, inputs: dict[str, np.ndarray], threads: int = 1) -> dict[str, np.ndarray]:
        """Run every step, each thread's share in turn, last thread first."""
        for tensor in self.program.inputs:
            self._memory[id(tensor.buffer)] = np.ascontiguousarray(inputs[tensor.name])
        for tensor in self.program.outputs:
            self._memory[id(tensor.buffer)] = np.full(tensor.shape, 77, tensor.dtype)
        for call in self.code.calls:
            arguments = [ctypes.c_void_p(self._address(buffer)) for buffer in call.operands]
            team = threads if call.parallel else 1
            for thread in reversed(range(team)):
                getattr(self._library, call.symbol)(*arguments, ctypes.c_int32(thread), ctypes.c_int32(team))
        return {t.name: self._memory[id(t.buffer)] for t in self.program.outputs}

    def _address(self, buffer: Buffer) -> int:
        root, skip = buffer.root, buffer.root_offset * np.dtype(buffer.dtype).itemsize
        if root.offset is not None and id(root) not in self._memory:
            base = self._arena.ctypes.data
            return base + -base % 64 + root.offset + skip
        if root.space == CONSTANT and id(root) not in self._memory:
            self._memory[id(root)] = np.ascontiguousarray(root.data)
        return int(self._memory[id(root)].ctypes.data) + skip


def with_library(name: str, folder: Path, *flags: str) -> Path:
    """A program of ``runtimes/c/tests``, built with the library's sources; skips where a sanitizer is missing."""
    program = folder / name
    sources = [SOURCE_FOLDER / "tests" / f"{name}.c", *sorted((SOURCE_FOLDER / "src").glob("*.c"))]
    options = ["-std=c11", "-O2", "-g", "-D_GNU_SOURCE", f"-I{SOURCE_FOLDER / 'include'}"]
    command = ["cc", *options, *sources, "-o", program, *flags, "-lpthread", "-ldl"]
    built = subprocess.run(command, capture_output=True, text=True, check=False)
    if built.returncode and any(flag.startswith("-fsanitize") for flag in flags):
        pytest.skip("this C compiler has no such sanitizer")
    assert built.returncode == 0, built.stderr
    return program


def assert_close(got: dict[str, np.ndarray], want: dict[str, np.ndarray], tolerance: float = 1e-5) -> None:
    """Equal names, shapes and dtypes, and values within ``tolerance`` of the wanted range (or a hundredth of size)."""
    assert got.keys() == want.keys()
    for name, expected in want.items():
        assert got[name].shape == expected.shape and got[name].dtype == expected.dtype, name
        # values far from zero and close together carry the rounding of their size, not of their range
        scale = max(float(np.ptp(expected)), 0.01 * float(np.abs(expected).max()), 1e-6) if expected.size else 1.0
        np.testing.assert_allclose(got[name] / scale, expected / scale, rtol=0, atol=tolerance, err_msg=name)
