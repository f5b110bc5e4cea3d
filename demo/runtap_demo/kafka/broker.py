"""Real Apache Kafka, embedded: one node or three on 127.0.0.1, for the demo, for developers and for tests.

    with EmbeddedKafka() as kafka:
        print(kafka.bootstrap_servers)

Not for production: plain text on the loopback interface, one machine, settings chosen for a quick start.
"""

from __future__ import annotations

import base64
import shutil
import signal
import subprocess
import tempfile
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

import structlog
from rich.console import Console

from runtap_demo.errors import PortTakenError
from runtap_demo.kafka.child_processes import Child, end, last_lines, spawn
from runtap_demo.kafka.kafka_cache import KafkaFiles, kafka_files
from runtap_demo.kafka.ports import free_ports, is_free

START_TIMEOUT_SECONDS = 30.0
STOP_TIMEOUT_SECONDS = 5.0

_STARTED = b"Kafka Server started"

_SETTINGS = {
    # A group's first member need not wait for others; clients may ask for short sessions.
    "group.initial.rebalance.delay.ms": "0",
    "group.min.session.timeout.ms": "1000",
    # As in production: a topic that nobody made shows as an error.
    "auto.create.topics.enable": "false",
    "log.message.timestamp.type": "LogAppendTime",
    "unclean.leader.election.enable": "false",
    # A killed node may come back only when its old session has ended: after 9 s by default.
    "broker.session.timeout.ms": "3000",
    "broker.heartbeat.interval.ms": "500",
    "offsets.topic.num.partitions": "3",
    "transaction.state.log.num.partitions": "1",
    "share.coordinator.state.topic.num.partitions": "1",
    "log.cleaner.enable": "false",
    "num.network.threads": "2",
    "num.io.threads": "4",
}
# With Kafka's own timing a failover takes 8 to 12 s, with this 3 to 5.
_QUORUM_SETTINGS = {
    "min.insync.replicas": "2",
    "replica.lag.time.max.ms": "5000",
    "controller.quorum.election.timeout.ms": "500",
    "controller.quorum.fetch.timeout.ms": "1500",
}

_logger = structlog.get_logger(__name__)


