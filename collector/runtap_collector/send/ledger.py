"""What the emitter says of itself: reports on the wire, figures for the app.

Inside the emitter, always: captured + adopted = sum of the lanes' last numbers + dropped + superseded + waiting.
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
from operator import itemgetter
from typing import TYPE_CHECKING

from runtap_collector.capture.text import clip
from runtap_collector.send.lanes import Lane
from runtap_collector.send.records import View
from runtap_collector.send.ring import Ring
from runtap_schemas import EmitterReported, ReplayedLane, SkippedRange
from runtap_schemas.events import (
    MAX_ADOPTED_EMITTERS,
    MAX_LANES,
    MAX_NAME_LENGTH,
    MAX_REPLAYED_LANES,
    MAX_SKIPPED_RANGES,
)

if TYPE_CHECKING:
    from runtap_collector.spool.spool import Spool


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
    """The emitter's side of the ledger, counted since it began.

    At any instant captured + adopted = numbered + waiting + in_transit + superseded + dropped.

    Attributes:
        captured: events that got, or would have got, a number.
        numbered: events that got one; `acknowledged` of them are in Kafka for certain.
        superseded: starts that were not sent since their end says it all.
        waiting: events without a number, `spooled` of them on disk.
        in_transit: likewise, on their way from one place to the next at this very moment; 0 at rest.
        adopted: events that other emitters left in their spools.
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
    spooled: int
    in_transit: int
    adopted: int
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


