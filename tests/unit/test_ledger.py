"""The ledger and `complete_to`: each rule by hand, and the sums over random lanes."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtap_consumers.figures.completeness import (
    Sums,
    lost_ranges,
    work_out_completeness,
    work_out_ledger,
    work_out_sums,
    worst_projection,
)
from runtap_consumers.projections.lane_marks import LaneMark
from runtap_consumers.projections.rollups import LANE_RETENTION_NS, SKEW_BEHIND_NS
from runtap_consumers.store.read.books import NOWHERE, SILENCE_NS, Books, EmitterFacts

SECOND = 10**9
BEGIN = 100 * SECOND


def lane(mark: int, **facts: Any) -> LaneMark:
    return LaneMark(**{"first_at_ns": BEGIN - 10, "log_time_ns": BEGIN, "at_ns": BEGIN - 1, "mark": mark, **facts})


def position(log_time_ns: int = BEGIN, caught_up_at_ns: int = 0, begun_at: int = 0) -> Any:
    return SimpleNamespace(
        log_time_ns=log_time_ns, caught_up_at_ns=caught_up_at_ns, begun_at=begun_at, incarnation=1, next_offset=7
    )


def books(
    lanes: dict[tuple[str, str], LaneMark],
    read_to: dict[str, Any] | None = None,
    emitters: dict[str, EmitterFacts] | None = None,
    **more: Any,
) -> Books:
    """Of one partition: lanes by (projection, emitter), positions by projection."""
    positions = {(name, 0): one for name, one in (read_to or {name: position() for name, _ in lanes}).items()}
    by_projection: dict[str, dict[tuple[int, str], Any]] = {name: {} for name, _ in positions}
    for (name, emitter), one_lane in lanes.items():
        by_projection[name][0, emitter] = one_lane
    known = {emitter: EmitterFacts() for _, emitter in lanes}
    return Books(by_projection, positions, known | (emitters or {}), **more)


def complete(found: Books, *projections: str) -> tuple[int | None, tuple[str, ...]]:
    claim = work_out_completeness(found, projections or ("cost",))
    return claim.at_ns, claim.silent


CLOSED = {"a": EmitterFacts(is_closed=True)}
STRUCK = {"a": EmitterFacts(is_struck=True)}


def test_nothing_known_is_complete_to_nothing() -> None:
    assert complete(books({})) == (None, ())
    assert worst_projection(work_out_ledger(books({}), ())) is None


def test_a_projection_is_complete_to_what_the_newest_frame_applied_claims() -> None:
    claim = work_out_completeness(books({("cost", "a"): lane(5)}), ("cost",))
    assert (claim.at_ns, claim.held_by) == (BEGIN - 1, "a")


def test_a_fast_clock_cannot_claim_what_counts_at_log_time() -> None:
    ahead = {("cost", "a"): lane(5, at_ns=BEGIN + 3_600 * SECOND)}
    # Others' frames came after its newest one.
    assert complete(books(ahead, {"cost": position(BEGIN + 50)})) == (BEGIN, ())


def test_an_emitter_that_claimed_nothing_yet_is_complete_to_nothing() -> None:
    assert complete(books({("cost", "a"): lane(5, at_ns=0)})) == (None, ())


def test_a_figure_is_complete_to_the_projection_furthest_behind() -> None:
    found = books({("cost", "a"): lane(6), ("errors", "a"): lane(3, at_ns=BEGIN - 5)})
    assert complete(found, "cost", "errors") == (BEGIN - 5, ())


def test_an_emitter_that_a_projection_has_not_met_holds_it_at_its_first_event() -> None:
    found = books({("cost", "a"): lane(6), ("errors", "b"): lane(1)})
    assert complete(found, "cost") == (BEGIN - 10, ())


def test_a_partition_that_was_not_read_holds_the_figure() -> None:
    found = books({("cost", "a"): lane(5)})
    found.positions["cost", 1] = position(log_time_ns=BEGIN - 50)
    assert complete(found) == (BEGIN - 50, ())
    found.positions["cost", 1] = position(log_time_ns=0, caught_up_at_ns=BEGIN - 20)
    assert complete(found) == (BEGIN - 20, ())
    # Another projection has met it, this one has not.
    del found.positions["cost", 1]
    found.positions["errors", 1] = position()
    assert complete(found) == (None, ())


def test_a_closed_emitter_leaves_once_nothing_of_it_is_in_flight() -> None:
    lanes = {("cost", "a"): lane(5), ("ledger", "a"): lane(6, log_time_ns=BEGIN + 1)}
    positions = {"cost": position(), "ledger": position(BEGIN + 1)}
    assert complete(books(lanes, positions, CLOSED)) == (BEGIN - 1, ())
    positions["cost"] = position(caught_up_at_ns=BEGIN + 2)
    assert complete(books(lanes, positions, CLOSED)) == (BEGIN + 2, ())
    applied = books({("cost", "a"): lane(6)}, {"cost": position()}, CLOSED)
    assert complete(applied) == (BEGIN, ())


@pytest.mark.parametrize(
    ("watched_ns", "caught_up_ns", "has_left"),
    [
        (BEGIN + SILENCE_NS, BEGIN + SILENCE_NS, True),
        # Not read so far: it may go on there unseen.
        (BEGIN + SILENCE_NS, BEGIN + SILENCE_NS - 1, False),
        # Others went on, but not yet for a minute when the partition was read to its end.
        (BEGIN + 3 * SILENCE_NS, BEGIN + 2 * SILENCE_NS, False),
        # Nobody reported: an outage ages nobody.
        (None, BEGIN + 1_000 * SILENCE_NS, False),
        # But what is so old is never sent again.
        (None, BEGIN + LANE_RETENTION_NS, True),
    ],
)
def test_an_emitter_that_closed_nothing_leaves_after_a_minute_of_the_others_reports_and_is_named(
    watched_ns: int | None, caught_up_ns: int, has_left: bool
) -> None:
    watched = {} if watched_ns is None else {(0, "a"): watched_ns}
    found = books({("cost", "a"): lane(5)}, {"cost": position(caught_up_at_ns=caught_up_ns)}, watched=watched)
    assert complete(found) == ((caught_up_ns, ("a",)) if has_left else (BEGIN - 1, ()))


def test_a_forgotten_emitter_leaves_until_it_is_heard_again() -> None:
    read_to = {"cost": position(BEGIN + 5)}
    assert complete(books({("cost", "a"): lane(5)}, read_to, {"a": EmitterFacts(forgotten_ns=BEGIN)})) == (
        BEGIN + 5,
        ("a",),
    )
    assert complete(books({("cost", "a"): lane(5)}, read_to, {"a": EmitterFacts(forgotten_ns=BEGIN - 1)})) == (
        BEGIN - 1,
        (),
    )


def test_a_partition_that_is_gone_leaves_with_its_emitters_named() -> None:
    gone = SimpleNamespace(projection="cost", partition=0, incarnation=1, kind="gone", first_offset=7, at_ns=BEGIN)
    lanes = {("cost", "a"): lane(5), ("errors", "a"): lane(8)}
    found = books(lanes, {"cost": position(), "errors": position()}, incidents=[gone])
    found.positions["cost", 1] = position(BEGIN + 9)
    assert complete(found) == (BEGIN + 9, ("a",))
    assert work_out_sums(found, "cost", "a").lost == 3
    # It is read again: the position has moved.
    found = books(
        lanes,
        {"cost": position(), "errors": position()},
        incidents=[SimpleNamespace(**{**vars(gone), "first_offset": 6})],
    )
    assert complete(found) == (BEGIN - 1, ())


def test_a_partition_that_never_held_a_record_is_back_once_it_was_read_to_its_end_again() -> None:
    gone = SimpleNamespace(projection="cost", partition=0, incarnation=1, kind="gone", first_offset=7, at_ns=BEGIN)
    caught_up = {at_ns: {"cost": position(caught_up_at_ns=at_ns)} for at_ns in (BEGIN, BEGIN + 1)}
    assert books({}, caught_up[BEGIN], incidents=[gone]).is_gone("cost", 0)
    assert not books({}, caught_up[BEGIN + 1], incidents=[gone]).is_gone("cost", 0)


def test_a_projection_that_begins_when_a_partition_is_gone_waits_for_nothing_there() -> None:
    gone = SimpleNamespace(projection="ledger", partition=0, incarnation=1, kind="gone", first_offset=7, at_ns=BEGIN)
    of_ledger: dict[str, Any] = {"ledger": position()}
    assert complete(books({("ledger", "a"): lane(5)}, of_ledger), "cost") == (None, ())
    found = books({("ledger", "a"): lane(5)}, of_ledger, incidents=[gone])
    assert complete(found, "cost") == (None, ("a",))
    assert work_out_sums(found, "cost", "a") == Sums()


def test_what_is_said_is_in_flight_until_the_partition_was_read_further_and_lost_from_then_on() -> None:
    lanes = {("cost", "a"): lane(3, gaps=[(2, 2)]), ("ledger", "a"): lane(8)}
    positions = {"cost": position(BEGIN - 9), "ledger": position()}
    sums = work_out_sums(books(lanes, positions), "cost", "a")
    assert (sums.captured, sums.applied, sums.lost, sums.in_flight) == (8, 2, 1, 5)
    for later in (position(BEGIN + 1), position(BEGIN - 9, caught_up_at_ns=BEGIN + 1)):
        sums = work_out_sums(books(lanes, positions | {"cost": later}), "cost", "a")
        assert (sums.captured, sums.applied, sums.lost, sums.in_flight) == (8, 2, 6, 0)


def test_what_precedes_a_projection_s_begin_is_nobody_s_loss() -> None:
    lanes = {("ledger", "a"): lane(9)}
    positions = {"ledger": position(), "runs": position(BEGIN + 1, begun_at=50)}
    assert work_out_sums(books(lanes, positions), "runs", "a").captured == 0
    sums = work_out_sums(books({("runs", "a"): lane(9, before=6)}), "runs", "a")
    assert (sums.captured, sums.applied) == (3, 3)


def test_what_was_given_up_counts_as_said_also_of_an_emitter_that_nobody_met() -> None:
    told = {name: EmitterFacts(is_closed=True, given_up=9, given_up_ns=BEGIN) for name in ("a", "b")}
    lanes = {("cost", "a"): lane(4)}
    for read_to, lost in ((BEGIN, 0), (BEGIN + 1, 5 + 9)):
        total = work_out_ledger(books(lanes, {"cost": position(read_to)}, told), ["cost"])["cost"]
        assert (total.captured, total.applied, total.lost, total.in_flight) == (18, 4, lost, 14 - lost)
    found = books(lanes, {"cost": position(BEGIN + 1)}, told)
    assert lost_ranges(found, "cost", (0, "a")) == [(5, 9)]
    assert lost_ranges(found, "cost", (NOWHERE, "b")) == [(1, 9)]


def test_headline_is_the_projection_that_shows_least() -> None:
    found = books({("cost", "a"): lane(8), ("errors", "a"): lane(5)})
    assert worst_projection(work_out_ledger(found, ("cost", "errors"))) == "errors"


def test_silence_is_a_minute_as_promised() -> None:
    assert SILENCE_NS == 60 * SECOND


@st.composite
def lanes_of(draw: st.DrawFn) -> LaneMark:
    found = lane(0, log_time_ns=draw(st.integers(0, 9)))
    found.before = found.mark = draw(st.integers(0, 3))
    for first in draw(st.lists(st.integers(1, 30), max_size=12)):
        new = found.take(max(first, found.before + 1), first + draw(st.integers(3, 6)))
        found.quarantined += draw(st.integers(0, len(new)))
    return found


@given(st.dictionaries(st.tuples(st.sampled_from("xyz"), st.sampled_from("ab")), lanes_of()), st.data())
def test_no_term_is_negative_and_all_add_up(lanes: dict[tuple[str, str], LaneMark], data: st.DataObject) -> None:
    times, begins = st.integers(0, 12), st.sampled_from((0, 0, 9))
    positions = {name: position(data.draw(times), data.draw(times), data.draw(begins)) for name in "xyz"}
    told = {"b": EmitterFacts(dropped={"full": 3, "closed": 1}, superseded=2, given_up=20, given_up_ns=5)}
    found = books(lanes, positions, told)
    for total in work_out_ledger(found, "xyz").values():
        accounted = total.applied + total.in_flight + total.lost + total.quarantined + total.superseded
        assert total.captured == accounted + sum(total.dropped.values())
        terms = (total.captured, total.applied, total.in_flight, total.lost, total.quarantined, total.repeats)
        assert min(terms) >= 0, total


def test_who_is_struck_out_holds_nobody_and_is_in_no_sum() -> None:
    lanes = {("cost", "a"): lane(5, at_ns=BEGIN - 50), ("cost", "b"): lane(3)}
    assert complete(books(lanes)) == (BEGIN - 50, ())
    assert complete(books(lanes, emitters=STRUCK)) == (BEGIN - 1, ())
    assert work_out_ledger(books(lanes, emitters=STRUCK), ["cost"])["cost"].captured == 3


@pytest.mark.parametrize("at_ns", [0, 1, -(10**18)])
def test_a_claim_of_long_ago_holds_the_figure_no_longer_than_its_events_would_count(at_ns: int) -> None:
    now_ns = 10**18
    found = books({("cost", "a"): lane(5, at_ns=at_ns, log_time_ns=now_ns)}, {"cost": position(now_ns)})
    assert complete(found) == (now_ns - SKEW_BEHIND_NS, ())