class Node:
    """One broker, which is a controller too: a Java process and its folder."""

    def __init__(self, node_id: int, folder: Path, port: int, files: KafkaFiles, java_options: tuple[str, ...]) -> None:
        self.node_id = node_id
        self.folder = folder
        self.port = port
        self.log = folder / "server.log"
        self._files = files
        self._java_options = java_options
        self._child: Child | None = None
        self._log_start = 0

    @property
    def pid(self) -> int:
        """The Java process's id, also after it ended."""
        assert self.process is not None, "the node was never started"
        return self.process.pid

    @property
    def process(self) -> subprocess.Popen[bytes] | None:
        """The Java process; `None` before the first start."""
        return None if self._child is None else self._child.process

    def start(self, timeout_seconds: float = START_TIMEOUT_SECONDS) -> None:
        """Starts the node, again or for the first time, and waits until it serves clients.

        Raises:
            ChildEndedError: it ended, or took longer than `timeout_seconds`.
        """
        self.launch()
        self.wait_until_started(timeout_seconds)

    def launch(self) -> None:
        """Starts the node without waiting; a running one is left alone."""
        if self.process is not None and self.process.poll() is None:
            return
        self._log_start = self.log.stat().st_size if self.log.exists() else 0
        command = [*self._files.java_command(*self._java_options), "kafka.Kafka", str(self.folder / "node.properties")]
        process = spawn(command, log=self.log, folder=self.folder)
        self._child = Child(f"Kafka node {self.node_id}", process, self.log)

    def wait_until_started(self, timeout_seconds: float) -> None:
        """Waits until the node says that it has joined the cluster and takes requests.

        Raises:
            ChildEndedError: it ended, or took longer than `timeout_seconds`.
        """
        assert self._child is not None
        deadline = time.monotonic() + timeout_seconds
        while True:
            self._child.check()
            with self.log.open("rb") as log:
                log.seek(self._log_start)
                if _STARTED in log.read():
                    return
            if time.monotonic() > deadline:
                raise self._child.failed(f"did not start within {timeout_seconds:.0f} s")
            time.sleep(0.02)

    def check(self) -> None:
        """Raises:
        ChildEndedError: the process has ended; with the end of its log.
        """
        if self._child is not None:
            self._child.check()

    def stop(self, timeout_seconds: float = STOP_TIMEOUT_SECONDS) -> None:
        """Ends the node as an operator would, and kills it when that takes longer than `timeout_seconds`."""
        if self.process is not None:
            end([self.process], timeout_seconds)

    def kill(self) -> None:
        """Ends the node at once, by SIGKILL."""
        self.stop(timeout_seconds=0)

    def suspend(self) -> None:
        """Stops the node where it is, by SIGSTOP: connections stay open, nothing answers."""
        assert self.process is not None
        self.process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Lets a suspended node go on."""
        assert self.process is not None
        self.process.send_signal(signal.SIGCONT)


class EmbeddedKafka:
    """A cluster of one node or three."""

    def __init__(
        self,
        folder: Path | None = None,
        nodes: int = 1,
        port: int | None = None,
        settings: Mapping[str, str] | None = None,
        console: Console | None = None,
    ) -> None:
        """Args:
        folder: where the logs are kept, over restarts too; `None` for a temporary folder, thrown away at the end.
        nodes: how many; topics of three have three replicas and need two.
        port: where the first node listens, the others at the ports after it; `None` for any free ports.
        settings: broker settings beside those of this module, or instead of them.
        console: where a first download is shown; `None` for standard error.
        """
        self._kept = folder is not None
        self._folder = folder.absolute() if folder is not None else None
        self._node_count = nodes
        self._port = port
        self._settings = dict(settings or {})
        self._console = console or Console(stderr=True)
        self.nodes: list[Node] = []

    @property
    def bootstrap_servers(self) -> str:
        """All nodes, as clients want them: host:port, separated by commas."""
        return ",".join(f"127.0.0.1:{node.port}" for node in self.nodes)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Starts all nodes and waits until every one of them serves clients.

        Raises:
            KafkaJarsMissingError: Apache Kafka is not cached and cannot be downloaded.
            PortTakenError: somebody listens on `port`.
            ChildEndedError: a node did not start.
        """
        files = kafka_files(self._console)
        if not files.aot_cache.exists():
            with self._console.status("Preparing Apache Kafka (the first time only)"):
                _make_aot_cache(files)
        java_options = (f"-XX:AOTCache={files.aot_cache}",) if files.aot_cache.stat().st_size else ()
        self._start(files, java_options)

    def _start(self, files: KafkaFiles, java_options: tuple[str, ...]) -> None:
        if self._folder is None:
            self._folder = Path(tempfile.mkdtemp(prefix="runtap-kafka-"))
        ports = self._choose_ports()
        self.nodes = [
            Node(index + 1, self._folder / f"node-{index + 1}", ports[index], files, java_options)
            for index in range(self._node_count)
        ]
        try:
            self._configure(files, ports[self._node_count :])
            for node in self.nodes:
                node.launch()
            deadline = time.monotonic() + START_TIMEOUT_SECONDS
            for node in self.nodes:
                node.wait_until_started(max(0.0, deadline - time.monotonic()))
        except BaseException:
            self.stop(timeout_seconds=0)
            raise

    def stop(self, timeout_seconds: float = STOP_TIMEOUT_SECONDS) -> None:
        """Ends all nodes: a kept log in order, within `timeout_seconds`, a temporary one at once."""
        processes = [node.process for node in self.nodes if node.process is not None]
        end(processes, timeout_seconds if self._kept else 0)
        if not self._kept and self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None

    def check(self) -> None:
        """Raises:
        ChildEndedError: a node's process has ended; with the end of its log.
        """
        for node in self.nodes:
            node.check()

    def _choose_ports(self) -> list[int]:
        """A port for every node's clients, then one for every node's controller."""
        clients = free_ports(self._node_count)
        if self._port is not None:
            clients = [self._port + index for index in range(self._node_count)]
            for port in clients:
                if not is_free(port):
                    raise PortTakenError(port)
        return clients + free_ports(self._node_count, besides=clients)

    def _configure(self, files: KafkaFiles, controller_ports: list[int]) -> None:
        """Writes every node's settings, and formats the folders of new ones."""
        assert self._folder is not None
        cluster_id = self._cluster_id()
        for node, controller_port in zip(self.nodes, controller_ports, strict=True):
            node.folder.mkdir(parents=True, exist_ok=True)
            settings = {
                "process.roles": "broker,controller",
                "node.id": str(node.node_id),
                "controller.quorum.voters": ",".join(
                    f"{other.node_id}@127.0.0.1:{port}"
                    for other, port in zip(self.nodes, controller_ports, strict=True)
                ),
                "controller.listener.names": "CONTROLLER",
                "listener.security.protocol.map": "CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT",
                "listeners": f"PLAINTEXT://127.0.0.1:{node.port},CONTROLLER://127.0.0.1:{controller_port}",
                "advertised.listeners": f"PLAINTEXT://127.0.0.1:{node.port}",
                "log.dirs": (node.folder / "data").as_posix(),
                **_replication_settings(self._node_count),
                **_SETTINGS,
                **(_QUORUM_SETTINGS if self._node_count > 1 else {}),
                **self._settings,
            }
            lines = "".join(f"{name}={value}\n" for name, value in settings.items())
            (node.folder / "node.properties").write_text(lines)
            _format(node, cluster_id, files)

    def _cluster_id(self) -> str:
        for node in self.nodes:
            properties = node.folder / "data" / "meta.properties"
            if properties.exists():
                return dict(line.split("=", 1) for line in properties.read_text().splitlines() if "=" in line)[
                    "cluster.id"
                ]
        return _new_id()


