"""Reading a topic as a consumer group whose offsets Kafka keeps, for readers that have no store."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import structlog
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import CommitFailedError, IllegalStateError, KafkaError, UnknownMemberIdError

from runtap_consumers.kafka.client import START_SECONDS, TopicEnds, client_options, running, translated, within
from runtap_consumers.kafka.decompression import begin_poll, limit_decompression
from runtap_consumers.kafka.record_tail import TailedRecord
from runtap_consumers.settings import ConsumerSettings

_POLL_SECONDS = 0.5
_COMMIT_SECONDS = 10.0
# Of an answer, which the client holds three times; a larger record comes alone.
_FETCH_BYTES, _PARTITION_FETCH_BYTES = 2**20, 2**18
# A record may be worked on for days; whether its reader lives shows by its heartbeats.
_LONGEST_POLL_INTERVAL_MS = 2**31 - 1

_logger = structlog.get_logger(__name__)


@asynccontextmanager
async def group_reader(
    settings: ConsumerSettings, topic: str, group: str, from_beginning: bool = False
) -> AsyncIterator[GroupReader]:
    """A member of the group, while the block runs.

    Args:
        settings: how to reach Kafka.
        topic: its name.
        group: its name. A new one begins with the next record: it is no news what came before.
        from_beginning: a new group begins with the oldest record that is kept.

    Raises:
        KafkaUnavailableError: Kafka, the topic or the group cannot be used.
    """
    limit_decompression()
    async with TopicEnds(settings, topic) as asked:
        ends = await asked.read()
    session_ms = int(settings.session_timeout_seconds * 1000)
    options = {**client_options(settings), "enable_auto_commit": False, "auto_offset_reset": "earliest"}
    if not from_beginning:
        async with running(AIOKafkaConsumer(group_id=group, **options), settings) as beginner:
            with translated(settings, f"group {group}"):
                await within(_COMMIT_SECONDS, _begin_at(beginner, topic, ends))
    consumer = AIOKafkaConsumer(
        topic,
        group_id=group,
        session_timeout_ms=session_ms,
        heartbeat_interval_ms=session_ms // 5,
        max_poll_interval_ms=_LONGEST_POLL_INTERVAL_MS,
        fetch_max_wait_ms=200,
        fetch_max_bytes=_FETCH_BYTES,
        max_partition_fetch_bytes=_PARTITION_FETCH_BYTES,
        **options,
    )
    # Joining waits for members that have died.
    async with running(consumer, settings, START_SECONDS + settings.session_timeout_seconds):
        yield GroupReader(settings, consumer, topic, group)


async def _begin_at(consumer: Any, topic: str, ends: dict[int, int]) -> None:
    """Commits where a group begins that never committed: else it would go by where the log ends when it starts again
    after a crash.
    """
    partitions = [TopicPartition(topic, number) for number in ends]
    consumer.assign(partitions)
    fresh = {one: ends[one.partition] for one in partitions if await consumer.committed(one) is None}
    try:
        if fresh:
            await consumer.commit(fresh)
    except (CommitFailedError, UnknownMemberIdError):
        # The group has members, and one of them has just done the same.
        _logger.debug("group_begun_by_another", topic=topic)


class GroupReader:
    """The records of the partitions that the group gives to this member, one after the other."""

    def __init__(self, settings: ConsumerSettings, consumer: Any, topic: str, group: str) -> None:
        self._settings = settings
        self._consumer = consumer
        self._topic = topic
        self._group = group

    async def read(self) -> TailedRecord:
        """The next record, waited for. Its `value` is `None` where the client itself could not read it.

        Raises:
            KafkaUnavailableError: Kafka does not let it read any more.
        """
        while True:
            if (record := await self.read_within(_POLL_SECONDS)) is not None:
                return record

    async def read_within(self, seconds: float) -> TailedRecord | None:
        """What `read` finds, `None` where that takes longer."""
        with translated(self._settings, f"topic {self._topic} or group {self._group}"):
            begin_poll()
            try:
                polled = await self._consumer.getmany(timeout_ms=int(seconds * 1000), max_records=1)
            except (KafkaError, IllegalStateError):
                raise
            except Exception as error:  # noqa: BLE001
                # A record that this client cannot decode (a header that is not UTF-8) raises at each poll.
                return await self._step_over(error)
            for partition, (record, *_) in polled.items():
                log_time_ns = record.timestamp * 10**6
                return TailedRecord(
                    partition.partition, record.offset, log_time_ns, record.key, record.value, record.headers
                )
            return None

    def lags(self, done: Mapping[int, int]) -> dict[int, int]:
        """How many records each partition of this member has, as the last fetches saw it, beyond what is done of it
        (next offsets); of partitions of which that is not known none.
        """
        ends = {one.partition: self._consumer.highwater(one) for one in self._consumer.assignment()}
        return {number: end - done[number] for number, end in ends.items() if end is not None and number in done}

    async def _step_over(self, error: Exception) -> TailedRecord | None:
        for partition in self._consumer.assignment():
            position = await self._consumer.position(partition)
            # Forgets what the client holds of it, of which it would skip the rest.
            self._consumer.seek(partition, position)
            try:
                await self._consumer.getmany(partition, timeout_ms=int(_POLL_SECONDS * 1000), max_records=1)
                self._consumer.seek(partition, position)
            except KafkaError:
                raise
            except Exception:  # noqa: BLE001
                _logger.warning("record_unreadable", topic=self._topic, offset=position, error=repr(error)[:500])
                self._consumer.seek(partition, position + 1)
                return TailedRecord(partition.partition, position, time.time_ns(), None, None)
        return None

    async def commit(self, record: TailedRecord) -> None:
        """Notes that everything up to this record is done. If the partition is another member's by now, that one does
        it again.

        Raises:
            KafkaUnavailableError: Kafka did not acknowledge it.
        """
        offsets = {TopicPartition(self._topic, record.partition): record.offset + 1}
        with translated(self._settings, f"group {self._group}"):
            try:
                await within(_COMMIT_SECONDS, self._consumer.commit(offsets))
            except (CommitFailedError, IllegalStateError):
                _logger.info("partition_moved_on", group=self._group, partition=record.partition)
