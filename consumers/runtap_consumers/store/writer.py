"""The write path: one connection, one thread, one transaction a batch.

The order inside a transaction is what makes it exact (exactness.md, "Move"): on PostgreSQL the COPY of run rows, then
the conditional move of the positions, then whole statements; on SQLite the move comes first.
"""

from __future__ import annotations

import sqlite3
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Self

import psycopg
import structlog
from psycopg.types.numeric import Int8BinaryDumper, Int8Dumper
from sqlalchemy import Table

from runtap_consumers.errors import FencedError, RowsRefusedError, StoreError
from runtap_consumers.store import statements, tables
from runtap_consumers.store.dialect import BUSY_TIMEOUT_SECONDS, SQLITE
from runtap_consumers.store.engine import Store
from runtap_schemas.masking import without_passwords

logger = structlog.get_logger(__name__)

Row = Sequence[Any]
# sqlite3 raises OverflowError for an integer beyond 64 bits.
# … and UnicodeEncodeError for what is no UTF-8.
_VALUE_ERRORS = (
    *(OverflowError, UnicodeEncodeError, sqlite3.IntegrityError, sqlite3.DataError),
    *(psycopg.DataError, psycopg.errors.ProgramLimitExceeded),
)
_DRIVER_ERRORS = (sqlite3.Error, psycopg.Error, OverflowError, UnicodeEncodeError)
# sqlite3 looks for an adapter of every value that is no int, float or str: for a None, of which a run's row is half, in
# vain and at length. With one, which changes nothing, the row costs 0.6 of it.
sqlite3.register_adapter(type(None), lambda _: None)
# Of the rows of a commit, which lack partition and generation.
_RUN_COLUMNS = [column.name for column in tables.runs.columns][2:]
_PROVIDER = _RUN_COLUMNS.index("provider")


@dataclass(frozen=True)
class Move:
    """Where a projection stood, and where it goes."""

    projection: str
    expected_offset: int
    epoch: int
    next_offset: int
    fingerprint: str
    log_time_ns: int
    incarnation: int
    next_epoch: int
    begun_at: int


@dataclass
class Commit:
    """Everything that one transaction writes for one partition. Rows are whole, in the order of their table's columns;
    those of `runs` alone lack the partition and the generation, with which the table begins.
    """

    partition: int
    moves: list[Move]
    upserts: list[tuple[Table, list[Row]]] = field(default_factory=list)
    new_rows: list[tuple[Table, list[Row]]] = field(default_factory=list)
    runs: Sequence[Row] = ()
    runs_generation: int = 0
    ended_run_ids: list[str] = field(default_factory=list)
    deletions: list[tuple[str, tuple[Any, ...]]] = field(default_factory=list)


