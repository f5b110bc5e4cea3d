"""Reading why events are missing, and whose: announced skips, emitter ids in use twice, incidents of the log."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

import orjson
from sqlalchemy import Row, and_, func, or_, select

from runtap_consumers.store import tables
from runtap_consumers.store.read.emitters import Range
from runtap_consumers.store.read.snapshot import Snapshot


@dataclass
class LaneFacts:
    """What a projection knows of an emitter's lanes: `gaps` by partition, and how many numbers are lost for good."""

    gaps: dict[int, list[Range]] = field(default_factory=dict)
    marks: dict[int, int] = field(default_factory=dict)
    forgotten: int = 0
    repeats: int = 0


@dataclass(frozen=True)
class Skip:
    """Numbers that an emitter announced as never to come, and why."""

    emitter: str
    partition: int
    first: int
    last: int
    reason: str


@dataclass(frozen=True)
class EmitterFacts:
    """Who an emitter is, by its newest report."""

    service: str
    environment: str
    host: str
    process_id: int
    content_dropped: int


@dataclass(frozen=True)
class Fork:
    """Two processes that report under one emitter id: a snapshot of a process, restored twice.

    Attributes:
        number: of the first report that shows it, by itself or by the one after it.
        processes: hosts and process ids that reported.
    """

    emitter: str
    number: int
    processes: tuple[tuple[str, int], ...]


@dataclass(frozen=True)
class Incident:
    """An incident of a partition's log, as one projection met it: `recreated`, or `retention` (offsets gone unread)."""

    projection: str
    partition: int
    incarnation: int
    kind: str
    first_offset: int
    last_offset: int
    at_ns: int


def read_lane_facts(snapshot: Snapshot) -> dict[tuple[str, str], LaneFacts]:
    """Gaps and repeats by (projection, emitter)."""
    facts: dict[tuple[str, str], LaneFacts] = defaultdict(LaneFacts)
    for row in snapshot.connection.execute(snapshot.select_lanes()):
        lanes = facts[row.projection, row.emitter]
        lanes.marks[row.partition] = row.mark
        lanes.gaps[row.partition] = [(first, last) for first, last in orjson.loads(row.gaps)]
        lanes.forgotten += row.forgotten
        lanes.repeats += row.repeats
    return facts


def read_emitter_facts(snapshot: Snapshot) -> tuple[dict[str, EmitterFacts], list[Skip]]:
    """What each emitter's newest report says of it, and all that the newest reports announce as skipped."""
    table = tables.metadata.tables["emitter_reports"]
    live = snapshot.is_live(table)
    newest = (
        select(table.c.emitter, func.max(table.c.number).label("number"))
        .where(live)
        .group_by(table.c.emitter)
        .subquery()
    )
    statement = (
        select(table)
        .join(newest, (table.c.emitter == newest.c.emitter) & (table.c.number == newest.c.number))
        .where(live)
    )
    facts: dict[str, EmitterFacts] = {}
    skips: list[Skip] = []
    for row in snapshot.connection.execute(statement):
        facts[row.emitter] = EmitterFacts(
            row.service, row.environment, row.host, row.process_id, row.content_dropped or 0
        )
        skips += [
            Skip(one["emitter"], one["partition"], one["first"], one["last"], one["reason"])
            for one in orjson.loads(row.skipped)
        ]
    return facts, skips


def read_forks(snapshot: Snapshot) -> list[Fork]:
    """Emitters whose reports are no chain: two have one number, or one names another predecessor."""
    table = tables.metadata.tables["report_chains"]
    # Each report beside the one before it, in one pass: a join of the table with itself takes twenty times as long.
    in_order: Any = {"partition_by": table.c.emitter, "order_by": (table.c.number, table.c.report_id)}
    beside = (
        select(
            table,
            func.lag(table.c.number).over(**in_order).label("number_before"),
            func.lag(table.c.report_id).over(**in_order).label("report_id_before"),
        )
        .where(snapshot.is_live(table))
        .subquery()
    )
    one, before = beside.c, beside.c.number_before
    is_second = and_(before == one.number, one.report_id_before != one.report_id)
    is_no_successor = and_(before == one.number - 1, one.report_id_before != one.previous_report_id)
    broken = select(one.emitter, func.min(before)).where(or_(is_second, is_no_successor))
    first = broken.group_by(one.emitter).order_by(one.emitter)
    forks = []
    for emitter, number in snapshot.connection.execute(first).all():
        who = (table.c.host, table.c.process_id)
        rows = snapshot.connection.execute(
            select(*who).where(table.c.emitter == emitter, snapshot.is_live(table)).distinct().order_by(*who)
        )
        forks.append(Fork(emitter, number, tuple((row.host, row.process_id) for row in rows)))
    return forks


def read_incidents(snapshot: Snapshot) -> list[Incident]:
    """Incidents of the log, oldest first."""
    incidents = tables.log_incidents.c
    statement = select(tables.log_incidents).order_by(incidents.at_ns, incidents.partition, incidents.projection)
    return [_incident(row) for row in snapshot.connection.execute(statement)]


def read_counts(snapshot: Snapshot, table_name: str, key: str) -> dict[str, int]:
    """The sums of a table of counts: `skipped_types` by `type`, or `skewed_events` by `service`."""
    table = tables.metadata.tables[table_name]
    statement = (
        select(table.c[key], func.sum(table.c.count))
        .where(snapshot.is_live(table))
        .group_by(table.c[key])
        .order_by(table.c[key])
    )
    return {name: int(count) for name, count in snapshot.connection.execute(statement)}


def _incident(row: Row[Any]) -> Incident:
    return Incident(
        row.projection, row.partition, row.incarnation, row.kind, row.first_offset, row.last_offset, row.at_ns
    )
