"""Test vectors inside artifacts: they pass where the artifact is sound, and name the first step that is not."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import edgec
from edgec.artifact import TRAILER, with_trailer
from edgec.building.toolchain import host_triple
from edgec.errors import EdgecError
from edgec.format.vectors import MOST_TESTS, make_vectors
from edgec.runtimes.build import build_runtime
from edgec.runtimes.python.session import Session
from tests.programs import program_of
from tests.random_layers import random_layers
from tests.test_integer_kernels import SHAPES, layer


def selftest(artifact: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [build_runtime(host_triple()).selftest, artifact, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def samples() -> list[dict[str, np.ndarray]]:
    generator = np.random.default_rng(8)
    return [{"x": generator.standard_normal((1, 3, 7, 5), np.float32)} for _ in range(MOST_TESTS + 2)]


@pytest.fixture(scope="module")
def tested(tiny_model: Path, samples, tmp_path_factory) -> Path:
    """The tiny model with tests."""
    path = tmp_path_factory.mktemp("tested") / "tiny.so"
    return edgec.compile(tiny_model, "host", path, bundle_tests=samples).path


@pytest.mark.parametrize("threads", ["1", "3"])
def test_pass(tested: Path, threads: str) -> None:
    done = selftest(tested, threads)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"pass: {MOST_TESTS} tests of 'tiny' (host), ")


def changed(artifact: Path, old: bytes, new: bytes) -> None:
    """Replace ``old`` inside an artifact, and seal it again as edgec does."""
    data = artifact.read_bytes()
    assert len(old) == len(new) and data.count(old) == 1
    _, offset, size, _ = TRAILER.unpack(data[-TRAILER.size :])
    body = data[: -TRAILER.size]
    artifact.write_bytes(with_trailer(body.replace(old, new), data[offset : offset + size]))


def test_a_wrong_weight_is_found_at_its_step(tmp_path: Path, tiny_model: Path, samples) -> None:
    path = edgec.compile(tiny_model, "host", tmp_path / "tiny.so", bundle_tests=samples).path
    bias = {i.name: numpy_helper.to_array(i) for i in onnx.load(tiny_model).graph.initializer}["b"]
    changed(path, bias.tobytes(), (bias + np.float32(0.5)).tobytes())
    done = selftest(path)
    assert done.returncode == 1 and done.stdout == ""
    assert "test 1 of 4 of model 'tiny' differs first at step 'conv" in done.stderr


def test_a_wrong_integer_is_found_by_its_checksum(tmp_path: Path) -> None:
    model, values = layer(*SHAPES["3x3"], "int8")
    path = edgec.compile(model, "host", tmp_path / "layer.so", bundle_tests=[values]).path
    assert selftest(path).returncode == 0
    scales = {i.name: numpy_helper.to_array(i) for i in model.graph.initializer}
    factors = (scales["xs"].astype(np.float64) * scales["ws"] / scales["ys"]).astype(np.float32)
    wrong = factors.copy()
    wrong[7] *= 1.01  # moves some results of one channel by one
    changed(path, factors.tobytes(), wrong.tobytes())
    done = selftest(path)
    assert done.returncode == 1 and "differs first at step '" in done.stderr and "kernel " in done.stderr


@pytest.mark.parametrize("seed", range(2))
def test_random_integer_layers_pass_here_and_on_arm(emulator, tmp_path: Path, seed: int) -> None:
    model, values = random_layers(seed, 8, "int8")
    for target, triple, prefix in (
        ("host", host_triple(), []),
        ("rpi5", "aarch64-linux-gnu", ["qemu-aarch64", "-cpu", "cortex-a76", "-L", "/usr/aarch64-linux-gnu"]),
    ):
        path = edgec.compile(model, target, tmp_path / "layers.so", bundle_tests=[values]).path
        command = [*prefix, build_runtime(triple).selftest, path]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr


def test_integers_are_compared_exactly() -> None:
    model, values = layer(*SHAPES["pointwise"], "int8")
    regions = make_vectors(program_of(model), [values]).regions
    assert all(region is None or region.exact for region in regions) and any(regions)


def test_most_steps_are_checked(sample_model: Path, sample_data) -> None:
    program = program_of(sample_model)
    vectors = make_vectors(program, [{"image": sample_data["image"][:1]}])
    checked = [step for step, region in zip(program.steps, vectors.regions, strict=True) if region]
    assert sum(step.kernel.macs for step in checked) == program.macs
    sums = [region for step, region in zip(program.steps, vectors.regions, strict=True) if step.kernel.macs]
    assert not any(region.exact for region in sums if region)


def test_python(tested: Path, tiny_artifact: Path) -> None:
    with Session(tested, own_buffers=True) as session:
        assert session.selftest() == MOST_TESTS
    with edgec.load(tested) as session, pytest.raises(EdgecError, match="without EDGERT_NO_IO_BUFFERS"):
        session.selftest()
    with edgec.load(tiny_artifact) as session, pytest.raises(EdgecError, match=r"holds no tests; .*--bundle-tests"):
        session.selftest()


def test_refusals(tmp_path: Path, tiny_artifact: Path, tiny_model: Path) -> None:
    done = selftest(tiny_artifact)
    assert done.returncode == 2 and "model 'tiny' holds no tests" in done.stderr
    assert selftest(tmp_path / "missing.so").returncode == 2
    assert "usage:" in selftest(tiny_artifact, "none").stderr
    with pytest.raises(EdgecError, match=r"sample 0 of .* has no array for the input 'x'"):
        edgec.compile(tiny_model, "host", tmp_path / "m.so", bundle_tests=[{"y": np.zeros(3)}])
    with pytest.raises(EdgecError, match="--bundle-tests is for processors"):
        edgec.compile(tiny_model, "arty-a7", tmp_path / "project", bundle_tests=[{"x": np.zeros((1, 3, 7, 5))}])
    assert not list(tmp_path.iterdir())
