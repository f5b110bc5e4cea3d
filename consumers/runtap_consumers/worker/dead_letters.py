"""Publishing records that could not be read, as they were, from their table to a topic of their own."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor

import structlog

from runtap_consumers.errors import KafkaUnavailableError, RecordTooLargeError, StoreError
from runtap_consumers.kafka.client import Publisher
from runtap_consumers.settings import ConsumerSettings
from runtap_consumers.store.dead_letters import DeadLetter, mark_published, read_dead_letters
from runtap_consumers.store.engine import Store
from runtap_consumers.store.writer import Writer
from runtap_schemas.topics import dead_letters_topic

# A record that its topic does not take with our headers is cut; the table has it whole.
_CUT_BYTES = 100_000

_logger = structlog.get_logger(__name__)


async def keep_publishing_dead_letters(
    store: Store, settings: ConsumerSettings, partitions: Callable[[], Collection[int]]
) -> None:
    """Publishes those of the partitions at hand every second, until cancelled."""
    topic = dead_letters_topic(settings.topic_prefix)
    while True:
        try:
            async with Publisher(settings) as publisher:
                while True:
                    await publish_dead_letters(store, publisher, topic, partitions())
                    await asyncio.sleep(1)
        except (StoreError, KafkaUnavailableError) as error:
            _logger.warning("dead_letters_not_published", reason=str(error))
            await asyncio.sleep(10)


async def publish_dead_letters(store: Store, publisher: Publisher, topic: str, partitions: Collection[int]) -> int:
    """Publishes what is stored and not published, oldest first: the original key and bytes, the reason in headers.

    Each is marked after its acknowledgement, so published at least once; repeats have the same `id` header.

    Returns:
        How many were published.

    Raises:
        KafkaUnavailableError: Kafka did not take one; those before it are marked.
        StoreError: the store cannot be read or written.
    """
    letters = await asyncio.to_thread(_read, store, partitions)
    if not letters:
        return 0
    writer, thread = Writer.of(store), ThreadPoolExecutor(1, thread_name_prefix="runtap-dead-letters")
    try:
        for letter in letters:
            await _publish(publisher, topic, letter, store.events_topic)
            await asyncio.get_running_loop().run_in_executor(thread, _mark, writer, letter)
    finally:
        # In the thread that marks: after a cancellation it may still do so, and closing SQLite's connection under it
        # crashes the process.
        thread.submit(writer.close)
        thread.shutdown(wait=False)
    _logger.info("dead_letters_published", topic=topic, records=len(letters))
    return len(letters)


async def _publish(publisher: Publisher, topic: str, letter: DeadLetter, events_topic: str) -> None:
    headers = [
        ("id", letter.id.encode()),
        ("topic", events_topic.encode()),
        ("partition", str(letter.partition).encode()),
        ("offset", str(letter.log_offset).encode()),
        ("cause", letter.cause.encode()),
    ]
    try:
        # The client refuses a record that has neither key nor value.
        value = b"" if letter.key is None and letter.value is None else letter.value
        await publisher.publish(topic, letter.key, value, headers)
    except RecordTooLargeError:
        size = str(len(letter.value or b"")).encode()
        cut = (letter.value or b"")[:_CUT_BYTES]
        await publisher.publish(topic, None, cut, [*headers, ("original_bytes", size)])


def _read(store: Store, partitions: Collection[int]) -> list[DeadLetter]:
    with store.read() as connection:
        return read_dead_letters(connection, partitions)


def _mark(writer: Writer, letter: DeadLetter) -> None:
    with writer.transaction():
        mark_published(writer, letter.id)
