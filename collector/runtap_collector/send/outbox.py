"""What the emitter says of itself, reports on the wire and figures for the app; and where its events get their numbers:
`Outbox.close_frames`.

Always: captured = last numbers of the lanes + dropped + superseded + waiting.
"""

from __future__ import annotations

import os
import socket
import time
import uuid
from collections import Counter
from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, version

from runtap_collector.capture.text import clip
from runtap_collector.logs import RareLog
from runtap_collector.send.buffer import Buffer, Counts, Filled
from runtap_collector.send.encoding import start_of
from runtap_collector.send.lane import ClosedFrame, Lane, cut
from runtap_collector.send.records import View
from runtap_collector.stats import Delivery, Stats
from runtap_schemas import EmitterReported, Event, encode_event
from runtap_schemas.events import MAX_NAME_LENGTH, MAX_SKIPPED_RANGES

# Lets the app's threads have the interpreter while many starts are encoded: it is taken from us only every 5 ms.
_BREATH_EVENTS = 32


class Outbox:
    """The process's lane, those that it left for another partition, and what was captured for them."""

    def __init__(self, buffer: Buffer, view: View) -> None:
        self._buffer = buffer
        self._view = view
        self.lane = Lane()
        # Of this process: some of their frames may still wait. And of other emitters, whose spools were adopted.
        self.former: list[Lane] = []
        self.adopted: list[Lane] = []
        # What the closing reports of former lanes have said.
        self._said = Counts(Counter(), 0, 0)
        # Events of the emitter's own that go into the next frame.
        self.announcements: list[Event] = []
        self._warnings = RareLog()

    @property
    def own_lanes(self) -> list[Lane]:
        """All lanes of this process, the oldest first."""
        return [*self.former, self.lane]

    def close_frames(self, *, with_report: bool = False, closing: bool = False) -> int:
        """Closes what was captured until now: gives it numbers, and puts it into the lane. In the sender's thread.

        `closing`: with the lane's last report. Returns how many events got a number.
        """
        lane = self.lane
        if lane.is_closed:
            return 0
        filled = self._buffer.swap()
        if filled.unencoded is not None:
            self._warnings.warn("event_not_encoded", kind=filled.unencoded[0], reason=filled.unencoded[1])
        try:
            return self._close(lane, filled, with_report or closing, closing)
        except BaseException:
            self._buffer.put_back(filled)
            raise

    def _close(self, lane: Lane, filled: Filled, with_report: bool, closing: bool) -> int:
        starts, superseded, failed = self._encode_starts(filled)
        counts = Counts(filled.counts.dropped + failed, filled.counts.superseded + superseded, filled.counts[2])
        said: list[Event] = [*self.announcements]
        report_id = uuid.uuid4().hex
        if with_report:
            said.append(self._report(lane, counts, report_id, closing=closing))
        for event in said:
            event.at_ns = filled.at_ns
        lines = [*filled.lines, *starts, *map(encode_event, said)]
        frames = cut(lane.birth, lane.last + 1, filled.at_ns, lines, len(said)) if lines else []
        with self._buffer.lock:
            lane.frames.extend(frames)
            lane.last += len(lines)
            lane.said += len(said)
            self._buffer.superseded += superseded
            self._buffer.dropped.update(failed)
            self._buffer.held_bytes += sum(len(frame.value) for frame in frames) - filled.size_bytes
        self.announcements = []
        if with_report:
            lane.last_report_id, lane.is_closed = report_id, closing
        if closing:
            self._said = counts
        lane.has_frames.set()
        return len(lines)

    def _encode_starts(self, filled: Filled) -> tuple[list[bytes], int, Counter[tuple[str, str]]]:
        """Lines of the runs that have not ended, how many have, and what could not be encoded."""
        lines: list[bytes] = []
        superseded, failed = 0, Counter[tuple[str, str]]()
        for index, run in enumerate(filled.starts, 1):
            line = b""
            try:
                line = start_of(run)
            except Exception as error:  # noqa: BLE001 - one event that cannot be written must not stop the others
                if not run.ended:
                    self._warnings.warn("event_not_encoded", kind="run.started", reason=type(error).__name__)
                    failed["internal_error", "run.started"] += 1
                    continue
            if run.ended:
                # Meanwhile, in another thread, and perhaps before all of it was read.
                superseded += 1
            else:
                lines.append(line)
            if not index % _BREATH_EVENTS:
                time.sleep(0)
        return lines, superseded, failed

    def _report(self, lane: Lane, counts: Counts, report_id: str, *, closing: bool) -> EmitterReported:
        return EmitterReported(
            at_ns=0,
            report_id=report_id,
            previous_report_id=lane.last_report_id,
            service=self._view.service,
            environment=self._view.environment,
            host=clip(socket.gethostname(), MAX_NAME_LENGTH),
            process_id=os.getpid(),
            runtap_version=_runtap_version(),
            started_at_ns=lane.started_at_ns,
            closing=closing,
            superseded=counts.superseded - self._said.superseded,
            dropped=_by_reason(counts.dropped - self._said.dropped),
            content_dropped=counts.content_dropped - self._said.content_dropped,
            skipped=lane.skipped[-MAX_SKIPPED_RANGES:],
        )

    def move_on(self, suits: Callable[[str], bool]) -> Lane:
        """Closes the lane, and goes on as a new emitter, whose id suits.

        Returns:
            The lane that was left.
        """
        left = self.lane
        self.close_frames(closing=True)
        lane = Lane()
        while not suits(lane.emitter):
            lane = Lane()
        with self._buffer.lock:
            self.former.append(left)
            self.lane = lane
        return left

    def note_spooled(self, lane: Lane) -> None:
        """Gives a lane's frames up in memory, which are on disk now."""
        with self._buffer.lock:
            for frame in lane.frames:
                lane.spooled += frame.count - frame.said
                self._buffer.held_bytes -= len(frame.value)
            lane.frames.clear()

    def settle(self, lane: Lane, frame: ClosedFrame, skipped: int = 0) -> None:
        """Counts a frame of which all but `skipped` events were acknowledged, and lets it go.

        Raises:
            SpoolError: it stays on disk, and may be sent once more: a repeat, which readers drop.
        """
        with self._buffer.lock:
            if frame.last > lane.through:
                lane.acknowledged += frame.count - skipped
                lane.delivered += max(0, frame.count - frame.said - skipped)
            if lane.frames and lane.frames[0].first == frame.first:
                self._buffer.held_bytes -= len(lane.frames.popleft().value)
            else:
                lane.spooled -= frame.count - frame.said
        lane.pass_through(frame.last)
        if lane.file is not None:
            lane.file.forget(lane.through)

    def delivery(self) -> Delivery:
        """The short answer, for `flush` and `close`."""
        buffer, dropped = self._buffer, Counter[str]()
        with buffer.lock:
            for (reason, _), count in buffer.dropped.items():
                dropped[reason] += count
            for lane in self.own_lanes:
                for skipped in list(lane.skipped):
                    dropped[skipped.reason] += skipped.last - skipped.first + 1
            sent, spooled = (sum(getattr(lane, name) for lane in self.own_lanes) for name in ("delivered", "spooled"))
            waiting = buffer.captured - buffer.superseded - dropped.total() - sent - spooled
        return Delivery(sent, max(0, waiting), spooled, dict(dropped))

    def stats(self, open_runs: int) -> Stats:
        """The long answer."""
        buffer, lanes = self._buffer, self.own_lanes
        with buffer.lock:
            captured = buffer.captured + sum(lane.said for lane in lanes)
            numbered = sum(lane.last for lane in lanes)
            oldest_ns = min((lane.frames[0].closed_at_ns for lane in lanes if lane.frames), default=0)
            return Stats(
                emitter=self.lane.emitter,
                captured=captured,
                numbered=numbered,
                acknowledged=sum(lane.acknowledged for lane in lanes),
                superseded=buffer.superseded,
                waiting=captured - numbered - buffer.superseded - buffer.dropped.total(),
                spooled=sum(lane.spooled for lane in lanes),
                dropped=_by_reason(buffer.dropped),
                skipped=sum(each.last - each.first + 1 for lane in lanes for each in list(lane.skipped)),
                content_dropped=buffer.content_dropped,
                open_runs=open_runs,
                held_bytes=buffer.held_bytes,
                oldest_waiting_seconds=max(0, time.time_ns() - oldest_ns) / 1e9 if oldest_ns else 0.0,
            )


def _by_reason(dropped: Mapping[tuple[str, str], int]) -> dict[str, dict[str, int]]:
    grouped: dict[str, dict[str, int]] = {}
    for (reason, kind), count in dropped.items():
        grouped.setdefault(reason, {})[kind] = count
    return grouped


def _runtap_version() -> str:
    try:
        return version("runtap")
    except PackageNotFoundError:
        return "unknown"
