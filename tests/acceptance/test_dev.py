"""`runtap dev` as a developer uses it: stopped, started, used again, its Kafka folder thrown away."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from process_tree import descendants, wait_until_gone
from runtap_demo.kafka.ports import free_ports
from serve_process import Server

pytestmark = [
    pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="tells processes by /proc"),
    pytest.mark.timeout(300),
]

_APP = """
import sys
from langchain_core.language_models.fake_chat_models import FakeListChatModel
from runtap_collector import RunTap
with RunTap.from_env(service="app") as tap:
    for number in range(int(sys.argv[1])):
        FakeListChatModel(responses=["yes"]).invoke(f"question {number}", config={"callbacks": [tap.handler]})
    delivery = tap.close(10)
assert delivery.waiting == 0 and not delivery.dropped, delivery
"""


class Developer:
    """A developer's folder, and what is done in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_ports(1)[0]
        hidden = ("RUNTAP_BOOTSTRAP_SERVERS", "RUNTAP_DATABASE_URL")
        self._environment = {name: value for name, value in os.environ.items() if name not in hidden}
        self._environment["RUNTAP_BOOTSTRAP_SERVERS"] = f"127.0.0.1:{self.port}"

    @contextmanager
    def dev(self) -> Iterator[Server]:
        """Runs `runtap dev` for the block, ends it by Ctrl-C, and expects that nothing is left running."""
        process = subprocess.Popen(
            [sys.executable, "-m", "runtap_consumers", "dev", "--port", str(self.port)],
            cwd=self.folder,
            env=self._environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert process.stdout is not None
        try:
            said = []
            for line in process.stdout:
                said.append(line)
                if line.startswith("Stop with Ctrl-C"):
                    break
            else:
                pytest.fail("".join(said))
            assert any("development only" in line for line in said)
            pids = descendants(process.pid)
            (port,) = re.findall(r"Page and API are at http://127\.0\.0\.1:(\d+)/", "".join(said))
            yield Server(int(port))
            process.send_signal(signal.SIGINT)
            assert process.wait(timeout=20) == 0, process.stdout.read()
            wait_until_gone(pids)
        finally:
            process.kill()
            process.communicate()

    def use_app(self, calls: int) -> None:
        """Makes model calls in an app with runtap attached."""
        subprocess.run(
            [sys.executable, "-c", _APP, str(calls)], cwd=self.folder, env=self._environment, check=True, timeout=60
        )

    def expect_calls(self, calls: int) -> dict[str, Any]:
        """Waits until `runtap report` shows so many calls; returns the report."""
        deadline = time.monotonic() + 30
        while True:
            report = self._report()
            if report["cost"]["calls"] >= calls and report["ledger"]["in_flight"] == 0:
                break
            assert time.monotonic() < deadline, report["ledger"]
            time.sleep(0.2)
        assert report["cost"]["calls"] == calls
        assert report["performance_by_run_type"]["llm"]["count"] == calls
        assert report["ledger"]["lost"] == 0
        assert report["ledger"]["captured"] == report["ledger"]["applied"]
        return report

    def _report(self) -> dict[str, Any]:
        done = subprocess.run(
            [sys.executable, "-m", "runtap_consumers", "report", "--json", "-"],
            cwd=self.folder,
            env=self._environment,
            capture_output=True,
            check=True,
            timeout=90,
        )
        report: dict[str, Any] = json.loads(done.stdout)
        return report


def test_figures_of_all_times_are_there_once_also_when_the_log_was_thrown_away(tmp_path: Path) -> None:
    developer = Developer(tmp_path)
    with developer.dev() as server:
        developer.use_app(5)
        report = developer.expect_calls(5)
        status, _, body = server.ask("/api/v1/report")
        assert (status, json.loads(body)["cost"]) == (200, report["cost"])
    with developer.dev():
        developer.expect_calls(5)
        developer.use_app(3)
        developer.expect_calls(8)
    shutil.rmtree(tmp_path / ".runtap" / "kafka")
    with developer.dev():
        developer.use_app(4)
        developer.expect_calls(12)
    assert sorted(os.listdir(tmp_path)) == [".runtap"]


def test_a_second_dev_on_the_same_port_is_refused_with_the_reason(tmp_path: Path) -> None:
    developer = Developer(tmp_path)
    with developer.dev():
        second = subprocess.run(
            [sys.executable, "-m", "runtap_consumers", "dev", "--port", str(developer.port)],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=90,
        )
    assert second.returncode == 1
    assert f"Port {developer.port} of 127.0.0.1 is taken" in second.stderr
