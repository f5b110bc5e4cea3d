"""
Performance: counts, durations and latency sketches of every component (run type, name and model together).

A run's own status counts here, whether or not a child failed before it.
"""

from __future__ import annotations

from typing import Any

from runtap_consumers.batch import Batch, minute_of
from runtap_consumers.rollups import PERFORMANCE, SKEWED, Changes
from runtap_consumers.sketch import bucket_of

_STATUS_PLACE = {"ok": 1, "error": 2, "interrupted": 3, "cancelled": 4}


def fold_performance(batch: Batch, _cost_attributes: tuple[str, ...]) -> Changes:
    """
    Folds the ended runs of a batch. Sketch measures are lists of buckets.
    """
    minutes: dict[tuple[Any, ...], list[Any]] = {}
    for event, at_ns in batch.ended:
        model = (event.model or event.request_model or "") if event.run_type == "llm" else ""
        key = (minute_of(at_ns), event.service, event.environment, event.run_type, event.name, model)
        duration = event.duration_ns
        row = minutes.get(key)
        if row is None:
            row = minutes[key] = [0, 0, 0, 0, 0, 0, duration, duration, 0, 0, 0, [], []]
        row[0] += 1
        row[_STATUS_PLACE[event.status]] += 1
        row[5] += duration
        if duration < row[6]:
            row[6] = duration
        elif duration > row[7]:
            row[7] = duration
        row[11].append(bucket_of(duration))
        usage = event.usage
        if usage is not None and usage.output_tokens is not None and event.usage_source != "cache":
            row[8] += usage.output_tokens
            row[9] += duration
        first_token = event.time_to_first_token_ns
        if first_token is not None:
            row[10] += 1
            row[12].append(bucket_of(first_token))
    skewed: dict[tuple[Any, ...], list[Any]] = {}
    for service in batch.skewed_services:
        skewed.setdefault((service,), [0])[0] += 1
    return Changes(minutes={PERFORMANCE.name: minutes}, rows={SKEWED.name: skewed})
