"""What the commands print: tables for people on stdout, JSON for scripts, progress and errors on stderr."""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, is_dataclass
from typing import TYPE_CHECKING, Any

from edgec.errors import EdgecError

if TYPE_CHECKING:
    from rich.console import Console

    from edgec.devices import Progress

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


def print_table(title: str, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print a table; columns of numbers are aligned to the right. Nothing is printed without rows."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    cells = list(rows)
    if not cells:
        return
    table = Table(box=SIMPLE_HEAD, pad_edge=False, show_header=any(header))
    for index, name in enumerate(header):
        numeric = all(row[index] is None or isinstance(row[index], (int, float)) for row in cells)
        table.add_column(name, justify="right" if numeric else "left", overflow="fold")
    for row in cells:
        table.add_row(*(Text(cell_text(cell)) for cell in row))
    console = stdout()
    console.print(Text(title, "bold"), soft_wrap=True)
    console.print(table)


def cell_text(value: object) -> str:
    """A table's cell: integers with separators, other numbers with four digits, None as a dash."""
    if value is None:
        return "–"
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:,.4g}"


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
