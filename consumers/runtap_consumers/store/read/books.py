"""Reading what the ledger and `complete_to` are worked out from: lanes, positions, and what was said of emitters.

Plain data (`Books`); `figures.ledger` draws the conclusions.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate, pairwise
from typing import Any

import orjson
from sqlalchemy import BigInteger, Row, bindparam, func, select

from runtap_consumers.projections.lane_marks import MOST_UNHEARD, LaneMark
from runtap_consumers.store import tables
from runtap_consumers.store.positions import lane_of
from runtap_consumers.store.read.snapshot import Snapshot, read_counts
from runtap_consumers.units import MINUTE_NS
from runtap_schemas.events import PARTITION_GONE

SILENCE_NS = 60 * 10**9
# Emitters report every 10 s. Log time over which nobody reported was an outage, which ages nobody.
_OUTAGE_NS = 30 * 10**9
_TENTH_NS = 10 * 10**9
# After an emitter's end: enough for a minute of reports where others report all the time, and nearly always.
_MINUTES_READ = (4, 60)

Range = tuple[int, int]
# Partition and emitter. Of one that was given up and never met nobody knows the partition: NOWHERE.
LaneKey = tuple[int, str]
NOWHERE = -1


@dataclass(slots=True)
class EmitterFacts:
    """What is known of an emitter beside its lanes, by its newest report; and what others said of it.

    `dropped` is by reason. `announced`: numbers that it skipped, or that somebody gave up, with the reason; the largest
    of the latter is `given_up`, appended at `given_up_ns`. `processes`: hosts and process ids that reported.
    `is_struck`: somebody said that it is none of ours, and belongs to no sum.
    """

    service: str = ""
    environment: str = ""
    host: str = ""
    process_id: int = 0
    is_closed: bool = False
    dropped: dict[str, int] = field(default_factory=dict)
    superseded: int = 0
    content_dropped: int = 0
    announced: list[tuple[int, int, str]] = field(default_factory=list)
    given_up: int = 0
    given_up_ns: int = 0
    forgotten_ns: int = -1
    is_struck: bool = False
    processes: set[tuple[str, int]] = field(default_factory=set)


@dataclass
class Books:
    """Everything known of emitters and projections.

    Attributes:
        lanes: by projection and lane.
        positions: rows of `positions` by projection and partition.
        emitters: those of lanes, and those that others gave up.
        incidents: rows of `log_incidents`, oldest first.
        watched: by lane that closed nothing, when others had gone on reporting for a minute after its end.
        strays: what belongs to no lane, `foreign` and `impossible`.
        forgotten: rows of `forgotten_emitters`, oldest first.
    """

    lanes: dict[str, dict[LaneKey, LaneMark]]
    positions: dict[tuple[str, int], Any]
    emitters: dict[str, EmitterFacts]
    incidents: list[Any] = field(default_factory=list)
    watched: dict[LaneKey, int] = field(default_factory=dict)
    strays: dict[str, int] = field(default_factory=dict)
    forgotten: list[Any] = field(default_factory=list)

    @cached_property
    def met(self) -> dict[LaneKey, list[LaneMark]]:
        """Each lane as the projections that met it know it."""
        found = defaultdict[LaneKey, list[LaneMark]](list)
        for lanes in self.lanes.values():
            for key, lane in lanes.items():
                found[key].append(lane)
        return found

    @cached_property
    def heard_ns(self) -> dict[LaneKey, int]:
        """When the newest frame of each lane was appended."""
        return {key: max(lane.log_time_ns for lane in lanes) for key, lanes in self.met.items()}

    @cached_property
    def said(self) -> dict[LaneKey, tuple[int, int]]:
        """The largest number known of each lane, and when it was appended: by who heard it first."""
        found = {key: max((lane.mark, -lane.log_time_ns) for lane in lanes) for key, lanes in self.met.items()}
        partitions = {emitter: partition for partition, emitter in found}
        for name, emitter in self.emitters.items():
            key = (partitions.get(name, NOWHERE), name)
            if emitter.given_up > found.get(key, (0, 0))[0]:
                found[key] = emitter.given_up, -emitter.given_up_ns
        return {key: (number, -negative_ns) for key, (number, negative_ns) in found.items()}

    @cached_property
    def keys_of(self) -> dict[str, list[LaneKey]]:
        """The lanes of each emitter, nearly always one."""
        found = defaultdict[str, list[LaneKey]](list)
        for key in self.said:
            found[key[1]].append(key)
        return found

    @cached_property
    def shared(self) -> dict[str, tuple[tuple[str, int], ...]]:
        """Emitters that are two processes, a snapshot restored twice, with the hosts and process ids that are known of
        them: often one, since a snapshot has both in it.
        """
        at_once = {emitter for (_, emitter), lanes in self.met.items() if any(lane.is_shared for lane in lanes)}
        known = {name: tuple(sorted(one.processes)) for name, one in sorted(self.emitters.items())}
        return {name: processes for name, processes in known.items() if name in at_once or len(processes) > 1}

    @cached_property
    def silent(self) -> set[LaneKey]:
        """Lanes of which nothing was heard for long, whatever the reason."""
        newest_ns = max((max(at.log_time_ns, at.caught_up_at_ns) for at in self.positions.values()), default=0)
        return {key for key, heard_ns in self.heard_ns.items() if heard_ns + SILENCE_NS <= newest_ns}

    @cached_property
    def _gone(self) -> set[tuple[str, int]]:
        gone = (one for one in self.incidents if one.kind == "gone")
        places = {(one.projection, one.partition, one.incarnation, one.first_offset): one.at_ns for one in gone}
        return {
            key
            for key, at in self.positions.items()
            # One that never held a record, and is back, shows in that alone.
            if places.get((*key, at.incarnation, at.next_offset), -1) >= at.caught_up_at_ns
        }

    def is_gone(self, projection: str, partition: int) -> bool:
        """Whether the topic has no such partition any more: nothing will come of it. A projection that began later has
        no position there: the others say so.
        """
        if (projection, partition) in self.positions:
            return (projection, partition) in self._gone
        others = [key for key in self.positions if key[1] == partition]
        return bool(others) and self._gone.issuperset(others)

    def read_to_ns(self, projection: str, partition: int) -> int:
        """All that was appended to a partition before that instant, the projection has read; 0: not known. NOWHERE: in
        each partition.
        """
        if partition == NOWHERE:
            partitions = {number for _, number in self.positions}
            return min((self.read_to_ns(projection, number) for number in partitions), default=0)
        if self.is_gone(projection, partition):
            return 2**63 - 1
        at = self.positions.get((projection, partition))
        return 0 if at is None else int(max(at.log_time_ns, at.caught_up_at_ns))


def read_books(snapshot: Snapshot) -> Books:
    """All that is known of emitters, and of what was applied of them."""
    lanes: dict[str, dict[LaneKey, LaneMark]] = {name: {} for name in snapshot.projections}
    for row in snapshot.connection.execute(snapshot.select_lanes()).all():
        lanes.setdefault(row.projection, {})[row.partition, row.emitter] = lane_of(row)
    # Each once, in the order in which they were met: every projection has a lane of it.
    emitters = dict.fromkeys(emitter for of in lanes.values() for _, emitter in of)
    incidents = tables.log_incidents.c
    oldest_first = (incidents.at_ns, incidents.partition, incidents.projection)
    books = Books(
        lanes,
        {(row.projection, row.partition): row for row in snapshot.positions},
        defaultdict(EmitterFacts, {emitter: EmitterFacts() for emitter in emitters}),
        list(snapshot.connection.execute(select(tables.log_incidents).order_by(*oldest_first))),
        strays={"impossible": 0, "foreign": 0, **read_counts(snapshot, "strays", "kind")},
    )
    _read_reports(snapshot, books.emitters)
    _read_abandoned(snapshot, books)
    by_time = tables.forgotten_emitters.c.forgotten_at_ns, tables.forgotten_emitters.c.emitter
    books.forgotten += snapshot.connection.execute(select(tables.forgotten_emitters).order_by(*by_time))
    for row in books.forgotten:
        if row.emitter in books.emitters:
            emitter = books.emitters[row.emitter]
            emitter.forgotten_ns, emitter.is_struck = row.heard_at_ns, bool(row.is_struck)
    unclosed = {key: books.heard_ns[key] for key in books.silent if not books.emitters[key[1]].is_closed}
    reports = _Reports(snapshot, min(unclosed.values(), default=0))
    for key, heard_ns in unclosed.items():
        watched_ns = reports.watched_since(heard_ns)
        if watched_ns is not None:
            books.watched[key] = watched_ns
    return books


def _read_reports(snapshot: Snapshot, emitters: dict[str, EmitterFacts]) -> None:
    # The newest report comes last.
    for row in _live_rows(snapshot, "emitter_reports", "number"):
        emitter = emitters[row.emitter]
        emitter.service, emitter.environment, emitter.is_closed = row.service, row.environment, bool(row.closing)
        if row.number:
            emitter.host, emitter.process_id = row.host, row.process_id
            emitter.processes.add((row.host, row.process_id))
            emitter.announced = [(one["first"], one["last"], one["reason"]) for one in orjson.loads(row.skipped)]
    for row in _live_rows(snapshot, "emitter_counts", "reason"):
        emitter = emitters[row.emitter]
        if row.kind == "dropped":
            emitter.dropped[row.reason] = max(row.total, emitter.dropped.get(row.reason, 0))
        else:
            setattr(emitter, row.kind, max(row.total, getattr(emitter, row.kind)))


def _read_abandoned(snapshot: Snapshot, books: Books) -> None:
    newest = dict[str, LaneMark]()
    for (_, name), lanes in books.met.items():
        newest[name] = max(lanes, key=lambda lane: (lane.mark, -lane.log_time_ns))
    for row in _live_rows(snapshot, "abandoned_lanes", "last_number"):
        lane = newest.get(row.emitter)
        if row.last_number > MOST_UNHEARD if lane is None else not lane.can_reach(row.last_number, row.log_time_ns):
            # No process came so far: whoever says so is not believed.
            books.strays["impossible"] += 1
            continue
        emitter = books.emitters[row.emitter]
        emitter.announced.append((row.first_number, row.last_number, row.reason))
        # Where single events were refused, or the oldest had waited too long, the rest of a spool is still sent.
        emitter.is_closed |= row.reason == PARTITION_GONE and (lane is None or lane.log_time_ns <= row.log_time_ns)
        emitter.given_up, emitter.given_up_ns = row.last_number, row.log_time_ns


def _live_rows(snapshot: Snapshot, name: str, order: str) -> Iterable[Row[Any]]:
    table = tables.metadata.tables[name]
    return snapshot.connection.execute(select(table).where(snapshot.is_live(table)).order_by(table.c[order]))


class _Reports:
    """When emitters reported, since an instant."""

    def __init__(self, snapshot: Snapshot, since_ns: int) -> None:
        self._snapshot, self._since_ns = snapshot, since_ns
        table = tables.metadata.tables["report_minutes"]
        bucket = table.c.bucket_ns
        bits = [func.max(table.c.tens.bitwise_and(1 << bit)) for bit in range(6)]
        chosen = select(bucket, *bits).where(bucket > bindparam("after_ns", type_=BigInteger), snapshot.is_live(table))
        chosen = chosen.group_by(bucket).order_by(bucket)
        # Made once: they are asked for each emitter that vanished.
        self._chosen = {minutes: chosen.limit(minutes) for minutes in (*_MINUTES_READ, None)}

    def watched_since(self, heard_ns: int) -> int | None:
        """When others had gone on for a minute after an instant, in steps that are no outage; `None`: they had not."""
        for minutes in _MINUTES_READ:
            tenths = self._read(heard_ns, minutes)
            found = _minute_later(tenths, _steps(tenths), heard_ns)
            if found is not None or len({tenth // MINUTE_NS for tenth in tenths}) < minutes:
                return found
        # A job that runs for a moment now and then, as at night, is no minute of reports.
        return _minute_later(*self._all, heard_ns)

    @cached_property
    def _all(self) -> tuple[list[int], list[int]]:
        tenths = self._read(self._since_ns, None)
        return tenths, _steps(tenths)

    def _read(self, since_ns: int, minutes: int | None) -> list[int]:
        after = {"after_ns": since_ns - MINUTE_NS}
        rows = self._snapshot.connection.execute(self._chosen[minutes], after).all()
        return [minute + bit * _TENTH_NS for minute, *tens in rows for bit in range(6) if tens[bit]]


def _steps(tenths: list[int]) -> list[int]:
    """How much of the time up to each of them is no outage."""
    steps = (after - before for before, after in pairwise(tenths))
    return list(accumulate((step if step <= _OUTAGE_NS else 0 for step in steps), initial=0))


def _minute_later(tenths: list[int], steps: list[int], heard_ns: int) -> int | None:
    first = bisect_right(tenths, heard_ns)
    if first == len(tenths):
        return None
    begun_ns = tenths[first] - heard_ns
    wanted_ns = SILENCE_NS + steps[first] - (begun_ns if begun_ns <= _OUTAGE_NS else 0)
    found = bisect_left(steps, wanted_ns, first)
    return tenths[found] if found < len(tenths) else None
