"""The bounded buffer between callbacks and the sender, and the frame that is being filled: `Buffer.offer` is its door.

Events are encoded at the door, while what they are made of is in this core's cache. The one lock is held over that and
a few additions, never over a system call or a wait.
"""

from __future__ import annotations

import math
import threading
import time
from collections import Counter
from typing import NamedTuple

from runtap_collector.send.encoding import end_of
from runtap_collector.send.records import OpenRun
from runtap_schemas import Event, encode_event
from runtap_schemas.frame import MAX_FRAME_BYTES

# Share of the buffer beyond which something is refused at the door: what can be missed first goes first. What was taken
# is never given up.
CONTENT_MARK = 0.6
_MARKS = {"run.streamed": 0.5, "run.started": 0.8, "run.noted": 0.8}
# Memory that a withheld start holds, with its run; and that a line holds beside its characters.
START_BYTES = 700
LINE_BYTES = 50
_ASLEEP, _AWAKE = -1, math.inf


class Counts(NamedTuple):
    """What came to the door and is in no frame, since the process began."""

    dropped: Counter[tuple[str, str]]
    superseded: int
    content_dropped: int


class Filled(NamedTuple):
    """What a swap takes: everything captured before `at_ns` that no frame has yet, and the counts at that time.

    `unencoded`: kind of an event that could not be written, and why.
    """

    lines: list[bytes]
    starts: list[OpenRun]
    at_ns: int
    size_bytes: int
    counts: Counts
    unencoded: tuple[str, str] | None


