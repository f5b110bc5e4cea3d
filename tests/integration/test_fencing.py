"""Workers in this process, and who owns a position: two kinds of sets, a holder that stopped, a
migration, old lanes.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import psycopg
import pytest
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from sqlalchemy import text
from structlog.testing import capture_logs

from runtap_consumers.cli.doctor import check_worker_sets
from runtap_consumers.errors import StoreError, StoreVersionError, WorkerStoppedError
from runtap_consumers.kafka.partition_reader import PartitionReader
from runtap_consumers.pricing.source import PriceSource
from runtap_consumers.settings import ConsumerSettings
from runtap_consumers.store.engine import Store, migrate_store, open_store
from runtap_consumers.store.writer import Commit, Move, Writer
from runtap_consumers.worker import assigned
from runtap_consumers.worker import partition as partitions
from runtap_consumers.worker import topic as topic_watch
from runtap_consumers.worker import worker as workers
from runtap_consumers.worker.health import Health
from runtap_consumers.worker.worker import Worker
from samples import id_of, model_call
from worker_process import numbered, produce

MakeTopic = Callable[..., Awaitable[str]]


@pytest.fixture
def store(store_url: str, topic_prefix: str) -> Iterator[Store]:
    opened = open_store(store_url, f"{topic_prefix}.events", "UTC")
    yield opened
    opened.close()


@asynccontextmanager
async def running(settings: ConsumerSettings, store: Store, *projections: str) -> AsyncIterator[Health]:
    health, stop = Health(projections), asyncio.Event()
    task = asyncio.create_task(
        Worker(settings, projections, store, PriceSource(settings), health, stop).run(drain=False)
    )
    try:
        yield health
    finally:
        stop.set()
        await task


async def until(condition: Callable[[], bool], what: str, seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not come true within {seconds} s"
        await asyncio.sleep(0.05)


def total(store: Store, query: str) -> int:
    with store.read() as connection:
        return int(connection.execute(text(query)).scalar() or 0)


CALLS, COUNTS = "SELECT sum(calls) FROM cost_total", "SELECT sum(count) FROM performance_total"


async def test_two_sets_of_workers_on_one_store_are_slow_and_exact(
    kafka: str, events_topic: MakeTopic, topic_prefix: str, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    topic = await events_topic(partitions=1)
    monkeypatch.setattr(assigned, "LONGEST_FENCED_BACKOFF_SECONDS", 1.0)
    slow, quick = (
        ConsumerSettings.load(bootstrap_servers=kafka, topic_prefix=topic_prefix, commit_seconds=seconds)
        for seconds in (0.5, 0.05)
    )
    sent = 0

    async def feed(count: int) -> None:
        nonlocal sent
        for _ in range(count):
            await produce(kafka, topic, numbered([model_call(time.time_ns())], partitions=1, first=sent))
            sent += 1

    async with running(slow, store, "cost", "performance") as both:
        await feed(1)
        await until(lambda: total(store, COUNTS) == 1, "the first commit")
        async with running(quick, store, "cost") as one:
            with capture_logs() as logs:
                await feed(300)
                # How often they meet depends on how busy the machine is.
                while both.fenced <= 3 and sent < 2_000:
                    await feed(20)
                await until(lambda: total(store, COUNTS) == sent, "the projection that one set alone has")
                await until(lambda: total(store, CALLS) == sent, "the projection that both sets move")
            assert both.fenced > 3
            asked = slow.model_copy(update={"database_url": store.engine.url.render_as_string(hide_password=False)})
            (finding,) = await check_worker_sets(asked)
            assert finding.subject == "projection cost"
            assert "2 sets of workers move it: cost performance; cost" in finding.detail
            moved = {line["projection"] for line in logs if line["event"] == "projection_moved_by_others"}
            assert moved == {"cost"}
            assert (one.failed, both.failed) == ({}, {})
        await feed(20)
        await until(lambda: total(store, CALLS) == sent == total(store, COUNTS), "both projections by one set")


def position(store: Store) -> Commit:
    with store.engine.begin() as connection:
        connection.execute(text("INSERT INTO positions VALUES ('cost', 0, 0, 1, 1, 0, 0, '', 0, 0)"))
    return Commit(0, [Move("cost", 0, 1, 10, "f", 0, 1, 1, 0)])


def hold(url: str, name: str) -> tuple[psycopg.Connection[Any], Any]:
    """A backend that has moved the position and waits, inside a COPY, for a client that says nothing."""
    connection = psycopg.connect(url.replace("+psycopg", ""), application_name=name)
    connection.execute("SET idle_in_transaction_session_timeout = '1s'")
    connection.execute("CREATE TEMP TABLE held (number int)")
    connection.execute("UPDATE positions SET next_offset = 5")
    copy = connection.cursor().copy("COPY held FROM STDIN")
    copy.__enter__().write_row((1,))
    return connection, copy


@pytest.mark.parametrize(("name", "is_ended"), [("runtap-worker", True), ("runtap-migration", False)])
def test_a_worker_stopped_while_it_holds_the_position_is_ended_and_nobody_else(
    postgres_database: str, name: str, is_ended: bool
) -> None:
    store = open_store(postgres_database, "runtap.events", "UTC")
    commit = position(store)
    holder, _copy = hold(postgres_database, name)
    began, refusals = time.monotonic(), list[str]()
    with Writer.of(store) as writer:
        while time.monotonic() - began < 6:
            try:
                writer.commit(commit)
            except StoreError as error:
                refusals.append(str(error))
            else:
                break
    moved = total(store, "SELECT next_offset FROM positions")
    assert len(refusals) >= 3, "one that has just begun to wait is not stopped"
    assert all("lock timeout" in refusal for refusal in refusals)
    assert (moved, len(refusals) < 5) == ((10, True) if is_ended else (0, False))
    holder.close()
    store.close()


async def test_a_worker_of_the_old_version_stops_once_the_store_was_migrated(
    kafka: str, events_topic: MakeTopic, topic_prefix: str, store: Store
) -> None:
    topic = await events_topic(partitions=1)
    settings = ConsumerSettings.load(bootstrap_servers=kafka, topic_prefix=topic_prefix)
    await produce(kafka, topic, numbered([model_call(time.time_ns())], partitions=1))
    worker = Worker(settings, ("cost",), store, PriceSource(settings), Health(("cost",)), asyncio.Event())
    working = asyncio.create_task(worker.run(drain=False))
    await until(lambda: total(store, CALLS) == 1, "the first commit")
    with store.engine.begin() as connection:
        connection.execute(text("UPDATE positions SET epoch = epoch + 1"))
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    await produce(kafka, topic, numbered([model_call(time.time_ns())], partitions=1, first=1))
    with pytest.raises(WorkerStoppedError, match=r"is of version 9999, .* run `runtap store migrate`"):
        await asyncio.wait_for(working, 15)
    with pytest.raises(StoreVersionError):
        store.check_version()
    assert total(store, CALLS) == 1


def test_a_migration_fences_the_workers_that_are_at_work(store: Store, store_url: str) -> None:
    commit = position(store)
    migrate_store(store_url)
    with Writer.of(store) as writer, pytest.raises(StoreError, match="another worker has moved it"):
        writer.commit(commit)
    assert total(store, "SELECT epoch FROM positions") == 2


async def test_a_running_worker_learns_how_far_back_the_log_goes(
    kafka: str, events_topic: MakeTopic, topic_prefix: str, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers, "_SAME_LOG_EVERY_SECONDS", 0.1)
    monkeypatch.setattr(partitions, "_RETENTION_EVERY_NS", 0)
    topic = await events_topic(partitions=1)
    settings = ConsumerSettings.load(bootstrap_servers=kafka, topic_prefix=topic_prefix)
    lane = id_of("long ago/0")
    lanes = f"SELECT count(*) FROM lane_marks WHERE emitter = '{lane}'"
    async with running(settings, store, "cost"):
        for first, emitter in enumerate(("long ago", "e1", "e1")):
            event = [model_call(time.time_ns())]
            await produce(kafka, topic, numbered(event, emitter, partitions=1, first=max(0, first - 1)))
            await until(lambda first=first: total(store, CALLS) == first + 1, "the commit")  # type: ignore[misc]
            if emitter == "long ago":
                # Silent for longer than Kafka keeps anything.
                with store.engine.begin() as connection:
                    connection.execute(text("UPDATE lane_marks SET log_time_ns = 1"))
            await asyncio.sleep(0.2)
        await until(lambda: total(store, lanes) == 0, "forgetting the lane")


async def test_a_partition_is_gone_when_the_topic_has_been_without_it_for_a_while(
    kafka: str, events_topic: MakeTopic, topic_prefix: str, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(topic_watch, "LOOK_EVERY_SECONDS", 0.05)
    topic = await events_topic(partitions=3)
    settings = ConsumerSettings.load(bootstrap_servers=kafka, topic_prefix=topic_prefix)
    async with running(settings, store, "cost"):
        await until(lambda: total(store, "SELECT count(*) FROM positions") == 3, "three positions")
    admin = AIOKafkaAdminClient(bootstrap_servers=kafka)
    await admin.start()
    await admin.delete_topics([topic])
    for _ in range(100):
        await asyncio.sleep(0.1)
        if topic not in await admin.list_topics():
            break
    await admin.create_topics([NewTopic(topic, 1, 1)])
    await admin.close()
    gone = "SELECT count(*) FROM log_incidents WHERE kind = 'gone'"
    async with running(settings, store, "cost"):
        # One look at a broker that does not know all partitions yet is no reason.
        await asyncio.sleep(1)
    assert total(store, gone) == 0
    monkeypatch.setattr(topic_watch, "GONE_SECONDS", 0.3)
    async with running(settings, store, "cost"):
        await until(lambda: total(store, gone) == 2, "the two partitions that are gone")


async def test_a_worker_that_was_fenced_loads_again_and_goes_on(
    kafka: str, events_topic: MakeTopic, topic_prefix: str, store: Store
) -> None:
    topic = await events_topic(partitions=1)
    settings = ConsumerSettings.load(bootstrap_servers=kafka, topic_prefix=topic_prefix)
    async with running(settings, store, "cost") as health:
        for first in range(2):
            await produce(kafka, topic, numbered([model_call(time.time_ns())], partitions=1, first=first))
            await until(lambda first=first: total(store, CALLS) == first + 1, "the commit")  # type: ignore[misc]
            with store.engine.begin() as connection:
                connection.execute(text("UPDATE positions SET epoch = epoch + 1"))
        assert health.fenced == 1


class Log(PartitionReader):
    """A partition's log that grows, and whose position another worker moves, while it is looked at."""

    def __init__(self, on_first_look: Callable[[], None]) -> None:
        self._end = 10
        self._on_first_look = on_first_look
        self.sought: list[int] = []

    async def log_range(self, _partition: int) -> tuple[int, int]:
        end, self._end = self._end, 30
        if end == 10:
            self._on_first_look()
        return 0, end

    async def record_at(self, _partition: int, _offset: int) -> None:
        return None

    def seek(self, _partition: int, offset: int) -> None:
        self.sought.append(offset)


