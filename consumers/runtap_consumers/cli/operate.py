"""`runtap topics create` and `runtap doctor`: what an operator needs before and beside the workers."""

from __future__ import annotations

import asyncio
from typing import Annotated

import typer

from runtap_consumers.cli.lines import say
from runtap_consumers.cli.logs import configure_logs
from runtap_consumers.cli.options import takes_settings
from runtap_consumers.cli.terminal import one_line
from runtap_consumers.kafka.client_log import watch_client_log
from runtap_consumers.settings import ConsumerSettings

topics_app = typer.Typer(help="The topics on Kafka.", no_args_is_help=True)


@topics_app.callback()
def topics() -> None:
    """The topics on Kafka."""


@topics_app.command()
@takes_settings("bootstrap_servers", "topic_prefix")
def create(
    settings: ConsumerSettings,
    partitions: Annotated[int, typer.Option(min=1, max=10_000, help="Partitions of the events topic.")] = 6,
    replication_factor: Annotated[
        int, typer.Option(min=1, max=9, help="Replicas of each topic; 1 on a single broker.")
    ] = 3,
    prints: Annotated[
        bool, typer.Option("--print", help="Change nothing; print the commands of Kafka's own tool instead.")
    ] = False,
) -> None:
    """Makes the topics that do not exist yet; those that do are left as they are."""
    from runtap_consumers.kafka.topics import create_topics, print_topics

    if prints:
        for line in print_topics(settings, partitions, replication_factor):
            say(line)
        return
    configure_logs("warning")
    watch_client_log(is_silent=True)
    for state in asyncio.run(create_topics(settings, partitions, replication_factor)):
        done = "made" if state.created else "exists"
        layout = f"{state.partitions} partitions, replication factor {state.replication_factor}"
        say(f"{state.topic.name}: {done} ({state.topic.purpose}; {layout})")
        for difference in state.differences(replication_factor, partitions):
            say(
                f"warning: {state.topic.name}: {difference.setting} is {difference.found}, not {difference.wanted}",
                err=True,
            )


@takes_settings("bootstrap_servers", "database_url")
def doctor(settings: ConsumerSettings) -> None:
    """Checks settings, Kafka, topics, store and prices, one by one, and says what to do. Exits with 1 on a failure."""
    configure_logs("error")
    watch_client_log(is_silent=True)
    raise typer.Exit(asyncio.run(_examine(settings)))


async def _examine(settings: ConsumerSettings) -> int:
    from rich.console import Console
    from rich.text import Text

    from runtap_consumers.cli.doctor import Level, examine

    styles = {Level.OK: "green", Level.WARN: "yellow", Level.FAIL: "bold red"}
    console = Console(highlight=False)
    failed = False
    async for finding in examine(settings):
        failed |= finding.level is Level.FAIL
        line = Text(f"{finding.level.value:5}", style=styles[finding.level])
        line.append(f"{finding.subject}: ", style="bold").append(one_line(finding.detail), style="default")
        console.print(line, soft_wrap=True)
        if finding.advice:
            console.print(Text(f"      → {one_line(finding.advice)}"), soft_wrap=True)
    return 1 if failed else 0
