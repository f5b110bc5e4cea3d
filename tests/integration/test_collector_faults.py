"""Everything that Kafka, and the network before it, can do to an emitter: the app never feels it, nothing is lost
without a count, nothing counts twice.
"""

from __future__ import annotations

import asyncio
import socket
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from kafka_proxy import Answer, ProxiedKafka, proxied_kafka
from runtap_collector import RunTap
from runtap_collector.send import link
from runtap_collector.send import sender as sender_module
from runtap_consumers.kafka.topics import create_topics
from runtap_demo.kafka.broker import EmbeddedKafka, Node
from runtap_schemas import ConnectionSettings, EmitterReported, RunEnded
from topic_log import LoggedEvent, read_topic

_RECOVERY_SECONDS = 10.0
_P50_SECONDS, _P99_SECONDS = 15e-6, 100e-6


@pytest.fixture(scope="module")
def proxied() -> Iterator[ProxiedKafka]:
    with proxied_kafka() as kafka:
        yield kafka


async def _make_topic(bootstrap_servers: str, prefix: str, partitions: int = 1, replicas: int = 1) -> str:
    settings = ConnectionSettings.load(bootstrap_servers=bootstrap_servers, topic_prefix=prefix)
    await create_topics(settings, partitions, replication_factor=replicas)
    return f"{prefix}.events"


def _end_runs(tap: RunTap, count: int) -> list[float]:
    """Starts and ends runs, and returns the seconds of every callback."""
    handler: Any = tap.handler
    took = []
    for _ in range(count):
        run_id = uuid.uuid4()
        began = time.perf_counter()
        handler.on_chain_start(None, {}, run_id=run_id, name="run")
        between = time.perf_counter()
        handler.on_chain_end({}, run_id=run_id)
        took += [between - began, time.perf_counter() - between]
    return took


def _check_sums(tap: RunTap) -> None:
    """Where every captured event is, by the closed emitter's own outbox."""
    stats = tap.stats()
    dropped = sum(sum(kinds.values()) for kinds in stats.dropped.values())
    assert stats.captured == stats.acknowledged + stats.skipped + stats.superseded + dropped, stats
    assert (stats.waiting, stats.spooled, stats.held_bytes, dropped) == (0, 0, 0, 0), stats


def _check_log(logged: list[LoggedEvent], runs: int, skipped: int = 0, before: int = 0) -> int:
    """Checks that every number above `before` is there or skipped, with one event each, in one partition.

    Returns:
        How many records are repeats.
    """
    ((emitter, _),) = {(entry.emitter, entry.partition) for entry in logged}
    events: dict[int, Any] = {}
    for entry in logged:
        assert events.setdefault(entry.number, entry.event) == entry.event, emitter
    ended = [event.run_id for event in events.values() if isinstance(event, RunEnded)]
    assert len(ended) == len({*ended}) == runs - skipped
    last = events[max(events)]
    assert isinstance(last, EmitterReported)
    assert last.closing
    announced = {number for each in last.skipped for number in range(each.first, each.last + 1)}
    assert {*range(before + 1, max(events))} - {*events} == announced
    assert len(announced) == skipped
    return len(logged) - len(events)


class Row(NamedTuple):
    """An error code of produce answers, and what is to follow: the frame is `resent` unchanged at once, `held` (resent
    unchanged after a pause, and said), or refused for good, with the word for the outbox.
    """

    name: str
    code: int
    follows: str
    is_appended: bool = False


# Every code that Kafka documents for produce answers without a transaction, and those that brokers have given besides.
_ROWS = [
    Row("unknown_server_error", -1, "held"),
    Row("corrupt_message", 2, "invalid_record"),
    Row("unknown_topic_or_partition", 3, "resent"),
    Row("leader_not_available", 5, "resent"),
    Row("not_leader_or_follower", 6, "resent"),
    Row("request_timed_out, not appended", 7, "resent"),
    Row("request_timed_out, appended", 7, "resent", is_appended=True),
    Row("broker_not_available", 8, "held"),
    Row("replica_not_available", 9, "held"),
    Row("message_too_large", 10, "too_large"),
    Row("network_exception", 13, "held"),
    Row("invalid_topic", 17, "held"),
    Row("record_list_too_large", 18, "too_large"),
    Row("not_enough_replicas", 19, "resent"),
    Row("not_enough_replicas_after_append", 20, "resent", is_appended=True),
    Row("invalid_required_acks", 21, "held"),
    Row("topic_authorization_failed", 29, "held"),
    Row("cluster_authorization_failed", 31, "held"),
    Row("invalid_timestamp", 32, "invalid_timestamp"),
    Row("unsupported_version", 35, "held"),
    Row("unsupported_for_message_format", 43, "held"),
    Row("policy_violation", 44, "held"),
    Row("kafka_storage_error", 56, "resent"),
    Row("fenced_leader_epoch", 74, "held"),
    Row("unknown_leader_epoch", 75, "held"),
    Row("unsupported_compression_type", 76, "held"),
    Row("invalid_record", 87, "invalid_record"),
    Row("throttling_quota_exceeded", 89, "held"),
    Row("unknown_topic_id", 100, "held"),
]


