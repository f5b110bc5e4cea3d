"""Caps on the values of a dimension, so that a careless run name cannot fill the store.

The values that figures may name are one table a store and day (`dimension_values`); what is not admitted goes under
`__other__`. A decision is whatever the table says, so that every worker makes the same one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from msgspec.structs import replace

from runtap_consumers.projections.batch import KIND, Batch, Kind, sorted_by_kind
from runtap_consumers.projections.rollups import OTHER
from runtap_consumers.units import DAY_NS
from runtap_schemas import RunEnded, RunError

CAPS = {"user": 100_000}
DEFAULT_CAP = 1_000
# Without the requested model, which counts only where no model answered.
_NAMES = tuple(name for name in KIND if name != "request_model")

Value = tuple[str, str]
Admit = Callable[[int, set[Value]], set[Value]]


class Dimensions:
    """Decides which values of the events' dimensions figures may name."""

    def __init__(self, admit: Admit, cost_attributes: Iterable[str] = ()) -> None:
        """Args:
        admit: asks the store, in a transaction of its own: (day, {(dimension, value)}) -> those admitted.
        cost_attributes: metadata keys that costs are attributed to; each is a dimension.
        """
        self._admit = admit
        self._cost_attributes = tuple(cost_attributes)
        self._day = -1
        self._admitted: set[Value] = set()
        self._refused: set[Value] = set()

    def cap(self, batch: Batch) -> None:
        """Fills `ended` and `kinds` of a batch: its ended runs, with every value that is not admitted replaced by
        `__other__`. The log time of the batch decides the day.
        """
        day = batch.log_time_ns // DAY_NS
        if day != self._day:
            self._day, self._admitted, self._refused = day, set(), set()
        batch.ended, batch.kinds = batch.ended_uncapped, sorted_by_kind(batch.ended_uncapped)
        values = self._values(batch.kinds, [event for event, _ in batch.ended])
        unknown = values - self._admitted - self._refused
        if unknown:
            admitted = self._admit(day, unknown)
            self._admitted |= admitted
            self._refused |= unknown - admitted
        if self._refused.isdisjoint(values):
            return
        batch.ended = [(self._replace(event), at_ns) for event, at_ns in batch.ended_uncapped]
        batch.kinds = sorted_by_kind(batch.ended)

    def _values(self, kinds: Iterable[Kind], events: list[RunEnded]) -> set[Value]:
        names = {pair for kind in kinds for pair in zip(KIND, kind, strict=True)}
        values = {(name, value) for name, value in names if value and name in _NAMES}
        values.update(("user", user) for user in {event.user_id for event in events} if user)
        values.update(("fingerprint", event.error.fingerprint) for event in events if event.error)
        for name in self._cost_attributes:
            texts = {str(event.metadata.get(name, "")) for event in events}
            values.update((f"metadata.{name}", text) for text in texts if text)
        return values

    def _replace(self, event: RunEnded) -> RunEnded:
        changes = {dimension: OTHER for dimension in _NAMES if (dimension, getattr(event, dimension)) in self._refused}
        if ("user", event.user_id) in self._refused:
            changes["user_id"] = OTHER
        capped = replace(event, **changes) if changes else event
        if event.error and ("fingerprint", event.error.fingerprint) in self._refused:
            other = RunError(type=OTHER, category=event.error.category, fingerprint=OTHER, origin=event.error.origin)
            capped = replace(capped, error=other)
        for name in self._cost_attributes:
            if (f"metadata.{name}", str(event.metadata.get(name, ""))) in self._refused:
                capped = replace(capped, metadata={**capped.metadata, name: OTHER})
        return capped
