"""Which values of a dimension figures may name: one table a store, so that every worker decides alike."""

from __future__ import annotations

from collections import defaultdict

from runtap_consumers.projections.dimensions import CAPS, DEFAULT_CAP, Value
from runtap_consumers.store.statements import insert_new_statement
from runtap_consumers.store.tables import dimension_values
from runtap_consumers.store.writer import Writer

_DAYS_KEPT = 30


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
        room = CAPS.get(dimension, DEFAULT_CAP) - len(known)
        new = [value for value in wanted if value not in known][: max(room, 0)]
        writer.execute_rows(
            insert_new_statement(dimension_values, writer.dialect),
            dimension_values,
            [(day, dimension, value) for value in new],
        )
        known.update(new)
        admitted.update((dimension, value) for value in wanted if value in known)
    return admitted
