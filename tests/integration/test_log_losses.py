"""What a log loses under its readers, and emitters that go without a word: retention that takes the end of lanes,
services that are killed at night, a topic that is made again with fewer partitions. Nothing of it is silent, and
`complete_to` moves on.
"""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from aiokafka import AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic, RecordsToDelete
from sqlalchemy import Engine, create_engine, text

from cost_sql import COST_SUM
from runtap_schemas import Event, LaneAbandoned
from runtap_schemas.events import PARTITION_GONE
from samples import framed, id_of, model_call, report
from worker_process import WorkerSetting, wait_until

MakeTopic = Callable[..., Awaitable[str]]
CALL_PICODOLLARS = 195 * 10**6
REPORT_SECONDS = 5.0
# The least that others report for after an emitter's last frame before it is thought to be gone, with what it takes to
# read that; and how old `complete_to` may be at rest.
VANISHES_SECONDS, BEHIND_SECONDS = 90, 90

pytestmark = [pytest.mark.long, pytest.mark.timeout(400)]


class Emitter:
    """Numbers what it sends. Its events name a service that is called like it."""

    def __init__(self, name: str, partition: int) -> None:
        self.name, self.partition, self.id = name, partition, id_of(name)
        self.said = 0

    def calls(self, count: int) -> bytes:
        """A frame of calls."""
        now_ns, name = time.time_ns(), self.name
        numbers = range(self.said + 1, self.said + 1 + count)
        return self.frame(*(model_call(now_ns, service=name, run_id=f"{name}-{number}") for number in numbers))

    def report(self, **changes: Any) -> bytes:
        """A frame of a report alone."""
        return self.frame(report(time.time_ns(), service=self.name, host=self.name, **changes))

    def frame(self, *events: Event) -> bytes:
        """The next frame."""
        first = self.said + 1
        self.said += len(events)
        return framed(events, self.name, first, time.time_ns())


class Bench:
    """A topic, a store, and the workers between them."""

    def __init__(self, setting: WorkerSetting, topic: str, folder: Path, processes: list[Any]) -> None:
        self.setting, self.topic = setting, topic
        self._folder, self._processes = folder, processes
        self.producer: AIOKafkaProducer | None = None

    def start(self, *projections: str) -> Supervised:
        """Starts a worker that is started again where its topic was gone."""
        log = self._folder / f"worker-{len(self._processes)}.log"
        return Supervised(self.setting, log, self._processes, projections)

    @asynccontextmanager
    async def sending(self) -> AsyncIterator[None]:
        """Has a producer meanwhile."""
        self.producer = AIOKafkaProducer(bootstrap_servers=self.setting.bootstrap_servers, acks="all")
        await self.producer.start()
        try:
            yield
        finally:
            await self.producer.stop()

    async def send(self, emitter: Emitter, value: bytes) -> int:
        """Appends a frame to its emitter's partition; returns the partition's end."""
        assert self.producer is not None
        sent = await self.producer.send_and_wait(self.topic, value, partition=emitter.partition, key=b"key")
        return int(sent.offset) + 1

    @asynccontextmanager
    async def reporting(self, emitter: Emitter) -> AsyncIterator[None]:
        """Has an emitter report every few seconds meanwhile."""

        async def go_on() -> None:
            while True:
                await self.send(emitter, emitter.report())
                await asyncio.sleep(REPORT_SECONDS)

        task = asyncio.create_task(go_on())
        try:
            yield
        finally:
            if not task.cancel():
                task.result()

    async def ledger(self) -> dict[str, Any]:
        """What `runtap ledger` says; every sum in it is right."""
        done = await asyncio.to_thread(self.setting.run, "ledger", "--json")
        assert done.returncode == 0, done.stderr
        found: dict[str, Any] = json.loads(done.stdout)
        for row in (found, *found["services"], *found["emitters"]):
            whole = sum(row[name] for name in ("applied", "in_flight", "lost", "quarantined"))
            assert row["captured"] == whole + sum(row["dropped"].values()), row
            assert row["lost"] == sum(row["lost_by_reason"].values()), row
            assert min(row[name] for name in ("captured", "applied", "in_flight", "lost")) >= 0, row
        return found

    async def ledger_once(
        self, condition: Callable[[dict[str, Any]], bool], seconds: float, *workers: Supervised
    ) -> dict[str, Any]:
        """The ledger of which something holds, which it does within some time. Looks after workers meanwhile."""
        deadline = time.monotonic() + seconds
        while not condition(found := await self.ledger()):
            assert time.monotonic() < deadline, json.dumps(found, indent=1)
            for worker in workers:
                worker.look()
            await asyncio.sleep(1)
        return found

    async def read(self, ends: dict[int, int], *projections: str) -> None:
        """Waits until projections, of those with a position, have come to the ends of partitions."""

        def is_read() -> bool:
            found = self.rows("SELECT partition, projection, next_offset FROM positions")
            least = dict[int, int]()
            for partition, projection, offset in found:
                if not projections or projection in projections:
                    least[partition] = min(offset, least.get(partition, offset))
            return all(least.get(partition, -1) >= end for partition, end in ends.items())

        await asyncio.to_thread(wait_until, is_read, 30, f"offsets {ends}")

    def rows(self, query: str) -> list[tuple[Any, ...]]:
        """What the store says."""
        with opened(self.setting.store_url) as engine, engine.connect() as connection:
            return [tuple(row) for row in connection.execute(text(query))]

    def counted(self) -> dict[str, tuple[int, int]]:
        """Calls and picodollars by service."""
        found = self.rows(f"SELECT service, sum(calls), {COST_SUM} FROM cost_total GROUP BY 1")
        return {service: (int(calls), int(cost)) for service, calls, cost in found}


