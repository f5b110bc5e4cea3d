"""One emitter's numbered frames on their way to its partition: `cut` makes them, a `Lane` holds them.

A number once given belongs to its event for ever. One frame of a lane is under way at a time, so what arrives is in
order, with repeats at most.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections import deque
from collections.abc import Iterator
from typing import TYPE_CHECKING

from msgspec import Struct

from runtap_schemas import Frame, SkippedRange, emitter_of, encode_frame
from runtap_schemas.frame import MAX_FRAME_BYTES, MAX_FRAME_EVENTS

if TYPE_CHECKING:
    from runtap_collector.spool.spool import SpoolFile

_HEADER_BYTES = 256


class ClosedFrame(Struct, frozen=True, gc=False):
    """A closed frame. `said`: how many of its events are the emitter's own, as reports are."""

    first: int
    count: int
    said: int
    closed_at_ns: int
    value: bytes

    @property
    def last(self) -> int:
        """The number of its last event."""
        return self.first + self.count - 1


def cut(birth: str, first: int, at_ns: int, lines: list[bytes], said: int) -> list[ClosedFrame]:
    """Frames of lines, which are numbered from `first` on. Only the last of them claims `at_ns`.

    Args:
        birth: of the emitter.
        first: number of the first line.
        at_ns: everything captured before it is in these lines, in earlier ones, or counted.
        lines: one or more.
        said: how many of them, at the end, are the emitter's own.
    """
    starts, size_bytes = [0], 0
    for index, line in enumerate(lines):
        size_bytes += len(line) + 1
        if size_bytes > MAX_FRAME_BYTES - _HEADER_BYTES or index - starts[-1] == MAX_FRAME_EVENTS:
            if index > starts[-1]:
                starts.append(index)
            size_bytes = len(line) + 1
    frames = []
    for start, end in zip(starts, [*starts[1:], len(lines)], strict=True):
        is_last = end == len(lines)
        value = encode_frame(birth, first + start, at_ns if is_last else None, lines[start:end])
        own = max(0, end - max(start, len(lines) - said))
        frames.append(ClosedFrame(first + start, end - start, own, at_ns, value))
    return frames


def halves(frame: Frame) -> tuple[bytes, bytes]:
    """Two frames of the same events with the same numbers. The former claims nothing: it lacks what the latter has."""
    lines, middle = frame.body[:-1].split(b"\n"), frame.count // 2
    former = encode_frame(frame.birth, frame.first, None, lines[:middle])
    return former, encode_frame(frame.birth, frame.first + middle, frame.at_ns, lines[middle:])


class Lane:
    """One emitter, and its frames that Kafka has not acknowledged: those on disk first, then those in memory.

    Changed by the sender's thread only; counts are changed under the buffer's lock, so that others may add them up.

    Attributes:
        partition: `None`: not chosen yet, and no byte was sent.
        last: the last number that was given; every one up to `through` needs nothing more.
        acknowledged: events that Kafka has for certain, and `delivered` those of them that are not the emitter's own.
        spooled: events on disk that are not the emitter's own.
        said: numbers of the emitter's own events.
        is_closed: its closing report has a number.
        is_gone: its partition is gone for good.
        patience_seconds: for how long it may be stuck before another partition is looked for.
    """

    def __init__(self, birth: str = "", partition: int | None = None, file: SpoolFile | None = None) -> None:
        self.birth = birth or os.urandom(16).hex()
        self.emitter = emitter_of(self.birth)
        self.partition = partition
        self.file = file
        self.frames: deque[ClosedFrame] = deque()
        self.last = self.through = self.acknowledged = self.delivered = self.spooled = self.said = 0
        self.skipped: list[SkippedRange] = []
        self.is_closed = self.is_gone = False
        self.patience_seconds = 0.0
        self.stuck_since: float | None = None
        # Of the lane's reports.
        self.started_at_ns = time.time_ns()
        self.last_report_id: str | None = None
        self.move_to_this_loop()

    def move_to_this_loop(self) -> None:
        """Prepares it for another sender's loop. Nobody waits for it there yet."""
        self.has_frames = asyncio.Event()
        self._waiters: list[tuple[int, asyncio.Future[None]]] = []

    def all_frames(self) -> Iterator[ClosedFrame]:
        """Its frames, in order.

        Raises:
            SpoolError: one is on disk and cannot be read.
        """
        if self.file is not None:
            yield from self.file.frames(self.through)
        yield from list(self.frames)

    def first_frame(self) -> ClosedFrame | None:
        """The frame to be sent next. Raises as `all_frames`."""
        return next(self.all_frames(), None)

    def skip(self, first: int, last: int, reason: str) -> None:
        """Notes numbers that were given and will never be seen: reports repeat them, so neighbours are one."""
        if self.skipped and self.skipped[-1].last == first - 1 and self.skipped[-1].reason == reason:
            first = self.skipped.pop().first
        self.skipped.append(SkippedRange(first=first, last=last, reason=reason))

    def pass_through(self, last: int) -> None:
        """Lets go of those who wait for numbers up to `last`."""
        self.through = max(self.through, last)
        ready = [future for number, future in self._waiters if number <= self.through and not future.done()]
        self._waiters = [waiter for waiter in self._waiters if waiter[0] > self.through]
        for future in ready:
            future.set_result(None)

    async def wait_through(self, number: int) -> None:
        """Waits until every event up to a number is acknowledged or given up."""
        if number > self.through:
            future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiters.append((number, future))
            await future
