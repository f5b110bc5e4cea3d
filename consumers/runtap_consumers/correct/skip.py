"""Stepping over one record by hand (`runtap dead-letters skip`), where nothing else lets a partition go on."""

from __future__ import annotations

import re

from runtap_consumers.errors import InputError
from runtap_consumers.kafka.partition_reader import PartitionReader
from runtap_consumers.kafka.records import fingerprint_of
from runtap_consumers.projections import PROJECTIONS
from runtap_consumers.store.engine import Store
from runtap_consumers.store.writer import Writer


async def skip_record(store: Store, log: PartitionReader, place: str, now_ns: int) -> list[str]:
    """Moves all projections that stand at a record to the next one, and fences their workers. An incident records it.

    Args:
        store: whose positions.
        log: started; what is in the record is not looked at.
        place: `partition/offset`.
        now_ns: the present.

    Returns:
        The projections that were moved.

    Raises:
        InputError: no projection stands there.
        KafkaError: Kafka did not answer.
        StoreError: the store did not take it; nothing has moved.
    """
    found = re.fullmatch(r"([0-9]{1,9})/([0-9]{1,18})", place)
    if found is None:
        raise InputError(f"expected partition/offset, as in 3/1200, not {place!r}")
    partition, offset = int(found[1]), int(found[2])
    record = await log.record_at(partition, offset)
    if record is None:
        raise InputError(f"the log of partition {partition} has no record at {offset}")
    with Writer.of(store) as writer, writer.transaction():
        marks = ", ".join("?" * len(PROJECTIONS))
        positions = writer.query(
            "SELECT projection, next_offset, incarnation FROM positions WHERE partition = ? "
            f"AND projection IN ({marks}) ORDER BY projection{writer.dialect.for_update}",
            (partition, *PROJECTIONS),
        )
        standing = [(name, incarnation) for name, next_offset, incarnation in positions if next_offset == offset]
        if not standing:
            where = ", ".join(f"{name} at {next_offset}" for name, next_offset, _ in positions) or "nobody reads it"
            raise InputError(f"no projection stands at {place}: {where}")
        for name, incarnation in standing:
            writer.execute(
                "UPDATE positions SET next_offset = ?, fingerprint = ?, epoch = epoch + 1 "
                "WHERE projection = ? AND partition = ?",
                (offset + 1, fingerprint_of(record), name, partition),
            )
            writer.execute(
                "INSERT INTO log_incidents (projection, partition, incarnation, first_offset, kind, last_offset, "
                "at_ns) VALUES (?, ?, ?, ?, 'skipped', ?, ?) ON CONFLICT DO NOTHING",
                (name, partition, incarnation, offset, offset, now_ns),
            )
    return [name for name, _ in standing]
