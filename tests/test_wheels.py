"""The wheel ``edgert``: installed without edgec, here and in an emulated Python of another machine."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

import edgec
from edgec.building.wheels import TRIPLES, build_wheel
from edgec.errors import EdgecError

PROGRAM = """
import sys
sys.path[:0] = {paths!r}
try:
    import edgec
except ImportError:
    import numpy as np, edgert
    x = np.load("x.npy")
    with edgert.load({artifact!r}, threads=2) as session:
        np.save("y.npy", session.run({{"x": x}})["y"])
        assert session.inputs[0].shape == x.shape
    try:
        edgert.load("missing.so")
    except edgert.EdgecError as error:
        assert "'missing.so' cannot be read" in str(error)
        print("done")
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with an input."""
    np.save(tmp_path / "x.npy", np.random.default_rng(0).standard_normal((1, 3, 7, 5), np.float32))
    return tmp_path


def wanted(artifact: Path, folder: Path) -> np.ndarray:
    with edgec.load(artifact) as session:
        return session.run({"x": np.load(folder / "x.npy")})["y"]


def test_without_edgec(folder: Path, tiny_artifact: Path) -> None:
    machine = os.uname().machine
    wheel = build_wheel(machine, folder / "wheels")
    assert wheel.stat().st_size < 100_000
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", folder / "site"]
    subprocess.run([*pip, wheel], check=True)
    paths = [str(folder / "site"), str(Path(np.__file__).parent.parent)]
    program = PROGRAM.format(paths=paths, artifact=str(tiny_artifact))
    # -S: without site-packages, whose finders would find edgec
    command = [sys.executable, "-I", "-S", "-c", program]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "done", done.stderr
    np.testing.assert_array_equal(np.load(folder / "y.npy"), wanted(tiny_artifact, folder))


@pytest.mark.parametrize("machine", TRIPLES)
def test_the_same_binding_is_in_both(tmp_path: Path, machine: str) -> None:
    if machine != os.uname().machine and not shutil.which(f"{TRIPLES[machine]}-gcc"):
        pytest.skip(f"gcc-{TRIPLES[machine]} is not installed")
    with zipfile.ZipFile(build_wheel(machine, tmp_path)) as archive:
        own = Path(edgec.__file__).parent.parent / "runtimes" / "python" / "session.py"
        assert archive.read("edgert/session.py") == own.read_bytes()
        assert archive.read("edgert/libedgert.so")[:4] == b"\x7fELF"


def test_other_machines(tmp_path: Path) -> None:
    with pytest.raises(EdgecError, match="there is no wheel for 'riscv64'; there is one for x86_64 and aarch64"):
        build_wheel("riscv64", tmp_path)


@pytest.mark.heavy
def test_in_an_emulated_aarch64_python(emulator, folder: Path, tiny_board_artifact: Path, tiny_artifact: Path) -> None:
    """Debian's Python for aarch64 and numpy's wheel, both fetched."""
    if not shutil.which("mmdebstrap"):
        pytest.skip("mmdebstrap is not installed")
    root, site = folder / "root", folder / "site"
    packages = "python3,python3-minimal,libpython3-stdlib,libstdc++6,libgomp1,zlib1g"
    subprocess.run(
        ["mmdebstrap", "--variant=extract", "--architectures=arm64", f"--include={packages}", "bookworm", root],
        check=True, capture_output=True,
    )  # fmt: skip
    platforms = [f"--platform=manylinux_2_{minor}_aarch64" for minor in (17, 27, 28)]
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", site, "--only-binary=:all:"]
    subprocess.run([*pip, *platforms, "--python-version=3.11", "numpy"], check=True)
    with zipfile.ZipFile(build_wheel("aarch64", folder)) as wheel:
        wheel.extractall(site)
    program = PROGRAM.format(paths=[str(site)], artifact=str(tiny_board_artifact))
    command = ["qemu-aarch64", "-cpu", "cortex-a72", "-L", root, root / "usr" / "bin" / "python3.11", "-c", program]
    environment = {"PYTHONHOME": str(root / "usr"), "PATH": os.environ["PATH"]}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "done", done.stderr
    expected = wanted(tiny_artifact, folder)
    np.testing.assert_allclose(np.load(folder / "y.npy"), expected, rtol=0, atol=1e-5 * np.ptp(expected))
