"""How soon partitions go on when their worker is gone, and what must not hold that up."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.exc import DBAPIError

from runtap_consumers.kafka import partition_reader
from runtap_consumers.kafka.client import abandon
from runtap_consumers.kafka.partition_reader import PartitionReader
from runtap_consumers.pricing.source import PriceSource
from runtap_consumers.settings import ConsumerSettings
from runtap_consumers.store.engine import Store, open_store
from runtap_consumers.worker.health import Health
from runtap_consumers.worker.worker import Worker
from samples import model_call
from worker_process import WorkerSetting, numbered, produce, wait_until

pytestmark = pytest.mark.alone

MakeTopic = Callable[..., Awaitable[str]]

_SESSION_SECONDS, _TAKEOVER_SECONDS = 3, 2
# On a machine that others use too, one of so many kills must keep the promise.
_KILLS = 3
# What a worker committed just before its end may be seen so much later.
_AFTERMATH_SECONDS = 0.3


def partitions_of(log: Path) -> list[int]:
    """Those that a worker said last that it has."""
    lines = [line for line in log.read_text().splitlines() if '"partitions_assigned"' in line] if log.exists() else []
    found: list[int] = json.loads(lines[-1])["partitions"] if lines else []
    return found


def offsets_of(setting: WorkerSetting) -> dict[int, int]:
    """How far each partition was committed, by the slowest projection; empty before the store is there."""
    engine = create_engine(setting.store_url.replace("postgresql://", "postgresql+psycopg://"))
    query = "SELECT partition, min(next_offset) FROM positions GROUP BY partition"
    try:
        with engine.connect() as connection:
            return {int(partition): int(offset) for partition, offset in connection.execute(text(query))}
    except DBAPIError as error:
        if "positions" not in str(error):
            raise
        return {}
    finally:
        engine.dispose()


@asynccontextmanager
async def fed(kafka: str, topic: str, partitions: int) -> AsyncIterator[None]:
    """A few events for every partition, all the time."""
    is_over = asyncio.Event()
    feeding = asyncio.create_task(_feed(kafka, topic, partitions, is_over))
    try:
        yield
    finally:
        is_over.set()
        await feeding


async def _feed(kafka: str, topic: str, partitions: int, is_over: asyncio.Event) -> None:
    first = 0
    while not is_over.is_set():
        calls = [model_call(time.time_ns(), run_id=f"run-{first + number}") for number in range(partitions)]
        await produce(kafka, topic, numbered(calls, partitions=partitions, first=first))
        first += partitions
        await asyncio.sleep(0.1)


def seconds_until_moved(setting: WorkerSetting, partitions: list[int]) -> float:
    """From now until each of these partitions was committed to again."""
    began = time.monotonic()
    time.sleep(_AFTERMATH_SECONDS)
    before = offsets_of(setting)

    def have_moved() -> bool:
        offsets = offsets_of(setting)
        return all(offsets[partition] > before[partition] for partition in partitions)

    wait_until(have_moved, 60, f"commits to {partitions}")
    return time.monotonic() - began


def kill_until_soon(setting: WorkerSetting, logs: list[Path], processes: list[Any]) -> list[float]:
    """Kills a worker, and the one that took over from it, and so on, until one kill keeps the promise.

    Returns:
        How long each victim's partitions stood still, in seconds.
    """
    took: list[float] = []
    for kill in range(_KILLS):
        victim, survivor = logs[kill : kill + 2]
        wait_until(
            lambda pair=(victim, survivor): [len(partitions_of(log)) for log in pair] == [2, 2],  # type: ignore[misc]
            60,
            "two workers with two partitions each",
        )
        # Both are at work on what they have now.
        wait_until(lambda: len(offsets_of(setting)) == 4, 60, "the first commits")
        seconds_until_moved(setting, [0, 1, 2, 3])
        lost = partitions_of(victim)
        processes[kill].kill()
        took.append(seconds_until_moved(setting, lost))
        if took[-1] <= _SESSION_SECONDS + _TAKEOVER_SECONDS:
            break
        processes.append(setting.start(logs[kill + 2]))
    return took


@pytest.mark.timeout(400)
async def test_partitions_of_a_killed_worker_go_on_within_the_session_timeout_and_two_seconds(
    setting: WorkerSetting, kafka: str, events_topic: MakeTopic, tmp_path: Path, processes: list[Any]
) -> None:
    topic = await events_topic(partitions=4)
    setting.more["RUNTAP_SESSION_TIMEOUT_SECONDS"] = str(_SESSION_SECONDS)
    logs = [tmp_path / f"worker-{number}.log" for number in range(_KILLS + 2)]
    processes += [setting.start(log) for log in logs[:2]]
    async with fed(kafka, topic, 4):
        took = await asyncio.to_thread(kill_until_soon, setting, logs, processes)
    assert min(took) <= _SESSION_SECONDS + _TAKEOVER_SECONDS, took


@pytest.fixture
def store(store_url: str, topic_prefix: str) -> Iterator[Store]:
    opened = open_store(store_url, f"{topic_prefix}.events", "UTC")
    yield opened
    opened.close()


@pytest.fixture
def settings(kafka: str, topic_prefix: str) -> ConsumerSettings:
    return ConsumerSettings.load(bootstrap_servers=kafka, topic_prefix=topic_prefix, session_timeout_seconds=6)


@asynccontextmanager
async def member(settings: ConsumerSettings, topic: str) -> AsyncIterator[PartitionReader]:
    """One of the topic's group."""
    reader = PartitionReader(settings, topic, f"{topic}.readers", lambda: None)
    await reader.start()
    try:
        yield reader
    finally:
        await reader.stop()


