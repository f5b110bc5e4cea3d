"""Which runs are wanted: also by who reads no store."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class RunFilter:
    """Which runs are wanted; `None` leaves a filter out. `status` may also be `open` or `abandoned`. `tag` and
    `metadata` (key and value as text), which open runs do not tell, leave these out.
    """

    session_id: str | None = None
    trace_id: str | None = None
    model: str | None = None
    status: str | None = None
    run_type: str | None = None
    since_ns: int | None = None
    until_ns: int | None = None
    user_id: str | None = None
    service: str | None = None
    name: str | None = None
    tag: str | None = None
    metadata: tuple[str, str] | None = None
    # Those without a parent alone.
    roots: bool = False
    # Start and id of the last run that was seen: those that follow it.
    after: tuple[int, str] | None = None
    # Another column of `runs`: ended runs alone, the most first.
    order: str = "started_at_ns"
