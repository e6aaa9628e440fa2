"""Artifacts for a GPU: they run on the device, or on the processor, and say in a sentence why they cannot."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import edgec
from edgec.artifact import read_manifest
from edgec.benchmark import ON_CPU, bench
from edgec.errors import EdgecError
from edgec.runtimes.python.session import Session
from edgec.terminal.tables import print_benchmark
from tests.agreement import onnxruntime_outputs
from tests.gpu import needs_device

TOLERANCE = 1e-3
"""Of the range of an output, against ONNX Runtime."""


@pytest.fixture(scope="module")
def artifact(sample_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sample model, for any OpenCL device."""
    return edgec.compile(sample_model, "opencl", tmp_path_factory.mktemp("gpu") / "digits.so").path


def in_a_process(artifact: Path, environment: dict[str, str], fallback: str | None = None) -> str:
    """What opening ``artifact`` in a fresh process comes to: the device, or the error."""
    code = (
        "import sys; from edgec.runtimes.python.session import Session; from edgec.errors import EdgecError\n"
        "try: print(Session(sys.argv[1], fallback=sys.argv[2] or None).device)\n"
        "except EdgecError as error: print('error:', error)"
    )
    command = [sys.executable, "-c", code, str(artifact), fallback or ""]
    return subprocess.run(
        command, capture_output=True, text=True, check=True, env={**os.environ, **environment}
    ).stdout.strip()


@needs_device
def test_sample_model_agrees_with_onnxruntime(
    artifact: Path, sample_model: Path, sample_data: dict[str, np.ndarray]
) -> None:
    images = sample_data["image"][:50]
    wanted = onnxruntime_outputs(sample_model, "image", images)
    with edgec.load(artifact) as session:
        assert session.device != "CPU"
        found = np.concatenate([session.run({"image": image[None]})["logits"] for image in images])
    assert np.abs(found - wanted).max() <= 1e-5 * np.ptp(wanted)


def test_the_same_artifact_runs_on_the_processor(artifact: Path, sample_data: dict[str, np.ndarray]) -> None:
    image = sample_data["image"][:1]
    with Session(artifact, gpu=False) as session:
        assert session.device == "CPU"
        host = session.run({"image": image})["logits"]
    assert np.isfinite(host).all()


def test_without_a_driver_it_says_so_or_falls_back(artifact: Path) -> None:
    missing = {"EDGERT_OPENCL_LIBRARY": "/nowhere/libOpenCL.so"}
    answer = in_a_process(artifact, missing)
    assert answer.startswith("error: ") and "no OpenCL driver" in answer and "--fallback cpu" in answer
    assert in_a_process(artifact, missing, "cpu") == "CPU"


@needs_device
def test_a_device_can_be_asked_for_by_name(artifact: Path) -> None:
    answer = in_a_process(artifact, {"EDGERT_OPENCL_DEVICE": "no such device"})
    assert answer.startswith("error: ") and "'no such device'" in answer


@needs_device
def test_compiled_kernels_are_kept_for_the_next_time(artifact: Path, tmp_path: Path) -> None:
    cache = tmp_path / "a" / "cache"
    first = in_a_process(artifact, {"EDGERT_CACHE_DIR": str(cache)})
    (kept,) = cache.glob("*.clbin")
    kept.write_bytes(kept.read_bytes()[:-1] + b"?")  # a damaged entry is made anew
    damaged = kept.read_bytes()
    assert in_a_process(artifact, {"EDGERT_CACHE_DIR": str(cache)}) == first
    assert kept.read_bytes() != damaged


def test_manifest_tells_kernels_and_copies(artifact: Path) -> None:
    facts = read_manifest(artifact)
    assert facts["target"] == "opencl" and facts["gpu"]["copies"] == 2 and facts["gpu"]["host_steps"] == 0
    assert facts["gpu"]["copied_bytes"] == 4 * (64 + 10)
    assert len(facts["steps"]) == facts["gpu"]["kernels"] + 2 and facts["fallback"]
    report = json.loads(artifact.with_name("digits.so.json").read_text(encoding="utf-8"))
    assert len(report["nodes"]) == len(facts["steps"])


def test_unknown_fallback_is_refused(artifact: Path) -> None:
    with pytest.raises(EdgecError, match="falls back on the cpu or not at all"):
        edgec.load(artifact, fallback="gpu")


@needs_device
def test_bench_says_which_is_faster(artifact: Path, capsys: pytest.CaptureFixture[str]) -> None:
    measured = bench(artifact, rounds=2)
    on_gpu, on_cpu = measured.timings
    assert on_cpu.name == ON_CPU and measured.gpu_over_cpu == on_gpu.min_ms / on_cpu.min_ms
    assert on_cpu.relative_error < 1e-5
    for factor, advised in ((2, True), (0.5, False)):
        timings = (replace(on_gpu, min_ms=factor * on_cpu.min_ms), on_cpu)
        print_benchmark(replace(measured, timings=timings))
        said = " ".join(capsys.readouterr().out.split())
        assert f"takes {factor:.2f} × the time of the CPU with 1 thread" in said
        assert ("compile this model for the CPU instead" in said) == advised


@needs_device
def test_steps_are_profiled_by_the_device(artifact: Path, sample_data: dict[str, np.ndarray]) -> None:
    with edgec.load(artifact) as session:
        session.start_profile()
        for _ in range(3):
            session.run({"image": sample_data["image"][:1]})
        steps = session.profile()
    listed = read_manifest(artifact)["steps"]
    # a copy is left out where the device works in the arrays themselves
    wanted = [(0, 1, 2, 3) if step["kernel"] == "copy" else (3,) for step in listed]
    assert len(steps) == len(listed) and sum(step.min_ns for step in steps) > 0
    assert all(step.calls in calls for step, calls in zip(steps, wanted, strict=True))
