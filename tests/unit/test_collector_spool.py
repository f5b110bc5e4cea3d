"""The spool's rules, each with what would break it. Whole processes that die: tests/integration."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
import time
import uuid
from pathlib import Path
from typing import Any

import pytest

from runtap_collector import Delivery, Stats
from runtap_collector.send import sender as sender_module
from runtap_collector.send.encoding import end_of
from runtap_collector.send.lanes import Lane, NumberedEvent
from runtap_collector.send.link import SendDeniedError, SendError
from runtap_collector.send.partitions import partition_of
from runtap_collector.send.records import OpenRun, Record, Route, View
from runtap_collector.spool import replay as replay_module
from runtap_collector.spool import spool as spool_module
from runtap_collector.spool.spool import MAX_AGE_NS, NumberedBatch, Spool, SpoolError, SpoolFile
from runtap_schemas import ConnectionSettings, EmitterReported, RunEnded, decode_event
from unit.test_collector_sender import FakeLink, Sending, _run

_SETTINGS = ConnectionSettings.load()


def _record(name: str = "n", at_ns: int | None = None) -> Record:
    run_id = uuid.uuid4()
    run = OpenRun(run_id, None, "chain", name, View("s", "e", {}, captures_content=False), Route(run_id))
    run.started_at_ns = 1
    run.ended_at_ns = time.time_ns() if at_ns is None else at_ns
    run.ended_monotonic_ns = time.monotonic_ns()
    return end_of(run)


def _spool(directory: Path, max_bytes: int = 10**9, cluster_id: str = "c") -> Spool:
    spool = Spool(directory, _SETTINGS, max_bytes)
    spool.cluster_id = cluster_id
    return spool


def _die(spool: Spool) -> SpoolFile:
    """What a killed process leaves: its lock is free, its file as it was."""
    (file,) = spool.files
    os.close(file._lock_descriptor)
    return file


def _batch(emitter: str, first: int, last: int, numbered_at_ns: int | None = None) -> NumberedBatch:
    events = [NumberedEvent(1, b"k", b"%d" % number, 0) for number in range(first, last + 1)]
    return NumberedBatch(emitter, 0, first, last, numbered_at_ns or time.time_ns(), events)


def test_events_come_back_in_order_with_their_key_and_time(tmp_path: Path) -> None:
    spool = _spool(tmp_path)
    records = [_record(f"run {number}") for number in range(5)]
    spool.write("e1", records, [])
    assert (spool.event_count, spool.oldest) == (5, (records[0].at_ns, records[0].monotonic_ns))
    found = spool.files[0].first_chunk()
    assert found is not None
    assert [(event.key, event.at_ns, event.body) for event in found[1]] == [
        (record.route.key_text(), record.at_ns, record.body) for record in records
    ]


def test_folder_is_for_its_user_alone_and_made_only_when_needed(tmp_path: Path) -> None:
    spool = _spool(tmp_path / "state")
    assert not (tmp_path / "state").exists()
    spool.write("e1", [_record()], [])
    assert spool.files[0].path.parent.stat().st_mode & 0o777 == 0o700
    spool.files[0].renumber(1, [])
    spool.close()
    assert list(spool.files) == []
    assert not [path for path in (tmp_path / "state").rglob("*") if path.is_file()]


def test_numbering_takes_the_chunk_out_in_the_same_transaction(tmp_path: Path) -> None:
    spool = _spool(tmp_path)
    spool.write("e1", [_record()], [])
    file = spool.files[0]
    with pytest.raises(TypeError):
        file.renumber(1, [_batch("e1", 1, 1), NumberedBatch("e1", 0, 2, 2, 1, [object()])])  # type: ignore[list-item]
    assert (file.event_count, file.numbered()) == (1, [])
    (row,) = file.renumber(1, [_batch("e1", 1, 3)])
    assert file.first_chunk() is None
    (kept,) = file.numbered()
    assert (kept.emitter, kept.first, kept.last, [event.value for event in kept.events]) == (
        "e1",
        1,
        3,
        [b"1", b"2", b"3"],
    )
    file.forget(row)
    assert file.numbered() == []


def test_a_living_owners_file_is_left_alone_and_a_dead_ones_is_found(tmp_path: Path) -> None:
    owner, other = _spool(tmp_path), _spool(tmp_path)
    owner.write("e1", [_record()], [])
    assert other.find_abandoned() == []
    _die(owner)
    (found,) = other.find_abandoned()
    assert (found.facts()["owner"], found.event_count) == ("e1", 1)
    found.take_over("e2", time.time_ns(), _batch("e2", 1, 1))
    assert found.facts()["owner"] == "e2"
    assert _spool(tmp_path).find_abandoned() == []


def test_lock_of_a_removed_file_is_not_taken_for_the_new_ones(tmp_path: Path) -> None:
    path = tmp_path / "x.spool"
    first = spool_module._lock(path)
    assert first is not None
    path.with_suffix(".lock").unlink()
    second = spool_module._lock(path)
    assert second is not None
    assert spool_module._lock(path) is None
    os.close(first)
    os.close(second)


@pytest.mark.parametrize("fact", ["inode", "host", "cluster_id"])
def test_copied_spool_is_set_aside_whole_and_loudly(
    fact: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    spool = _spool(tmp_path / "a")
    spool.write("e1", [_record()], [_batch("e1", 1, 2)])
    _die(spool)
    here = tmp_path / "a"
    other = _spool(here)
    if fact == "inode":
        here = tmp_path / "b"
        shutil.copytree(tmp_path / "a", here)
        other = _spool(here)
    elif fact == "host":
        monkeypatch.setattr("socket.gethostname", lambda: "elsewhere")
    else:
        other.cluster_id = "another"
    assert other.find_abandoned() == []
    assert other.find_abandoned() == []
    assert len(list(here.rglob("*.set-aside"))) == 1
    (said,) = [record.getMessage() for record in caplog.records if "spool_set_aside" in record.getMessage()]
    assert fact in said


def test_spools_of_another_connection_are_not_even_looked_at(tmp_path: Path) -> None:
    spool = _spool(tmp_path)
    spool.write("e1", [_record()], [])
    _die(spool)
    elsewhere = Spool(tmp_path, ConnectionSettings.load(bootstrap_servers="127.0.0.1:9"), 10**9)
    assert elsewhere.find_abandoned() == []
    assert not list(tmp_path.rglob("*.set-aside"))


def test_size_limit_and_unusable_folders_refuse_and_are_said_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "a-file").write_text("")
    for spool in (_spool(tmp_path / "full", max_bytes=10), _spool(tmp_path / "a-file" / "below")):
        for _ in range(3):
            with pytest.raises(SpoolError):
                spool.write("e1", [_record()], [])
        assert (spool.failures, spool.event_count, spool.is_usable) == (3, 0, False)
    assert sum("spool_not_written" in record.getMessage() for record in caplog.records) == 2


_DISK_FULL = """
import resource, sys, time
sys.path.insert(0, sys.argv[2])
from pathlib import Path
from unit.test_collector_spool import _record, _spool
from runtap_collector.spool.spool import SpoolError
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
spool = _spool(Path(sys.argv[1]))
written = 0
try:
    for _ in range(1_000):
        spool.write("e1", [_record(f"{number}" * 9) for number in range(100)], [])
        written += 100
