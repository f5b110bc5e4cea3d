"""`runtap trace`, `session`: what ran inside what, when, and what it cost."""

from __future__ import annotations

from typing import Annotated

import orjson
import typer
from rich.console import Console
from rich.text import Text

from runtap_consumers.cli import printing
from runtap_consumers.cli.options import JsonObject, takes_settings
from runtap_consumers.cli.terminal import one_line, print_line, write_json
from runtap_consumers.figures import words
from runtap_consumers.settings import ConsumerSettings

_COLOURS = {"llm": "cyan", "tool": "magenta", "retriever": "blue", "agent": "green"}
_STATUS_COLOURS = {"error": "red", "interrupted": "yellow", "cancelled": "yellow", "open": "yellow"}
# Duration, self time, tokens, cost, each with the space before it.
_FIGURES_WIDTH = 10 + 9 + 14 + 11
_DEEPEST = 12

Content = Annotated[bool, typer.Option("--content/--no-content", help="What went in and came out, where captured.")]


@takes_settings("database_url", "timezone")
def trace(
    settings: ConsumerSettings,
    run: Annotated[str, typer.Argument(metavar="ID", help="Of a trace or a run of it, or how a run's begins.")],
    content: Content = True,
    json: JsonObject = False,
) -> None:
    """The tree of a trace: its runs on a common axis of time, with tokens, cost and errors."""
    from runtap_consumers.figures.traces import build_trace
    from runtap_consumers.store.read.snapshot import open_reader

    with open_reader(settings.database_url) as snapshot:
        found = build_trace(snapshot, run, settings.zone(), with_content=content)
    if json:
        write_json(found)
    else:
        print_trace(printing.open_console(), found)


@takes_settings("database_url", "timezone")
def session(
    settings: ConsumerSettings,
    session_id: Annotated[str, typer.Argument(metavar="ID", help="As `runtap sessions` shows it.")],
    content: Content = True,
    limit: Annotated[int, typer.Option(min=1, max=1_000, help="So many traces at most, the oldest first.")] = 20,
    json: JsonObject = False,
) -> None:
    """What happened in a session: its traces in order, each as a tree, and what they cost."""
    from runtap_consumers.figures.traces import build_session
    from runtap_consumers.store.read.snapshot import open_reader

    with open_reader(settings.database_url) as snapshot:
        found = build_session(snapshot, session_id, settings.zone(), limit, with_content=content)
    if json:
        write_json(found)
    else:
        print_session(printing.open_console(), found)


def print_session(console: Console, session: words.Row) -> None:
    """Prints what `runtap_consumers.figures.traces.build_session` returned."""
    users = f" of {', '.join(session['user_ids'])}" if session["user_ids"] else ""
    print_line(console, f"Session {session['session_id']}{users}: {session['status']}", style="bold")
    print_line(
        console,
        f"{printing.instant(session['started_at'])}, {words.duration(session['duration_seconds'])}: "
        f"{session['traces']:,} traces, "
        f"{session['llm_calls']:,} model calls, {session['tool_calls']:,} tool calls, {session['errors']:,} errors, "
        f"{session['input_tokens']:,} tokens in, {session['output_tokens']:,} out, {words.money(session['cost_usd'])}",
    )
    for one in session["kept_traces"]:
        console.print()
        print_trace(console, one)
    left_out = session["traces"] - len(session["kept_traces"])
    if left_out > 0:
        print_line(console, f"\n{left_out:,} traces more: --limit, or their runs are past retention.")


def print_trace(console: Console, trace: words.Row) -> None:
    """Prints what `runtap_consumers.figures.traces.build_trace` returned."""
    print_line(console, f"Trace {trace['trace_id']}: {trace['name']}, {trace['status']}", style="bold")
    where = f"{trace['service']} ({trace['environment']})"
    whose = "".join(f", {kind} {trace[f'{kind}_id']}" for kind in ("session", "user") if trace[f"{kind}_id"])
    print_line(console, f"{printing.instant(trace['started_at'])} {where}{whose}")
    unpriced = f" ({trace['unpriced_calls']:,} unpriced)" if trace["unpriced_calls"] else ""
    print_line(
        console,
        f"{words.duration(trace['duration_seconds'])}, {trace['run_count']:,} runs, "
        f"{trace['llm_calls']:,} model calls, "
        f"{trace['input_tokens']:,} tokens in, {trace['output_tokens']:,} out, "
        f"{words.money(trace['cost_usd'])}{unpriced}",
    )
    width = min(console.width, 160)
    bar_width = max(8, (width - _FIGURES_WIDTH) // 3)
    name_width = max(width - _FIGURES_WIDTH - bar_width - 1, 12)
    heads = f"{'':<{name_width}} {'':<{bar_width}}{'duration':>10}{'self':>9}{'tokens in/out':>14}{'cost':>11}"
    print_line(console, heads[:width], style="dim")
    whole = trace["duration_seconds"] or 1.0
    for run in trace["runs"]:
        console.print(_line(run, whole, name_width, bar_width), overflow="crop", no_wrap=True)
        indent = "  " * (min(run["depth"], _DEEPEST) + 1)
        if run["error_type"] and run["error_origin"]:
            # Of those it passed through, the colour says it.
            said = words.error_text(*(run[f"error_{name}"] for name in words.ERROR_FACTS))
            print_line(console, indent + one_line(f"✗ {run['error_type']}: {said}", 2 * width), style="red")
        for each in run["feedback"]:
            given = each["value"] if each["score"] is None else each["score"]
            note = f": {each['comment']}" if each["comment"] else ""
            said = one_line(f"{each['key']} {given} by {each['source']}{note}", 2 * width)
            print_line(console, f"{indent}★ {said}", style="cyan")
        for name, value in (run["content"] or {}).items():
            if name != "content_bytes":
                shown = orjson.dumps(value).decode()
                text = indent + one_line(f"{name}: {shown}", width - len(indent))
                console.print(Text(text, style="dim"), no_wrap=True)
    if trace["is_cut_off"]:
        print_line(console, f"Only the first {trace['run_count']:,} runs are shown.", style="yellow")


def _line(run: words.Row, whole: float, name_width: int, bar_width: int) -> Text:
    what = " ".join(filter(None, (run["name"], run["model"] or run["request_model"])))
    indent = "  " * min(run["depth"], _DEEPEST)
    name = f"{indent}{one_line(what, max(name_width - len(indent), 8))}"
    status = _STATUS_COLOURS.get(run["status"])
    line = Text(f"{name[:name_width]:<{name_width}} ", style=status or "")
    first = min(int(run["offset_seconds"] / whole * bar_width), bar_width - 1)
    last = run["offset_seconds"] + (run["duration_seconds"] or 0)
    length = max(1, min(round(last / whole * bar_width), bar_width) - first)
    bar = f"{' ' * first}{'━' * length}"
    line.append(f"{bar:<{bar_width}}", style=status or _COLOURS.get(run["run_type"], ""))
    tokens = f"{run['input_tokens'] or 0:,}/{run['output_tokens'] or 0:,}" if run["input_tokens"] is not None else ""
    is_call = run["run_type"] == "llm"
    line.append(f"{_duration(run['duration_seconds'], run['status']):>10}{_duration(run['self_seconds']):>9}")
    line.append(f"{tokens:>14}{words.money(run['cost_usd']) if is_call else '':>11}")
    return line


def _duration(seconds: float | None, otherwise: str = "") -> str:
    return otherwise if seconds is None else words.duration(seconds)
