"""`runtap forward`: runs to somebody else's tools."""

from __future__ import annotations

import asyncio
import os
from functools import partial
from typing import Annotated

import typer

from runtap_consumers.cli.logs import configure_logs
from runtap_consumers.cli.look import RUN_TYPES, FromBeginning
from runtap_consumers.cli.options import Health, check_known, health_address, takes_settings
from runtap_consumers.figures.runs import metadata_pair
from runtap_consumers.settings import ConsumerSettings

forward_app = typer.Typer(help="Takes runs to other tools.", no_args_is_help=True)
_STATUSES = ("ok", "error", "interrupted", "cancelled")


@forward_app.callback()
def _group() -> None:
    pass


@forward_app.command()
@takes_settings("bootstrap_servers", "prices")
def langsmith(
    settings: ConsumerSettings,
    sample: Annotated[float, typer.Option(min=0, max=1, help="The share of traces, each with all of its runs.")] = 1,
    service: Annotated[str | None, typer.Option(help="Only runs of this service.")] = None,
    name: Annotated[str | None, typer.Option(help="Only runs of this name.")] = None,
    model: Annotated[str | None, typer.Option(help="Only runs of this model, as asked for or answered.")] = None,
    tag: Annotated[str | None, typer.Option(help="Only runs with this tag.")] = None,
    metadata: Annotated[str | None, typer.Option(metavar="K=V", help="Only runs with this metadata.")] = None,
    status: Annotated[str | None, typer.Option(help=f"Only these: {', '.join(_STATUSES)}.")] = None,
    run_type: Annotated[str | None, typer.Option("--type", help=f"Only these: {', '.join(RUN_TYPES)}.")] = None,
    from_beginning: FromBeginning = False,
    health: Health = None,
) -> None:
    """Sends runs, with their exact costs, and feedback to LangSmith, as LANGSMITH_API_KEY and LANGSMITH_ENDPOINT say.
    Needs no store; SIGTERM ends it.
    """
    check_known("status", [status] if status else [], _STATUSES)
    check_known("type", [run_type] if run_type else [], RUN_TYPES)
    configure_logs(settings.log_level)
    from runtap_consumers.forward.account import find_account
    from runtap_consumers.forward.choice import RunChoice
    from runtap_consumers.forward.loop import run_forwarder
    from runtap_consumers.worker.side_process import run_side_process

    account = find_account(os.environ)
    pair = metadata_pair(metadata)
    wanted = RunChoice(sample, service, name, tag, pair, model, status, run_type)
    health_at = None if health is None else health_address(health)
    work = partial(run_forwarder, settings, account, wanted, from_beginning)
    asyncio.run(run_side_process(work, health_at))
