"""Objects of the OpenCL driver: none is left behind, whatever happens between open and close."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import edgec
from edgec.artifact import build_artifact, tensor_entry
from edgec.building.toolchain import host_triple
from edgec.errors import EdgecError
from edgec.runtimes.build import SOURCE_FOLDER, build_runtime
from edgec.runtimes.python.session import Session
from edgec.targets.cpu.backend import compile_program
from edgec.targets.gpu.backend import GpuProgram
from edgec.targets.gpu.target import load_gpu
from tests.gpu import gpu_session, needs_device, quiet
from tests.programs import program_of

FOLDER = Path(__file__).parent / "opencl"
CREATORS = {
    "clCreateContext:1": "clCreateContext",
    "clCreateCommandQueue:1": "clCreateCommandQueue",
    "clCreateBuffer:1": "clCreateBuffer",
    "clCreateBuffer:3": "clCreateBuffer",
    "clCreateSubBuffer:1": "clCreateSubBuffer",
    "clCreateKernel:5": "clCreateKernel",
    "clSetKernelArg:9": "clSetKernelArg",
    "clEnqueueNDRangeKernel:4": "f32_conv",
    "clEnqueueReadBuffer:1": "a copy",
}
"""Calls that fail as on a device that is out of memory, and what the sentence has in it."""

pytestmark = needs_device


@pytest.fixture(scope="module")
def artifact(sample_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return edgec.compile(sample_model, "opencl", tmp_path_factory.mktemp("gpu") / "digits.so").path


@pytest.fixture(scope="module")
def counting(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The counting library."""
    path = tmp_path_factory.mktemp("counting") / "libcounting.so"
    includes = [f"-I{SOURCE_FOLDER / 'src'}", f"-I{SOURCE_FOLDER / 'include'}"]
    subprocess.run(["cc", "-shared", "-fPIC", *includes, FOLDER / "counting.c", "-o", path, "-ldl"], check=True)
    return path


def counted(script: str, artifact: Path, counting: Path, *arguments: object, **settings: str) -> dict[str, Any]:
    """What ``script`` prints, which runs with the counting library as driver."""
    environment = {**os.environ, "EDGERT_OPENCL_LIBRARY": str(counting), **settings}
    command = [sys.executable, "-m", f"tests.opencl.{script}", str(artifact), str(counting), *map(str, arguments)]
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, env=environment, cwd=FOLDER.parent.parent
    )
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def runner_outputs(
    artifact: Path, counting: Path, data: dict[str, np.ndarray], folder: Path, **settings: str
) -> tuple[np.ndarray, str]:
    """The logits [5, 10] of ``edgert-run`` with the counting library as driver, and what that said."""
    data["image"][:5].tofile(folder / "in.bin")
    command = [build_runtime(host_triple()).runner, artifact, "--inputs", "in.bin", "--outputs", "out.bin"]
    environment = {**os.environ, "EDGERT_OPENCL_LIBRARY": str(counting), **settings}
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True, env=environment)
    return np.fromfile(folder / "out.bin", np.float32).reshape(5, 10), done.stderr


def lifetimes(
    artifact: Path, counting: Path, runs: int, cycles: int, fail: str = "", **settings: str
) -> dict[str, Any]:
    """What the counting library saw of a process that opens, runs and closes ``artifact``."""
    return counted("lifetimes", artifact, counting, runs, cycles, COUNTING_FAIL=fail, **settings)


def test_runs_and_sessions_leave_nothing(artifact: Path, counting: Path) -> None:
    found = lifetimes(artifact, counting, runs=2000, cycles=5)
    assert found["error"] is None and found["closed"] == 0
    first, second, *after_closing = found["between"]
    # measuring makes a second queue, and keeps it; its events are gone after every run
    assert found["open"] > 10 and first == found["open"] and second == first + 1
    assert set(after_closing) == {0}


@pytest.mark.heavy
def test_many_runs_and_sessions_leave_nothing(artifact: Path, counting: Path) -> None:
    found = lifetimes(artifact, counting, runs=10_000, cycles=100)
    assert found["error"] is None and found["closed"] == 0
    assert len(set(found["between"][1:10])) == 1 and set(found["between"][10:]) == {0}


def test_a_gpu_that_shares_memory_works_in_place(
    artifact: Path, counting: Path, sample_data: dict[str, np.ndarray], tmp_path: Path
) -> None:
    """The runner has the session's own buffers: nothing is copied, on devices like PoCL and phones' GPUs."""
    found, said = runner_outputs(artifact, counting, sample_data, tmp_path, COUNTING_COPIES="1")
    assert "copies 0" in said.splitlines()
    with edgec.load(artifact) as session:
        wanted = np.concatenate([session.run({"image": image[None]})["logits"] for image in sample_data["image"][:5]])
    np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize("settings", [{}, {"COUNTING_IMPORT": "1"}], ids=["host pointers", "ARM's imports"])
