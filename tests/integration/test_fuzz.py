"""Mutated records among good ones, on real Kafka: the worker goes on, and the good ones count."""

from __future__ import annotations

import asyncio
import json
import os
import random
import struct
import time
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from aiokafka import AIOKafkaProducer
from aiokafka.record.util import calc_crc32c
from sqlalchemy import Engine, create_engine, text

from cost_sql import COST_SUM
from samples import framed, id_of, model_call
from worker_process import WorkerSetting, wait_until

MakeTopic = Callable[..., Awaitable[str]]
PARTITIONS = 3
GOOD_A_ROUND, BAD_A_ROUND = 90, 900
SECONDS = float(os.environ.get("RUNTAP_FUZZ_SECONDS", "30"))
SEED = int(os.environ.get("RUNTAP_FUZZ_SEED", random.SystemRandom().randrange(10**6)))
_SAMPLES = sorted((Path(__file__).parent.parent / "golden" / "v1").glob("*.jsonl"))
_VALUES = [
    *(b"null", b"-1", b"0", b"9223372036854775807", b"9223372036854775808", b"1e400", b"-0.0", b"1.5", b"true", b"{}"),
    *(b"[]", b'""', b'"\\u0000"', b'"\\ud800"', b'"\xff\xfe"', b'["a"]', b'{"":{"":""}}', b'"0001-01-01"'),
    *(b'"' + b"x" * 5_000 + b'"', b"[" * 3_000, b'{"a":' * 3_000, b"1" + b"0" * 400, b"99999999999999999999999"),
]

pytestmark = [pytest.mark.long, pytest.mark.timeout(120 + SECONDS)]


def mutate(value: bytes, dice: random.Random) -> bytes | None:
    """A record as a broken, foreign or later emitter might write it."""
    mutated = bytearray(value)
    for _ in range(dice.choice((1, 1, 1, 2, 5))):
        place = dice.randrange(len(mutated)) if mutated else 0
        kind = dice.randrange(8)
        if kind == 0 and mutated:
            mutated[place] ^= 1 << dice.randrange(8)
        elif kind == 1:
            del mutated[place : place + dice.randrange(1, 40)]
        elif kind == 2:
            mutated[place:place] = mutated[place : place + dice.randrange(1, 60)]
        elif kind == 3:
            mutated[place:place] = dice.randbytes(dice.randrange(1, 20))
        elif kind == 4:
            del mutated[place:]
        else:
            # The value of some field, so that what is left is JSON and reaches further.
            colons = [at for at, byte in enumerate(mutated) if byte == ord(":")]
            if colons:
                at = end = dice.choice(colons) + 1
                while end < len(mutated) and mutated[end] not in b",}":
                    end += 1
                mutated[at:end] = dice.choice(_VALUES)
    return bytes(mutated) if dice.random() > 0.01 else None


def bad_records(dice: random.Random, number: int) -> list[bytes | None]:
    """Mutations of every type of event, of emitters of their own."""
    records: list[bytes | None] = []
    for place in range(BAD_A_ROUND):
        lines = []
        for path in dice.choices(_SAMPLES, k=dice.randrange(1, 4)):
            sample = json.loads(path.read_text().splitlines()[1])
            if "service" in sample:
                sample["service"] = "bad"
            lines.append(json.dumps(sample, separators=(",", ":")).encode())
        if dice.random() < 0.5:
            # Past the header, which most mutations of a whole record break.
            lines = [(mutate(line, dice) or b"").replace(b"\n", b" ") for line in lines]
        value = framed(lines, f"bad-{dice.randrange(20)}", number * BAD_A_ROUND + place + 1)
        records.append(mutate(value, dice) if dice.random() < 0.7 else value)
    return records


