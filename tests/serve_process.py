"""`runtap serve` as a process of its own, and how tests ask it."""

from __future__ import annotations

import json
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from faces import check_answer
from runtap_demo.kafka.ports import free_ports
from worker_process import WorkerSetting


class Server:
    """A server that listens."""

    def __init__(self, port: int) -> None:
        self.port = port

    def ask(self, path: str, method: str = "GET", **headers: str) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body of an answer."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", headers=named, method=method)
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:
                return answer.status, dict(answer.headers), answer.read()
        except urllib.error.HTTPError as error:
            return error.code, dict(error.headers), error.read()

    def get(self, path: str) -> Any:
        """What the API answers."""
        status, _, body = self.ask(f"/api/v1/{path}")
        assert status == 200, body
        check_answer(f"/api/v1/{path}", status, body)
        return json.loads(body)


@contextmanager
def served(store_url: str, arguments: Sequence[str] = (), **variables: str) -> Iterator[Server]:
    """Serves a store while the block runs."""
    (port,) = free_ports(1)
    setting = WorkerSetting("127.0.0.1:1", "runtap", store_url, variables)
    process = subprocess.Popen(setting.command("serve", "--port", str(port), *arguments), env=setting.environment())
    server = Server(port)
    try:
        deadline = time.monotonic() + 30
        while True:
            try:
                assert server.ask("/livez")[0] == 200
                break
            except OSError:
                assert process.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.1)
        yield server
    finally:
        process.terminate()
        assert process.wait(15) == 0
