"""What a partition's owner deletes inside its commit, by log time."""

from __future__ import annotations

from typing import Any

from runtap_consumers.projections.rollups import LANE_RETENTION_NS, ROLLUPS
from runtap_consumers.store.dialect import Dialect

Deletion = tuple[str, tuple[Any, ...]]

# Which projection's commit deletes of which rollup.
OWNERS = {
    "cost": ("cost", "cost_by_attribute"),
    "performance": ("performance",),
    "errors": ("roots", "errors"),
}
_SESSION_TABLES = ("session_users", "session_costs")


def expired_buckets(projection: str, partition: int, log_time_ns: int) -> list[Deletion]:
    """Deletes the rollup rows of a partition past their grain's retention, by its log time."""
    return [
        (
            f"DELETE FROM {rollup.table_name(grain)} WHERE bucket_ns < ? AND partition = ?",
            (log_time_ns - kept_ns, partition),
        )
        for rollup in ROLLUPS
        if rollup.name in OWNERS.get(projection, ())
        for grain, kept_ns in rollup.grains.items()
        if kept_ns is not None
    ]


def expired_lanes(partition: int, log_time_ns: int, log_start_ns: int) -> list[Deletion]:
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
