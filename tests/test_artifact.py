"""Artifacts: what they export and need, how they are guarded, and that nothing half-written is left."""

from __future__ import annotations

import errno
import json
import os
import re
import subprocess
from pathlib import Path

import numpy as np
import pytest
from onnx import helper

import edgec
from edgec.artifact import read_manifest, write_atomically
from edgec.compiler import manifest_path
from tests.programs import model, with_library

LIBRARY_SYMBOLS = re.compile(r"@GLIBC|^__gmon_start__$|^_ITM_|^__cxa_finalize$")


@pytest.fixture(scope="module")
def source():
    rng = np.random.default_rng(0)
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], pads=[1, 1, 1, 1]),
        helper.make_node("Sigmoid", ["a"], ["s"]),
        helper.make_node("Softplus", ["s"], ["y"]),
    ]
    weights = {"w": rng.standard_normal((5, 3, 3, 3)).astype(np.float32)}
    return model(nodes, {"x": (1, 3, 7, 7)}, {"y": (1, 5, 7, 7)}, weights)


@pytest.fixture(scope="module")
def artifact(source, tmp_path_factory) -> Path:
    return edgec.compile(source, "host", tmp_path_factory.mktemp("artifact") / "model.so").path


def test_exports_one_symbol_and_needs_only_libc_and_libm(artifact: Path) -> None:
    lines = subprocess.run(["nm", "-D", artifact], capture_output=True, text=True, check=True).stdout.splitlines()
    names = [line.split()[-1] for line in lines]
    defined = [name for line, name in zip(lines, names, strict=True) if line.split()[-2] not in "Uw"]
    undefined = [name for line, name in zip(lines, names, strict=True) if line.split()[-2] in "Uw"]
    assert defined == ["edgert_model_v1"]
    assert all(LIBRARY_SYMBOLS.search(name) for name in undefined), undefined
    needed = subprocess.run(["readelf", "-d", artifact], capture_output=True, text=True, check=True).stdout
    assert set(re.findall(r"NEEDED.*\[(.*?)\]", needed)) <= {"libc.so.6", "libm.so.6"}


def test_manifest_is_read_without_executing_the_file(artifact: Path) -> None:
    manifest = read_manifest(artifact)
    assert manifest["target"] == "host" and manifest["inputs"][0]["shape"] == [1, 3, 7, 7]
    assert manifest["arena_bytes"] >= manifest["arena_lower_bound"] > 0
    assert sum(step["macs"] for step in manifest["steps"]) == 5 * 49 * 27
    beside = json.loads(manifest_path(artifact).read_text())
    assert {key: beside[key] for key in manifest} == manifest


def test_same_model_same_bytes(source, artifact: Path, tmp_path: Path) -> None:
    again = edgec.compile(source, "host", tmp_path / "again.so").path
    assert again.read_bytes() == artifact.read_bytes()


@pytest.mark.parametrize("place", [0.01, 0.3, 0.6, 0.9, 0.9999])
def test_a_changed_byte_is_noticed(artifact: Path, place: float, tmp_path: Path) -> None:
    data = bytearray(artifact.read_bytes())
    data[int(len(data) * place)] ^= 0x10
    changed = tmp_path / "changed.so"
    changed.write_bytes(data)
    with pytest.raises(edgec.EdgecError, match=r"changed after it was compiled|not an edgec artifact"):
        read_manifest(changed)
    with pytest.raises(edgec.EdgecError):
        edgec.load(changed)


def test_every_changed_byte_is_noticed(tiny_artifact: Path, tmp_path: Path) -> None:
    """One bit in each byte of the file in turn; the library in C, then what reads manifests."""
    data = tiny_artifact.read_bytes()
    copy = tmp_path / "copy.so"
    copy.write_bytes(data)
    done = subprocess.run([with_library("flip", tmp_path), copy], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, f"{len(data)} bytes\n"), done.stderr
    with copy.open("r+b", buffering=0) as file:
        for place, own in enumerate(data):
            os.pwrite(file.fileno(), bytes([own ^ 1 << place % 8]), place)
            with pytest.raises(edgec.EdgecError):
                read_manifest(copy)
            os.pwrite(file.fileno(), bytes([own]), place)
    assert read_manifest(copy) == read_manifest(tiny_artifact)


@pytest.mark.parametrize("keep", [0, 10, 1000, -1])
def test_a_truncated_artifact_is_refused(artifact: Path, keep: int, tmp_path: Path) -> None:
    short = tmp_path / "short.so"
    short.write_bytes(artifact.read_bytes()[:keep])
    with pytest.raises(edgec.EdgecError):
        read_manifest(short)
    with pytest.raises(edgec.EdgecError):
        edgec.load(short)


def test_a_full_disk_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(edgec.EdgecError, match="No space left on device"):
        write_atomically({tmp_path / "model.so": b"x" * 100})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("output", ["missing/model.so", "."])
def test_an_output_that_cannot_be_written_is_refused_before_any_work(source, output: str, tmp_path: Path) -> None:
    with pytest.raises(edgec.EdgecError, match="output"):
        edgec.compile(source, "host", tmp_path / output)
    assert list(tmp_path.iterdir()) == []


def test_zig_links_where_there_is_no_cross_compiler(source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ziglang", reason="the 'cross' extra is not installed")
    monkeypatch.setenv("PATH", "")
    compiled = edgec.compile(source, "rpi4", tmp_path / "pi.so")
    assert compiled.path.read_bytes()[18] == 183  # EM_AARCH64


def test_unknown_target_lists_the_targets(source, tmp_path: Path) -> None:
    with pytest.raises(edgec.EdgecError, match=r"there is no target 'pi9'.*rpi4"):
        edgec.compile(source, "pi9", tmp_path / "model.so")