def _replication_settings(node_count: int) -> dict[str, str]:
    replicas, in_sync = str(min(3, node_count)), str(min(2, node_count))
    return {
        "default.replication.factor": replicas,
        "offsets.topic.replication.factor": replicas,
        "transaction.state.log.replication.factor": replicas,
        "transaction.state.log.min.isr": in_sync,
        "share.coordinator.state.topic.replication.factor": replicas,
        "share.coordinator.state.topic.min.isr": in_sync,
    }


def _format(node: Node, cluster_id: str, files: KafkaFiles) -> None:
    """Does for a new folder what Kafka's StorageTool does in a second."""
    data = node.folder / "data"
    if (data / "meta.properties").exists():
        return
    (data / "__cluster_metadata-0").mkdir(parents=True, exist_ok=True)
    shutil.copyfile(
        files.bootstrap_checkpoint,
        data / "__cluster_metadata-0" / "00000000000000000000-0000000000.checkpoint",
    )
    (data / "meta.properties").write_text(
        f"version=1\ncluster.id={cluster_id}\nnode.id={node.node_id}\ndirectory.id={_new_id()}\n"
    )


def _make_aot_cache(files: KafkaFiles) -> None:
    """Runs a broker once to let Java store what it loads and links at a start."""
    with tempfile.TemporaryDirectory(prefix="aot-", dir=files.folder) as scratch:
        made = Path(scratch) / "made.aot"
        trained = EmbeddedKafka(Path(scratch) / "kafka")
        trained._start(files, (f"-XX:AOTCacheOutput={made}",))
        # The cache is written while Java ends, by another Java process.
        trained.stop(timeout_seconds=60)
        if not made.exists():
            _logger.warning("java_aot_cache_failed", log=last_lines(trained.nodes[0].log))
            made.touch()
        made.replace(files.aot_cache)


def _new_id() -> str:
    """A random id as Kafka writes them. A leading dash would be taken for an option by its tools."""
    while (text := base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")).startswith("-"):
        pass
    return text
