"""One partition in the hands of one worker: load, fold, commit. Synchronous; runs in the worker's one folding thread.

Everything here is memory of what the store says. After any failed commit the object is thrown away and loaded anew.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Self

import structlog

from runtap_consumers.errors import FoldFailedError, StoreError
from runtap_consumers.kafka.records import KafkaRecord, fingerprint_of
from runtap_consumers.projections import PROJECTIONS
from runtap_consumers.projections.batch import Batch, Prices
from runtap_consumers.projections.dimensions import Dimensions
from runtap_consumers.projections.grains import Calendar, Rows, SketchBook, rows_by_grain
from runtap_consumers.projections.lane_marks import LaneMarks
from runtap_consumers.projections.rollups import OPEN_RUNS, RECENT_ERRORS, RECENT_ERRORS_KEPT, ROLLUPS, Changes, Rollup
from runtap_consumers.settings import ConsumerSettings
from runtap_consumers.store import retention, tables
from runtap_consumers.store.cost_keys import CostKeys
from runtap_consumers.store.dimension_values import admit_values
from runtap_consumers.store.engine import Store
from runtap_consumers.store.positions import (
    Position,
    add_missing_positions,
    lane_row,
    load_lanes,
    load_positions,
    note_caught_up,
    read_open_run_ids,
    read_sketches,
)
from runtap_consumers.store.writer import Commit, Move, Row, Writer
from runtap_consumers.units import DAY_NS
from runtap_consumers.worker.decoding import Decoded, Refused, decode_records, sort_records, without_refused

logger = structlog.get_logger(__name__)

_ROLLUPS = {rollup.name: rollup for rollup in ROLLUPS}
_RETENTION_EVERY_NS = 60 * 10**9
# 100 bytes each. Where more are open, every end deletes from `open_runs`, whether it has a row there or not.
_MAX_OPEN_RUNS_KNOWN = 100_000


@dataclass
class Tools:
    """What all partitions of a worker share. `prices` may become another table between two batches."""

    store: Store
    writer: Writer
    prices: Prices
    dimensions: Dimensions
    cost_keys: CostKeys
    settings: ConsumerSettings

    @classmethod
    def of(cls, store: Store, writer: Writer, prices: Prices, settings: ConsumerSettings) -> Self:
        """Those with which dimensions and cost keys are asked for in transactions of their own."""
        dimensions = Dimensions(lambda day, values: admit_values(writer, day, values), settings.cost_attributes)
        return cls(store, writer, prices, dimensions, CostKeys(writer), settings)


@dataclass
class Cursor:
    """Projections in lockstep: the same next offset, the same marks; their records are sorted once."""

    projections: list[str]
    next_offset: int
    fingerprint: str
    log_time_ns: int
    marks: LaneMarks


class Partition:
    """A partition's positions, marks and sketches, and what a batch makes of them.

    Methods raise StoreError where the store does not answer or take a commit, FencedError where another worker has
    moved a position: forget this object then.
    """

    def __init__(self, number: int, projections: Iterable[str], tools: Tools) -> None:
        self.number = number
        self._projections = sorted(projections)
        self._tools = tools
        self._keeps_labels = "runs" in self._projections or bool(tools.settings.cost_attributes)
        self._calendar = Calendar(tools.store.zone)
        self._sketches: dict[str, SketchBook] = {}
        self._positions: dict[str, Position] = {}
        self._retention_due_ns = 0
        # Runs with a row in `open_runs` (`None`: too many): nearly no end has one, and a DELETE for each costs 1 µs.
        self._open_run_ids: set[str] | None = None
        # Append time of the oldest record of the log, as last read; 0: not known.
        self.log_start_ns = 0
        self.cursors: list[Cursor] = []
        self.refused: Refused = {}

    @property
    def next_offset(self) -> int:
        """The smallest next offset of the projections: where to fetch from."""
        return min(cursor.next_offset for cursor in self.cursors)

    @property
    def opened_gap(self) -> bool:
        """Whether the batch folded last found numbers missing."""
        return any(cursor.marks.opened_gap for cursor in self.cursors)

    def read_up_to(self) -> list[tuple[int, str]]:
        """The next offset of each cursor, and the fingerprint of the record before it."""
        return [(cursor.next_offset, cursor.fingerprint) for cursor in self.cursors]

    def load(self, log_start: int) -> None:
        """Reads positions and marks in one snapshot; a projection that is new here begins at the log's start."""
        self._add_missing_positions(log_start)
        with self._tools.store.read() as connection:
            self._positions = load_positions(connection, self.number, self._projections)
            lanes = {name: load_lanes(connection, self.number, name) for name in self._positions}
        self.cursors = []
        for name, position in sorted(self._positions.items()):
            for cursor in self.cursors:
                twin = self._positions[cursor.projections[0]]
                if _state(twin) == _state(position) and lanes[name] == cursor.marks.lanes:
                    cursor.projections.append(name)
                    break
            else:
                marks = LaneMarks(position.begun_at, lanes[name])
                self.cursors.append(
                    Cursor([name], position.next_offset, position.fingerprint, position.log_time_ns, marks)
                )
        self._sketches = {
            name: SketchBook(partial(read_sketches, self._tools.writer, self.number, position.generation))
            for name, position in self._positions.items()
        }
        self._open_run_ids = self._load_open_run_ids() if "runs" in self._positions else None

    def _load_open_run_ids(self) -> set[str] | None:
        generation = self._positions["runs"].generation
        ids = read_open_run_ids(self._tools.writer, self.number, generation, _MAX_OPEN_RUNS_KNOWN + 1)
        return ids if len(ids) <= _MAX_OPEN_RUNS_KNOWN else None

    def _add_missing_positions(self, log_start: int) -> None:
        add_missing_positions(self._tools.writer, self.number, self._projections, log_start)

    def fold(self, records: Sequence[KafkaRecord]) -> Commit:
        """Works out what a batch writes. The marks in memory move; they are right only once the commit is done.

        Args:
            records: in the order of the log, beginning at `next_offset` or before.

        Raises:
            FoldFailedError: a projection cannot fold them.
        """
        # Decoded once for all cursors.
        events = decode_records(records, keeps_labels=self._keeps_labels)
        decoded = events if len(self.cursors) == 1 else list(events)
        commit = Commit(self.number, [])
        last = records[-1]
        following, fingerprint = last.offset + 1, fingerprint_of(last)
        for cursor in self.cursors:
            cursor.marks.opened_gap = False
            if cursor.next_offset >= following:
                continue
            batch = self._sort(cursor, records, decoded, commit)
            self._fold_projections(cursor, batch, commit)
            for name in cursor.projections:
                position = self._positions[name]
                commit.moves.append(
                    Move(
                        name,
                        expected_offset=cursor.next_offset,
                        epoch=position.epoch,
                        next_offset=following,
                        fingerprint=fingerprint,
                        log_time_ns=batch.log_time_ns,
                        incarnation=position.incarnation,
                        next_epoch=position.epoch,
                        begun_at=position.begun_at,
                    )
                )
            self._add_marks(cursor, commit)
            cursor.next_offset, cursor.fingerprint, cursor.log_time_ns = following, fingerprint, batch.log_time_ns
        self._add_deletions(commit)
        return commit

    def _sort(
        self, cursor: Cursor, records: Sequence[KafkaRecord], decoded: Iterable[Decoded], commit: Commit
    ) -> Batch:
        batch = Batch(self._tools.prices, self._tools.cost_keys, log_time_ns=cursor.log_time_ns)
        place = f"{self._tools.store.events_topic}/{self.number}"
        pairs = zip(records, decoded, strict=True)
        unread = ((record, one) for record, one in pairs if record.offset >= cursor.next_offset)
        letters = sort_records(batch, cursor.marks, without_refused(unread, self.refused) if self.refused else unread)
        self._tools.dimensions.cap(batch)
        # Whichever worker refuses an event says so.
        if letters and ("ledger" in cursor.projections or self.refused):
            rows: list[Row] = [letter.row(place, self.number) for letter in letters]
            commit.new_rows.append((tables.dead_letters, rows))
        return batch

    def _fold_projections(self, cursor: Cursor, batch: Batch, commit: Commit) -> None:
        for name in cursor.projections:
            try:
                changes = self._changes_of(name, batch)
                rows = self._whole_rows(name, changes, batch.log_time_ns)
            except StoreError:
                raise
            except Exception as error:
                raise FoldFailedError(name, error) from error
            commit.upserts += rows.upserts
            if rows.runs:
                commit.runs, commit.runs_generation = rows.runs, rows.runs_generation
            commit.ended_run_ids += self._with_open_row(changes)
            commit.deletions += rows.deletions

    def _changes_of(self, name: str, batch: Batch) -> Changes:
        changes = PROJECTIONS[name](batch, self._tools.settings.cost_attributes)
        changes.announce(name)
        return changes

    def _with_open_row(self, changes: Changes) -> list[str]:
        """Of the runs that ended those that stand among the open ones."""
        known, ended = self._open_run_ids, changes.ended_run_ids
        if known is None:
            return ended
        found = [run_id for run_id in ended if run_id in known]
        known.difference_update(found)
        known.update(run_id for (run_id,) in changes.rows.get(OPEN_RUNS.name, ()))
        if len(known) > _MAX_OPEN_RUNS_KNOWN:
            self._open_run_ids = None
        return found

    def _whole_rows(self, name: str, changes: Changes, log_time_ns: int) -> Commit:
        tail = (self.number, self._positions[name].generation)
        deltas: list[tuple[Rollup, str, Rows]] = [
            (_ROLLUPS[table_name], table_name, rows) for table_name, rows in changes.rows.items()
        ]
        for rollup_name, minutes in changes.minutes.items():
            rollup = _ROLLUPS[rollup_name]
            by_grain = rows_by_grain(rollup, minutes, self._calendar, log_time_ns, self._sketches[name])
            deltas += [(rollup, rollup.table_name(grain), rows) for grain, rows in by_grain]
        self._sketches[name].trim()
        part = Commit(self.number, [])
        for rollup, table_name, rows in deltas:
            if rows:
                # In key order: two that lock rows of a table in different orders would deadlock.
                whole: list[Row] = [rollup.stored_row(key, tail, rows[key]) for key in sorted(rows)]
                part.upserts.append((tables.metadata.tables[table_name], whole))
        part.runs, part.runs_generation = changes.runs, self._positions[name].generation
        part.ended_run_ids = changes.ended_run_ids
        if changes.rows.get(RECENT_ERRORS.name):
            part.deletions.append(retention.surplus_recent_errors(*tail, RECENT_ERRORS_KEPT))
        return part

    def _add_marks(self, cursor: Cursor, commit: Commit) -> None:
        changed = sorted(cursor.marks.changed)
        cursor.marks.changed.clear()
        rows: list[Row] = [
            lane_row(name, self.number, emitter, cursor.marks.lanes[emitter])
            for name in cursor.projections
            for emitter in changed
        ]
        if rows:
            commit.upserts.append((tables.lane_marks, rows))

    def _add_deletions(self, commit: Commit) -> None:
        settings, dialect = self._tools.settings, self._tools.writer.dialect
        moved = {move.projection: move.log_time_ns for move in commit.moves}
        if commit.runs:
            commit.deletions += retention.expired_runs(
                self.number,
                moved["runs"],
                int(settings.runs_retention_days * DAY_NS),
                len(commit.runs) + 500,
                dialect,
            )
        log_time_ns = max(moved.values(), default=0)
        if log_time_ns < self._retention_due_ns:
            return
        self._retention_due_ns = log_time_ns + _RETENTION_EVERY_NS
        for name, at_ns in moved.items():
            key = (self.number, self._positions[name].generation)
            commit.deletions += retention.passed_hours(self._tools.writer, name, key, at_ns, self._calendar)
            commit.deletions += retention.expired_buckets(name, self.number, at_ns)
        commit.deletions += retention.expired_lanes(self.number, log_time_ns, self.log_start_ns)
        if "contents" in moved:
            kept_ns = int(settings.contents_retention_days * DAY_NS)
            commit.deletions.append(retention.expired_contents(self.number, moved["contents"], kept_ns))
        if "sessions" in moved:
            kept_ns = int(settings.sessions_retention_days * DAY_NS)
            generation = self._positions["sessions"].generation
            commit.deletions += retention.expired_sessions(self.number, generation, moved["sessions"], kept_ns)

    def commit(self, commit: Commit) -> None:
        """Writes what `fold` worked out."""
        self._tools.writer.commit(commit)

    def note_caught_up(self, at_ns: int) -> None:
        """Notes that all that was appended before an instant has been read, by projections at the log's end.

        Raises:
            FencedError: another worker owns the partition; forget this object.
            StoreError: nothing was written.
        """
        writer = self._tools.writer
        with writer.transaction():
            for cursor in self.cursors:
                for name in cursor.projections:
                    epoch = self._positions[name].epoch
                    note_caught_up(writer, self.number, name, cursor.next_offset, epoch, at_ns)

    def begin_incarnation(self, log_start: int, now_ns: int) -> None:
        """Goes to the start of a log that was made again, with a new incarnation. Figures and marks are kept."""
        self._jump("recreated", list(self._positions.values()), log_start, now_ns, new_incarnation=1)

    def skip_lost(self, log_start: int, now_ns: int) -> None:
        """Steps over what retention deleted before it was read, and records which offsets those were."""
        behind = [position for position in self._positions.values() if position.next_offset < log_start]
        self._jump("retention", behind, log_start, now_ns, new_incarnation=0)

    def _jump(self, kind: str, positions: list[Position], log_start: int, now_ns: int, new_incarnation: int) -> None:
        commit = Commit(self.number, [])
        incidents: list[Row] = []
        for position in positions:
            incarnation = position.incarnation + new_incarnation
            commit.moves.append(
                Move(
                    position.projection,
                    expected_offset=position.next_offset,
                    epoch=position.epoch,
                    next_offset=log_start,
                    fingerprint="",
                    log_time_ns=position.log_time_ns,
                    incarnation=incarnation,
                    # Else a worker that still reads the old log could commit, once the new one is as long.
                    next_epoch=position.epoch + 1,
                    # Who has read of the log would have met the lanes of before: those met later began in what is lost.
                    begun_at=log_start if position.next_offset == position.begun_at > 0 else 0,
                )
            )
            last = position.next_offset - 1 if kind == "recreated" else log_start - 1
            first = position.next_offset
            incidents.append((position.projection, self.number, incarnation, first, kind, last, now_ns))
            logger.error(
                "log_recreated" if kind == "recreated" else "log_lost_to_retention",
                projection=position.projection,
                partition=self.number,
                expected_offset=position.next_offset,
                log_start=log_start,
                incarnation=incarnation,
            )
        commit.new_rows.append((tables.log_incidents, incidents))
        self._tools.writer.commit(commit)


def _state(position: Position) -> tuple[int, str, bool]:
    return position.next_offset, position.fingerprint, position.begun_at > 0
