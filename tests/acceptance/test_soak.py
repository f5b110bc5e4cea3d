"""A minute without Kafka at 1,000 runs a second, as a service lives through it; `make soak` is the same for ten."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.long

_SOAK = Path(__file__).parent.parent / "benchmarks" / "soak_emitter.py"


@pytest.mark.timeout(300)
def test_a_minute_without_kafka_loses_nothing_is_not_felt_and_is_made_up_for_in_time() -> None:
    command = [sys.executable, str(_SOAK), "--seconds", "60"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)
    assert (done.returncode, "every bar met" in done.stdout) == (0, True), done.stdout + done.stderr
