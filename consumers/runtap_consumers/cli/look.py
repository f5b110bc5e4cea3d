"""`runtap report`, `runtap runs` and `runtap sessions`: the figures, as people read them and as JSON."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, Annotated

import orjson
import typer

from runtap_consumers.cli.lines import write_json, write_lines
from runtap_consumers.cli.options import Limit, takes_settings
from runtap_consumers.errors import InputError
from runtap_consumers.figures import runs as run_rows
from runtap_consumers.instants import EXPECTED, parse_instant
from runtap_consumers.private_files import private_opener
from runtap_consumers.settings import ConsumerSettings

if TYPE_CHECKING:
    from runtap_consumers.store.engine import Store

Since = Annotated[str | None, typer.Option(metavar="TIME", help=f"Begin: {EXPECTED}.")]
Until = Annotated[str | None, typer.Option(metavar="TIME", help="End, not included; now if left out.")]
JsonLines = Annotated[bool, typer.Option("--json", help="One JSON object a line.")]


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
    from runtap_consumers.cli.printing import print_report
    from runtap_consumers.cli.printing_costs import print_attribution
    from runtap_consumers.figures.attribution import build_attribution
    from runtap_consumers.figures.report import build_report

    now_ns = time.time_ns()
    since_ns, until_ns = _instant(since, settings, now_ns), _instant(until, settings, now_ns)
    if since_ns is not None and since_ns >= (now_ns if until_ns is None else until_ns):
        raise InputError(f"the range ends before it begins: --since {since}, --until {until or 'now'}")
    zone = settings.zone()
    with _opened(settings) as store:
        if by is None:
            figures = build_report(store, since_ns, until_ns, service, zone, now_ns)
        else:
            attributes = settings.cost_attributes
            figures = build_attribution(store, by, attributes, since_ns, until_ns, service, zone, now_ns)
        if json is None:
            (print_report if by is None else print_attribution)(figures)
            return
    if json == "-":
        write_json(figures)
        return
    try:
        with open(json, "wb", opener=private_opener) as file:
            file.write(orjson.dumps(figures, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE))
    except OSError as error:
        raise InputError(
            f"cannot write {json!r}: {error.strerror}. Name another file, or - for standard output"
        ) from error


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
    from runtap_consumers.cli.printing import print_runs
    from runtap_consumers.figures.report import read_completeness
    from runtap_consumers.store.read.runs import RunFilter, stream_runs
    from runtap_consumers.store.read.snapshot import open_snapshot

    if status is not None and status not in run_rows.STATUSES:
        raise InputError(f"there is no status {status!r}: expected one of {', '.join(run_rows.STATUSES)}")
    zone = settings.zone()
    wanted = RunFilter(session, trace, model, status, run_type, _instant(since, settings, time.time_ns()))
    with _opened(settings) as store, open_snapshot(store) as snapshot:
        complete = read_completeness(snapshot, (run_rows.PROJECTION,))
        boundary = run_rows.abandoned_before(complete.at_ns)
        # Closed while the store is open, also when nobody reads the output any more.
        with closing(stream_runs(snapshot, wanted, boundary, limit or None)) as rows:
            found = (run_rows.describe_run(row, boundary, zone) for row in rows)
            if json:
                write_lines(found)
            else:
                print_runs(found)


@takes_settings("database_url", "timezone")
def sessions(
    settings: ConsumerSettings,
    since: Since = None,
    service: Annotated[str | None, typer.Option(help="Only sessions of this service.")] = None,
    limit: Limit = 50,
    json: JsonLines = False,
) -> None:
    """Sessions: who, how long, how much. The one with the newest event first."""
    from runtap_consumers.cli.printing import print_sessions
    from runtap_consumers.figures import sessions as session_rows
    from runtap_consumers.figures.report import read_completeness
    from runtap_consumers.store.read.sessions import read_sessions
    from runtap_consumers.store.read.snapshot import open_snapshot

    zone = settings.zone()
    since_ns = _instant(since, settings, time.time_ns()) or 0
    with _opened(settings) as store, open_snapshot(store) as snapshot:
        complete = read_completeness(snapshot, (session_rows.PROJECTION,))
        with closing(read_sessions(snapshot, since_ns, service=service, limit=limit or None)) as rows:
            found = (session_rows.describe_session(row, complete.at_ns, zone) for row in rows)
            if json:
                write_lines(found)
            else:
                print_sessions(found)


@contextmanager
def _opened(settings: ConsumerSettings) -> Iterator[Store]:
    from runtap_consumers.store.engine import open_store

    store = open_store(settings.database_url)
    try:
        yield store
    finally:
        store.close()


def _instant(text: str | None, settings: ConsumerSettings, now_ns: int) -> int | None:
    return None if text is None else parse_instant(text, settings.zone(), now_ns)
