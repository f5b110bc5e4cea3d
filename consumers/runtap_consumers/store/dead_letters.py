"""Records that could not be read, on their way from their table to a topic of their own."""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple

from sqlalchemy import Connection, select

from runtap_consumers.store.tables import dead_letters
from runtap_consumers.store.writer import Writer


class DeadLetter(NamedTuple):
    """A record that could not be read, as it was."""

    id: str
    partition: int
    log_offset: int
    cause: str
    key: bytes | None
    value: bytes | None


def read_dead_letters(connection: Connection, partitions: Collection[int], limit: int = 100) -> list[DeadLetter]:
    """Unpublished dead letters of some partitions, the oldest first. Asked every second."""
    letters = dead_letters.c
    rows = connection.execute(
        select(letters.id, letters.partition, letters.log_offset, letters.cause, letters.key, letters.value)
        .where(letters.published == 0, letters.partition.in_(partitions))
        .order_by(letters.log_time_ns, letters.partition, letters.log_offset)
        .limit(limit)
    )
    return [DeadLetter._make(row) for row in rows]


def mark_published(writer: Writer, letter_id: str) -> None:
    """Notes, inside a transaction, that Kafka has acknowledged a dead letter."""
    writer.execute("UPDATE dead_letters SET published = 1 WHERE id = ?", (letter_id,))
