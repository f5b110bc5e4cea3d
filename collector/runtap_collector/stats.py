"""What a tap tells the app of its emitter."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Delivery:
    """Where the events of this emitter are, counted since it began; its own reports are left out.

    Attributes:
        sent: acknowledged by Kafka.
        waiting: in memory, neither acknowledged nor given up.
        spooled: likewise, on disk: this process or the next one sends them, when Kafka is there.
        dropped: given up, by reason.
    """

    sent: int
    waiting: int
    spooled: int = 0
    dropped: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Stats:
    """The emitter's side of the ledger, counted since it began; its own reports are counted with the rest.

    At any instant captured = numbered + waiting + superseded + dropped.

    Attributes:
        emitter: its id now; a process whose partition could not be written goes on under another.
        captured: events that came while it was open.
        numbered: events that got a number; `acknowledged` of them are in Kafka for certain, `spooled` on disk.
        superseded: starts that were not sent since their end says it all.
        waiting: events without a number.
        dropped: events refused before they got one, by reason and kind.
        skipped: events given up after they got one.
        content_dropped: events that went without their content.
        open_runs: runs that have started and not ended.
        held_bytes: memory held for events, as the buffer counts it.
        oldest_waiting_seconds: age of the oldest frame in memory that Kafka has not acknowledged.
    """

    emitter: str
    captured: int
    numbered: int
    acknowledged: int
    superseded: int
    waiting: int
    spooled: int
    dropped: dict[str, dict[str, int]]
    skipped: int
    content_dropped: int
    open_runs: int
    held_bytes: int
    oldest_waiting_seconds: float


@dataclass(frozen=True)
class EmitterHealth:
    """Whether events get to Kafka, and what stands in their way.

    Attributes:
        is_ok: they do, as far as is known.
        problems: words: `kafka_away`, `spool_not_written` (within the last minute), `sender_down`, `closed`.
        kafka_away_seconds: for how long Kafka could not be written; 0 where it can.
        sender_deaths: how often a fault of ours ended the sender; it was made anew each time.
        spool_failures: how often the spool could not be written.
    """

    is_ok: bool
    problems: list[str]
    kafka_away_seconds: float
    sender_deaths: int
    spool_failures: int
