"""
What the emitter says of itself: reports on the wire, figures for the app.

Inside the emitter, always: captured = sum of the lanes' last numbers + dropped + superseded + waiting.
"""

from __future__ import annotations

import os
import socket
import time
import uuid
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version

from runtap_collector.lanes import Lane
from runtap_collector.records import Record, View
from runtap_collector.ring import Ring
from runtap_collector.text import clip
from runtap_schemas import EmitterReported, SkippedRange
from runtap_schemas.events import MAX_NAME_LENGTH


@dataclass(frozen=True)
class Delivery:
    """
    Where the events of this emitter are, counted since it began; its own reports are left out.

    Attributes:
        sent: acknowledged by Kafka.
        waiting: neither acknowledged nor given up.
        dropped: given up, by reason.
    """

    sent: int
    waiting: int
    dropped: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Stats:
    """
    The emitter's side of the ledger, counted since it began.

    Attributes:
        captured: events that got, or would have got, a number.
        numbered: events that got one; `acknowledged` of them are in Kafka for certain.
        superseded: starts that were not sent since their end says it all.
        waiting: events without a number.
        dropped: events given up before they got one, by reason and kind.
        skipped: events given up after they got one.
        content_dropped: events that went without their content.
        open_runs: runs that have started and not ended.
        held_bytes: memory held for events, as the buffer counts it.
        oldest_waiting_seconds: age of the oldest event without a number.
    """

    emitter: str
    captured: int
    numbered: int
    acknowledged: int
    superseded: int
    waiting: int
    dropped: dict[str, dict[str, int]]
    skipped: int
    content_dropped: int
    open_runs: int
    held_bytes: int
    oldest_waiting_seconds: float


class Ledger:
    """
    Counts of one emitter, read from its ring and its lanes.
    """

    def __init__(self, ring: Ring, view: View) -> None:
        self.emitter = uuid.uuid4().hex
        self._ring = ring
        self._view = view
        self._started_at_ns = time.time_ns()
        self._reports = 0
        self.lanes: dict[int, Lane] = {}

    def report(self, lane: Lane, *, closing: bool) -> EmitterReported:
        """
        The next report, counting itself as the next event of `lane`. Called in the sender's thread only, where no lane
        moves meanwhile; `count_report` makes it true.
        """
        with self._ring.lock:
            now_ns, now_monotonic_ns = time.time_ns(), time.monotonic_ns()
            oldest = self._oldest_waiting()
            captured = self._ring.captured + 1
            superseded = self._ring.superseded
            content_dropped = self._ring.content_dropped
            dropped = dict(self._ring.dropped)
        last_numbers = {lane.partition: lane.last for lane in self.lanes.values() if lane.last}
        last_numbers[lane.partition] = lane.last + 1
        return EmitterReported(
            at_ns=now_ns,
            number=self._reports + 1,
            service=self._view.service,
            environment=self._view.environment,
            host=clip(socket.gethostname(), MAX_NAME_LENGTH),
            process_id=os.getpid(),
            runtap_version=_runtap_version(),
            started_at_ns=self._started_at_ns,
            complete_at_ns=now_ns if oldest is None else oldest.at_ns,
            complete_age_ns=0 if oldest is None else now_monotonic_ns - oldest.monotonic_ns,
            closing=closing,
            captured=captured,
            superseded=superseded,
            dropped=_by_reason(dropped),
            content_dropped=content_dropped,
            lanes=last_numbers,
            skipped=[skipped for lane in self.lanes.values() for skipped in lane.skipped],
        )

    def count_report(self) -> None:
        """
        Counts a report that got its number.
        """
        self._reports += 1
        with self._ring.lock:
            self._ring.captured += 1

    def skip(self, lane: Lane, first: int, last: int, reason: str) -> None:
        """
        Announces numbers that were given and will never be seen.
        """
        lane.skipped_count += last - first + 1
        if lane.skipped and lane.skipped[-1].last == first - 1 and lane.skipped[-1].reason == reason:
            # Reports repeat all of them, so neighbours are one.
            first = lane.skipped.pop().first
        lane.skipped.append(
            SkippedRange(emitter=self.emitter, partition=lane.partition, first=first, last=last, reason=reason)
        )

    def delivery(self) -> Delivery:
        """
        The short answer, for `flush` and `close`.
        """
        with self._ring.lock:
            dropped: Counter[str] = Counter()
            for (reason, _), count in self._ring.dropped.items():
                dropped[reason] += count
            lanes = list(self.lanes.values())
            delivered = sum(lane.delivered for lane in lanes)
            in_flight = sum(batch.event_count for lane in lanes for batch in list(lane.batches))
            waiting = self._count_waiting() + in_flight
        for lane in lanes:
            for skipped in list(lane.skipped):
                dropped[skipped.reason] += skipped.last - skipped.first + 1
        return Delivery(delivered, waiting, dict(dropped))

    def stats(self, open_runs: int) -> Stats:
        """
        The long answer. While events are on their way its parts are of slightly different instants.
        """
        with self._ring.lock:
            lanes = list(self.lanes.values())
            oldest = self._oldest_waiting()
            age_ns = 0 if oldest is None else time.monotonic_ns() - oldest.monotonic_ns
            return Stats(
                emitter=self.emitter,
                captured=self._ring.captured,
                numbered=sum(lane.last for lane in lanes),
                acknowledged=sum(lane.acknowledged for lane in lanes),
                superseded=self._ring.superseded,
                waiting=self._count_waiting(),
                dropped=_by_reason(self._ring.dropped),
                skipped=sum(lane.skipped_count for lane in lanes),
                content_dropped=self._ring.content_dropped,
                open_runs=open_runs,
                held_bytes=self._ring.held_bytes,
                oldest_waiting_seconds=age_ns / 1e9,
            )

    def _count_waiting(self) -> int:
        return len(self._ring.waiting_records()) + sum(len(lane.pending) for lane in list(self.lanes.values()))

    def _oldest_waiting(self) -> Record | None:
        heads = [lane.pending[0] for lane in list(self.lanes.values()) if lane.pending]
        in_ring = self._ring.waiting_records()
        if in_ring:
            heads.append(in_ring[0])
        return min(heads, key=_age, default=None)


def _age(record: Record) -> int:
    return record.monotonic_ns


def _by_reason(dropped: Mapping[tuple[str, str], int]) -> dict[str, dict[str, int]]:
    grouped: dict[str, dict[str, int]] = {}
    for (reason, kind), count in dropped.items():
        grouped.setdefault(reason, {})[kind] = count
    return grouped


def _runtap_version() -> str:
    try:
        return version("runtap")
    except PackageNotFoundError:
        return "unknown"
