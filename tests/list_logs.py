"""Logs that are lists, as a rebuild reads them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from runtap_consumers.kafka.partition_reader import LostToRetentionError, PartitionReader
from runtap_consumers.kafka.records import KafkaRecord
from samples import Log, LogRecord


class ListLogs(PartitionReader):
    """Partitions' logs as the rebuild reads them. `on_poll` is what else happens at each poll."""

    def __init__(self, logs: dict[int, Log], on_poll: Callable[[], None] = lambda: None) -> None:
        self.logs = logs
        self._on_poll = on_poll

    async def log_range(self, partition: int) -> tuple[int, int]:
        log = self.logs[partition]
        return log.first_offset, log.first_offset + len(log.records)

    def take(self, offsets: dict[int, int]) -> None:
        assert offsets.keys() <= self.logs.keys()

    async def record_at(self, partition: int, offset: int) -> LogRecord | None:
        return next(iter(self.logs[partition].since(offset, 1)), None)

    async def poll(self, partition: int, next_offset: int, at_most: int) -> list[KafkaRecord]:
        # Two readers take turns.
        await asyncio.sleep(0)
        self._on_poll()
        log = self.logs[partition]
        if next_offset < log.first_offset:
            raise LostToRetentionError(str(next_offset))
        return [*log.since(next_offset, at_most)]


def trimmed(log: Log, first_offset: int) -> Log:
    """What retention left of a log."""
    left = Log(first_offset)
    left.records = log.records[first_offset - log.first_offset :]
    return left
