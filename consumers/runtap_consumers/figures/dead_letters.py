"""Records that could not be read, as people and JSON see them."""

from __future__ import annotations

from typing import Any, TypedDict
from zoneinfo import ZoneInfo

from runtap_consumers.figures.shapes import Instant
from runtap_consumers.instants import format_instant


class DeadLetterFacts(TypedDict):
    """A record, or `events` lines of one, in a lane from `sequence` on. `published`: whether the topic of dead letters
    has it.
    """

    id: str
    partition: int
    offset: int
    log_time: Instant | None
    cause: str
    emitter: str | None
    sequence: int | None
    events: int
    published: bool


def describe_letter(row: Any, zone: ZoneInfo) -> DeadLetterFacts:
    """Where a dead letter lay in the log and what was wrong with it, without its bytes."""
    return {
        "id": row.id,
        "partition": row.partition,
        "offset": row.log_offset,
        # The Kafka client gives no time for what it cannot decode itself.
        "log_time": format_instant(row.log_time_ns, zone) if row.log_time_ns else None,
        "cause": row.cause,
        "emitter": row.emitter,
        "sequence": row.sequence,
        "events": row.events,
        "published": bool(row.published),
    }
