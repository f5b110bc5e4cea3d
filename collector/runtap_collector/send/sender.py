"""The sender: a thread with a loop of its own, in which everything that touches Kafka happens.

    Outbox.close_frames (a swap of the buffer, numbers) -> Sender._drive (a lane) -> Sender._deliver -> Link.send

Idle, it sleeps: the first event after a pause wakes it, later ones ride along.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress

from runtap_collector.logs import RareLog, log
from runtap_collector.send.buffer import Buffer
from runtap_collector.send.lane import ClosedFrame, Lane, halves
from runtap_collector.send.link import FrameRefusedError, Link, SendDeniedError, SendError, SendFailedError
from runtap_collector.send.loop_thread import TASK_RETRY_SECONDS, LoopThread
from runtap_collector.send.outbox import Outbox
from runtap_collector.spool.replay import Replay
from runtap_collector.spool.spool import Spool, SpoolError
from runtap_schemas import ConnectionSettings, Unreadable, decode_frame
from runtap_schemas.topics import events_topic

LINGER_SECONDS = 0.05
FIRST_REPORT_SECONDS = 1.0
REPORT_SECONDS = 10.0
# While there is much to send, fewer and larger frames: each costs as much as a hundred events in it.
BUSY_EVENTS = 10
BUSY_LINGER_SECONDS = 0.4
# Kafka away for longer, and frames go to the spool.
AWAY_SECONDS = 1.0
RETRY_SECONDS = 0.2
DENIED_RETRY_SECONDS = 3.0
# A partition that takes nothing for so long is left for another one, if there is one that does; twice as long after
# each that took nothing either.
STUCK_SECONDS = 60.0
MAX_STUCK_SECONDS = 3_600.0
# What closing keeps of its time for hanging up.
_HANG_UP_SECONDS = 0.4


class Sender:
    """Sends what the buffer takes, until closed. One use."""

    def __init__(
        self,
        buffer: Buffer,
        outbox: Outbox,
        spool: Spool,
        settings: ConnectionSettings,
        every_report: Callable[[], None],
        on_death: Callable[[], None],
    ) -> None:
        """`every_report` is called before each report, `on_death` should a fault of ours end the thread: both in it."""
        self._buffer = buffer
        self._outbox = outbox
        self._every_report = every_report
        self._link = Link(settings, events_topic(settings.topic_prefix))
        self._spool = spool
        self._replay = Replay(self, spool, outbox, self._link)
        self._warnings = RareLog()
        self._has_events = asyncio.Event()
        self._must_stop = asyncio.Event()
        self.thread = LoopThread(self._main, on_death)

    @property
    def down_seconds(self) -> float:
        """For how long Kafka could not be written, as far as is known. 0: it could at last."""
        unanswered_seconds = self._link.unanswered_seconds
        return max(self._link.down_seconds, unanswered_seconds if unanswered_seconds > AWAY_SECONDS else 0.0)

    def wake(self) -> None:
        """Tells the sender that the buffer is not empty any more. From any thread."""
        self.thread.call(self._has_events.set)

    def flush(self, timeout_seconds: float) -> None:
        """Waits until everything captured so far is through, or time is up."""
        self.thread.wait_for(self._flush, timeout_seconds)

    def secure(self, timeout_seconds: float) -> None:
        """Has everything captured so far sent, or spooled where Kafka takes too long; waits for it until time is up."""
        self.thread.wait_for(self._secure, timeout_seconds)

    def close(self, timeout_seconds: float) -> None:
        """Sends what the closed buffer still holds, then the last report, and ends the thread."""
        deadline = time.monotonic() + timeout_seconds
        if not self._must_stop.is_set():
            self.thread.wait_for(self._finish, max(0.0, timeout_seconds - _HANG_UP_SECONDS))
        if self.thread.call(self._must_stop.set):
            self.thread.join(max(0.0, deadline - time.monotonic()))

    async def _main(self) -> None:
        for lane in [*self._outbox.own_lanes, *self._outbox.adopted]:
            # Some may be of a sender that died.
            lane.move_to_this_loop()
            self.drive(lane)
        for name, function in (
            ("link", self._link.run),
            ("collect", self._collect),
            ("report", self._report),
            ("replay", self._replay.run),
        ):
            self.thread.supervise(f"runtap-{name}", function)
        # There is an event already: that is why there is a sender.
        self._has_events.set()
        with self._link.overheard():
            await self._must_stop.wait()
            await self.thread.cancel_tasks()
            self.put_rest_away()
            await self._link.stop()

    async def _collect(self) -> None:
        while True:
            await self._has_events.wait()
            self._has_events.clear()
            await asyncio.sleep(LINGER_SECONDS)
            while (count := self._close_frames()) > 0:
                await asyncio.sleep(LINGER_SECONDS)
                if count > BUSY_EVENTS:
                    # No longer than until a frame is full.
                    with suppress(TimeoutError):
                        async with asyncio.timeout(BUSY_LINGER_SECONDS - LINGER_SECONDS):
                            await self._has_events.wait()
                    self._has_events.clear()

    async def _report(self) -> None:
        await asyncio.sleep(FIRST_REPORT_SECONDS)
        while True:
            self._every_report()
            if self._buffer.held_bytes < self._buffer.buffer_bytes:
                self._close_frames(with_report=True)
            await asyncio.sleep(REPORT_SECONDS)

    def _close_frames(self, *, with_report: bool = False, closing: bool = False) -> int:
        """Gives what was captured its numbers, and looks where it goes. Returns how many events there were."""
        count = self._outbox.close_frames(with_report=with_report, closing=closing)
        self._spool_if_due()
        return count

    async def say(self) -> None:
        """Sends the emitter's announcements, and waits until Kafka has them."""
        while True:
            lane = self._outbox.lane
            self._close_frames()
            if not lane.is_closed:
                await lane.wait_through(lane.last)
                return
            await asyncio.sleep(RETRY_SECONDS)

    def _must_spool(self) -> bool:
        """Whether Kafka has been away for a while, as far as is known, or takes too little while memory fills."""
        if self.down_seconds > AWAY_SECONDS:
            return True
        is_behind = self._outbox.lane.spooled > 0 or self._link.silent_seconds > AWAY_SECONDS
        return is_behind and self._buffer.held_bytes > self._buffer.spool_mark

    def _spool_if_due(self) -> None:
        if self._must_spool() and self._spool.is_usable:
            self._put_in_spool()

    def _put_in_spool(self) -> bool:
        """Moves all closed frames to the spool, those on their way too: nobody knows whether they arrive."""
        try:
            for lane in self._outbox.own_lanes:
                self._spool.write(lane)
                self._outbox.note_spooled(lane)
        except SpoolError:
            # Said and counted there; they stay in memory.
            return False
        return True

    def drive(self, lane: Lane) -> None:
        """Sets a lane going."""
        self.thread.supervise(f"runtap-lane-{lane.emitter}", lambda: self._drive(lane))

    async def _drive(self, lane: Lane) -> None:
        while True:
            try:
                frame = lane.first_frame()
            except SpoolError as error:
                self._warnings.warn("spool_not_read", emitter=lane.emitter, reason=str(error))
                if lane is self._outbox.lane:
                    # What follows must not wait for a broken disk.
                    self._move_on(lambda emitter: True)
                await asyncio.sleep(TASK_RETRY_SECONDS)
                continue
            if frame is not None:
                await self._deliver(lane, frame)
            elif lane is self._outbox.lane:
                lane.has_frames.clear()
                await lane.has_frames.wait()
            else:
                break
        if lane.file is not None:
            self._spool.drop(lane.file)
            lane.file = None
        if lane in self._outbox.adopted:
            self._outbox.adopted.remove(lane)

    async def _deliver(self, lane: Lane, frame: ClosedFrame) -> None:
        """Tries once to bring a lane's first frame to Kafka, and does what follows from the answer."""
        # No event may come that leads to a look at the spool, and what is on its way is to go there too.
        alarm = asyncio.get_running_loop().call_later(AWAY_SECONDS + LINGER_SECONDS, self._spool_if_due)
        try:
            # First: it may take days, after which the frame is too old.
            await self._link.wait_until_up()
            if reason := self._replay.why_never(lane, frame):
                await self._replay.give_up(lane, reason)
                return
            if lane.partition is None:
                await self._choose_partition(lane)
            skipped = await self._send(lane, frame.value, frame.closed_at_ns // 1_000_000)
            for number, reason in skipped:
                self._warnings.warn("events_skipped", emitter=lane.emitter, number=number, reason=reason)
                await self._replay.say_lost(lane, number, number, reason)
            lane.stuck_since, lane.patience_seconds = None, 0.0
            self._outbox.settle(lane, frame, len(skipped))
        except SendDeniedError as denial:
            self._warnings.warn("lane_held", partition=lane.partition, reason=denial.reason)
            await asyncio.sleep(DENIED_RETRY_SECONDS)
        except SendError as failure:
            self._link.say_down(failure.reason)
            self._spool_if_due()
            await self._look_elsewhere(lane, failure)
            await asyncio.sleep(RETRY_SECONDS)
        except SpoolError as error:
            self._warnings.warn("spool_not_written", reason=str(error))
            await asyncio.sleep(RETRY_SECONDS)
        finally:
            alarm.cancel()

    async def _send(self, lane: Lane, value: bytes, timestamp_ms: int) -> list[tuple[int, str]]:
        """Sends a frame; one that is refused for good in halves, with the same numbers. Returns the numbers that are
        left out, each with the reason.

        Raises:
            SendError: the fate of a part is not known: all of it is to be sent again.
        """
        assert lane.partition is not None
        try:
            await self._link.send(lane.emitter.encode(), value, lane.partition, timestamp_ms)
        except FrameRefusedError as refusal:
            frame = decode_frame(value)
            assert not isinstance(frame, Unreadable), frame
            if frame.count == 1:
                return [(frame.first, refusal.reason)]
            return [skipped for half in halves(frame) for skipped in await self._send(lane, half, timestamp_ms)]
        return []

    async def _choose_partition(self, lane: Lane) -> None:
        """Chooses for ever: chosen again, over other partitions, a frame might land in two."""
        cluster_id = await self._link.cluster_id()
        partition = self._link.partition_of(lane.emitter)
        if partition is None:
            raise SendFailedError("the topic has no partitions")
        if cluster_id:
            self._spool.learn_cluster(cluster_id)
        if lane.file is not None:
            lane.file.say(partition=str(partition))
        lane.partition = partition

    async def _look_elsewhere(self, lane: Lane, failure: SendError) -> None:
        """Leaves a partition that has taken nothing for long, if another one would."""
        now = time.monotonic()
        lane.stuck_since = lane.stuck_since or now
        if lane.partition is None or now - lane.stuck_since < max(lane.patience_seconds, STUCK_SECONDS):
            return
        lane.stuck_since = now
        writable = await self._link.writable_besides(lane.partition, failure)
        if not writable:
            return
        if lane is not self._outbox.lane:
            lane.is_gone = lane.partition not in self._link.partitions()
        elif not lane.is_closed:
            self._move_on(lambda emitter: self._link.partition_of(emitter) in writable)

    def _move_on(self, suits: Callable[[str], bool]) -> None:
        left = self._outbox.move_on(suits)
        lane = self._outbox.lane
        lane.patience_seconds = min(2 * max(left.patience_seconds, STUCK_SECONDS), MAX_STUCK_SECONDS)
        log.warning("lane_left", partition=left.partition, emitter=left.emitter, goes_on_as=lane.emitter)
        self._put_in_spool()
        self.drive(lane)

    async def _flush(self) -> None:
        self._close_frames()
        await asyncio.gather(*(lane.wait_through(lane.last) for lane in self._outbox.own_lanes))

    async def _secure(self) -> None:
        if not self._must_spool():
            with suppress(TimeoutError):
                async with asyncio.timeout(AWAY_SECONDS):
                    await self._flush()
                return
        self._outbox.close_frames()
        self._put_in_spool()

    async def _finish(self) -> None:
        self._close_frames(closing=True)
        await self._flush()

    def put_rest_away(self) -> None:
        """At the end: puts what was not sent into the spool, for the next process. Without one it is lost, as what a
        killed process had in memory.
        """
        self._outbox.close_frames(closing=True)
        is_safe = self._put_in_spool()
        delivery = self._outbox.delivery()
        if delivery.spooled:
            log.warning("events_left_in_spool", events=delivery.spooled, consequence="the next process sends them")
        if not is_safe and delivery.waiting:
            log.warning("events_left_unsent", events=delivery.waiting)
        self._spool.close()
