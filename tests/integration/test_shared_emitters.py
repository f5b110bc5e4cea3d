"""Two processes under one emitter id, as a snapshot of a running process that is restored twice makes them: loud,
always.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
from itertools import zip_longest
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from structlog.testing import capture_logs

from partition_setting import WorkerTools
from runtap_consumers.figures import shared_emitters
from runtap_consumers.figures.ledger import build_ledger
from runtap_consumers.figures.shared_emitters import find_shared, tell_shared_emitters
from runtap_consumers.store.engine import Store
from runtap_consumers.store.read.snapshot import open_snapshot
from samples import SECOND_NS, START_NS, Log, framed, id_of, model_call, report
from worker_process import wait_until


def _frames(begin_ns: int, calls_a_frame: int, frames: int, **facts: Any) -> list[tuple[int, bytes]]:
    """What one of the processes writes from the number 4 on, and when: a frame a second, each third with a report."""
    written, number = [], 4
    for place in range(frames):
        at_ns = begin_ns + place * SECOND_NS
        events: list[Any] = [model_call(at_ns - 1)] * calls_a_frame
        if place % 3 == 2:
            events.append(report(at_ns, **facts))
        written.append((at_ns, framed(events, "twin", number, at_ns)))
        number += len(events)
    return written


def _log(*processes: list[tuple[int, bytes]]) -> Log:
    log = Log()
    log.append_frame([model_call(START_NS - SECOND_NS)] * 3, "twin", 1)
    for frames in zip_longest(*processes):
        for at_ns, value in filter(None, frames):
            log.append_value(value, at_ns)
    return log


@pytest.mark.parametrize("calls", [(1, 1), (5, 1), (1, 5)], ids=["alike", "the second slower", "the second quicker"])
def test_second_process_under_an_emitter_id_is_found_whatever_became_of_its_numbers(
    calls: tuple[int, int], store: Store, store_url: str, tools: WorkerTools
) -> None:
    # Restored half a second apart; a snapshot has host and process id in it, so that they are the same.
    tools.apply(_log(_frames(START_NS, calls[0], 10), _frames(START_NS + SECOND_NS // 2, calls[1], 10)))
    with open_snapshot(store) as snapshot:
        ledger = build_ledger(snapshot, ZoneInfo("UTC"))
    (shared,) = ledger["shared_emitters"]
    assert (shared["emitter"], len(shared["processes"])) == (id_of("twin"), 1)
    command = [sys.executable, "-m", "runtap_consumers", "ledger", "--database-url", store_url]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert f"Emitter {id_of('twin')} is two processes or more" in " ".join(shown.split())


def test_a_second_process_whose_clock_is_slow_is_found_by_where_it_reports_from(
    store: Store, tools: WorkerTools
) -> None:
    slow = _frames(START_NS - 3600 * SECOND_NS, 1, 10, host="host-2")
    tools.apply(_log(_frames(START_NS, 5, 10), slow))
    assert find_shared(store) == {id_of("twin"): (("host-1", 1), ("host-2", 1))}


def test_one_process_is_one_also_where_its_frames_come_twice_and_late(store: Store, tools: WorkerTools) -> None:
    frames = _frames(START_NS, 3, 12)
    late = [*frames[:3], *frames[4:6], frames[3], *frames[6:]]
    log = _log(late, frames)
    # Whole, after all of it, as whoever adopts a spool sends it.
    for at_ns, value in frames:
        log.append_value(value, at_ns + 60 * SECOND_NS)
    tools.apply(log)
    assert find_shared(store) == {}


async def test_shared_emitter_is_told_once_within_a_minute_of_its_frames(
    store: Store, tools: WorkerTools, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert shared_emitters.LOOK_EVERY_SECONDS * 1.5 <= 60
    monkeypatch.setattr(shared_emitters, "LOOK_EVERY_SECONDS", 0.02)
    frames = _frames(START_NS, 2, 6)
    log = _log(frames)
    tools.apply(log)
    with capture_logs() as logs:

        def told() -> list[Any]:
            return [(log["emitter"], log["processes"]) for log in logs if log["event"] == "emitter_shared"]

        telling = asyncio.create_task(tell_shared_emitters(store))
        try:
            await asyncio.sleep(0.2)
            assert told() == []
            for at_ns, value in _frames(START_NS + 10 * SECOND_NS, 1, 3, host="host-2"):
                log.append_value(value, at_ns)
            tools.apply(log)
            await asyncio.to_thread(wait_until, lambda: bool(told()), 10)
            await asyncio.sleep(0.2)
        finally:
            telling.cancel()
            await asyncio.wait({telling})
    assert told() == [(id_of("twin"), (("host-1", 1), ("host-2", 1)))]
