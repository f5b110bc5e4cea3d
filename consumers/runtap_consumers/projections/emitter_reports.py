"""The projection `ledger`: what emitters report of themselves, one row a report. Sums are worked out at read
(`runtap_consumers.figures.completeness`), with the lane marks of every projection.
"""

from __future__ import annotations

from typing import Any

import msgspec
import orjson

from runtap_consumers.projections.batch import Batch
from runtap_consumers.projections.rollups import EMITTER_REPORTS, REPORT_CHAINS, SKIPPED_TYPES, Changes
from runtap_schemas import EmitterReported


def fold_ledger(batch: Batch, _cost_attributes: tuple[str, ...]) -> Changes:
    """Folds the reports of a batch, and counts the event types that this version does not know."""
    reports = {(report.emitter, report.number): _row(report, log_time) for report, log_time in batch.reports}
    # Repeats as well: of two processes under one emitter id, the second's reports look like repeats.
    chains = {
        (report.emitter, report.number, report.report_id): [
            report.previous_report_id,
            report.host,
            report.process_id,
            log_time,
        ]
        for report, log_time in (*batch.repeated_reports, *batch.reports)
        if report.report_id is not None
    }
    skipped: dict[tuple[Any, ...], list[Any]] = {}
    for event_type in batch.skipped_types:
        skipped.setdefault((event_type,), [0])[0] += 1
    return Changes(rows={EMITTER_REPORTS.name: reports, REPORT_CHAINS.name: chains, SKIPPED_TYPES.name: skipped})


def _row(report: EmitterReported, log_time_ns: int) -> list[Any]:
    return [
        report.service,
        report.environment,
        report.host,
        report.process_id,
        log_time_ns,
        # Bounded by the broker's clock, or an emitter whose clock is fast would vouch for the future.
        min(report.complete_at_ns, log_time_ns - report.complete_age_ns),
        int(report.closing),
        report.captured,
        report.superseded,
        report.content_dropped,
        orjson.dumps(report.dropped).decode(),
        orjson.dumps(report.adopted).decode(),
        orjson.dumps(report.lanes, option=orjson.OPT_NON_STR_KEYS).decode(),
        msgspec.json.encode(report.skipped).decode(),
        msgspec.json.encode(report.replayed).decode(),
    ]
