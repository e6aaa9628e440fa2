"""The runtime over a long time: no growth, the same bits, and no races between sessions."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

import edgec
from tests.programs import with_library


def soak(folder: Path, artifact: Path, runs: int, openings: int, *flags: str) -> str:
    """Build the program with the library's sources, and run it."""
    program = with_library("soak", folder, *flags)
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


@pytest.mark.heavy
def test_no_races_for_long(tmp_path: Path, sample_model: Path) -> None:
    """A million runs, and ten thousand on each of four threads side by side."""
    artifact = edgec.compile(sample_model, "host", tmp_path / "digits.so").path
    print(soak(tmp_path, artifact, 1_000_000, 1_000, "-fsanitize=thread"))
