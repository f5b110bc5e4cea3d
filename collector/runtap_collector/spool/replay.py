"""What to do with frames that others left, and with those that must not be sent any more: `Replay`."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from msgspec import structs

from runtap_collector.logs import log
from runtap_collector.send.lane import ClosedFrame, Lane
from runtap_collector.send.link import Link
from runtap_collector.send.outbox import Outbox
from runtap_collector.spool.spool import Spool
from runtap_schemas import EmitterReported, LaneAbandoned, Unreadable, decode_frame
from runtap_schemas.events import PARTITION_GONE

if TYPE_CHECKING:
    from runtap_collector.send.sender import Sender

SCAN_SECONDS = 10.0
_RETRY_SECONDS = 1.0
# Half of the least life of a reader's mark: what is sent later might be counted twice.
MAX_AGE_NS = 7 * 24 * 3_600 * 1_000_000_000
# Each has a frame in memory.
_MAX_ADOPTED = 32


class Replay:
    """Adopts abandoned spools while Kafka is there, and says what of them is given up.

    Whoever adopts a spool sends its frames as they are, and adds nothing to that lane.
    """

    def __init__(self, sender: Sender, spool: Spool, outbox: Outbox, link: Link) -> None:
        self._sender = sender
        self._spool = spool
        self._outbox = outbox
        self._link = link

    async def run(self) -> None:
        """Goes on until cancelled."""
        while True:
            await self._link.wait_until_up()
            cluster_id = await self._link.cluster_id()
            if not cluster_id:
                # Nobody could say it just now. Without it these events might be another cluster's: soon again.
                await asyncio.sleep(_RETRY_SECONDS)
                continue
            self._spool.learn_cluster(cluster_id)
            for lane in self._spool.find_abandoned(_MAX_ADOPTED):
                self._outbox.adopted.append(lane)
                self._sender.drive(lane)
            await asyncio.sleep(SCAN_SECONDS)

    def why_never(self, lane: Lane, frame: ClosedFrame) -> str | None:
        """Why a frame must not be sent any more: a word. `None`: it may."""
        if lane.is_gone:
            return PARTITION_GONE
        # A clock that stands in the past must not make old frames young.
        now_ns = max(time.time_ns(), self._link.newest_append_ns)
        return "expired" if now_ns - frame.closed_at_ns > MAX_AGE_NS else None

    async def give_up(self, lane: Lane, reason: str) -> None:
        """Gives up the frames of a lane that must not be sent, and says so where it is read: in this lane's next
        report, or in this process's lane about another one.
        """
        given_up: list[ClosedFrame] = []
        report: EmitterReported | None = None
        for frame in lane.all_frames():
            if self.why_never(lane, frame) is None:
                break
            # Their events are not kept: they may be many.
            given_up.append(structs.replace(frame, value=b""))
            for event in events_of(frame.value):
                if isinstance(event, EmitterReported):
                    report = event
                elif isinstance(event, LaneAbandoned):
                    # Nobody will read it there.
                    self._outbox.announcements.append(event)
        first, last = given_up[0].first, given_up[-1].last
        log.error("frames_given_up", emitter=lane.emitter, first=first, last=last, reason=reason)
        await self.say_lost(lane, first, last, reason, report)
        for frame in given_up:
            self._outbox.settle(lane, frame, frame.count)

    async def say_lost(
        self, lane: Lane, first: int, last: int, reason: str, report: EmitterReported | None = None
    ) -> None:
        """Announces numbers that will never be seen; those of other lanes until Kafka has the announcement."""
        if lane in self._outbox.own_lanes:
            lane.skip(first, last, reason)
        if lane is self._outbox.lane:
            return
        said = LaneAbandoned(at_ns=0, emitter=lane.emitter, first=first, last=last, reason=reason, report=report)
        self._outbox.announcements.append(said)
        await self._sender.say()


def events_of(value: bytes) -> list[object]:
    """The events of a frame; none where it cannot be read."""
    frame = decode_frame(value)
    return [] if isinstance(frame, Unreadable) else list(frame.events())
