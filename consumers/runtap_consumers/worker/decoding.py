"""Records to the events of a batch: `decode_records`, `add_event`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from runtap_consumers.kafka.records import KafkaRecord, UndecodableRecord
from runtap_consumers.projections.batch import Batch
from runtap_schemas import (
    AnyEvent,
    EmitterReported,
    RunEnded,
    RunNoted,
    RunStarted,
    SessionEnded,
    SessionStarted,
    Skipped,
    Unreadable,
    decode_event,
)

_NO_TAGS: list[str] = []
_NO_METADATA: dict[str, Any] = {}


def decode_records(
    records: Sequence[KafkaRecord], *, keeps_labels: bool = True
) -> Iterator[AnyEvent | Skipped | Unreadable]:
    """Reads the events of records, also of those that the Kafka client could not hand out, one when it is asked for:
    what is done with an event at once finds it in the processor's cache.

    Args:
        records: in the order of the log.
        keeps_labels: whether anything reads the tags and the metadata of ended runs. What is dropped at once, though
            checked all the same, leaves room in that cache for what is read.
    """
    for record in records:
        event = Unreadable(record.cause) if isinstance(record, UndecodableRecord) else decode_event(record.value)
        if not keeps_labels and isinstance(event, RunEnded):
            event.tags, event.metadata = _NO_TAGS, _NO_METADATA
        yield event


def add_event(batch: Batch, event: Any, log_time_ns: int) -> None:
    """Adds a new event to the batch's list of its kind. Ended runs are looked for first: nearly all events are."""
    if isinstance(event, RunEnded):
        batch.ended_uncapped.append((event, batch.instant_of(event, log_time_ns)))
    elif isinstance(event, Skipped):
        batch.skipped_types.append(event.type)
    elif isinstance(event, EmitterReported):
        batch.reports.append((event, log_time_ns))
    else:
        at_ns = batch.instant_of(event, log_time_ns)
        if isinstance(event, RunStarted):
            batch.started.append((event, at_ns))
        elif isinstance(event, RunNoted):
            batch.noted.append((event, at_ns))
        elif isinstance(event, SessionStarted | SessionEnded):
            batch.sessions.append((event, at_ns))
