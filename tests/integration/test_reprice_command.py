"""`runtap reprice` as a process: beside running workers, killed in the middle, and what it says."""

from __future__ import annotations

import asyncio
import random
import subprocess
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from sqlalchemy import create_engine, text

from cost_sql import COST_SUM
from partition_setting import ATTRIBUTED, SESSION_COSTS
from samples import model_call
from worker_process import WorkerSetting, numbered, produce, wait_until

OWN = '[[price]]\nprovider = "openai"\nmodel = "gpt-4o-mini*"\ninput = "1"\noutput = "2"\n'
OLD_PICODOLLARS = 195 * 10**6
NEW_PICODOLLARS = (1_000 + 2 * 100) * 10**6


def rows(setting: WorkerSetting, query: str) -> list[tuple[Any, ...]]:
    engine = create_engine(setting.store_url)
    try:
        with engine.connect() as connection:
            return [tuple(row) for row in connection.execute(text(query))]
    finally:
        engine.dispose()


def count(setting: WorkerSetting) -> int:
    try:
        return int(rows(setting, "SELECT coalesce(sum(calls), 0) FROM cost_total")[0][0])
    except Exception as error:
        if "cost_total" not in str(error):
            raise
        return 0


def with_own_prices(setting: WorkerSetting, tmp_path: Path, text: str = OWN) -> WorkerSetting:
    file = tmp_path / "prices.toml"
    file.write_text(text)
    return WorkerSetting(
        setting.bootstrap_servers, setting.topic_prefix, setting.store_url, {"RUNTAP_PRICES": str(file)}
    )


