"""The forwarder: a consumer group of its own, whose offsets move once LangSmith has what was read.

It reads a hand of records, sends it, commits, and reads on: what it holds does not grow while LangSmith is away.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable
from typing import NamedTuple

import structlog

from runtap_consumers.forward.account import Account
from runtap_consumers.forward.choice import RunChoice
from runtap_consumers.forward.langsmith import LangSmith
from runtap_consumers.forward.places import Places
from runtap_consumers.forward.runs import RunOperation, ended_run, feedback, started_run
from runtap_consumers.forward.sender import RunSender
from runtap_consumers.kafka.group_reader import GroupReader, group_reader
from runtap_consumers.kafka.record_tail import TailedRecord
from runtap_consumers.kafka.records import MAX_RECORD_BYTES
from runtap_consumers.pricing.source import PriceSource
from runtap_consumers.settings import ConsumerSettings
from runtap_consumers.units import SECOND_NS
from runtap_consumers.worker.health import Health
from runtap_consumers.worker.side_process import outlast, work_until
from runtap_schemas import Frame, RunEnded, RunScored, RunStarted, Unreadable, decode_frame
from runtap_schemas.topics import events_topic

_MOST_HAND_BYTES = 2**20
_HAND_SECONDS = 1.0
# A start is left out where the run has ended: its children may come in the frame before.
_WHOLE_WITHIN_SECONDS = 3.0
_POLL_SECONDS = 0.2
# Clocks of services differ from Kafka's.
_SKEW_NS = 60 * SECOND_NS

_logger = structlog.get_logger(__name__)


class Got(NamedTuple):
    """An event, when Kafka had it, and what tells it from every other."""

    event: RunStarted | RunEnded | RunScored
    log_time_ns: int
    lane_number: str


async def run_forwarder(
    settings: ConsumerSettings,
    account: Account,
    wanted: RunChoice,
    from_beginning: bool,
    stop: asyncio.Event,
    health: Health,
) -> None:
    """Forwards until `stop` is set. An outage of Kafka or of LangSmith is logged once and waited out.

    Args:
        settings: how to reach Kafka, and what calls cost.
        account: where to.
        wanted: what.
        from_beginning: a group that never was begins with the oldest record that is kept, else with the next.
        stop: ends it; a request under way is given up, and made again by who runs next.
        health: where what becomes of events is counted, and what it waits for is noted.

    Raises:
        ForwardRefusedError: LangSmith does not want the key.
        PriceFileError: the prices cannot be read.
    """
    prices, langsmith = PriceSource(settings), LangSmith(account)
    forwarder = Forwarder(settings, RunSender(langsmith, health), wanted, prices, health)
    work = outlast(lambda: forwarder.follow(from_beginning), lambda reason: health.waits("kafka", reason))
    try:
        await work_until(stop, health, [work])
    finally:
        await langsmith.close()


class Forwarder:
    """Takes runs from Kafka to LangSmith."""

    def __init__(
        self, settings: ConsumerSettings, sender: RunSender, wanted: RunChoice, prices: PriceSource, health: Health
    ) -> None:
        self._settings, self._sender, self._wanted = settings, sender, wanted
        self._prices, self._health = prices, health
        self._places = Places()
        self._next_offsets: dict[int, int] = {}

    async def follow(self, from_beginning: bool) -> None:
        """Forwards hand after hand, for ever.

        Raises:
            KafkaUnavailableError: Kafka does not let it read or commit.
        """
        await self._sender.ask_limits()
        topic, group = events_topic(self._settings.topic_prefix), f"{self._settings.topic_prefix}.forward.langsmith"
        async with group_reader(self._settings, topic, group, from_beginning) as reader:
            self._health.waits("kafka", None)
            while True:
                records, hand = await self._take_hand(reader)
                self._prices.refresh()
                await self._sender.deliver(*self._translate(hand))
                for record in records.values():
                    await reader.commit(record)
                lags = reader.lags(self._next_offsets)
                self._health.partitions, self._health.lag = sorted(lags), sum(lags.values())
                self._health.progressed()

    async def _take_hand(self, reader: GroupReader) -> tuple[dict[int, TailedRecord], list[Got]]:
        """Records of a second, or as many as fit: the last of each partition, and the events of all."""
        records: dict[int, TailedRecord] = {}
        hand: list[Got] = []
        size_bytes, began = 0, time.monotonic()
        while size_bytes < _MOST_HAND_BYTES:
            waited = time.monotonic() - began
            if waited > _HAND_SECONDS and (waited > _WHOLE_WITHIN_SECONDS or self._is_whole(hand)):
                break
            if (record := await reader.read_within(_POLL_SECONDS)) is not None:
                hand += self._read(record)
                records[record.partition] = record
                size_bytes += len(record.value or b"")
        return records, hand

    def _is_whole(self, hand: Iterable[Got]) -> bool:
        return all(
            self._places.is_whole(one.event)
            for one in hand
            if isinstance(one.event, RunEnded) and one.event.root_name is not None
        )

    def _read(self, record: TailedRecord) -> Iterable[Got]:
        """The events of a record that are of runs; notes the runs' places."""
        if record.offset != self._next_offsets.get(record.partition):
            # What somebody else told LangSmith of this partition's runs is not known.
            forgot_before_ns = record.log_time_ns + _SKEW_NS
            self._places.forgot_before_ns = max(self._places.forgot_before_ns, forgot_before_ns)
        self._next_offsets[record.partition] = record.offset + 1
        is_large = record.value is not None and len(record.value) > MAX_RECORD_BYTES
        frame = Unreadable("too large") if is_large else decode_frame(record.value)
        if not isinstance(frame, Frame):
            self._count("unreadable")
            _logger.warning("record_unreadable", partition=record.partition, offset=record.offset, cause=frame.cause)
            return
        for number, event in enumerate(frame.events(), frame.first):
            if isinstance(event, RunStarted | RunEnded):
                self._places.note(event)
                yield Got(event, record.log_time_ns, "")
            elif isinstance(event, RunScored):
                yield Got(event, record.log_time_ns, f"{frame.emitter}/{number}")
            elif isinstance(event, Unreadable):
                self._count("unreadable")

    def _translate(self, hand: Iterable[Got]) -> tuple[list[RunOperation], list[bytes]]:
        """What LangSmith is to be told: of each run once, so that requests may overtake each other."""
        runs: dict[str, RunOperation] = {}
        ended = {one.event.run_id for one in hand if isinstance(one.event, RunEnded)}
        scores = []
        for event, log_time_ns, lane_number in hand:
            if not self._is_wanted(event):
                continue
            if isinstance(event, RunScored):
                scores.append(feedback(event, lane_number))
            elif isinstance(event, RunEnded):
                position = self._places.position(event)
                kinds = self._kinds(event)
                runs[event.run_id] = ended_run(event, log_time_ns, position, kinds, self._prices.table)
            elif event.run_id not in ended and self._places.is_whole(event):
                runs[event.run_id] = started_run(event, self._places.position(event))
                self._places.mark(event.run_id, is_posted=True)
        return list(runs.values()), scores

    def _is_wanted(self, event: RunStarted | RunEnded | RunScored) -> bool:
        wanted = self._wanted
        if isinstance(event, RunScored):
            place = self._places.find(event.run_id)
            # Of a run that is not known any more: most are roots, whose ids are those of their traces.
            trace_id = event.run_id if place is None else place.trace_id
            takes = wanted.takes_score(event, trace_id) if place is None else not place.is_left_out
        else:
            trace_id, takes = event.trace_id, wanted.takes(event)
            if isinstance(event, RunEnded) and not takes:
                self._places.mark(event.run_id, is_left_out=True)
        if not wanted.samples(trace_id):
            self._count("not_sampled")
            return False
        if not takes:
            self._count("left_out")
        return takes

    def _kinds(self, event: RunEnded) -> tuple[str, ...]:
        place = self._places.find(event.run_id)
        if place is not None and place.is_posted:
            return ("patch",)
        if self._wanted.shows_starts() and event.started_at_ns < self._places.forgot_before_ns:
            # Its start may have been told, by who ran before.
            return ("post", "patch")
        return ("post",)

    def _count(self, outcome: str) -> None:
        self._health.forwarded[outcome] += 1
