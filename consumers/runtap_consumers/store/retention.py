"""What a partition's owner deletes inside its commit, by log time."""

from __future__ import annotations

from typing import Any

from runtap_consumers.projections.grains import Calendar
from runtap_consumers.projections.rollups import LANE_RETENTION_NS, ROLLUPS, Rollup
from runtap_consumers.store import tables
from runtap_consumers.store.dialect import Dialect
from runtap_consumers.store.statements import pass_on_statement
from runtap_consumers.store.writer import Writer

Change = tuple[str, tuple[Any, ...]]

# A third of a second on either store.
_ROWS_PASSED_AT_ONCE = 20_000
# Which projection's commit deletes of which rollup.
OWNERS = {
    "cost": ("cost", "cost_by_attribute"),
    "performance": ("performance",),
    "errors": ("roots", "errors"),
    "runs": ("scores",),
}


def passed_hours(writer: Writer, projection: str, key: tuple[int, int], at_ns: int, calendar: Calendar) -> list[Change]:
    """Moves rows of hours whose time is over into their days, where rows pass on; some ten thousand at a time, since
    everybody waits for the commit that they are in.

    Args:
        writer: what reads which there are; not in a transaction.
        projection: whose rows.
        key: partition and generation. Of another generation a rebuild may write the same rows meanwhile.
        at_ns: log time of the partition.
        calendar: the store's.
    """
    for rollup in _owned(projection):
        if not rollup.passes_on:
            continue
        hours, days = (tables.metadata.tables[rollup.table_name(grain)] for grain in rollup.grains)
        is_over = "bucket_ns < ? AND partition = ? AND generation = ?"
        over_ns = at_ns - (rollup.grains["hour"] or 0)
        oldest = writer.read(f"SELECT min(bucket_ns) FROM {hours.name} WHERE {is_over}", (over_ns, *key))[0][0]
        if oldest is None:
            continue
        chosen, parameters = "bucket_ns = ? AND partition = ? AND generation = ?", (oldest, *key)
        # Two columns of the key, in whose order the rows are found.
        columns = ", ".join(rollup.keys[:2])
        bound = writer.read(
            f"SELECT {columns} FROM {hours.name} WHERE {chosen} ORDER BY {columns} LIMIT 1 OFFSET ?",
            (*parameters, _ROWS_PASSED_AT_ONCE),
        )
        if bound:
            chosen, parameters = f"{chosen} AND ({columns}) <= (?, ?)", (*parameters, *bound[0])
        pass_on = pass_on_statement(hours, days, chosen, writer.dialect)
        return [
            (pass_on, (calendar.day_of(oldest), *parameters)),
            (f"DELETE FROM {hours.name} WHERE {chosen}", parameters),
        ]
    return []


def _owned(projection: str) -> list[Rollup]:
    return [rollup for rollup in ROLLUPS if rollup.name in OWNERS.get(projection, ())]


def expired_buckets(projection: str, partition: int, log_time_ns: int) -> list[Change]:
    """Deletes the rollup rows of a partition past their grain's retention, by its log time."""
    return [
        (
            f"DELETE FROM {rollup.table_name(grain)} WHERE bucket_ns < ? AND partition = ?",
            (log_time_ns - kept_ns, partition),
        )
        for rollup in _owned(projection)
        for grain, kept_ns in rollup.grains.items()
        if kept_ns is not None and not (rollup.passes_on and grain == "hour")
    ]


def expired_lanes(partition: int, log_time_ns: int, log_start_ns: int) -> list[Change]:
    """Deletes lanes that were silent for 14 days, in all projections together, with what was said of their emitters.

    Args:
        partition: whose lanes.
        log_time_ns: up to where the partition was read by anybody.
        log_start_ns: when the oldest record that the log still holds was appended. Lanes that are in the log keep their
            marks, or their events would count again where it is read from its start.
    """
    silent_ns = log_time_ns - LANE_RETENTION_NS
    horizon = min(silent_ns, log_start_ns)
    is_unknown = "emitter NOT IN (SELECT emitter FROM lane_marks)"
    heard = "SELECT emitter FROM lane_marks WHERE partition = ? AND log_time_ns >= ?"
    return [
        (
            f"DELETE FROM lane_marks WHERE partition = ? AND log_time_ns < ? AND emitter NOT IN ({heard})",
            (partition, horizon, partition, horizon),
        ),
        ("DELETE FROM report_minutes WHERE partition = ? AND bucket_ns < ?", (partition, silent_ns)),
        *(
            (f"DELETE FROM {table} WHERE partition = ? AND log_time_ns < ? AND {is_unknown}", (partition, silent_ns))
            for table in ("emitter_reports", "emitter_counts", "abandoned_lanes")
        ),
    ]


def expired_runs(partition: int, log_time_ns: int, kept_ns: int, at_most: int, dialect: Dialect) -> list[Change]:
    """Deletes single runs and open ones past their retention, the oldest first, and so many ended ones at most."""
    horizon = log_time_ns - kept_ns
    # By the start too, which the index begins with: it is at most a minute later than the log time.
    chosen = f"SELECT {dialect.row_id} FROM runs WHERE started_at_ns < ? AND partition = ? AND log_time_ns < ? LIMIT ?"
    return [
        (f"DELETE FROM runs WHERE {dialect.row_id} IN ({chosen})", (horizon, partition, horizon, at_most)),
        ("DELETE FROM open_runs WHERE partition = ? AND log_time_ns < ?", (partition, horizon)),
        ("DELETE FROM run_scores WHERE partition = ? AND log_time_ns < ?", (partition, horizon)),
    ]


def expired_contents(partition: int, log_time_ns: int, kept_ns: int) -> Change:
    """Deletes contents past their retention, some ten thousand at a time."""
    chosen = "SELECT run_id FROM contents WHERE partition = ? AND log_time_ns < ? LIMIT ?"
    horizon = log_time_ns - kept_ns
    return (
        f"DELETE FROM contents WHERE partition = ? AND log_time_ns < ? AND run_id IN ({chosen})",
        (partition, horizon, partition, horizon, _ROWS_PASSED_AT_ONCE),
    )


def expired_sessions(partition: int, generation: int, log_time_ns: int, kept_ns: int) -> list[Change]:
    """Deletes sessions without an event for longer than they are kept.

    Of one generation: a rebuild knows but the beginning of a session that goes on.
    """
    horizon = log_time_ns - kept_ns
    key = (partition, generation)
    is_ours = "partition = ? AND generation = ?"
    # None of its rows, one a user, is younger.
    expired = (
        f"SELECT session_id FROM sessions AS old WHERE {is_ours} AND last_at_ns < ? AND NOT EXISTS (SELECT 1 FROM "
        f"sessions WHERE session_id = old.session_id AND {is_ours} AND (last_at_ns >= ? OR last_log_time_ns >= ?))"
    )
    return [
        (
            f"DELETE FROM {table} WHERE {is_ours} AND session_id IN ({expired})",
            (*key, *key, horizon, *key, horizon, horizon),
        )
        for table in ("session_costs", "sessions")
    ]


def surplus_recent_errors(partition: int, generation: int, kept: int) -> Change:
    """Deletes all but the newest recent errors of a partition."""
    newest = (
        "SELECT at_ns FROM recent_errors WHERE partition = ? AND generation = ? ORDER BY at_ns DESC LIMIT 1 OFFSET ?"
    )
    return (
        f"DELETE FROM recent_errors WHERE partition = ? AND generation = ? AND at_ns < ({newest})",
        (partition, generation, partition, generation, kept - 1),
    )
