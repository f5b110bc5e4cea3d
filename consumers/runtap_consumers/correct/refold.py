"""One partition of a rebuild: the retained log folded again into a generation of its own.

Up to where live workers stood when it began (`LivePartition.position`), only what lies in the replaced range counts:
the rest was copied. From there on it does what they do, with their marks.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from runtap_consumers.correct.generations import LivePartition
from runtap_consumers.errors import RebuildError
from runtap_consumers.kafka.records import Record, fingerprint_of
from runtap_consumers.projections import PROJECTIONS
from runtap_consumers.projections.batch import Batch, believed_time
from runtap_consumers.projections.grains import SketchBook
from runtap_consumers.projections.lane_marks import Lane, LaneMarks
from runtap_consumers.projections.rollups import TOUCHED_MINUTES
from runtap_consumers.store.writer import Commit
from runtap_consumers.worker.partition import Cursor, Partition, Tools, add_event, decode_records
from runtap_schemas import EmitterReported, Skipped, Unreadable


class Refold(Partition):
    """A projection's figures of one partition, made anew. Its commits move no position."""

    def __init__(
        self, projection: str, live: LivePartition, tools: Tools, log_start: int, generation: int, from_ns: int
    ) -> None:
        """Args:
        projection: whose figures.
        live: the state from which the older rows were copied.
        tools: where to write, at which prices.
        log_start: the offset at which reading begins.
        generation: of the rows that it writes.
        from_ns: begin of the replaced range; 0: all.
        """
        super().__init__(live.number, [projection], tools)
        self.projection = projection
        self.live = live
        self._from_ns = from_ns
        self._positions = {projection: replace(live.position, generation=generation)}
        self._sketches = {projection: SketchBook(self._sketch_loader(projection))}
        # Of its own at first: they tell repeats within the retained log, whatever live workers made of it.
        self._cursor = Cursor([projection], log_start, "", 0, LaneMarks(log_start, {}))
        self.cursors = [self._cursor]
        self._recovered: dict[str, set[int]] = defaultdict(set)
        self.has_caught_up = False
        # Not older than what live workers' retention goes by: rows that it deletes are not written again.
        self.live_log_time_ns = live.position.log_time_ns
        if log_start >= live.position.next_offset:
            self._go_on_as_live()

    @property
    def fingerprint(self) -> str:
        """Of the record before the next offset, '' before any was folded."""
        return self._cursor.fingerprint

    def parts(self, records: Sequence[Record]) -> list[Sequence[Record]]:
        """Divides records where live workers stood; each part is folded on its own."""
        if self.has_caught_up:
            return [records] if records else []
        boundary = sum(record.offset < self.live.position.next_offset for record in records)
        return [part for part in (records[:boundary], records[boundary:]) if part]

    def fold(self, records: Sequence[Record]) -> Commit:
        """Works out what records write; no part of them may lie on both sides of where live workers stood.

        Raises:
            RebuildError: the fold raised.
            StoreError: what the fold needs of the store cannot be read.
        """
        if not self.has_caught_up and records[0].offset >= self.live.position.next_offset:
            self._go_on_as_live()
        cursor, commit = self._cursor, Commit(self.number, [])
        decoded = decode_records(records)
        if self.has_caught_up:
            batch = self._sort(cursor, records, decoded, commit)
        else:
            batch = self._sort_retained(records, decoded)
        try:
            changes = PROJECTIONS[self.projection](batch, self._tools.settings.cost_attributes)
        except Exception as error:
            raise RebuildError(
                f"{self.projection} cannot fold offsets {records[0].offset} to {records[-1].offset} of partition "
                f"{self.number}, which is a bug of runtap: {error!r}"
            ) from error
        # Live workers have announced these minutes to the alert evaluator already.
        changes.rows.pop(TOUCHED_MINUTES.name, None)
        self._not_before_ns = 0 if self.has_caught_up else self._from_ns
        whole = self._whole_rows(self.projection, changes, max(batch.log_time_ns, self.live_log_time_ns))
        whole.new_rows = commit.new_rows
        last = records[-1]
        cursor.next_offset, cursor.fingerprint, cursor.log_time_ns = (
            last.offset + 1,
            fingerprint_of(last),
            batch.log_time_ns,
        )
        return whole

    def changed_lanes(self) -> dict[str, Lane]:
        """The lanes of which events count now that did not before: read at last, or found in a gap."""
        if not self.has_caught_up:
            self._go_on_as_live()
        return {emitter: self._cursor.marks.lanes[emitter] for emitter in self._recovered}

    def _sort_retained(self, records: Sequence[Record], decoded: Iterable[Any]) -> Batch:
        cursor = self._cursor
        batch = Batch(self._tools.prices, log_time_ns=cursor.log_time_ns)
        for record, event in zip(records, decoded, strict=True):
            log_time = record.timestamp * 1_000_000
            batch.log_time_ns = max(batch.log_time_ns, log_time)
            if isinstance(event, Unreadable):
                if event.emitter is not None and event.sequence is not None:
                    cursor.marks.take(event.emitter, event.sequence, log_time, log_time, quarantined=True)
                continue
            at_ns = log_time if isinstance(event, Skipped) else event.at_ns
            is_new = cursor.marks.take(event.emitter, event.sequence, at_ns, log_time)
            if not self._is_replaced(event, log_time):
                continue
            if is_new:
                self._recover(event.emitter, event.sequence)
                add_event(batch, event, log_time)
            elif isinstance(event, EmitterReported):
                batch.repeated_reports.append((event, log_time))
        if self._from_ns > 0:
            # Counts without a time: the copied ones stand.
            batch.skipped_types, batch.skewed_services = [], []
        self._tools.dimensions.cap(batch)
        return batch

    def _is_replaced(self, event: Any, log_time_ns: int) -> bool:
        if isinstance(event, Skipped | EmitterReported):
            return log_time_ns >= self._from_ns
        if believed_time(event.at_ns, log_time_ns) < self._from_ns:
            return False
        return not self.live.older_sessions or getattr(event, "session_id", None) not in self.live.older_sessions

    def _recover(self, emitter: str, number: int) -> None:
        """Notes an event that counts now and did not for live workers."""
        lane = self.live.lanes.get(emitter)
        if lane is None:
            return
        if number in self.live.unread.get(emitter, ()):
            self._recovered[emitter].add(number)
        elif lane.gaps and any(first <= number <= last for first, last in lane.gaps):
            lane.take(number)
            # An empty set is enough to have the lane written.
            self._recovered[emitter].update(())

    def _go_on_as_live(self) -> None:
        for emitter, numbers in self._recovered.items():
            lane, unread = self.live.lanes[emitter], self.live.unread.get(emitter, set())
            # An earlier rebuild may have taken some of them off already. Where the list is not whole (nobody ran the
            # ledger), each counts as it comes.
            rest = max(len(unread), lane.quarantined) - len(numbers)
            lane.quarantined = max(min(lane.quarantined, rest), 0)
        self._cursor.marks = LaneMarks(self.live.position.begun_at, self.live.lanes)
        self._cursor.log_time_ns = max(self._cursor.log_time_ns, self.live.position.log_time_ns)
        self.has_caught_up = True