except SpoolError as error:
    print(error)
assert 0 < written < 100_000 and spool.event_count == written, (written, spool.event_count)
assert spool.files[0].first_chunk() is not None
"""


def test_full_disk_refuses_and_keeps_what_is_there(tmp_path: Path) -> None:
    tests = str(Path(__file__).parent.parent)
    done = subprocess.run(
        [sys.executable, "-c", _DISK_FULL, str(tmp_path), tests],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout != "") == (0, True), done.stderr


def test_forked_child_leaves_its_parents_spool_alone(tmp_path: Path) -> None:
    spool = _spool(tmp_path)
    spool.write("e1", [_record()], [])
    child = os.fork()
    if child == 0:
        spool.leave()
        os._exit(0 if _spool(tmp_path).find_abandoned() == [] and spool.event_count == 0 else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert _spool(tmp_path).find_abandoned() == []
    spool.write("e1", [_record()], [])
    assert spool.event_count == 2


class _Outage(Sending):
    """A sender with a spool, and a Kafka that can be away."""

    def __init__(self, directory: Path, *, is_away: bool) -> None:
        super().__init__(directory=directory)
        if is_away:
            self.link.down_seconds = 5.0
            self.link.up.clear()

    def come_back(self) -> None:
        self.link.down_seconds = 0.0
        self.sender._call(self.link.up.set)

    def wait_for(self, spooled: int) -> None:
        deadline = time.monotonic() + 5
        while self.spool.event_count != spooled and time.monotonic() < deadline:
            time.sleep(0.005)
        assert self.spool.event_count == spooled

    def die(self) -> None:
        """Ends the thread as a kill would: nothing more is sent or written."""
        self.sender.put_rest_away = lambda: None  # type: ignore[method-assign]
        self.sender.close(0.5)
        for file in self.spool.files:
            os.close(file._lock_descriptor)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sender_module, "Link", FakeLink)
    for name in ("LINGER_SECONDS", "BUSY_LINGER_SECONDS", "RETRY_SECONDS", "TASK_RETRY_SECONDS"):
        monkeypatch.setattr(sender_module, name, 0.001)
    monkeypatch.setattr(sender_module, "AWAY_SECONDS", 0.01)
    monkeypatch.setattr(sender_module, "FIRST_REPORT_SECONDS", 60.0)
    monkeypatch.setattr(replay_module, "SCAN_SECONDS", 0.05)


def _balance(report: EmitterReported, waiting: int = 0) -> bool:
    dropped = sum(sum(kinds.values()) for kinds in report.dropped.values())
    adopted = sum(report.adopted.values())
    return report.captured + adopted == sum(report.lanes.values()) + dropped + report.superseded + waiting


def test_outage_goes_through_the_spool_in_order_and_leaves_no_file(quick: None, tmp_path: Path) -> None:
    sending = _Outage(tmp_path, is_away=True)
    sending.start()
    for number in range(50):
        sending.end_runs(10, f"trace-{number % 7}")
    sending.wait_for(spooled=500)
    assert sending.ring.held_bytes == 0
    assert sending.ledger.delivery().spooled == 500
    sending.come_back()
    sending.end_runs(10, "later")
    sending.sender.flush(10)
    delivery = sending.ledger.delivery()
    assert (delivery.sent, delivery.waiting, delivery.spooled, delivery.dropped) == (510, 0, 0, {})
    (report,) = sending.close()
    assert _balance(report)
    for partition in sending.link.log:
        assert sending.numbers(partition) == list(range(1, report.lanes[partition] + 1))
    runs = [event.run_id for event in sending.read() if isinstance(event, RunEnded)]
    assert len(runs) == len(set(runs)) == 510
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_spooled_trace_keeps_the_partition_with_which_it_began(quick: None, tmp_path: Path) -> None:
    sending = _Outage(tmp_path, is_away=True)
    run = _run("one-trace")
    run.route.partition = (partition_of(b"one-trace", 3) + 1) % 3
    sending.ring.offer_end(run)
    sending.start()
    sending.wait_for(spooled=1)
    sending.come_back()
    sending.wait_for_runs(1)
    assert any(b'"run.ended"' in value for value in sending.link.log[run.route.partition])
    sending.close()


def test_report_claims_nothing_that_is_in_the_spool(quick: None, tmp_path: Path) -> None:
    sending = _Outage(tmp_path, is_away=True)
    sending.start()
    before_ns = time.time_ns()
    sending.end_runs(3)
    after_ns = time.time_ns()
    sending.wait_for(spooled=3)
    report = sending.ledger.report(Lane(0, sending.ledger.emitter), closing=False)
    assert before_ns <= report.complete_at_ns <= after_ns
    assert report.complete_age_ns > 0
    assert _balance(report, waiting=3)
    sending.sender.close(0.5)


def test_what_is_left_at_exit_is_adopted_by_the_next_process(quick: None, tmp_path: Path) -> None:
    first = _Outage(tmp_path, is_away=True)
    first.start()
    first.end_runs(20)
    first.ring.close()
    first.sender.close(0.5)
    assert (first.ledger.delivery().spooled, first.ledger.delivery().dropped) == (20, {})
    second = _Outage(tmp_path, is_away=False)
    second.start()
    second.wait_for_runs(20)
    reports = second.close()
    assert reports[-1].adopted == {first.ledger.emitter: 20}
    assert all(_balance(report, waiting=20 - sum(report.lanes.values()) + 1) for report in reports[:1])
    assert _balance(reports[-1])
    # The report that says so comes before the events.
    assert isinstance(second.read_first(), EmitterReported)
    assert {event.emitter for event in second.read()} == {second.ledger.emitter}
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_a_cluster_that_does_not_say_its_id_at_once_sets_no_spool_aside(
    quick: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = _Outage(tmp_path, is_away=True)
    first.sender._spool.learn_cluster("a-cluster")
    first.start()
    first.end_runs(20)
    first.ring.close()
    first.sender.close(0.5)
    said = iter(["", "", "a-cluster"])

    async def cluster_id(_link: FakeLink) -> str:
        return next(said, "a-cluster")

    monkeypatch.setattr(FakeLink, "cluster_id", cluster_id)
    # It is asked again soon, not only at the next look.
    monkeypatch.setattr(replay_module, "SCAN_SECONDS", 60.0)
    monkeypatch.setattr(replay_module, "_RETRY_SECONDS", 0.01)
    second = _Outage(tmp_path, is_away=False)
    second.start()
    second.wait_for_runs(20)
    assert second.close()[-1].adopted == {first.ledger.emitter: 20}
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_killed_between_an_adoption_and_its_report_leaves_the_report_to_the_next(
    quick: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = _Outage(tmp_path, is_away=True)
    first.start()
    first.end_runs(20)
    first.ring.close()
    first.sender.close(0.5)
    second = _Outage(tmp_path, is_away=False)
    second.link.fate = lambda values, attempt: SendDeniedError("nothing lands")
    second.ring.offer(_record())
    # It waits for the report before it numbers what it adopted.
    with monkeypatch.context() as patch:
        patch.setattr(replay_module, "SCAN_SECONDS", 60.0)
        second.start()
        second.wait_for(spooled=20)
        second.die()
    assert second.ledger.adopted == {first.ledger.emitter: 20}
    third = _Outage(tmp_path, is_away=False)
    third.start()
    third.wait_for_runs(20)
    assert _balance(third.close()[-1])
    reports = [event for event in third.read() if isinstance(event, EmitterReported)]
    newest = {report.emitter: report.adopted for report in sorted(reports, key=lambda report: report.number)}
    assert newest == {
        second.ledger.emitter: {first.ledger.emitter: 20},
        third.ledger.emitter: {second.ledger.emitter: 20},
    }
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_killed_between_sending_and_deleting_sends_the_same_numbers_again(
    quick: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forget(file: SpoolFile, row: int) -> None:
        raise SpoolError("killed before this")

    first = _Outage(tmp_path, is_away=True)
    first.start()
    first.end_runs(20)
    first.wait_for(spooled=20)
    with monkeypatch.context() as patch:
        patch.setattr(SpoolFile, "forget", forget)
        first.come_back()
        first.wait_for_runs(20)
        first.die()
    second = _Outage(tmp_path, is_away=False)
    second.start()
    second.wait_for_runs(20)
    (*_, last) = second.close()
    assert second.runs() == first.runs()
    assert {event.emitter for event in second.read() if isinstance(event, RunEnded)} == {first.ledger.emitter}
    assert [(lane.emitter, lane.last) for lane in last.replayed] == [(first.ledger.emitter, 20)]
    assert last.adopted == {}
    assert _balance(last)


def test_killed_before_sending_keeps_the_numbers_that_were_given(
    quick: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = _Outage(tmp_path, is_away=True)
    first.start()
    first.end_runs(20)
    first.wait_for(spooled=20)

    def fail(values: list[bytes], attempt: int) -> SendError:
        raise OSError("killed before this")

    first.link.fate = fail
    first.come_back()
    first.wait_for(spooled=0)
    first.die()
    second = _Outage(tmp_path, is_away=False)
    second.start()
    second.wait_for_runs(20)
    second.close()
    assert {(event.emitter, event.sequence) for event in second.read() if isinstance(event, RunEnded)} == {
        (first.ledger.emitter, number) for number in range(1, 21)
    }


def test_batch_numbered_more_than_seven_days_ago_is_announced_and_never_sent(quick: None, tmp_path: Path) -> None:
    old = time.time_ns() - MAX_AGE_NS - 1
    spool = Spool(tmp_path, _SETTINGS, 10**9)
    spool.cluster_id = "a-cluster"
    spool.write("e-old", [_record(at_ns=old)], [_batch("e-old", 5, 9, numbered_at_ns=old)])
    _die(spool)
    sending = _Outage(tmp_path, is_away=False)
    sending.start()
    deadline = time.monotonic() + 5
    while list(tmp_path.rglob("*.spool")) and time.monotonic() < deadline:
        time.sleep(0.01)
    (*_, last) = sending.close()
    assert [(s.emitter, s.partition, s.first, s.last, s.reason) for s in last.skipped] == [
        ("e-old", 0, 5, 9, "unknown")
    ]
    assert last.dropped == {"expired": {"run.ended": 1}}
    assert last.adopted == {"e-old": 1}
    assert _balance(last)
    assert not any(
        isinstance(decode_event(value), RunEnded) for values in sending.link.log.values() for value in values
    )


def test_unwritable_spool_falls_back_to_memory_and_everything_still_arrives(quick: None, tmp_path: Path) -> None:
    (tmp_path / "a-file").write_text("")
    sending = _Outage(tmp_path / "a-file" / "below", is_away=True)
    sending.start()
    sending.end_runs(30)
    deadline = time.monotonic() + 5
    while not sending.spool.failures and time.monotonic() < deadline:
        time.sleep(0.005)
    assert sending.ledger.delivery().waiting == 30
    sending.come_back()
    sending.sender.flush(5)
    assert sending.ledger.delivery().sent == 30
    assert _balance(sending.close()[-1])


def test_reports_form_a_chain(quick: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sender_module, "FIRST_REPORT_SECONDS", 0.0)
    monkeypatch.setattr(sender_module, "REPORT_SECONDS", 0.005)
    sending = _Outage(tmp_path, is_away=False)
    sending.start()
    sending.end_runs(1)
    time.sleep(0.1)
    reports = sending.close()
    assert len(reports) > 2
    assert reports[0].previous_report_id is None
    assert [report.previous_report_id for report in reports[1:]] == [report.report_id for report in reports[:-1]]
    assert len({report.report_id for report in reports}) == len(reports)


def test_what_a_silent_kafka_has_not_taken_goes_to_disk_though_no_further_event_comes(
    quick: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def never(link: FakeLink, builder: object, partition: int) -> None:
        link.unanswered_seconds = 1.0
        await asyncio.Event().wait()

    monkeypatch.setattr(FakeLink, "send", never)
    sending = _Outage(tmp_path, is_away=False)
    sending.start()
    sending.end_runs(3)
    deadline = time.monotonic() + 5
    # The file is there before anything is in it.
    while not any(file.numbered() for file in sending.spool.files) and time.monotonic() < deadline:
        time.sleep(0.005)
    (file,) = sending.spool.files
    (batch,) = file.numbered()
    assert (batch.first, batch.last) == (1, 3)
    sending.sender.close(0.1)


def test_sum_of_stats_holds_while_events_are_written_to_disk(
    quick: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Stats] = []
    deliveries: list[Delivery] = []
    write = Spool.write

    def look_and_write(spool: Spool, *arguments: Any) -> Any:
        seen.append(sending.ledger.stats(0))
        deliveries.append(sending.ledger.delivery())
        return write(spool, *arguments)

    monkeypatch.setattr(Spool, "write", look_and_write)
    sending = _Outage(tmp_path, is_away=True)
    sending.end_runs(100)
    sending.start()
    sending.wait_for(spooled=100)
    stats = seen[0]
    assert (stats.captured, stats.waiting, stats.in_transit) == (100, 0, 100)
    assert (deliveries[0].waiting, deliveries[0].spooled) == (100, 0)
    stats = sending.ledger.stats(0)
    assert (stats.captured, stats.waiting, stats.spooled, stats.in_transit) == (100, 100, 100, 0)
    sending.sender.close(0.1)
