"""How many events one worker applies a second of one core: poll, decode, fold and commit, on real Kafka.

A worker process drains a topic of 6 partitions into an empty store, with the settings that everybody has; the CPU of
one that finds nothing to do is taken off. A loop by hand beside it (`loop_by_hand`), which folds the least, is the
measure of this machine. Then the stages by themselves and the rows that they write, in this process,
and how long after its append an event is in the store. On the streams of `worker_streams`, of which an easy one alone
says little; SQLite and PostgreSQL; cost and performance, all without `runs`, all.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import logging
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from aiokafka import AIOKafkaConsumer, TopicPartition
from measurement import print_machine, spread
from rich.console import Console
from rich.table import Table
from worker_latency import measure_latency, percentile
from worker_setting import (
    FRAME_EVENTS,
    KINDS,
    SETS,
    Postgres,
    Stores,
    bytes_by_table,
    fill_topic,
    postgres,
    start_loop,
    start_worker,
)
from worker_streams import PARTITIONS, STREAMS, TRACE

from runtap_consumers.kafka.records import KafkaRecord
from runtap_consumers.kafka.topics import create_topics
from runtap_consumers.pricing import PriceTable
from runtap_consumers.projections import PROJECTIONS
from runtap_consumers.projections.batch import Batch
from runtap_consumers.projections.rollups import Changes
from runtap_consumers.settings import ConsumerSettings
from runtap_consumers.store.engine import open_store
from runtap_consumers.store.writer import Writer
from runtap_consumers.worker.decoding import count_events, decode_records
from runtap_consumers.worker.partition import Partition, Tools
from runtap_demo.kafka.broker import EmbeddedKafka
from runtap_schemas.topics import events_topic

_STAGES = ("fetch", "decode", "price", *PROJECTIONS, "lanes, caps, rows", "commit", "sum", "rows an event")
_COMBINATIONS = [(kind, name) for kind in KINDS for name in SETS]
_LOOP = ("SQLite", "a loop by hand")


class Bench(NamedTuple):
    """What everything is measured on. `kafka`: bootstrap servers."""

    console: Console
    kafka: str
    streams: list[str]
    stores: Stores
    server: Postgres
    folder: Path
    rounds: int


# Stream, store, projections.
Combination = tuple[str, str, str]
Figures = dict[Combination, list[float]]


def settings_of(kafka: str, name: str) -> ConsumerSettings:
    """The settings that everybody has, for topics of a name of their own."""
    return ConsumerSettings.load(bootstrap_servers=kafka, topic_prefix=f"bench-{name}")


async def read_partition(settings: ConsumerSettings) -> tuple[list[KafkaRecord], float]:
    """The frames of one partition, and the CPU that reading an event of them takes, seconds."""
    consumer = AIOKafkaConsumer(bootstrap_servers=settings.bootstrap_servers)
    await consumer.start()
    try:
        topic_partition = TopicPartition(events_topic(settings.topic_prefix), 0)
        consumer.assign([topic_partition])
        await consumer.seek_to_beginning(topic_partition)
        end = (await consumer.end_offsets([topic_partition]))[topic_partition]
        records: list[KafkaRecord] = []
        began = time.process_time()
        while len(records) < end:
            for polled in (await consumer.getmany(timeout_ms=1_000)).values():
                records += polled
        fetch_seconds = (time.process_time() - began) / sum(map(count_events, records))
    finally:
        await consumer.stop()
    return records, fetch_seconds


class Drained(NamedTuple):
    """Seconds of CPU that draining a topic took, that a second process took which found it drained, and that PostgreSQL
    took for the first; the first's peak memory, MiB, and the bytes of its store by table.
    """

    whole: float
    idle: float
    server: float
    peak: float
    sizes: dict[str, int]


def drain(bench: Bench, combination: Combination) -> Drained:
    """Drains the topic by a process, and starts another."""
    stream, kind, name = combination
    settings = settings_of(bench.kafka, stream)
    if (kind, name) == _LOOP:
        store = bench.folder / f"loop-{time.time_ns()}.db"
        whole, peak = start_loop(settings, store, bench.folder).wait()
        idle, _ = start_loop(settings, store, bench.folder).wait()
        return Drained(whole, idle, 0.0, peak, {})
    url = bench.stores.make(kind)
    server_before = bench.server.cpu_seconds()
    whole, peak = start_worker(settings, url, SETS[name], bench.folder, "--drain").wait()
    server_seconds = bench.server.cpu_seconds() - server_before
    idle, _ = start_worker(settings, url, SETS[name], bench.folder, "--drain").wait()
    return Drained(whole, idle, server_seconds, peak, bytes_by_table(url))


def measure_speed(bench: Bench, count: int) -> None:
    """Measures all combinations in turns, and prints them."""
    costs: Figures = defaultdict(list)
    peaks: Figures = defaultdict(list)
    starts: Figures = defaultdict(list)
    server_costs: Figures = defaultdict(list)
    sizes: dict[Combination, dict[str, int]] = {}
    combinations = [(stream, *each) for stream in bench.streams for each in (_LOOP, *_COMBINATIONS)]
    for _ in range(bench.rounds):
        for each in combinations:
            drained = drain(bench, each)
            costs[each].append((drained.whole - drained.idle) / count * 1e6)
            starts[each].append(drained.idle)
            peaks[each].append(drained.peak)
            server_costs[each].append(drained.server / count * 1e6)
            sizes[each] = drained.sizes
    table = new_table(
        f"One worker process, {bench.rounds} rounds: median (min to max)",
        "CPU, µs an event",
        "times the loop's",
        "events a second and core",
        "start, s",
        "peak MiB",
        "server, µs an event",
    )
    for each in combinations:
        on_server = spread(server_costs[each], ",.1f") if each[1] == "PostgreSQL" else ""
        pairs = zip(costs[each], costs[each[0], *_LOOP], strict=True)
        times = spread([cost / of_loop for cost, of_loop in pairs], ".2f")
        speed = f"{1e6 / median(costs[each]):,.0f}"
        start, memory = f"{median(starts[each]):.2f}", f"{max(peaks[each]):,.0f}"
        table.add_row(*each, spread(costs[each], ",.1f"), times, speed, start, memory, on_server)
    bench.console.print(table)
    for (stream, kind, name), by_table in sizes.items():
        if name == "all":
            shown = sorted(by_table.items(), key=lambda one: -one[1])[:8]
            listed = ", ".join(f"{table} {size / count:.0f}" for table, size in shown)
            bench.console.print(
                f"MB a million events, {stream}, {kind}: {sum(by_table.values()) / count:.0f}: {listed}"
            )


@contextmanager
def timed_projections(spent: dict[str, float]) -> Iterator[None]:
    """Adds up the CPU of each projection, and apart from them that of pricing, which the first would pay."""
    folds = dict(PROJECTIONS)

    def timed(name: str, fold: Callable[..., Changes]) -> Callable[..., Changes]:
        def run(batch: Batch, *arguments: Any) -> Changes:
            began = time.process_time()
            if name in ("cost", "sessions", "runs"):
                batch.calls  # noqa: B018
            priced = time.process_time()
            changes = fold(batch, *arguments)
            spent["price"] += priced - began
            spent[name] += time.process_time() - priced
            return changes

        return run

    PROJECTIONS.update({name: timed(name, fold) for name, fold in folds.items()})
    try:
        yield
    finally:
        PROJECTIONS.update(folds)


def time_stages(
    settings: ConsumerSettings, store_url: str, projections: tuple[str, ...], records: list[KafkaRecord]
) -> tuple[list[dict[str, float]], Counter[str]]:
    """Decodes, folds and commits batches of records.

    Returns:
        CPU of each stage, seconds, by batch; the rows that all wrote, by table.
    """
    store = open_store(store_url, events_topic(settings.topic_prefix))
    batches = []
    rows: Counter[str] = Counter()
    frames = settings.commit_events // FRAME_EVENTS
    try:
        with Writer.of(store) as writer:
            partition = Partition(0, projections, Tools.of(store, writer, PriceTable.load(), settings))
            partition.load(log_start=0)
            for first in range(0, len(records), frames):
                batch = records[first : first + frames]
                spent: dict[str, float] = defaultdict(float)
                began = time.process_time()
                decoded = list(decode_records(batch))
                spent["decode"] = time.process_time() - began
                del decoded
                began = time.process_time()
                with timed_projections(spent):
                    commit = partition.fold(batch)
                # Folding decodes, too.
                spent["lanes, caps, rows"] = time.process_time() - began - sum(spent.values())
                began = time.process_time()
                writer.commit(commit)
                spent["commit"] = time.process_time() - began
                if first and len(batch) == frames:
                    # The first batch finds everything cold, and the last one may hold little.
                    batches.append(spent)
                    rows.update({table.name: len(written) for table, written in commit.upserts + commit.new_rows})
                    rows["runs"] += len(commit.runs)
    finally:
        store.close()
    return batches, rows


def measure_stages(bench: Bench) -> None:
    """Prints what each stage costs, and how many rows each table gets."""
    size = ConsumerSettings.load().commit_events
    table = new_table(f"\nCPU of the stages, µs an event, commits of {size:,}: median", *_STAGES)
    written: dict[str, dict[str, float]] = {}
    for stream in bench.streams:
        settings = settings_of(bench.kafka, stream)
        records, fetch_seconds = asyncio.run(read_partition(settings))
        for kind, name in _COMBINATIONS:
            batches, rows = time_stages(settings, bench.stores.make(kind), SETS[name], records)
            costs = {"fetch": fetch_seconds * 1e6}
            for stage in _STAGES[1:-2]:
                costs[stage] = median(spent[stage] for spent in batches) / size * 1e6
            costs["sum"] = sum(costs.values())
            written[stream] = {table: count / (len(batches) * size) for table, count in rows.items()}
            costs["rows an event"] = sum(written[stream].values())
            table.add_row(stream, kind, name, *(f"{costs[stage]:.2f}" for stage in _STAGES))
    bench.console.print(table)
    # The last combination has all projections.
    for stream, by_table in written.items():
        shown = sorted(by_table.items(), key=lambda each: -each[1])[:12]
        bench.console.print(f"\nrows an event, {stream}: " + ", ".join(f"{name} {share:.3f}" for name, share in shown))


def measure_latencies(bench: Bench, rate: int, seconds: float) -> None:
    """Prints how late figures are, of every projection."""
    table = new_table(
        f"\nFrom append to store at {rate:,} events a second for {seconds:.0f} s, seconds: median (min to max)",
        "p50",
        "p99",
        "latest",
        "cores",
        "peak MiB",
    )
    for stream in bench.streams:
        for kind in KINDS:
            measured = []
            for number in range(bench.rounds):
                settings = settings_of(bench.kafka, f"late-{stream}-{kind.lower()}-{number}")
                asyncio.run(create_topics(settings, PARTITIONS, replication_factor=1))
                url = bench.stores.make(kind)
                measured.append(measure_latency(settings, url, stream, SETS["all"], bench.folder, rate, seconds))
            late = [
                spread([percentile(latencies, percent) for latencies, _, _ in measured]) for percent in (50, 99, 100)
            ]
            cores, peak = spread([each[1] for each in measured]), f"{max(each[2] for each in measured):,.0f}"
            table.add_row(stream, kind, "all", *late, cores, peak)
    bench.console.print(table)


def new_table(title: str, *figures: str) -> Table:
    """A table of one row a combination."""
    table = Table(title=title, title_justify="left", box=None, padding=(0, 2, 0, 0))
    for heading in ("stream", "store", "projections"):
        table.add_column(heading)
    for figure in figures:
        table.add_column(figure, justify="right")
    return table


def main() -> None:
    """Fills a topic and measures workers on it."""
    parser = argparse.ArgumentParser(description="Events a second and core of one worker, and how late figures are")
    parser.add_argument("--events", type=int, default=360_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--streams", nargs="+", choices=STREAMS, default=[*STREAMS] if TRACE.exists() else ["hard", "easy"]
    )
    parser.add_argument("--rate", type=int, default=5_000, help="events a second while latency is measured")
    parser.add_argument("--seconds", type=float, default=20, help="for how long; 0: not at all")
    arguments = parser.parse_args()
    least = 2 * PARTITIONS * ConsumerSettings.load().commit_events
    if arguments.events < least:
        parser.error(f"--events: expected {least} or more, two commits a partition")
    if "people" in arguments.streams and not TRACE.exists():
        parser.error(f"--streams people: RUNTAP_DATA names no folder that has {TRACE.name}")
    # As the worker has it: much is alive during a batch and nothing of it is garbage.
    gc.freeze()
    gc.set_threshold(200_000, 20, 50)
    # A new topic has no leader for a moment, which the client says although it tries again.
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)
    console = Console(highlight=False, width=180)
    print_machine(console, "runtap", "aiokafka", "msgspec", "SQLAlchemy", "psycopg", "genai-prices")
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="runtap-bench-")))
        kafka = stack.enter_context(EmbeddedKafka())
        server = stack.enter_context(postgres())
        stores = Stores(folder, server.url)
        servers, rounds = kafka.bootstrap_servers, arguments.rounds
        bench = Bench(console, servers, arguments.streams, stores, server, folder, rounds)
        for stream in bench.streams:
            settings = settings_of(servers, stream)
            asyncio.run(create_topics(settings, PARTITIONS, replication_factor=1))
            size = asyncio.run(fill_topic(settings, stream, arguments.events))
            console.print(f"{stream}: {arguments.events:,} events of {size:,.0f} bytes in {PARTITIONS} partitions")
        console.print()
        measure_speed(bench, arguments.events)
        measure_stages(bench)
        if arguments.seconds:
            measure_latencies(bench, arguments.rate, arguments.seconds)


if __name__ == "__main__":
    main()
