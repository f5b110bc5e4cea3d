"""The ring's bounds and counts."""

from __future__ import annotations

import threading
import uuid

import pytest

from runtap_collector.capture.context import context_of
from runtap_collector.send.encoding import note_of, start_of
from runtap_collector.send.records import EVENT_BYTES, START_BYTES, Note, OpenRun, Record, Route, View
from runtap_collector.send.ring import ENCODED_AT_ONCE, Ring

_VIEW = View("s", "e", {}, captures_content=True)


def _run() -> OpenRun:
    run_id = uuid.uuid4()
    return OpenRun(run_id, None, "chain", "n", _VIEW, Route(str(run_id)))


def _note() -> Record:
    return note_of(_run(), Note("text"))


def _fill(ring: Ring, share: float, buffer_bytes: int) -> None:
    """Fills the ring with ends until it holds that share."""
    while ring.held_bytes < share * buffer_bytes:
        ring.offer_end(_run())


def test_everything_offered_is_captured_stamped_and_taken_in_order() -> None:
    ring = Ring(100_000)
    run = _run()
    ring.offer_end(_run())
    ring.offer_start(run)
    ring.offer(_note())
    ring.offer_end(_run())
    assert (ring.captured, ring.count_waiting()) == (4, 4)
    taken = ring.take()
    assert [record.kind for record in taken] == ["run.ended", "run.started", "run.noted", "run.ended"]
    assert taken[1].run is run
    assert all(b'"at_ns":%d,' % record.at_ns in record.body for record in taken)
    assert all(record.at_ns > 10**18 and record.monotonic_ns > 0 for record in taken)
    assert [r.monotonic_ns for r in taken] == sorted(r.monotonic_ns for r in taken)


def test_ends_are_encoded_many_at_once_and_counted_as_large_as_they_are() -> None:
    ring = Ring(1_000_000)
    for _ in range(ENCODED_AT_ONCE - 1):
        ring.offer_end(_run())
    assert ring.held_bytes == (ENCODED_AT_ONCE - 1) * EVENT_BYTES
    ring.offer_end(_run())
    held_bytes = ring.held_bytes
    ring.offer_end(_run())
    taken = ring.take()
    assert held_bytes == sum(record.size_bytes for record in taken[:-1])
    assert ring.held_bytes == sum(record.size_bytes for record in taken)
    assert all(record.size_bytes > len(record.body) > 0 for record in taken)


def test_interrupt_while_encoding_costs_one_event_which_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(run: OpenRun) -> Record:
        raise KeyboardInterrupt

    ring = Ring(1_000_000)
    for _ in range(3):
        ring.offer_end(_run())
    with monkeypatch.context() as patch:
        patch.setattr("runtap_collector.send.ring.end_of", interrupted)
        with pytest.raises(KeyboardInterrupt):
            ring.take()
    assert (len(ring.take()), ring.dropped) == (2, {("internal_error", "run.ended"): 1})
    assert ring.captured == 3


def test_only_the_first_offer_after_a_pause_wakes_the_sender() -> None:
    ring = Ring(100_000)
    assert [ring.offer_end(_run()), ring.offer_start(_run()), ring.offer_end(_run())] == [True, False, False]
    ring.take()
    assert not ring.offer_end(_run())
    ring.take()
    assert not ring.take()
    assert ring.offer_start(_run())


def test_sender_is_woken_once_more_when_the_ring_fills() -> None:
    size = 1_000_000
    ring = Ring(size)
    ring.offer_end(_run())
    ring.take()
    held_when_woken = []
    while ring.held_bytes < 0.3 * size:
        if ring.offer_end(_run()):
            held_when_woken.append(ring.held_bytes)
    (held_bytes,) = held_when_woken
    assert ring.spool_mark < held_bytes <= ring.spool_mark + EVENT_BYTES
    ring.take()
    assert [ring.offer_start(_run()), ring.offer_end(_run())] == [True, False]


def test_start_whose_run_ends_while_it_is_read_is_superseded(monkeypatch: pytest.MonkeyPatch) -> None:
    ring = Ring(1_000_000)
    runs = [_run(), _run()]
    for run in runs:
        run.metadata = {"session_id": "s-1"}
        run.context = context_of(run)
        ring.offer_start(run)

    def start_of_ended(run: OpenRun) -> Record:
        if run is runs[0]:
            for each in [run, *(_run() for _ in range(ENCODED_AT_ONCE))]:
                # As another thread does it, up to the point where the run has let go of what it was told.
                ring.offer_end(each)
            assert run.metadata is None
        return start_of(run)

    monkeypatch.setattr("runtap_collector.send.ring.start_of", start_of_ended)
    taken = ring.take()
    assert [record.run for record in taken] == [runs[1]]
    assert ring.superseded == 1
    assert b'"session_id":"s-1"' in ring.take()[0].body
    assert ring.captured == ring.superseded + len(taken) + ENCODED_AT_ONCE + 1


