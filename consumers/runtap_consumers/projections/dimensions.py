"""Caps on the values of a dimension, so that a careless run name cannot fill the store.

The values that figures may name are one table a store and day (`dimension_values`); what is not admitted goes under
`__other__`. A decision is whatever the table says, so that every worker makes the same one. Each service has caps of
its own: one that has ids in its names crowds nobody else's out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from msgspec.structs import replace

from runtap_consumers.projections.batch import KIND, Batch, Kind, sorted_by_kind
from runtap_consumers.projections.rollups import OTHER
from runtap_consumers.units import DAY_NS
from runtap_schemas import RunEnded, RunError, RunScored

CAPS = {"user": 100_000}
DEFAULT_CAP = 1_000
# Without the requested model, which counts only where no model answered.
_OF_SERVICE = tuple(name for name in KIND if name not in ("service", "request_model"))

# Dimension, as `of_service` or `service` alone, and value.
Value = tuple[str, str]
Admit = Callable[[int, set[Value]], set[Value]]


def of_service(name: str, service: str) -> str:
    """A dimension of one service."""
    return f"{name}/{service}"


def cap_of(dimension: str) -> int:
    """How many values of a dimension figures may name a day."""
    return CAPS.get(dimension.partition("/")[0], DEFAULT_CAP)


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
        for scored, _ in batch.scored:
            values |= {(of_service(name, scored.service), value) for name, value in _judged(scored)}
        unknown = values - self._admitted - self._refused
        if unknown:
            admitted = self._admit(day, unknown)
            self._admitted |= admitted
            self._refused |= unknown - admitted
        if self._refused.isdisjoint(values):
            return
        batch.scored = [(self._replace_score(event), at_ns) for event, at_ns in batch.scored]
        batch.ended = [(self._replace(event), at_ns) for event, at_ns in batch.ended_uncapped]
        batch.kinds = sorted_by_kind(batch.ended)

    def _values(self, kinds: Iterable[Kind], events: list[RunEnded]) -> set[Value]:
        values: set[Value] = set()
        for kind in kinds:
            service = kind[0]
            values.add(("service", service))
            for name, value in zip(KIND, kind, strict=True):
                if value and name in _OF_SERVICE:
                    values.add((of_service(name, service), value))
        users = {(event.service, event.user_id) for event in events}
        values.update((of_service("user", service), user) for service, user in users if user)
        roots = {(event.service, event.root_name) for event in events if event.run_type == "llm"}
        values.update((of_service("name", service), root) for service, root in roots if root)
        errors = {(event.service, event.error.fingerprint) for event in events if event.error}
        values.update((of_service("fingerprint", service), fingerprint) for service, fingerprint in errors)
        for name in self._cost_attributes:
            texts = {(event.service, str(event.metadata.get(name, ""))) for event in events}
            values.update((of_service(f"metadata.{name}", service), text) for service, text in texts if text)
        return values

    def _replace_score(self, event: RunScored) -> RunScored:
        refused = {name for name, value in _judged(event) if (of_service(name, event.service), value) in self._refused}
        if "score" in refused:
            return replace(event, key=OTHER, value=None if event.value is None else OTHER)
        return replace(event, value=OTHER) if refused else event

    def _replace(self, event: RunEnded) -> RunEnded:
        def is_refused(name: str, value: str | None) -> bool:
            return (of_service(name, event.service), value) in self._refused

        changes = {name: OTHER for name in _OF_SERVICE if is_refused(name, getattr(event, name))}
        if ("service", event.service) in self._refused:
            changes["service"] = OTHER
        if is_refused("name", event.root_name):
            changes["root_name"] = OTHER
        if is_refused("user", event.user_id):
            changes["user_id"] = OTHER
        capped = replace(event, **changes) if changes else event
        if event.error and is_refused("fingerprint", event.error.fingerprint):
            other = RunError(type=OTHER, category=event.error.category, fingerprint=OTHER, origin=event.error.origin)
            capped = replace(capped, error=other)
        for name in self._cost_attributes:
            if is_refused(f"metadata.{name}", str(event.metadata.get(name, ""))):
                capped = replace(capped, metadata={**capped.metadata, name: OTHER})
        return capped


def _judged(event: RunScored) -> list[Value]:
    """The dimensions of feedback: what was judged, and the category it got."""
    return [("score", event.key), *([] if event.value is None else [("category", event.value)])]
