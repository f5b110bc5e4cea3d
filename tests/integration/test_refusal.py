"""Events that cannot be applied: they become dead letters, and nothing else is lost or stands still."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from partition_setting import ALL, WorkerTools, rows
from runtap_consumers.errors import FoldFailedError, RowsRefusedError
from runtap_consumers.pricing import PriceTable
from runtap_consumers.projections import PROJECTIONS
from runtap_consumers.projections.batch import Batch
from runtap_consumers.projections.rollups import Changes
from runtap_consumers.settings import ConsumerSettings
from runtap_consumers.store.engine import Store, open_store
from runtap_consumers.worker.decoding import Refused
from runtap_consumers.worker.health import Health
from runtap_consumers.worker.partition import Partition, Tools
from runtap_consumers.worker.refusal import find_refused
from runtap_consumers.worker.worker import Worker
from runtap_schemas import RunEnded
from samples import START_NS, Log, model_call
from worker_process import WorkerSetting, numbered, produce

MakeTopic = Callable[..., Awaitable[str]]


@pytest.fixture
def picky(monkeypatch: pytest.MonkeyPatch) -> None:
    """`sessions` raises on calls of the name `bad`, and on two of the name `odd` together."""
    fold = PROJECTIONS["sessions"]

    def fold_picky(batch: Batch, attributes: tuple[str, ...]) -> Changes:
        names = [event.name for event, _ in batch.ended]
        if "bad" in names or names.count("odd") > 1:
            raise ZeroDivisionError("it is bad")
        return fold(batch, attributes)

    monkeypatch.setitem(PROJECTIONS, "sessions", fold_picky)


def calls(names: list[str]) -> list[RunEnded]:
    return [
        model_call(START_NS + number, run_id=f"r-{number}", name=name, session_id="s")
        for number, name in enumerate(names)
    ]


def loaded(tools: Tools, refused: Refused | None = None) -> Partition:
    partition = Partition(0, ALL, tools)
    partition.refused = refused or {}
    partition.load(0)
    return partition


def apply_with(tools: Tools, log: Log) -> dict[int, str]:
    """Applies a log of one record, whose batch is refused, without what is found to be at fault."""
    with pytest.raises((FoldFailedError, RowsRefusedError)):
        tools.writer.commit(loaded(tools).fold(log.records))
    found = find_refused(0, ALL, tools, log.records[0])
    partition = loaded(tools, {0: found})
    partition.commit(partition.fold(log.records))
    return found


def test_events_at_fault_are_found_and_the_others_of_their_record_count(
    store: Store, tools: WorkerTools, picky: None
) -> None:
    log = Log()
    log.append_frame(calls(["a", "bad", "b", "c", "d", "e", "bad"]), "e1", 1)
    found = apply_with(tools.make(), log)
    assert set(found) == {2, 7}
    assert all(cause.startswith("cannot be applied: sessions cannot fold it: Zero") for cause in found.values())
    assert rows(store, "SELECT sum(calls) FROM cost_total") == [(5,)]
    assert rows(store, "SELECT sum(llm_calls) FROM sessions") == [(5,)]
    assert rows(store, "SELECT DISTINCT mark, gaps, quarantined FROM lane_marks") == [(7, "[]", 2)]
    assert rows(store, "SELECT sequence, events, log_offset FROM dead_letters ORDER BY 1") == [(2, 1, 0), (7, 1, 0)]
    assert rows(store, "SELECT DISTINCT next_offset FROM positions") == [(1,)]


def test_events_that_cannot_be_applied_together_are_refused_together(
    store: Store, tools: WorkerTools, picky: None
) -> None:
    log = Log()
    log.append_frame(calls(["odd", "a", "odd"]), "e1", 1)
    assert sorted(apply_with(tools.make(), log)) == [1, 2, 3]
    assert rows(store, "SELECT count(*) FROM runs") == [(0,)]


def test_names_too_long_for_an_index_are_refused_where_it_has_no_room(store: Store, tools: WorkerTools) -> None:
    log = Log()
    dice = random.Random(1)
    long = ["".join(chr(dice.randrange(0x20000, 0x2A6D0)) for _ in range(200)) for _ in range(4)]
    names = dict(zip(("name", "service", "environment", "model"), long, strict=True))
    log.append_frame([*calls(["a", "b"]), model_call(START_NS, **names), *calls(["c"])], "e1", 1)
    if store.dialect.title == "SQLite":
        partition = loaded(tools.make())
        partition.commit(partition.fold(log.records))
        assert rows(store, "SELECT sum(calls) FROM cost_total") == [(4,)]
    else:
        assert list(apply_with(tools.make(), log)) == [3]
        assert rows(store, "SELECT sum(calls) FROM cost_total") == [(3,)]


async def work_until(kafka: str, topic_prefix: str, store: Store, is_done: Callable[[], bool]) -> Health:
    settings = ConsumerSettings.load(bootstrap_servers=kafka, topic_prefix=topic_prefix)
    health, stop = Health(ALL), asyncio.Event()

    class Prices:
        table = PriceTable.load()

        def refresh(self) -> bool:
            return False

    worker: Any = Worker(settings, ALL, store, Prices(), health, stop)
    working = asyncio.create_task(worker.run(drain=False))
    until = time.monotonic() + 60
    while not is_done():
        assert time.monotonic() < until
        assert not working.done(), working.exception()
        await asyncio.sleep(0.1)
    stop.set()
    await working
    return health


async def test_a_partition_goes_on_past_records_at_fault(
    kafka: str, topic_prefix: str, events_topic: MakeTopic, store_url: str, picky: None
) -> None:
    topic = await events_topic(partitions=1)
    names = ["bad" if number % 97 == 13 else "fine" for number in range(400)]
    await produce(kafka, topic, numbered(calls(names), partitions=1))
    with open_store(store_url, topic) as opened:

        def is_done() -> bool:
            return rows(opened, "SELECT min(next_offset) FROM positions") == [(400,)]

        health = await work_until(kafka, topic_prefix, opened, is_done)
        assert health.failed == {}
        good = names.count("fine")
        assert rows(opened, "SELECT sum(calls) FROM cost_total") == [(good,)]
        assert rows(opened, "SELECT sum(llm_calls) FROM sessions") == [(good,)]
        assert rows(opened, "SELECT count(*) FROM runs") == [(good,)]
        assert rows(opened, "SELECT count(*), sum(events) FROM dead_letters") == [(400 - good, 400 - good)]
        assert rows(opened, "SELECT DISTINCT mark, quarantined FROM lane_marks") == [(400, 400 - good)]


@pytest.mark.parametrize(("at_fault", "letters"), [("whatever it gets", 0), ("every event", 10)])
async def test_a_projection_that_folds_nothing_stops_alone(
    at_fault: str,
    letters: int,
    kafka: str,
    topic_prefix: str,
    events_topic: MakeTopic,
    store_url: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def broken(batch: Batch, _attributes: tuple[str, ...]) -> Changes:
        if batch.ended or at_fault == "whatever it gets":
            raise ZeroDivisionError("a bug")
        return Changes()

    monkeypatch.setitem(PROJECTIONS, "sessions", broken)
    topic = await events_topic(partitions=1)
    await produce(kafka, topic, numbered(calls(["fine"] * 100), partitions=1))
    with open_store(store_url, topic) as opened:

        def is_done() -> bool:
            found = dict(rows(opened, "SELECT projection, next_offset FROM positions"))
            return found.pop("sessions", 100) < 20 and set(found.values()) == {100}

        health = await work_until(kafka, topic_prefix, opened, is_done)
        assert list(health.failed) == ["sessions"]
        # What was taken for records at fault, before the projection was.
        assert rows(opened, "SELECT count(*) FROM dead_letters") == [(letters,)]
        assert rows(opened, "SELECT sum(calls) FROM cost_total") == [(100 - letters,)]


async def test_a_record_is_skipped_by_hand_by_those_that_stand_there_alone(
    setting: WorkerSetting, kafka: str, events_topic: MakeTopic, store_url: str
) -> None:
    topic = await events_topic(partitions=1)
    records = numbered(calls(["fine"] * 5), partitions=1)
    await produce(kafka, topic, records[:3])
    await asyncio.to_thread(setting.drain, "cost", "ledger")
    await produce(kafka, topic, records[3:])
    await asyncio.to_thread(setting.drain, "ledger")
    elsewhere = await asyncio.to_thread(setting.run, "dead-letters", "skip", "0/1")
    assert (elsewhere.returncode, "no projection stands at 0/1" in elsewhere.stderr) == (2, True), elsewhere.stderr
    done = await asyncio.to_thread(setting.run, "dead-letters", "skip", "0/3")
    assert (done.returncode, done.stdout.strip()) == (0, "0/3 is skipped: cost go on behind it."), done.stderr
    await asyncio.to_thread(setting.drain, "cost", "ledger")
    with open_store(store_url, topic) as opened:
        assert rows(opened, "SELECT sum(calls) FROM cost_total") == [(4,)]
        assert rows(opened, "SELECT DISTINCT next_offset FROM positions") == [(5,)]
        incidents = rows(opened, "SELECT projection, kind, first_offset, last_offset FROM log_incidents")
    assert incidents == [("cost", "skipped", 3, 3)]
    ledger = await asyncio.to_thread(setting.run, "ledger")
    assert "somebody skipped the record at offset 3" in " ".join(ledger.stdout.split())


async def test_what_is_refused_while_a_partition_is_loaded_is_waited_out(
    kafka: str, topic_prefix: str, events_topic: MakeTopic, store_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    load, failures = Partition.load, iter([True])

    def refuse_first(partition: Partition, log_start: int) -> None:
        if next(failures, False):
            raise RowsRefusedError("the store does not take a value")
        load(partition, log_start)

    monkeypatch.setattr(Partition, "load", refuse_first)
    topic = await events_topic(partitions=1)
    await produce(kafka, topic, numbered(calls(["fine"] * 5), partitions=1))
    with open_store(store_url, topic) as opened:
        await work_until(
            kafka, topic_prefix, opened, lambda: rows(opened, "SELECT sum(calls) FROM cost_total") == [(5,)]
        )
