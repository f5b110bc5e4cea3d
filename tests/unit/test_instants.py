"""Instants, ranges and money as people write them."""

from __future__ import annotations

from decimal import Decimal
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtap_consumers.errors import InputError
from runtap_consumers.instants import (
    average_dollars,
    day_start_ns,
    dollars,
    format_instant,
    hour_start_ns,
    parse_instant,
)
from runtap_consumers.projections.grains import Calendar
from runtap_consumers.store.read.ranges import snap_range
from runtap_consumers.units import DAY_NS, HOUR_NS, MINUTE_NS

UTC = ZoneInfo("UTC")
BERLIN = ZoneInfo("Europe/Berlin")
NOON_NS = 1_750_420_800 * 10**9  # 2025-06-20T12:00:00Z


@pytest.mark.parametrize(
    ("text", "seconds_before_noon"),
    [
        ("90s", 90),
        ("15m", 900),
        ("2h", 7_200),
        ("7d", 604_800),
        ("2w", 1_209_600),
        ("2025-06-20T11:59:00Z", 60),
        ("2025-06-20T13:59:00+02:00", 60),
        ("2025-06-20T13:59:00", 60),
        ("2025-06-20", 14 * 3_600),
    ],
)
def test_instants_are_read_as_written(text: str, seconds_before_noon: int) -> None:
    assert parse_instant(text, BERLIN, NOON_NS) == NOON_NS - seconds_before_noon * 10**9


