"""What a worker loads of a partition: positions, lane marks, runs that have not ended, sketches."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import orjson
from sqlalchemy import Connection, Row, select

from runtap_consumers.errors import FencedError
from runtap_consumers.projections.lane_marks import LaneMark
from runtap_consumers.store import tables
from runtap_consumers.store.tables import lane_marks, positions
from runtap_consumers.store.writer import Writer

_LANE_COLUMNS = [column.name for column in lane_marks.columns][3:]


class Position(NamedTuple):
    """How far a projection has come in a partition. `fingerprint` is that of the record before `next_offset`."""

    projection: str
    next_offset: int
    epoch: int
    incarnation: int
    generation: int
    begun_at: int
    fingerprint: str
    log_time_ns: int


def load_positions(connection: Connection, partition: int, projections: Iterable[str]) -> dict[str, Position]:
    """The positions that exist, by projection."""
    columns = [positions.c[name] for name in Position._fields]
    statement = select(*columns).where(
        positions.c.partition == partition, positions.c.projection.in_(list(projections))
    )
    return {row.projection: Position._make(row) for row in connection.execute(statement)}


def read_least_offsets(writer: Writer, projections: Sequence[str]) -> dict[int, int]:
    """By partition, up to where all of these projections have come. For the thread that writes."""
    rows = writer.read(
        "SELECT partition, count(*), min(next_offset) FROM positions "
        f"WHERE projection IN ({_marks(projections)}) GROUP BY partition",
        projections,
    )
    return {partition: offset for partition, count, offset in rows if count == len(projections)}


def read_partitions(writer: Writer, projections: Sequence[str]) -> set[int]:
    """The partitions that any of these projections has read. For the thread that writes."""
    query = f"SELECT DISTINCT partition FROM positions WHERE projection IN ({_marks(projections)})"
    return {partition for (partition,) in writer.read(query, projections)}


def add_missing_positions(writer: Writer, partition: int, projections: Iterable[str], log_start: int) -> None:
    """Makes the positions of projections that are new in a partition: they begin at the log's start."""
    statement = (
        f"INSERT INTO positions ({', '.join(column.name for column in positions.columns)}) "
        "VALUES (?, ?, ?, 1, 1, 0, ?, '', 0, 0) ON CONFLICT DO NOTHING"
    )
    with writer.transaction():
        rows = writer.query("SELECT projection FROM positions WHERE partition = ?", (partition,))
        for name in set(projections) - {name for (name,) in rows}:
            writer.execute(statement, (name, partition, log_start, log_start))


def read_open_run_ids(writer: Writer, partition: int, generation: int, at_most: int) -> set[str]:
    """Ids of runs that have begun and not ended, as far as a partition tells."""
    query = "SELECT run_id FROM open_runs WHERE partition = ? AND generation = ? LIMIT ?"
    return {run_id for (run_id,) in writer.read(query, (partition, generation, at_most))}


def read_sketches(
    writer: Writer, partition: int, generation: int, table_name: str, bucket_ns: int
) -> dict[tuple[Any, ...], list[bytes | None]]:
    """The sketches of a bucket's rows, by the keys of a row but bucket, partition and generation."""
    table = tables.metadata.tables[table_name]
    keys = [column.name for column in table.primary_key.columns][1:-2]
    sketches = [column.name for column in table.columns if column.name.endswith("sketch")]
    rows = writer.read(
        f"SELECT {', '.join(keys + sketches)} FROM {table_name} "
        "WHERE bucket_ns = ? AND partition = ? AND generation = ?",
        (bucket_ns, partition, generation),
    )
    return {tuple(row[: len(keys)]): list(row[len(keys) :]) for row in rows}


def load_lanes(connection: Connection, partition: int, projection: str) -> dict[str, LaneMark]:
    """The lanes that a projection knows of a partition, by emitter."""
    rows = connection.execute(
        select(lane_marks).where(lane_marks.c.partition == partition, lane_marks.c.projection == projection)
    )
    return {row.emitter: lane_of(row) for row in rows}


def lane_of(row: Row[Any]) -> LaneMark:
    """A row of `lane_marks` as a lane."""
    # Thousands of them are read for every figure, nearly none with gaps.
    facts: dict[str, Any] = dict(zip(_LANE_COLUMNS, row[3:], strict=True))
    facts["gaps"] = [(first, last) for first, last in orjson.loads(facts["gaps"])] if facts["gaps"] != "[]" else []
    return LaneMark(**facts)


def lane_row(projection: str, partition: int, emitter: str, lane: LaneMark) -> tuple[str | int, ...]:
    """A lane as `lane_marks` holds it, in the order of its columns."""
    facts = {name: getattr(lane, name) for name in _LANE_COLUMNS}
    return (projection, partition, emitter, *{**facts, "gaps": orjson.dumps(lane.gaps).decode()}.values())


def note_caught_up(writer: Writer, partition: int, projection: str, next_offset: int, epoch: int, at_ns: int) -> None:
    """Notes, inside a transaction, that a projection has read all that was appended to a partition before an instant.

    Raises:
        FencedError: another worker has moved the position.
    """
    changed = writer.execute(
        "UPDATE positions SET caught_up_at_ns = ? WHERE projection = ? AND partition = ? AND next_offset = ? "
        "AND epoch = ?",
        (at_ns, projection, partition, next_offset, epoch),
    )
    if changed != 1:
        raise FencedError(f"{projection}/{partition}: the position is no longer {next_offset}", projection)


def note_gone_partitions(writer: Writer, projections: Sequence[str], partitions: Sequence[int], now_ns: int) -> None:
    """Records that partitions with positions are no longer there."""
    chosen = f"projection IN ({_marks(projections)}) AND partition IN ({_marks(partitions)})"
    with writer.transaction():
        writer.execute(
            "INSERT INTO log_incidents (projection, partition, incarnation, first_offset, kind, last_offset, at_ns) "
            f"SELECT projection, partition, incarnation, next_offset, 'gone', next_offset - 1, CAST(? AS BIGINT) "
            f"FROM positions WHERE {chosen} ON CONFLICT (projection, partition, incarnation, first_offset, kind) "
            "DO UPDATE SET at_ns = excluded.at_ns",
            (now_ns, *projections, *partitions),
        )


def forget_emitter(writer: Writer, emitter: str, now_ns: int, *, is_struck: bool = False) -> bool:
    """Notes that nothing is expected of an emitter that was heard up to now, or that it is none of ours; whether there
    is one.
    """
    heard = "SELECT emitter, log_time_ns FROM lane_marks UNION ALL SELECT emitter, log_time_ns FROM abandoned_lanes"
    with writer.transaction():
        return bool(
            writer.execute(
                "INSERT INTO forgotten_emitters (emitter, heard_at_ns, forgotten_at_ns, is_struck) "
                "SELECT emitter, max(log_time_ns), CAST(? AS BIGINT), CAST(? AS BIGINT) "
                f"FROM ({heard}) AS heard WHERE emitter = ? GROUP BY emitter "
                "ON CONFLICT (emitter) DO UPDATE SET heard_at_ns = excluded.heard_at_ns, "
                "forgotten_at_ns = excluded.forgotten_at_ns, is_struck = excluded.is_struck",
                (now_ns, int(is_struck), emitter),
            )
        )


def _marks(values: Sequence[object]) -> str:
    return ", ".join("?" * len(values))
