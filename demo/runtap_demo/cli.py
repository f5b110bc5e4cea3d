"""Commands that the demo package adds to `runtap`."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import structlog
import typer
from rich.console import Console

from runtap_consumers.cli.terminal import say
from runtap_demo.demo import DemoOptions, run_demo
from runtap_demo.dev import DEFAULT_PORT, run_dev
from runtap_demo.errors import DemoError
from runtap_demo.kafka.broker import EmbeddedKafka
from runtap_demo.kafka.termination import unwound_by_signals


@contextmanager
def _console() -> Iterator[Console]:
    """Standard output for people, without logs. Errors of the demo keep their lines, which are the ends of logs."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    logging.getLogger().addHandler(logging.NullHandler())
    try:
        with unwound_by_signals():
            yield Console()
    except DemoError as error:
        say(f"runtap: {error}", err=True)
        sys.exit(1)


def demo(
    seed: Annotated[int, typer.Option(help="Decides the customers, their questions and the answers.")] = 1,
    json_file: Annotated[Path | None, typer.Option("--json", help="File to write the report to.")] = None,
    keep: Annotated[bool, typer.Option("--keep", help="Stay up after the report, until Ctrl-C.")] = False,
    bootstrap_servers: Annotated[str | None, typer.Option(help="A Kafka to use instead of the embedded one.")] = None,
    database_url: Annotated[str | None, typer.Option(help="A store to use instead of a temporary one.")] = None,
    openai: Annotated[
        bool, typer.Option("--openai", help="Call the real OpenAI API, with OPENAI_API_KEY. It costs some cents.")
    ] = False,
) -> None:
    """Run the whole pipeline here: Kafka, workers, a sample service, its report, and an independent count beside it."""
    options = DemoOptions(seed, json_file, keep, bootstrap_servers, database_url, openai)
    with _console() as console:
        raise typer.Exit(run_demo(options, console))


def dev(port: Annotated[int, typer.Option(min=1, max=65_535, help="Where Kafka listens.")] = DEFAULT_PORT) -> None:
    """Run Kafka and all workers for an app that you develop. Log and figures are kept in .runtap."""
    with _console() as console:
        run_dev(port, console)


def kafka(
    port: Annotated[
        int, typer.Option(min=1, max=65_533, help="Where it listens; more nodes at the ports after it.")
    ] = DEFAULT_PORT,
    nodes: Annotated[int, typer.Option(min=1, max=3, help="How many brokers.")] = 1,
    folder: Annotated[Path | None, typer.Option(help="Where the log is kept; a temporary folder if not given.")] = None,
) -> None:
    """Run the embedded Apache Kafka alone, until Ctrl-C. For development only."""
    with _console() as console, EmbeddedKafka(folder, nodes, port, console=console) as embedded:
        console.print(f"Apache Kafka listens on {embedded.bootstrap_servers}", highlight=False, soft_wrap=True)
        try:
            while True:
                embedded.check()
                time.sleep(0.25)
        except KeyboardInterrupt:
            console.print("Ended.")