async def write(kafka: str, topic: str, good: list[bytes], bad: list[bytes | None], dice: random.Random) -> None:
    """Writes both, mixed; the good ones in order, round the partitions."""
    producer = AIOKafkaProducer(bootstrap_servers=kafka, acks="all", linger_ms=5)
    await producer.start()
    try:
        mixed: list[tuple[int, bytes | None]] = [(dice.randrange(PARTITIONS), value) for value in bad]
        step = len(mixed) // len(good)
        for place, own in enumerate(good):
            mixed.insert(place * (step + 1), (place % PARTITIONS, own))
        for partition, value in mixed:
            key = dice.choice((b"key", None, b"\xff\x00", b"")) if value is not None else b"key"
            headers = [("h", dice.randbytes(3))] if dice.random() < 0.1 else []
            await producer.send(topic, value, partition=partition, key=key, headers=headers)
        await producer.flush()
        # A header whose name is no text: the client hands out neither that record nor the rest of its batch, which no
        # emitter wrote: they write no headers.
        batch = producer.create_batch()
        for name in ("odd-name", "fine-name"):
            batch.append(key=b"key", value=b"{}", timestamp=None, headers=[(name, b"x")])
        batch.close()
        raw = bytearray(bytes(batch._build()).replace(b"odd-name", b"odd-\xff\xfe\xfd\xfc"))
        # Bytes 17 to 20 are the checksum of all that follows.
        raw[17:21] = struct.pack(">I", calc_crc32c(bytes(raw[21:])))
        batch._buffer = raw
        await (await producer.send_batch(batch, topic, partition=dice.randrange(PARTITIONS)))
    finally:
        await producer.stop()


def rows(engine: Engine, query: str) -> list[tuple[Any, ...]]:
    """What the store says."""
    with engine.connect() as connection:
        return [tuple(row) for row in connection.execute(text(query))]


def good_records(first: int) -> list[bytes]:
    """The next records of the good emitter, round the partitions."""
    now_ns = time.time_ns()
    events = [model_call(now_ns, service="good", run_id=f"run-{first + place}") for place in range(GOOD_A_ROUND)]
    return [
        framed([event], f"good/{(first + place) % PARTITIONS}", (first + place) // PARTITIONS + 1, now_ns)
        for place, event in enumerate(events)
    ]


async def test_mutated_records_stop_nothing_and_their_neighbours_count(
    kafka: str, topic_prefix: str, events_topic: MakeTopic, store_url: str, tmp_path: Path, processes: list[Any]
) -> None:
    print(f"RUNTAP_FUZZ_SEED={SEED}")  # noqa: T201 - pytest shows it where it failed
    dice = random.Random(SEED)
    setting = WorkerSetting(kafka, topic_prefix, store_url)
    topic = await events_topic(partitions=PARTITIONS)
    log = tmp_path / "worker.log"
    processes.append(setting.start(log))
    await asyncio.to_thread(wait_until, lambda: "worker_started" in log.read_text(), 30, "the worker")
    engine = create_engine(store_url)

    def is_counted(wanted: int) -> bool:
        assert processes[0].poll() is None, log.read_text()[-3_000:]
        return bool(
            rows(engine, "SELECT coalesce(sum(calls), 0) FROM cost_total WHERE service = 'good'")[0][0] >= wanted
        )

    began, total, rounds = time.monotonic(), 0, 0
    try:
        while rounds == 0 or time.monotonic() - began < SECONDS:
            await write(kafka, topic, good_records(total), bad_records(dice, rounds), dice)
            total, rounds = total + GOOD_A_ROUND, rounds + 1
            await asyncio.to_thread(wait_until, partial(is_counted, total), 30, f"round {rounds} of seed {SEED}")
        processes[0].terminate()
        assert await asyncio.to_thread(processes[0].wait, 15) == 0, log.read_text()[-3_000:]
        await asyncio.to_thread(setting.drain)
        sums = f"sum(calls), sum(input_tokens), {COST_SUM}"
        assert rows(engine, f"SELECT {sums} FROM cost_total WHERE service = 'good'") == [
            (total, total * 1_000, total * 195 * 10**6)
        ]
        emitters = ", ".join(f"'{id_of(f'good/{partition}')}'" for partition in range(PARTITIONS))
        lanes = rows(engine, f"SELECT DISTINCT mark, gaps FROM lane_marks WHERE emitter IN ({emitters})")
        assert lanes == [(total // PARTITIONS, "[]")]
        # No projection was left behind.
        assert (
            rows(engine, "SELECT count(DISTINCT next_offset) FROM positions GROUP BY partition") == [(1,)] * PARTITIONS
        )
        assert rows(engine, "SELECT count(*) FROM dead_letters WHERE cause LIKE '%cannot decode%'") == [(2 * rounds,)]
    finally:
        engine.dispose()
    for command in (("report", "--json", "-"), ("runs", "--json", "--limit", "5")):
        done = await asyncio.to_thread(setting.run, *command)
        assert done.returncode == 0, done.stderr[-3_000:]
