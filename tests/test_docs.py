"""Every code block of the documentation runs, and prints what stands under it."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from edgec.cli import app
from tests.docs import DOCS, ROOT, blocks, chdir, commands, pages, pattern, prepare, run_command, squeezed

KINDS = {"console", "python", "toml", "c", "text"}
LINK = re.compile(r"\[[^]]*\]\(([^)#\s]+)(?:#[^)]*)?\)")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("docs")
    prepare(folder)
    return folder


@pytest.fixture
def folder(prepared: Path, tmp_path: Path) -> Iterator[Path]:
    copied = tmp_path / "page"
    shutil.copytree(prepared, copied)
    with chdir(copied):
        yield copied


TOOLS = {"targets/microcontrollers.md": "arm-none-eabi-gcc"}
"""What a page's commands need that pip does not bring."""


@pytest.mark.parametrize("page", pages(), ids=lambda page: str(page.relative_to(DOCS)))
def test_page(page: Path, folder: Path) -> None:
    tool = TOOLS.get(str(page.relative_to(DOCS)))
    if tool and shutil.which(tool) is None:
        pytest.skip(f"{tool} is not installed; .ci/install-tools does it")
    names: dict[str, Any] = {"__name__": "docs"}
    for block in blocks(page):
        assert block.kind in KINDS, block
        if block.file:
            (folder / block.file).write_text(block.text, encoding="utf-8")
        if block.kind == "python":
            exec(compile(block.text, str(page), "exec"), names)
        for command in commands(block) if block.kind == "console" else ():
            found = squeezed(run_command(command.line, folder))
            assert pattern(command.output).fullmatch(found), f"$ {command.line}\n{found}"


def test_every_fence_belongs_to_a_block() -> None:
    """An indented or unclosed fence would not be run."""
    for page in pages():
        assert page.read_text(encoding="utf-8").count("```") == 2 * len(blocks(page)), page


def test_links_lead_somewhere() -> None:
    for page in [*pages(), ROOT / "README.md"]:
        for link in LINK.findall(page.read_text(encoding="utf-8")):
            if "://" not in link:
                assert (page.parent / link).exists(), f"{page}: {link}"


def test_every_command_is_shown_on_a_page() -> None:
    """Every command runs in a block, and pages are called after commands."""
    names = {info.name or info.callback.__name__ for info in app.registered_commands if info.callback}
    folder = DOCS / "commands"
    shown = {
        command.line.split()[1]
        for page in folder.glob("*.md")
        for block in blocks(page)
        for command in (commands(block) if block.kind == "console" else ())
        if command.line.startswith("edgec ")
    }
    assert names <= shown, names - shown
    assert {page.stem for page in folder.glob("*.md")} <= names


def test_every_error_of_the_catalogue_stands_in_the_sources() -> None:
    """The headings of the catalogue are the sentences; a name in angle brackets stands for what varies."""
    sources = "".join(
        path.read_text(encoding="utf-8")
        for folder in ("edgec", "passes", "targets", "runtimes")
        for path in (ROOT / folder).rglob("*.py")
    )
    # sentences are broken over lines and have their parts in braces there
    flat = re.sub(r'"\s*\n\s*f?"', "", sources)
    headings = re.findall(r"^## (.+)$", (DOCS / "errors.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert len(headings) >= 20
    for heading in headings:
        parts = [part for part in re.split(r"<[^>]+>", heading.strip("`")) if len(part.strip()) > 3]
        assert parts and all(part in flat for part in parts), heading
