"""The worker's Kafka client: partitions of the events topic, one polled at a time.

Positions live in the store, so nothing here remembers any: whoever polls seeks first. A second client without a group
looks at single records and log ends, so that a look never disturbs the stream.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterable

import structlog
from aiokafka import AIOKafkaConsumer, ConsumerRebalanceListener, TopicPartition
from aiokafka.coordinator.assignors.range import RangePartitionAssignor
from aiokafka.errors import KafkaError, OffsetOutOfRangeError

from runtap_consumers.kafka.client import METADATA_MAX_AGE_MS, START_SECONDS, abandon, partitions_of, translated, within
from runtap_consumers.kafka.decompression import BatchTooLargeError, begin_poll, end_of_batch, limit_decompression
from runtap_consumers.kafka.records import KafkaRecord, UndecodableRecord, fingerprint_of, without_excess
from runtap_consumers.settings import ConsumerSettings

logger = structlog.get_logger(__name__)

_DEADLINE_SECONDS = 10.0
_STOP_SECONDS = 1.5
# A client cannot leave its group before a rebalance is over. Less than `run_worker` waits for a worker to end.
_STOP_REBALANCING_SECONDS = 2.5
_REBALANCE_WAIT_SECONDS = 1.0
# Compressed, a partition: enough for a whole commit of a worker that is behind; the client holds that much of each.
_FETCH_BYTES = 2 * 1024 * 1024
# How soon a worker learns of a rebalance, and so part of how long the partitions of one that was killed wait.
_HEARTBEAT_MS = 500
# How many sessions a rebalance waits for dead members (live ones answer within a heartbeat): with a whole one, the
# client's default, each further death during a rebalance adds a session, in which nothing is read.
_REBALANCE_SESSIONS, _SHORTEST_REBALANCE_MS = 1 / 3, 1_000
# How long a worker may not poll before it gives its partitions up.
_SILENT_SESSIONS, _LEAST_SILENT_MS = 6, 60_000
# Records that are read one by one after a poll raised, so that the one that cannot be decoded is found.
_CAREFUL_RECORDS = 2_000


class LostToRetentionError(Exception):
    """The offset asked for is not in the log: retention was quicker, or the log was made again."""


class PartitionReader:
    """Reads the partitions that the consumer group assigns to this process.

    What asks Kafka raises KafkaError or TimeoutError where Kafka did not answer: try again after a pause.
    """

    def __init__(
        self,
        settings: ConsumerSettings,
        topic: str,
        group: str | None,
        on_change: Callable[[], None],
        *,
        limited: Callable[[KafkaRecord], KafkaRecord] = without_excess,
    ) -> None:
        """Args:
        settings: how to reach Kafka.
        topic: the events topic.
        group: the consumer group's name; `None`: of no group, `take` says which partitions to read.
        on_change: called, on the event loop, when the assignment has changed; nothing may be polled any more
            before it was loaded and sought again.
        limited: what is handed out for a record.
        """
        self._limited = limited
        self._settings = settings
        limit_decompression()
        self._topic = topic
        self._on_change = on_change
        self._group = group
        self._careful: dict[int, int] = {}
        session_ms = int(settings.session_timeout_seconds * 1000)
        options = settings.client_options()
        self._consumer = AIOKafkaConsumer(
            group_id=group,
            enable_auto_commit=False,
            auto_offset_reset="none",
            partition_assignment_strategy=(RangePartitionAssignor,),
            session_timeout_ms=session_ms,
            heartbeat_interval_ms=min(session_ms // 5, _HEARTBEAT_MS),
            rebalance_timeout_ms=max(int(session_ms * _REBALANCE_SESSIONS), _SHORTEST_REBALANCE_MS),
            max_poll_interval_ms=max(session_ms * _SILENT_SESSIONS, _LEAST_SILENT_MS),
            metadata_max_age_ms=METADATA_MAX_AGE_MS,
            max_partition_fetch_bytes=_FETCH_BYTES,
            fetch_max_wait_ms=200,
            **options,
        )
        self._inspector = AIOKafkaConsumer(
            group_id=None,
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            metadata_max_age_ms=METADATA_MAX_AGE_MS,
            max_partition_fetch_bytes=64 * 1024,
            fetch_max_wait_ms=200,
            **options,
        )
        self._listener = _Listener(self._consumer, self._on_change)
        self._looking = asyncio.Lock()

    async def start(self) -> None:
        """Connects and joins the group, if there is one.

        Raises:
            KafkaUnavailableError: Kafka cannot be reached, or the topic does not exist.
        """
        with translated(self._settings, self._topic):
            await within(START_SECONDS, self._inspector.start())
        with translated(self._settings, self._topic):
            await self.partition_numbers()
        if self._group is not None:
            self._consumer.subscribe([self._topic], listener=self._listener)
        with translated(self._settings, self._topic):
            # Joining waits up to a session for members that have died.
            await within(START_SECONDS + self._settings.session_timeout_seconds, self._consumer.start())

    async def stop(self) -> None:
        """Leaves the group. Bounded: a client whose brokers are away may hang in its own stop."""
        consumer_seconds = _STOP_REBALANCING_SECONDS if self.is_rebalancing else _STOP_SECONDS
        for client, seconds in ((self._consumer, consumer_seconds), (self._inspector, _STOP_SECONDS)):
            try:
                await within(seconds, client.stop())
            except (KafkaError, TimeoutError) as error:
                logger.warning("kafka_client_abandoned", error=repr(error))
                abandon(client)

    def take(self, offsets: dict[int, int]) -> None:
        """Reads these partitions, each from its offset; for readers without a group."""
        self._consumer.assign([self._topic_partition(partition) for partition in offsets])
        # Before the first await, or the client raises: it has no offset to begin at.
        for partition, offset in offsets.items():
            self._consumer.seek(self._topic_partition(partition), offset)

    def assigned(self) -> set[int]:
        """The partitions that are this process's now."""
        return {topic_partition.partition for topic_partition in self._consumer.assignment()}

    @property
    def is_rebalancing(self) -> bool:
        """Whether the group's partitions are being shared out anew."""
        return self._group is not None and self._listener.is_rebalancing

    async def await_rebalance(self) -> None:
        """Polls no partition, so that the client, which leaves its group when it is never polled, remains a member.
        Returns at once, or when the group is balanced, or after a second."""
        with contextlib.suppress(TimeoutError):
            await within(_REBALANCE_WAIT_SECONDS, self._consumer.getmany(timeout_ms=0))

    async def partition_numbers(self) -> set[int]:
        """All partitions of the topic; UnknownTopicOrPartitionError: it does not exist (any more)."""
        return await within(_DEADLINE_SECONDS, partitions_of(self._inspector, self._topic))

    def seek(self, partition: int, offset: int) -> None:
        """Makes an offset the next to be polled, and lets polls of the partition return records."""
        topic_partition = self._topic_partition(partition)
        self._consumer.seek(topic_partition, offset)
        self._consumer.resume(topic_partition)

    async def poll(self, partition: int, next_offset: int, at_most: int) -> list[KafkaRecord]:
        """The records that are there now; none while the group is balanced.

        Args:
            partition: one that is assigned, loaded and sought.
            next_offset: of the caller; sought again after a failure.
            at_most: how many.

        Raises:
            LostToRetentionError: the log does not hold `next_offset`.
        """
        if self.is_rebalancing:
            # The client's poll would wait for the end of the rebalance, however long it takes.
            return []
        topic_partition = self._topic_partition(partition)
        careful = self._careful.get(partition, 0)
        begin_poll()
        try:
            polled = await self._consumer.getmany(topic_partition, timeout_ms=0, max_records=1 if careful else at_most)
        except OffsetOutOfRangeError as error:
            raise LostToRetentionError(str(error)) from error
        except KafkaError:
            self._seek_back(topic_partition, next_offset)
            raise
        except Exception as error:  # noqa: BLE001
            # A record that this client cannot decode (a header that is not UTF-8) raises at each poll: records are read
            # one by one until it is found, and it is stepped over.
            self._careful[partition] = _CAREFUL_RECORDS
            if not careful:
                self._seek_back(topic_partition, next_offset)
                return []
            end = end_of_batch(error) if isinstance(error, BatchTooLargeError) else None
            following = max(end or 0, next_offset + 1)
            self._seek_back(topic_partition, following)
            cause = f"the Kafka client cannot decode it: {error!r}"[:500]
            if end is not None:
                cause = f"offsets {next_offset} to {following - 1}: {error}"
            return [UndecodableRecord(following - 1, 0, cause)]
        if careful:
            self._careful[partition] = careful - 1
        return list(map(self._limited, polled.get(topic_partition, ())))

    def highwater(self, partition: int) -> int | None:
        """The partition's end as the last fetch saw it; `None` where there was none, or it is no longer assigned."""
        topic_partition = self._topic_partition(partition)
        if topic_partition not in self._consumer.assignment():
            return None
        end: int | None = self._consumer.highwater(topic_partition)
        return end

    async def log_range(self, partition: int) -> tuple[int, int]:
        """Offsets of the log's start and end (the next to be written)."""
        topic_partition = self._topic_partition(partition)
        starts = await within(_DEADLINE_SECONDS, self._inspector.beginning_offsets([topic_partition]))
        ends = await within(_DEADLINE_SECONDS, self._inspector.end_offsets([topic_partition]))
        return starts[topic_partition], ends[topic_partition]

    async def log_ends(self, partitions: Iterable[int]) -> dict[int, int]:
        """Offsets of several partitions' ends."""
        topic_partitions = [self._topic_partition(partition) for partition in partitions]
        ends = await within(_DEADLINE_SECONDS, self._inspector.end_offsets(topic_partitions))
        return {topic_partition.partition: end for topic_partition, end in ends.items()}

    async def record_at(self, partition: int, offset: int) -> KafkaRecord | None:
        """One record; `None` where the log does not hold that offset any more, or it is no data record."""
        topic_partition = self._topic_partition(partition)
        async with self._looking:
            self._inspector.assign([topic_partition])
            self._inspector.seek(topic_partition, offset)
            begin_poll()
            try:
                polled = await within(
                    _DEADLINE_SECONDS, self._inspector.getmany(topic_partition, timeout_ms=5_000, max_records=1)
                )
            except (KafkaError, TimeoutError):
                raise
            except Exception as error:  # noqa: BLE001
                # What `poll` stepped over may be the last of a commit, whose fingerprint is compared.
                return UndecodableRecord(offset, 0, repr(error))
        records = polled.get(topic_partition, ())
        return self._limited(records[0]) if records and records[0].offset == offset else None

    async def log_start_time(self, partition: int) -> int:
        """When the oldest record was appended that the log still holds, Unix nanoseconds; now where it holds none, 0
        where that is not known.

        Raises:
            KafkaError: Kafka did not say.
        """
        log_start, log_end = await self.log_range(partition)
        if log_start == log_end:
            return time.time_ns()
        record = await self.record_at(partition, log_start)
        return 0 if record is None else record.timestamp * 1_000_000

    async def is_same_log(self, partition: int, positions: list[tuple[int, str]], log_start: int, log_end: int) -> bool:
        """Compares the log with what was read of it: its end, and the record before each next offset.

        Raises:
            KafkaError: Kafka did not say.
        """
        for next_offset, fingerprint in positions:
            if next_offset > log_end:
                return False
            if not fingerprint and next_offset > log_start:
                # Nothing was read yet, so it began at the log's start; and a log's start never goes back.
                return False
            if not fingerprint or next_offset - 1 < log_start:
                continue
            record = await self.record_at(partition, next_offset - 1)
            if record is not None and fingerprint_of(record) != fingerprint:
                return False
        return True

    async def publish_progress(self, offsets: dict[int, int]) -> None:
        """Commits offsets to Kafka, for lag tools only: nothing of runtap reads them. Not while the group is balanced:
        the request would wait behind that of joining, arrive with a generation that is over, and make the client forget
        who it is; the group then waits for the one that it was until its session ends.
        """
        if self.is_rebalancing:
            return
        await within(
            _DEADLINE_SECONDS,
            self._consumer.commit({self._topic_partition(partition): offset for partition, offset in offsets.items()}),
        )

    def _seek_back(self, topic_partition: TopicPartition, offset: int) -> None:
        if topic_partition in self._consumer.assignment():
            self._consumer.seek(topic_partition, offset)

    def _topic_partition(self, partition: int) -> TopicPartition:
        return TopicPartition(self._topic, partition)


class _Listener(ConsumerRebalanceListener):  # type: ignore[misc]
    def __init__(self, consumer: AIOKafkaConsumer, on_change: Callable[[], None]) -> None:
        self._consumer = consumer
        self._on_change = on_change
        self.is_rebalancing = True

    def on_partitions_revoked(self, revoked: set[TopicPartition]) -> None:
        self.is_rebalancing = True
        self._on_change()

    def on_partitions_assigned(self, assigned: set[TopicPartition]) -> None:
        # Before the first await, or records are fetched from Kafka's committed offset.
        self._consumer.pause(*assigned)
        self.is_rebalancing = False
        self._on_change()
