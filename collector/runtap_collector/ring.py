"""
The bounded buffer between callbacks and the sender: `Ring.offer` is its door.

Its one lock is held for a few additions at a time, never over an allocation of content, a system call or a wait.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterable
from operator import attrgetter, itemgetter

from runtap_collector.records import START_BYTES, OpenRun, Record, start_of

# Share of the buffer beyond which something is refused at the door: what can be missed first goes first. What is
# queued is never evicted, since its number or its count may be known already.
CONTENT_MARK = 0.6
_MARKS = {"run.streamed": 0.5, "run.started": 0.8, "run.noted": 0.8}


class Ring:
    """
    Records that the sender has not taken yet, and the counters of everything that came to the door.

    `held_bytes` covers records from the door to their acknowledgement, and content reserved for open runs.
    """

    def __init__(self, buffer_bytes: int) -> None:
        # Reentrant: the collector of garbage, or a signal, may close a stream inside it, whose end comes to this door.
        # For the same reason no counter is changed across a call.
        self.lock = threading.RLock()
        self._buffer_bytes = buffer_bytes
        self._limits = {kind: int(buffer_bytes * mark) for kind, mark in _MARKS.items()}
        self._content_limit = int(buffer_bytes * CONTENT_MARK)
        self._start_limit = self._limits["run.started"] - START_BYTES
        self._records: list[Record] = []
        self._starts: list[OpenRun] = []
        # Beyond it events go to the spool, before anything is refused.
        self.spool_mark = buffer_bytes // 4
        self.is_closed = False
        # True while the sender sleeps: whoever offers then must wake it, and nobody else.
        self._sender_sleeps = True
        self.held_bytes = 0
        self.captured = 0
        self.superseded = 0
        self.content_dropped = 0
        self.dropped: Counter[tuple[str, str]] = Counter()

    def offer(self, record: Record, reserved_bytes: int = 0) -> bool:
        """
        Stamps the record, and takes it or counts why not.

        Args:
            record: what is offered.
            reserved_bytes: room that is held already for what is now part of it.

        Returns:
            Whether the caller must wake the sender.
        """
        kind = record.kind
        limit = self._limits.get(kind, self._buffer_bytes)
        with self.lock:
            # Inside the lock: a report that claims completeness up to T was made before or after, never in between.
            record.at_ns = time.time_ns()
            record.monotonic_ns = time.monotonic_ns()
            self.captured += 1
            if reserved_bytes:
                self.held_bytes -= reserved_bytes
            if self.is_closed or self.held_bytes + record.size_bytes > limit:
                self.dropped["closed" if self.is_closed else "buffer_full", kind] += 1
                return False
            self.held_bytes += record.size_bytes
            if record.body is not None and (run := record.run) is not None:
                run.ended = True
                record.run = None
            self._records.append(record)
            must_wake = self._sender_sleeps
            self._sender_sleeps = False
        return must_wake

    def offer_start(self, run: OpenRun) -> bool:
        """
        The same for a run's start, whose record is the run itself.
        """
        with self.lock:
            run.started_at_ns = time.time_ns()
            run.started_monotonic_ns = time.monotonic_ns()
            self.captured += 1
            if self.is_closed or self.held_bytes > self._start_limit:
                self.dropped["closed" if self.is_closed else "buffer_full", "run.started"] += 1
                return False
            self.held_bytes += START_BYTES
            self._starts.append(run)
            must_wake = self._sender_sleeps
            self._sender_sleeps = False
        return must_wake

    def has_content_room(self, size_bytes: int) -> bool:
        """
        Whether there is room for content now; False is counted. Asked before it becomes part of a record.
        """
        if not self.is_closed and self.held_bytes + size_bytes > self._content_limit:
            self.count_content_lost()
            return False
        return True

    def reserve_content(self, size_bytes: int) -> bool:
        """
        Holds room for content of an open run. False, and counted: there is none.
        """
        with self.lock:
            if self.is_closed or self.held_bytes + size_bytes > self._content_limit:
                self.content_dropped += 1
                return False
            self.held_bytes += size_bytes
            return True

    def count_lost(self, kind: str, reason: str) -> None:
        """
        Counts an event that could not even be offered.
        """
        with self.lock:
            self.captured += 1
            self.dropped[reason, kind] += 1

    def count_content_lost(self) -> None:
        """
        Counts content that was too large to keep.
        """
        with self.lock:
            self.content_dropped += 1

    def take(self) -> list[Record]:
        """
        All waiting records, in the order of their capture. None: the sender may sleep, the next offer wakes it.

        Starts whose run has ended meanwhile are counted as superseded instead.
        """
        with self.lock:
            taken, self._records = self._records, []
            starts, self._starts = self._starts, []
            if not taken and not starts:
                self._sender_sleeps = True
                return taken
        still_open = [run for run in starts if not run.ended]
        self.supersede(len(starts) - len(still_open))
        if still_open:
            taken += map(start_of, still_open)
            taken.sort(key=_captured_at)
        return taken

    def put_back(self, records: list[Record]) -> None:
        """
        Returns what was taken and could not go on, in front of what came since.
        """
        with self.lock:
            self._records[:0] = records

    def count_expired(self, kind: str, count: int) -> None:
        """
        Counts events of a spool that are too old to be sent.
        """
        with self.lock:
            self.dropped["expired", kind] += count

    def forget_superseded(self) -> None:
        """
        Lets go of starts whose run has ended, while nobody takes them.
        """
        with self.lock:
            count = len(self._starts)
            self._starts = [run for run in self._starts if not run.ended]
            self.supersede(count - len(self._starts))

    def release(self, size_bytes: int) -> None:
        """
        Gives room back: its records were acknowledged, skipped or superseded.
        """
        with self.lock:
            self.held_bytes -= size_bytes

    def supersede(self, count: int) -> None:
        """
        Counts starts that are not sent since another record says it all.
        """
        if count:
            with self.lock:
                self.superseded += count
                self.held_bytes -= count * START_BYTES

    def drop(self, records: Iterable[Record], reason: str) -> None:
        """
        Counts records that were taken and will never get a number.
        """
        with self.lock:
            for record in records:
                self.dropped[reason, record.kind] += 1
                self.held_bytes -= record.size_bytes

    def close(self) -> None:
        """
        From now on everything offered is dropped, and counted as `closed`.
        """
        with self.lock:
            self.is_closed = True

    def count_waiting(self) -> int:
        """
        How many events the sender has not taken yet. The caller holds `lock`.
        """
        return len(self._records) + len(self._starts)

    def oldest_waiting(self) -> tuple[int, int] | None:
        """
        The times of the oldest of them: by the clock, and monotonic. The caller holds `lock`.
        """
        times = [(record.at_ns, record.monotonic_ns) for record in self._records[:1]]
        times += [(run.started_at_ns, run.started_monotonic_ns) for run in self._starts[:1]]
        return min(times, key=itemgetter(1), default=None)


_captured_at = attrgetter("monotonic_ns")
