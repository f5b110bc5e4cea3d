"""The spool's rules, each with what would break it. Whole processes that die: tests/integration."""

from __future__ import annotations

import asyncio
import os
import shutil
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from runtap_collector import Delivery, Stats
from runtap_collector.send import sender as sender_module
from runtap_collector.send.lane import Lane, cut
from runtap_collector.send.link import FrameRefusedError, SendError, SendFailedError
from runtap_collector.spool import replay as replay_module
from runtap_collector.spool import spool as spool_module
from runtap_collector.spool.replay import MAX_AGE_NS
from runtap_collector.spool.spool import Spool, SpoolError, SpoolFile
from runtap_schemas import (
    ConnectionSettings,
    EmitterReported,
    Event,
    LaneAbandoned,
    RunScored,
    encode_event,
)
from topic_log import LoggedEvent, check_ledger
from unit.test_collector_sender import FakeLink, Sending, make_quick, wait_until

_SETTINGS = ConnectionSettings.load()


def make_spool(directory: Path, max_bytes: int = 10**9, cluster_id: str = "a-cluster") -> Spool:
    spool = Spool(directory, _SETTINGS, max_bytes)
    spool.learn_cluster(cluster_id)
    return spool


def make_lane(*events: Event, closed_at_ns: int | None = None, partition: int | None = 1) -> Lane:
    """A lane with a frame of those events, of one event of the app without any."""
    lane = Lane(partition=partition)
    add_frame(lane, *events, closed_at_ns=closed_at_ns)
    return lane


def add_frame(lane: Lane, *events: Event, closed_at_ns: int | None = None) -> None:
    lines = [
        encode_event(event)
        for event in events or [RunScored(at_ns=1, run_id="r", key="k", service="s", environment="e")]
    ]
    lane.frames.extend(cut(lane.birth, lane.last + 1, closed_at_ns or time.time_ns(), lines, 0))
    lane.last += len(lines)


def _report(**facts: Any) -> EmitterReported:
    return EmitterReported(
        at_ns=1,
        report_id="a-report",
        service="s",
        environment="e",
        host="h",
        process_id=1,
        runtap_version="0",
        started_at_ns=1,
        **facts,
    )


def die(spool: Spool) -> SpoolFile:
    """What a killed process leaves: its lock is free, its file as it was."""
    (file,) = spool._own
    os.close(file._lock_descriptor)
    return file


def _files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def test_frames_come_back_as_they_are_and_in_order(tmp_path: Path) -> None:
    spool, lane = make_spool(tmp_path), make_lane()
    add_frame(lane)
    add_frame(lane)
    assert spool.write(lane) == 3
    assert lane.file is not None
    assert list(lane.file.frames()) == list(lane.frames)
    assert [frame.first for frame in lane.file.frames(1)] == [2, 3]
    lane.file.forget(2)
    assert [frame.first for frame in lane.file.frames()] == [3]
    assert lane.file.count() == 1


def test_file_says_whose_it_is_and_where_it_goes(tmp_path: Path) -> None:
    lane = make_lane()
    make_spool(tmp_path).write(lane)
    assert lane.file is not None
    facts = lane.file.facts()
    assert (facts["birth"], facts["partition"], facts["cluster_id"]) == (lane.birth, "1", "a-cluster")
    (found,) = make_spool_after(lane, tmp_path).find_abandoned(9)
    assert (found.birth, found.emitter, found.partition) == (lane.birth, lane.emitter, 1)


def make_spool_after(lane: Lane, directory: Path) -> Spool:
    """The spool of another process, after the death of the one that has the lane."""
    assert lane.file is not None
    os.close(lane.file._lock_descriptor)
    return make_spool(directory)


def test_folder_is_for_its_user_alone_and_made_only_when_needed(tmp_path: Path) -> None:
    spool, lane = make_spool(tmp_path / "state"), make_lane()
    assert not (tmp_path / "state").exists()
    spool.write(lane)
    assert lane.file is not None
    assert lane.file.path.parent.stat().st_mode & 0o777 == 0o700
    lane.file.forget(1)
    spool.close()
    assert not _files(tmp_path)


