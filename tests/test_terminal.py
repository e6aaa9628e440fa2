"""What stands on a terminal and what does not: progress, colours, quiet, and completion of a shell."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.test_cli import call, results_of, sentence_of

PROGRAM = [sys.executable, "-c", "from edgec.cli import main; main()"]
ESCAPE = "\x1b["


def on_terminal(*arguments: object, **environment: str) -> tuple[str, str]:
    """What edgec prints on stdout, piped, and on stderr, a terminal."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [*PROGRAM, *map(str, arguments)], stdout=subprocess.PIPE, stderr=theirs, text=True,
        env={**os.environ, "TERM": "xterm-256color", "COLUMNS": "120", **environment},
    )  # fmt: skip
    os.close(theirs)
    shown = bytearray()
    while True:
        try:
            part = os.read(ours, 65536)
        except OSError:  # the other end is closed
            break
        if not part:
            break
        shown += part
    assert process.stdout is not None
    printed = process.stdout.read()
    assert process.wait(120) == 0, shown.decode()
    os.close(ours)
    return printed, shown.decode(errors="replace")


def test_progress_shows_the_time_left(tiny_artifact: Path, tiny_model: Path, tmp_path: Path) -> None:
    printed, shown = on_terminal("compile", tiny_model, "-o", tmp_path / "m.so", EDGEC_CACHE="off")
    assert ESCAPE in shown and "kernels" in shown and re.search(r"left\s+\S*\d\d:\d\d|left .*-:--", shown)
    assert ESCAPE not in printed and "arena" in printed


def test_quiet_prints_nothing_but_errors_and_json(tiny_model: Path, tmp_path: Path) -> None:
    printed, shown = on_terminal("--quiet", "compile", tiny_model, "-o", tmp_path / "m.so")
    assert printed == shown == "" and (tmp_path / "m.so").exists()
    assert "no target" in sentence_of("-q", "compile", tiny_model, "--target", "none")
    assert results_of("-q", "inspect", tmp_path / "m.so")["name"] == "tiny"
    assert "steps" in call("inspect", tmp_path / "m.so").stdout  # quiet was for that call alone


def test_no_colours_where_nobody_sees_them(tiny_artifact: Path) -> None:
    done = subprocess.run(
        [*PROGRAM, "inspect", tiny_artifact], capture_output=True, text=True, check=True,
        env={**os.environ, "TERM": "xterm-256color"},
    )  # fmt: skip
    assert ESCAPE not in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("edgec comp", {"compile"}),
        ("edgec compile --quan", {"--quantize"}),
        ("edgec explore --bud", {"--budget"}),
    ],
)
def test_shell_completes(words: str, expected: set[str]) -> None:
    environment = {**os.environ, "_EDGEC_COMPLETE": "complete_bash", "COMP_WORDS": words,
                   "COMP_CWORD": str(len(words.split()) - 1)}  # fmt: skip
    done = subprocess.run(PROGRAM, capture_output=True, text=True, env=environment, check=False)
    assert set(done.stdout.split()) == expected


def test_completion_script_is_for_edgec() -> None:
    environment = {**os.environ, "_EDGEC_COMPLETE": "source_bash"}
    done = subprocess.run(PROGRAM, capture_output=True, text=True, env=environment, check=False)
    assert "_EDGEC_COMPLETE=complete_bash" in done.stdout and "complete" in done.stdout
