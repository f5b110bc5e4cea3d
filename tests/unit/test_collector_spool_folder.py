"""Whose folder a spool trusts: one that leads elsewhere, or that another user can fill, is refused."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from runtap_collector.spool.spool import SpoolError
from unit.test_collector_spool import Outage, die, make_lane, make_spool, quick

__all__ = ["quick"]


def _said(caplog: pytest.LogCaptureFixture, event: str) -> int:
    return sum(event in record.getMessage() for record in caplog.records)


@pytest.mark.parametrize("which", ["all spools", "one connection"])
def test_a_folder_that_is_a_link_is_refused_and_said_once(
    which: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    base = tmp_path / "state"
    abandoned = make_spool(base)
    abandoned.write(make_lane())
    folder = die(abandoned).path.parent
    target = folder if which == "one connection" else base
    elsewhere = target.rename(tmp_path / "elsewhere")
    elsewhere.chmod(0o755)
    target.symlink_to(elsewhere)
    spool = make_spool(base)
    for _ in range(3):
        with pytest.raises(SpoolError, match="is a link"):
            spool.write(make_lane())
        assert spool.find_abandoned(9) == []
    assert (_said(caplog, "spool_not_written"), _said(caplog, "spool_not_read")) == (1, 1)
    assert elsewhere.stat().st_mode & 0o777 == 0o755
    assert len(list(elsewhere.rglob("*.spool"))) == 1


def test_another_users_folder_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    abandoned = make_spool(tmp_path)
    abandoned.write(make_lane())
    die(abandoned)
    monkeypatch.setattr(os, "geteuid", lambda: 54_321)
    spool = make_spool(tmp_path)
    with pytest.raises(SpoolError, match="another user"):
        spool.write(make_lane())
    assert spool.find_abandoned(9) == []
    assert _said(caplog, "spool_not_read") == 1
    monkeypatch.undo()
    assert len(make_spool(tmp_path).find_abandoned(9)) == 1


def test_no_folder_is_made_where_a_link_leads(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (tmp_path / "state").symlink_to(elsewhere)
    with pytest.raises(SpoolError, match="is a link"):
        make_spool(tmp_path / "state").write(make_lane())
    assert list(elsewhere.iterdir()) == []


def test_events_wait_in_memory_then_and_arrive(quick: None, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "state").symlink_to(tmp_path / "elsewhere")
    sending = Outage(tmp_path / "state", is_away=True)
    sending.start()
    sending.end_runs(20)
    sending.come_back()
    sending.wait_for_runs(20)
    assert sending.outbox.delivery().dropped == {}
    sending.close()


def test_its_files_are_for_the_user_alone(tmp_path: Path) -> None:
    spool = make_spool(tmp_path)
    spool.write(make_lane())
    modes = {path.suffix: path.stat().st_mode & 0o777 for path in tmp_path.rglob("*") if path.is_file()}
    assert set(modes.values()) == {0o600}
    assert {".spool", ".spool-wal", ".spool-shm", ".lock"} == set(modes)
    spool.close()
