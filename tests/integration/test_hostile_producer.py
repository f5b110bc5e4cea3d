"""A hundred kinds of malformed, extreme and forged records among honest events: nothing stands, and every honest figure
is exact.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import Awaitable, Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from aiokafka import AIOKafkaProducer
from sqlalchemy import Engine, create_engine, text

from cost_sql import COST_SUM
from runtap_demo.kafka.ports import free_ports
from runtap_schemas import EmitterReported, LaneAbandoned, RunScored, encode_event, encode_frame
from samples import birth_of, framed, id_of, model_call
from worker_process import WorkerSetting, ask_health, wait_until

MakeTopic = Callable[..., Awaitable[str]]
PARTITIONS = 3
SERVICES = ("checkout", "search", "support")
HONEST, A_FRAME = 5_000, 20

pytestmark = [pytest.mark.long, pytest.mark.timeout(400)]

# Values of a header's keys, and of an ended run's.
_HEADERS: dict[str, list[Any]] = {
    "frame": [0, 2, -1, "1", None, 2**63],
    "emitter": ["", "g" * 32, "A" * 32, "0" * 31, 5],
    "birth": ["", "0" * 32, "z" * 32, None],
    "first": [0, -1, 2**53 - 1, 2**53, 2**63, 1.5, "1", 10**40],
    "count": [0, -1, 2, 65_536, 65_537, 2**63, None],
    "at": [-1, 0, 2**63 - 1, 2**63, "now", 1.5],
}
_FIELDS: dict[str, list[Any]] = {
    "type": ["run.finished", "", None, 5, "session.ended"],
    "at_ns": [0, -1, 2**63 - 1, 2**63],
    "started_at_ns": [0, 2**63 - 1],
    "duration_ns": [10**16, 10**16 + 1, -1, 1e300],
    "name": ["", "n" * 200, "n" * 201, "\x00", "\U0001f9e8" * 200, "\u202e\u200b", None],
    "service": ["\U00020000" * 200, ""],
    "run_id": ["", "r" * 64, "r" * 65],
    "status": ["exploded", None],
    "usage": [{"input_tokens": 10**9, "output_tokens": 10**9}, {"input_tokens": 10**9 + 1}, {"input_tokens": -1}, []],
    "reported_cost_usd": ["9999.999999999999", "10000", "-1", "NaN", "1e5", 5],
    "metadata": [{"k": 2**63 - 1}, {"k": 2**63}, {"k": 1e308}, {"k": {"deep": []}}, {"k" * 300: 1}, []],
    "tags": [["t"] * 5_000, [None], "t"],
}


def hostile_records(dice: random.Random) -> Iterator[bytes | None]:
    """One of each kind."""
    now_ns = time.time_ns()
    yield from (None, b"", b"\x00", b"{}", b"null", b"[]", b"\n", b"\n\n\n", b"x" * 100_000, dice.randbytes(2_000))
    yield from (b"\xef\xbb\xbf{}", b"\xff\xfe{}", b"[" * 100_000, b'{"a":' * 50_000, bytes(900_000))
    run = model_call(now_ns, service="hostile", session_id="hostile", user_id="hostile")
    header, _, body = framed([run], "hostile", 1, now_ns).partition(b"\n")
    facts = json.loads(header)
    for key, values in _HEADERS.items():
        yield _json({name: value for name, value in facts.items() if name != key}) + b"\n" + body
        for value in values:
            yield _json({**facts, key: value}) + b"\n" + body
    yield header
    yield header + b"\r\n" + body
    yield header + b"\n" + body * 3
    fields = json.loads(body)
    for number, (key, value) in enumerate((key, value) for key, values in _FIELDS.items() for value in values):
        yield framed([_json({**fields, key: value})], f"hostile-{key}", number + 1, now_ns)
    yield framed([body[:-1].replace(b'"checkout"', b'"\\ud800"'), body[:40], b"\xff"], "hostile-lines", 1, now_ns)
    # Each within its bound, and together beyond what an index row of PostgreSQL holds.
    wide = {
        key: "".join(chr(dice.randrange(0x20000, 0x2A6D0)) for _ in range(200)) for key in ("name", "model", "service")
    }
    yield framed([body[:-1], _json({**fields, **wide, "environment": wide["name"][::-1]})], "hostile-wide", 1, now_ns)
    # In the name of an honest emitter: far ahead, and with a birth that is not its own.
    honest = f"{SERVICES[0]}/0"
    for first in (10**9, 2**40, 2**53 - 2):
        yield framed([run], honest, first, now_ns)
    forged = {**facts, "emitter": id_of(honest), "first": 100_000}
    yield _json(forged) + b"\n" + body
    for number, captured in enumerate((10**15, 2**53 - 1), start=1):
        yield framed([_report(captured)], f"hostile-report-{number}", 1, now_ns)
    yield framed([_report(0, at_ns=0)], "hostile-report-3", 1, 0)
    yield framed([_report(0, at_ns=2**63 - 1)], "hostile-report-4", 1, 2**63 - 1)
    for emitter in ("f" * 32, id_of("never-heard")):
        gone = LaneAbandoned(at_ns=now_ns, emitter=emitter, first=1, last=2**53 - 1, reason="expired")
        yield framed([gone], f"hostile-heir-{emitter[0]}", 1, now_ns)
    score = RunScored(at_ns=now_ns, run_id="r", key="k", service="hostile", environment="e", score=10**9)
    yield framed([score] * 500, "hostile-scores", 1, now_ns)


def _json(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode("utf-8", "surrogatepass")


def _report(dropped: int, at_ns: int | None = None) -> EmitterReported:
    return EmitterReported(
        at_ns=time.time_ns() if at_ns is None else at_ns,
        report_id="r" * 16,
        runtap_version="0",
        started_at_ns=0,
        service="hostile",
        environment="test",
        host="h",
        process_id=1,
        dropped={"run.ended": {"buffer_full": dropped}},
    )


class Honest:
    """Three services with an emitter in each partition, which number what they send."""

    def __init__(self) -> None:
        self._next = {(service, partition): 1 for service in SERVICES for partition in range(PARTITIONS)}
        self.sent = dict.fromkeys(SERVICES, 0)

    def frame(self, service: str, partition: int, count: int) -> bytes:
        """The next events of an emitter."""
        now_ns, first = time.time_ns(), self._next[service, partition]
        self._next[service, partition] += count
        runs = [
            model_call(now_ns, service=service, run_id=f"{service}-{partition}-{first + place}", session_id=service)
            for place in range(count)
        ]
        self.sent[service] += count
        lines = [encode_event(run) for run in runs]
        return encode_frame(birth_of(f"{service}/{partition}"), first, now_ns, lines)


def rows(engine: Engine, query: str) -> list[tuple[Any, ...]]:
    with engine.connect() as connection:
        return [tuple(row) for row in connection.execute(text(query))]


class Watch:
    """Looks every second at the positions, and at readiness."""

    def __init__(self, engine: Engine, port: int) -> None:
        self._engine, self._port = engine, port
        self._moved: dict[tuple[str, int], tuple[int, float]] = {}
        self.stood: list[str] = []
        self.unready: list[str] = []

    async def run(self, ends: list[int]) -> None:
        """Until it is cancelled. `ends`: of the partitions, as far as they are sent."""
        while True:
            status, body = await asyncio.to_thread(ask_health, self._port)
            if status != 200:
                self.unready.append(str(body))
            found = await asyncio.to_thread(
                rows, self._engine, "SELECT projection, partition, next_offset FROM positions"
            )
            now = time.monotonic()
            for projection, partition, offset in found:
                before, since = self._moved.get((projection, partition), (-1, now))
                if offset != before or offset >= ends[partition]:
                    self._moved[projection, partition] = offset, now
                elif now - since > 5:
                    self.stood.append(f"{projection}/{partition} at {offset} for {now - since:.0f} s")
            await asyncio.sleep(1)


async def test_hostile_records_stop_nothing_and_every_honest_figure_is_exact(
    kafka: str, topic_prefix: str, events_topic: MakeTopic, store_url: str, tmp_path: Path, processes: list[Any]
) -> None:
    dice, honest = random.Random(15), Honest()
    hostile = list(hostile_records(dice))
    assert len(hostile) >= 100
    setting = WorkerSetting(kafka, topic_prefix, store_url)
    topic = await events_topic(partitions=PARTITIONS)
    (port,) = free_ports(1)
    log = tmp_path / "worker.log"
    processes.append(setting.start(log, "--health", str(port)))
    await asyncio.to_thread(wait_until, lambda: "partitions_assigned" in log.read_text(), 30, "the worker")
    await asyncio.to_thread(wait_until, lambda: ask_health(port)[0] == 200, 30, "readiness")
    engine = create_engine(store_url.replace("postgresql://", "postgresql+psycopg://"))
    ends = [0] * PARTITIONS
    watch = Watch(engine, port)
    watching = asyncio.create_task(watch.run(ends))
    producer = AIOKafkaProducer(bootstrap_servers=kafka, acks="all")
    await producer.start()

    async def send(partition: int, value: bytes | None) -> None:
        sent = await producer.send_and_wait(topic, value, partition=partition, key=b"key")
        ends[partition] = sent.offset + 1

    try:
        dice.shuffle(hostile)
        rounds = HONEST // A_FRAME
        for place in range(rounds):
            await send(place % PARTITIONS, honest.frame(SERVICES[place % 3], place // 3 % PARTITIONS, A_FRAME))
            for value in hostile[place * len(hostile) // rounds : (place + 1) * len(hostile) // rounds]:
                await send(dice.randrange(PARTITIONS), value)

        def is_read() -> bool:
            assert processes[0].poll() is None, log.read_text()[-3_000:]
            offsets = rows(engine, "SELECT partition, min(next_offset) FROM positions GROUP BY 1 ORDER BY 1")
            return [offset for _, offset in offsets] == ends

        await asyncio.to_thread(wait_until, is_read, 60, "the end of the log")
        for number in range(1, 24):
            # One honest emitter goes on; the others, honest and forged, are heard no more.
            lines = [encode_event(_report(0, at_ns=time.time_ns()))]
            await send(0, encode_frame(birth_of("goes-on"), number, time.time_ns(), lines))
            await asyncio.sleep(5)
        ledger = json.loads((await asyncio.to_thread(setting.run, "ledger", "--json")).stdout)
        assert time.time() - datetime.fromisoformat(ledger["complete_to"]).timestamp() < 90, ledger["held_by"]
        assert (watch.stood, watch.unready) == ([], [])
    finally:
        watching.cancel()
        await producer.stop()

    ours = ", ".join(f"'{service}'" for service in SERVICES)
    sent = sorted(honest.sent.items())
    for figures, table, key, each in (
        (f"sum(calls), sum(input_tokens), {COST_SUM}", "cost_total", "service", (1, 1_000, 195 * 10**6)),
        ("count(*), count(DISTINCT run_id)", "runs", "service", (1, 1)),
        ("sum(count), sum(ok)", "performance_total", "service", (1, 1)),
        ("sum(llm_calls)", "sessions", "session_id", (1,)),
    ):
        found = rows(engine, f"SELECT {key}, {figures} FROM {table} WHERE {key} IN ({ours}) GROUP BY 1")
        assert sorted(found) == [(service, *(count * one for one in each)) for service, count in sent], table
    engine.dispose()
    whole = sum(ledger[name] for name in ("applied", "in_flight", "lost", "quarantined"))
    assert ledger["captured"] == whole + sum(ledger["dropped"].values())
    assert ledger["foreign"] > 20
    assert ledger["impossible"] >= 4
    # No claim moves the sum by more than what came with it.
    assert HONEST < ledger["captured"] < HONEST + 500_000
