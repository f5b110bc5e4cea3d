"""Programs of the demo that answer over HTTP, `runtap serve` among them."""

from __future__ import annotations

import sys
import time
import urllib.request
from collections.abc import Mapping
from pathlib import Path

from runtap_demo.kafka.child_processes import Child, spawn
from runtap_demo.kafka.ports import free_ports, is_free

# Where `runtap serve` listens unless told otherwise.
PORT = 8484
_READY_TIMEOUT_SECONDS = 20.0


def start_serve(log: Path, environment: Mapping[str, str]) -> tuple[Child, str]:
    """Starts `runtap serve`, at another port where somebody listens at its own; returns it and its address."""
    port = PORT if is_free(PORT) else free_ports(1)[0]
    command = [sys.executable, "-m", "runtap_consumers", "serve", "--port", str(port)]
    return Child("The server", spawn(command, log=log, environment=environment), log), f"http://127.0.0.1:{port}/"


def wait_until_it_answers(child: Child, url: str) -> None:
    """Raises:
    ChildEndedError: it ended, or did not answer in time.
    """
    deadline = time.monotonic() + _READY_TIMEOUT_SECONDS
    while True:
        child.check()
        try:
            urllib.request.urlopen(url, timeout=5).close()
        except OSError as error:
            if time.monotonic() > deadline:
                raise child.failed(f"did not answer within {_READY_TIMEOUT_SECONDS:.0f} s") from error
            time.sleep(0.05)
        else:
            return
