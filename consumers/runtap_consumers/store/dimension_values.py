"""Which values of a dimension figures may name: one table a store, so that every worker decides alike."""

from __future__ import annotations

from collections import defaultdict

import structlog
from sqlalchemy import Connection, func, select

from runtap_consumers.projections.dimensions import Value, cap_of
from runtap_consumers.store.statements import insert_new_statement
from runtap_consumers.store.tables import dimension_values
from runtap_consumers.store.writer import Writer

_DAYS_KEPT = 30

logger = structlog.get_logger(__name__)


def admit_values(writer: Writer, day: int, values: set[Value]) -> set[Value]:
    """Admits what there is room for, in a transaction of its own; see `admit_inside`."""
    with writer.transaction():
        return admit_inside(writer, day, values)


def admit_inside(writer: Writer, day: int, values: set[Value]) -> set[Value]:
    """Admits what there is room for, in key order and inside a transaction.

    Returns:
        The values that are admitted, now or before. The others are refused for the day (by log time, since the epoch).
    """
    by_dimension: dict[str, list[str]] = defaultdict(list)
    for dimension, value in sorted(values):
        by_dimension[dimension].append(value)
    admitted: set[Value] = set()
    for statement in writer.dialect.lock_dimensions:
        writer.execute(statement)
    writer.execute("DELETE FROM dimension_values WHERE day < ?", (day - _DAYS_KEPT,))
    for dimension, wanted in by_dimension.items():
        known = {
            value
            for (value,) in writer.query(
                "SELECT value FROM dimension_values WHERE day = ? AND dimension = ?", (day, dimension)
            )
        }
        room = cap_of(dimension) - len(known)
        unknown = [value for value in wanted if value not in known]
        new = unknown[: max(room, 0)]
        if len(new) < len(unknown):
            logger.warning("dimension_full", dimension=dimension, values=cap_of(dimension), others="__other__")
        writer.execute_rows(
            insert_new_statement(dimension_values, writer.dialect),
            dimension_values,
            [(day, dimension, value) for value in new],
        )
        known.update(new)
        admitted.update((dimension, value) for value in wanted if value in known)
    return admitted


def read_full(connection: Connection) -> list[str]:
    """The dimensions that had as many values as they may have on the last day."""
    columns = dimension_values.c
    last = select(func.max(columns.day)).scalar_subquery()
    counts = select(columns.dimension, func.count()).where(columns.day == last).group_by(columns.dimension)
    return sorted(dimension for dimension, count in connection.execute(counts) if count >= cap_of(dimension))
