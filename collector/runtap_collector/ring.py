"""
The bounded buffer between callbacks and the sender: `Ring.offer` is its door.

Its one lock is held for a few additions at a time, never over an allocation of content, a system call or a wait.
"""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Iterable

from runtap_collector.records import Record

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
        self._records: deque[Record] = deque()
        self.is_closed = False
        # True while the sender sleeps: whoever offers then must wake it, and nobody else.
        self._sender_sleeps = True
        self.held_bytes = 0
        self.captured = 0
        self.superseded = 0
        self.content_dropped = 0
        self.dropped: Counter[tuple[str, str]] = Counter()

    def offer(self, record: Record) -> bool:
        """
        Stamps the record, and takes it or counts why not.

        Returns:
            Whether the caller must wake the sender.
        """
        kind = record.kind
        limit = self._limits.get(kind, self._buffer_bytes)
        reserved_bytes = record.reserved_bytes
        has_content = record.content_bytes > 0
        with self.lock:
            # Inside the lock: a report that claims completeness up to T was made before or after, never in between.
            record.at_ns = time.time_ns()
            record.monotonic_ns = time.monotonic_ns()
            self.captured += 1
            self.held_bytes -= reserved_bytes
            if self.is_closed:
                self.dropped["closed", kind] += 1
                return False
            if has_content and self.held_bytes + record.size_bytes > self._content_limit:
                record.drop_content()
                self.content_dropped += 1
            if self.held_bytes + record.size_bytes > limit:
                self.dropped["buffer_full", kind] += 1
                return False
            self.held_bytes += record.size_bytes
            record.note_taken()
            self._records.append(record)
            must_wake = self._sender_sleeps
            self._sender_sleeps = False
        return must_wake

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

    def drop_content(self, record: Record) -> None:
        """
        Takes the content from a record that would be too large with it.
        """
        size_bytes = record.size_bytes
        record.drop_content()
        freed_bytes = size_bytes - record.size_bytes
        with self.lock:
            self.content_dropped += 1
            self.held_bytes -= freed_bytes

    def take(self) -> deque[Record]:
        """
        All waiting records, in the order of their capture. None: the sender may sleep, the next offer wakes it.
        """
        with self.lock:
            taken, self._records = self._records, deque()
            if not taken:
                self._sender_sleeps = True
            return taken

    def release(self, size_bytes: int) -> None:
        """
        Gives room back: its records were acknowledged, skipped or superseded.
        """
        with self.lock:
            self.held_bytes -= size_bytes

    def supersede(self, record: Record) -> None:
        """
        Counts a record that is not sent since another says it all.
        """
        size_bytes = record.size_bytes
        with self.lock:
            self.superseded += 1
            self.held_bytes -= size_bytes

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

    def waiting_records(self) -> deque[Record]:
        """
        What the sender has not taken yet. The caller holds `lock`.
        """
        return self._records
