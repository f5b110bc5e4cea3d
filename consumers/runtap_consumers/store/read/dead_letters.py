"""Reading the records that could not be read."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from sqlalchemy import Row, func, or_, select

from runtap_consumers.store.read.snapshot import Snapshot
from runtap_consumers.store.tables import dead_letters

_ROWS_A_FETCH = 100


def list_dead_letters(snapshot: Snapshot, limit: int | None) -> list[Row[Any]]:
    """Dead letters without their bytes (`value_bytes` is the length), newest first."""
    columns = dead_letters.c
    statement = (
        select(
            *(columns[name] for name in ("id", "partition", "log_offset", "log_time_ns", "cause", "emitter")),
            *(columns[name] for name in ("sequence", "events", "published")),
            func.coalesce(func.length(columns.value), 0).label("value_bytes"),
        )
        .order_by(columns.log_time_ns.desc(), columns.partition, columns.log_offset.desc())
        .limit(limit)
    )
    return list(snapshot.connection.execute(statement))


def find_dead_letters(snapshot: Snapshot, wanted: str) -> list[Row[Any]]:
    """The dead letter of an id, or those at `partition/offset` (one for each log that had such an offset)."""
    columns = dead_letters.c
    parts = wanted.split("/")
    is_offset = len(parts) == 2 and all(part.isascii() and part.isdigit() and len(part) < 19 for part in parts)
    condition = columns.id == wanted
    if is_offset:
        condition = or_(condition, (columns.partition == int(parts[0])) & (columns.log_offset == int(parts[1])))
    return list(snapshot.connection.execute(select(dead_letters).where(condition).order_by(columns.log_time_ns)))


def stream_dead_letters(snapshot: Snapshot) -> Iterator[Row[Any]]:
    """All dead letters with their bytes, in the order of the log; not all in memory at once."""
    columns = dead_letters.c
    statement = select(dead_letters).order_by(columns.partition, columns.log_offset, columns.id)
    result = snapshot.connection.execute(statement, execution_options={"yield_per": _ROWS_A_FETCH})
    try:
        yield from result
    finally:
        result.close()
