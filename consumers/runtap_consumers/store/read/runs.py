"""Reading single runs, newest first, as a stream: what is held in memory does not grow with their number."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from heapq import merge
from itertools import islice
from operator import itemgetter
from typing import Any

import msgspec
from sqlalchemy import ColumnElement, Select, and_, func, or_, select

from runtap_consumers.store import tables
from runtap_consumers.store.engine import keep_limit
from runtap_consumers.store.read.run_filter import RunFilter
from runtap_consumers.store.read.snapshot import Snapshot
from runtap_consumers.units import HOUR_NS, MINUTE_NS

_ROWS_A_FETCH = 1_000
_FIRST_STRETCH_NS = 10 * MINUTE_NS
_LONGEST_STRETCH_NS = 12 * HOUR_NS


def stream_runs(
    snapshot: Snapshot, wanted: RunFilter, abandoned_before_ns: int | None, limit: int | None = None
) -> Generator[Mapping[str, Any], None, None]:
    """Ended runs with the columns of `runs`, and open ones with those of `open_runs`, by start, newest first.

    Args:
        snapshot: what to read.
        wanted: filters.
        abandoned_before_ns: an open run that started before it is abandoned; `None`: none is.
        limit: at most so many; `None`: all.
    """
    is_by_time = wanted.order == "started_at_ns"
    with ExitStack() as cursors:
        streams = []
        if wanted.status not in ("open", "abandoned"):
            streams.append(_run(snapshot, _select_ended(snapshot, wanted).limit(limit), cursors))
        if _may_be_open(wanted) and is_by_time:
            opened = _select_open(snapshot, wanted, abandoned_before_ns)
            streams.append(_run(snapshot, opened.limit(limit), cursors))
        yield from islice(
            merge(*streams, key=itemgetter("started_at_ns"), reverse=True) if is_by_time else streams[0], limit
        )


def search_runs(
    snapshot: Snapshot, wanted: RunFilter, abandoned_before_ns: int | None, limit: int
) -> Generator[Mapping[str, Any], None, None]:
    """What `stream_runs` finds, stretch after stretch of time, so that whoever ends it knows how far it came: after
    each stretch comes a row without `run_id`, whose `started_at_ns` all runs that follow have, or an earlier one.
    """
    with ExitStack() as cursors:
        streams = []
        if _may_be_open(wanted):
            streams.append(_run(snapshot, _select_open(snapshot, wanted, abandoned_before_ns).limit(limit), cursors))
        if wanted.status not in ("open", "abandoned"):
            streams.append(_search_ended(snapshot, wanted, limit))
        yield from merge(*streams, key=itemgetter("started_at_ns"), reverse=True)


def _search_ended(snapshot: Snapshot, wanted: RunFilter, limit: int) -> Iterator[dict[str, Any]]:
    started_at_ns = tables.runs.c.started_at_ns
    first_ns = snapshot.connection.execute(select(func.min(started_at_ns))).scalar()
    last_ns = snapshot.connection.execute(select(func.max(started_at_ns))).scalar()
    if first_ns is None or last_ns is None:
        return
    oldest_ns = max(first_ns, wanted.since_ns or 0)
    untils = (wanted.until_ns, wanted.after[0] + 1 if wanted.after else None, last_ns + 1)
    until_ns = min(one for one in untils if one is not None)
    stretch_ns = _FIRST_STRETCH_NS
    while until_ns > oldest_ns:
        since_ns = max(until_ns - stretch_ns, oldest_ns)
        with ExitStack() as cursors:
            keep_limit(snapshot.connection)
            statement = _select_ended(snapshot, replace(wanted, since_ns=since_ns, until_ns=until_ns))
            yield from _run(snapshot, statement.limit(limit), cursors)
        until_ns, stretch_ns = since_ns, min(2 * stretch_ns, _LONGEST_STRETCH_NS)
        yield {"started_at_ns": until_ns - 1}


def _may_be_open(wanted: RunFilter) -> bool:
    return wanted.status in (None, "open", "abandoned") and wanted.tag is None and wanted.metadata is None


def _run(snapshot: Snapshot, statement: Select[Any], cursors: ExitStack) -> Iterator[dict[str, Any]]:
    result = snapshot.connection.execute(statement, execution_options={"yield_per": _ROWS_A_FETCH})
    # Where a limit ends the reading early, the cursor would remain open on the server.
    cursors.callback(result.close)
    names = tuple(result.keys())
    return (dict(zip(names, row, strict=True)) for row in result)


def _select_ended(snapshot: Snapshot, wanted: RunFilter) -> Select[Any]:
    table = tables.runs
    statement = _filter(select(table).where(snapshot.is_live(table)), table.c, wanted)
    if wanted.model is not None:
        statement = statement.where(or_(table.c.model == wanted.model, table.c.request_model == wanted.model))
    if wanted.tag is not None:
        statement = statement.where(_has_tag(snapshot, table.c.tags, wanted.tag))
    if wanted.metadata is not None:
        statement = statement.where(_metadata_is(snapshot, table.c.metadata, *wanted.metadata))
    if wanted.status is not None:
        statement = statement.where(table.c.status == wanted.status)
    if wanted.order != "started_at_ns":
        statement = statement.where(table.c[wanted.order].is_not(None)).order_by(table.c[wanted.order].desc())
    return statement.order_by(table.c.started_at_ns.desc(), table.c.run_id)


def select_unended(snapshot: Snapshot) -> Select[Any]:
    """Runs that have begun and not ended, with the columns of `open_runs`."""
    table = tables.metadata.tables["open_runs"]
    # Start and end may lie in different partitions once partitions were added.
    runs = tables.runs.c
    ended = select(runs.run_id).where(
        runs.trace_id == table.c.trace_id, runs.run_id == table.c.run_id, snapshot.is_live(tables.runs)
    )
    return select(table).where(snapshot.is_live(table), ~ended.exists())


def count_unended(
    snapshot: Snapshot, before_ns: int, group_by: Sequence[str], where: Mapping[str, str], without: Mapping[str, str]
) -> dict[tuple[str, ...], int]:
    """Runs that began before an instant and have not ended, by columns of `open_runs`; `without`: values that these
    must not have.
    """
    unended = select_unended(snapshot).subquery()
    keys = [func.coalesce(unended.c[name], "") for name in group_by]
    conditions = [unended.c.started_at_ns < before_ns, *(unended.c[name] == value for name, value in where.items())]
    conditions += [func.coalesce(unended.c[name], "") != value for name, value in without.items()]
    rows = snapshot.connection.execute(select(*keys, func.count()).where(*conditions).group_by(*keys))
    return {tuple(group): int(count) for *group, count in rows}


def _select_open(snapshot: Snapshot, wanted: RunFilter, abandoned_before_ns: int | None) -> Select[Any]:
    table = tables.metadata.tables["open_runs"]
    statement = _filter(select_unended(snapshot), table.c, wanted)
    if wanted.model is not None:
        statement = statement.where(table.c.request_model == wanted.model)
    boundary = abandoned_before_ns or 0
    if wanted.status == "abandoned":
        statement = statement.where(table.c.started_at_ns < boundary)
    elif wanted.status == "open":
        statement = statement.where(table.c.started_at_ns >= boundary)
    return statement.order_by(table.c.started_at_ns.desc(), table.c.run_id)


def _filter(statement: Select[Any], columns: Any, wanted: RunFilter) -> Select[Any]:
    for name in ("session_id", "trace_id", "run_type", "user_id", "service", "name"):
        value = getattr(wanted, name)
        if value is not None:
            statement = statement.where(columns[name] == value)
    if wanted.roots:
        statement = statement.where(func.coalesce(columns.parent_run_id, "") == "")
    if wanted.since_ns is not None:
        statement = statement.where(columns.started_at_ns >= wanted.since_ns)
    if wanted.until_ns is not None:
        statement = statement.where(columns.started_at_ns < wanted.until_ns)
    if wanted.after is not None:
        started_at_ns, run_id = wanted.after
        is_later = and_(columns.started_at_ns == started_at_ns, columns.run_id > run_id)
        # The first alone lets the index begin there.
        statement = statement.where(
            columns.started_at_ns <= started_at_ns, or_(columns.started_at_ns < started_at_ns, is_later)
        )
    return statement


# Tags and metadata are searched as the JSON text that they are: a quote within a string has a backslash before it, so
# that what begins with `,"` or `["` is an element, or a key. (PostgreSQL's JSON functions refuse some texts.)


def _has_tag(snapshot: Snapshot, column: ColumnElement[str], tag: str) -> ColumnElement[bool]:
    return or_(*(_has(snapshot, column, f"{before}{_json(tag)}") for before in "[,"))


def _metadata_is(snapshot: Snapshot, column: ColumnElement[str], key: str, value: str) -> ColumnElement[bool]:
    shown = (_json(value), f"{value},", f"{value}}}")
    return or_(*(_has(snapshot, column, f"{before}{_json(key)}:{one}") for before in "{," for one in shown))


def _has(snapshot: Snapshot, column: ColumnElement[str], part: str) -> ColumnElement[bool]:
    # LIKE is blind to case on SQLite.
    found: ColumnElement[bool] = getattr(func, snapshot.dialect.find)(column, part) > 0
    return found


def _json(text: str) -> str:
    return msgspec.json.encode(text).decode()
