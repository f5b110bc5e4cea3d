"""The command lines and settings of docker-compose.yml, run for real: only addresses are those of this test."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from runtap_consumers.kafka.client import Publisher
from runtap_consumers.kafka.record_tail import tail_records
from runtap_consumers.projections import PROJECTIONS
from runtap_consumers.settings import ConsumerSettings
from runtap_consumers.store.engine import open_store
from runtap_consumers.units import MINUTE_NS
from runtap_schemas import Alert, decode_alert
from runtap_schemas.topics import alerts_topic, events_topic
from samples import chain_end, failure, framed
from worker_process import ask_health

ROOT = Path(__file__).parents[2]
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]


@dataclass
class Deployment:
    """Where the services of this test find each other, and what was started."""

    kafka: str
    prefix: str
    database: str
    folder: Path
    processes: list[subprocess.Popen[bytes]]

    def start(self, service: str, port: int | None = None) -> subprocess.Popen[bytes]:
        """A service's command line with its settings; `port`: of this machine, in the place of the container's."""
        words = [f"127.0.0.1:{port}" if word == "0.0.0.0:8080" else word for word in SERVICES[service]["command"]]
        if words[0] == "serve":
            words = ["127.0.0.1" if word == "0.0.0.0" else word for word in [*words, "--port", str(port)]]
        process = subprocess.Popen(
            [sys.executable, "-m", "runtap_consumers", *words],
            env=self._environment(service),
            cwd=self.folder,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        self.processes.append(process)
        return process

    def _environment(self, service: str) -> dict[str, str]:
        inherited = {key: value for key, value in os.environ.items() if not key.startswith(("RUNTAP_", "PG"))}
        ours = {}
        for key, value in SERVICES[service]["environment"].items():
            ours[key] = value.replace("${RUNTAP_TIMEZONE:-UTC}", "UTC")
            if key.endswith("_FILE"):
                secret = value.removeprefix("/run/secrets/")
                assert secret in SERVICES[service]["secrets"]
                ours[key] = str(self.folder / secret)
                (self.folder / secret).write_text("let-me-in\n")
        mounted = dict(volume.split(":")[1::-1] for volume in SERVICES[service]["volumes"])
        folder, _, file = ours["RUNTAP_ALERTS"].rpartition("/")
        ours["RUNTAP_ALERTS"] = str(ROOT / mounted[folder] / file)
        addresses = {
            "RUNTAP_BOOTSTRAP_SERVERS": self.kafka,
            "RUNTAP_DATABASE_URL": self.database,
            "RUNTAP_TOPIC_PREFIX": self.prefix,
        }
        assert addresses.keys() - ours.keys() == {"RUNTAP_TOPIC_PREFIX"}
        return {**inherited, **ours, **addresses}


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


async def _fail_and_be_alerted(settings: ConsumerSettings) -> Alert:
    """Thirty root runs, two thirds of them failed, and the first alert after that."""
    async with Publisher(settings) as publisher:
        for number in range(1, 31):
            status: dict[str, Any] = {"status": "error", "error": failure()} if number % 3 else {}
            # Of a minute that is over: a rate of the one that goes on is not judged yet.
            ended = chain_end(time.time_ns() - MINUTE_NS, run_id=f"run-{number}", **status)
            value = framed([ended], "emitter-1", number, ended.at_ns)
            await publisher.publish(events_topic(settings.topic_prefix), b"one key, one lane", value)
    async with asyncio.timeout(20):
        tail = tail_records(settings, alerts_topic(settings.topic_prefix), from_beginning=True)
        async with aclosing(tail) as records:  # type: ignore[type-var]
            return decode_alert((await anext(records)).value or b"")


@pytest.fixture
def processes() -> Iterator[list[subprocess.Popen[bytes]]]:
    started: list[subprocess.Popen[bytes]] = []
    yield started
    for process in started:
        if process.poll() is None:
            process.kill()
        process.communicate(timeout=10)


def test_services_start_report_health_and_end_within_their_grace(
    kafka: str, topic_prefix: str, postgres_database: str, tmp_path: Path, processes: list[subprocess.Popen[bytes]]
) -> None:
    deployment = Deployment(kafka, topic_prefix, postgres_database, tmp_path, processes)
    assert [deployment.start(name).wait(timeout=30) for name in ("topics", "migrate")] == [0, 0]
    ports = {name: _free_port() for name in (*PROJECTIONS, "alerts", "notify", "serve")}
    running = [deployment.start(name, port) for name, port in ports.items()]
    _await_health(ports)
    _scrape_figures(ports["serve"])
    store = open_store(postgres_database, f"{topic_prefix}.events")
    assert store.zone.key == "UTC"
    store.close()
    alert = asyncio.run(_fail_and_be_alerted(ConsumerSettings.load(bootstrap_servers=kafka, topic_prefix=topic_prefix)))
    assert (alert.rule.id, alert.status, alert.group["service"]) == ("error_rate", "firing", "checkout")
    assert alert.value is not None
    assert float(alert.value) > 0.1
    _end(running)
    # All of them in one process, in their place.
    port = _free_port()
    running = [deployment.start("all", port)]
    _await_health({"all": port})
    _end(running)


def _await_health(ports: dict[str, int]) -> None:
    deadline = time.monotonic() + 60
    waiting = set(ports)
    while waiting:
        assert time.monotonic() < deadline, f"not healthy: {waiting}"
        time.sleep(0.2)
        for name in sorted(waiting):
            status, body = ask_health(ports[name])
            if status == 200 and (name in ("alerts", "notify", "serve") or len(body["partitions"]) == 6):
                assert body["status"] == "healthy"
                waiting.discard(name)


def _scrape_figures(port: int) -> None:
    """As Prometheus does: by the name of the service, with the token."""
    headers = {"Host": "serve:8484", "Authorization": "Bearer let-me-in"}
    request = urllib.request.Request(f"http://127.0.0.1:{port}/metrics", headers=headers)
    with urllib.request.urlopen(request, timeout=10) as answer:
        assert b"langchain_llm_calls_total" in answer.read()
    assert ask_health(port, "metrics")[0] == 401


def _end(running: list[subprocess.Popen[bytes]]) -> None:
    for process in running:
        process.send_signal(signal.SIGTERM)
    began = time.monotonic()
    assert [process.wait(timeout=10) for process in running] == [0] * len(running)
    assert time.monotonic() - began < 10
