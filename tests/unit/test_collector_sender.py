"""A lane under every answer that Kafka can give, which no real broker gives on demand. On Kafka: tests/integration."""

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

from runtap_collector.send import loop_thread
from runtap_collector.send import outbox as outbox_module
from runtap_collector.send import sender as sender_module
from runtap_collector.send.buffer import Buffer
from runtap_collector.send.link import (
    FrameRefusedError,
    PartitionUnknownError,
    SendDeniedError,
    SendError,
    SendFailedError,
)
from runtap_collector.send.outbox import Outbox
from runtap_collector.send.records import OpenRun, Trace, View
from runtap_collector.send.sender import Sender
from runtap_collector.spool.spool import Spool
from runtap_schemas import ConnectionSettings, EmitterReported, LaneAbandoned, RunEnded
from topic_log import LoggedEvent, check_ledger, events_of

_VIEW = View("s", "e", {}, captures_content=False)

Fate = Callable[[list[LoggedEvent], int], SendError | None]


class FakeLink:
    """Stands in for Kafka: keeps a log per partition, and answers as `fate` says."""

    def __init__(self, settings: ConnectionSettings, topic: str) -> None:
        self.up = asyncio.Event()
        self.up.set()
        self.known = frozenset(range(3))
        # Those that would take writes, by what Kafka says.
        self.writable = frozenset(range(3))
        self.log: dict[int, list[bytes]] = defaultdict(list)
        self.attempts: list[bytes] = []
        self.in_flight: set[bytes] = set()
        self.said_down: list[str] = []
        self.down_seconds = 0.0
        self.silent_seconds = 0.0
        self.unanswered_seconds = 0.0
        self.newest_append_ns = 0
        self.fate: Fate = lambda events, attempt: None

    async def run(self) -> None:
        await asyncio.Event().wait()

    async def cluster_id(self) -> str:
        return "a-cluster"

    async def wait_until_up(self) -> None:
        await self.up.wait()

    def partitions(self) -> frozenset[int]:
        return self.known

    def partition_of(self, key: str) -> int | None:
        return sorted(self.known)[int(key[:8], 16) % len(self.known)] if self.known else None

    async def writable_besides(self, partition: int, failure: SendError) -> frozenset[int]:
        return self.writable - {partition}

    async def send(self, key: bytes, value: bytes, partition: int, timestamp_ms: int) -> None:
        assert key not in self.in_flight, "two frames of one lane at once"
        if partition not in self.known:
            raise PartitionUnknownError("gone")
        self.in_flight.add(key)
        try:
            await asyncio.sleep(0)
            self.attempts.append(value)
            error = self.fate(events_of(value, partition), len(self.attempts))
            if error is None or type(error) is SendFailedError:
                # Unknown fate, the worse case: it did land.
                self.log[partition].append(value)
            if error is not None:
                raise error
        finally:
            self.in_flight.discard(key)

    def say_down(self, reason: str) -> None:
        self.said_down.append(reason)

    async def stop(self) -> None:
        return

    @contextmanager
    def overheard(self) -> Iterator[None]:
        yield


class Sending:
    def __init__(self, buffer_bytes: int = 10_000_000, directory: Path | None = None) -> None:
        self.buffer = Buffer(buffer_bytes)
        settings = ConnectionSettings.load()
        self.spool = Spool(directory, settings, max_bytes=10**9)
        self.outbox = Outbox(self.buffer, _VIEW)
        self.sender = Sender(self.buffer, self.outbox, self.spool, settings, lambda: None, lambda: None)
        self.link: FakeLink = self.sender._link  # type: ignore[assignment]

    def start(self) -> None:
        self.sender.thread.start()

    def end_runs(self, count: int) -> None:
        for _ in range(count):
            self.end(make_run())

    def start_run(self, run: OpenRun) -> None:
        if self.buffer.offer_start(run):
            self.sender.wake()

    def end(self, run: OpenRun) -> None:
        if self.buffer.offer_end(run):
            self.sender.wake()

    def close(self) -> list[EmitterReported]:
        """Ends the sender and returns this process's reports in the log."""
        self.buffer.close()
        self.sender.close(5)
        ours = {lane.emitter for lane in self.outbox.own_lanes}
        return [e.event for e in self.read() if isinstance(e.event, EmitterReported) and e.emitter in ours]

    def read(self) -> list[LoggedEvent]:
        return [
            entry
            for number in sorted(self.link.log)
            for value in self.link.log[number]
            for entry in events_of(value, number)
        ]

    def ended(self) -> list[LoggedEvent]:
        """Every ended run in the log."""
        return [entry for entry in self.read() if isinstance(entry.event, RunEnded)]

    def wait_for_runs(self, count: int) -> None:
        wait_until(lambda: len(self.ended()) >= count)
        assert len(self.ended()) == count

    def numbers(self) -> list[int]:
        return [entry.number for entry in self.read()]


