"""Reads the retained log with a plain consumer, and writes down every event of it once. Imports nothing of runtap.

    python retained.py BOOTSTRAP_SERVERS TOPIC FILE

The lines are those of an emitter's book. One more at the end: how many runs have begun and never ended; and of each
emitter how many events there are, and how many numbers are missing below its lanes' last ones.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

from aiokafka import AIOKafkaConsumer

_FACTS = {"run.ended", "session.started", "session.ended"}
_OF_RUNS = {"run.started", "run.ended", "run.noted", "run.streamed"}


def as_fact(event: dict[str, Any]) -> list[Any]:
    """An event as a book has it."""
    kind, usage = event.get("run_type", event["type"]), event.get("usage", {})
    used = [usage.get(f"{part}_tokens", 0) for part in ("input", "cache_read", "output")]
    run = [event.get("name", ""), event.get("model", ""), event.get("status", ""), *used, event.get("is_root", False)]
    return [event["service"], event["session_id"], event["user_id"], kind, *run]


async def read_log(servers: str, topic: str, file: Path) -> dict[int, list[float]]:
    """Writes the file, and returns when records were appended, by partition, Unix seconds."""
    appended: dict[int, list[float]] = defaultdict(list)
    seen: dict[tuple[str, int], set[int]] = defaultdict(set)
    begun, ended = set[str](), set[str]()
    consumer = AIOKafkaConsumer(topic, bootstrap_servers=servers, auto_offset_reset="earliest")
    await consumer.start()
    try:
        ends = await consumer.end_offsets(consumer.assignment())
        with file.open("w") as book:
            while any([await consumer.position(partition) < end for partition, end in ends.items()]):
                for partition, records in (await consumer.getmany(timeout_ms=1_000)).items():
                    appended[partition.partition] += [record.timestamp / 1_000 for record in records]
                    for record in records:
                        header, *events = map(json.loads, record.value.splitlines())
                        numbers = seen[header["emitter"], partition.partition]
                        for number, event in enumerate(events, header["first"]):
                            if number in numbers:
                                continue
                            numbers.add(number)
                            if event["type"] in _FACTS:
                                book.write(json.dumps(as_fact(event)) + "\n")
                            if event["type"] in _OF_RUNS:
                                (ended if event["type"] == "run.ended" else begun).add(event["run_id"])
            there, missing = Counter[str](), Counter[str]()
            for (emitter, _), numbers in seen.items():
                there[emitter] += len(numbers)
                missing[emitter] += max(numbers) - len(numbers)
            emitters = {emitter: [there[emitter], missing[emitter]] for emitter in sorted(there)}
            totals = {"open_runs": len(begun - ended), "emitters": emitters}
            book.write(json.dumps(totals) + "\n")
            return appended
    finally:
        await consumer.stop()


if __name__ == "__main__":
    asyncio.run(read_log(sys.argv[1], sys.argv[2], Path(sys.argv[3])))
