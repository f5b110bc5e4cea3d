"""Tables for people, of rows as JSON has them: columns are the rows' keys, and keep these names."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from itertools import islice

from rich.console import Console
from rich.table import Table
from rich.text import Text

from runtap_consumers.cli.terminal import one_line, print_line, write_csv, write_lines
from runtap_consumers.figures import words
from runtap_consumers.figures.words import Row

_LONGEST_CELL = 120
# A table's columns are as wide as its widest row, so all of a page is in memory.
_ROWS_A_PAGE = 500
_WIDE = 150
# A pipe has no width: what reads it can cut lines, but not put wrapped ones together.
_PIPE_WIDTH = 200
_COLUMN = re.compile(r"(?P<name>[\w.]+)(?:<(?P<longest>\d+))?(?P<is_extra>\?)?(?P<is_prose>\*)?")
_NUMBER = re.compile(r"[≥+-]? ?\$?[\d,.]+(%| m?s| [hm] .*)?")
# What the report, and the ledger, show of each table; the JSON has all rows.
_ROWS_OF_REPORT = 15
_ROWS_OF_LEDGER = 50

COMPONENTS = (
    "run_type name<16 model<16 count errors success_rate? total_seconds avg_seconds? p50_seconds? p95_seconds "
    "p99_seconds? first_token_p50_seconds? output_tokens_per_second?"
)
COSTS = (
    "provider? model<28 calls unpriced_calls input_tokens cache_read_tokens? output_tokens reasoning_tokens? cost_usd"
)
# What `report --sort` takes, and the figure.
COMPONENT_ORDERS = {
    "total": "total_seconds",
    "count": "count",
    "errors": "errors",
    "avg": "avg_seconds",
    "p50": "p50_seconds",
    "p95": "p95_seconds",
    "p99": "p99_seconds",
    "max": "max_seconds",
}
SERVICE_COSTS = "service<28 environment calls unpriced_calls cost_usd"
ERROR_GROUPS = "count type<20 what* service<12 last_seen? sample_run_id?"
LAST_ERRORS = "at name<12? type<20 what* run_id?"
SESSIONS = (
    "session_id<24 user_ids<24? status started_at? duration_seconds traces? llm_calls tool_calls? errors input_tokens "
    "output_tokens cost_usd"
)
FEEDBACK = "key<24 value<16? count mean? service<16? environment?"
ALERTS = "at severity? status summary*"
RUNS = (
    "started_at run_type? name<13 model<13 status<12 duration_seconds input_tokens? output_tokens? cost_usd "
    "user_id<12? run_id?"
)
SERVICES = "service<16 environment? captured applied in_flight dropped lost quarantined repeats? why*"
EMITTERS = (
    "emitter<12 service<12? state last_heard<19? captured applied in_flight dropped lost quarantined repeats? why?*"
)
PROJECTIONS = "projection applied in_flight lost quarantined repeats"
INCIDENTS = "time<19 projection partition what*"
NO_RUN = "No such run: nothing was applied yet, or no run fits the filters, or they are past retention."
NO_SESSION = "No session: give runs one by `with tap.session(…)` or config={'metadata': {'session_id': …}}."


def open_console(is_wide: bool = False) -> Console:
    """Standard output, wide enough where it is no terminal."""
    if is_wide:
        return Console(width=_PIPE_WIDTH)
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
        texts = [words.show(name, row[name]) for row in all_rows[:most]]
        table.add_column(
            re.sub(r"_(at|seconds|usd)$", "", name).replace("_", "\n", 1).replace("_", " "),
            justify="right" if all(text is None or _NUMBER.fullmatch(text) for text in texts) else "left",
            no_wrap=not is_prose,
            overflow="fold" if is_prose else "ellipsis",
            max_width=int(longest) * (1 if console.width < _PIPE_WIDTH else 3) if longest else None,
        )
        # A plain string would be read as markup.
        cells.append([Text(one_line(text or words.UNKNOWN, _LONGEST_CELL)) for text in texts])
    for row in zip(*cells, strict=True):
        table.add_row(*row)
    if title:
        more = f" (the first {most} of {len(all_rows):,})" if most and len(all_rows) > most else ""
        console.print(Text.assemble("\n", (one_line(title), "bold"), more))
    console.print(table)


def print_list(
    rows: Iterable[Row], columns: str, nothing: str, as_json: bool = False, *, as_csv: bool = False, wide: bool = False
) -> None:
    """Prints all rows, however many, a page at a time; `nothing` where there are none. Or one JSON object a line, or
    CSV.
    """
    if as_json or as_csv:
        (write_lines if as_json else write_csv)(rows)
        return
    console, iterator = open_console(wide), iter(rows)
    page = list(islice(iterator, _ROWS_A_PAGE))
    if not page:
        print_line(console, nothing)
    while page:
        print_table(console, None, columns, page)
        page = list(islice(iterator, _ROWS_A_PAGE))


def print_report(
    report: Row, console: Console | None = None, sort: str = "total", limit: int | None = _ROWS_OF_REPORT
) -> None:
    """Prints a report of `runtap_consumers.figures.report.build_report`: components by `sort`, a key of
    `COMPONENT_ORDERS`, and so many rows of each table; `None`: all.
    """
    console = console or open_console()
    order = COMPONENT_ORDERS[sort]
    components = sorted(report["performance"], key=lambda row: -(row[order] or 0))
    console.print(f"[bold]runtap[/]  {instant(report['range']['from'])} to {instant(report['range']['to'])}")
    if report["ledger"]["captured"] == 0 and not report["performance"] and not report["sessions"]:
        console.print(
            "There is nothing yet. Attach the handler to a chain (callbacks=[RunTapHandler()]) and keep "
            "`runtap worker` running; `runtap demo` shows it all with a sample service."
        )
        return
    cost, errors = report["cost"], report["errors"]
    spent = f"Cost: {words.money(cost['cost_usd'])} for {cost['calls']:,} calls, {cost['total_tokens']:,} tokens"
    if cost["unmetered_calls"]:
        spent += f"; {cost['unmetered_calls']:,} calls without usage"
    sessions, left_out = "Sessions, newest first", report["session_count"] - len(report["sessions"])
    if left_out:
        sessions += f"; `runtap sessions` shows {left_out:,} more"
    for title, columns, rows in (
        (f"Components, by {sort}" if sort != "total" else "Components, slowest in total first", COMPONENTS, components),
        (spent, COSTS, cost["by_model"]),
        ("Cost by service", SERVICE_COSTS, cost["by_service"]),
        (f"Errors: {errors['total']:,}", ERROR_GROUPS, map(_with_text, errors["groups"])),
        ("Last errors", LAST_ERRORS, map(_with_text, errors["recent"])),
        (sessions, SESSIONS, report["sessions"]),
        ("Feedback", FEEDBACK, report["feedback"]["by_key"]),
        ("Alerts", ALERTS, report["alerts"]),
    ):
        print_table(console, title, columns, rows, limit)
    console.print()
    if any(row["message"] is None for row in errors["groups"]):
        console.print("Errors come without their messages, unless a service runs with RUNTAP_ERROR_MESSAGES=true.")
    if not report["performance"]:
        console.print("No run ended in this range: --since 7d looks further back.")
    if report["complete_to"] is None:
        console.print("Complete to: not known yet; cost, performance, errors and sessions each need a worker.")
    else:
        console.print(f"Complete to {instant(report['complete_to'])}: what is missing before that is counted below.")
    _print_sums(console, report["ledger"])


def shorten_run(run: Row) -> Row:
    """A run with what its line has room for: a model, and how it went."""
    return {**run, "model": run["model"] or run["request_model"], "status": run["error_type"] or run["status"]}


def print_ledger(ledger: Row) -> None:
    """Prints what `runtap_consumers.figures.ledger.build_ledger` returned."""
    console = open_console()
    if not ledger["emitters"]:
        console.print("There is nothing yet: no worker has applied an event.")
        return
    print_line(console, f"Complete to {ledger['complete_to'] or 'no known instant'}; sums of {ledger['projection']}:")
    holder = next((row for row in ledger["emitters"] if row["emitter"] == ledger["held_by"]), None)
    if holder is not None and holder["state"] == "silent":
        print_line(
            console,
            f"It waits for emitter {holder['emitter']} ({holder['service'] or 'unknown service'}), last heard "
            f"{holder['last_heard']}: if that process is gone for good, `runtap ledger forget {holder['emitter']}`",
            style="yellow",
        )
    _print_sums(console, ledger, "at least " if ledger["captured_is_at_least"] else "")
    for kind, what in (("foreign", "records of no emitter"), ("impossible", "events with impossible numbers")):
        if ledger[kind]:
            print_line(console, f"{ledger[kind]:,} {what}, outside of these sums: see `runtap dead-letters list`")
    for shared in ledger["shared_emitters"]:
        processes = ", ".join(f"{one['process_id']} on {one['host']}" for one in shared["processes"])
        print_line(
            console,
            f"Emitter {shared['emitter']} is two processes or more ({processes}): of two events under one number "
            "only the first counts. A snapshot of a running process was restored more than once: see docs/emitter.md",
            style="bold red",
        )
    if ledger["repeats"]:
        print_line(console, f"{ledger['repeats']:,} repeats in the log were dropped.")
    last_heard_first = sorted(ledger["emitters"], key=lambda row: row["last_heard"] or "", reverse=True)
    skewed, unknown = ledger["skewed_events"], ledger["unknown_event_types"]
    for title, columns, rows in (
        ("By service", SERVICES, map(_with_reasons, ledger["services"])),
        ("By emitter, the one heard last first", EMITTERS, map(_with_reasons, last_heard_first)),
        ("By projection", PROJECTIONS, ledger["projections"]),
        ("What happened to the log", INCIDENTS, map(_with_time, reversed(ledger["incidents"]))),
        ("Let go by hand", "at<19 emitter what*", map(_with_what, ledger["forgotten"])),
        ("Times not believed", "service events", ({"service": name, "events": skewed[name]} for name in skewed)),
        ("Unknown event types", "type events", ({"type": name, "events": unknown[name]} for name in unknown)),
    ):
        print_table(console, title, columns, rows, _ROWS_OF_LEDGER)


def _print_sums(console: Console, sums: Row, at_least: str = "") -> None:
    dropped = sum(sums["dropped"].values())
    reasons = ", ".join(f"{reason} {count:,}" for reason, count in sums["dropped"].items())
    line = (
        f"Events: captured {at_least}{sums['captured']:,} = applied {sums['applied']:,} "
        f"+ in flight {sums['in_flight']:,} + dropped {dropped:,}{f' ({reasons})' if reasons else ''} "
        f"+ lost {sums['lost']:,} + unreadable {sums['quarantined']:,}"
    )
    print_line(console, line, style="yellow" if dropped or sums["lost"] or sums["quarantined"] else "")


def instant(value: str) -> str:
    """2025-06-30T14:00:00.123456+02:00 to the second, offset kept."""
    return f"{value[:10]} {value[11:19]}{value[26:]}"


def _with_text(error: Row) -> Row:
    return {**error, "what": words.error_text(*(error[name] for name in words.ERROR_FACTS))}


def _with_time(incident: Row) -> Row:
    return {**incident, "time": incident["at"], "what": words.incident_text(incident)}


def _with_what(forgotten: Row) -> Row:
    return {**forgotten, "what": "struck out, none of ours" if forgotten["struck_out"] else "until it is heard again"}


def _with_reasons(row: Row) -> Row:
    at_least = "≥ " if row["captured_is_at_least"] else ""
    sums = {"captured": f"{at_least}{row['captured']:,}", "dropped": sum(row["dropped"].values())}
    return {**row, **sums, "why": words.loss_text(row)}
