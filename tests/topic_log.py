"""What is in a topic: every event of every frame from its beginning to its present end."""

from __future__ import annotations

import asyncio
from typing import NamedTuple

from aiokafka import AIOKafkaConsumer, TopicPartition

from runtap_schemas import EmitterReported, Event, Frame, Skipped, Unreadable, decode_frame


class LoggedEvent(NamedTuple):
    """An event, where it lies, and what its frame says of it."""

    partition: int
    emitter: str
    number: int
    event: Event
    frame: Frame


def events_of(value: bytes | None, partition: int = 0) -> list[LoggedEvent]:
    """The events of a record, all of which can be read."""
    frame = decode_frame(value)
    assert isinstance(frame, Frame), frame
    logged = []
    for number, event in enumerate(frame.events(), frame.first):
        assert not isinstance(event, (Skipped, Unreadable)), event
        logged.append(LoggedEvent(partition, frame.emitter, number, event, frame))
    return logged


def read_values(bootstrap_servers: str, topic: str) -> list[tuple[bytes | None, bytes | None]]:
    """Keys and values of a topic of one partition, in their order."""

    async def read() -> list[tuple[bytes | None, bytes | None]]:
        consumer = AIOKafkaConsumer(bootstrap_servers=bootstrap_servers, auto_offset_reset="earliest")
        await consumer.start()
        try:
            partition, found = TopicPartition(topic, 0), []
            consumer.assign([partition])
            end = (await consumer.end_offsets([partition]))[partition]
            while await consumer.position(partition) < end:
                for record in (await consumer.getmany(partition, timeout_ms=1_000)).get(partition, []):
                    found.append((record.key, record.value))
            return found
        finally:
            await consumer.stop()

    return asyncio.run(read())


async def read_topic(bootstrap_servers: str, topic: str) -> list[LoggedEvent]:
    """All events of a topic, partition by partition in their order."""
    consumer = AIOKafkaConsumer(bootstrap_servers=bootstrap_servers, auto_offset_reset="earliest")
    await consumer.start()
    try:
        await consumer._client._wait_on_metadata(topic)
        partitions = [TopicPartition(topic, number) for number in sorted(consumer.partitions_for_topic(topic) or ())]
        logged: list[LoggedEvent] = []
        for partition, end in (await consumer.end_offsets(partitions)).items():
            consumer.assign([partition])
            consumer.seek(partition, 0)
            while await consumer.position(partition) < end:
                for record in (await consumer.getmany(partition, timeout_ms=1_000)).get(partition, []):
                    found = events_of(record.value, partition.partition)
                    assert {entry.emitter.encode() for entry in found} == {record.key}
                    logged += found
        return logged
    finally:
        await consumer.stop()


def check_ledger(logged: list[LoggedEvent]) -> EmitterReported:
    """Checks one closed emitter: one lane in one partition, without gaps, and its closing report at its end."""
    ((_, _),) = {(entry.emitter, entry.partition) for entry in logged}
    assert [entry.number for entry in logged] == list(range(1, len(logged) + 1))
    reports = [entry.event for entry in logged if isinstance(entry.event, EmitterReported)]
    assert reports[-1] is logged[-1].event
    assert [report.closing for report in reports] == [False] * (len(reports) - 1) + [True]
    assert [report.previous_report_id for report in reports] == [None, *(report.report_id for report in reports[:-1])]
    # Everything captured before a frame's claim stands in it or before it.
    claimed_ns = 0
    for entry in logged:
        assert entry.event.at_ns >= claimed_ns or isinstance(entry.event, EmitterReported), entry
        if entry.number == entry.frame.last:
            claimed_ns = entry.frame.at_ns or claimed_ns
    return reports[-1]
