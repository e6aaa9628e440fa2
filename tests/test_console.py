"""Tables for people: within the terminal, words and numbers whole, and all of it where there is no terminal."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
from rich.console import Console

from edgec.terminal import console
from edgec.terminal.console import print_table, short_number

Show = Callable[..., list[str]]
NAME = "/model.22/branches.0/branches.0.0/Conv"


@pytest.fixture
def show(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Show:
    """Prints a table in a terminal of some width; its lines."""

    def printed(
        width: int, header: Sequence[str], rows: Sequence[Sequence[object]], spare: Sequence[str] = ()
    ) -> list[str]:
        monkeypatch.setattr(console, "stdout", lambda: Console(width=width, highlight=False))
        print_table("title", header, rows, spare)
        return [line.rstrip() for line in capsys.readouterr().out.splitlines() if line.strip()]

    return printed


def test_wide_terminal_leaves_all_on_one_line(show: Show) -> None:
    lines = show(120, ("layer", "up to here dB", "range"), [(NAME, 47.81, "0 … 255")], ("range",))
    assert lines[0] == "title" and len(lines) == 4
    assert lines[1].split("   ")[-1] == "range" and lines[3] == f" {NAME}           47.81   0 … 255"


def test_headings_wrap_before_names_do(show: Show) -> None:
    lines = show(52, ("layer", "what it loses, dB"), [(NAME, 47.81)])
    assert max(map(len, lines)) <= 52
    assert lines[-1] == f" {NAME}       47.81" and [line.split()[-1] for line in lines[1:3]] == ["it", "dB"]


def test_names_break_behind_slashes_and_dots(show: Show) -> None:
    lines = show(60, ("layer", "operator", "µs"), [(NAME, "GlobalAveragePool", 1234567)])
    assert max(map(len, lines)) <= 60
    rows = lines[3:]
    assert "GlobalAveragePool" in rows[0] and rows[0].endswith("1,234,567")
    pieces = [line.split()[0] for line in rows]
    assert "".join(pieces) == NAME and all(piece[-1] in "/." for piece in pieces[:-1])


def test_words_longer_than_their_column_are_cut_into_whole_rows(show: Show) -> None:
    lines = show(30, ("name", "n"), [("a" * 45, 1), ("b", 2)])
    assert max(map(len, lines)) <= 30 and sum(line.count("a") for line in lines[3:]) == 45
    assert len(lines) == 6


def test_spare_columns_go_in_order_and_are_named(show: Show) -> None:
    header, row = ("layer", "range", "clipped %", "µs"), (NAME, "-1000000 … 1000000", 0.125, 123456)
    lines = show(44, header, [row], ("clipped %", "range"))
    assert max(map(len, lines[:-1])) <= 44
    assert lines[-1] == "no room for clipped %: in a wider terminal, and in --json"
    assert show(30, header, [row], ("clipped %", "range"))[-1].startswith("no room for range, clipped %:")


def test_changes_stay_on_one_line(show: Show) -> None:
    lines = show(44, ("pass", "MACs", "note"), [("fold", "595k → 537k", "some words that have to be wrapped")])
    assert any("595k → 537k" in line for line in lines)


@pytest.mark.parametrize("value, text", [
    (0, "0"), (999, "999"), (1000, "1.00k"), (9_999, "10.0k"), (64_698, "64.7k"), (99_960, "100k"), (999_999, "1.00M"),
    (300_775_552, "301M"), (-64_698, "-64.7k"),
])  # fmt: skip
def test_short_numbers(value: int, text: str) -> None:
    assert short_number(value) == text
