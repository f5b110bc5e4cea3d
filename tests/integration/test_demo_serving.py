"""`runtap serve` beside what `runtap dev` and `runtap demo` run."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from runtap_consumers.store.engine import open_store
from runtap_demo import serving
from runtap_demo.errors import ChildEndedError
from runtap_demo.kafka.child_processes import end
from runtap_demo.kafka.ports import free_ports
from serve_process import Server


def test_it_listens_elsewhere_where_its_port_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url, log = f"sqlite:///{tmp_path / 'runtap.db'}", tmp_path / "serve.log"
    open_store(url, "runtap.events").close()
    with socket.create_server(("127.0.0.1", 0)) as other:
        monkeypatch.setattr(serving, "PORT", other.getsockname()[1])
        child, address = serving.start_serve(log, {"RUNTAP_DATABASE_URL": url})
        try:
            port = int(address.rstrip("/").rpartition(":")[2])
            serving.wait_until_it_answers(child, f"{address}livez")
            assert port != serving.PORT
            assert Server(port).ask("/api/v1/ledger")[0] == 200
        finally:
            end([child.process], 10)
    assert child.process.returncode == 0


def test_one_that_cannot_start_is_named_with_its_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving, "PORT", free_ports(1)[0])
    url = f"sqlite:///{tmp_path / 'none.db'}"
    child, address = serving.start_serve(tmp_path / "serve.log", {"RUNTAP_DATABASE_URL": url})
    with pytest.raises(ChildEndedError, match=r"The server ended with exit code 1[\s\S]*none\.db"):
        serving.wait_until_it_answers(child, f"{address}livez")
