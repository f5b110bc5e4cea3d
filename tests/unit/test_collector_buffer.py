"""The buffer's bounds and counts, and the frames that it fills."""

from __future__ import annotations

import threading
import time
import uuid

import pytest

from runtap_collector.capture.context import context_of
from runtap_collector.send import outbox as outbox_module
from runtap_collector.send.buffer import LINE_BYTES, START_BYTES, Buffer
from runtap_collector.send.encoding import end_of, note_of, start_of
from runtap_collector.send.outbox import Outbox
from runtap_collector.send.records import Note, OpenRun, Trace, View
from runtap_schemas import Event, RunEnded, RunNoted, RunStarted
from runtap_schemas.frame import MAX_FRAME_BYTES
from topic_log import LoggedEvent, events_of

_VIEW = View("s", "e", {}, captures_content=True)


def _run() -> OpenRun:
    run_id = uuid.uuid4()
    return OpenRun(run_id, None, "chain", "n", _VIEW, Trace(str(run_id)))


def _note() -> RunNoted:
    return note_of(_run(), Note("text"))


def _fill(buffer: Buffer, share: float, buffer_bytes: int) -> None:
    """Fills the buffer with ends until it holds that share."""
    while buffer.held_bytes < share * buffer_bytes:
        buffer.offer_end(_run())


class _Closing:
    """A buffer, and what is closed of it."""

    def __init__(self, buffer_bytes: int = 1_000_000) -> None:
        self.buffer = Buffer(buffer_bytes)
        self.outbox = Outbox(self.buffer, _VIEW)

    def close(self, *, with_report: bool = False) -> list[LoggedEvent]:
        """The events of the frames that are closed now, which are acknowledged at once."""
        self.outbox.close_frames(with_report=with_report)
        logged: list[LoggedEvent] = []
        while self.outbox.lane.frames:
            frame = self.outbox.lane.frames[0]
            logged += events_of(frame.value)
            self.outbox.settle(self.outbox.lane, frame)
        return logged


def _types(logged: list[LoggedEvent]) -> list[type[Event]]:
    return [type(entry.event) for entry in logged]


def test_lines_come_in_the_order_of_their_capture_and_starts_of_open_runs_last() -> None:
    closing = _Closing()
    buffer = closing.buffer
    run = _run()
    buffer.offer_end(_run())
    buffer.offer_start(run)
    buffer.offer(_note())
    buffer.offer_end(_run())
    assert (buffer.captured, buffer.is_empty) == (4, False)
    logged = closing.close()
    assert buffer.is_empty
    assert _types(logged) == [RunEnded, RunNoted, RunEnded, RunStarted]
    assert [entry.number for entry in logged] == [1, 2, 3, 4]
    times = [entry.event.at_ns for entry in logged[:3]]
    assert times == sorted(times)
    assert logged[3].event.at_ns == run.started_at_ns < times[1]


def test_everything_captured_before_a_frames_claim_is_in_it_or_before_it() -> None:
    closing = _Closing()
    run = _run()
    for _ in range(3):
        closing.buffer.offer_end(_run())
        closing.buffer.offer_start(run)
        before_ns = time.time_ns()
        logged = closing.close()
        at_ns = logged[-1].frame.at_ns
        assert at_ns is not None
        assert before_ns <= at_ns <= time.time_ns()
        assert all(entry.event.at_ns <= at_ns for entry in logged)
        closing.buffer.offer_end(run)
        assert run.ended_at_ns >= at_ns
        run = _run()


def test_time_does_not_go_back_when_the_systems_clock_does(monkeypatch: pytest.MonkeyPatch) -> None:
    closing = _Closing()
    closing.buffer.offer_end(_run())
    before = closing.close()[-1].frame.at_ns
    assert before is not None
    an_hour_ago_ns = time.time_ns() - 3_600 * 10**9
    monkeypatch.setattr(time, "time_ns", lambda: an_hour_ago_ns)
    closing.buffer.offer_end(_run())
    (late,) = closing.close()
    assert late.event.at_ns > before
    assert late.frame.at_ns is not None
    assert late.frame.at_ns > late.event.at_ns


def test_events_are_counted_as_large_as_they_are_until_they_are_acknowledged() -> None:
    closing = _Closing()
    buffer, outbox = closing.buffer, closing.outbox
    run = _run()
    run.inputs = b'"%s"' % (b"x" * 498)
    run.outputs = b'"%s"' % (b"y" * 298)
    buffer.offer_start(run)
    assert buffer.held_bytes == START_BYTES + 500
    buffer.offer_end(run)
    buffer.offer_start(_run())
    assert 800 + LINE_BYTES + START_BYTES < buffer.held_bytes < 1_500 + START_BYTES
    outbox.close_frames()
    (frame,) = outbox.lane.frames
    assert buffer.held_bytes == len(frame.value)
    outbox.settle(outbox.lane, frame)
    assert (buffer.held_bytes, buffer.superseded) == (0, 1)


