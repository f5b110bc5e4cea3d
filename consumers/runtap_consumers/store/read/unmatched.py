"""Reading costs: what has no price, and costs by attribute."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Table, case, func, select, union

from runtap_consumers.projections.rollups import COST_BY_ATTRIBUTE, TOKEN_CLASSES
from runtap_consumers.store import tables
from runtap_consumers.store.read.ranges import Segment
from runtap_consumers.store.read.snapshot import Snapshot, cost_of, cost_sum


@dataclass(frozen=True)
class UnpricedModel:
    """A model with calls that have usage and no price; tokens are those of the rows that these calls are in.

    Of the `calls`, `impossible_calls` reported parts beyond their total.
    """

    provider: str
    model: str
    calls: int
    impossible_calls: int
    input_tokens: int
    output_tokens: int


def read_unpriced(snapshot: Snapshot) -> list[UnpricedModel]:
    """The models with unpriced calls since the store was made, the most called first."""
    table = tables.metadata.tables["cost_total"]
    calls = func.sum(table.c.unpriced_calls)
    impossible = func.sum(case((table.c.price_class.contains("impossible"), table.c.unpriced_calls), else_=0))
    statement = (
        select(
            table.c.provider,
            table.c.model,
            calls,
            impossible,
            func.sum(table.c.input_tokens),
            func.sum(table.c.output_tokens),
        )
        .where(snapshot.is_live(table), table.c.unpriced_calls > 0)
        .group_by(table.c.provider, table.c.model)
        .order_by(calls.desc(), table.c.provider, table.c.model)
    )
    return [UnpricedModel(*row[:2], *map(int, row[2:])) for row in snapshot.connection.execute(statement)]


def stream_unpriced_hours(snapshot: Snapshot) -> Iterator[dict[str, Any]]:
    """The rows of hours with unpriced calls: `bucket_ns`, provider, model, price class, counts and tokens."""
    table = tables.metadata.tables["cost_hour"]
    names = ("bucket_ns", "provider", "model", "price_class", "priced_calls", "unpriced_calls", *TOKEN_CLASSES)
    statement = select(*(table.c[name] for name in names)).where(snapshot.is_live(table), table.c.unpriced_calls > 0)
    for row in snapshot.connection.execution_options(yield_per=1_000).execute(statement):
        yield dict(zip(names, row, strict=True))


@dataclass(frozen=True)
class AttributeRow:
    """What calls with one value of an attribute used."""

    value: str
    counts: dict[str, int]
    cost_picodollars: int

    def plus(self, other: AttributeRow) -> AttributeRow:
        """Both together."""
        counts = {name: count + other.counts[name] for name, count in self.counts.items()}
        return AttributeRow(self.value, counts, self.cost_picodollars + other.cost_picodollars)


_COUNTED = ("calls", "priced_calls", "unpriced_calls", "unmetered_calls", "input_tokens", "output_tokens")


def read_attributes(snapshot: Snapshot) -> list[str]:
    """The attributes that costs were ever attributed to, as far as days are kept."""
    selected = [select(table.c.attribute) for table in _tables("day")]
    return list(snapshot.connection.execute(union(*selected)).scalars())


def read_attribute_costs(
    snapshot: Snapshot, attribute: str, segment: Segment, service: str | None
) -> list[AttributeRow]:
    """Costs by value in the hours or days of a segment."""
    found: dict[str, AttributeRow] = {}
    for table in _tables(segment.grain):
        for row in _read(snapshot, table, attribute, segment, service):
            found[row.value] = row.plus(found[row.value]) if row.value in found else row
    return list(found.values())


def _tables(grain: str) -> list[Table]:
    """Where the rows of a grain are: those of a day may not have passed on yet."""
    hours, days = (tables.metadata.tables[COST_BY_ATTRIBUTE.table_name(each)] for each in COST_BY_ATTRIBUTE.grains)
    return [hours] if grain == "hour" else [hours, days]


def _read(
    snapshot: Snapshot, table: Table, attribute: str, segment: Segment, service: str | None
) -> Iterator[AttributeRow]:
    statement = (
        select(
            table.c.value,
            *(func.sum(table.c[name]).label(name) for name in _COUNTED),
            *cost_sum(table),
        )
        .where(
            table.c.attribute == attribute,
            table.c.bucket_ns >= segment.from_ns,
            table.c.bucket_ns < segment.to_ns,
            snapshot.is_live(table),
        )
        .group_by(table.c.value)
    )
    if service is not None:
        of_service = select(tables.cost_keys.c.id).where(tables.cost_keys.c.service == service)
        statement = statement.where(table.c.cost_key.in_(of_service))
    for row in snapshot.connection.execute(statement):
        yield AttributeRow(row.value, {name: int(getattr(row, name)) for name in _COUNTED}, cost_of(row))
