"""Which rows answer for a stretch of time: a range snaps outward to the grain that is kept for it."""

from __future__ import annotations

from dataclasses import dataclass
from zoneinfo import ZoneInfo

from runtap_consumers.instants import day_start_ns, hour_start_ns
from runtap_consumers.projections.rollups import RETENTION_NS, SKEW_AHEAD_NS
from runtap_consumers.units import DAY_NS, HOUR_NS, MINUTE_NS

# Longer ranges would be too many rows of hours. The minute more: clocks may be that fast.
MAX_HOURS_NS = 7 * DAY_NS + SKEW_AHEAD_NS
DEFAULT_NS = DAY_NS
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

    Up to 7 days it is made of hours, with minutes at its ends where these are still kept; beyond, or where hours are
    no longer kept, of days.

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
        return TimeRange(first, last, (Segment("hour", first, last),))
    first, last = from_ns // MINUTE_NS * MINUTE_NS, -(-to_ns // MINUTE_NS) * MINUTE_NS
    hours_from, hours_to = hour_start_ns(first - 1, zone, hours_later=1), hour_start_ns(last, zone)
    if hours_from >= hours_to or last - first <= _MAX_MINUTES_NS:
        return TimeRange(first, last, (Segment("minute", first, last),))
    segments = (
        Segment("minute", first, hours_from),
        Segment("hour", hours_from, hours_to),
        Segment("minute", hours_to, last),
    )
    return TimeRange(first, last, tuple(segment for segment in segments if segment.from_ns < segment.to_ns))
