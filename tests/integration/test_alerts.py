"""The alert evaluator on both stores, and what it publishes on real Kafka."""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import AsyncMock

import pytest
from structlog.testing import capture_logs

from runtap_consumers.alerts.evaluator import LEASE_NS, AlertEvaluator
from runtap_consumers.alerts.loop import run_alerts
from runtap_consumers.kafka.client import Publisher
from runtap_consumers.kafka.record_tail import TailedRecord, tail_records
from runtap_consumers.settings import ConsumerSettings
from runtap_consumers.store import tables
from runtap_consumers.store.dead_letters import DeadLetter
from runtap_consumers.store.engine import Store, open_store
from runtap_consumers.store.writer import SqliteWriter, Writer
from runtap_consumers.units import HOUR_NS, MINUTE_NS
from runtap_consumers.worker.dead_letters import publish_dead_letters
from runtap_schemas import Alert, decode_alert
from worker_process import wait_until

EVENTS = "test.events"
SETTINGS = ConsumerSettings.load(alert_learning_seconds=0.0)


class Figures:
    """Writes what a worker would have written."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self._writer = Writer.of(store)

    def add(self, table_name: str, *rows: tuple[Any, ...]) -> None:
        with self.open_commit(table_name, *rows):
            pass

    @contextmanager
    def open_commit(self, table_name: str, *rows: tuple[Any, ...]) -> Iterator[None]:
        """A transaction that has written the rows, and commits at the end of the block."""
        table = tables.metadata.tables[table_name]
        with self._writer.transaction():
            self._writer.execute_rows(self._writer._upserts[table_name], table, list(rows))
            yield

    def position(self, partition: int = 0, next_offset: int = 0, log_time_ns: int = 0, generation: int = 0) -> None:
        self.add("positions", ("errors", partition, next_offset, 0, 0, generation, 0, "", log_time_ns, 0))

    def roots(self, minute_ns: int, ok: int, errors: int, partition: int = 0, generation: int = 0) -> None:
        key = (minute_ns, "checkout", "prod", partition, generation)
        with self.open_commit("roots_minute", (*key, ok, errors, 0, 0, f"run-{minute_ns}" if errors else None)):
            self.touch(minute_ns, partition, generation)

    def touch(self, minute_ns: int, partition: int, generation: int) -> None:
        table = tables.metadata.tables["touched_minutes"]
        row = (minute_ns, partition, generation, 1)
        self._writer.execute_rows(self._writer._upserts[table.name], table, [row])

    def groups(self, count: int, service: str = "checkout", first: int = 0) -> None:
        self.add(
            "error_groups",
            *(
                (
                    *(service, "prod", f"fingerprint-{number:03}", 0, 0),
                    *("ValueError", "other", f"boom {number}", "tool", None, None, None),
                    *(2, number, number + 1, f"run-{number}"),
                )
                for number in range(first, first + count)
            ),
        )

    def query(self, statement: str) -> list[Any]:
        with self._writer.transaction():
            return self._writer.query(statement)

    def alerts(self) -> list[Alert]:
        rows = self.query("SELECT payload FROM alert_outbox ORDER BY at_ns, id")
        return [decode_alert(bytes(payload)) for (payload,) in rows]

    def close(self) -> None:
        self._writer.close()


@pytest.fixture
def figures(store_url: str) -> Iterator[Figures]:
    store = open_store(store_url, EVENTS)
    made = Figures(store)
    made.position()
    yield made
    made.close()
    store.close()


@pytest.fixture
def now_ns(figures: Figures) -> int:
    """Half a minute into an hour after the store was made."""
    return (figures.store.created_at_ns // HOUR_NS + 10) * HOUR_NS + 30 * 10**9


@pytest.fixture
def evaluator(figures: Figures) -> Iterator[AlertEvaluator]:
    with AlertEvaluator(figures.store, SETTINGS) as made:
        yield made


def test_error_rate_fires_once_and_is_resolved_once(figures: Figures, evaluator: AlertEvaluator, now_ns: int) -> None:
    minute = now_ns - now_ns % MINUTE_NS
    assert evaluator.evaluate(now_ns, now_ns, True) == 0
    figures.roots(minute, 10, 20)
    assert evaluator.evaluate(now_ns + 1, now_ns + 1, True) == 1
    for seconds in range(2, 200, 7):
        at = now_ns + seconds * 10**9
        assert evaluator.evaluate(at, at, True) == 0
    figures.roots(minute + 4 * MINUTE_NS, 500, 0)
    at = now_ns + 4 * MINUTE_NS
    assert evaluator.evaluate(at, at, True) == 1
    fired, resolved = figures.alerts()
    assert (fired.id, fired.state, fired.count, fired.sample_run_id) == (
        "error_rate/checkout/prod/1",
        "firing",
        20,
        f"run-{minute}",
    )
    assert fired.rate == pytest.approx(20 / 30)
    assert (resolved.id, resolved.state, resolved.count) == ("error_rate/checkout/prod/2", "resolved", 20)


def test_service_that_falls_silent_while_it_fires_is_resolved(
    figures: Figures, evaluator: AlertEvaluator, now_ns: int
) -> None:
    minute = now_ns - now_ns % MINUTE_NS
    figures.roots(minute, 10, 20)
    assert evaluator.evaluate(now_ns, now_ns, True) == 1
    # One partition lags: what it may still bring is no silence.
    at = minute + 6 * MINUTE_NS
    assert evaluator.evaluate(at, at - MINUTE_NS, False) == 0
    assert evaluator.evaluate(at, at, True) == 1
    assert evaluator.evaluate(at + HOUR_NS, at + HOUR_NS, True) == 0
    assert [(alert.state, alert.rate) for alert in figures.alerts()] == [
        ("firing", pytest.approx(20 / 30)),
        ("resolved", None),
    ]


def test_partitions_are_summed_and_only_the_live_generation_counts(
    figures: Figures, evaluator: AlertEvaluator, now_ns: int
) -> None:
    minute = now_ns - now_ns % MINUTE_NS
    figures.position(partition=1, generation=2)
    evaluator.evaluate(now_ns, now_ns, True)
    figures.roots(minute, 12, 0, partition=0)
    figures.roots(minute, 0, 100, partition=1, generation=0)
    assert evaluator.evaluate(now_ns, now_ns, True) == 0
    figures.roots(minute, 4, 4, partition=1, generation=2)
    assert evaluator.evaluate(now_ns, now_ns, True) == 1
    assert [(alert.count, alert.rate) for alert in figures.alerts()] == [(4, 0.2)]


def test_lagging_partition_holds_the_verdict_back_and_its_late_minutes_are_judged(
    figures: Figures, evaluator: AlertEvaluator, now_ns: int
) -> None:
    minute = now_ns - now_ns % MINUTE_NS
    evaluator.evaluate(now_ns, now_ns, True)
    # Partition 1 is five minutes behind: what partition 0 alone shows, all failed, is not judged.
    figures.position(partition=1)
    figures.roots(minute, 0, 20, partition=0)
    later = now_ns + 3 * MINUTE_NS
    assert evaluator.evaluate(later, minute - 5 * MINUTE_NS, False) == 0
    figures.roots(minute, 1_000, 0, partition=1)
    assert evaluator.evaluate(later + 1, later, True) == 0
    # A commit that comes after the minute's windows were judged.
    figures.roots(minute - 2 * MINUTE_NS, 0, 600, partition=1)
    assert evaluator.evaluate(later + 2, later, True) == 2
    assert [alert.state for alert in figures.alerts()] == ["firing", "resolved"]


def test_touch_that_a_regressed_watermark_kept_unjudged_is_judged_later(
    figures: Figures, evaluator: AlertEvaluator, now_ns: int
) -> None:
    minute = now_ns - now_ns % MINUTE_NS
    evaluator.evaluate(now_ns, now_ns, True)
    figures.roots(minute - 10 * MINUTE_NS, 0, 50)
    assert evaluator.evaluate(now_ns + 1, minute - HOUR_NS, False) == 0
    assert figures.query("SELECT count(*) FROM touched_minutes")[0][0] == 0
    assert evaluator.evaluate(now_ns + 2, now_ns, False) == 2
    assert [(alert.state, alert.window_to_ns) for alert in figures.alerts()] == [
        ("firing", minute - 9 * MINUTE_NS),
        # The first window after it without a root.
        ("resolved", minute - 4 * MINUTE_NS),
    ]


def test_touch_of_an_open_commit_is_seen_after_the_commit(postgres_database: str) -> None:
    # SQLite has one writer: there is no open commit beside an evaluation.
    store = open_store(postgres_database, EVENTS)
    figures = Figures(store)
    figures.position()
    now = (store.created_at_ns // HOUR_NS + 10) * HOUR_NS
    key = (now - 20 * MINUTE_NS, "checkout", "prod", 0, 0)
    with AlertEvaluator(store, SETTINGS) as evaluator:
        evaluator.evaluate(now, now, True)
        # The minute was touched before, and is touched again by a commit that is still open while it is judged.
        figures.add("touched_minutes", (now - 20 * MINUTE_NS, 0, 0, 1))
        with figures.open_commit("roots_minute", (*key, 0, 50, 0, 0, "run-1")):
            figures.touch(now - 20 * MINUTE_NS, 0, 0)
            assert evaluator.evaluate(now + 1, now, False) == 0
        assert evaluator.evaluate(now + 2, now, False) == 2
    assert [(alert.state, alert.count) for alert in figures.alerts()] == [("firing", 50), ("resolved", 0)]
    figures.close()
    store.close()


def test_new_group_is_named_once(figures: Figures, evaluator: AlertEvaluator, now_ns: int) -> None:
    figures.groups(2)
    assert evaluator.evaluate(now_ns, now_ns, True) == 2
    figures.groups(2)
    figures.add(
        "error_groups",
        (
            *("checkout", "staging", "fingerprint-001", 1, 0),
            *("ValueError", "other", "boom", "tool", None, None, None, 1, 1, 1, "run-9"),
        ),
    )
    figures.position(partition=1)
    assert evaluator.evaluate(now_ns + 1, now_ns + 1, True) == 0
    first = figures.alerts()[0]
    assert (first.id, first.state, first.count, first.sample_run_id, first.environment) == (
        "new_error_group/checkout/fingerprint-000",
        "noticed",
        2,
        "run-0",
        "prod",
    )
    assert first.summary == "checkout: new error ValueError (other): boom 0"


def test_young_store_learns_its_groups_quietly(figures: Figures) -> None:
    store = figures.store
    learning = ConsumerSettings.load(alert_learning_seconds=600.0)
    figures.groups(3)
    with AlertEvaluator(store, learning) as evaluator:
        at = store.created_at_ns + 599 * 10**9
        assert evaluator.evaluate(at, at, True) == 0
        figures.groups(1, first=3)
        at = store.created_at_ns + 600 * 10**9
        assert evaluator.evaluate(at, at, True) == 1
    assert [alert.fingerprint for alert in figures.alerts()] == ["fingerprint-003"]


def test_groups_beyond_the_cap_wait_for_one_summary_of_their_hour(
    figures: Figures, evaluator: AlertEvaluator, now_ns: int
) -> None:
    figures.groups(7)
    assert evaluator.evaluate(now_ns, now_ns, True) == 7
    figures.groups(8, first=7)
    figures.groups(2, service="search")
    assert evaluator.evaluate(now_ns + 1, now_ns + 1, True) == 5
    at = now_ns + HOUR_NS - MINUTE_NS
    assert evaluator.evaluate(at, at, True) == 0
    at = now_ns + HOUR_NS
    figures.groups(1, first=20)
    assert evaluator.evaluate(at, at, True) == 2
    assert evaluator.evaluate(at + HOUR_NS, at + HOUR_NS, True) == 0
    summary = next(alert for alert in figures.alerts() if alert.window_to_ns)
    assert (summary.rule, summary.state, summary.service, summary.count) == (
        "new_error_group",
        "noticed",
        "checkout",
        5,
    )


def test_two_evaluators_at_once_raise_each_alert_once(figures: Figures, now_ns: int) -> None:
    minute = now_ns - now_ns % MINUTE_NS
    with AlertEvaluator(figures.store, SETTINGS) as warm:
        warm.evaluate(now_ns - 2 * LEASE_NS, now_ns - 2 * LEASE_NS, True)
    figures.groups(10)
    figures.roots(minute, 0, 50)
    counts: list[int] = []
    barrier = threading.Barrier(4)

    def compete() -> None:
        with AlertEvaluator(figures.store, SETTINGS) as evaluator:
            barrier.wait()
            raised = 0
            for step in range(10):
                # Each lease has run out by the next step: every round may change hands.
                at = now_ns + step * 2 * LEASE_NS
                raised += evaluator.evaluate(at, at, True)
            counts.append(raised)

    threads = [threading.Thread(target=compete) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    alerts = figures.alerts()
    assert len(alerts) == len({alert.id for alert in alerts}) == sum(counts) == 11


def test_other_evaluator_waits_for_the_lease_of_one_that_died(figures: Figures, now_ns: int) -> None:
    died = AlertEvaluator(figures.store, SETTINGS)
    assert died.evaluate(now_ns, now_ns, True) == 0
    figures.groups(1)
    with AlertEvaluator(figures.store, SETTINGS) as other:
        assert other.evaluate(now_ns + LEASE_NS - 1, now_ns, True) == 0
        assert not other.holds_lease
        assert other.evaluate(now_ns + LEASE_NS, now_ns, True) == 1
        assert other.holds_lease
        assert died.evaluate(now_ns + LEASE_NS + 1, now_ns, True) == 0
        assert not died.holds_lease
    died.close()


def test_closed_evaluator_gives_its_lease_back(figures: Figures, now_ns: int) -> None:
    with AlertEvaluator(figures.store, SETTINGS) as first:
        first.evaluate(now_ns, now_ns, True)
    with AlertEvaluator(figures.store, SETTINGS) as second:
        second.evaluate(now_ns + 1, now_ns + 1, True)
        assert second.holds_lease


def test_watermark_is_the_least_log_time_and_now_at_the_end(
    figures: Figures, evaluator: AlertEvaluator, now_ns: int
) -> None:
    figures.position(partition=0, next_offset=10, log_time_ns=now_ns - 5)
    figures.position(partition=1, next_offset=20, log_time_ns=now_ns - 7)
    assert evaluator.watermark({0: 10, 1: 20}, now_ns) == (now_ns, True)
    assert evaluator.watermark({0: 11, 1: 20}, now_ns) == (now_ns - 5, False)
    assert evaluator.watermark({0: 11, 1: 21}, now_ns) == (now_ns - 7, False)
    # Nobody has read partition 2 yet, but it is empty; of partition 3 nothing is applied.
    assert evaluator.watermark({0: 10, 1: 20, 2: 0}, now_ns) == (now_ns, True)
    assert evaluator.watermark({0: 10, 1: 20, 3: 1}, now_ns) == (0, False)
    # The log was made again, and the worker has not noticed.
    assert evaluator.watermark({0: 4, 1: 20}, now_ns) == (now_ns - 5, False)


async def _records(settings: ConsumerSettings, topic: str, count: int) -> list[TailedRecord]:
    records = []
    async with asyncio.timeout(20):
        async for record in tail_records(settings, topic, from_beginning=True):
            records.append(record)
            if len(records) == count:
                break
    return records


async def test_alert_is_published_with_the_same_id_after_a_stop_between_outbox_and_kafka(
    kafka: str, topic_prefix: str, events_topic: Callable[..., Awaitable[str]], store_url: str
) -> None:
    events = await events_topic(partitions=2)
    settings = ConsumerSettings.load(
        bootstrap_servers=kafka, topic_prefix=topic_prefix, database_url=store_url, alert_learning_seconds=0.0
    )
    store = open_store(store_url, events)
    figures = Figures(store)
    figures.position()
    figures.groups(1)
    # It stored the alert, sent it, and died before it could note the acknowledgement.
    died = AlertEvaluator(store, settings)
    at = store.created_at_ns + 1
    assert died.evaluate(at, at, True) == 1
    stored = died.outbox()
    async with Publisher(settings) as publisher:
        await publisher.publish(f"{topic_prefix}.alerts", b"checkout", stored[0].payload)
    died.close()
    stop = asyncio.Event()
    loop = asyncio.create_task(run_alerts(store, settings, stop))
    records = await _records(settings, f"{topic_prefix}.alerts", 2)
    figures.groups(1, first=1)
    records = await _records(settings, f"{topic_prefix}.alerts", 3)
    stop.set()
    await asyncio.wait_for(loop, 5)
    ids = [decode_alert(record.value or b"").id for record in records]
    assert ids == [stored[0].id, stored[0].id, "new_error_group/checkout/fingerprint-001"]
    assert {record.key for record in records} == {b"checkout"}
    assert figures.query("SELECT count(*) FROM alert_outbox WHERE published = 0")[0][0] == 0
    figures.close()
    store.close()


async def test_alert_loop_outlives_a_database_that_ends_its_connections(
    kafka: str,
    topic_prefix: str,
    events_topic: Callable[..., Awaitable[str]],
    postgres_database: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("runtap_consumers.alerts.loop.ROUND_SECONDS", 0.1)
    settings = ConsumerSettings.load(
        bootstrap_servers=kafka, topic_prefix=topic_prefix, database_url=postgres_database, alert_learning_seconds=0.0
    )
    store = open_store(postgres_database, await events_topic(partitions=1))
    figures = Figures(store)
    figures.position()
    rounds: list[int] = []
    stop = asyncio.Event()
    with capture_logs() as logs:
        loop = asyncio.create_task(run_alerts(store, settings, stop, lambda: rounds.append(1)))
        figures.groups(1)
        await _records(settings, f"{topic_prefix}.alerts", 1)
        for _ in range(3):
            figures.query(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
            await asyncio.sleep(0.3)
        figures.groups(1, first=1)
        await _records(settings, f"{topic_prefix}.alerts", 2)
        stop.set()
        await asyncio.wait_for(loop, 5)
    names = [entry["event"] for entry in logs]
    assert 1 <= names.count("alerts_interrupted") <= 3
    assert names.count("alerts_resumed") == names.count("alerts_interrupted")
    assert rounds
    figures.close()
    store.close()


async def test_alert_loop_outlives_an_unreachable_kafka_and_stops_at_once(
    store_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("runtap_consumers.alerts.loop.ROUND_SECONDS", 0.05)
    settings = ConsumerSettings.load(bootstrap_servers="127.0.0.1:1", database_url=store_url)
    store = open_store(store_url, "runtap.events")
    stop = asyncio.Event()
    with capture_logs() as logs:
        loop = asyncio.create_task(run_alerts(store, settings, stop))
        await asyncio.sleep(1)
        assert not loop.done()
        stop.set()
        await asyncio.wait_for(loop, 2)
    interrupted = [entry for entry in logs if entry["event"] == "alerts_interrupted"]
    assert len(interrupted) == 1
    assert "127.0.0.1:1" in interrupted[0]["error"]
    store.close()


async def test_the_store_is_not_closed_under_an_evaluation_of_a_cancelled_loop(
    kafka: str,
    topic_prefix: str,
    events_topic: Callable[..., Awaitable[str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings = ConsumerSettings.load(bootstrap_servers=kafka, topic_prefix=topic_prefix)
    store = open_store(f"sqlite:///{tmp_path / 'runtap.db'}", await events_topic(partitions=1))
    begun, may_end, done = threading.Event(), threading.Event(), list[str]()
    evaluate, close = AlertEvaluator.evaluate, AlertEvaluator.close

    def wait_and_evaluate(evaluator: AlertEvaluator, now_ns: int, watermark_ns: int, caught_up: bool) -> int:
        begun.set()
        may_end.wait(10)
        raised = evaluate(evaluator, now_ns, watermark_ns, caught_up)
        done.append(f"evaluated, lease held: {evaluator.holds_lease}")
        return raised

    def note_and_close(evaluator: AlertEvaluator) -> None:
        close(evaluator)
        done.append("closed")

    monkeypatch.setattr(AlertEvaluator, "evaluate", wait_and_evaluate)
    monkeypatch.setattr(AlertEvaluator, "close", note_and_close)
    loop = asyncio.create_task(run_alerts(store, settings, asyncio.Event()))
    assert await asyncio.to_thread(begun.wait, 10)
    loop.cancel()
    await asyncio.wait({loop}, timeout=0.3)
    # Again, as a process that ends does it: the close must come all the same.
    loop.cancel()
    with pytest.raises(asyncio.CancelledError):
        await loop
    assert done == []
    may_end.set()
    await asyncio.to_thread(wait_until, lambda: done == ["evaluated, lease held: True", "closed"], 10)
    store.close()


async def test_the_store_is_not_closed_under_a_mark_of_a_cancelled_publishing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(f"sqlite:///{tmp_path / 'runtap.db'}", "runtap.events")
    Figures(store).add("dead_letters", ("id-1", 3, 17, 1, "not an event", None, None, 1, b"trace", b"", 0))
    begun, may_end, done = threading.Event(), threading.Event(), list[str]()

    def mark(writer: Writer, letter: DeadLetter) -> None:
        begun.set()
        may_end.wait(10)
        done.append("marked")

    monkeypatch.setattr("runtap_consumers.worker.dead_letters._mark", mark)
    monkeypatch.setattr(SqliteWriter, "close", lambda writer: done.append("closed"))
    publishing = asyncio.create_task(publish_dead_letters(store, AsyncMock(), "dead-letters", [3]))
    await asyncio.to_thread(begun.wait, 10)
    publishing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await publishing
    assert done == []
    may_end.set()
    await asyncio.to_thread(wait_until, lambda: done == ["marked", "closed"], 10)
    store.close()


async def test_dead_letters_are_published_as_they_were_and_once(
    kafka: str, topic_prefix: str, events_topic: Callable[..., Awaitable[str]], store_url: str
) -> None:
    events = await events_topic()
    settings = ConsumerSettings.load(bootstrap_servers=kafka, topic_prefix=topic_prefix, database_url=store_url)
    store = open_store(store_url, events)
    figures = Figures(store)
    topic = f"{topic_prefix}.dead-letters"
    large = b"\x00\xff" * 700_000 + bytes(range(256)) * 4
    figures.add(
        "dead_letters",
        ("id-1", 3, 17, 1, "not an event", None, None, 1, b"trace", b"\xff not json", 0),
        ("id-2", 3, 18, 2, "the record has no value", None, None, 1, None, None, 0),
        ("id-3", 4, 1, 3, "too large", None, None, 1, b"k", large, 0),
        ("id-4", 4, 2, 4, "published before", None, None, 1, b"k", b"v", 1),
        ("id-5", 4, 3, 5, "larger than a topic takes", None, None, 1, b"k", random.Random(1).randbytes(1_200_000), 0),
    )
    async with Publisher(settings) as publisher:
        # Another worker's.
        assert await publish_dead_letters(store, publisher, topic, [0, 1]) == 0
        assert await publish_dead_letters(store, publisher, topic, [3]) == 2
        assert await publish_dead_letters(store, publisher, topic, [3, 4]) == 2
        assert await publish_dead_letters(store, publisher, topic, [3, 4]) == 0
    first, second, third, fourth = await _records(settings, topic, 4)
    assert (first.key, first.value) == (b"trace", b"\xff not json")
    assert first.headers == (
        ("id", b"id-1"),
        ("topic", events.encode()),
        ("partition", b"3"),
        ("offset", b"17"),
        ("cause", b"not an event"),
    )
    # The client refuses a record with neither key nor value; the cause says what it was.
    assert (second.key, second.value) == (None, b"")
    # It compresses to less than the topic's limit.
    assert third.value == large
    assert len(fourth.value or b"") == 100_000
    assert dict(fourth.headers)["original_bytes"] == b"1200000"
    figures.close()
    store.close()
