"""Reading what there ever was, of all time: sums by service and environment, as `/metrics` shows them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import BigInteger, ColumnElement, cast, func, select

from runtap_consumers.projections.rollups import RUN_DURATIONS
from runtap_consumers.store import tables
from runtap_consumers.store.read.runs import select_unended
from runtap_consumers.store.read.snapshot import Snapshot

STATUSES = ("ok", "errors", "interrupted", "cancelled")


def read_outcomes(snapshot: Snapshot) -> Sequence[Any]:
    """How many runs of each component had each of `STATUSES`."""
    return _sum_up(snapshot, "performance_total", ("run_type", "name", "model"), STATUSES)


def read_durations(snapshot: Snapshot) -> Sequence[Any]:
    """The measures of `RUN_DURATIONS`: runs by how long they took, then seconds and nanoseconds of all."""
    measures = [name for one in RUN_DURATIONS.measures for name in (one.whole, one.name) if name]
    return _sum_up(snapshot, "run_durations", ("run_type", "until", "model"), measures)


def read_cost_totals(snapshot: Snapshot) -> Sequence[Any]:
    """Calls, tokens and money by provider and model."""
    measures = (
        *("priced_calls", "unpriced_calls", "unmetered_calls", "cached_calls", "input_tokens", "output_tokens"),
        *("cost_microdollars", "cost_picodollars"),
    )
    return _sum_up(snapshot, "cost_total", ("provider", "model"), measures)


def read_error_types(snapshot: Snapshot) -> Sequence[Any]:
    """How often errors of each type arose."""
    return _sum_up(snapshot, "error_groups", ("type",), ("count",))


def _sum_up(snapshot: Snapshot, name: str, keys: Sequence[str], measures: Sequence[str]) -> Sequence[Any]:
    table = tables.metadata.tables[name]
    by = [table.c[key] for key in ("service", "environment", *keys)]
    # A sum of integers is a decimal on PostgreSQL.
    sums = (_integer(func.sum(table.c[measure])).label(measure) for measure in measures)
    return snapshot.connection.execute(select(*by, *sums).where(snapshot.is_live(table)).group_by(*by)).all()


def _integer(value: ColumnElement[Any]) -> ColumnElement[int]:
    return cast(func.coalesce(value, 0), BigInteger)


def read_open_calls(snapshot: Snapshot, abandoned_before_ns: int | None) -> Sequence[Any]:
    """How many calls of each model that was asked for have not ended, but for those that are abandoned."""
    opened = select_unended(snapshot).subquery()
    by = (opened.c.service, opened.c.environment, opened.c.request_model)
    statement = select(*by, func.count().label("calls")).where(opened.c.run_type == "llm")
    if abandoned_before_ns is not None:
        statement = statement.where(opened.c.started_at_ns >= abandoned_before_ns)
    return snapshot.connection.execute(statement.group_by(*by)).all()


def read_revision(snapshot: Snapshot) -> int:
    """A number that grows when figures are priced again or rebuilt, and when a worker takes a partition over."""
    repricings = select(func.count() + func.count(tables.repricings.c.finished_at_ns)).select_from(tables.repricings)
    revised = sum(position.epoch + position.generation for position in snapshot.positions)
    return int(revised) + int(snapshot.connection.execute(repricings).scalar_one())
