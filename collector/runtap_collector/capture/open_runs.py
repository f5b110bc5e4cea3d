"""The table of open runs: parents, traces, and which reports of a run are repeats.

Every operation is one step of a dict, so it needs no lock and cannot make a callback wait.
"""

from __future__ import annotations

import hashlib
import time
from functools import lru_cache
from uuid import UUID

from runtap_collector.capture.text import clip, text_of
from runtap_collector.send.records import OpenRun, Trace

MAX_OPEN_RUNS = 50_000
MAX_AGE_SECONDS = 24 * 3_600
_MAX_REMEMBERED = 10_000
# The contract's limit of identifiers, and the length of a hash.
_MAX_ID_LENGTH = 64


def identity_of(run_id: object) -> UUID | str:
    """What a run is known by, whatever LangChain was given as its id, since it hands everything on: the UUID that a
    text stands for, else the text itself, or its hash where that is too long.
    """
    if isinstance(run_id, UUID):
        return UUID(int=run_id.int)
    text = text_of(run_id)
    # All callbacks of a run get the same object, so its address will do where it has no text.
    return _identity_of_text(f"{type(run_id).__name__}-{id(run_id):x}" if text is None else text)


@lru_cache(maxsize=1_024)
def _identity_of_text(text: str) -> UUID | str:
    try:
        return UUID(text)
    except ValueError:
        if 0 < len(text) <= _MAX_ID_LENGTH:
            return clip(text, _MAX_ID_LENGTH)
        return hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()


def key_of(run_id: object) -> int | str:
    """The key of a run in the table, of whatever its id is. Callers ask UUIDs themselves, which takes no call."""
    identity = identity_of(run_id)
    return identity.int if isinstance(identity, UUID) else identity


class TraceMemory:
    """The newest traces by the id of a run: between half the limit and the limit of them.

    Two halves, the older of which is let go whole: taking the oldest of a dict one by one gets slower with each.
    """

    def __init__(self, limit: int = _MAX_REMEMBERED) -> None:
        self._half = limit // 2
        self._newer: dict[int | str, Trace] = {}
        self._older: dict[int | str, Trace] = {}

    def add(self, key: int | str, trace: Trace) -> None:
        """Remembers a trace."""
        newer = self._newer
        newer[key] = trace
        if len(newer) > self._half:
            self._older, self._newer = newer, {}

    def get(self, key: int | str) -> Trace | None:
        """The trace of that id, if it is remembered."""
        return self._newer.get(key) or self._older.get(key)

    def get_or_add(self, key: int | str, identity: UUID | str) -> Trace:
        """The trace of that id, a new one if it is not remembered."""
        trace = self.get(key)
        if trace is None:
            trace = Trace(identity)
            self.add(key, trace)
        return trace


class OpenRuns:
    """Runs between their first start and their first end, by the integers of their ids; by texts that are no UUIDs."""

    def __init__(self, max_runs: int = MAX_OPEN_RUNS) -> None:
        self.max_runs = max_runs
        # Also read, and added to, by `Capture.begin`.
        self.by_key: dict[int | str, OpenRun] = {}
        self._closed = TraceMemory()
        # Parents that never started here: their children share a trace.
        self._strangers = TraceMemory()

    def __len__(self) -> int:
        return len(self.by_key)

    def end(self, key: int | str) -> OpenRun | None:
        """Takes a run out. None: it ended before, or began where nobody saw it."""
        run = self.by_key.pop(key, None)
        if run is not None:
            self._closed.add(key, run.trace)
        return run

    def trace_under(self, parent_run_id: UUID | str) -> Trace:
        """The trace of a run whose parent is not open: the parent's if that was open lately, else one by its id."""
        key = key_of(parent_run_id)
        return self._closed.get(key) or self._strangers.get_or_add(key, parent_run_id)

    def mark_interrupted(self, run: OpenRun) -> None:
        """Makes a run's open ancestors end as interrupted."""
        parent = self.parent_of(run)
        while parent is not None and not parent.interrupted:
            parent.interrupted = True
            parent = self.parent_of(parent)

    def parent_of(self, run: OpenRun) -> OpenRun | None:
        """The open parent of a run."""
        return None if run.parent_run_id is None else self.by_key.get(key_of(run.parent_run_id))

    def evict(self, now_monotonic_ns: int | None = None) -> list[OpenRun]:
        """Takes the oldest runs beyond the limit out, and those older than a day: their ends will not be captured."""
        if now_monotonic_ns is None:
            now_monotonic_ns = time.monotonic_ns()
        # 1 % more than needed, or a full table would be searched at every start.
        excess = len(self.by_key) - int(self.max_runs * 0.99) if len(self.by_key) > self.max_runs else 0
        too_old_ns = now_monotonic_ns - MAX_AGE_SECONDS * 1_000_000_000
        evicted: list[OpenRun] = []
        try:
            # A dict keeps the order of insertion, so the oldest come first.
            oldest_first = list(self.by_key.items())
        except RuntimeError:
            # Another thread has changed the table; the next start evicts.
            return []
        for key, run in oldest_first:
            if len(evicted) >= excess and run.started_monotonic_ns > too_old_ns:
                break
            if self.by_key.pop(key, None) is not None:
                self._closed.add(key, run.trace)
                run.child_errors = None
                evicted.append(run)
        return evicted
