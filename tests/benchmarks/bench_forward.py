"""What `runtap forward langsmith` does to those beside it, and what an outage of its target does to it.

    python tests/benchmarks/bench_forward.py [--rate 1000] [--seconds 60] [--rounds 3] [--outage 600]

Kafka, a worker on SQLite, the forwarder and its target are processes of their own. First, in pairs, how long after its
append an event is in the worker's store, without a forwarder and beside one. Then the target is away for a while from
the start, and comes back while events go on at the same rate: how long it takes until it has all of them, the memory
that the forwarder takes, and how late the worker's figures are all that time.
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import cramjam
import httpx2
import uvicorn
from measurement import print_machine, spread
from rich.console import Console
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from worker_latency import measure_latency, percentile
from worker_setting import SETS
from worker_streams import PARTITIONS

from runtap_consumers.kafka.topics import create_topics
from runtap_consumers.settings import ConsumerSettings
from runtap_demo.kafka.broker import EmbeddedKafka
from runtap_demo.kafka.ports import free_ports

_RUN = re.compile(rb'name="(?:post|patch)\.([0-9a-f-]{36})"')
_POLL_SECONDS = 0.5
_CAUGHT_UP_POLLS = 20
console = Console(highlight=False, width=150)


def serve_target(port: int) -> None:
    """A LangSmith that counts runs, and forgets what was in them."""
    seen = set[bytes]()

    async def info(_request: Request) -> Response:
        flags = {"zstd_compression_enabled": True}
        return JSONResponse({"instance_flags": flags, "batch_ingest_config": {"size_limit": 100}})

    async def multipart(request: Request) -> Response:
        body = await request.body()
        seen.update(_RUN.findall(bytes(cramjam.zstd.decompress(body))))
        return Response(status_code=202)

    async def count(_request: Request) -> Response:
        return JSONResponse(len(seen))

    ways = [("/info", info, "GET"), ("/runs/multipart", multipart, "POST"), ("/seen", count, "GET")]
    app = Starlette(routes=[Route(path, answer, methods=[method]) for path, answer, method in ways])
    uvicorn.run(app, host="127.0.0.1", port=port, log_level="error", lifespan="off")


@contextmanager
def target(port: int) -> Iterator[None]:
    """A target, while the block runs."""
    process = multiprocessing.get_context("spawn").Process(target=serve_target, args=(port,))
    process.start()
    try:
        yield
    finally:
        process.terminate()
        process.join()


def runs_seen(port: int) -> int:
    """How many runs a target has."""
    try:
        return int(httpx2.get(f"http://127.0.0.1:{port}/seen").text)
    except httpx2.HTTPError:
        return 0


class Forwarder:
    """A running `runtap forward langsmith`."""

    def __init__(self, settings: ConsumerSettings, port: int, folder: Path) -> None:
        environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("RUNTAP_")},
            "RUNTAP_BOOTSTRAP_SERVERS": settings.bootstrap_servers,
            "RUNTAP_TOPIC_PREFIX": settings.topic_prefix,
            "LANGSMITH_ENDPOINT": f"http://127.0.0.1:{port}",
        }
        command = [sys.executable, "-m", "runtap_consumers", "forward", "langsmith", "--from-beginning"]
        with (folder / "forward.log").open("ab") as log:
            self._process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)

    def memory_mib(self) -> tuple[float, float]:
        """What it takes now, and the most that it took."""
        status = Path(f"/proc/{self._process.pid}/status").read_text()
        now, most = (re.search(rf"{name}:\s+(\d+) kB", status) for name in ("VmRSS", "VmHWM"))
        assert now is not None
        assert most is not None
        return int(now[1]) / 1024, int(most[1]) / 1024

    def end(self) -> float:
        """Ends it; returns the seconds of CPU that it took."""
        self._process.terminate()
        _, status, usage = os.wait4(self._process.pid, 0)
        self._process.returncode = os.waitstatus_to_exitcode(status)
        return usage.ru_utime + usage.ru_stime


def new_setting(kafka: str) -> ConsumerSettings:
    settings = ConsumerSettings.load(bootstrap_servers=kafka, topic_prefix=f"bench-{uuid.uuid4().hex[:8]}")
    asyncio.run(create_topics(settings, PARTITIONS, 1))
    return settings


def measure_worker(settings: ConsumerSettings, folder: Path, rate: int, seconds: float) -> list[float]:
    url = f"sqlite:///{folder / settings.topic_prefix}.db"
    return measure_latency(settings, url, "hard", SETS["all"], folder, rate, seconds)[0]


def wait_for(port: int, runs: int) -> None:
    """Waits until a target has so many runs."""
    while runs_seen(port) < runs:
        time.sleep(_POLL_SECONDS)


def compare(kafka: str, folder: Path, rate: int, seconds: float, rounds: int) -> None:
    """The worker's lag without a forwarder and beside one."""
    late: dict[str, list[list[float]]] = {"alone": [], "beside a forwarder": []}
    cores = []
    for _ in range(rounds):
        late["alone"].append(measure_worker(new_setting(kafka), folder, rate, seconds))
        settings, port = new_setting(kafka), free_ports(1)[0]
        with target(port):
            forwarder = Forwarder(settings, port, folder)
            late["beside a forwarder"].append(measure_worker(settings, folder, rate, seconds))
            wait_for(port, int(rate * seconds))
            cores.append(forwarder.end() / seconds)
    for title, measured in late.items():
        shown = (f"p{percent} {spread([percentile(each, percent) for each in measured])}" for percent in (50, 99, 100))
        console.print(f"{title:20} {', '.join(shown)} s")
    console.print(f"forwarder            {spread(cores)} of a core")


