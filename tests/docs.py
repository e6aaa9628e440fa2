"""Runs the code blocks of ``docs/``: ``python -m tests.docs --write PAGE ...`` puts what the commands print under them.

In a ``console`` block a line that begins with ``$`` is a command and what follows is its output. Numbers and spaces in
it stand for any others, ``…`` inside a line for any text, and ``…`` alone for any lines; the plan in a kernel's name,
and triple, processor and features of the host, for those of another machine. ``python`` blocks run, those of a page one
after the other with the same names. A ``toml`` or ``c`` block whose page says ``<!-- file: NAME -->`` before it is
written to that file. Every page runs in a folder of its own, with the sample model and its data, and what the quick
start makes of them.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from typer.testing import CliRunner

from edgec.cli import app

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
SAMPLES = {
    "digits.onnx": "digits_repvgg.onnx", "calib.npz": "digits_calib.npz", "eval.npz": "digits_eval.npz",
    "bytes_lm.onnx": "bytes_lm.onnx",
}  # fmt: skip
"""What stands in the folder of every page, by the files' names in ``samples/models``."""
QUICK_START = (
    "edgec compile digits.onnx -o digits.so",
    "edgec compile digits.onnx --quantize int8 --calib calib.npz --eval eval.npz --max-drop 0.5 -o digits_int8.so",
)
"""What stands there, too: the artifacts of the quick start, compiled by these."""

BLOCK = re.compile(
    r"(?:<!-- file: (?P<file>\S+) -->\n)?^```(?P<kind>\w*)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL
)
ELLIPSIS = "…"
_PLAN = r"__\w+"
_HOST = r"\w+-linux-gnu, [^)]*"
_NUMBER = r"[-+]?\d[\d,]*(?:\.\d+)?(?:e[-+]\d+)?"


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, its text, and the file that it is written to."""

    kind: str
    text: str
    file: str | None


@dataclass(frozen=True)
class Command:
    """A command of a console block and the output under it."""

    line: str
    output: str


@contextmanager
def chdir(folder: Path) -> Iterator[None]:
    """Work in ``folder`` while the block runs."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def pages() -> list[Path]:
    """All pages, the README of the project among them no more than its links."""
    return sorted(DOCS.rglob("*.md"))


def blocks(page: Path) -> list[Block]:
    """The fenced blocks of a page."""
    return [Block(m["kind"], m["text"], m["file"]) for m in BLOCK.finditer(page.read_text(encoding="utf-8"))]


def commands(block: Block) -> Iterator[Command]:
    """The commands of a console block; a line that ends in a backslash goes on."""
    parts = re.split(r"^\$ ", block.text, flags=re.MULTILINE)[1:]
    for part in parts:
        lines = part.splitlines()
        count = 1
        while lines[count - 1].endswith("\\"):
            count += 1
        yield Command("\n".join(lines[:count]), "\n".join(lines[count:]).strip("\n"))


def prepare(folder: Path) -> None:
    """Fill ``folder`` with the samples and what the quick start makes of them."""
    for name, source in SAMPLES.items():
        shutil.copy(ROOT / "samples" / "models" / source, folder / name)
    for line in QUICK_START:
        run_command(line, folder)


def run_command(line: str, folder: Path) -> str:
    """What a command prints; edgec runs in this process, anything else in a shell."""
    text = re.sub(r"\\\n\s*", "", line)
    with chdir(folder):
        if text.startswith("edgec ") and not re.search(r"[|&;<>$]", text):
            result = CliRunner().invoke(app, shlex.split(text)[1:], prog_name="edgec", catch_exceptions=False)
            return result.output.strip("\n")
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        done = subprocess.run(
            ["bash", "-c", text], env={**os.environ, "PATH": path}, capture_output=True, text=True, check=False
        )
        return (done.stdout + done.stderr).strip("\n")


def pattern(expected: str) -> re.Pattern[str]:
    """What an output must match."""
    lines = [_line(line) for line in expected.splitlines() if line.strip()]
    return re.compile("".join(lines))


def _line(line: str) -> str:
    if line.strip() == ELLIPSIS:
        return r"(?:.*\n)*?"
    pieces = re.split(rf"({_PLAN}|{_HOST}|{_NUMBER}|{ELLIPSIS}|─+|\s+)", line.rstrip())
    return "".join(_piece(piece) for piece in pieces if piece) + r"\n"


def _piece(piece: str) -> str:
    if piece == ELLIPSIS:
        return ".*"
    for anything in (_PLAN, _HOST, _NUMBER):
        if re.fullmatch(anything, piece):
            return anything
    if piece.isspace():
        return r"\s*"
    return "─+" if set(piece) == {"─"} else re.escape(piece)


def squeezed(output: str) -> str:
    """An output without empty lines and spaces at line ends; every line has an end."""
    return "".join(f"{line.rstrip()}\n" for line in output.splitlines() if line.strip())


def write_outputs(page: Path, folder: Path) -> None:
    """Put into the page what its commands print in ``folder``; an output with an ellipsis stays as it is."""

    def filled(match: re.Match[str]) -> str:
        block = Block(match["kind"], match["text"], match["file"])
        if block.file:
            (folder / block.file).write_text(block.text, encoding="utf-8")
        if block.kind != "console":
            return match[0]
        parts = []
        for command in commands(block):
            output = squeezed(run_command(command.line, folder)).rstrip("\n")
            kept = command.output if ELLIPSIS in command.output else output
            parts.append(f"$ {command.line}\n{kept}\n" if kept else f"$ {command.line}\n")
        return match[0].replace(block.text, "".join(parts))

    page.write_text(BLOCK.sub(filled, page.read_text(encoding="utf-8")), encoding="utf-8")


def main() -> None:
    """Write the outputs of some pages, or of all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", nargs="*", type=Path, required=True, metavar="PAGE")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="edgec-docs-") as name:
        prepared = Path(name) / "prepared"
        prepared.mkdir()
        prepare(prepared)
        for index, page in enumerate(arguments.write or pages()):
            folder = Path(name) / str(index)
            shutil.copytree(prepared, folder)
            write_outputs(page, folder)
            print(page)


if __name__ == "__main__":
    main()
