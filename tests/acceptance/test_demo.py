"""`runtap demo` as a person runs it: real processes, true figures, nothing left behind."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from command_line import call_command
from faces import Faces
from process_tree import are_gone, command_lines, descendants, wait_until_gone
from serve_process import Server

pytestmark = [
    pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="tells processes by /proc"),
    pytest.mark.timeout(300),
]


@contextmanager
def _demo(folder: Path, *options: str) -> Iterator[subprocess.Popen[str]]:
    scratch = folder / "scratch"
    scratch.mkdir()
    process = subprocess.Popen(
        [sys.executable, "-m", "runtap_consumers", "demo", *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=folder,
        env={**os.environ, "COLUMNS": "160", "TMPDIR": str(scratch)},
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def _wait_for_service(process: subprocess.Popen[str]) -> set[int]:
    """Waits until every part runs; returns the ids of them all."""
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline and process.poll() is None:
        pids = descendants(process.pid)
        lines = command_lines(pids)
        parts = ("kafka.Kafka", "runtap_consumers worker", "runtap_demo.model_server", "runtap_demo.service")
        if all(part in lines for part in parts):
            return pids
        time.sleep(0.1)
    pytest.fail(f"the demo did not come up: {process.communicate(timeout=5)[0] if process.poll() is not None else ''}")


@pytest.mark.alone
def test_report_equals_what_the_model_server_counted_and_keep_stays_up_until_it_is_interrupted(
    kafka: str, tmp_path: Path
) -> None:
    begin = time.monotonic()
    with _demo(tmp_path, "--seed", "11", "--json", "report.json", "--keep") as process:
        pids = _wait_for_service(process)
        assert process.stdout is not None
        output = ""
        for line in process.stdout:
            output += line
            if "where every event is" in line:
                break
        assert "Every figure is the same" in output
        # Downloaded by the fixture.
        assert time.monotonic() - begin < 60
        lines = command_lines(descendants(process.pid))
        assert "kafka.Kafka" in lines
        assert "runtap_consumers worker" in lines
        _compare_faces(output)
        pids |= descendants(process.pid)
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=30)
    assert process.returncode == 0, output
    wait_until_gone(pids)
    report: dict[str, Any] = json.loads((tmp_path / "report.json").read_text())
    assert report["cost"]["calls"] > 100
    assert report["ledger"]["captured"] == report["ledger"]["applied"] > 1_000
    assert report["ledger"]["lost"] == 0
    assert report["ledger"]["dropped"] == {}
    assert {session["status"] for session in report["sessions"]} <= {"open", "ended"}
    assert len(report["sessions"]) == 24
    assert report["performance_by_run_type"]["tool"]["errors"] > 0
    assert os.listdir(tmp_path / "scratch") == []


def _compare_faces(output: str) -> None:
    """Asks every figure of the demo's run everywhere."""
    environment = {**os.environ, **dict(re.findall(r"export (\w+)=(.*)", output))}
    (address,) = re.findall(r"Page and API: http://127\.0\.0\.1:(\d+)/", output)
    now = datetime.now(UTC)
    span = {"since": (now - timedelta(hours=1)).isoformat(), "until": now.isoformat()}
    faces = Faces(Server(int(address)).ask, lambda *words: call_command(words, environment), **span)
    assert faces.compare()["cost"]["calls"] > 100


def test_one_answer_that_the_report_does_not_know_ends_the_demo_as_failed(kafka: str, tmp_path: Path) -> None:
    with _demo(tmp_path) as process:
        pids = _wait_for_service(process)
        _ask_model_server(pids)
        output, _ = process.communicate(timeout=120)
    assert process.returncode == 1, output
    assert "The figures differ: answers of gpt-4.1-2025-04-14" in output
    assert are_gone(pids)


def _ask_model_server(pids: set[int]) -> None:
    """Has the demo's model server answer a question that no handler sees."""
    found = re.search(r"runtap_demo\.model_server --port (\d+)", command_lines(pids))
    assert found is not None
    url = f"http://127.0.0.1:{found[1]}/v1/chat/completions"
    for number in range(20):
        body = {"model": "gpt-4.1", "messages": [{"role": "user", "content": f"question {number}"}]}
        request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=10) as response:
                response.read()
        except (urllib.error.HTTPError, TimeoutError):
            # Some requests it fails on purpose.
            continue
        return
    pytest.fail("the model server answered nothing")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_nothing_is_left_running_when_it_is_ended_half_way(tmp_path: Path, number: signal.Signals) -> None:
    with _demo(tmp_path) as process:
        pids = _wait_for_service(process)
        process.send_signal(number)
        process.communicate(timeout=30)
        assert process.returncode != 0
        wait_until_gone(pids)
    if number != signal.SIGKILL:
        assert os.listdir(tmp_path / "scratch") == []
