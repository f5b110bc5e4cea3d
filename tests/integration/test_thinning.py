"""Thinning of emitters' reports: what goes, what stays, and that nobody can tell from the figures."""

from __future__ import annotations

import random
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from partition_setting import WorkerTools, rows
from runtap_consumers.correct import thinning
from runtap_consumers.correct.thinning import thin_reports
from runtap_consumers.figures.ledger import build_ledger
from runtap_consumers.figures.report import read_completeness
from runtap_consumers.store.engine import Store
from runtap_consumers.store.read.snapshot import open_snapshot
from runtap_consumers.units import HOUR_NS
from samples import SECOND_NS, START_NS, Log, model_call, report

UTC = ZoneInfo("UTC")


def seen(store: Store) -> dict[str, Any]:
    """All that is worked out of reports."""
    with open_snapshot(store) as snapshot:
        projections = [[name] for name in snapshot.projections]
        complete = [read_completeness(snapshot, names) for names in [*projections, snapshot.projections]]
        return {"complete": complete, "ledger": build_ledger(snapshot, UTC)}


def numbers_of(store: Store, emitter: str) -> list[int]:
    return [
        number
        for (number,) in rows(store, f"SELECT number FROM emitter_reports WHERE emitter = '{emitter}' ORDER BY number")
    ]


def reporting(log: Log, emitter: str, begin_s: int, end_s: int, step_s: int = 10, **last: Any) -> None:
    """An emitter whose only events are its reports; `last` are facts of the last one."""
    moments = range(begin_s, end_s, step_s)
    for number, moment in enumerate(moments, start=1):
        facts = last if moment == moments[-1] else {}
        event = report(number, number, {0: number}, START_NS + moment * SECOND_NS, **facts)
        log.append(event, emitter, number)


def merged(*logs: Log) -> Log:
    """One log of several, by log time."""
    log = Log()
    for record in sorted((record for one in logs for record in one.records), key=lambda record: record.timestamp):
        log.append_value(record.value, record.timestamp * 1_000_000)
    return log


def test_covered_reports_go_but_for_the_last_hour(store: Store, tools: WorkerTools) -> None:
    log = Log()
    reporting(log, "e1", 0, 3 * 3600)
    tools.apply(log)
    before = seen(store)
    assert thin_reports(store) == 2 * 360 - 1
    assert numbers_of(store, "e1") == list(range(720, 1081))
    assert seen(store) == before
    assert thin_reports(store) == 0


def test_what_a_slower_projection_has_not_covered_stays(store: Store, tools: WorkerTools) -> None:
    log = Log()
    reporting(log, "e1", 0, 3 * 3600)
    quick = tuple(name for name in ("cost", "performance", "errors", "sessions", "ledger"))
    tools.apply(log, projections=quick)
    slow = Log()
    slow.records = log.records[:100]
    tools.apply(slow, projections=("runs",))
    before = seen(store)
    assert thin_reports(store) == 99
    assert numbers_of(store, "e1")[0] == 100
    assert seen(store) == before
    tools.apply(log, projections=("runs",))
    assert thin_reports(store) == 720 - 100


def test_nothing_goes_while_a_projection_knows_nothing_of_the_emitter(store: Store, tools: WorkerTools) -> None:
    log = Log()
    reporting(log, "e1", 0, 3 * 3600)
    tools.apply(log, projections=("ledger", "cost"))
    tools.apply(Log(), projections=("runs",))
    assert thin_reports(store) == 0


def test_the_highest_completeness_of_a_clock_set_back_stays(store: Store, tools: WorkerTools) -> None:
    log = Log()
    for number in range(1, 1001):
        moment = START_NS + number * 10 * SECOND_NS
        behind = HOUR_NS if number > 100 else 0
        log.append(report(number, number, {0: number}, moment, complete_at_ns=moment - behind), "e1", number)
    tools.apply(log)
    thin_reports(store)
    assert numbers_of(store, "e1")[0] == 640
    log = Log()
    for number in range(1, 1001):
        moment = START_NS + number * 10 * SECOND_NS
        behind = 3 * HOUR_NS if number > 100 else 0
        log.append(report(number, number, {1: number}, moment, complete_at_ns=moment - behind), "e2", number)
    tools.apply(log, number=1)
    thin_reports(store)
    assert numbers_of(store, "e2")[:2] == [100, 640]


def test_an_emitter_that_fell_silent_stays_silent(store: Store, tools: WorkerTools) -> None:
    killed, closing, late = Log(), Log(), Log()
    reporting(killed, "killed", 0, 1000)
    reporting(closing, "closing", 5, 2000, closing=True)
    reporting(late, "late", 20 * 3600, 20 * 3600 + 20)
    tools.apply(merged(killed, closing, late))
    before = seen(store)
    assert [complete.silent for complete in before["complete"]] == [("killed",)] * 7
    assert thin_reports(store) > 250
    assert seen(store) == before
    # Its newest, and of the other one the closing report and the few that show that it went on.
    assert numbers_of(store, "killed") == [100]
    witnesses = numbers_of(store, "closing")
    assert 3 <= len(witnesses) <= 5
    assert witnesses[-1] == 200


@pytest.mark.parametrize("seed", range(6))
def test_ledger_and_completeness_are_the_same_after_thinning_random_histories(
    store: Store, tools: WorkerTools, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    monkeypatch.setattr(thinning, "_KEPT_WHOLE_NS", 60 * SECOND_NS)
    chance = random.Random(seed)
    logs = []
    for place in range(6):
        log, number = Log(), 0
        begin = chance.randrange(0, 3000)
        moments = range(begin, begin + chance.randrange(100, 3000), 10)
        for reports, moment in enumerate(moments, start=1):
            at_ns = START_NS + moment * SECOND_NS
            for _ in range(chance.randrange(3)):
                # A number now and then never arrives; its gap keeps reports from being covered by nothing else.
                number += 1 + (chance.random() < 0.02)
                log.append(model_call(at_ns, run_id=f"r-{place}-{number}"), f"e{place}", number)
            number += 1
            facts = {"complete_at_ns": at_ns - chance.randrange(3) * SECOND_NS}
            if chance.random() < 0.9:
                log.append(
                    report(reports, number + chance.randrange(2), {0: number}, at_ns, **facts), f"e{place}", number
                )
        logs.append(log)
    log = merged(*logs)
    tools.apply(log, projections=("ledger", "cost"))
    part = Log()
    part.records = log.records[: chance.randrange(len(log.records))]
    tools.apply(part, projections=("runs", "sessions"))
    before, count = seen(store), len(rows(store, "SELECT 1 FROM emitter_reports"))
    deleted = thin_reports(store)
    assert seen(store) == before
    assert len(rows(store, "SELECT 1 FROM emitter_reports")) == count - deleted
    tools.apply(log, projections=("runs", "sessions"))
    before = seen(store)
    deleted += thin_reports(store)
    assert seen(store) == before
    assert deleted > 50