def test_interrupt_while_encoding_costs_one_event_which_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(run: OpenRun) -> tuple[bytes, bool]:
        raise KeyboardInterrupt

    closing = _Closing()
    with monkeypatch.context() as patch:
        patch.setattr("runtap_collector.send.buffer.end_of", interrupted)
        with pytest.raises(KeyboardInterrupt):
            closing.buffer.offer_end(_run())
    closing.buffer.offer_end(_run())
    assert (len(closing.close()), closing.buffer.dropped) == (1, {("internal_error", "run.ended"): 1})
    assert closing.buffer.captured == 2


def test_end_that_the_encoding_itself_brings_goes_in_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    closing = _Closing()
    other = _run()
    closing.buffer.offer_start(other)

    def with_garbage(run: OpenRun) -> tuple[bytes, bool]:
        if run is not other:
            # As the collector of garbage does it, which closes a stream in the middle of anything.
            closing.buffer.offer_end(other)
        return end_of(run)

    monkeypatch.setattr("runtap_collector.send.buffer.end_of", with_garbage)
    closing.buffer.offer_end(_run())
    assert (len(closing.close()), closing.buffer.superseded, closing.buffer.held_bytes) == (2, 1, 0)


def test_only_the_first_offer_after_a_pause_wakes_the_sender() -> None:
    buffer = Buffer(100_000)
    assert [buffer.offer_end(_run()), buffer.offer_start(_run()), buffer.offer_end(_run())] == [True, False, False]
    buffer.swap()
    assert not buffer.offer_end(_run())
    buffer.swap()
    assert not buffer.swap().lines
    assert buffer.offer_start(_run())


def test_sender_is_woken_once_more_when_a_frame_is_full() -> None:
    closing = _Closing(10_000_000)
    buffer = closing.buffer
    buffer.offer_end(_run())
    buffer.swap()
    woken = []
    for number in range(2_000):
        if buffer.offer_end(_run()):
            woken.append(number)
    assert len(woken) == 1
    filled = buffer.swap()
    assert sum(len(line) + LINE_BYTES for line in filled.lines[: woken[0] + 1]) > MAX_FRAME_BYTES
    assert sum(len(line) + LINE_BYTES for line in filled.lines[: woken[0]]) <= MAX_FRAME_BYTES


def test_start_whose_run_ends_while_it_is_read_is_superseded(monkeypatch: pytest.MonkeyPatch) -> None:
    closing = _Closing()
    buffer = closing.buffer
    runs = [_run(), _run()]
    for run in runs:
        run.metadata = {"session_id": "s-1"}
        run.context = context_of(run)
        buffer.offer_start(run)

    def start_of_ended(run: OpenRun) -> bytes:
        if run is runs[0]:
            # As another thread does it, up to the point where the run has let go of what it was told.
            buffer.offer_end(run)
            assert run.metadata is None
        return start_of(run)

    monkeypatch.setattr(outbox_module, "start_of", start_of_ended)
    logged = closing.close(with_report=True)
    assert [getattr(entry.event, "run_id", None) for entry in logged] == [str(runs[1].run_id), None]
    assert logged[1].event.superseded == buffer.superseded == 1  # type: ignore[attr-defined]
    (end,) = closing.close()
    assert isinstance(end.event, RunEnded)
    assert end.event.session_id == "s-1"
    assert buffer.captured == buffer.superseded + 2
    assert buffer.held_bytes == 0


def test_refusals_come_in_the_order_of_what_can_be_missed() -> None:
    size = 1_000_000
    closing = _Closing(size)
    buffer = closing.buffer
    _fill(buffer, 0.5, size)
    assert buffer.has_content_room(1_000)
    _fill(buffer, 0.61, size)
    assert not buffer.has_content_room(1_000)
    assert not buffer.dropped
    _fill(buffer, 0.81, size)
    buffer.offer_start(_run())
    buffer.offer(_note())
    assert buffer.dropped == {("buffer_full", "run.started"): 1, ("buffer_full", "run.noted"): 1}
    while not buffer.dropped["buffer_full", "run.ended"]:
        buffer.offer_end(_run())
    assert buffer.held_bytes <= size
    assert buffer.captured == len(closing.close()) + sum(buffer.dropped.values())