class Buffer:
    """Lines and starts that are in no frame yet, and the counters of everything that came to the door.

    `held_bytes` covers events from the door to their acknowledgement, and the inputs of open runs.
    """

    def __init__(self, buffer_bytes: int) -> None:
        # Reentrant: the collector of garbage, or a signal, may close a stream inside it, whose end comes to this door.
        # For the same reason no counter is changed across a call.
        self.lock = threading.RLock()
        self.buffer_bytes = buffer_bytes
        self._limits = {kind: int(buffer_bytes * mark) for kind, mark in _MARKS.items()}
        self._content_limit = int(buffer_bytes * CONTENT_MARK)
        self._lines: list[bytes] = []
        # Starts of runs that are open, by the identity of the object; the end of one takes it out again.
        self._starts: dict[int, OpenRun] = {}
        self._filled_bytes = 0
        # Whoever fills it above this must wake the sender, and nobody else: below 0 while that sleeps.
        self._wake_mark: float = _ASLEEP
        self._offset_ns = 0
        self._unencoded: tuple[str, str] | None = None
        # Beyond it events go to the spool, before anything is refused.
        self.spool_mark = buffer_bytes // 4
        self.is_closed = False
        self.held_bytes = 0
        self.captured = 0
        self.superseded = 0
        self.content_dropped = 0
        self.dropped: Counter[tuple[str, str]] = Counter()

    def _now(self) -> tuple[int, int]:
        """Unix time that never goes back, and monotonic time. The caller holds `lock`.

        Were the system's clock set back, events would come in that are older than what a frame claimed.
        """
        monotonic_ns = time.monotonic_ns()
        self._offset_ns = max(self._offset_ns, time.time_ns() - monotonic_ns)
        return monotonic_ns + self._offset_ns, monotonic_ns

    def offer(self, event: Event) -> bool:
        """Stamps an event, and takes it or counts why not.

        Returns:
            Whether the caller must wake the sender.
        """
        kind = str(event.__struct_config__.tag)
        with self.lock:
            if self.is_closed:
                return False
            self.captured += 1
            event.at_ns, _ = self._now()
            try:
                line = encode_event(event)
            except BaseException as error:  # noqa: BLE001 - raised again there, where it is none of ours
                return self._lose(kind, error)
            return self._has_room(kind, len(line) + LINE_BYTES) and self._take(line)

    def offer_start(self, run: OpenRun) -> bool:
        """The same for a run's start. Its inputs are held from here on until it ends."""
        with self.lock:
            run.started_at_ns, run.started_monotonic_ns = self._now()
            if run.inputs is not None:
                self.held_bytes += len(run.inputs)
            if self.is_closed:
                return False
            self.captured += 1
            if not self._has_room("run.started", START_BYTES):
                return False
            self.held_bytes += START_BYTES
            self._filled_bytes += START_BYTES
            self._starts[id(run)] = run
            return self._must_wake()

    def offer_end(self, run: OpenRun) -> bool:
        """The same for a run's end, which takes its start away. Its inputs are part of it."""
        inputs_bytes = len(run.inputs or b"")
        with self.lock:
            self.held_bytes -= inputs_bytes
            if self.is_closed:
                run.inputs = run.outputs = None
                return False
            self.captured += 1
            run.ended_at_ns, _ = self._now()
            try:
                line, is_cut = end_of(run)
            except BaseException as error:  # noqa: BLE001 - likewise
                return self._lose("run.ended", error)
            finally:
                # Its start may wait for long, with the run, and nothing counts what the run holds.
                run.inputs = run.outputs = None
            if not self._has_room("run.ended", len(line) + LINE_BYTES):
                return False
            self.content_dropped += is_cut
            run.ended = True
            if self._starts.pop(id(run), None) is not None:
                self.superseded += 1
                self.held_bytes -= START_BYTES
                self._filled_bytes -= START_BYTES
            # The run itself may be needed for long, by its start or its children.
            run.serialized = run.tags = run.metadata = run.invocation = None
            return self._take(line)

    def _has_room(self, kind: str, size_bytes: int) -> bool:
        if self.held_bytes + size_bytes <= self._limits.get(kind, self.buffer_bytes):
            return True
        self.dropped["buffer_full", kind] += 1
        return False

    def _take(self, line: bytes) -> bool:
        self.held_bytes += len(line) + LINE_BYTES
        self._filled_bytes += len(line) + LINE_BYTES
        self._lines.append(line)
        return self._must_wake()

    def _lose(self, kind: str, error: BaseException) -> bool:
        self.dropped["internal_error", kind] += 1
        # Said by the sender, without the lock; and not its message, which may quote what people wrote.
        self._unencoded = kind, type(error).__name__
        if not isinstance(error, Exception):
            raise error
        return False

    def _must_wake(self) -> bool:
        if self._filled_bytes <= self._wake_mark:
            return False
        self._wake_mark = _AWAKE
        return True

    def has_content_room(self, size_bytes: int) -> bool:
        """Whether there is room for content now. Asked before it becomes part of a run or an event."""
        return self.is_closed or self.held_bytes + size_bytes <= self._content_limit

    def count_lost(self, kind: str, reason: str) -> None:
        """Counts an event that could not even be offered."""
        with self.lock:
            if not self.is_closed:
                self.captured += 1
                self.dropped[reason, kind] += 1

    def count_content_lost(self) -> None:
        """Counts content that was too large to keep, or had no room."""
        with self.lock:
            self.content_dropped += 1

    def swap(self) -> Filled:
        """Takes all lines and withheld starts. None: the sender may sleep, the next offer wakes it."""
        with self.lock:
            counts = Counts(self.dropped.copy(), self.superseded, self.content_dropped)
            at_ns, _ = self._now()
            starts, unencoded = list(self._starts.values()), self._unencoded
            filled = Filled(self._lines, starts, at_ns, self._filled_bytes, counts, unencoded)
            self._lines, self._starts, self._filled_bytes, self._unencoded = [], {}, 0, None
            self._wake_mark = MAX_FRAME_BYTES if filled.size_bytes else _ASLEEP
            return filled

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing that a frame lacks."""
        return self._filled_bytes == 0

    def put_back(self, filled: Filled) -> None:
        """Returns what was taken and could not be closed, in front of what came since."""
        with self.lock:
            self._lines[:0] = filled.lines
            for run in filled.starts:
                if run.ended:
                    self.superseded += 1
                    self.held_bytes -= START_BYTES
                else:
                    self._starts[id(run)] = run
                    self._filled_bytes += START_BYTES
            self._filled_bytes += sum(len(line) + LINE_BYTES for line in filled.lines)

    def release(self, size_bytes: int) -> None:
        """Gives room back."""
        with self.lock:
            self.held_bytes -= size_bytes

    def close(self) -> None:
        """From now on nothing is captured: no report could say so any more."""
        with self.lock:
            self.is_closed = True
