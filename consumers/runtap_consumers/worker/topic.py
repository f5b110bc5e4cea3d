"""What a worker does beside its loop for its topic: it looks whether all of it is there, and tells Kafka how far it
has come, for lag tools.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from typing import Any

import structlog

from runtap_consumers.errors import StoreError, WorkerStoppedError
from runtap_consumers.kafka.errors import KafkaError, UnknownTopicOrPartitionError
from runtap_consumers.kafka.partition_reader import PartitionReader
from runtap_consumers.store.positions import note_gone_partitions, read_partitions
from runtap_consumers.store.writer import Writer
from runtap_consumers.worker.health import Health

_logger = structlog.get_logger(__name__)

LOOK_EVERY_SECONDS = 5.0
_PUBLISH_EVERY_SECONDS = 5.0
# A broker that has just started does not know all partitions, nor one that others were added to.
GONE_SECONDS = 60.0


async def watch_topic(
    reader: PartitionReader,
    topic: str,
    projections: tuple[str, ...],
    writer: Writer,
    in_thread: Callable[..., Coroutine[Any, Any, Any]],
    health: Health,
) -> None:
    """Notes partitions that the topic had when it was read, and has no longer: nobody will reach their ends; and in
    the worker's health, whether Kafka and the store answer.

    Args:
        reader: started.
        topic: its name.
        projections: whose positions say which partitions there were.
        writer: for the thread that writes.
        in_thread: runs a function there.
        health: of the worker.

    Raises:
        WorkerStoppedError: the whole topic is gone.
    """
    missing: dict[int, float] = {}
    noted: list[int] = []
    while True:
        await asyncio.sleep(LOOK_EVERY_SECONDS)
        try:
            numbers = await reader.partition_numbers()
            with_position = await in_thread(read_partitions, writer, projections)
            now = time.monotonic()
            missing = {number: missing.get(number, now) for number in with_position - numbers}
            gone = sorted(number for number, since in missing.items() if now - since >= GONE_SECONDS)
            if gone and gone != noted:
                _logger.error("partitions_gone", partitions=gone, topic=topic)
                await in_thread(note_gone_partitions, writer, projections, gone, time.time_ns())
            noted = gone
            health.unanswered = None
        except UnknownTopicOrPartitionError as error:
            raise WorkerStoppedError(
                f"topic {topic} is no longer there: make it again with `runtap topics create`"
            ) from error
        except (KafkaError, StoreError, TimeoutError) as error:
            # One of them is away, which says nothing about the topic.
            health.unanswered = health.unanswered or (time.monotonic(), str(error) or repr(error))


async def publish_progress(reader: PartitionReader, next_offsets: Callable[[], dict[int, int]]) -> None:
    """Tells Kafka every few seconds what `next_offsets` says, by partition."""
    while True:
        await asyncio.sleep(_PUBLISH_EVERY_SECONDS)
        offsets = next_offsets()
        try:
            if offsets:
                await reader.publish_progress(offsets)
        except (KafkaError, TimeoutError) as error:
            _logger.debug("progress_not_published", reason=repr(error))
