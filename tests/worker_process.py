"""`runtap worker` as a process of its own, and a log for it to read."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aiokafka import AIOKafkaProducer
from aiokafka.record.util import calc_crc32c

from command_line import call_command
from runtap_schemas import Event
from samples import framed


@dataclass
class WorkerSetting:
    """Where a test's workers find Kafka and the store."""

    bootstrap_servers: str
    topic_prefix: str
    store_url: str
    more: dict[str, str] = field(default_factory=dict)

    def environment(self) -> dict[str, str]:
        """The process's environment."""
        return {
            **{name: value for name, value in os.environ.items() if not name.startswith("RUNTAP_")},
            "RUNTAP_BOOTSTRAP_SERVERS": self.bootstrap_servers,
            "RUNTAP_TOPIC_PREFIX": self.topic_prefix,
            "RUNTAP_DATABASE_URL": self.store_url,
            "RUNTAP_SESSION_TIMEOUT_SECONDS": "3",
            **self.more,
        }

    def command(self, *arguments: str) -> list[str]:
        """A `runtap` command line."""
        return [sys.executable, "-m", "runtap_consumers", *arguments]

    def run(self, *arguments: str, timeout: float = 60) -> subprocess.CompletedProcess[str]:
        """Runs a `runtap` command to its end, in this process where it can."""
        if arguments[0] != "worker":
            return call_command(arguments, self.environment())
        return subprocess.run(
            self.command(*arguments), env=self.environment(), capture_output=True, text=True, timeout=timeout
        )

    def drain(self, *projections: str) -> None:
        """Runs a worker until it has caught up."""
        done = self.run("worker", "--drain", *projections)
        assert done.returncode == 0, done.stderr[-3000:]

    def start(self, log: Path, *arguments: str) -> subprocess.Popen[bytes]:
        """Starts a worker; its log goes to a file."""
        with log.open("ab") as output:
            return subprocess.Popen(self.command("worker", *arguments), env=self.environment(), stderr=output)


def ask_health(port: int, path: str = "readyz") -> tuple[int, dict[str, Any]]:
    """Status and body of a worker's health; 0 where nobody answers."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/{path}", timeout=5) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)
    except OSError:
        return 0, {}


def ask_metrics(port: int) -> dict[str, float]:
    """What a worker's /metrics has, by series."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
        lines = answer.read().decode().splitlines()
    samples = (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
    return {series: float(value) for series, value in samples}


def wait_until(condition: Callable[[], bool], seconds: float = 30, what: str = "the condition") -> None:
    """Waits for something that other processes bring about."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not come true within {seconds} s"
        time.sleep(0.05)


async def produce(
    bootstrap_servers: str, topic: str, records: Iterable[tuple[int, bytes | None, Sequence[tuple[str, bytes]]]]
) -> None:
    """Writes (partition, value, headers) records, each partition in order, acknowledged."""
    producer = AIOKafkaProducer(bootstrap_servers=bootstrap_servers, acks="all", linger_ms=5)
    await producer.start()
    try:
        for partition, value, headers in records:
            await producer.send(topic, value, partition=partition, key=b"key", headers=headers)
        await producer.flush()
    finally:
        await producer.stop()


async def produce_with_odd_header(kafka: str, topic: str, value: bytes | None) -> None:
    """Writes a record whose header has a name that is no UTF-8; other clients may."""
    producer = AIOKafkaProducer(bootstrap_servers=kafka)
    await producer.start()
    try:
        batch = producer.create_batch()
        batch.append(key=b"key", value=value, timestamp=None, headers=[("odd-name", b"x")])
        batch.close()
        raw = bytearray(bytes(batch._build()).replace(b"odd-name", b"odd-\xff\xfe\xfd\xfc"))
        # Bytes 17 to 20 are the checksum of all that follows.
        raw[17:21] = struct.pack(">I", calc_crc32c(bytes(raw[21:])))
        batch._buffer = raw
        await (await producer.send_batch(batch, topic, partition=0))
    finally:
        await producer.stop()


def numbered(
    events: Iterable[Event], emitter: str = "e1", partitions: int = 3, first: int = 0
) -> list[tuple[int, bytes | None, Sequence[tuple[str, bytes]]]]:
    """Events as records, round the partitions, in each of an emitter of its own; `first` events went before."""
    records: list[tuple[int, bytes | None, Sequence[tuple[str, bytes]]]] = []
    for place, event in enumerate(events, start=first):
        partition = place % partitions
        value = framed([event], f"{emitter}/{partition}", place // partitions + 1, event.at_ns)
        records.append((partition, value, []))
    return records
