"""From minutes to hours, local days and totals."""

from __future__ import annotations

from datetime import datetime
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtap_consumers.projections.grains import Calendar, SketchBook, rows_by_grain
from runtap_consumers.projections.rollups import COST, PERFORMANCE
from runtap_consumers.projections.sketch import Sketch, quantiles_ns
from runtap_consumers.units import DAY_NS, HOUR_NS, MINUTE_NS


def nanoseconds(text: str) -> int:
    return int(datetime.fromisoformat(text).timestamp()) * 10**9


@pytest.mark.parametrize(
    ("zone", "instant", "day"),
    [
        ("UTC", "2026-03-29T12:00:00+00:00", "2026-03-29T00:00:00+00:00"),
        # The day has 23 hours, and 25 in October.
        ("Europe/Berlin", "2026-03-29T22:30:00+02:00", "2026-03-29T00:00:00+01:00"),
        ("Europe/Berlin", "2026-10-25T23:59:59+01:00", "2026-10-25T00:00:00+02:00"),
        ("Asia/Kolkata", "2026-05-01T00:10:00+05:30", "2026-05-01T00:00:00+05:30"),
        ("America/Los_Angeles", "2026-05-01T23:59:00-07:00", "2026-05-01T00:00:00-07:00"),
    ],
)
def test_days_begin_at_local_midnight(zone: str, instant: str, day: str) -> None:
    calendar = Calendar(ZoneInfo(zone))
    assert calendar.day_of(nanoseconds(instant)) == nanoseconds(day)
    # Asked again, from memory; and for its neighbours.
    assert calendar.day_of(nanoseconds(instant)) == nanoseconds(day)
    assert calendar.day_of(nanoseconds(day)) == nanoseconds(day)
    assert calendar.day_of(nanoseconds(day) - 1) < nanoseconds(day)


def test_hours_are_counted_from_local_midnight() -> None:
    for zone, instant, hour in (
        ("Asia/Kolkata", "2026-05-01T00:10:00+05:30", "2026-05-01T00:00:00+05:30"),
        ("Europe/Berlin", "2026-10-25T02:59:00+01:00", "2026-10-25T02:00:00+01:00"),
        # Clocks go back by half an hour: the day has 24.5.
        ("Australia/Lord_Howe", "2026-04-05T23:40:00+10:30", "2026-04-05T23:30:00+10:30"),
    ):
        assert Calendar(ZoneInfo(zone)).hour_of(nanoseconds(instant)) == nanoseconds(hour)


def book() -> SketchBook:
    return SketchBook(lambda table, bucket: {})


@given(st.lists(st.tuples(st.integers(0, 5_000), st.integers(1, 10**9)), min_size=1, max_size=50))
def test_every_grain_adds_up_to_the_minutes(calls: list[tuple[int, int]]) -> None:
    start = nanoseconds("2026-03-01T00:00:00+00:00")
    minutes: dict[tuple[object, ...], list[int]] = {}
    for minute, cost in calls:
        key = (start + minute * MINUTE_NS, "openai", "m", "s", "e", "p", "standard")
        row = minutes.setdefault(key, [0] * len(COST.measures))
        row[0] += 1
        row[-1] += cost
    calendar = Calendar(ZoneInfo("Europe/Berlin"))
    by_grain = dict(rows_by_grain(COST, minutes, calendar, start, book()))
    assert list(by_grain) == ["minute", "hour", "day", "total"]
    for rows in by_grain.values():
        assert sum(row[0] for row in rows.values()) == len(calls)
        assert sum(row[-1] for row in rows.values()) == sum(cost for _, cost in calls)


def test_minutes_past_their_retention_are_left_out_of_minutes_alone() -> None:
    start = nanoseconds("2026-03-01T00:00:00+00:00")
    key = (start, "openai", "m", "s", "e", "p", "standard")
    minutes = {key: [1] * len(COST.measures)}
    calendar = Calendar(ZoneInfo("UTC"))
    for log_time, counts in (
        (start + 2 * DAY_NS, [1, 1, 1, 1]),
        (start + 2 * DAY_NS + 1, [0, 1, 1, 1]),
        (start + 401 * DAY_NS, [0, 0, 1, 1]),
    ):
        by_grain = rows_by_grain(COST, minutes, calendar, log_time, book())
        assert [len(rows) for _, rows in by_grain] == counts


def test_sketches_begin_from_what_the_store_holds() -> None:
    held = Sketch()
    held.add([1_500] * 10)
    hour = nanoseconds("2026-03-01T10:00:00+00:00")
    asked: list[tuple[str, int]] = []

    def load(table: str, bucket: int) -> dict[tuple[object, ...], list[bytes | None]]:
        asked.append((table, bucket))
        return {("s", "e", "llm", "n", "m"): [held.to_bytes(), None]}

    sketches = SketchBook(load)
    key = (hour + 5 * MINUTE_NS, "s", "e", "llm", "n", "m")
    minutes = {key: [1, 1, 0, 0, 0, 9, 9, 9, 0, 0, 0, [1_501], []]}
    calendar = Calendar(ZoneInfo("UTC"))
    for _ in range(2):
        rows = dict(rows_by_grain(PERFORMANCE, minutes, calendar, hour, sketches))["hour"]
    (row,) = rows.values()
    # Each bucket once.
    buckets = {"minute": key[0], "hour": hour, "day": hour - 10 * HOUR_NS}
    assert asked == [(f"performance_{grain}", bucket) for grain, bucket in buckets.items()]
    assert sum(word & 0xFFFFF for word in memoryview(row[11]).cast("I")) == 10 + 2
    assert row[12] is None
    low, high = quantiles_ns(row[11], [0.0, 1.0])
    assert low is not None
    assert high is not None
    assert low < high


def test_totals_carry_no_sketches() -> None:
    minutes = {(0, "s", "e", "llm", "n", "m"): [1, 1, 0, 0, 0, 9, 9, 9, 0, 0, 0, [1_501], [1_400]]}
    rows = dict(rows_by_grain(PERFORMANCE, minutes, Calendar(ZoneInfo("UTC")), 0, book()))["total"]
    assert rows == {("s", "e", "llm", "n", "m"): [1, 1, 0, 0, 0, 9, 9, 9, 0, 0, 0]}