class Supervised:
    """A worker process. One that ends since its topic is gone is started again, as by a supervisor."""

    def __init__(self, setting: WorkerSetting, log: Path, processes: list[Any], projections: tuple[str, ...]) -> None:
        self._setting, self._log, self._processes, self._projections = setting, log, processes, projections
        self._process = self._start()

    def _start(self) -> subprocess.Popen[bytes]:
        process = self._setting.start(self._log, *self._projections)
        self._processes.append(process)
        return process

    async def assigned(self) -> None:
        """Waits until it has partitions."""
        is_assigned = lambda: "partitions_assigned" in self.log  # noqa: E731
        await asyncio.to_thread(wait_until, is_assigned, 60, "the worker")

    @property
    def log(self) -> str:
        """What it has logged so far."""
        return self._log.read_text()

    def look(self) -> bool:
        """Starts it again if it has ended since its topic was gone; whether it had."""
        if self._process.poll() is None:
            return False
        last = self.log.strip().splitlines()[-1]
        assert self._process.returncode == 1, self.log[-3_000:]
        assert "is no longer there" in last or "no topic" in last, self.log[-3_000:]
        self._process = self._start()
        return True

    def pause(self) -> None:
        """Stops it where it stands."""
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Lets it go on."""
        self._process.send_signal(signal.SIGCONT)

    async def stop(self) -> None:
        """Ends it in order."""
        self._process.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(self._process.wait, 15) == 0, self.log[-3_000:]


@contextmanager
def opened(store_url: str) -> Iterator[Engine]:
    """The store's database."""
    engine = create_engine(store_url.replace("postgresql://", "postgresql+psycopg://"))
    try:
        yield engine
    finally:
        engine.dispose()


@pytest.fixture
async def admin(kafka: str) -> AsyncIterator[AIOKafkaAdminClient]:
    client = AIOKafkaAdminClient(bootstrap_servers=kafka)
    await client.start()
    yield client
    await client.close()


def states(ledger: dict[str, Any]) -> dict[str, str]:
    """Of emitters, by service."""
    return {row["service"]: row["state"] for row in ledger["emitters"]}


def lost(ledger: dict[str, Any]) -> dict[str, dict[str, int]]:
    """By service and reason, where anything is."""
    return {row["service"]: row["lost_by_reason"] for row in ledger["emitters"] if row["lost"]}


def behind(ledger: dict[str, Any]) -> float:
    """Seconds by which `complete_to` is behind now."""
    told = ledger["complete_to"]
    return time.time() - (0.0 if told is None else datetime.fromisoformat(told).timestamp())


