"""The bounded buffer between callbacks and the sender: `Ring.offer` is its door.

Its one lock is held for a few additions at a time, or while a few ends are encoded, never over a system call or a wait.
"""

from __future__ import annotations

import math
import threading
import time
from collections import Counter
from collections.abc import Iterable
from itertools import islice
from operator import attrgetter, itemgetter
from typing import cast

from runtap_collector.logs import RareLog
from runtap_collector.send.encoding import end_of, sealed, start_of
from runtap_collector.send.records import EVENT_BYTES, START_BYTES, OpenRun, Record

# Share of the buffer beyond which something is refused at the door: what can be missed first goes first. What is
# queued is never evicted, since its number or its count may be known already.
CONTENT_MARK = 0.6
_MARKS = {"run.streamed": 0.5, "run.started": 0.8, "run.noted": 0.8}
# So many ends are encoded at once, by the callback that brings the last of them: in some 50 microseconds, which the
# app feels as its slowest hundredth. In a chain of three steps 1, 6 and 16 at once cost 147, 143 and 135 microseconds
# an invocation; in the sender's thread more, since what an end is made of lies in the other core's cache.
ENCODED_AT_ONCE = 6
_ASLEEP, _AWAKE = -1, math.inf

_warnings = RareLog()


class Ring:
    """Records that the sender has not taken yet, and the counters of everything that came to the door.

    `held_bytes` covers records from the door to their acknowledgement, and the inputs of open runs.
    """

    def __init__(self, buffer_bytes: int) -> None:
        # Reentrant: the collector of garbage, or a signal, may close a stream inside it, whose end comes to this door.
        # For the same reason no counter is changed across a call.
        self.lock = threading.RLock()
        self._buffer_bytes = buffer_bytes
        self._limits = {kind: int(buffer_bytes * mark) for kind, mark in _MARKS.items()}
        self._content_limit = int(buffer_bytes * CONTENT_MARK)
        self._start_limit = self._limits["run.started"] - START_BYTES
        # Ends are the runs themselves, until they are encoded.
        self._waiting: list[Record | OpenRun] = []
        # How many of them, from the first, are encoded; and what could not be.
        self._encoded_count = 0
        self._unencoded: list[tuple[str, str]] = []
        # Starts of runs that are open, by the identity of the object; the end of one takes it out again.
        self._starts: dict[int, OpenRun] = {}
        # Beyond it events go to the spool, before anything is refused.
        self.spool_mark = buffer_bytes // 4
        self.is_closed = False
        # Whoever brings `held_bytes` above it must wake the sender, and nobody else: below 0 while that sleeps.
        self._wake_mark: float = _ASLEEP
        self.held_bytes = 0
        self.captured = 0
        self.superseded = 0
        self.content_dropped = 0
        self.dropped: Counter[tuple[str, str]] = Counter()

    def offer(self, record: Record) -> bool:
        """Stamps the record, and takes it or counts why not. Of a run's start and end the record is the run itself.

        Returns:
            Whether the caller must wake the sender.
        """
        kind = record.kind
        with self.lock:
            # Inside the lock: a report that claims completeness up to T was made before or after, never in between.
            record.at_ns = time.time_ns()
            record.monotonic_ns = time.monotonic_ns()
            self.captured += 1
            limit = self._limits.get(kind, self._buffer_bytes)
            if self.is_closed or self.held_bytes + record.size_bytes > limit:
                self.dropped["closed" if self.is_closed else "buffer_full", kind] += 1
                return False
            self.held_bytes += record.size_bytes
            self._waiting.append(record)
            must_wake = self.held_bytes > self._wake_mark
            if must_wake:
                self._wake_mark = _AWAKE
        return must_wake

    def offer_start(self, run: OpenRun) -> bool:
        """The same for a run's start, whose record is the run itself. Its inputs are held from here
        on until it ends.
        """
        with self.lock:
            run.started_at_ns = time.time_ns()
            run.started_monotonic_ns = time.monotonic_ns()
            self.captured += 1
            if run.inputs is not None:
                self.held_bytes += len(run.inputs)
            if self.is_closed or self.held_bytes > self._start_limit:
                self.dropped["closed" if self.is_closed else "buffer_full", "run.started"] += 1
                return False
            self.held_bytes += START_BYTES
            self._starts[id(run)] = run
            must_wake = self.held_bytes > self._wake_mark
            if must_wake:
                self._wake_mark = _AWAKE
        return must_wake

    def offer_end(self, run: OpenRun) -> bool:
        """The same for a run's end, whose record is the run itself, too. Its inputs are part of it."""
        inputs_bytes = 0 if run.inputs is None else len(run.inputs)
        new_bytes = EVENT_BYTES if run.outputs is None else EVENT_BYTES + len(run.outputs)
        with self.lock:
            run.ended_at_ns = time.time_ns()
            run.ended_monotonic_ns = time.monotonic_ns()
            self.captured += 1
            if self.is_closed or self.held_bytes + new_bytes > self._buffer_bytes:
                self.dropped["closed" if self.is_closed else "buffer_full", "run.ended"] += 1
                self.held_bytes -= inputs_bytes
                # Its start may wait for long, with the run, and nothing counts what the run holds.
                run.inputs = run.outputs = None
                return False
            self.held_bytes += new_bytes
            run.size_bytes = inputs_bytes + new_bytes
            run.ended = True
            if self._starts.pop(id(run), None) is not None:
                self.superseded += 1
                self.held_bytes -= START_BYTES
            self._waiting.append(run)
            if len(self._waiting) - self._encoded_count >= ENCODED_AT_ONCE:
                self._encode_ends()
            must_wake = self.held_bytes > self._wake_mark
            if must_wake:
                self._wake_mark = _AWAKE
        return must_wake

    def has_content_room(self, size_bytes: int) -> bool:
        """Whether there is room for content now. Asked before it becomes part of a run or a record."""
        return self.is_closed or self.held_bytes + size_bytes <= self._content_limit

    def count_lost(self, kind: str, reason: str) -> None:
        """Counts an event that could not even be offered."""
        with self.lock:
            self.captured += 1
            self.dropped[reason, kind] += 1

    def count_content_lost(self) -> None:
        """Counts content that was too large to keep, or had no room."""
        with self.lock:
            self.content_dropped += 1

    def take(self) -> list[Record]:
        """All waiting records, in the order of their capture. None: the sender may sleep, the next offer wakes it."""
        with self.lock:
            self._encode_ends()
            records, self._waiting, self._encoded_count = cast("list[Record]", self._waiting), [], 0
            starts, self._starts = self._starts, {}
            unencoded, self._unencoded = self._unencoded, []
            self._wake_mark = self.spool_mark if records or starts else _ASLEEP
        for kind, reason in unencoded:
            _warnings.warn("event_not_encoded", kind=kind, reason=reason)
        for run in starts.values():
            try:
                record = start_of(run)
            except Exception as error:  # noqa: BLE001 - the others are out of the ring, and must not be lost with it
                self._drop_unencoded("run.started", START_BYTES, error)
                continue
            if run.ended:
                # Meanwhile, in another thread, and perhaps before all of it was read.
                self.supersede(1)
            else:
                records.append(record)
        if starts:
            records.sort(key=_captured_at)
        return records

    def _encode_ends(self) -> None:
        """Encodes what waits, in its place: from then on it is as large as it is counted. The caller holds `lock`."""
        waiting = self._waiting
        while (place := self._encoded_count) < len(waiting):
            # Claimed first: an end that the collector of garbage brings meanwhile goes on behind it.
            self._encoded_count += 1
            one = waiting[place]
            size_bytes = one.size_bytes
            try:
                waiting[place] = record = end_of(one) if isinstance(one, OpenRun) else sealed(one)
            except BaseException as error:
                del waiting[place]
                self._encoded_count -= 1
                self._drop_unencoded("run.ended" if isinstance(one, OpenRun) else one.kind, size_bytes, error)
                if not isinstance(error, Exception):
                    raise
            else:
                self.held_bytes += record.size_bytes - size_bytes
                self.content_dropped += record.is_cut

    def _drop_unencoded(self, kind: str, size_bytes: int, error: BaseException) -> None:
        """One event that cannot be written must not stop the others. It is logged by the sender, without the lock."""
        with self.lock:
            self.dropped["internal_error", kind] += 1
            self.held_bytes -= size_bytes
            # Not its message, which may quote what people wrote.
            self._unencoded.append((kind, type(error).__name__))

    def put_back(self, records: list[Record]) -> None:
        """Returns what was taken and could not go on, in front of what came since."""
        with self.lock:
            self._waiting[:0] = records
            self._encoded_count += len(records)

    def count_expired(self, kind: str, count: int) -> None:
        """Counts events of a spool that are too old to be sent."""
        with self.lock:
            self.dropped["expired", kind] += count

    def release(self, size_bytes: int) -> None:
        """Gives room back: its records were acknowledged, skipped or superseded."""
        with self.lock:
            self.held_bytes -= size_bytes

    def supersede(self, count: int) -> None:
        """Counts starts that are not sent since another record says it all."""
        if count:
            with self.lock:
                self.superseded += count
                self.held_bytes -= count * START_BYTES

    def drop(self, records: Iterable[Record], reason: str) -> None:
        """Counts records that were taken and will never get a number."""
        with self.lock:
            for record in records:
                self.dropped[reason, record.kind] += 1
                self.held_bytes -= record.size_bytes

    def close(self) -> None:
        """From now on everything offered is dropped, and counted as `closed`."""
        with self.lock:
            self.is_closed = True

    def count_waiting(self) -> int:
        """How many events the sender has not taken yet. The caller holds `lock`."""
        return len(self._waiting) + len(self._starts)

    def oldest_waiting(self) -> tuple[int, int] | None:
        """The times of the oldest of them: by the clock, and monotonic. The caller holds `lock`."""
        times = [
            (one.ended_at_ns, one.ended_monotonic_ns) if isinstance(one, OpenRun) else (one.at_ns, one.monotonic_ns)
            for one in self._waiting[:1]
        ]
        times += [(run.started_at_ns, run.started_monotonic_ns) for run in islice(self._starts.values(), 1)]
        return min(times, key=itemgetter(1), default=None)


_captured_at = attrgetter("monotonic_ns")
