"""The Kafka client's side that all readers and writers share: starting and stopping it, what its errors mean,
publishing single records, and where logs end. What asks Kafka raises KafkaUnavailableError where it cannot or may not.
"""

from __future__ import annotations

import asyncio
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Coroutine, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from typing import Any, Self, TypeVar

import structlog
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.client import CoordinationType
from aiokafka.errors import (
    ClusterAuthorizationFailedError,
    GroupAuthorizationFailedError,
    IllegalStateError,
    KafkaConnectionError,
    KafkaError,
    MessageSizeTooLargeError,
    TopicAuthorizationFailedError,
    UnknownTopicOrPartitionError,
)

from runtap_consumers.errors import KafkaAwayError, KafkaUnavailableError, RecordTooLargeError
from runtap_consumers.kafka.client_log import watch_client_log
from runtap_schemas import ConnectionSettings

# Bounds an attempt, not a call: the client then asks the next broker. Calls are bounded by `within`.
REQUEST_TIMEOUT_MS = 4_000
START_SECONDS = 10.0
STOP_SECONDS = 2.0
PUBLISH_SECONDS = 12.0
ENDS_SECONDS = 5.0
# Before compression, checked by the client; the topic's own limit is on the compressed batch.
MAX_REQUEST_BYTES = 16 * 1024 * 1024
# How often the client looks for new partitions; its own default is five minutes.
METADATA_MAX_AGE_MS = 5_000
BACK_OFF_SECONDS = 0.25
# A topic that was only just made, or whose brokers change, is missing from the metadata for a moment.
_VANISHED_SECONDS = 2.0

_logger = structlog.get_logger(__name__)
_Result = TypeVar("_Result")


async def within(seconds: float, call: Coroutine[Any, Any, _Result]) -> _Result:
    """Awaits a client's call for a limited time, also where it swallows its cancellation.

    Raises:
        TimeoutError: it took longer, and is cancelled; or the client cancelled it.
    """
    task = asyncio.ensure_future(call)
    try:
        done, _ = await asyncio.wait({task}, timeout=seconds)
    except asyncio.CancelledError:
        _give_up(task)
        raise
    if not done:
        _give_up(task)
        raise TimeoutError(f"no answer within {seconds:.0f} s")
    if task.cancelled():
        # aiokafka's stop raises the cancellation of its own tasks; raised on, it would cancel the caller.
        raise TimeoutError("the client gave its own call up")
    return task.result()


def _give_up(task: asyncio.Future[Any]) -> None:
    task.cancel()
    # Without a look at its error asyncio logs it as never retrieved.
    task.add_done_callback(lambda done: done.cancelled() or done.exception())


@contextmanager
def translated(settings: ConnectionSettings, subject: str = "") -> Iterator[None]:
    """Turns what the client raises into `KafkaUnavailableError`, with the address, the true reason and a remedy.

    Args:
        settings: whose address and credentials the message names.
        subject: the topic or group that it is about.
    """
    log, began = watch_client_log(), time.monotonic()
    try:
        yield
    except (KafkaError, TimeoutError, OSError, AssertionError, IllegalStateError) as error:
        kind, explanation = _explain(error, settings, subject, log.reason_since(began))
        raise kind(explanation) from error


def _explain(
    error: BaseException, settings: ConnectionSettings, subject: str, reason: str | None
) -> tuple[type[KafkaUnavailableError], str]:
    address, user = settings.bootstrap_servers, settings.sasl_username or "the anonymous user"
    if isinstance(error, (TopicAuthorizationFailedError, GroupAuthorizationFailedError)):
        used = subject or "the topic"
        return KafkaUnavailableError, f"{user} has no right to use {used} on {address}: grant it READ or WRITE on that"
    if isinstance(error, ClusterAuthorizationFailedError):
        said = f"{user} has no right to do that on the cluster {address}: grant it, or ask who has it"
        return KafkaUnavailableError, said
    if isinstance(error, UnknownTopicOrPartitionError):
        return KafkaAwayError, (
            f"there is no topic {subject or '(unnamed)'} on {address}: run `runtap topics create`, "
            "or check RUNTAP_TOPIC_PREFIX"
        )
    if isinstance(error, MessageSizeTooLargeError):
        said = f"a record is larger than {subject or 'the topic'} on {address} takes: raise its max.message.bytes"
        return RecordTooLargeError, said
    said = (reason or str(error) or type(error).__name__).rstrip(".")
    if "uthentication" in said or "SASL" in said.upper():
        return KafkaUnavailableError, (
            f"Kafka at {address} refused the credentials of {user}: {said}. "
            "Check RUNTAP_SASL_USERNAME, RUNTAP_SASL_PASSWORD and RUNTAP_SASL_MECHANISM"
        )
    remedy = "Check RUNTAP_BOOTSTRAP_SERVERS, and whether it runs"
    if settings.security_protocol != "PLAINTEXT" or "SSL" in said:
        remedy += "; also RUNTAP_SECURITY_PROTOCOL and RUNTAP_SSL_CAFILE"
    return KafkaAwayError, f"cannot reach Kafka at {address}: {said}. {remedy}"


