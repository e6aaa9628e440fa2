"""libedgert: its own tests under sanitizers and under qemu, its size, its installation, its runner."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import edgec
from edgec.building.toolchain import find_toolchain, host_triple
from edgec.runtimes.build import SOURCE_FOLDER, RuntimeFiles, build_runtime
from tests import toy

AARCH64 = "aarch64-linux-gnu"
QEMU = ("qemu-aarch64", "-L", "/usr/aarch64-linux-gnu", "-cpu", "cortex-a72")
CROSS = (
    "-DCMAKE_SYSTEM_NAME=Linux",
    "-DCMAKE_SYSTEM_PROCESSOR=aarch64",
    "-DCMAKE_C_COMPILER=aarch64-linux-gnu-gcc",
    f"-DCMAKE_CROSSCOMPILING_EMULATOR={';'.join(QEMU)}",
)

needs_cmake = pytest.mark.skipif(not shutil.which("cmake"), reason="cmake is not installed")
needs_cross = pytest.mark.skipif(not shutil.which("aarch64-linux-gnu-gcc"), reason="gcc-aarch64-linux-gnu is missing")
needs_qemu = pytest.mark.skipif(not shutil.which("qemu-aarch64"), reason="qemu-aarch64 is not installed")


def run(*command: str | os.PathLike[str], cwd: Path | None = None) -> str:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
    return done.stdout


def build(folder: Path, *options: str) -> Path:
    run("cmake", "-S", SOURCE_FOLDER, "-B", folder, *options)
    run("cmake", "--build", folder, "-j2")
    return folder


def compiles(tmp_path: Path, flag: str) -> bool:
    source = tmp_path / "probe.c"
    source.write_text("int main(void) { return 0; }\n")
    program = tmp_path / "probe"
    built = subprocess.run(["cc", flag, source, "-o", program], capture_output=True, check=False)
    return built.returncode == 0 and subprocess.run([program], check=False).returncode == 0


@needs_cmake
@pytest.mark.parametrize("sanitize", ["address,undefined", "thread"])
def test_c_tests_and_the_sample_model_under_sanitizers(
    tmp_path: Path, sanitize: str, sample_model: Path, sample_data: dict[str, np.ndarray]
) -> None:
    if not compiles(tmp_path, f"-fsanitize={sanitize}"):
        pytest.skip(f"this C compiler has no -fsanitize={sanitize}")
    folder = build(tmp_path / "build", "-DEDGERT_TESTS=ON", f"-DEDGERT_SANITIZE={sanitize}")
    assert "100% tests passed" in run("ctest", "--output-on-failure", cwd=folder)
    artifact = edgec.compile(sample_model, "host", tmp_path / "model.so").path
    images = sample_data["image"][:20]
    (tmp_path / "in.bin").write_bytes(images.tobytes())
    files = ("--inputs", tmp_path / "in.bin", "--outputs", tmp_path / "out.bin")
    run(folder / "edgert-run", artifact, "--threads", "2", "--count", "20", *files)
    found = np.fromfile(tmp_path / "out.bin", np.float32).reshape(20, 10)
    with edgec.load(artifact) as session:
        wanted = [session.run({"image": image[None]})["logits"][0] for image in images]
    np.testing.assert_array_equal(found, wanted)


@needs_cmake
def test_c_tests_without_threads(tmp_path: Path) -> None:
    folder = build(tmp_path / "build", "-DEDGERT_TESTS=ON", "-DEDGERT_THREADS=OFF")
    assert "100% tests passed" in run("ctest", "--output-on-failure", cwd=folder)
    symbols = run("nm", "--dynamic", "--undefined-only", folder / "libedgert.so")
    assert "pthread" not in symbols and "clock_gettime" in symbols


@needs_cmake
@needs_cross
@needs_qemu
def test_c_tests_on_aarch64(tmp_path: Path) -> None:
    folder = build(tmp_path / "build", "-DEDGERT_TESTS=ON", *CROSS)
    assert "100% tests passed" in run("ctest", "--output-on-failure", cwd=folder)


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("installed")
    build(folder / "build", "-DCMAKE_INSTALL_LIBDIR=lib")
    run("cmake", "--install", folder / "build", "--prefix", folder / "prefix")
    shutil.rmtree(folder / "build")
    return folder / "prefix"


def header_example() -> str:
    """The complete program in the public header's comment, with a main that calls it."""
    text = (SOURCE_FOLDER / "include" / "edgert" / "edgert.h").read_text()
    lines = [line.removeprefix(" *   ") for line in text.splitlines()]
    start = lines.index("#include <edgert/edgert.h>")
    end = lines.index("}", start)
    body = "\n".join(line.rstrip() for line in lines[start : end + 1]).replace("\n *\n", "\n\n")
    return body + "\n\nint main(void) { return classify(NULL, 0, NULL, 0) == -1 ? 0 : 1; }\n"


