"""The lane rule, against a set that remembers everything."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from runtap_consumers.projections.lane_marks import MAX_GAPS, LaneMark, LaneMarks, can_claim
from runtap_consumers.projections.rollups import SKEW_BEHIND_NS
from runtap_schemas import Frame, Unreadable
from samples import SECOND_NS, model_call, report

LIMIT = 100_000


def frame(first: int, last: int, at_ns: int | None = None) -> Frame:
    return Frame("e", "b", first, last - first + 1, at_ns, b"")


def take(marks: LaneMarks, first: int, last: int, at_ns: int | None = None, log_time_ns: int = 20) -> Any:
    new = marks.take(frame(first, last, at_ns), [], log_time_ns)
    return None if new is None else [*new]


def missing(lane: LaneMark) -> set[int]:
    return {number for first, last in lane.gaps for number in range(first, last + 1)}


def frames(largest: int, longest: int) -> st.SearchStrategy[list[tuple[int, int]]]:
    one = st.tuples(st.integers(1, largest), st.integers(0, longest)).map(lambda one: (one[0], one[0] + one[1]))
    return st.lists(one, max_size=200)


@given(frames(60, 8))
def test_every_number_is_applied_exactly_once_in_any_order(taken: list[tuple[int, int]]) -> None:
    lane, seen, count = LaneMark(1, 1), set[int](), 0
    for first, last in taken:
        assert [*lane.take(first, last)] == [number for number in range(first, last + 1) if number not in seen]
        seen |= set(range(first, last + 1))
        count += last - first + 1
    assert lane.mark == max(seen, default=0)
    assert missing(lane) == set(range(1, lane.mark + 1)) - seen
    assert lane.repeats == count - len(seen)
    assert lane.gaps == sorted(lane.gaps)


@given(frames(2_000, 3))
def test_forgotten_gaps_stay_counted_and_are_never_applied_twice(taken: list[tuple[int, int]]) -> None:
    lane, applied = LaneMark(1, 1), list[int]()
    for first, last in taken:
        applied += lane.take(first, last)
        assert len(lane.gaps) <= MAX_GAPS
    assert len(applied) == len(set(applied))
    # applied = mark - gaps - forgotten: the ledger's sum.
    assert len(applied) == lane.mark - len(missing(lane)) - lane.forgotten


def test_first_number_of_a_lane_is_a_gap_where_the_log_was_whole_and_before_where_it_was_not() -> None:
    whole, late = LaneMarks(0, {}), LaneMarks(7, {})
    for marks in (whole, late):
        assert take(marks, 5, 6) == [5, 6]
    assert (whole.lanes["e"].gaps, whole.lanes["e"].before, whole.opened_gap) == ([(1, 4)], 0, True)
    assert (late.lanes["e"].gaps, late.lanes["e"].before, late.opened_gap) == ([], 4, False)


def test_nobody_loses_more_than_a_process_can_have_captured_before_it_was_met() -> None:
    marks = LaneMarks(0, {})
    assert take(marks, 60 * LIMIT + 1, 60 * LIMIT + 1) is not None
    assert (marks.lanes["e"].before, marks.lanes["e"].gaps) == (60 * LIMIT, [])


def test_a_number_that_no_process_comes_to_belongs_to_no_lane() -> None:
    marks = LaneMarks(0, {})
    take(marks, 1, 10, log_time_ns=SECOND_NS)
    assert take(marks, 10 + 63 * LIMIT + 1, 10 + 63 * LIMIT + 9, log_time_ns=4 * SECOND_NS) is None
    assert (marks.lanes["e"].mark, marks.lanes["e"].log_time_ns) == (10, SECOND_NS)
    # Honest events are none the worse for it; and what a process can reach is believed.
    assert take(marks, 11, 12, log_time_ns=4 * SECOND_NS) == [11, 12]
    assert take(marks, 12 + 60 * LIMIT, 12 + 60 * LIMIT, log_time_ns=SECOND_NS) is not None


def test_quarantined_numbers_move_the_mark_once() -> None:
    marks, unreadable = LaneMarks(0, {}), Unreadable("cause", "e", 1, 3, 5)
    assert [*(marks.take(unreadable, [], 20) or ())] == [1, 2, 3]
    marks.quarantine("e", 3)
    assert [*(marks.take(unreadable, [], 30) or ())] == []
    lane = marks.lanes["e"]
    assert (lane.mark, lane.quarantined, lane.repeats, lane.at_ns) == (3, 3, 3, 5)


def test_a_lane_begins_with_its_oldest_event_or_claim_and_at_log_time_where_a_clock_is_fast() -> None:
    for events, at_ns, begin in (
        ([model_call(300), model_call(200)], 400, 200),
        ([model_call(300)], 250, 250),
        ([model_call(1_000)], 1_000, 500),
        # Of a part of a frame nobody knows what the others hold.
        ([model_call(300)], None, 500 - SKEW_BEHIND_NS),
    ):
        marks = LaneMarks(0, {})
        marks.take(frame(1, 1, at_ns), events, log_time_ns=500)
        assert marks.lanes["e"].first_at_ns == begin


def test_a_lane_is_complete_to_the_largest_claim_that_was_taken() -> None:
    marks = LaneMarks(0, {})
    seen = []
    for first, last, at_ns in ((1, 2, 100), (3, 4, None), (5, 6, 300), (1, 2, 100), (9, 9, 500), (7, 8, 400)):
        take(marks, first, last, at_ns)
        seen.append(marks.lanes["e"].at_ns)
    assert seen == [100, 100, 300, 300, 500, 500]


def test_numbers_that_come_again_with_a_later_claim_are_another_process() -> None:
    for again, is_shared in (
        ((3, 4, 300), 1),
        ((3, 4, 200), 0),
        # Halves after the whole, and a whole of which a half was there.
        ((1, 2, None), 0),
        ((3, 6, 300), 0),
    ):
        marks = LaneMarks(0, {})
        take(marks, 1, 2, 100)
        take(marks, 3, 4, 200)
        take(marks, *again)
        assert marks.lanes["e"].is_shared == is_shared, again


def test_frames_that_land_late_are_not_another_process() -> None:
    marks = LaneMarks(0, {})
    take(marks, 1, 2, 100)
    # The first part of a halved frame claims nothing, and the frame before it comes after it, twice.
    for first, last, at_ns in ((5, 6, None), (3, 4, 200), (3, 4, 200), (7, 8, 300), (5, 8, 300)):
        take(marks, first, last, at_ns)
    assert (marks.lanes["e"].mark, marks.lanes["e"].gaps, marks.lanes["e"].is_shared) == (8, [], 0)


@pytest.mark.parametrize("field", ["dropped", "superseded", "content_dropped"])
def test_a_report_claims_no_more_than_a_process_captures_in_its_time(field: str) -> None:
    def claims(count: int, seconds: int, number: int = 1) -> bool:
        value: Any = {"run.ended": {"buffer_full": count}} if field == "dropped" else count
        fields = {"started_at_ns": 10**18, "at_ns": 10**18 + seconds * SECOND_NS, field: value}
        return can_claim(structs.replace(report(0), **fields), number)

    assert claims(61 * LIMIT + 1, seconds=1)
    assert not claims(61 * LIMIT + 2, seconds=1)
    # What stands in the lane before it tells more than its clock does.
    assert claims(10**12, seconds=1, number=10**12)
    # A clock of 1970 gives no more than a week's.
    assert not claims(7 * 86_400 * LIMIT + 61 * LIMIT, seconds=10**9)
