"""The runtime over a long time: no growth, the same bits, and no races between sessions."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

import edgec
from edgec.runtimes.build import SOURCE_FOLDER


def soak(folder: Path, artifact: Path, runs: int, openings: int, *flags: str) -> str:
    """Build the program with the library's sources, and run it."""
    program = folder / "soak"
    sources = [SOURCE_FOLDER / "tests" / "soak.c", *sorted((SOURCE_FOLDER / "src").glob("*.c"))]
    options = ["-std=c11", "-O2", "-g", "-D_GNU_SOURCE", *flags, f"-I{SOURCE_FOLDER / 'include'}"]
    command = ["cc", *options, *sources, "-o", program, "-lpthread", "-ldl"]
    built = subprocess.run(command, capture_output=True, text=True, check=False)
    if "-fsanitize=thread" in flags and built.returncode:
        pytest.skip("this C compiler has no -fsanitize=thread")
    assert built.returncode == 0, built.stderr
    command = [program, artifact, str(runs), str(openings)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "WARNING" not in done.stderr
    return done.stdout


def test_briefly(tmp_path: Path, tiny_artifact: Path) -> None:
    soak(tmp_path, tiny_artifact, 20_000, 300)


def test_no_races(tmp_path: Path, tiny_artifact: Path) -> None:
    soak(tmp_path, tiny_artifact, 5_000, 20, "-fsanitize=thread")


@pytest.mark.heavy
def test_a_million_runs_and_ten_thousand_openings(tmp_path: Path, sample_model: Path) -> None:
    artifact = edgec.compile(sample_model, "host", tmp_path / "digits.so").path
    print(soak(tmp_path, artifact, 1_000_000, 10_000))
