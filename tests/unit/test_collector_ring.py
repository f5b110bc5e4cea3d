"""
The ring's bounds and counts.
"""

from __future__ import annotations

import threading
import uuid

import pytest

from runtap_collector.records import Note, OpenRun, Outcome, Record, Route, RunEnd, RunNote, RunStart, View
from runtap_collector.ring import Ring

_VIEW = View("s", "e", {}, captures_content=True)


def _run() -> OpenRun:
    run_id = uuid.uuid4()
    return OpenRun(run_id, None, "chain", "n", _VIEW, Route(str(run_id)))


def _end(run: OpenRun | None = None, outputs: bytes | None = None) -> RunEnd:
    return RunEnd(run or _run(), Outcome("ok"), outputs, 0)


def _fill(ring: Ring, share: float, buffer_bytes: int) -> None:
    """
    Fills the ring with ends until it holds that share.
    """
    while ring.held_bytes < share * buffer_bytes:
        ring.offer(_end())


def test_everything_offered_is_captured_and_stamped() -> None:
    ring = Ring(100_000)
    records: list[Record] = [RunStart(_run()), _end(), RunNote(_run(), Note("text"))]
    for record in records:
        ring.offer(record)
    assert ring.captured == 3
    assert list(ring.take()) == records
    assert all(record.at_ns > 10**18 and record.monotonic_ns > 0 for record in records)
    assert [r.monotonic_ns for r in records] == sorted(r.monotonic_ns for r in records)


def test_only_the_first_offer_after_a_pause_wakes_the_sender() -> None:
    ring = Ring(100_000)
    assert [ring.offer(_end()) for _ in range(3)] == [True, False, False]
    ring.take()
    assert not ring.offer(_end())
    ring.take()
    assert not ring.take()
    assert ring.offer(_end())


def test_refusals_come_in_the_order_of_what_can_be_missed() -> None:
    size = 1_000_000
    ring = Ring(size)
    _fill(ring, 0.61, size)
    with_content = _end(outputs=b"x" * 1_000)
    ring.offer(with_content)
    assert (with_content.outputs, with_content.lost_bytes, ring.content_dropped) == (None, 1_000, 1)
    assert not ring.dropped
    _fill(ring, 0.81, size)
    ring.offer(RunStart(_run()))
    ring.offer(RunNote(_run(), Note("text")))
    assert ring.dropped == {("buffer_full", "run.started"): 1, ("buffer_full", "run.noted"): 1}
    while not ring.dropped["buffer_full", "run.ended"]:
        ring.offer(_end())
    assert ring.held_bytes <= size
    assert ring.captured == len(ring.take()) + sum(ring.dropped.values())


def test_start_whose_end_was_refused_is_not_superseded() -> None:
    size = 100_000
    ring = Ring(size)
    run = _run()
    start = RunStart(run)
    ring.offer(start)
    while not ring.dropped:
        ring.offer(_end())
    ring.offer(_end(run))
    assert not start.is_superseded


def test_start_whose_end_was_taken_is_superseded() -> None:
    ring = Ring(100_000)
    run = _run()
    start = RunStart(run)
    ring.offer(start)
    assert not start.is_superseded
    ring.offer(_end(run))
    assert start.is_superseded


def test_bytes_come_back_when_records_are_through() -> None:
    ring = Ring(1_000_000)
    run = _run()
    assert ring.reserve_content(500)
    run.inputs, run.reserved_bytes = b"x" * 500, 500
    start, end, note = RunStart(run), _end(run, b"y" * 300), RunNote(run, Note("text", data=b"z" * 200))
    for record in (start, end, note):
        ring.offer(record)
    assert ring.held_bytes == start.facts_bytes + end.facts_bytes + note.facts_bytes + 1_000
    ring.supersede(start)
    ring.drop([note], "internal_error")
    ring.release(end.size_bytes)
    assert (ring.held_bytes, ring.superseded) == (0, 1)


def test_end_without_room_gives_its_inputs_reservation_back() -> None:
    ring = Ring(100_000)
    run = _run()
    ring.reserve_content(50_000)
    run.inputs, run.reserved_bytes = b"x" * 50_000, 50_000
    ring.close()
    ring.offer(_end(run))
    assert ring.held_bytes == 0
    assert ring.dropped == {("closed", "run.ended"): 1}


def test_content_is_refused_once_it_has_no_room() -> None:
    ring = Ring(100_000)
    assert ring.reserve_content(60_000)
    assert not ring.reserve_content(1)
    assert ring.content_dropped == 1


def test_closed_ring_counts_and_takes_nothing() -> None:
    ring = Ring(100_000)
    ring.close()
    assert not ring.offer(_end())
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
            ring.offer(RunStart(run))
            ring.offer(_end(run, b"x" * 10))

    def take() -> None:
        while not done.is_set() or ring.waiting_records():
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
    assert ring.captured == thread_count * 1_000 == len(taken) + sum(ring.dropped.values())
    assert ring.held_bytes == 0
