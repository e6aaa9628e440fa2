"""Devices over ssh, to a real server on the loopback, and over adb, to a phone that a script stands in for."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import edgec
from edgec.benchmark import bench
from edgec.data.samples import Samples, load_npz, specs
from edgec.devices.device import LocalDevice, open_device
from edgec.devices.remote import open_transport, workplace
from edgec.devices.remote_device import RemoteDevice
from edgec.devices.state import parse_state, read_state
from edgec.errors import EdgecError
from edgec.evaluation import evaluate
from edgec.inspection import inspect_artifact
from edgec.targets.target import load_target
from edgec.tuning import measuring
from edgec.tuning.measuring import tasks_of
from edgec.tuning.tuner import meter_for
from tests.android import ARM64
from tests.loopback import Loopback, loopback
from tests.test_cli import call, results_of, sentence_of
from tests.test_records import conv_program

PI = """arch aarch64 32
cores 4
cpu BCM2711
cpu Raspberry Pi 4 Model B Rev 1.4
board
load 0.52
core ondemand 1500000 1800000
core ondemand 1800000 1800000
zone 48312 cpu-thermal
zone 99000 nvme
firmware throttled=0x50005
"""
PHONE = """arch aarch64
cores 8
board Pixel 8
load 11.2
core sched_pacing 1704000 1704000
core schedutil 2367000 2914000
zone 41 battery
zone 55200 BIG-cpu
zone 61000 LITTLE-cpu
zone -40000 off-cpu
firmware
"""


def test_a_boards_state_is_understood():
    state = parse_state(PI)
    assert (state.runs, state.cpu, state.cores, state.load) == ("armv7l", "Raspberry Pi 4 Model B Rev 1.4", 4, 0.52)
    assert state.governors == ("ondemand",) and state.temperature == 48.312
    assert state.limits == (
        "1 of 2 cores capped, one to 1500 of 1800 MHz", "under-voltage", "throttled", "under-voltage before",
        "throttled before",
    )  # fmt: skip


def test_a_phones_state_is_understood():
    state = parse_state(PHONE)
    assert (state.runs, state.cpu, state.cores, state.temperature) == ("aarch64", "Pixel 8", 8, 61.0)
    assert state.governors == ("sched_pacing", "schedutil")
    assert state.limits == ("1 of 2 cores capped, one to 2367 of 2914 MHz",)


def test_a_system_that_tells_nothing_is_understood():
    state = parse_state("arch\ncores\nboard\nzone\ncore\nfirmware\n")
    assert (state.cpu, state.cores, state.temperature, state.limits) == (None, 1, None, ())


@pytest.fixture
def board(tmp_path, monkeypatch) -> Loopback:
    """This machine behind ssh; what is left in its scratch folder at the end is a failure."""
    with loopback(tmp_path) as device:
        monkeypatch.setenv("PATH", f"{device.client}:{os.environ['PATH']}")
        device.command("vcgencmd", "echo throttled=0x4")
        yield device
        assert list(device.scratch.iterdir()) == []


def samples_of(artifact: Path, folder: Path) -> Samples:
    np.savez(folder / "x.npz", x=np.random.default_rng(1).standard_normal((3, 3, 7, 5), np.float32))
    return load_npz(folder / "x.npz", specs(inspect_artifact(artifact)["inputs"]))


def test_ssh_gives_the_bits_of_this_machine(board, tiny_artifact, tmp_path):
    samples = samples_of(tiny_artifact, tmp_path)
    results = open_device(board.url).run(tiny_artifact, samples, threads=2)
    wanted = LocalDevice().run(tiny_artifact, samples)
    assert results.outputs["y"].tobytes() == wanted.outputs["y"].tobytes() and len(results.run_ns) == 3
    assert results.machine is not None and results.machine.limits == ("throttled",) and results.machine.cores >= 1


def test_the_commands_take_ssh(board, sample_model, tmp_path):
    artifact = edgec.compile(sample_model, output=tmp_path / "my digits.so").path
    data = sample_model.with_name("digits_eval.npz")
    found = results_of("eval", artifact, "--data", data, "--device", board.url, "--json")
    assert found["top1"] > 0.98 and found["samples"] == 450 and found["machine"]["limits"] == ["throttled"]
    found = results_of("run", artifact, "--input", data, "--device", board.url, "--json")
    assert found["machine"]["cpu"] and found["outputs"][0]["shape"] == [450, 10]
    text = call("bench", artifact, "--device", board.url, "--rounds", 2, "--profile").stdout
    assert "its speed is held down: throttled" in text and "steps of edgec" in text
    measured = bench(artifact, device=board.url, rounds=3)
    assert measured.timings[0].calls >= 3 and 0 < measured.timings[0].min_ms <= measured.timings[0].p95_ms
    assert measured.steps == () and measured.ratio is None


def test_what_ssh_cannot_do_is_said(board, tiny_artifact, tiny_model, tiny_board_artifact, tmp_path):
    samples = samples_of(tiny_artifact, tmp_path)
    device = open_device(board.url)
    with pytest.raises(EdgecError, match=r"is for aarch64-linux-gnu \(target rpi4\) and ssh://.* for x86_64"):
        device.run(tiny_board_artifact, samples)
    with pytest.raises(EdgecError, match="other runtimes are measured on this machine only"):
        bench(tiny_artifact, against=["onnxruntime"], model=tiny_model, device=board.url)
    np.savez(tmp_path / "l.npz", x=np.zeros((1, 3, 7, 5), np.float32), labels=np.zeros(1, int))
    with pytest.raises(EdgecError, match="is a model, which ONNX Runtime runs on this machine"):
        evaluate(tiny_model, tmp_path / "l.npz", device=board.url)
    with pytest.raises(EdgecError, match=r"ssh://nobody@127\.0\.0\.1:\d+ cannot be reached: .*try: ssh -p \d+ nobody@"):
        open_device(board.url.replace("://", "://nobody@").replace("root@", "")).run(tiny_artifact, samples)


def test_the_runners_own_sentence_arrives_and_nothing_is_left(board, tiny_artifact, tmp_path, monkeypatch):
    samples = samples_of(tiny_artifact, tmp_path)
    with pytest.raises(EdgecError, match="--threads must be from 1 to 64"):
        open_device(board.url).run(tiny_artifact, samples, threads=65)
    board.command("mktemp", "echo full >&2; exit 1")
    with pytest.raises(EdgecError, match=r"ssh://.* could not make a folder: full"):
        open_device(board.url).run(tiny_artifact, samples)


def test_an_interrupted_task_leaves_nothing_and_ends_its_program(board, tmp_path):
    transport = open_transport(board.url)
    (tmp_path / "sleeper").write_text("#!/bin/sh\nexec sleep 60\n")
    with pytest.raises(KeyboardInterrupt), transport.connected(), workplace(transport) as there:
        there.push(tmp_path / "sleeper")
        with pytest.raises(Exception, match=r"did not end within 0\.5 s"):
            there.run("sleeper", seconds=0.5)
        pid = int(transport.shell(f"cat {there.folder}/pid").output)
        os.kill(pid, 0)
        raise KeyboardInterrupt
    assert ends(pid)


def ends(pid: int, seconds: float = 10) -> bool:
    """Whether a process that was told to is gone in time; on a busy machine that takes a moment."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.05)
    return False


