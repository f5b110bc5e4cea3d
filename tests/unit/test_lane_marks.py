"""The lane rule, against a set that remembers everything."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from runtap_consumers.projections.lane_marks import MAX_GAPS, LaneMark, LaneMarks


def lane() -> LaneMark:
    return LaneMark(first_at_ns=1, last_log_time_ns=1)


def missing(lane: LaneMark) -> set[int]:
    return {number for first, last in lane.gaps for number in range(first, last + 1)}


@given(st.lists(st.integers(1, 60), max_size=200))
def test_every_number_is_applied_exactly_once_in_any_order(numbers: list[int]) -> None:
    tested, seen = lane(), set[int]()
    for number in numbers:
        assert tested.take(number) is (number not in seen)
        seen.add(number)
    assert tested.mark == max(seen, default=0)
    assert missing(tested) == set(range(1, tested.mark + 1)) - seen
    assert tested.repeats == len(numbers) - len(seen)
    assert tested.gaps == sorted(tested.gaps)


@given(st.lists(st.integers(1, 400), max_size=400))
def test_forgotten_gaps_stay_counted_and_are_never_applied_twice(numbers: list[int]) -> None:
    tested, applied = lane(), list[int]()
    for number in numbers:
        if tested.take(number):
            applied.append(number)
        assert len(tested.gaps) <= MAX_GAPS
    assert len(applied) == len(set(applied))
    # applied = mark - gaps - forgotten: the ledger's sum.
    assert len(applied) == tested.mark - len(missing(tested)) - tested.forgotten


def test_first_number_of_a_lane_is_a_gap_where_the_log_was_whole_and_before_where_it_was_not() -> None:
    whole, late = LaneMarks(0, {}), LaneMarks(7, {})
    for marks in (whole, late):
        assert marks.take("e", 5, 10, 20)
    assert (whole.lanes["e"].gaps, whole.lanes["e"].before, whole.opened_gap) == ([(1, 4)], 0, True)
    assert (late.lanes["e"].gaps, late.lanes["e"].before, late.opened_gap) == ([], 4, False)


def test_quarantined_numbers_move_the_mark_once() -> None:
    marks = LaneMarks(0, {})
    assert marks.take("e", 1, 10, 20, quarantined=True)
    assert not marks.take("e", 1, 10, 30, quarantined=True)
    assert (marks.lanes["e"].mark, marks.lanes["e"].quarantined, marks.lanes["e"].repeats) == (1, 1, 1)


def test_lane_known_by_a_fast_clock_begins_at_log_time() -> None:
    marks = LaneMarks(0, {})
    marks.take("e", 1, at_ns=1_000, log_time_ns=500)
    assert marks.lanes["e"].first_at_ns == 500
