"""The cache of compiled kernels: found by content, bounded, safe for many processes; and reproducible artifacts."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import edgec
from edgec.building import kernel_cache
from edgec.building.kernel_cache import KernelCache, kernel_key, source_key
from edgec.building.toolchain import Toolchain, find_toolchain
from edgec.targets.cpu.loops import LoopsPlan, generate
from edgec.targets.target import load_target
from tests.programs import program_of
from tests.random_models import RandomModel


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EDGEC_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.delenv("EDGEC_CACHE", raising=False)
    return tmp_path / "cache" / "kernels"


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The symbols that TVM is asked to build."""
    from edgec.targets.cpu import backend

    real, symbols = backend.build_object, []

    def build(functions: dict[str, object], target: object) -> bytes:
        symbols.extend(functions)
        return real(functions, target)

    monkeypatch.setattr(backend, "build_object", build)
    yield symbols


def test_second_compilation_builds_nothing(
    sample_model: Path, tmp_path: Path, folder: Path, built: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = edgec.compile(sample_model, output=tmp_path / "a.so").path.read_bytes()
    kernels = len(built)
    assert kernels > 5 and len(list(folder.iterdir())) == kernels + 1  # and the descriptor

    def compile_nothing(*_: object, **__: object) -> None:
        raise AssertionError("the descriptor is there already")

    monkeypatch.setattr(Toolchain, "compile_object", compile_nothing)
    second = edgec.compile(sample_model, output=tmp_path / "b.so").path.read_bytes()
    assert len(built) == kernels and second == first


def test_second_compilation_does_not_import_tvm(sample_model: Path, tmp_path: Path, folder: Path) -> None:
    edgec.compile(sample_model, output=tmp_path / "a.so")
    program = (
        f"import sys, edgec; edgec.compile({str(sample_model)!r}, output={str(tmp_path / 'b.so')!r}); "
        "sys.exit('tvm' in sys.modules or 'torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_compilation_does_not_import_torch(tiny_model: Path, tmp_path: Path) -> None:
    """TVM does where it can, and nothing that edgec does needs it."""
    program = (
        f"import sys, edgec; edgec.compile({str(tiny_model)!r}, output={str(tmp_path / 'a.so')!r}); "
        "sys.exit('tvm' not in sys.modules or 'torch' in sys.modules)"
    )
    environment = {**os.environ, "EDGEC_CACHE": "off"}
    assert subprocess.run([sys.executable, "-c", program], env=environment, check=False).returncode == 0


def test_one_changed_layer_builds_one_kernel(
    sample_model: Path, tmp_path: Path, folder: Path, built: list[str]
) -> None:
    edgec.compile(sample_model, output=tmp_path / "a.so")
    del built[:]
    model = onnx.load(sample_model)
    # the last layer loses its last class: one kernel has another shape
    gemm = next(node for node in model.graph.node if node.op_type == "Gemm")
    for tensor in model.graph.initializer:
        if tensor.name in gemm.input[1:]:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor)[:9].copy(), tensor.name))
    model.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 9
    edgec.compile(model, output=tmp_path / "b.so")
    assert len(built) == 1


def test_changed_weights_build_nothing(sample_model: Path, tmp_path: Path, folder: Path, built: list[str]) -> None:
    edgec.compile(sample_model, output=tmp_path / "a.so")
    del built[:]
    model = onnx.load(sample_model)
    tensor = max(model.graph.initializer, key=lambda each: len(each.raw_data))
    tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(1.5), tensor.name))
    edgec.compile(model, output=tmp_path / "b.so")
    assert built == []