@pytest.mark.parametrize("url", ["ssh://", "ssh://-oProxyCommand=x", "ssh://pi@pi:x", "adb://-s", "rpc://x", "pi@pi"])
def test_other_urls_are_refused(url):
    with pytest.raises(EdgecError, match=r"is not spelled ssh://|there is no device"):
        open_device(url)


def test_a_missing_adb_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(EdgecError, match=r"needs the program adb; run: apt-get install adb"):
        open_device("adb://1234")


@pytest.fixture
def phone(tmp_path, emulator, monkeypatch) -> Path:
    """The folder that is a phone, with adb on the PATH."""
    pytest.importorskip("ziglang")
    folder = tmp_path / "phone"
    zone, cpu = folder / "sys" / "class" / "thermal" / "thermal_zone0", folder / "sys" / "devices" / "system" / "cpu"
    for each in (folder / "tmp", zone, cpu / "cpu0" / "cpufreq", tmp_path / "bin"):
        each.mkdir(parents=True)
    (zone / "temp").write_text("41500\n")
    (zone / "type").write_text("cpu-0-0\n")
    for name, text in (("scaling_governor", "schedutil"), ("scaling_max_freq", 1200000), ("cpuinfo_max_freq", 1800000)):
        (cpu / "cpu0" / "cpufreq" / name).write_text(f"{text}\n")
    (folder / "bionic").mkdir()
    ARM64.libraries(folder / "bionic")
    adb = tmp_path / "bin" / "adb"
    adb.write_text(f'#!/bin/sh\nexec {sys.executable} {Path(__file__).with_name("fake_adb.py")} "$@"\n')
    adb.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setenv("PHONE", str(folder))
    return folder


