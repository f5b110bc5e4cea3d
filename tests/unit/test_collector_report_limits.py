"""A report never breaks the limits of the contract, however much there is to say: it would be a dead letter, as would
each that follows.
"""

from __future__ import annotations

import logging
import uuid
from pathlib import Path

import pytest

from runtap_collector.send import ledger as ledger_module
from runtap_collector.send.encoding import report_of
from runtap_collector.send.lanes import Lane
from runtap_collector.send.link import BatchRefusedError
from runtap_schemas import EmitterReported, decode_event, number_event
from unit.test_collector_sender import Sending
from unit.test_collector_spool import _Outage, quick

__all__ = ["quick"]


def test_report_names_the_newest_where_there_is_more_than_fits() -> None:
    sending = Sending()
    ledger = sending.ledger
    for partition in range(10_050):
        lane = ledger.lanes[partition] = Lane(partition, ledger.emitter)
        lane.last = 10_000
    for number in range(2_050):
        emitter = uuid.UUID(int=number).hex
        foreign = ledger.foreign_lanes[emitter, 0] = Lane(0, emitter)
        foreign.last = 1
    for lane in (ledger.lanes[0], ledger.lanes[1], *ledger.foreign_lanes.values()):
        for first in range(1, 1_500 if lane.emitter == ledger.emitter else 5, 2):
            ledger.skip(lane, first, first, "too_large")
    record = report_of(ledger.report(ledger.lanes[0], closing=True), ledger.emitter)
    report = decode_event(number_event(record.body, ledger.emitter, 10_001))
    assert isinstance(report, EmitterReported)
    assert len(report.lanes) == 10_000
    assert report.lanes[0] == 10_001
    assert len(report.replayed) == 2_000
    assert report.replayed[-1].emitter == uuid.UUID(int=2_049).hex
    assert len(report.skipped) == 1_000
    assert len(record.body) < 768 * 1024


def test_report_of_one_lane_keeps_its_newest_gaps() -> None:
    ledger = Sending().ledger
    lane = ledger.lanes[0] = Lane(0, ledger.emitter)
    for first in range(1, 4_001, 2):
        ledger.skip(lane, first, first, "too_large")
    skipped = ledger.report(lane, closing=False).skipped
    assert [one.first for one in skipped] == list(range(2_001, 4_001, 2))
    assert lane.skipped_count == 2_000


def test_spools_that_a_report_cannot_name_are_left_to_the_next_process(
    quick: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(ledger_module, "MAX_ADOPTED_EMITTERS", 2)
    for _ in range(3):
        dead = _Outage(tmp_path, is_away=True)
        dead.start()
        dead.end_runs(5)
        dead.ring.close()
        dead.sender.close(0.5)
        assert dead.ledger.delivery().spooled == 5
    for adopted, left in ((2, 1), (1, 0)):
        with caplog.at_level(logging.WARNING):
            living = _Outage(tmp_path, is_away=False)
            living.start()
            living.wait_for_runs(5 * adopted)
            reports = living.close()
        assert sorted(reports[-1].adopted.values()) == [5] * adopted
        assert len(list(tmp_path.rglob("*.spool"))) == left
    assert [record.getMessage() for record in caplog.records if "spool_not_adopted" in record.getMessage()]


def test_events_refused_one_by_one_do_not_make_the_report_larger_than_its_limits(
    quick: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledger_module, "MAX_SKIPPED_RANGES", 3)
    sending = Sending(directory=tmp_path)

    def refuse_every_other(values: list[bytes], attempt: int) -> BatchRefusedError | None:
        events = [decode_event(value) for value in values]
        refused = any(not isinstance(event, EmitterReported) and (event.sequence or 0) % 2 for event in events)
        return BatchRefusedError("too_large") if refused else None

    sending.link.fate = refuse_every_other
    sending.start()
    sending.end_runs(20)
    (report,) = sending.close()
    assert [one.first for one in report.skipped] == [15, 17, 19]
    assert sending.ledger.delivery().dropped == {"too_large": 10}
