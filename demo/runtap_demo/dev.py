"""`runtap dev`: Kafka and all workers for a developer's own app, on this machine, in one command."""

from __future__ import annotations

import asyncio
import sys
import time
from contextlib import ExitStack
from pathlib import Path

from rich.console import Console

from runtap_consumers.kafka.topics import create_topics
from runtap_consumers.settings import ConsumerSettings
from runtap_consumers.store.engine import open_store
from runtap_demo.kafka.broker import EmbeddedKafka
from runtap_demo.kafka.child_processes import Child, end, spawn
from runtap_demo.serving import start_serve, wait_until_it_answers
from runtap_schemas.topics import events_topic

FOLDER = Path(".runtap")
DEFAULT_PORT = 9092

_PARTITIONS = 6
_STOP_SECONDS = 5.0
_LOOK_SECONDS = 0.25


def run_dev(port: int, console: Console) -> None:
    """Runs until Ctrl-C or a signal; log and figures are kept in `.runtap` of the current folder.

    Raises:
        DemoError: a part did not start, or ended before its time.
        RuntapError: the topics or the store cannot be used.
    """
    with ExitStack() as stack:
        # The settings' defaults are what `runtap report` in this folder finds.
        settings = ConsumerSettings.load(bootstrap_servers=f"127.0.0.1:{port}", security_protocol="PLAINTEXT")
        kafka = stack.enter_context(EmbeddedKafka(FOLDER / "kafka", port=port, console=console))
        with console.status("Starting the workers"):
            asyncio.run(create_topics(settings, _PARTITIONS, replication_factor=1))
            # The server reads a store that is there.
            open_store(settings.database_url, events_topic(settings.topic_prefix), settings.timezone).close()
            worker = _start_worker(settings)
            stack.callback(end, [worker.process], _STOP_SECONDS)
            server, address = start_serve(FOLDER / "serve.log", {})
            stack.callback(end, [server.process], _STOP_SECONDS)
            wait_until_it_answers(server, f"{address}livez")
        _explain(settings, port, address, console)
        try:
            while True:
                kafka.check()
                worker.check()
                server.check()
                time.sleep(_LOOK_SECONDS)
        except KeyboardInterrupt:
            console.print("Ending; log and figures stay.")


def _start_worker(settings: ConsumerSettings) -> Child:
    log = FOLDER / "worker.log"
    environment = {
        "RUNTAP_BOOTSTRAP_SERVERS": settings.bootstrap_servers,
        "RUNTAP_SECURITY_PROTOCOL": settings.security_protocol,
    }
    command = [sys.executable, "-m", "runtap_consumers", "worker"]
    return Child("The worker", spawn(command, log=log, environment=environment), log)


def _explain(settings: ConsumerSettings, port: int, address: str, console: Console) -> None:
    """Says what runs where, what to do next, and what this is not for."""
    lines = [
        f"Kafka listens on {settings.bootstrap_servers}; topics {settings.topic_prefix}.*; log in {FOLDER / 'kafka'}",
        f"Workers write to {settings.database_url}; their log is {FOLDER / 'worker.log'}",
        f"Page and API are at {address}",
        "",
        "Attach RunTapHandler() to your app, run it, then look there, or in this folder: runtap report, runtap tail",
    ]
    if port != DEFAULT_PORT:
        lines.append(f"For your app and those commands: export RUNTAP_BOOTSTRAP_SERVERS={settings.bootstrap_servers}")
    lines += [
        "",
        "For development only: one broker, one copy of the data, no passwords, reachable from this machine alone.",
        "Stop with Ctrl-C; a new start goes on where this one ended.",
    ]
    for line in lines:
        console.print(line, highlight=False, soft_wrap=True)
