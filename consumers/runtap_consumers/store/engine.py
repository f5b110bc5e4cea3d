"""Opening a store: made if it is empty, refused if it is of another topic or version."""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine, create_engine, event, inspect, select, text, update
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import DBAPIError

from runtap_consumers.errors import StoreError, StoreVersionError
from runtap_consumers.private_files import private_opener
from runtap_consumers.store import tables
from runtap_schemas.masking import without_passwords

_BUSY_TIMEOUT_SECONDS = 10
# Any fixed number: makers of one database's store take turns on it.
_CREATION_LOCK = 7_262_414


@dataclass(frozen=True)
class Store:
    """An open store and what was fixed when it was made."""

    engine: Engine
    store_id: str
    events_topic: str
    zone: ZoneInfo
    created_at_ns: int

    @property
    def is_sqlite(self) -> bool:
        """Whether it is one file, for the processes of one machine."""
        return self.engine.dialect.name == "sqlite"

    @property
    def database(self) -> str:
        """Which database it is, and its version."""
        version = ".".join(map(str, self.engine.dialect.server_version_info or ()))
        return f"{'SQLite' if self.is_sqlite else 'PostgreSQL'} {version}"

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """A connection whose statements all see one snapshot.

        Raises:
            StoreError: the store cannot be read.
        """
        try:
            with self.engine.connect() as connection:
                if self.is_sqlite:
                    connection.exec_driver_sql("BEGIN")
                else:
                    connection.execution_options(isolation_level="REPEATABLE READ")
                    # The planner's defaults take parallel scans of whole tables for small grains.
                    connection.exec_driver_sql("SET LOCAL random_page_cost = 1.1")
                    connection.exec_driver_sql("SET LOCAL jit = off")
                    connection.exec_driver_sql("SET LOCAL max_parallel_workers_per_gather = 0")
                yield connection
                connection.rollback()
        except DBAPIError as error:
            raise StoreError(
                f"cannot read the store: {without_passwords(str(error.orig).strip())}. Check whether it runs"
            ) from error

    def check_version(self) -> None:
        """Looks whether the tables are still this version's.

        Raises:
            StoreVersionError: they were migrated meanwhile.
            StoreError: the store cannot be read.
        """
        with self.read() as connection:
            _check_version(connection, shown_url(self.engine.url))

    def close(self) -> None:
        """Closes all connections."""
        self.engine.dispose()


def open_store(database_url: str, events_topic: str | None = None, timezone: str | None = None) -> Store:
    """Opens a store, and makes it where there is none yet.

    Args:
        database_url: `sqlite:///path` or `postgresql://…`.
        events_topic: the topic whose figures it holds; `None` for readers, which make nothing.
        timezone: of a new store's days; UTC if `None`. An existing store keeps its own.

    Raises:
        StoreError: it cannot be reached, does not exist (for a reader), belongs to another topic, or is of another
            version.
    """
    url = _driver_url(database_url)
    shown = shown_url(url)
    if events_topic is None and url.get_backend_name() == "sqlite" and not Path(url.database or "").exists():
        raise StoreError(f"there is no store at {shown}: start `runtap worker` first, or set RUNTAP_DATABASE_URL")
    engine = _create_engine(url)
    try:
        if events_topic is not None:
            _make(engine, events_topic, timezone or "UTC")
        row = _check(engine, shown)
    except DBAPIError as error:
        engine.dispose()
        reason = without_passwords(str(error.orig).strip().splitlines()[0])
        raise StoreError(
            f"cannot open the store {shown}: {reason}. Check RUNTAP_DATABASE_URL, and whether it runs"
        ) from error
    except StoreError:
        engine.dispose()
        raise
    if events_topic is not None and row.events_topic != events_topic:
        engine.dispose()
        raise StoreError(
            f"the store {shown} holds the figures of topic {row.events_topic!r}, not of {events_topic!r}: "
            "set RUNTAP_TOPIC_PREFIX back, or name another store in RUNTAP_DATABASE_URL"
        )
    return Store(engine, row.store_id, row.events_topic, ZoneInfo(row.timezone), row.created_at_ns)


