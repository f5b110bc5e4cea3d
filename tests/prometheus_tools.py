"""Prometheus and its tools as their distribution installs them: real programs, for the tests of what they read."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest


def installed(name: str) -> str:
    """A program's path. Where it is missing, the test is skipped on a laptop and fails under `CI`."""
    found = shutil.which(name)
    if found is None:
        reason = f"{name} is not installed: of Debian's packages prometheus and prometheus-alertmanager"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    return found


def run_tool(name: str, *words: str | Path, text: bytes = b"") -> str:
    """Runs a tool that must find nothing wrong; what it printed."""
    done = subprocess.run([installed(name), *words], input=text, capture_output=True, check=False, timeout=60)
    said = (done.stdout + done.stderr).decode()
    assert done.returncode == 0, said
    return said


@contextmanager
def running(command: Sequence[str], ready: str, log: Path, environment: dict[str, str] | None = None) -> Iterator[None]:
    """A server, from when it answers at the address `ready` on; what it says goes to a file."""
    with log.open("wb") as output:
        process = subprocess.Popen(command, env=environment, stdout=output, stderr=subprocess.STDOUT)
    try:
        deadline = time.monotonic() + 30
        while not _answers(ready):
            assert process.poll() is None, log.read_text()[-3000:]
            assert time.monotonic() < deadline, log.read_text()[-3000:]
            time.sleep(0.1)
        yield
    finally:
        process.terminate()
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(5)


def _answers(address: str) -> bool:
    try:
        with urllib.request.urlopen(address, timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


@dataclass(frozen=True)
class Prometheus:
    """A running Prometheus."""

    port: int

    def ask(self, path: str, **parameters: str) -> Any:
        """What its API answers."""
        words = urllib.parse.urlencode(parameters)
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/api/v1/{path}?{words}", timeout=10) as answer:
            return json.load(answer)["data"]

    def query(self, expression: str) -> list[tuple[dict[str, str], float]]:
        """The labels and values of what an expression finds now."""
        found = self.ask("query", query=expression)["result"]
        return [(one["metric"], float(one["value"][1])) for one in found]

    def value(self, expression: str) -> float | None:
        """The value of an expression that finds one at most."""
        values = [value for _, value in self.query(expression)]
        assert len(values) <= 1, expression
        return values[0] if values else None


def check_with_promtool(exposition: bytes) -> None:
    """Lets `promtool` read what Prometheus would scrape, which must find nothing to say."""
    assert run_tool("promtool", "check", "metrics", text=exposition) == ""
