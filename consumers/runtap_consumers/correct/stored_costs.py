"""The statements of `runtap reprice`: rows that carry a price, read for one partition, and written again.

Rows that are left out: what a provider billed itself, what a cache answered, and what has the wanted price set already.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, TypeVar

from sqlalchemy import Connection

from runtap_consumers.errors import StoreError
from runtap_consumers.projections.rollups import (
    COST,
    COST_BY_ATTRIBUTE,
    COST_MEASURES,
    SESSION_COSTS,
    TOKEN_CLASSES,
)
from runtap_consumers.store import tables
from runtap_consumers.store.engine import Store
from runtap_consumers.store.writer import Row, Writer

Query = Callable[[str, Sequence[Any]], list[Any]]
Measures = dict[str, int]

REPORTED_SET = "provider"
CACHED_CLASS = "cached"
MEASURES = tuple(measure.name for measure in COST_MEASURES)
_RUN_COLUMNS = (
    *("ended_at_ns", "provider", "model", "request_model", "service", "environment", "service_tier", "session_id"),
    *("user_id", "metadata", "status", "usage_source", "price_set", "price_class", "cost_picodollars"),
    *TOKEN_CLASSES,
)
_ATTEMPTS = 5

Result = TypeVar("Result")


@dataclass(frozen=True)
class Wanted:
    """Which rows are to be priced again: of one partition, under which prices they are not yet.
    Patterns may hold `*`.
    """

    partition: int
    price_set: str
    provider: str | None = None
    model: str | None = None
    # Of sessions: those after the first id, up to the last; `None`: no bound.
    sessions: tuple[str | None, str | None] = (None, None)

    def condition(self, provider: str = "provider", model: str = "model") -> tuple[str, list[Any]]:
        """SQL of the condition, with its parameters."""
        parts = ["partition = ?", "price_set NOT IN (?, ?)", "price_class <> ?"]
        parameters: list[Any] = [self.partition, self.price_set, REPORTED_SET, CACHED_CLASS]
        for column, pattern in ((provider, self.provider), (model, self.model)):
            if pattern is not None:
                parts.append(f"lower({column}) LIKE ? ESCAPE '!'")
                parameters.append(_like(pattern))
        return " AND ".join(parts), parameters


@dataclass(frozen=True)
class StoredRow:
    """A row that carries a price. `key` leaves out partition and generation; its calls were made in
    [from_ns, to_ns).
    """

    table: str
    key: dict[str, Any]
    measures: Measures
    from_ns: int
    to_ns: int


@dataclass(frozen=True)
class StoredRun:
    """A model run; `facts` are its columns."""

    row_id: Any
    facts: dict[str, Any]


@dataclass
class Deltas:
    """What is added to rows, by table and whole key; what is taken away is negative."""

    tail: tuple[int, int]
    rows: dict[str, dict[tuple[Any, ...], list[int]]] = field(default_factory=dict)

    def add(self, table: str, key: dict[str, Any], measures: Measures, sign: int) -> None:
        """Adds measures to a row (`sign` 1), or takes them from it (-1)."""
        row = self.rows.setdefault(table, {}).setdefault((*key.values(), *self.tail), [0] * len(MEASURES))
        for place, name in enumerate(MEASURES):
            row[place] += sign * measures[name]


def snapshot_query(connection: Connection) -> Query:
    """Reads what a snapshot's connection sees."""

    def query(statement: str, parameters: Sequence[Any]) -> list[Any]:
        native = statement if connection.dialect.name == "sqlite" else statement.replace("?", "%s")
        return list(connection.exec_driver_sql(native, tuple(parameters)).fetchall())

    return query


def read_generations(query: Query) -> dict[int, dict[str, int]]:
    """The generation that counts, by partition and projection."""
    generations: dict[int, dict[str, int]] = {}
    for partition, projection, generation in query(
        "SELECT partition, projection, generation FROM positions ORDER BY partition, projection", ()
    ):
        generations.setdefault(partition, {})[projection] = generation
    return generations


def days_stored(query: Query) -> tuple[int, int] | None:
    """Starts of the first and the last day with costs; `None` where there are none."""
    ((first, last),) = query("SELECT min(bucket_ns), max(bucket_ns) FROM cost_day", ())
    return None if first is None else (int(first), int(last))


def read_cost_rows(
    query: Query, wanted: Wanted, generation: int, grain: str, from_ns: int, to_ns: int, length: Callable[[int], int]
) -> list[StoredRow]:
    """The rows of one grain whose buckets begin in [from_ns, to_ns).

    Args:
        query: reads.
        wanted: which rows.
        generation: that counts.
        grain: `minute`, `hour` or `day`.
        from_ns: begin.
        to_ns: end.
        length: where a bucket ends that begins at an instant.
    """
    names = COST.key_columns(grain)[:-2]
    return _read_buckets(query, wanted, generation, COST.table_name(grain), names, (from_ns, to_ns), length)


