"""Reading what was thought of runs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from sqlalchemy import func, select

from runtap_consumers.projections.rollups import SCORE_UNIT
from runtap_consumers.store import tables
from runtap_consumers.store.read.ranges import TimeRange
from runtap_consumers.store.read.snapshot import Snapshot


@dataclass(frozen=True)
class ScoreSum:
    """Scores of one key together. `value`: the category, '' for numbers, whose sum is `total`."""

    service: str
    environment: str
    key: str
    value: str
    count: int
    total: Decimal


def read_scores(snapshot: Snapshot, time_range: TimeRange | None, service: str | None) -> list[ScoreSum]:
    """Scores of a range, or of all time (`None`), by service, environment, key and category."""
    segments = [None] if time_range is None else time_range.segments
    found: dict[tuple[str, str, str, str], tuple[int, Decimal]] = {}
    for segment in segments:
        table = tables.metadata.tables[f"scores_{'total' if segment is None else segment.grain}"]
        keys = [table.c[name] for name in ("service", "environment", "key", "value")]
        sums = [func.sum(table.c[name]) for name in ("count", "score_wholes", "score_billionths")]
        statement = select(*keys, *sums).where(snapshot.is_live(table)).group_by(*keys)
        if segment is not None:
            statement = statement.where(table.c.bucket_ns >= segment.from_ns, table.c.bucket_ns < segment.to_ns)
        if service is not None:
            statement = statement.where(table.c.service == service)
        for of_service, environment, key, value, count, wholes, billionths in snapshot.connection.execute(statement):
            named = (of_service, environment, key, value)
            before = found.get(named, (0, Decimal(0)))
            total = Decimal(int(wholes)) + Decimal(int(billionths)) / SCORE_UNIT
            found[named] = (before[0] + int(count), before[1] + total)
    return [
        ScoreSum(of_service, environment, key, value, *sums)
        for (of_service, environment, key, value), sums in sorted(found.items())
    ]


def read_scores_of(snapshot: Snapshot, run_ids: Iterable[str]) -> dict[str, list[dict[str, Any]]]:
    """Each score of runs, by run id, the oldest first."""
    table, ids = tables.metadata.tables["run_scores"], list(run_ids)
    columns = ("run_id", "at_ns", "key", "score", "value", "source", "comment")
    found: dict[str, list[dict[str, Any]]] = {}
    # No database takes any number of parameters.
    for first in range(0, len(ids), 500):
        statement = (
            select(*(table.c[name] for name in columns))
            .where(table.c.run_id.in_(ids[first : first + 500]), snapshot.is_live(table))
            .order_by(table.c.at_ns, table.c.key)
        )
        for run_id, *facts in snapshot.connection.execute(statement):
            found.setdefault(run_id, []).append(dict(zip(columns[1:], facts, strict=True)))
    return found


def read_scores_by(
    snapshot: Snapshot, name: str, from_ns: int, to_ns: int, service: str | None
) -> Sequence[tuple[str, str, int, Decimal]]:
    """Numbers of a range by a column of the runs they are about, and key, for as long as runs are kept: how many, and
    their sum.
    """
    table, runs = tables.metadata.tables["run_scores"], tables.runs
    statement = (
        select(func.coalesce(runs.c[name], ""), table.c.key, table.c.score)
        .select_from(table.join(runs, runs.c.run_id == table.c.run_id))
        .where(table.c.at_ns >= from_ns, table.c.at_ns < to_ns, table.c.score.is_not(None))
        .where(snapshot.is_live(table), snapshot.is_live(runs))
    )
    if service is not None:
        statement = statement.where(table.c.service == service)
    sums: dict[tuple[str, str], tuple[int, Decimal]] = {}
    for value, key, score in snapshot.connection.execute(statement):
        count, total = sums.get((value, key), (0, Decimal(0)))
        # Summed here: a database would make floats of them.
        sums[value, key] = (count + 1, total + Decimal(score))
    return [(*key, *found) for key, found in sorted(sums.items())]
