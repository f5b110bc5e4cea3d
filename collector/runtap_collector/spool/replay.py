"""What leaves the spool again, beside the new traffic: `Replay.run`.

Events without numbers get them here, a chunk at a time, and go down this emitter's lanes. Batches that another emitter
had numbered go unchanged under its id, in lanes of their own.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from runtap_collector.logs import RareLog, log
from runtap_collector.send.encoding import report_of
from runtap_collector.send.lanes import Batch, Lane
from runtap_collector.send.ledger import Ledger
from runtap_collector.send.link import Link
from runtap_collector.send.partitions import partitions_of
from runtap_collector.send.records import Record, Route
from runtap_collector.send.ring import Ring
from runtap_collector.spool.spool import (
    MAX_AGE_NS,
    NumberedBatch,
    Spool,
    SpooledEvent,
    SpoolError,
    SpoolFile,
    forgetting,
    stored_form,
)

if TYPE_CHECKING:
    from runtap_collector.send.sender import Sender

SCAN_SECONDS = 10.0
_RETRY_SECONDS = 1.0


class Replay:
    """Adopts abandoned spools, and empties all of them while Kafka is there."""

    def __init__(self, sender: Sender, spool: Spool, ring: Ring, ledger: Ledger, link: Link) -> None:
        self._sender = sender
        self._spool = spool
        self._ring = ring
        self._ledger = ledger
        self._link = link
        self._warnings = RareLog()
        self._next_scan_at = 0.0
        self.has_events = asyncio.Event()

    async def run(self) -> None:
        """Goes on until cancelled."""
        while True:
            await self._link.wait_until_up()
            try:
                if time.monotonic() >= self._next_scan_at:
                    await self._adopt()
                lanes = self._number_chunk()
            except SpoolError as error:
                self._warnings.warn("spool_not_emptied", reason=str(error))
                await asyncio.sleep(_RETRY_SECONDS)
                continue
            if lanes:
                for lane in lanes:
                    await lane.settle()
            else:
                self._drop_empty_files()
                await self._wait()

    async def _wait(self) -> None:
        self.has_events.clear()
        try:
            async with asyncio.timeout(self._next_scan_at - time.monotonic()):
                await self.has_events.wait()
        except TimeoutError:
            return

    async def _adopt(self) -> None:
        self._next_scan_at = time.monotonic() + SCAN_SECONDS
        if not self._ledger.can_adopt():
            return
        cluster_id = await self._link.cluster_id()
        if not cluster_id:
            # Nobody could say it just now. Without it these events might be another cluster's, or ours: soon again.
            self._next_scan_at = time.monotonic() + _RETRY_SECONDS
            return
        self._spool.learn_cluster(cluster_id)
        lanes = [lane for file in self._spool.find_abandoned() if (lane := self._try_to_take_over(file))]
        try:
            # At once: only with it the reader can tell that these events are the others'.
            async with asyncio.timeout(SCAN_SECONDS):
                for lane in lanes:
                    await lane.settle()
                    await lane.is_idle.wait()
        except TimeoutError:
            return

    def _try_to_take_over(self, file: SpoolFile) -> Lane | None:
        """Makes an abandoned file ours, and returns the lane of the report that says so. `None`: it could not be
        written, or the report has no room for it.
        """
        if not self._ledger.can_adopt():
            # Unnamed there, its events would count as another emitter's. The next process adopts it.
            file.close()
            self._warnings.warn("spool_not_adopted", path=str(file.path), reason="a report can name no more emitters")
            return None
        self._spool.adopted.append(file)
        owner, count = file.facts()["owner"], file.event_count
        batches = file.numbered()
        try:
            lane = self._take_over(file, owner, count)
        except SpoolError as error:
            self._spool.adopted.remove(file)
            file.close()
            self._warnings.warn("spool_not_adopted", path=str(file.path), reason=str(error))
            return None
        self._replay(file, batches)
        log.warning("spool_adopted", path=str(file.path), emitter=owner, events=count, batches=len(batches))
        return lane

    def _take_over(self, file: SpoolFile, owner: str, count: int) -> Lane:
        """The report is numbered and stored in the same transaction: killed before it is sent, we
        leave it to the next.
        """
        ledger, now_ns = self._ledger, time.time_ns()
        file.set_clocks()
        expired = file.count_expired(now_ns)
        self._count_adopted(owner, count, expired)
        lane = self._sender.next_report_lane()
        report = ledger.report(lane, closing=False)
        batch = Batch(lane.emitter, lane.last + 1, self._link.new_builder())
        batch.append(report_of(report, lane.emitter))
        stored = stored_form(batch, lane.partition, now_ns)
        try:
            row = file.take_over(ledger.emitter, now_ns, stored)
        except SpoolError:
            self._count_adopted(owner, -count, Counter({kind: -number for kind, number in expired.items()}))
            raise
        ledger.count_report(report)
        batch.on_done = forgetting(file, row)
        lane.last = batch.last
        lane.enter_batch(batch)
        return lane

    def _count_adopted(self, owner: str, count: int, expired: Counter[str]) -> None:
        if count:
            self._ledger.adopted[owner] += count
        for kind, number in expired.items():
            self._ring.count_expired(kind, number)

    def _replay(self, file: SpoolFile, batches: Sequence[NumberedBatch]) -> None:
        """Gives the batches of other emitters to lanes of their own."""
        partitions = self._link.partitions()
        for stored in batches:
            place = (stored.emitter, stored.partition)
            lane = self._ledger.foreign_lanes.get(place)
            if lane is None:
                lane = self._ledger.foreign_lanes[place] = Lane(stored.partition, stored.emitter)
                self._sender.drive(lane)
            is_old = time.time_ns() - stored.numbered_at_ns > MAX_AGE_NS
            if is_old or (partitions and stored.partition not in partitions):
                # Its marks may be gone at the readers, or its partition is: sent now it could count twice, or never.
                self._ledger.skip(lane, stored.first, stored.last, "unknown")
                file.forget(stored.row)
                continue
            batch = Batch(stored.emitter, stored.first, self._link.new_builder(), is_fate_unknown=True)
            for event in stored.events:
                batch.append_numbered(event)
            batch.on_done = forgetting(file, stored.row)
            lane.last = max(lane.last, stored.last)
            lane.enter_batch(batch)

    def _number_chunk(self) -> list[Lane]:
        """Numbers the oldest chunk of the first file that has one, and returns the lanes that have it now."""
        partitions = self._link.partitions()
        if not partitions:
            return []
        for file in self._spool.files:
            found = file.first_chunk()
            if found is not None:
                return self._number(file, *found, partitions)
        return []

    def _number(
        self, file: SpoolFile, chunk: int, events: Sequence[SpooledEvent], partitions: frozenset[int]
    ) -> list[Lane]:
        by_partition: dict[int, list[SpooledEvent]] = {}
        chosen = partitions_of([event.key for event in events], len(partitions))
        for event, partition in zip(events, chosen, strict=True):
            if event.partition in partitions:
                partition = event.partition
            by_partition.setdefault(partition, []).append(event)
        numbered = [
            (self._sender.lane(partition), batch)
            for partition, entering in by_partition.items()
            for batch in self._batches(self._sender.lane(partition), entering)
        ]
        now_ns = time.time_ns()
        stored = [stored_form(batch, lane.partition, now_ns) for lane, batch in numbered]
        # From here on these numbers are theirs, whatever happens to this process.
        rows = file.renumber(chunk, stored)
        for (lane, batch), row in zip(numbered, rows, strict=True):
            batch.on_done = forgetting(file, row)
            lane.last = batch.last
            lane.enter_batch(batch)
        return [lane for lane, _ in numbered]

    def _batches(self, lane: Lane, events: Sequence[SpooledEvent]) -> list[Batch]:
        batches = [Batch(lane.emitter, lane.last + 1, self._link.new_builder())]
        for event in events:
            # The ring holds nothing for it any more.
            record = Record(event.kind, Route(None, key_bytes=event.key), 0, event.body, at_ns=event.at_ns)
            if not batches[-1].append(record):
                batches.append(Batch(lane.emitter, batches[-1].last + 1, self._link.new_builder()))
                batches[-1].append(record)
        return batches

    def _drop_empty_files(self) -> None:
        for file in list(self._spool.adopted):
            if not file.event_count and not file.numbered():
                self._spool.adopted.remove(file)
                file.close()
