"""`runtap report`, `runs`, `sessions`, `ledger`, `tail`: figures and streams, for people and as JSON."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import Coroutine
from contextlib import closing
from typing import Annotated, Any

import typer

from runtap_consumers.cli import printing
from runtap_consumers.cli.logs import configure_logs
from runtap_consumers.cli.options import (
    Csv,
    JsonLines,
    JsonObject,
    Limit,
    Since,
    Until,
    Wide,
    check_known,
    instant_of,
    takes_run_filter,
    takes_settings,
)
from runtap_consumers.cli.terminal import say, write_json
from runtap_consumers.errors import InputError
from runtap_consumers.figures.words import RUN_TYPES
from runtap_consumers.settings import ConsumerSettings
from runtap_schemas.topics import events_topic

# What `runs --sort` takes, and the column.
SORTS = {"started": "started_at_ns", "duration": "duration_ns", "cost": "cost_picodollars", "tokens": "input_tokens"}
ledger_app = typer.Typer(help="Where every captured event is.")

Json = Annotated[bool, typer.Option("--json", help="The records as they are, one a line.")]
FromBeginning = Annotated[bool, typer.Option("--from-beginning", help="Begin with the oldest record that is kept.")]
Service = Annotated[str | None, typer.Option(help="Only this service.")]


@takes_settings("database_url", "timezone")
def report(
    settings: ConsumerSettings,
    json: Annotated[
        str | None, typer.Option(metavar="FILE", help="Write the report as JSON to a file; -: to standard output.")
    ] = None,
    since: Since = None,
    until: Until = None,
    service: Service = None,
    sort: Annotated[
        str, typer.Option(help=f"Components by this, the most first: {', '.join(printing.COMPONENT_ORDERS)}.")
    ] = "total",
    limit: Annotated[int, typer.Option(min=0, help="So many rows of each table; 0: all.")] = 15,
    wide: Wide = False,
) -> None:
    """Costs, performance, errors, sessions and alerts of the last 24 hours, or of a range of time."""
    from runtap_consumers.figures.report import build_report, check_service
    from runtap_consumers.store.engine import open_store
    from runtap_consumers.store.read.snapshot import open_snapshot

    check_known("order", [sort], printing.COMPONENT_ORDERS)
    now_ns = time.time_ns()
    since_ns, until_ns = instant_of(since, settings, now_ns), instant_of(until, settings, now_ns)
    if since_ns is not None and since_ns >= (now_ns if until_ns is None else until_ns):
        raise InputError(f"the range ends before it begins: --since {since}, --until {until or 'now'}")
    with closing(open_store(settings.database_url)) as store:
        with open_snapshot(store) as snapshot:
            check_service(snapshot, service)
        figures = build_report(store, since_ns, until_ns, service, settings.zone(), now_ns)
    if json is not None:
        write_json(figures, json)
    else:
        printing.print_report(figures, printing.open_console(wide), sort, limit or None)


@takes_settings("database_url", "timezone")
@takes_run_filter()
def runs(
    settings: ConsumerSettings,
    wanted: dict[str, Any],
    since: Since = None,
    until: Until = None,
    sort: Annotated[str, typer.Option(help=f"By this: {', '.join(SORTS)}, the most first.")] = "started",
    limit: Limit = 50,
    wide: Wide = False,
    csv: Csv = False,
    json: JsonLines = False,
) -> None:
    """The single calls, newest first."""
    from runtap_consumers.figures import runs as run_rows
    from runtap_consumers.figures.report import check_service, read_completeness
    from runtap_consumers.store.read.run_filter import RunFilter
    from runtap_consumers.store.read.runs import stream_runs
    from runtap_consumers.store.read.snapshot import open_reader

    check_known("order", [sort], SORTS)
    now_ns = time.time_ns()
    since_ns, until_ns = instant_of(since, settings, now_ns), instant_of(until, settings, now_ns)
    filtered = RunFilter(**wanted, since_ns=since_ns, until_ns=until_ns, order=SORTS[sort])
    with open_reader(settings.database_url) as snapshot:
        check_service(snapshot, filtered.service)
        boundary = run_rows.abandoned_before(read_completeness(snapshot, (run_rows.PROJECTION,)).at_ns)
        # Closed while the store is open, also when nobody reads the output any more.
        with closing(stream_runs(snapshot, filtered, boundary, limit or None)) as rows:
            found = (run_rows.describe_run(row, boundary, settings.zone()) for row in rows)
            shown = found if json or csv else map(printing.shorten_run, found)
            printing.print_list(shown, printing.RUNS, printing.NO_RUN, json, as_csv=csv, wide=wide)


@takes_settings("database_url", "timezone")
def sessions(
    settings: ConsumerSettings,
    since: Since = None,
    until: Until = None,
    service: Annotated[str | None, typer.Option(help="Only sessions of this service.")] = None,
    user: Annotated[str | None, typer.Option(help="Only sessions in which this user was.")] = None,
    limit: Limit = 50,
    wide: Wide = False,
    csv: Csv = False,
    json: JsonLines = False,
) -> None:
    """Sessions: who, how long, how much. The one with the newest event first."""
    from runtap_consumers.figures.report import check_service, read_completeness
    from runtap_consumers.figures.sessions import PROJECTION, describe_session
    from runtap_consumers.store.read.sessions import read_sessions
    from runtap_consumers.store.read.snapshot import open_reader

    now_ns = time.time_ns()
    since_ns, until_ns = instant_of(since, settings, now_ns) or 0, instant_of(until, settings, now_ns)
    with open_reader(settings.database_url) as snapshot:
        check_service(snapshot, service)
        complete = read_completeness(snapshot, (PROJECTION,))
        with closing(read_sessions(snapshot, since_ns, until_ns, service, user, limit=limit or None)) as rows:
            found = (describe_session(row, complete.at_ns, settings.zone()) for row in rows)
            printing.print_list(found, printing.SESSIONS, printing.NO_SESSION, json, as_csv=csv, wide=wide)


@ledger_app.callback(invoke_without_command=True)
@takes_settings("database_url", "timezone")
def ledger(
    settings: ConsumerSettings,
    context: typer.Context,
    json: JsonObject = False,
) -> None:
    """Where every captured event is: applied, in flight, dropped, lost or unreadable, by service,
    emitter and reason.
    """
    from runtap_consumers.figures.ledger import build_ledger
    from runtap_consumers.store.read.snapshot import open_reader

    if context.invoked_subcommand is not None:
        return
    with open_reader(settings.database_url) as snapshot:
        figures = build_ledger(snapshot, settings.zone())
    (write_json if json else printing.print_ledger)(figures)


@ledger_app.command()
@takes_settings("database_url")
def forget(
    settings: ConsumerSettings,
    emitter: Annotated[str, typer.Argument(metavar="EMITTER", help="Its id, as the ledger shows it.")],
    forged: Annotated[
        bool, typer.Option("--forged", help="None of ours: it stands outside of every sum of the ledger, for ever.")
    ] = False,
) -> None:
    """Lets an emitter go whose process will not come back: `complete_to` no longer waits for it."""
    from runtap_consumers.store.engine import open_store
    from runtap_consumers.store.positions import forget_emitter
    from runtap_consumers.store.writer import Writer

    with open_store(settings.database_url) as store, Writer.of(store) as writer:
        if not forget_emitter(writer, emitter, time.time_ns(), is_struck=forged):
            raise InputError(f"there is no emitter {emitter!r}: `runtap ledger` names those that were heard")
    until = "struck out: without --forged, it counts again" if forged else "forgotten until it is heard again"
    say(f"Emitter {emitter} is {until}.")


@takes_settings("bootstrap_servers", "timezone")
def tail(
    settings: ConsumerSettings,
    session: Annotated[str | None, typer.Option(help="Only events of this session.")] = None,
    types: Annotated[
        list[str] | None,
        typer.Option("--type", help="Only these: an event type (run.ended) or a run type (llm). May be repeated."),
    ] = None,
    json: Json = False,
    from_beginning: FromBeginning = False,
    tokens: Annotated[
        bool, typer.Option("--tokens", help="Only the text of streamed answers, as it comes (RUNTAP_STREAM_TOKENS).")
    ] = False,
) -> None:
    """The live stream of events, one line each. Ctrl-C ends it."""
    # The Kafka client takes a moment to load, which other commands need not wait for.
    from runtap_consumers.cli.tail import Tokens, as_json, as_lines, entries_of, event_types, follow, is_wanted

    wanted_types = types or []
    check_known("type", wanted_types, (*event_types(), *RUN_TYPES))
    if json and tokens:
        raise InputError("--json and --tokens do not go together")
    show = as_json if json else (Tokens if tokens else as_lines)(settings.zone())

    def show_wanted(entry: Any) -> None:
        if is_wanted(entry.event, session, wanted_types):
            show(entry)

    run_until_ended(follow(settings, events_topic(settings.topic_prefix), from_beginning, entries_of, show_wanted))


def run_until_ended(stream: Coroutine[Any, Any, None]) -> None:
    """Runs until Ctrl-C, or until nobody reads the output any more: both are the way to end it, no failure."""
    configure_logs("warning")
    try:
        asyncio.run(stream)
    except KeyboardInterrupt:
        pass
    except BrokenPipeError:
        # Python flushes at exit once more.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
