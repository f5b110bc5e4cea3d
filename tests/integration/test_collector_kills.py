"""Every step of the emitter that writes to disk or to Kafka, in a process that is killed right before or after it.

What follows must be exact whatever the step: nothing twice under two numbers, nothing in two partitions, no gap that
nobody announces, and nothing lost that was in a spool.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Awaitable, Callable
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

import cramjam
import pytest

from runtap_schemas import LaneAbandoned, RunEnded
from topic_log import LoggedEvent, events_of, read_topic

MakeTopic = Callable[..., Awaitable[str]]

_SERVICE = """
import os, signal, sys, time
from pathlib import Path
from langchain_core.runnables import RunnableLambda
from runtap_collector import RunTap
from runtap_collector.send import link, sender
from runtap_collector.send.outbox import Outbox
from runtap_collector.send.sender import Sender
from runtap_collector.spool import replay
from runtap_collector.spool.spool import Spool, SpoolFile

kafka, when, step, count, runs = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]), int(sys.argv[5])
steps = {
    "close": (Outbox, "close_frames"),
    "choose": (Sender, "_choose_partition"),
    "say": (SpoolFile, "say"),
    "send": (link.Link, "send"),
    "acknowledge": (Outbox, "settle"),
    "make": (Spool, "_make"),
    "spool": (SpoolFile, "store"),
    "delete": (SpoolFile, "forget"),
    "adopt": (Spool, "find_abandoned"),
    "announce": (Sender, "say"),
    "remove": (SpoolFile, "close"),
}
sender.AWAY_SECONDS, sender.STUCK_SECONDS = 0.2, 0.5
replay.SCAN_SECONDS = 0.3
if kafka == "away":
    async def refuse(self):
        raise OSError("connection refused")
    link.AIOKafkaProducer.start = refuse
if kafka == "comes-back":
    start, back = link.AIOKafkaProducer.start, time.monotonic() + 2.0
    async def refuse_at_first(self):
        if time.monotonic() < back:
            raise OSError("connection refused")
        await start(self)
    link.AIOKafkaProducer.start = refuse_at_first

def kill():
    os.kill(os.getpid(), signal.SIGKILL)

if step in steps:
    owner, name = steps[step]
    original, left = getattr(owner, name), [count]
    def is_due():
        left[0] -= 1
        return left[0] == 0
    if step in ("choose", "send", "announce"):
        async def replaced(*arguments, **keywords):
            due = is_due()
            if due and when == "before":
                kill()
            try:
                return await original(*arguments, **keywords)
            finally:
                if due:
                    kill()
    else:
        def replaced(*arguments, **keywords):
            due = is_due()
            if due and when == "before":
                kill()
            try:
                return original(*arguments, **keywords)
            finally:
                if due:
                    kill()
    setattr(owner, name, replaced)

folder = Path(os.environ["RUNTAP_SPOOL_DIR"])
found = list(folder.rglob("*.spool"))
tap = RunTap.from_env()
runnable = RunnableLambda(lambda x: x, name="step")
for number in range(runs):
    runnable.invoke(number, {"callbacks": [tap.handler]})
    time.sleep(0.02)
# Long, for a busy machine: whoever is killed, or has sent what others left in spools, does not wait.
until = time.monotonic() + 30
while time.monotonic() < until and (step in steps or (step == "none" and any(map(Path.exists, found)))):
    if step in steps:
        # A step that is done once a frame comes again with the next frame only.
        runnable.invoke(0, {"callbacks": [tap.handler]})
    time.sleep(0.05)
