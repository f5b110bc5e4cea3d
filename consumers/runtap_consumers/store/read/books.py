"""Reading what the ledger and `complete_to` are worked out from: lanes, positions, and what was said of emitters.

Plain data (`Books`); `figures.ledger` draws the conclusions.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import orjson
from sqlalchemy import Row, func, select

from runtap_consumers.store import tables
from runtap_consumers.store.positions import ranges_of
from runtap_consumers.store.read.snapshot import Snapshot
from runtap_consumers.units import MINUTE_NS

SILENCE_NS = 60 * 10**9
# Emitters report every 10 s. Log time over which nobody reported was an outage, which ages nobody.
_OUTAGE_NS = 30 * 10**9
_TENTH_NS = 10 * 10**9
# After an emitter's end: enough for a minute of reports, whatever lies between them.
_MINUTES_READ = 60

Range = tuple[int, int]
# Partition and emitter.
LaneKey = tuple[int, str]


class Abandoned(NamedTuple):
    """Numbers that somebody else said will never be sent, and when that was appended."""

    first: int
    last: int
    reason: str
    log_time_ns: int


class Incident(NamedTuple):
    """What happened to a partition's log, as one projection met it: `recreated`, `retention` (those offsets went
    unread) or `gone`.
    """

    projection: str
    partition: int
    incarnation: int
    kind: str
    first_offset: int
    last_offset: int
    at_ns: int


class Shared(NamedTuple):
    """Two processes under one emitter id: a snapshot of a process, restored twice.

    `processes`: hosts and process ids that reported; they may be one, since a snapshot has both in it.
    """

    emitter: str
    processes: tuple[tuple[str, int], ...]


@dataclass
class Emitter:
    """What is known of an emitter beside its lanes, by its newest report; and what others said of it.

    `dropped` is by reason; `skipped` are numbers that it announced as never to come, with the reason.
    """

    service: str = ""
    environment: str = ""
    host: str = ""
    process_id: int = 0
    is_closed: bool = False
    dropped: dict[str, int] = field(default_factory=dict)
    superseded: int = 0
    content_dropped: int = 0
    skipped: list[tuple[int, int, str]] = field(default_factory=list)
    abandoned: list[Abandoned] = field(default_factory=list)
    forgotten_ns: int = -1
    processes: list[tuple[str, int]] = field(default_factory=list)


@dataclass
class Books:
    """Everything known of emitters and projections.

    Attributes:
        lanes: by projection, rows of `lane_marks` by lane; `gaps` are ranges.
        positions: rows of `positions` by projection and partition.
        emitters: those of lanes, and those that others abandoned.
        incidents: oldest first.
        watched: by lane that closed nothing, when others had gone on reporting for a minute after its end.
        strays: what belongs to no lane, `foreign` and `impossible`.
    """

    lanes: dict[str, dict[LaneKey, Any]]
    positions: dict[tuple[str, int], Any]
    emitters: dict[str, Emitter]
    incidents: list[Incident] = field(default_factory=list)
    watched: dict[LaneKey, int] = field(default_factory=dict)
    strays: dict[str, int] = field(default_factory=dict)

    @cached_property
    def lane_keys(self) -> list[LaneKey]:
        """The lanes that any projection met."""
        return sorted({key for lanes in self.lanes.values() for key in lanes})

    @cached_property
    def newest_ns(self) -> int:
        """Up to when anything is known at all."""
        known = (max(row.log_time_ns, row.caught_up_at_ns) for row in self.positions.values())
        return max(known, default=0)

    @cached_property
    def said(self) -> dict[LaneKey, tuple[int, int]]:
        """The largest number known of each lane, and when that was appended. Of an emitter that was abandoned and never
        met nobody knows the partition: -1.
        """
        found = dict.fromkeys(self.lane_keys, (0, 0))
        for lanes in self.lanes.values():
            for key, lane in lanes.items():
                # Of two that know the same number, who heard it first knows when.
                mark, log_time_ns = found[key]
                if (lane.mark, -lane.log_time_ns) > (mark, -log_time_ns):
                    found[key] = lane.mark, lane.log_time_ns
        places = {emitter: partition for partition, emitter in self.lane_keys}
        for name, emitter in self.emitters.items():
            for one in emitter.abandoned:
                key = (places.get(name, -1), name)
                if one.last > found.get(key, (0, 0))[0]:
                    found[key] = one.last, one.log_time_ns
        return found

    @cached_property
    def keys_of(self) -> dict[str, list[LaneKey]]:
        """The lanes of each emitter, nearly always one."""
        found = defaultdict[str, list[LaneKey]](list)
        for key in self.said:
            found[key[1]].append(key)
        return found

    @cached_property
    def heard_ns(self) -> dict[LaneKey, int]:
        """When the newest frame of each lane was appended."""
        return {
            key: max(lanes[key].log_time_ns for lanes in self.lanes.values() if key in lanes) for key in self.lane_keys
        }

    def is_silent(self, key: LaneKey) -> bool:
        """Whether nothing was heard of a lane for longer than between two reports."""
        return self.heard_ns[key] + SILENCE_NS <= self.newest_ns

    def is_gone(self, projection: str, partition: int) -> bool:
        """Whether the topic has no such partition any more: nothing will come of it."""
        position = self.positions.get((projection, partition))
        return position is not None and (*key_of(position), position.next_offset) in self._gone

    @cached_property
    def _gone(self) -> set[tuple[Any, ...]]:
        return {(*key_of(one), one.first_offset) for one in self.incidents if one.kind == "gone"}

    def read_to_ns(self, projection: str, partition: int) -> int:
        """All that was appended to a partition before that instant, the projection has read; 0: not known. Of partition
        -1: in each partition.
        """
        if partition < 0:
            partitions = {number for _, number in self.positions}
            return min((self.read_to_ns(projection, number) for number in partitions), default=0)
        position = self.positions.get((projection, partition))
        if position is None:
            return 0
        return 2**63 - 1 if self.is_gone(projection, partition) else max(position.log_time_ns, position.caught_up_at_ns)


def key_of(row: Any) -> tuple[str, int, int]:
    """Which log a position or an incident is about, and whose."""
    return row.projection, row.partition, row.incarnation


def read_books(snapshot: Snapshot) -> Books:
    """All that is known of emitters, and of what was applied of them."""
    lanes: dict[str, dict[LaneKey, Any]] = {name: {} for name in snapshot.projections}
    for row in snapshot.connection.execute(snapshot.select_lanes()):
        lanes.setdefault(row.projection, {})[row.partition, row.emitter] = _Lane(*row[3:])._replace(
            gaps=ranges_of(row.gaps)
        )
    books = Books(
        lanes,
        {(row.projection, row.partition): row for row in snapshot.positions},
        _read_emitters(snapshot, {emitter for of in lanes.values() for _, emitter in of}),
        read_incidents(snapshot),
        strays={"impossible": 0, "foreign": 0, **read_counts(snapshot, "strays", "kind")},
    )
    for key, heard_ns in books.heard_ns.items():
        if books.is_silent(key) and not books.emitters[key[1]].is_closed:
            watched_ns = _watched_since(snapshot, heard_ns)
            if watched_ns is not None:
                books.watched[key] = watched_ns
    return books


class _Lane(NamedTuple):
    mark: int
    gaps: Any
    before: int
    forgotten: int
    quarantined: int
    repeats: int
    first_at_ns: int
    log_time_ns: int
    at_ns: int
    is_shared: int


def _read_emitters(snapshot: Snapshot, met: Iterable[str]) -> dict[str, Emitter]:
    emitters = defaultdict(Emitter, {name: Emitter() for name in met})
    for row in _live_rows(snapshot, "emitter_reports", "number"):
        # The newest comes last.
        emitter = emitters[row.emitter]
        emitter.service, emitter.environment, emitter.is_closed = row.service, row.environment, bool(row.closing)
        if row.number:
            emitter.host, emitter.process_id = row.host, row.process_id
            emitter.processes.append((row.host, row.process_id))
            emitter.skipped = [(one["first"], one["last"], one["reason"]) for one in orjson.loads(row.skipped)]
    for row in _live_rows(snapshot, "emitter_counts", "reason"):
        emitter = emitters[row.emitter]
        if row.kind == "dropped":
            emitter.dropped[row.reason] = max(row.total, emitter.dropped.get(row.reason, 0))
        else:
            setattr(emitter, row.kind, max(row.total, getattr(emitter, row.kind)))
    for row in _live_rows(snapshot, "abandoned_lanes", "last_number"):
        one = Abandoned(row.first_number, row.last_number, row.reason, row.log_time_ns)
        emitters[row.emitter].abandoned.append(one)
        emitters[row.emitter].is_closed = True
    for row in snapshot.connection.execute(select(tables.forgotten_emitters)):
        if row.emitter in emitters:
            emitters[row.emitter].forgotten_ns = row.heard_at_ns
    return emitters


def _live_rows(snapshot: Snapshot, name: str, order: str) -> Iterable[Row[Any]]:
    table = tables.metadata.tables[name]
    return snapshot.connection.execute(select(table).where(snapshot.is_live(table)).order_by(table.c[order]))


def _watched_since(snapshot: Snapshot, heard_ns: int) -> int | None:
    """When others had gone on for a minute after an instant, in steps that are no outage; `None`: they had not."""
    table = tables.metadata.tables["report_minutes"]
    bits = [func.max(table.c.tens.bitwise_and(1 << bit)) for bit in range(6)]
    minutes = (
        select(table.c.bucket_ns, *bits)
        .where(table.c.bucket_ns > heard_ns - MINUTE_NS, snapshot.is_live(table))
        .group_by(table.c.bucket_ns)
        .order_by(table.c.bucket_ns)
        .limit(_MINUTES_READ)
    )
    rows = snapshot.connection.execute(minutes).all()
    tenths = {minute + bit * _TENTH_NS for minute, *tens in rows for bit in range(6) if tens[bit]}
    before, seen_ns = heard_ns, 0
    for tenth in sorted(tenth for tenth in tenths if tenth > heard_ns):
        seen_ns += tenth - before if tenth - before <= _OUTAGE_NS else 0
        before = tenth
        if seen_ns >= SILENCE_NS:
            return int(tenth)
    return None


def read_shared_emitters(snapshot: Snapshot) -> list[Shared]:
    """Emitters that are more than one process."""
    lanes = tables.lane_marks.c
    at_once = set(snapshot.connection.execute(select(lanes.emitter).where(lanes.is_shared == 1)).scalars())
    processes = defaultdict[str, set[tuple[str, int]]](set)
    for row in _live_rows(snapshot, "emitter_reports", "emitter"):
        if row.number:
            processes[row.emitter].add((row.host, row.process_id))
    return [
        Shared(emitter, tuple(sorted(processes[emitter])))
        for emitter in sorted(at_once | processes.keys())
        if emitter in at_once or len(processes[emitter]) > 1
    ]


def read_incidents(snapshot: Snapshot) -> list[Incident]:
    """What happened to the log, oldest first."""
    incidents = tables.log_incidents.c
    statement = select(*(incidents[name] for name in Incident._fields))
    order = (incidents.at_ns, incidents.partition, incidents.projection)
    return [Incident._make(row) for row in snapshot.connection.execute(statement.order_by(*order))]


def read_counts(snapshot: Snapshot, table_name: str, key: str) -> dict[str, int]:
    """The sums of a table of counts: `skipped_types` by `type`, `skewed_events` by `service`, `strays` by `kind`."""
    table = tables.metadata.tables[table_name]
    statement = (
        select(table.c[key], func.sum(table.c.count))
        .where(snapshot.is_live(table))
        .group_by(table.c[key])
        .order_by(table.c[key])
    )
    return {name: int(count) for name, count in snapshot.connection.execute(statement)}
