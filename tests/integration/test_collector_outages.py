"""Whole processes that end or die while Kafka is away, and what the next ones make of their spools."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import subprocess
import sys
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import closing
from pathlib import Path

import cramjam
import pytest

from runtap_schemas import EmitterReported, RunEnded
from topic_log import LoggedEvent, check_ledger, events_of, read_topic

MakeTopic = Callable[..., Awaitable[str]]

# Kafka is away for a process whose connections are refused: the spool belongs to the address that it was told.
_SERVICE = """
import signal, sys, time
from langchain_core.runnables import RunnableLambda
from runtap_collector import RunTap
from runtap_collector.send import link

how, runs = sys.argv[1], int(sys.argv[2])
if how == "away":
    async def refuse(self):
        raise OSError("connection refused")
    link.AIOKafkaProducer.start = refuse
tap = RunTap.from_env()
step = RunnableLambda(lambda x: x, name="step")
for number in range(runs):
    step.invoke(number, {"callbacks": [tap.handler]})
if how == "adopts":
    from pathlib import Path
    import os
    deadline = time.monotonic() + 20
    while list(Path(os.environ["RUNTAP_SPOOL_DIR"]).rglob("*.spool")) and time.monotonic() < deadline:
        time.sleep(0.05)
began = time.monotonic()
delivery = tap.close()
print(delivery.sent, delivery.waiting, delivery.spooled, sum(delivery.dropped.values()), time.monotonic() - began)
"""


def _environment(kafka: str, prefix: str, state: Path) -> dict[str, str]:
    return {
        **{name: value for name, value in os.environ.items() if not name.startswith(("RUNTAP_", "LANG"))},
        "RUNTAP_BOOTSTRAP_SERVERS": kafka,
        "RUNTAP_TOPIC_PREFIX": prefix,
        "RUNTAP_SPOOL_DIR": str(state),
    }


def _run(how: str, runs: int, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", _SERVICE, how, str(runs)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def _files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def _ended(logged: list[LoggedEvent]) -> list[RunEnded]:
    return [entry.event for entry in logged if isinstance(entry.event, RunEnded)]


def _check_numbers(logged: list[LoggedEvent]) -> None:
    """Checks that each lane lies in one partition, that repeats are repeats, and that no lane has a gap."""
    lanes: dict[tuple[str, int], dict[int, LoggedEvent]] = {}
    for entry in logged:
        lane = lanes.setdefault((entry.emitter, entry.partition), {})
        assert lane.setdefault(entry.number, entry).event == entry.event
    assert len({emitter for emitter, _ in lanes}) == len(lanes)
    assert all(sorted(lane) == list(range(1, len(lane) + 1)) for lane in lanes.values())
    # Every run under one number.
    run_ids = [e.event.run_id for lane in lanes.values() for e in lane.values() if isinstance(e.event, RunEnded)]
    assert len(run_ids) == len({*run_ids})


async def test_process_that_ends_without_kafka_leaves_everything_to_the_next(
    kafka: str, topic_prefix: str, events_topic: MakeTopic, tmp_path: Path
) -> None:
    topic = await events_topic()
    environment = _environment(kafka, topic_prefix, tmp_path)
    done = await asyncio.to_thread(_run, "away", 200, environment)
    assert done.returncode == 0, done.stderr
    sent, waiting, spooled, dropped, seconds = (float(word) for word in done.stdout.split())
    assert (sent, waiting, dropped) == (0, 0, 0)
    assert seconds < 2.2
    assert (await asyncio.to_thread(_run, "adopts", 1, environment)).returncode == 0
    logged = await read_topic(kafka, topic)
    assert len(_ended(logged)) == 201
    by_emitter = Counter(entry.emitter for entry in logged if not isinstance(entry.event, EmitterReported))
    # The start of a run that had not ended when a frame was closed went along.
    assert max(by_emitter.values()) == spooled >= 200
    # Each with its own closing report, and nothing that another has added.
    for emitter in {entry.emitter for entry in logged}:
        check_ledger([entry for entry in logged if entry.emitter == emitter])
    assert _files(tmp_path) == []


async def test_two_processes_that_find_one_spool_send_it_once(
    kafka: str, topic_prefix: str, events_topic: MakeTopic, tmp_path: Path
) -> None:
    topic = await events_topic()
    environment = _environment(kafka, topic_prefix, tmp_path)
    assert (await asyncio.to_thread(_run, "away", 500, environment)).returncode == 0
    both = [asyncio.to_thread(_run, "adopts", 1, environment) for _ in range(2)]
    assert [done.returncode for done in await asyncio.gather(*both)] == [0, 0]
    logged = await read_topic(kafka, topic)
    _check_numbers(logged)
    assert len(_ended(logged)) == 502
    assert len({entry.emitter for entry in logged}) == 3


_ENDS = """
import asyncio, atexit, os, signal, sys, time

def note():
    print(time.monotonic(), flush=True)

# Registered first, called last.
atexit.register(note)
from langchain_core.runnables import RunnableLambda
from runtap_collector import RunTapHandler
from runtap_collector.send import link

how, kafka = sys.argv[1:]
if kafka != "up":
    async def start(self):
        if kafka == "silent":
            await asyncio.sleep(60)
        raise OSError("connection refused")
    link.AIOKafkaProducer.start = start
step = RunnableLambda(lambda x: x, name="step")

def work():
    for number in range(200):
        step.invoke(number, {"callbacks": [RunTapHandler()]})

if how == "asyncio":
    # As servers do it: the signal ends the loop, and then `main` returns.
    async def serve():
        stopped = asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.set)
        work()
        os.kill(os.getpid(), signal.SIGTERM)
        await stopped.wait()
    asyncio.run(serve())
    note()
    sys.exit()
