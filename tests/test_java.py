"""Java's binding of libedgert, here and in an emulated 64-bit ARM machine, and the Android sample's own classes."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import edgec
from edgec.building.toolchain import find_toolchain, host_triple
from edgec.runtimes.build import SOURCE_FOLDER, build_runtime
from edgec.runtimes.python.session import load
from tests.android import ARM64

ROOT = Path(__file__).resolve().parent.parent
BINDING = SOURCE_FOLDER.parent / "java" / "src" / "main"
PI, ANDROID = ROOT / "samples" / "raspberry_pi", ROOT / "samples" / "android"
DIGITS = 12
TIMES = re.compile(r" \(prepared in [0-9.]+ ms, inferred in [0-9.]+ ms\)")


@pytest.fixture(scope="module")
def jdk() -> Path:
    """Of this machine."""
    if shutil.which("javac") is None or shutil.which("cmake") is None:
        pytest.skip("javac or cmake is not installed; .ci/install-tools installs default-jdk-headless and cmake")
    return Path(shutil.which("javac") or "").resolve().parent.parent


@pytest.fixture(scope="module")
def classes(jdk, tmp_path_factory) -> Path:
    """The binding, the sample's classes and the tests', for Java 8."""
    folder = tmp_path_factory.mktemp("classes")
    sources = [
        *(BINDING / "java").rglob("*.java"), *(ANDROID / "app" / "src" / "main" / "java").rglob("*.java"),
        *(ROOT / "tests" / "java").glob("*.java"),
    ]  # fmt: skip
    command = [jdk / "bin" / "javac", "--release", "8", "-Xlint:all,-options", "-Werror", "-d", folder, *sources]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def library(jdk, tmp_path_factory) -> Path:
    """The folder of the native half, as CMake builds it."""
    folder = tmp_path_factory.mktemp("library")
    for command in (["-S", BINDING / "cpp", "-B", folder], ["--build", folder]):
        done = subprocess.run(["cmake", *command], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    exported = subprocess.run(
        ["nm", "-D", "--defined-only", folder / "libedgert_jni.so"], capture_output=True, text=True, check=True
    ).stdout
    assert "Java_org_edgec_edgert_Session_nativeRun" in exported and "edgert_open" not in exported
    return folder


@pytest.fixture(scope="module")
def artifact(sample_model, tmp_path_factory) -> Path:
    """The sample model for this machine."""
    return edgec.compile(sample_model, "host", tmp_path_factory.mktemp("java") / "digits.so").path


def write_samples(folder: Path, sample_data) -> None:
    """Some samples and a file that is no artifact, in a folder."""
    sample_data["image"][:DIGITS].tofile(folder / "in.bin")
    (folder / "short.so").write_bytes(b"\x7fELF")


REFUSALS = (
    "status 13: 'image' has 256 bytes and 260 were bound to it",
    "refused: kernels read direct buffers only",
    "refused: an output cannot be written to a read-only buffer",
    "no input 1",
    "closed: the session is closed",
    "is too short for an artifact",
    "status 2: 'bücher🙂.so' cannot be read",
)


def check_output(done: subprocess.CompletedProcess[str]) -> None:
    """RunArtifact's: tensors, and a sentence for everything it tried."""
    assert done.returncode == 0, done.stderr
    assert "['image' FLOAT32[1, 1, 8, 8]] -> ['logits' FLOAT32[1, 10]]" in done.stdout
    for sentence in REFUSALS:
        assert sentence in done.stdout, done.stdout


@pytest.mark.parametrize("threads", [1, 2])
def test_java_gives_pythons_bits(jdk, classes, library, artifact, sample_data, tmp_path, threads):
    write_samples(tmp_path, sample_data)
    command = [
        jdk / "bin" / "java", "-Xcheck:jni", "-Dfile.encoding=UTF-8", "-Dstdout.encoding=UTF-8", "-cp", classes,
        f"-Djava.library.path={library}", "RunArtifact", artifact, "in.bin", "out.bin", str(threads), "short.so",
        "bücher🙂.so",
    ]  # fmt: skip
    environment = os.environ | {"LC_ALL": "C.UTF-8"}
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, encoding="utf-8", check=False, env=environment
    )
    check_output(done)
    assert "WARNING" not in done.stdout, done.stdout
    with load(artifact) as session:
        wanted = [session.run({"image": image[None]})["logits"] for image in sample_data["image"][:DIGITS]]
    assert (tmp_path / "out.bin").read_bytes() == np.concatenate(wanted).tobytes()


def test_the_samples_classes_name_digits_as_the_other_samples_do(
    jdk, classes, library, artifact, sample_data, tmp_path
):
    pictures = []
    for index in range(DIGITS):
        grey = np.rint(sample_data["image"][index, 0] * 255 / 16).astype(np.uint8)
        picture = Image.fromarray(grey).resize((33 + 7 * index, 61 - 3 * index), Image.Resampling.BICUBIC)
        pictures.append(tmp_path / f"{index:02}_{sample_data['labels'][index]}.png")
        picture.convert("RGB").save(pictures[-1])
    recipes = ('layout = "NCHW"\nresize = [8, 8]\nscale = 0.0625 # of 255\n', "resize = 9\ncrop = 8\nscale = [0.06]\n")
    for recipe in recipes:
        (tmp_path / "recipe.toml").write_text(recipe)
        files = [artifact, tmp_path / "recipe.toml", PI / "models" / "digits.txt", *pictures]
        command = [jdk / "bin" / "java", "-cp", classes, f"-Djava.library.path={library}"]
        command += ["org.edgec.sample.RunClassifier", *files]
        java = subprocess.run(command, capture_output=True, text=True, check=False)
        assert java.returncode == 0, java.stderr
        flags = [files[0], "--preprocess", files[1], "--labels", files[2], *pictures]
        python = subprocess.run(
            [sys.executable, PI / "python" / "vision.py", *map(str, flags)], capture_output=True, text=True, check=True
        )
        lines = TIMES.sub("", python.stdout).splitlines()[:-1]
        assert TIMES.sub("", java.stdout).splitlines() == lines
    assert len(lines) == DIGITS


