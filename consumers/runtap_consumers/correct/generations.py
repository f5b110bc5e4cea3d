"""Generations of a projection's rows: one is live in each partition, a rebuild fills another one beside it.

What a rebuild does not replace, since the log does not reach back so far, is copied from the live generation.
"""

from __future__ import annotations

import sqlite3
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from sqlalchemy import Connection, Table, select, text
from sqlalchemy.exc import DBAPIError

from runtap_consumers.errors import RebuildError, StoreError
from runtap_consumers.projections.lane_marks import Lane
from runtap_consumers.projections.rollups import DAY_NS, Merge
from runtap_consumers.store import tables
from runtap_consumers.store.engine import Store
from runtap_consumers.store.positions import Position, lane_row, load_lanes, load_positions
from runtap_consumers.store.read.snapshot import owner_of
from runtap_consumers.store.writer import Row, Writer

# Any fixed number: rebuilds of one database's store take turns on it.
_REBUILD_LOCK = 7_262_416
_ROWS_A_DELETION = 5_000
_OF_OLDER_SESSIONS = (
    "session_id IN (SELECT session_id FROM sessions "
    "WHERE partition = :partition AND generation = :live AND first_at_ns < :from_ns)"
)
# Which rows a rebuild leaves as they are: those from before the instant from which on it knows all.
_OLDER = {
    "recent_errors": "at_ns < :from_ns",
    "sessions": "first_at_ns < :from_ns",
    "session_users": _OF_OLDER_SESSIONS,
    "session_costs": _OF_OLDER_SESSIONS,
    "runs": "ended_at_ns < :from_ns",
    "open_runs": "started_at_ns < :from_ns",
    "emitter_reports": "log_time_ns < :from_ns",
    "report_chains": "log_time_ns < :from_ns",
    # Counts without a time can be told apart only where the log has all of it.
    "skipped_types": ":from_ns > 0",
    "skewed_events": ":from_ns > 0",
}
# Announcements of live workers to the alert evaluator: no figures.
_NOT_FIGURES = ("touched_minutes",)
_AGGREGATES = {Merge.ADD: "CAST(sum({}) AS BIGINT)", Merge.MIN: "min({})", Merge.MAX: "max({})", Merge.KEEP: "min({})"}


@dataclass(frozen=True)
class LivePartition:
    """A partition's live state at one moment: from its `next_offset` on, a rebuild does what live workers do.

    `unread`: numbers of quarantined events, by emitter. `older_sessions`: sessions that began before the replaced range
    and go on in it; they stay as they are.
    """

    number: int
    position: Position
    lanes: dict[str, Lane]
    unread: dict[str, set[int]] = field(default_factory=dict)
    older_sessions: frozenset[str] = frozenset()


def tables_of(projection: str) -> list[Table]:
    """The tables of a projection's figures."""
    return [
        table
        for table in tables.metadata.sorted_tables
        if "generation" in table.columns
        and table is not tables.positions
        and table.name not in _NOT_FIGURES
        and owner_of(table) == projection
    ]


@contextmanager
def exclusively(store: Store) -> Iterator[None]:
    """Keeps other rebuilds of this store away for as long as this process lives.

    Raises:
        RebuildError: another one is running.
    """
    refused = RebuildError("another rebuild of this store is running: wait for its end, or end it")
    if store.is_sqlite:
        # A file of its own: the store's is locked by whoever writes.
        guard = sqlite3.connect(f"{store.engine.url.database}.rebuild", timeout=0, isolation_level=None)
        try:
            try:
                guard.execute("BEGIN EXCLUSIVE")
            except sqlite3.OperationalError as error:
                raise refused from error
            yield
        finally:
            guard.close()
        return
    with store.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        if not connection.execute(text("SELECT pg_try_advisory_lock(:lock)"), {"lock": _REBUILD_LOCK}).scalar_one():
            raise refused
        try:
            yield
        finally:
            connection.execute(text("SELECT pg_advisory_unlock(:lock)"), {"lock": _REBUILD_LOCK})


@contextmanager
def snapshot_to_write(store: Store) -> Iterator[Connection]:
    """A transaction that sees one state of the store and may write; live workers go on.

    Raises:
        StoreError: the store refused or vanished; nothing was written.
    """
    try:
        with store.engine.connect() as connection:
            if store.is_sqlite:
                connection.exec_driver_sql("BEGIN IMMEDIATE")
            else:
                connection.execution_options(isolation_level="REPEATABLE READ")
            yield connection
            connection.commit()
    except DBAPIError as error:
        raise StoreError(f"the store did not take older rows: {str(error.orig).strip()}. Start again") from error


