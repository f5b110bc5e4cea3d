"""A consumer as one writes it in an afternoon: what the worker's benchmark measures the worker against.

It reads the frames of all partitions with aiokafka, decodes the few fields that it wants, adds up costs and durations
by minute and component in dicts, and writes them to SQLite with its offsets every 10,000 events. It knows two prices a
model, and nothing of repeats, gaps, limits, late events, grains, users, caps, latency sketches, or another worker.
"""

from __future__ import annotations

import asyncio
import sqlite3
import sys
from collections import defaultdict

import msgspec
from aiokafka import AIOKafkaConsumer

_COMMIT_EVENTS = 10_000
_MINUTE_NS = 60 * 10**9
_TABLES = """
    CREATE TABLE IF NOT EXISTS cost (minute INTEGER, provider TEXT, model TEXT, service TEXT, calls INTEGER,
        input_tokens INTEGER, output_tokens INTEGER, picodollars INTEGER,
        PRIMARY KEY (minute, provider, model, service)) WITHOUT ROWID;
    CREATE TABLE IF NOT EXISTS performance (minute INTEGER, service TEXT, run_type TEXT, name TEXT, model TEXT,
        runs INTEGER, errors INTEGER, total_ns INTEGER, longest_ns INTEGER,
        PRIMARY KEY (minute, service, run_type, name, model)) WITHOUT ROWID;
    CREATE TABLE IF NOT EXISTS offsets (partition INTEGER PRIMARY KEY, next_offset INTEGER);
"""
_ADD_COST = """
    INSERT INTO cost VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET calls = calls + excluded.calls,
        input_tokens = input_tokens + excluded.input_tokens, output_tokens = output_tokens + excluded.output_tokens,
        picodollars = picodollars + excluded.picodollars
"""
_ADD_PERFORMANCE = """
    INSERT INTO performance VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET runs = runs + excluded.runs,
        errors = errors + excluded.errors, total_ns = total_ns + excluded.total_ns,
        longest_ns = max(longest_ns, excluded.longest_ns)
"""


class Tokens(msgspec.Struct):
    """What a call used."""

    input_tokens: int = 0
    output_tokens: int = 0


class Run(msgspec.Struct):
    """The fields that it wants."""

    at_ns: int
    service: str
    run_type: str
    name: str
    status: str
    duration_ns: int
    provider: str = ""
    model: str = ""
    usage: Tokens | None = None


async def drain(bootstrap_servers: str, topic: str, path: str) -> None:
    """Reads a topic to its end."""
    store = sqlite3.connect(path, isolation_level=None)
    store.executescript("PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL;" + _TABLES)
    consumer = AIOKafkaConsumer(topic, bootstrap_servers=bootstrap_servers)
    await consumer.start()
    partitions = consumer.assignment()
    # Its tasks begin here; one that has not begun makes `stop` raise CancelledError.
    await asyncio.sleep(0.01)
    offsets: dict[int, int] = dict(store.execute("SELECT partition, next_offset FROM offsets").fetchall())
    for partition in partitions:
        consumer.seek(partition, offsets.setdefault(partition.partition, 0))
    ends = await consumer.end_offsets(partitions)
    left = {partition for partition, end in ends.items() if offsets[partition.partition] < end}
    decoder = msgspec.json.Decoder(Run)
    pending: list[Run] = []
    while left:
        for partition, records in (await consumer.getmany(timeout_ms=1_000)).items():
            for record in records:
                pending += decoder.decode_lines(record.value.partition(b"\n")[2])
                offsets[partition.partition] = record.offset + 1
                if len(pending) >= _COMMIT_EVENTS:
                    commit(store, pending, offsets)
                    pending = []
            if offsets[partition.partition] >= ends[partition]:
                left.discard(partition)
    commit(store, pending, offsets)
    await consumer.stop()
    store.close()


def commit(store: sqlite3.Connection, runs: list[Run], offsets: dict[int, int]) -> None:
    """Adds runs to the store."""
    costs: dict[tuple[int, str, str, str], list[int]] = defaultdict(lambda: [0, 0, 0, 0])
    durations: dict[tuple[int, str, str, str, str], list[int]] = defaultdict(lambda: [0, 0, 0, 0])
    for run in runs:
        minute = run.at_ns - run.at_ns % _MINUTE_NS
        row = durations[minute, run.service, run.run_type, run.name, run.model]
        row[0] += 1
        row[1] += run.status == "error"
        row[2] += run.duration_ns
        row[3] = max(row[3], run.duration_ns)
        if run.usage is not None:
            row = costs[minute, run.provider, run.model, run.service]
            row[0] += 1
            row[1] += run.usage.input_tokens
            row[2] += run.usage.output_tokens
            row[3] += run.usage.input_tokens * 150_000 + run.usage.output_tokens * 600_000
    store.execute("BEGIN")
    store.executemany(_ADD_COST, [(*key, *row) for key, row in costs.items()])
    store.executemany(_ADD_PERFORMANCE, [(*key, *row) for key, row in durations.items()])
    store.executemany("REPLACE INTO offsets VALUES (?, ?)", offsets.items())
    store.execute("COMMIT")


if __name__ == "__main__":
    asyncio.run(drain(*sys.argv[1:]))
