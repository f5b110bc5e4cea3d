"""The connection to Kafka, and the only module that knows aiokafka.

`Link.run` keeps a producer; `Link.send` sends one frame and says how it ended in the four ways that a lane tells apart.
A producer is given up only where it missed our own deadline or its tasks died: with any other failure the same
producer recovers soonest.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import aiokafka.errors as kafka_errors
from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError
from aiokafka.partitioner import DefaultPartitioner
from aiokafka.protocol.metadata import MetadataRequest

from runtap_collector.logs import log
from runtap_schemas import ConnectionSettings
from runtap_schemas.frame import MAX_FRAME_BYTES

REQUEST_TIMEOUT_MS = 4_000
# An attempt may wait for another before it and for metadata, so a delivery takes longer than a request.
DELIVERY_SECONDS = 3 * REQUEST_TIMEOUT_MS / 1_000
_MIN_RETRY_SECONDS = 0.1
_MAX_RETRY_SECONDS = 2.0
_STOP_SECONDS = 0.2


class _InvalidRecordError(kafka_errors.UnknownError):  # type: ignore[misc]
    errno = 87
    message = "INVALID_RECORD"
    description = "The broker refuses a record of the batch."


# aiokafka 0.14 knows no such code, and would show what can never pass as an error that may. To an app with a client of
# its own it stays the unknown error that it was.
kafka_errors.kafka_errors.setdefault(_InvalidRecordError.errno, _InvalidRecordError)

_REFUSALS: dict[type[Exception], str] = {
    kafka_errors.MessageSizeTooLargeError: "too_large",
    kafka_errors.RecordListTooLargeError: "too_large",
    kafka_errors.InvalidTimestampError: "invalid_timestamp",
    kafka_errors.CorruptRecordException: "invalid_record",
    kafka_errors.kafka_errors[_InvalidRecordError.errno]: "invalid_record",
}
_LACKS_REPLICAS = (kafka_errors.NotEnoughReplicasError, kafka_errors.NotEnoughReplicasAfterAppendError)


class SendError(Exception):
    """A frame was not acknowledged. `reason` is for people."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class FrameRefusedError(SendError):
    """Kafka refuses this frame for good. `reason` is a word for the ledger."""


class SendDeniedError(SendError):
    """An operator must act first: rights, credentials, a setting of the topic. Sent again later, it may pass."""


class PartitionUnknownError(SendError):
    """The metadata do not know the partition, not yet or not any more."""


class SendFailedError(SendError):
    """The frame may have reached the log or not.

    `lacks_replicas`: the partition has a leader, and too few replicas in sync.
    """

    lacks_replicas = False