async def test_repricing_beside_workers_and_killed_in_the_middle_is_exact(
    setting: WorkerSetting,
    kafka: str,
    events_topic: Callable[..., Awaitable[str]],
    tmp_path: Path,
    processes: list[Any],
) -> None:
    topic = await events_topic(partitions=3)
    total = 9_000
    setting.more["RUNTAP_COMMIT_EVENTS"] = "150"
    own = with_own_prices(setting, tmp_path)
    log = tmp_path / "workers.log"
    processes += [setting.start(log), setting.start(log)]
    now = time.time_ns()
    events = [
        model_call(now - number * 20 * 10**9, run_id=f"run-{number}", session_id=f"s-{number % 50}", user_id="ann")
        for number in range(total)
    ]

    async def feed() -> None:
        for first in range(0, total, 300):
            await produce(kafka, topic, numbered(events[first : first + 300], first=first))

    feeding = asyncio.create_task(feed())
    await asyncio.to_thread(wait_until, lambda: count(setting) > 300, 90, "the first commits")
    chance = random.Random(5)
    killed = finished = 0
    while not feeding.done() or killed < 3 or finished < 2:
        process = await asyncio.to_thread(
            subprocess.Popen,
            own.command("reprice", "--from", "8d", "--yes"),
            env=own.environment(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        processes.append(process)
        try:
            await asyncio.to_thread(process.wait, chance.uniform(0.6, 3) if finished > killed else 30)
            assert process.returncode == 0, process.stderr and process.stderr.read().decode()[-2_000:]
            finished += 1
        except subprocess.TimeoutExpired:
            process.kill()
            await asyncio.to_thread(process.wait, 10)
            killed += 1
        if process.stderr:
            process.stderr.close()
    await feeding
    await asyncio.to_thread(wait_until, lambda: count(setting) == total, 60, "all events")
    places = "SELECT count(*) FROM positions GROUP BY projection HAVING sum(next_offset) < 9000"
    await asyncio.to_thread(wait_until, lambda: rows(setting, places) == [], 60, "every projection")
    done = own.run("reprice", "--from", "8d", "--yes")
    assert done.returncode == 0, done.stderr
    for table in ("cost_minute", "cost_hour", "cost_day", "cost_total", ATTRIBUTED, SESSION_COSTS):
        found = rows(setting, f"SELECT price_set, sum(calls), sum(input_tokens), {COST_SUM} FROM {table} GROUP BY 1")
        assert len(found) == 1, (table, found)
        price_set, calls, tokens, cost = found[0]
        assert "+own-" in price_set
        assert cost == calls * NEW_PICODOLLARS, table
        assert tokens == calls * 1_000
        if table != "cost_minute":
            assert calls == total, table
    runs = rows(
        setting, "SELECT count(*), count(DISTINCT run_id), min(cost_picodollars), max(cost_picodollars) FROM runs"
    )
    assert runs == [(total, total, NEW_PICODOLLARS, NEW_PICODOLLARS)]
    ((recorded,),) = rows(setting, "SELECT count(finished_at_ns) FROM repricings")
    # One that was killed may just have been done.
    assert finished + 1 <= recorded <= finished + 1 + killed
    assert "projection_failed" not in log.read_text()


async def test_what_would_change_is_shown_before_it_is_written(
    setting: WorkerSetting, kafka: str, events_topic: Callable[..., Awaitable[str]], tmp_path: Path
) -> None:
    topic = await events_topic(partitions=3)
    now = time.time_ns()
    await produce(kafka, topic, numbered([model_call(now, run_id=f"run-{number}") for number in range(100)]))
    await asyncio.to_thread(setting.drain)
    own = with_own_prices(setting, tmp_path)

    def costs() -> list[tuple[Any, ...]]:
        return rows(setting, f"SELECT price_set, sum(calls), {COST_SUM} FROM cost_day GROUP BY 1")

    before = costs()
    for arguments in (("--dry-run",), ()):
        done = own.run("reprice", "--from", "2d", *arguments)
        for part in ("gpt-4o-mini-2024-07-18", "100", "$0.019500", "$0.120000", "+$0.100500"):
            assert part in done.stdout, done
        # Nobody answered the question.
        assert done.returncode == (0 if arguments else 1)
        assert costs() == before
    done = own.run("reprice", "--from", "2d", "--yes")
    assert done.returncode == 0, done.stderr
    ((price_set, calls, cost),) = costs()
    assert (calls, cost) == (100, 100 * NEW_PICODOLLARS)
    assert rows(setting, "SELECT price_set, old_cost_usd, new_cost_usd FROM repricings") == [
        (price_set, "0.0195", "0.12")
    ]
    assert "Nothing in this range" in own.run("reprice", "--from", "2d", "--yes").stdout
    refused = own.run("reprice", "--from", "2d", "--to", "3d", "--yes")
    assert refused.returncode == 2
    assert "ends before it begins" in refused.stderr


async def test_what_cannot_be_told_keeps_its_prices_and_is_said(
    setting: WorkerSetting, kafka: str, events_topic: Callable[..., Awaitable[str]], tmp_path: Path
) -> None:
    topic = await events_topic(partitions=3)
    now = time.time_ns()
    calls = [model_call(now, run_id="r-1"), model_call(now, run_id="r-2", model="gpt-4o", request_model="gpt-4o")]
    await produce(kafka, topic, numbered(calls))
    await asyncio.to_thread(setting.drain)
    flat = OWN.replace("gpt-4o-mini*", "gpt-4o")
    own = with_own_prices(setting, tmp_path, OWN + "[[price.above]]\ninput_tokens = 500\ninput = 3\n" + flat)
    done = own.run("reprice", "--from", "2d", "--yes")
    assert done.returncode == 0, done.stderr
    assert "1 calls of days (1 in hours that cannot be told" in " ".join(done.stdout.split())
    found = rows(setting, f"SELECT model, {COST_SUM} FROM cost_day GROUP BY 1 ORDER BY 1")
    assert [int(cost) for _, cost in found] == [NEW_PICODOLLARS, OLD_PICODOLLARS]
    counts = "SELECT kept_calls, kept_session_calls, kept_attribute_calls FROM repricings"
    assert rows(setting, counts)[0][0] == 1
