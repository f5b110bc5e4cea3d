"""From the handler to the report, over real processes that are killed: every figure equals the one worked out from what
the fake model answered and from the service's own books.
"""

from __future__ import annotations

import asyncio
import json
import random
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from aiokafka import AIOKafkaConsumer, TopicPartition
from sqlalchemy import create_engine, inspect, text

from cost_sql import COST_SUM
from expected_figures import ENVIRONMENT, Expected
from process_tree import state_and_parent
from worker_process import WorkerSetting, wait_until

MakeTopic = Callable[..., Awaitable[str]]
PROJECTIONS = ("cost", "performance", "errors", "sessions", "runs", "contents", "ledger")
PARTITIONS = 6
_HERE = Path(__file__).parent
_LOCKS = Path("/proc/locks")
_KILLING_SECONDS = 10.0
# Small, as the records are, so that there are many commits to be killed in.
_COMMIT_EVENTS = "10"

pytestmark = pytest.mark.timeout(150)


class Pipeline:
    """Fake model, service and workers of one test."""

    def __init__(self, setting: WorkerSetting, folder: Path, seed: int) -> None:
        self.setting = setting
        self._folder = folder
        self._seed = seed
        self._answers, self._book = folder / "answers.jsonl", folder / "book.json"
        # The model stands in for OpenAI: an address that nobody knows has no prices.
        prices = folder / "prices.toml"
        prices.write_text('[[seller]]\nhost = "127.0.0.1"\nprovider = "openai"\n')
        setting.more["RUNTAP_PRICES"] = str(prices)
        self._processes: list[subprocess.Popen[Any]] = []
        self._service: subprocess.Popen[str]

    def start_service(self) -> None:
        """Starts the service, and waits until half of its runs are in Kafka."""
        model = subprocess.Popen(
            [sys.executable, str(_HERE / "fake_model.py"), str(self._answers)], stdout=subprocess.PIPE, text=True
        )
        self._processes.append(model)
        assert model.stdout is not None
        environment = {
            **self.setting.environment(),
            "OPENAI_BASE_URL": f"http://127.0.0.1:{model.stdout.readline().strip()}/v1",
            "OPENAI_API_KEY": "none",
            "RUNTAP_SERVICE": "checkout",
            "RUNTAP_ENVIRONMENT": ENVIRONMENT,
            "RUNTAP_SPOOL_DIR": str(self._folder / "spool"),
        }
        self._service = subprocess.Popen(
            [sys.executable, str(_HERE / "mixed_service.py"), str(self._book), str(self._seed)],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._processes.append(self._service)
        assert self._service.stdout is not None
        assert self._service.stdout.readline() == "half\n", self._service.communicate()[1]

    def go_on(self) -> None:
        """Lets the service begin its second half."""
        assert self._service.stdin is not None
        self._service.stdin.write("\n")
        self._service.stdin.flush()

    def finish_service(self) -> Expected:
        """Waits for the service's end; what the report must say."""
        _, said = self._service.communicate(timeout=60)
        assert self._service.returncode == 0, said
        # The HTTP client complains of streams that were closed early; the collector has nothing to say.
        assert [line for line in said.splitlines() if "runtap_collector" in line or line.startswith("event=")] == []
        expected = Expected(self._answers, self._book)
        assert len(expected.book["roots"]) >= 500
        return expected

    def start_worker(self, *projections: str) -> subprocess.Popen[bytes]:
        """Starts a worker."""
        worker = self.setting.start(self._folder / "workers.log", *projections)
        self._processes.append(worker)
        return worker

    def kill(self, worker: subprocess.Popen[bytes]) -> None:
        """Kills a worker that runs; it cannot do anything about it."""
        assert worker.poll() is None, (self._folder / "workers.log").read_text()[-3_000:]
        worker.send_signal(signal.SIGKILL)
        worker.wait(10)

    def positions(self) -> dict[tuple[str, int], int]:
        """Next offset of every projection and partition; nothing before the store is there."""
        engine = create_engine(self.setting.store_url.replace("postgresql://", "postgresql+psycopg://"))
        try:
            with engine.connect() as connection:
                if not inspect(connection).has_table("positions"):
                    return {}
                rows = connection.execute(text("SELECT projection, partition, next_offset FROM positions"))
                return {(name, partition): offset for name, partition, offset in rows}
        finally:
            engine.dispose()

    def wait_for_progress(self, applied: int = 1) -> None:
        """Waits until some events were applied."""
        wait_until(lambda: sum(self.positions().values()) >= applied, 90, "some progress")

    def wait_for_all(self, ends: dict[int, int]) -> None:
        """Waits until every projection has applied the whole log."""
        wanted = {(name, partition): end for name in PROJECTIONS for partition, end in ends.items()}
        wait_until(lambda: self.positions() == wanted, 60, f"all of {ends}")

    def end_workers(self, workers: list[subprocess.Popen[bytes]]) -> None:
        """Ends workers as an operator does, and expects them to go within 5 s."""
        for worker in workers:
            worker.terminate()
        deadline = time.monotonic() + 5
        assert [worker.wait(max(0.0, deadline - time.monotonic())) for worker in workers] == [0] * len(workers)

    def report(self) -> dict[str, Any]:
        """`runtap report --json FILE`."""
        file = self._folder / "report.json"
        done = self.setting.run("report", "--json", str(file))
        assert (done.returncode, done.stderr) == (0, "")
        report: dict[str, Any] = json.loads(file.read_text())
        return report

    def runs(self) -> list[dict[str, Any]]:
        """`runtap runs --json --limit 0`."""
        done = self.setting.run("runs", "--json", "--limit", "0")
        assert (done.returncode, done.stderr) == (0, "")
        return [json.loads(line) for line in done.stdout.splitlines()]

    def close(self) -> None:
        """Ends what is left."""
        for process in self._processes:
            process.kill()
            process.communicate()


@pytest.fixture
def pipelines() -> Iterator[list[Pipeline]]:
    begun: list[Pipeline] = []
    yield begun
    for pipeline in begun:
        pipeline.close()


async def log_ends(bootstrap_servers: str, topic: str) -> dict[int, int]:
    """End of each partition."""
    consumer = AIOKafkaConsumer(bootstrap_servers=bootstrap_servers)
    await consumer.start()
    try:
        ends = await consumer.end_offsets([TopicPartition(topic, partition) for partition in range(PARTITIONS)])
    finally:
        await consumer.stop()
    return {place.partition: end for place, end in ends.items()}


def lag(pipeline: Pipeline, ends: dict[int, int], projection: str) -> int:
    """Events that one projection has not applied."""
    positions = pipeline.positions()
    return sum(end - positions.get((projection, partition), 0) for partition, end in ends.items())


def stop_while(worker: subprocess.Popen[bytes], look: Callable[[], list[Any]]) -> list[Any]:
    """Stops a worker at an instant at which there is something to see; returns that."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        if look():
            stop(worker)
            # Stopped, it can no longer end what is seen: by a commit, or by a time-out.
            if seen := look():
                return seen
            worker.send_signal(signal.SIGCONT)
        time.sleep(0.01)
    pytest.fail("there was nothing to see within 30 s")


def stop(worker: subprocess.Popen[bytes]) -> None:
    """Stops a process, and returns when it stands still."""
    worker.send_signal(signal.SIGSTOP)
    while (state_and_parent(worker.pid) or "T")[0] != "T":
        time.sleep(0)


async def test_every_figure_is_exact_on_postgresql_though_workers_are_killed_with_lag_and_inside_a_transaction(
    kafka: str,
    topic_prefix: str,
    events_topic: MakeTopic,
    postgres_database: str,
    tmp_path: Path,
    pipelines: list[Pipeline],
) -> None:
    setting = WorkerSetting(kafka, topic_prefix, postgres_database, {"RUNTAP_COMMIT_EVENTS": _COMMIT_EVENTS})
    topic = await events_topic(PARTITIONS)
    pipeline = Pipeline(setting, tmp_path, seed=1)
    pipelines.append(pipeline)
    await asyncio.to_thread(pipeline.start_service)

    first, second = pipeline.start_worker(), pipeline.start_worker()
    await asyncio.to_thread(pipeline.wait_for_progress)
    pipeline.kill(first)

    await asyncio.to_thread(kill_inside_transaction, pipeline, second)
    assert lag(pipeline, await log_ends(kafka, topic), "cost") > 0

    others = [pipeline.start_worker(), pipeline.start_worker()]
    expected = await asyncio.to_thread(pipeline.finish_service)
    await asyncio.to_thread(pipeline.wait_for_all, await log_ends(kafka, topic))
    await asyncio.to_thread(pipeline.end_workers, others)
    await asyncio.to_thread(check_figures, pipeline, expected)

    # The same log once more, into an empty store, one process a projection.
    pipeline.setting.store_url = f"sqlite:///{tmp_path}/again.db"
    drained = [pipeline.start_worker("--drain", name) for name in PROJECTIONS]
    assert [await asyncio.to_thread(worker.wait, 60) for worker in drained] == [0] * len(drained)
    await asyncio.to_thread(check_figures, pipeline, expected)


def kill_inside_transaction(pipeline: Pipeline, worker: subprocess.Popen[bytes]) -> None:
    """Holds the rows of a rollup, so that the worker waits between BEGIN and COMMIT, and kills it there."""
    blocked = (
        "SELECT pid, xact_start FROM pg_stat_activity WHERE application_name = 'runtap-worker' "
        "AND wait_event_type = 'Lock' AND query LIKE '%cost_total%'"
    )
    costs = f"SELECT partition, sum(calls), {COST_SUM} FROM cost_total GROUP BY partition ORDER BY partition"
    url = pipeline.setting.store_url.replace("+psycopg", "")
    with psycopg.connect(url) as holder, psycopg.connect(url, autocommit=True) as onlooker:
        wait_until(lambda: bool(onlooker.execute("SELECT 1 FROM cost_total").fetchall()), 30, "a first cost")
        holder.execute("SELECT 1 FROM cost_total FOR UPDATE")
        pipeline.go_on()
        waiting = stop_while(worker, lambda: onlooker.execute(blocked).fetchall())
        pipeline.kill(worker)
        before = pipeline.positions(), onlooker.execute(costs).fetchall()
        holder.rollback()
        gone = "SELECT count(*) FROM pg_stat_activity WHERE pid = %s"
        wait_until(lambda: onlooker.execute(gone, waiting[0][:1]).fetchone() == (0,), 10, "the dead worker's backend")
        after = pipeline.positions(), onlooker.execute(costs).fetchall()
        assert after == before


@pytest.mark.skipif(not _LOCKS.exists(), reason="tells by /proc/locks who is inside a transaction")
async def test_every_figure_is_exact_on_sqlite_though_workers_are_killed_at_random_instants_of_their_commits(
    kafka: str, topic_prefix: str, events_topic: MakeTopic, tmp_path: Path, pipelines: list[Pipeline]
) -> None:
    more = {"RUNTAP_COMMIT_EVENTS": _COMMIT_EVENTS, "RUNTAP_SESSION_TIMEOUT_SECONDS": "5"}
    setting = WorkerSetting(kafka, topic_prefix, f"sqlite:///{tmp_path}/runtap.db", more)
    topic = await events_topic(PARTITIONS)
    pipeline = Pipeline(setting, tmp_path, seed=2)
    pipelines.append(pipeline)
    await asyncio.to_thread(pipeline.start_service)

    workers = {name: pipeline.start_worker(name) for name in PROJECTIONS}
    await asyncio.to_thread(pipeline.wait_for_progress)
    await asyncio.to_thread(kill_at_random_instants, pipeline, workers, tmp_path / "runtap.db-shm")

    expected = await asyncio.to_thread(pipeline.finish_service)
    await asyncio.to_thread(pipeline.wait_for_all, await log_ends(kafka, topic))
    await asyncio.to_thread(pipeline.end_workers, list(workers.values()))
    await asyncio.to_thread(check_figures, pipeline, expected)

    # The same log once more, into an empty store, one process for all projections.
    pipeline.setting.store_url = f"sqlite:///{tmp_path}/again.db"
    await asyncio.to_thread(pipeline.setting.drain)
    await asyncio.to_thread(check_figures, pipeline, expected)


def kill_at_random_instants(pipeline: Pipeline, workers: dict[str, subprocess.Popen[bytes]], shared: Path) -> None:
    """Kills workers, each at a random instant between its BEGIN and its COMMIT, and starts others in their place.

    They all stand still, but for one that goes on for some milliseconds until it is met inside a transaction.
    """
    dice = random.Random(1)
    # Without captured content there is nothing to write for that one.
    outside = [name for name in PROJECTIONS if name != "contents"]
    deadline = time.monotonic() + _KILLING_SECONDS
    for name in outside:
        stop(workers[name])
    # Some may have applied all of the first half by now.
    pipeline.go_on()
    while outside and time.monotonic() < deadline:
        # One that was met inside at the first stop holds the lock that all need: it goes first.
        inside = [name for name in outside if is_writing(workers[name].pid, shared)]
        name = inside[0] if inside else dice.choice(outside)
        if not inside:
            go_on_for(workers[name], dice.uniform(0.001, 0.01))
            if not is_writing(workers[name].pid, shared):
                continue
        outside.remove(name)
        pipeline.kill(workers[name])
        workers[name] = pipeline.start_worker(name)
    for name in outside:
        workers[name].send_signal(signal.SIGCONT)
    assert len(outside) <= len(PROJECTIONS) // 2, f"{outside} were never met inside a commit"


def go_on_for(worker: subprocess.Popen[bytes], seconds: float) -> None:
    """Lets a stopped process run for a moment."""
    worker.send_signal(signal.SIGCONT)
    time.sleep(seconds)
    stop(worker)


def is_writing(pid: int, shared: Path) -> bool:
    """Whether a process holds the write lock of an SQLite file in WAL mode: byte 120 of its shared memory."""
    inode = shared.stat().st_ino
    return any(
        (fields := line.split())[3] == "WRITE"
        and int(fields[4]) == pid
        and fields[5].endswith(f":{inode}")
        and fields[6] == "120"
        for line in _LOCKS.read_text().splitlines()
    )


def check_figures(pipeline: Pipeline, expected: Expected) -> None:
    """Compares report and single runs with what must come out."""
    report = pipeline.report()
    expected.check(report)
    expected.check_runs(pipeline.runs(), report)
