"""
The table of open runs: parents, traces, and which reports of a run are repeats.

Every operation is one step of a dict, so it needs no lock and cannot make a callback wait.
"""

from __future__ import annotations

import time
from uuid import UUID

from runtap_collector.records import OpenRun, Route

MAX_OPEN_RUNS = 50_000
MAX_AGE_SECONDS = 24 * 3_600
_MAX_REMEMBERED = 10_000


class RouteMemory:
    """
    The newest routes by the id of a run or a session.
    """

    def __init__(self, limit: int = _MAX_REMEMBERED) -> None:
        self._limit = limit
        self._routes: dict[UUID | str, Route] = {}

    def add(self, run_id: UUID | str, route: Route) -> None:
        """
        Remembers a route, and forgets the oldest beyond the limit.
        """
        self._routes[run_id] = route
        if len(self._routes) > self._limit:
            # Another thread may have taken the same oldest one, or may be inserting.
            try:
                self._routes.pop(next(iter(self._routes)), None)
            except (StopIteration, RuntimeError):
                return

    def get(self, run_id: UUID | str) -> Route | None:
        """
        The route of that id, if it is remembered.
        """
        return self._routes.get(run_id)

    def get_or_add(self, run_id: UUID | str) -> Route:
        """
        The route of that id, a new one if it is not remembered.
        """
        route = self._routes.get(run_id)
        if route is None:
            route = Route(str(run_id))
            self.add(run_id, route)
        return route


class OpenRuns:
    """
    Runs between their first start and their first end.
    """

    def __init__(self, max_runs: int = MAX_OPEN_RUNS) -> None:
        self._max_runs = max_runs
        self._runs: dict[UUID, OpenRun] = {}
        self._closed = RouteMemory()
        # Parents that never started here: their children share a trace.
        self._strangers = RouteMemory()

    def __len__(self) -> int:
        return len(self._runs)

    def __contains__(self, run_id: UUID) -> bool:
        return run_id in self._runs

    def get(self, run_id: UUID | None) -> OpenRun | None:
        """
        The open run of that id.
        """
        return None if run_id is None else self._runs.get(run_id)

    def begin(self, run: OpenRun) -> bool:
        """
        Enters a run. False: another handler has reported its start already.
        """
        return self._runs.setdefault(run.run_id, run) is run

    def end(self, run_id: UUID) -> OpenRun | None:
        """
        Takes a run out. None: it ended before, or began where nobody saw it.
        """
        run = self._runs.pop(run_id, None)
        if run is not None:
            self._closed.add(run_id, run.route)
        return run

    def route_under(self, parent_run_id: UUID) -> Route:
        """
        The trace of a run whose parent is not open: the parent's if it was open lately, else one of the parent's id.
        """
        return self._closed.get(parent_run_id) or self._strangers.get_or_add(parent_run_id)

    def mark_interrupted(self, run: OpenRun) -> None:
        """
        Makes a run's open ancestors end as interrupted.
        """
        parent = self.get(run.parent_run_id)
        while parent is not None and not parent.interrupted:
            parent.interrupted = True
            parent = self.get(parent.parent_run_id)

    def evict(self, now_monotonic_ns: int | None = None) -> list[OpenRun]:
        """
        Takes out what is beyond the bounds: the oldest runs, and those older than a day. Their ends will not be seen.
        """
        if now_monotonic_ns is None:
            now_monotonic_ns = time.monotonic_ns()
        # Some more than needed, so that a full table is not searched at every start.
        excess = len(self._runs) - int(self._max_runs * 0.99) if self.is_full else 0
        too_old_ns = now_monotonic_ns - MAX_AGE_SECONDS * 1_000_000_000
        evicted: list[OpenRun] = []
        try:
            # A dict keeps the order of insertion, so the oldest come first.
            oldest_first = list(self._runs.items())
        except RuntimeError:
            # Changed meanwhile: the next one to come tries again.
            return []
        for run_id, run in oldest_first:
            if len(evicted) >= excess and run.started_monotonic_ns > too_old_ns:
                break
            if self._runs.pop(run_id, None) is not None:
                self._closed.add(run_id, run.route)
                evicted.append(run)
        return evicted

    @property
    def is_full(self) -> bool:
        """
        Whether there are more open runs than may be.
        """
        return len(self._runs) > self._max_runs
