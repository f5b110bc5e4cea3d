"""Two processes under one emitter id, as a snapshot of a running process that is restored twice makes them: loud,
always.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import zip_longest
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from runtap_consumers.correct.thinning import thin_reports
from structlog.testing import capture_logs

from partition_setting import WorkerTools, rows
from runtap_collector.send import sender as sender_module
from runtap_consumers.figures import shared_emitters
from runtap_consumers.figures.ledger import build_ledger
from runtap_consumers.figures.shared_emitters import find_forks, tell_shared_emitters
from runtap_consumers.store.engine import Store
from runtap_consumers.store.read.snapshot import open_snapshot
from samples import SECOND_NS, START_NS, Log, report
from unit.test_collector_sender import FakeLink, Sending
from worker_process import wait_until


def _emitted(monkeypatch: pytest.MonkeyPatch, runs: int) -> dict[int, list[bytes]]:
    """What one of the processes writes, by partition."""
    monkeypatch.setattr(sender_module, "Link", FakeLink)
    monkeypatch.setattr(sender_module, "FIRST_REPORT_SECONDS", 0.01)
    monkeypatch.setattr(sender_module, "REPORT_SECONDS", 0.05)
    sending = Sending()
    sending.ledger.emitter = "twin"
    for number in range(runs):
        sending.end_runs(1, key=f"trace {number}")
    sending.start()
    time.sleep(0.2)
    sending.close()
    return sending.link.log


def _apply(tools: WorkerTools, *processes: dict[int, list[bytes]]) -> None:
    for number in range(3):
        log = Log()
        for values in zip_longest(*(process.get(number, []) for process in processes)):
            for value in filter(None, values):
                log.append_value(value)
        tools.apply(log, number)


@pytest.mark.parametrize("runs", [(5, 5), (40, 3)], ids=["alike", "one quicker than the other"])
def test_second_process_under_an_emitter_id_is_found_whatever_became_of_its_numbers(
    runs: tuple[int, int], store: Store, store_url: str, tools: WorkerTools, monkeypatch: pytest.MonkeyPatch
) -> None:
    _apply(tools, *(_emitted(monkeypatch, count) for count in runs))
    with open_snapshot(store) as snapshot:
        ledger = build_ledger(snapshot, ZoneInfo("UTC"))
    (shared,) = ledger["shared_emitters"]
    assert (shared["emitter"], len(shared["processes"])) == ("twin", 1)
    command = [sys.executable, "-m", "runtap_consumers", "ledger", "--database-url", store_url]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "Emitter twin is two processes or more" in " ".join(shown.split())


def test_one_process_is_one_chain_also_where_reports_come_twice(
    store: Store, tools: WorkerTools, monkeypatch: pytest.MonkeyPatch
) -> None:
    process = _emitted(monkeypatch, 40)
    assert sum(b"emitter.reported" in value for values in process.values() for value in values) >= 3
    _apply(tools, process, process)
    assert find_forks(store) == []


def _chain(log: Log, numbers: range, name: Callable[[int], str], **facts: Any) -> None:
    for number in numbers:
        ids = {"report_id": name(number), "previous_report_id": name(number - 1)}
        event = report(number, number, {0: number}, START_NS + number * 10 * SECOND_NS, **ids, **facts)
        log.append(event, "twin", number)


def test_thinning_keeps_the_evidence(store: Store, tools: WorkerTools) -> None:
    log = Log()
    _chain(log, range(1, 50), lambda number: f"a{number}")
    # From here on the second process alone is heard, and its first reports were lost.
    _chain(log, range(50, 1_000), lambda number: f"b{number}", host="host-2")
    tools.apply(log)
    (before,) = find_forks(store)
    assert (before.number, before.processes) == (49, (("host-1", 1), ("host-2", 1)))
    assert thin_reports(store) > 500
    (after,) = find_forks(store)
    assert (after.emitter, after.number) == ("twin", 49)
    # Beside the evidence only the ids of reports that are kept anyway.
    assert rows(store, "SELECT count(*) FROM report_chains")[0][0] < 400


async def test_shared_emitter_is_told_once_within_a_minute_of_its_reports(
    store: Store, tools: WorkerTools, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The longest wait, and the interval of the reports.
    assert shared_emitters.LOOK_EVERY_SECONDS * 1.5 + sender_module.REPORT_SECONDS <= 60
    monkeypatch.setattr(shared_emitters, "LOOK_EVERY_SECONDS", 0.02)
    log = Log()
    _chain(log, range(1, 5), lambda number: f"a{number}")
    tools.apply(log)
    with capture_logs() as logs:

        def told() -> list[Any]:
            return [(log["emitter"], log["processes"]) for log in logs if log["event"] == "emitter_shared"]

        telling = asyncio.create_task(tell_shared_emitters(store))
        try:
            await asyncio.sleep(0.2)
            assert told() == []
            _chain(log, range(4, 6), lambda number: f"b{number}", host="host-2")
            tools.apply(log)
            await asyncio.to_thread(wait_until, lambda: bool(told()), 10)
            await asyncio.sleep(0.2)
        finally:
            telling.cancel()
            await asyncio.wait({telling})
    assert told() == [("twin", (("host-1", 1), ("host-2", 1)))]
