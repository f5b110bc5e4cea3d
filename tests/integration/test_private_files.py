"""What users said and paid is for the one user who runs runtap: files are made so, and those that exist keep their
mode.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from partition_setting import WorkerTools
from runtap_consumers.store.engine import open_store
from samples import Log, model_call
from worker_process import WorkerSetting


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


@pytest.fixture
def sqlite(tmp_path: Path) -> WorkerSetting:
    """Where commands find a store that holds one call and one dead letter."""
    store = open_store(f"sqlite:///{tmp_path / 'runtap.db'}", "runtap.events", "UTC")
    tools, log = WorkerTools(store), Log()
    log.append(model_call(), "e1", 1)
    log.append_value(b"no event")
    tools.apply(log)
    modes = {path.name: mode(path) for path in tmp_path.iterdir()}
    assert modes == dict.fromkeys(("runtap.db", "runtap.db-wal", "runtap.db-shm"), 0o600)
    tools.close()
    store.close()
    return WorkerSetting("127.0.0.1:1", "runtap", f"sqlite:///{tmp_path / 'runtap.db'}")


def test_exports_are_made_private_and_existing_files_keep_their_mode(sqlite: WorkerSetting, tmp_path: Path) -> None:
    for name, command in (("report", ["report", "--json"]), ("letters", ["dead-letters", "export"])):
        new, existing = tmp_path / f"{name}.json", tmp_path / f"{name}-old.json"
        existing.write_text("x" * 100_000)
        existing.chmod(0o644)
        for path in (new, existing):
            done = sqlite.run(*command, str(path))
            assert done.returncode == 0, done.stderr
        assert (mode(new), mode(existing)) == (0o600, 0o644)
        assert 0 < existing.stat().st_size < 100_000


def test_an_existing_store_keeps_its_mode(sqlite: WorkerSetting, tmp_path: Path) -> None:
    path = tmp_path / "runtap.db"
    path.chmod(0o640)
    open_store(sqlite.store_url, "runtap.events", "UTC").close()
    assert mode(path) == 0o640