class Ledger:
    """Counts of one emitter, read from its ring and its lanes."""

    def __init__(self, ring: Ring, view: View, spool: Spool) -> None:
        self.emitter = uuid.uuid4().hex
        self._ring = ring
        self._spool = spool
        self._view = view
        self._started_at_ns = time.time_ns()
        self._reports = 0
        self._last_report_id: str | None = None
        self.lanes: dict[int, Lane] = {}
        # Events without numbers that other emitters left, by emitter; and lanes of those whose batches are replayed.
        self.adopted: Counter[str] = Counter()
        self.foreign_lanes: dict[tuple[str, int], Lane] = {}

    def report(self, lane: Lane, *, closing: bool) -> EmitterReported:
        """The next report, counting itself as the next event of `lane`. Called in the sender's thread only, where no
        lane moves meanwhile; `count_report` makes it true.
        """
        with self._ring.lock:
            now_ns, now_monotonic_ns = time.time_ns(), time.monotonic_ns()
            oldest = self._oldest_waiting()
            captured = self._ring.captured + 1
            superseded = self._ring.superseded
            content_dropped = self._ring.content_dropped
            dropped = dict(self._ring.dropped)
        others = [(other.partition, other.last) for other in self.lanes.values() if other.last and other is not lane]
        last_numbers = dict([*others, (lane.partition, lane.last + 1)][-MAX_LANES:])
        return EmitterReported(
            at_ns=now_ns,
            number=self._reports + 1,
            report_id=uuid.uuid4().hex,
            previous_report_id=self._last_report_id,
            service=self._view.service,
            environment=self._view.environment,
            host=clip(socket.gethostname(), MAX_NAME_LENGTH),
            process_id=os.getpid(),
            runtap_version=_runtap_version(),
            started_at_ns=self._started_at_ns,
            complete_at_ns=now_ns if oldest is None else oldest[0],
            complete_age_ns=0 if oldest is None else now_monotonic_ns - oldest[1],
            closing=closing,
            captured=captured,
            superseded=superseded,
            dropped=_by_reason(dropped),
            content_dropped=content_dropped,
            lanes=last_numbers,
            adopted=dict(self.adopted),
            skipped=self._newest_skipped(),
            replayed=[
                ReplayedLane(emitter=emitter, partition=partition, last=lane.last)
                for (emitter, partition), lane in self.foreign_lanes.items()
                if lane.last
            ][-MAX_REPLAYED_LANES:],
        )

    def _newest_skipped(self) -> list[SkippedRange]:
        """The newest ranges of each lane, as many as fit. What followed an older one shows readers its gap."""
        lanes = [lane.skipped for lane in self.all_lanes() if lane.skipped]
        share = max(1, MAX_SKIPPED_RANGES // max(1, len(lanes)))
        return [skipped for ranges in lanes for skipped in ranges[-share:]][-MAX_SKIPPED_RANGES:]

    def can_adopt(self) -> bool:
        """Whether a report has room to name another emitter whose spool is emptied here."""
        return len(self.adopted) < MAX_ADOPTED_EMITTERS and len(self.foreign_lanes) < MAX_REPLAYED_LANES

    def count_report(self, report: EmitterReported) -> None:
        """Counts a report that got its number."""
        self._reports += 1
        self._last_report_id = report.report_id
        with self._ring.lock:
            self._ring.captured += 1

    def skip(self, lane: Lane, first: int, last: int, reason: str) -> None:
        """Announces numbers that were given and will never be seen."""
        lane.skipped_count += last - first + 1
        if lane.skipped and lane.skipped[-1].last == first - 1 and lane.skipped[-1].reason == reason:
            # Reports repeat all of them, so neighbours are one.
            first = lane.skipped.pop().first
        lane.skipped.append(
            SkippedRange(emitter=lane.emitter, partition=lane.partition, first=first, last=last, reason=reason)
        )

    def delivery(self) -> Delivery:
        """The short answer, for `flush` and `close`."""
        with self._ring.lock:
            dropped: Counter[str] = Counter()
            for (reason, _), count in self._ring.dropped.items():
                dropped[reason] += count
            lanes = self.all_lanes()
            delivered = sum(lane.delivered for lane in lanes)
            in_flight = [batch for lane in lanes for batch in list(lane.batches)]
            in_memory, on_disk, in_transit = self._count_unnumbered()
            spooled = on_disk + sum(batch.event_count for batch in in_flight if batch.is_spooled)
            waiting = in_memory + in_transit + sum(batch.event_count for batch in in_flight if not batch.is_spooled)
        for lane in lanes:
            for skipped in list(lane.skipped):
                dropped[skipped.reason] += skipped.last - skipped.first + 1
        return Delivery(delivered, waiting, spooled, dict(dropped))

    def stats(self, open_runs: int) -> Stats:
        """The long answer."""
        with self._ring.lock:
            lanes = list(self.lanes.values())
            oldest = self._oldest_waiting()
            age_ns = 0 if oldest is None else time.monotonic_ns() - oldest[1]
            in_memory, on_disk, in_transit = self._count_unnumbered()
            return Stats(
                emitter=self.emitter,
                captured=self._ring.captured,
                numbered=sum(lane.last for lane in lanes),
                acknowledged=sum(lane.acknowledged for lane in lanes),
                superseded=self._ring.superseded,
                waiting=in_memory + on_disk,
                spooled=on_disk,
                in_transit=in_transit,
                adopted=self.adopted.total(),
                dropped=_by_reason(self._ring.dropped),
                skipped=sum(lane.skipped_count for lane in lanes),
                content_dropped=self._ring.content_dropped,
                open_runs=open_runs,
                held_bytes=self._ring.held_bytes,
                oldest_waiting_seconds=age_ns / 1e9,
            )

    def all_lanes(self) -> list[Lane]:
        """This emitter's lanes, and those it replays for others."""
        return [*self.lanes.values(), *self.foreign_lanes.values()]

    def _count_unnumbered(self) -> tuple[int, int, int]:
        """Events without a number that are in memory, on disk, and between two places. The caller holds the ring's
        lock.

        The first two are counted; the third is what is missing in them while the sender moves events.
        """
        numbered = sum(lane.last for lane in list(self.lanes.values()))
        ring = self._ring
        there = ring.captured + self.adopted.total() - numbered - ring.superseded - ring.dropped.total()
        # For a moment one that has just been given its number stands in both.
        on_disk = max(0, min(self._spool.event_count, there))
        in_memory = max(0, min(self._count_in_memory(), there - on_disk))
        return in_memory, on_disk, max(0, there - on_disk - in_memory)

    def _count_in_memory(self) -> int:
        return self._ring.count_waiting() + sum(len(lane.pending) for lane in list(self.lanes.values()))

    def _oldest_waiting(self) -> tuple[int, int] | None:
        in_lanes = [lane.pending[0] for lane in list(self.lanes.values()) if lane.pending]
        times = [(record.at_ns, record.monotonic_ns) for record in in_lanes]
        times += [oldest for oldest in (self._ring.oldest_waiting(), self._spool.oldest) if oldest is not None]
        return min(times, key=itemgetter(1), default=None)


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
