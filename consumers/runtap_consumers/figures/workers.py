"""How far the projections are, as the store knows it."""

from __future__ import annotations

from typing import TypedDict
from zoneinfo import ZoneInfo

from runtap_consumers.figures.shapes import Instant
from runtap_consumers.instants import format_instant, seconds
from runtap_consumers.store.read.snapshot import Snapshot


class PositionFigures(TypedDict):
    """Where a projection is in a partition. `read_to`: all that was appended before that it has read; `behind_seconds`:
    how long ago that is.
    """

    projection: str
    partition: int
    next_offset: int
    incarnation: int
    read_to: Instant | None
    behind_seconds: float | None


class Workers(TypedDict):
    """Each projection's position in each partition."""

    generated_at: Instant
    positions: list[PositionFigures]


def describe_workers(snapshot: Snapshot, zone: ZoneInfo, now_ns: int) -> Workers:
    """How far each projection is, as of now."""
    rows: list[PositionFigures] = []
    for at in snapshot.positions:
        read_to_ns = max(at.log_time_ns, at.caught_up_at_ns) or None
        rows.append(
            {
                "projection": at.projection,
                "partition": at.partition,
                "next_offset": at.next_offset,
                "incarnation": at.incarnation,
                "read_to": format_instant(read_to_ns, zone),
                "behind_seconds": None if read_to_ns is None else seconds(max(now_ns - read_to_ns, 0)),
            }
        )
    return {"generated_at": format_instant(now_ns, zone), "positions": rows}
