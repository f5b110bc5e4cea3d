"""Which rows answer for a stretch of time: a range snaps outward to the grain that is kept for it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from zoneinfo import ZoneInfo

from runtap_consumers.instants import day_start_ns, hour_start_ns
from runtap_consumers.projections.rollups import RETENTION_NS, SKEW_AHEAD_NS
from runtap_consumers.units import DAY_NS, HOUR_NS, MINUTE_NS

# Longer ranges would be too many rows of hours. The minute more: clocks may be that fast.
MAX_HOURS_NS = 7 * DAY_NS + SKEW_AHEAD_NS
DEFAULT_NS = DAY_NS
# Whole days within longer ones are read as days: nobody looks at so many hours.
MOST_HOURS = 60
# An hour, and what snapping adds: short enough to be read by the minute, so that it can be shown by the minute.
_MAX_MINUTES_NS = HOUR_NS + 3 * MINUTE_NS


@dataclass(frozen=True)
class Segment:
    """Buckets of one grain, from `from_ns` to before `to_ns`."""

    grain: str
    from_ns: int
    to_ns: int


@dataclass(frozen=True)
class TimeRange:
    """A range after snapping: what figures really cover. Segments follow each other without gap or overlap."""

    from_ns: int
    to_ns: int
    segments: tuple[Segment, ...]


def snap_range(from_ns: int, to_ns: int, newest_log_time_ns: int, zone: ZoneInfo) -> TimeRange:
    """Snaps a range outward.

    Up to 7 days it is made of days and hours, with minutes at its ends where these are still kept; beyond, or where
    hours are no longer kept, of days alone.

    Args:
        from_ns: begin.
        to_ns: end; a range of no length covers the bucket that holds it.
        newest_log_time_ns: up to where the log was applied: retention goes by it.
        zone: of the store's days and hours.
    """
    to_ns = max(to_ns, from_ns + 1)
    if to_ns - from_ns > MAX_HOURS_NS or from_ns < newest_log_time_ns - RETENTION_NS["hour"] + HOUR_NS:
        first, last = day_start_ns(from_ns, zone), day_start_ns(to_ns - 1, zone, days_later=1)
        return TimeRange(first, last, (Segment("day", first, last),))
    # A bucket is deleted when its start is past retention.
    if from_ns < newest_log_time_ns - RETENTION_NS["minute"] + MINUTE_NS:
        first, last = hour_start_ns(from_ns, zone), hour_start_ns(to_ns - 1, zone, hours_later=1)
        return TimeRange(first, last, tuple(_hours(first, last, zone)))
    first, last = from_ns // MINUTE_NS * MINUTE_NS, -(-to_ns // MINUTE_NS) * MINUTE_NS
    if last - first <= _MAX_MINUTES_NS:
        return TimeRange(first, last, (Segment("minute", first, last),))
    return TimeRange(first, last, exact_segments(first, last, zone))


def exact_segments(from_ns: int, to_ns: int, zone: ZoneInfo) -> tuple[Segment, ...]:
    """The fewest buckets that make up a range of whole minutes, all of which must still be kept."""
    hours_from, hours_to = hour_start_ns(from_ns - 1, zone, hours_later=1), hour_start_ns(to_ns, zone)
    if hours_from >= hours_to:
        return (Segment("minute", from_ns, to_ns),)
    segments = (
        Segment("minute", from_ns, hours_from),
        *_hours(hours_from, hours_to, zone),
        Segment("minute", hours_to, to_ns),
    )
    return tuple(segment for segment in segments if segment.from_ns < segment.to_ns)


def _hours(from_ns: int, to_ns: int, zone: ZoneInfo) -> Iterator[Segment]:
    """A range of whole hours; of the whole days within it a row each."""
    days_from, days_to = day_start_ns(from_ns - 1, zone, days_later=1), day_start_ns(to_ns, zone)
    if to_ns - from_ns <= MOST_HOURS * HOUR_NS or days_from >= days_to:
        yield Segment("hour", from_ns, to_ns)
        return
    ranged = (("hour", from_ns, days_from), ("day", days_from, days_to), ("hour", days_to, to_ns))
    yield from (Segment(*one) for one in ranged if one[1] < one[2])