@pytest.mark.parametrize("target", ["host", "rpi4"])
def test_same_input_gives_the_same_bytes(sample_model: Path, tmp_path: Path, target: str) -> None:
    """In two processes, with other seeds of Python's hashes, in other folders, without a cache."""
    found = []
    for seed in ("1", "2"):
        path = tmp_path / seed / "model.so"
        path.parent.mkdir()
        environment = {**os.environ, "PYTHONHASHSEED": seed, "EDGEC_CACHE": "off"}
        command = [sys.executable, "-c", "from edgec.cli import main; main()", "compile", sample_model]
        done = subprocess.run(
            [*command, "--target", target, "-o", path], env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        found.append(path.read_bytes())
    assert found[0] == found[1]


def test_switch_turns_it_off(sample_model: Path, tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEC_CACHE", "off")
    edgec.compile(sample_model, output=tmp_path / "a.so")
    assert not folder.exists()


def test_folder_that_cannot_be_written_is_no_hindrance(tiny_model: Path, tmp_path: Path, folder: Path) -> None:
    folder.parent.mkdir()
    folder.write_text("in the way")
    assert edgec.compile(tiny_model, output=tmp_path / "a.so").path.exists()


def test_damaged_files_are_built_again(tiny_model: Path, tmp_path: Path, folder: Path, built: list[str]) -> None:
    first = edgec.compile(tiny_model, output=tmp_path / "a.so").path.read_bytes()
    (descriptor,) = {path.name for path in folder.iterdir()} - {symbol[1:] for symbol in built}
    files = sorted(path for path in folder.iterdir() if path.name != descriptor)
    files[0].write_bytes(files[0].read_bytes()[:-7])
    files[1].write_bytes(b"")
    del built[:]
    assert edgec.compile(tiny_model, output=tmp_path / "b.so").path.read_bytes() == first
    assert sorted(built) == sorted(f"k{path.name}" for path in files[:2])


def test_trim_removes_what_was_not_used_for_longest(tmp_path: Path) -> None:
    cache = KernelCache(tmp_path)
    now = time.time()
    for index in range(10):
        cache.put(f"{index + 1:040x}", bytes(1000))
        os.utime(tmp_path / f"{index + 1:040x}", (now - 100 + index, now - 100 + index))
    assert cache.get(f"{1:040x}") == bytes(1000)  # used now
    cache.trim(5000)
    left = {int(path.name, 16) for path in tmp_path.iterdir()}
    assert left == {1, 9, 10}


def test_processes_share_a_folder(tiny_model: Path, tmp_path: Path, folder: Path) -> None:
    environment = {**os.environ, "EDGEC_CACHE_DIR": str(folder.parent)}
    edgec.compile(tiny_model, output=tmp_path / "first.so")  # builds libedgert, too
    for path in folder.iterdir():
        path.unlink()
    running = [
        subprocess.Popen(
            [sys.executable, "-c", f"import edgec; edgec.compile({str(tiny_model)!r}, output={str(path)!r})"],
            env=environment,
        )
        for path in (tmp_path / f"{index}.so" for index in range(3))
    ]
    assert [process.wait(120) for process in running] == [0, 0, 0]
    assert len({(tmp_path / f"{index}.so").read_bytes() for index in range(3)}) == 1
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]


def test_key_depends_on_all_that_decides_the_code(monkeypatch: pytest.MonkeyPatch) -> None:
    program = program_of(RandomModel(3, nodes=8).build(), fuse=False)
    kernels = {step.kernel for step in program.steps if type(step.kernel).__name__ == "Loops"}
    host, board = load_target("host"), load_target("rpi4")
    plans = [LoopsPlan(kernel, None, lanes) for kernel in kernels for lanes in (4, 8)]
    keys = {kernel_key(generate, plan, dtypes, target) for plan in plans for target in (host, board)
            for dtypes in (["float32"], ["float32", "float32"])}  # fmt: skip
    assert len(keys) == 4 * len(plans) and len(plans) > 4
    weaker = replace(host, features=host.features[1:])
    assert kernel_key(generate, plans[0], [], weaker) != kernel_key(generate, plans[0], [], host)
    monkeypatch.setattr(kernel_cache, "_sources_digest", lambda: "changed")
    assert kernel_key(generate, plans[0], ["float32"], host) not in keys


def test_key_of_a_source_depends_on_all_that_decides_its_object(monkeypatch: pytest.MonkeyPatch) -> None:
    toolchain = find_toolchain("x86_64-linux-gnu")
    others = [
        replace(toolchain, cc=(*toolchain.cc, "-m64")), replace(toolchain, flags=("-g",)),
        replace(toolchain, triple="aarch64-linux-gnu"), replace(toolchain, freestanding=True),
    ]  # fmt: skip
    keys = {source_key(each, b"int a;", ("-Os",)) for each in (toolchain, *others)}
    keys |= {source_key(toolchain, b"int b;", ("-Os",)), source_key(toolchain, b"int a;", ("-O2",))}
    assert len(keys) == 7
    upgraded = replace(toolchain)
    upgraded.__dict__["version"] = "another one"  # where the property keeps what it has read
    assert source_key(upgraded, b"int a;", ("-Os",)) not in keys
    assert source_key(toolchain, b"int a;", ("-Os", "-I/elsewhere/include")) in keys
