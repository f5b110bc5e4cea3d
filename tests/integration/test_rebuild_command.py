"""`runtap rebuild` as a process, on real Kafka, beside real workers."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from aiokafka import TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, RecordsToDelete
from sqlalchemy import create_engine, text

from cost_sql import COST_SUM
from samples import model_call
from worker_process import WorkerSetting, numbered, produce, wait_until

MakeTopic = Callable[..., Awaitable[str]]
CALL_PICODOLLARS = 195 * 10**6
WRONG = """
[[price]]
provider = "openai"
model = "gpt-4o-mini-2024-07-18"
input = "1000"
output = "1000"
"""


def rows(setting: WorkerSetting, query: str) -> list[tuple[Any, ...]]:
    engine = create_engine(setting.store_url.replace("postgresql://", "postgresql+psycopg://"))
    try:
        with engine.connect() as connection:
            return [tuple(row) for row in connection.execute(text(query))]
    finally:
        engine.dispose()


def live(setting: WorkerSetting, table: str = "cost_total", owner: str = "cost") -> tuple[int, int]:
    """Calls and picodollars that count."""
    ((calls, cost),) = rows(
        setting,
        f"SELECT coalesce(sum(t.calls), 0), coalesce({COST_SUM}, 0) FROM {table} t JOIN positions p "
        f"ON p.projection = '{owner}' AND p.partition = t.partition AND p.generation = t.generation",
    )
    return int(calls), int(cost)


def offsets(setting: WorkerSetting) -> list[int]:
    """How far a rebuild in the making has come."""
    found = rows(setting, "SELECT next_offset FROM positions WHERE projection LIKE 'cost.rebuild/%'")
    return [offset for (offset,) in found]


def calls(count: int, first: int = 0) -> list[Any]:
    now = time.time_ns()
    return [model_call(now, run_id=f"run-{first + place}", trace_id=f"t-{place}") for place in range(count)]


async def test_a_rebuild_beside_working_workers_corrects_prices_and_loses_nothing(
    setting: WorkerSetting, kafka: str, events_topic: MakeTopic, tmp_path: Path, processes: list[Any]
) -> None:
    topic = await events_topic(partitions=3)
    wrong = tmp_path / "wrong.toml"
    wrong.write_text(WRONG)
    await produce(kafka, topic, numbered(calls(6_000)))
    setting.more = {"RUNTAP_PRICES": str(wrong), "RUNTAP_COMMIT_EVENTS": "300"}
    await asyncio.to_thread(setting.drain, "cost")
    assert live(setting)[1] > 6_000 * CALL_PICODOLLARS
    del setting.more["RUNTAP_PRICES"]
    told = await asyncio.to_thread(setting.run, "rebuild", "cost", "--dry-run")
    assert told.returncode == 0, told.stderr
    assert "6,000 records read; no figure has changed" in told.stdout
    assert f"{6_000 * CALL_PICODOLLARS:,}" in told.stdout
    assert live(setting)[1] > 6_000 * CALL_PICODOLLARS
    # Workers go on, one of them is killed, and so are three rebuilds, each where it has gone on from the one before.
    log = tmp_path / "workers.log"
    processes += [setting.start(log, "cost"), setting.start(log, "cost")]
    feeding = asyncio.create_task(produce(kafka, topic, numbered(calls(6_000, 6_000), first=6_000)))
    made = 0
    for _ in range(3):
        rebuild = await asyncio.create_subprocess_exec(
            *setting.command("rebuild", "cost"), env=setting.environment(), stderr=asyncio.subprocess.DEVNULL
        )

        def has_gone_on(rebuild: asyncio.subprocess.Process = rebuild, made: int = made) -> bool:
            return sum(offsets(setting)) > made or rebuild.returncode is not None

        await asyncio.to_thread(wait_until, has_gone_on, 30, "a rebuild at work")
        if rebuild.returncode is None:
            rebuild.kill()
        await rebuild.wait()
        made = sum(offsets(setting))
    processes[0].send_signal(signal.SIGKILL)
    done = await asyncio.to_thread(setting.run, "rebuild", "cost")
    assert done.returncode == 0, done.stderr[-3000:]
    assert "cost was rebuilt: all that there is" in done.stdout
    await feeding
    await asyncio.to_thread(wait_until, lambda: live(setting)[0] >= 12_000, 60, "all events")
    assert live(setting) == (12_000, 12_000 * CALL_PICODOLLARS)
    assert live(setting, "cost_minute") == live(setting, "cost_day") == (12_000, 12_000 * CALL_PICODOLLARS)
    # Nothing is left of what does not count.
    assert rows(setting, "SELECT DISTINCT generation FROM cost_total") == [(0,)]
    assert offsets(setting) == []


async def test_what_the_log_has_lost_stays_as_it_was(
    setting: WorkerSetting, kafka: str, events_topic: MakeTopic
) -> None:
    topic = await events_topic(partitions=1)
    await produce(kafka, topic, numbered(calls(50), partitions=1))
    await asyncio.to_thread(setting.drain)
    admin = AIOKafkaAdminClient(bootstrap_servers=kafka)
    await admin.start()
    await admin.delete_records({TopicPartition(topic, 0): RecordsToDelete(before_offset=30)})
    await admin.close()
    for projection in ("cost", "sessions", "runs"):
        done = await asyncio.to_thread(setting.run, "rebuild", projection)
        assert done.returncode == 0, done.stderr[-3000:]
        assert "of 20 records" in done.stdout
    # The day of the log's first record is not whole.
    assert live(setting) == (50, 50 * CALL_PICODOLLARS)
    assert rows(setting, "SELECT DISTINCT generation FROM cost_total") == [(0,)]
    assert rows(setting, "SELECT count(*) FROM runs") == [(50,)]
    await produce(kafka, topic, numbered(calls(5, 50), partitions=1, first=50))
    await asyncio.to_thread(setting.drain)
    assert live(setting) == (55, 55 * CALL_PICODOLLARS)


async def test_wrong_requests_end_with_one_line(setting: WorkerSetting, kafka: str, events_topic: MakeTopic) -> None:
    await events_topic(partitions=1)
    refused = await asyncio.to_thread(setting.run, "rebuild", "costs")
    assert (refused.returncode, len(refused.stderr.splitlines())) == (2, 1)
    assert "there is no projection 'costs'" in refused.stderr
    if setting.store_url.startswith("sqlite"):
        missing = await asyncio.to_thread(setting.run, "rebuild", "cost")
        assert missing.returncode == 1
        assert "there is no store at" in missing.stderr
    await asyncio.to_thread(setting.drain, "cost")
    never = await asyncio.to_thread(setting.run, "rebuild", "runs")
    assert never.returncode == 1
    assert "runs has no figures yet" in never.stderr
