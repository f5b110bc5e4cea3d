"""Following a topic without a consumer group: the records of all its partitions, as they come."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any, NamedTuple

import structlog
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import (
    GroupAuthorizationFailedError,
    KafkaError,
    OffsetOutOfRangeError,
    TopicAuthorizationFailedError,
)

from runtap_consumers.kafka.client import (
    BACK_OFF_SECONDS,
    START_SECONDS,
    client_options,
    partitions_of,
    running,
    translated,
    within,
)
from runtap_consumers.kafka.client_log import watch_client_log
from runtap_schemas import ConnectionSettings

_IDLE_SECONDS = 0.05

_logger = structlog.get_logger(__name__)


class TailedRecord(NamedTuple):
    """One record of a topic. `value` is `None` for a record that the client itself could not read."""

    partition: int
    offset: int
    log_time_ns: int
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes], ...] = ()


async def tail_records(
    settings: ConnectionSettings, topic: str, from_beginning: bool = False
) -> AsyncIterator[TailedRecord]:
    """The records of all partitions of a topic as they come, without a consumer group; never ends by itself.

    Args:
        settings: how to reach Kafka.
        topic: its name; partitions that are added later are followed too.
        from_beginning: start with the oldest record that is kept instead of the next one.

    Raises:
        KafkaUnavailableError: Kafka cannot be reached at the start, or the topic does not exist any more.
    """
    consumer = AIOKafkaConsumer(**client_options(settings), enable_auto_commit=False, auto_offset_reset="none")
    async with running(consumer, settings):
        tail = _Tail(consumer, settings, topic)
        await tail.begin(from_beginning)
        # From here on no error says why nothing comes.
        watch_client_log(is_silent=False)
        while True:
            found = False
            for partition in list(tail.positions):
                for record in await tail.poll(partition):
                    found = True
                    yield record
            if not found:
                await asyncio.sleep(_IDLE_SECONDS)
            await tail.follow_partitions()


class _Tail:
    """The positions of a tail in its partitions, kept here: the client forgets them with each new assignment, and hands
    out nothing of what it had fetched once a call has raised.
    """

    def __init__(self, consumer: Any, settings: ConnectionSettings, topic: str) -> None:
        self._consumer = consumer
        self._settings = settings
        self._topic = topic
        self._single: set[int] = set()
        self.positions: dict[int, int] = {}

    async def begin(self, from_beginning: bool) -> None:
        with translated(self._settings, self._topic):
            partitions = await within(START_SECONDS, partitions_of(self._consumer, self._topic))
            names = [TopicPartition(self._topic, number) for number in sorted(partitions)]
            offsets_of = self._consumer.beginning_offsets if from_beginning else self._consumer.end_offsets
            offsets = await within(START_SECONDS, offsets_of(names))
        self._assign({name.partition: offsets[name] for name in names})

    def _assign(self, positions: dict[int, int]) -> None:
        self.positions = positions
        self._consumer.assign([TopicPartition(self._topic, number) for number in positions])
        for number, offset in positions.items():
            self._consumer.seek(TopicPartition(self._topic, number), offset)

    async def follow_partitions(self) -> None:
        """Takes in partitions that were added, and ends the tail when the topic is gone."""
        known = self._consumer.partitions_for_topic(self._topic)
        if known is not None and known <= self.positions.keys():
            return
        with translated(self._settings, self._topic):
            known = await within(START_SECONDS, partitions_of(self._consumer, self._topic))
        added = sorted(known - self.positions.keys())
        if added:
            _logger.info("partitions_added", topic=self._topic, partitions=added)
            self._assign({**self.positions, **dict.fromkeys(added, 0)})

    async def poll(self, number: int) -> list[TailedRecord]:
        """What has arrived in one partition; nothing after an error, which is waited out."""
        partition = TopicPartition(self._topic, number)
        is_single = number in self._single
        try:
            polled = await self._consumer.getmany(partition, timeout_ms=0, max_records=1 if is_single else 500)
        except (TopicAuthorizationFailedError, GroupAuthorizationFailedError):
            with translated(self._settings, self._topic):
                raise
        except OffsetOutOfRangeError:
            await self._restart(partition)
            return []
        except KafkaError as error:
            _logger.warning("fetch_failed", topic=self._topic, partition=number, error=str(error))
            self._consumer.seek(partition, self.positions[number])
            await asyncio.sleep(BACK_OFF_SECONDS)
            return []
        except ValueError:
            # A header that is not UTF-8 raises for ever: find the record, and step over it.
            return self._step_over(partition, is_single)
        records = [
            TailedRecord(number, record.offset, record.timestamp * 10**6, record.key, record.value, record.headers)
            for record in polled.get(partition, [])
        ]
        if records:
            self.positions[number] = records[-1].offset + 1
        return records

    def _step_over(self, partition: TopicPartition, is_single: bool) -> list[TailedRecord]:
        number, offset = partition.partition, self.positions[partition.partition]
        if is_single:
            self._single.discard(number)
            self.positions[number] = offset + 1
        else:
            self._single.add(number)
        self._consumer.seek(partition, self.positions[number])
        return [TailedRecord(number, offset, time.time_ns(), None, None)] if is_single else []

    async def _restart(self, partition: TopicPartition) -> None:
        """The log has moved past our position, or was made again: go on where it begins."""
        await asyncio.sleep(BACK_OFF_SECONDS)
        with translated(self._settings, self._topic):
            begins = await within(START_SECONDS, self._consumer.beginning_offsets([partition]))
        _logger.warning("log_start_moved", topic=self._topic, partition=partition.partition, offset=begins[partition])
        self.positions[partition.partition] = begins[partition]
        self._consumer.seek(partition, begins[partition])
