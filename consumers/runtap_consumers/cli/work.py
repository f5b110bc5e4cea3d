"""`runtap worker` and `runtap store`: what keeps the figures."""

from __future__ import annotations

import asyncio
from typing import Annotated

import typer

from runtap_consumers.cli.lines import say
from runtap_consumers.cli.logs import configure_logs
from runtap_consumers.cli.options import takes_settings
from runtap_consumers.errors import InputError
from runtap_consumers.kafka.client_log import watch_client_log
from runtap_consumers.projections import PROJECTIONS
from runtap_consumers.settings import ConsumerSettings

ALERTS = "alerts"
store_app = typer.Typer(help="The store of the figures.", no_args_is_help=True)


@takes_settings("bootstrap_servers", "database_url")
def worker(
    settings: ConsumerSettings,
    names: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[NAME]...", help=f"What to run: {', '.join((*PROJECTIONS, ALERTS))}. All where none is named."
        ),
    ] = None,
    drain: Annotated[
        bool, typer.Option("--drain", help="Stop when caught up with the end that the topic had at the start.")
    ] = False,
    health: Annotated[
        int | None, typer.Option(min=1, max=65_535, metavar="PORT", help="Serve health over HTTP; healthy is progress.")
    ] = None,
) -> None:
    """Turns the stream into figures, and figures into alerts. Any number may run; SIGTERM ends one cleanly."""
    projections, alerts = check_names(names or [])
    configure_logs(settings.log_level)
    # What keeps the client from connecting is told once, by the error.
    watch_client_log(is_silent=True)
    # The worker brings the Kafka client and the prices along, which the other commands need not wait for.
    from runtap_consumers.alerts.loop import run_alerts
    from runtap_consumers.figures.shared_emitters import tell_shared_emitters
    from runtap_consumers.pricing.source import PriceSource
    from runtap_consumers.worker.process import run_worker

    running = run_worker(
        settings,
        projections,
        PriceSource(settings),
        companion=(lambda store, stop, on_round: run_alerts(store, settings, stop, on_round)) if alerts else None,
        side_tasks=(tell_shared_emitters,) if "ledger" in projections else (),
        drain=drain,
        health_port=health,
    )
    raise typer.Exit(asyncio.run(running))


def check_names(names: list[str]) -> tuple[tuple[str, ...], bool]:
    """Sorts what a worker is to run into projections and the alert evaluator; all where none is named.

    Raises:
        InputError: there is no such thing.
    """
    known = (*PROJECTIONS, ALERTS)
    unknown = [name for name in names if name not in known]
    if unknown:
        raise InputError(f"there is no projection {', '.join(map(repr, unknown))}: expected any of {', '.join(known)}")
    wanted = names or known
    return tuple(name for name in PROJECTIONS if name in wanted), ALERTS in wanted


@store_app.callback()
def store() -> None:
    """The store of the figures."""


@store_app.command()
@takes_settings("database_url")
def migrate(settings: ConsumerSettings) -> None:
    """Brings a store that an older runtap made to this version. Forward only; stop the workers first."""
    from runtap_consumers.store.engine import migrate_store

    say(f"The store is at version {migrate_store(settings.database_url)}.")