@pytest.mark.parametrize("text", ["", "yesterday", "2h30m", "-2h", "2025-13-01", "1969-01-01", "12", "h"])
def test_what_is_no_instant_is_repeated_with_what_is_expected(text: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_instant(text, UTC, NOON_NS)
    assert repr(text) in str(caught.value)
    assert "2h" in str(caught.value)


@pytest.mark.parametrize(
    "text",
    ["9999-12-31", "9999-12-31T23:59:59-12:00", "2262-01-02", "0001-01-01", "1677-09-21", "1677-09-20T00:00:00Z"],
)
@pytest.mark.parametrize("zone", [UTC, BERLIN, ZoneInfo("Pacific/Kiritimati"), ZoneInfo("Etc/GMT+12")])
def test_instants_that_no_store_can_hold_are_refused(text: str, zone: ZoneInfo) -> None:
    with pytest.raises(InputError, match=r"lies (before 1970|after 2261)"):
        parse_instant(text, zone, NOON_NS)


def test_the_last_instant_leaves_room_for_days_after_it() -> None:
    last = parse_instant("2261-12-31T23:59:59Z", UTC, NOON_NS)
    assert day_start_ns(last, UTC, 90) < 2**63


def test_instants_are_written_with_their_offset_and_cut_to_microseconds() -> None:
    assert format_instant(NOON_NS + 1_999, UTC) == "2025-06-20T12:00:00.000001Z"
    assert format_instant(NOON_NS, BERLIN) == "2025-06-20T14:00:00.000000+02:00"
    assert format_instant(None, UTC) is None


def test_days_are_of_the_zone_and_may_last_23_hours() -> None:
    before_change = parse_instant("2025-03-30T12:00:00", BERLIN, 0)
    first, following = day_start_ns(before_change, BERLIN), day_start_ns(before_change, BERLIN, 1)
    assert format_instant(first, UTC) == "2025-03-29T23:00:00.000000Z"
    assert following - first == 23 * HOUR_NS


@pytest.mark.parametrize(
    ("picodollars", "text"),
    [
        (-1, "-0.000000000001"),
        (-15 * 10**11, "-1.5"),
        (0, "0"),
        (1, "0.000000000001"),
        (10**12, "1"),
        (1_500_000_000_000, "1.5"),
        (100 * 10**12, "100"),
        (9_300_000 * 10**12 + 1, "9300000.000000000001"),
        (None, None),
    ],
)
def test_dollars_are_exact_and_without_exponent(picodollars: int | None, text: str | None) -> None:
    assert dollars(picodollars) == text


@given(st.integers(0, 10**30))
def test_no_picodollar_is_lost_in_writing(picodollars: int) -> None:
    text = dollars(picodollars)
    assert text is not None
    assert Decimal(text) * 10**12 == picodollars if picodollars < 10**28 else text.isascii()


def test_average_is_rounded_to_a_picodollar_and_unknown_without_calls() -> None:
    assert average_dollars(10, 4) == "0.000000000002"
    assert average_dollars(20 * 10**12, 3) == "6.666666666667"
    assert average_dollars(0, 0) is None


def test_minutes_lie_at_the_ends_of_hours() -> None:
    begin, end = NOON_NS - 3 * HOUR_NS + 90 * 10**9, NOON_NS + 30 * 10**9
    found = snap_range(begin, end, NOON_NS, UTC)
    assert (found.from_ns, found.to_ns) == (NOON_NS - 3 * HOUR_NS + MINUTE_NS, NOON_NS + MINUTE_NS)
    assert [(segment.grain, segment.to_ns - segment.from_ns) for segment in found.segments] == [
        ("minute", 59 * MINUTE_NS),
        ("hour", 2 * HOUR_NS),
        ("minute", MINUTE_NS),
    ]


def test_an_instant_is_covered_by_the_minute_that_holds_it() -> None:
    found = snap_range(NOON_NS, NOON_NS, NOON_NS, UTC)
    assert (found.from_ns, found.to_ns) == (NOON_NS, NOON_NS + MINUTE_NS)
    assert [segment.grain for segment in found.segments] == ["minute"]


def test_hours_answer_where_minutes_are_gone() -> None:
    found = snap_range(NOON_NS - 3 * DAY_NS + 1, NOON_NS - 2 * DAY_NS + 1, NOON_NS, UTC)
    assert [segment.grain for segment in found.segments] == ["hour"]
    assert (found.from_ns, found.to_ns) == (NOON_NS - 3 * DAY_NS, NOON_NS - 2 * DAY_NS + HOUR_NS)


def test_days_of_the_zone_answer_beyond_a_week() -> None:
    grains = [one.grain for one in snap_range(NOON_NS - 7 * DAY_NS, NOON_NS + MINUTE_NS, NOON_NS, BERLIN).segments]
    assert grains == ["hour", "day", "hour"]
    found = snap_range(NOON_NS - 8 * DAY_NS, NOON_NS, NOON_NS, BERLIN)
    assert [segment.grain for segment in found.segments] == ["day"]
    assert format_instant(found.from_ns, BERLIN) == "2025-06-12T00:00:00.000000+02:00"
    assert format_instant(found.to_ns, BERLIN) == "2025-06-21T00:00:00.000000+02:00"


def test_days_answer_where_hours_are_gone() -> None:
    assert snap_range(NOON_NS - 401 * DAY_NS, NOON_NS - 400 * DAY_NS, NOON_NS, UTC).segments[0].grain == "day"


@given(
    begin=st.integers(0, 600 * DAY_NS),
    length=st.integers(0, 30 * DAY_NS),
    newest=st.integers(0, 600 * DAY_NS),
    zone=st.sampled_from((UTC, BERLIN, ZoneInfo("Asia/Kolkata"))),
)
def test_a_range_snaps_outward_and_its_segments_leave_no_gap(
    begin: int, length: int, newest: int, zone: ZoneInfo
) -> None:
    found = snap_range(NOON_NS + begin, NOON_NS + begin + length, NOON_NS + newest, zone)
    assert found.from_ns <= NOON_NS + begin
    assert found.to_ns > NOON_NS + begin
    assert found.to_ns >= NOON_NS + begin + length
    at = found.from_ns
    for segment in found.segments:
        assert segment.from_ns == at < segment.to_ns
        at = segment.to_ns
        if segment.grain == "hour":
            # Where workers' buckets begin: elsewhere an hour would count at one end and be missing at the other.
            assert Calendar(zone).hour_of(segment.from_ns) == segment.from_ns
            assert Calendar(zone).hour_of(segment.to_ns) == segment.to_ns
    assert at == found.to_ns


@given(
    at_ns=st.integers(NOON_NS, NOON_NS + 900 * DAY_NS),
    name=st.sampled_from(
        ["UTC", "Europe/Berlin", "Asia/Kolkata", "Asia/Kathmandu", "Australia/Lord_Howe", "Africa/Cairo"]
    ),
)
def test_a_day_consists_of_whole_hours_and_readers_and_workers_agree_on_them(at_ns: int, name: str) -> None:
    zone = ZoneInfo(name)
    calendar = Calendar(zone)
    hour = calendar.hour_of(at_ns)
    assert hour == hour_start_ns(at_ns, zone)
    following = hour_start_ns(at_ns, zone, hours_later=1)
    assert hour <= at_ns < following <= hour + HOUR_NS
    assert calendar.hour_of(following) == following
    assert calendar.hour_of(following - 1) == hour
    assert calendar.day_of(hour) == calendar.day_of(following - 1) == day_start_ns(at_ns, zone)
