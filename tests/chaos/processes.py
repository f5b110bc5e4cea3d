"""All processes of a run: servers, a model server, emitters and workers; and who starts them again."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from chaos.plan import ASKING, EMITTERS, MORTAL, Plan
from chaos.proxy import Proxies
from chaos.servers import Database, ProxiedKafka, plain_environment
from chaos.takeovers import Takeovers
from runtap_consumers.kafka.client import TopicEnds
from runtap_consumers.kafka.topics import create_topics
from runtap_schemas import ConnectionSettings

HERE = Path(__file__).parent
TOPIC = "chaos.events"
PROJECTIONS = ("cost", "performance", "errors", "sessions", "runs", "ledger")
# Runs that end, and ends and starts of sessions, an operation; a model server's client makes only calls.
_EVENTS_AN_OPERATION = {ASKING: 1.08}
_OTHERS_EVENTS_AN_OPERATION = 1.58
# A call over HTTP costs ten times as much as one that is told.
_SHARES = {ASKING: 0.04}
_OTHERS_SHARE = (1 - _SHARES[ASKING]) / (EMITTERS - 1)
_LEAST_LIFE_SECONDS = 8.0


@dataclass
class Child:
    """A worker or an emitter. One that has ended is started again at `restart_at`."""

    number: int
    log: Path
    process: subprocess.Popen[bytes]
    # Where what this process says begins.
    log_start: int = 0
    restart_at: float = 0.0
    # Whether its end was ours.
    is_meant: bool = False
    is_stopped: bool = False

    @property
    def is_running(self) -> bool:
        return self.process.poll() is None

    def end_until(self, restart_at: float, *, by_kill: bool) -> None:
        """Kills it, or asks it to end."""
        self.restart_at, self.is_meant = restart_at, True
        if by_kill:
            self.process.kill()
        else:
            self.process.terminate()


@dataclass
class Processes:
    """Started together, looked after by `supervise`, ended by `close`."""

    plan: Plan
    folder: Path
    proxies: Proxies = field(default_factory=Proxies)
    workers: list[Child] = field(default_factory=list)
    emitters: list[Child] = field(default_factory=list)
    own_ends: list[str] = field(default_factory=list)
    others: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def start(self) -> None:
        """Starts everything."""
        self.database = Database(self.folder / "pg", self.proxies)
        self.kafka = ProxiedKafka(self.folder / "kafka", self.plan.nodes, self.proxies)
        self.kafka.start()
        self.settings = ConnectionSettings.load(
            bootstrap_servers=self.kafka.bootstrap_servers, topic_prefix=TOPIC.removesuffix(".events")
        )
        asyncio.run(create_topics(self.settings, self.plan.partitions, min(3, self.plan.nodes)))
        prices = self.folder / "prices.toml"
        # The model server stands in for OpenAI: an address that nobody knows has no prices.
        prices.write_text('[[seller]]\nhost = "127.0.0.1"\nprovider = "openai"\n')
        self.environment = plain_environment(
            {
                "RUNTAP_BOOTSTRAP_SERVERS": self.kafka.bootstrap_servers,
                "RUNTAP_TOPIC_PREFIX": TOPIC.removesuffix(".events"),
                "RUNTAP_DATABASE_URL": self.database.proxied_url,
                "RUNTAP_SESSION_TIMEOUT_SECONDS": str(self.plan.session_seconds),
                "RUNTAP_BUFFER_BYTES": str(256 * 2**20),
                "RUNTAP_COMMIT_EVENTS": "500",
                "RUNTAP_PRICES": str(prices),
            }
        )
        self.locks = {name: threading.Lock() for name in ("broker", "database", "admin")}
        self.takeovers = Takeovers(self.database.direct_url)
        self._model_url = self._start_model_server()
        self.workers = [
            self._child(number, f"worker-{number}.log", self._worker_command()) for number in range(self.plan.workers)
        ]
        self._emits_until = time.monotonic() + self.plan.seconds - 5
        for number in range(EMITTERS):
            self.emitters.append(self._child(number, f"emitter-{number}.log", self._emitter_command(number)))

    @property
    def books(self) -> list[Path]:
        """What each emitter writes down."""
        return [self.folder / f"book-{number}.jsonl" for number in range(EMITTERS)]

    @property
    def answers(self) -> Path:
        """What the model server writes down."""
        return self.folder / "answers.jsonl"

    def _start_model_server(self) -> str:
        command = [sys.executable, str(HERE.parent / "acceptance" / "fake_model.py"), str(self.answers)]
        with (self.folder / "model.log").open("ab") as errors:
            server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors)
        self.others.append(server)
        assert server.stdout is not None
        return f"http://127.0.0.1:{int(server.stdout.readline())}/v1"

    def _worker_command(self) -> list[str]:
        return [sys.executable, "-m", "runtap_consumers", "worker", *PROJECTIONS]

    def _emitter_command(self, number: int) -> list[str]:
        """For what an emitter has not done yet, in the time that is left."""
        book = self.books[number]
        share, each = _SHARES.get(number, _OTHERS_SHARE), _EVENTS_AN_OPERATION.get(number, _OTHERS_EVENTS_AN_OPERATION)
        operations = int(self.plan.events * share / each)
        if book.exists():
            with book.open() as lines:
                operations -= sum(line.endswith("true]\n") for line in lines)
        rate = max(operations, 1) / max(self._emits_until - time.monotonic(), _LEAST_LIFE_SECONDS)
        told = [book, f"service-{number}", self.plan.seed, operations, rate]
        asks = ["--asks", self._model_url] if number == ASKING else []
        return [sys.executable, str(HERE / "emitter.py"), *map(str, told), *asks]

    def _child(self, number: int, log_name: str, command: list[str]) -> Child:
        log = self.folder / log_name
        log_start = log.stat().st_size if log.exists() else 0
        # Whoever is killed leaves its spool to the next process of its own service.
        spool = self.folder / ("spool-mortal" if log_name == f"emitter-{MORTAL}.log" else "spool")
        environment = {**self.environment, "RUNTAP_SPOOL_DIR": str(spool)}
        with log.open("ab") as output:
            process = subprocess.Popen(command, env=environment, stdout=output, stderr=output)
        return Child(number, log, process, log_start)

    def supervise(self) -> None:
        """Starts workers that have ended and emitters that were killed; notes the workers that
        nobody had told to end.
        """
        for worker in self.workers:
            if worker.is_running:
                continue
            if not worker.is_meant:
                lines = worker.log.read_text(errors="replace").splitlines()
                reason = f"{worker.process.returncode}: {lines[-1] if lines else ''}"
                self.own_ends.append(f"worker {worker.number} ended with {reason}"[:400])
                worker.restart_at, worker.is_meant = time.monotonic() + 0.5, True
            if time.monotonic() >= worker.restart_at:
                self.workers[worker.number] = self._child(worker.number, worker.log.name, self._worker_command())
        for emitter in self.emitters:
            if emitter.is_meant and not emitter.is_running and time.monotonic() >= emitter.restart_at:
                command = self._emitter_command(emitter.number)
                self.emitters[emitter.number] = self._child(emitter.number, emitter.log.name, command)

    def running_worker(self, number: int) -> Child:
        """The worker of that number, or the next one that runs. Waits until there is one."""
        while True:
            for worker in (*self.workers[number:], *self.workers[:number]):
                if worker.is_running and not worker.is_meant and not worker.is_stopped:
                    return worker
            time.sleep(0.05)

    def have_emitted(self) -> bool:
        """Whether every emitter has come to its end."""
        return not any(emitter.is_running or emitter.is_meant for emitter in self.emitters)

    def has_begun(self) -> bool:
        """Whether something was committed."""
        return bool(self.database.rows("SELECT 1 FROM positions WHERE next_offset > 0"))

    def lag(self) -> int:
        """Events that the slowest projection of each partition has still to apply."""
        ends = asyncio.run(_read_ends(self.settings))
        rows = self.database.rows("SELECT partition, min(next_offset), count(*) FROM positions GROUP BY partition")
        reached = {partition: offset for partition, offset, count in rows if count == len(PROJECTIONS)}
        return sum(end - reached.get(partition, 0) for partition, end in ends.items())

    def close(self) -> None:
        """Ends what is left, by its own ids."""
        for process in (*self.others, *(child.process for child in (*self.emitters, *self.workers))):
            if process.poll() is None:
                process.kill()
                process.wait(10)
            if process.stdout is not None:
                process.stdout.close()
        self.takeovers.close()
        self.kafka.stop(0)
        self.database.close()
        self.proxies.close()


async def _read_ends(settings: ConnectionSettings) -> dict[int, int]:
    async with TopicEnds(settings, TOPIC) as ends:
        return await ends.read()


def output_of(*arguments: str, environment: dict[str, str], seconds: float) -> tuple[int, str, str]:
    """Runs a Python program to its end.

    Returns:
        Its exit code, what it said, and what it complained about.
    """
    command: list[Any] = [sys.executable, *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=seconds)
    return done.returncode, done.stdout, done.stderr
