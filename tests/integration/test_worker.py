"""`runtap worker` on real Kafka."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import sqlite3
import time
from collections.abc import Awaitable, Callable
from contextlib import closing
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic, RecordsToDelete
from sqlalchemy import create_engine, text

from cost_sql import COST_SUM
from kafka_proxy import proxied_kafka
from runtap_demo.kafka.ports import free_ports
from runtap_schemas import RunEnded
from samples import framed, model_call, report
from worker_process import (
    WorkerSetting,
    ask_health,
    ask_metrics,
    numbered,
    produce,
    produce_with_odd_header,
    wait_until,
)

MakeTopic = Callable[..., Awaitable[str]]
CALL_PICODOLLARS = 195 * 10**6


@pytest.fixture
def setting_on_sqlite(kafka: str, topic_prefix: str, tmp_path: Path) -> WorkerSetting:
    return WorkerSetting(kafka, topic_prefix, f"sqlite:///{tmp_path}/runtap.db")


def calls(count: int, first: int = 0) -> list[RunEnded]:
    now = time.time_ns()
    return [model_call(now, run_id=f"run-{first + number}", trace_id=f"t-{number}") for number in range(count)]


def rows(setting: WorkerSetting, query: str) -> list[tuple[Any, ...]]:
    url = setting.store_url.replace("postgresql://", "postgresql+psycopg://")
    engine = create_engine(url)
    try:
        with engine.connect() as connection:
            return [tuple(row) for row in connection.execute(text(query))]
    finally:
        engine.dispose()


def counted(setting: WorkerSetting) -> tuple[int, int]:
    """Calls and picodollars so far; none before the store is there."""
    try:
        ((found, cost),) = rows(setting, f"SELECT coalesce(sum(calls), 0), coalesce({COST_SUM}, 0) FROM cost_total")
    except Exception as error:
        if "cost_total" not in str(error):
            raise
        return 0, 0
    return int(found), int(cost)


async def test_drained_workers_count_every_event_once(
    setting: WorkerSetting, kafka: str, events_topic: MakeTopic
) -> None:
    topic = await events_topic(partitions=3)
    await produce(kafka, topic, numbered(calls(3_000)))
    await asyncio.to_thread(setting.drain)
    assert counted(setting) == (3_000, 3_000 * CALL_PICODOLLARS)
    # Nothing new: nothing changes. Something new: it alone is added.
    await asyncio.to_thread(setting.drain)
    assert counted(setting) == (3_000, 3_000 * CALL_PICODOLLARS)
    await produce(kafka, topic, numbered(calls(30, first=3_000), first=3_000))
    await asyncio.to_thread(setting.drain, "cost")
    await asyncio.to_thread(setting.drain, "runs", "performance", "errors", "sessions", "ledger")
    assert counted(setting)[0] == 3_030
    assert rows(setting, "SELECT count(*), count(DISTINCT run_id) FROM runs") == [(3_030, 3_030)]


async def test_workers_that_are_killed_join_and_leave_leave_exact_figures(
    setting: WorkerSetting, kafka: str, events_topic: MakeTopic, tmp_path: Path, processes: list[Any]
) -> None:
    topic = await events_topic(partitions=3)
    total = 12_000
    setting.more["RUNTAP_COMMIT_EVENTS"] = "150"
    log = tmp_path / "workers.log"
    processes += [setting.start(log), setting.start(log)]
    feeding = asyncio.create_task(produce(kafka, topic, numbered(calls(total))))
    await asyncio.to_thread(wait_until, lambda: counted(setting)[0] > 300, 30, "the first commits")
    processes[0].kill()
    third_log = tmp_path / "third.log"
    processes.append(setting.start(third_log))
    await asyncio.sleep(1)
    processes[1].send_signal(signal.SIGTERM)
    await feeding
    await asyncio.to_thread(wait_until, lambda: counted(setting)[0] >= total, 60, "all events")
    assert counted(setting) == (total, total * CALL_PICODOLLARS)
    assert rows(setting, "SELECT count(*), count(DISTINCT run_id) FROM runs") == [(total, total)]
    # One that is still importing has no handler yet, and dies of the signal.
    await asyncio.to_thread(wait_until, lambda: '"worker_started"' in third_log.read_text(), 30, "the third worker")
    processes[2].send_signal(signal.SIGTERM)
    began = time.monotonic()
    assert processes[2].wait(10) == 0
    assert time.monotonic() - began < 5
    assert counted(setting) == (total, total * CALL_PICODOLLARS)


async def remake(kafka: str, topic: str, partitions: int) -> None:
    admin = AIOKafkaAdminClient(bootstrap_servers=kafka)
    await admin.start()
    try:
        await admin.delete_topics([topic])
        for _ in range(100):
            await asyncio.sleep(0.1)
            if topic not in await admin.list_topics():
                break
        await admin.create_topics([NewTopic(topic, partitions, 1)])
    finally:
        await admin.close()


@pytest.mark.parametrize("length", [60, 900], ids=["shorter", "longer"])
async def test_a_topic_made_again_is_read_from_its_beginning(
    setting_on_sqlite: WorkerSetting, kafka: str, events_topic: MakeTopic, length: int
) -> None:
    setting = setting_on_sqlite
    topic = await events_topic(partitions=3)
    await produce(kafka, topic, numbered(calls(300)))
    await asyncio.to_thread(setting.drain)
    await remake(kafka, topic, 3)
    # The same emitter goes on with its numbers, after a repeat of its last three events.
    await produce(kafka, topic, numbered(calls(3 + length, first=297), first=297))
    await asyncio.to_thread(setting.drain)
    assert counted(setting) == (300 + length, (300 + length) * CALL_PICODOLLARS)
    assert rows(setting, "SELECT DISTINCT incarnation FROM positions") == [(2,)]
    assert rows(setting, "SELECT DISTINCT kind FROM log_incidents") == [("recreated",)]
    assert rows(setting, "SELECT DISTINCT gaps, repeats FROM lane_marks") == [("[]", 1)]


async def test_a_topic_made_again_under_a_running_worker_is_noticed(
    setting_on_sqlite: WorkerSetting, kafka: str, events_topic: MakeTopic, tmp_path: Path, processes: list[Any]
) -> None:
    setting = setting_on_sqlite
    topic = await events_topic(partitions=1)
    await produce(kafka, topic, numbered(calls(100), partitions=1))
    processes.append(setting.start(tmp_path / "worker.log"))
    await asyncio.to_thread(wait_until, lambda: counted(setting)[0] == 100, 30, "the first hundred")
    await remake(kafka, topic, 1)
    await produce(kafka, topic, numbered(calls(250), emitter="e2", partitions=1))

    def is_complete() -> bool:
        if processes[-1].poll() is not None:
            # It met the moment without the topic, said so and exited: what its supervisor does then.
            processes.append(setting.start(tmp_path / "worker.log"))
        return counted(setting)[0] == 350

    await asyncio.to_thread(wait_until, is_complete, 60, "the new log")
    assert counted(setting) == (350, 350 * CALL_PICODOLLARS)


async def test_retention_that_overtakes_a_worker_is_a_recorded_loss(
    setting_on_sqlite: WorkerSetting, kafka: str, events_topic: MakeTopic
) -> None:
    setting = setting_on_sqlite
    topic = await events_topic(partitions=1)
    await produce(kafka, topic, numbered(calls(50), partitions=1))
    await asyncio.to_thread(setting.drain, "cost")
    await produce(kafka, topic, numbered(calls(50), partitions=1, first=50))
    admin = AIOKafkaAdminClient(bootstrap_servers=kafka)
    await admin.start()
    await admin.delete_records({TopicPartition(topic, 0): RecordsToDelete(before_offset=80)})
    await admin.close()
    await asyncio.to_thread(setting.drain, "cost")
    assert counted(setting)[0] == 70
    incidents = rows(setting, "SELECT kind, first_offset, last_offset FROM log_incidents")
    assert incidents == [("retention", 50, 79)]
    assert rows(setting, "SELECT mark, gaps FROM lane_marks") == [(100, "[[51,80]]")]


async def test_unreadable_records_reach_the_dead_letters_topic_and_their_neighbours_count(
    setting_on_sqlite: WorkerSetting, kafka: str, events_topic: MakeTopic, tmp_path: Path, processes: list[Any]
) -> None:
    setting = setting_on_sqlite
    topic = await events_topic(partitions=1)
    good = numbered(calls(3), partitions=1)
    await produce(kafka, topic, [good[0], (0, b"not json", []), good[1], (0, b'{"a":1}', []), good[2]])
    processes.append(setting.start(tmp_path / "worker.log"))
    await asyncio.to_thread(wait_until, lambda: counted(setting)[0] == 3, 30, "the good events")
    consumer = AIOKafkaConsumer(
        topic.replace(".events", ".dead-letters"), bootstrap_servers=kafka, auto_offset_reset="earliest"
    )
    await consumer.start()
    try:
        letters = [await asyncio.wait_for(consumer.getone(), 20) for _ in range(2)]
    finally:
        await consumer.stop()
    assert [letter.value for letter in letters] == [b"not json", b'{"a":1}']
    headers = dict(letters[0].headers)
    assert headers["offset"] == b"1"
    assert b"malformed" in headers["cause"]


async def test_a_record_that_the_client_cannot_decode_is_stepped_over(
    setting_on_sqlite: WorkerSetting, kafka: str, events_topic: MakeTopic
) -> None:
    setting = setting_on_sqlite
    topic = await events_topic(partitions=1)
    good = numbered(calls(5), partitions=1)

    await produce(kafka, topic, good[:2])
    await produce_with_odd_header(kafka, topic, good[2][1])
    await produce(kafka, topic, good[3:])
    await asyncio.to_thread(setting.drain)
    letters = rows(setting, "SELECT log_offset, cause FROM dead_letters")
    assert counted(setting)[0] == 4
    assert [offset for offset, _ in letters] == [2]
    assert "cannot decode" in letters[0][1]


async def test_a_record_that_the_client_cannot_decode_may_be_the_last(
    setting_on_sqlite: WorkerSetting, kafka: str, events_topic: MakeTopic
) -> None:
    setting = setting_on_sqlite
    topic = await events_topic(partitions=1)
    good = numbered(calls(5), partitions=1)
    await produce(kafka, topic, good[:3])
    await produce_with_odd_header(kafka, topic, b"{}")
    await asyncio.to_thread(setting.drain)
    # The next owner compares the record before its position, which is that one.
    await produce(kafka, topic, good[3:])
    await asyncio.to_thread(setting.drain)
    assert counted(setting)[0] == 5
    assert rows(setting, "SELECT DISTINCT incarnation, next_offset FROM positions") == [(1, 6)]


async def test_health_is_progress(
    setting_on_sqlite: WorkerSetting, kafka: str, events_topic: MakeTopic, tmp_path: Path, processes: list[Any]
) -> None:
    setting = setting_on_sqlite
    topic = await events_topic(partitions=1)
    (port,) = free_ports(1)
    processes.append(setting.start(tmp_path / "worker.log", "cost", "--health", str(port)))
    await produce(kafka, topic, numbered(calls(20), partitions=1))
    await asyncio.to_thread(wait_until, lambda: counted(setting)[0] == 20, 30, "the events")

    _, found = await asyncio.to_thread(ask_health, port)
    assert (found["status"], found["partitions"], found["events_applied"]) == ("healthy", [0], 20)
    samples = await asyncio.to_thread(ask_metrics, port)
    assert samples['runtap_worker_lag_records{partition="0",projection="cost"}'] == 0
    assert (samples["runtap_worker_events_total"], samples["runtap_worker_records_total"]) == (20, 20)
    assert samples["runtap_worker_commit_seconds_count"] == found["commits"]
    assert samples["runtap_worker_commit_seconds_sum"] > 0


async def test_readiness_says_that_kafka_does_not_answer_and_comes_back(
    topic_prefix: str, tmp_path: Path, processes: list[Any]
) -> None:
    (port,) = free_ports(1)
    with proxied_kafka() as proxied:
        setting = WorkerSetting(proxied.bootstrap_servers, topic_prefix, f"sqlite:///{tmp_path}/runtap.db")
        assert setting.run("topics", "create", "--partitions", "2", "--replication-factor", "1").returncode == 0
        processes.append(setting.start(tmp_path / "worker.log", "cost", "--health", str(port)))

        def is_said(word: str) -> bool:
            status, body = ask_health(port)
            return status == 503 and any(problem.startswith(word) for problem in body["problems"])

        await asyncio.to_thread(wait_until, lambda: ask_health(port)[0] == 200, 30, "readiness")
        proxied.proxy.set_mode("refuse")
        await asyncio.to_thread(wait_until, lambda: is_said("no answer for"), 30, "what is wrong")
        assert ask_health(port, "livez")[0] == 200
        proxied.proxy.set_mode("pass")
        await asyncio.to_thread(wait_until, lambda: ask_health(port)[0] == 200, 40, "readiness")


async def test_a_worker_whose_health_port_is_taken_says_so_and_exits(
    setting_on_sqlite: WorkerSetting, events_topic: MakeTopic
) -> None:
    await events_topic(partitions=1)
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        done = await asyncio.to_thread(setting_on_sqlite.run, "worker", "--drain", "--health", str(port))
    assert (done.returncode, done.stdout) == (1, "")
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert f"health cannot be served on 127.0.0.1:{port}: Address already in use. End what listens there" in done.stderr


async def test_a_workers_log_does_not_repeat_what_it_is_subscribed_to(
    setting_on_sqlite: WorkerSetting, events_topic: MakeTopic
) -> None:
    await events_topic(partitions=1)
    done = await asyncio.to_thread(setting_on_sqlite.run, "worker", "cost", "--drain")
    assert done.returncode == 0, done.stderr
    assert "worker_started" in done.stderr
    assert "pdating subscribed topics" not in done.stderr


async def test_a_worker_whose_topic_is_deleted_says_so_and_exits(
    setting_on_sqlite: WorkerSetting, kafka: str, events_topic: MakeTopic, tmp_path: Path, processes: list[Any]
) -> None:
    setting = setting_on_sqlite
    topic = await events_topic(partitions=1)
    await produce(kafka, topic, numbered(calls(5), partitions=1))
    log = tmp_path / "worker.log"
    processes.append(setting.start(log))
    await asyncio.to_thread(wait_until, lambda: counted(setting)[0] == 5, 30, "the events")
    admin = AIOKafkaAdminClient(bootstrap_servers=kafka)
    await admin.start()
    await admin.delete_topics([topic])
    assert await asyncio.to_thread(processes[0].wait, 40) == 1
    await admin.create_topics([NewTopic(topic, 1, 1)])
    await admin.close()
    assert f"topic {topic} is no longer there" in log.read_text()


async def test_what_waiting_cannot_cure_ends_the_worker_with_one_line(
    setting_on_sqlite: WorkerSetting, events_topic: MakeTopic, tmp_path: Path
) -> None:
    setting = setting_on_sqlite
    await events_topic(partitions=1)
    others = tmp_path / "others.db"
    with closing(sqlite3.connect(others)) as connection:
        connection.execute("CREATE TABLE bookmarks (url TEXT)")
    cases = {
        ("RUNTAP_DATABASE_URL", "mysql://x/y"): "expected sqlite or postgresql",
        ("RUNTAP_DATABASE_URL", f"sqlite:///{others}"): "is another program's database, with tables like bookmarks",
        ("RUNTAP_DATABASE_URL", "sqlite:////proc/nowhere/x.db"): "RUNTAP_DATABASE_URL",
        ("RUNTAP_TIMEZONE", "Mars/Olympus"): "RUNTAP_TIMEZONE='Mars/Olympus'",
        ("RUNTAP_COMMIT_EVENTS", "none"): "RUNTAP_COMMIT_EVENTS='none'",
    }
    for (name, value), message in cases.items():
        setting.more = {name: value}
        done = await asyncio.to_thread(setting.run, "worker", "cost")
        assert done.returncode != 0
        last = done.stderr.strip().splitlines()[-1]
        assert message in last, done.stderr[-2000:]
        assert "Traceback" not in done.stderr
    with closing(sqlite3.connect(others)) as connection:
        assert connection.execute("SELECT name FROM sqlite_master").fetchall() == [("bookmarks",)]
    setting.more = {}
    done = await asyncio.to_thread(setting.run, "worker", "cost", "--health", "127.0.0.1:http")
    assert (done.returncode, "PORT or HOST:PORT" in " ".join(done.stderr.split())) == (2, True), done.stderr


async def test_a_worker_that_is_started_first_waits_for_its_topic(
    setting_on_sqlite: WorkerSetting, kafka: str, events_topic: MakeTopic, tmp_path: Path, processes: list[Any]
) -> None:
    setting = setting_on_sqlite
    (port,) = free_ports(1)
    processes.append(setting.start(tmp_path / "worker.log", "--health", str(port)))
    await asyncio.to_thread(
        wait_until, lambda: "no topic" in str(ask_health(port)[1].get("problems")), 30, "what it lacks"
    )
    status, body = ask_health(port)
    assert (status, body["status"], body["lag"]) == (503, "unhealthy", None)
    assert ask_health(port, "livez")[1]["status"] == "alive"
    # Nothing is made for a topic that may be misspelt.
    assert not (tmp_path / "runtap.db").exists()
    topic = await events_topic(partitions=1)
    await produce(kafka, topic, numbered(calls(20), partitions=1))
    await asyncio.to_thread(wait_until, lambda: counted(setting)[0] == 20, 30, "the events")
    await asyncio.to_thread(wait_until, lambda: ask_health(port)[0] == 200, 15, "readiness")
    assert ask_health(port)[1]["lag"] == 0
    assert (tmp_path / "worker.log").read_text().count("worker_waits") == 1


async def test_a_draining_worker_waits_for_half_a_minute(setting_on_sqlite: WorkerSetting) -> None:
    (port,) = free_ports(1)
    setting_on_sqlite.more = {"RUNTAP_BOOTSTRAP_SERVERS": f"127.0.0.1:{port}"}
    began = time.monotonic()
    done = await asyncio.to_thread(setting_on_sqlite.run, "worker", "--drain", timeout=90)
    assert done.returncode == 1
    assert f"cannot reach Kafka at 127.0.0.1:{port}" in done.stderr.strip().splitlines()[-1]
    assert time.monotonic() - began > 30


async def test_a_store_s_file_that_is_deleted_ends_the_worker(
    setting_on_sqlite: WorkerSetting, events_topic: MakeTopic, tmp_path: Path, processes: list[Any]
) -> None:
    await events_topic(partitions=1)
    processes.append(setting_on_sqlite.start(tmp_path / "worker.log"))
    await asyncio.to_thread(wait_until, lambda: "partitions_assigned" in (tmp_path / "worker.log").read_text(), 30)
    (tmp_path / "runtap.db").unlink()
    assert await asyncio.to_thread(processes[0].wait, 15) == 1
    assert f"the store's file {tmp_path}/runtap.db was deleted or replaced" in (tmp_path / "worker.log").read_text()


async def test_a_topic_that_keeps_its_producers_times_is_refused_with_the_cure(
    setting_on_sqlite: WorkerSetting, kafka: str, topic_prefix: str
) -> None:
    admin = AIOKafkaAdminClient(bootstrap_servers=kafka)
    await admin.start()
    configs = {"message.timestamp.type": "CreateTime"}
    await admin.create_topics([NewTopic(f"{topic_prefix}.events", 1, 1, topic_configs=configs)])
    done = await asyncio.to_thread(setting_on_sqlite.run, "worker", "--drain")
    await admin.delete_topics([f"{topic_prefix}.events"])
    await admin.close()
    assert done.returncode == 1
    assert "--add-config message.timestamp.type=LogAppendTime" in done.stderr.strip().splitlines()[-1]


async def test_a_store_of_another_topic_is_refused(
    setting_on_sqlite: WorkerSetting, kafka: str, events_topic: MakeTopic
) -> None:
    setting = setting_on_sqlite
    await events_topic(partitions=1)
    await asyncio.to_thread(setting.drain, "cost")
    other = f"{setting.topic_prefix}-2"
    setting.more = {"RUNTAP_TOPIC_PREFIX": other}
    admin = AIOKafkaAdminClient(bootstrap_servers=kafka)
    await admin.start()
    await admin.create_topics([NewTopic(f"{other}.events", 1, 1)])
    done = await asyncio.to_thread(setting.run, "worker", "cost")
    await admin.delete_topics([f"{other}.events"])
    await admin.close()
    assert done.returncode != 0
    assert f"{other}.events" in done.stderr.strip().splitlines()[-1]


async def test_partitions_added_while_workers_run_are_read_from_their_beginning(
    setting_on_sqlite: WorkerSetting, kafka: str, events_topic: MakeTopic, tmp_path: Path, processes: list[Any]
) -> None:
    from aiokafka.admin import NewPartitions

    setting = setting_on_sqlite
    topic = await events_topic(partitions=1)
    await produce(kafka, topic, numbered(calls(10), partitions=1))
    processes.append(setting.start(tmp_path / "worker.log"))
    await asyncio.to_thread(wait_until, lambda: counted(setting)[0] == 10, 30, "the events")
    admin = AIOKafkaAdminClient(bootstrap_servers=kafka)
    await admin.start()
    await admin.create_partitions({topic: NewPartitions(total_count=3)})
    await admin.close()
    await produce(kafka, topic, numbered(calls(30), emitter="e2", partitions=3))
    await asyncio.to_thread(wait_until, lambda: counted(setting)[0] == 40, 30, "the new partitions")
    assert rows(setting, "SELECT count(*) FROM runs") == [(40,)]
    assert rows(setting, "SELECT sum(count) FROM performance_total") == [(40,)]


@pytest.mark.long
async def test_an_emitter_that_was_killed_at_night_holds_complete_to_for_90_seconds_at_most(
    setting_on_sqlite: WorkerSetting, kafka: str, events_topic: MakeTopic, tmp_path: Path, processes: list[Any]
) -> None:
    setting, topic = setting_on_sqlite, await events_topic(partitions=6)
    processes.append(setting.start(tmp_path / "worker.log"))
    killed_ns = time.time_ns()
    await produce(kafka, topic, [(0, framed([model_call(killed_ns)], "killed", 1, killed_ns), [])])

    def complete_to() -> float:
        told = json.loads(setting.run("report", "--json", "-").stdout)["complete_to"]
        return 0.0 if told is None else datetime.fromisoformat(told).timestamp()

    await asyncio.to_thread(wait_until, lambda: counted(setting)[0] == 1, 30, "the event")
    number, began = 0, time.monotonic()
    while await asyncio.to_thread(complete_to) <= killed_ns / 1e9 + 30:
        seconds = time.monotonic() - began
        assert seconds < 90 + 5, "it holds still"
        if seconds >= number * 10:
            number, now_ns = number + 1, time.time_ns()
            await produce(kafka, topic, [(3, framed([report(now_ns)], "alive", number, now_ns), [])])
        await asyncio.sleep(1)
    # Not at once: it may be an outage.
    assert 60 < time.monotonic() - began < 90
