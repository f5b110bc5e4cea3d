"""Instants, durations and money as people and JSON write them."""

from __future__ import annotations

import re
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from typing import overload
from zoneinfo import ZoneInfo

from runtap_consumers.errors import InputError
from runtap_consumers.units import HOUR_NS, MINUTE_NS, PICODOLLARS

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
# Nanoseconds after April 2262 do not fit into 64 bits.
_END = datetime(2262, 1, 1, tzinfo=UTC)
_UNIT_SECONDS = {"s": 1, "m": 60, "h": 3_600, "d": 86_400, "w": 604_800}
_AGO = re.compile(r"(\d{1,6})([smhdw])")
EXPECTED = "2025-06-30, 2025-06-30T14:00:00Z, or how long ago: 90s, 15m, 2h, 7d, 4w"


def parse_instant(text: str, zone: ZoneInfo, now_ns: int) -> int:
    """Reads an instant: RFC 3339, a date (its first moment), or a duration that counts back from now (`2h`, `7d`).

    `zone` is that of a date, and of a time that names none.

    Raises:
        InputError: it is none of these.
    """
    ago = _AGO.fullmatch(text.strip())
    if ago:
        return max(now_ns - int(ago[1]) * _UNIT_SECONDS[ago[2]] * 10**9, 0)
    try:
        moment = datetime.fromisoformat(text.strip())
    except ValueError as error:
        raise InputError(f"{text!r} is no time: expected {EXPECTED}") from error
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=zone)
    if moment < _EPOCH:
        raise InputError(f"{text!r} lies before 1970: expected {EXPECTED}")
    if moment >= _END:
        raise InputError(f"{text!r} lies after 2261: expected {EXPECTED}")
    return datetime_ns(moment)


def datetime_ns(moment: datetime) -> int:
    """Unix nanoseconds of an aware datetime, exact."""
    return (moment - _EPOCH) // timedelta(microseconds=1) * 1_000


@overload
def format_instant(instant_ns: int, zone: ZoneInfo) -> str: ...
@overload
def format_instant(instant_ns: int | None, zone: ZoneInfo) -> str | None: ...
def format_instant(instant_ns: int | None, zone: ZoneInfo) -> str | None:
    """RFC 3339 with microseconds (cut off, not rounded) and the zone's offset; `None` for an unknown instant."""
    if instant_ns is None:
        return None
    text = local_time(instant_ns, zone).isoformat(timespec="microseconds")
    return text.removesuffix("+00:00") + "Z" if text.endswith("+00:00") else text


def local_time(instant_ns: int, zone: ZoneInfo) -> datetime:
    """The instant on the clocks of a zone, nanoseconds cut off."""
    return (_EPOCH + timedelta(microseconds=instant_ns // 1_000)).astimezone(zone)


def day_start_ns(instant_ns: int, zone: ZoneInfo, days_later: int = 0) -> int:
    """First moment of the local day that holds an instant, or of a later day."""
    day: date = local_time(instant_ns, zone).date() + timedelta(days=days_later)
    return datetime_ns(datetime.combine(day, time(), tzinfo=zone))


def hour_start_ns(instant_ns: int, zone: ZoneInfo, hours_later: int = 0) -> int:
    """First moment of the hour that holds an instant, or of the next; hours are counted from the local day's start."""
    day_ns = day_start_ns(instant_ns, zone)
    hours = (instant_ns - day_ns) // HOUR_NS + hours_later
    hour_ns = day_ns + hours * HOUR_NS
    # No day is as short as that: where its end is takes as long to find out as all the rest.
    return hour_ns if hours <= 20 else min(hour_ns, day_start_ns(instant_ns, zone, days_later=1))


def minute_start_ns(instant_ns: int, _zone: ZoneInfo, minutes_later: int = 0) -> int:
    """First moment of the minute that holds an instant, or of a later one; the same in every zone."""
    return (instant_ns // MINUTE_NS + minutes_later) * MINUTE_NS


@overload
def seconds(duration_ns: float) -> float: ...
@overload
def seconds(duration_ns: float | None) -> float | None: ...
def seconds(duration_ns: float | None) -> float | None:
    """A duration in seconds; `None` remains unknown."""
    return None if duration_ns is None else duration_ns / 1e9


@overload
def dollars(picodollars: int) -> str: ...
@overload
def dollars(picodollars: int | None) -> str | None: ...
def dollars(picodollars: int | None) -> str | None:
    """The exact decimal text of an amount, without exponent; `None` remains unknown."""
    if picodollars is None:
        return None
    if picodollars == 0:
        # As are most points over time of most users.
        return "0"
    whole, part = divmod(abs(picodollars), PICODOLLARS)
    return ("-" if picodollars < 0 else "") + f"{whole}.{part:012d}".rstrip("0").rstrip(".")


def average_dollars(picodollars: int, calls: int) -> str | None:
    """The mean cost of a call, rounded to a picodollar; `None` without calls."""
    return dollars(int((Decimal(picodollars) / calls).to_integral_value())) if calls else None