def test_a_gpu_that_shares_memory_works_in_what_is_bound(
    settings: dict[str, str], artifact: Path, counting: Path
) -> None:
    """Memory of the caller's that begins with a cache line and is no other's is not copied; other memory is."""
    found = counted("bound", artifact, counting, **settings)
    assert (found["imports"] > 0) == bool(settings)
    copies = {"aligned": 0, "other": 0, "input": 2, "neither": 4, "overlapping": 4, "again": 0}
    assert {kind: found[kind]["copies"] for kind in copies} == copies
    for kind in copies:
        assert found[kind]["found"] == found["wanted"], kind
    assert len(set(found["alive"])) == 1 and found["closed"] == 0


def test_a_driver_that_shares_no_memory_has_it_copied(artifact: Path, counting: Path) -> None:
    """The first buffer over the host's memory is the fifth: arena, weights, input and output are before it."""
    found = counted("bound", artifact, counting, COUNTING_FAIL="clCreateBuffer:5")
    assert found["aligned"] == {"copies": 4, "found": found["wanted"]}
    assert found["closed"] == 0


def test_the_arena_is_sub_buffers_where_the_device_has_them_so_close(
    artifact: Path, counting: Path, sample_data: dict[str, np.ndarray], tmp_path: Path
) -> None:
    """A device whose sub-buffers begin at multiples of 8192 bytes has the arena whole, and the same answers."""
    found, opened = [], []
    for bits in ("1024", "65536"):
        found.append(runner_outputs(artifact, counting, sample_data, tmp_path, COUNTING_ALIGN=bits)[0])
        settings = {"COUNTING_ALIGN": bits, "COUNTING_DISCRETE": "1"}
        opened.append(lifetimes(artifact, counting, runs=1, cycles=1, **settings)["open"])
    np.testing.assert_array_equal(*found)
    assert opened[0] > opened[1]


def test_a_device_without_images_reads_the_buffer(
    sample_model: Path, counting: Path, sample_data: dict[str, np.ndarray], tmp_path: Path
) -> None:
    gpu_session(program_of(sample_model), tmp_path, replace(load_gpu("opencl"), weights="image"))[0].close()
    artifact = tmp_path / "opencl.so"
    found, opened = [], []
    for fail in ("", "clCreateImage:1"):
        found.append(runner_outputs(artifact, counting, sample_data, tmp_path, COUNTING_FAIL=fail)[0])
        seen = lifetimes(artifact, counting, runs=3, cycles=1, fail=fail, COUNTING_DISCRETE="1")
        assert seen["error"] is None and seen["closed"] == 0
        opened.append(seen["open"])
    np.testing.assert_array_equal(*found)
    assert opened[0] == opened[1] + 1


@pytest.mark.parametrize("call", CREATORS)
def test_a_device_out_of_memory_is_a_sentence(call: str, artifact: Path, counting: Path) -> None:
    # where memory is shared, it depends on where an array happens to begin whether it is copied
    found = lifetimes(artifact, counting, runs=3, cycles=1, fail=call, COUNTING_DISCRETE="1")
    assert "out of memory" in found["error"] and CREATORS[call] in found["error"]
    assert "--fallback cpu" in found["error"] and found["closed"] == 0


def test_what_the_compiler_says_is_in_the_error(tiny_model: Path, tmp_path: Path) -> None:
    program, target = program_of(tiny_model), load_gpu("opencl")
    code = GpuProgram(program, target).compile(quiet)
    broken = replace(code, source=code.source.replace("get_global_id(0)", "get_global_idea(0)"))
    facts = {
        "name": "broken", "inputs": [tensor_entry(t) for t in program.inputs],
        "outputs": [tensor_entry(t) for t in program.outputs], "steps": [],
    }  # fmt: skip
    data, _ = build_artifact(program, compile_program(program, target.host, quiet), target.host, facts, broken)
    path = tmp_path / "broken.so"
    path.write_bytes(data)
    with pytest.raises(EdgecError, match=r"cannot compile the model's kernels .*get_global_idea"):
        Session(path)
    with Session(path, fallback="cpu") as session:
        assert session.device == "CPU"
        assert np.isfinite(session.run({"x": np.zeros((1, 3, 7, 5), np.float32)})["y"]).all()
