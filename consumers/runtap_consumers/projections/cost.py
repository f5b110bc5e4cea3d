"""Costs: calls, tokens by class and money, by provider, model, service, environment, price set and price class."""

from __future__ import annotations

from typing import Any

from runtap_consumers.projections.batch import Batch, add_row, add_up, add_up_by_value
from runtap_consumers.projections.rollups import COST, COST_BY_ATTRIBUTE, Changes


def fold_cost(batch: Batch, cost_attributes: tuple[str, ...]) -> Changes:
    """Folds the model calls of a batch."""
    minutes: dict[tuple[Any, ...], list[Any]] = {}
    attributes: dict[tuple[Any, ...], list[Any]] = {}
    for minute, key, number, calls in batch.priced_calls:
        minutes[minute, *key] = add_up([call.measures for call in calls])
        values = [
            ("user", [(call.event.user_id or None, call.measures) for call in calls]),
            ("root", [(call.event.root_name, call.measures) for call in calls]),
        ]
        for name in cost_attributes:
            named = [call for call in calls if name in call.event.metadata]
            values.append((name, [(str(call.event.metadata[name]), call.measures) for call in named]))
        for attribute, measures in values:
            for value, sums in add_up_by_value(measures).items():
                add_row(attributes, (minute, attribute, value, number), sums)
    return Changes(minutes={COST.name: minutes, COST_BY_ATTRIBUTE.name: attributes})
