"""Tuning GPU kernels: plans are measured by the device's own clock, here or over ssh, and change no answer."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import edgec
from edgec.errors import EdgecError
from edgec.program import Conv
from edgec.runtimes.python.session import Session
from edgec.targets.gpu.backend import GpuProgram
from edgec.targets.gpu.target import load_gpu
from edgec.tuning import records
from edgec.tuning import tuner as tuning
from edgec.tuning.gpu_measuring import LocalGpuMeter
from edgec.tuning.measuring import Task, tasks_of
from edgec.tuning.tuner import meter_for
from tests.gpu import needs_device
from tests.loopback import loopback
from tests.programs import program_of

TARGET = load_gpu("opencl")


@pytest.fixture(scope="module")
def task(sample_model: Path) -> Task:
    """A 3 × 3 convolution of the sample model."""
    program = GpuProgram(program_of(sample_model), TARGET).program
    return next(t for t in tasks_of(program, TARGET) if isinstance(t.kernel, Conv) and t.kernel.kernel == (3, 3))


def test_plans_come_in_many_shapes_and_groups(task: Task) -> None:
    assert task.plans[0] == task.template.plan(task.kernel, TARGET)
    assert len({(p.rows, p.columns, p.vectors, p.lanes) for p in task.plans}) > 20
    assert {(p.group_x, p.group_y) for p in task.plans} >= {(0, 0), (1, 1), (4, 4)}
    assert all(p.rows * p.columns * p.vectors * p.lanes <= TARGET.registers for p in task.plans)
    assert all(p.group_x * p.group_y <= TARGET.work_group for p in task.plans)


@needs_device
def test_plans_are_measured_together_and_one_that_fails_alone(task: Task) -> None:
    meter = LocalGpuMeter(TARGET)
    plans = [task.plans[0], task.plans[-1]]
    assert all(outcome.cost and outcome.cost > 0 for outcome in meter.measure(task, plans))
    too_large = type(plans[0])(**{**vars(plans[0]), "group_x": 1 << 20, "group_y": 1})
    good, bad = meter.measure(task, [plans[0], too_large])
    assert good.cost and bad.cost is None and bad.error


@needs_device
def test_tuned_artifacts_give_the_same_answers(
    sample_model: Path, sample_data: dict[str, np.ndarray], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tuning, "BATCH", 3)
    path = tmp_path / "records.jsonl"
    tuned = edgec.compile(sample_model, "opencl", tmp_path / "tuned.so", tune=0.05, tune_db=path)
    assert tuned.tuned is not None and tuned.tuned.measured > 0 and tuned.tuned.ratio <= 1
    assert {record.processor for record in records.read(path)} == {TARGET.processor}
    image = {"image": sample_data["image"][:1]}
    with Session(tuned.path) as first, Session(tuned.path, gpu=False) as second:
        found, wanted = first.run(image)["logits"], second.run(image)["logits"]
    np.testing.assert_allclose(found, wanted, atol=1e-5 * np.ptp(wanted))


@needs_device
def test_over_ssh(task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with loopback(tmp_path) as device:
        monkeypatch.setenv("PATH", str(device.client), prepend=":")
        meter = meter_for(TARGET, device.url)
        (outcome,) = meter.measure(task, task.plans[:1])
        assert outcome.cost and outcome.cost > 0 and not list(device.scratch.iterdir())
        with pytest.raises(EdgecError, match="and the target android-mali for aarch64-linux-android"):
            meter_for(load_gpu("android-mali"), device.url)


def test_another_processor_is_refused() -> None:
    with pytest.raises(EdgecError, match="cannot run code for android-adreno"):
        meter_for(load_gpu("android-adreno"))
    with pytest.raises(EdgecError, match="'qemu' cannot measure kernels for opencl"):
        meter_for(TARGET, "qemu")
