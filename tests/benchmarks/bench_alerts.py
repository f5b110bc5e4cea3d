"""A month's budget by user over many users: the first round, a round after a commit that changed some, and at rest.

    python tests/benchmarks/bench_alerts.py [--users 100000] [--changed 1000] [--at URL]

Each user called on every third day of the month. Prints CPU and wall seconds of rounds: median, least and most.
"""

from __future__ import annotations

import argparse
import platform
import random
import resource
import sqlite3
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

from rich.console import Console

from runtap_consumers.alerts.evaluator import AlertEvaluator
from runtap_consumers.instants import day_start_ns, hour_start_ns, local_time
from runtap_consumers.settings import ConsumerSettings
from runtap_consumers.store import tables
from runtap_consumers.store.engine import Store, open_store
from runtap_consumers.store.writer import Writer
from runtap_consumers.units import MINUTE_NS, minute_of

BUDGET = """
[[budget]]
id = "user_month"
period = "month"
limit = "50"
group_by = ["user"]
"""
PARTITIONS = 12
_ROWS_A_COMMIT = 50_000
console = Console(highlight=False, width=150)


def rows_of(table: Any, bucket_ns: int, users: Iterator[int], cents: int) -> Iterator[tuple[Any, ...]]:
    measures = dict.fromkeys((column.name for column in table.columns if not column.primary_key), 0)
    measures |= {"calls": 5, "priced_calls": 5, "input_tokens": 5_000, "cost_microdollars": cents * 10_000}
    values = tuple(measures.values())
    for user in users:
        yield (bucket_ns, "user", f"user-{user:06}", 1, user % PARTITIONS, 0, *values)


def write(writer: Writer, table: Any, rows: Iterator[tuple[Any, ...]]) -> None:
    batch: list[Any] = []
    for row in rows:
        batch.append(row)
        if len(batch) == _ROWS_A_COMMIT:
            with writer.transaction():
                writer.upsert(table, batch)
            batch = []
    with writer.transaction():
        writer.upsert(table, batch)


def fill(store: Store, writer: Writer, users: int, now_ns: int) -> int:
    """Fills the month's days so far; returns the rows."""
    with writer.transaction():
        writer.execute(
            "INSERT INTO cost_keys (id, provider, model, service, environment, price_set, price_class) "
            "VALUES (1, 'openai', 'gpt-5', 'shop', 'prod', 'set', 'standard') ON CONFLICT DO NOTHING"
        )
        positions: list[Any] = [("cost", partition, 0, 0, 0, 0, 0, "", now_ns, 0) for partition in range(PARTITIONS)]
        writer.upsert(tables.metadata.tables["positions"], positions)
    day, table = local_time(now_ns, store.zone).day, tables.metadata.tables["cost_by_attribute_day"]
    rows = 0
    for days_ago in range(1, day):
        bucket_ns = day_start_ns(now_ns, store.zone, days_later=-days_ago)
        called = range(days_ago % 3, users, 3)
        rows += len(called)
        write(writer, table, rows_of(table, bucket_ns, iter(called), 40))
    return rows


def change(writer: Writer, store: Store, now_ns: int, users: list[int], cents: int) -> None:
    """What a commit writes of so many users."""
    table = tables.metadata.tables["cost_by_attribute_hour"]
    write(writer, table, rows_of(table, hour_start_ns(now_ns, store.zone), iter(sorted(users)), cents))
    with writer.transaction():
        writer.upsert(
            tables.metadata.tables["touched_minutes"],
            [("cost", minute_of(now_ns), partition, 0, 1) for partition in range(PARTITIONS)],
        )


def say(title: str, took: list[tuple[float, float]]) -> None:
    shown = []
    for name, index in (("CPU", 0), ("wall", 1)):
        values = [each[index] for each in took]
        median, least, most = statistics.median(values), min(values), max(values)
        shown.append(f"{name} median {median:.3f} s, {least:.3f} to {most:.3f}")
    console.print(f"{title:38} {'; '.join(shown)}")


def run(url: str, folder: Path, users: int, changed: int) -> None:
    file = folder / "alerts.toml"
    file.write_text(BUDGET)
    settings = ConsumerSettings.load(alerts=str(file), alert_learning_seconds=0.0)
    ends = dict.fromkeys(range(PARTITIONS), 0)
    numbers = random.Random(1)
    with open_store(url, "bench.events") as store, closing(Writer.of(store)) as writer:
        # The middle of a month, of a day and of an hour, so that no period ends meanwhile.
        now_ns = day_start_ns(time.time_ns(), store.zone)
        now_ns = day_start_ns(now_ns, store.zone, days_later=28 - local_time(now_ns, store.zone).day)
        now_ns += 12 * 60 * MINUTE_NS + 30 * MINUTE_NS
        rows = fill(store, writer, users, now_ns)
        console.print(f"{store.database}; {users:,} users, {rows:,} rows of days, {PARTITIONS} partitions")

        def rounds(count: int, before: Any = None) -> list[tuple[float, float]]:
            nonlocal now_ns
            took = []
            for _ in range(count):
                now_ns += 10**9
                if before is not None:
                    before()
                cpu, wall = time.process_time(), time.perf_counter()
                evaluator.evaluate(now_ns, ends)
                took.append((time.process_time() - cpu, time.perf_counter() - wall))
            return took

        def touch_some() -> None:
            change(writer, store, now_ns, [numbers.randrange(users) for _ in range(changed)], 1)

        with AlertEvaluator(store, settings) as evaluator:
            touch_some()
            say("first round", rounds(1))
            memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            say(f"round after {changed:,} users changed", rounds(30, touch_some))
            say("round at rest", rounds(30))
            grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory
            alerts = writer.read("SELECT count(*) FROM alert_outbox")[0][0]
            console.print(
                f"memory {memory / 1024:.0f} MiB after the first round, {grown / 1024:+.0f} since; {alerts:,} alerts"
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--users", type=int, default=100_000)
    parser.add_argument("--changed", type=int, default=1_000)
    parser.add_argument("--at", help="an empty store; a file that is deleted afterwards, if left out")
    arguments = parser.parse_args()
    console.print(f"Python {platform.python_version()}, SQLite {sqlite3.sqlite_version}")
    with tempfile.TemporaryDirectory() as folder:
        url = arguments.at or f"sqlite:///{folder}/bench.db"
        run(url, Path(folder), arguments.users, arguments.changed)


if __name__ == "__main__":
    main()
