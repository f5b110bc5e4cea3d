"""A Kafka record, as far as anybody here needs to know it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
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


# Four times what an emitter sends at most.
MAX_RECORD_BYTES = 2**20
_HEAD_BYTES = 4_096


@dataclass
class OversizedRecord:
    """Stands for a record of more than `MAX_RECORD_BYTES`: `value` is its beginning, where a frame has its header."""

    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None


def without_excess(record: KafkaRecord) -> KafkaRecord:
    """The record, or what stands for it."""
    value = record.value
    if value is None or len(value) <= MAX_RECORD_BYTES:
        return record
    return OversizedRecord(record.offset, record.timestamp, (record.key or b"")[:_HEAD_BYTES], value[:_HEAD_BYTES])


def fingerprint_of(record: KafkaRecord) -> str:
    """Identifies a record among all that a partition's offset ever held."""
    digest = hashlib.blake2b(record.key or b"", digest_size=12)
    digest.update(b"\0")
    digest.update(record.value or b"")
    return digest.hexdigest()
