"""Runs: one row of facts an ended run, and a row each for those that have not ended."""

from __future__ import annotations

from decimal import Decimal
from operator import attrgetter
from typing import Any

import msgspec

from runtap_consumers.projections.batch import Batch, Call, add_row
from runtap_consumers.projections.rollups import (
    OPEN_RUNS,
    RUN_IDENTITY,
    RUN_SCORES,
    SCORE_UNIT,
    SCORES,
    TOKEN_CLASSES,
    Changes,
)
from runtap_consumers.units import minute_of
from runtap_schemas import RunEnded

Rows = dict[tuple[Any, ...], list[Any]]
_encode = msgspec.json.Encoder().encode
_NO_USAGE = (None,) * len(TOKEN_CLASSES)
_tokens_of = attrgetter(*TOKEN_CLASSES)
_identity_of = attrgetter(*RUN_IDENTITY)


def fold_runs(batch: Batch, _cost_attributes: tuple[str, ...]) -> Changes:
    """Folds starts and ends. Rows name what the events said, whatever was capped elsewhere."""
    opened: dict[tuple[Any, ...], list[Any]] = {}
    for event, at_ns in batch.started:
        opened[(event.run_id,)] = [*_identity_of(event), at_ns, batch.log_time_ns]
    runs, ended = [], []
    for (ended_event, at_ns), call in zip(batch.ended_uncapped, batch.calls, strict=True):
        runs.append(_row(ended_event, at_ns, batch.log_time_ns, call))
        if opened.pop((ended_event.run_id,), None) is None:
            ended.append(ended_event.run_id)
    minutes, single = _fold_scores(batch)
    return Changes(
        minutes={SCORES.name: minutes},
        rows={OPEN_RUNS.name: opened, RUN_SCORES.name: single},
        runs=runs,
        ended_run_ids=ended,
    )


def _fold_scores(batch: Batch) -> tuple[Rows, Rows]:
    minutes: Rows = {}
    single: Rows = {}
    for event, at_ns in batch.scored:
        key = (minute_of(at_ns), event.service, event.environment, event.key, event.value or "")
        add_row(minutes, key, [1, int((Decimal(str(event.score or 0)) * SCORE_UNIT).to_integral_value())])
        score = None if event.score is None else str(event.score)
        single[(event.run_id, event.key, event.source, at_ns)] = [
            *(score, event.value, event.comment, event.service, event.environment),
            batch.log_time_ns,
        ]
    return minutes, single


def _row(event: RunEnded, at_ns: int, log_time_ns: int, call: Call | None) -> tuple[Any, ...]:
    # Written out: `attrgetter` takes a fifth longer, for every run.
    usage, error = event.usage, event.error
    return (
        log_time_ns,
        event.started_at_ns,
        at_ns,
        event.duration_ns,
        event.time_to_first_token_ns,
        event.run_id,
        event.parent_run_id,
        event.trace_id,
        event.session_id,
        event.user_id,
        event.service,
        event.environment,
        event.run_type,
        event.name,
        event.provider,
        event.request_model,
        event.model,
        event.service_tier,
        event.status,
        event.finish_reason,
        error.type if error else None,
        error.category if error else None,
        error.message if error else None,
        error.fingerprint if error else None,
        int(error.origin) if error else None,
        error.status_code if error else None,
        error.code if error else None,
        error.raised_at if error else None,
        event.usage_source,
        *(_NO_USAGE if usage is None else _tokens_of(usage)),
        call.price_set if call else None,
        call.price_class if call else None,
        call.cost_picodollars if call else None,
        _encode(event.tags).decode() if event.tags else "[]",
        _encode(event.metadata).decode() if event.metadata else "{}",
        event.root_name,
        event.model_source,
    )