class Writer(ABC):
    """A connection that commits batches. Not safe for use by two threads at once."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.dialect = store.dialect
        self._upserts = {
            table.name: statements.upsert_statement(table, self.dialect)
            for table in tables.metadata.tables.values()
            if table.primary_key.columns
        }

    @staticmethod
    def of(store: Store) -> Writer:
        """The writer for a store's database."""
        return SqliteWriter(store) if store.dialect is SQLITE else PostgresWriter(store)

    def commit(self, commit: Commit) -> None:
        """Writes a batch, whole or not at all.

        Raises:
            FencedError: a position is not where it was expected; another worker owns the partition.
            StoreError: the outcome is not known, or nothing was written; load the positions again.
        """
        with self.transaction():
            self.write(commit)

    def write(self, commit: Commit) -> None:
        """Writes a batch inside a transaction, as `commit` does."""
        self._write_before_move(commit)
        self._move(commit)
        self._write_after_move(commit)
        for table, rows in commit.upserts:
            self.upsert(table, rows)
        for table, rows in commit.new_rows:
            self.execute_rows(statements.insert_new_statement(table, self.dialect), table, rows)
        for statement, parameters in commit.deletions:
            self.execute(statement, parameters)

    def set_local(self, **settings: str) -> None:
        """Sets PostgreSQL's settings for this transaction; SQLite has none."""
        for statement in self.dialect.set_local(settings):
            self.execute(statement)

    def upsert(self, table: Table, rows: list[Row]) -> None:
        """Adds whole rows to a table inside a transaction; no two of one key."""
        self.execute_rows(self._upserts[table.name], table, rows)

    def _move(self, commit: Commit) -> None:
        # Sorted, so that two workers with several projections cannot deadlock.
        for move in sorted(commit.moves, key=lambda move: move.projection):
            changed = self.execute(
                "UPDATE positions SET next_offset = ?, fingerprint = ?, log_time_ns = ?, incarnation = ?, epoch = ?, "
                "begun_at = ? WHERE projection = ? AND partition = ? AND next_offset = ? AND epoch = ?",
                (
                    move.next_offset,
                    move.fingerprint,
                    move.log_time_ns,
                    move.incarnation,
                    move.next_epoch,
                    move.begun_at,
                    move.projection,
                    commit.partition,
                    move.expected_offset,
                    move.epoch,
                ),
            )
            if changed != 1:
                raise FencedError(
                    f"{move.projection}/{commit.partition}: the position is no longer {move.expected_offset} "
                    f"(epoch {move.epoch}): another worker has moved it",
                    move.projection,
                )

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Commits what is executed inside, or rolls back and raises.

        Raises:
            RowsRefusedError: the database has no room for a value.
            StoreError: it refused or vanished; after it the connection is made anew.
        """
        try:
            self._begin()
            yield
            self._finish()
        except _DRIVER_ERRORS as error:
            self.reset()
            reason = without_passwords(str(error).strip())
            if isinstance(error, _VALUE_ERRORS):
                raise RowsRefusedError(f"the store does not take a value: {reason}") from error
            raise StoreError(f"the store did not take a commit: {reason}") from error
        except BaseException:
            self.reset()
            raise

    def read(self, statement: str, parameters: Row = ()) -> list[Any]:
        """Runs one statement with `?` placeholders outside of a transaction, and returns its rows.

        Raises:
            StoreError: the store cannot be read.
        """
        try:
            return self.query(statement, parameters)
        except _DRIVER_ERRORS as error:
            self.reset()
            raise StoreError(f"cannot read the store: {without_passwords(str(error).strip())}") from error

    @abstractmethod
    def execute(self, statement: str, parameters: Row = ()) -> int:
        """Runs one statement with `?` placeholders; returns how many rows it changed."""

    @abstractmethod
    def query(self, statement: str, parameters: Row = ()) -> list[Any]:
        """Runs one statement with `?` placeholders inside a transaction, and returns its rows."""

    @abstractmethod
    def execute_rows(self, statement: str, table: Table, rows: list[Row]) -> None:
        """Runs a statement of `store.statements` for rows of a table."""

    @abstractmethod
    def reset(self) -> None:
        """Rolls back; gives up the connection where that fails."""

    @abstractmethod
    def close(self) -> None:
        """Closes the connection."""

    @abstractmethod
    def _begin(self) -> None: ...

    @abstractmethod
    def _finish(self) -> None: ...

    @abstractmethod
    def _write_before_move(self, commit: Commit) -> None: ...

    @abstractmethod
    def _write_after_move(self, commit: Commit) -> None: ...

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class SqliteWriter(Writer):
    """One file. Statements run in the thread that folds: sqlite3 hands the interpreter lock over at every row."""

    def __init__(self, store: Store) -> None:
        super().__init__(store)
        database = store.engine.url.database
        assert database is not None
        self._connection = sqlite3.connect(
            database, timeout=BUSY_TIMEOUT_SECONDS, isolation_level=None, check_same_thread=False
        )
        for statement in (*SQLITE.on_connect, "PRAGMA cache_size=-16384"):
            self._connection.execute(statement)

    def execute(self, statement: str, parameters: Row = ()) -> int:
        return self._connection.execute(statement, parameters).rowcount

    def query(self, statement: str, parameters: Row = ()) -> list[Any]:
        return self._connection.execute(statement, parameters).fetchall()

    def execute_rows(self, statement: str, table: Table, rows: list[Row]) -> None:
        self._connection.executemany(statement, rows)

    def reset(self) -> None:
        if self._connection.in_transaction:
            self._connection.rollback()

    def close(self) -> None:
        self._connection.close()

    def _begin(self) -> None:
        # A deferred transaction that reads and then writes fails at once where another has committed in between.
        self._connection.execute("BEGIN IMMEDIATE")

    def _finish(self) -> None:
        self._connection.execute("COMMIT")

    def _write_before_move(self, commit: Commit) -> None:
        """Nothing: on SQLite everything comes after the move."""

    def _write_after_move(self, commit: Commit) -> None:
        # Calls and the rest by themselves: what none of them has is not bound, of 43 values about half.
        for is_call in (True, False):
            rows = [row for row in commit.runs if (row[_PROVIDER] is not None) is is_call]
            columns = zip(_RUN_COLUMNS, zip(*rows, strict=True), strict=False)
            given = {name: values for name, values in columns if values.count(None) < len(rows)}
            if rows:
                statement = statements.insert_statement(
                    tables.runs, (commit.partition, commit.runs_generation), tuple(given)
                )
                self._connection.executemany(statement, zip(*given.values(), strict=True))
        for first in range(0, len(commit.ended_run_ids), 500):
            ids = commit.ended_run_ids[first : first + 500]
            self._connection.execute(
                f"DELETE FROM open_runs WHERE partition = ? AND run_id IN ({','.join('?' * len(ids))})",
                (commit.partition, *ids),
            )


class PostgresWriter(Writer):
    """PostgreSQL. Time-outs end a transaction whose worker was stopped, so that the next owner can go on."""

    _BEGIN = (
        "BEGIN; SET LOCAL lock_timeout = '1s'; SET LOCAL idle_in_transaction_session_timeout = '3s'; "
        "SET LOCAL statement_timeout = '30s'; SET LOCAL client_connection_check_interval = '1s'"
    )

    # PostgreSQL has no time-out for a statement that waits for a stopped client, so the next owner ends it. Only runtap
    # workers, which write in milliseconds; a migration connects under another name.
    _END_STOPPED_HOLDERS = """
        SELECT pid, pg_terminate_backend(pid) FROM pg_stat_activity AS activity
        WHERE application_name = 'runtap-worker' AND datname = current_database() AND pid <> pg_backend_pid()
          AND wait_event_type = 'Client' AND state <> 'idle' AND state_change < now() - interval '3 seconds'
          AND EXISTS (SELECT FROM pg_locks WHERE pg_locks.pid = activity.pid AND granted
                      AND mode = 'RowExclusiveLock' AND relation = 'positions'::regclass)
        """

    def __init__(self, store: Store) -> None:
        super().__init__(store)
        self._connection: psycopg.Connection[Any] | None = None
        self._copy_runs = statements.copy_statement(tables.runs)
        self._run_types = statements.column_types(tables.runs)

    @contextmanager
    def transaction(self) -> Iterator[None]:
        try:
            with super().transaction():
                yield
        except StoreError as error:
            if isinstance(error.__cause__, psycopg.errors.LockNotAvailable):
                self._end_stopped_holders()
            raise

    def _end_stopped_holders(self) -> None:
        for pid, _ in self.read(self._END_STOPPED_HOLDERS):
            logger.warning("stopped_lock_holder_ended", backend_pid=pid, consequence="its transaction is undone")

    def execute(self, statement: str, parameters: Row = ()) -> int:
        return self._connect().execute(statement.replace("?", "%s"), parameters).rowcount

    def query(self, statement: str, parameters: Row = ()) -> list[Any]:
        return self._connect().execute(statement.replace("?", "%s"), parameters).fetchall()

    def execute_rows(self, statement: str, table: Table, rows: list[Row]) -> None:
        if rows:
            self._connect().execute(statement, [list(column) for column in zip(*rows, strict=True)])

    def reset(self) -> None:
        if self._connection is None:
            return
        try:
            self._connection.rollback()
        except psycopg.Error:
            self._connection.close()
        if self._connection.closed:
            self._connection = None

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()

    def _connect(self) -> psycopg.Connection[Any]:
        if self._connection is None or self._connection.closed:
            url = self._store.engine.url.set(drivername="postgresql").render_as_string(hide_password=False)
            connection = psycopg.connect(
                url,
                autocommit=True,
                connect_timeout=5,
                application_name="runtap-worker",
                keepalives_idle=5,
                tcp_user_timeout=10_000,
                prepare_threshold=None,
            )
            # psycopg sizes an int by its value, which would make nearly every row another statement.
            connection.adapters.register_dumper(int, Int8Dumper)
            connection.adapters.register_dumper(int, Int8BinaryDumper)
            self._connection = connection
        return self._connection

    def _begin(self) -> None:
        self._connect().execute(self._BEGIN)

    def _finish(self) -> None:
        self._connect().commit()

    def _write_before_move(self, commit: Commit) -> None:
        if not commit.runs:
            return
        with self._connect().cursor() as cursor, cursor.copy(self._copy_runs) as copy:
            copy.set_types(self._run_types)
            key = (commit.partition, commit.runs_generation)
            for row in commit.runs:
                copy.write_row((*key, *row))

    def _write_after_move(self, commit: Commit) -> None:
        if commit.ended_run_ids:
            self._connect().execute(
                "DELETE FROM open_runs WHERE partition = %s AND run_id = ANY(%s)",
                (commit.partition, commit.ended_run_ids),
            )