async def test_what_retention_took_at_the_end_of_lanes_is_lost_or_its_emitter_named(
    setting: WorkerSetting,
    kafka: str,
    events_topic: MakeTopic,
    admin: AIOKafkaAdminClient,
    tmp_path: Path,
    processes: list[Any],
) -> None:
    bench = Bench(setting, await events_topic(partitions=3), tmp_path, processes)
    # In partition 0 somebody goes on behind what is deleted, in partition 1 nothing follows.
    stopping = [Emitter(f"stops-{partition}", partition) for partition in (0, 1)]
    others = [Emitter(f"others-{partition}", partition) for partition in (0, 1)]
    late = [Emitter(f"late-{partition}", partition) for partition in (0, 1)]
    unheard = [Emitter(f"unheard-{partition}", partition) for partition in (0, 1)]
    honest = Emitter("honest", 2)
    async with bench.sending():
        worker = bench.start()
        await worker.assigned()
        for emitter in (*stopping, *others):
            read_by_all = await bench.send(emitter, emitter.calls(10))
        await bench.read({0: read_by_all, 1: read_by_all})
        await worker.stop()
        # Of these the ledger hears, and the figures do not.
        for emitter in (*stopping, *others, *late):
            heard = await bench.send(emitter, emitter.calls(10))
        await asyncio.to_thread(setting.drain, "ledger")
        for emitter in (*stopping, *others, *unheard):
            deleted = await bench.send(emitter, emitter.calls(10))
        await admin.delete_records(
            {TopicPartition(bench.topic, partition): RecordsToDelete(before_offset=deleted) for partition in (0, 1)}
        )
        async with bench.reporting(honest):
            await bench.send(others[0], others[0].calls(10))
            worker = bench.start()
            await worker.assigned()
            await bench.read({0: deleted + 1, 1: deleted})
            # Nobody has to wait for anything to know that these are lost.
            found = await bench.ledger_once(lambda ledger: ledger["in_flight"] == 0, 25)
            assert lost(found) == {
                "others-0": {"retention": 20},
                **{name: {"retention": 10} for name in ("stops-0", "late-0", "stops-1", "others-1", "late-1")},
            }
            gone = {"stops-0", "late-0", "stops-1", "others-1", "late-1"}
            async with bench.reporting(others[0]):
                found = await bench.ledger_once(
                    lambda ledger: {name for name, state in states(ledger).items() if state == "vanished"} == gone,
                    VANISHES_SECONDS,
                )
                assert behind(found) < BEHIND_SECONDS, found["held_by"]
    found = await bench.ledger_once(lambda ledger: ledger["applied"] == 50 + honest.said + others[0].said - 40, 10)
    assert states(found) == {**dict.fromkeys(gone, "vanished"), "others-0": "open", "honest": "open"}
    assert (found["in_flight"], found["lost"], found["captured_is_at_least"]) == (0, 70, True)
    ledgers_own = next(row for row in found["projections"] if row["projection"] == "ledger")
    # It had met all but the numbers that nobody has: a gap where somebody goes on, else only offsets.
    assert (ledgers_own["in_flight"], ledgers_own["lost"]) == (0, 10)
    for partition in (0, 1):
        incidents = {
            row["projection"]: (row["kind"], row["first_offset"], row["last_offset"])
            for row in found["incidents"]
            if row["partition"] == partition
        }
        assert incidents == {
            row["projection"]: ("retention", heard if row["projection"] == "ledger" else read_by_all, deleted - 1)
            for row in found["projections"]
        }
    counted = dict.fromkeys(("stops-0", "stops-1", "others-1"), 10) | {"others-0": 20}
    assert bench.counted() == {name: (calls, calls * CALL_PICODOLLARS) for name, calls in counted.items()}