@pytest.mark.parametrize("url", ["adb://emulator-5554", "adb://"])
def test_adb_gives_the_bits_of_the_emulated_board(phone, tiny_model, tiny_board_artifact, tmp_path, url):
    pytest.importorskip("ziglang")
    artifact = edgec.compile(tiny_model, "android-arm64", tmp_path / "tiny.so").path
    samples = samples_of(artifact, tmp_path)
    results = open_device(url).run(artifact, samples)
    wanted = open_device("qemu").run(tiny_board_artifact, samples)
    assert results.outputs["y"].tobytes() == wanted.outputs["y"].tobytes()
    machine = results.machine
    assert machine is not None and machine.cpu == "Pixel of a test" and machine.temperatures == (41.5, 41.5)
    assert machine.limits == ("1 of 1 cores capped, one to 1200 of 1800 MHz",) and machine.governor == "schedutil"
    assert list((phone / "tmp").iterdir()) == []
    calls = (phone / "log").read_text().splitlines()
    assert all(call.startswith("-s emulator-5554 ") for call in calls) == (url != "adb://")


def test_what_adb_cannot_do_is_said(phone, tiny_artifact, tiny_board_artifact, tmp_path):
    samples = samples_of(tiny_artifact, tmp_path)
    with pytest.raises(EdgecError, match=r"is for aarch64-linux-gnu and adb://emulator-5554 is Android; compile it"):
        open_device("adb://emulator-5554").run(tiny_board_artifact, samples)
    with pytest.raises(EdgecError, match=r"adb://1234 cannot be reached: device '1234' not found; try: adb devices"):
        open_device("adb://1234").run(tiny_artifact, samples)
    device = RemoteDevice("adb://emulator-5554")
    with pytest.raises(EdgecError, match=r"could not send none: .*No such file"), workplace(device.transport) as there:
        there.pull("none", tmp_path / "none")
    assert list((phone / "tmp").iterdir()) == []


def test_plans_are_measured_over_adb(phone, monkeypatch):
    pytest.importorskip("ziglang")
    monkeypatch.setattr(measuring, "BATCH_SECONDS", 0.01)
    target = load_target("android-arm64")
    meter = meter_for(target, "adb://emulator-5554")
    task = tasks_of(conv_program(), target)[0]
    assert meter.method == "time" and meter.machine == "emulator-5554"
    assert all(outcome.cost > 0 for outcome in meter.measure(task, task.plans[:2]))
    assert list((phone / "tmp").iterdir()) == []


def test_the_state_of_this_machine_is_read(board):
    state = read_state(open_transport(board.url))
    assert state.arch == os.uname().machine and state.cores >= 1 and state.limits[-1:] == ("throttled",)
    sentence = sentence_of("run", "x.so", "--input", "x.npz", "--device", "ssh://a:b")
    assert sentence.startswith("the device 'ssh://a:b' is not spelled")
