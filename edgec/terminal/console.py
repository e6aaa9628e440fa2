"""What the commands print: tables for people on stdout, JSON for scripts, progress and errors on stderr."""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, is_dataclass
from typing import TYPE_CHECKING, Any

from edgec.errors import EdgecError

if TYPE_CHECKING:
    from rich.console import Console

    from edgec.devices.device import Progress

_PIPED_WIDTH = 240
"""Columns where there is no terminal: nothing that a script may search for is wrapped."""


_quiet = False


def be_quiet(quiet: bool) -> None:
    """Whether tables, texts and progress are left out from now on; errors and JSON are not."""
    global _quiet
    _quiet = quiet


def stdout() -> Console:
    """The console for results; without colours where it is piped."""
    from rich.console import Console

    return Console(quiet=_quiet, width=None if sys.stdout.isatty() else _PIPED_WIDTH, highlight=False)


def print_error(message: str) -> None:
    """Print the sentence that an error is, unwrapped, on stderr."""
    from rich.console import Console
    from rich.text import Text

    Console(stderr=True, highlight=False).print(Text("error: ", "bold red") + Text(message), soft_wrap=True)


def print_text(text: str) -> None:
    """Print lines as they are."""
    stdout().print(text, markup=False, soft_wrap=True)


def print_json(value: Any) -> None:
    """Print plain data or dataclasses as JSON; what is no finite number becomes null."""
    print(json.dumps(plain(value), indent=1))


