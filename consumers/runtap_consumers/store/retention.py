"""What a partition's owner deletes inside its commit, by log time; and which reports of emitters go (`thinning`)."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, NamedTuple

from runtap_consumers.projections.rollups import LANE_RETENTION_NS, ROLLUPS
from runtap_consumers.store.dialect import Dialect
from runtap_consumers.store.writer import Writer

Deletion = tuple[str, tuple[Any, ...]]

# Which projection's commit deletes of which rollup.
OWNERS = {
    "cost": ("cost", "cost_by_attribute"),
    "performance": ("performance",),
    "errors": ("roots", "errors"),
}
_SESSION_TABLES = ("session_users", "session_costs")


def expired_buckets(projection: str, partition: int, log_time_ns: int, log_start_ns: int) -> list[Deletion]:
    """Deletes a projection's rollup rows past their grain's retention, and lanes that were silent for 14 days.

    `log_start_ns`: when the oldest record that the log still holds was appended. Lanes that are in the log keep their
    marks, or their events would count again where it is read from its start.
    """
    deletions: list[Deletion] = [
        (
            f"DELETE FROM {rollup.table_name(grain)} WHERE bucket_ns < ? AND partition = ?",
            (log_time_ns - kept_ns, partition),
        )
        for rollup in ROLLUPS
        if rollup.name in OWNERS.get(projection, ())
        for grain, kept_ns in rollup.grains.items()
        if kept_ns is not None
    ]
    deletions.append(
        (
            "DELETE FROM lane_marks WHERE projection = ? AND partition = ? AND last_log_time_ns < ?",
            (projection, partition, min(log_time_ns - LANE_RETENTION_NS, log_start_ns)),
        )
    )
    if projection == "ledger":
        deletions += [
            (
                f"DELETE FROM {table} WHERE partition = ? AND log_time_ns < ?",
                (partition, log_time_ns - LANE_RETENTION_NS),
            )
            for table in ("emitter_reports", "report_chains")
        ]
    return deletions


def expired_runs(partition: int, log_time_ns: int, kept_ns: int, at_most: int, dialect: Dialect) -> list[Deletion]:
    """Deletes single runs and open ones past their retention, the oldest first, and so many ended ones at most."""
    horizon = log_time_ns - kept_ns
    # By the start too, which the index begins with: it is at most a minute later than the log time.
    chosen = f"SELECT {dialect.row_id} FROM runs WHERE started_at_ns < ? AND partition = ? AND log_time_ns < ? LIMIT ?"
    return [
        (f"DELETE FROM runs WHERE {dialect.row_id} IN ({chosen})", (horizon, partition, horizon, at_most)),
        ("DELETE FROM open_runs WHERE partition = ? AND log_time_ns < ?", (partition, horizon)),
    ]


def expired_sessions(partition: int, generation: int, log_time_ns: int, kept_ns: int) -> list[Deletion]:
    """Deletes sessions without an event for longer than they are kept.

    Of one generation: a rebuild knows but the beginning of a session that goes on.
    """
    horizon = log_time_ns - kept_ns
    is_expired = "last_at_ns < ? AND last_log_time_ns < ? AND partition = ? AND generation = ?"
    expired = f"SELECT session_id FROM sessions WHERE {is_expired}"
    key = (partition, generation)
    return [
        *(
            (
                f"DELETE FROM {table} WHERE partition = ? AND generation = ? AND session_id IN ({expired})",
                (*key, horizon, horizon, *key),
            )
            for table in _SESSION_TABLES
        ),
        (f"DELETE FROM sessions WHERE {is_expired}", (horizon, horizon, *key)),
    ]


def surplus_recent_errors(partition: int, generation: int, kept: int) -> Deletion:
    """Deletes all but the newest recent errors of a partition."""
    newest = (
        "SELECT at_ns FROM recent_errors WHERE partition = ? AND generation = ? ORDER BY at_ns DESC LIMIT 1 OFFSET ?"
    )
    return (
        f"DELETE FROM recent_errors WHERE partition = ? AND generation = ? AND at_ns < ({newest})",
        (partition, generation, partition, generation, kept - 1),
    )


class OldReport(NamedTuple):
    """What decides whether a report of an emitter may go."""

    number: int
    log_time_ns: int
    complete_at_ns: int


def read_old_reports(writer: Writer, emitter: str, below: int, before_ns: int, at_most: int) -> list[OldReport]:
    """An emitter's reports that close nothing, in order: numbers under `below`, log times before `before_ns`."""
    rows = writer.read(
        "SELECT number, min(log_time_ns), max(complete_at_ns) FROM emitter_reports "
        "WHERE emitter = ? AND number < ? AND log_time_ns < ? AND closing = 0 GROUP BY number ORDER BY number LIMIT ?",
        (emitter, below, before_ns, at_most),
    )
    return [OldReport(*row) for row in rows]


def delete_reports(writer: Writer, emitter: str, numbers: list[int], evidence: Collection[int] = ()) -> int:
    """Deletes some reports of an emitter, inside a transaction; returns how many.

    The ids of numbers in `evidence` are kept: they show that two processes report under one emitter id.
    """
    ids = [number for number in numbers if number not in evidence]
    placeholders = ",".join("?" * len(ids))
    writer.execute(f"DELETE FROM report_chains WHERE emitter = ? AND number IN ({placeholders})", (emitter, *ids))
    placeholders = ",".join("?" * len(numbers))
    return writer.execute(
        f"DELETE FROM emitter_reports WHERE emitter = ? AND number IN ({placeholders})", (emitter, *numbers)
    )