@asynccontextmanager
async def running(
    client: Any, settings: ConnectionSettings, start_seconds: float = START_SECONDS
) -> AsyncIterator[Any]:
    """A client of any kind, started and stopped, each with a deadline."""
    try:
        with translated(settings):
            await within(start_seconds, client.start())
        yield client
    finally:
        try:
            await within(STOP_SECONDS, client.close() if hasattr(client, "close") else client.stop())
        except (KafkaError, TimeoutError, OSError) as error:
            _logger.warning("kafka_client_abandoned", error=str(error) or type(error).__name__)
            abandon(client)


def abandon(client: Any) -> None:
    """Ends a client that would not stop: its tasks, its connections, and whoever still waits for it."""
    connection = getattr(client, "_client", None) or client.client
    if (sender := getattr(client, "_sender", None)) is not None:
        client._message_accumulator.fail_all(KafkaError("abandoned"))
        if sender.sender_task is not None:
            sender.sender_task.cancel()
    if connection._sync_task is not None:
        connection._sync_task.cancel()
    for open_connection in list(connection._conns.values()):
        open_connection.close()


def client_options(settings: ConnectionSettings) -> dict[str, Any]:
    """Arguments that every client here shares."""
    return {
        **settings.client_options(),
        "request_timeout_ms": REQUEST_TIMEOUT_MS,
        "metadata_max_age_ms": METADATA_MAX_AGE_MS,
    }


class _Connected(ABC):
    """A client that runs while its block does."""

    def __init__(self, settings: ConnectionSettings) -> None:
        self._settings = settings
        self._stack = AsyncExitStack()
        self._client: Any = None

    @abstractmethod
    def _make_client(self) -> Any: ...

    async def __aenter__(self) -> Self:
        self._client = await self._stack.enter_async_context(running(self._make_client(), self._settings))
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()


class Publisher(_Connected):
    """Writes single records, each acknowledged by all replicas in sync before the call returns.

    For what is rare: alerts and dead letters. After an error close it and make another: the record may, or may not,
    be in the log.
    """

    def _make_client(self) -> Any:
        options = client_options(self._settings)
        return AIOKafkaProducer(**options, acks="all", compression_type="zstd", max_request_size=MAX_REQUEST_BYTES)

    async def publish(
        self, topic: str, key: bytes | None, value: bytes | None, headers: Sequence[tuple[str, bytes]] = ()
    ) -> None:
        """Writes one record and waits for its acknowledgement, at most `PUBLISH_SECONDS`."""
        with translated(self._settings, topic):
            await within(
                PUBLISH_SECONDS, self._client.send_and_wait(topic, value, key=key, headers=list(headers) or None)
            )


class TopicEnds(_Connected):
    """Where the partitions of a topic end, asked again and again over one connection."""

    def __init__(self, settings: ConnectionSettings, topic: str) -> None:
        super().__init__(settings)
        self._topic = topic

    def _make_client(self) -> Any:
        return AIOKafkaConsumer(**client_options(self._settings), enable_auto_commit=False)

    async def read(self) -> dict[int, int]:
        """The offset of the next record of every partition."""
        with translated(self._settings, self._topic):
            return await within(ENDS_SECONDS, self._read())

    async def _read(self) -> dict[int, int]:
        partitions = await partitions_of(self._client, self._topic)
        ends = await self._client.end_offsets([TopicPartition(self._topic, number) for number in partitions])
        return {partition.partition: offset for partition, offset in ends.items()}


async def partitions_of(consumer: Any, topic: str) -> set[int]:
    """The partitions of a topic, as Kafka says now.

    Raises:
        UnknownTopicOrPartitionError, TopicAuthorizationFailedError: there is none that may be seen.
        KafkaConnectionError: nobody says whether there is.
    """
    deadline = time.monotonic() + _VANISHED_SECONDS
    await consumer._client.add_topic(topic)
    while True:
        is_told = await consumer._client.force_metadata_update()
        partitions = consumer.partitions_for_topic(topic)
        if is_told and partitions:
            return set(partitions)
        if topic in consumer._client.cluster.unauthorized_topics:
            raise TopicAuthorizationFailedError(topic)
        if time.monotonic() > deadline:
            # A broker that is shut down has told last that there is no topic.
            raise UnknownTopicOrPartitionError(topic) if is_told else KafkaConnectionError("no metadata")
        await asyncio.sleep(BACK_OFF_SECONDS)


async def check_reading(settings: ConnectionSettings, topic: str, group: str) -> None:
    """Reads at the end of a topic and looks for a group's coordinator, to see whether both are allowed."""
    consumer = AIOKafkaConsumer(**client_options(settings), enable_auto_commit=False, auto_offset_reset="latest")
    async with running(consumer, settings):
        with translated(settings, topic):
            numbers = await within(ENDS_SECONDS, partitions_of(consumer, topic))
            consumer.assign([TopicPartition(topic, min(numbers))])
            await within(ENDS_SECONDS, consumer.getmany(timeout_ms=300))
        with translated(settings, f"group {group}"):
            await within(ENDS_SECONDS, _find_coordinator(consumer, group))


async def _find_coordinator(consumer: Any, group: str) -> None:
    while True:
        try:
            await consumer._client.coordinator_lookup(CoordinationType.GROUP, group)
            return
        except KafkaError as error:
            # Kafka makes its topic of groups when it is first asked for one; until then there is no coordinator.
            if not error.retriable:
                raise
        await asyncio.sleep(BACK_OFF_SECONDS)