def plain(value: Any) -> Any:
    """``value`` as JSON has it: dataclasses and mappings as objects, sequences as lists, NaN as None."""
    if is_dataclass(value) and not isinstance(value, type):
        return plain(asdict(value))
    if isinstance(value, Mapping):
        return {str(key): plain(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(each) for each in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if value is None or isinstance(value, (str, int, float)) else str(value)


def print_table(
    title: str, header: Sequence[str], rows: Iterable[Sequence[object]], spare: Collection[str] = ()
) -> None:
    """Print a table; columns of numbers are aligned to the right. Nothing is printed without rows.

    Where it is wider than the terminal, headings are wrapped between words and long texts behind ``/`` and ``.``.

    Args:
        title: stands above it.
        header: the columns' headings.
        rows: a cell for each column.
        spare: headings of columns that are left out, the first one first, while there is no room for all.
    """
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    cells = list(rows)
    if not cells:
        return
    columns = [_Column.of(name, [row[index] for row in cells]) for index, name in enumerate(header)]
    console = stdout()
    gap = _GAP if _width(columns, _GAP) <= console.width else _NARROW_GAP
    left_out = [name for name in spare if name in header]
    kept = list(columns)
    while left_out and _width(kept, gap, least=True) > console.width:
        kept = [column for column in kept if column.name != left_out[0]]
        left_out.pop(0)
    missing = [column.name for column in columns if column not in kept]
    _narrow(kept, gap, console.width)
    table = Table(box=SIMPLE_HEAD, pad_edge=False, show_header=any(header), padding=(0, gap - 1, 0, 0))
    for column in kept:
        table.add_column(
            column.name, justify="right" if column.numeric else "left", overflow="fold", width=column.width
        )
    for row in zip(*(column.lines() for column in kept), strict=True):
        table.add_row(*map(Text, row))
    console.print(Text(title, "bold"), soft_wrap=True)
    console.print(table)
    if missing:
        print_text(f"no room for {', '.join(missing)}: in a wider terminal, and in --json")


_GAP, _NARROW_GAP = 3, 2
"""Columns between two of a table's, and where it is too wide."""

_LONGEST_WORD = 20
"""Characters of a text that are kept on one line, if need be at the cost of another column."""

_BETWEEN_WORDS = re.compile(r"(?<!→) (?!→)")


@dataclass
class _Column:
    """A table's column: its cells as text, and how wide it is to be."""

    name: str
    cells: list[str]
    numeric: bool
    width: int

    @classmethod
    def of(cls, name: str, values: Sequence[object]) -> _Column:
        """As wide as its widest cell."""
        cells = [cell_text(value) for value in values]
        numeric = all(value is None or isinstance(value, (int, float)) for value in values)
        return cls(name, cells, numeric, max(map(len, [name, *cells])))

    @property
    def widest(self) -> int:
        """The widest cell's width."""
        return max(map(len, self.cells))

    @property
    def least(self) -> int:
        """The width that it must have: of a number, or of a word."""
        cells = self.widest if self.numeric else min(_LONGEST_WORD, max(map(_longest_word, self.cells)))
        return max(cells, _longest_word(self.name))

    def lines(self) -> list[str]:
        """The cells, broken where they are too long."""
        return self.cells if self.numeric else [_broken(cell, self.width) for cell in self.cells]


def _longest_word(text: str) -> int:
    return max(map(len, _BETWEEN_WORDS.split(text)))


def _width(columns: Sequence[_Column], gap: int, *, least: bool = False) -> int:
    """What a table takes, a blank at both ends."""
    return sum(each.least if least else each.width for each in columns) + gap * (len(columns) - 1) + 2


def _narrow(columns: Sequence[_Column], gap: int, room: int) -> None:
    """Take what is missing from headings that are wider than what they stand above, then from the widest texts."""
    while _width(columns, gap) > room:
        able = [column for column in columns if column.width > column.least]
        if not able:
            break
        max(able, key=lambda column: (column.width > column.widest, column.width)).width -= 1


def _broken(text: str, width: int) -> str:
    """``text`` with line ends at blanks and behind ``/`` and ``.``, or anywhere, where it is longer than ``width``."""
    lines = [""]
    for piece in re.findall(r"[^/. ]*[/. ]?", text):
        if len(lines[-1]) + len(piece.rstrip()) > width and lines[-1]:
            lines.append("")
        lines[-1] += piece
        while len(lines[-1].rstrip()) > width:
            lines[-1:] = [lines[-1][:width], lines[-1][width:]]
    return "\n".join(line.rstrip() for line in lines)


def cell_text(value: object) -> str:
    """A table's cell: integers with separators, other numbers with four digits, None as a dash."""
    if value is None:
        return "–"
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:,.4g}"


def short_number(value: int) -> str:
    """A count with three digits and a unit: ``64.7k``, ``301M``."""
    if abs(value) < 1000:
        return str(value)
    digits, _, power = f"{value:.2e}".partition("e")
    unit, shift = divmod(int(power), 3)
    return f"{float(digits) * 10**shift:.{2 - shift}f}{' kMGTPE'[unit]}"


def names(text: str | None) -> list[str]:
    """The names of a list with commas; none without a list."""
    return [part.strip() for part in (text or "").split(",") if part.strip()]


def numbers(flag: str, text: str) -> list[float]:
    """The numbers of a list with commas.

    Raises:
        EdgecError: one is none.
    """
    try:
        return [float(part) for part in text.split(",") if part.strip()]
    except ValueError as error:
        raise EdgecError(f"{flag} takes numbers with commas between them, and not '{text}'") from error


def seconds(text: str) -> float:
    """A time as ``90s``, ``30min`` or ``2h``.

    Raises:
        EdgecError: it is spelled otherwise.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(s|min|h)", text.strip())
    if found is None:
        raise EdgecError(f"--budget takes a time such as 90s, 30min or 2h, and not '{text}'")
    return float(found[1]) * {"s": 1, "min": 60, "h": 3600}[found[2]]


@contextmanager
def progress(*, in_background: bool = True) -> Iterator[Progress | None]:
    """A progress bar on stderr with the time left while the block runs; None where stderr is not a terminal.

    Args:
        in_background: redraw in a thread of its own, which would disturb a measurement; else when told.
    """
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    console = Console(stderr=True)
    if _quiet or not console.is_terminal:
        yield None
        return
    with Progress(
        TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed}/{task.total}"),
        TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(compact=True), console=console,
        transient=True, auto_refresh=in_background,
    ) as bar:  # fmt: skip
        tasks: dict[str, Any] = {}

        def tell(what: str, done: int, total: int) -> None:
            name = what.partition(":")[0]  # what follows tells how things stand
            if name not in tasks:
                for each in bar.tasks:  # a stage of a single step is over when the next begins
                    bar.update(each.id, visible=(each.total or 0) > 1)
                tasks[name] = bar.add_task(what, total=total)
            bar.update(tasks[name], description=what, completed=done, total=total, refresh=not in_background)

        yield tell
