"""A service whose broker cannot be reached: as fast as ever, one line in its log, and gone within two seconds."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.alone

# CPU a run is compared, in turns: what else the machine does must not decide.
_APP = """
import sys, time
from langchain_core.runnables import RunnableLambda
from runtap_collector import RunTap

chain = RunnableLambda(lambda x: x) | RunnableLambda(lambda x: x)
tap = RunTap.from_env(service="unreached")
tapped = {"callbacks": [tap.handler]}
ends = time.monotonic() + 3
spent, slowest, runs = {None: [], "tap": []}, 0.0, 0
while time.monotonic() < ends:
    for name, config in ((None, None), ("tap", tapped)):
        before = time.thread_time()
        for _ in range(100):
            began = time.perf_counter()
            chain.invoke(1, config)
            slowest = max(slowest, time.perf_counter() - began)
        spent[name].append(time.thread_time() - before)
    runs += 300
stats = tap.stats()
assert stats.captured >= runs and stats.acknowledged == 0, stats
added = sorted(a - b for a, b in zip(spent["tap"], spent[None]))[len(spent[None]) // 2]
print(added / 600, slowest, time.time(), flush=True)
"""


@pytest.fixture(params=["refused", "silent"])
def unreachable(request: pytest.FixtureRequest) -> Iterator[str]:
    """An address where nobody listens, and one where connections are taken and nothing is ever said."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        if request.param == "refused":
            server.close()
        yield f"127.0.0.1:{port}"


def test_unreachable_broker_neither_slows_the_app_nor_keeps_it_and_is_said_once(
    unreachable: str, tmp_path: Path
) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RUNTAP_")}
    done = subprocess.run(
        [sys.executable, "-c", _APP],
        env={**environment, "RUNTAP_BOOTSTRAP_SERVERS": unreachable, "RUNTAP_SPOOL_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    gone_at = time.time()
    assert done.returncode == 0, done.stderr
    event_seconds, slowest_seconds, over_at = (float(word) for word in done.stdout.split())
    # Measured: 10 microseconds an event with its share of LangChain's; a wait for a connection would be thousands.
    assert event_seconds < 100e-6
    assert slowest_seconds < 0.25
    # 2 s, and the interpreter's own end.
    assert gone_at - over_at < 2.5
    lines = done.stderr.splitlines()
    assert [line for line in lines if "kafka_unreachable" in line and unreachable in line] == lines[:1], done.stderr
    # And at the end what becomes of the events.
    assert [line for line in lines if "events_left_" in line] == lines[1:], done.stderr
    assert len(lines) <= 2
