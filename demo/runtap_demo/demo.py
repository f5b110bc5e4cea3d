"""`runtap demo`: the whole pipeline on this machine for half a minute, with an independent count beside its report."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import sys
import tempfile
import time
import urllib.request
import uuid
from collections import Counter
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import KafkaError
from pydantic import SecretStr
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

from runtap_consumers.cli.printing import print_report
from runtap_consumers.errors import KafkaUnavailableError, StoreError
from runtap_consumers.figures.report import build_report
from runtap_consumers.figures.runs import describe_run
from runtap_consumers.figures.sections import ReportFigures
from runtap_consumers.kafka.client import client_options, running
from runtap_consumers.kafka.topics import create_topics
from runtap_consumers.settings import ConsumerSettings
from runtap_consumers.store.engine import open_store
from runtap_consumers.store.read.run_filter import RunFilter
from runtap_consumers.store.read.runs import stream_runs
from runtap_consumers.store.read.snapshot import open_reader
from runtap_demo.comparison import Comparison, reported_figures, served_figures
from runtap_demo.errors import DemoError
from runtap_demo.kafka.broker import EmbeddedKafka
from runtap_demo.kafka.child_processes import Child, end, spawn
from runtap_demo.kafka.ports import free_ports
from runtap_demo.serving import start_serve, wait_until_it_answers
from runtap_schemas import ConnectionSettings
from runtap_schemas.topics import all_topics

_PARTITIONS = 6
_SERVICE_TIMEOUT_SECONDS = 180.0
_DRAIN_TIMEOUT_SECONDS = 60.0
_STOP_TIMEOUT_SECONDS = 5.0
_DELETE_TIMEOUT_SECONDS = 10.0
_LOOK_SECONDS = 0.5
# The real API has no model of the house, and every call costs.
_REAL_API_OPTIONS = ("--sessions", "4", "--house-model", "gpt-4o-mini")


@dataclass(frozen=True)
class DemoOptions:
    """What `runtap demo` was asked for.

    Args:
        seed: decides the customers, their questions and the answers.
        json_file: where the report is written; `None` for nowhere.
        keep: stay up after the report, until Ctrl-C.
        bootstrap_servers: a Kafka to use; `None` for the embedded one.
        database_url: a store to use; `None` for a temporary one.
        openai: call the real API, which costs money and counts nothing for us.
    """

    seed: int = 1
    json_file: Path | None = None
    keep: bool = False
    bootstrap_servers: str | None = None
    database_url: str | None = None
    openai: bool = False


_TO_LOOK_AT = (
    ("costs --by root --by model", "which feature spends it, on which model"),
    ("runs --status error", "what broke; `runtap trace RUN_ID` shows where"),
    ("session s-1-05", "what one customer did, step by step"),
    ("ledger", "where every event is"),
)


def run_demo(options: DemoOptions, console: Console) -> int:
    """Runs the demo and ends all that it started, also when asked to stop half-way.

    Returns:
        The process's exit code: 0 when the report and the model server's totals agree.

    Raises:
        DemoError: a part did not start, or ended before its time.
    """
    if options.openai and not os.environ.get("OPENAI_API_KEY"):
        raise DemoError(
            "--openai needs OPENAI_API_KEY: set it, or leave the option out to use the loopback model server"
        )
    with ExitStack() as stack:
        demo = Demo(options, console, stack)
        demo.connect()
        with console.status("Starting workers and model server"):
            demo.start()
        demo.serve()
        with console.status("Draining"):
            demo.drain()
        agrees = demo.show()
        if options.keep:
            demo.keep_running()
        else:
            console.print("\n`runtap demo --keep` leaves it running, to look around with: costs, runs, trace, session.")
        return 0 if agrees else 1


class Demo:
    """The parts of a demo that is running; what it starts is ended by the exit stack, in reverse order."""

    def __init__(self, options: DemoOptions, console: Console, stack: ExitStack) -> None:
        self._options = options
        self._console = console
        self._stack = stack
        self._folder = Path(tempfile.mkdtemp(prefix="runtap-demo-"))
        stack.push(self._remove_folder)
        self._kafka: EmbeddedKafka | None = None
        self._settings: ConsumerSettings
        self._environment: dict[str, str] = {}
        self._worker: Child
        self._server: Child | None = None
        self._model_server: Child | None = None
        self._model_server_url = ""
        self._begin_ns = time.time_ns()
        self._before: Counter[tuple[str, str]] = Counter()

    def _remove_folder(self, kind: type[BaseException] | None, *_: object) -> None:
        # The message of an error names a log in this folder.
        if kind is None or not issubclass(kind, DemoError):
            shutil.rmtree(self._folder, ignore_errors=True)

    def connect(self) -> None:
        """Starts Kafka where none is named, and settles where topics and store are."""
        servers, security = self._options.bootstrap_servers, {}
        if servers is None:
            self._kafka = self._stack.enter_context(EmbeddedKafka(console=self._console))
            servers, security = self._kafka.bootstrap_servers, {"security_protocol": "PLAINTEXT"}
        # A store belongs to one events topic: a kept one always meets the same, a temporary one a new one.
        lasting = self._options.database_url is not None
        prefix = "runtap-demo" if lasting else f"runtap-demo-{uuid.uuid4().hex[:8]}"
        self._settings = ConsumerSettings.load(
            bootstrap_servers=servers,
            topic_prefix=prefix,
            database_url=self._options.database_url or f"sqlite:///{self._folder / 'runtap.db'}",
            **security,
        )
        # The sample service reads no .env, as no service does by itself: it gets the credentials from here.
        passed = self._settings.model_fields_set & {*ConnectionSettings.model_fields, "database_url"}
        for name in sorted(passed):
            value = getattr(self._settings, name)
            text = value.get_secret_value() if isinstance(value, SecretStr) else str(value)
            self._environment[f"RUNTAP_{name.upper()}"] = text

    def start(self) -> None:
        """Makes the topics, starts the workers and the model server."""
        asyncio.run(create_topics(self._settings, _PARTITIONS, replication_factor=1))
        if not self._options.openai:
            # The model server stands in for OpenAI; an address that nobody knows has no prices.
            prices = self._folder / "prices.toml"
            prices.write_text('[[seller]]\nhost = "127.0.0.1"\nprovider = "openai"\n')
            self._environment["RUNTAP_PRICES"] = str(prices)
        if self._kafka is None and self._options.database_url is None:
            self._stack.callback(self._delete_topics)
        if self._options.database_url is not None:
            # What an earlier demo left in the log must not be counted for this one.
            self._drain_worker()
            self._before = self._reported_figures()
        self._worker = self._spawn("worker", [sys.executable, "-m", "runtap_consumers", "worker"])
        if not self._options.openai:
            self._start_model_server()

    def _start_model_server(self) -> None:
        port = free_ports(1)[0]
        command = [sys.executable, "-m", "runtap_demo.model_server", "--port", str(port)]
        self._model_server_url = f"http://127.0.0.1:{port}"
        self._model_server = self._spawn("model server", [*command, "--seed", str(self._options.seed)])
        wait_until_it_answers(self._model_server, f"{self._model_server_url}/totals")

    def serve(self) -> None:
        """Runs the sample service to its end, and shows how far everybody is."""
        command = [sys.executable, "-m", "runtap_demo.service", "--seed", str(self._options.seed)]
        loopback = {"OPENAI_BASE_URL": f"{self._model_server_url}/v1", "OPENAI_API_KEY": "none"}
        if self._options.openai:
            service = self._spawn("service", [*command, *_REAL_API_OPTIONS])
        else:
            service = self._spawn("service", command, loopback)
        deadline = time.monotonic() + _SERVICE_TIMEOUT_SECONDS
        columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[count]}"))
        with Progress(*columns, TimeElapsedColumn(), console=self._console, transient=True) as progress:
            tasks = [
                progress.add_task(name, total=None, count="")
                for name in ("customers' sessions", "answers by the model", "events applied by the workers")
            ]
            while service.process.poll() is None and time.monotonic() < deadline:
                self._check_parts()
                self._show_progress(progress, tasks, service)
                time.sleep(_LOOK_SECONDS)
        service.wait(timeout_seconds=0.1)

    def _show_progress(self, progress: Progress, tasks: list[TaskID], service: Child) -> None:
        # The last line may be half written, and the last whole one a library's warning.
        line = service.log.read_text().rpartition("\n")[0].rpartition("\n")[2]
        said = json.loads(line) if line.startswith("{") else {}
        if "of" in said:
            count = f"{said['sessions']} of {said['of']}, {said['questions']} questions"
            progress.update(tasks[0], completed=said["sessions"], total=said["of"], count=count)
        if self._model_server is not None:
            answers = sum(model["calls"] for model in self._served_totals()["by_model"].values())
            progress.update(tasks[1], count=f"{answers:,}")
        if (ledger := self._ledger()) is not None:
            count = f"{ledger['applied']:,} of {ledger['captured']:,}"
            progress.update(tasks[2], completed=ledger["applied"], total=ledger["captured"] or None, count=count)

    def drain(self) -> None:
        """Ends the workers, and lets one read to the end of the topic."""
        end([self._worker.process], _STOP_TIMEOUT_SECONDS)
        self._drain_worker()

    def show(self) -> bool:
        """Prints the report, and beside it what the model server counted.

        Returns:
            Whether they agree; also where the real API was called, which counts nothing for us.
        """
        report = self._report()
        if self._options.json_file is not None:
            self._options.json_file.write_text(json.dumps(report, indent=2) + "\n")
        print_report(report, self._console)
        if self._model_server is None:
            return True
        comparison = Comparison(self._reported_figures() - self._before, served_figures(self._served_totals()))
        self._console.print()
        self._console.print(comparison.table())
        if comparison.differences:
            shown = ", ".join(f"{figure} of {model}" for model, figure in comparison.differences)
            self._console.print(f"[bold red]The figures differ:[/bold red] {shown}")
            return False
        self._console.print("[bold green]Every figure is the same.[/bold green]")
        return True

    def keep_running(self) -> None:
        """Keeps everything up until Ctrl-C or a signal."""
        self._worker = self._spawn("worker", [sys.executable, "-m", "runtap_consumers", "worker"])
        self._server, address = start_serve(self._folder / "serve.log", self._environment)
        self._stack.callback(end, [self._server.process], _STOP_TIMEOUT_SECONDS)
        wait_until_it_answers(self._server, f"{address}livez")
        self._console.print(f"\nStaying up until Ctrl-C. Page and API: {address}", highlight=False, soft_wrap=True)
        self._console.print("In another terminal, to look and to send:", highlight=False)
        for name, value in self._environment.items():
            if name != "RUNTAP_SASL_PASSWORD":
                self._console.print(f"  export {name}={value}", highlight=False, soft_wrap=True)
        for command, what in _TO_LOOK_AT:
            self._console.print(f"  runtap {command:<28}# {what}", highlight=False, soft_wrap=True)
        try:
            while True:
                self._check_parts()
                time.sleep(_LOOK_SECONDS)
        except KeyboardInterrupt:
            self._console.print("Ended.")

    def _spawn(self, name: str, command: list[str], environment: dict[str, str] | None = None) -> Child:
        log = self._folder / f"{name.replace(' ', '-')}.log"
        process = spawn(command, log=log, environment={**self._environment, **(environment or {})})
        self._stack.callback(end, [process], _STOP_TIMEOUT_SECONDS)
        return Child(f"The {name}", process, log)

    def _drain_worker(self) -> None:
        command = [sys.executable, "-m", "runtap_consumers", "worker", "--drain"]
        self._spawn("draining worker", command).wait(_DRAIN_TIMEOUT_SECONDS)

    def _check_parts(self) -> None:
        if self._kafka is not None:
            self._kafka.check()
        for child in (self._worker, self._model_server, self._server):
            if child is not None:
                child.check()

    def _served_totals(self) -> Any:
        with urllib.request.urlopen(f"{self._model_server_url}/totals", timeout=5) as response:
            return json.load(response)

    def _ledger(self) -> Any:
        """The report's ledger; `None` while the worker has not made the store."""
        try:
            return self._report()["ledger"]
        except StoreError:
            return None

    def _report(self) -> ReportFigures:
        with closing(open_store(self._settings.database_url)) as store:
            return build_report(store, self._begin_ns, None, None, self._settings.zone(), time.time_ns())

    def _reported_figures(self) -> Counter[tuple[str, str]]:
        wanted = RunFilter(run_type="llm", status="ok", since_ns=self._begin_ns)
        with open_reader(self._settings.database_url) as snapshot:
            runs = [describe_run(row, None, self._settings.zone()) for row in stream_runs(snapshot, wanted, None)]
        return reported_figures(self._report(), runs)

    def _delete_topics(self) -> None:
        """Leaves a Kafka that is not ours as it was found."""
        names = [topic.name for topic in all_topics(self._settings.topic_prefix)]
        try:
            asyncio.run(asyncio.wait_for(_delete(names, self._settings), _DELETE_TIMEOUT_SECONDS))
        except (KafkaError, KafkaUnavailableError, TimeoutError) as error:
            self._console.print(f"These topics are still on your Kafka ({error!r}): {', '.join(names)}")


async def _delete(names: list[str], settings: ConsumerSettings) -> None:
    async with running(AIOKafkaAdminClient(**client_options(settings)), settings) as admin:
        await admin.delete_topics(names)
