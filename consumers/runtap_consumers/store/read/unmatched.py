"""Reading what has no price."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from sqlalchemy import case, func, select

from runtap_consumers.projections.rollups import TOKEN_CLASSES
from runtap_consumers.store import tables
from runtap_consumers.store.read.snapshot import Snapshot


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