def read_attribute_rows(
    query: Query, wanted: Wanted, generation: int, grain: str, from_ns: int, to_ns: int, length: Callable[[int], int]
) -> list[StoredRow]:
    """Costs by attribute whose hours or days begin in [from_ns, to_ns)."""
    table, names = COST_BY_ATTRIBUTE.table_name(grain), COST_BY_ATTRIBUTE.key_columns(grain)[:-2]
    return _read_buckets(query, wanted, generation, table, names, (from_ns, to_ns), length)


def _read_buckets(
    query: Query,
    wanted: Wanted,
    generation: int,
    table: str,
    names: tuple[str, ...],
    buckets: tuple[int, int],
    length: Callable[[int], int],
) -> list[StoredRow]:
    condition, parameters = wanted.condition()
    found = query(
        f"SELECT {', '.join((*names, *MEASURES))} FROM {table} "
        f"WHERE generation = ? AND bucket_ns >= ? AND bucket_ns < ? AND {condition}",
        (generation, *buckets, *parameters),
    )
    rows = []
    for values in found:
        key = dict(zip(names, values, strict=False))
        measures = dict(zip(MEASURES, map(int, values[len(names) :]), strict=True))
        rows.append(StoredRow(table, key, measures, key["bucket_ns"], length(key["bucket_ns"])))
    return rows


def session_pages(query: Query, partition: int, at_most: int) -> list[tuple[str | None, str | None]]:
    """Bounds of ids that hold so many sessions of a partition each, in the database's order."""
    ids = query("SELECT DISTINCT session_id FROM session_costs WHERE partition = ? ORDER BY session_id", (partition,))
    bounds = [None, *(name for (name,) in ids[at_most - 1 : -1 : at_most]), None]
    return list(pairwise(bounds))


def read_session_rows(query: Query, wanted: Wanted, generation: int, from_ns: int, to_ns: int) -> list[StoredRow]:
    """Costs of the sessions with events in [from_ns, to_ns)."""
    condition, parameters = wanted.condition()
    for bound, comparison in zip(wanted.sessions, (">", "<="), strict=True):
        if bound is not None:
            condition += f" AND session_id {comparison} ?"
            parameters.append(bound)
    names = SESSION_COSTS.keys
    chosen = f"SELECT {', '.join((*names, *MEASURES))} FROM session_costs WHERE generation = ? AND {condition}"
    statement = (
        f"SELECT s.first_at_ns, s.last_at_ns, c.* FROM ({chosen}) AS c JOIN sessions AS s "
        "ON s.session_id = c.session_id "
        "WHERE s.partition = ? AND s.generation = ? AND s.last_at_ns >= ? AND s.first_at_ns < ?"
    )
    found = query(statement, (generation, *parameters, wanted.partition, generation, from_ns, to_ns))
    return [
        StoredRow(
            SESSION_COSTS.name,
            dict(zip(names, values, strict=False)),
            dict(zip(MEASURES, map(int, values[len(names) :]), strict=True)),
            first_ns,
            last_ns + 1,
        )
        for first_ns, last_ns, *values in found
    ]


def read_runs(
    query: Query, wanted: Wanted, generation: int, from_ns: int, to_ns: int, row_id: str, at_most: int | None = None
) -> list[StoredRun]:
    """Model runs that ended in [from_ns, to_ns).

    Args:
        query: reads.
        wanted: which rows.
        generation: that counts.
        from_ns: begin.
        to_ns: end.
        row_id: the database's name for a row's place.
        at_most: how many; `None`: all.
    """
    condition, parameters = wanted.condition("coalesce(provider, '')", "coalesce(model, request_model, '')")
    limit = "" if at_most is None else f" LIMIT {at_most}"
    found = query(
        f"SELECT {row_id}, {', '.join(_RUN_COLUMNS)} FROM runs WHERE generation = ? AND run_type = 'llm' "
        f"AND ended_at_ns >= ? AND ended_at_ns < ? AND {condition}{limit}",
        (generation, from_ns, to_ns, *parameters),
    )
    return [StoredRun(place, dict(zip(_RUN_COLUMNS, values, strict=True))) for place, *values in found]