CPP_PROGRAM = r"""
#include <edgert/edgert.hpp>
#include <array>
#include <cstdio>
#include <vector>

int main(int argc, char **argv) {
  try {
    edgert::session opened(argv[1]);
    edgert::session session = std::move(opened);
    if (session.input_count() != 1 || session.find_input("x") != 0) return 3;
    edgert::span<const std::int64_t> shape = session.input_info(0).shape();
    std::vector<float> x(shape[1] * shape[2] * shape[3], 0.5f);
    std::array<float, 4> y;
    session.bind_input(0, edgert::span(x));
    session.bind_output(0, edgert::span(y));
    session.start_profile();
    session.run();
    for (float value : y) std::printf("%.9g\n", value);
    session.bind_output(0, edgert::span<float>());
    session.run();
    for (float value : session.output<float>(0)) std::printf("%.9g\n", value);
    if (session.profile().size() != session.model().step_count) return 4;
    if (argc > 2) session.output<int>(0);
  } catch (const edgert::error &error) {
    std::puts(error.what());
    return error.status() == EDGERT_ERROR_FILE ? 10 : 11;
  }
}
"""


def consumer(folder: Path, language: str) -> Path:
    """A program that uses the library, in C or C++."""
    path = folder / ("main.c" if language == "C" else "main.cpp")
    path.write_text(header_example() if language == "C" else CPP_PROGRAM)
    return path


def check_consumer(program: Path, language: str, tiny_artifact: Path) -> None:
    """Run what :func:`consumer` has become."""
    if language == "C":
        done = subprocess.run([program], capture_output=True, text=True, check=False)
        assert done.returncode == 0 and "'model.so' cannot be read" in done.stderr
        return
    with edgec.load(tiny_artifact) as session:
        wanted = session.run({"x": np.full((1, 3, 7, 5), 0.5, np.float32)})["y"].ravel()
    lines = run(program, tiny_artifact).split()
    np.testing.assert_array_equal(np.array(lines, np.float32), np.concatenate([wanted, wanted]))
    wrong = subprocess.run([program, tiny_artifact, "typed"], capture_output=True, text=True, check=False)
    assert wrong.returncode == 11 and "'y' has elements of another type" in wrong.stdout
    missing = subprocess.run([program, "missing.so"], capture_output=True, text=True, check=False)
    assert missing.returncode == 10 and "'missing.so' cannot be read" in missing.stdout


LANGUAGES = [
    "C", pytest.param("CXX", marks=pytest.mark.skipif(not shutil.which("g++"), reason="g++ is not installed"))
]  # fmt: skip


@needs_cmake
@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("library", ["edgert", "edgert_static"])
def test_find_package(tmp_path: Path, installed: Path, library: str, language: str, tiny_artifact: Path) -> None:
    source = consumer(tmp_path, language)
    (tmp_path / "CMakeLists.txt").write_text(
        f"cmake_minimum_required(VERSION 3.16)\nproject(user {language})\nfind_package(edgert 0.1 REQUIRED)\n"
        f"add_executable(user {source.name})\ntarget_link_libraries(user edgert::{library})\n"
        "set_target_properties(user PROPERTIES CXX_STANDARD 17)\n"
        + ("" if language == "C" else "find_package(Threads REQUIRED)\n")
    )
    run("cmake", "-S", tmp_path, "-B", tmp_path / "build", f"-DCMAKE_PREFIX_PATH={installed}")
    run("cmake", "--build", tmp_path / "build")
    check_consumer(tmp_path / "build" / "user", language, tiny_artifact)


