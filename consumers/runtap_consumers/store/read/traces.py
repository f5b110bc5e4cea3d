"""Reading traces: which trace an id is of, its runs, and what was captured of their content."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import cramjam
import orjson
from sqlalchemy import ColumnElement, Table, and_, select

from runtap_consumers.store import tables
from runtap_consumers.store.read.sessions import SessionRow
from runtap_consumers.store.read.snapshot import Snapshot
from runtap_consumers.units import DAY_NS

# Below the number of variables that any SQLite takes in a statement.
_IDS_A_STATEMENT = 500
# Comes after all that follows a beginning.
_LAST = "\U0010ffff"
_LONGEST_RUN_NS = DAY_NS


def find_traces(snapshot: Snapshot, text: str, limit: int = 10) -> list[str]:
    """The traces of an id: its own, or a run's; or of runs whose id begins like that. The ids of `limit` at most."""
    found: dict[str, None] = {}
    for is_exact in (True, False):
        for table in (tables.runs, tables.metadata.tables["open_runs"]):
            for condition in _conditions(snapshot, table, text, is_exact):
                statement = select(table.c.trace_id).where(condition, snapshot.is_live(table)).distinct().limit(limit)
                found.update(dict.fromkeys(snapshot.connection.execute(statement).scalars()))
        if found:
            break
    return list(found)[:limit]


def _conditions(snapshot: Snapshot, table: Table, text: str, is_exact: bool) -> list[ColumnElement[bool]]:
    if is_exact:
        return [table.c.trace_id == text, table.c.run_id == text]
    run_id, dialect = table.c.run_id, snapshot.dialect
    return [and_(run_id.op(dialect.from_on)(text), run_id.op(dialect.before)(text + _LAST))]


def read_trace(snapshot: Snapshot, trace_id: str, limit: int) -> list[dict[str, Any]]:
    """The runs of a trace, ended ones with the columns of `runs`, open ones with those of `open_runs`; by start."""
    ended = _rows(snapshot, tables.runs, trace_id, limit)
    known = {row["run_id"] for row in ended}
    # Start and end may lie in different partitions once partitions were added.
    opened = _rows(snapshot, tables.metadata.tables["open_runs"], trace_id, limit)
    found = [*ended, *(row for row in opened if row["run_id"] not in known)]
    return sorted(found, key=lambda row: (row["started_at_ns"], row["run_id"]))[:limit]


def _rows(snapshot: Snapshot, table: Table, trace_id: str, limit: int) -> list[dict[str, Any]]:
    statement = select(table).where(table.c.trace_id == trace_id, snapshot.is_live(table))
    rows = snapshot.connection.execute(statement.order_by(table.c.started_at_ns).limit(limit)).mappings()
    return [dict(row) for row in rows]


def read_session_traces(snapshot: Snapshot, session: SessionRow, limit: int) -> list[str]:
    """The traces of a session, as far as their runs are kept, the oldest first."""
    found: dict[str, int] = {}
    # By time, which the index begins with: there is none on sessions. Its first event may be the end of a long run.
    begin_ns, end_ns = session.first_at_ns - _LONGEST_RUN_NS, session.last_at_ns
    for table in (tables.runs, tables.metadata.tables["open_runs"]):
        statement = (
            select(table.c.trace_id, table.c.started_at_ns)
            .where(
                table.c.session_id == session.session_id,
                table.c.started_at_ns >= begin_ns,
                table.c.started_at_ns <= end_ns,
                snapshot.is_live(table),
            )
            .order_by(table.c.started_at_ns)
        )
        for trace_id, started_at_ns in snapshot.connection.execute(statement):
            found[trace_id] = min(started_at_ns, found.get(trace_id, started_at_ns))
    return sorted(found, key=lambda trace_id: found[trace_id])[:limit]


def read_contents(snapshot: Snapshot, run_ids: Iterable[str]) -> dict[str, dict[str, Any]]:
    """What was captured of runs: `inputs`, `outputs` and `content_bytes`, what there is of them, by run id."""
    table = tables.metadata.tables["contents"]
    found = {}
    for ids in _in_pieces(sorted(run_ids)):
        statement = select(table.c.run_id, table.c.content).where(table.c.run_id.in_(ids), snapshot.is_live(table))
        for run_id, content in snapshot.connection.execute(statement):
            found[run_id] = orjson.loads(bytes(cramjam.zstd.decompress(content)))
    return found


def _in_pieces(ids: Sequence[str]) -> Iterator[Sequence[str]]:
    for first in range(0, len(ids), _IDS_A_STATEMENT):
        yield ids[first : first + _IDS_A_STATEMENT]