def make_run() -> OpenRun:
    run = OpenRun(uuid.uuid4(), None, "chain", "n", _VIEW, Trace("one-trace"))
    run.started_at_ns = 1
    return run


def wait_until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 5
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.005)
    assert condition()


def make_quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes senders that wait for nothing, on a Kafka that is none."""
    monkeypatch.setattr(sender_module, "Link", FakeLink)
    for name in (
        "LINGER_SECONDS",
        "RETRY_SECONDS",
        "DENIED_RETRY_SECONDS",
        "BUSY_LINGER_SECONDS",
    ):
        monkeypatch.setattr(sender_module, name, 0.001)
    monkeypatch.setattr(sender_module, "STUCK_SECONDS", 0.02)
    for module in (sender_module, loop_thread):
        monkeypatch.setattr(module, "TASK_RETRY_SECONDS", 0.001)


@pytest.fixture
def sending(monkeypatch: pytest.MonkeyPatch) -> Iterator[Sending]:
    make_quick(monkeypatch)
    made = Sending()
    yield made
    made.sender.close(1)


def test_lane_is_numbered_without_gaps_and_the_closing_report_is_its_last_event(sending: Sending) -> None:
    sending.start()
    for _ in range(40):
        sending.end_runs(5)
    sending.close()
    report = check_ledger(sending.read())
    assert (len(sending.read()), report.superseded, report.dropped) == (201, 0, {})
    assert sending.buffer.held_bytes == 0


def test_all_events_of_an_emitter_go_where_its_id_belongs(sending: Sending) -> None:
    sending.start()
    sending.end_runs(3)
    sending.sender.flush(5)
    # Chosen once: not again when partitions are added.
    sending.link.known = frozenset(range(1_000))
    sending.end_runs(3)
    sending.close()
    assert list(sending.link.log) == [int(sending.outbox.lane.emitter[:8], 16) % 3]


def test_busy_sender_does_not_wait_once_a_frame_is_full(sending: Sending, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sender_module, "BUSY_LINGER_SECONDS", 60.0)
    many = sender_module.BUSY_EVENTS + 1
    for _ in range(many):
        sending.buffer.offer_end(make_run())
    sending.start()
    sending.wait_for_runs(many)
    sending.end_runs(1)
    time.sleep(0.1)
    assert len(sending.ended()) == many
    sending.end_runs(1_500)
    wait_until(lambda: len(sending.ended()) > 500)


def test_frame_of_unknown_fate_is_sent_again_unchanged(sending: Sending) -> None:
    sending.link.fate = lambda events, attempt: SendFailedError("timed out") if attempt <= 2 else None
    sending.end_runs(3)
    sending.start()
    sending.sender.flush(5)
    sending.close()
    attempts = sending.link.attempts
    assert attempts[0] == attempts[1] == attempts[2]
    assert sending.numbers()[:9] == [1, 2, 3] * 3
    assert sending.link.said_down == ["timed out"] * 2


@pytest.mark.parametrize("is_fate_unknown_first", [False, True])
def test_refused_frame_is_halved_with_its_numbers_down_to_the_one_that_is_skipped(
    sending: Sending, is_fate_unknown_first: bool
) -> None:
    def fate(events: list[LoggedEvent], attempt: int) -> SendError | None:
        if attempt == 1 and is_fate_unknown_first:
            return SendFailedError("timed out")
        return FrameRefusedError("too_large") if any(entry.number == 6 for entry in events) else None

    sending.link.fate = fate
    sending.end_runs(10)
    sending.start()
    sending.sender.flush(5)
    (report,) = sending.close()
    numbers = sending.numbers()[10 * is_fate_unknown_first :]
    assert numbers == [1, 2, 3, 4, 5, 7, 8, 9, 10, 11]
    assert [(skipped.first, skipped.last, skipped.reason) for skipped in report.skipped] == [(6, 6, "too_large")]
    # What claims to be whole has the last line of what was halved.
    claims = [entry.number for entry in sending.read()[10 * is_fate_unknown_first :] if entry.frame.at_ns]
    assert claims[-1] == 11
    assert not {1, 2, 3, 4, 5} & set(claims)
    delivery = sending.outbox.delivery()
    assert (delivery.sent, delivery.waiting, delivery.dropped) == (9, 0, {"too_large": 1})
    assert sending.buffer.held_bytes == 0


def test_half_whose_fate_is_unknown_is_sent_again_with_the_rest(sending: Sending) -> None:
    sizes: list[int] = []

    def fate(events: list[LoggedEvent], attempt: int) -> SendError | None:
        sizes.append(len(events))
        if len(events) > 4:
            return FrameRefusedError("too_large")
        return SendFailedError("timed out") if len(sizes) == 3 else None

    sending.link.fate = fate
    sending.end_runs(8)
    sending.start()
    sending.sender.flush(5)
    assert sizes == [8, 4, 4, 8, 4, 4]
    assert set(sending.numbers()) == set(range(1, 9))
    assert sending.outbox.delivery().sent == 8


def test_missing_rights_hold_the_lane_and_say_so(sending: Sending, caplog: pytest.LogCaptureFixture) -> None:
    sending.link.fate = lambda events, attempt: SendDeniedError("no right to write") if attempt <= 3 else None
    sending.end_runs(2)
    sending.start()
    sending.close()
    check_ledger(sending.read())
    assert len(sending.ended()) == 2
    assert sum("lane_held" in record.getMessage() for record in caplog.records) == 1


def test_start_is_sent_only_while_its_run_is_open(sending: Sending) -> None:
    done, long = make_run(), make_run()
    sending.start_run(done)
    sending.start_run(long)
    sending.end(done)
    sending.start()
    (report,) = sending.close()
    assert report.superseded == 1
    assert [type(entry.event).__name__ for entry in sending.read()] == ["RunEnded", "RunStarted", "EmitterReported"]


def test_one_event_that_cannot_be_encoded_does_not_stop_the_others(sending: Sending) -> None:
    bad = make_run()
    bad.run_id = 5j
    sending.start_run(bad)
    sending.end_runs(1)
    sending.start()
    (report,) = sending.close()
    assert report.dropped == {"internal_error": {"run.started": 1}}
    assert len(sending.ended()) == 1
    assert sending.buffer.held_bytes == 0


def test_without_a_spool_what_kafka_does_not_take_until_the_close_is_said_once(
    sending: Sending, caplog: pytest.LogCaptureFixture
) -> None:
    sending.link.up.clear()
    sending.start()
    sending.end_runs(7)
    sending.buffer.close()
    sending.sender.close(0.5)
    delivery = sending.outbox.delivery()
    assert (delivery.sent, delivery.waiting, delivery.dropped) == (0, 7, {})
    assert sum("events_left_unsent" in record.getMessage() for record in caplog.records) == 1


def test_flush_under_steady_load_ends(sending: Sending) -> None:
    sending.start()
    stop = threading.Event()

    def load() -> None:
        while not stop.is_set():
            sending.end_runs(1)

    thread = threading.Thread(target=load)
    thread.start()
    try:
        before = sending.buffer.captured
        sending.sender.flush(5)
        assert sending.outbox.delivery().sent >= before
    finally:
        stop.set()
        thread.join()


def test_a_failing_task_of_the_sender_is_restarted(sending: Sending, monkeypatch: pytest.MonkeyPatch) -> None:
    fail = iter([True, False])
    original = Outbox.close_frames

    def close_frames(self: Outbox, **keywords: Any) -> int:
        if next(fail, False):
            raise RuntimeError("a fault of ours")
        return original(self, **keywords)

    monkeypatch.setattr(Outbox, "close_frames", close_frames)
    sending.end_runs(1)
    sending.start()
    wait_until(sending.ended)
    sending.sender.flush(5)
    assert sending.outbox.delivery().sent == 1


def test_reports_form_a_chain_and_keep_a_quiet_emitters_claim_new(
    sending: Sending, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sender_module, "FIRST_REPORT_SECONDS", 0.0)
    monkeypatch.setattr(sender_module, "REPORT_SECONDS", 0.005)
    sending.start()
    sending.end_runs(1)
    time.sleep(0.1)
    reports = sending.close()
    assert len(reports) > 2
    check_ledger(sending.read())
    assert len({report.report_id for report in reports}) == len(reports)
    claims = [entry.frame.at_ns or 0 for entry in sending.read() if entry.number == entry.frame.last]
    assert claims == sorted(set(claims))


def test_reports_do_not_pile_up_where_there_is_no_room(sending: Sending, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sender_module, "FIRST_REPORT_SECONDS", 0.0)
    monkeypatch.setattr(sender_module, "REPORT_SECONDS", 0.001)
    small = Sending(buffer_bytes=3_000)
    small.link.up.clear()
    small.start()
    time.sleep(0.2)
    assert small.buffer.held_bytes < 5_000
    small.sender.close(0.1)


def test_every_report_counts_what_does_not_stand_before_it_under_load_with_drops(
    sending: Sending, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sender_module, "FIRST_REPORT_SECONDS", 0.0)
    monkeypatch.setattr(sender_module, "REPORT_SECONDS", 0.002)
    # One turn of a thread fills it, so that something is refused however quick the sender is.
    small = Sending(buffer_bytes=30_000)
    captured: list[int] = []
    swap = Buffer.swap

    def swap_and_look(buffer: Buffer) -> Any:
        with buffer.lock:
            captured.append(buffer.captured)
            return swap(buffer)

    counted: list[int] = []
    close = Outbox._close

    def close_and_look(outbox: Outbox, lane: Any, filled: Any, with_report: bool, closing: bool) -> int:
        said = lane.said
        count = close(outbox, lane, filled, with_report, closing)
        if with_report:
            counted.append(captured[-1] + said)
        return count

    monkeypatch.setattr(Buffer, "swap", swap_and_look)
    monkeypatch.setattr(Outbox, "_close", close_and_look)

    def load() -> None:
        for _ in range(400):
            run = make_run()
            small.start_run(run)
            small.end(run)

    small.start()
    threads = [threading.Thread(target=load) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    reports = small.close()
    entries = [entry for entry in small.read() if isinstance(entry.event, EmitterReported)]
    said = [
        entry.number - 1 + report.superseded + sum(sum(kinds.values()) for kinds in report.dropped.values())
        for entry, report in zip(entries, reports, strict=True)
    ]
    assert said == counted
    assert len(reports) >= 2
    assert reports[-1].dropped["buffer_full"]
    assert check_ledger(small.read()) == reports[-1]
    assert small.buffer.held_bytes == 0


# Partitions that take nothing


def test_lane_whose_partition_takes_nothing_goes_on_as_a_new_emitter_elsewhere(
    sending: Sending, caplog: pytest.LogCaptureFixture
) -> None:
    bad = int(sending.outbox.lane.emitter[:8], 16) % 3
    may_pass = threading.Event()

    def fate(events: list[LoggedEvent], attempt: int) -> SendError | None:
        is_stuck = events[0].partition == bad and not may_pass.is_set()
        return PartitionUnknownError("no leader") if is_stuck else None

    sending.link.fate = fate
    sending.buffer.count_lost("run.ended", "evicted")
    sending.end_runs(5)
    sending.start()
    wait_until(lambda: sending.outbox.former)
    left, lane = sending.outbox.own_lanes
    sending.end_runs(3)
    sending.wait_for_runs(3)
    assert {entry.partition for entry in sending.read()} == {lane.partition} != {bad}
    assert {entry.emitter for entry in sending.read()} == {lane.emitter}
    # Of the process.
    stats = sending.outbox.stats(0)
    assert (stats.emitter, stats.captured - left.said - lane.said, stats.acknowledged - lane.said) == (
        lane.emitter,
        9,
        3,
    )
    assert stats.dropped == {"evicted": {"run.ended": 1}}
    assert sum("lane_left" in record.getMessage() for record in caplog.records) == 1
    may_pass.set()
    sending.wait_for_runs(8)
    sending.close()
    former = [entry for entry in sending.read() if entry.emitter == left.emitter]
    assert {entry.partition for entry in former} == {bad}
    # Each of the two has its own outbox.
    assert check_ledger(former).dropped == {"evicted": {"run.ended": 1}}
    assert check_ledger([entry for entry in sending.read() if entry.emitter == lane.emitter]).dropped == {}
    assert sending.buffer.held_bytes == 0


def test_where_no_partition_takes_writes_the_lane_stays(sending: Sending) -> None:
    sending.link.writable = frozenset()
    sending.link.fate = lambda events, attempt: SendFailedError("away") if attempt < 100 else None
    sending.end_runs(5)
    sending.start()
    wait_until(lambda: len(sending.link.attempts) >= 100)
    sending.close()
    assert sending.outbox.former == []
    assert set(sending.numbers()) == set(range(1, 7))


def test_process_does_not_make_new_emitters_faster_and_faster(sending: Sending) -> None:
    sending.link.fate = lambda events, attempt: SendFailedError("refused")
    sending.start()
    deadline = time.monotonic() + 0.5
    while time.monotonic() < deadline:
        sending.end_runs(1)
        time.sleep(0.005)
    # After 0.02, 0.04, 0.08, 0.16 and 0.32 seconds.
    assert 2 <= len(sending.outbox.former) <= 5
    assert sending.outbox.lane.patience_seconds == 0.02 * 2 ** len(sending.outbox.former)


def test_frames_whose_partition_is_gone_for_good_are_announced_by_the_new_emitter(sending: Sending) -> None:
    gone = int(sending.outbox.lane.emitter[:8], 16) % 3
    sending.link.fate = lambda events, attempt: PartitionUnknownError("gone") if events[0].partition == gone else None
    sending.end_runs(5)
    sending.start()
    wait_until(lambda: sending.outbox.former)
    sending.link.known = sending.link.known - {gone}
    sending.end_runs(2)
    wait_until(lambda: sending.outbox.former[0].through == 6)
    sending.close()
    said = [entry.event for entry in sending.read() if isinstance(entry.event, LaneAbandoned)]
    left = sending.outbox.former[0]
    assert {(each.emitter, each.reason) for each in said} == {(left.emitter, "partition_gone")}
    # At once, or what came last by itself.
    assert [number for each in said for number in range(each.first, each.last + 1)] == [1, 2, 3, 4, 5, 6]
    assert said[-1].report is not None
    assert said[-1].report.closing
    assert sending.outbox.delivery().dropped == {"partition_gone": 6}
    assert sending.buffer.held_bytes == 0


def test_report_names_the_newest_skipped_where_there_is_more_than_fits(
    sending: Sending, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outbox_module, "MAX_SKIPPED_RANGES", 3)

    def refuse_every_other(events: list[LoggedEvent], attempt: int) -> SendError | None:
        is_refused = any(isinstance(entry.event, RunEnded) and entry.number % 2 for entry in events)
        return FrameRefusedError("too_large") if is_refused else None

    sending.link.fate = refuse_every_other
    sending.end_runs(20)
    sending.start()
    sending.sender.flush(5)
    (report,) = sending.close()
    assert [skipped.first for skipped in report.skipped] == [15, 17, 19]
    assert sending.outbox.delivery().dropped == {"too_large": 10}