if how == "handler":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
work()
if how == "default":
    # What is in memory dies with the process; what is older was sent, or is on disk.
    time.sleep(2.5)
note()
if how in ("handler", "default"):
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(60)
if how == "exit":
    sys.exit(3)
if how == "raise":
    raise ValueError("the app's own")
"""
_EXIT_CODES = {"return": 0, "exit": 3, "raise": 1, "handler": 0, "asyncio": 0, "default": -signal.SIGTERM}


def _spooled_runs(folder: Path) -> list[str]:
    """Ids of the ended runs that abandoned spools hold."""
    logged: list[LoggedEvent] = []
    for path in folder.rglob("*.spool"):
        with closing(sqlite3.connect(path)) as connection:
            for (packed,) in connection.execute("SELECT frame FROM frames ORDER BY first"):
                logged += events_of(bytes(cramjam.zstd.decompress(packed)))
    return [event.run_id for event in _ended(logged)]


@pytest.mark.alone
@pytest.mark.parametrize("how", _EXIT_CODES)
async def test_every_way_to_end_takes_two_seconds_at_most_and_loses_nothing(
    how: str, kafka: str, topic_prefix: str, events_topic: MakeTopic, tmp_path: Path
) -> None:
    topic = await events_topic()

    def end(away: str) -> None:
        command = [sys.executable, "-c", _ENDS, how, away]
        environment = _environment(kafka, topic_prefix, tmp_path / away)
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=90, check=False)
        began, *ended = map(float, done.stdout.split())
        assert done.returncode == _EXIT_CODES[how], done.stderr
        assert ("ValueError: the app's own" in done.stderr) == (how == "raise")
        # By its default action SIGTERM lets no exit code run.
        assert len(ended) == (how != "default")
        assert all(at - began < 2.2 for at in ended), (how, away, began, ended)

    states = ("up", "refused", "silent")
    await asyncio.gather(*(asyncio.to_thread(end, away) for away in states))
    sent = [event.run_id for event in _ended(await read_topic(kafka, topic))]
    run_ids = {"up": sent} | {away: _spooled_runs(tmp_path / away) for away in states[1:]}
    assert {away: (len(ids), len({*ids})) for away, ids in run_ids.items()} == dict.fromkeys(states, (200, 200))
    assert _files(tmp_path / "up") == []


_PROCESSES = """
import multiprocessing, os, sys
from langchain_core.runnables import RunnableLambda
from runtap_collector import RunTapHandler

step = RunnableLambda(lambda x: x, name="step")

def work(number):
    step.invoke(number, {"callbacks": [RunTapHandler()]})
    return os.getpid()

if __name__ == "__main__":
    how = sys.argv[1]
    if how == "preload":
        # A server that loads the app, and its handler, before it forks its workers.
        step.invoke(0, {"callbacks": [RunTapHandler()]})
        for _ in range(4):
            if os.fork() == 0:
                for number in range(5):
                    work(number)
                sys.exit(0)
        for _ in range(4):
            assert os.wait()[1] == 0
    else:
        context = multiprocessing.get_context(how)
        workers = [context.Process(target=work, args=(number,)) for number in range(4)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        assert [worker.exitcode for worker in workers] == [0] * 4
        work(0)
"""


@pytest.mark.parametrize(("how", "runs", "emitters"), [("preload", 21, 5), ("fork", 5, None), ("spawn", 5, None)])
async def test_every_kind_of_child_process_is_an_emitter_of_its_own(
    how: str, runs: int, emitters: int | None, kafka: str, topic_prefix: str, events_topic: MakeTopic, tmp_path: Path
) -> None:
    topic = await events_topic()
    script = tmp_path / "processes.py"
    await asyncio.to_thread(script.write_text, _PROCESSES)
    environment = {**_environment(kafka, topic_prefix, tmp_path / "spool"), "PYTHONWARNINGS": "ignore"}
    done = await asyncio.to_thread(
        subprocess.run, [sys.executable, str(script), how], env=environment, capture_output=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    logged = await read_topic(kafka, topic)
    _check_numbers(logged)
    ended = _ended(logged)
    assert len(ended) == runs, (how, len(ended))
    assert len({e.emitter for e in logged if isinstance(e.event, RunEnded)}) == (emitters or runs)


_MANY_FORKS = """
import os
from langchain_core.runnables import RunnableLambda
from runtap_collector import RunTap
tap = RunTap.from_env()
step = RunnableLambda(lambda x: x)
ids = {tap.stats().emitter}
for _ in range(200):
    step.invoke(0, {"callbacks": [tap.handler]})
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        step.invoke(0, {"callbacks": [tap.handler]})
        os.write(writing, tap.stats().emitter.encode())
        os._exit(0)
    os.close(writing)
    ids.add(os.read(reading, 100).decode())
    os.close(reading)
    assert os.waitpid(child, 0)[1] == 0
assert len(ids) == 201, len(ids)
delivery = tap.close(10)
assert (delivery.sent >= 200, delivery.waiting, delivery.dropped) == (True, 0, {}), delivery
"""


async def test_many_forks_with_events_in_flight_never_hang_and_share_no_emitter_id(
    kafka: str, topic_prefix: str, events_topic: MakeTopic, tmp_path: Path
) -> None:
    await events_topic()
    environment = _environment(kafka, topic_prefix, tmp_path)
    command = [sys.executable, "-W", "ignore", "-c", _MANY_FORKS]
    done = await asyncio.to_thread(subprocess.run, command, env=environment, capture_output=True, timeout=90)
    assert done.returncode == 0, done.stderr
