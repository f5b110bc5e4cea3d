"""What was thought of runs: by what was judged, by model and by name."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

from runtap_consumers.figures.sections import Feedback, ScoresBy
from runtap_consumers.figures.shapes import pick
from runtap_consumers.store.read.ranges import TimeRange
from runtap_consumers.store.read.scores import read_scores, read_scores_by
from runtap_consumers.store.read.snapshot import Snapshot

_DECIMALS = 6


def mean_text(total: Decimal, count: int) -> str | None:
    """A mean to six decimals; `None` of nothing."""
    if not count:
        return None
    text = format(round(total / count, _DECIMALS), "f")
    return text.rstrip("0").rstrip(".") if "." in text else text


def describe_feedback(snapshot: Snapshot, time_range: TimeRange, service: str | None) -> Feedback:
    """Feedback of a range."""
    within = (time_range.from_ns, time_range.to_ns, service)
    return {
        "by_key": [
            {
                "service": each.service or None,
                "environment": each.environment or None,
                "key": each.key,
                "value": each.value or None,
                "count": each.count,
                "mean": None if each.value else mean_text(each.total, each.count),
            }
            for each in read_scores(snapshot, time_range, service)
        ],
        "by_model": _by(snapshot, "model", *within),
        "by_name": _by(snapshot, "name", *within),
    }


def _by(snapshot: Snapshot, column: str, from_ns: int, to_ns: int, service: str | None) -> list[ScoresBy]:
    rows: list[dict[str, Any]] = [
        {"name": name, "key": key, "count": count, "mean": mean_text(total, count)}
        for name, key, count, total in read_scores_by(snapshot, column, from_ns, to_ns, service)
        if name
    ]
    return [pick(ScoresBy, row) for row in rows]
