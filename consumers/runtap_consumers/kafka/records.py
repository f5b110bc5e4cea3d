"""A Kafka record, as far as anybody here needs to know it."""

from __future__ import annotations

import hashlib
from typing import Protocol


class KafkaRecord(Protocol):
    """What is needed of a Kafka record. `timestamp` is the append time in milliseconds."""

    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None


class UndecodableRecord:
    """Stands for a record that the Kafka client itself cannot hand out."""

    def __init__(self, offset: int, timestamp: int, cause: str) -> None:
        self.offset = offset
        self.timestamp = timestamp
        self.key: bytes | None = None
        self.value: bytes | None = None
        self.cause = cause


def fingerprint_of(record: KafkaRecord) -> str:
    """Identifies a record among all that a partition's offset ever held."""
    digest = hashlib.blake2b(record.key or b"", digest_size=12)
    digest.update(b"\0")
    digest.update(record.value or b"")
    return digest.hexdigest()