class Link:
    """A producer, kept connected."""

    def __init__(self, settings: ConnectionSettings, topic: str) -> None:
        self._settings = settings
        self._topic = topic
        self._producer: Any = None
        self._is_up = asyncio.Event()
        self._is_lost = asyncio.Event()
        self._down_since: float | None = None
        self._took_frame_at = time.monotonic()
        # By the brokers' clock, where they say it.
        self.newest_append_ns = 0
        # What has had no answer yet: when this began to connect, and when frames went out.
        self._connecting_since: float | None = None
        self._asked_at: set[float] = set()
        self._last_complaint: str | None = None
        self._abandoned: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Connects, and connects anew whenever a producer is lost, until cancelled."""
        wait_seconds = _MIN_RETRY_SECONDS
        while True:
            self._connecting_since = self._connecting_since or time.monotonic()
            producer = self._make_producer()
            try:
                async with asyncio.timeout(DELIVERY_SECONDS):
                    await producer.start()
                    await producer.partitions_for(self._topic)
            except (KafkaError, OSError, TimeoutError) as error:
                self._say_not_started(error)
                self._abandon(producer)
                await asyncio.sleep(wait_seconds)
                wait_seconds = min(wait_seconds * 2, _MAX_RETRY_SECONDS)
                continue
            except BaseException:
                self._abandon(producer)
                raise
            wait_seconds = _MIN_RETRY_SECONDS
            self._connecting_since = None
            self._producer = producer
            self._is_lost.clear()
            self._is_up.set()
            await self._is_lost.wait()

    def _make_producer(self) -> Any:
        return AIOKafkaProducer(
            **self._settings.client_options(),
            acks="all",
            compression_type="zstd",
            max_batch_size=MAX_FRAME_BYTES + 1024,
            request_timeout_ms=REQUEST_TIMEOUT_MS,
            metadata_max_age_ms=5_000,
            # Sticks for good after one refused batch; the events' numbers do its work.
            enable_idempotence=False,
        )

    async def wait_until_up(self) -> None:
        """Waits for a producer that knows the topic."""
        await self._is_up.wait()

    def partitions(self) -> frozenset[int]:
        """The topic's partitions as the metadata have them now. Empty: unknown."""
        if self._producer is None:
            return frozenset()
        return frozenset(self._producer.client.cluster.partitions_for_topic(self._topic) or ())

    def partition_of(self, key: str) -> int | None:
        """The partition that Kafka's own clients would choose for this key. `None`: none is known."""
        partitions = sorted(self.partitions())
        return int(DefaultPartitioner()(key.encode(), partitions, [])) if partitions else None

    async def writable_besides(self, partition: int, failure: SendError) -> frozenset[int]:
        """The partitions that by what Kafka says just now would take what this one does not. None: it is Kafka that is
        away, or nothing is known.
        """
        try:
            async with asyncio.timeout(DELIVERY_SECONDS):
                if self._producer is None or not await self._producer.client.force_metadata_update():
                    return frozenset()
        except TimeoutError:
            return frozenset()
        known = self._producer.client.cluster._partitions.get(self._topic, {}) if self._producer else {}
        stuck = known.get(partition)
        lacks_replicas = isinstance(failure, SendFailedError) and failure.lacks_replicas
        return frozenset(
            number
            for number, each in known.items()
            if each.leader != -1
            and (
                stuck is None
                or stuck.leader == -1
                or len(each.isr) > len(stuck.isr)
                or (each.leader != stuck.leader and not lacks_replicas)
            )
        )

    @property
    def down_seconds(self) -> float:
        """For how long Kafka could not be written, as far as is known. 0: it could at last."""
        return 0.0 if self._down_since is None else time.monotonic() - self._down_since

    @property
    def unanswered_seconds(self) -> float:
        """For how long Kafka has said nothing to what it was asked, while it took no other frame. 0: it was asked
        nothing.
        """
        asked_at = min(self._asked_at, default=self._connecting_since)
        return 0.0 if asked_at is None else min(time.monotonic() - asked_at, self.silent_seconds)

    @property
    def silent_seconds(self) -> float:
        """Since Kafka took a frame, or since this began."""
        return time.monotonic() - self._took_frame_at

    async def cluster_id(self) -> str:
        """The id of the cluster behind the connection; empty where it does not say."""
        if self._producer is None:
            return ""
        client = self._producer.client
        try:
            async with asyncio.timeout(DELIVERY_SECONDS):
                answer = await client.send(client.get_random_node(), MetadataRequest([]))
        except (KafkaError, OSError, TimeoutError):
            return ""
        return str(getattr(answer, "cluster_id", None) or "")

    async def send(self, key: bytes, value: bytes, partition: int, timestamp_ms: int) -> None:
        """Sends a frame and waits until Kafka has it. Asked for once more, it sends the same bytes.

        Raises:
            SendError: one of its subclasses: what to do next.
        """
        await self.wait_until_up()
        producer = self._producer
        asked_at = time.monotonic()
        self._asked_at.add(asked_at)
        builder = producer.create_batch()
        builder.append(timestamp=timestamp_ms, key=key, value=value)
        try:
            async with asyncio.timeout(DELIVERY_SECONDS):
                delivery = await producer.send_batch(builder, self._topic, partition=partition)
                written = await delivery
        except TimeoutError as error:
            self._lose(producer)
            raise SendFailedError(f"no answer within {DELIVERY_SECONDS:.0f} s") from error
        except AssertionError as error:
            # aiokafka's way to say that its metadata lack the partition.
            raise PartitionUnknownError(str(error)) from error
        except OSError as error:
            raise SendFailedError(str(error)) from error
        except KafkaError as error:
            if self._has_dead_task(producer):
                self._lose(producer)
            raise _classify(error) from error
        finally:
            self._asked_at.discard(asked_at)
        self.newest_append_ns = max(self.newest_append_ns, (written.timestamp or 0) * 1_000_000)
        self._say_up()

    def _say_not_started(self, error: Exception) -> None:
        if isinstance(error, kafka_errors.UnknownTopicOrPartitionError):
            self.say_down("there is no such topic; make it with: runtap topics create", "events_topic_missing")
        else:
            self.say_down(str(error) or type(error).__name__)

    def say_down(self, reason: str, event: str = "kafka_unreachable") -> None:
        """Logs that Kafka cannot be written, once until it can."""
        if self._down_since is None:
            self._down_since = time.monotonic()
            log.warning(
                event,
                bootstrap_servers=self._settings.bootstrap_servers,
                topic=self._topic,
                reason=reason,
                # A wrong password looks like an outage: what it was, only aiokafka's log tells.
                complaint=self._last_complaint,
                consequence="events wait in RUNTAP_SPOOL_DIR, or in memory up to RUNTAP_BUFFER_BYTES",
            )

    def _say_up(self) -> None:
        self._took_frame_at = time.monotonic()
        if self._down_since is not None:
            self._down_since = None
            self._last_complaint = None
            log.warning("kafka_reached", bootstrap_servers=self._settings.bootstrap_servers, topic=self._topic)

    def _lose(self, producer: Any) -> None:
        if producer is self._producer:
            self._producer = None
            self._is_up.clear()
            self._is_lost.set()
            self._abandon(producer)

    @staticmethod
    def _has_dead_task(producer: Any) -> bool:
        tasks = (producer._sender.sender_task, producer.client._sync_task)
        return any(task is None or task.done() for task in tasks)

    def _abandon(self, producer: Any) -> None:
        """Gives a producer up such that nobody waits for it and it connects no more.

        A request that is written may still land. aiokafka has no way to do this: its `stop` waits for the brokers.
        """
        producer._closed = True
        accumulator = producer._message_accumulator
        # A batch that is to be tried again is taken out of these a second time when it fails.
        accumulator._pending_batches.update(batch for batches in accumulator._batches.values() for batch in batches)
        accumulator.fail_all(KafkaError("the producer was given up"))
        for batch in accumulator._pending_batches:
            _read_failure(batch.future)
            _read_failure(batch._drain_waiter)
        client = producer.client
        for task in (producer._sender.sender_task, client._sync_task):
            if task is not None and not task.done():
                task.cancel()
                self._abandoned.add(task)
                task.add_done_callback(self._forget)
        if client._md_update_fut is not None and not client._md_update_fut.done():
            client._md_update_fut.set_result(False)
        connections = list(client._conns.values())
        client._conns = _RefusedConnections()
        for connection in connections:
            connection._on_close_cb = None
            if connection._writer is not None:
                connection._writer.transport.abort()
            connection.close()

    def _forget(self, task: asyncio.Task[None]) -> None:
        self._abandoned.discard(task)
        _read_failure(task)

    async def stop(self) -> None:
        """Ends the connection, politely if that is quick."""
        producer, self._producer = self._producer, None
        self._is_up.clear()
        if producer is not None:
            try:
                async with asyncio.timeout(_STOP_SECONDS):
                    await producer.stop()
            except (KafkaError, OSError, TimeoutError):
                self._abandon(producer)
        if self._abandoned:
            await asyncio.wait(self._abandoned, timeout=_STOP_SECONDS)

    @contextmanager
    def overheard(self) -> Iterator[None]:
        """Keeps aiokafka's log of this thread for ourselves: its reasons are needed, its thousand lines a second are
        not.

        The app's own Kafka clients live in other threads and log as ever.
        """
        eavesdropper = _Eavesdropper(self)
        names = [name for name in logging.root.manager.loggerDict if name.split(".")[0] == "aiokafka"]
        loggers = [logging.getLogger(name) for name in names]
        for logger in loggers:
            logger.addFilter(eavesdropper)
        try:
            yield
        finally:
            for logger in loggers:
                logger.removeFilter(eavesdropper)


