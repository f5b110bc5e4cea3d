"""
Lanes: one emitter's events for one partition, numbered 1, 2, 3 … when their batch is built.

A number once given belongs to its event for ever. A lane has at most one batch on its way, so what arrives is in order,
with repeats at most.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from runtap_collector.records import Record
from runtap_schemas import SkippedRange


class Builder(Protocol):
    """
    What collects the records of a batch. `append` returns `None` where the batch is full.
    """

    def append(self, *, timestamp: int | None, key: bytes | None, value: bytes | None) -> object | None: ...


class NumberedEvent(NamedTuple):
    """
    A record as it goes to Kafka. `size_bytes`: what the ring holds for it, 0 for a report.
    """

    timestamp_ms: int
    key: bytes
    value: bytes
    size_bytes: int


@dataclass
class Batch:
    """
    Numbered events on their way, `first` to `last`. The builder is kept: sent again, it is the same bytes.
    """

    first: int
    events: list[NumberedEvent]
    builder: Builder
    # Whether an attempt may have reached the log: then a refusal later does not say that its events are not in it.
    is_fate_unknown: bool = False

    @property
    def last(self) -> int:
        return self.first + len(self.events) - 1

    @property
    def size_bytes(self) -> int:
        """
        What the ring holds for its events.
        """
        return sum(event.size_bytes for event in self.events)

    @property
    def event_count(self) -> int:
        """
        Its events that came through the ring: all but reports.
        """
        return sum(1 for event in self.events if event.size_bytes)

    def halve(self, new_builder: Callable[[], Builder]) -> tuple[Batch, Batch]:
        """
        Two batches of the same events with the same numbers.
        """
        middle = len(self.events) // 2
        return (
            self._part(self.first, self.events[:middle], new_builder()),
            self._part(self.first + middle, self.events[middle:], new_builder()),
        )

    def _part(self, first: int, events: list[NumberedEvent], builder: Builder) -> Batch:
        for event in events:
            builder.append(timestamp=event.timestamp_ms, key=event.key, value=event.value)
        return Batch(first, events, builder, self.is_fate_unknown)


class Lane:
    """
    One partition's queue. Touched by the sender's thread only; others may read its counts.
    """

    def __init__(self, partition: int) -> None:
        self.partition = partition
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

    def enter(self, record: Record) -> None:
        """
        Queues a record behind the others.
        """
        self.pending.append(record)
        self._entered += 1
        self._wake()

    def ask_for_report(self) -> None:
        """
        Makes the next batch begin with a report.
        """
        self.report_is_due = True
        self._wake()

    def _wake(self) -> None:
        self.is_idle.clear()
        self.has_work.set()

    def pass_through(self, count: int) -> None:
        """
        Notes that `count` more events are sent, skipped, superseded or gone to another lane.
        """
        self._through += count
        ready = [waiter for waiter in self._waiters if waiter[0] <= self._through]
        if ready:
            self._waiters = [waiter for waiter in self._waiters if waiter[0] > self._through]
            for _, future in ready:
                if not future.done():
                    future.set_result(None)

    async def settle(self) -> None:
        """
        Waits until all that is here now is through; what enters later is not waited for.
        """
        if self._entered > self._through:
            future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiters.append((self._entered, future))
            await future
