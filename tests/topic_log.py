"""What is in a topic: every record from its beginning to its present end."""

from __future__ import annotations

from typing import NamedTuple

from aiokafka import AIOKafkaConsumer, TopicPartition

from runtap_schemas import EmitterReported, Event, Skipped, Unreadable, decode_event


class LoggedEvent(NamedTuple):
    """An event and where it lies."""

    partition: int
    key: str
    event: Event


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
                    event = decode_event(record.value)
                    assert not isinstance(event, (Skipped, Unreadable)), event
                    logged.append(LoggedEvent(partition.partition, record.key.decode(), event))
        return logged
    finally:
        await consumer.stop()


def check_ledger(logged: list[LoggedEvent]) -> EmitterReported:
    """Checks one closed emitter: lanes without gaps up to what its last report says, and a balance without a rest."""
    (emitter,) = {entry.event.emitter for entry in logged}
    reports = [entry.event for entry in logged if isinstance(entry.event, EmitterReported)]
    last = max(reports, key=lambda report: report.number)
    assert last.closing
    assert [report.number for report in sorted(reports, key=lambda r: r.number)] == list(range(1, len(reports) + 1))
    lanes: dict[int, list[int]] = {}
    for entry in logged:
        lanes.setdefault(entry.partition, []).append(entry.event.sequence)
    assert {partition: numbers[-1] for partition, numbers in lanes.items()} == last.lanes
    for partition, numbers in lanes.items():
        assert numbers == list(range(1, len(numbers) + 1)), (emitter, partition)
    dropped = sum(sum(kinds.values()) for kinds in last.dropped.values())
    assert last.captured == sum(last.lanes.values()) + dropped + last.superseded
    return last
