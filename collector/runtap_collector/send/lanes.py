"""Lanes: one emitter's events for one partition, numbered 1, 2, 3 … when their batch is built.

A number once given belongs to its event for ever. A lane has at most one batch on its way, so what arrives is in order,
with repeats at most.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from runtap_collector.send.records import REPORT, Record
from runtap_schemas import SkippedRange, number_event


class Builder(Protocol):
    """What collects the records of a batch. `append` returns `None` where the batch is full."""

    def append(self, *, timestamp: int | None, key: bytes | None, value: bytes | None) -> object | None: ...


class NumberedEvent(NamedTuple):
    """A record as it goes to Kafka. `size_bytes`: what the ring holds for it, 0 for a report and what was spooled."""

    timestamp_ms: int
    key: bytes
    value: bytes
    size_bytes: int
    is_report: bool = False


@dataclass(slots=True)
class Batch:
    """Events on their way under the numbers `first` to `last`. The builder is kept: sent again, it
    is the same bytes.
    """

    emitter: str
    first: int
    builder: Builder
    # Whether an attempt may have reached the log: then a refusal later does not say that its events are not in it.
    is_fate_unknown: bool = False
    # Whether it is in a spool; and what is called when it is through.
    is_spooled: bool = False
    on_done: Callable[[], None] | None = None
    # Records are kept as they are: their numbered form is needed again only where something went wrong.
    events: list[Record | NumberedEvent] = field(default_factory=list)
    # What the ring holds for them, and how many of them are not reports.
    size_bytes: int = 0
    event_count: int = 0

    @property
    def last(self) -> int:
        return self.first + len(self.events) - 1

    def append(self, record: Record) -> bool:
        """Gives a record the next number. False: the batch is full."""
        value = number_event(record.body, self.emitter, self.first + len(self.events))
        timestamp_ms = record.at_ns // 1_000_000
        if self.builder.append(timestamp=timestamp_ms, key=record.route.key_bytes, value=value) is None:
            return False
        self.events.append(record)
        self.size_bytes += record.size_bytes
        self.event_count += record.kind != REPORT
        return True

    def append_numbered(self, event: NumberedEvent) -> None:
        """Adds one that has its number, of a batch that was not too large."""
        timestamp_ms, key, value, size_bytes, is_report = event
        self.builder.append(timestamp=timestamp_ms, key=key, value=value)
        self.events.append(event)
        self.size_bytes += size_bytes
        self.event_count += not is_report

    def numbered(self) -> list[NumberedEvent]:
        """Its events as they go to Kafka."""
        return [
            event if isinstance(event, NumberedEvent) else self._numbered(event, number)
            for number, event in enumerate(self.events, self.first)
        ]

    def _numbered(self, record: Record, number: int) -> NumberedEvent:
        value = number_event(record.body, self.emitter, number)
        timestamp_ms = record.at_ns // 1_000_000
        return NumberedEvent(
            timestamp_ms, record.route.key_bytes, value, record.size_bytes, is_report=record.kind == REPORT
        )

    def halve(self, new_builder: Callable[[], Builder]) -> tuple[Batch, Batch]:
        """Two batches of the same events with the same numbers."""
        events = self.numbered()
        middle = len(events) // 2
        former = self._part(self.first, events[:middle], new_builder())
        latter = self._part(self.first + middle, events[middle:], new_builder())
        latter.on_done = self.on_done
        return former, latter

    def _part(self, first: int, events: list[NumberedEvent], builder: Builder) -> Batch:
        part = Batch(self.emitter, first, builder, self.is_fate_unknown, self.is_spooled)
        for event in events:
            part.append_numbered(event)
        return part


class Lane:
    """One partition's queue. Touched by the sender's thread only; others may read its counts."""

    def __init__(self, partition: int, emitter: str) -> None:
        self.partition = partition
        self.emitter = emitter
        self.pending: deque[Record] = deque()
        self.batches: deque[Batch] = deque()
        self.last = 0
        # Numbers that Kafka has for certain, and how many of them are not reports.
        self.acknowledged = 0
        self.delivered = 0
        self.skipped: list[SkippedRange] = []
        self.skipped_count = 0
        self.report_is_due = False
        self.has_work = asyncio.Event()
        self.is_idle = asyncio.Event()
        # Events that entered, and events that are through: a flush waits for the second to reach the first. Reports
        # overtake and are not counted here.
        self._entered = 0
        self._through = 0
        self._waiters: list[tuple[int, asyncio.Future[None]]] = []

    def enter(self, records: Collection[Record]) -> None:
        """Queues records behind the others."""
        self.pending.extend(records)
        self._entered += len(records)
        self._wake()

    def move_to_another_loop(self) -> None:
        """Prepares it for another sender's loop. Nobody waits for it there yet."""
        self.has_work, self.is_idle, self._waiters = asyncio.Event(), asyncio.Event(), []

    def enter_batch(self, batch: Batch) -> None:
        """Queues a batch that has its numbers already."""
        batch.is_spooled = True
        self.batches.append(batch)
        self._entered += batch.event_count
        self._wake()

    def ask_for_report(self) -> None:
        """Makes the next batch begin with a report."""
        self.report_is_due = True
        self._wake()

    def _wake(self) -> None:
        self.is_idle.clear()
        self.has_work.set()

    def pass_through(self, count: int) -> None:
        """Notes that `count` more events are sent, skipped, superseded or gone to another lane."""
        self._through += count
        ready = [waiter for waiter in self._waiters if waiter[0] <= self._through]
        if ready:
            self._waiters = [waiter for waiter in self._waiters if waiter[0] > self._through]
            for _, future in ready:
                if not future.done():
                    future.set_result(None)

    async def settle(self) -> None:
        """Waits until all that is here now is through; what enters later is not waited for."""
        if self._entered > self._through:
            future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiters.append((self._entered, future))
            await future
