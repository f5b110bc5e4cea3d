"""How lines become frames, and frames halves: sizes, numbers and claims."""

from __future__ import annotations

import itertools
import os

import pytest
from msgspec import Raw

from runtap_collector.send.lane import ClosedFrame, Lane, cut, halves
from runtap_schemas import Frame, RunEnded, decode_frame, encode_event
from runtap_schemas.frame import MAX_FRAME_BYTES, MAX_FRAME_EVENTS
from topic_log import events_of

_BIRTH = os.urandom(16).hex()


def line(size_bytes: int) -> bytes:
    """An event of that size."""
    event = RunEnded(
        at_ns=1,
        run_id="r",
        trace_id="t",
        service="s",
        environment="e",
        run_type="chain",
        name="n",
        status="ok",
        started_at_ns=1,
        duration_ns=1,
        inputs=Raw(b'""'),
    )
    event.inputs = Raw(b'"%s"' % (b"x" * (size_bytes - len(encode_event(event)))))
    return encode_event(event)


def _read(frame: ClosedFrame) -> Frame:
    read = decode_frame(frame.value)
    assert isinstance(read, Frame), read
    return read


@pytest.mark.parametrize("size_bytes", [300, 3_000, 100_000, MAX_FRAME_BYTES - 256])
def test_frames_are_numbered_on_and_none_is_too_large(size_bytes: int) -> None:
    lines = [line(size_bytes) for _ in range(20)]
    frames = cut(_BIRTH, 5, 77, lines, 0)
    assert all(len(frame.value) <= MAX_FRAME_BYTES for frame in frames)
    assert [entry.number for frame in frames for entry in events_of(frame.value)] == list(range(5, 25))
    assert [(frame.first, frame.count) for frame in frames] == [(_read(f).first, _read(f).count) for f in frames]
    # Full ones: two neighbours would not have gone into one.
    assert all(len(a.value) + len(b.value) > MAX_FRAME_BYTES for a, b in itertools.pairwise(frames))


def test_only_the_last_frame_of_a_swap_claims_anything() -> None:
    frames = cut(_BIRTH, 1, 77, [line(100_000) for _ in range(5)], 0)
    assert len(frames) == 3
    assert [_read(frame).at_ns for frame in frames] == [None, None, 77]
    assert {frame.closed_at_ns for frame in frames} == {77}


def test_own_events_at_the_end_are_counted_where_they_are() -> None:
    assert [frame.said for frame in cut(_BIRTH, 1, 77, [line(100_000) for _ in range(5)], 2)] == [0, 1, 1]


def test_a_frame_has_no_more_events_than_the_contract_allows() -> None:
    frames = cut(_BIRTH, 1, 77, [b"0"] * (MAX_FRAME_EVENTS + 1), 0)
    assert [frame.count for frame in frames] == [MAX_FRAME_EVENTS, 1]


def test_halves_have_the_same_events_and_numbers_and_the_latter_the_claim() -> None:
    (frame,) = cut(_BIRTH, 8, 77, [line(300) for _ in range(5)], 0)
    former, latter = (events_of(half) for half in halves(_read(frame)))
    assert [entry.number for entry in former + latter] == [8, 9, 10, 11, 12]
    whole = [encode_event(entry.event) for entry in events_of(frame.value)]
    assert [encode_event(entry.event) for entry in former + latter] == whole
    assert (former[0].frame.at_ns, latter[0].frame.at_ns) == (None, 77)


def test_neighbouring_skips_are_announced_as_one_range() -> None:
    lane = Lane()
    for first, last, reason in ((3, 3, "expired"), (4, 6, "expired"), (7, 7, "too_large"), (9, 9, "too_large")):
        lane.skip(first, last, reason)
    assert [(skipped.first, skipped.last) for skipped in lane.skipped] == [(3, 6), (7, 7), (9, 9)]
