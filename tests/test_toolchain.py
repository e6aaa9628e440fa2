"""Finding C compilers, running them, and building libedgert with them."""

from __future__ import annotations

import ctypes
import importlib.util
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from edgec.building import toolchain
from edgec.building.toolchain import Toolchain, find_toolchain, host_triple
from edgec.errors import EdgecError
from edgec.runtimes import build
from tests import toy

AARCH64 = "aarch64-linux-gnu"

needs_zig = pytest.mark.skipif(importlib.util.find_spec("ziglang") is None, reason="ziglang is not installed")
needs_readelf = pytest.mark.skipif(not shutil.which("readelf"), reason="readelf (binutils) is not installed")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "answer.c"
    path.write_text("int answer(void) { return 42; }\n")
    return path


@pytest.fixture
def no_compilers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/no/such/folder")


@pytest.fixture
def no_zig(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(toolchain.importlib.util, "find_spec", lambda name: None)


def script(path: Path, text: str) -> Path:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


def test_host_compiler(source: Path, tmp_path: Path) -> None:
    found = find_toolchain(host_triple())
    library = found.compile([source], tmp_path / "answer.so")
    assert ctypes.CDLL(str(library)).answer() == 42
    assert found.version


def test_objects_archives_and_executables(source: Path, tmp_path: Path) -> None:
    found = find_toolchain(host_triple())
    archive = found.archive([source], tmp_path / "libanswer.a")
    main = tmp_path / "main.c"
    main.write_text("int answer(void);\nint main(void) { return answer(); }\n")
    program = found.compile([main, archive], tmp_path / "program", shared=False, flags=["-s"])
    assert subprocess.run([program], check=False).returncode == 42


def test_environment_comes_first(monkeypatch: pytest.MonkeyPatch, source: Path, tmp_path: Path) -> None:
    compiler = find_toolchain(host_triple()).cc[0]
    monkeypatch.setenv(f"EDGEC_CC_{host_triple().replace('-', '_')}", f"{compiler} -Danswer=other")
    found = find_toolchain(host_triple())
    assert found.cc == (compiler, "-Danswer=other")
    library = ctypes.CDLL(str(found.compile([source], tmp_path / "other.so")))
    assert library.other() == 42


def test_environment_names_no_program(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEC_CC_aarch64_linux_gnu", "no-such-cc -O3")
    with pytest.raises(EdgecError, match="EDGEC_CC_aarch64_linux_gnu names 'no-such-cc', which is no program"):
        find_toolchain(AARCH64)


@pytest.mark.usefixtures("no_compilers", "no_zig")
def test_no_compiler() -> None:
    with pytest.raises(EdgecError, match=r"no C compiler for .* was found; run: apt-get install gcc.* ziglang"):
        find_toolchain(host_triple())
    with pytest.raises(EdgecError, match="apt-get install gcc-arm-linux-gnueabihf or run: pip install ziglang"):
        find_toolchain("arm-linux-gnueabihf")


@pytest.mark.usefixtures("no_compilers")
def test_unknown_triple() -> None:
    with pytest.raises(EdgecError, match="for mips-linux-gnu was found; set EDGEC_CC_mips_linux_gnu to one"):
        find_toolchain("mips-linux-gnu")


@needs_zig
@pytest.mark.usefixtures("no_compilers")
def test_zig_is_the_last_resort() -> None:
    found = find_toolchain(AARCH64)
    assert found.cc == (sys.executable, "-m", "ziglang", "cc", "-target", "aarch64-linux-gnu.2.28")
    assert found.ar[-1] == "ar"


def test_compiler_error(tmp_path: Path) -> None:
    source = tmp_path / "broken.c"
    source.write_text("int answer(void) { return unknown_name; }\n")
    with pytest.raises(EdgecError, match=r"the C compiler for .* failed[\s\S]*unknown_name"):
        find_toolchain(host_triple()).compile([source], tmp_path / "broken.so")


def test_full_disk(source: Path, tmp_path: Path) -> None:
    compiler = script(tmp_path / "cc", "echo 'cc: error writing to answer.s: No space left on device' >&2; exit 1")
    with pytest.raises(EdgecError, match="the disk is full"):
        Toolchain(host_triple(), (str(compiler),), ("ar",)).compile([source], tmp_path / "answer.so")


def test_silent_failure(source: Path, tmp_path: Path) -> None:
    compiler = script(tmp_path / "cc", "exit 7")
    with pytest.raises(EdgecError, match="exit code 7, without a message"):
        Toolchain(host_triple(), (str(compiler),), ("ar",)).compile([source], tmp_path / "answer.so")


def test_compiler_that_cannot_start(source: Path, tmp_path: Path) -> None:
    compiler = tmp_path / "cc"
    compiler.write_bytes(b"\x7fELF broken")
    compiler.chmod(0o755)
    with pytest.raises(EdgecError, match="cannot be started: Exec format error"):
        Toolchain(host_triple(), (str(compiler),), ("ar",)).compile([source], tmp_path / "answer.so")


def needed(library: Path) -> list[str]:
    lines = subprocess.run(["readelf", "-dW", library], capture_output=True, text=True, check=True).stdout
    return sorted(line.split("[")[1].rstrip("]") for line in lines.splitlines() if "(NEEDED)" in line)


def load_alignment(library: Path) -> set[str]:
    lines = subprocess.run(["readelf", "-lW", library], capture_output=True, text=True, check=True).stdout
    return {line.split()[-1] for line in lines.splitlines() if line.strip().startswith("LOAD")}


@needs_zig
@needs_readelf
def test_android(tmp_path: Path) -> None:
    """Without Android's own libraries: the artifact names libc and libm, and fits 16 KiB pages."""
    source = tmp_path / "exp.c"
    source.write_text("float expf(float);\nfloat answer(float x) { return expf(x) + 1; }\n")
    found = find_toolchain("aarch64-linux-android")
    library = found.compile([source], tmp_path / "answer.so", flags=["-s", "-lm"])
    assert needed(library) == ["libc.so", "libm.so"]
    assert load_alignment(library) == {"0x4000"}


@needs_zig
@needs_readelf
@pytest.mark.skipif(not shutil.which("qemu-aarch64"), reason="qemu-aarch64 is not installed")
@pytest.mark.skipif(not Path("/usr/aarch64-linux-gnu/lib").is_dir(), reason="libc6-arm64-cross is not installed")
@pytest.mark.parametrize("triple", [AARCH64, "aarch64-linux-android"])
def test_zig_builds_what_aarch64_runs(tmp_path: Path, triple: str) -> None:
    """The artifact for Android goes through glibc's loader here, with glibc under Android's library names."""
    system = Path("/usr/aarch64-linux-gnu/lib")
    for name in ("libc", "libm"):
        (tmp_path / f"{name}.so").symlink_to(system / f"{name}.so.6")
    found = toolchain._from_zig(triple)
    assert found is not None
    artifact = toy.link(found, tmp_path / "toy.so")
    sample = toy.sample()
    (tmp_path / "in.bin").write_bytes(sample["x"].tobytes() + sample["q"].tobytes())
    runner = build.build_runtime(AARCH64).runner
    qemu = ["qemu-aarch64", "-L", "/usr/aarch64-linux-gnu", "-E", f"LD_LIBRARY_PATH={tmp_path}"]
    files = ["--inputs", tmp_path / "in.bin", "--outputs", tmp_path / "out.bin"]
    subprocess.run([*qemu, runner, artifact, *files], check=True)
    wanted = toy.expected(sample)
    assert (tmp_path / "out.bin").read_bytes() == wanted["y"].tobytes() + wanted["sum"].tobytes()


def test_runtime_is_cached(tmp_path: Path) -> None:
    first = build.build_runtime(host_triple(), cache_dir=tmp_path)
    written = first.shared.stat().st_mtime_ns
    build._build_once.cache_clear()
    assert build.build_runtime(host_triple(), cache_dir=tmp_path) == first
    assert first.shared.stat().st_mtime_ns == written
    assert (first.include / "edgert" / "edgert.h").is_file()
    assert first.static.is_file() and first.runner.is_file()
    assert len(list((tmp_path / "runtime").iterdir())) == 1


def test_cache_follows_the_sources(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    copy = tmp_path / "c"
    shutil.copytree(build.SOURCE_FOLDER, copy)
    found = find_toolchain(host_triple())
    before = build._key(found)
    monkeypatch.setattr(build, "SOURCE_FOLDER", copy)
    assert build._key(found) == before
    with (copy / "src" / "error.c").open("a") as file:
        file.write("/* changed */\n")
    assert build._key(found) != before


def test_concurrent_builds(tmp_path: Path) -> None:
    """Several builders of one folder: all succeed, and nothing but the folder is left."""
    folder = tmp_path / "runtime"
    found = find_toolchain(host_triple())
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: build._build_beside(found, folder / "one"), range(4)))
    assert [path.name for path in folder.iterdir()] == ["one"]
    assert ctypes.CDLL(str(folder / "one" / "libedgert.so")).edgert_version


def test_failed_build_leaves_nothing(tmp_path: Path) -> None:
    compiler = script(tmp_path / "cc", "exit 7")
    broken = Toolchain(host_triple(), (str(compiler),), ("ar",))
    with pytest.raises(EdgecError):
        build._build_beside(broken, tmp_path / "cache" / "one")
    assert list((tmp_path / "cache").iterdir()) == []


def test_unwritable_cache(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(EdgecError, match=r"cannot be written to .*; set EDGEC_CACHE_DIR"):
        build.build_runtime(host_triple(), cache_dir=tmp_path / "file")


def test_cache_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("EDGEC_CACHE_DIR", str(tmp_path))
    assert build.cache_folder() == tmp_path
    monkeypatch.delenv("EDGEC_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert build.cache_folder() == tmp_path / "edgec"
