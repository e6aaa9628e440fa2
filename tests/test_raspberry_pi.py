"""The Raspberry Pi sample: its C and its Python program on picture files, emulated and here, and its deployment."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper
from PIL import Image

import edgec
from tests.loopback import loopback
from tests.programs import model

ROOT = Path(__file__).resolve().parent.parent
SAMPLE = ROOT / "samples" / "raspberry_pi"
RECIPE, LABELS = SAMPLE / "models" / "digits.toml", SAMPLE / "models" / "digits.txt"
QEMU = ("qemu-aarch64", "-cpu", "cortex-a72", "-L", "/usr/aarch64-linux-gnu")
DIGITS = 24
TIMES = re.compile(r" \(prepared in [0-9.]+ ms, inferred in [0-9.]+ ms\)")


def build(folder: Path, *flags: str) -> Path:
    """The C program, through CMake."""
    if shutil.which("cmake") is None:
        pytest.skip("cmake is not installed; .ci/install-tools does it")
    for command in (["-S", SAMPLE / "c", "-B", folder, *flags], ["--build", folder]):
        done = subprocess.run(["cmake", *command], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    return folder / "edgert-vision"


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    """The C program for this machine."""
    return build(tmp_path_factory.mktemp("here"))


@pytest.fixture(scope="module")
def board(emulator, tmp_path_factory):
    """The C program for a 64-bit board."""
    system = ("-DCMAKE_SYSTEM_NAME=Linux", "-DCMAKE_SYSTEM_PROCESSOR=aarch64")
    return build(tmp_path_factory.mktemp("board"), *system, "-DCMAKE_C_COMPILER=aarch64-linux-gnu-gcc")


@pytest.fixture(scope="module")
def artifacts(sample_model, tmp_path_factory):
    """The sample model in 8 bits, for this machine and for a Pi 4."""
    folder, calib = tmp_path_factory.mktemp("digits"), sample_model.with_name("digits_calib.npz")
    return {
        target: edgec.compile(sample_model, target, folder / f"{target}.so", quantize="int8", calib=calib).path
        for target in ("host", "rpi4")
    }


@pytest.fixture(scope="module")
def digits(sample_data, tmp_path_factory):
    """Held-out digits as files of odd sizes, named by place and label."""
    folder = tmp_path_factory.mktemp("pictures")
    for index in range(DIGITS):
        grey = np.rint(sample_data["image"][index, 0] * 255 / 16).astype(np.uint8)
        picture = Image.fromarray(grey).resize((33 + 5 * index, 31 + 3 * index), Image.Resampling.BICUBIC)
        picture.save(folder / f"{index:02}_{sample_data['labels'][index]}.pgm")
    return sorted(folder.iterdir())


def python(*arguments: object, path: Path | None = None) -> subprocess.CompletedProcess[str]:
    """The Python program."""
    environment = os.environ | ({"PYTHONPATH": str(path)} if path else {})
    command = [sys.executable, SAMPLE / "python" / "vision.py", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


def found(done: subprocess.CompletedProcess[str]) -> list[str]:
    """The lines without the times, and without the last, which tells frames per second."""
    assert done.returncode == 0, done.stderr
    *lines, last = done.stdout.splitlines()
    assert re.fullmatch(rf"{len(lines)} pictures, [0-9.]+ frames/s", last)
    assert all(TIMES.search(line) for line in lines)
    return [TIMES.sub("", line) for line in lines]


def run(*command: object, given: bytes | None = None) -> subprocess.CompletedProcess[str]:
    """A program that reads ``given``."""
    done = subprocess.run([str(each) for each in command], capture_output=True, check=False, input=given or b"")
    return subprocess.CompletedProcess(done.args, done.returncode, done.stdout.decode(), done.stderr.decode())


def test_c_python_and_the_emulated_board_name_the_digits_alike(here, board, artifacts, digits, tmp_path):
    drawings = tmp_path / "drawn"  # which the first of them makes
    flags = ("--preprocess", RECIPE, "--labels", LABELS, "--output", drawings)
    lines = found(run(*QEMU, board, artifacts["rpi4"], *flags, *digits))
    assert lines == found(run(here, artifacts["host"], *flags, *digits))
    assert lines == found(python(artifacts["host"], *flags, *digits))
    right = sum(line.split(": ")[1].startswith(path.stem[-1]) for line, path in zip(lines, digits, strict=True))
    assert right >= DIGITS - 1
    for suffix in (".ppm", ".jpg"):
        drawn = np.asarray(Image.open(drawings / f"{digits[0].stem}_seen{suffix}")).astype(int)
        assert drawn.shape[1] >= 320 and (abs(drawn - (220, 40, 40)).max(axis=2) < 40).sum() > 500


@pytest.fixture(scope="module")
def resizer(tmp_path_factory):
    """The C program's resizing alone: reads a file, resizes it, writes it."""
    folder = tmp_path_factory.mktemp("resizer")
    (folder / "main.c").write_text(
        '#include "picture.h"\n#include <stdlib.h>\n'
        "int main(int n, char **a) { (void)n; picture p = picture_read(a[1]);\n"
        "picture q = picture_resize(&p, atoi(a[2]), atoi(a[3])); picture_write(&q, a[4]); return 0; }\n"
    )
    flags = ["-std=c11", "-D_POSIX_C_SOURCE=200809L", "-O2", f"-I{SAMPLE / 'c'}", "-ffp-contract=off"]
    sources = [folder / "main.c", SAMPLE / "c" / "picture.c", SAMPLE / "c" / "jpeg.c"]
    subprocess.run(["cc", *flags, *sources, "-o", folder / "resizer", "-lm"], check=True)
    return folder / "resizer"


