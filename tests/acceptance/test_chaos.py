"""The chaos test, as long as every change can wait for it; `make chaos-short` and `make chaos` run the same for longer.

Its seed is in the first line of what it prints; `RUNTAP_CHAOS_SEED` replays the schedule.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.long

SEED = os.environ.get("RUNTAP_CHAOS_SEED") or str(random.SystemRandom().randrange(10**6))
_PROGRAM = Path(__file__).parent.parent / "chaos" / "run_chaos.py"
_SECONDS = 400


@pytest.mark.timeout(_SECONDS + 20)
@pytest.mark.parametrize(
    ("options", "least_events", "least_faults"),
    [
        pytest.param(("--seconds", "50", "--events", "25000", "--every", "1.9"), 20_000, 13, id="everything"),
        pytest.param(("--storm", "--seconds", "40"), 8_000, 20, id="storm"),
    ],
)
def test_under_faults_every_figure_is_what_was_captured(
    options: tuple[str, ...], least_events: int, least_faults: int
) -> None:
    command = [sys.executable, str(_PROGRAM), *options, "--seed", SEED]
    done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=False)
    print(done.stdout)  # noqa: T201 - pytest shows it where it failed
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode in (0, 2), f"RUNTAP_CHAOS_SEED={SEED}: {done.stdout[-3_000:]}{done.stderr[-3_000:]}"
    result = next(line for line in lines if line["event"] == "result")
    assert result["differences"] == 0
    assert result["events_in_log"] >= least_events
    assert result["faults"] >= least_faults