def _read_failure(future: asyncio.Future[Any]) -> None:
    """Keeps asyncio from logging a failure as never retrieved."""
    if future.done() and not future.cancelled():
        future.exception()


class _RefusedConnections(dict[Any, Any]):
    """Takes the place of a given-up client's connections: a task that is still connecting cannot keep what it made."""

    def __setitem__(self, key: Any, connection: Any) -> None:
        connection._on_close_cb = None
        connection.close()
        raise kafka_errors.KafkaConnectionError("the producer was given up")


class _Eavesdropper(logging.Filter):
    def __init__(self, link: Link) -> None:
        super().__init__()
        self._link = link
        self._thread = threading.get_ident()

    def filter(self, record: logging.LogRecord) -> bool:
        if record.thread != self._thread:
            return True
        if record.levelno >= logging.WARNING:
            self._link._last_complaint = record.getMessage()[:500]
        return False


def _classify(error: KafkaError) -> SendError:
    for kind, word in _REFUSALS.items():
        if isinstance(error, kind):
            return FrameRefusedError(word)
    reason = str(error)
    if getattr(error, "retriable", False) or type(error) is KafkaError:
        failure = SendFailedError(reason)
        failure.lacks_replicas = isinstance(error, _LACKS_REPLICAS)
        return failure
    return SendDeniedError(reason)
