"""Lanes under every answer that Kafka can give, which no real broker gives on demand. Kafka itself:
tests/integration.
"""

from __future__ import annotations

import asyncio
import threading
import time
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from runtap_collector.send import sender as sender_module
from runtap_collector.send.lanes import Builder, Lane
from runtap_collector.send.ledger import Ledger
from runtap_collector.send.link import (
    BatchRefusedError,
    PartitionUnknownError,
    SendDeniedError,
    SendError,
    SendFailedError,
)
from runtap_collector.send.partitions import partition_of as partition_of_key
from runtap_collector.send.records import OpenRun, Route, View
from runtap_collector.send.ring import Ring
from runtap_collector.send.sender import Sender
from runtap_collector.spool.spool import Spool
from runtap_schemas import ConnectionSettings, EmitterReported, RunEnded, decode_event

_VIEW = View("s", "e", {}, captures_content=False)


def partition_of(key: str, count: int) -> int:
    return partition_of_key(key.encode(), count)


Fate = Callable[[list[bytes], int], SendError | None]


class _Builder:
    def __init__(self, limit: int) -> None:
        self._room = limit
        self.values: list[bytes] = []

    def append(self, *, timestamp: int | None, key: bytes | None, value: bytes | None) -> object | None:
        assert key
        assert value
        if self.values and len(value) > self._room:
            return None
        self._room -= len(value)
        self.values.append(value)
        return self


class FakeLink:
    """Stands in for Kafka: keeps a log per partition, and answers as `fate` says."""

    def __init__(self, settings: ConnectionSettings, topic: str) -> None:
        self.up = asyncio.Event()
        self.up.set()
        self.known = frozenset(range(3))
        self.log: dict[int, list[bytes]] = defaultdict(list)
        self.attempts: list[tuple[int, _Builder]] = []
        self.in_flight: set[int] = set()
        self.said_down: list[str] = []
        self.batch_bytes = 4_000
        self.down_seconds = 0.0
        self.silent_seconds = 0.0
        self.unanswered_seconds = 0.0
        self.fate: Fate = lambda values, attempt: None

    async def run(self) -> None:
        await asyncio.Event().wait()

    @property
    def is_up(self) -> bool:
        return self.up.is_set()

    async def cluster_id(self) -> str:
        return "a-cluster"

    async def wait_until_up(self) -> None:
        await self.up.wait()

    def partitions(self) -> frozenset[int]:
        return self.known

    def new_builder(self) -> Builder:
        return _Builder(self.batch_bytes)

    async def refresh(self) -> None:
        return

    async def send(self, builder: Any, partition: int) -> None:
        assert partition not in self.in_flight, "two batches of one lane at once"
        if partition not in self.known:
            raise PartitionUnknownError("gone")
        self.in_flight.add(partition)
        try:
            await asyncio.sleep(0)
            self.attempts.append((partition, builder))
            error = self.fate(builder.values, len(self.attempts))
            if error is None or isinstance(error, SendFailedError):
                # Unknown fate, the worse case: it did land.
                self.log[partition] += builder.values
            if error is not None:
                raise error
        finally:
            self.in_flight.discard(partition)

    def say_down(self, reason: str) -> None:
        self.said_down.append(reason)

    async def stop(self) -> None:
        return

    @contextmanager
    def overheard(self) -> Iterator[None]:
        yield


