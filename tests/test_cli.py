"""The command line: what it prints, what it writes, and how every mistake ends."""

from __future__ import annotations

import errno
import json
import os
import random
import re
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper
from typer.testing import CliRunner

import edgec
from edgec import doctor
from edgec.cli import MACHINE, MODELS, RESULTS, SHIPPING, app
from tests.programs import model

USER_ERROR = 2


def call(*arguments: object) -> Any:
    """Run edgec in this process."""
    return CliRunner().invoke(app, [str(each) for each in arguments], prog_name="edgec")


def results_of(*arguments: object) -> Any:
    """What a command that succeeds prints with ``--json``."""
    result = call(*arguments, "--json")
    assert result.exit_code == 0, result.output
    assert result.stderr == ""
    return json.loads(result.stdout)


def sentence_of(*arguments: object) -> str:
    """The one sentence in which a command ends that a user has to mend."""
    result = call(*arguments)
    assert result.exit_code == USER_ERROR, result.output
    assert result.stdout == "" and result.stderr.startswith("error: ")
    assert "Traceback" not in result.stderr and result.stderr.count("\n") == 1
    return result.stderr.removeprefix("error: ").strip()


def start(*arguments: object, **options: Any) -> subprocess.Popen[str]:
    """Start edgec in a process of its own."""
    command = [sys.executable, "-c", "from edgec.cli import main; main()", *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Five samples for the tiny model, with labels."""
    path = tmp_path / "data.npz"
    x = np.random.default_rng(2).standard_normal((5, 3, 7, 5), np.float32)
    np.savez(path, x=x, labels=np.arange(5) % 4)
    return path


# ---- what the commands do -----------------------------------------------------------------------------------


def test_compile_writes_the_artifact_and_its_report(tiny_model, tmp_path):
    report = results_of("compile", tiny_model, "--target", "rpi4", "-o", tmp_path / "m.so")
    assert report["artifact"] == str(tmp_path / "m.so") and report["target"] == "rpi4"
    assert report["artifact_bytes"] == (tmp_path / "m.so").stat().st_size
    assert report["passes"][0]["name"] == "simplify"
    assert json.loads((tmp_path / "m.so.json").read_text())["arena_bytes"] == report["arena_bytes"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.so", "m.so.json"]


def test_compile_prints_tables(tiny_model, tmp_path):
    result = call("compile", tiny_model, "-o", tmp_path / "m.so")
    assert result.exit_code == 0 and result.stderr == ""
    for text in ("found nothing to do", "2,325", "artifact", "weights", "arena", "largest live set", "kernels", "link"):
        assert text in result.stdout
    assert "\x1b" not in result.stdout and "simplify" not in result.stdout
    assert "simplify" in call("compile", tiny_model, "-o", tmp_path / "m.so", "--explain").stdout


def test_help_groups_every_command():
    text = call("--help").stdout
    places = [text.index(panel) for panel in (MODELS, RESULTS, SHIPPING, MACHINE)]
    assert places == sorted(places) and "─ Commands ─" not in text


def test_compile_names_the_artifact_after_the_model(tiny_model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert results_of("compile", tiny_model)["artifact"] == "tiny.so"
    assert (tmp_path / "tiny.so").is_file()


def test_compile_pins_dynamic_inputs(tmp_path):
    path = tmp_path / "dynamic.onnx"
    onnx.save(model([helper.make_node("Relu", ["x"], ["y"])], {"x": ("N", 5)}, {"y": ("N", 5)}), path)
    assert "--shape x=1x5" in sentence_of("compile", path, "-o", tmp_path / "m.so")
    report = results_of("compile", path, "-o", tmp_path / "m.so", "--shape", "x=7x5")
    assert report["inputs"][0]["shape"] == [7, 5]


def test_run_saves_outputs_with_samples_first(tiny_artifact, data, tmp_path):
    out = tmp_path / "y.npz"
    found = results_of("run", tiny_artifact, "--input", data, "-o", out)
    with np.load(data) as samples, np.load(out) as saved, edgec.load(tiny_artifact) as session:
        wanted = np.concatenate([session.run({"x": x[None]})["y"] for x in samples["x"]])
        np.testing.assert_array_equal(saved["y"], wanted)
    assert found["saved"] == str(out)
    assert found["outputs"][0] == {
        "name": "y", "dtype": "float32", "shape": [5, 4], "least": pytest.approx(wanted.min()),
        "mean": pytest.approx(wanted.mean(dtype=np.float64)), "largest": pytest.approx(wanted.max()),
    }  # fmt: skip


def test_run_summarises_without_an_output(tiny_artifact, data):
    result = call("run", tiny_artifact, "--input", data)
    assert result.exit_code == 0 and re.search(r"y +float32 +\[5, 4\]", result.stdout)


def test_run_gives_the_same_under_the_emulator(emulator, tiny_artifact, tiny_board_artifact, data, tmp_path):
    for name, artifact, device in (("a", tiny_artifact, "local"), ("b", tiny_board_artifact, emulator)):
        results_of("run", artifact, "--input", data, "-o", tmp_path / f"{name}.npz", "--device", device)
    with np.load(tmp_path / "a.npz") as ours, np.load(tmp_path / "b.npz") as board:
        np.testing.assert_allclose(board["y"], ours["y"], rtol=0, atol=1e-5 * np.ptp(ours["y"]))


def test_eval_and_bench_report(tiny_artifact, tiny_model, data):
    assert set(results_of("eval", tiny_artifact, "--data", data)) == {
        "samples", "ms_per_sample", "top1", "agreement", "machine"
    }  # fmt: skip
    text = call("eval", tiny_artifact, "--data", data, "--reference", tiny_model).stdout
    assert "same class as the reference" in text and "100.00%" in text
    flags = ("--against", "onnxruntime", "--model", tiny_model, "--rounds", 1, "--profile")
    measured = results_of("bench", tiny_artifact, *flags)
    assert [timing["name"] for timing in measured["timings"]] == ["edgec", "onnxruntime"]
    text = call("bench", tiny_artifact, *flags).stdout
    assert "onnxruntime" in text and "governor" in text and "steps of edgec" in text


def test_bench_counts_instructions_under_the_emulator(emulator, tiny_board_artifact, data):
    """The count repeats, the steps make up nearly all of it, and it covers the multiply-adds."""
    first, again = (results_of("bench", tiny_board_artifact, "--device", emulator) for _ in range(2))
    assert first["instructions"] == again["instructions"] and first["cpu"] == "cortex-a72"
    steps = sum(step["instructions"] for step in first["steps"])
    assert first["macs"] / 4 < steps and abs(steps - first["instructions"]) < 100 * (len(first["steps"]) + 1)
    text = call("bench", tiny_board_artifact, "--device", f"{emulator}:max", "--input", data, "--profile").stdout
    assert "instructions per inference on an emulated max" in text and "f32_conv" in text


def test_eval_of_a_board_artifact_under_the_emulator(emulator, tiny_board_artifact, tiny_model, data):
    found = results_of("eval", tiny_board_artifact, "--data", data, "--reference", tiny_model, "--device", emulator)
    assert found["agreement"]["top1"] == 1.0 and found["ms_per_sample"] is None


def test_inspect_reports_models_and_artifacts(tiny_model, tiny_board_artifact):
    assert results_of("inspect", tiny_model)["summary"]["macs"] == 2325
    assert results_of("inspect", tiny_board_artifact)["target"] == "rpi4"
    text = call("inspect", tiny_model).stdout
    assert "Conv" in text and "[1,3,7,5]" in text and "2,325 MACs" in text
    text = call("inspect", tiny_board_artifact).stdout
    assert "memory plan" in text and "cortex-a72" in text and re.search(r"^ *0 A", text, re.MULTILINE)


def test_inspect_lists_what_cannot_be_compiled(tmp_path):
    path = tmp_path / "random.onnx"
    onnx.save(model([helper.make_node("Bernoulli", ["x"], ["y"], name="d")], {"x": (2, 3, 3)}, {"y": (2, 3, 3)}), path)
    assert re.search(r"edgec cannot compile.*\bd +Bernoulli", call("inspect", path).stdout, re.DOTALL)


def test_targets_lists_every_board():
    assert results_of("targets")[0]["name"] == "host"
    text = call("targets").stdout
    assert all(name in text for name in ("rpi3", "rpi4", "rpi5", "android-arm64", "cortex-a76", "dotprod"))


def test_doctor_is_content_here():
    checks = {check["name"]: check for check in results_of("doctor")}
    assert checks["apache-tvm-ffi"]["found"] == "0.1.14.post1" and checks["Python"]["ok"]
    assert all(check["remedy"] == "" for check in checks.values() if check["ok"])


def test_doctor_says_what_mends_a_wrong_pair_and_a_missing_compiler(monkeypatch):
    def none(triple: str) -> None:
        raise edgec.EdgecError(f"no C compiler for {triple} was found; run: apt-get install gcc")

    monkeypatch.setattr(
        doctor, "_version", lambda package: {"apache-tvm-ffi": "0.1.15", "numpy": None}.get(package, "1")
    )
    monkeypatch.setattr(doctor, "find_toolchain", none)
    monkeypatch.setattr(doctor.shutil, "which", lambda name: None)
    result = call("doctor", "--json")
    assert result.exit_code == 1
    checks = {check["name"]: check for check in json.loads(result.stdout)}
    assert checks["apache-tvm-ffi"]["remedy"].startswith("pip install 'apache-tvm==0.27.0.post1'")
    assert checks["numpy"] == {
        "name": "numpy", "ok": False, "found": "missing", "needed": True, "remedy": "pip install numpy"
    }  # fmt: skip
    assert next(c for name, c in checks.items() if "(host" in name)["remedy"] == "apt-get install gcc"
    assert not any(c["needed"] for name, c in checks.items() if "qemu" in name)
    assert "MISSING" in call("doctor").stdout


def test_version_and_help():
    assert call("--version").stdout == f"edgec {edgec.__version__}\n"
    text = call("--help").stdout
    assert all(name in text for name in ("compile", "run", "eval", "bench", "inspect", "targets", "doctor"))
    for command in ("compile", "run", "eval", "bench", "inspect", "targets", "doctor"):
        assert "--json" in call(command, "--help").stdout


def test_help_comes_at_once():
    def seconds() -> float:
        """Processor time, since other processes may be running."""
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        with start("--help") as process:
            process.communicate()
        assert process.returncode == 0
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    assert min(seconds() for _ in range(5)) < 0.5


def test_help_loads_nothing_heavy():
    code = "import sys; sys.argv = ['edgec', '--help']; from edgec.cli import main\ntry: main()\nfinally: "
    code += "print('LOADED', *sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.partition("LOADED")[2].split())
    assert "edgec.errors" in loaded and not loaded & {"tvm", "onnx", "onnx_ir", "onnxruntime", "numpy", "onnxscript"}


def test_progress_goes_to_a_terminal_only(tiny_model, tmp_path):
    pty = pytest.importorskip("pty")
    ours, theirs = pty.openpty()
    command = [sys.executable, "-c", "from edgec.cli import main; main()"]
    with subprocess.Popen(
        [*command, "compile", tiny_model, "-o", tmp_path / "m.so", "--json"],
        stdout=subprocess.PIPE, stderr=theirs, env={**os.environ, "TERM": "xterm"},
    ) as process:  # fmt: skip
        os.close(theirs)
        shown = _read_all(ours)
        report = json.loads(process.stdout.read())
    assert process.returncode == 0 and report["target"] == "host"
    assert b"kernels" in shown and b"\x1b[" in shown
    assert b"import" in shown and b"import" not in shown[shown.rindex(b"kernels") :]  # a stage that is over is gone


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        ("edgec expl", ["explore"]),
        ("edgec compile m.onnx --target rpi", ["rpi2", "rpi3", "rpi4", "rpi5", "rpi5-fp16"]),
        ("edgec compile m.onnx --quantize w4", ["w4", "w4a8"]),
        ("edgec compile m.onnx --passes simplify,fold-aff", ["simplify,fold-affine"]),
        ("edgec compile m.onnx --stop-after fuse-h", ["fuse-heads"]),
    ],
)
def test_shells_complete(words, offered):
    environment = {"_EDGEC_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(len(words.split()) - 1)}
    command = [sys.executable, "-c", "from edgec.cli import main; main()"]
    done = subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True, check=False)
    assert done.stdout.split() == offered


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_is_written_for_each_shell(shell):
    environment = {**os.environ, "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}
    command = [sys.executable, "-c", "from edgec.cli import main; main()", "--show-completion", shell]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert "_EDGEC_COMPLETE" in done.stdout


def test_no_colours_where_it_is_piped(tiny_model, tmp_path):
    command = [sys.executable, "-c", "from edgec.cli import main; main()"]
    for path, code in ((tiny_model, 0), (tmp_path / "none.onnx", 2)):
        arguments = ["compile", path, "-o", tmp_path / "m.so"]
        done = subprocess.run([*command, *arguments], capture_output=True, env={**os.environ, "TERM": "xterm"})
        assert done.returncode == code and b"\x1b" not in done.stdout + done.stderr


def test_quiet_leaves_errors_and_json(tiny_model, tmp_path):
    made = call("--quiet", "compile", tiny_model, "-o", tmp_path / "m.so")
    assert made.exit_code == 0 and made.output == ""
    assert json.loads(call("-q", "inspect", tmp_path / "m.so", "--json").stdout)["target"] == "host"
    assert "check the path" in call("-q", "compile", tmp_path / "none.onnx").stderr
    assert call("inspect", tmp_path / "m.so").output  # it holds for one call


def _read_all(terminal: int) -> bytes:
    """Everything written to a pseudo-terminal until its other end is closed."""
    shown = b""
    try:
        while chunk := os.read(terminal, 65536):
            shown += chunk
    except OSError as error:
        assert error.errno == errno.EIO
    os.close(terminal)
    return shown


# ---- how mistakes end ---------------------------------------------------------------------------------------


def damaged_models(good: bytes) -> dict[str, bytes]:
    """Files that are no model."""
    return {"empty": b"", "text": b"hello", "cut": good[: len(good) // 2], "zeros": bytes(1000), "short": good[:7]}


@pytest.mark.parametrize("damage", damaged_models(b"12").keys())
def test_what_is_no_model_is_refused(tiny_model, tmp_path, damage):
    path = tmp_path / "broken.onnx"
    path.write_bytes(damaged_models(tiny_model.read_bytes())[damage])
    assert "broken.onnx" in sentence_of("compile", path, "-o", tmp_path / "m.so")
    assert "broken.onnx" in sentence_of("inspect", path)
    assert [each.name for each in tmp_path.iterdir()] == ["broken.onnx"]


def test_a_name_that_is_not_utf8_is_refused(tiny_model, tmp_path):
    path = tmp_path / "damaged.onnx"
    path.write_bytes(tiny_model.read_bytes().replace(b"test", b"t\xffst"))
    assert "is damaged; export or copy it again" in sentence_of("compile", path, "-o", tmp_path / "m.so")


def test_flipped_bytes_never_end_in_a_traceback(tiny_model, tmp_path):
    generator = random.Random(0)
    path = tmp_path / "flipped.onnx"
    for _ in range(12):
        content = bytearray(tiny_model.read_bytes())
        for _ in range(3):
            content[generator.randrange(len(content))] ^= 1 << generator.randrange(8)
        path.write_bytes(content)
        result = call("inspect", path)
        assert result.exit_code in (0, USER_ERROR), result.output


MISTAKES = {
    "absent model": ("compile", "absent.onnx", "no file 'absent.onnx'"),
    "absent artifact": ("run", "absent.so --input data.npz", "cannot read the artifact absent.so"),
    "absent input": ("run", "tiny.so --input absent.npz", "no file 'absent.npz'"),
    "a folder": ("compile", ".", "is a folder"),
    "unknown target": ("compile", "tiny.onnx --target rpi9", "there is no target 'rpi9'"),
    "shape, form": ("compile", "tiny.onnx --shape x:1x3", "--shape x:1x3 is not of the form"),
    "shape, name": ("compile", "tiny.onnx --shape z=1x3x7x5", "--shape names 'z'"),
    "shape, extent": ("compile", "tiny.onnx --shape x=1x3x7x6", "contradicts the model"),
    "no folder": ("compile", "tiny.onnx -o absent/m.so", "does not exist"),
    "output is a folder": ("compile", "tiny.onnx -o .", "is a folder"),
    "output, no folder": ("run", "tiny.so --input data.npz -o absent/y.npz", "does not exist"),
    "not an artifact": ("run", "tiny.onnx --input data.npz", "is not an edgec artifact"),
    "device": ("run", "tiny.so --input data.npz --device telnet://pi@pi", "there is no device 'telnet://pi@pi'"),
    "bench on qemu": ("bench", "tiny.so --device qemu --threads 2", "an emulator's time is not a device's latency"),
    "no labels": ("eval", "tiny.so --data x.npz", "no labels to judge by"),
    "wrong name": ("run", "tiny.so --input y.npz", "no array for the input 'x'"),
    "wrong dtype": ("run", "tiny.so --input f64.npz", "convert them with"),
    "wrong shape": ("run", "tiny.so --input wide.npz", "must be [1, 3, 7, 5] or [samples, 3, 7, 5]"),
    "NaN": ("run", "tiny.so --input nan.npz", "NaN values"),
    "not npz": ("run", "tiny.so --input tiny.onnx", "not an .npz file"),
}


@pytest.fixture
def mess(tiny_model, tiny_artifact, data, tmp_path, monkeypatch) -> Path:
    """A working folder with good files and bad ones."""
    (tmp_path / "tiny.onnx").write_bytes(tiny_model.read_bytes())
    (tmp_path / "tiny.so").write_bytes(tiny_artifact.read_bytes())
    x = np.zeros((2, 3, 7, 5), np.float32)
    wrong = {"x": x, "f64": x.astype(np.float64), "wide": np.zeros((2, 3, 7, 6), np.float32), "nan": x * np.nan}
    for name, array in wrong.items():
        np.savez(tmp_path / f"{name}.npz", x=array)
    np.savez(tmp_path / "y.npz", y=x)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(("command", "arguments", "reason"), MISTAKES.values(), ids=MISTAKES.keys())
def test_a_mistake_ends_in_one_sentence_and_writes_nothing(mess, command, arguments, reason):
    before = sorted(mess.iterdir())
    assert reason in sentence_of(command, *arguments.split())
    assert sorted(mess.iterdir()) == before


def test_flags_that_do_not_exist_end_in_usage():
    result = call("compile", "m.onnx", "--frobnicate")
    assert result.exit_code == 2 and "--frobnicate" in result.stderr


def damaged_artifacts(good: bytes) -> dict[str, bytes]:
    """Artifacts that were hurt after they were written."""
    flipped = bytearray(good)
    flipped[len(good) // 3] ^= 1
    return {"cut": good[:-100], "half": good[: len(good) // 2], "flipped": bytes(flipped), "longer": good + b"\0"}


@pytest.mark.parametrize("damage", damaged_artifacts(b"123").keys())
@pytest.mark.parametrize("command", ["inspect", "run", "bench", "eval"])
def test_a_damaged_artifact_is_refused(tiny_artifact, tiny_model, data, tmp_path, damage, command):
    path = tmp_path / "damaged.so"
    path.write_bytes(damaged_artifacts(tiny_artifact.read_bytes())[damage])
    flags = {"run": ["--input", data], "eval": ["--data", data]}.get(command, [])
    assert "compile it again" in sentence_of(command, path, *flags)


def test_an_artifact_for_another_machine_is_refused(tiny_board_artifact, data):
    sentence = sentence_of("run", tiny_board_artifact, "--input", data)
    assert "was built for aarch64 and this machine is" in sentence


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written_is_refused(tiny_model, tmp_path):
    tmp_path.chmod(0o555)
    assert "not writable" in sentence_of("compile", tiny_model, "-o", tmp_path / "m.so")


@pytest.mark.parametrize("full", ["m.so", "m.so.json"])
def test_a_full_disk_leaves_nothing(tiny_model, tmp_path, monkeypatch, full):
    def sync(descriptor: int) -> None:
        if Path(f"/proc/self/fd/{descriptor}").readlink().name.startswith(f".{full}."):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", sync)
    assert "No space left on device" in sentence_of("compile", tiny_model, "-o", tmp_path / "m.so")
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_keeps_the_old_output(tiny_artifact, data, tmp_path, monkeypatch):
    out = tmp_path / "y.npz"
    out.write_bytes(b"old")

    def sync(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", sync)
    assert "No space left on device" in sentence_of("run", tiny_artifact, "--input", data, "-o", out)
    assert out.read_bytes() == b"old" and sorted(path.name for path in tmp_path.iterdir()) == ["data.npz", "y.npz"]


def test_whatever_the_system_refuses_is_one_sentence(tiny_board_artifact, data, monkeypatch):
    def refuse(*arguments: Any, **options: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "inputs.bin")

    monkeypatch.setattr("edgec.devices.device.LocalDevice.run", refuse)
    assert "'No space left on device' for 'inputs.bin'" in sentence_of("run", tiny_board_artifact, "--input", data)


@pytest.mark.parametrize("delay", [0.0, 0.2, 0.4, 0.6, 0.8, 1.0])
def test_a_killed_compile_leaves_a_whole_artifact_or_none(tiny_model, tmp_path, delay):
    artifact = tmp_path / "m.so"
    with start("compile", tiny_model, "-o", artifact) as process:
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
    report = tmp_path / "m.so.json"
    if report.exists():
        assert json.loads(report.read_text())["name"] == "tiny"
    if artifact.exists():
        assert results_of("inspect", artifact)["name"] == "tiny" and report.exists()


def test_an_interrupt_is_quiet_and_leaves_nothing(tiny_model, tmp_path, monkeypatch):
    def interrupt(*arguments: Any, **options: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    result = call("compile", tiny_model, "-o", tmp_path / "m.so")
    assert (result.exit_code, result.output) == (130, "")
    assert list(tmp_path.iterdir()) == []