@needs_cmake
@pytest.mark.skipif(not shutil.which("pkg-config"), reason="pkg-config is not installed")
@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("static", [False, True])
def test_pkg_config(
    tmp_path: Path, installed: Path, monkeypatch, language: str, static: bool, tiny_artifact: Path
) -> None:
    monkeypatch.setenv("PKG_CONFIG_PATH", str(installed / "lib" / "pkgconfig"))
    assert run("pkg-config", "--modversion", "edgert").strip() == "0.1.0"
    flags = run("pkg-config", "--cflags", "--libs", *(["--static"] if static else []), "edgert").split()
    if static:
        flags = [str(installed / "lib" / "libedgert.a") if flag == "-ledgert" else flag for flag in flags]
    compiler = ["cc"] if language == "C" else ["g++", "-std=c++17", "-Wall", "-Wextra", "-Wpedantic", "-Werror"]
    source = consumer(tmp_path, language)
    run(*compiler, source, "-o", tmp_path / "user", *flags, f"-Wl,-rpath,{installed / 'lib'}")
    check_consumer(tmp_path / "user", language, tiny_artifact)


def test_soname_has_the_major_version(installed: Path) -> None:
    listing = run("objdump", "-p", installed / "lib" / "libedgert.so")
    assert re.search(r"SONAME\s+libedgert\.so\.0$", listing, re.MULTILINE)
    assert (installed / "lib" / "libedgert.so").readlink() == Path("libedgert.so.0")


@pytest.mark.skipif(not shutil.which("g++"), reason="g++ is not installed")
def test_header_is_cpp(tmp_path: Path) -> None:
    source = tmp_path / "main.cpp"
    source.write_text("#include <edgert/edgert.h>\nedgert_options options = EDGERT_OPTIONS_DEFAULT;\n")
    include = f"-I{SOURCE_FOLDER / 'include'}"
    warnings = ("-Wall", "-Wextra", "-Wpedantic", "-Werror")
    run("g++", "-std=c++11", *warnings, "-fsyntax-only", include, source)
    source.write_text("#include <edgert/edgert.hpp>\n")
    run("g++", "-std=c++17", "-fno-exceptions", "-fno-rtti", *warnings, "-fsyntax-only", include, source)


def test_versions_agree() -> None:
    header = (SOURCE_FOLDER / "include" / "edgert" / "edgert.h").read_text()
    project = (SOURCE_FOLDER / "CMakeLists.txt").read_text()
    stated = re.search(r'EDGERT_VERSION "(.*)"', header), re.search(r"project\(edgert VERSION (\S+)", project)
    assert all(stated) and len({match[1] for match in stated if match}) == 1


def test_aarch64_library_is_small() -> None:
    find_toolchain(AARCH64)
    assert build_runtime(AARCH64).shared.stat().st_size <= 64_000


@pytest.mark.skipif(not shutil.which("nm"), reason="nm (binutils) is not installed")
def test_library_exports_its_header_and_nothing_else() -> None:
    header = (SOURCE_FOLDER / "include" / "edgert" / "edgert.h").read_text()
    declared = set(re.findall(r"^EDGERT_API .*?(edgert_\w+)\(", header, re.MULTILINE))
    lines = run("nm", "--dynamic", "--defined-only", build_runtime(host_triple()).shared).splitlines()
    assert {line.split()[-1].partition("@")[0] for line in lines} == declared


def run_toy(runtime: RuntimeFiles, artifact: Path, folder: Path, *prefix: str, count: int = 3) -> dict[str, Any]:
    """Runs ``count`` samples through edgert-run, checks them, and returns the profile."""
    samples = [toy.sample(seed) for seed in range(count)]
    (folder / "in.bin").write_bytes(b"".join(s["x"].tobytes() + s["q"].tobytes() for s in samples))
    files = ["--inputs", folder / "in.bin", "--outputs", folder / "out.bin", "--profile", folder / "profile.json"]
    run(*prefix, runtime.runner, artifact, *files, "--warmup", "2", "--repeat", "4", "--threads", "2", "--pin")
    outputs = np.frombuffer((folder / "out.bin").read_bytes(), np.dtype([("y", "<f4", (7, 17)), ("sum", "<i4", 1)]))
    assert len(outputs) == count
    for output, inputs in zip(outputs, samples, strict=True):
        toy.assert_expected({"y": output["y"], "sum": output["sum"]}, inputs)
    return dict(json.loads((folder / "profile.json").read_text()))


