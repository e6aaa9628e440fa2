"""libedgert built for many systems by one command: what is there, how large it is, what is said of the rest."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

import edgec
from edgec.building import toolchain
from edgec.building.prebuilt import build_all, variants
from edgec.building.toolchain import find_toolchain
from edgec.devices.cortex_m import HARNESS
from edgec.errors import EdgecError
from edgec.targets.target import load_target
from tests.android import PHONES

pytestmark = pytest.mark.skipif(not shutil.which("cmake"), reason="cmake is not installed")

SMALL = {"linux-aarch64": 64_000, "linux-armv7": 64_000}
"""Bytes that a stripped shared library may have."""


@pytest.fixture(scope="module")
def cortex_m4(tmp_path_factory) -> Path:
    if not shutil.which("arm-none-eabi-gcc"):
        pytest.skip("arm-none-eabi-gcc is not installed; .ci/install-tools does it")
    (built,) = build_all(tmp_path_factory.mktemp("built"), ["cortex-m4"])
    assert built.folder
    return built.folder


@pytest.mark.parametrize("name", SMALL)
def test_linux(tmp_path: Path, name: str) -> None:
    triple = next(variant.triple for variant in variants() if variant.name == name)
    if not shutil.which(f"{triple}-gcc"):
        pytest.skip(f"gcc-{triple} is not installed")
    (built,) = build_all(tmp_path, [name])
    assert built.folder and 0 < built.shared_bytes <= SMALL[name]
    files = ("lib/libedgert.a", "lib/cmake/edgert/edgertConfig.cmake", "lib/pkgconfig/edgert.pc", "bin/edgert-run")
    assert all((built.folder / file).exists() for file in (*files, "include/edgert/edgert.hpp"))


PROGRAM = """
#include <edgert/edgert.h>
#include "semihosting.h"
#define EDGERT_MODEL_H
#include "tiny.h"

static _Alignas(EDGERT_ALIGNMENT) uint8_t memory[16384];