tap.close(1)
"""


class Case(NamedTuple):
    """The `times`th time that a step is done, beside a Kafka that is `up`, `away`, or `comes-back` after two seconds.

    `finds`: whether another process's spool is there; `gone`: one whose partition is gone.
    """

    step: str
    kafka: str
    times: int = 1
    finds: bool = False
    gone: bool = False


# One of each kind, always.
_CASES = [
    Case("close", "comes-back", 3),
    Case("send", "up", 2, finds=True),
    Case("acknowledge", "comes-back", 2),
    Case("spool", "comes-back"),
    Case("delete", "up", finds=True),
    Case("announce", "up", finds=True, gone=True),
]
_MORE_CASES = [
    Case("close", "up", 2),
    Case("choose", "up"),
    Case("choose", "comes-back"),
    Case("choose", "up", finds=True),
    Case("say", "comes-back", 2),
    Case("send", "up", 2),
    Case("send", "comes-back"),
    Case("acknowledge", "up", 2),
    Case("acknowledge", "up", 1, finds=True),
    Case("make", "comes-back"),
    Case("spool", "comes-back", 3),
    Case("delete", "comes-back"),
    Case("delete", "comes-back", 2),
    Case("adopt", "up", finds=True),
    Case("remove", "up", finds=True),
    Case("send", "up", 2, finds=True, gone=True),
    Case("acknowledge", "up", 1, finds=True, gone=True),
    Case("delete", "up", 1, finds=True, gone=True),
]


def _run(environment: dict[str, str], *arguments: object) -> int:
    command = [sys.executable, "-c", _SERVICE, *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, timeout=60, check=False).returncode


def _spooled(folder: Path) -> list[LoggedEvent]:
    """What is in the spools that lie there."""
    found: list[LoggedEvent] = []
    for path in folder.rglob("*.spool"):
        with closing(sqlite3.connect(path)) as connection:
            if not connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'frames'").fetchone():
                continue
            for (packed,) in connection.execute("SELECT frame FROM frames"):
                found += events_of(bytes(cramjam.zstd.decompress(packed)))
    return found


def _forget_partition(folder: Path) -> None:
    """Makes the spool one of a topic that had more partitions."""
    (path,) = folder.rglob("*.spool")
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("UPDATE meta SET value = '99' WHERE name = 'partition'")
        connection.commit()


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize(
    "case",
    [*_CASES, *(pytest.param(case, marks=pytest.mark.long) for case in _MORE_CASES)],
    ids=lambda case: "-".join(map(str, case)),
)
async def test_killed_beside_any_step_counts_nothing_twice_and_loses_nothing_that_was_spooled(
    case: Case, when: str, kafka: str, topic_prefix: str, events_topic: MakeTopic, tmp_path: Path
) -> None:
    topic = await events_topic()
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith(("RUNTAP_", "LANG"))},
        "RUNTAP_BOOTSTRAP_SERVERS": kafka,
        "RUNTAP_TOPIC_PREFIX": topic_prefix,
        "RUNTAP_SPOOL_DIR": str(tmp_path),
    }
    if case.finds:
        assert await asyncio.to_thread(_run, environment, "away", "never", "-", 1, 30) == 0
    if case.gone:
        _forget_partition(tmp_path)
    found = _spooled(tmp_path)
    assert bool(found) == case.finds
    code = await asyncio.to_thread(_run, environment, case.kafka, when, case.step, case.times, 30)
    assert code == -signal.SIGKILL
    left = _spooled(tmp_path)
    # What comes next has everything again, but for what is gone.
    assert await asyncio.to_thread(_run, environment, "up", "never", "none", 1, 1) == 0
    assert not _spooled(tmp_path)

    logged = await read_topic(kafka, topic)
    lanes: dict[str, dict[int, LoggedEvent]] = {}
    for entry in logged:
        # A number belongs to its event, and a lane to its partition.
        first = lanes.setdefault(entry.emitter, {}).setdefault(entry.number, entry)
        assert (first.event, first.partition) == (entry.event, entry.partition)
    run_ids = [e.event.run_id for lane in lanes.values() for e in lane.values() if isinstance(e.event, RunEnded)]
    assert len(run_ids) == len({*run_ids})
    announced = {
        (e.event.emitter, number)
        for e in logged
        if isinstance(e.event, LaneAbandoned)
        for number in range(e.event.first, e.event.last + 1)
    }
    arrived = {(emitter, number) for emitter, lane in lanes.items() for number in lane}
    assert {(entry.emitter, entry.number) for entry in [*found, *left]} <= arrived | announced
    assert not arrived & announced
    assert bool(announced) == case.gone
    for emitter, lane in lanes.items():
        assert sorted(lane) == list(range(1, len(lane) + 1)), emitter
