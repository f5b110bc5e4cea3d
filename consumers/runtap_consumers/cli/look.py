"""`runtap report`, `runs`, `sessions` and `ledger`: the figures, as people read them and as JSON."""

from __future__ import annotations

import time
from contextlib import closing
from typing import Annotated

import typer

from runtap_consumers.cli import pages
from runtap_consumers.cli.options import JsonLines, Limit, takes_settings
from runtap_consumers.cli.printing import print_list
from runtap_consumers.cli.terminal import write_json
from runtap_consumers.errors import InputError
from runtap_consumers.figures import runs as run_rows
from runtap_consumers.instants import EXPECTED, parse_instant
from runtap_consumers.settings import ConsumerSettings

Since = Annotated[str | None, typer.Option(metavar="TIME", help=f"Begin: {EXPECTED}.")]
Until = Annotated[str | None, typer.Option(metavar="TIME", help="End, not included; now if left out.")]


@takes_settings("database_url", "timezone")
def report(
    settings: ConsumerSettings,
    json: Annotated[
        str | None, typer.Option(metavar="FILE", help="Write the report as JSON to a file; -: to standard output.")
    ] = None,
    since: Since = None,
    until: Until = None,
    service: Annotated[str | None, typer.Option(help="Only this service.")] = None,
    by: Annotated[
        str | None, typer.Option(metavar="ATTRIBUTE", help="Costs alone, by user or a metadata key of RUNTAP_COST_BY.")
    ] = None,
) -> None:
    """Costs, performance, errors, sessions and alerts of the last 24 hours, or of a range of time."""
    from runtap_consumers.figures.attribution import build_attribution
    from runtap_consumers.figures.report import build_report
    from runtap_consumers.store.engine import open_store

    now_ns = time.time_ns()
    since_ns, until_ns = _instant(since, settings, now_ns), _instant(until, settings, now_ns)
    if since_ns is not None and since_ns >= (now_ns if until_ns is None else until_ns):
        raise InputError(f"the range ends before it begins: --since {since}, --until {until or 'now'}")
    wanted = (since_ns, until_ns, service, settings.zone(), now_ns)
    with closing(open_store(settings.database_url)) as store:
        if by is None:
            figures = build_report(store, *wanted)
        else:
            figures = build_attribution(store, by, settings.cost_attributes, *wanted)
    if json is not None:
        write_json(figures, json)
    else:
        (pages.print_report if by is None else pages.print_attribution)(figures)


@takes_settings("database_url", "timezone")
def runs(
    settings: ConsumerSettings,
    session: Annotated[str | None, typer.Option(help="Only runs of this session.")] = None,
    trace: Annotated[str | None, typer.Option(help="Only runs of this trace.")] = None,
    model: Annotated[str | None, typer.Option(help="Only runs of this model.")] = None,
    status: Annotated[str | None, typer.Option(help=f"Only these: {', '.join(run_rows.STATUSES)}.")] = None,
    run_type: Annotated[str | None, typer.Option("--type", help="Only these: llm, chain, tool, retriever.")] = None,
    since: Since = None,
    limit: Limit = 50,
    json: JsonLines = False,
) -> None:
    """The single calls, newest first."""
    from runtap_consumers.figures.report import read_completeness
    from runtap_consumers.store.read.runs import RunFilter, stream_runs
    from runtap_consumers.store.read.snapshot import open_reader

    if status is not None and status not in run_rows.STATUSES:
        raise InputError(f"there is no status {status!r}: expected one of {', '.join(run_rows.STATUSES)}")
    wanted = RunFilter(session, trace, model, status, run_type, _instant(since, settings, time.time_ns()))
    with open_reader(settings.database_url) as snapshot:
        boundary = run_rows.abandoned_before(read_completeness(snapshot, (run_rows.PROJECTION,)).at_ns)
        # Closed while the store is open, also when nobody reads the output any more.
        with closing(stream_runs(snapshot, wanted, boundary, limit or None)) as rows:
            found = (run_rows.describe_run(row, boundary, settings.zone()) for row in rows)
            print_list(found if json else map(pages.shorten_run, found), pages.RUNS, pages.NO_RUN, json)


@takes_settings("database_url", "timezone")
def sessions(
    settings: ConsumerSettings,
    since: Since = None,
    service: Annotated[str | None, typer.Option(help="Only sessions of this service.")] = None,
    limit: Limit = 50,
    json: JsonLines = False,
) -> None:
    """Sessions: who, how long, how much. The one with the newest event first."""
    from runtap_consumers.figures.report import read_completeness
    from runtap_consumers.figures.sessions import PROJECTION, describe_session
    from runtap_consumers.store.read.sessions import read_sessions
    from runtap_consumers.store.read.snapshot import open_reader

    since_ns = _instant(since, settings, time.time_ns()) or 0
    with open_reader(settings.database_url) as snapshot:
        complete = read_completeness(snapshot, (PROJECTION,))
        with closing(read_sessions(snapshot, since_ns, service=service, limit=limit or None)) as rows:
            found = (describe_session(row, complete.at_ns, settings.zone()) for row in rows)
            print_list(found, pages.SESSIONS, pages.NO_SESSION, json)


@takes_settings("database_url", "timezone")
def ledger(
    settings: ConsumerSettings,
    json: Annotated[bool, typer.Option("--json", help="One JSON object with all of it.")] = False,
) -> None:
    """Where every captured event is: applied, in flight, dropped, lost or unreadable, by service,
    emitter and reason.
    """
    from runtap_consumers.figures.ledger_report import build_ledger
    from runtap_consumers.store.read.snapshot import open_reader

    with open_reader(settings.database_url) as snapshot:
        figures = build_ledger(snapshot, settings.zone())
    (write_json if json else pages.print_ledger)(figures)


def _instant(text: str | None, settings: ConsumerSettings, now_ns: int) -> int | None:
    return None if text is None else parse_instant(text, settings.zone(), now_ns)
