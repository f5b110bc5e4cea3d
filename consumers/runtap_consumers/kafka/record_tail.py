"""Following a topic without a consumer group: the records of all its partitions, as they come."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import aclosing
from typing import NamedTuple

import structlog
from aiokafka.errors import GroupAuthorizationFailedError, KafkaError, TopicAuthorizationFailedError

from runtap_consumers.kafka.client import BACK_OFF_SECONDS, TopicEnds, translated
from runtap_consumers.kafka.client_log import watch_client_log
from runtap_consumers.kafka.partition_reader import LostToRetentionError, PartitionReader
from runtap_consumers.kafka.records import KafkaRecord
from runtap_consumers.settings import ConsumerSettings

_IDLE_SECONDS = 0.05
# How often Kafka is asked whether the topic has more partitions, or is gone.
_LOOK_SECONDS = 1.0
_RECORDS_A_POLL = 500
_COMPACTED_SECONDS = 60.0

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
    settings: ConsumerSettings, topic: str, from_beginning: bool = False, first: Mapping[int, int] | None = None
) -> AsyncIterator[TailedRecord]:
    """The records of all partitions of a topic as they come, without a consumer group; never ends by itself.

    Args:
        settings: how to reach Kafka.
        topic: its name; partitions that are added later are followed too.
        from_beginning: start with the oldest record that is kept instead of the next one.
        first: start with these offsets, of the partitions that it names.

    Raises:
        KafkaUnavailableError: Kafka cannot be reached at the start, or the topic does not exist any more.
    """
    reader = PartitionReader(settings, topic, None, lambda: None, limited=lambda record: record)
    try:
        await reader.start()
        with translated(settings, topic):
            ranges = {number: await reader.log_range(number) for number in sorted(await reader.partition_numbers())}
        offsets = {number: start if from_beginning else end for number, (start, end) in ranges.items()}
        offsets |= first or {}
        reader.take(offsets)
        # From here on no error says why nothing comes.
        watch_client_log(is_silent=False)
        look_at = time.monotonic()
        while True:
            found = False
            for number in list(offsets):
                for record in await _poll(reader, settings, topic, offsets, number):
                    found = True
                    offsets[number] = record.offset + 1
                    # The client gives no time for what it cannot decode.
                    log_time_ns = record.timestamp * 10**6 or time.time_ns()
                    headers = getattr(record, "headers", ())
                    yield TailedRecord(number, record.offset, log_time_ns, record.key, record.value, headers)
            if not found:
                await asyncio.sleep(_IDLE_SECONDS)
            if time.monotonic() < look_at:
                continue
            look_at = time.monotonic() + _LOOK_SECONDS
            with translated(settings, topic):
                added = await reader.partition_numbers() - offsets.keys()
            if added:
                _logger.info("partitions_added", topic=topic, partitions=sorted(added))
                offsets |= dict.fromkeys(sorted(added), 0)
                reader.take(offsets)
    finally:
        await reader.stop()


async def read_compacted(settings: ConsumerSettings, topic: str) -> tuple[dict[bytes, TailedRecord], dict[int, int]]:
    """The last record of every key, and the offsets after all that was read, to follow the topic from there.

    Raises:
        KafkaUnavailableError: Kafka or the topic cannot be reached, or did not give all of it in time.
    """
    async with TopicEnds(settings, topic) as asked:
        ends = await asked.read()
    latest: dict[bytes, TailedRecord] = {}
    # The last record of a log is never compacted away, so that an end is always reached.
    reached = dict.fromkeys(ends, 0)
    with translated(settings, topic):
        async with asyncio.timeout(_COMPACTED_SECONDS), aclosing(tail_records(settings, topic, True)) as records:  # type: ignore[type-var]
            while any(reached[number] < end for number, end in ends.items()):
                record = await anext(records)
                reached[record.partition] = record.offset + 1
                if record.key is not None:
                    latest[record.key] = record
    return latest, reached


async def _poll(
    reader: PartitionReader, settings: ConsumerSettings, topic: str, offsets: dict[int, int], number: int
) -> list[KafkaRecord]:
    """What has arrived in one partition; nothing after an error, which is waited out."""
    try:
        return await reader.poll(number, offsets[number], _RECORDS_A_POLL)
    except (TopicAuthorizationFailedError, GroupAuthorizationFailedError):
        with translated(settings, topic):
            raise
    except LostToRetentionError:
        # The log has moved past our position, or was made again: go on where it begins.
        with translated(settings, topic):
            offsets[number], _ = await reader.log_range(number)
        _logger.warning("log_start_moved", topic=topic, partition=number, offset=offsets[number])
        reader.seek(number, offsets[number])
    except KafkaError as error:
        _logger.warning("fetch_failed", topic=topic, partition=number, error=str(error))
    await asyncio.sleep(BACK_OFF_SECONDS)
    return []
