"""Reading what the ledger and `complete_to` are worked out from.

Emitters report every 10 s for as long as they live, so only those reports are read that matter: the newest, older ones
until one is found that the projections have caught up with, and the times of those that tell whether an emitter fell
silent while others went on.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

import orjson
from sqlalchemy import Row, and_, func, select

from runtap_consumers.store import tables
from runtap_consumers.store.read.emitters import SILENCE_NS, Books, LaneState, Range, Report
from runtap_consumers.store.read.snapshot import Snapshot

_REPORTS_A_PAGE = 50
# Within so much log time after an emitter's last sign of life, or before now, others must have reported for a minute.
_WATCHED_NS = 10 * SILENCE_NS


def read_books(snapshot: Snapshot, projections: Sequence[str]) -> Books:
    """All that is known of emitters and of what was applied of them.

    Args:
        snapshot: what to read.
        projections: those for which `complete_to` will be worked out.
    """
    lanes = [_lane(row) for row in snapshot.connection.execute(snapshot.select_lanes())]
    reports = _read_newest(snapshot)
    books = Books(lanes, reports, snapshot.positions)
    older = _read_older(snapshot, books, projections)
    times = _read_times(snapshot, books)
    return Books(lanes, [*reports, *older], snapshot.positions, times) if older or times else books


def _read_newest(snapshot: Snapshot) -> list[Report]:
    table = tables.metadata.tables["emitter_reports"]
    emitters = select(tables.lane_marks.c.emitter).distinct().subquery()
    inner = table.alias()
    newest = select(func.max(inner.c.number)).where(inner.c.emitter == emitters.c.emitter).scalar_subquery()
    of_emitter = and_(table.c.emitter == emitters.c.emitter, table.c.number == newest)
    statement = select(table).select_from(emitters.join(table, of_emitter)).where(snapshot.is_live(table))
    return [_report(row) for row in snapshot.connection.execute(statement)]


def _read_older(snapshot: Snapshot, books: Books, projections: Sequence[str]) -> list[Report]:
    """Reports of emitters that are ahead of a projection, back to one that each projection has caught up with."""
    table = tables.metadata.tables["emitter_reports"]
    found: list[Report] = []
    for emitter, report in books.newest.items():
        # Where a projection knows nothing of the emitter, it has caught up with no report.
        behind = [name for name in projections if books.lanes_of(name, emitter)]
        lowest = report
        while True:
            behind = [name for name in behind if not books.is_covered(name, lowest)]
            if not behind or lowest.number == 0:
                break
            statement = (
                select(table)
                .where(table.c.emitter == emitter, table.c.number < lowest.number, snapshot.is_live(table))
                .order_by(table.c.number.desc())
                .limit(_REPORTS_A_PAGE)
            )
            page = [_report(row) for row in snapshot.connection.execute(statement)]
            if not page:
                break
            found += page
            lowest = page[-1]
    return found


def _read_times(snapshot: Snapshot, books: Books) -> list[tuple[str, int]]:
    """Who reported when, around the ends of emitters that may have fallen silent."""
    newest = snapshot.newest_log_time_ns
    silent_since = [
        heard
        for emitter, heard in books.last_heard_ns.items()
        if heard + SILENCE_NS <= newest and not books.is_closed(emitter)
    ]
    if not silent_since:
        return []
    reports = tables.metadata.tables["emitter_reports"].c
    times: set[tuple[str, int]] = set()
    for begin, end in _merged((since, since + _WATCHED_NS) for since in [*silent_since, newest - _WATCHED_NS]):
        statement = select(reports.emitter, reports.log_time_ns).where(
            reports.log_time_ns > begin, reports.log_time_ns <= end
        )
        times.update((emitter, log_time_ns) for emitter, log_time_ns in snapshot.connection.execute(statement))
    return list(times)


def _merged(ranges: Iterable[Range]) -> list[Range]:
    merged: list[Range] = []
    for begin, end in sorted(ranges):
        if merged and begin <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((begin, end))
    return merged


def _lane(row: Row[Any]) -> LaneState:
    return LaneState(
        row.projection,
        row.partition,
        row.emitter,
        row.mark,
        row.forgotten + sum(last - first + 1 for first, last in orjson.loads(row.gaps)),
        row.before,
        row.quarantined,
        row.first_at_ns,
        row.last_log_time_ns,
    )


def _report(row: Row[Any]) -> Report:
    skipped: dict[tuple[str, int], list[Range]] = defaultdict(list)
    for one in orjson.loads(row.skipped):
        skipped[one["emitter"], one["partition"]].append((one["first"], one["last"]))
    return Report(
        emitter=row.emitter,
        number=row.number,
        log_time_ns=row.log_time_ns,
        complete_at_ns=row.complete_at_ns,
        captured=row.captured,
        closing=bool(row.closing),
        superseded=row.superseded,
        dropped={reason: sum(kinds.values()) for reason, kinds in orjson.loads(row.dropped).items()},
        adopted=orjson.loads(row.adopted),
        lanes={int(partition): last for partition, last in orjson.loads(row.lanes).items()},
        skipped={lane_key: tuple(ranges) for lane_key, ranges in skipped.items()},
        replayed={(one["emitter"], one["partition"]): one["last"] for one in orjson.loads(row.replayed)},
    )
