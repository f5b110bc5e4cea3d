"""`runtap worker`, `store`, `topics` and `doctor`: what keeps the figures, and what it needs before and beside it."""

from __future__ import annotations

import asyncio
from typing import Annotated

import typer

from runtap_consumers.cli.logs import configure_logs
from runtap_consumers.cli.options import Health, check_known, health_address, takes_settings
from runtap_consumers.cli.terminal import say
from runtap_consumers.errors import InputError
from runtap_consumers.projections import PROJECTIONS
from runtap_consumers.settings import ConsumerSettings
from runtap_schemas.topics import events_topic

_ALERTS, _NOTIFY = "alerts", "notify"
_NAMES = (*PROJECTIONS, _ALERTS, _NOTIFY)
store_app = typer.Typer(help="The store of the figures.", no_args_is_help=True)
topics_app = typer.Typer(help="The topics on Kafka.", no_args_is_help=True)


@takes_settings("bootstrap_servers", "database_url")
def worker(
    settings: ConsumerSettings,
    names: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[NAME]...", help=f"What to run: {', '.join(_NAMES)}. All but {_NOTIFY} where none is named."
        ),
    ] = None,
    drain: Annotated[
        bool, typer.Option("--drain", help="Stop when caught up with the end that the topic had at the start.")
    ] = False,
    health: Health = None,
) -> None:
    """Turns the stream into figures, and figures into alerts. Any number may run; SIGTERM ends one cleanly."""
    check_known("projection", names or [], _NAMES)
    alerts = not names or _ALERTS in names
    projections = tuple(name for name in PROJECTIONS if not names or name in names)
    configure_logs(settings.log_level)
    health_at = None if health is None else health_address(health)
    if _NOTIFY in (names or ()):
        if names != [_NOTIFY] or drain:
            raise InputError(f"{_NOTIFY} is a process of its own, which needs no store: run `runtap worker {_NOTIFY}`")
        from runtap_consumers.notify.loop import channels_of, run_notifier

        return asyncio.run(run_notifier(settings, channels_of(settings), health_at))
    # The worker brings the Kafka client and the prices along, which the other commands need not wait for.
    from runtap_consumers.alerts.loop import run_alerts
    from runtap_consumers.alerts.rule_file import find_rules
    from runtap_consumers.figures.shared_emitters import tell_shared_emitters
    from runtap_consumers.pricing.source import PriceSource
    from runtap_consumers.worker.process import run_worker

    if alerts:
        # A mistake stops it now; one that is made later does not.
        find_rules(settings.alerts, settings.cost_attributes)
    running = run_worker(
        settings,
        projections,
        PriceSource(settings),
        companion=(lambda store, stop, on_round: run_alerts(store, settings, stop, on_round)) if alerts else None,
        side_tasks=(tell_shared_emitters,) if "ledger" in projections else (),
        drain=drain,
        health_at=health_at,
    )
    raise typer.Exit(asyncio.run(running))


@store_app.command()
@takes_settings("database_url")
def migrate(
    settings: ConsumerSettings,
    create: Annotated[bool, typer.Option("--create", help="Make the store where there is none.")] = False,
) -> None:
    """Brings a store that an older runtap made to this version. Forward only; stop the workers first."""
    from runtap_consumers.store.engine import migrate_store

    topic = events_topic(settings.topic_prefix) if create else None
    say(f"The store is at version {migrate_store(settings.database_url, topic, settings.timezone)}.")


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
    for state in asyncio.run(create_topics(settings, partitions, replication_factor)):
        name, done = state.topic.name, "made" if state.created else "exists"
        layout = f"{state.partitions} partitions, replication factor {state.replication_factor}"
        say(f"{name}: {done} ({state.topic.purpose}; {layout})")
        for difference in state.differences(replication_factor, partitions):
            say(f"warning: {name}: {difference.setting} is {difference.found}, not {difference.wanted}", err=True)


@takes_settings("bootstrap_servers", "database_url")
def doctor(settings: ConsumerSettings) -> None:
    """Checks settings, Kafka, topics, store and prices, one by one, and says what to do. Exits with 1 on a failure."""
    from runtap_consumers.cli.doctor import examine, print_finding

    configure_logs("error")
    raise typer.Exit(max(map(print_finding, examine(settings))))
