"""Errors: origins only, by group, and the ended roots that an error rate is made of.

One exception passes through every ancestor; the run whose child did not end with the same object is its origin.
"""

from __future__ import annotations

from typing import Any

from runtap_consumers.projections.batch import Batch
from runtap_consumers.projections.rollups import (
    ERROR_GROUPS,
    ERRORS,
    RECENT_ERRORS,
    RECENT_ERRORS_KEPT,
    ROOTS,
    Changes,
)
from runtap_consumers.units import minute_of

_STATUS_INDEX = {"ok": 0, "error": 1, "interrupted": 2, "cancelled": 3}

Rows = dict[tuple[Any, ...], list[Any]]


def fold_errors(batch: Batch, _cost_attributes: tuple[str, ...]) -> Changes:
    """Folds the failures and the roots of a batch."""
    roots: Rows = {}
    errors: Rows = {}
    groups: Rows = {}
    recent: Rows = {}
    for event, at_ns in batch.ended:
        if event.is_root:
            minute = minute_of(at_ns)
            root = roots.setdefault((minute, event.service, event.environment), [0, 0, 0, 0, None])
            root[_STATUS_INDEX[event.status]] += 1
            if event.status == "error" and root[4] is None:
                root[4] = event.run_id
        error = event.error
        if error is None or event.status != "error" or not error.origin:
            continue
        group = (event.service, event.environment, error.fingerprint)
        occurrence = [1, at_ns, at_ns, event.run_id]
        _occur(errors, (minute_of(at_ns), *group), [], occurrence)
        facts = [error.type, error.category, error.message, event.run_type]
        _occur(groups, group, [*facts, error.status_code, error.code, error.raised_at], occurrence)
        recent[(at_ns, event.run_id)] = [
            event.service,
            event.environment,
            event.run_type,
            event.name,
            error.type,
            error.category,
            error.message,
            error.status_code,
            error.code,
            error.raised_at,
        ]
    kept = dict(sorted(recent.items())[-RECENT_ERRORS_KEPT:])
    return Changes(
        minutes={ROOTS.name: roots, ERRORS.name: errors},
        rows={ERROR_GROUPS.name: groups, RECENT_ERRORS.name: kept},
    )


def _occur(rows: Rows, key: tuple[Any, ...], facts: list[Any], occurrence: list[Any]) -> None:
    row = rows.get(key)
    if row is None:
        rows[key] = [*facts, *occurrence]
        return
    index = len(facts)
    row[index] += 1
    row[index + 1] = min(row[index + 1], occurrence[1])
    row[index + 2] = max(row[index + 2], occurrence[2])