def has_rows(query: Query, wanted: Wanted, projection: str, from_ns: int, to_ns: int) -> bool:
    """Whether a projection may have rows to price again in [from_ns, to_ns)."""
    condition, parameters = wanted.condition()
    if projection == "cost":
        condition += " AND bucket_ns >= ? AND bucket_ns < ?"
        parameters += [from_ns, to_ns]
    elif projection == "runs":
        condition, parameters = wanted.condition("coalesce(provider, '')", "coalesce(model, request_model, '')")
        condition += " AND ended_at_ns >= ? AND ended_at_ns < ?"
        parameters += [from_ns, to_ns]
    # Days are kept for ever, and hold what every finer grain holds.
    table = {"cost": "cost_day", "sessions": "session_costs", "runs": "runs"}[projection]
    return bool(query(f"SELECT 1 FROM {table} WHERE {condition} LIMIT 1", parameters))


@contextmanager
def fenced(writer: Writer, projection: str, partition: int) -> Iterator[None]:
    """A transaction that owns a partition: its position is locked, and whoever holds a batch of it is fenced
    afterwards.

    Raises:
        StoreError: nothing was written, or the outcome is not known.
    """
    with writer.transaction():
        if writer.dialect == "postgresql":
            # Longer than a worker's: this waits for its commit, and works between its own statements.
            writer.execute("SET LOCAL lock_timeout = '20s'")
            writer.execute("SET LOCAL statement_timeout = '300s'")
            writer.execute("SET LOCAL idle_in_transaction_session_timeout = '120s'")
        changed = writer.execute(
            "UPDATE positions SET epoch = epoch + 1 WHERE projection = ? AND partition = ?", (projection, partition)
        )
        if changed != 1:
            raise StoreError(f"{projection}/{partition}: there is no such position any more")
        yield


def retrying(work: Callable[[], Result]) -> Result:
    """Does a transaction again whose database was busy; what it does must be safe to do again."""
    for attempt in range(1, _ATTEMPTS):
        try:
            return work()
        except StoreError:
            time.sleep(attempt / 2)
    return work()


def write_deltas(writer: Writer, deltas: Deltas) -> int:
    """Adds deltas to their rows, and deletes the rows of which nothing is left. Returns how many rows it touched."""
    touched = 0
    for name, rows in sorted(deltas.rows.items()):
        table = tables.metadata.tables[name]
        whole: list[Row] = [(*key, *measures) for key, measures in sorted(rows.items()) if any(measures)]
        writer.upsert(table, whole)
        statement = f"DELETE FROM {name} WHERE partition = ? AND generation = ? AND calls = 0"
        if "bucket_ns" in table.c:
            place = list(table.c.keys()).index("bucket_ns")
            buckets = [key[place] for key in rows]
            writer.execute(f"{statement} AND bucket_ns BETWEEN ? AND ?", (*deltas.tail, min(buckets), max(buckets)))
        else:
            writer.execute(statement, deltas.tail)
        touched += len(whole)
    return touched


def write_run_costs(writer: Writer, price_set: str, costs: Sequence[tuple[Any, int | None]]) -> None:
    """Gives runs their new cost. `costs`: row id and picodollars."""
    if writer.dialect == "sqlite":
        statement = "UPDATE runs SET price_set = ?, cost_picodollars = ? WHERE rowid = ?"
        writer.execute_rows(statement, tables.runs, [(price_set, cost, row_id) for row_id, cost in costs])
        return
    writer.execute(
        "UPDATE runs SET price_set = ?, cost_picodollars = priced.cost "
        "FROM unnest(?::text[], ?::bigint[]) AS priced (place, cost) WHERE runs.ctid = priced.place::tid",
        (price_set, [row_id for row_id, _ in costs], [cost for _, cost in costs]),
    )


def row_id_column(store: Store) -> str:
    """How the database names a row's place."""
    return "rowid" if store.is_sqlite else "ctid::text"


def begin_repricing(writer: Writer, facts: dict[str, Any]) -> str:
    """Records that somebody prices again. Returns the record's id."""
    number = uuid.uuid4().hex[:12]
    row = {"id": number, "finished_at_ns": None, **facts}
    with writer.transaction():
        columns = [column.name for column in tables.repricings.columns]
        writer.execute(
            f"INSERT INTO repricings ({', '.join(columns)}) VALUES ({', '.join('?' * len(columns))})",
            tuple(row[name] for name in columns),
        )
    return number


def finish_repricing(writer: Writer, number: str, rows: int, now_ns: int) -> None:
    """Records that it is done."""
    with writer.transaction():
        writer.execute(
            "UPDATE repricings SET finished_at_ns = ?, rows_changed = ? WHERE id = ?", (now_ns, rows, number)
        )


def _like(pattern: str) -> str:
    escaped = "".join(f"!{letter}" if letter in "!%_" else letter for letter in pattern.lower())
    return escaped.replace("*", "%")