def test_refusals_come_in_the_order_of_what_can_be_missed() -> None:
    size = 1_000_000
    ring = Ring(size)
    _fill(ring, 0.5, size)
    assert ring.has_content_room(1_000)
    _fill(ring, 0.61, size)
    assert not ring.has_content_room(1_000)
    assert not ring.dropped
    _fill(ring, 0.81, size)
    ring.offer_start(_run())
    ring.offer(_note())
    assert ring.dropped == {("buffer_full", "run.started"): 1, ("buffer_full", "run.noted"): 1}
    while not ring.dropped["buffer_full", "run.ended"]:
        ring.offer_end(_run())
    assert ring.held_bytes <= size
    assert ring.captured == len(ring.take()) + sum(ring.dropped.values())


def test_start_whose_end_was_refused_is_not_superseded() -> None:
    ring = Ring(100_000)
    run = _run()
    ring.offer_start(run)
    while not ring.dropped:
        ring.offer_end(_run())
    ring.offer_end(run)
    assert ring.take()[0].run is run
    assert ring.superseded == 0


def test_start_whose_end_was_taken_is_superseded() -> None:
    ring = Ring(100_000)
    ended, still_open, waiting = _run(), _run(), _run()
    ring.offer_start(ended)
    ring.offer_start(still_open)
    ring.offer_end(ended)
    assert [record.kind for record in ring.take()] == ["run.started", "run.ended"]
    assert ring.superseded == 1
    held_bytes = ring.held_bytes
    ring.offer_start(waiting)
    ring.offer_end(waiting)
    # At once, whether anybody takes them or not.
    assert (ring.superseded, ring.count_waiting(), ring.held_bytes) == (2, 1, held_bytes + EVENT_BYTES)


def test_bytes_come_back_when_records_are_through() -> None:
    ring = Ring(1_000_000)
    run = _run()
    run.inputs = b'"%s"' % (b"x" * 498)
    run.outputs = b'"%s"' % (b"y" * 298)
    ring.offer_start(run)
    assert ring.held_bytes == START_BYTES + 500
    ring.offer_end(run)
    ring.offer(note_of(run, Note("text", data=b'"z"')))
    assert ring.held_bytes == EVENT_BYTES + 800 + EVENT_BYTES + 3
    end, note = ring.take()
    assert end.size_bytes > len(end.body) > 800
    # What it was counted with at the door was a guess.
    assert ring.held_bytes == end.size_bytes + note.size_bytes
    ring.drop([note], "internal_error")
    ring.release(end.size_bytes)
    assert (ring.held_bytes, ring.superseded) == (0, 1)


@pytest.mark.parametrize("is_closed_before_its_start", [False, True])
def test_end_without_room_gives_its_content_back(is_closed_before_its_start: bool) -> None:
    ring = Ring(100_000)
    run = _run()
    run.inputs, run.outputs = b'"in"', b'"out"'
    if is_closed_before_its_start:
        ring.close()
    ring.offer_start(run)
    ring.close()
    ring.offer_end(run)
    assert ring.held_bytes == (0 if is_closed_before_its_start else START_BYTES)
    assert [run.inputs, run.outputs] == [None, None]
    starts = {("closed", "run.started"): 1} if is_closed_before_its_start else {}
    assert ring.dropped == {("closed", "run.ended"): 1, **starts}


def test_content_is_refused_once_it_has_no_room() -> None:
    ring = Ring(100_000)
    run = _run()
    run.inputs = b"x" * 58_000
    ring.offer_start(run)
    assert ring.has_content_room(100)
    assert not ring.has_content_room(2_000)


def test_closed_ring_counts_and_takes_nothing() -> None:
    ring = Ring(100_000)
    ring.close()
    assert not ring.offer_end(_run())
    ring.count_lost("run.started", "internal_error")
    assert ring.dropped == {("closed", "run.ended"): 1, ("internal_error", "run.started"): 1}
    assert ring.captured == 2
    assert not ring.take()


@pytest.mark.parametrize("thread_count", [8])
def test_counts_hold_with_many_threads_at_the_door(thread_count: int) -> None:
    ring = Ring(500_000)
    taken: list[Record] = []
    done = threading.Event()

    def offer() -> None:
        for _ in range(500):
            run = _run()
            ring.offer_start(run)
            run.outputs = b'"xxxxxxxx"'
            ring.offer_end(run)

    def take() -> None:
        while not done.is_set() or ring.count_waiting():
            records = ring.take()
            taken.extend(records)
            for record in records:
                ring.release(record.size_bytes)

    taker = threading.Thread(target=take)
    threads = [threading.Thread(target=offer) for _ in range(thread_count)]
    for thread in [taker, *threads]:
        thread.start()
    for thread in threads:
        thread.join()
    done.set()
    taker.join()
    assert ring.captured == thread_count * 1_000 == len(taken) + ring.superseded + sum(ring.dropped.values())
    assert ring.held_bytes == 0
