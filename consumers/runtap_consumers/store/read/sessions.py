"""Reading sessions: newest first, each added up over its partitions."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Row, Select, and_, func, not_, or_, select

from runtap_consumers.store import tables
from runtap_consumers.store.read.snapshot import Snapshot, cost_of, cost_sum
from runtap_consumers.units import MINUTE_NS

# Below the number of variables that any SQLite takes in a statement.
_IDS_A_STATEMENT = 500
_SUMMED = ("starts", "ends", "traces", "llm_calls", "tool_calls", "errors", "input_tokens", "output_tokens")


@dataclass(frozen=True)
class SessionRow:
    """One session. `cost_picodollars` is the sum over its `priced_calls`; `calls` counts all its model calls."""

    session_id: str
    first_at_ns: int
    last_at_ns: int
    counts: dict[str, int]
    user_ids: tuple[str, ...]
    calls: int
    priced_calls: int
    cost_picodollars: int


def read_sessions(
    snapshot: Snapshot,
    from_ns: int = 0,
    to_ns: int | None = None,
    service: str | None = None,
    user_id: str | None = None,
    session_id: str | None = None,
    limit: int | None = None,
    after: tuple[int, str] | None = None,
) -> Generator[SessionRow, None, None]:
    """Sessions with an event in [from_ns, to_ns), the one with the newest event first.

    Args:
        snapshot: what to read.
        from_ns: begin.
        to_ns: end; `None`: open.
        service: only sessions with an event of that service.
        user_id: only those in which this user was.
        session_id: only that one.
        limit: at most so many; `None`: all.
        after: newest event and id of the last session that was seen: those that follow it.
    """
    if limit is not None and to_ns is None and user_id is None and session_id is None:
        yield from _read_newest(snapshot, from_ns, limit, service, after)
        return
    table = tables.metadata.tables["sessions"]
    statement = _added_up(_select_sessions(snapshot, from_ns, to_ns, service, user_id, session_id)).limit(limit)
    if after is not None:
        statement = statement.having(_follows(func.max(table.c.last_at_ns), table.c.session_id, after))
    result = snapshot.connection.execute(statement, execution_options={"yield_per": _IDS_A_STATEMENT})
    with closing(result):
        for rows in result.partitions():
            yield from _complete(snapshot, rows)


def count_sessions(snapshot: Snapshot, from_ns: int = 0, to_ns: int | None = None, service: str | None = None) -> int:
    """How many sessions `read_sessions` finds."""
    found = _select_sessions(snapshot, from_ns, to_ns, service).subquery()
    return int(snapshot.connection.execute(select(func.count()).select_from(found)).scalar_one())


def _select_sessions(
    snapshot: Snapshot,
    from_ns: int = 0,
    to_ns: int | None = None,
    service: str | None = None,
    user_id: str | None = None,
    session_id: str | None = None,
) -> Select[Any]:
    table = tables.metadata.tables["sessions"]
    statement = select(table.c.session_id).where(snapshot.is_live(table)).group_by(table.c.session_id)
    if from_ns:
        recent = select(table.c.session_id).where(table.c.last_at_ns >= from_ns, snapshot.is_live(table))
        statement = statement.where(table.c.session_id.in_(recent))
    if to_ns is not None:
        statement = statement.having(func.min(table.c.first_at_ns) < to_ns)
    for name, value in (("service", service), ("user_id", user_id)):
        if value is not None:
            having = select(table.c.session_id).where(table.c[name] == value, snapshot.is_live(table))
            statement = statement.where(table.c.session_id.in_(having))
    if session_id is not None:
        statement = statement.where(table.c.session_id == session_id)
    return statement


def _read_newest(
    snapshot: Snapshot, from_ns: int, limit: int, service: str | None, after: tuple[int, str] | None
) -> Iterator[SessionRow]:
    """The newest sessions by the index on their newest events: those of all would have to be added up to be sorted."""
    table = tables.metadata.tables["sessions"]
    own = table.alias()
    rows_of_it = select(own.c.session_id).where(own.c.session_id == table.c.session_id, snapshot.is_live(table, own))
    statement = select(table.c.session_id).where(table.c.last_at_ns >= from_ns, snapshot.is_live(table))
    if service is not None:
        statement = statement.where(rows_of_it.where(own.c.service == service).exists())
    if after is not None:
        seen = rows_of_it.where(not_(_follows(own.c.last_at_ns, own.c.session_id, after)))
        statement = statement.where(table.c.last_at_ns <= after[0], ~seen.exists())
    newest_first = statement.order_by(table.c.last_at_ns.desc(), table.c.session_id)
    ids = dict[str, None]()
    result = snapshot.connection.execute(newest_first, execution_options={"yield_per": _IDS_A_STATEMENT})
    with closing(result):
        for (session_id,) in result:
            ids[session_id] = None
            if len(ids) == limit:
                break
    for first in range(0, len(ids), _IDS_A_STATEMENT):
        chosen = table.c.session_id.in_(list(ids)[first : first + _IDS_A_STATEMENT])
        statement = _added_up(_select_sessions(snapshot).where(chosen))
        yield from _complete(snapshot, snapshot.connection.execute(statement).all())


def _follows(last_at_ns: ColumnElement[int], session_id: ColumnElement[str], after: tuple[int, str]) -> Any:
    """Whether a session comes after one that was seen, the one with the newest event first."""
    return or_(last_at_ns < after[0], and_(last_at_ns == after[0], session_id > after[1]))


def _added_up(sessions: Select[Any]) -> Select[Any]:
    table = tables.metadata.tables["sessions"]
    last_at = func.max(table.c.last_at_ns)
    columns = (
        func.min(table.c.first_at_ns).label("first_at_ns"),
        last_at.label("last_at_ns"),
        *(func.sum(table.c[name]).label(name) for name in _SUMMED),
    )
    return sessions.add_columns(*columns).order_by(last_at.desc(), table.c.session_id)


def read_session(snapshot: Snapshot, session_id: str) -> SessionRow | None:
    """One session; `None`: there is none."""
    with closing(read_sessions(snapshot, session_id=session_id)) as rows:
        return next(rows, None)


def count_begun_sessions(snapshot: Snapshot, from_ns: int, to_ns: int, service: str | None) -> list[tuple[int, int]]:
    """How many sessions had an event in [from_ns, to_ns), by the minute in which they began."""
    table = tables.metadata.tables["sessions"]
    statement = select(func.min(table.c.first_at_ns).label("first_at_ns"), table.c.session_id)
    recent = select(table.c.session_id).where(table.c.last_at_ns >= from_ns, snapshot.is_live(table))
    statement = statement.where(snapshot.is_live(table), table.c.session_id.in_(recent)).group_by(table.c.session_id)
    if service is not None:
        having = select(table.c.session_id).where(table.c.service == service, snapshot.is_live(table))
        statement = statement.where(table.c.session_id.in_(having))
    begun = statement.having(func.min(table.c.first_at_ns) < to_ns).subquery()
    minute = begun.c.first_at_ns - begun.c.first_at_ns % MINUTE_NS
    counted = select(minute, func.count()).group_by(minute)
    return [(int(at_ns), int(count)) for at_ns, count in snapshot.connection.execute(counted)]


def _complete(snapshot: Snapshot, rows: Sequence[Row[Any]]) -> Iterator[SessionRow]:
    ids = [row.session_id for row in rows]
    sessions, costs = tables.metadata.tables["sessions"], tables.metadata.tables["session_costs"]
    user_ids: dict[str, set[str]] = defaultdict(set)
    of_users = select(sessions.c.session_id, sessions.c.user_id).where(
        sessions.c.session_id.in_(ids), sessions.c.user_id != "", snapshot.is_live(sessions)
    )
    for session_id, user_id in snapshot.connection.execute(of_users):
        user_ids[session_id].add(user_id)
    of_costs = (
        select(
            costs.c.session_id,
            func.sum(costs.c.calls).label("calls"),
            func.sum(costs.c.priced_calls).label("priced_calls"),
            *cost_sum(costs),
        )
        .where(costs.c.session_id.in_(ids), snapshot.is_live(costs))
        .group_by(costs.c.session_id)
    )
    money = {row.session_id: row for row in snapshot.connection.execute(of_costs)}
    for row in rows:
        cost = money.get(row.session_id)
        yield SessionRow(
            row.session_id,
            row.first_at_ns,
            row.last_at_ns,
            {name: int(getattr(row, name)) for name in _SUMMED},
            tuple(sorted(user_ids[row.session_id])),
            int(cost.calls) if cost else 0,
            int(cost.priced_calls) if cost else 0,
            cost_of(cost) if cost else 0,
        )
