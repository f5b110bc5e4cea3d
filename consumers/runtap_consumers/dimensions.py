"""
Caps on the values of a dimension, so that a careless run name cannot fill the store.

The values that figures may name are one table a store and day (`dimension_values`); what is not admitted goes under
`__other__`. A decision is whatever the table says, so that every worker makes the same one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from msgspec.structs import replace

from runtap_consumers.rollups import DAY_NS, OTHER
from runtap_schemas import RunEnded

CAPS = {"user": 100_000}
DEFAULT_CAP = 1_000
_NAMES = ("service", "environment", "run_type", "name", "provider", "model")

Value = tuple[str, str]
Admit = Callable[[int, set[Value]], set[Value]]


class Dimensions:
    """
    Decides which values of the events' dimensions figures may name.
    """

    def __init__(self, admit: Admit, cost_attributes: Iterable[str] = ()) -> None:
        """
        Args:
            admit: asks the store, in a transaction of its own: (day, {(dimension, value)}) -> those admitted.
            cost_attributes: metadata keys that costs are attributed to; each is a dimension.
        """
        self._admit = admit
        self._cost_attributes = tuple(cost_attributes)
        self._day = -1
        self._admitted: set[Value] = set()
        self._refused: set[Value] = set()
        self._known: set[tuple[str | None, ...]] = set()

    def cap(self, events: list[RunEnded], log_time_ns: int) -> list[RunEnded]:
        """
        The events with every value that is not admitted replaced by `__other__`.

        Args:
            events: ended runs; none of them is changed.
            log_time_ns: log time of the batch, which decides the day.

        Returns:
            The same list where nothing had to be replaced.
        """
        day = log_time_ns // DAY_NS
        if day != self._day:
            self._day = day
            self._admitted, self._refused, self._known = set(), set(), set()
        signatures = [self._signature(event) for event in events]
        new = set(signatures) - self._known
        if not new:
            return events
        values = {value for signature in new for value in self._values(signature)}
        unknown = values - self._admitted - self._refused
        if unknown:
            admitted = self._admit(day, unknown)
            self._admitted |= admitted
            self._refused |= unknown - admitted
        capped = {signature for signature in new if not self._refused.isdisjoint(self._values(signature))}
        # A cap, once hit, makes many: those are worked out each time instead of remembered without bound.
        self._known |= new - capped
        if not capped:
            return events
        return [
            self._replace(event) if signature in capped else event
            for event, signature in zip(events, signatures, strict=True)
        ]

    def _signature(self, event: RunEnded) -> tuple[str | None, ...]:
        attributes = (str(event.metadata.get(name, "")) for name in self._cost_attributes)
        return (
            event.service,
            event.environment,
            event.run_type,
            event.name,
            event.provider,
            event.model,
            event.user_id,
            event.error.fingerprint if event.error else None,
            *attributes,
        )

    def _values(self, signature: tuple[str | None, ...]) -> list[Value]:
        dimensions = (*_NAMES, "user", "fingerprint", *(f"metadata.{name}" for name in self._cost_attributes))
        return [(dimension, value) for dimension, value in zip(dimensions, signature, strict=True) if value]

    def _replace(self, event: RunEnded) -> RunEnded:
        changes = {dimension: OTHER for dimension in _NAMES if (dimension, getattr(event, dimension)) in self._refused}
        if ("user", event.user_id) in self._refused:
            changes["user_id"] = OTHER
        capped = replace(event, **changes)
        if event.error and ("fingerprint", event.error.fingerprint) in self._refused:
            capped = replace(capped, error=replace(event.error, fingerprint=OTHER, type=OTHER, message=""))
        for name in self._cost_attributes:
            if (f"metadata.{name}", str(event.metadata.get(name, ""))) in self._refused:
                capped = replace(capped, metadata={**capped.metadata, name: OTHER})
        return capped