@pytest.mark.parametrize("size", [(5, 7), (17, 127), (127, 17), (64, 48), (300, 200), (1, 1)])
@pytest.mark.parametrize("source", [(64, 48), (127, 5), (7, 17)])
def test_resizing_in_c_is_pillows_to_the_bit(resizer, tmp_path, size, source):
    pixels = np.random.default_rng(3).integers(0, 256, (source[1], source[0], 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "in.ppm")
    assert run(resizer, tmp_path / "in.ppm", *size, tmp_path / "out.ppm").returncode == 0
    wide = Image.fromarray(pixels).resize((size[0], source[1]), Image.Resampling.BILINEAR)
    wanted = wide.resize(size, Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "out.ppm")), np.asarray(wanted))


def detector(folder: Path) -> Path:
    """A network whose output is a grid of 4 × 6 cells and three classes with three objects, whatever it sees."""
    grid = np.zeros((1, 8, 4, 6), np.float32)
    grid[0, 3:5] = -2.0
    for row, column, score, label in ((1, 2, 0.9, 2), (1, 3, 0.8, 2), (3, 5, 0.95, 0), (0, 0, 0.3, 1)):
        grid[0, 0, row, column], grid[0, 5 + label, row, column] = score, 0.9
    grid[0, 1, 1, 3] = -9.0  # tanh draws this box over the one beside it
    nodes = [
        helper.make_node("GlobalAveragePool", ["x"], ["p"]),
        helper.make_node("ReduceMean", ["p"], ["m"], keepdims=1),
        helper.make_node("Mul", ["m", "zero"], ["z"]),
        helper.make_node("Add", ["grid", "z"], ["y"]),
    ]
    weights = {"zero": np.zeros(1, np.float32), "grid": grid}
    path = folder / "detector.onnx"
    onnx.save(model(nodes, {"x": (1, 3, 16, 16)}, {"y": (1, 8, 4, 6)}, weights), path)
    return edgec.compile(path, "host", folder / "detector.so").path


def test_boxes_in_c_are_those_in_python(here, tmp_path):
    artifact, picture = detector(tmp_path), tmp_path / "scene.ppm"
    Image.fromarray(np.random.default_rng(4).integers(0, 256, (90, 160, 3), np.uint8)).save(picture)
    (tmp_path / "recipe.toml").write_text("resize = [16, 16]\nmean = [1, 2, 3]\nscale = 0.5 # half\n")
    (tmp_path / "labels.txt").write_text("cup\npen\nbook\n")
    flags = ["--preprocess", tmp_path / "recipe.toml", "--labels", tmp_path / "labels.txt", "--detect"]
    flags += ["--output", tmp_path, "--threshold", "0.5"]
    (line,) = found(run(here, artifact, *flags, picture))
    assert found(python(artifact, *flags, picture)) == [line]
    boxes = [text.partition(" at ") for text in line.removeprefix("scene.ppm: ").split("; ")]
    assert [name for name, _, _ in boxes] == ["cup 0.93", "book 0.90"]
    side = 1 / (1 + np.exp(2.0))
    corner = [float(x) for x in boxes[0][2].split()][:2]
    np.testing.assert_allclose(corner, [5 / 6 - side / 2, 3 / 4 - side / 2], atol=1e-3)


