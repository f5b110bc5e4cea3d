"""Ledger: what emitters say of themselves. What became of their events stands in every projection's lane marks; the
sums are worked out at read (`runtap_consumers.figures.ledger`).
"""

from __future__ import annotations

from typing import Any

import msgspec

from runtap_consumers.projections.batch import Batch, Report
from runtap_consumers.projections.rollups import (
    ABANDONED,
    EMITTER_COUNTS,
    EMITTER_REPORTS,
    REPORT_MINUTES,
    SKIPPED_TYPES,
    STRAYS,
    Changes,
)
from runtap_consumers.units import minute_of

_TENTH_NS = 10 * 10**9

Rows = dict[tuple[Any, ...], list[Any]]


def fold_ledger(batch: Batch, _cost_attributes: tuple[str, ...]) -> Changes:
    """Folds the reports of a batch, and counts the event types that this version does not know."""
    reports, counts, minutes, abandoned, skipped = Rows(), Rows(), Rows(), Rows(), Rows()
    for emitter, events, log_time in batch.newcomers:
        known = next((event for event in events if hasattr(event, "service")), None)
        if known is not None:
            reports[emitter, "", 0] = [0, log_time, 0, known.service, known.environment, "[]"]
    said = list(batch.reports)
    for event, log_time in batch.abandoned:
        abandoned[event.emitter, event.first, event.last] = [event.reason, log_time]
        if event.report is not None:
            # Its own number is not known, only that none is newer.
            said.append(Report(event.emitter, event.last, event.report, log_time))
    for report in said:
        _add_report(report, reports, counts)
        if report.is_new:
            minute = minute_of(report.log_time_ns)
            bit = 1 << (report.log_time_ns - minute) // _TENTH_NS
            minutes[(minute,)] = [minutes.get((minute,), [0])[0] | bit]
    for event_type in batch.skipped_types:
        skipped.setdefault((event_type,), [0])[0] += 1
    return Changes(
        rows={
            EMITTER_REPORTS.name: reports,
            EMITTER_COUNTS.name: counts,
            ABANDONED.name: abandoned,
            REPORT_MINUTES.name: minutes,
            SKIPPED_TYPES.name: skipped,
            STRAYS.name: {(kind,): [count] for kind, count in batch.strays.items()},
        }
    )


def _add_report(report: Report, reports: Rows, counts: Rows) -> None:
    emitter, number, event, log_time, _ = report
    key = (emitter, event.host, event.process_id)
    if key not in reports or reports[key][0] <= number:
        skipped = msgspec.json.encode(event.skipped).decode()
        reports[key] = [number, log_time, int(event.closing), event.service, event.environment, skipped]
    if not report.is_new:
        # Of an emitter that is two processes, only the one whose events count is believed.
        return
    said = {("dropped", reason): sum(kinds.values()) for reason, kinds in event.dropped.items()}
    said |= {("superseded", ""): event.superseded, ("content_dropped", ""): event.content_dropped}
    for (kind, reason), count in said.items():
        row = counts.setdefault((emitter, kind, reason), [0, 0])
        row[:] = max(row[0], count), max(row[1], log_time)
