"""
The whole pipeline under faults, and its figures compared with what the emitters wrote down.

    python tests/chaos/run_chaos.py [--long] [--seed N] [--seconds N] [--events N] [--only KIND …] [--every N]

Real Kafka, real PostgreSQL, four services with the real collector, three workers. Every few seconds one of them is
killed, stopped, cut off or sent away; the seed says when and which, and replays the schedule. In the end everything is
let go on, and `oracle.py` works every rollup out again from the services' own books.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from aiokafka.admin import AIOKafkaAdminClient, NewPartitions  # noqa: E402

from chaos.plan import EMITTERS, SESSION_SECONDS, WORKERS, Fault, Plan  # noqa: E402
from chaos.proxy import Proxies  # noqa: E402
from chaos.servers import Database, ProxiedKafka, plain_environment  # noqa: E402
from runtap_consumers.kafka import TopicEnds  # noqa: E402
from runtap_consumers.topics import create_topics  # noqa: E402
from runtap_schemas import ConnectionSettings  # noqa: E402

PARTITIONS = 6
TOPIC = "chaos.events"
PROJECTIONS = ("cost", "performance", "errors", "sessions", "runs", "ledger")
# Runs that end, and ends and starts of sessions, an operation.
EVENTS_AN_OPERATION = 1.58
_REST_SECONDS = 180.0


@dataclass
class Child:
    """
    A worker, which is started again whenever it ends.
    """

    number: int
    process: subprocess.Popen[bytes]
    restart_at: float = 0.0
    # Whether its end was ours.
    is_meant: bool = False


@dataclass
class Chaos:
    """
    All processes of a run.
    """

    plan: Plan
    folder: Path
    proxies: Proxies = field(default_factory=Proxies)
    workers: list[Child] = field(default_factory=list)
    emitters: list[subprocess.Popen[bytes]] = field(default_factory=list)
    own_ends: list[str] = field(default_factory=list)
    partitions: int = PARTITIONS

    def start(self) -> None:
        """
        Starts everything.
        """
        self.database = Database(self.folder / "pg", self.proxies)
        self.kafka = ProxiedKafka(self.folder / "kafka", self.plan.nodes, self.proxies)
        self.kafka.start()
        self.settings = ConnectionSettings.load(
            bootstrap_servers=self.kafka.bootstrap_servers, topic_prefix=TOPIC.removesuffix(".events")
        )
        asyncio.run(create_topics(self.settings, PARTITIONS, min(3, self.plan.nodes)))
        self.environment = plain_environment(
            {
                "RUNTAP_BOOTSTRAP_SERVERS": self.kafka.bootstrap_servers,
                "RUNTAP_TOPIC_PREFIX": TOPIC.removesuffix(".events"),
                "RUNTAP_DATABASE_URL": self.database.proxied_url,
                "RUNTAP_SESSION_TIMEOUT_SECONDS": str(SESSION_SECONDS),
                "RUNTAP_BUFFER_BYTES": str(256 * 2**20),
                "RUNTAP_COMMIT_EVENTS": "500",
                "RUNTAP_SPOOL_DIR": str(self.folder / "spool"),
            }
        )
        self.locks = {name: threading.Lock() for name in ("broker", "database", "admin")}
        self.workers = [Child(number, self._spawn_worker(number)) for number in range(WORKERS)]
        operations = int(self.plan.events / EVENTS_AN_OPERATION / EMITTERS)
        rate = operations / (self.plan.seconds - 5)
        for number in range(EMITTERS):
            book = self.folder / f"book-{number}.jsonl"
            arguments = (book, f"service-{number}", self.plan.seed, operations, rate)
            self.emitters.append(self._spawn(["emitter.py", *arguments], f"emitter-{number}.log"))

    def _spawn(self, arguments: list[Any], log: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, str(HERE / arguments[0]), *(str(argument) for argument in arguments[1:])]
        with (self.folder / log).open("ab") as output:
            return subprocess.Popen(command, env=self.environment, stdout=output, stderr=output)

    def _spawn_worker(self, number: int) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "runtap_consumers", "worker", *PROJECTIONS]
        with (self.folder / f"worker-{number}.log").open("ab") as output:
            return subprocess.Popen(command, env=self.environment, stdout=output, stderr=output)

    def supervise(self) -> None:
        """
        Starts workers that have ended, and notes those that nobody had told to.
        """
        for worker in self.workers:
            code = worker.process.poll()
            if code is None:
                continue
            if not worker.is_meant:
                log = (self.folder / f"worker-{worker.number}.log").read_text(errors="replace").splitlines()
                self.own_ends.append(f"worker {worker.number} ended with {code}: {log[-1] if log else ''}"[:400])
                worker.restart_at, worker.is_meant = time.monotonic() + 0.5, True
            if time.monotonic() >= worker.restart_at:
                worker.process, worker.is_meant = self._spawn_worker(worker.number), False

    def inflict(self, fault: Fault) -> None:
        """
        Does what a fault says, and waits until it is over.
        """
        kind, _, what = fault.kind.partition("_")
        getattr(self, f"_{kind}_{what}")(fault)

    def _kill_worker(self, fault: Fault) -> None:
        worker = self.workers[fault.target]
        worker.restart_at, worker.is_meant = time.monotonic() + fault.seconds, True
        worker.process.kill()

    def _leave_worker(self, fault: Fault) -> None:
        worker = self.workers[fault.target]
        worker.restart_at, worker.is_meant = time.monotonic() + fault.seconds, True
        worker.process.terminate()

    def _stop_worker(self, fault: Fault) -> None:
        self._stop_process(self.workers[fault.target].process, fault.seconds)

    def _stop_emitter(self, fault: Fault) -> None:
        self._stop_process(self.emitters[fault.target], fault.seconds)

    def _stop_process(self, process: subprocess.Popen[bytes], seconds: float) -> None:
        process.send_signal(signal.SIGSTOP)
        time.sleep(seconds)
        process.send_signal(signal.SIGCONT)

    def _kill_broker(self, fault: Fault) -> None:
        with self.locks["broker"]:
            node = self.kafka.nodes[fault.target]
            node.kill()
            time.sleep(fault.seconds)
            node.start(60)

    def _stop_broker(self, fault: Fault) -> None:
        with self.locks["broker"]:
            node = self.kafka.nodes[fault.target]
            node.suspend()
            time.sleep(fault.seconds)
            node.resume()

    def _kill_database(self, fault: Fault) -> None:
        with self.locks["database"]:
            self.database.kill()
            time.sleep(fault.seconds)
            self.database.start()

    def _stop_database(self, fault: Fault) -> None:
        with self.locks["database"]:
            self.database.stop_for(fault.seconds)

    def _cut_kafka(self, _fault: Fault) -> None:
        self.proxies.cut("kafka")

    def _cut_database(self, _fault: Fault) -> None:
        self.proxies.cut("database")

    def _add_partitions(self, _fault: Fault) -> None:
        with self.locks["admin"]:
            if self.partitions < 3 * PARTITIONS:
                self.partitions += 1
                asyncio.run(add_partitions(self.settings, self.partitions))

    def has_begun(self) -> bool:
        """
        Whether something was committed.
        """
        return bool(self.database.rows("SELECT 1 FROM positions WHERE next_offset > 0"))

    def lag(self) -> int:
        """
        Events that the slowest projection of each partition has still to apply.
        """
        ends = asyncio.run(read_ends(self.settings))
        rows = self.database.rows("SELECT partition, min(next_offset), count(*) FROM positions GROUP BY partition")
        reached = {partition: offset for partition, offset, count in rows if count == len(PROJECTIONS)}
        return sum(end - reached.get(partition, 0) for partition, end in ends.items())

    def close(self) -> None:
        """
        Ends what is left, by its own ids.
        """
        processes = [*self.emitters, *(worker.process for worker in self.workers)]
        for process in processes:
            if process.poll() is None:
                process.kill()
                process.wait(10)
        self.kafka.stop(0)
        self.database.close()
        self.proxies.close()


async def read_ends(settings: ConnectionSettings) -> dict[int, int]:
    """
    Where the events topic's partitions end.
    """
    async with TopicEnds(settings, TOPIC) as ends:
        return await ends.read()


async def add_partitions(settings: ConnectionSettings, total: int) -> None:
    """
    Grows the events topic. Tried again where Kafka is away.
    """
    for _ in range(20):
        admin = AIOKafkaAdminClient(**settings.client_options())
        try:
            await admin.start()
            await admin.create_partitions({TOPIC: NewPartitions(total_count=total)})
        except Exception as error:  # noqa: BLE001
            say("partitions_not_added", reason=repr(error))
            await asyncio.sleep(1)
        else:
            return
        finally:
            await admin.close()


def say(event: str, **fields: Any) -> None:
    """
    A line of what happens.
    """
    print(json.dumps({"event": event, **fields}), flush=True)  # noqa: T201


def run_faults(chaos: Chaos) -> int:
    """
    Inflicts the schedule.

    Returns:
        How many faults there were.
    """
    wait_for(chaos, "the first commit", chaos.has_begun, 60)
    began, threads = time.monotonic(), []
    schedule = chaos.plan.faults()
    for fault in schedule:
        while time.monotonic() - began < fault.at_seconds:
            chaos.supervise()
            time.sleep(0.1)
        say(fault.kind, at=round(time.monotonic() - began, 1), target=fault.target, seconds=round(fault.seconds, 1))
        thread = threading.Thread(target=chaos.inflict, args=(fault,))
        thread.start()
        threads.append(thread)
    for thread in threads:
        while thread.is_alive():
            chaos.supervise()
            thread.join(0.1)
    return len(schedule)


def wait_for(chaos: Chaos, what: str, is_done: Any, seconds: float) -> float:
    """
    Waits while workers are looked after.

    Returns:
        How long it took; more than `seconds` where it never came.
    """
    began, reason = time.monotonic(), ""
    while time.monotonic() - began < seconds:
        chaos.supervise()
        try:
            if is_done():
                return time.monotonic() - began
        except Exception as error:  # noqa: BLE001
            # What is asked may be away.
            reason = repr(error)[:300]
        time.sleep(0.3)
    say("not_reached", what=what, seconds=seconds, reason=reason)
    return seconds + 1


def judge(chaos: Chaos, faults: int, behind_seconds: float) -> bool:
    """
    Brings everything to rest and compares.
    """
    limit = chaos.plan.seconds + _REST_SECONDS
    closed = wait_for(chaos, "emitters", lambda: all(emitter.poll() is not None for emitter in chaos.emitters), limit)
    drained = wait_for(chaos, "lag", lambda: chaos.lag() == 0, _REST_SECONDS)
    codes = [emitter.returncode for emitter in chaos.emitters]
    books = [str(chaos.folder / f"book-{number}.jsonl") for number in range(EMITTERS)]
    url = chaos.database.direct_url.replace("postgresql://", "postgresql+psycopg://")
    done = subprocess.run(
        [sys.executable, str(HERE / "oracle.py"), url, *books], capture_output=True, text=True, timeout=120
    )
    lines = done.stdout.splitlines()
    found = json.loads(lines[-1]) if lines and lines[-1].startswith("{") else {"differences": done.stderr[-2_000:]}
    for line in lines[:-1][:40]:
        say("difference", line=line)
    report = subprocess.run(
        [sys.executable, "-m", "runtap_consumers", "report", "--json", "-"],
        env={**chaos.environment, "RUNTAP_DATABASE_URL": chaos.database.direct_url},
        capture_output=True,
        text=True,
        timeout=60,
    )
    ledger = json.loads(report.stdout)["ledger"] if report.returncode == 0 else {"failed": report.stderr[-1_000:]}
    crashes = [
        str(log.name)
        for log in chaos.folder.glob("*.log")
        if "Traceback (most recent" in log.read_text("utf-8", "replace")
    ]
    say(
        "result",
        seed=chaos.plan.seed,
        faults=faults,
        **found,
        ledger=ledger,
        emitter_exit_codes=codes,
        seconds_until_lag_was_below_two=round(behind_seconds, 1),
        seconds_until_emitters_closed=round(closed, 1),
        seconds_until_rest=round(drained, 1),
        partitions=chaos.partitions,
        workers_that_ended_by_themselves=chaos.own_ends,
        logs_with_a_traceback=crashes,
    )
    is_whole = not any(ledger.get(name, 1) for name in ("in_flight", "lost", "quarantined")) and not ledger["dropped"]
    return found["differences"] == 0 and not found["undelivered"] and not any(codes) and is_whole and not crashes


def main() -> int:
    """
    One run.
    """
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--long", action="store_true", help="three nodes, an hour, 2,000,000 events")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    parser.add_argument("--seconds", type=float)
    parser.add_argument("--events", type=int)
    parser.add_argument("--only", nargs="+", default=(), help="kinds of faults, such as kill_worker")
    parser.add_argument("--every", type=float, help="seconds from one fault to the next, about")
    parser.add_argument("--keep", action="store_true", help="leave the folder with logs and books")
    chosen = parser.parse_args()
    seconds = chosen.seconds or (3_600 if chosen.long else 270)
    events = chosen.events or (2_000_000 if chosen.long else 155_000)
    every = (chosen.every * 0.7, chosen.every * 1.3) if chosen.every else (5.0, 15.0 if chosen.long else 10.0)
    plan = Plan(chosen.seed, seconds, 3 if chosen.long else 1, events, tuple(chosen.only), every)
    folder = Path(tempfile.mkdtemp(prefix="rt-chaos-"))
    say("begun", seed=plan.seed, seconds=plan.seconds, nodes=plan.nodes, events=plan.events, folder=str(folder))
    chaos = Chaos(plan, folder)
    is_good = False
    try:
        chaos.start()
        faults = run_faults(chaos)
        two_seconds = 2 * plan.events / plan.seconds
        behind = wait_for(chaos, "lag below 2 s", lambda: chaos.lag() < two_seconds, 60)
        is_good = judge(chaos, faults, behind)
    finally:
        chaos.close()
        if is_good and not chosen.keep:
            shutil.rmtree(folder, ignore_errors=True)
    say("passed" if is_good else "failed", folder=str(folder))
    return 0 if is_good else 1


if __name__ == "__main__":
    sys.exit(main())
