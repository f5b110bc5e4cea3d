"""Reading costs by anything they are kept by: the rollups' own columns, attributes, or what single runs say."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, Table, Text, case, cast, func, or_, select

from runtap_consumers.projections.rollups import COST_BY_ATTRIBUTE, TOKEN_CLASSES
from runtap_consumers.store import tables
from runtap_consumers.store.read.ranges import Segment
from runtap_consumers.store.read.snapshot import Snapshot, cost_of, cost_sum
from runtap_consumers.units import DAY_NS

# Calls that took longer are not looked for.
_LONGEST_RUN_NS = 7 * DAY_NS
COUNTS = ("calls", "priced_calls", "unpriced_calls", "unmetered_calls", *TOKEN_CLASSES)
CACHED = ("cache_read_tokens", "cache_write_5m_tokens", "cache_write_1h_tokens")


class Cut(Enum):
    """Which calls are read: all together, or apart by what they are priced by: all, or those with cached tokens."""

    WHOLE = "whole"
    BY_PRICE = "by_price"
    CACHED = "cached"


@dataclass
class CostSums:
    """What calls used and cost."""

    counts: dict[str, int]
    cost_picodollars: int

    @classmethod
    def nothing(cls) -> CostSums:
        """No call."""
        return cls(dict.fromkeys(COUNTS, 0), 0)

    def add(self, other: CostSums, times: int = 1) -> None:
        """Adds others, or takes them away (-1)."""
        for name, count in other.counts.items():
            self.counts[name] += times * count
        self.cost_picodollars += times * other.cost_picodollars


class CostCut(NamedTuple):
    """The calls of a bucket that agree in everything they are cut by. `key`: values in the order that was asked for."""

    bucket_ns: int
    key: tuple[str, ...]
    provider: str
    model: str
    price_class: str
    sums: CostSums
    grain: str = "hour"


def read_attributes(snapshot: Snapshot) -> set[str]:
    """The attributes that costs were ever attributed to, as far as days are kept."""
    places = (place for table in _attribute_tables("day") for place in _read_places(snapshot, table, 0, 2**63 - 1))
    return {attribute for _, attribute in places}


def _read_places(snapshot: Snapshot, table: Table, from_ns: int, to_ns: int) -> list[tuple[int, str]]:
    """The buckets of a range and the attributes in each, one after the other: the key begins with both, so that of all
    the rows, nearly one a call by user, but one each is looked at.
    """
    bucket, attribute = table.c.bucket_ns, table.c.attribute
    begin = select(func.min(bucket).label("bucket_ns"), cast("", Text).label("attribute")).where(bucket >= from_ns)
    places = begin.cte("places", recursive=True)
    # By minima, which are looked up: SQLite seeks a pair that is greater from the pair's first row on.
    next_bucket = select(func.min(bucket)).where(bucket > places.c.bucket_ns).scalar_subquery()
    of_bucket = (bucket == places.c.bucket_ns, attribute > places.c.attribute)
    next_attribute = select(func.min(attribute)).where(*of_bucket).scalar_subquery()
    following = (
        case((next_attribute.is_(None), next_bucket), else_=places.c.bucket_ns),
        func.coalesce(next_attribute, ""),
    )
    places = places.union_all(select(*following).where(places.c.bucket_ns < to_ns))
    found = select(places.c.bucket_ns, places.c.attribute).where(places.c.attribute != "", places.c.bucket_ns < to_ns)
    return [(bucket_ns, name) for bucket_ns, name in snapshot.connection.execute(found)]


def read_cuts(
    snapshot: Snapshot,
    segments: Sequence[Segment],
    names: Sequence[str],
    where: Mapping[str, str],
    attribute: str | None = None,
    only: Cut = Cut.BY_PRICE,
) -> Iterator[CostCut]:
    """Costs of a range from rollups.

    Args:
        snapshot: what to read.
        segments: of the range.
        names: columns of the key, of `provider`, `model`, `service`, `environment`.
        where: values that these columns must have.
        attribute: calls that have it, by its value, which comes first in the key; `None`: all calls.
        only: which calls, and whether apart by their price.
    """
    for segment in segments:
        if attribute is None:
            table = tables.metadata.tables[f"cost_{segment.grain}"]
            yield from _read(snapshot, table, segment, names, where, only)
            continue
        for table in _attribute_tables(segment.grain):
            yield from _read_attribute(snapshot, table, attribute, segment, names, where, only)


def read_days(snapshot: Snapshot, from_ns: int, to_ns: int) -> dict[int, int]:
    """What each day of a range cost, picodollars, by its begin."""
    table = tables.metadata.tables["cost_day"]
    bucket = table.c.bucket_ns
    statement = select(bucket, *cost_sum(table)).where(bucket >= from_ns, bucket < to_ns, snapshot.is_live(table))
    return {row.bucket_ns: cost_of(row) for row in snapshot.connection.execute(statement.group_by(bucket))}


def _read(
    snapshot: Snapshot, table: Table, segment: Segment, names: Sequence[str], where: Mapping[str, str], only: Cut
) -> Iterator[CostCut]:
    # In the order of the table's key, which what is grouped by it need not be sorted for.
    of_price = ("provider", "model", "price_class") if only is not Cut.WHOLE else ()
    before = ("provider",) if "model" in names else ()
    grouped = list(dict.fromkeys(("bucket_ns", *of_price, *before, *names)))
    places = [grouped.index(name) for name in names]
    within = (table.c.bucket_ns >= segment.from_ns, table.c.bucket_ns < segment.to_ns)
    chosen = [*within, *(table.c[name] == value for name, value in where.items())]
    for row, sums in _sum_up(snapshot, table, [table.c[name] for name in grouped], chosen, only):
        key, price = tuple([row[place] for place in places]), row[1:4] if of_price else ("", "", "")
        yield CostCut(row[0], key, price[0], price[1], price[2], sums, segment.grain)


def _read_attribute(
    snapshot: Snapshot,
    table: Table,
    attribute: str,
    segment: Segment,
    names: Sequence[str],
    where: Mapping[str, str],
    only: Cut,
) -> Iterator[CostCut]:
    keys = tables.cost_keys
    of_facts = select(keys).where(*(keys.c[name] == value for name, value in where.items()))
    facts = {
        row.id: (tuple(getattr(row, name) for name in names), row.provider, row.model, row.price_class)
        for row in snapshot.connection.execute(of_facts)
    }
    # In the order of the table's key: what is grouped needs no sorting, and no row of another attribute is read.
    grouped = [table.c.value, table.c.cost_key]
    if only is Cut.WHOLE and not names and not where:
        grouped.pop()
    for bucket_ns, found in _read_places(snapshot, table, segment.from_ns, segment.to_ns):
        if found != attribute:
            continue
        chosen = [table.c.bucket_ns == bucket_ns, table.c.attribute == attribute]
        for (value, *number), sums in _sum_up(snapshot, table, grouped, chosen, only):
            if not number:
                yield CostCut(bucket_ns, (value,), "", "", "", sums, segment.grain)
            elif number[0] in facts:
                key, provider, model, price_class = facts[number[0]]
                yield CostCut(bucket_ns, (value, *key), provider, model, price_class, sums, segment.grain)


def _sum_up(
    snapshot: Snapshot,
    table: Table,
    grouped: Sequence[ColumnElement[Any]],
    chosen: Sequence[ColumnElement[bool]],
    only: Cut,
) -> Iterator[tuple[Sequence[Any], CostSums]]:
    counted = len(grouped)
    statement = select(*grouped, *(func.sum(table.c[name]) for name in COUNTS), *cost_sum(table))
    if only is Cut.CACHED:
        statement = statement.where(or_(*(table.c[name] > 0 for name in CACHED)))
    statement = statement.where(snapshot.is_live(table), *chosen).group_by(*grouped)
    # At once: one by one they take twice as long.
    for row in snapshot.connection.execute(statement).all():
        *numbers, micro, pico = map(int, row[counted:])
        yield row[:counted], CostSums(dict(zip(COUNTS, numbers, strict=True)), micro * 10**6 + pico)


def _attribute_tables(grain: str) -> list[Table]:
    """Where the rows of a grain are: those of a day may not have passed on yet."""
    hours, days = (tables.metadata.tables[COST_BY_ATTRIBUTE.table_name(each)] for each in COST_BY_ATTRIBUTE.grains)
    return [hours] if grain == "hour" else [hours, days]


def stream_called_runs(
    snapshot: Snapshot, from_ns: int, to_ns: int, columns: Sequence[str], where: Mapping[str, str]
) -> Iterator[tuple[tuple[Any, ...], CostSums]]:
    """Ended model runs that ended in a range, added up by these columns' values."""
    table = tables.runs
    key = [table.c[name] for name in columns]
    is_priced = table.c.cost_picodollars.is_not(None)
    is_metered = table.c.input_tokens.is_not(None) & table.c.output_tokens.is_not(None)
    counted = (
        func.count(),
        func.count().filter(is_priced),
        func.count().filter(~is_priced & is_metered),
        func.count().filter(~is_priced & ~is_metered & (table.c.status == "ok")),
        *(func.coalesce(func.sum(table.c[name]), 0) for name in TOKEN_CLASSES),
        func.coalesce(func.sum(table.c.cost_picodollars), 0),
    )
    statement = (
        select(*key, *counted)
        .where(
            table.c.run_type == "llm",
            # By the start, too, which the index begins with.
            table.c.started_at_ns >= from_ns - _LONGEST_RUN_NS,
            table.c.started_at_ns < to_ns,
            table.c.ended_at_ns >= from_ns,
            table.c.ended_at_ns < to_ns,
            snapshot.is_live(table),
            *(table.c[name] == value for name, value in where.items()),
        )
        .group_by(*key)
    )
    for row in snapshot.connection.execution_options(yield_per=1_000).execute(statement):
        values, numbers = tuple(row[: len(key)]), list(map(int, row[len(key) :]))
        yield values, CostSums(dict(zip(COUNTS, numbers[:-1], strict=True)), numbers[-1])
