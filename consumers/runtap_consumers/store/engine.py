"""Opening a store: made if it is empty, refused if it is of another topic or version."""

from __future__ import annotations

import os
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Self
from zoneinfo import ZoneInfo

from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine, create_engine, event, inspect, select, text, update
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import DBAPIError, OperationalError

from runtap_consumers.errors import QueryTimeoutError, StoreAwayError, StoreError, StoreVersionError
from runtap_consumers.private_files import private_opener
from runtap_consumers.store import tables
from runtap_consumers.store.dialect import Dialect, dialect_of, file_of
from runtap_schemas.masking import without_passwords

# Of PostgreSQL's refusals those that go by themselves.
_TRANSIENT = ("starting up", "shutting down", "not yet accepting", "recovery", "too many clients", "connection slots")
_limits = threading.local()


@dataclass(frozen=True)
class Store:
    """An open store and what was fixed when it was made."""

    engine: Engine
    store_id: str
    events_topic: str
    zone: ZoneInfo
    created_at_ns: int
    # Device and number of the file, where it is one.
    file_identity: tuple[int, int] | None = None

    @property
    def dialect(self) -> Dialect:
        """The SQL of its database."""
        return dialect_of(self.engine.url)

    @property
    def database(self) -> str:
        """Which database it is, and its version."""
        version = ".".join(map(str, self.engine.dialect.server_version_info or ()))
        return f"{self.dialect.title} {version}"

    @contextmanager
    def limit(self, seconds: float) -> Iterator[None]:
        """Lets what this thread reads meanwhile take so long together, and no longer; nor than a limit around it."""
        outer: float | None = getattr(_limits, "deadline", None)
        deadline = time.monotonic() + seconds
        _limits.deadline = deadline if outer is None else min(deadline, outer)
        try:
            yield
        finally:
            _limits.deadline = outer

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """A connection whose statements all see one snapshot.

        Raises:
            StoreError: the store cannot be read.
            QueryTimeoutError: it took longer than `limit` allows.
        """
        deadline: float | None = getattr(_limits, "deadline", None)
        try:
            with self.engine.connect() as connection:
                for statement in self.dialect.begin_snapshot:
                    connection.exec_driver_sql(statement)
                if deadline is None:
                    yield connection
                else:
                    with self.dialect.limited(connection, deadline):
                        yield connection
                connection.rollback()
        except DBAPIError as error:
            if deadline is not None and time.monotonic() >= deadline:
                raise QueryTimeoutError("reading the store takes too long") from error
            raise StoreError(
                f"cannot read the store: {without_passwords(str(error.orig).strip())}. Check whether it runs"
            ) from error

    def check_file(self) -> None:
        """Raises StoreError where the file that was opened is no longer at its place."""
        file = file_of(self.engine.url)
        if file is not None and _identity(file) != self.file_identity:
            raise StoreError(f"the store's file {file} was deleted or replaced: what is written now is lost with it")

    def check_version(self) -> None:
        """Raises StoreVersionError where the tables were migrated since the store was opened."""
        with self.read() as connection:
            _check_version(connection)

    def close(self) -> None:
        """Closes all connections."""
        self.engine.dispose()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def keep_limit(connection: Connection) -> None:
    """Between two statements of one reading: lets the next take what is left of its `limit`, and no longer."""
    deadline: float | None = getattr(_limits, "deadline", None)
    if deadline is not None:
        dialect_of(connection.engine.url).limit_next(connection, deadline)


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
    file = file_of(url)
    if events_topic is None and file is not None and not file.exists():
        raise _missing(url)
    with _connected(url, "open") as engine:
        if events_topic is not None:
            _make(engine, events_topic, timezone or "UTC")
        row = _check(engine)
        if events_topic is not None and row.events_topic != events_topic:
            raise StoreError(
                f"the store {shown_url(url)} holds the figures of topic {row.events_topic!r}, not of {events_topic!r}: "
                "set RUNTAP_TOPIC_PREFIX back, or name another store in RUNTAP_DATABASE_URL"
            )
    zone, identity = ZoneInfo(row.timezone), None if file is None else _identity(file)
    return Store(engine, row.store_id, row.events_topic, zone, row.created_at_ns, identity)


def migrate_store(database_url: str, events_topic: str | None = None, timezone: str | None = None) -> str:
    """Brings a store to this version's tables, forward only, and returns their revision.

    Args:
        database_url: as for `open_store`.
        events_topic: makes a store of this topic's figures where there is none; `None`: that is an error.
        timezone: of a new store's days; UTC if `None`.

    Raises:
        StoreError: it cannot be reached, or is newer than this version.
    """
    url = _driver_url(database_url)
    with _connected(url, "migrate") as engine:
        if events_topic is not None:
            _make(engine, events_topic, timezone or "UTC")
        revision = _migrate(engine, url)
    engine.dispose()
    return revision


