"""Artifacts on this machine and on an emulated board: equal results, and clear refusals."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from edgec.data.samples import Samples, load_npz, specs
from edgec.devices import device as devices
from edgec.devices.device import LocalDevice, QemuDevice, Results, open_device
from edgec.errors import EdgecError
from edgec.inspection import inspect_artifact

RUNS = 3


@pytest.fixture(scope="module")
def samples(tiny_artifact: Path, tmp_path_factory: pytest.TempPathFactory) -> Samples:
    path = tmp_path_factory.mktemp("samples") / "x.npz"
    np.savez(path, x=np.random.default_rng(1).standard_normal((RUNS, 3, 7, 5), np.float32))
    return load_npz(path, specs(inspect_artifact(tiny_artifact)["inputs"]))


@pytest.fixture(scope="module")
def wanted(tiny_model: Path, samples: Samples) -> np.ndarray:
    """ONNX Runtime's outputs, [runs, 1, 4]."""
    session = onnxruntime.InferenceSession(str(tiny_model), providers=["CPUExecutionProvider"])
    return np.stack([session.run(None, inputs)[0] for inputs in samples])


def assert_equal(results: Results, wanted: np.ndarray) -> None:
    assert list(results.outputs) == ["y"] and len(results.run_ns) == RUNS
    np.testing.assert_allclose(results.outputs["y"], wanted, rtol=0, atol=1e-5 * np.ptp(wanted))


@pytest.mark.parametrize("threads", [1, 2])
def test_local_runs_every_sample(tiny_artifact, samples, wanted, threads):
    told = []
    results = open_device("local").run(
        tiny_artifact, samples, threads=threads, progress=lambda *each: told.append(each)
    )
    assert_equal(results, wanted)
    assert told == [("runs", index + 1, RUNS) for index in range(RUNS)]


@pytest.mark.parametrize("cpu", ["", ":cortex-a53", ":max"])
def test_qemu_runs_every_sample(emulator, tiny_board_artifact, samples, wanted, cpu):
    device = open_device(emulator + cpu)
    assert device.is_emulated
    assert_equal(device.run(tiny_board_artifact, samples, threads=2), wanted)


def test_no_samples_give_empty_outputs(emulator, tiny_artifact, tiny_board_artifact, samples):
    nothing = Samples(0, None, samples.read)
    assert LocalDevice().run(tiny_artifact, nothing).outputs["y"].shape == (0, 1, 4)
    assert QemuDevice().run(tiny_board_artifact, nothing).outputs["y"].shape == (0, 1, 4)


URLS = {
    "serial://ttyUSB0": r"there is no device 'serial://ttyUSB0'; the devices that work are local",
    "qemu:": "there is no device 'qemu:'",
    "local:0": "there is no device",
    "": "there is no device ''",
}


@pytest.mark.parametrize(("url", "sentence"), URLS.items())
def test_other_devices_are_refused(url, sentence):
    with pytest.raises(EdgecError, match=sentence):
        open_device(url)


def test_an_artifact_for_another_machine_is_refused(tiny_artifact, tiny_board_artifact, samples):
    with pytest.raises(EdgecError, match="was built for aarch64 and this machine is x86_64"):
        LocalDevice().run(tiny_board_artifact, samples)
    with pytest.raises(EdgecError, match=r"is for x86_64-linux-gnu \(target host\), and qemu runs only"):
        QemuDevice().run(tiny_artifact, samples)


def test_a_damaged_artifact_is_refused_on_every_device(emulator, tiny_artifact, tiny_board_artifact, tmp_path, samples):
    for artifact, device in ((tiny_artifact, LocalDevice()), (tiny_board_artifact, open_device(emulator))):
        content = bytearray(artifact.read_bytes())
        content[len(content) // 2] ^= 1
        damaged = tmp_path / artifact.name
        damaged.write_bytes(content)
        with pytest.raises(EdgecError, match=r"is damaged|was changed"):
            device.run(damaged, samples)


def test_a_cpu_that_the_emulator_lacks_is_refused(emulator, tiny_board_artifact, samples):
    with pytest.raises(EdgecError, match="qemu knows no cpu 'pentium'"):
        QemuDevice("pentium").run(tiny_board_artifact, samples)


def test_a_cpu_without_the_features_is_refused(emulator, tiny_model, tmp_path, samples):
    import edgec

    artifact = edgec.compile(tiny_model, "rpi5", tmp_path / "rpi5.so").path
    with pytest.raises(EdgecError, match=r"(?i)dotprod|dot product"):
        QemuDevice("cortex-a53").run(artifact, samples)


def test_a_missing_emulator_or_library_is_named(tiny_board_artifact, samples, monkeypatch, tmp_path):
    with monkeypatch.context() as patch, pytest.raises(EdgecError, match="apt-get install qemu-user"):
        patch.setattr(devices.shutil, "which", lambda name: None)
        QemuDevice().run(tiny_board_artifact, samples)
    monkeypatch.setattr(devices.shutil, "which", lambda name: name)
    monkeypatch.setattr(devices.Emulator, "sysroot", tmp_path)
    with pytest.raises(EdgecError, match="apt-get install libc6-arm64-cross"):
        QemuDevice().run(tiny_board_artifact, samples)


@pytest.mark.parametrize(("code", "end"), [(-4, "ended by SIGILL"), (132, "ended by SIGILL"), (7, "exit code 7")])
def test_a_crash_under_the_emulator_is_told(emulator, tiny_board_artifact, samples, monkeypatch, code, end):
    crash = subprocess.CompletedProcess([], code, "", "")
    monkeypatch.setattr(devices.subprocess, "run", lambda command, **_: crash if "-cpu" in command else None)
    with pytest.raises(EdgecError, match=f"{end}: it left no message"):
        QemuDevice().run(tiny_board_artifact, samples)


def test_outputs_have_samples_first():
    outputs = {"row": np.zeros((5, 2, 4)), "total": np.zeros((5, 3)), "number": np.zeros(5)}
    assert {name: array.shape for name, array in Results(outputs, ()).by_sample(2).items()} == {
        "row": (10, 4), "total": (5, 3), "number": (5,)
    }  # fmt: skip
    assert Results({"total": np.zeros((1, 3))}, ()).by_sample(2)["total"].shape == (3,)