int main(void) {
  edgert_options options = EDGERT_OPTIONS_DEFAULT;
  edgert_session *session = NULL;
  if (edgert_open_model(&tiny_model, &options, &session) != EDGERT_ERROR_ARENA) return 1;
  semihosting_print(edgert_last_error());
  options.memory = memory;
  options.memory_bytes = sizeof memory;
  if (edgert_open_model(&tiny_model, &options, &session) != EDGERT_OK) return 2;
  intptr_t in = semihosting_open("in.bin", SEMIHOSTING_READ_BINARY);
  if (!semihosting_read(in, edgert_input_data(session, 0), TINY_X_BYTES)) return 3;
  if (edgert_profile(session, 1) != EDGERT_OK || edgert_run(session) != EDGERT_OK) return 4;
  intptr_t out = semihosting_open("out.bin", SEMIHOSTING_WRITE_BINARY);
  if (!semihosting_write(out, edgert_output_data(session, 0), TINY_Y_BYTES)) return 5;
  semihosting_close(out);
  if (edgert_selftest(session, NULL) != EDGERT_OK) return 7;
  edgert_close(session);
  if (edgert_open("tiny.so", NULL, &session) != EDGERT_ERROR_LOAD) return 6;
  semihosting_print(edgert_last_error());
  return 0;
}
"""


def test_cortex_m_library_is_small_and_runs_a_linked_model(tmp_path: Path, cortex_m4: Path, tiny_model: Path) -> None:
    if not shutil.which("qemu-system-arm"):
        pytest.skip("qemu-system-arm is not installed; .ci/install-tools does it")
    x = np.random.default_rng(2).standard_normal((1, 3, 7, 5), np.float32)
    edgec.compile(tiny_model, "cortex-m4", tmp_path / "tiny.o", bundle_tests=[{"x": x}])
    (tmp_path / "main.c").write_text(PROGRAM)
    target, toolchain = load_target("cortex-m4"), find_toolchain("arm-none-eabi")
    flags = [
        *target.c_flags, f"-I{cortex_m4 / 'include'}", f"-I{HARNESS}", "-nostartfiles", "-Wl,--gc-sections",
        f"-L{HARNESS}", "-Tmps2.ld", "-lm",
    ]  # fmt: skip
    sources = [HARNESS / "start.c", tmp_path / "main.c", tmp_path / "tiny.o", cortex_m4 / "lib" / "libedgert.a"]
    image = toolchain.compile(sources, tmp_path / "image.elf", shared=False, flags=flags)
    (tmp_path / "in.bin").write_bytes(x.tobytes())
    machine = ["-M", "mps2-an386", "-display", "none", "-monitor", "none", "-serial", "none"]
    command = ["qemu-system-arm", *machine, "-semihosting-config", "enable=on,target=native", "-kernel", image]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done
    said = done.stdout + done.stderr
    assert "'tiny' needs" in said and "without a heap" in said and "cannot open 'tiny.so'" in said
    with edgec.load(edgec.compile(tiny_model, "host", tmp_path / "tiny.so").path) as session:
        wanted = session.run({"x": x})["y"]
    found = np.fromfile(tmp_path / "out.bin", np.float32).reshape(wanted.shape)
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5 * np.ptp(wanted))


def test_cortex_m_library_fits(cortex_m4: Path) -> None:
    """All of it, though a linker leaves out what a program does not call."""
    toolchain = find_toolchain("arm-none-eabi")
    lines = toolchain.run_tool("size", "--totals", cortex_m4 / "lib" / "libedgert.a").splitlines()
    text, data, bss = map(int, lines[-1].split()[:3])
    assert text + data <= 16_384 and bss <= 512


def test_a_system_without_a_compiler_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ANDROID_NDK_HOME", raising=False)
    monkeypatch.setattr(toolchain, "ZIG_TARGETS", {})
    built = build_all(tmp_path, ["android-x86_64", "linux-x86_64"]) if shutil.which("cc") else []
    assert "set ANDROID_NDK_HOME to an NDK" in built[0].missing and built[0].folder is None
    with pytest.raises(EdgecError, match=r"libedgert was built for no system: .* set ANDROID_NDK_HOME"):
        build_all(tmp_path, ["android-armeabi-v7a"])


def test_the_ndks_compiler_is_found(tmp_path: Path, monkeypatch) -> None:
    tools = tmp_path / "toolchains" / "llvm" / "prebuilt" / "linux-x86_64" / "bin"
    tools.mkdir(parents=True)
    (tools / "x86_64-linux-android24-clang").write_text("#!/bin/sh\n")
    monkeypatch.setenv("ANDROID_NDK_HOME", str(tmp_path))
    found = find_toolchain("x86_64-linux-android")
    assert found.cc == (str(tools / "x86_64-linux-android24-clang"),) and not found.freestanding
    with pytest.raises(EdgecError, match=r"where there is no toolchains/llvm/.*aarch64-linux-android24-clang"):
        find_toolchain("aarch64-linux-android")


@pytest.mark.parametrize("abi", [phone.abi for phone in PHONES])
def test_android_without_the_ndk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, abi: str) -> None:
    if importlib.util.find_spec("ziglang") is None or shutil.which("readelf") is None:
        pytest.skip("ziglang or readelf is not installed")
    monkeypatch.delenv("ANDROID_NDK_HOME", raising=False)
    (built,) = build_all(tmp_path, [f"android-{abi}"])
    assert built.folder and 0 < built.shared_bytes <= 64_000
    for file in ("lib/libedgert.so", "bin/edgert-run"):
        command = ["readelf", "-dW", built.folder / file]
        listing = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        assert all(f"[{name}]" in listing for name in ("libc.so", "libdl.so"))


def test_unknown_systems(tmp_path: Path) -> None:
    with pytest.raises(EdgecError, match=r"there is no libedgert for 'amiga'; there is one for linux-x86_64, "):
        build_all(tmp_path, ["amiga"])
