"""Sessions as people and JSON see them; their status is worked out here, against `complete_to`."""

from __future__ import annotations

from typing import Any
from zoneinfo import ZoneInfo

from runtap_consumers.instants import dollars, format_instant, seconds
from runtap_consumers.store.read.sessions import SessionRow

IDLE_NS = 30 * 60 * 10**9
PROJECTION = "sessions"


def describe_session(row: SessionRow, complete_to_ns: int | None, zone: ZoneInfo) -> dict[str, Any]:
    """One session in the report's shape.

    `ended_at` is known only where the service said that the session ended; `duration_seconds` is from its first event
    to its last.
    """
    status = status_of(row, complete_to_ns)
    is_unknown = row.calls > 0 and row.priced_calls == 0
    return {
        "session_id": row.session_id,
        "user_ids": list(row.user_ids),
        "status": status,
        "started_at": format_instant(row.first_at_ns, zone),
        "ended_at": format_instant(row.last_at_ns, zone) if status == "ended" else None,
        "duration_seconds": seconds(row.last_at_ns - row.first_at_ns),
        **{name: row.counts[name] for name in ("traces", "llm_calls", "tool_calls", "errors")},
        **{name: row.counts[name] for name in ("input_tokens", "output_tokens")},
        "cost_usd": None if is_unknown else dollars(row.cost_picodollars),
    }


def status_of(row: SessionRow, complete_to_ns: int | None) -> str:
    """`ended` where the service said as many ends as starts, `idle` 30 minutes after the last event, else `open`."""
    if row.counts["ends"] >= row.counts["starts"] > 0:
        return "ended"
    # Not against the clock: while workers lag, every session would look idle.
    if complete_to_ns is not None and complete_to_ns - row.last_at_ns > IDLE_NS:
        return "idle"
    return "open"