def read_positions(store: Store, projection: str) -> dict[int, Position]:
    """A projection's positions as they are now, by partition."""
    with store.read() as connection:
        numbers = connection.execute(
            select(tables.positions.c.partition).where(tables.positions.c.projection == projection)
        ).scalars()
        return {number: load_positions(connection, number, [projection])[projection] for number in list(numbers)}


def read_live(connection: Connection, projection: str, number: int, from_ns: int) -> LivePartition:
    """What a rebuild must know of a partition's live state."""
    position = load_positions(connection, number, [projection])[projection]
    lanes = load_lanes(connection, number, projection)
    unread: dict[str, set[int]] = defaultdict(set)
    letters = tables.dead_letters.c
    for emitter, sequence in connection.execute(
        select(letters.emitter, letters.sequence).where(
            letters.partition == number, letters.emitter.is_not(None), letters.sequence.is_not(None)
        )
    ):
        lane = lanes.get(emitter)
        if lane is not None and sequence <= lane.mark:
            unread[emitter].add(sequence)
    older: frozenset[str] = frozenset()
    if projection == "sessions":
        sessions = tables.metadata.tables["sessions"].c
        older = frozenset(
            connection.execute(
                select(sessions.session_id).where(
                    sessions.partition == number,
                    sessions.generation == position.generation,
                    sessions.first_at_ns < from_ns,
                    sessions.last_at_ns >= from_ns,
                )
            ).scalars()
        )
    return LivePartition(number, position, lanes, dict(unread), older)


def copy_older(connection: Connection, projection: str, live: LivePartition, generation: int, from_ns: int) -> None:
    """Gives a new generation the rows that stay; totals are added up of the days that do."""
    parameters = {
        "partition": live.number,
        "live": live.position.generation,
        "generation": generation,
        "from_ns": from_ns,
    }
    for table in tables_of(projection):
        if table.name == "error_groups":
            statement = _copy_error_groups(table)
        elif table.name.endswith("_total"):
            statement = _add_up_days(table)
        else:
            names = [column.name for column in table.columns]
            source = ", ".join(":generation" if name == "generation" else name for name in names)
            statement = (
                f"INSERT INTO {table.name} ({', '.join(names)}) SELECT {source} FROM {table.name} "
                f"WHERE partition = :partition AND generation = :live AND {_older(table)}"
            )
        connection.execute(text(statement), parameters)


def _older(table: Table) -> str:
    return _OLDER.get(table.name, "bucket_ns < :from_ns")


def _add_up_days(table: Table) -> str:
    keys = [column.name for column in table.primary_key.columns if column.name not in ("partition", "generation")]
    measures = [column for column in table.columns if not column.primary_key]
    sums = ", ".join(_AGGREGATES[column.info["merge"]].format(column.name) for column in measures)
    return (
        f"INSERT INTO {table.name} ({', '.join([*keys, 'partition', 'generation'])}, "
        f"{', '.join(column.name for column in measures)}) "
        f"SELECT {', '.join(keys)}, partition, :generation, {sums} FROM {table.name.removesuffix('_total')}_day "
        f"WHERE partition = :partition AND generation = :live AND bucket_ns < :from_ns "
        f"GROUP BY {', '.join(keys)}, partition"
    )


def _copy_error_groups(table: Table) -> str:
    names = [column.name for column in table.columns]
    counted = {
        "generation": ":generation",
        "count": "CAST(sum(d.count) AS BIGINT)",
        "first_at_ns": "min(d.first_at_ns)",
        "last_at_ns": "max(d.last_at_ns)",
        "sample_run_id": "min(d.sample_run_id)",
    }
    facts = [f"g.{name}" for name in names if name not in counted]
    return (
        f"INSERT INTO error_groups ({', '.join(names)}) "
        f"SELECT {', '.join(counted.get(name, f'g.{name}') for name in names)} FROM errors_day d "
        "JOIN error_groups g ON g.service = d.service AND g.environment = d.environment "
        "AND g.fingerprint = d.fingerprint AND g.partition = d.partition AND g.generation = d.generation "
        "WHERE d.partition = :partition AND d.generation = :live AND d.bucket_ns < :from_ns "
        f"GROUP BY {', '.join(facts)}"
    )


