"""Performance: counts, durations and latency sketches of every component (run type, name and model together).

A run's own status counts here, whether or not a child failed before it.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

from runtap_consumers.projections.batch import Batch, Timed
from runtap_consumers.projections.rollups import (
    DURATION_BOUNDS_NS,
    MODEL_NAMES,
    PERFORMANCE,
    RUN_DURATIONS,
    SKEWED,
    Changes,
)
from runtap_consumers.projections.sketch import bucket_of
from runtap_consumers.units import minute_of
from runtap_schemas import RunEnded

_STATUSES: tuple[str, ...] = ("ok", "error", "interrupted", "cancelled")
_TIMED = ("llm", "chain")
# Finish reasons as providers name them: OpenAI, Anthropic, Google, Bedrock, Ollama.
_CUT_OFF = {"length", "max_tokens", "max_output_tokens", "model_length", "model_context_window_exceeded"}
_REFUSED = {"content_filter", "content_filtered", "refusal", "safety", "guardrail_intervened", "prohibited_content"}
# Of a histogram: the sum of durations comes after those up to each bound and those above the last.
_TOTAL = len(DURATION_BOUNDS_NS) + 1


def fold_performance(batch: Batch, _cost_attributes: tuple[str, ...]) -> Changes:
    """Folds the ended runs of a batch. Sketch measures are lists of buckets."""
    runs: dict[tuple[Any, ...], list[RunEnded]] = defaultdict(list)
    names: dict[tuple[Any, ...], list[Any]] = {}
    timed: dict[tuple[Any, ...], list[Any]] = {}
    for (service, environment, run_type, name, _, request_model, answering_model), ended in batch.kinds.items():
        model = (answering_model or request_model or "") if run_type == "llm" else ""
        if model != (request_model or model):
            names.setdefault((request_model, model), [0])[0] += len(ended)
        if run_type in _TIMED:
            key = (service, environment, run_type, model)
            _add_durations(timed, (*key, "end"), [event.duration_ns for event, _ in ended])
            if run_type == "llm":
                _add_durations(timed, (*key, "first_token"), _first_tokens(event for event, _ in ended))
        for minute, events in _by_minute(ended).items():
            runs[(minute, service, environment, run_type, name, model)] += events
    skewed: dict[tuple[Any, ...], list[Any]] = {}
    for service in batch.skewed_services:
        skewed.setdefault((service,), [0])[0] += 1
    return Changes(
        minutes={PERFORMANCE.name: {key: _measures(events) for key, events in runs.items()}},
        rows={SKEWED.name: skewed, MODEL_NAMES.name: names, RUN_DURATIONS.name: timed},
    )


def _add_durations(timed: dict[tuple[Any, ...], list[Any]], key: tuple[Any, ...], durations: list[int]) -> None:
    if durations:
        histogram = timed.setdefault(key, [0] * (_TOTAL + 1))
        histogram[_TOTAL] += sum(durations)
        for duration_ns in durations:
            histogram[bisect_left(DURATION_BOUNDS_NS, duration_ns)] += 1


def _first_tokens(events: Iterable[RunEnded]) -> list[int]:
    return [event.time_to_first_token_ns for event in events if event.time_to_first_token_ns is not None]


def _by_minute(ended: list[Timed]) -> dict[int, list[RunEnded]]:
    found: dict[int, list[RunEnded]] = defaultdict(list)
    for event, at_ns in ended:
        found[minute_of(at_ns)].append(event)
    return found


def _measures(events: list[RunEnded]) -> list[Any]:
    """In the order of `rollups.PERFORMANCE`."""
    durations = [event.duration_ns for event in events]
    statuses: list[str] = [event.status for event in events]
    answers = [
        (event.duration_ns, event.usage.output_tokens)
        for event in events
        if event.usage is not None and event.usage.output_tokens is not None and event.usage_source != "cache"
    ]
    first_tokens = _first_tokens(events)
    reasons = [event.finish_reason.lower() for event in events if event.finish_reason is not None]
    return [
        len(events),
        *map(statuses.count, _STATUSES),
        sum(durations),
        min(durations),
        max(durations),
        sum(tokens for _, tokens in answers),
        sum(duration for duration, _ in answers),
        len(first_tokens),
        sum(reason in _CUT_OFF for reason in reasons),
        sum(reason in _REFUSED for reason in reasons),
        list(map(bucket_of, durations)),
        list(map(bucket_of, first_tokens)),
    ]