async def test_emitters_killed_at_night_hold_complete_to_until_others_go_on_or_they_are_forgotten(
    setting: WorkerSetting, events_topic: MakeTopic, tmp_path: Path, processes: list[Any]
) -> None:
    bench = Bench(setting, await events_topic(partitions=3), tmp_path, processes)
    killed = [Emitter(f"killed-{number}", number % 3) for number in range(5)]
    async with bench.sending():
        worker = bench.start()
        await worker.assigned()
        for emitter in killed:
            for _ in range(3):
                await bench.send(emitter, emitter.calls(10))
            await bench.send(emitter, emitter.report())
        night = time.monotonic()
        found = await bench.ledger_once(lambda ledger: ledger["applied"] == 31 * len(killed), 20)
        # The one that was heard first is the one that says least.
        assert found["held_by"] == killed[0].id
        stood_at = found["complete_to"]
        while time.monotonic() < night + 60:
            await asyncio.sleep(6)
            found = await bench.ledger()
            assert (found["complete_to"], found["held_by"], found["in_flight"]) == (stood_at, killed[0].id, 0)
        # Nobody is by to tell an outage from a death.
        found = await bench.ledger_once(lambda ledger: set(states(ledger).values()) == {"silent"}, 30)
        assert (found["complete_to"], found["captured_is_at_least"]) == (stood_at, False)

        told = await asyncio.to_thread(setting.run, "ledger", "forget", killed[0].id)
        assert told.returncode == 0, told.stderr
        found = await bench.ledger()
        assert states(found) == {"killed-0": "forgotten"} | {emitter.name: "silent" for emitter in killed[1:]}
        assert found["held_by"] == killed[1].id
        assert found["complete_to"] > stood_at
        assert [(row["emitter"], row["struck_out"]) for row in found["forgotten"]] == [(killed[0].id, False)]

        morning = Emitter("morning", 1)
        began = time.monotonic()
        async with bench.reporting(morning):
            while time.monotonic() < began + 45:
                found = await bench.ledger()
                assert found["held_by"] == killed[1].id, found
                await asyncio.sleep(5)
            found = await bench.ledger_once(
                lambda ledger: [*states(ledger).values()].count("vanished") == len(killed) - 1,
                VANISHES_SECONDS - 45,
            )
            assert behind(found) < BEHIND_SECONDS, found["held_by"]
            assert found["captured_is_at_least"]
            # Both come back, and have their say again.
            for emitter in killed[:2]:
                await bench.send(emitter, emitter.calls(10))
            found = await bench.ledger_once(lambda ledger: states(ledger)["killed-0"] != "forgotten", 20)
            await bench.ledger_once(lambda ledger: states(ledger)["killed-1"] == "open", 5)
    found = await bench.ledger_once(lambda ledger: ledger["applied"] == 31 * len(killed) + 20 + morning.said, 10)
    expected = {"killed-0": "open", "killed-1": "open", "morning": "open"}
    assert states(found) == expected | {emitter.name: "vanished" for emitter in killed[2:]}
    assert (found["in_flight"], found["lost"], found["incidents"]) == (0, 0, [])
    calls = {emitter.name: 30 + 10 * (emitter in killed[:2]) for emitter in killed}
    assert bench.counted() == {name: (count, count * CALL_PICODOLLARS) for name, count in calls.items()}


