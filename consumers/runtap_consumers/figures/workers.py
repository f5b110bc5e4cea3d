"""How far the projections are, as the store knows it."""

from __future__ import annotations

from typing import Any
from zoneinfo import ZoneInfo

from runtap_consumers.instants import format_instant, seconds
from runtap_consumers.store.read.snapshot import Snapshot


def describe_workers(snapshot: Snapshot, zone: ZoneInfo, now_ns: int) -> dict[str, Any]:
    """Each projection's position in each partition. `read_to`: all that was appended before that it has read;
    `behind_seconds`: how long ago that is.
    """
    rows = []
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