def outlast(kafka: str, folder: Path, rate: int, outage: float) -> None:
    """A target that is away, and comes back while events go on."""
    settings, port = new_setting(kafka), free_ports(1)[0]
    seconds = outage * 2
    forwarder, late = Forwarder(settings, port, folder), list[float]()
    worker = threading.Thread(target=lambda: late.extend(measure_worker(settings, folder, rate, seconds)))
    worker.start()
    time.sleep(outage / 10)
    before, _ = forwarder.memory_mib()
    time.sleep(outage * 9 / 10)
    away, _ = forwarder.memory_mib()
    with target(port):
        back, seen = time.time(), deque([(time.time(), 0)], maxlen=_CAUGHT_UP_POLLS)
        caught_up = 0.0
        while worker.is_alive():
            time.sleep(_POLL_SECONDS)
            seen.append((time.time(), runs_seen(port)))
            (first_at, first), (at, last) = seen[0], seen[-1]
            # What comes is what is sent: nothing is left of what has gathered.
            if not caught_up and first and len(seen) == seen.maxlen and last - first < 1.1 * rate * (at - first_at):
                caught_up = first_at
        worker.join()
        wait_for(port, int(rate * seconds))
        console.print(
            f"away for {outage:.0f} s: {runs_seen(port):,} of {int(rate * seconds):,} runs; caught up "
            f"{f'{caught_up - back:.0f} s after it was back' if caught_up else 'only after the traffic had ended'}"
        )
    now, most = forwarder.memory_mib()
    console.print(
        f"memory {before:.0f} MiB at first, {away:.0f} at the end of it, {now:.0f} at last, {most:.0f} at most"
    )
    console.print(f"forwarder {forwarder.end() / seconds:.2f} of a core")
    shown = ", ".join(f"p{percent} {percentile(late, percent):.2f}" for percent in (50, 99, 100))
    console.print(f"the worker all that time: {shown} s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rate", type=int, default=1_000, help="Events a second")
    parser.add_argument("--seconds", type=float, default=60, help="Of each pass of a pair")
    parser.add_argument("--rounds", type=int, default=3, help="Pairs; 0 leaves them out")
    parser.add_argument("--outage", type=float, default=600, help="Seconds that the target is away; 0 leaves it out")
    arguments = parser.parse_args()
    print_machine(console, "aiokafka", "msgspec", "httpx2")
    with EmbeddedKafka() as kafka, tempfile.TemporaryDirectory() as folder:
        servers = kafka.bootstrap_servers
        if arguments.rounds:
            compare(servers, Path(folder), arguments.rate, arguments.seconds, arguments.rounds)
        if arguments.outage:
            outlast(servers, Path(folder), arguments.rate, arguments.outage)


if __name__ == "__main__":
    main()
