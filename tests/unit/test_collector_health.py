"""What the emitter says of itself while something is wrong with it."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from langchain_core.runnables import RunnableLambda

from runtap_collector import Delivery, RunTap, process
from runtap_collector.send import emitter as emitter_module
from runtap_collector.send import sender as sender_module
from runtap_schemas import RunEnded
from topic_log import events_of
from unit.test_collector_sender import FakeLink


@pytest.fixture
def tap(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[RunTap]:
    monkeypatch.setattr(sender_module, "Link", FakeLink)
    monkeypatch.setattr(sender_module, "LINGER_SECONDS", 0.001)
    monkeypatch.setattr(emitter_module, "TASK_RETRY_SECONDS", 0.01)
    made = RunTap.from_env(spool_dir=str(tmp_path))
    yield made
    made.close()


def _run(tap: RunTap, times: int = 1) -> None:
    for number in range(times):
        RunnableLambda(lambda x: x, name="step").invoke(number, {"callbacks": [tap.handler]})


def _check_sent(tap: RunTap, delivery: Delivery, runs: int) -> None:
    """Every end was sent; a start, where its run was still open."""
    assert (delivery.sent + tap.stats().superseded, delivery.waiting, delivery.dropped) == (2 * runs, 0, {})


def _wait(condition: Any) -> None:
    deadline = time.monotonic() + 5
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.005)
    assert condition()


def test_emitter_at_work_is_ok_and_a_closed_one_says_so(tap: RunTap) -> None:
    assert (tap.health().is_ok, tap.health().problems) == (True, [])
    _run(tap)
    tap.flush()
    assert tap.health().is_ok
    tap.close()
    assert (tap.health().is_ok, tap.health().problems) == (False, ["closed"])


def test_kafka_away_is_a_problem_with_its_duration(tap: RunTap) -> None:
    _run(tap)
    link: Any = tap._emitter._sender._link  # type: ignore[union-attr]
    link.down_seconds = 7.0
    health = tap.health()
    assert (health.is_ok, health.problems, health.kafka_away_seconds) == (False, ["kafka_away"], 7.0)


def test_sender_that_a_fault_ended_is_made_anew_and_loses_nothing(
    tap: RunTap, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    _run(tap, 5)
    tap.flush()
    first = tap._emitter._sender
    assert first is not None
    logs: list[Any] = [first._link]

    def die() -> None:
        raise SystemExit("a fault of ours")

    first.thread.call(die)
    _wait(lambda: tap._emitter._sender not in (first, None))
    second = tap._emitter._sender
    assert second is not None
    logs.append(second._link)
    _run(tap, 5)
    delivery = tap.flush()
    _check_sent(tap, delivery, 10)
    assert (tap.health().is_ok, tap.health().sender_deaths) == (True, 1)
    assert sum("sender_died" in record.getMessage() for record in caplog.records) == 1
    logged = [entry for link in logs for values in link.log.values() for value in values for entry in events_of(value)]
    assert len({entry.event.run_id for entry in logged if isinstance(entry.event, RunEnded)}) == 10
    # The same emitter, the same lane: its numbers go on.
    assert [entry.number for entry in logged] == list(range(1, len(logged) + 1))
    assert {entry.emitter for entry in logged} == {tap.stats().emitter}


def test_frame_on_its_way_when_the_sender_dies_is_sent_by_the_next(
    tap: RunTap, monkeypatch: pytest.MonkeyPatch
) -> None:
    stuck = asyncio.Event()
    links: list[FakeLink] = []
    send = FakeLink.send

    async def never(self: FakeLink, *frame: Any) -> None:
        if not links:
            links.append(self)
        if self is links[0]:
            await stuck.wait()
        await send(self, *frame)

    monkeypatch.setattr(FakeLink, "send", never)
    _run(tap, 3)
    _wait(lambda: links)
    first = tap._emitter._sender
    assert first is not None

    def die() -> None:
        raise SystemExit("a fault of ours")

    first.thread.call(die)
    _wait(lambda: tap._emitter._sender not in (first, None))
    delivery = tap.flush()
    _check_sent(tap, delivery, 3)


def test_copies_of_a_snapshot_are_emitters_of_their_own_where_the_platform_says_so(
    tap: RunTap, monkeypatch: pytest.MonkeyPatch
) -> None:
    hooks: dict[str, Any] = {}
    platform = SimpleNamespace(
        register_before_snapshot=lambda function: hooks.update(before=function),
        register_after_restore=lambda function: hooks.update(after=function),
    )
    monkeypatch.setitem(sys.modules, "snapshot_restore_py", platform)
    process._end_with_snapshots()
    _run(tap, 3)
    original = tap.stats().emitter
    hooks["before"]()
    _run(tap)
    # Nothing is left that each copy would send.
    assert (tap.stats().waiting, tap.health().problems) == (0, ["closed"])
    assert tap.stats().captured == tap.stats().acknowledged + tap.stats().superseded
    hooks["after"]()
    _run(tap, 2)
    delivery = tap.flush()
    _check_sent(tap, delivery, 2)
    assert tap.stats().emitter != original


def test_snapshot_of_a_closed_emitter_stays_closed(tap: RunTap) -> None:
    _run(tap)
    tap.close()
    process._after_restore()
    assert tap.health().problems == ["closed"]