def test_a_living_owners_file_is_left_alone_and_a_dead_ones_is_found(tmp_path: Path) -> None:
    owner, other, lane = make_spool(tmp_path), make_spool(tmp_path), make_lane()
    owner.write(lane)
    assert other.find_abandoned(9) == []
    die(owner)
    (found,) = other.find_abandoned(9)
    assert found.emitter == lane.emitter
    assert make_spool(tmp_path).find_abandoned(9) == []


def test_no_more_files_are_opened_than_may_be(tmp_path: Path) -> None:
    for _ in range(3):
        spool = make_spool(tmp_path)
        spool.write(make_lane())
        die(spool)
    other = make_spool(tmp_path)
    assert [len(other.find_abandoned(2)), len(other.find_abandoned(2))] == [2, 0]


def test_file_of_one_that_was_killed_while_it_made_it_is_removed(tmp_path: Path) -> None:
    spool = make_spool(tmp_path)
    spool.write(make_lane())
    folder = die(spool).path.parent
    for path in folder.iterdir():
        path.unlink()
    (folder / "half.spool").touch(0o600)
    assert make_spool(tmp_path).find_abandoned(9) == []
    assert not _files(tmp_path)


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
    spool = make_spool(tmp_path / "a")
    spool.write(make_lane())
    die(spool)
    here = tmp_path / "a"
    other = make_spool(here)
    if fact == "inode":
        here = tmp_path / "b"
        shutil.copytree(tmp_path / "a", here)
        other = make_spool(here)
    elif fact == "host":
        monkeypatch.setattr("socket.gethostname", lambda: "another-host")
    else:
        other.learn_cluster("another")
    assert other.find_abandoned(9) == []
    assert len(list(here.rglob("*.set-aside"))) == 1
    assert not list(here.rglob("*.spool"))
    (said,) = [record for record in caplog.records if "spool_set_aside" in record.getMessage()]
    assert said.levelname == "ERROR"
    assert fact in said.getMessage()


def test_spool_of_an_earlier_version_is_set_aside(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    spool = make_spool(tmp_path)
    spool.write(make_lane())
    path = die(spool).path.with_name("old.spool")
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE meta (name TEXT PRIMARY KEY, value TEXT NOT NULL)")
        connection.execute("INSERT INTO meta VALUES ('owner', 'e1')")
    assert len(make_spool(tmp_path).find_abandoned(9)) == 1
    assert [path.name for path in tmp_path.rglob("*.set-aside")] == ["old.spool.set-aside"]
    assert any("an earlier version" in record.getMessage() for record in caplog.records)


def test_spools_of_another_connection_are_not_even_seen(tmp_path: Path) -> None:
    spool = make_spool(tmp_path)
    spool.write(make_lane())
    die(spool)
    elsewhere = Spool(tmp_path, ConnectionSettings.load(bootstrap_servers="127.0.0.1:9"), 10**9)
    assert elsewhere.find_abandoned(9) == []
    assert not list(tmp_path.rglob("*.set-aside"))


def test_size_limit_and_unusable_folders_refuse_and_are_said_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "a-file").write_text("")
    for spool in (make_spool(tmp_path / "full", max_bytes=10), make_spool(tmp_path / "a-file" / "below")):
        for _ in range(3):
            with pytest.raises(SpoolError):
                spool.write(make_lane())
        assert (spool.failures, spool.is_usable) == (3, False)
    assert sum("spool_not_written" in record.getMessage() for record in caplog.records) == 2


