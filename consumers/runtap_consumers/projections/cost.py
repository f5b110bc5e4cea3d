"""
Costs: calls, tokens by class and money, by provider, model, service, environment, price set and price class.
"""

from __future__ import annotations

from operator import add
from typing import Any

from runtap_consumers.batch import Batch, Call, minute_of
from runtap_consumers.rollups import COST, COST_BY_ATTRIBUTE, HOUR_NS, Changes


def fold_cost(batch: Batch, cost_attributes: tuple[str, ...]) -> Changes:
    """
    Folds the model calls of a batch.
    """
    minutes: dict[tuple[Any, ...], list[Any]] = {}
    attributes: dict[tuple[Any, ...], list[Any]] = {}
    for call in batch.calls:
        if call is None:
            continue
        event = call.event
        key = (
            minute_of(call.at_ns),
            call.provider,
            call.model,
            event.service,
            event.environment,
            call.price_set,
            call.price_class,
        )
        _add(minutes, key, call.measures)
        for attribute, value in _attributes(call, cost_attributes):
            _add(
                attributes,
                (
                    attribute,
                    value,
                    call.at_ns - call.at_ns % HOUR_NS,
                    call.provider,
                    call.model,
                    call.price_set,
                    call.price_class,
                ),
                call.measures,
            )
    return Changes(minutes={COST.name: minutes}, rows={COST_BY_ATTRIBUTE.name: attributes})


def _add(rows: dict[tuple[Any, ...], list[Any]], key: tuple[Any, ...], measures: list[int]) -> None:
    row = rows.get(key)
    rows[key] = measures if row is None else list(map(add, row, measures))


def _attributes(call: Call, cost_attributes: tuple[str, ...]) -> list[tuple[str, str]]:
    found = [("user", call.event.user_id)] if call.event.user_id else []
    metadata = call.event.metadata
    return found + [(name, str(metadata[name])) for name in cost_attributes if name in metadata]