def lock_positions(writer: Writer, projection: str) -> dict[int, tuple[int, int, str]]:
    """Next offset, epoch and fingerprint of a projection's positions, which nobody moves until the transaction ends."""
    lock = " FOR UPDATE" if writer.dialect == "postgresql" else ""
    rows = writer.query(
        "SELECT partition, next_offset, epoch, fingerprint FROM positions WHERE projection = ? "
        f"ORDER BY partition{lock}",
        (projection,),
    )
    return {partition: (next_offset, epoch, fingerprint) for partition, next_offset, epoch, fingerprint in rows}


def switch_generation(writer: Writer, projection: str, partition: int, generation: int, lanes: dict[str, Lane]) -> None:
    """Makes a generation the live one, inside a transaction that has locked the position; workers must load it again.

    Args:
        writer: of the transaction.
        projection: whose.
        partition: where.
        generation: which counts from now on.
        lanes: those that are not as live workers left them.
    """
    writer.execute(
        "UPDATE positions SET generation = ?, epoch = epoch + 1 WHERE projection = ? AND partition = ?",
        (generation, projection, partition),
    )
    rows: list[Row] = [lane_row(projection, partition, emitter, lane) for emitter, lane in sorted(lanes.items())]
    if rows:
        writer.upsert(tables.lane_marks, rows)


def delete_dead_generations(writer: Writer, projection: str) -> int:
    """Deletes rows that do not count (of a rebuild that was ended, or of before one) a few thousand at a time.

    Returns:
        How many they were.
    """
    deleted = 0
    for table in tables_of(projection):
        row_id = _row_id(table, writer.dialect)
        statement = (
            f"DELETE FROM {table.name} WHERE ({row_id}) IN (SELECT {row_id} FROM {table.name} "
            "WHERE (partition, generation) NOT IN (SELECT partition, generation FROM positions WHERE projection = ?) "
            "LIMIT ?)"
        )
        while True:
            with writer.transaction():
                changed = writer.execute(statement, (projection, _ROWS_A_DELETION))
            deleted += changed
            if changed < _ROWS_A_DELETION:
                break
            # On SQLite others wait for the file.
            time.sleep(0.01)
    return deleted


def _row_id(table: Table, dialect: str) -> str:
    if dialect == "postgresql":
        return "ctid"
    if table.dialect_options["sqlite"]["with_rowid"]:
        return "rowid"
    return ", ".join(column.name for column in table.primary_key.columns)


def sum_replaced(
    connection: Connection,
    projection: str,
    live: LivePartition,
    generation: int,
    from_ns: int,
    sums: dict[tuple[str, int | None, str], int],
) -> None:
    """Adds what a partition's replaced rows come to, by table, day (`None` for tables without) and measure.

    Args:
        connection: to the store of the rows.
        projection: whose.
        live: the partition.
        generation: of the rows.
        from_ns: begin of the replaced range.
        sums: what to add to.
    """
    parameters = {"partition": live.number, "live": generation, "from_ns": from_ns}
    for table in tables_of(projection):
        name = table.name
        if name.endswith(("_minute", "_hour", "_total")) or name == "error_groups":
            # They say the same as the days do.
            continue
        measures = [
            column.name
            for column in table.columns
            if column.info.get("merge") is Merge.ADD or (name == "runs" and column.name in _SUMMED_OF_RUNS)
        ]
        day = "bucket_ns" if name.endswith("_day") else "NULL"
        # Exact also beyond 64 bits: the parts are put together here.
        parts = ", ".join(f"sum({m} >> 32), sum({m} & 4294967295)" for m in measures)
        statement = (
            f"SELECT {day}, count(*){', ' if parts else ''}{parts} FROM {name} "
            f"WHERE partition = :partition AND generation = :live AND NOT ({_older(table)})"
            + (" GROUP BY bucket_ns" if name.endswith("_day") else "")
        )
        for row in connection.execute(text(statement), parameters):
            bucket, rows, *halves = row
            sums[name, bucket, "rows"] = sums.get((name, bucket, "rows"), 0) + rows
            for place, measure in enumerate(measures):
                high, low = halves[2 * place : 2 * place + 2]
                total = (int(high or 0) << 32) + int(low or 0)
                sums[name, bucket, measure] = sums.get((name, bucket, measure), 0) + total


_SUMMED_OF_RUNS = ("duration_ns", "input_tokens", "output_tokens", "cost_picodollars")


def copy_dimension_values(store: Store, target: Writer, from_ns: int) -> None:
    """Gives a store for a trial the names that figures may show since an instant."""
    values = tables.dimension_values
    with store.read() as connection:
        found = connection.execute(select(values).where(values.c.day >= from_ns // DAY_NS - 1)).all()
    with target.transaction():
        target.upsert(values, [tuple(row) for row in found])
