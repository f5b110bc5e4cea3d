"""
Reading costs: what has no price, and costs by attribute.
"""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import func, select

from runtap_consumers.store import tables
from runtap_consumers.store.reads import Snapshot


@dataclass(frozen=True)
class UnpricedModel:
    """
    A model with calls that have usage and no price; tokens are those of the rows that these calls are in.
    """

    provider: str
    model: str
    calls: int
    input_tokens: int
    output_tokens: int


def read_unpriced(snapshot: Snapshot) -> list[UnpricedModel]:
    """
    The models with unpriced calls since the store was made, the most called first.
    """
    table = tables.metadata.tables["cost_total"]
    calls = func.sum(table.c.unpriced_calls)
    statement = (
        select(table.c.provider, table.c.model, calls, func.sum(table.c.input_tokens), func.sum(table.c.output_tokens))
        .where(snapshot.is_live(table), table.c.unpriced_calls > 0)
        .group_by(table.c.provider, table.c.model)
        .order_by(calls.desc(), table.c.provider, table.c.model)
    )
    return [UnpricedModel(*row[:2], *map(int, row[2:])) for row in snapshot.connection.execute(statement)]