def migrate_store(database_url: str) -> str:
    """Brings a store to this version's tables; forward only.

    Returns:
        The revision that it is at now.

    Raises:
        StoreError: it cannot be reached, or is newer than this version.
    """
    from alembic import command

    url = _driver_url(database_url)
    shown = shown_url(url)
    engine = _create_engine(url)
    try:
        with _exclusive(engine) as connection:
            if not inspect(connection).has_table(tables.store.name):
                raise StoreError(f"there is no store at {shown}: a worker makes one")
            config = _alembic_config()
            config.attributes["connection"] = connection
            # A worker of the old version that is at work is fenced, and looks at the version. Locked in the order in
            # which workers do.
            positions = tables.positions
            connection.execute(
                select(positions.c.epoch).order_by(positions.c.projection, positions.c.partition).with_for_update()
            )
            connection.execute(update(positions).values(epoch=positions.c.epoch + 1))
            command.upgrade(config, "head")
            return _revision(connection) or ""
    except DBAPIError as error:
        raise StoreError(f"cannot migrate the store {shown}: {without_passwords(str(error.orig).strip())}") from error
    finally:
        engine.dispose()


def shown_url(url: URL) -> str:
    """Where a store is, for messages: without its password, which may stand among the options, too."""
    return url.set(query={}).render_as_string(hide_password=True)


def _driver_url(database_url: str) -> URL:
    url = make_url(database_url)
    return url.set(drivername="postgresql+psycopg") if url.get_backend_name() == "postgresql" else url


def _create_engine(url: URL) -> Engine:
    if url.get_backend_name() == "postgresql":
        return create_engine(url, connect_args={"connect_timeout": 5}, pool_pre_ping=True)
    if url.database and url.database != ":memory:":
        try:
            Path(url.database).parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(
                f"cannot make a folder for the store {url.database}: {error.strerror}. Check RUNTAP_DATABASE_URL"
            ) from error
        # SQLite gives its -wal and -shm the mode of the file.
        with suppress(OSError):
            os.close(private_opener(url.database, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
    engine = create_engine(url, connect_args={"timeout": _BUSY_TIMEOUT_SECONDS, "isolation_level": None})

    @event.listens_for(engine, "connect")
    def _configure(connection: Any, _record: Any) -> None:
        connection.execute("PRAGMA journal_mode=WAL")
        # A commit lost at power failure takes its position with it, and the log is read again.
        connection.execute("PRAGMA synchronous=NORMAL")
        connection.execute(f"PRAGMA busy_timeout={_BUSY_TIMEOUT_SECONDS * 1000}")

    return engine


@contextmanager
def _exclusive(engine: Engine) -> Iterator[Connection]:
    with engine.connect() as connection:
        if engine.dialect.name == "sqlite":
            connection.exec_driver_sql("BEGIN IMMEDIATE")
        else:
            connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _CREATION_LOCK})
        yield connection
        connection.commit()


def _make(engine: Engine, events_topic: str, timezone: str) -> None:
    with _exclusive(engine) as connection:
        if inspect(connection).has_table(tables.store.name):
            return
        tables.metadata.create_all(connection)
        script = ScriptDirectory.from_config(_alembic_config())
        MigrationContext.configure(connection).stamp(script, "head")
        connection.execute(
            tables.store.insert().values(
                id=1,
                store_id=uuid.uuid4().hex[:12],
                events_topic=events_topic,
                timezone=timezone,
                created_at_ns=time.time_ns(),
            )
        )


def _check(engine: Engine, shown: str) -> Any:
    with engine.connect() as connection:
        if not inspect(connection).has_table(tables.store.name):
            raise StoreError(f"there is no store at {shown}: start `runtap worker` first, or set RUNTAP_DATABASE_URL")
        _check_version(connection, shown)
        return connection.execute(select(tables.store)).one()


def _check_version(connection: Connection, shown: str) -> None:
    found, wanted = _revision(connection), _newest_revision()
    if found != wanted:
        raise StoreVersionError(
            f"the store {shown} is of version {found}, this runtap needs {wanted}: "
            "run `runtap store migrate` with the newer of the two"
        )


@cache
def _newest_revision() -> str | None:
    return ScriptDirectory.from_config(_alembic_config()).get_current_head()


def _revision(connection: Connection) -> str | None:
    # Not by alembic, which logs two lines each time.
    revision: str | None = connection.execute(text("SELECT version_num FROM alembic_version")).scalar()
    return revision


def _alembic_config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).with_name("migrations")))
    return config
