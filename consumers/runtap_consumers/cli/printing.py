"""The figures as tables for people."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal
from itertools import islice
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from runtap_consumers.cli.terminal import one_line, print_line
from runtap_consumers.figures.error_text import error_facts, error_text

# What a page takes; the JSON has all rows.
_ROWS_SHOWN = 15
# A table's columns are as wide as its widest row, so all of a page is in memory.
_ROWS_A_PAGE = 500
_WIDE = 150
# A pipe has no width: what reads it can cut lines, but not put wrapped ones together.
_PIPE_WIDTH = 200
_UNKNOWN = "–"


@dataclass(frozen=True)
class Column:
    """A column. Numbers are right-aligned; what is not essential is left out on narrow screens.

    `longest` cuts its texts, at three times that in a pipe; a column of prose wraps instead.
    """

    title: str
    is_number: bool = False
    is_essential: bool = True
    longest: int | None = None
    is_prose: bool = False


def _prose(title: str) -> Column:
    return Column(title, is_prose=True)


def _text(title: str, longest: int | None = None) -> Column:
    return Column(title, longest=longest)


def _number(title: str) -> Column:
    return Column(title, is_number=True)


def _extra(title: str, is_number: bool = False, longest: int | None = None) -> Column:
    return Column(title, is_number, is_essential=False, longest=longest)


def open_console() -> Console:
    """Standard output, wide enough where it is no terminal."""
    console = Console()
    return console if console.is_terminal or os.environ.get("COLUMNS") else Console(width=_PIPE_WIDTH)


def print_report(report: dict[str, Any], console: Console | None = None) -> None:
    """Prints a report of `runtap_consumers.figures.report.build_report`, the slowest components in total first."""
    console = console or open_console()
    console.print(f"[bold]runtap[/]  {_instant(report['range']['from'])} to {_instant(report['range']['to'])}")
    if report["ledger"]["captured"] == 0 and not report["performance"] and not report["sessions"]:
        console.print(
            "There is nothing yet. Attach the handler to a chain (callbacks=[RunTapHandler()]) and keep "
            "`runtap worker` running; `runtap demo` shows it all with a sample service."
        )
        return
    _print_components(console, report["performance"])
    _print_costs(console, report["cost"])
    _print_errors(console, report["errors"])
    print_table(console, "Sessions, newest first", _SESSION_COLUMNS, map(_session_cells, report["sessions"]))
    alerts = ([_time(row["at"]), row["rule"], row["state"], row["summary"]] for row in report["alerts"])
    print_table(console, "Alerts", [_text("At"), _extra("Rule"), _text("State"), _prose("What")], alerts)
    console.print()
    if not report["performance"]:
        console.print("No run ended in this range: --since 7d looks further back.")
    _print_state(report, console)


def _print_state(report: dict[str, Any], console: Console) -> None:
    if report["complete_to"] is None:
        console.print("Complete to: not known yet; cost, performance, errors and sessions each need a worker.")
    else:
        console.print(f"Complete to {_instant(report['complete_to'])}: what is missing before that is counted below.")
    ledger = report["ledger"]
    dropped = sum(ledger["dropped"].values())
    reasons = ", ".join(f"{reason} {count:,}" for reason, count in ledger["dropped"].items())
    line = (
        f"Events: {ledger['captured']:,} captured, {ledger['applied']:,} applied, {ledger['in_flight']:,} in flight, "
        f"{dropped:,} dropped{f' ({reasons})' if reasons else ''}, {ledger['lost']:,} lost, "
        f"{ledger['quarantined']:,} unreadable"
    )
    is_worrying = dropped or ledger["lost"] or ledger["quarantined"]
    print_line(console, line, style="yellow" if is_worrying else "")


def print_runs(runs: Iterator[dict[str, Any]], console: Console | None = None) -> None:
    """Prints runs of `runtap_consumers.figures.runs.describe_run`, a page at a time."""
    console = console or open_console()
    columns = [
        *(_text("Started"), _extra("Type"), _text("Name", 13), _text("Model", 13), _text("Status", 12)),
        *(_number("Took"), _extra("Tokens in", True), _extra("out", True), _number("Cost"), _extra("Run")),
    ]
    any_shown = False
    while page := list(islice(runs, _ROWS_A_PAGE)):
        print_table(console, None, columns, map(_run_cells, page), len(page))
        any_shown = True
    if not any_shown:
        console.print("No such run: nothing was applied yet, or no run fits the filters, or they are past retention.")


def _run_cells(run: dict[str, Any]) -> list[str | None]:
    return [
        _time(run["started_at"]),
        run["run_type"],
        run["name"],
        run["model"] or run["request_model"],
        run["error_type"] or run["status"],
        _seconds(run["duration_seconds"]),
        _count(run["input_tokens"]),
        _count(run["output_tokens"]),
        money(run["cost_usd"]),
        run["run_id"],
    ]


def print_sessions(sessions: Iterator[dict[str, Any]], console: Console | None = None) -> None:
    """Prints sessions of `runtap_consumers.figures.sessions.describe_session`, a page at a time."""
    console = console or open_console()
    any_shown = False
    while page := list(islice(sessions, _ROWS_A_PAGE)):
        print_table(console, None, _SESSION_COLUMNS, map(_session_cells, page), len(page))
        any_shown = True
    if not any_shown:
        console.print(
            "No session: give runs one by `with tap.session(…)` or config={'metadata': {'session_id': …}}.",
            markup=False,
        )


_SESSION_COLUMNS = [
    *(_text("Session", 24), _extra("Users", longest=24), _text("Status"), _extra("Began"), _number("Lasted")),
    *(_extra("Traces", True), _number("Calls"), _extra("Tool calls", True), _number("Errors"), _number("Tokens in")),
    *(_number("out"), _number("Cost")),
]


def _session_cells(session: dict[str, Any]) -> list[str | None]:
    return [
        session["session_id"],
        ", ".join(session["user_ids"]),
        session["status"],
        _time(session["started_at"]),
        _seconds(session["duration_seconds"]),
        *(_count(session[name]) for name in ("traces", "llm_calls", "tool_calls", "errors")),
        *(_count(session[name]) for name in ("input_tokens", "output_tokens")),
        money(session["cost_usd"]),
    ]


def _print_components(console: Console, components: list[dict[str, Any]]) -> None:
    columns = [
        *(_text("Type"), _text("Name", 16), _text("Model", 16), _number("Runs"), _number("Errors")),
        *(_extra("Success", True), _number("Total"), _extra("Average", True), _extra("p50", True), _number("p95")),
        *(_extra("p99", True), _extra("First token", True), _extra("Tokens/s", True)),
    ]
    timed = ("total", "avg", "p50", "p95", "p99", "first_token_p50")
    cells = (
        [
            row["run_type"],
            row["name"],
            row["model"],
            _count(row["count"]),
            _count(row["errors"]),
            _share(row["success_rate"]),
            *(_seconds(row[f"{name}_seconds"]) for name in timed),
            None if row["output_tokens_per_second"] is None else f"{row['output_tokens_per_second']:.1f}",
        ]
        for row in components
    )
    print_table(console, "Components, slowest in total first", columns, cells)


def _print_costs(console: Console, cost: dict[str, Any]) -> None:
    columns = [
        *(_extra("Provider"), _text("Model", 28), _number("Calls"), _number("Unpriced"), _number("Tokens in")),
        *(_extra("cached", True), _number("out"), _extra("reasoning", True), _number("Cost")),
    ]
    names = ("calls", "unpriced_calls", "input_tokens", "cache_read_tokens", "output_tokens", "reasoning_tokens")
    cells = [
        [row["provider"], row["model"], *(_count(row[name]) for name in names), money(row["cost_usd"])]
        for row in cost["by_model"]
    ]
    title = f"Cost: {money(cost['cost_usd']) or _UNKNOWN} for {cost['calls']:,} calls, {cost['total_tokens']:,} tokens"
    if cost["unmetered_calls"]:
        title += f"; {cost['unmetered_calls']:,} calls without usage"
    print_table(console, title, columns, cells)
    columns = [_text("Service", 28), _text("Environment"), _number("Calls"), _number("Unpriced"), _number("Cost")]
    cells = [
        [row["service"], row["environment"], *(_count(row[name]) for name in names[:2]), money(row["cost_usd"])]
        for row in cost["by_service"]
    ]
    print_table(console, "Cost by service", columns, cells)


def _print_errors(console: Console, errors: dict[str, Any]) -> None:
    columns = [
        *(_number("Count"), _text("Error", 20), _prose("What"), _text("Service", 12)),
        *(_extra("Last seen"), _extra("Sample run")),
    ]
    cells = (
        [_count(row["count"]), row["type"], _what(row), row["service"], _time(row["last_seen"]), row["sample_run_id"]]
        for row in errors["groups"]
    )
    print_table(console, f"Errors: {errors['total']:,}", columns, cells)
    columns = [_text("At"), _extra("In", longest=12), _text("Error", 20), _prose("What"), _extra("Run")]
    recent = ([_time(row["at"]), row["name"], row["type"], _what(row), row["run_id"]] for row in errors["recent"])
    print_table(console, "Last errors", columns, recent)
    if any(row["message"] is None for row in errors["groups"]):
        console.print("Errors come without their messages, unless a service runs with RUNTAP_ERROR_MESSAGES=true.")


def _what(error: dict[str, Any]) -> str:
    facts = error_facts(error["category"], error["status_code"], error["code"])
    return error_text(facts, error["raised_at"], error["message"])


def print_table(
    console: Console,
    title: str | None,
    columns: Sequence[Column],
    rows: Iterable[Sequence[str | None]],
    shown: int = _ROWS_SHOWN,
) -> None:
    """Prints a table with a title and its first rows, nothing where there are none. `None` is what is not known."""
    all_rows = list(rows)
    if not all_rows:
        return
    places = [place for place, column in enumerate(columns) if column.is_essential or console.width >= _WIDE]
    table = Table(box=None, pad_edge=False, header_style="dim")
    for place in places:
        column = columns[place]
        table.add_column(
            column.title,
            justify="right" if column.is_number else "left",
            no_wrap=not column.is_prose,
            overflow="fold" if column.is_prose else "ellipsis",
            max_width=column.longest and column.longest * (1 if console.width < _PIPE_WIDTH else 3),
        )
    for row in all_rows[:shown]:
        table.add_row(*(_cell(row[place]) for place in places))
    if title:
        more = f" (the first {shown} of {len(all_rows):,})" if len(all_rows) > shown else ""
        console.print(Text.assemble("\n", (one_line(title), "bold"), more))
    console.print(table)


def _cell(text: str | None, longest: int = 120) -> Text:
    """Where text becomes a cell: `Text`, because a string would be read as markup."""
    line = one_line(text or _UNKNOWN)
    return Text(line if len(line) <= longest else f"{line[: longest - 1]}…")


def _count(value: int | None) -> str | None:
    return None if value is None else f"{value:,}"


def _share(value: float | None) -> str | None:
    return None if value is None else f"{value:.1%}"


def _seconds(value: float | None) -> str | None:
    if value is None:
        return None
    if value < 1:
        return f"{value * 1_000:.3g} ms" if value < 0.0995 else f"{value * 1_000:.0f} ms"
    if value < 120:
        return f"{value:.2f} s"
    minutes, rest = divmod(round(value), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:,} h {minutes:02} m" if hours else f"{minutes} m {rest:02} s"


def money(value: str | None) -> str | None:
    """An exact decimal of dollars, as a page takes it."""
    if value is None:
        return None
    amount = Decimal(value)
    return f"${amount:,.2f}" if amount >= 100 or amount == 0 else f"${amount:,.6f}"


def _instant(value: str) -> str:
    # 2025-06-30T14:00:00.123456+02:00: to the second, offset kept.
    return f"{value[:10]} {value[11:19]}{value[26:]}"


def _time(value: str | None) -> str | None:
    return None if value is None else f"{value[5:10]} {value[11:19]}"