async def test_a_position_that_others_moved_while_it_was_taken_over_begins_no_incarnation(
    store: Store, topic_prefix: str
) -> None:
    settings = ConsumerSettings.load(topic_prefix=topic_prefix)
    with store.engine.begin() as connection:
        connection.execute(text("INSERT INTO positions VALUES ('cost', 0, 5, 1, 1, 0, 0, 'f', 0, 0)"))

    def move_on() -> None:
        with store.engine.begin() as connection:
            connection.execute(text("UPDATE positions SET next_offset = 20"))

    worker = Worker(settings, ("cost",), store, PriceSource(settings), Health(("cost",)), asyncio.Event())
    await worker._reader.stop()
    log = Log(move_on)
    worker._reader = log
    await worker._load(0, assigned.Assigned(), ["cost"])
    # It stands at 20, and the log ends at 30: what lies between was not read.
    taken = assigned.Assigned()
    await worker._load(0, taken, ["cost"])
    assert taken.partition is not None
    await worker._note_caught_up(0, taken, taken.partition)
    assert total(store, "SELECT caught_up_at_ns FROM positions") == 0
    worker._writer.close()
    worker._thread.shutdown()
    assert log.sought == [20, 20]
    assert total(store, "SELECT incarnation FROM positions") == 1
    assert total(store, "SELECT count(*) FROM log_incidents") == 0