@asynccontextmanager
async def _tapped(
    proxied: ProxiedKafka, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[tuple[RunTap, str]]:
    """A tap whose first produce request is that of the first runs, and its topic."""
    monkeypatch.setattr(sender_module, "FIRST_REPORT_SECONDS", 60.0)
    monkeypatch.setattr(sender_module, "DENIED_RETRY_SECONDS", 0.05)
    # Only a flush moves them on, all at once.
    monkeypatch.setattr(sender_module, "LINGER_SECONDS", 2.0)
    topic = await _make_topic(proxied.bootstrap_servers, prefix)
    # Once its end can be asked for, its leader is there.
    assert await read_topic(proxied.bootstrap_servers, topic) == []
    tap = RunTap.from_env(bootstrap_servers=proxied.bootstrap_servers, topic_prefix=prefix)
    try:
        proxied.proxy.attempts.clear()
        yield tap, topic
    finally:
        proxied.proxy.answers.clear()
        tap.close()


@pytest.mark.parametrize("row", _ROWS, ids=[f"{row.code} {row.name}" for row in _ROWS])
async def test_every_error_code_of_a_produce_answer_loses_nothing_and_counts_nothing_twice(
    row: Row,
    proxied: ProxiedKafka,
    topic_prefix: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    proxy = proxied.proxy
    is_refusal = row.follows not in ("resent", "held")
    async with _tapped(proxied, topic_prefix, monkeypatch) as (tap, topic):
        proxy.answers.append(Answer(row.code, row.is_appended))
        _end_runs(tap, 8)
        delivery = await tap.aflush(5)
        assert (delivery.sent, delivery.waiting, delivery.dropped) == (8, 0, {})
        batches = [attempt.batch for attempt in proxy.attempts]
        codes = [attempt.code for attempt in proxy.attempts]
        if is_refusal:
            # Halved: the same events, with the same numbers.
            assert codes == [row.code, 0, 0]
            _end_runs(tap, 1)
            proxy.answers.append(Answer(row.code))
            delivery = await tap.aflush(5)
            assert (delivery.sent, delivery.waiting, delivery.dropped) == (8, 0, {row.follows: 1})
        else:
            assert codes == [row.code, 0]
            assert batches[0] == batches[1]
        await tap.aclose()
    _check_sums(tap)
    assert tap.stats().skipped == int(is_refusal)
    repeats = _check_log(await read_topic(proxied.bootstrap_servers, topic), 9 if is_refusal else 8, int(is_refusal))
    assert repeats == (8 if row.is_appended else 0)
    logged = " ".join(record.getMessage() for record in caplog.records)
    assert ("lane_held" in logged, "events_skipped" in logged) == (row.follows == "held", is_refusal), logged


async def test_all_other_error_codes_one_after_another_hold_the_lane_and_then_it_goes_on(
    proxied: ProxiedKafka, topic_prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    others = sorted({*range(-1, 134)} - {0, 46} - {row.code for row in _ROWS})
    async with _tapped(proxied, topic_prefix, monkeypatch) as (tap, topic):
        proxied.proxy.answers += [Answer(code) for code in others]
        _end_runs(tap, 8)
        delivery = await tap.aflush(30)
        assert (delivery.sent, delivery.waiting, delivery.dropped) == (8, 0, {})
        attempts = list(proxied.proxy.attempts)
        await tap.aclose()
    assert [attempt.code for attempt in attempts] == [*others, 0]
    assert len({attempt.batch for attempt in attempts}) == 1
    _check_sums(tap)
    assert _check_log(await read_topic(proxied.bootstrap_servers, topic), 8) == 0


class _Felt:
    """A service's callbacks at a steady rate."""

    def __init__(self, tap: RunTap) -> None:
        self._tap = tap
        self.runs = 0

    async def run(self, seconds: float) -> tuple[float, float]:
        """Median and 99th percentile of a callback's seconds."""
        took: list[float] = []
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            took += _end_runs(self._tap, 5)
            self.runs += 5
            await asyncio.sleep(0.01)
        took.sort()
        return took[len(took) // 2], took[len(took) * 99 // 100]


def _check_felt(calm: tuple[float, float], away: tuple[float, float]) -> None:
    """On a busy machine everything is slow: then hardly slower than before the outage."""
    assert away[0] <= max(_P50_SECONDS, 2 * calm[0]), (calm, away)
    assert away[1] <= max(_P99_SECONDS, 3 * calm[1]), (calm, away)


class _Outage:
    """How Kafka goes away and comes back."""

    def __init__(self, proxied: ProxiedKafka, topic: str, monkeypatch: pytest.MonkeyPatch) -> None:
        self._proxied = proxied
        self._topic = topic
        self._patch = monkeypatch

    async def stopped(self) -> Callable[[], Awaitable[None]]:
        self._proxied.node.nodes[0].suspend()

        async def end() -> None:
            self._proxied.node.nodes[0].resume()

        return end

    async def stopped_and_producer_given_up(self) -> Callable[[], Awaitable[None]]:
        self._patch.setattr(link, "DELIVERY_SECONDS", 0.5)
        return await self.stopped()

    async def refused(self) -> Callable[[], Awaitable[None]]:
        return self._in_mode("refuse")

    async def black_holed(self) -> Callable[[], Awaitable[None]]:
        return self._in_mode("swallow")

    async def reset_in_an_answer(self) -> Callable[[], Awaitable[None]]:
        return self._in_mode("reset")

    def _in_mode(self, mode: Any) -> Callable[[], Awaitable[None]]:
        self._proxied.proxy.set_mode(mode)

        async def end() -> None:
            self._proxied.proxy.set_mode("pass")

        return end

    async def name_gone(self) -> Callable[[], Awaitable[None]]:
        def fail(host: Any, *_: Any, **__: Any) -> Any:
            raise socket.gaierror(socket.EAI_AGAIN, f"no address for {host}")

        resolve = socket.getaddrinfo
        self._patch.setattr(socket, "getaddrinfo", fail)
        self._proxied.proxy.cut()

        async def end() -> None:
            self._patch.setattr(socket, "getaddrinfo", resolve)

        return end

    async def topic_deleted(self) -> Callable[[], Awaitable[None]]:
        admin = AIOKafkaAdminClient(bootstrap_servers=self._proxied.bootstrap_servers)
        await admin.start()
        await admin.delete_topics([self._topic])

        async def end() -> None:
            await admin.create_topics([NewTopic(self._topic, 3, 1)])
            await admin.close()

        return end


@pytest.mark.alone
@pytest.mark.parametrize(
    ("fault", "seconds"),
    [
        ("stopped", 2.5),
        # Longer than Kafka's clients wait for an answer.
        ("black_holed", 5.0),
        ("stopped_and_producer_given_up", 2.5),
        ("refused", 2.5),
        ("reset_in_an_answer", 2.5),
        ("name_gone", 2.5),
        ("topic_deleted", 2.5),
    ],
)
async def test_app_never_feels_an_outage_and_the_lane_recovers_within_ten_seconds(
    fault: str,
    seconds: float,
    proxied: ProxiedKafka,
    topic_prefix: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    # A report on its way when Kafka goes would wait by the clock that it went out with.
    monkeypatch.setattr(sender_module, "FIRST_REPORT_SECONDS", 60.0)
    topic = await _make_topic(proxied.bootstrap_servers, topic_prefix, partitions=3)
    async with RunTap.from_env(bootstrap_servers=proxied.bootstrap_servers, topic_prefix=topic_prefix) as tap:
        service = _Felt(tap)
        calm = await service.run(1.0)
        await tap.aflush()
        runs_before = service.runs
        before = tap.stats().numbered
        end = await getattr(_Outage(proxied, topic, monkeypatch), fault)()
        try:
            away = await service.run(seconds)
        finally:
            await end()
        began = time.monotonic()
        delivery = await tap.aflush(_RECOVERY_SECONDS)
        assert (delivery.waiting, delivery.spooled, delivery.dropped) == (0, 0, {}), time.monotonic() - began
    _check_felt(calm, away)
    _check_sums(tap)
    # What was wrong is said once, and aiokafka's thousand lines are kept for ourselves.
    emitted = [record for record in caplog.records if record.threadName == "runtap-sender"]
    assert not [record for record in emitted if record.name.startswith("aiokafka")]
    messages = [record.getMessage() for record in emitted]
    assert not [message for message in messages if "complained" in message or "failed" in message]
    said = [sum(word in message for message in messages) for word in ("kafka_unreachable", "kafka_reached")]
    assert said[0] == said[1]
    if fault in ("black_holed", "stopped_and_producer_given_up"):
        assert said == [1, 1]
    logged = await read_topic(proxied.bootstrap_servers, topic)
    if fault == "topic_deleted":
        # What was acknowledged before is gone with it; all that came since is there.
        _check_log(logged, service.runs - runs_before, before=before)
    else:
        _check_log(logged, service.runs)


@pytest.mark.alone
async def test_lane_follows_its_leader_to_other_nodes(topic_prefix: str) -> None:
    with EmbeddedKafka(nodes=3) as kafka:
        topic = await _make_topic(kafka.bootstrap_servers, topic_prefix, partitions=3, replicas=3)
        async with RunTap.from_env(bootstrap_servers=kafka.bootstrap_servers, topic_prefix=topic_prefix) as tap:
            service = _Felt(tap)
            calm = await service.run(1.0)
            await tap.aflush()
            away = asyncio.create_task(service.run(4.0))
            # Ended as an operator does it: its partitions' leaders move first.
            await asyncio.to_thread(kafka.nodes[0].stop)
            felt = await away
            delivery = await tap.aflush(_RECOVERY_SECONDS)
            assert (delivery.waiting, delivery.spooled, delivery.dropped) == (0, 0, {})
        _check_felt(calm, felt)
        _check_sums(tap)
        others = ",".join(f"127.0.0.1:{node.port}" for node in kafka.nodes[1:])
        _check_log(await read_topic(others, topic), service.runs)


@pytest.mark.long
async def test_partition_whose_only_node_died_is_left_and_its_frames_follow_when_it_is_back(
    topic_prefix: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(sender_module, "STUCK_SECONDS", 5.0)
    with EmbeddedKafka(nodes=3) as kafka:
        topic = await _make_topic(kafka.bootstrap_servers, topic_prefix, partitions=3)
        servers = kafka.bootstrap_servers
        async with RunTap.from_env(
            bootstrap_servers=servers, topic_prefix=topic_prefix, spool_dir=str(tmp_path)
        ) as tap:
            _end_runs(tap, 50)
            await tap.aflush()
            (left,) = {(entry.emitter, entry.partition) for entry in await read_topic(kafka.bootstrap_servers, topic)}
            node = await _leader_of(kafka, topic, left[1])
            node.kill()
            ended = 50
            deadline = time.monotonic() + 60
            while tap.stats().emitter == left[0]:
                assert time.monotonic() < deadline, "it stays with a partition that has no leader"
                ended += len(await asyncio.to_thread(_end_runs, tap, 5)) // 2
                await asyncio.sleep(0.1)
            assert tap.stats().spooled > 0
            # What comes now needs neither the dead node nor the spool.
            acknowledged = tap.stats().acknowledged
            _end_runs(tap, 50)
            ended += 50
            while tap.stats().acknowledged < acknowledged + 50:
                assert time.monotonic() < deadline, "nothing goes to the other partitions"
                await asyncio.sleep(0.1)
            node.start()
            delivery = await tap.aflush(60)
            assert (delivery.waiting, delivery.spooled, delivery.dropped) == (0, 0, {})
        _check_sums(tap)
        logged = await read_topic(kafka.bootstrap_servers, topic)
        runs = [entry.event.run_id for entry in logged if isinstance(entry.event, RunEnded)]
        assert len({*runs}) == ended
        lanes = {(entry.emitter, entry.partition) for entry in logged}
        assert len(lanes) == 2
        assert left in lanes
        for lane in lanes:
            events = {entry.number: entry.event for entry in logged if entry.emitter == lane[0]}
            assert [*events] == [*range(1, len(events) + 1)]
            last = events[len(events)]
            assert isinstance(last, EmitterReported)
            assert last.closing
        assert await asyncio.to_thread(lambda: list(tmp_path.rglob("*.spool"))) == []


async def _leader_of(kafka: EmbeddedKafka, topic: str, partition: int) -> Node:
    client = AIOKafkaAdminClient(bootstrap_servers=kafka.bootstrap_servers)
    await client.start()
    try:
        (described,) = await client.describe_topics([topic])
        (leader,) = [each["leader"] for each in described["partitions"] if each["partition"] == partition]
        (port,) = [broker.port for broker in client._client.cluster.brokers() if broker.nodeId == leader]
        (node,) = [node for node in kafka.nodes if node.port == port]
        return node
    finally:
        await client.close()