def test_runner(tmp_path: Path) -> None:
    artifact = toy.link(find_toolchain(host_triple()), tmp_path / "toy.so")
    profile = run_toy(build_runtime(host_triple()), artifact, tmp_path)
    assert len(profile["runs_ns"]) == 12 and min(profile["runs_ns"]) > 0
    assert profile["threads"] == 2 and profile["open_ns"] > 0
    assert [step["name"] for step in profile["steps"]] == ['Mul "a"', "Concat", "ReduceSum"]
    assert [step["calls"] for step in profile["steps"]] == [12, 12, 12]
    assert [step["macs"] for step in profile["steps"]] == [119, 0, 5]


@needs_cross
@needs_qemu
def test_runner_on_aarch64(tmp_path: Path) -> None:
    artifact = toy.link(find_toolchain(AARCH64), tmp_path / "toy.so")
    assert len(run_toy(build_runtime(AARCH64), artifact, tmp_path, *QEMU)["runs_ns"]) == 12


@needs_cross
@needs_qemu
def test_cpu_features_follow_the_cpu(tmp_path: Path) -> None:
    """An artifact with dot products runs on a Cortex-A76 and is refused by a Cortex-A72."""
    artifact = toy.link(find_toolchain(AARCH64), tmp_path / "toy.so", ["-DTOY_FEATURES=EDGERT_ARM_DOTPROD"])
    run_toy(build_runtime(AARCH64), artifact, tmp_path, *QEMU[:-1], "cortex-a76")
    files = ["--inputs", tmp_path / "in.bin", "--outputs", tmp_path / "refused.bin"]
    done = subprocess.run(
        [*QEMU, build_runtime(AARCH64).runner, artifact, *files], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "needs CPU features that this machine lacks: dotprod;" in done.stderr


@needs_cross
def test_foreign_artifact_is_refused(tmp_path: Path) -> None:
    if host_triple() == AARCH64:
        pytest.skip("this machine is an aarch64 machine")
    artifact = toy.link(find_toolchain(AARCH64), tmp_path / "toy.so")
    runner = build_runtime(host_triple()).runner
    files = ["--inputs", "/dev/null", "--outputs", tmp_path / "out.bin"]
    done = subprocess.run([runner, artifact, *files], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "was built for aarch64 and this machine is x86_64; compile it again" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "usage: edgert-run MODEL.so"),
        (["--inputs", "in.bin", "--outputs", "out.bin", "--count", "4"], "a sample of this model has 481"),
        (["--inputs", "odd.bin", "--outputs", "out.bin"], "'odd.bin' has 100 bytes"),
        (["--inputs", "missing.bin", "--outputs", "out.bin"], "'missing.bin' cannot be read"),
        (["--inputs", "in.bin", "--outputs", "no/such/folder.bin"], "'no/such/folder.bin' cannot be written"),
        (["--inputs", "in.bin", "--outputs", "/dev/full/x"], "cannot be written"),
        (["--inputs", "in.bin", "--outputs", "out.bin", "--threads", "0"], "--threads must be from 1 to 64"),
        (["--inputs", "in.bin", "--outputs", "out.bin", "--repeat", "many"], "--repeat needs a whole number"),
        (["--inputs", "in.bin", "--outputs", "out.bin", "--repeat", "-1"], "--repeat needs a whole number"),
        (["--inputs", "in.bin", "--outputs", "out.bin", "--frobnicate", "1"], "unknown flag --frobnicate"),
        (["--inputs"], "--inputs needs a value"),
        (["--inputs", "in.bin", "--outputs", "out.bin", "second.so"], "'second.so' is one argument too many"),
    ],
)
def test_runner_refuses(tmp_path: Path, arguments: list[str], words: str) -> None:
    artifact = toy.link(find_toolchain(host_triple()), tmp_path / "toy.so")
    (tmp_path / "in.bin").write_bytes(bytes(481))
    (tmp_path / "odd.bin").write_bytes(bytes(100))
    runner = build_runtime(host_triple()).runner
    done = subprocess.run([runner, artifact, *arguments], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert words in done.stderr and done.stderr.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.bin", "odd.bin", "toy.so"]