def test_what_is_closed_and_not_acknowledged_fills_the_buffer_too() -> None:
    closing = _Closing(64 * 1024)
    while not closing.buffer.dropped:
        closing.buffer.offer_end(_run())
        closing.outbox.close_frames()
    assert closing.buffer.is_empty
    assert closing.buffer.held_bytes > 60_000


def test_start_whose_end_was_refused_is_not_superseded_and_is_whole() -> None:
    closing = _Closing(100_000)
    run = _run()
    run.given_name, run.serialized = None, {"name": "own"}
    closing.buffer.offer_start(run)
    while not closing.buffer.dropped:
        closing.buffer.offer_end(_run())
    closing.buffer.offer_end(run)
    (start,) = [entry.event for entry in closing.close() if isinstance(entry.event, RunStarted)]
    assert (start.run_id, start.name, closing.buffer.superseded) == (str(run.run_id), "own", 0)


def test_start_whose_end_was_taken_is_superseded() -> None:
    closing = _Closing()
    buffer = closing.buffer
    ended, still_open, waiting = _run(), _run(), _run()
    buffer.offer_start(ended)
    buffer.offer_start(still_open)
    buffer.offer_end(ended)
    assert _types(closing.close()) == [RunEnded, RunStarted]
    assert buffer.superseded == 1
    buffer.offer_start(waiting)
    buffer.offer_end(waiting)
    # At once, whether anybody takes them or not.
    assert (buffer.superseded, buffer.held_bytes < START_BYTES) == (2, True)


@pytest.mark.parametrize("is_closed_before_its_start", [False, True])
def test_end_that_is_not_taken_gives_its_content_back(is_closed_before_its_start: bool) -> None:
    buffer = Buffer(100_000)
    run = _run()
    run.inputs, run.outputs = b'"in"', b'"out"'
    if is_closed_before_its_start:
        buffer.close()
    buffer.offer_start(run)
    buffer.close()
    buffer.offer_end(run)
    assert buffer.held_bytes == (0 if is_closed_before_its_start else START_BYTES)
    assert [run.inputs, run.outputs] == [None, None]


def test_content_is_refused_once_it_has_no_room() -> None:
    buffer = Buffer(100_000)
    run = _run()
    run.inputs = b"x" * 58_000
    buffer.offer_start(run)
    assert buffer.has_content_room(100)
    assert not buffer.has_content_room(2_000)


def test_after_the_close_nothing_is_captured() -> None:
    closing = _Closing()
    closing.buffer.offer_end(_run())
    closing.buffer.close()
    assert not closing.buffer.offer_end(_run())
    assert not closing.buffer.offer_start(_run())
    assert not closing.buffer.offer(_note())
    closing.buffer.count_lost("run.started", "internal_error")
    assert (closing.buffer.captured, closing.buffer.dropped) == (1, {})
    assert len(closing.close()) == 1


def test_what_cannot_be_closed_goes_back_and_loses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    closing = _Closing()
    ended, still_open = _run(), _run()
    for run in (ended, still_open):
        closing.buffer.offer_start(run)
    closing.buffer.offer_end(_run())

    def fail(*_: object) -> object:
        closing.buffer.offer_end(ended)
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(outbox_module, "cut", fail)
        with pytest.raises(MemoryError):
            closing.outbox.close_frames()
    assert _types(closing.close()) == [RunEnded, RunEnded, RunStarted]
    assert closing.buffer.captured == 3 + closing.buffer.superseded == 4
    assert closing.buffer.held_bytes == 0


@pytest.mark.parametrize("thread_count", [8])
def test_counts_hold_with_many_threads_at_the_door(thread_count: int) -> None:
    closing = _Closing(500_000)
    buffer = closing.buffer
    logged: list[LoggedEvent] = []
    done = threading.Event()

    def offer() -> None:
        for _ in range(500):
            run = _run()
            buffer.offer_start(run)
            run.outputs = b'"xxxxxxxx"'
            buffer.offer_end(run)

    def take() -> None:
        while not done.is_set() or not buffer.is_empty:
            logged.extend(closing.close())

    taker = threading.Thread(target=take)
    threads = [threading.Thread(target=offer) for _ in range(thread_count)]
    for thread in [taker, *threads]:
        thread.start()
    for thread in threads:
        thread.join()
    done.set()
    taker.join()
    assert [entry.number for entry in logged] == list(range(1, len(logged) + 1))
    assert buffer.captured == thread_count * 1_000 == len(logged) + buffer.superseded + sum(buffer.dropped.values())
    assert buffer.held_bytes == 0
