"""Tables for people, of rows as JSON has them: columns are the rows' keys, and keep these names.

A figure's unit, the end of its name, says how it is shown: `cost_usd`, `started_at`, `success_rate`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping
from decimal import Decimal
from itertools import islice
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from runtap_consumers.cli.terminal import one_line, print_line, write_lines

UNKNOWN = "–"
_LONGEST_CELL = 120
# A table's columns are as wide as its widest row, so all of a page is in memory.
_ROWS_A_PAGE = 500
_WIDE = 150
# A pipe has no width: what reads it can cut lines, but not put wrapped ones together.
_PIPE_WIDTH = 200
_COLUMN = re.compile(r"(?P<name>\w+)(?:<(?P<longest>\d+))?(?P<is_extra>\?)?(?P<is_prose>\*)?")
_NUMBER = re.compile(r"[≥+-]? ?\$?[\d,.]+(%| m?s| [hm] .*)?")

Row = Mapping[str, Any]


def open_console() -> Console:
    """Standard output, wide enough where it is no terminal."""
    console = Console()
    return console if console.is_terminal or os.environ.get("COLUMNS") else Console(width=_PIPE_WIDTH)


def print_table(
    console: Console, title: str | None, columns: str, rows: Iterable[Row], most: int | None = None
) -> None:
    """Prints a table with a title, its columns of numbers right-aligned; nothing where there are no rows.

    Args:
        console: where to.
        title: above it.
        columns: keys of the rows. `name<20` is cut at so many letters, at three times that in a pipe; `name?` is left
            out on narrow screens; `name*` is prose, which wraps.
        rows: `None` in them is what is not known.
        most: so many of them are shown, and the title says how many there are; `None`: all.
    """
    all_rows = list(rows)
    if not all_rows:
        return
    table = Table(box=None, pad_edge=False, header_style="dim")
    cells = []
    for name, longest, is_extra, is_prose in _COLUMN.findall(columns):
        if is_extra and console.width < _WIDE:
            continue
        texts = [show(name, row[name]) for row in all_rows[:most]]
        table.add_column(
            re.sub(r"_(at|seconds|usd)$", "", name).replace("_", "\n", 1).replace("_", " "),
            justify="right" if all(text is None or _NUMBER.fullmatch(text) for text in texts) else "left",
            no_wrap=not is_prose,
            overflow="fold" if is_prose else "ellipsis",
            max_width=int(longest) * (1 if console.width < _PIPE_WIDTH else 3) if longest else None,
        )
        # A plain string would be read as markup.
        cells.append([Text(one_line(text or UNKNOWN, _LONGEST_CELL)) for text in texts])
    for row in zip(*cells, strict=True):
        table.add_row(*row)
    if title:
        more = f" (the first {most} of {len(all_rows):,})" if most and len(all_rows) > most else ""
        console.print(Text.assemble("\n", (one_line(title), "bold"), more))
    console.print(table)


def print_list(
    rows: Iterable[Row], columns: str, nothing: str, as_json: bool = False, console: Console | None = None
) -> None:
    """Prints all rows, however many, a page at a time; `nothing` where there are none. Or one JSON object a line."""
    if as_json:
        write_lines(rows)
        return
    console, iterator = console or open_console(), iter(rows)
    page = list(islice(iterator, _ROWS_A_PAGE))
    if not page:
        print_line(console, nothing)
    while page:
        print_table(console, None, columns, page)
        page = list(islice(iterator, _ROWS_A_PAGE))


def show(name: str, value: Any) -> str | None:
    """A figure as people read it, by the unit at the end of its name; `None` is what is not known."""
    form = _FORMATS.get(name.rpartition("_")[2])
    if form is not None and value is not None:
        return form(value)
    return f"{value:,}" if isinstance(value, int) else value


def duration(seconds: float) -> str:
    """A duration to three digits or so."""
    if seconds < 1:
        return f"{seconds * 1_000:.3g} ms" if seconds < 0.0995 else f"{seconds * 1_000:.0f} ms"
    if seconds < 120:
        return f"{seconds:.2f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:,} h {minutes:02} m" if hours else f"{minutes} m {rest:02} s"


def money(value: str | None) -> str:
    """An exact decimal of dollars, as a page takes it."""
    if value is None:
        return UNKNOWN
    amount = Decimal(value)
    return f"${amount:,.2f}" if amount >= 100 or amount == 0 else f"${amount:,.6f}"


_FORMATS: dict[str, Callable[[Any], str]] = {
    "seconds": duration,
    "usd": money,
    # 2025-06-30T14:00:00.123456+02:00: what a line of a table takes of it.
    **dict.fromkeys(("at", "seen"), lambda value: f"{value[5:10]} {value[11:19]}"),
    "rate": "{:.1%}".format,
    "second": "{:.1f}".format,
    "ids": ", ".join,
}
