"""Adding up rollups over a window, by group: what alert rules judge."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from sqlalchemy import FromClause, Table, false, func, or_, select

from runtap_consumers.projections.rollups import COST, COST_BY_ATTRIBUTE, Measure, Rollup
from runtap_consumers.store import tables
from runtap_consumers.store.read.ranges import Segment
from runtap_consumers.store.read.snapshot import Snapshot

Group = tuple[str, ...]
# Where `runtap evaluate` runs: no traffic, which rules are about unless they name it.
EVALUATION = "evaluation"
_NOTHING = {"bytes": b""}
_EMPTY: Mapping[str, str] = {}
# Measures of a group's rows together, by name: integers, sketches concatenated, samples any of those there are.
Sums = dict[str, Any]


def read_sums(
    snapshot: Snapshot,
    rollup: Rollup,
    measures: Sequence[str],
    group_by: Sequence[str],
    where: Mapping[str, str],
    segments: Sequence[Segment],
    without: Mapping[str, str] = _EMPTY,
) -> dict[Group, Sums]:
    """Sums of a rollup's measures over the segments of a window, by the values of `group_by`.

    Args:
        snapshot: what to read.
        rollup: whose rows. Of costs, one name of `group_by` or `where` may be an attribute (`user`, `root`, a key of
            RUNTAP_COST_BY): then its rows are those of `cost_by_attribute`.
        measures: of the rollup, by name.
        group_by: columns of its key.
        where: values that columns of its key must have.
        segments: of the window.
        without: values that columns of its key must not have.
    """
    chosen = [measure for measure in rollup.measures if measure.name in measures]
    attribute = next((name for name in (*group_by, *where) if rollup is COST and name not in COST.keys), None)
    found: dict[Group, Sums] = {}
    for segment in segments:
        if attribute is None:
            parts = [tables.metadata.tables[rollup.table_name(segment.grain)]]
        else:
            # Rows are of one grain only: those of a day may not have passed on yet.
            parts = [tables.metadata.tables[COST_BY_ATTRIBUTE.table_name(each)] for each in COST_BY_ATTRIBUTE.grains]
        for table in parts:
            for row in _read(snapshot, table, chosen, attribute, group_by, where, without, segment):
                group, sums = tuple(row[: len(group_by)]), _named(chosen, row[len(group_by) :])
                found[group] = add_sums(found.get(group), sums)
    return found


def add_sums(one: Sums | None, other: Sums | None) -> Sums:
    """Both together; sketches of both, and the sample of the first that has one."""
    if not one or not other:
        return one or other or {}
    return {
        name: value + other[name] if isinstance(value, (int, bytes)) else value or other[name]
        for name, value in one.items()
    }


def _read(
    snapshot: Snapshot,
    table: Table,
    measures: Sequence[Measure],
    attribute: str | None,
    group_by: Sequence[str],
    where: Mapping[str, str],
    without: Mapping[str, str],
    segment: Segment,
) -> Iterator[Sequence[Any]]:
    source: FromClause = table
    columns: dict[str, Any] = {column.name: column for column in table.columns}
    conditions = [
        table.c.bucket_ns >= segment.from_ns,
        table.c.bucket_ns < segment.to_ns,
        snapshot.is_live(table),
    ]
    if attribute is not None:
        conditions.append(table.c.attribute == attribute)
        columns[attribute] = table.c.value
        # Few numbers, of which there is mostly none, instead of a join.
        keys_of = tables.cost_keys.c
        unwanted = select(keys_of.id).where(or_(false(), *(keys_of[name] == value for name, value in without.items())))
        if numbers := list(snapshot.connection.execute(unwanted).scalars()):
            conditions.append(table.c.cost_key.not_in(numbers))
        without = _EMPTY
        if any(name != attribute for name in (*group_by, *where)):
            source = table.join(tables.cost_keys, table.c.cost_key == tables.cost_keys.c.id)
            columns |= {column.name: column for column in tables.cost_keys.columns}
    conditions += [columns[name] == value for name, value in where.items()]
    conditions += [columns[name] != value for name, value in without.items()]
    keys = [columns[name] for name in group_by]
    has_sketch = any(measure.kind == "bytes" for measure in measures)
    stored = [table.c[name] for measure in measures for name in _stored(measure)]
    if not has_sketch:
        summed = [func.max(column) if column.type.python_type is str else func.sum(column) for column in stored]
        statement = select(*keys, *summed).select_from(source).where(*conditions).group_by(*keys)
        rows = snapshot.connection.execute(statement)
        # Without a group there is one row of nulls where there is nothing.
        yield from rows if keys else (row for row in rows if any(value is not None for value in row))
        return
    # Concatenating sketches is quicker here.
    yield from snapshot.connection.execute(select(*keys, *stored).select_from(source).where(*conditions))


def _stored(measure: Measure) -> Sequence[str]:
    return (measure.whole, measure.name) if measure.whole else (measure.name,)


def _named(measures: Sequence[Measure], row: Sequence[Any]) -> Sums:
    sums: Sums = {}
    values = iter(row)
    for measure in measures:
        value = next(values)
        if measure.whole:
            sums[measure.name] = int(value or 0) * measure.unit + int(next(values) or 0)
        else:
            # PostgreSQL's sums are numeric.
            sums[measure.name] = int(value or 0) if measure.kind == "integer" else value or _NOTHING.get(measure.kind)
    return sums