async def test_a_topic_made_again_with_fewer_partitions_loses_nothing_silently(
    setting: WorkerSetting, events_topic: MakeTopic, admin: AIOKafkaAdminClient, tmp_path: Path, processes: list[Any]
) -> None:
    bench = Bench(setting, await events_topic(partitions=3), tmp_path, processes)
    stays, cut_off, heir = Emitter("stays", 0), Emitter("cut-off", 0), Emitter("heir", 0)
    moved, unheard, closed = Emitter("moved", 1), Emitter("unheard", 2), Emitter("closed", 2)
    async with bench.sending():
        figures, keeper = bench.start("cost", "errors", "performance", "runs"), bench.start("ledger")
        await figures.assigned()
        await keeper.assigned()
        ends = {}
        for emitter in (stays, cut_off, moved, unheard):
            ends[emitter.partition] = await bench.send(emitter, emitter.calls(10))
        ends[2] = await bench.send(closed, closed.report(closing=True))
        await bench.read(ends)
        # Of these the ledger hears, and the figures do not. No answer of Kafka is under way to them.
        figures.pause()
        await asyncio.sleep(1)
        resent = stays.calls(10)
        ends = {0: await bench.send(stays, resent)}
        for emitter in (cut_off, moved, unheard):
            ends[emitter.partition] = await bench.send(emitter, emitter.calls(10))
        await bench.read(ends, "ledger")
    await admin.delete_topics([bench.topic])
    # One set of workers meets the moment without the topic, the other wakes up in another log.
    await asyncio.to_thread(wait_until, keeper.look, 40, "the end of a worker without a topic")
    await admin.create_topics([NewTopic(bench.topic, 1, 1)])
    figures.resume()
    async with bench.sending():
        # What was acknowledged by the log that is gone comes again, since its emitter does not know.
        await bench.send(stays, resent)
        await bench.send(stays, stays.calls(10))
        moved.said += 10
        given_up = LaneAbandoned(at_ns=time.time_ns(), emitter=moved.id, first=21, last=30, reason=PARTITION_GONE)
        await bench.send(heir, heir.frame(given_up))
        await bench.send(heir, heir.calls(10))
        async with bench.reporting(heir), bench.reporting(stays):
            found = await bench.ledger_once(
                lambda ledger: (
                    {states(ledger)[name] for name in ("cut-off", "unheard")} == {"vanished"}
                    and ledger["in_flight"] == 0
                    and len(ledger["incidents"]) == 3 * len(ledger["projections"])
                    and behind(ledger) < BEHIND_SECONDS
                ),
                110,
                figures,
                keeper,
            )
    expected = {"stays": "open", "heir": "open", "cut-off": "vanished", "unheard": "vanished"}
    assert states(found) == expected | {"moved": "closed", "closed": "closed"}
    assert lost(found) == {
        "cut-off": {"recreated": 10},
        "unheard": {"gone": 10},
        "moved": {"gone": 10, PARTITION_GONE: 10},
    }
    assert {(row["kind"], row["partition"], row["projection"]) for row in found["incidents"]} == {
        (kind, partition, row["projection"])
        for kind, partition in (("recreated", 0), ("gone", 1), ("gone", 2))
        for row in found["projections"]
    }
    calls = {"stays": 30, "cut-off": 10, "moved": 10, "unheard": 10, "heir": 10}
    assert bench.counted() == {name: (count, count * CALL_PICODOLLARS) for name, count in calls.items()}
    assert bench.rows("SELECT count(*), count(DISTINCT run_id) FROM runs") == [(70, 70)]
    assert found["repeats"] == 0
    assert next(row for row in found["projections"] if row["projection"] == "ledger")["repeats"] == 10
    await keeper.stop()
    await figures.stop()

    # A projection that begins now never had the partitions that are gone, and holds nothing for them.
    await asyncio.to_thread(setting.drain, "sessions")
    found = await bench.ledger()
    assert {row["projection"]: row["in_flight"] for row in found["projections"]}["sessions"] == 0
    assert behind(found) < BEHIND_SECONDS, found["held_by"]


async def test_projections_that_begin_after_a_topic_was_made_smaller_wait_for_nothing_that_is_gone(
    setting: WorkerSetting, events_topic: MakeTopic, admin: AIOKafkaAdminClient, tmp_path: Path, processes: list[Any]
) -> None:
    bench = Bench(setting, await events_topic(partitions=2), tmp_path, processes)
    cut_off, honest = Emitter("cut-off", 1), Emitter("honest", 0)
    async with bench.sending():
        await bench.send(cut_off, cut_off.calls(10))
        await asyncio.to_thread(setting.drain, "cost", "ledger")
    await admin.delete_topics([bench.topic])
    for _ in range(100):
        await asyncio.sleep(0.1)
        if bench.topic not in await admin.list_topics():
            break
    await admin.create_topics([NewTopic(bench.topic, 1, 1)])
    async with bench.sending(), bench.reporting(honest):
        worker = bench.start()
        found = await bench.ledger_once(
            lambda ledger: states(ledger)["cut-off"] == "vanished" and behind(ledger) < BEHIND_SECONDS, 110, worker
        )
    assert {(row["in_flight"], row["lost"]) for row in found["projections"]} == {(0, 0)}
    assert {(row["kind"], row["partition"]) for row in found["incidents"]} == {("gone", 1)}
    assert bench.counted() == {"cut-off": (10, 10 * CALL_PICODOLLARS)}
