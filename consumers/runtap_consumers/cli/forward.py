"""`runtap forward`: runs to somebody else's tools."""

from __future__ import annotations

import asyncio
import os
from functools import partial
from typing import Annotated, Any

import typer

from runtap_consumers.cli.logs import configure_logs
from runtap_consumers.cli.look import FromBeginning
from runtap_consumers.cli.options import Health, health_address, takes_run_filter, takes_settings
from runtap_consumers.figures.words import ENDED_STATUSES
from runtap_consumers.settings import ConsumerSettings

forward_app = typer.Typer(help="Takes runs to other tools.", no_args_is_help=True)


@forward_app.callback()
def _group() -> None:
    pass


@forward_app.command()
@takes_settings("bootstrap_servers", "prices")
@takes_run_filter(ENDED_STATUSES)
def langsmith(
    settings: ConsumerSettings,
    wanted: dict[str, Any],
    sample: Annotated[float, typer.Option(min=0, max=1, help="The share of traces, each with all of its runs.")] = 1,
    from_beginning: FromBeginning = False,
    health: Health = None,
) -> None:
    """Sends runs, with their exact costs, and feedback to LangSmith, as LANGSMITH_API_KEY and LANGSMITH_ENDPOINT say.
    Needs no store; SIGTERM ends it.
    """
    configure_logs(settings.log_level)
    from runtap_consumers.forward.account import find_account
    from runtap_consumers.forward.choice import RunChoice
    from runtap_consumers.forward.loop import run_forwarder
    from runtap_consumers.worker.side_process import run_side_process

    account = find_account(os.environ)
    health_at = None if health is None else health_address(health)
    work = partial(run_forwarder, settings, account, RunChoice(**wanted, sample=sample), from_beginning)
    asyncio.run(run_side_process(work, health_at))