async def until(condition: Callable[[], bool], what: str, seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not come true within {seconds} s"
        await asyncio.sleep(0.02)


async def vanish(reader: PartitionReader) -> None:
    """Ends a member as `kill -9` does: nobody tells the group."""
    coordinator = reader._consumer._coordinator
    await coordinator._stop_heartbeat_task()
    coordinator._coordination_task.cancel()
    coordinator.reset_generation()
    abandon(reader._consumer)


async def test_a_balance_costs_a_member_neither_time_nor_its_membership_and_waits_less_than_a_session_for_the_dead(
    events_topic: MakeTopic, settings: ConsumerSettings
) -> None:
    topic = await events_topic(partitions=2)
    async with member(settings, topic) as survivor, member(settings, topic) as victim:
        await until(lambda: len(survivor.assigned()) == len(victim.assigned()) == 1, "sharing")
        identity, partition = survivor._consumer._coordinator.member_id, next(iter(survivor.assigned()))
        await vanish(victim)
        # The newcomer's join is held up by the dead: until then the group is being balanced.
        newcomer = asyncio.create_task(_join_and_leave(settings, topic))
        await until(lambda: survivor.is_rebalancing, "the balance")
        began = time.monotonic()
        assert await survivor.poll(partition, 0, 1) == []
        assert time.monotonic() - began < 1
        while survivor.is_rebalancing:
            await survivor.publish_progress(dict.fromkeys(survivor.assigned(), 0))
            await asyncio.sleep(0.1)
        assert time.monotonic() - began < settings.session_timeout_seconds - 1
        await newcomer
        await until(lambda: survivor.assigned() == {0, 1}, "taking all back")
        assert survivor._consumer._coordinator.member_id == identity
        await survivor.publish_progress({0: 0, 1: 0})


async def _join_and_leave(settings: ConsumerSettings, topic: str) -> None:
    async with member(settings, topic):
        pass


async def test_a_spare_worker_takes_over_after_it_had_nothing_to_poll_for_long(
    kafka: str, events_topic: MakeTopic, settings: ConsumerSettings, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(partition_reader, "_SILENT_SESSIONS", 0)
    monkeypatch.setattr(partition_reader, "_LEAST_SILENT_MS", 2_000)
    topic = await events_topic(partitions=1)
    stops, healths = [asyncio.Event(), asyncio.Event()], [Health(("cost",)), Health(("cost",))]
    workers = [
        asyncio.create_task(Worker(settings, ("cost",), store, PriceSource(settings), health, stop).run(drain=False))
        for health, stop in zip(healths, stops, strict=True)
    ]
    try:
        await asyncio.sleep(4)
        await until(lambda: any(health.partitions for health in healths), "the assignment")
        owner = next(number for number, health in enumerate(healths) if health.partitions)
        stops[owner].set()
        await workers[owner]
        await produce(kafka, topic, numbered([model_call(time.time_ns())], partitions=1))
        await until(lambda: healths[1 - owner].events_applied == 1, "the spare worker's commit")
    finally:
        for stop in stops:
            stop.set()
        await asyncio.gather(*workers)