class Sending:
    def __init__(self, buffer_bytes: int = 10_000_000, directory: Path | None = None) -> None:
        self.ring = Ring(buffer_bytes)
        settings = ConnectionSettings.load()
        self.spool = Spool(directory, settings, max_bytes=10**9)
        self.ledger = Ledger(self.ring, _VIEW, self.spool)
        self.sender = Sender(self.ring, self.ledger, self.spool, settings, lambda: None, lambda: None)
        self.link: FakeLink = self.sender._link  # type: ignore[assignment]

    def start(self) -> None:
        self.sender.start()

    def end_runs(self, count: int, key: str = "one-trace") -> None:
        for _ in range(count):
            self.end(_run(key))

    def start_run(self, run: OpenRun) -> None:
        if self.ring.offer_start(run):
            self.sender.wake()

    def end(self, run: OpenRun) -> None:
        if self.ring.offer_end(run):
            self.sender.wake()

    def close(self) -> list[EmitterReported]:
        """Ends the sender and returns the reports in the log."""
        self.ring.close()
        self.sender.close(5)
        reports = [event for event in self.read() if isinstance(event, EmitterReported)]
        return sorted(reports, key=lambda report: report.number)

    def read(self) -> list[Any]:
        return [decode_event(value) for partition in sorted(self.link.log) for value in self.link.log[partition]]

    def runs(self) -> list[tuple[int, str]]:
        """Number and run id of every ended run in the log."""
        return [(event.sequence, event.run_id) for event in self.read() if isinstance(event, RunEnded)]

    def wait_for_runs(self, count: int) -> None:
        deadline = time.monotonic() + 5
        while len(self.runs()) < count and time.monotonic() < deadline:
            time.sleep(0.005)
        assert len(self.runs()) == count

    def read_first(self) -> Any:
        """The first event that was sent."""
        return decode_event(self.link.attempts[0][1].values[0])

    def numbers(self, partition: int) -> list[int]:
        return [decode_event(value).sequence or 0 for value in self.link.log[partition]]


def _run(key: str) -> OpenRun:
    run = OpenRun(uuid.uuid4(), None, "chain", "n", _VIEW, Route(key))
    run.started_at_ns = 1
    return run


@pytest.fixture
def sending(monkeypatch: pytest.MonkeyPatch) -> Iterator[Sending]:
    monkeypatch.setattr(sender_module, "Link", FakeLink)
    for name in (
        "LINGER_SECONDS",
        "RETRY_SECONDS",
        "DENIED_RETRY_SECONDS",
        "TASK_RETRY_SECONDS",
        "BUSY_LINGER_SECONDS",
    ):
        monkeypatch.setattr(sender_module, name, 0.001)
    monkeypatch.setattr(sender_module, "GONE_SECONDS", 0.02)
    made = Sending()
    yield made
    made.sender.close(1)


def _balance(report: EmitterReported) -> bool:
    dropped = sum(sum(kinds.values()) for kinds in report.dropped.values())
    return report.captured == sum(report.lanes.values()) + dropped + report.superseded


def test_lane_is_numbered_without_gaps_and_the_closing_report_balances(sending: Sending) -> None:
    sending.start()
    for trace in range(40):
        sending.end_runs(5, f"trace-{trace}")
    (report,) = sending.close()
    for partition, last in report.lanes.items():
        assert sending.numbers(partition) == list(range(1, last + 1))
    assert (report.captured, report.closing, _balance(report)) == (201, True, True)
    assert report.complete_at_ns == report.at_ns
    assert sending.ring.held_bytes == 0


def test_busy_sender_does_not_wait_while_the_ring_fills(sending: Sending, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sender_module, "BUSY_LINGER_SECONDS", 60.0)
    for _ in range(sender_module.BUSY_EVENTS + 1):
        sending.ring.offer_end(_run("one-trace"))
    sending.start()
    sending.wait_for_runs(sender_module.BUSY_EVENTS + 1)
    sending.end_runs(1)
    time.sleep(0.1)
    assert len(sending.runs()) == sender_module.BUSY_EVENTS + 1
    count = 1
    while sending.ring.held_bytes <= sending.ring.spool_mark:
        sending.end_runs(1)
        count += 1
    sending.wait_for_runs(sender_module.BUSY_EVENTS + 1 + count)


def test_trace_goes_where_every_kafka_client_would_put_it(sending: Sending) -> None:
    sending.start()
    sending.end_runs(1, "trace-a")
    sending.close()
    (event,) = [event for event in sending.read() if isinstance(event, RunEnded)]
    assert [p for p, values in sending.link.log.items() if any(b'"run.ended"' in value for value in values)] == [
        partition_of("trace-a", 3)
    ]
    assert event.trace_id == "trace-a"


def test_batch_of_unknown_fate_is_sent_again_unchanged(sending: Sending) -> None:
    sending.link.fate = lambda values, attempt: SendFailedError("timed out") if attempt <= 2 else None
    sending.end_runs(3)
    sending.start()
    sending.close()
    attempts = [builder for _, builder in sending.link.attempts]
    assert attempts[0] is attempts[1] is attempts[2]
    assert sending.numbers(partition_of("one-trace", 3))[:9] == [1, 2, 3] * 3
    assert sending.link.said_down == ["timed out"] * 2


