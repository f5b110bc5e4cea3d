"""Prometheus and its tools as their distribution installs them: real programs, for the tests of what they read."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest


def installed(name: str) -> str:
    """A program's path. Where it is missing, the test is skipped on a laptop and fails under `CI`."""
    found = shutil.which(name)
    if found is None:
        reason = f"{name} is not installed: apt-get install prometheus prometheus-alertmanager"
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


def check_with_promtool(exposition: bytes) -> None:
    """Lets `promtool` read what Prometheus would scrape, which must find nothing to say."""
    assert run_tool("promtool", "check", "metrics", text=exposition) == ""
