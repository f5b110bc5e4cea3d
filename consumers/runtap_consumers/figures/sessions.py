"""Sessions as people and JSON see them; their status is worked out here, against `complete_to`."""

from __future__ import annotations

from typing import Literal, TypedDict
from zoneinfo import ZoneInfo

from runtap_consumers.figures.shapes import Dollars, Instant, pick
from runtap_consumers.instants import dollars, format_instant, seconds
from runtap_consumers.store.read.sessions import SessionRow

IDLE_NS = 30 * 60 * 10**9
PROJECTION = "sessions"


Status = Literal["open", "idle", "ended"]


class SessionFigures(TypedDict):
    """What one session was. `ended_at` is known only where the service said that it ended; `duration_seconds` is from
    its first event to its last.
    """

    session_id: str
    user_ids: list[str]
    status: Status
    started_at: Instant
    ended_at: Instant | None
    duration_seconds: float
    traces: int
    llm_calls: int
    tool_calls: int
    errors: int
    input_tokens: int
    output_tokens: int
    cost_usd: Dollars | None


def describe_session(row: SessionRow, complete_to_ns: int | None, zone: ZoneInfo) -> SessionFigures:
    """One session in the report's shape."""
    status = status_of(row, complete_to_ns)
    is_unknown = row.calls > 0 and row.priced_calls == 0
    return {
        **pick(SessionFigures, row.counts),
        "session_id": row.session_id,
        "user_ids": list(row.user_ids),
        "status": status,
        "started_at": format_instant(row.first_at_ns, zone),
        "ended_at": format_instant(row.last_at_ns, zone) if status == "ended" else None,
        "duration_seconds": seconds(row.last_at_ns - row.first_at_ns),
        "cost_usd": None if is_unknown else dollars(row.cost_picodollars),
    }


def status_of(row: SessionRow, complete_to_ns: int | None) -> Status:
    """`ended` where the service said as many ends as starts, `idle` 30 minutes after the last event, else `open`."""
    if row.counts["ends"] >= row.counts["starts"] > 0:
        return "ended"
    # Not against the clock: while workers lag, every session would look idle.
    if complete_to_ns is not None and complete_to_ns - row.last_at_ns > IDLE_NS:
        return "idle"
    return "open"
