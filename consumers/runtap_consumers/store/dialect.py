"""What differs between SQLite and PostgreSQL: everybody else asks for the SQL, and not which of them a store is in."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import Connection
from sqlalchemy.engine import URL

BUSY_TIMEOUT_SECONDS = 10
# Two numbers that nothing else locks. Two workers that each see room for one more value of a dimension would admit two.
_CREATION_LOCK, _DIMENSIONS_LOCK = 7_262_414, 7_262_415
# Of SQLite's machine: a millisecond or so.
_STEPS_A_LOOK = 10_000


@dataclass(frozen=True)
class Dialect:
    """SQL of one database. Tuples are statements, run one after the other.

    Attributes:
        title: for people.
        driver: SQLAlchemy's name of database and driver.
        engine_options: arguments of `create_engine`.
        on_connect: run on every new connection.
        begin_snapshot: makes all statements of a transaction see one state.
        lock_creation: keeps others that make or migrate the store waiting until the transaction ends.
        lock_dimensions: keeps others that admit values of dimensions waiting, likewise.
        for_update: ends a SELECT whose rows nobody else changes until the transaction ends.
        skip_locked: the same, without the rows that another transaction has locked.
        now_ns: the present by the database's clock, Unix nanoseconds.
        row_id: identifies a row within a transaction.
        least, greatest: of two values, `{0}` and `{1}`, of which either may be null.
        find: the function that says where in a text another begins, 0 where it does not.
        join_bytes: aggregates a column of bytes, `{0}`: all of them, one after the other.
        from_on, before: operators that compare texts by their bytes, as the indexes on ids are sorted.
    """

    title: str
    driver: str
    engine_options: Mapping[str, Any]
    on_connect: tuple[str, ...]
    begin_snapshot: tuple[str, ...]
    lock_creation: tuple[str, ...]
    lock_dimensions: tuple[str, ...]
    for_update: str
    skip_locked: str
    now_ns: str
    row_id: str
    least: str
    greatest: str
    find: str
    join_bytes: str
    from_on: str
    before: str

    def source(self, types: Sequence[str]) -> str:
        """Where the rows of an INSERT come from: one row a parameter set, or one list a column of these types."""
        return f"VALUES ({', '.join('?' * len(types))})" if self is SQLITE else f"SELECT * FROM {_lists(types)}"

    def update_by_row_id(self, table: str, types: Mapping[str, str]) -> str:
        """Sets columns of these types; parameters are as for `source`, with `row_id` after the columns."""
        if self is SQLITE:
            return f"UPDATE {table} SET {', '.join(f'{name} = ?' for name in types)} WHERE rowid = ?"
        changes = ", ".join(f"{name} = given.{name}" for name in types)
        given = f"{_lists([*types.values(), 'text'])} AS given ({', '.join(types)}, row_id)"
        return f"UPDATE {table} SET {changes} FROM {given} WHERE {table}.ctid = given.row_id::tid"

    @contextmanager
    def limited(self, connection: Connection, deadline: float) -> Iterator[None]:
        """Has the database give up what it works on at a time of `time.monotonic()`."""
        if self is POSTGRES:
            self.limit_next(connection, deadline)
            yield
            return
        raw: Any = connection.connection.dbapi_connection
        raw.set_progress_handler(lambda: time.monotonic() > deadline, _STEPS_A_LOOK)
        try:
            yield
        finally:
            raw.set_progress_handler(None, 0)

    def limit_next(self, connection: Connection, deadline: float) -> None:
        """Within `limited`, which PostgreSQL counts for each statement anew: has the next ones end at that time."""
        if self is POSTGRES:
            milliseconds = max(int((deadline - time.monotonic()) * 1_000), 1)
            connection.exec_driver_sql(f"SET LOCAL statement_timeout = {milliseconds}")

    def set_local(self, settings: Mapping[str, str]) -> list[str]:
        """PostgreSQL's settings, for this transaction; SQLite has none."""
        return [f"SET LOCAL {name} = '{value}'" for name, value in settings.items() if self is POSTGRES]


def _lists(types: Sequence[str]) -> str:
    return f"unnest({', '.join(f'%b::{name}[]' for name in types)})"


SQLITE = Dialect(
    title="SQLite",
    driver="sqlite",
    engine_options={"connect_args": {"timeout": BUSY_TIMEOUT_SECONDS, "isolation_level": None}},
    # NORMAL: a commit lost at power failure takes its position with it, and the log is read again.
    on_connect=("PRAGMA journal_mode=WAL", "PRAGMA synchronous=NORMAL"),
    begin_snapshot=("BEGIN",),
    lock_creation=("BEGIN IMMEDIATE",),
    # Transactions that write exclude each other anyway.
    lock_dimensions=(),
    for_update="",
    skip_locked="",
    now_ns="CAST((julianday('now') - 2440587.5) * 86400000000 AS INTEGER) * 1000",
    row_id="rowid",
    # SQLite's two-argument min and max are null where either is.
    least="coalesce(min({0}, {1}), {0}, {1})",
    greatest="coalesce(max({0}, {1}), {0}, {1})",
    find="instr",
    # Which takes bytes as they are, zeros too, and cares for no encoding.
    join_bytes="CAST(group_concat({0}, '') AS BLOB)",
    from_on=">=",
    before="<",
)
POSTGRES = Dialect(
    title="PostgreSQL",
    driver="postgresql+psycopg",
    engine_options={"connect_args": {"connect_timeout": 5}, "pool_pre_ping": True},
    on_connect=(),
    begin_snapshot=(
        "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ",
        # The planner's defaults take parallel scans of whole tables for small grains.
        *("SET LOCAL random_page_cost = 1.1", "SET LOCAL jit = off", "SET LOCAL max_parallel_workers_per_gather = 0"),
    ),
    lock_creation=(f"SELECT pg_advisory_xact_lock({_CREATION_LOCK})",),
    lock_dimensions=(f"SELECT pg_advisory_xact_lock({_DIMENSIONS_LOCK})",),
    for_update=" FOR UPDATE",
    skip_locked=" FOR UPDATE SKIP LOCKED",
    now_ns="CAST(extract(epoch FROM clock_timestamp()) * 1000000 AS BIGINT) * 1000",
    row_id="ctid",
    least="least({0}, {1})",
    greatest="greatest({0}, {1})",
    find="strpos",
    join_bytes="string_agg({0}, ''::bytea)",
    # Whatever the database's collation.
    from_on="~>=~",
    before="~<~",
)
_DIALECTS = {"sqlite": SQLITE, "postgresql": POSTGRES}


def dialect_of(url: URL) -> Dialect:
    """The dialect of a store's address; ValueError where that is of another database."""
    name = url.get_backend_name()
    if name not in _DIALECTS:
        raise ValueError(f"expected {' or '.join(_DIALECTS)}, not {name}")
    return _DIALECTS[name]


def file_of(url: URL) -> Path | None:
    """The file that a store is; `None` where a server holds it."""
    return Path(url.database or "") if dialect_of(url) is SQLITE else None