def test_refused_batch_is_halved_with_its_numbers_down_to_the_one_that_is_skipped(sending: Sending) -> None:
    lane = partition_of("one-trace", 3)
    poison = b'"sequence":6,'
    sending.link.fate = lambda values, _: BatchRefusedError("too_large") if any(poison in v for v in values) else None
    sending.link.batch_bytes = 1_000_000
    sending.end_runs(10)
    sending.start()
    reports = sending.close()
    assert [number for number in sending.numbers(lane) if number <= 10] == [1, 2, 3, 4, 5, 7, 8, 9, 10]
    (skipped,) = reports[-1].skipped
    assert (skipped.emitter, skipped.partition, skipped.first, skipped.last, skipped.reason) == (
        sending.ledger.emitter,
        lane,
        6,
        6,
        "too_large",
    )
    assert _balance(reports[-1])
    assert sending.ledger.delivery().dropped == {"too_large": 1}
    assert sending.ledger.delivery().waiting == 0
    assert sending.ring.held_bytes == 0


def test_refusal_after_an_unknown_fate_is_announced_as_unknown(sending: Sending) -> None:
    def fate(values: list[bytes], attempt: int) -> SendError | None:
        if attempt == 1:
            return SendFailedError("timed out")
        return BatchRefusedError("too_large") if any(b'"run.ended"' in value for value in values) else None

    sending.link.fate = fate
    sending.end_runs(1)
    sending.start()
    assert [skipped.reason for skipped in sending.close()[-1].skipped] == ["unknown"]


def test_missing_rights_hold_the_lane_and_say_so(sending: Sending, caplog: pytest.LogCaptureFixture) -> None:
    sending.link.fate = lambda values, attempt: SendDeniedError("no right to write") if attempt <= 3 else None
    sending.end_runs(2)
    sending.start()
    (report,) = sending.close()
    assert report.lanes[partition_of("one-trace", 3)] >= 2
    assert sum("lane_held" in record.getMessage() for record in caplog.records) == 1


def test_start_is_sent_only_while_its_run_is_open(sending: Sending) -> None:
    done, long = _run("a"), _run("a")
    sending.start_run(done)
    sending.start_run(long)
    sending.end(done)
    sending.start()
    (report,) = sending.close()
    assert (report.superseded, report.captured, _balance(report)) == (1, 4, True)
    assert sorted(type(event).__name__ for event in sending.read()) == ["EmitterReported", "RunEnded", "RunStarted"]


def test_trace_keeps_its_partition_when_partitions_are_added(sending: Sending) -> None:
    key = next(f"t{i}" for i in range(99) if partition_of(f"t{i}", 3) != partition_of(f"t{i}", 9))
    run = _run(key)
    sending.start()
    sending.start_run(run)
    sending.sender.flush(5)
    sending.link.known = frozenset(range(9))
    sending.end(run)
    sending.close()
    where = {p for p, values in sending.link.log.items() for value in values if key.encode() in value}
    assert where == {partition_of(key, 3)}


def test_vanished_partition_gives_its_numbered_batch_up_and_moves_the_rest(sending: Sending) -> None:
    key = next(f"t{i}" for i in range(99) if partition_of(f"t{i}", 3) == 2)
    sending.link.batch_bytes = 500
    held = threading.Event()

    def fate(values: list[bytes], attempt: int) -> SendError | None:
        if any(key.encode() in value for value in values) and 2 in sending.link.known:
            sending.link.known = frozenset({0, 1})
            held.set()
            return PartitionUnknownError("gone")
        return None

    sending.link.fate = fate
    sending.end_runs(3, key)
    sending.start()
    reports = sending.close()
    assert held.is_set()
    assert [(s.partition, s.first, s.last, s.reason) for s in reports[-1].skipped] == [(2, 1, 1, "unknown")]
    moved = [event for event in sending.read() if isinstance(event, RunEnded)]
    assert len(moved) == 2
    assert _balance(reports[-1])


def test_one_event_that_cannot_be_encoded_does_not_stop_the_others(sending: Sending) -> None:
    bad = _run("one-trace")
    bad.run_id = 5j
    sending.start_run(bad)
    sending.end_runs(1)
    sending.start()
    (report,) = sending.close()
    assert report.dropped == {"internal_error": {"run.started": 1}}
    assert len(sending.runs()) == 1
    assert _balance(report)