def _migrate(engine: Engine, url: URL) -> str:
    from alembic import command

    with _exclusive(engine) as connection:
        if not inspect(connection).has_table(tables.store.name):
            raise _missing(url)
        config = _alembic_config()
        config.attributes["connection"] = connection
        # Fences workers of the old version, which then look at the version. In the order in which workers lock, or
        # the two could deadlock.
        positions = tables.positions
        connection.execute(
            select(positions.c.epoch).order_by(positions.c.projection, positions.c.partition).with_for_update()
        )
        connection.execute(update(positions).values(epoch=positions.c.epoch + 1))
        command.upgrade(config, "head")
        return _revision(connection) or ""


def _identity(file: Path) -> tuple[int, int] | None:
    try:
        found = file.stat()
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino


def shown_url(url: URL) -> str:
    """Where a store is, for messages: without its password, which may stand among the options, too."""
    return url.set(query={}).render_as_string(hide_password=True)


def _driver_url(database_url: str) -> URL:
    url = make_url(database_url)
    return url.set(drivername=dialect_of(url).driver)


def _create_engine(url: URL) -> Engine:
    file, dialect = file_of(url), dialect_of(url)
    if file is not None:
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(
                f"cannot make a folder for the store {file}: {error.strerror}. Check RUNTAP_DATABASE_URL"
            ) from error
        # SQLite gives its -wal and -shm the mode of the file.
        with suppress(OSError):
            os.close(private_opener(str(file), os.O_CREAT | os.O_EXCL | os.O_WRONLY))
    engine = create_engine(url, **dialect.engine_options)

    @event.listens_for(engine, "connect")
    def _configure(connection: Any, _record: Any) -> None:
        for statement in dialect.on_connect:
            connection.execute(statement)

    return engine


@contextmanager
def _connected(url: URL, purpose: str) -> Iterator[Engine]:
    """An engine, closed where it cannot be used."""
    engine = _create_engine(url)
    try:
        yield engine
    except BaseException as error:
        engine.dispose()
        if not isinstance(error, DBAPIError):
            raise
        said = str(error.orig).strip()
        reason = without_passwords(said.splitlines()[0])
        # What a server answers when it refuses for good is FATAL; libpq gives no code for it.
        is_away = isinstance(error, OperationalError) and ("FATAL" not in said or any(map(said.count, _TRANSIENT)))
        kind = StoreAwayError if is_away and file_of(url) is None else StoreError
        raise kind(
            f"cannot {purpose} the store {shown_url(url)}: {reason}. Check RUNTAP_DATABASE_URL, and whether it runs"
        ) from error


def _missing(url: URL) -> StoreError:
    return StoreError(f"there is no store at {shown_url(url)}: start `runtap worker` first, or set RUNTAP_DATABASE_URL")


@contextmanager
def _exclusive(engine: Engine) -> Iterator[Connection]:
    with engine.connect() as connection:
        for statement in dialect_of(engine.url).lock_creation:
            connection.exec_driver_sql(statement)
        yield connection
        connection.commit()


def _make(engine: Engine, events_topic: str, timezone: str) -> None:
    with _exclusive(engine) as connection:
        found = inspect(connection).get_table_names()
        if tables.store.name in found:
            return
        if found and file_of(engine.url) is not None:
            raise StoreError(
                f"{shown_url(engine.url)} is another program's database, with tables like {found[0]}: "
                "name a file of its own in RUNTAP_DATABASE_URL"
            )
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


def _check(engine: Engine) -> Any:
    with engine.connect() as connection:
        if not inspect(connection).has_table(tables.store.name):
            raise _missing(engine.url)
        _check_version(connection)
        return connection.execute(select(tables.store)).one()


def _check_version(connection: Connection) -> None:
    found, wanted = _revision(connection), _newest_revision()
    if found != wanted:
        raise StoreVersionError(
            f"the store {shown_url(connection.engine.url)} is of version {found}, this runtap needs {wanted}: "
            "run `runtap store migrate` with the newer of the two"
        )


@cache
def _newest_revision() -> str | None:
    return ScriptDirectory.from_config(_alembic_config()).get_current_head()


def _revision(connection: Connection) -> str | None:
    # alembic's own reading logs two lines each time.
    revision: str | None = connection.execute(text("SELECT version_num FROM alembic_version")).scalar()
    return revision


def _alembic_config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).with_name("migrations")))
    return config
