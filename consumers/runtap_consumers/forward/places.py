"""Where runs stand in their traces: LangSmith wants each run's way from the root (`dotted_order`), a part
`{start}Z{id}` a run, and an event names the parent alone.

Starts are remembered until their runs have ended, and a while longer for what comes late; how many is bounded. Where an
ancestor is not known:

- and the root of the trace was seen by the service (`root_name`): the way goes through the ids that the event names,
  with the run's own start in place of theirs. The tree is right; the order of the branch may not be.
- and it was not (the handler hangs on a model within chains that nobody taps): the run is the root of a trace of its
  own, as LangSmith's own tracer makes it.
"""

from __future__ import annotations

import uuid
from itertools import islice
from typing import NamedTuple
from zoneinfo import ZoneInfo

from runtap_consumers.instants import local_time
from runtap_schemas import RunEnded, RunStarted

_MOST_OPEN, _MOST_ENDED = 20_000, 10_000
_DEEPEST = 200
_NAMESPACE = uuid.UUID("5b4f1fc1-8e0a-4f0c-9d6e-0d6f6b1f7a11")
_UTC = ZoneInfo("UTC")


class Place(NamedTuple):
    """What is remembered of a run. `is_posted`: LangSmith was told of its start; `is_left_out`: it is not wanted."""

    trace_id: str
    parent_run_id: str | None
    started_at_ns: int
    is_posted: bool = False
    is_left_out: bool = False


class TracePlace(NamedTuple):
    """What LangSmith is told of a run's place: ids as it takes them."""

    run_id: str
    trace_id: str
    parent_run_id: str | None
    dotted_order: str


def langsmith_id(text: str) -> str:
    """An id as LangSmith takes it: what is no UUID becomes one, always the same."""
    try:
        return str(uuid.UUID(text))
    except ValueError:
        return str(uuid.uuid5(_NAMESPACE, text))


class Places:
    """What is known of runs. `forgot_before_ns`: of runs that began earlier, LangSmith may have been told the start
    though nothing here knows of it.
    """

    def __init__(self) -> None:
        self.forgot_before_ns = 0
        self._open: dict[str, Place] = {}
        self._ended: dict[str, Place] = {}

    def note(self, event: RunStarted | RunEnded) -> None:
        """Takes in what an event says of its run's place."""
        known = self.find(event.run_id)
        if isinstance(event, RunStarted):
            if known is None:
                self._open[event.run_id] = Place(event.trace_id, event.parent_run_id, event.at_ns)
                self._forget(self._open, _MOST_OPEN)
            return
        was_posted = known is not None and known.is_posted
        self._open.pop(event.run_id, None)
        self._ended.pop(event.run_id, None)
        self._ended[event.run_id] = Place(event.trace_id, event.parent_run_id, event.started_at_ns, was_posted)
        self._forget(self._ended, _MOST_ENDED)

    def mark(self, run_id: str, is_posted: bool = False, is_left_out: bool = False) -> None:
        """Takes in what became of a run."""
        for places in (self._open, self._ended):
            if (place := places.get(run_id)) is not None:
                posted, left_out = place.is_posted or is_posted, place.is_left_out or is_left_out
                places[run_id] = place._replace(is_posted=posted, is_left_out=left_out)

    def find(self, run_id: str) -> Place | None:
        """What is remembered of a run."""
        return self._open.get(run_id) or self._ended.get(run_id)

    def is_whole(self, event: RunStarted | RunEnded) -> bool:
        """Whether every ancestor of a run is known."""
        return self._way(event)[1] is None

    def position(self, event: RunStarted | RunEnded) -> TracePlace:
        """Where a run stands, as well as it is known."""
        way, missing = self._way(event)
        trace_id = event.trace_id
        if missing is not None:
            if isinstance(event, RunEnded) and event.root_name is None and missing == trace_id:
                trace_id = way[-1][0]
            else:
                own_start = way[0][1]
                way += [(run_id, own_start) for run_id in dict.fromkeys((missing, trace_id))]
        elif way[-1][0] != trace_id:
            trace_id = way[-1][0]
        return TracePlace(
            langsmith_id(event.run_id),
            langsmith_id(trace_id),
            langsmith_id(way[1][0]) if len(way) > 1 else None,
            ".".join(f"{_instant(at_ns)}{langsmith_id(run_id)}" for run_id, at_ns in reversed(way)),
        )

    def _way(self, event: RunStarted | RunEnded) -> tuple[list[tuple[str, int]], str | None]:
        """Ids and starts from a run up to its root, and the first ancestor that is not known."""
        way = {event.run_id: event.at_ns if isinstance(event, RunStarted) else event.started_at_ns}
        above = event.parent_run_id
        # Whoever may write the topic may write a circle.
        while above is not None and above not in way:
            place = self.find(above)
            if place is None or len(way) == _DEEPEST:
                return list(way.items()), above
            way[above] = place.started_at_ns
            above = place.parent_run_id
        return list(way.items()), None

    def _forget(self, places: dict[str, Place], at_most: int) -> None:
        for run_id in list(islice(places, max(len(places) - at_most, 0))):
            place = places.pop(run_id)
            if places is self._open and place.is_posted:
                self.forgot_before_ns = max(self.forgot_before_ns, place.started_at_ns + 1)


def _instant(at_ns: int) -> str:
    return local_time(at_ns, _UTC).strftime("%Y%m%dT%H%M%S%fZ")