def test_what_never_got_a_number_is_dropped_at_close_and_said_once(
    sending: Sending, caplog: pytest.LogCaptureFixture
) -> None:
    sending.link.up.clear()
    sending.start()
    sending.end_runs(7)
    sending.ring.close()
    sending.sender.close(0.5)
    assert sending.ledger.delivery().dropped == {"closed": 7}
    assert sum("events_left_unsent" in record.getMessage() for record in caplog.records) == 1
    assert sending.ring.held_bytes == 0


def test_report_claims_completeness_only_up_to_the_oldest_event_without_a_number(sending: Sending) -> None:
    sending.link.fate = lambda values, _: None
    waiting = _run("one-trace")
    sending.ring.offer_end(waiting)
    report = sending.ledger.report(Lane(0, sending.ledger.emitter), closing=False)
    assert report.complete_at_ns == waiting.ended_at_ns
    assert report.complete_age_ns > 0
    assert report.captured == 2
    assert report.lanes == {0: 1}


def test_flush_under_steady_load_ends(sending: Sending) -> None:
    sending.start()
    stop = threading.Event()

    def load() -> None:
        while not stop.is_set():
            sending.end_runs(1)

    thread = threading.Thread(target=load)
    thread.start()
    try:
        before = sending.ring.captured
        sending.sender.flush(5)
        assert sending.ledger.delivery().sent >= before
    finally:
        stop.set()
        thread.join()


def test_a_failing_task_of_the_sender_is_restarted(sending: Sending, monkeypatch: pytest.MonkeyPatch) -> None:
    fail = iter([True, False])
    original = Sender._number

    def number(self: Sender, lane: Any) -> Any:
        if next(fail, False):
            raise RuntimeError("a fault of ours")
        return original(self, lane)

    monkeypatch.setattr(Sender, "_number", number)
    sending.end_runs(1)
    sending.start()
    sending.sender.flush(5)
    assert sending.ledger.delivery().sent == 1


def test_neighbouring_skips_are_announced_as_one_range(sending: Sending) -> None:
    lane = Lane(0, sending.ledger.emitter)
    for first, last, reason in ((3, 3, "unknown"), (4, 6, "unknown"), (7, 7, "too_large"), (9, 9, "too_large")):
        sending.ledger.skip(lane, first, last, reason)
    assert [(skipped.first, skipped.last) for skipped in lane.skipped] == [(3, 6), (7, 7), (9, 9)]
    assert lane.skipped_count == 6


def test_every_report_balances_and_claims_nothing_that_is_still_held_under_load_with_drops(
    sending: Sending, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sender_module, "FIRST_REPORT_SECONDS", 0.0)
    monkeypatch.setattr(sender_module, "REPORT_SECONDS", 0.002)
    # One turn of a thread fills it, so that something is refused however quick the sender is.
    small = Sending(buffer_bytes=30_000)
    original = Ledger.report
    wrong: list[tuple[int, int, int]] = []

    def report(ledger: Ledger, lane: Lane, *, closing: bool) -> EmitterReported:
        with small.ring.lock:
            made = original(ledger, lane, closing=closing)
            held = [r.ended_at_ns if isinstance(r, OpenRun) else r.at_ns for r in small.ring._waiting]
            held += [run.started_at_ns for run in small.ring._starts.values()]
            held += [r.at_ns for other in ledger.lanes.values() for r in other.pending]
        dropped = sum(sum(kinds.values()) for kinds in made.dropped.values())
        rest = made.captured - sum(made.lanes.values()) - dropped - made.superseded - len(held)
        oldest_ns = min(held, default=made.at_ns)
        if rest or made.complete_at_ns > oldest_ns:
            wrong.append((rest, made.complete_at_ns, oldest_ns))
        return made

    monkeypatch.setattr(Ledger, "report", report)

    def load(name: str) -> None:
        for number in range(400):
            run = _run(f"{name}-{number % 20}")
            small.start_run(run)
            small.end(run)

    small.start()
    threads = [threading.Thread(target=load, args=(name,)) for name in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    reports = small.close()
    assert not wrong
    assert len(reports) >= 2
    assert reports[-1].dropped["buffer_full"]
    assert small.ring.held_bytes == 0