_DISK_FULL = """
import os, resource, sys
sys.path.insert(0, sys.argv[2])
from pathlib import Path
from unit.test_collector_spool import add_frame, make_lane, make_spool
from runtap_collector.spool.spool import SpoolError
from runtap_schemas import RunScored
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
spool, lane = make_spool(Path(sys.argv[1])), make_lane()
spool.write(lane)
written = 1
try:
    for _ in range(1_000):
        lane.frames.clear()
        add_frame(lane, RunScored(at_ns=1, run_id="r", key=os.urandom(90).hex(), service="s", environment="e"))
        spool.write(lane)
        written += 1
except SpoolError as error:
    print(error)
assert 1 < written < 1_000 and lane.file.count() == written, (written, lane.file.count())
assert len(list(lane.file.frames())) == written
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
    spool, lane = make_spool(tmp_path), make_lane()
    spool.write(lane)
    child = os.fork()
    if child == 0:
        spool.leave()
        os._exit(0 if make_spool(tmp_path).find_abandoned(9) == [] else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert make_spool(tmp_path).find_abandoned(9) == []
    add_frame(lane)
    assert spool.write(lane) == 2


class Outage(Sending):
    """A sender with a spool, and a Kafka that can be away."""

    def __init__(self, directory: Path, *, is_away: bool) -> None:
        super().__init__(directory=directory)
        if is_away:
            self.link.down_seconds = 5.0
            self.link.up.clear()

    def come_back(self) -> None:
        self.link.down_seconds = 0.0
        self.sender.thread.call(self.link.up.set)

    def wait_for(self, spooled: int) -> None:
        wait_until(lambda: self.outbox.delivery().spooled == spooled)

    def die(self) -> None:
        """Ends the thread as a kill would: nothing more is sent or written."""
        self.sender.put_rest_away = lambda: None  # type: ignore[method-assign]
        self.sender.thread.call(self.sender._must_stop.set)
        self.sender.thread.join(5)
        for file in [*self.spool._own, *self.spool._adopted]:
            os.close(file._lock_descriptor)

    def close_away(self) -> None:
        """Closes while Kafka is away."""
        self.buffer.close()
        self.sender.close(0.5)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    make_quick(monkeypatch)
    monkeypatch.setattr(sender_module, "AWAY_SECONDS", 0.01)
    monkeypatch.setattr(sender_module, "FIRST_REPORT_SECONDS", 60.0)
    monkeypatch.setattr(replay_module, "SCAN_SECONDS", 0.05)


def _of(sending: Sending, emitter: str) -> list[LoggedEvent]:
    return [entry for entry in sending.read() if entry.emitter == emitter]


def test_outage_goes_through_the_spool_in_order_and_leaves_no_file(quick: None, tmp_path: Path) -> None:
    sending = Outage(tmp_path, is_away=True)
    sending.start()
    for _ in range(50):
        sending.end_runs(10)
    sending.wait_for(spooled=500)
    assert sending.buffer.held_bytes == 0
    sending.come_back()
    sending.end_runs(10)
    sending.sender.flush(10)
    delivery = sending.outbox.delivery()
    assert (delivery.sent, delivery.waiting, delivery.spooled, delivery.dropped) == (510, 0, 0, {})
    sending.close()
    check_ledger(sending.read())
    assert len({entry.event.run_id for entry in sending.ended()}) == 510  # type: ignore[attr-defined]
    assert not _files(tmp_path)


def test_spooled_frame_keeps_the_partition_that_was_chosen_before_its_first_byte(quick: None, tmp_path: Path) -> None:
    first = Outage(tmp_path, is_away=True)
    first.start()
    first.end_runs(3)
    first.wait_for(spooled=3)
    file = first.outbox.lane.file
    assert file is not None
    assert file.facts()["partition"] == ""
    first.link.fate = lambda events, attempt: SendFailedError("timed out")
    first.come_back()
    wait_until(lambda: first.link.attempts and first.outbox.lane.partition is not None)
    chosen = first.outbox.lane.partition
    assert file.facts()["partition"] == str(chosen)
    first.die()
    second = Outage(tmp_path, is_away=False)
    # Chosen over these, it were another one.
    second.link.known = frozenset(range(1_000))
    second.start()
    second.wait_for_runs(3)
    assert {entry.partition for entry in second.ended()} == {chosen}
    second.close()


def test_what_is_left_at_exit_is_sent_unchanged_by_the_next_process(quick: None, tmp_path: Path) -> None:
    first = Outage(tmp_path, is_away=True)
    first.start()
    first.end_runs(20)
    first.close_away()
    delivery = first.outbox.delivery()
    assert (delivery.spooled, delivery.waiting, delivery.dropped) == (20, 0, {})
    second = Outage(tmp_path, is_away=False)
    second.start()
    second.end_runs(1)
    second.wait_for_runs(21)
    second.close()
    # The closing report of its owner is the lane's end, and nothing is added to it.
    assert check_ledger(_of(second, first.outbox.lane.emitter)).closing
    assert len(_of(second, first.outbox.lane.emitter)) == 21
    assert len(_of(second, second.outbox.lane.emitter)) == 2
    assert not _files(tmp_path)


def test_a_cluster_that_does_not_say_its_id_at_once_sets_no_spool_aside(
    quick: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = Outage(tmp_path, is_away=True)
    first.spool.learn_cluster("a-cluster")
    first.start()
    first.end_runs(20)
    first.close_away()
    said = iter(["", "", "", "a-cluster"])

    async def cluster_id(_link: FakeLink) -> str:
        return next(said, "a-cluster")

    monkeypatch.setattr(FakeLink, "cluster_id", cluster_id)
    # It is asked again soon, not only at the next look.
    monkeypatch.setattr(replay_module, "SCAN_SECONDS", 60.0)
    monkeypatch.setattr(replay_module, "_RETRY_SECONDS", 0.01)
    second = Outage(tmp_path, is_away=False)
    second.start()
    second.wait_for_runs(20)
    second.close()
    assert not _files(tmp_path)


def test_killed_between_sending_and_deleting_the_same_frames_come_again(
    quick: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forget(file: SpoolFile, last: int) -> None:
        raise SpoolError("killed before this")

    first = Outage(tmp_path, is_away=True)
    first.start()
    first.end_runs(20)
    first.wait_for(spooled=20)
    with monkeypatch.context() as patch:
        patch.setattr(SpoolFile, "forget", forget)
        first.come_back()
        first.wait_for_runs(20)
        first.die()
    second = Outage(tmp_path, is_away=False)
    second.start()
    second.wait_for_runs(20)
    second.close()
    assert _of(second, first.outbox.lane.emitter) == first.read()


def test_frame_that_cannot_be_deleted_is_not_sent_again_by_its_owner(
    quick: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sending = Outage(tmp_path, is_away=True)
    sending.start()
    sending.end_runs(5)
    sending.wait_for(spooled=5)
    forget, failures = SpoolFile.forget, iter([True, True])

    def fail_first(file: SpoolFile, last: int) -> None:
        if next(failures, False):
            raise SpoolError("no room")
        forget(file, last)

    monkeypatch.setattr(SpoolFile, "forget", fail_first)
    sending.come_back()
    sending.sender.flush(5)
    for _ in range(3):
        sending.end_runs(1)
        sending.sender.flush(5)
    sending.close()
    check_ledger(sending.read())
    assert sending.outbox.delivery().sent == 8
    assert not _files(tmp_path)


def test_killed_before_sending_keeps_the_numbers_that_were_given(quick: None, tmp_path: Path) -> None:
    first = Outage(tmp_path, is_away=True)
    first.start()
    first.end_runs(20)
    first.wait_for(spooled=20)

    def fail(events: list[LoggedEvent], attempt: int) -> SendError:
        raise OSError("killed before this")

    first.link.fate = fail
    first.come_back()
    wait_until(lambda: first.link.attempts)
    first.die()
    second = Outage(tmp_path, is_away=False)
    second.start()
    second.wait_for_runs(20)
    second.close()
    assert [entry.number for entry in _of(second, first.outbox.lane.emitter)] == list(range(1, 21))


# What is never sent


def _left(directory: Path, lane: Lane) -> None:
    """Leaves the spool of a killed process."""
    spool = make_spool(directory)
    spool.write(lane)
    die(spool)


def _announced(sending: Sending) -> list[LaneAbandoned]:
    return [entry.event for entry in sending.read() if isinstance(entry.event, LaneAbandoned)]


@pytest.mark.parametrize("says_so", ["wall clock", "append time"])
def test_frames_of_more_than_seven_days_ago_are_announced_and_never_sent(
    says_so: str, quick: None, tmp_path: Path
) -> None:
    old_ns = time.time_ns() - (MAX_AGE_NS + 1 if says_so == "wall clock" else 1)
    report = _report(superseded=3)
    lane = make_lane(_report(), closed_at_ns=old_ns)
    add_frame(lane, closed_at_ns=old_ns)
    add_frame(lane, report, closed_at_ns=old_ns)
    add_frame(lane, closed_at_ns=time.time_ns() + 10**9)
    _left(tmp_path, lane)
    sending = Outage(tmp_path, is_away=False)
    if says_so == "append time":
        # The clock of this machine stands in the past.
        sending.link.newest_append_ns = time.time_ns() + MAX_AGE_NS
    sending.start()
    wait_until(lambda: not list(tmp_path.rglob("*.spool")))
    sending.close()
    assert _announced(sending) == [
        LaneAbandoned(
            at_ns=_announced(sending)[0].at_ns, emitter=lane.emitter, first=1, last=3, reason="expired", report=report
        )
    ]
    assert [entry.number for entry in _of(sending, lane.emitter)] == [4]
    # Not events of this process.
    assert (sending.outbox.delivery().sent, sending.outbox.delivery().dropped) == (0, {})


def test_own_frames_that_are_too_old_are_said_in_the_next_report(quick: None, tmp_path: Path) -> None:
    sending = Outage(tmp_path, is_away=True)
    sending.start()
    sending.end_runs(4)
    sending.wait_for(spooled=4)
    sending.link.newest_append_ns = time.time_ns() + MAX_AGE_NS + 10**9
    sending.come_back()
    wait_until(lambda: sending.outbox.delivery().spooled == 0)
    sending.link.newest_append_ns = 0
    (report,) = sending.close()
    assert [(each.first, each.last, each.reason) for each in report.skipped] == [(1, 4, "expired")]
    assert sending.outbox.delivery().dropped == {"expired": 4}
    assert sending.ended() == []


def test_frames_whose_partition_is_gone_are_announced_and_never_sent(quick: None, tmp_path: Path) -> None:
    lane = make_lane(partition=7)
    _left(tmp_path, lane)
    sending = Outage(tmp_path, is_away=False)
    sending.start()
    wait_until(lambda: not list(tmp_path.rglob("*.spool")))
    sending.close()
    (said,) = _announced(sending)
    assert (said.emitter, said.first, said.last, said.reason) == (lane.emitter, 1, 1, "partition_gone")


def test_announcement_that_is_given_up_itself_is_made_again(quick: None, tmp_path: Path) -> None:
    other = LaneAbandoned(at_ns=1, emitter="e0", first=1, last=9, reason="expired")
    lane = make_lane(other, partition=7)
    _left(tmp_path, lane)
    sending = Outage(tmp_path, is_away=False)
    sending.start()
    wait_until(lambda: not list(tmp_path.rglob("*.spool")))
    sending.close()
    assert [(said.emitter, said.first, said.last) for said in _announced(sending)] == [
        ("e0", 1, 9),
        (lane.emitter, 1, 1),
    ]


def test_file_is_kept_until_kafka_has_the_announcement(quick: None, tmp_path: Path) -> None:
    lane = make_lane(partition=7)
    _left(tmp_path, lane)
    sending = Outage(tmp_path, is_away=False)
    sending.link.fate = lambda events, attempt: SendFailedError("timed out")
    sending.start()
    wait_until(lambda: sending.link.attempts)
    time.sleep(0.05)
    assert len(list(tmp_path.rglob(f"{lane.emitter}*.spool"))) == 1
    sending.die()
    third = Outage(tmp_path, is_away=False)
    third.start()
    wait_until(lambda: not list(tmp_path.rglob("*.spool")))
    third.close()
    # The killed process's own announcement was in its spool, and may come beside the new one.
    assert {said.emitter for said in _announced(third)} == {lane.emitter}


def test_event_of_another_emitter_that_is_refused_is_announced(quick: None, tmp_path: Path) -> None:
    events = [RunScored(at_ns=1, run_id=f"r{number}", key="k", service="s", environment="e") for number in range(4)]
    lane = make_lane(*events)
    _left(tmp_path, lane)

    def fate(logged: list[LoggedEvent], attempt: int) -> SendError | None:
        is_refused = any(entry.emitter == lane.emitter and entry.number == 3 for entry in logged)
        return FrameRefusedError("too_large") if is_refused else None

    sending = Outage(tmp_path, is_away=False)
    sending.link.fate = fate
    sending.start()
    wait_until(lambda: not list(tmp_path.rglob("*.spool")))
    sending.close()
    assert [entry.number for entry in _of(sending, lane.emitter)] == [1, 2, 4]
    (said,) = _announced(sending)
    assert (said.emitter, said.first, said.last, said.reason) == (lane.emitter, 3, 3, "too_large")


# A spool that does not work


def test_unwritable_spool_falls_back_to_memory_and_everything_still_arrives(quick: None, tmp_path: Path) -> None:
    (tmp_path / "a-file").write_text("")
    sending = Outage(tmp_path / "a-file" / "below", is_away=True)
    sending.start()
    sending.end_runs(30)
    wait_until(lambda: sending.spool.failures)
    assert sending.outbox.delivery().waiting == 30
    sending.come_back()
    sending.sender.flush(5)
    assert sending.outbox.delivery().sent == 30
    sending.close()
    check_ledger(sending.read())


def test_own_spool_that_cannot_be_read_does_not_hold_what_follows(
    quick: None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    sending = Outage(tmp_path, is_away=True)
    sending.start()
    for spooled in (3, 6):
        sending.end_runs(3)
        sending.wait_for(spooled)
    file = sending.outbox.lane.file
    assert file is not None
    file._connection.execute("UPDATE frames SET frame = x'00'")
    sending.come_back()
    wait_until(lambda: sending.outbox.former)
    sending.end_runs(2)
    # The first frame had been read before.
    sending.wait_for_runs(5)
    assert any("spool_not_read" in record.getMessage() for record in caplog.records)
    sending.close()


def test_what_a_silent_kafka_has_not_taken_goes_to_disk_though_no_further_event_comes(
    quick: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def never(link: FakeLink, *frame: object) -> None:
        link.unanswered_seconds = 1.0
        await asyncio.Event().wait()

    monkeypatch.setattr(FakeLink, "send", never)
    sending = Outage(tmp_path, is_away=False)
    sending.end_runs(3)
    sending.start()
    sending.wait_for(spooled=3)
    file = sending.outbox.lane.file
    assert file is not None
    assert [(frame.first, frame.last) for frame in file.frames()] == [(1, 3)]
    sending.sender.close(0.1)


def test_frame_on_its_way_that_goes_to_disk_is_deleted_there_when_it_arrives(quick: None, tmp_path: Path) -> None:
    sending = Outage(tmp_path, is_away=False)
    spooled: list[int] = []

    def fate(events: list[LoggedEvent], attempt: int) -> SendError | None:
        if not spooled:
            sending.sender._put_in_spool()
            spooled.append(sending.outbox.delivery().spooled)
        return None

    sending.link.fate = fate
    # Before the sender starts: all three are in one frame.
    sending.end_runs(3)
    sending.start()
    sending.sender.flush(5)
    assert spooled == [3]
    delivery = sending.outbox.delivery()
    assert (delivery.sent, delivery.spooled, delivery.waiting, sending.buffer.held_bytes) == (3, 0, 0, 0)
    sending.close()
    check_ledger(sending.read())


def test_a_backlog_on_disk_does_not_let_memory_fill(quick: None, tmp_path: Path) -> None:
    sending = Outage(tmp_path, is_away=True)
    sending.buffer.spool_mark = 20_000
    sending.start()
    sending.end_runs(10)
    sending.wait_for(spooled=10)
    sending.link.down_seconds = 0.0
    # Kafka is there, but the lane's backlog does not move.
    sending.end_runs(200)
    wait_until(lambda: sending.outbox.delivery().spooled > 10 and sending.buffer.held_bytes <= 20_000)
    sending.come_back()
    sending.wait_for_runs(210)
    sending.close()
    check_ledger(sending.read())


def test_sum_of_stats_holds_while_events_are_written_to_disk(
    quick: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[Stats, Delivery]] = []
    write = Spool.write

    def look_and_write(spool: Spool, lane: Lane) -> int:
        seen.append((sending.outbox.stats(0), sending.outbox.delivery()))
        return write(spool, lane)

    monkeypatch.setattr(Spool, "write", look_and_write)
    sending = Outage(tmp_path, is_away=True)
    sending.end_runs(100)
    sending.start()
    sending.wait_for(spooled=100)
    stats, delivery = seen[0]
    assert (stats.captured, stats.numbered, stats.waiting, stats.spooled) == (100, 100, 0, 0)
    assert (delivery.waiting, delivery.spooled) == (100, 0)
    stats = sending.outbox.stats(0)
    assert (stats.captured, stats.numbered, stats.waiting, stats.spooled) == (100, 100, 0, 100)
    sending.sender.close(0.1)