def test_the_c_program_reads_a_cameras_stream(here, artifacts, sample_data, tmp_path):
    frames = b""
    for image in sample_data["image"][:5, 0]:
        grey = Image.fromarray(np.rint(16 + image * 219 / 16).astype(np.uint8))
        frames += grey.resize((64, 48), Image.Resampling.BICUBIC).tobytes() + bytes([128]) * (64 * 48 // 2)
    live = tmp_path / "live.ppm"
    flags = ("--preprocess", RECIPE, "--labels", LABELS, "--output", live, "--yuv420", "64x48")
    lines = found(run(here, artifacts["host"], *flags, given=frames + b"cut off"))
    assert [line.split()[2] for line in lines] == [str(label) for label in sample_data["labels"][:5]]
    assert Image.open(live).size == (320, 240) and not live.with_name("live.ppm.part").exists()


def test_the_python_program_reads_the_camera(artifacts, sample_data, tmp_path):
    np.save(tmp_path / "frame.npy", sample_data["image"][0, 0])
    (tmp_path / "picamera2.py").write_text(
        f"import numpy as np\n"
        f"class Picamera2:\n"
        f"    def __enter__(self): return self\n"
        f"    def __exit__(self, *_): print('closed')\n"
        f"    def create_video_configuration(self, main): return main\n"
        f"    def configure(self, main): assert main == {{'size': (64, 48), 'format': 'BGR888'}}\n"
        f"    def start(self): pass\n"
        f"    def capture_array(self):\n"
        f"        grey = np.kron(np.load('{tmp_path}/frame.npy') * 255 / 16, np.ones((6, 8))).astype(np.uint8)\n"
        f"        return np.stack([grey] * 3, axis=2)\n"
    )
    flags = ("--preprocess", RECIPE, "--labels", LABELS, "--camera", "64x48", "--frames", 2, "--output")
    done = python(artifacts["host"], *flags, tmp_path / "live.jpg", path=tmp_path)
    label = sample_data["labels"][0]
    assert [line.split()[2] for line in done.stdout.splitlines() if line.startswith("frame")] == [str(label)] * 2
    assert "closed" in done.stdout and Image.open(tmp_path / "live.jpg").size == (320, 240)


MISTAKES = {
    "no picture": (["--preprocess", "digits.toml"], "usage: edgert-vision"),
    "no such recipe": (["--preprocess", "none.toml", "d.pgm"], "'none.toml' cannot be read"),
    "no such picture": (["--preprocess", "digits.toml", "none.pgm"], "'none.pgm' cannot be read"),
    "cut off": (["--preprocess", "digits.toml", "cut.pgm"], "'cut.pgm' is cut off"),
    "huge": (["--preprocess", "digits.toml", "huge.pgm"], "cannot be"),
    "no picture file": (["--preprocess", "digits.toml", "digits.toml"], "is no binary PPM, PGM or JPEG"),
    "unknown key": (["--preprocess", "odd.toml", "d.pgm"], "'odd.toml' has a key 'size'"),
    "other size": (["--preprocess", "large.toml", "d.pgm"], "the model takes another size"),
    "no detector": (["--preprocess", "digits.toml", "--detect", "d.pgm"], "--detect needs an output"),
    "odd frame": (["--preprocess", "digits.toml", "--yuv420", "63x48"], "both even"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_the_c_program_says_what_is_wrong(here, artifacts, digits, tmp_path, mistake):
    shutil.copy(RECIPE, tmp_path / "digits.toml")
    shutil.copy(digits[0], tmp_path / "d.pgm")
    (tmp_path / "cut.pgm").write_bytes(digits[0].read_bytes()[:-1])
    (tmp_path / "huge.pgm").write_bytes(b"P5\n999999 999999\n255\n")
    (tmp_path / "odd.toml").write_text("size = 8\n")
    (tmp_path / "large.toml").write_text("resize = [9, 9]\n")
    arguments, sentence = MISTAKES[mistake]
    done = subprocess.run(
        [here, artifacts["host"], *arguments], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2 and done.stderr.startswith("edgert-vision: ") and sentence in done.stderr


@pytest.fixture
def device(tmp_path):
    with loopback(tmp_path) as started:
        yield started


def test_deploying_over_ssh(here, device, sample_model, digits):
    device.command("systemctl", 'echo "$@" >> ~/systemctl.log')
    flags = ["--target", "host"]
    where = device.url.removeprefix("ssh://").rpartition(":")[0]
    environment = os.environ | {
        "SSH": f"{device.client}/ssh -p {device.port}", "EDGEC": f"{Path(sys.executable).parent}/edgec",
        "SIZE": "64x48",
    }  # fmt: skip
    command = [SAMPLE / "deploy.sh", *flags, where, sample_model, RECIPE, LABELS, digits[0]]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    assert f"try.pgm: {digits[0].stem[-1]} " in done.stdout
    calls = (device.home / "systemctl.log").read_text().splitlines()
    assert calls == [f"--user {verb}" for verb in ("daemon-reload", "enable edgert-vision", "restart edgert-vision")]
    unit = device.home / ".config" / "systemd" / "user" / "edgert-vision.service"
    folder = device.home / "edgert-vision"
    names = {path.name for path in folder.iterdir()}
    assert names >= {"model.so", "edgert-vision", "recipe.toml", "labels.txt", "vision.env"}
    # the unit's own command, with a camera that shows one picture
    variables = dict(line.split("=", 1) for line in (folder / "vision.env").read_text().splitlines())
    grey = Image.open(digits[0]).resize((64, 48))
    (folder / "frame").write_bytes(grey.tobytes() + bytes([128]) * (64 * 48 // 2))
    assert variables["CAMERA"].startswith("rpicam-vid") and "--width 64 --height 48" in variables["CAMERA"]
    variables |= {"CAMERA": "cat frame", "RUNTIME_DIRECTORY": str(folder)}
    start = next(line for line in unit.read_text().splitlines() if line.startswith("ExecStart="))
    script = re.search(r"-c '(.*)'$", start)
    assert script is not None
    command = ["bash", "-o", "pipefail", "-c", script[1]]
    shown = subprocess.run(
        command, cwd=folder, env=os.environ | variables, capture_output=True, text=True, check=False
    )
    assert "1 pictures" in shown.stdout and (folder / "live.ppm").is_file()


def test_the_unit_is_one_that_systemd_accepts(tmp_path):
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed")
    unit = tmp_path / "edgert-vision.service"
    unit.write_text((SAMPLE / "edgert-vision.service").read_text())
    done = subprocess.run(["systemd-analyze", "verify", "--user", unit], capture_output=True, text=True, check=False)
    assert unit.name not in done.stderr, done.stderr


@pytest.mark.heavy
def test_a_real_detector_in_8_bits(here, board, shared, tmp_path):
    detector = shared / "models" / "fastestdet"
    images = sorted((shared / "data" / "imagenet" / "images").iterdir())[:40]
    (tmp_path / "calib").mkdir()
    for path in images:
        shutil.copy(path, tmp_path / "calib")
    recipe, labels = (SAMPLE / "models" / name for name in ("fastestdet.toml", "coco.txt"))
    lines = {}
    for number in (0, 1):
        Image.open(detector / f"{number}.jpg").convert("RGB").save(tmp_path / f"{number}.ppm")
    pictures = [tmp_path / "0.ppm", tmp_path / "1.ppm"]
    flags = ("--preprocess", recipe, "--labels", labels, "--detect", "--output", tmp_path)
    for target in ("host", "rpi4"):
        made = edgec.compile(
            detector / "FastestDet.onnx", target, tmp_path / f"{target}.so", quantize="int8", calib=tmp_path / "calib",
            preprocess=recipe,
        )  # fmt: skip
        command = (here,) if target == "host" else (*QEMU, board)
        lines[target] = found(run(*command, made.path, *flags, *pictures))
    assert lines["host"] == found(python(tmp_path / "host.so", *flags, *pictures))
    assert lines["host"][1].startswith("1.ppm: bus 0.9") and lines["host"][0].count("person") >= 3
    assert [line.count(" at ") for line in lines["host"]] == [line.count(" at ") for line in lines["rpi4"]]