@pytest.mark.heavy
def test_java_on_an_emulated_arm_machine(jdk, classes, emulator, sample_model, sample_data, tmp_path):
    """The library for Android in a Java machine for arm64: what is nearest to a phone here."""
    if shutil.which("mmdebstrap") is None:
        pytest.skip("mmdebstrap is not installed; run: apt-get install mmdebstrap")
    root = Path(os.environ.get("EDGEC_ARM64_JAVA", tmp_path / "root"))
    if not root.is_dir():
        command = ["mmdebstrap", "--variant=extract", "--architectures=arm64", "--include=openjdk-17-jre-headless"]
        subprocess.run([*command, "bookworm", root], capture_output=True, check=True)
    jni = tmp_path / "libedgert_jni.so"
    files = build_runtime("aarch64-linux-android")
    includes = [f"-I{files.include}", f"-I{jdk / 'include'}", f"-I{jdk / 'include' / 'linux'}"]
    flags = ["-std=c11", "-fvisibility=hidden", *includes, "-ldl"]
    find_toolchain("aarch64-linux-android").compile([BINDING / "cpp" / "edgert_jni.c", files.static], jni, flags=flags)
    artifact = edgec.compile(sample_model, "android-arm64", tmp_path / "digits.so").path
    write_samples(tmp_path, sample_data)
    (tmp_path / "bionic").mkdir()
    ARM64.libraries(tmp_path / "bionic")
    java = next(root.glob("usr/lib/jvm/java-17-openjdk-arm64/bin/java"))
    done = subprocess.run(
        ["qemu-aarch64", "-L", root, "-E", f"LD_LIBRARY_PATH={tmp_path / 'bionic'}", java, "-Xint",
         "-XX:+UseSerialGC", "-Dfile.encoding=UTF-8", "-cp", classes, f"-Djava.library.path={tmp_path}", "RunArtifact",
         artifact, "in.bin", "out.bin", "2", "short.so", "bücher🙂.so"],
        cwd=tmp_path, capture_output=True, encoding="utf-8", check=False, env=os.environ | {"LC_ALL": "C.UTF-8"},
    )  # fmt: skip
    check_output(done)
    board = edgec.compile(sample_model, "rpi4", tmp_path / "board.so").path
    subprocess.run(
        ["qemu-aarch64", "-L", "/usr/aarch64-linux-gnu", build_runtime("aarch64-linux-gnu").runner, board, "--inputs",
         "in.bin", "--outputs", "board.bin"], cwd=tmp_path, check=True,
    )  # fmt: skip
    assert (tmp_path / "out.bin").read_bytes() == (tmp_path / "board.bin").read_bytes()


CPP_RUN = r"""
#include <edgert/edgert.hpp>
#include <fstream>

int main(int, char **argv) {
  edgert::session session(argv[1]);
  edgert::span<float> image = session.input<float>(0);
  edgert::span<const float> logits = session.output<float>(0);
  std::ifstream in("in.bin", std::ios::binary);
  std::ofstream out("cpp.bin", std::ios::binary);
  while (in.read(reinterpret_cast<char *>(image.data()), static_cast<std::streamsize>(4 * image.size()))) {
    session.run();
    out.write(reinterpret_cast<const char *>(logits.data()), static_cast<std::streamsize>(4 * logits.size()));
  }
}
"""


@pytest.mark.skipif(not shutil.which("g++"), reason="g++ is not installed")
@pytest.mark.parametrize("quantize", ["none", "int8"])
def test_one_artifact_has_the_same_bits_in_every_language(
    jdk, classes, library, sample_model, sample_data, tmp_path, quantize
):
    """C through the runner, C++ through the header, Python, and Java."""
    calib = {"calib": sample_model.with_name("digits_calib.npz")} if quantize == "int8" else {}
    artifact = edgec.compile(sample_model, "host", tmp_path / "digits.so", quantize=quantize, **calib).path
    write_samples(tmp_path, sample_data)
    runtime = build_runtime(host_triple())
    (tmp_path / "main.cpp").write_text(CPP_RUN)
    compiler = ["g++", "-std=c++17", "-Wall", "-Wextra", "-Wpedantic", "-Werror", f"-I{runtime.include}"]
    subprocess.run([*compiler, "main.cpp", runtime.static, "-lpthread", "-ldl", "-o", "main"], cwd=tmp_path, check=True)
    java = [jdk / "bin" / "java", "-cp", classes, f"-Djava.library.path={library}", "RunArtifact"]
    for command in (
        [runtime.runner, artifact, "--inputs", "in.bin", "--outputs", "c.bin", "--count", str(DIGITS)],
        [tmp_path / "main", artifact],
        [*java, artifact, "in.bin", "java.bin", "1", "short.so", "none.so"],
    ):
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    with load(artifact) as session:
        logits = [session.run({"image": image[None]})["logits"] for image in sample_data["image"][:DIGITS]]
    wanted = np.concatenate(logits).tobytes()
    assert [name for name in ("c", "cpp", "java") if (tmp_path / f"{name}.bin").read_bytes() != wanted] == []
